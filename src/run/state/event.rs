//! The inputs and outputs of the state machine.

use crate::outcome::{ExitCode, ExitReason, Outcome};
use crate::run::signal_number::SignalNumber;
use crate::run::signals::SignalInfo;
use nix::sys::signal::Signal;
use std::time::Instant;

/// An input of the state machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// pglock received a signal.
    Signal(SignalInfo),
    /// The session is connected; from now on its wait can be cancelled.
    Connected,
    /// The server has answered a query.
    Answered,
    /// Another client holds the lock.
    Contended,
    /// The session has no connection any more, and will connect again.
    Disconnected,
    /// The session reported that it is alive.
    Alive {
        /// When its next report is due.
        next_due: Instant,
    },
    /// The session acquired the lock.
    Acquired,
    /// The session failed to acquire the lock; pglock ends with this outcome.
    NotAcquired(Outcome),
    /// The job was started.
    JobStarted {
        /// Whether it runs in the caller's process group rather than in its own.
        in_callers_group: bool,
    },
    /// The job could not be started.
    JobNotStarted(ExitCode),
    /// The job exited and is not reaped yet.
    JobExited(ExitReason),
    /// The job was stopped.
    JobStopped {
        /// The signal that stopped it.
        signal: i32,
        /// Whether the terminal sent the signal, rather than a process with kill(2).
        by_terminal: bool,
    },
    /// The job was continued.
    JobContinued,
    /// No process of the job is left. Reported only while `RunState::is_draining`.
    GroupEmpty,
    /// A process of the job is seen to be left. Reported only while `RunState::is_draining`.
    GroupAlive,
    /// The lock that was acquired is lost before the job was started. The session goes on waiting for it.
    Withdrawn,
    /// The session ended while it held the lock.
    LockLost,
    /// A client that may do so requests the lock, which is still held.
    EvictionRequested,
    /// The session released the lock.
    Released {
        /// Whether it held the lock until then.
        was_held: bool,
    },
    /// Time has passed.
    Tick,
}

/// An order of the state machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Cancel the session's wait for the lock.
    CancelWait,
    /// Forward a signal to the job.
    Forward(SignalNumber),
    /// Send a signal to the whole job, including its descendants.
    SignalAll(Signal),
    /// Continue the stopped job.
    ContinueJob,
    /// Stop this process with the signal that stopped the job, so that the shell sees it.
    StopSelf(i32),
    /// Reap the job. Its pid must not be signalled afterwards.
    Reap,
    /// Release the lock.
    Release,
    /// Shut the connection down without waiting for the server to confirm a release.
    Disconnect,
    /// While no job runs, shut the connection down, which does not respond: the session then connects again.
    AbandonConnection,
    /// Report that the lock is lost or given up, and the job continues.
    ReportUnguarded,
    /// End pglock with this outcome.
    Finish(Outcome),
}
