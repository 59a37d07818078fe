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

mod query;
mod queue;
mod server;
mod settings;

pub use query::{IN_THIS_DATABASE, QueryResult, ask, cell};
pub use queue::{WaitObserver, wait_for_turn};
pub use server::Server;
pub use settings::{AT_ONCE, TIMEOUTS, set_up};

pub mod ticket;
use crate::key::{Key, KeyId, Number};
use crate::lock::ticket::TicketQueue;
use crate::outcome::{ExitCode, Failure};
use crate::protocol::query_tag::QueryTag;
use postgres::Client;
use query::{PROVEN, lacks_plpgsql, pools_statements, unlike_postgresql};
use queue::{Backoff, OnGrant, Queued, cancelled, queue_for};
use server::{STANDBY, STATEMENT_POOLING};
use settings::{LOGGED_AFTER, settings, slice};
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

/// Which of several keys are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keys<K = KeyId> {
    /// All of them, taken in this order. Whoever takes several takes them in the order of [`KeyId`], so that two
    /// never wait for each other.
    All(Vec<K>),
    /// One of them, tried from this one on.
    OneOf(Vec<K>, usize),
}

/// What is asked of the server: these keys, in this mode, for as long as this lives. The keys are numbers, or what
/// stands for them in a message.
#[derive(Clone, Debug)]
pub struct Lock<K = KeyId> {
    /// The keys.
    pub keys: Keys<K>,
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
    /// When the wait ends; `None` without a wait or without a limit.
    pub fn deadline(self) -> Option<Instant> {
        match self {
            Wait::Until(end) => Some(end),
            Wait::Try | Wait::Forever => None,
        }
    }

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
pub struct WaitOptions {
    /// Until when.
    pub wait: Wait,
    /// How long one stay in the server's queue is at most.
    pub slice: Duration,
    /// How long the pause between two tries is at most, where there is no queue.
    pub poll: Duration,
    /// After how long a silence the server is to give the lock away.
    pub limit: Duration,
}

/// A lock that is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The process of the server that holds it for us.
    pub backend_pid: i32,
    /// When the message was sent whose answer has proved it: the server has heard of us since.
    pub asked: Instant,
    /// Which one it is, of [`Keys::OneOf`].
    pub which: usize,
}

/// Who asks first.
#[derive(Clone, Debug)]
pub struct ClientInfo {
    /// What the session was told to be called.
    pub application_name: String,
    /// What the lock is to live as long as.
    pub choice: ScopeChoice,
    /// After how long a silence the server is to give the lock away; `None`: the session is to be left as it is.
    pub limit: Option<Duration>,
}

/// How one try ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TryOutcome {
    /// The lock is ours.
    Acquired(Grant),
    /// Somebody else holds the key of this number; those before it are ours.
    Busy(usize),
    /// The server says that it is ours, and has no row of it.
    Unproven,
    /// It was not tried: it would protect nothing, and could stay behind.
    Untried,
}

impl TryOutcome {
    /// The lock, if it is ours; else which key is somebody else's.
    ///
    /// # Errors
    /// It would protect nothing.
    pub fn outcome(self) -> Result<Result<Grant, usize>, Failure> {
        let refuse = |why: &str| Err(Failure::say(ExitCode::Config, why));
        match self {
            TryOutcome::Acquired(grant) => Ok(Ok(grant)),
            TryOutcome::Busy(key) => Ok(Err(key)),
            TryOutcome::Unproven => refuse(
                "the server says that the lock is ours, but has no row of it in pg_locks: it would protect nothing; \
                 give the address of a PostgreSQL server",
            ),
            TryOutcome::Untried => refuse(STANDBY),
        }
    }
}

impl Lock {
    /// Looks at the server and, where a session's lock is right, tries it: all in one round trip. The lock is not
    /// even tried through a pooler (unless that is asked for) or on a standby: it would protect nothing, and could
    /// stay behind. Where it is tried, the session gets what a holder needs, with the caller's limit of silence.
    ///
    /// A pooler is told by `application_name`: reset to its value at the start of the session, it must be the one
    /// that we sent in the startup packet. A pooler applies the name later, by SET.
    /// Where somebody stands in the line, nothing is tried, and everything is busy.
    ///
    /// # Errors
    /// The server is gone, or is not what it should be.
    pub fn first_try(
        &self,
        client: &mut Client,
        caller: &ClientInfo,
        line: Option<TicketQueue>,
    ) -> Result<(Server, TryOutcome), Failure> {
        let (server, answer) = self.in_sql().first_message(client, caller, line, None)?;
        Ok((server, answer.attempt(&self.keys)))
    }

