//! All SQL of taking a lock and giving it back.
//!
//! Everything goes through the simple query protocol, one round trip a message. Waiting happens in the server's
//! own queue, but in slices: a session that waits in one long statement holds a snapshot all the while, which
//! holds VACUUM back and can deadlock with a CREATE INDEX CONCURRENTLY that the holder's job runs.
//!
//! Behind a pooler the lock is that of an open transaction, which pins the server's session to us; it is never
//! waited for, but asked for again and again, so that those who wait occupy no session of the pool in between.
//!
//! A lock counts as acquired when the session's own row in `pg_locks` has been seen. There are servers that
//! answer `true` and lock nothing.

use crate::connection;
use crate::key::KeyId;
use crate::outcome::{ExitCode, Failure};
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

/// What the lock lives as long as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// As the session: right when the session is ours alone.
    Session,
    /// As an open transaction: right behind a pooler too.
    Transaction,
}

impl Scope {
    /// As users read it.
    pub fn name(self) -> &'static str {
        match self {
            Scope::Session => "session",
            Scope::Transaction => "transaction",
        }
    }

    fn try_function(self) -> &'static str {
        match self {
            Scope::Session => "pg_try_advisory_lock",
            Scope::Transaction => "pg_try_advisory_xact_lock",
        }
    }
}

/// What scope the user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScopeChoice {
    /// What is right for the connection.
    #[default]
    Auto,
    /// A session that is ours alone, or nothing.
    Session,
    /// A transaction.
    Transaction,
    /// A session, through a pooler of which the user says that it pools whole sessions.
    SessionPooled,
}

/// What is asked of the server: this key, in this mode, for as long as this lives.
#[derive(Clone, Copy, Debug)]
pub struct Lock {
    /// The key.
    pub id: KeyId,
    /// The mode.
    pub mode: Mode,
    /// The scope.
    pub scope: Scope,
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

/// On what terms the lock is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Until when.
    pub wait: Wait,
    /// How long one stay in the server's queue is at most.
    pub slice: Duration,
    /// How long the pause between two tries is at most, where there is no queue.
    pub poll: Duration,
    /// After how long a silence the server is to give the lock away.
    pub limit: Duration,
}

/// What the first message tells of the server.
#[derive(Clone, Debug)]
pub struct Server {
    /// Something between us and the server answers in its name.
    pub pooled: bool,
    /// The server is a hot standby, whose locks nobody else sees.
    pub standby: bool,
    /// The database, in which all locks live.
    pub database: String,
    /// What the server calls itself.
    pub version: String,
    /// The process of the server that has answered.
    pub backend_pid: i32,
}

/// The lock is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The process of the server that holds it for us.
    pub backend_pid: i32,
    /// When the message was sent whose answer has proved it: the server has heard of us since.
    pub asked: Instant,
}

/// How one try ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// The lock is ours.
    Acquired(Grant),
    /// Somebody else holds it.
    Busy,
    /// The server says that it is ours, and has no row of it.
    Unproven,
    /// It was not tried: it would protect nothing, and could stay behind.
    Untried,
}

/// A server that gives locks in name only.
const STUBS: [(&str, &str); 2] = [
    ("CockroachDB", "CockroachDB"),
    ("Redshift", "Amazon Redshift"),
];

