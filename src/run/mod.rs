//! A supervised run: the session that holds the lock, the job, and the loop that watches both.

pub(crate) mod ancestors;
pub(crate) mod job;
mod job_events;
pub(crate) mod messages;
pub(crate) mod options;
pub(crate) mod progress;
mod recording;
mod service_manager;
pub(crate) mod session;
pub(crate) mod signal_number;
mod signal_queue;
pub(crate) mod signals;
pub(crate) mod state;
pub(crate) mod supervisor;