    /// As it stands in a message.
    fn in_sql(&self) -> Lock<KeyInSql> {
        let in_sql = |ids: &[KeyId]| ids.iter().map(|id| KeyInSql::of(*id)).collect();
        Lock {
            keys: match &self.keys {
                Keys::All(ids) => Keys::All(in_sql(ids)),
                Keys::OneOf(ids, first) => Keys::OneOf(in_sql(ids), *first),
            },
            mode: self.mode,
            scope: self.scope,
        }
    }
}

/// What the first message brought, where the server computes the number of the key.
#[derive(Debug)]
pub struct Computed {
    /// The server.
    pub server: Server,
    /// The number; `None` where the server has not computed it.
    pub id: Option<KeyId>,
    /// What became of the try.
    pub attempt: TryOutcome,
}

/// As [`Lock::first_try`], of one key, whose number the server computes by this expression in the same message.
///
/// # Errors
/// The server is gone, or is not what it should be.
pub fn first_try_computed(
    client: &mut Client,
    expression: &str,
    mode: Mode,
    caller: &ClientInfo,
) -> Result<Computed, Failure> {
    let lock = Lock {
        keys: Keys::All(vec![KeyInSql::of_expression(KEY)]),
        mode,
        scope: Scope::Session,
    };
    let (server, answer) = lock.first_message(client, caller, None, Some(expression))?;
    Ok(Computed {
        server,
        id: answer.key("key"),
        attempt: answer.attempt(&lock.keys),
    })
}

/// The numbers of the keys, of which the server computes those that only it knows, in one message.
///
/// # Errors
/// The server is gone, or is not what it should be.
pub fn numbers(client: &mut Client, keys: &[Key]) -> Result<Vec<KeyId>, Failure> {
    let numbers: Vec<Number> = keys.iter().map(Key::number).collect();
    if let Some(ids) = numbers.iter().map(Number::known).collect() {
        return Ok(ids);
    }
    let columns = numbers.iter().enumerate().map(|(n, number)| match number {
        Number::Computed(expression) => format!("{expression} AS k{n}"),
        Number::Known(_) => format!("NULL AS k{n}"),
    });
    let sql = format!("{AT_ONCE}SELECT {}", columns.collect::<Vec<_>>().join(", "));
    let answer = QueryResult::to(client, &sql).map_err(unlike_postgresql)?;
    let ids = keys.iter().zip(numbers).enumerate().map(|(n, (key, number))| {
        let id = number.known().or_else(|| answer.key(&format!("k{n}")));
        computed(key, id)
    });
    ids.collect()
}

/// The number that the server has computed.
///
/// # Errors
/// It has not.
pub fn computed(key: &Key, id: Option<KeyId>) -> Result<KeyId, Failure> {
    id.ok_or_else(|| {
        let words = format!("the server does not compute the number of the key {key}");
        Failure::say(ExitCode::Config, words)
    })
}

/// How a key stands in SQL: as literals, or as the expression by which the server computes it.
#[derive(Clone, Debug)]
struct KeyInSql {
    /// The argument list of `pg_advisory_lock`.
    arguments: String,
    /// The condition that a row of `pg_locks` is its own.
    row: String,
}

impl KeyInSql {
    fn of(id: KeyId) -> KeyInSql {
        let (classid, objid, objsubid) = id.in_pg_locks();
        KeyInSql {
            arguments: id.literals(),
            row: format!("classid = '{classid}' AND objid = '{objid}' AND objsubid = '{objsubid}'"),
        }
    }

    /// An expression that is a bigint.
    fn of_expression(sql: &str) -> KeyInSql {
        KeyInSql {
            arguments: sql.to_owned(),
            row: format!(
                "classid::bigint = ({sql} >> 32) & 4294967295 AND objid::bigint = {sql} & 4294967295 AND objsubid = '1'"
            ),
        }
    }

    /// The call of one of PostgreSQL's advisory lock functions.
    fn call(&self, function: &str, mode: Mode) -> String {
        let suffix = match mode {
            Mode::Exclusive => "",
            Mode::Shared => "_shared",
        };
        format!("pg_catalog.{function}{suffix}({})", self.arguments)
    }
}

