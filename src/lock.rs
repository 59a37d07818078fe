//! All SQL of taking a lock and giving it back.
//!
//! Everything goes through the simple query protocol, one round trip a message. Waiting happens in the server's
//! own queue, but in slices: a session that waits in one long statement holds a snapshot all the while, which
//! holds VACUUM back and can deadlock with a CREATE INDEX CONCURRENTLY that the holder's job runs.

use crate::key::KeyId;
use postgres::error::SqlState;
use postgres::{Client, SimpleQueryMessage, SimpleQueryRow};
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::{Duration, Instant};

/// How the lock excludes others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Nobody else holds it.
    #[default]
    Exclusive,
    /// Others may hold it in this mode too.
    Shared,
}

impl Mode {
    /// As `PGLOCK_MODE` says it.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Exclusive => "exclusive",
            Mode::Shared => "shared",
        }
    }
}

/// What is asked of the server: this key, in this mode.
#[derive(Clone, Copy, Debug)]
pub struct Lock {
    /// The key.
    pub id: KeyId,
    /// The mode.
    pub mode: Mode,
}

/// Until when to wait for the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Try once.
    Try,
    /// Until this moment of the monotonic clock.
    Until(Instant),
    /// For ever.
    Forever,
}

impl Wait {
    /// The time that is left, `None` when there is no limit.
    fn left(self) -> Option<Duration> {
        match self {
            Wait::Try => Some(Duration::ZERO),
            Wait::Until(end) => Some(end.saturating_duration_since(Instant::now())),
            Wait::Forever => None,
        }
    }
}

/// What the first message tells of the server, and whether it gave the lock.
#[derive(Clone, Debug)]
pub struct FirstTry {
    /// The lock is ours.
    pub acquired: bool,
    /// Something between us and the server answers in its name.
    pub pooled: bool,
    /// The server is a hot standby, whose locks nobody else sees.
    pub standby: bool,
    /// The database, in which all locks live.
    pub database: String,
    /// The process of the server that serves us.
    pub backend_pid: i32,
}

impl Lock {
    /// Looks at the server and tries the lock, in one round trip. The lock is not even tried through a pooler
    /// or on a standby: it would protect nothing, and could stay behind.
    ///
    /// A pooler is told by `application_name`: reset to its value at the start of the session, it must be the one
    /// that we sent in the startup packet. A pooler applies the name later, by SET.
    pub fn first_try(
        self,
        client: &mut Client,
        application_name: &str,
    ) -> Result<FirstTry, postgres::Error> {
        let answer = Answer::to(
            client,
            &format!(
                "SELECT name, standby, pg_backend_pid() AS backend_pid, current_database() AS database, \
                 CASE WHEN name = '{application_name}' AND NOT standby THEN {} END AS acquired \
                 FROM (SELECT pg_catalog.set_config('application_name', NULL, true) AS name, \
                 pg_catalog.pg_is_in_recovery() AS standby OFFSET 0) AS server",
                self.call("pg_try_advisory_lock")
            ),
        )?;
        Ok(FirstTry {
            acquired: answer.is_true("acquired"),
            pooled: answer.get("name") != Some(application_name),
            standby: answer.is_true("standby"),
            database: answer.get("database").unwrap_or_default().to_owned(),
            backend_pid: answer.number("backend_pid").unwrap_or_default() as i32,
        })
    }

    /// Waits for the lock, in slices. `true` when it is ours, `false` when the time is up. `alive` is told of
    /// each message, right before it is sent: when, and how long the server will take to answer at most. `pause`
    /// sleeps between two messages, and says whether to go on: a cancellation that comes then would be lost on
    /// the server.
    ///
    /// # Errors
    /// The server refused or is gone; or somebody cancelled the wait.
    pub fn wait(
        self,
        client: &mut Client,
        wait: Wait,
        slice: Duration,
        mut alive: impl FnMut(Instant, Duration),
        mut pause: impl FnMut(Duration) -> bool,
    ) -> Result<bool, WaitError> {
        let mut queue = true;
        let mut rest = Duration::ZERO;
        loop {
            if !pause(rest) {
                return Err(WaitError::Cancelled);
            }
            let left = wait.left();
            let slice = left.map_or(slice, |left| left.min(slice));
            alive(Instant::now(), slice);
            let answer = match queue {
                true => self.queue_for(client, slice),
                false => self.try_again(client),
            };
            match answer {
                Ok(Slice::Acquired) => return Ok(true),
                Ok(Slice::Cancelled) => return Err(WaitError::Cancelled),
                Ok(Slice::TimedOut) if left == Some(Duration::ZERO) => return Ok(false),
                Ok(Slice::TimedOut) if queue => {}
                Ok(Slice::TimedOut) => rest = rest_between_polls(left),
                Err(error) if queue && lacks_plpgsql(&error) => queue = false,
                Err(error) => return Err(WaitError::Server(error)),
            }
        }
    }

