//! A wait that survives what is not an answer: while nothing is held, to connect again is safe.
//!
//! A server that restarts, starts up or has no connection left, a pooler that is restarted, a network that is cut for a
//! while, a primary that has moved: none of them says that the lock is held, so none of them ends a wait. With `--wait`
//! this holds from the first attempt on; without, from the first answered query on; with `--no-wait` never.
//!
//! One danger remains. A session that ends together with the holder's finds the key free while the old job is still
//! being terminated. So a waiter that lost its connection while another client held the key does not take it before it
//! has seen that client's guard (see `guard`), or its job must be dead by the timing rule.

use super::events::SessionEvent;
use super::orders::{Orders, interrupted};
use super::plan::SessionPlan;
use super::reporter::Reporter;
use super::request::LockRequest;
use super::timing::{MAX_POOL_WAIT, Timing};
use crate::connection::Client;
use crate::inspect::backend::Backend;
use crate::inspect::{eviction, holders};
use crate::key::{self, KeyId};
use crate::lock::{Lending, Server};
use crate::outcome::{ExitCode, Failure};
use crate::protocol::query_tag::QueryTag;
use crate::ui::message;
use std::time::{Duration, Instant};

/// The first pause before connecting again.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause before connecting again: with the half second that the server is then left alone, a job starts
/// within 1.5 s of the server's being ready.
const MAX_PAUSE: Duration = Duration::from_millis(800);
/// The first pause between two looks for the guard; it grows to [`MAX_PAUSE`].
const FIRST_LOOK_PAUSE: Duration = Duration::from_millis(50);

/// What a wait remembers from one connection to the next.
pub(super) struct WaitMemory {
    /// The server has answered a query.
    pub(super) has_answered: bool,
    /// It has answered on the current connection.
    has_answered_here: bool,
    /// The last attempt to reach the server failed, and it has not answered since.
    follows_failure: bool,
    /// When another client was first seen to hold the lock: the begin of the wait, over all connections.
    contended_since: Option<Instant>,
    /// What was requested over the last connection, if that was given up and the wait goes on over another one.
    request: Option<LockRequest>,
    /// What has been seen of a pooler.
    pub(super) lending: Lending,
    /// Until when the next connection sends no query.
    rest_until: Option<Instant>,
    /// When the holders were looked up last, or the wait began.
    pub(super) holders_refreshed: Instant,
    /// Whether they were looked up at all.
    pub(super) has_looked_for_limits: bool,
    /// When the last query was sent that is known to be answered. Until then, no loss can have been missed.
    answered_query_sent: Option<Instant>,
    /// When the wait's query was sent that may still be without a reply.
    query_sent: Option<Instant>,
    /// When we noticed that the holder could have lost its session together with us. The limit of its job counts from
    /// then, which is later than the loss.
    holder_lost_at: Option<Instant>,
    /// Since when the holder must have had its lock to be the one that we know. If the server has fallen silent, this
    /// is seconds before we noticed.
    holder_seen_at: Option<Instant>,
    /// The backend of the current connection, if that is direct.
    backend: Option<i32>,
    /// The backend of the last connection, of which it is not known yet whether it was evicted.
    lost_backend: Option<i32>,
    /// The longest limit that a holder's query tag has shown, H + D + G.
    shown_limit: Option<Duration>,
    next_pause: Duration,
    is_reported: bool,
}

impl WaitMemory {
    pub(super) fn new() -> WaitMemory {
        WaitMemory {
            has_answered: false,
            has_answered_here: false,
            follows_failure: false,
            contended_since: None,
            request: None,
            lending: Lending::unknown(),
            rest_until: None,
            holders_refreshed: Instant::now(),
            has_looked_for_limits: false,
            answered_query_sent: None,
            query_sent: None,
            holder_lost_at: None,
            holder_seen_at: None,
            backend: None,
            lost_backend: None,
            shown_limit: None,
            next_pause: FIRST_PAUSE,
            is_reported: false,
        }
    }

    /// Notes that the server has answered a query on the current connection.
    pub(super) fn note_answer(&mut self) {
        self.has_answered = true;
        self.has_answered_here = true;
        self.follows_failure = false;
        self.next_pause = FIRST_PAUSE;
    }

