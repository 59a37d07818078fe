//! Waiting: in the server's queue, in a line of tickets, or by asking again.
//!
//! The stay in the server's queue is cut into slices, each a message of its own, so that nobody who waits holds a snapshot
//! for long. Where there is no queue (behind a pooler, without plpgsql) the pauses between two tries grow, at random.

use super::{
    GOT, Grant, Keys, Lock, Mode, PROVEN, QueryResult, Scope, TryOutcome, WaitOptions, call, lacks_plpgsql, say_got,
};
use crate::key::KeyId;
use crate::lock::ticket::{Ticket, TicketQueue};
use crate::outcome::{ExitCode, Failure};
use crate::protocol::query_tag::QueryTag;
use postgres::Client;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::Duration;

/// What a wait tells of itself.
pub trait WaitObserver {
    /// A message is about to be sent, which the server will answer within this time at most.
    fn about_to_ask(&mut self, longest: Duration);
    /// Sleeps between two messages, when the server may be asked something else. Says whether to go on: a cancellation
    /// that came then would be lost on the server.
    fn pause(&mut self, client: &mut Client, rest: Duration) -> bool;
}

/// What becomes of a lock that was waited for in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnGrant {
    /// It is the session's.
    Keep,
    /// It is given back at once: it was only waited for until somebody else gives it back.
    Leave,
}

/// How a wait in the server's queue ended.
pub(super) enum Queued {
    Acquired(Grant),
    TimedOut,
    /// There is no queue to wait in: the server has no plpgsql for us.
    NoQueue,
}

/// Waits in the server's queue for one key, in slices.
pub(super) fn queue_for(
    client: &mut Client,
    id: KeyId,
    mode: Mode,
    stay: OnGrant,
    terms: WaitOptions,
    talk: &mut impl WaitObserver,
) -> Result<Queued, Failure> {
    let lock = Lock {
        keys: Keys::All(vec![id]),
        mode,
        scope: Scope::Session,
    };
    loop {
        if !talk.pause(client, Duration::ZERO) {
            return Err(cancelled());
        }
        let left = terms.wait.left();
        let slice = left.map_or(terms.slice, |left| left.min(terms.slice));
        talk.about_to_ask(slice);
        let answer = match QueryResult::noting(
            client,
            &slice_of_waiting(id, &lock, stay, slice),
            QueryTag::Queueing(slice),
        ) {
            Err(error) if lacks_plpgsql(&error) => return Ok(Queued::NoQueue),
            answer => answer?,
        };
        let attempt = match answer.get("got") {
            Some("cancelled") => return Err(cancelled()),
            Some(UNPROVEN) => TryOutcome::Unproven,
            _ => answer.attempt(&lock.keys),
        };
        match attempt.outcome()? {
            Ok(grant) => return Ok(Queued::Acquired(grant)),
            Err(_) if left == Some(Duration::ZERO) => return Ok(Queued::TimedOut),
            Err(_) => {}
        }
    }
}

/// One slice in the server's queue. It says whether the lock is ours and proven, in one expression that is planned before
/// the wait begins: what follows the wait is the time from the end of one job to the beginning of the next.
///
/// The transaction-level lock comes first because a grant that arrives as the timeout fires raises the error
/// and yet leaves a *session*-level lock held; the transaction-level one is undone with the block. The
/// session-level lock that follows is then granted at once, to the same owner. That error is raised where the server next
/// looks for interrupts, which must be between the two, and is in the proof: to look through `pg_locks` is to look for them
/// at each row. CASE takes its conditions in order; that none of these is ever NULL is no matter to a server that gives
/// real locks.
/// The caught errors leave no trace in the server's log. A cancellation is caught twice: the postmaster signals the process
/// and then its group, and the second signal can come when the first has been dealt with.
fn slice_of_waiting(id: KeyId, lock: &Lock, stay: OnGrant, slice: Duration) -> String {
    // lock_timeout 0 would mean no limit; rounding up keeps the wait from ending early.
    let milliseconds = slice.as_micros().div_ceil(1000).max(1);
    let keep = match stay {
        OnGrant::Keep => format!(
            "WHEN {} IS NULL THEN '{UNPROVEN}' ",
            call("pg_advisory_lock", id, lock.mode)
        ),
        OnGrant::Leave => String::new(),
    };
    let cancelled = say_got("'cancelled'");
    format!(
        "DO $$ BEGIN BEGIN PERFORM {}; \
         EXCEPTION WHEN lock_not_available THEN PERFORM {}; \
         WHEN query_canceled THEN PERFORM {cancelled}; END; \
         EXCEPTION WHEN query_canceled THEN PERFORM {cancelled}; END $$; \
         SELECT {GOT} AS got, {GOT} = '1' AS {PROVEN}, pg_catalog.pg_backend_pid() AS backend_pid",
        say_got(&format!(
            "CASE WHEN pg_catalog.set_config('lock_timeout', '{milliseconds}ms', true) IS NULL THEN '{UNPROVEN}' \
             WHEN {} IS NULL THEN '{UNPROVEN}' WHEN NOT EXISTS ({}) THEN '{UNPROVEN}' {keep}ELSE '1' END",
            call("pg_advisory_xact_lock", id, lock.mode),
            lock.in_sql().proof(None),
        )),
        say_got("'0'"),
    )
}

