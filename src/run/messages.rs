//! The sentences that `pglock run` prints: pure functions of the facts. The supervisor decides when to print them.

use crate::connection::FULL_POOL;
use crate::run::signal_number::SignalNumber;
use humantime::{FormattedDuration, format_duration, format_rfc3339_seconds};
use nix::errno::Errno;
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::time::{Duration, Instant, SystemTime};

/// Why the lock is lost, or was not acquired, after a panic of the session's thread.
pub(crate) const SESSION_PANICKED: &str = "an internal error ended the session";
/// A bug: the state machine starts the job without a lock.
pub(crate) const NO_LOCK_TO_START: &str = "cannot start the command: no lock is held";
/// With `-v`: the connection was shut down instead of waiting for a release.
pub(crate) const DISCONNECTED: &str = "closed the connection without confirmation that the lock was released";

/// A lost lock.
pub(crate) struct LockLoss {
    reason: String,
    /// Another client requested the lock to be given up.
    is_requested: bool,
    at: SystemTime,
    /// The same time on the monotonic clock.
    pub noticed_at: Instant,
    /// Who evicted the session, if anybody did, once that is known.
    explanation: Option<Option<String>>,
    /// Who has the key already, if the job could not be guarded to its end.
    pub guard_failure: Option<String>,
    /// The process IDs of what is left of the job, which could not be killed.
    pub survivors: Vec<Pid>,
}

/// How far pglock went to terminate the job after the lock was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Termination {
    /// Nothing: the job had exited by then.
    NotNeeded,
    /// Sent SIGTERM.
    Term,
    /// Sent SIGTERM, then SIGKILL.
    Kill,
    /// The system denied permission: the job had changed to another user.
    Denied,
}

impl LockLoss {
    /// Creates a loss that is noticed now.
    pub(crate) fn new(reason: impl Into<String>) -> LockLoss {
        LockLoss {
            reason: reason.into(),
            is_requested: false,
            at: SystemTime::now(),
            noticed_at: Instant::now(),
            explanation: None,
            guard_failure: None,
            survivors: Vec::new(),
        }
    }

    /// Creates the loss of a lock that is given up because a client requests it.
    pub(crate) fn new_evicted(evictor: &str) -> LockLoss {
        LockLoss {
            explanation: Some(None),
            is_requested: true,
            ..LockLoss::new(format!("evicted by {evictor}"))
        }
    }

    /// Returns whether another client had the lock given up.
    pub(crate) fn is_eviction(&self) -> bool {
        self.is_requested || matches!(self.explanation, Some(Some(_)))
    }

    /// Adds who evicted the session, or that nobody did.
    pub(crate) fn explain(&mut self, evictor: Option<String>) {
        self.explanation.get_or_insert(evictor);
    }

    /// Returns whether it is known who evicted the session, or that nobody did.
    pub(crate) fn is_explained(&self) -> bool {
        self.explanation.is_some()
    }

    /// Creates the loss of a lock that the server no longer had when pglock released it.
    pub(crate) fn new_at_release() -> LockLoss {
        LockLoss::new("the server had already released it")
    }

    /// Creates the loss due to a server that did not answer a heartbeat within this time.
    pub(crate) fn new_unresponsive(heartbeat: Duration) -> LockLoss {
        LockLoss::new(format!("the server did not respond within {}", rounded(heartbeat)))
    }

    /// Returns the loss and the end of the job.
    pub(crate) fn with_termination(&self, keys: &str, termination: Termination) -> String {
        let consequence = match termination {
            Termination::NotNeeded if self.is_requested => "the job had already exited",
            Termination::NotNeeded => "the job had already exited; another job may have run concurrently",
            Termination::Term => "terminated the job with SIGTERM",
            Termination::Kill => "terminated the job with SIGTERM, then SIGKILL",
            Termination::Denied if self.survivors.is_empty() => "the job could not be terminated and exited on its own",
            Termination::Denied => "the job could not be terminated",
        };
        let survivors: Vec<String> = self.survivors.iter().map(Pid::to_string).collect();
        let left = match &survivors[..] {
            [] => String::new(),
            [pid] => format!("; process {pid} of the job is still running"),
            pids => format!("; processes {} of the job are still running", pids.join(", ")),
        };
        let taken = match &self.guard_failure {
            Some(message) => format!("; {message}"),
            None => String::new(),
        };
        format!("{}; {consequence}{left}{taken}", self.sentence(keys))
    }

    /// Returns the loss, or that it is requested, and what fails while the job is being terminated.
    pub(crate) fn with_failure(&self, keys: &str, failure: &str) -> String {
        if self.is_requested {
            // The lock is still held.
            format!("{}; {failure}", self.reason)
        } else {
            format!("{}; {failure}", self.sentence(keys))
        }
    }

    /// For a service manager: what happens to the job, such as `running`, and why.
    pub(crate) fn status(&self, what_happens: &str) -> String {
        format!("{what_happens}: {}", self.reason)
    }