    /// Notes that a query that was sent at this time has been answered by a server that has not restarted since the one
    /// before.
    pub(super) fn note_answer_to(&mut self, query_sent: Instant) {
        self.note_answer();
        self.answered_query_sent = Some(query_sent);
        self.query_sent = None;
    }

    /// Notes that the wait is about to send a query. So the one before has been answered.
    pub(super) fn note_query(&mut self) {
        if let Some(answered) = self.query_sent.replace(Instant::now()) {
            self.answered_query_sent = Some(answered);
        }
    }

    /// Notes which server the connection leads to.
    pub(super) fn note_server(&mut self, server: &Server) {
        self.backend = (!server.pooled).then_some(server.backend_pid);
    }

    /// Returns whether the current connection is known to lead to the server itself.
    pub(super) fn is_direct(&self) -> bool {
        self.backend.is_some()
    }

    /// Notes that another client holds the lock.
    pub(super) fn note_contention(&mut self) {
        if self.contended_since.is_none() {
            self.contended_since = Some(Instant::now());
            self.holders_refreshed = Instant::now();
        }
    }

    /// Returns whether another client was seen to hold the lock; since the last connection, or before.
    pub(super) fn was_contended(&self) -> bool {
        self.contended_since.is_some()
    }

    /// Returns when the wait began; now, if it has not.
    pub(super) fn wait_began(&self) -> Instant {
        self.contended_since.unwrap_or_else(Instant::now)
    }

    /// Notes that the connection, on which a query was just answered, is given up, and that the next one rests for
    /// `pause`.
    ///
    /// This is no loss: the server has just shown the lock as held. What happens from now on is not missed. The next
    /// connection is opened at once; if that fails, or if it is lost during the rest as when the pooler ends, it counts
    /// as a loss from then on, because [`WaitMemory::has_answered_here`] stays. Another server, or
    /// one that has started since then, is known by its start time.
    pub(super) fn note_given_up(&mut self, request: LockRequest, pause: Duration) {
        self.request = Some(request);
        self.rest_until = Some(Instant::now() + pause);
        self.lending.note_connection();
    }

    /// Returns whether the current connection goes on with the wait of one that was given up.
    pub(super) fn is_going_on(&self) -> bool {
        self.rest_until.is_some()
    }

    /// Returns how long the current connection still sends no query.
    pub(super) fn rest(&self) -> Duration {
        let rest = self
            .rest_until
            .map(|until| until.saturating_duration_since(Instant::now()));
        rest.unwrap_or_default()
    }

    /// Returns what the wait requested over the last connection, if that was given up and none was lost since.
    pub(super) fn request(&self) -> Option<&LockRequest> {
        self.request.as_ref()
    }

    /// Returns when the server started at which the lock was last seen held, unless the connection to it was lost.
    pub(super) fn known_start(&self) -> Option<i64> {
        self.request.as_ref().and_then(|request| request.server.start())
    }

    /// Notes that the connection is lost. The holder of the lock then may have lost it together with us; a server that
    /// is still away gives it to nobody.
    fn note_loss(&mut self) {
        if self.was_contended() && self.has_answered_here {
            self.note_lost_holder();
        }
        self.has_answered_here = false;
        self.query_sent = None;
        self.follows_failure = true;
        self.request = None;
        self.rest_until = None;
        self.lending = Lending::unknown();
        self.lost_backend = self.backend.take().or(self.lost_backend);
    }

    /// Notes that the lock was acquired and is lost. In a restart, the server may have granted it only because it had
    /// ended the session of the client that held it, even one that was never seen.
    pub(super) fn note_withdrawal(&mut self) {
        self.note_lost_holder();
    }

    /// Notes that a holder may have lost its lock. If one has already and is not accounted for yet, a client that came
    /// after that one is not the old holder.
    fn note_lost_holder(&mut self) {
        if self.holder_lost_at.is_none() {
            self.holder_seen_at = self.answered_query_sent;
        }
        self.holder_lost_at = Some(Instant::now());
    }

    /// Returns whether the job of a client that held the lock may still run without it.
    pub(super) fn must_await_old_job(&self) -> bool {
        self.holder_lost_at.is_some()
    }