impl Server {
    /// The product, for one of which it is known that its advisory locks protect nothing.
    pub fn stub(&self) -> Option<&'static str> {
        let is_it = |(sign, _): &&(&str, &str)| self.version.contains(sign);
        STUBS.iter().find(is_it).map(|(_, product)| *product)
    }

    /// Why no lock of this server protects anything, and what to do.
    pub fn refusal(&self) -> Option<String> {
        if let Some(product) = self.stub() {
            return Some(format!(
                "this is {product}, whose advisory locks protect nothing; give the address of a PostgreSQL server"
            ));
        }
        self.standby.then(|| STANDBY.to_owned())
    }

    /// The scope that is right for this connection.
    ///
    /// # Errors
    /// What was asked for protects nothing here; and what to do.
    pub fn scope(&self, choice: ScopeChoice) -> Result<Scope, &'static str> {
        match (choice, self.pooled) {
            (ScopeChoice::Session, true) => Err(
                "the connection goes through a pooler, where the lock of a session protects nothing; give the port \
                 of the PostgreSQL server itself, or leave --scope out (--scope session-pooled is for a pooler that \
                 pools whole sessions)",
            ),
            (ScopeChoice::SessionPooled, _) | (ScopeChoice::Auto | ScopeChoice::Session, false) => {
                Ok(Scope::Session)
            }
            (ScopeChoice::Transaction, _) | (ScopeChoice::Auto, true) => Ok(Scope::Transaction),
        }
    }

    /// The scope of a lock that is to protect something.
    ///
    /// # Errors
    /// There is none; and what to do.
    pub fn fit(&self, choice: ScopeChoice) -> Result<Scope, Failure> {
        if let Some(words) = self.refusal() {
            return Err(Failure::say(ExitCode::Config, words));
        }
        self.scope(choice)
            .map_err(|words| Failure::say(ExitCode::Config, words))
    }
}

const STANDBY: &str = "the server is a hot standby, and the primary does not see its locks; give the address of the \
     primary, or all hosts with target_session_attrs=primary";

const STATEMENT_POOLING: &str = "the pooler ends the connection at BEGIN, as one does that pools statements, and no \
     lock outlives a statement there; give the port of the PostgreSQL server itself, or a pool with pool_mode = \
     transaction";

impl Attempt {
    /// Whether the lock is ours.
    ///
    /// # Errors
    /// It would protect nothing.
    pub fn acquired(self) -> Result<Option<Grant>, Failure> {
        let refuse = |why: &str| Err(Failure::say(ExitCode::Config, why));
        match self {
            Attempt::Acquired(grant) => Ok(Some(grant)),
            Attempt::Busy => Ok(None),
            Attempt::Unproven => refuse(
                "the server says that the lock is ours, but has no row of it in pg_locks: it would protect nothing; \
                 give the address of a PostgreSQL server",
            ),
            Attempt::Untried => refuse(STANDBY),
        }
    }
}

impl Lock {
    /// Looks at the server and, where a session's lock is right, tries it: all in one round trip. The lock is not
    /// even tried through a pooler (unless that is asked for) or on a standby: it would protect nothing, and could
    /// stay behind.
    ///
    /// A pooler is told by `application_name`: reset to its value at the start of the session, it must be the one
    /// that we sent in the startup packet. A pooler applies the name later, by SET.
    ///
    /// # Errors
    /// The server is gone, or is not what it should be.
    pub fn first_try(
        self,
        client: &mut Client,
        application_name: &str,
        choice: ScopeChoice,
    ) -> Result<(Server, Attempt), Failure> {
        let condition = match choice {
            ScopeChoice::Auto | ScopeChoice::Session => {
                format!("name = '{application_name}' AND NOT standby")
            }
            ScopeChoice::SessionPooled => "NOT standby".into(),
            ScopeChoice::Transaction => "false".into(),
        };
        let sql = self.attempt(
            &condition,
            "name, standby, pg_catalog.version() AS version, pg_catalog.current_database() AS database, ",
            "pg_catalog.set_config('application_name', NULL, true) AS name",
        );
        let answer = Answer::to(client, &format!("SELECT *{sql}")).map_err(unlike_postgresql)?;
        let server = Server {
            pooled: answer.get("name") != Some(application_name),
            standby: answer.is_true("standby"),
            database: answer.get("database").unwrap_or_default().to_owned(),
            version: answer.get("version").unwrap_or_default().to_owned(),
            backend_pid: answer.backend_pid(),
        };
        Ok((server, answer.attempt()))
    }