    /// Returns the loss of a lock under which no job was started.
    pub(crate) fn before_start(&self, keys: &str) -> String {
        format!("{}; the job was not started", self.sentence(keys))
    }

    /// Returns the loss with `--on-lost ignore`.
    pub(crate) fn ignored(&self, keys: &str) -> String {
        format!(
            "{}; the job continues unguarded (--on-lost ignore)",
            self.sentence(keys)
        )
    }

    fn sentence(&self, keys: &str) -> String {
        let evictor = match self.explanation.as_ref().and_then(Option::as_ref) {
            Some(evictor) => format!(" (evicted by {evictor})"),
            None => String::new(),
        };
        format!(
            "lost the lock on {keys} at {}: {}{evictor}",
            format_rfc3339_seconds(self.at),
            self.reason
        )
    }
}

/// The run was recorded when it began, but its end was not.
pub(crate) fn not_recorded(keys: &str, reason: &str) -> String {
    format!("could not record how the run on {keys} ended: {reason}")
}

/// With `-v`: the lock is acquired.
pub(crate) fn acquired(keys: &str, waited: Duration) -> String {
    format!("acquired the lock on {keys} after {}", rounded(waited))
}

/// For a service manager: the job is started.
pub(crate) fn job_started(program: &OsStr, acquired_at: SystemTime) -> String {
    format!(
        "running {} (lock held since {})",
        program.display(),
        format_rfc3339_seconds(acquired_at)
    )
}

/// The lock was not acquired: who holds it, if known, and how long pglock waited, if it did.
pub(crate) fn conflict(keys: &str, holder: Option<&str>, wait_limit: Option<Duration>) -> String {
    let held = match holder {
        Some(sentence) => sentence.to_owned(),
        None => format!("could not acquire the lock on {keys}; the holder could not be determined"),
    };
    match wait_limit {
        Some(limit) => format!("{held}; gave up after {}", rounded(limit)),
        None => format!("{held}; not waiting"),
    }
}

/// The server could not be reached in time.
pub(crate) fn connect_timeout(address: &str, waited: Duration) -> String {
    format!("cannot connect to {address} within {}", rounded(waited))
}

/// The wait is over, and the password prompt is still open.
pub(crate) fn password_timeout(address: &str, waited: Duration) -> String {
    format!(
        "no password was entered within {}, and {address} requested one",
        rounded(waited)
    )
}

/// The wait is over, and the last attempt to connect failed for this reason.
pub(crate) fn wait_failed(reason: &str, waited: Duration) -> String {
    format!("{reason}; gave up after {}", rounded(waited))
}

/// The server stopped responding before the lock was acquired.
pub(crate) fn unresponsive(since_startup: Duration) -> String {
    format!(
        "the server stopped responding {} after startup ({FULL_POOL})",
        rounded(since_startup)
    )
}

/// A signal could not be sent to the job.
pub(crate) fn signal_failure(signal: SignalNumber, error: Errno) -> String {
    format!("cannot send {signal} to the job: {}", error.desc())
}

/// Formats a duration, rounded down to the millisecond.
fn rounded(duration: Duration) -> FormattedDuration {
    format_duration(Duration::from_millis(duration.as_millis() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conflict_names_the_holder_and_the_wait() {
        assert_eq!(
            conflict("key \"a\"", Some("key \"a\" is held by web1:7"), None),
            "key \"a\" is held by web1:7; not waiting"
        );
        assert_eq!(
            conflict("key \"a\"", None, Some(Duration::from_micros(2_500_700))),
            "could not acquire the lock on key \"a\"; the holder could not be determined; gave up after 2s 500ms"
        );
    }

    #[test]
    fn a_loss_names_the_reason_the_evictor_and_the_consequence() {
        let mut loss = LockLoss::new_unresponsive(Duration::from_secs(5));
        loss.at = SystemTime::UNIX_EPOCH;
        assert_eq!(
            loss.before_start("key \"a\""),
            "lost the lock on key \"a\" at 1970-01-01T00:00:00Z: the server did not respond within 5s; \
             the job was not started"
        );
        loss.reason = "terminating connection due to administrator command".into();
        loss.explain(Some("root@ops1:18412".into()));
        assert_eq!(
            loss.with_termination("key \"a\"", Termination::Term),
            "lost the lock on key \"a\" at 1970-01-01T00:00:00Z: terminating connection due to administrator command \
             (evicted by root@ops1:18412); terminated the job with SIGTERM"
        );
        loss.survivors = vec![Pid::from_raw(7), Pid::from_raw(9)];
        let message = loss.with_termination("key \"a\"", Termination::Denied);
        let end = "; the job could not be terminated; processes 7, 9 of the job are still running";
        assert!(message.ends_with(end), "{message}");
    }

    #[test]
    fn a_job_that_exited_as_it_was_evicted_ran_alone() {
        let loss = LockLoss::new_evicted("root@ops1:18412");
        let message = loss.with_termination("key \"a\"", Termination::NotNeeded);
        assert!(message.ends_with("; the job had already exited"), "{message}");
    }
}
