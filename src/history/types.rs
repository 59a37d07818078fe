//! Runs, and how they end. Pure.

use crate::key::KeyId;
use crate::lock::Mode;
use crate::outcome::ExitReason;
use std::time::{Duration, Instant};

/// How a run stands or ended, as the table has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RunOutcome {
    /// The job runs, or its pglock died and nobody has held the key since.
    Running,
    /// The job exited with status 0 while the lock was held.
    Ok,
    /// The job exited with another status, was killed by a signal, or could not be started.
    Failed,
    /// The lock was lost while the job ran.
    Lost,
    /// Another client requested the lock to be given up, so the job was terminated.
    Evicted,
    /// Its pglock died before the end of the run was recorded.
    Abandoned,
}

impl RunOutcome {
    /// Every outcome.
    pub(crate) const ALL: [RunOutcome; 6] = [
        RunOutcome::Running,
        RunOutcome::Ok,
        RunOutcome::Failed,
        RunOutcome::Lost,
        RunOutcome::Evicted,
        RunOutcome::Abandoned,
    ];

    /// Returns the word in the table, which is part of the stable interface.
    pub(crate) fn name(self) -> &'static str {
        match self {
            RunOutcome::Running => "running",
            RunOutcome::Ok => "ok",
            RunOutcome::Failed => "failed",
            RunOutcome::Lost => "lost",
            RunOutcome::Evicted => "evicted",
            RunOutcome::Abandoned => "abandoned",
        }
    }
}

/// A run that is about to start.
#[derive(Clone, Debug)]
pub(crate) struct NewRun<'a> {
    /// The keys as given, each with the number of its lock. Each gets a row.
    pub keys: Vec<(&'a str, KeyId)>,
    /// Exclusive or shared.
    pub mode: Mode,
    /// Our slot, with `--slots`.
    pub slot: Option<usize>,
    /// This host.
    pub host: String,
    /// Our process.
    pub pid: u32,
    /// The job's program, without its arguments: those may contain secrets.
    pub job: String,
    /// The user's note.
    pub note: Option<&'a str>,
    /// The fencing token.
    pub token: Option<&'a str>,
    /// How long it took to acquire the lock.
    pub waited: Duration,
    /// Start only if no run of the only key has succeeded that started within this time.
    pub once_per: Option<Duration>,
    /// The condition that the lock is still held, if another session holds it than the one that records the run.
    pub lock_condition: Option<String>,
}

/// The end of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RunEnd {
    /// The job was not started, by no fault of its own. Nothing is kept.
    NotStarted,
    /// The job ended, or could not be started.
    Ended {
        /// Anything but running.
        outcome: RunOutcome,
        /// How the job exited, if it is known.
        exit: Option<ExitReason>,
        /// When it did.
        at: Instant,
    },
}

impl RunEnd {
    /// Returns the end for a lock that turned out to be lost: the job may not have run alone.
    pub(crate) fn after_loss(self) -> RunEnd {
        match self {
            RunEnd::Ended {
                outcome: RunOutcome::Ok | RunOutcome::Failed,
                exit,
                at,
            } => RunEnd::Ended {
                outcome: RunOutcome::Lost,
                exit,
                at,
            },
            end => end,
        }
    }
}
