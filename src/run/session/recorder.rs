//! Recording the end of a run that was recorded when it began.
//!
//! While the lock is held, the end is written before the lock is released: by the session itself, or over another
//! connection if the lock is that of a transaction. After a loss it is written over a connection of its own, and says
//! that the lock was lost; if that fails too, the next holder of the key finds the run.

use super::claim::Claim;
use super::events::SessionEvent;
use super::orders::Orders;
use super::plan::SessionPlan;
use super::reporter::Reporter;
use crate::connection::Client;
use crate::history::{self, RecordedRun, RunEnd, TableName};
use crate::lock::Scope;
use crate::outcome::{ExitCode, Failure};
use crate::run::state::RECORD_TIMEOUT;
use crate::ui::message;
use std::cell::Cell;
use std::time::Duration;

/// How long to wait for a table that somebody has locked: less than for the reply, so that the server says what is
/// wrong.
const TABLE_LOCK_TIMEOUT: Duration = Duration::from_secs(RECORD_TIMEOUT.as_secs() / 2);

/// Records the end of a run.
pub(super) struct Recorder<'a> {
    pub(super) plan: &'a SessionPlan,
    pub(super) orders: &'a Orders,
    pub(super) reporter: &'a Reporter,
    run: RecordedRun,
    table: &'a TableName,
    /// To find out whether the job was started.
    claim: Claim,
    /// The end, once the main thread has reported it.
    end: Cell<Option<RunEnd>>,
    /// Whether that was written under the lock, or could not be.
    is_complete: Cell<bool>,
}

impl<'a> Recorder<'a> {
    /// Makes the recorder of a run that is recorded as running, in the table of the plan.
    pub(super) fn new(
        plan: &'a SessionPlan,
        orders: &'a Orders,
        reporter: &'a Reporter,
        run: RecordedRun,
        claim: Claim,
    ) -> Option<Recorder<'a>> {
        Some(Recorder {
            plan,
            orders,
            reporter,
            run,
            table: &plan.options.record.as_ref()?.table,
            claim,
            end: Cell::new(None),
            is_complete: Cell::new(false),
        })
    }

    /// Returns whether the end is recorded, or could not be.
    pub(super) fn is_complete(&self) -> bool {
        self.is_complete.get()
    }

    /// Records the end, if the job has ended or will not start, while the lock is held by this session. `is_releasing`
    /// says that the order to release has come: the main thread may have given up the wait before it saw our report of
    /// the lock, so that it knows of no run.
    ///
    /// # Errors
    /// The session is lost.
    pub(super) fn complete_under_lock(
        &self,
        client: &mut Client,
        scope: Scope,
        is_releasing: bool,
    ) -> Result<(), postgres::Error> {
        if self.end.get().is_some() {
            return Ok(());
        }
        let not_started = || (is_releasing && self.claim.take()).then_some(RunEnd::NotStarted);
        let Some(end) = self.orders.job_end().or_else(not_started) else {
            return Ok(());
        };
        self.end.set(Some(end));
        self.reporter.expect_reply_within(RECORD_TIMEOUT);
        let result = match scope {
            Scope::Session => match self.complete(client, &end) {
                // The loss of the session is that of the lock.
                Err(error) if error.as_db_error().is_none() || client.is_closed() => return Err(error),
                result => result
                    .map_err(|error| history::explain(error, self.table))
                    .and_then(require_running),
            },
            Scope::Transaction => self.complete_on_another_session(&end),
        };
        self.is_complete.set(true);
        self.reporter.report(SessionEvent::Recorded(result));
        Ok(())
    }

    /// Records, once the job has ended, that the lock was lost; or at once that no job starts under it.
    pub(super) fn complete_after_loss(&self) {
        let not_started = || self.claim.take().then_some(RunEnd::NotStarted);
        let end = self
            .end
            .get()
            .or_else(not_started)
            .or_else(|| self.orders.await_job_end());
        let Some(end) = end else {
            return;
        };
        let result = self.complete_on_another_session(&end.after_loss());
        self.reporter.report(SessionEvent::Recorded(result));
    }

    /// Writes the end, and then removes old runs of the keys.
    ///
    /// # Errors
    /// The server reports an error, or the connection is lost, before the end is written.
    fn complete(&self, client: &mut Client, end: &RunEnd) -> Result<bool, postgres::Error> {
        let was_running = history::complete(client, self.table, &self.run, end, TABLE_LOCK_TIMEOUT)?;
        if let Err(error) = history::prune(client, self.table, &self.run, TABLE_LOCK_TIMEOUT) {
            message::detail(format_args!("could not remove old runs: {}", Failure::from(error)));
        }
        Ok(was_running)
    }

    /// Records the end over a connection of its own.
    ///
    /// # Errors
    /// The server is not there, stops responding or reports an error; or the run is not running any more.
    fn complete_on_another_session(&self, end: &RunEnd) -> Result<(), Failure> {
        let settings = self.plan.settings.clone().with_reply_limit(RECORD_TIMEOUT);
        let mut client = settings.reopen(&self.plan.application_name())?.client;
        self.complete(&mut client, end)
            .map_err(|error| client.explain(history::explain(error, self.table)))
            .and_then(require_running)
    }
}

/// Refuses a run that was not running any more.
///
/// # Errors
/// It was not.
fn require_running(was_running: bool) -> Result<(), Failure> {
    if was_running {
        return Ok(());
    }
    Err(Failure::msg(
        ExitCode::Lost,
        "a later run of the key has marked it abandoned, or its row was deleted",
    ))
}