/// The call of one of PostgreSQL's advisory lock functions.
fn call(function: &str, id: KeyId, mode: Mode) -> String {
    KeyInSql::of(id).call(function, mode)
}

/// The key that the server has computed at the beginning of the message.
const KEY: &str = "pg_catalog.current_setting('pglock.key')::bigint";

/// What the session was called when it began: ours, if it began with us. A pooler that gives each client its name by SET
/// changes nothing of that. It is asked where it is needed, and not in a statement before: what takes messages to pieces, or
/// SET for itself, could have that one run elsewhere or not at all.
const OWN_NAME: &str = "pg_catalog.set_config('application_name', NULL, true)";

/// The condition that somebody else's locks can conflict with ours: those of a hot standby, the primary does not see.
const PRIMARY: &str = "NOT pg_catalog.pg_is_in_recovery()";

/// What a statement has taken, as [`say_got`] said, for those that follow it in the same message.
const GOT: &str = "pg_catalog.current_setting('pglock.got')";

/// The expression that says, by a text, what has been taken.
fn say_got(text: &str) -> String {
    format!("pg_catalog.set_config('pglock.got', {text}, true)")
}

impl Lock<KeyInSql> {
    /// The first message, of [`Lock::first_try`], and what the server is to compute before as [`KEY`], once.
    ///
    /// In one level and two statements: each subselect costs a session that has just begun as much as all the columns,
    /// and a proof that stands in an expression as much again. Without a condition, which would cost everybody 0.06 ms,
    /// the server looks through its locks once for those too who do not get theirs.
    fn first_message(
        &self,
        client: &mut Client,
        caller: &ClientInfo,
        line: Option<TicketQueue>,
        key: Option<&str>,
    ) -> Result<(Server, QueryResult), Failure> {
        let name = &caller.application_name;
        let is_fit = match caller.choice {
            ScopeChoice::SessionPooled => PRIMARY.into(),
            _ => format!("{OWN_NAME} = '{name}' AND {PRIMARY}"),
        };
        let tries = match caller.choice {
            ScopeChoice::Transaction => "NULL".into(),
            _ => format!("CASE WHEN {is_fit} THEN {} END", self.tries(line)),
        };
        let settings = caller.limit.map_or_else(String::new, |limit| {
            let all = settings(limit, false).join(", ");
            format!("CASE WHEN {is_fit} THEN ARRAY[{all}] END, ")
        });
        let key = key.map_or_else(String::new, |key| {
            format!("SELECT pg_catalog.set_config('pglock.key', ({key})::text, true) AS key; ")
        });
        let logged = LOGGED_AFTER
            .map(|name| format!("pg_catalog.current_setting('{name}', true) AS {name}"))
            .join(", ");
        let sql = format!(
            "{AT_ONCE}{key}SELECT {OWN_NAME} AS name, pg_catalog.version() AS version, \
             pg_catalog.current_database() AS database, pg_catalog.pg_is_in_recovery() AS standby, \
             pg_catalog.pg_backend_pid() AS backend_pid, {logged}, {settings}{tries} AS got; {}",
            self.proof(None),
        );
        let answer = QueryResult::to(client, &sql).map_err(unlike_postgresql)?;
        if !answer.has_row() {
            return Err(Failure::say(
                ExitCode::Config,
                "the server has answered without a row, as no PostgreSQL does",
            ));
        }
        let server = Server {
            pooled: answer.get("name") != Some(name),
            standby: answer.is_true("standby"),
            database: answer.get("database").unwrap_or_default().to_owned(),
            version: answer.get("version").unwrap_or_default().to_owned(),
            backend_pid: answer.backend_pid(),
            slice: slice(LOGGED_AFTER.map(|name| answer.get(name))),
        };
        Ok((server, answer))
    }