    /// The part of a SELECT, from the comma after the first columns on, that tries the lock where this condition
    /// holds, and proves it. Each level is evaluated before the one around it: `OFFSET 0` keeps the planner from
    /// merging them. The proof costs nothing where nothing was acquired.
    fn attempt(self, condition: &str, columns: &str, inner: &str) -> String {
        format!(
            ", CASE WHEN acquired THEN {} END AS proven FROM (\
             SELECT {columns}pg_catalog.pg_backend_pid() AS backend_pid, \
             CASE WHEN {condition} THEN {} END AS acquired FROM (\
             SELECT {inner}, pg_catalog.pg_is_in_recovery() AS standby OFFSET 0) AS server OFFSET 0) AS attempt",
            self.proof(),
            self.call(self.scope.try_function())
        )
    }

    /// Whether the session has its own granted row of this lock.
    fn proof(self) -> String {
        let (classid, objid, objsubid) = self.id.in_pg_locks();
        let mode = match self.mode {
            Mode::Exclusive => "ExclusiveLock",
            Mode::Shared => "ShareLock",
        };
        format!(
            "EXISTS (SELECT 1 FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND granted \
             AND pid = pg_catalog.pg_backend_pid() AND mode = '{mode}' \
             AND classid = {classid} AND objid = {objid} AND objsubid = {objsubid})"
        )
    }

    /// Tries for the first time in a transaction, and finds out whether there can be one.
    ///
    /// A PgBouncer that pools statements says so and closes the connection, and the client library, when it sees
    /// both at once, only tells of the second.
    pub fn first_try_in_transaction(
        self,
        client: &mut Client,
        limit: Duration,
    ) -> Result<Attempt, Failure> {
        let asked = Instant::now();
        self.try_in_transaction(client, limit).map_err(|error| {
            let is_refused = error.is_closed() && asked.elapsed() < Duration::from_secs(1);
            match is_refused || pools_statements(&error) {
                true => Failure::say(ExitCode::Config, STATEMENT_POOLING),
                false => connection::failure(error),
            }
        })
    }