    /// Returns whether the server may just have come back. Its own start does not always show that: it counts from
    /// before a recovery, which can take long.
    pub(super) fn follows_failure(&self) -> bool {
        self.follows_failure
    }

    /// Notes the limits that holders show.
    pub(super) fn note_limits(&mut self, holders: &[Backend]) {
        let limits = holders.iter().filter_map(|holder| holder.job_limit_seconds);
        let limits = limits.filter_map(|seconds| Duration::try_from_secs_f64(seconds).ok());
        self.shown_limit = limits.chain(self.shown_limit).max();
    }
}

/// Decides about and awaits the next attempt.
pub(super) struct Retry<'a> {
    pub(super) plan: &'a SessionPlan,
    pub(super) orders: &'a Orders,
    pub(super) reporter: &'a Reporter,
}

impl Retry<'_> {
    /// After a failure with nothing held: waits until the next attempt is due.
    ///
    /// # Errors
    /// The failure, if it is final: it is not a temporary one, the time is up, or the order to release came.
    pub(super) fn await_next_attempt(&self, failure: Failure, memory: &mut WaitMemory) -> Result<(), Failure> {
        let time_left = self.plan.wait.time_left();
        if !self.plan.endures(memory.has_answered) || !failure.is_transient || time_left == Some(Duration::ZERO) {
            return Err(failure);
        }
        memory.note_loss();
        self.report(&failure, memory);
        let pause = memory.next_pause.mul_f64(1.0 - fastrand::f64() / 2.0);
        let pause = time_left.map_or(pause, |time_left| time_left.min(pause));
        memory.next_pause = (memory.next_pause * 3 / 2).min(MAX_PAUSE);
        if self.orders.is_release_ordered_within(pause) {
            return Err(failure);
        }
        Ok(())
    }

    /// One line at the loss, and none until the outcome; with `-v`, one for each attempt.
    fn report(&self, failure: &Failure, memory: &mut WaitMemory) {
        self.reporter.report(SessionEvent::Retrying(failure.to_string()));
        if memory.is_reported {
            message::detail(failure);
            return;
        }
        memory.is_reported = true;
        let keys = key::describe(&self.plan.options.keys);
        if memory.has_answered {
            message::notice(format_args!(
                "lost the connection while waiting for {keys}: {failure}; reconnecting"
            ));
        } else {
            message::notice(format_args!("{failure}; retrying until the wait for {keys} is over"));
        }
    }

    /// As the first query of a new connection: finds out whether the last one was evicted.
    ///
    /// # Errors
    /// It was, which is final, or the connection is lost.
    pub(super) fn check_eviction(&self, client: &mut Client, memory: &mut WaitMemory) -> Result<(), Failure> {
        let Some(backend_pid) = memory.lost_backend else {
            return Ok(());
        };
        self.reporter.expect_reply_within(MAX_POOL_WAIT);
        let evictor = eviction::find_evictor(client, backend_pid)?;
        memory.lost_backend = None;
        match evictor.filter(|evictor| evictor.is_authorized) {
            Some(evictor) => Err(Failure::msg(
                ExitCode::Unavailable,
                format!("evicted from the queue by {}", evictor.description),
            )),
            None => Ok(()),
        }
    }

    /// Before the lock is tried on a new connection: waits until the client that held it, if it may have lost its
    /// session together with us, can have no job any more.
    ///
    /// # Errors
    /// The order to release came, the time is up, or the connection is lost.
    pub(super) fn await_old_job(
        &self,
        client: &mut Client,
        ids: &[KeyId],
        memory: &mut WaitMemory,
    ) -> Result<(), Failure> {
        let Some(lost_at) = memory.holder_lost_at else {
            return Ok(());
        };
        let own_limit = self.plan.options.policy.timing.server_limit();
        // A holder shows its limit without the margin; after a stall of the network, its job is dead only just by then.
        let shown_limit = memory.shown_limit.map(|limit| limit.saturating_add(Timing::MARGIN));
        let limit = shown_limit.map_or(own_limit, |shown_limit| own_limit.max(shown_limit));
        let mut pause = FIRST_LOOK_PAUSE;
        message::detail(format_args!(
            "the holder may have lost its lock in the meantime; waiting for its job to end, up to {}",
            humantime::format_duration(Duration::from_secs(limit.as_secs()))
        ));
        self.reporter.report(SessionEvent::AwaitingOldJob);
        while lost_at.elapsed() < limit {
            self.reporter.expect_reply_within(MAX_POOL_WAIT);
            let query_sent = Instant::now();
            let holders = holders::find(client, ids, QueryTag::Polling(pause))?;
            memory.note_answer();
            if are_all_accounted_for(&holders, ids, memory.holder_seen_at) {
                memory.note_answer_to(query_sent);
                break;
            }
            let time_left = self.plan.wait.time_left().unwrap_or(Duration::MAX);
            if time_left.is_zero() {
                let message = "the job of the client that held it may still be running";
                return Err(Failure::msg(ExitCode::Unavailable, message).transient_if(true));
            }
            let pause_now = pause.min(time_left).min(limit.saturating_sub(lost_at.elapsed()));
            self.reporter.expect_reply_within(pause_now);
            if self.orders.is_release_ordered_within(pause_now) {
                return Err(interrupted());
            }
            pause = (pause * 3 / 2).min(MAX_PAUSE);
        }
        memory.holder_lost_at = None;
        Ok(())
    }
}

