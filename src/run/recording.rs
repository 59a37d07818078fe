//! What the main thread knows about recording a run (`--record`): how it ended, and whether that is written.

use crate::history::{RunEnd, RunOutcome};
use crate::outcome::{ExitReason, Failure};
use crate::run::messages::LockLoss;
use crate::run::session::Session;
use crate::run::state::RECORD_TIMEOUT;
use std::time::Instant;

/// The record of a run, as far as its end is concerned.
#[derive(Default)]
pub(crate) struct Recording {
    /// Whether the session's thread has begun to record the run.
    pub is_begun: bool,
    /// Whether the run is recorded as running, and its end is to be.
    pub is_wanted: bool,
    /// How the job exited or could not be started, and when.
    pub job_end: Option<(ExitReason, Instant)>,
    is_ordered: bool,
    /// By when the session's thread should have written the end.
    deadline: Option<Instant>,
    result: Option<Result<(), Failure>>,
}

impl Recording {
    /// Has the session's thread write the end of the run, once. Without an end, the job was not started.
    pub(crate) fn order(&mut self, session: &Session, loss: Option<&LockLoss>) {
        if !self.is_wanted || self.is_ordered {
            return;
        }
        self.is_ordered = true;
        self.expect_result();
        session.record_end(match self.job_end {
            None => RunEnd::NotStarted,
            Some((exit, at)) => RunEnd::Ended {
                outcome: outcome(exit, loss),
                exit: Some(exit),
                at,
            },
        });
    }

    /// Expects the session's thread to report a result, even after another one.
    pub(crate) fn expect_result(&mut self) {
        if self.is_ordered {
            self.result = None;
            self.deadline = Some(Instant::now() + RECORD_TIMEOUT);
        }
    }

    /// Notes what the session's thread reports.
    pub(crate) fn note_result(&mut self, result: Result<(), Failure>) {
        self.result = Some(result);
        self.deadline = None;
    }

    /// Returns until when to wait for a result, if one is expected.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Returns why the end is not written, if it should be.
    pub(crate) fn failure(&self) -> Option<String> {
        match &self.result {
            _ if !self.is_ordered => None,
            None => Some(format!(
                "no reply within {}",
                humantime::format_duration(RECORD_TIMEOUT)
            )),
            Some(Ok(())) => None,
            Some(Err(failure)) => Some(failure.to_string()),
        }
    }
}

fn outcome(exit: ExitReason, loss: Option<&LockLoss>) -> RunOutcome {
    match loss {
        Some(loss) if loss.is_eviction() => RunOutcome::Evicted,
        Some(_) => RunOutcome::Lost,
        None if exit == ExitReason::Code(0) => RunOutcome::Ok,
        None => RunOutcome::Failed,
    }
}
