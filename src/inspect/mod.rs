//! Which sessions hold a lock, which wait for it, and who they are.

pub mod backend;
pub mod eviction;
pub mod holders;
mod lock_row;
mod names;
pub mod overview;
mod polling;
pub mod server_time;
