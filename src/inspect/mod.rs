//! Who holds a lock, and who waits for it.

pub mod backend;
pub mod eviction;
pub mod names;
pub mod overview;