    /// The expression that tries. It tells what was taken: of all keys, how many; of one of them, which, -1 for none.
    fn tries(&self, line: Option<TicketQueue>) -> String {
        let function = self.scope.try_function();
        let wait_in_line = |value: &str| match line {
            Some(line) => format!("WHEN {} THEN {value} ", line.is_occupied()),
            None => String::new(),
        };
        // CASE takes its conditions in order, and none after the first that holds.
        match &self.keys {
            Keys::All(keys) => {
                let busy =
                    |(n, key): (usize, &KeyInSql)| format!("WHEN NOT {} THEN {n} ", key.call(function, self.mode));
                let tries: String = keys.iter().enumerate().map(busy).collect();
                format!("CASE {}{tries}ELSE {} END", wait_in_line("0"), keys.len())
            }
            Keys::OneOf(keys, first) => {
                let taken = |(n, key): (usize, &KeyInSql)| format!("WHEN {} THEN {n} ", key.call(function, self.mode));
                let around = keys.iter().enumerate().cycle().skip(*first).take(keys.len());
                let tries: String = around.map(taken).collect();
                format!("CASE {}{tries}ELSE -1 END", wait_in_line("-1"))
            }
        }
    }

    /// The statement that proves the lock, for [`QueryResult::proves`]: one row for each key that the session really holds.
    /// Where it is asked again and again it has a condition, or whoever waits would have the server look through all its
    /// locks each time.
    fn proof(&self, condition: Option<&str>) -> String {
        let condition = condition.map_or_else(String::new, |it| format!("{it} AND "));
        let mode = match self.mode {
            Mode::Exclusive => "ExclusiveLock",
            Mode::Shared => "ShareLock",
        };
        let (Keys::All(keys) | Keys::OneOf(keys, _)) = &self.keys;
        let rows = match keys.as_slice() {
            [key] => key.row.clone(),
            keys => {
                let rows: Vec<&str> = keys.iter().map(|key| key.row.as_str()).collect();
                format!("({})", rows.join(" OR "))
            }
        };
        format!(
            "SELECT true AS {PROVEN} FROM pg_catalog.pg_locks WHERE {condition}locktype = 'advisory' AND granted \
             AND pid = pg_catalog.pg_backend_pid() AND mode = '{mode}' AND {rows}"
        )
    }
}

impl Lock {
    /// Tries for the first time in a transaction, and finds out whether there can be one.
    ///
    /// A PgBouncer that pools statements says so and closes the connection, and the client library, when it sees
    /// both at once, only tells of the second. A pooler that ends at that moment does the same, and one that has lost its
    /// server; so `again` opens other connections, to see whether BEGIN ends each of them.
    pub fn first_try_in_transaction(
        &self,
        client: &mut Client,
        limit: Duration,
        poll: Duration,
        mut again: impl FnMut() -> Option<Client>,
    ) -> Result<TryOutcome, Failure> {
        let asked = Instant::now();
        let attempt = self.try_in_transaction(client, limit, poll);
        attempt.map_err(|error| {
            let is_closed = error.is_closed() && asked.elapsed() < Duration::from_secs(1);
            let mut is_closed_again = |_| again().is_some_and(is_closed_at_begin);
            match pools_statements(&error) || is_closed && (0..AGAIN).all(&mut is_closed_again) {
                true => Failure::say(ExitCode::Config, STATEMENT_POOLING),
                false => Failure::from(error),
            }
        })
    }

