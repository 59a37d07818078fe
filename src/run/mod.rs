//! A supervised run: the session that holds the lock, the job, and the loop that watches both.

pub mod job;
pub mod messages;
pub mod options;
pub mod progress;
pub mod session;
pub mod signals;
pub mod state;
pub mod supervisor;
