//! The choices of the user that the state machine follows.

use crate::run::session::timing::Timing;
use crate::run::signal_number::SignalNumber;
use std::time::Duration;

/// What happens to the job when the lock is lost (`--on-lost`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum OnLost {
    /// It is terminated.
    #[default]
    Stop,
    /// It continues without the lock.
    Ignore,
}

/// Exit status, time limits, and what to do about a lost lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Policy {
    /// The exit status if the lock is held or the wait times out.
    pub conflict_status: u8,
    /// What to do with the job when the lock is lost.
    pub on_lost: OnLost,
    /// The minimum time to hold the lock, counted from its acquisition.
    pub min_hold: Duration,
    /// A signal that ends a wait as SIGTERM does, besides those that do anyway.
    pub stop_signal: Option<SignalNumber>,
    /// Heartbeat and grace period. The server's reply to a release may take as long as one to a heartbeat.
    pub timing: Timing,
}
