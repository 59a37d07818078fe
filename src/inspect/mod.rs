//! Which sessions hold a lock, which wait for it, and who they are.

pub(crate) mod backend;
pub(crate) mod eviction;
pub(crate) mod holders;
mod leftover;
mod lock_row;
mod names;
pub(crate) mod overview;
mod polling;
pub(crate) mod proxy;
pub(crate) mod server_time;