    /// Tries once, in a transaction that stays open if the lock is ours, and is over otherwise.
    ///
    /// READ COMMITTED, so that a transaction that is idle has no snapshot, and nothing is held back. Those who
    /// wait ask the shortest question that will do (settings and proof would make it five times as dear); what the
    /// lock needs besides is for the one who has it, before anybody is told so.
    fn try_in_transaction(
        &self,
        client: &mut Client,
        limit: Duration,
        poll: Duration,
    ) -> Result<TryOutcome, postgres::Error> {
        let lock = self.in_sql();
        let sql = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED; \
             SELECT CASE WHEN {PRIMARY} THEN {} END AS got",
            lock.tries(None)
        );
        let tried = QueryResult::to(client, &sql)?;
        let attempt = match tried.taken(&self.keys) {
            Some(Ok(which)) => {
                let sql = format!(
                    "SELECT {}, pg_catalog.pg_backend_pid() AS backend_pid; {}",
                    settings(limit, true).join(", "),
                    lock.proof(None)
                );
                QueryResult::to(client, &sql)?.proven(&self.keys, which)
            }
            Some(Err(busy)) => TryOutcome::Busy(busy),
            None => TryOutcome::Untried,
        };
        if !matches!(attempt, TryOutcome::Acquired(_)) {
            // A session of the pool keeps this as its last message, until it is lent to another.
            let asks = QueryTag::Polling(Backoff::longest(poll));
            client.simple_query(&asks.prepend_to("ROLLBACK"))?;
        }
        Ok(attempt)
    }

    /// Waits for the lock, of which the first `taken` keys are ours already: in the server's queue, in slices, key
    /// after key; or, where that cannot be, by trying again and again. The key that is somebody else's when the time
    /// is up. `talk` is told of each message and each pause.
    ///
    /// # Errors
    /// The server refused or is gone; or somebody cancelled the wait; or the lock would protect nothing.
    pub fn wait(
        &self,
        client: &mut Client,
        terms: WaitOptions,
        taken: usize,
        talk: &mut impl WaitObserver,
    ) -> Result<Result<Grant, usize>, Failure> {
        let (Scope::Session, Keys::All(ids)) = (self.scope, &self.keys) else {
            return self.poll(client, terms, taken, talk);
        };
        let mut grant = Err(taken);
        for (n, id) in ids.iter().enumerate().skip(taken) {
            grant = match queue_for(client, *id, self.mode, OnGrant::Keep, terms, talk)? {
                Queued::Acquired(grant) => Ok(grant),
                Queued::TimedOut => return Ok(Err(n)),
                Queued::NoQueue => return self.poll(client, terms, n, talk),
            };
        }
        Ok(grant)
    }

    /// Tries again and again what is not ours yet.
    fn poll(
        &self,
        client: &mut Client,
        terms: WaitOptions,
        mut taken: usize,
        talk: &mut impl WaitObserver,
    ) -> Result<Result<Grant, usize>, Failure> {
        let mut backoff = Backoff::up_to(terms.poll);
        let mut took = Duration::ZERO;
        loop {
            if !talk.pause(client, backoff.rest(took, terms.wait.left())) {
                return Err(cancelled());
            }
            let left = terms.wait.left();
            let asked = Instant::now();
            talk.about_to_ask(Duration::ZERO);
            let attempt = match self.scope {
                Scope::Transaction => self.try_in_transaction(client, terms.limit, terms.poll),
                Scope::Session => self.try_again(client, taken, terms.poll),
            };
            let attempt = attempt?;
            took = asked.elapsed();
            match attempt.outcome()? {
                Ok(grant) => return Ok(Ok(grant)),
                Err(key) if left == Some(Duration::ZERO) => return Ok(Err(key)),
                Err(key) if self.scope == Scope::Session => taken = key,
                Err(_) => {}
            }
        }
    }

    /// Tries the keys that are not ours yet, for the session. The numbers are those of all keys.
    fn try_again(&self, client: &mut Client, taken: usize, poll: Duration) -> Result<TryOutcome, postgres::Error> {
        let (keys, before) = match &self.keys {
            Keys::All(ids) => (Keys::All(ids[taken..].to_vec()), taken),
            one_of => (one_of.clone(), 0),
        };
        let rest = Lock { keys, ..*self };
        let lock = rest.in_sql();
        let sql = format!(
            "SELECT pg_catalog.pg_backend_pid() AS backend_pid, \
             {} AS got; {}",
            say_got(&format!("({})::text", lock.tries(None))),
            lock.proof(Some(&match &lock.keys {
                Keys::All(keys) => format!("{GOT} = '{}'", keys.len()),
                Keys::OneOf(..) => format!("{GOT} <> '-1'"),
            }))
        );
        let asks = QueryTag::Polling(Backoff::longest(poll));
        let answer = QueryResult::noting(client, &sql, asks)?;
        Ok(match answer.attempt(&rest.keys) {
            TryOutcome::Busy(key) => TryOutcome::Busy(before + key),
            attempt => attempt,
        })
    }

    /// The lock as it is held: of one of several keys, that one.
    pub fn held(&self, grant: Grant) -> Lock {
        let keys = match &self.keys {
            Keys::OneOf(ids, _) => Keys::All(vec![ids[grant.which]]),
            all => all.clone(),
        };
        Lock { keys, ..*self }
    }

    /// Gives the lock back. `false` when it was not ours any more.
    pub fn release(&self, client: &mut Client) -> Result<bool, postgres::Error> {
        let sql = match self.scope {
            Scope::Session => {
                let unlock = |id: &KeyId| call("pg_advisory_unlock", *id, self.mode);
                let unlocks: Vec<String> = self.ids().iter().map(unlock).collect();
                // All of them are given back, also after one that was not ours.
                let released = match unlocks.as_slice() {
                    [one] => one.clone(),
                    all => format!("LEAST({})", all.join(", ")),
                };
                format!("{AT_ONCE}SELECT {released} AS released")
            }
            Scope::Transaction => {
                let sql = format!("{}; COMMIT", self.in_sql().proof(None));
                return Ok(QueryResult::to(client, &sql)?.proves(&self.keys));
            }
        };
        Ok(QueryResult::to(client, &sql)?.is_true("released"))
    }

    /// Whether the lock is ours now.
    pub fn is_held(&self, client: &mut Client) -> Result<bool, postgres::Error> {
        let proof = self.in_sql().proof(None);
        Ok(QueryResult::to(client, &proof)?.proves(&self.keys))
    }

    /// The keys.
    pub fn ids(&self) -> &[KeyId] {
        match &self.keys {
            Keys::All(ids) | Keys::OneOf(ids, _) => ids,
        }
    }
}

