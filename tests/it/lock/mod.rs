//! The lock: exclusion, conflicts, slots, the FIFO queue, tokens, poolers, and servers that do not really grant it.

mod conflict;
mod exclusion;
mod fair;
mod forwarder;
mod impostor;
mod leftover;
mod many_keys;
mod nested;
mod pgdog;
mod pgpool;
mod pods;
mod pooler;
mod receipt;
mod session_pool;
mod settling;
mod several_keys;
mod slots;
mod standby;
mod token;
mod vanished;
