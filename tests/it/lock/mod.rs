//! The lock itself: exclusion, conflict, slots, tickets, tokens, and servers that only seem to grant it.

mod conflict;
mod exclusion;
mod fair;
mod impostor;
mod pooler;
mod several_keys;
mod slots;
mod standby;
mod token;
