//! What is written on the server under the lock, before the job starts: the fencing token, and the record of the run.
//!
//! Both assign a transaction ID. A transaction that has one holds back VACUUM for as long as it is open, so where the
//! lock is that of a transaction, they are written over another connection.

use super::plan::SessionPlan;
use super::reporter::Reporter;
use crate::connection::{Client, LimitEnforcement, final_if_session_lives};
use crate::history::{self, Begun, NewRun};
use crate::key::KeyId;
use crate::lock::{self, Grant, Lock, Scope};
use crate::outcome::{ExitCode, Failure};
use crate::protocol::name;
use crate::protocol::query_tag::QueryTag;
use crate::run::options::{RecordOptions, RunOptions};
use std::time::{Duration, Instant};

/// What failed when there is no token.
const NO_TOKEN: &str = "cannot create a fencing token (requires PostgreSQL 10 or later)";

/// Writes what a run needs before its job starts.
pub(super) struct Preparer<'a> {
    pub(super) plan: &'a SessionPlan,
    pub(super) reporter: &'a Reporter,
    /// The lock that we hold.
    pub(super) lock: &'a Lock,
    /// When its server started, if it says so; see [`Server::start`](crate::lock::Server::start).
    pub(super) server_start: Option<i64>,
    /// The numbers of the keys, in the order in which they were given.
    pub(super) ids: &'a [KeyId],
}

/// What was written.
#[derive(Default)]
pub(super) struct Prepared {
    /// The fencing token, with `--token`.
    pub(super) token: Option<String>,
    /// The run, with `--record`.
    pub(super) begun: Option<Begun>,
}

impl Preparer<'_> {
    /// Creates a fencing token and records the run, as far as requested. Afterwards the server has received another
    /// query from the session.
    ///
    /// # Errors
    /// The server reports an error, the run table cannot be used, the lock has vanished, or a connection fails.
    pub(super) fn prepare(&self, client: &mut Client, grant: &mut Grant) -> Result<Prepared, Failure> {
        if !self.options().token && self.options().record.is_none() {
            return Ok(Prepared::default());
        }
        match self.lock.scope {
            Scope::Session => {
                grant.query_sent = Instant::now();
                self.write(client, *grant, Duration::ZERO)
            }
            Scope::Transaction => {
                let prepared = self.write_on_another_session(*grant)?;
                self.refresh_grant(client, grant)?;
                Ok(prepared)
            }
        }
    }

    fn options(&self) -> &RunOptions {
        &self.plan.options
    }

    /// Returns the condition that the lock is held, if another session writes than its own.
    fn lock_condition(&self, grant: Grant) -> Option<String> {
        match self.lock.scope {
            Scope::Session => None,
            Scope::Transaction => {
                let lock = self.lock.held(grant);
                Some(lock.held_by_condition(grant.backend_pid, self.server_start))
            }
        }
    }

    /// Writes what is requested, by queries to which the server may take `max_wait` longer to reply.
    ///
    /// # Errors
    /// The server reports an error, the run table cannot be used, the lock is not held, or the connection is lost.
    fn write(&self, client: &mut Client, grant: Grant, max_wait: Duration) -> Result<Prepared, Failure> {
        let token = if self.options().token {
            self.reporter.expect_reply_within(max_wait);
            let token = lock::fencing_token(client, self.lock_condition(grant).as_deref());
            let token = token.map_err(|error| final_if_session_lives(error).context(NO_TOKEN))?;
            Some(token.ok_or_else(|| lost_before_start("a further connection did not find it"))?)
        } else {
            None
        };
        let begun = match &self.options().record {
            Some(record) => {
                self.reporter.expect_reply_within(max_wait);
                Some(self.record(client, record, grant, token.as_deref())?)
            }
            None => None,
        };
        Ok(Prepared { token, begun })
    }

    /// Records that the run starts, unless it is not due.
    ///
    /// # Errors
    /// As for [`history::begin`].
    fn record(
        &self,
        client: &mut Client,
        record: &RecordOptions,
        grant: Grant,
        token: Option<&str>,
    ) -> Result<Begun, Failure> {
        let options = self.options();
        let program = options.command.first();
        let run = NewRun {
            keys: options
                .keys
                .iter()
                .map(|key| key.given())
                .zip(self.ids.iter().copied())
                .collect(),
            mode: options.mode,
            slot: options.slots.map(|_| grant.key_index),
            host: name::host(),
            pid: std::process::id(),
            job: program
                .map(|program| program.to_string_lossy().into_owned())
                .unwrap_or_default(),
            note: options.note.as_deref(),
            token,
            waited: self.plan.started_at.elapsed(),
            once_per: record.once_per,
            lock_condition: self.lock_condition(grant),
        };
        history::begin(client, &record.table, &run, options.policy.timing.heartbeat)
    }

    /// Does the same over a further session of the pool, for which the pool may have no room: the lock's own session
    /// cannot be used by others.
    ///
    /// # Errors
    /// As for [`Preparer::write`]; and no reply comes in time.
    fn write_on_another_session(&self, grant: Grant) -> Result<Prepared, Failure> {
        let limit = self.options().policy.timing.reply_limit();
        let settings = self.plan.settings.clone().with_reply_limit(limit);
        let mut watch = |limit| self.reporter.expect_within(limit);
        let application_name = self.plan.application_name();
        let mut client = settings
            .open(&application_name, Some(&mut watch), LimitEnforcement::Attempt)?
            .client;
        self.write(&mut client, grant, limit).map_err(|failure| {
            if !client.has_stopped_responding() {
                return failure;
            }
            let option = match (&self.options().record, self.options().token) {
                (None, _) => "--token",
                (Some(record), _) if record.once_per.is_some() => "--once-per",
                _ => "--record",
            };
            Failure::msg(
                ExitCode::Unavailable,
                format!(
                    "no session of the pool was free within {} for {option}, which needs one besides that of the lock; \
                     increase default_pool_size in the pooler",
                    humantime::format_duration(limit)
                ),
            )
        })
    }

    /// Has the server receive another query from the session before the lock is reported as ours.
    ///
    /// # Errors
    /// The connection is lost, or the lock has vanished.
    pub(super) fn refresh_grant(&self, client: &mut Client, grant: &mut Grant) -> Result<(), Failure> {
        self.reporter.expect_reply_within(Duration::ZERO);
        grant.query_sent = Instant::now();
        let tag = QueryTag::Holding {
            held_for: Duration::ZERO,
            job_limit: self.options().policy.timing.job_limit(),
        };
        let reply = self.lock.held(*grant).heartbeat(client, grant.backend_pid, tag)?;
        match reply.loss() {
            None => Ok(()),
            Some(why) => Err(lost_before_start(&why)),
        }
    }
}

/// Returns the failure if the lock is lost again, for which a further attempt may be made.
fn lost_before_start(why: &str) -> Failure {
    let message = format!("lost the lock before the job was started: {why}");
    Failure::msg(ExitCode::Unavailable, message).transient_if(true)
}
