//! Receipts: how the next client in the server's queue knows that a lock was released, and not lost. Pure.
//!
//! The server frees a lock in the same way whether its holder has released it or its session was ended, by
//! `pg_terminate_backend`, a proxy or a restart. In the second case the holder's job may still be terminating, and the
//! holder is about to guard the key (`run::session::guard`), but whoever waits in the server's queue is always faster.
//! So a holder whose job is dead takes a *receipt* before it unlocks: a shared lock on a key derived from that of the
//! lock. A client that the queue grants a lock without a receipt leaves it alone for [`GUARD_TIME`], and then tries
//! again: by then the loser guards the key. One that has just arrived, no longer than [`ARRIVAL_TIME`] ago, knows as
//! little as any newcomer.
//!
//! A receipt is kept for [`RECEIPT_TIME`], and only if somebody was granted the lock at once. If it ends before it was
//! seen, the next job starts a little later.
//!
//! A session that a pooler lends takes none: it would stay there if we are killed, and vouch for the next holder.

use super::settling::MIN_SERVER_AGE;
use std::time::Duration;

/// How long a lock that nobody has released is left to the client that may have lost it: as long as a newcomer leaves a
/// server alone that has just started.
pub(super) const GUARD_TIME: Duration = MIN_SERVER_AGE;

/// Who is granted a lock this soon after having asked for the first time needs no receipt: about as long as the loser
/// takes to reconnect. The holder may have released the lock before it could know that somebody wants it.
pub(super) const ARRIVAL_TIME: Duration = Duration::from_millis(10);

/// How long a receipt is kept after the reply to the release. The client that was granted the lock looks for it at
/// once, in the query in which it waits.
pub(super) const RECEIPT_TIME: Duration = Duration::from_millis(20);

/// The column that reports what a release did.
pub(super) const RELEASED_COLUMN: &str = "released";

/// The value of [`RELEASED_COLUMN`] if a key was not ours any more.
pub(super) const NOT_HELD: &str = "not held";

/// The value of [`RELEASED_COLUMN`] if somebody has the lock already.
pub(super) const GRANTED_TO_NEXT: &str = "next";

/// Whether a release leaves a receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Receipt {
    /// It does: the session is our own.
    Left,
    /// It does not: a pooler may lend the session to others.
    None,
}

impl Receipt {
    /// Returns whether to leave one, in a session that may be lent to other clients or not.
    pub(crate) fn unless_lent(is_lent: bool) -> Receipt {
        if is_lent { Receipt::None } else { Receipt::Left }
    }
}