/// How many other connections BEGIN must end, and the rest before each: a pooler that cannot get a session of its server
/// ends many at a time, and then no more.
const AGAIN: u32 = 10;
/// See [`AGAIN`].
pub const BEFORE_AGAIN: Duration = Duration::from_millis(100);

/// Whether it is BEGIN that ends this connection, and nothing else does: a pooler whose server is gone ends it too.
fn is_closed_at_begin(mut client: Client) -> bool {
    let is_alive = client.simple_query("SELECT 1").is_ok();
    let begun = client.simple_query("BEGIN");
    is_alive && begun.is_err_and(|error| error.is_closed() || pools_statements(&error))
}

/// Gives back whatever the session holds.
pub fn release_all(client: &mut Client) -> Result<(), postgres::Error> {
    ask(client, "SELECT pg_catalog.pg_advisory_unlock_all()").map(drop)
}

/// A number that only grows, over crashes and failovers of the server too: timeline and WAL position, in 24
/// hexadecimal digits that sort as text.
///
/// The position is that of a message in the WAL, which nobody reads; it is on disk when the answer comes, whatever
/// `synchronous_commit` is set to.
pub fn token(client: &mut Client) -> Result<String, postgres::Error> {
    let sql = format!(
        "{AT_ONCE}SELECT pg_catalog.set_config('synchronous_commit', 'on', true); \
         SELECT pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8) \
         || pg_catalog.lpad(pg_catalog.split_part(lsn, '/', 1), 8, '0') \
         || pg_catalog.lpad(pg_catalog.split_part(lsn, '/', 2), 8, '0') AS token \
         FROM (SELECT pg_catalog.pg_logical_emit_message(true, 'pglock', '')::text AS lsn OFFSET 0) AS message"
    );
    let answer = QueryResult::to(client, &sql)?;
    Ok(answer.get("token").unwrap_or_default().to_owned())
}

/// Asks for an answer, and nothing else; and says for how long the lock has been held.
pub fn heartbeat(client: &mut Client, held: Duration) -> Result<(), postgres::Error> {
    client.simple_query(&QueryTag::Holding(held).prepend_to("")).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_name_mode_and_kind_of_key() {
        let try_it = |id, mode, scope: Scope| call(scope.try_function(), id, mode);
        assert_eq!(
            try_it(KeyId::Bigint(-5), Mode::Exclusive, Scope::Session),
            "pg_catalog.pg_try_advisory_lock('-5'::bigint)"
        );
        assert_eq!(
            try_it(KeyId::IntPair(1, -2), Mode::Shared, Scope::Transaction),
            "pg_catalog.pg_try_advisory_xact_lock_shared('1'::int, '-2'::int)"
        );
    }

    #[test]
    fn an_attempt_without_its_row_is_no_lock() {
        let grant = Grant {
            backend_pid: 7,
            which: 0,
            asked: Instant::now(),
        };
        assert_eq!(TryOutcome::Acquired(grant).outcome().ok(), Some(Ok(grant)));
        assert_eq!(TryOutcome::Busy(2).outcome().ok(), Some(Err(2)));
        for attempt in [TryOutcome::Unproven, TryOutcome::Untried] {
            let failure = attempt.outcome().expect_err("no lock");
            assert_eq!(failure.code, ExitCode::Config);
        }
    }
}