    /// One slice in the server's queue.
    ///
    /// The transaction-level lock comes first because a grant that arrives as the timeout fires raises the error
    /// and yet leaves a *session*-level lock held; the transaction-level one is undone with the block. The
    /// session-level lock that follows is then granted at once, to the same owner.
    /// The caught errors leave no trace in the server's log.
    fn queue_for(self, client: &mut Client, slice: Duration) -> Result<Slice, postgres::Error> {
        // lock_timeout 0 would mean no limit; rounding up keeps the wait from ending early.
        let milliseconds = slice.as_micros().div_ceil(1000).max(1);
        let answer = Answer::to(
            client,
            &format!(
                "DO $$ BEGIN \
                 PERFORM pg_catalog.set_config('lock_timeout', '{milliseconds}ms', true); \
                 PERFORM {}; PERFORM {}; \
                 PERFORM pg_catalog.set_config('pglock.slice', 'acquired', true); \
                 EXCEPTION WHEN lock_not_available THEN NULL; \
                 WHEN query_canceled THEN \
                 PERFORM pg_catalog.set_config('pglock.slice', 'cancelled', true); END $$; \
                 SELECT pg_catalog.current_setting('pglock.slice', true) AS slice",
                self.call("pg_advisory_xact_lock"),
                self.call("pg_advisory_lock"),
            ),
        )?;
        Ok(match answer.get("slice") {
            Some("acquired") => Slice::Acquired,
            Some("cancelled") => Slice::Cancelled,
            _ => Slice::TimedOut,
        })
    }

    fn try_again(self, client: &mut Client) -> Result<Slice, postgres::Error> {
        let sql = format!("SELECT {} AS acquired", self.call("pg_try_advisory_lock"));
        Ok(match Answer::to(client, &sql)?.is_true("acquired") {
            true => Slice::Acquired,
            false => Slice::TimedOut,
        })
    }

    /// Gives the lock back. `false` when it was not ours any more.
    pub fn release(self, client: &mut Client) -> Result<bool, postgres::Error> {
        let sql = format!("SELECT {} AS released", self.call("pg_advisory_unlock"));
        Ok(Answer::to(client, &sql)?.is_true("released"))
    }

    /// The call of one of PostgreSQL's advisory lock functions, in this mode, on this key.
    fn call(self, function: &str) -> String {
        let suffix = match self.mode {
            Mode::Exclusive => "",
            Mode::Shared => "_shared",
        };
        let arguments = match self.id {
            KeyId::Bigint(id) => format!("'{id}'::bigint"),
            KeyId::IntPair(a, b) => format!("'{a}'::int, '{b}'::int"),
        };
        format!("pg_catalog.{function}{suffix}({arguments})")
    }
}

/// Settings that would end a session that only holds a lock, or cancel one that waits. Each is unknown to some
/// supported version.
const TIMEOUTS: [&str; 5] = [
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "transaction_timeout",
];

/// Makes the session fit to hold or wait for a lock, for as long as it takes, and makes the server notice
/// within `limit` that our host has vanished. Returns how long a slice of waiting may be.
///
/// Both kinds of TCP limit are needed: keepalives see nothing while an answer is unacknowledged, the user
/// timeout nothing on an idle session. On a Unix socket they have no effect, and need none.
pub fn prepare(client: &mut Client, limit: Duration) -> Result<Duration, postgres::Error> {
    // Seconds, as keepalives are counted in; three probes one second apart fill the end of the limit.
    let seconds = limit.as_millis().div_ceil(1000).max(4);
    let idle = seconds - 3;
    let neutral = TIMEOUTS.map(|name| {
        format!(
            "CASE WHEN pg_catalog.current_setting('{name}', true) IS NOT NULL \
             THEN pg_catalog.set_config('{name}', '0', false) END"
        )
    });
    let answer = Answer::to(
        client,
        &format!(
            "SELECT {}, \
             pg_catalog.set_config('tcp_keepalives_idle', '{idle}', false), \
             pg_catalog.set_config('tcp_keepalives_interval', '1', false), \
             pg_catalog.set_config('tcp_keepalives_count', '3', false), \
             CASE WHEN pg_catalog.current_setting('tcp_user_timeout', true) IS NOT NULL \
             THEN pg_catalog.set_config('tcp_user_timeout', '{seconds}000', false) END, \
             {} AS deadlock_timeout, {} AS log_min_duration",
            neutral.join(", "),
            in_milliseconds("deadlock_timeout"),
            in_milliseconds("log_min_duration_statement"),
        ),
    )?;
    // A server on a system without the needed poll(2) flag refuses this one; nothing else depends on it.
    let _ = client.simple_query(
        "SELECT CASE WHEN pg_catalog.current_setting('client_connection_check_interval', true) IS NOT NULL \
         THEN pg_catalog.set_config('client_connection_check_interval', '1s', false) END",
    );
    Ok(slice(
        answer.number("deadlock_timeout"),
        answer.number("log_min_duration"),
    ))
}

