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

/// How long recording the end of a run may take. The lock is kept meanwhile, so that the next holder of the key finds
/// the end.
pub(crate) const RECORD_TIMEOUT: Duration = Duration::from_secs(5);

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
    /// Heartbeat and grace period.
    pub timing: Timing,
    /// Whether the end of the run is recorded before the lock is released.
    pub is_recorded: bool,
}

impl Policy {
    /// Returns how long a release may take: as long as a heartbeat, after the end of the run is recorded.
    pub(super) fn release_timeout(&self) -> Duration {
        let record_timeout = if self.is_recorded {
            RECORD_TIMEOUT
        } else {
            Duration::ZERO
        };
        self.timing.heartbeat + record_timeout
    }
}
