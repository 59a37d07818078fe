//! Receipts and claims: how a waiter in the server's queue knows whether the lock was released or lost. Pure.
//!
//! The server frees a lock in the same way whether its holder has released it or its session was ended, by
//! `pg_terminate_backend`, a proxy or a restart. In the second case the holder's job may still be terminating, and the
//! holder is about to guard the key (`run::session::guard`), but a client that waits in the server's queue always gets
//! it first.
//!
//! So a holder whose job is dead takes a *receipt* before it unlocks, and a loser that finds its key taken takes a
//! *claim* before it waits for it: shared locks on keys that are derived from that of the lock. A waiter that is
//! granted the lock
//!
//! * gives it back if there is a claim, and waits again;
//! * else starts its job if there is a receipt, or if it asked no longer than [`ARRIVAL_TIME`] ago: then it knows as
//!   little as a newcomer does;
//! * else keeps the lock for [`GUARD_TIME`] and, if no claim comes in that time, starts its job.
//!
//! A receipt is kept for [`RECEIPT_TIME`], and only if another client has the lock immediately afterwards (with
//! `--fair` in any case). If it ends before it was seen, the next job starts half a second later. The same happens
//! after a lock of [many keys](super::types::Lock::has_many_keys), which leaves none. A session that a pooler lends
//! takes no receipt, which would stay there if we are killed, and vouch for others; a loser behind a pooler claims its
//! key by the transaction.

use super::settling::MIN_SERVER_AGE;
use std::time::Duration;

/// How long the client that may have lost a lock has to come back and claim it: as long as a newcomer leaves a server
/// alone that has just started.
pub(crate) const GUARD_TIME: Duration = MIN_SERVER_AGE;

/// The pause between two looks for a claim.
pub(super) const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// A client that is granted a lock this soon after its first query in the server's queue needs no receipt. It is about
/// as long as the loser takes to reconnect. The holder may have released the lock before it could know of the client.
pub(super) const ARRIVAL_TIME: Duration = Duration::from_millis(10);

/// How long a receipt is kept. The client that was granted the lock looks for it at once, in the query in which it
/// waits.
pub(super) const RECEIPT_TIME: Duration = Duration::from_millis(20);

/// The column that reports what a release did.
pub(super) const RELEASED_COLUMN: &str = "released";

/// The value of [`RELEASED_COLUMN`] if a key was not ours any more.
pub(super) const NOT_HELD: &str = "not held";

/// The value of [`RELEASED_COLUMN`] if the receipt is kept, since another client has a key already.
pub(super) const RECEIPT_KEPT: &str = "kept";

/// Whether a release leaves a receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Receipt {
    /// It does: the session is our own, and no other job can run under the lock.
    Left,
    /// It does, even if nobody has the lock at once: others wait for their turn before they ask for the lock.
    Kept,
    /// It does not: a pooler may lend the session to others, or an earlier holder may have lost the lock.
    None,
}

impl Receipt {
    /// Returns whether to leave one, in a session that may be lent to other clients or not.
    pub(crate) fn unless_lent(is_lent: bool) -> Receipt {
        if is_lent { Receipt::None } else { Receipt::Left }
    }
}
