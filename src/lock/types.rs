//! The vocabulary of locking: what a caller requests, and what a try or a wait results in.
//!
//! These types hold no SQL and talk to no server, so that every other file of this wing can use them.

use super::backoff::Backoff;
use super::settling::Settling;
use crate::key::KeyId;
use crate::outcome::{ExitCode, Failure};
use std::time::{Duration, Instant};

/// Which other holders the lock excludes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mode {
    /// All of them.
    #[default]
    Exclusive,
    /// Exclusive holders only.
    Shared,
}

impl Mode {
    /// Returns the value of `PGLOCK_MODE`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Mode::Exclusive => "exclusive",
            Mode::Shared => "shared",
        }
    }
}

/// Lifetime of the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// That of the session, which must be ours alone.
    Session,
    /// That of an open transaction, which also works behind a pooler.
    Transaction,
}

impl Scope {
    /// Returns the name that messages and `check --json` use.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Scope::Session => "session",
            Scope::Transaction => "transaction",
        }
    }
}

/// The value of `--scope`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ScopeChoice {
    /// Transaction behind a pooler, session otherwise.
    #[default]
    Auto,
    /// A session, refused behind a pooler.
    Session,
    /// A transaction.
    Transaction,
    /// A session, even behind a pooler: the user asserts that it uses session pooling.
    SessionPooled,
}

/// The keys to lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    /// All of them, in this order. Every pglock acquires several keys in the order of [`KeyId`], so that two of them
    /// never wait for each other; but a guard takes those that are free, and ends soon.
    All(Vec<KeyId>),
    /// Any one of them.
    OneOf {
        /// The candidates.
        keys: Vec<KeyId>,
        /// Index of the candidate to try first; the search wraps around.
        start: usize,
    },
}

impl Keys {
    /// Returns the keys, all or candidates.
    pub(crate) fn as_slice(&self) -> &[KeyId] {
        match self {
            Keys::All(keys) | Keys::OneOf { keys, .. } => keys,
        }
    }
}

/// A lock to request: keys, mode and lifetime.
#[derive(Clone, Debug)]
pub(crate) struct Lock {
    /// What to lock.
    pub keys: Keys,
    /// Exclusive or shared.
    pub mode: Mode,
    /// Session or transaction.
    pub scope: Scope,
}

impl Lock {
    /// Returns the keys, all or candidates.
    pub(crate) fn ids(&self) -> &[KeyId] {
        self.keys.as_slice()
    }

    /// Returns whether the keys may take up much of the server's table of locks, which has room for some thousands by
    /// default (`max_locks_per_transaction` for each of `max_connections`).
    pub(super) fn has_many_keys(&self) -> bool {
        matches!(&self.keys, Keys::All(ids) if ids.len() > 100)
    }

    /// Returns the lock that `grant` gives us: of several candidates, only the acquired one.
    pub(crate) fn held(&self, grant: Grant) -> Lock {
        let keys = match &self.keys {
            Keys::OneOf { keys, .. } => Keys::All(vec![keys[grant.key_index]]),
            all => all.clone(),
        };
        Lock { keys, ..*self }
    }
}

/// How long to wait for the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Wait {
    /// Not at all: try once.
    Try,
    /// Until this instant.
    Until(Instant),
    /// Without a limit.
    Indefinitely,
}

impl Wait {
    /// Returns when the wait times out; `None` without a wait or without a limit.
    pub(crate) fn deadline(self) -> Option<Instant> {
        match self {
            Wait::Until(deadline) => Some(deadline),
            Wait::Try | Wait::Indefinitely => None,
        }
    }

    /// Returns the time left; `None` without a limit.
    pub(crate) fn time_left(self) -> Option<Duration> {
        match self {
            Wait::Try => Some(Duration::ZERO),
            Wait::Until(deadline) => Some(deadline.saturating_duration_since(Instant::now())),
            Wait::Indefinitely => None,
        }
    }
}

/// Limits of a wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WaitOptions {
    /// How long to wait.
    pub wait: Wait,
    /// The longest uninterrupted stay in the server's queue.
    pub max_slice: Duration,
    /// The pauses between two tries where the server has no queue for us (`--poll`).
    pub backoff: Backoff,
    /// How long the try took that found the lock held.
    pub try_duration: Duration,
    /// Whether to poll although the server has a queue: to wait in it would keep a session of the pool from others.
    pub leaves_queue_alone: bool,
    /// When the server started, as [`Server::start`](super::Server::start) returns it.
    pub server_start: Option<i64>,
    /// After how long without an acknowledgement the server must end our session.
    pub server_limit: Duration,
    /// Whether the backend is a pool's, and may hold locks of earlier clients.
    pub is_lent: bool,
    /// Whether we have lost the lock ourselves, and wait to guard the end of our job.
    pub is_loser: bool,
    /// Whether we have waited for our turn to ask for the lock.
    pub has_waited: bool,
}

