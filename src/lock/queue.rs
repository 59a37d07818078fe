//! Waiting in the server's own queue.
//!
//! A session that waits in one long statement holds a snapshot all the while, which holds back VACUUM and can deadlock
//! with a CREATE INDEX CONCURRENTLY that the holder's job runs. A wait is therefore cut into slices, one query each.

use super::query::{QueryResult, lacks_plpgsql};
use super::receipt::{GUARD_TIME, LOOK_PAUSE, Receipt};
use super::sql::{
    self, CLAIMED_COLUMN, GOT_CANCELLED, GOT_CLAIMED, GOT_COLUMN, GOT_LATE, GOT_LEFT_BEHIND, GOT_UNPROVEN,
    GOT_UNRELEASED, Looks,
};
use super::types::{Acquisition, Grant, Keys, Lock, Mode, OnGrant, Scope, TryOutcome, Wait, WaitOptions};
use crate::connection::Client;
use crate::key::KeyId;
use crate::outcome::{ExitCode, Failure};
use crate::protocol::query_tag::QueryTag;
use std::time::{Duration, Instant};

/// An observer of a wait, which can also end it.
pub(crate) trait WaitObserver {
    /// Notes that a query is about to be sent, whose result the server will send within `max_reply_time`.
    fn before_query(&mut self, max_reply_time: Duration);

    /// Sleeps between two queries, and may run queries of its own meanwhile. Returns whether to go on waiting: a cancel
    /// request that arrives between two queries has no effect on the server.
    fn pause(&mut self, client: &mut Client, pause: Duration) -> bool;

    /// Sleeps without running queries, for which an error would end the transaction that holds the lock. Returns
    /// whether to go on, as [`WaitObserver::pause`] does.
    fn sleep(&mut self, pause: Duration) -> bool;

    /// Notes that the lock was granted but not released by its last holder, who may claim it.
    fn note_unreleased(&mut self);

    /// Notes on which backend a try ran.
    fn note_backend(&mut self, backend_pid: i32);

    /// Returns whether to give up the connection rather than to pause on it for up to `pause`, after a try that took
    /// `try_duration`.
    fn must_close(&self, try_duration: Duration, pause: Duration) -> bool;

    /// Runs the last queries on a connection before it is given up for this pause.
    fn before_closing(&mut self, client: &mut Client, pause: Duration);
}

/// Result of a wait in the server's queue.
pub(super) enum QueueOutcome {
    Acquired(Grant),
    TimedOut,
    /// The server has no queue for us: our role cannot use plpgsql.
    NoQueue,
}

/// Waits in the server's queue for one key, slice by slice.
///
/// There is no queue for a key that our own backend holds for another client: it is looked for again and again. A key
/// that its last holder may have lost is left to that one (see [`receipt`](super::receipt)).
///
/// # Errors
/// The wait was cancelled, the lock would protect nothing, the server reports an error, or the connection is lost.
pub(super) fn wait_in_queue(
    client: &mut Client,
    id: KeyId,
    mode: Mode,
    mut on_grant: OnGrant,
    options: WaitOptions,
    observer: &mut impl WaitObserver,
) -> Result<QueueOutcome, Failure> {
    let lock = Lock {
        keys: Keys::All(vec![id]),
        mode,
        scope: Scope::Session,
    };
    let mut pause = Duration::ZERO;
    loop {
        if !observer.pause(client, pause) {
            return Err(cancelled());
        }
        let time_left = options.wait.time_left();
        let slice = time_left.map_or(options.max_slice, |time_left| time_left.min(options.max_slice));
        observer.before_query(slice);
        let sql = sql::wait_slice(id, mode, on_grant, slice, Looks::if_lent(options.is_lent));
        let result = match QueryResult::fetch_tagged(client, &sql, QueryTag::Queueing(slice)) {
            Err(error) if lacks_plpgsql(&error) => return Ok(QueueOutcome::NoQueue),
            result => result?,
        };
        pause = Duration::ZERO;
        if let OnGrant::Keep { just_arrived } = &mut on_grant {
            *just_arrived = false;
        }
        let outcome = match result.get(GOT_COLUMN) {
            Some(GOT_CANCELLED) => return Err(cancelled()),
            Some(GOT_UNPROVEN) => result.unproven(),
            Some(GOT_LATE) => lock.await_proof(client, result.unproven(), |pause| {
                let goes_on = observer.sleep(pause);
                observer.before_query(Duration::ZERO);
                goes_on
            })?,
            Some(GOT_UNRELEASED) => await_claim(client, &lock, id, options.wait, observer)?,
            Some(GOT_LEFT_BEHIND | GOT_CLAIMED) => TryOutcome::Busy { key_index: 0 },
            _ => result.try_outcome(&lock.keys),
        };
        let time_left_now = options.wait.time_left();
        match result.get(GOT_COLUMN) {
            Some(GOT_LEFT_BEHIND) => {
                pause = options
                    .backoff
                    .next_pause(Duration::ZERO, Duration::ZERO, time_left_now);
            }
            // The loser comes first.
            Some(GOT_CLAIMED | GOT_UNRELEASED) => {
                pause = time_left_now.map_or(GUARD_TIME, |time_left| time_left.min(GUARD_TIME));
            }
            _ => {}
        }
        match outcome.into_acquisition()? {
            Acquisition::Acquired(grant) => return Ok(QueueOutcome::Acquired(grant)),
            Acquisition::Busy { .. } if time_left == Some(Duration::ZERO) => return Ok(QueueOutcome::TimedOut),
            Acquisition::Busy { .. } => {}
        }
    }
}

/// Holds a key that its last holder may have lost for [`GUARD_TIME`], and proves it again. If the loser claims it in
/// that time, or if the time of our wait is up, it is released and counts as busy.
///
/// # Errors
/// The wait was cancelled, the server reports an error, or the connection is lost.
fn await_claim(
    client: &mut Client,
    lock: &Lock,
    id: KeyId,
    wait: Wait,
    observer: &mut impl WaitObserver,
) -> Result<TryOutcome, Failure> {
    observer.note_unreleased();
    let granted = Instant::now();
    loop {
        let time_left = wait.time_left().unwrap_or(LOOK_PAUSE);
        let goes_on = observer.sleep(LOOK_PAUSE.min(time_left));
        observer.before_query(Duration::ZERO);
        if !goes_on {
            lock.release(client, Receipt::None)?;
            return Err(cancelled());
        }
        let is_over = granted.elapsed() >= GUARD_TIME;
        // The loser recognizes one that is still waiting, and does not report it.
        let tag = if is_over {
            QueryTag::ProgramOnly
        } else {
            QueryTag::Queueing(GUARD_TIME)
        };
        let result = QueryResult::fetch_tagged(client, &sql::look_for_claim(id, lock.mode), tag)?;
        if result.is_true(CLAIMED_COLUMN) || !is_over && time_left.is_zero() {
            lock.release(client, Receipt::None)?;
            return Ok(TryOutcome::Busy { key_index: 0 });
        }
        if is_over {
            return Ok(match result.try_outcome(&lock.keys) {
                // It has vanished meanwhile.
                TryOutcome::Unproven { .. } => TryOutcome::Busy { key_index: 0 },
                outcome => outcome,
            });
        }
    }
}

/// Returns the failure of a wait that was cancelled.
pub(super) fn cancelled() -> Failure {
    Failure::msg(
        ExitCode::Unavailable,
        "the wait for the lock was cancelled on the server (pg_cancel_backend)",
    )
}
