//! Holding the lock: heartbeats that prove it, requests to give it up, and the order to release.

use super::events::SessionEvent;
use super::orders::{Orders, WakeReason};
use super::plan::SessionPlan;
use super::recorder::Recorder;
use super::reporter::Reporter;
use crate::connection::{CONNECTION_CLOSED, Client};
use crate::inspect::eviction;
use crate::lock::{self, Grant, HeartbeatReply, Lock, Receipt, ScopeChoice, Ticket};
use crate::outcome::Failure;
use crate::protocol::query_tag::QueryTag;
use postgres::error::SqlState;
use postgres::fallible_iterator::FallibleIterator;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// When a session of our own starts to listen for evictions. Short jobs end before, and never pay for it.
const LISTEN_DELAY: Duration = Duration::from_millis(900);
/// The shortest time between two heartbeats: other clients can send notifications as fast as they like.
const MIN_HEARTBEAT_INTERVAL: Duration = Duration::from_millis(100);
/// The most notifications to read before looking for orders.
const MAX_NOTIFICATIONS: usize = 64;

/// Holds a lock that was acquired.
pub(super) struct Holder<'a> {
    pub(super) plan: &'a SessionPlan,
    pub(super) orders: &'a Orders,
    pub(super) reporter: &'a Reporter,
    pub(super) lock: &'a Lock,
    pub(super) grant: Grant,
    /// Whether the session is the server's own, with no pooler between.
    pub(super) is_direct: bool,
    /// Records the end of the run, if the run is recorded.
    pub(super) recorder: Option<&'a Recorder<'a>>,
    /// Whether the lock is held only until the job that lost it is dead.
    pub(super) is_guard: bool,
}

/// Why a session no longer holds the lock.
pub(super) struct SessionLoss {
    pub(super) why: String,
    /// `pg_terminate_backend` ended it, or a shutdown of the server.
    pub(super) by_administrator: bool,
}

impl Holder<'_> {
    /// Holds the lock until the order to release it, and releases it. Returns whether it was ours until then.
    ///
    /// # Errors
    /// The lock is lost: the session ended, or no longer holds it.
    pub(super) fn hold(
        &self,
        client: &mut Client,
        socket: Option<&OwnedFd>,
        ticket: Option<Ticket>,
    ) -> Result<bool, SessionLoss> {
        if let Some(ticket) = ticket {
            ticket.release(client)?;
        }
        let interval = self.plan.options.policy.timing.heartbeat_interval();
        let held_since = Instant::now();
        let mut last_sent = self.grant.query_sent;
        let mut next_heartbeat = last_sent + interval;
        let mut must_listen = self.is_direct;
        if must_listen {
            next_heartbeat = next_heartbeat.min(held_since + LISTEN_DELAY);
        }
        if self.is_guard {
            // Its tag tells waiters what this holder is.
            next_heartbeat = held_since;
        }
        let mut is_eviction_reported = false;
        loop {
            match self.orders.sleep(socket, next_heartbeat) {
                WakeReason::ReleaseOrdered => break,
                // A guard is over with the job.
                WakeReason::JobEnded if self.is_guard => break,
                WakeReason::JobEnded => self.record_end(client, false)?,
                WakeReason::SocketReadable => {
                    if read_unsolicited(client)? > 0 {
                        next_heartbeat = next_heartbeat.min(last_sent + MIN_HEARTBEAT_INTERVAL);
                    }
                }
                WakeReason::HeartbeatDue => {
                    last_sent = Instant::now();
                    next_heartbeat = last_sent + interval;
                    let is_marked = self.heartbeat(client, last_sent.duration_since(held_since), must_listen)?;
                    must_listen = false;
                    self.reporter.expect_reply_after(last_sent);
                    if is_marked && !is_eviction_reported {
                        is_eviction_reported = self.report_eviction(client)?;
                    }
                }
            }
        }
        self.record_end(client, true)?;
        let is_lent = !self.is_direct || self.plan.options.scope == ScopeChoice::SessionPooled;
        // A guard has acquired the key without asking whether another one has lost it.
        let may_be_anothers = self.is_guard && held_since.elapsed() < lock::GUARD_TIME;
        let receipt = match Receipt::unless_lent(is_lent || may_be_anothers) {
            Receipt::Left if self.plan.options.fair => Receipt::Kept,
            receipt => receipt,
        };
        // If that fails, it may have been lost at any time since the last heartbeat.
        Ok(self.lock.release(client, receipt)?)
    }

    /// Records the end of the run, if the run is recorded and the job has ended; or if it will not start, when the
    /// order to release has come.
    ///
    /// # Errors
    /// The lock is lost.
    fn record_end(&self, client: &mut Client, is_releasing: bool) -> Result<(), SessionLoss> {
        match self.recorder {
            Some(recorder) => Ok(recorder.complete_under_lock(client, self.lock.scope, is_releasing)?),
            None => Ok(()),
        }
    }

    /// Returns whether an eviction mark was seen.
    ///
    /// # Errors
    /// The lock is lost.
    fn heartbeat(&self, client: &mut Client, held_for: Duration, must_listen: bool) -> Result<bool, SessionLoss> {
        let job_limit = self.plan.options.policy.timing.job_limit();
        let tag = if self.is_guard {
            QueryTag::Guarding { job_limit }
        } else {
            QueryTag::Holding { held_for, job_limit }
        };
        let backend_pid = self.grant.backend_pid;
        let reply = if must_listen {
            self.lock.heartbeat_and_listen(client, backend_pid, tag)?
        } else {
            self.lock.heartbeat(client, backend_pid, tag)?
        };
        match reply.loss() {
            Some(why) => Err(SessionLoss {
                why,
                by_administrator: false,
            }),
            None => Ok(reply == HeartbeatReply::Held { is_marked: true }),
        }
    }

    /// Reports the eviction if its role may do that. Returns whether it may.
    ///
    /// # Errors
    /// The session is lost.
    fn report_eviction(&self, client: &mut Client) -> Result<bool, SessionLoss> {
        let evictor = eviction::find_evictor(client, self.grant.backend_pid)?;
        match evictor {
            Some(evictor) if evictor.is_authorized => {
                self.reporter
                    .report(SessionEvent::EvictionRequested(evictor.description));
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}

/// Reads what the server sent without being asked, and returns the number of notifications, up to
/// [`MAX_NOTIFICATIONS`]: who sends more must not keep us from the heartbeat. When an idle session becomes readable, it
/// has most often been ended.
///
/// # Errors
/// The session is lost.
fn read_unsolicited(client: &mut Client) -> Result<usize, SessionLoss> {
    let count = {
        let mut notifications = client.notifications();
        let arriving = notifications.timeout_iter(Duration::from_millis(1));
        arriving.take(MAX_NOTIFICATIONS).count()?
    };
    if client.is_closed() {
        return Err(SessionLoss {
            why: CONNECTION_CLOSED.into(),
            by_administrator: false,
        });
    }
    Ok(count)
}

impl From<postgres::Error> for SessionLoss {
    fn from(error: postgres::Error) -> SessionLoss {
        SessionLoss {
            by_administrator: error.code() == Some(&SqlState::ADMIN_SHUTDOWN),
            why: Failure::from(error).to_string(),
        }
    }
}