/// What to do with a key when the server's queue grants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnGrant {
    /// Hold it, unless its loser claims it, and report it if it was not released by its last holder.
    Keep {
        /// The session has not been in the queue before.
        just_arrived: bool,
    },
    /// Hold it in any case: we have lost it ourselves.
    KeepAsLoser,
    /// Release it at once: the wait was only for its holder to release it.
    Release,
}

/// A lock that we hold, proven by its row in `pg_locks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    /// The backend that holds it for us.
    pub backend_pid: i32,
    /// When we sent the query whose result proves the lock: the server received something from us after this.
    pub query_sent: Instant,
    /// Index of the acquired key in [`Keys::OneOf`].
    pub key_index: usize,
}

/// What the first query must know about the client.
#[derive(Clone, Debug)]
pub(crate) struct ClientInfo {
    /// The `application_name` in our startup packet.
    pub application_name: String,
    /// The requested lifetime.
    pub choice: ScopeChoice,
    /// After how long without an acknowledgement the server must end our session; `None` leaves the session's
    /// settings alone.
    pub server_limit: Option<Duration>,
    /// What must be old enough before anything is tried.
    pub settling: Settling,
    /// When the server started with which a wait began: on one that has started at another time nothing is tried.
    pub known_start: Option<i64>,
}

/// Result of one try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TryOutcome {
    /// We hold the lock.
    Acquired(Grant),
    /// Another client holds a key. We hold all keys before it.
    Busy {
        /// Index of that key.
        key_index: usize,
    },
    /// The server reported success, but `pg_locks` has no row for the lock. What was acquired, if anything, is kept.
    Unproven {
        /// The backend that reported it.
        backend_pid: i32,
        /// Index of the key in [`Keys::OneOf`].
        key_index: usize,
    },
    /// The server did not try: the lock would protect nothing, and might stay behind.
    Untried,
    /// The server has started since it was last asked, or it is another one: the holder may have lost the lock while
    /// its job runs. Nothing is held.
    Restarted,
}

/// Result of a try or a wait on a server whose locks are real.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acquisition {
    /// We hold the lock.
    Acquired(Grant),
    /// Another client still holds a key. We hold all keys before it.
    Busy {
        /// Index of that key.
        key_index: usize,
    },
}

impl TryOutcome {
    /// Rules out a lock that would protect nothing.
    ///
    /// # Errors
    /// [`ExitCode::Config`] if the lock is not proven, or was not tried.
    pub(crate) fn into_acquisition(self) -> Result<Acquisition, Failure> {
        match self {
            TryOutcome::Acquired(grant) => Ok(Acquisition::Acquired(grant)),
            TryOutcome::Busy { key_index } => Ok(Acquisition::Busy { key_index }),
            TryOutcome::Unproven { .. } => Err(Failure::msg(ExitCode::Config, UNPROVEN)),
            TryOutcome::Untried => Err(Failure::msg(ExitCode::Config, HOT_STANDBY)),
            TryOutcome::Restarted => Err(restarted()),
        }
    }
}

/// Result of a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitEnd {
    /// We hold the lock.
    Acquired(Grant),
    /// The time is up. We hold all keys before the busy one.
    TimedOut {
        /// Index of that key.
        key_index: usize,
    },
    /// The wait goes on over another connection, after this pause. Nothing is held.
    GiveUpConnection {
        /// How long to rest.
        pause: Duration,
    },
}

/// Returns the failure on a server that has started since it was last asked, or is another one. A holder may have lost
/// its lock by that.
pub(crate) fn restarted() -> Failure {
    let message = "the server was restarted, or its statistics were reset (pg_stat_reset_shared)";
    Failure::msg(ExitCode::Unavailable, message).transient_if(true)
}

const UNPROVEN: &str = "the server reported the lock as acquired, but it is not in pg_locks and would protect nothing; \
     connect to a PostgreSQL server";

/// Why a hot standby is refused, and what to do.
pub(crate) const HOT_STANDBY: &str = "the server is a hot standby, whose locks the primary does not see; connect \
     to the primary, or list all hosts with target_session_attrs=primary";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_not_proven_is_refused() {
        let grant = Grant {
            backend_pid: 7,
            key_index: 0,
            query_sent: Instant::now(),
        };
        let acquisition = |outcome: TryOutcome| outcome.into_acquisition().ok();
        assert_eq!(
            acquisition(TryOutcome::Acquired(grant)),
            Some(Acquisition::Acquired(grant))
        );
        assert_eq!(
            acquisition(TryOutcome::Busy { key_index: 2 }),
            Some(Acquisition::Busy { key_index: 2 })
        );
        let unproven = TryOutcome::Unproven {
            backend_pid: 7,
            key_index: 0,
        };
        for outcome in [unproven, TryOutcome::Untried] {
            let failure = outcome.into_acquisition().expect_err("a refusal");
            assert_eq!(failure.code, ExitCode::Config);
        }
    }
}
