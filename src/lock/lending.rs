//! Whether a pooler lends its backends by the transaction or for a whole session; pure.
//!
//! A pooler does not tell. But one that lends by the transaction can have a connection's next query run on another
//! backend, and one that lends for the session cannot. Until the former was seen, a waiter takes the pool for one of
//! sessions, where its connection keeps a backend of the pool from others: from the job of the client it waits for,
//! too. It then gives its connection up between tries.
//!
//! In a pool of transactions that lends the same backend each time that is not needed, but cheap: where many clients
//! share the pool, their queries overlap, and the difference is seen soon.

use std::time::{Duration, Instant};

/// How long a wait keeps its connection before it gives it up between tries: most short waits are over by then.
const KEPT_AT_FIRST: Duration = Duration::from_secs(1);

/// A try that takes this long waited for a free backend: the pool is used up, and a connection is not kept at all.
const SCARCE_TRY_DURATION: Duration = Duration::from_millis(100);

/// The shortest rest after a connection was given up: connecting costs more than a try.
pub(super) const MIN_REST: Duration = Duration::from_millis(300);

/// How long a waiter stays on one connection to a pooler, so that a pooler that is being replaced can end.
const MAX_CONNECTION_AGE: Duration = Duration::from_secs(60);

/// What a waiter has seen of a pooler's lending, over all connections of the wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lending {
    /// A connection was lent two different backends: the pooler lends by the transaction.
    is_by_transaction: bool,
    /// The backend that the current connection was lent last.
    backend_pid: Option<i32>,
    connected: Instant,
    /// Differs from waiter to waiter, so that they do not all reconnect at once.
    max_age: Duration,
}

impl Lending {
    /// Returns what is known at the begin of a wait, or after a lost connection: nothing.
    pub(crate) fn unknown() -> Lending {
        Lending {
            is_by_transaction: false,
            backend_pid: None,
            connected: Instant::now(),
            max_age: MAX_CONNECTION_AGE.mul_f64(1.0 - fastrand::f64() / 4.0),
        }
    }

    /// Notes a new connection to the same pooler.
    pub(crate) fn note_connection(&mut self) {
        *self = Lending {
            is_by_transaction: self.is_by_transaction,
            ..Lending::unknown()
        };
    }

    /// Notes the backend on which a transaction of the current connection ran.
    pub(crate) fn note_backend(&mut self, backend_pid: i32) {
        let previous = self.backend_pid.replace(backend_pid);
        self.is_by_transaction |= previous.is_some_and(|previous| previous != backend_pid);
    }

    /// Returns whether the pooler is known to lend its backends by the transaction.
    pub(crate) fn is_by_transaction(&self) -> bool {
        self.is_by_transaction
    }

    /// Returns whether to give up the connection before the next pause, which is at most this long. The wait has lasted
    /// for `waited`, and the last try took `try_duration`.
    pub(crate) fn must_close(&self, waited: Duration, try_duration: Duration, pause: Duration) -> bool {
        let is_kept_at_first = waited < KEPT_AT_FIRST && try_duration < SCARCE_TRY_DURATION;
        let is_old = self.connected.elapsed() + pause >= self.max_age;
        is_old || !self.is_by_transaction && !is_kept_at_first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn a_connection_that_keeps_its_backend_is_given_up_after_a_second() {
        let mut lending = Lending::unknown();
        for _ in 0..30 {
            lending.note_backend(7);
            assert!(!lending.must_close(SHORT, SHORT, SHORT));
        }
        assert!(lending.must_close(LONG, SHORT, SHORT));
        // At once where the try had to wait for a backend.
        assert!(lending.must_close(SHORT, LONG, SHORT));
        // The next connection is given up at once, although it is lent another backend.
        lending.note_connection();
        lending.note_backend(8);
        lending.note_backend(8);
        assert!(lending.must_close(LONG, SHORT, SHORT));
    }

    #[test]
    fn a_connection_that_changes_its_backend_is_kept_and_so_are_the_next() {
        let mut lending = Lending::unknown();
        lending.note_backend(7);
        lending.note_backend(8);
        lending.note_backend(8);
        assert!(!lending.must_close(LONG, LONG, LONG));
        lending.note_connection();
        lending.note_backend(7);
        assert!(!lending.must_close(LONG, LONG, LONG));
    }

    #[test]
    fn no_connection_is_kept_for_more_than_a_minute() {
        let mut lending = Lending::unknown();
        lending.note_backend(7);
        lending.note_backend(8);
        let old = |seconds| Lending {
            connected: Instant::now()
                .checked_sub(Duration::from_secs(seconds))
                .expect("a clock that is old enough"),
            ..lending
        };
        assert!(!old(40).must_close(LONG, SHORT, SHORT));
        assert!(old(60).must_close(LONG, SHORT, SHORT));
        // The pause counts.
        assert!(old(40).must_close(LONG, SHORT, LONG * 2));
        // Not all at the same age.
        assert_ne!(Lending::unknown().max_age, Lending::unknown().max_age);
        assert!(Lending::unknown().max_age <= MAX_CONNECTION_AGE);
    }
}