/// Returns whether each key, or slot, is held by a session that guards the end of the old job, or that has held it
/// since before the old holder was last seen: then it is waited for as ever. A shared lock says nothing about others
/// that may have held it too.
fn are_all_accounted_for(holders: &[Backend], ids: &[KeyId], holder_seen_at: Option<Instant>) -> bool {
    let is_old = |holder: &Backend| {
        let since = holder.since.zip(holder_seen_at);
        since.is_some_and(|(since, seen_at)| since.ago >= seen_at.elapsed())
    };
    let accounted_for = holders.iter().filter(|holder| holder.is_guard || is_old(holder));
    accounted_for.count() >= ids.len() && !holders.iter().any(|holder| holder.is_shared)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::server_time::ServerTime;

    /// Returns a pglock that has held its lock for so long.
    fn holder(held_for: Duration) -> Backend {
        let now = 1_767_355_200.0;
        Backend {
            since: Some(ServerTime::new(now - held_for.as_secs_f64(), now)),
            ..Backend::named("pglock:backup web1:77")
        }
    }

    /// Returns the memory of a wait whose last answered query was sent so long ago, and that has just lost its
    /// connection.
    fn memory_of_a_loss(silence: Duration) -> WaitMemory {
        let mut memory = WaitMemory::new();
        let query_sent = Instant::now().checked_sub(silence);
        memory.note_answer_to(query_sent.expect("a system that has been up for longer"));
        memory.note_contention();
        memory.note_loss();
        memory
    }

    /// P26: a server that falls silent is given up some seconds later. Who acquired the key since the last reply, on
    /// another server, is not the client that held it.
    #[test]
    fn a_client_that_came_after_the_last_reply_is_not_the_old_holder() {
        let memory = memory_of_a_loss(Duration::from_secs(10));
        let is_accounted_for = |holder| are_all_accounted_for(&[holder], &[KeyId::Bigint(1)], memory.holder_seen_at);
        let newcomer = holder(Duration::from_secs(9));
        let guard = Backend {
            is_guard: true,
            ..newcomer.clone()
        };
        assert!(is_accounted_for(holder(Duration::from_secs(60))));
        assert!(is_accounted_for(guard));
        assert!(!is_accounted_for(newcomer));
    }

    /// P26: nor is it after a second loss, if it came between the two.
    #[test]
    fn a_second_loss_does_not_make_a_client_the_old_holder() {
        let mut memory = memory_of_a_loss(Duration::from_secs(10));
        let seen_at = memory.holder_seen_at;
        memory.note_answer();
        memory.note_loss();
        assert_eq!(memory.holder_seen_at, seen_at);
    }

    /// P26: a query of the wait is known to be answered only when the next one is sent.
    #[test]
    fn the_last_query_of_a_lost_connection_shows_nothing() {
        let mut memory = memory_of_a_loss(Duration::ZERO);
        memory.note_query();
        assert_eq!(memory.answered_query_sent, memory.holder_seen_at);
        let sent = memory.query_sent;
        memory.note_query();
        assert_eq!(memory.answered_query_sent, sent);
    }
}