    /// Tries once, in a transaction that stays open if the lock is ours, and is over otherwise.
    ///
    /// READ COMMITTED, so that a transaction that is idle has no snapshot, and nothing is held back. Those who
    /// wait ask the shortest question that will do (settings and proof would make it five times as dear); what the
    /// lock needs besides is for the one who has it, before anybody is told so.
    fn try_in_transaction(
        self,
        client: &mut Client,
        limit: Duration,
    ) -> Result<Attempt, postgres::Error> {
        let sql = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED; \
             SELECT CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN {} END AS acquired",
            self.call(self.scope.try_function())
        );
        let mut answer = Answer::to(client, &sql)?;
        if answer.is_true("acquired") {
            let sql = format!(
                "SELECT {}, true AS acquired, pg_catalog.pg_backend_pid() AS backend_pid, {} AS proven",
                settings(limit, true).join(", "),
                self.proof()
            );
            answer = Answer::to(client, &sql)?;
        }
        let attempt = answer.attempt();
        if !matches!(attempt, Attempt::Acquired(_)) {
            client.simple_query("ROLLBACK")?;
        }
        Ok(attempt)
    }

    /// Waits for the lock: in the server's queue, in slices, or where that cannot be by trying again and again.
    /// `None` when the time is up. `alive` is told of each message, right before it is sent: how long the server will
    /// take to answer at most. `pause` sleeps between two messages, and says whether to go on: a cancellation that
    /// comes then would be lost on the server.
    ///
    /// # Errors
    /// The server refused or is gone; or somebody cancelled the wait; or the lock would protect nothing.
    pub fn wait(
        self,
        client: &mut Client,
        terms: Terms,
        alive: impl Fn(Duration),
        pause: impl Fn(Duration) -> bool,
    ) -> Result<Option<Grant>, Failure> {
        let mut queue = self.scope == Scope::Session;
        let mut backoff = Backoff::up_to(terms.poll);
        let mut rest = match self.scope {
            Scope::Session => Duration::ZERO,
            // It was tried a moment ago.
            Scope::Transaction => backoff.rest(Duration::ZERO, terms.wait.left()),
        };
        loop {
            if !pause(rest) {
                return Err(cancelled());
            }
            let left = terms.wait.left();
            let asked = Instant::now();
            let attempt = if queue {
                let slice = left.map_or(terms.slice, |left| left.min(terms.slice));
                alive(slice);
                match self.queue_for(client, slice) {
                    Ok(Slice::Ended(attempt)) => attempt,
                    Ok(Slice::Cancelled) => return Err(cancelled()),
                    Err(error) if lacks_plpgsql(&error) => {
                        queue = false;
                        continue;
                    }
                    Err(error) => return Err(connection::failure(error)),
                }
            } else {
                alive(Duration::ZERO);
                let attempt = self.try_again(client, terms.limit);
                attempt.map_err(connection::failure)?
            };
            match attempt.acquired()? {
                Some(grant) => return Ok(Some(grant)),
                None if left == Some(Duration::ZERO) => return Ok(None),
                None if queue => {}
                None => rest = backoff.rest(asked.elapsed(), left),
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
                 SELECT slice, slice IS NOT DISTINCT FROM 'acquired' AS acquired, \
                 pg_catalog.pg_backend_pid() AS backend_pid, CASE WHEN slice = 'acquired' THEN {} END AS proven \
                 FROM (SELECT pg_catalog.current_setting('pglock.slice', true) AS slice OFFSET 0) AS ended",
                self.call("pg_advisory_xact_lock"),
                self.call("pg_advisory_lock"),
                self.proof(),
            ),
        )?;
        Ok(match answer.get("slice") {
            Some("cancelled") => Slice::Cancelled,
            _ => Slice::Ended(answer.attempt()),
        })
    }

    fn try_again(self, client: &mut Client, limit: Duration) -> Result<Attempt, postgres::Error> {
        match self.scope {
            Scope::Transaction => self.try_in_transaction(client, limit),
            Scope::Session => {
                let sql = self.attempt("NOT standby", "", "1");
                let answer = Answer::to(client, &format!("SELECT backend_pid, acquired{sql}"))?;
                Ok(answer.attempt())
            }
        }
    }

    /// Gives the lock back. `false` when it was not ours any more.
    pub fn release(self, client: &mut Client) -> Result<bool, postgres::Error> {
        let sql = match self.scope {
            Scope::Session => {
                format!("SELECT {} AS released", self.call("pg_advisory_unlock"))
            }
            Scope::Transaction => format!("SELECT {} AS released; COMMIT", self.proof()),
        };
        Ok(Answer::to(client, &sql)?.is_true("released"))
    }

    /// Whether the lock is ours now.
    pub fn is_held(self, client: &mut Client) -> Result<bool, postgres::Error> {
        let sql = format!("SELECT {} AS held", self.proof());
        Ok(Answer::to(client, &sql)?.is_true("held"))
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
pub const TIMEOUTS: [&str; 5] = [
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "transaction_timeout",
];

/// The expressions that neutralise the timeouts, and make the server notice within `limit` that whoever it talks to
/// has vanished: for the session, or for the transaction alone.
///
/// Both kinds of TCP limit are needed: keepalives see nothing while an answer is unacknowledged, the user
/// timeout nothing on an idle session. On a Unix socket they have no effect, and need none.
fn settings(limit: Duration, local: bool) -> Vec<String> {
    // Seconds, as keepalives are counted in; three probes one second apart fill the end of the limit.
    let seconds = limit.as_millis().div_ceil(1000).max(4);
    let set =
        |name: &str, value: &str| format!("pg_catalog.set_config('{name}', '{value}', {local})");
    let if_known = |name: &str, value: &str| {
        format!(
            "CASE WHEN pg_catalog.current_setting('{name}', true) IS NOT NULL THEN {} END",
            set(name, value)
        )
    };
    let mut settings: Vec<String> = TIMEOUTS.iter().map(|name| if_known(name, "0")).collect();
    settings.extend([
        set("tcp_keepalives_idle", &(seconds - 3).to_string()),
        set("tcp_keepalives_interval", "1"),
        set("tcp_keepalives_count", "3"),
        if_known("tcp_user_timeout", &format!("{seconds}000")),
    ]);
    settings
}

/// Makes the session fit to hold or wait for a lock, for as long as it takes, and makes the server notice
/// within `limit` that our host has vanished. Returns how long a slice of waiting may be.
pub fn prepare(client: &mut Client, limit: Duration) -> Result<Duration, postgres::Error> {
    let answer = Answer::to(
        client,
        &format!(
            "SELECT {}, {} AS deadlock_timeout, {} AS log_min_duration",
            settings(limit, false).join(", "),
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

fn cancelled() -> Failure {
    Failure::say(
        ExitCode::Unavailable,
        "the wait for the lock was cancelled on the server (pg_cancel_backend)",
    )
}

/// How one slice of waiting ended.
enum Slice {
    Ended(Attempt),
    Cancelled,
}

/// The one row that a message returns, and when the message was sent.
struct Answer {
    row: Option<SimpleQueryRow>,
    asked: Instant,
}

impl Answer {
    fn to(client: &mut Client, sql: &str) -> Result<Answer, postgres::Error> {
        let asked = Instant::now();
        let row = client
            .simple_query(sql)?
            .into_iter()
            .find_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(row),
                _ => None,
            });
        Ok(Answer { row, asked })
    }

    fn get(&self, column: &str) -> Option<&str> {
        self.row.as_ref()?.try_get(column).ok()?
    }

    fn is_true(&self, column: &str) -> bool {
        self.get(column) == Some("t")
    }

    fn number(&self, column: &str) -> Option<f64> {
        self.get(column)?.parse().ok()
    }

    fn backend_pid(&self) -> i32 {
        self.number("backend_pid").unwrap_or_default() as i32
    }

    fn attempt(&self) -> Attempt {
        match (self.get("acquired"), self.get("proven")) {
            (Some("t"), Some("t")) => Attempt::Acquired(Grant {
                backend_pid: self.backend_pid(),
                asked: self.asked,
            }),
            (Some("t"), _) => Attempt::Unproven,
            (Some(_), _) => Attempt::Busy,
            (None, _) => Attempt::Untried,
        }
    }
}

/// The first message asks for nothing that PostgreSQL cannot do: an error that says so comes from something else.
fn unlike_postgresql(error: postgres::Error) -> Failure {
    let code = error.code().map(|code| code.code().to_owned());
    match (code.as_deref(), error.as_db_error()) {
        (Some("42501"), _) | (None, _) | (_, None) => connection::failure(error),
        (Some(code), Some(db)) if ["0A", "22", "42"].contains(&&code[..2]) => Failure::say(
            ExitCode::Config,
            format!(
                "this server cannot give a lock as PostgreSQL does: {}",
                db.message()
            ),
        ),
        _ => connection::failure(error),
    }
}

/// Whether a PgBouncer says so. Its errors all have the same code.
fn pools_statements(error: &postgres::Error) -> bool {
    let says_so = |db: &postgres::error::DbError| {
        *db.code() == SqlState::PROTOCOL_VIOLATION && db.message().contains("statement pooling")
    };
    error.as_db_error().is_some_and(says_so)
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

/// The pauses between two tries, where there is no queue: short at first, then longer, each cut at random to
/// between its half and its whole, so that those who wait spread out.
///
/// Where a try takes long, a pooler has more to do than it can, most often because of those who wait; so it is left
/// alone for ten times as long, within reason.
struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(20);

    fn up_to(longest: Duration) -> Backoff {
        Backoff {
            next: Backoff::FIRST.min(longest),
            longest,
        }
    }

    /// The pause after a try that took so long, when so much time is left.
    fn rest(&mut self, took: Duration, left: Option<Duration>) -> Duration {
        let rest = self.next.max((took * 10).min(self.longest * 4));
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
        let lock = |id, mode, scope| {
            let lock = Lock { id, mode, scope };
            lock.call(scope.try_function())
        };
        assert_eq!(
            lock(KeyId::Bigint(-5), Mode::Exclusive, Scope::Session),
            "pg_catalog.pg_try_advisory_lock('-5'::bigint)"
        );
        assert_eq!(
            lock(KeyId::IntPair(1, -2), Mode::Shared, Scope::Transaction),
            "pg_catalog.pg_try_advisory_xact_lock_shared('1'::int, '-2'::int)"
        );
    }

    fn server(pooled: bool, standby: bool, version: &str) -> Server {
        Server {
            pooled,
            standby,
            database: "app".into(),
            version: version.into(),
            backend_pid: 1,
        }
    }

    #[test]
    fn the_scope_is_the_one_that_is_right_for_the_connection() {
        use ScopeChoice::*;
        let scope = |choice, pooled| server(pooled, false, "PostgreSQL 15.20").scope(choice).ok();
        assert_eq!(scope(Auto, false), Some(Scope::Session));
        assert_eq!(scope(Auto, true), Some(Scope::Transaction));
        assert_eq!(scope(Session, false), Some(Scope::Session));
        assert_eq!(scope(Session, true), None);
        assert_eq!(scope(Transaction, false), Some(Scope::Transaction));
        assert_eq!(scope(Transaction, true), Some(Scope::Transaction));
        assert_eq!(scope(SessionPooled, false), Some(Scope::Session));
        assert_eq!(scope(SessionPooled, true), Some(Scope::Session));
    }

    #[test]
    fn servers_whose_locks_protect_nothing_are_refused() {
        let refusal = |standby, version| server(false, standby, version).refusal();
        assert_eq!(refusal(false, "PostgreSQL 18.4 on x86_64"), None);
        let told = |standby, version| refusal(standby, version).expect("a refusal");
        assert!(told(true, "PostgreSQL 18.4").contains("target_session_attrs=primary"));
        assert!(told(false, "CockroachDB CCL v25.1.0 (x86_64)").contains("CockroachDB"));
        assert!(told(false, "PostgreSQL 8.0.2 on i686, Redshift 1.0.77467").contains("Redshift"));
        // Whether that one's are real depends on its version and settings, which the proof finds out.
        assert_eq!(refusal(false, "PostgreSQL 15.2-YB-2025.1.0.0-b0"), None);
    }

    #[test]
    fn an_attempt_without_its_row_is_no_lock() {
        let grant = Grant {
            backend_pid: 7,
            asked: Instant::now(),
        };
        let acquired = Attempt::Acquired(grant).acquired();
        assert_eq!(acquired.ok(), Some(Some(grant)));
        assert_eq!(Attempt::Busy.acquired().ok(), Some(None));
        for attempt in [Attempt::Unproven, Attempt::Untried] {
            let failure = attempt.acquired().expect_err("no lock");
            assert_eq!(failure.code, ExitCode::Config);
        }
    }

    #[test]
    fn pauses_grow_up_to_the_longest_and_are_cut_at_random() {
        let longest = Duration::from_secs(1);
        let mut backoff = Backoff::up_to(longest);
        let rests: Vec<Duration> = (0..50)
            .map(|_| backoff.rest(Duration::ZERO, None))
            .collect();
        assert!(rests[0] <= Backoff::FIRST && rests[0] * 2 >= Backoff::FIRST);
        assert!(rests.iter().all(|rest| *rest <= longest));
        assert!(rests[20..].iter().all(|rest| *rest * 2 >= longest));
        assert!(rests[20..].iter().any(|rest| *rest != rests[20]));
        let left = Duration::from_millis(3);
        assert_eq!(backoff.rest(Duration::ZERO, Some(left)), left);
        assert!(Backoff::up_to(left).rest(Duration::ZERO, None) <= left);
        // A pooler that is slow to answer is asked less often, but not for ever.
        assert!(backoff.rest(Duration::from_millis(300), None) >= longest * 3 / 2);
        assert!(backoff.rest(Duration::from_secs(60), None) <= longest * 4);
    }
}