/// A duration setting in milliseconds. Cheaper than a look into `pg_settings`.
fn in_milliseconds(setting: &str) -> String {
    format!("1000 * extract(epoch FROM pg_catalog.current_setting('{setting}')::interval)")
}

/// The longest slice of waiting.
const LONGEST_SLICE: Duration = Duration::from_millis(900);
/// The shortest: below it the queue would be left more often than is good for anybody.
const SHORTEST_SLICE: Duration = Duration::from_millis(20);

/// A slice that stays under `deadlock_timeout` (else `log_lock_waits` logs each one) and under
/// `log_min_duration_statement` (else each one is logged as a slow statement); both in milliseconds.
fn slice(deadlock_timeout: Option<f64>, log_min_duration: Option<f64>) -> Duration {
    [deadlock_timeout, log_min_duration]
        .into_iter()
        .flatten()
        .filter(|limit| *limit > 0.0)
        .map(|limit| Duration::from_millis((limit * 0.9) as u64))
        .fold(LONGEST_SLICE, Duration::min)
        .max(SHORTEST_SLICE)
}

/// Asks for an answer, and nothing else.
pub fn heartbeat(client: &mut Client) -> Result<(), postgres::Error> {
    client.simple_query("").map(drop)
}

/// Why a wait failed.
#[derive(Debug)]
pub enum WaitError {
    /// The server refused, or is gone.
    Server(postgres::Error),
    /// Somebody cancelled it.
    Cancelled,
}

/// How one slice of waiting ended.
enum Slice {
    Acquired,
    TimedOut,
    Cancelled,
}

/// The one row that a message returns.
struct Answer(Option<SimpleQueryRow>);

impl Answer {
    fn to(client: &mut Client, sql: &str) -> Result<Answer, postgres::Error> {
        let row = client
            .simple_query(sql)?
            .into_iter()
            .find_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(row),
                _ => None,
            });
        Ok(Answer(row))
    }

    fn get(&self, column: &str) -> Option<&str> {
        self.0.as_ref()?.try_get(column).ok()?
    }

    fn is_true(&self, column: &str) -> bool {
        self.get(column) == Some("t")
    }

    fn number(&self, column: &str) -> Option<f64> {
        self.get(column)?.parse().ok()
    }
}

/// Whether the error says that this server has no plpgsql for us.
fn lacks_plpgsql(error: &postgres::Error) -> bool {
    let codes = [
        SqlState::INSUFFICIENT_PRIVILEGE,
        SqlState::UNDEFINED_OBJECT,
        SqlState::FEATURE_NOT_SUPPORTED,
    ];
    error.code().is_some_and(|code| codes.contains(code))
}

/// Without a queue there is only asking again: 50 to 150 ms apart, at random, so that waiters spread out.
fn rest_between_polls(left: Option<Duration>) -> Duration {
    let jitter = RandomState::new().hash_one(()) % 100;
    let rest = Duration::from_millis(50 + jitter);
    left.map_or(rest, |left| left.min(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_stays_under_what_the_server_would_log() {
        let ms = Duration::from_millis;
        assert_eq!(slice(Some(1000.0), Some(-1.0)), ms(900));
        assert_eq!(slice(Some(1000.0), Some(0.0)), ms(900));
        assert_eq!(slice(Some(500.0), Some(-1.0)), ms(450));
        assert_eq!(slice(Some(1000.0), Some(100.0)), ms(90));
        assert_eq!(slice(Some(1.0), Some(1.0)), ms(20));
        assert_eq!(slice(None, None), ms(900));
    }

    #[test]
    fn calls_name_mode_and_kind_of_key() {
        let lock = |id, mode| Lock { id, mode }.call("pg_advisory_lock");
        assert_eq!(
            lock(KeyId::Bigint(-5), Mode::Exclusive),
            "pg_catalog.pg_advisory_lock('-5'::bigint)"
        );
        assert_eq!(
            lock(KeyId::IntPair(1, -2), Mode::Shared),
            "pg_catalog.pg_advisory_lock_shared('1'::int, '-2'::int)"
        );
    }
}