/// What [`GOT`] is where the server says that the lock is ours, and has no row of it.
const UNPROVEN: &str = "unproven";

/// Stands in line until nobody is before us. `None` when the time is up first.
pub fn wait_for_turn(
    line: TicketQueue,
    client: &mut Client,
    terms: WaitOptions,
    talk: &mut impl WaitObserver,
) -> Result<Option<Ticket>, Failure> {
    talk.about_to_ask(Duration::ZERO);
    let ticket = line.join(client)?;
    loop {
        talk.about_to_ask(Duration::ZERO);
        let before = ticket.predecessor(client)?;
        let Some(before) = before else {
            return Ok(Some(ticket));
        };
        match queue_for(client, before, Mode::Shared, OnGrant::Leave, terms, talk)? {
            Queued::Acquired(_) => {}
            Queued::TimedOut => return Ok(None),
            Queued::NoQueue => {
                return Err(Failure::say(
                    ExitCode::Config,
                    "waiting in line needs the language plpgsql, which this role may not use here; GRANT USAGE ON LANGUAGE \
                 plpgsql to it, or use neither --fair nor --slots with a wait",
                ));
            }
        }
    }
}

pub(super) fn cancelled() -> Failure {
    Failure::say(
        ExitCode::Unavailable,
        "the wait for the lock was cancelled on the server (pg_cancel_backend)",
    )
}

/// The pauses between two tries, where there is no queue: short at first, then longer, each cut at random to
/// between its half and its whole, so that those who wait spread out.
///
/// Where a try takes long, a pooler has more to do than it can, most often because of those who wait; so it is left
/// alone for ten times as long, within reason.
pub(super) struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    pub(super) const FIRST: Duration = Duration::from_millis(20);

    pub(super) fn up_to(longest: Duration) -> Backoff {
        Backoff {
            next: Backoff::FIRST.min(longest),
            longest,
        }
    }

    /// The longest pause there is, of those that are otherwise up to this long.
    pub(super) fn longest(poll: Duration) -> Duration {
        poll * 4
    }

    /// The pause after a try that took so long, when so much time is left.
    pub(super) fn rest(&mut self, took: Duration, left: Option<Duration>) -> Duration {
        let rest = self.next.max((took * 10).min(Backoff::longest(self.longest)));
        self.next = (self.next * 3 / 2).min(self.longest);
        // Between 0 and 1, at random.
        let cut = RandomState::new().hash_one(()) as f64 / u64::MAX as f64;
        let rest = rest.mul_f64(1.0 - cut / 2.0);
        left.map_or(rest, |left| left.min(rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_the_longest_and_are_cut_at_random() {
        let longest = Duration::from_secs(1);
        let mut backoff = Backoff::up_to(longest);
        let rests: Vec<Duration> = (0..50).map(|_| backoff.rest(Duration::ZERO, None)).collect();
        assert!(rests[0] <= Backoff::FIRST && rests[0] * 2 >= Backoff::FIRST);
        assert!(rests.iter().all(|rest| *rest <= longest));
        assert!(rests[20..].iter().all(|rest| *rest * 2 >= longest));
        assert!(rests[20..].iter().any(|rest| *rest != rests[20]));
        let left = Duration::from_millis(3);
        assert_eq!(backoff.rest(Duration::ZERO, Some(left)), left);
        // A pooler that is slow to answer is asked less often, but not for ever.
        assert!(backoff.rest(Duration::from_millis(300), None) >= longest * 3 / 2);
        assert!(backoff.rest(Duration::from_secs(60), None) <= longest * 4);
        assert!(Backoff::up_to(left).rest(Duration::ZERO, None) <= left);
    }
}
