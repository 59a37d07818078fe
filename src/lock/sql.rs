//! The text of every query that acquires, proves or releases a lock.
//!
//! Pure functions from a request to SQL; nothing here talks to a server. All names are schema-qualified, because
//! anyone who may create functions in a schema of our role's search path could otherwise run code with our privileges.

use super::leftover;
use super::receipt::{ARRIVAL_TIME, NOT_HELD, RECEIPT_KEPT, RECEIPT_TIME, RELEASED_COLUMN, Receipt};
use super::settings::{LOG_THRESHOLD_SETTINGS, setting_expressions};
use super::settling::{self, Settling};
use super::types::{ClientInfo, Keys, Lock, Mode, OnGrant, Scope, ScopeChoice};
use crate::key::{KeyId, Number};
use crate::protocol::derived_keys::{claim_key, receipt_key};
use std::time::Duration;

/// The condition that a row of `pg_locks` belongs to the current database.
pub(crate) const IN_THIS_DATABASE: &str =
    "database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())";

/// The column in which every row of a proof is true.
pub(super) const PROVEN_COLUMN: &str = "proven";

/// The column that reports what a try acquired: of all keys, how many; of several candidates, which one, or -1.
pub(super) const GOT_COLUMN: &str = "got";

/// The value of [`GOT_COLUMN`] after a wait that the server reported as granted but for which `pg_locks` has no row.
pub(super) const GOT_UNPROVEN: &str = "unproven";

/// The value of [`GOT_COLUMN`] after a wait that the server reported as granted, and after which the session holds the
/// lock, but for which `pg_locks` has no row yet.
pub(super) const GOT_LATE: &str = "late";

/// The value of [`GOT_COLUMN`] after a wait that was cancelled on the server.
pub(super) const GOT_CANCELLED: &str = "cancelled";

/// The value of [`GOT_COLUMN`] after a wait that did not begin, because the backend holds the key for another client.
pub(super) const GOT_LEFT_BEHIND: &str = "left";

/// The value of [`GOT_COLUMN`] after a wait that the server granted, but for which no receipt was found.
pub(super) const GOT_UNRELEASED: &str = "unreleased";

/// The value of [`GOT_COLUMN`] after a wait that the server granted, but that its loser claims. Nothing is held.
pub(super) const GOT_CLAIMED: &str = "claimed";

/// The column that reports whether the loser of a lock claims it.
pub(super) const CLAIMED_COLUMN: &str = "claimed";

/// The name that the session had when it began: ours, if it began with us. A pooler that gives each client its name by
/// SET cannot change that. It is part of the expression that needs it, not of a statement before, because anything that
/// splits queries or handles SET itself could run such a statement elsewhere, or not at all.
const INITIAL_NAME: &str = "pg_catalog.set_config('application_name', NULL, true)";

/// The column that reports that name.
pub(super) const NAME_COLUMN: &str = "name";

/// The condition that locks conflict with those of other clients: the primary does not see the locks of a hot standby.
const IS_PRIMARY: &str = "NOT pg_catalog.pg_is_in_recovery()";

/// What a statement stored with [`store_result`], for the statements that follow it in the same query.
const STORED_RESULT: &str = "pg_catalog.current_setting('pglock.got')";

/// Returns the expression that stores a text expression for the rest of the transaction.
fn store_result(text: &str) -> String {
    format!("pg_catalog.set_config('pglock.got', {text}, true)")
}

/// The modes of a transaction that holds a lock: an idle one must have no snapshot, which would hold back VACUUM.
pub(super) const TRANSACTION_MODES: &str = "ISOLATION LEVEL READ COMMITTED";

/// How a probe of the lock begins. Nobody reads the column: it marks the query. Those who see it as the last query of
/// an idle session know that the waiter that sent it holds nothing there.
pub(crate) const PROBE_START: &str = "SELECT true AS probed,";

/// The savepoint before which nothing was acquired in the transaction.
const SAVEPOINT: &str = "pglock";

/// Whether a query that tries a lock first looks whether the backend already holds it; see [`leftover`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Looks {
    /// It does: the backend may have had other clients.
    AtLeftovers,
    /// It does not.
    Nowhere,
}

impl Looks {
    /// Returns whether to look, on a backend that may have had other clients or not.
    pub(super) fn if_lent(is_lent: bool) -> Looks {
        if is_lent { Looks::AtLeftovers } else { Looks::Nowhere }
    }
}

/// The condition that a row of `pg_locks` is a granted advisory lock.
const IS_GRANTED: &str = "pg_catalog.texteq(locktype, 'advisory') AND granted";

/// Returns a call of one of PostgreSQL's advisory lock functions.
fn call(function: &str, id: KeyId, mode: Mode) -> String {
    let suffix = match mode {
        Mode::Exclusive => "",
        Mode::Shared => "_shared",
    };
    format!("pg_catalog.{function}{suffix}({})", id.literals())
}

/// Returns the condition that a row of `pg_locks` is that key's.
fn row_condition(id: KeyId) -> String {
    let (classid, objid, objsubid) = id.in_pg_locks();
    format!(
        "pg_catalog.oideq(classid, '{classid}') AND pg_catalog.oideq(objid, '{objid}') \
         AND pg_catalog.int2eq(objsubid, '{objsubid}')"
    )
}

impl Lock {
    /// Returns the first query: it describes the server and, where a session lock is right, tries the lock.
    ///
    /// If there are tickets of `ticket_class`, the lock counts as busy and nothing is tried.
    ///
    /// In a new session PostgreSQL looks up everything for the first time, so the query is written for that: one level
    /// and two statements, functions rather than operators, and nothing that needs a further system catalog. The proof
    /// is unconditional, because a condition would cost every run 0.06 ms; in exchange, a run that fails to acquire has
    /// the server scan its locks once.
    pub(super) fn first_query(&self, client_info: &ClientInfo, ticket_class: Option<i32>) -> String {
        let began_with_us = format!("pg_catalog.texteq({INITIAL_NAME}, '{}')", client_info.application_name);
        let is_usable = match client_info.choice {
            ScopeChoice::SessionPooled => IS_PRIMARY.into(),
            _ => format!("{began_with_us} AND {IS_PRIMARY}"),
        };
        let (looks, proof) = match client_info.choice {
            ScopeChoice::SessionPooled => (Looks::AtLeftovers, self.proof()),
            // The condition proves that the backend began with us.
            _ => (Looks::Nowhere, quick_proof(self.keys.as_slice(), self.mode)),
        };
        // Only here can a pool's session acquire the lock; a transaction looks when it tries.
        let looks_at_pool = looks == Looks::AtLeftovers && client_info.settling == Settling::ServerAndPool;
        let mut times = settling::server_columns();
        let mut is_settled = match client_info.settling {
            Settling::Nothing => String::new(),
            Settling::Server | Settling::ServerAndPool => format!(" AND {}", settling::is_server_settled()),
        };
        if looks_at_pool {
            times += &format!(", {}", settling::backend_column(&began_with_us));
            is_settled += &format!(" AND {}", settling::is_pool_settled(&began_with_us));
        }
        let is_known = client_info
            .known_start
            .map_or_else(String::new, |start| format!(" AND {}", settling::has_started_at(start)));
        let (try_expression, from) = self.try_expression(ticket_class, looks);
        let (try_if_usable, from) = match client_info.choice {
            ScopeChoice::Transaction => ("NULL".into(), String::new()),
            _ => (
                format!("CASE WHEN {is_usable}{is_settled}{is_known} THEN {try_expression} END"),
                from,
            ),
        };
        let settings = client_info.server_limit.map_or_else(String::new, |server_limit| {
            let expressions = setting_expressions(server_limit, Scope::Session).join(", ");
            format!("CASE WHEN {is_usable} THEN ARRAY[{expressions}] END, ")
        });
        let log_thresholds = log_threshold_columns();
        format!(
            "SELECT {INITIAL_NAME} AS {NAME_COLUMN}, pg_catalog.version() AS version, \
             pg_catalog.current_database() AS database, pg_catalog.pg_is_in_recovery() AS standby, \
             pg_catalog.pg_backend_pid() AS backend_pid, {times}, {log_thresholds}, \
             {settings}{try_if_usable} AS {GOT_COLUMN}{from}; {proof}"
        )
    }

    /// Returns the query that finds out whether the lock is free for this backend. What it acquires must not be kept:
    /// the backend may have held the lock before, and would be granted it again.
    ///
    /// A waiter repeats this query, so it is the shortest that does the job: a look at the backend's own locks,
    /// settings and proof would make it ten times as expensive. They come with [`Lock::try_in_transaction_query`].
    ///
    /// With `looks_at_pool`, it tries nothing on a backend that a pooler has just opened.
    pub(super) fn probe(&self, looks_at_pool: bool) -> String {
        let (try_expression, _) = self.try_expression(None, Looks::Nowhere);
        let (backend_column, is_pool_settled) = if looks_at_pool {
            (
                format!(", {}", settling::backend_column("false")),
                format!(" AND {}", settling::is_pool_settled("false")),
            )
        } else {
            Default::default()
        };
        format!(
            "{PROBE_START} {}{backend_column}, pg_catalog.pg_backend_pid() AS backend_pid, \
             CASE WHEN {IS_PRIMARY}{is_pool_settled} THEN {try_expression} END AS {GOT_COLUMN}",
            settling::server_columns()
        )
    }

    /// Returns the probe that looks at the pool, and also reports the name that the session began with.
    pub(super) fn probe_with_name(&self) -> String {
        format!("{}, {INITIAL_NAME} AS {NAME_COLUMN}", self.probe(true))
    }

    /// Returns the first query of a transaction with [`TRANSACTION_MODES`]: the probe, and a savepoint before it.
    pub(super) fn probe_before_try(&self, looks_at_pool: bool) -> String {
        format!("SAVEPOINT {SAVEPOINT}; {}", self.probe(looks_at_pool))
    }

    /// Returns the query that tries the lock in the transaction that [`Lock::probe_before_try`] has opened, makes the
    /// transaction's settings and proves the lock. What the probe acquired is released first.
    pub(super) fn try_in_transaction_query(&self, server_limit: Duration) -> String {
        let (try_expression, from) = self.try_expression(None, Looks::AtLeftovers);
        format!(
            "ROLLBACK TO SAVEPOINT {SAVEPOINT}; RELEASE SAVEPOINT {SAVEPOINT}; \
             SELECT {}, pg_catalog.pg_backend_pid() AS backend_pid, {try_expression} AS {GOT_COLUMN}{from}; {}",
            setting_expressions(server_limit, Scope::Transaction).join(", "),
            self.proof()
        )
    }

    /// Returns the query that tries the lock again in a session, and proves it if it was acquired.
    pub(super) fn retry(&self, looks: Looks) -> String {
        let (try_expression, from) = self.try_expression(None, looks);
        let is_acquired = match &self.keys {
            Keys::All(keys) => format!("{STORED_RESULT} = '{}'", keys.len()),
            Keys::OneOf { .. } => format!("{STORED_RESULT} <> '-1'"),
        };
        format!(
            "SELECT pg_catalog.pg_backend_pid() AS backend_pid, {} AS {GOT_COLUMN}{from}; {}",
            store_result(&format!("({try_expression})::text")),
            proof(self.keys.as_slice(), self.mode, Some(&is_acquired))
        )
    }

    /// Returns the heartbeat of a session lock that backend `backend_pid` holds: the backend that answers, the number
    /// of keys that it holds for us, and whether `pglock evict` has marked it.
    ///
    /// Its cost does not depend on the other locks of the server. A query of `pg_locks` has the server build a row for
    /// each of them, so the heartbeats of N holders would cost N² rows.
    ///
    /// A session counts how often it has acquired a lock. For each key the query takes one off that count and adds it
    /// again, which fails if the session does not hold the lock. The lock is not released in between, because the
    /// transaction has acquired it too, before, and keeps it until the query ends. Nor can a cancellation come in
    /// between: CASE evaluates its conditions in order, and while the transaction has the lock, both calls only count,
    /// without a check for interrupts (`LockRelease` and `LockAcquireExtended` of PostgreSQL). A lock that has vanished
    /// may be granted to the transaction, and is released with it.
    ///
    /// Another backend is left alone: what it holds is another client's. `pglock evict` holds the mark shared, so it is
    /// held if it cannot be acquired.
    pub(super) fn session_heartbeat(&self, backend_pid: i32, eviction_mark: KeyId) -> String {
        let keys = self.keys.as_slice();
        let unproven_branches: String = keys
            .iter()
            .flat_map(|key| {
                [
                    "pg_try_advisory_xact_lock",
                    "pg_advisory_unlock",
                    "pg_try_advisory_lock",
                ]
                .map(|function| format!("WHEN NOT {} THEN 0 ", call(function, *key, self.mode)))
            })
            .collect();
        let mark = call("pg_try_advisory_xact_lock", eviction_mark, Mode::Exclusive);
        let answering_pid = "pg_catalog.pg_backend_pid()";
        format!(
            "SELECT {answering_pid} AS backend_pid, \
             CASE WHEN {answering_pid} <> {backend_pid} THEN 0 {unproven_branches}ELSE {} END AS held, \
             CASE WHEN {answering_pid} = {backend_pid} THEN NOT {mark} END AS marked",
            keys.len()
        )
    }

    /// Returns the heartbeat that reads the same from `pg_locks`: for the lock of a transaction, which cannot release
    /// it, and for when the lock table of the server has no room for a mark.
    ///
    /// One scan answers all of it.
    pub(super) fn scanning_heartbeat(&self, eviction_mark: KeyId) -> String {
        let backend_pid = "pg_catalog.pg_backend_pid()";
        let own_row = own_row_condition(self.keys.as_slice(), self.mode);
        let mark_row = row_condition(eviction_mark);
        format!(
            "SELECT {backend_pid} AS backend_pid, pg_catalog.count(*) FILTER (WHERE {own_row}) AS held, \
             coalesce(pg_catalog.bool_or({mark_row}), false) AS marked \
             FROM pg_catalog.pg_locks WHERE {IS_GRANTED}"
        )
    }

    /// Returns the condition that backend `backend_pid` of the server that started at `server_start`, if that is known,
    /// holds the lock. For a query of another session, which may be one of another server.
    pub(crate) fn held_by_condition(&self, backend_pid: i32, server_start: Option<i64>) -> String {
        let keys = self.keys.as_slice();
        let is_held = format!(
            "(SELECT pg_catalog.count(*) = {} FROM pg_catalog.pg_locks WHERE {IS_GRANTED} AND {})",
            keys.len(),
            row_condition_of(&backend_pid.to_string(), keys, self.mode)
        );
        match server_start {
            Some(start) => format!("({is_held} AND {})", settling::has_started_at(start)),
            None => is_held,
        }
    }

    /// Returns the query that releases every key of a session lock, even after one that was no longer ours. With a
    /// receipt, it also finds out whether another client has a key immediately afterwards, and keeps the receipt only
    /// then.
    ///
    /// CASE evaluates its conditions in order: a receipt is there before its key is free.
    pub(super) fn release_query(&self, receipt: Receipt) -> String {
        let not_held = format!("WHEN NOT {} THEN '{NOT_HELD}' ", self.each("pg_advisory_unlock"));
        if receipt == Receipt::None {
            return format!("SELECT CASE {not_held}ELSE 'released' END AS {RELEASED_COLUMN}");
        }
        // Without a receipt, the next job starts a little later.
        let taken = self.each_derived(receipt_key, "pg_try_advisory_lock");
        let is_kept = match receipt {
            Receipt::Kept => "true".into(),
            _ => {
                let keys = self.keys.as_slice().iter();
                let held: Vec<String> = keys.map(|key| is_held_by_others(*key, self.mode)).collect();
                held.join(" OR ")
            }
        };
        let ended = self.each_derived(receipt_key, "pg_advisory_unlock");
        format!(
            "SELECT CASE WHEN {taken} IS NULL THEN '{NOT_HELD}' {not_held}WHEN {is_kept} THEN '{RECEIPT_KEPT}' \
             WHEN {ended} IS NULL THEN '{NOT_HELD}' ELSE 'released' END AS {RELEASED_COLUMN}"
        )
    }

    /// Returns the query that ends the receipts after [`RECEIPT_TIME`]. The server does so by itself: we may be cut off
    /// or stopped meanwhile.
    pub(super) fn end_receipts_query(&self) -> String {
        format!(
            "SELECT CASE WHEN pg_catalog.pg_sleep({}) IS NULL THEN NULL ELSE {} END",
            RECEIPT_TIME.as_secs_f64(),
            self.each_derived(receipt_key, "pg_advisory_unlock")
        )
    }

    /// Returns the query that tries each key for the session, whichever of them are free: [`GOT_COLUMN`] is an array
    /// with a `t` or `f` for each.
    pub(super) fn try_each_query(&self) -> String {
        let keys = self.keys.as_slice().iter();
        let calls: Vec<String> = keys.map(|key| call("pg_try_advisory_lock", *key, self.mode)).collect();
        format!("SELECT ARRAY[{}] AS {GOT_COLUMN}", calls.join(", "))
    }

    /// Returns the query that claims the keys for the transaction.
    pub(super) fn claim_in_transaction_query(&self) -> String {
        let claim = self.each_derived(claim_key, "pg_try_advisory_xact_lock");
        format!("SELECT {claim} AS {CLAIMED_COLUMN}")
    }

    /// Returns the query that ends the claims.
    pub(super) fn end_claim_query(&self) -> String {
        format!("SELECT {}", self.each_derived(claim_key, "pg_advisory_unlock"))
    }

    /// Returns a call of this function for each key; the expression is true if all calls are.
    fn each(&self, function: &str) -> String {
        let calls = self.keys.as_slice().iter().map(|key| call(function, *key, self.mode));
        least(&calls.collect::<Vec<String>>())
    }

    /// Returns the same for a key that is derived from each key, in shared mode.
    fn each_derived(&self, derive: fn(KeyId) -> KeyId, function: &str) -> String {
        let keys = self.keys.as_slice().iter().map(|key| derive(*key));
        let calls = keys.map(|key| call(function, key, Mode::Shared));
        least(&calls.collect::<Vec<String>>())
    }

    /// Returns the query that proves a transaction's lock and ends the transaction.
    pub(super) fn prove_and_commit(&self) -> String {
        format!("{}; COMMIT", self.proof())
    }

    /// Returns the expression that tries the lock, for [`GOT_COLUMN`], and the FROM clause that it needs. A key that
    /// was left behind in the backend is not tried: it counts as held.
    fn try_expression(&self, ticket_class: Option<i32>, looks: Looks) -> (String, String) {
        let function = match self.scope {
            Scope::Session => "pg_try_advisory_lock",
            Scope::Transaction => "pg_try_advisory_xact_lock",
        };
        let busy_if_queued = |value: &str| match ticket_class {
            Some(class) => format!("WHEN {} THEN {value} ", has_tickets(class)),
            None => String::new(),
        };
        let try_key = |index, key: &KeyId| {
            let call = call(function, *key, self.mode);
            match looks {
                Looks::AtLeftovers => leftover::unless_left_behind(index, &call),
                Looks::Nowhere => call,
            }
        };
        // CASE evaluates its conditions in order, and none after the first that holds.
        let expression = match &self.keys {
            Keys::All(keys) => {
                let busy_branches: String = keys
                    .iter()
                    .enumerate()
                    .map(|(index, key)| format!("WHEN NOT {} THEN {index} ", try_key(index, key)))
                    .collect();
                format!("CASE {}{busy_branches}ELSE {} END", busy_if_queued("0"), keys.len())
            }
            Keys::OneOf { keys, start } => {
                let from_start = keys.iter().enumerate().cycle().skip(*start).take(keys.len());
                let acquired_branches: String = from_start
                    .map(|(index, key)| format!("WHEN {} THEN {index} ", try_key(index, key)))
                    .collect();
                format!("CASE {}{acquired_branches}ELSE -1 END", busy_if_queued("-1"))
            }
        };
        let from = match looks {
            Looks::AtLeftovers => {
                let rows = self.keys.as_slice().iter().map(|key| row_condition(*key));
                format!(" FROM {}", leftover::subselect(rows, self.mode))
            }
            Looks::Nowhere => String::new(),
        };
        (expression, from)
    }

    /// Returns the query that looks again for the rows of a lock, and names the backend that answers.
    pub(super) fn late_proof(&self) -> String {
        format!("SELECT pg_catalog.pg_backend_pid() AS backend_pid; {}", self.proof())
    }

    /// Returns the statement that proves the lock; see `QueryResult::proves`.
    pub(super) fn proof(&self) -> String {
        proof(self.keys.as_slice(), self.mode, None)
    }
}

/// Returns the expression of whether all of these boolean expressions are true, each of which is evaluated.
fn least(expressions: &[String]) -> String {
    match expressions {
        [expression] => expression.clone(),
        expressions => format!("LEAST({})", expressions.join(", ")),
    }
}

/// Returns the columns with the server's settings above which it logs a statement.
fn log_threshold_columns() -> String {
    let columns = LOG_THRESHOLD_SETTINGS.map(|name| format!("pg_catalog.current_setting('{name}', true) AS {name}"));
    columns.join(", ")
}

/// Returns the query that waits in the server's queue for one key, for up to `slice`. [`GOT_COLUMN`] is then 1, 0 after
/// a timeout, [`GOT_CANCELLED`], [`GOT_UNPROVEN`], [`GOT_LATE`], [`GOT_UNRELEASED`], [`GOT_CLAIMED`] or, if the query
/// looks, [`GOT_LEFT_BEHIND`].
///
/// One expression reports whether the lock is ours and proven. It is planned before the wait begins, because what
/// follows the wait delays the handover from one job to the next.
///
/// The transaction-level lock comes first: a grant that arrives as the timeout fires raises the error and still leaves
/// a *session*-level lock held, whereas a transaction-level lock is undone with the block. The session-level lock that
/// follows is granted at once, to the same owner. The error is raised where the server next checks for interrupts,
/// which must happen between the two, and does in the proof: a scan of `pg_locks` checks at each row. CASE evaluates
/// its conditions in order; none of them is ever NULL on a server whose locks are real.
///
/// Whether a lock that was waited for was released rather than lost is asked only where the backend is our own (see
/// [`receipt`](super::receipt)): holders leave no receipts in sessions that a pooler lends.
///
/// The caught errors leave no trace in the server's log. A cancellation is caught twice, because the postmaster signals
/// the process and then its group, and the second signal may arrive after the first was handled.
pub(super) fn wait_slice(id: KeyId, mode: Mode, on_grant: OnGrant, slice: Duration, looks: Looks) -> String {
    // A lock_timeout of 0 would mean no limit. Rounded up, so that the wait does not end early.
    let milliseconds = slice.as_micros().div_ceil(1000).max(1);
    let keep = match on_grant {
        OnGrant::Release => String::new(),
        _ => format!(
            "WHEN {} IS NULL THEN '{GOT_UNPROVEN}' ",
            call("pg_advisory_lock", id, mode)
        ),
    };
    // Granted at once, it would not be waited for; and it must not be ours.
    let look = match looks {
        Looks::AtLeftovers => format!(
            "WHEN {} THEN '{GOT_LEFT_BEHIND}' ",
            leftover::is_left_behind(&row_condition(id), mode)
        ),
        Looks::Nowhere => String::new(),
    };
    let is_own_backend = looks == Looks::Nowhere;
    let (proof, no_row) = if is_own_backend && on_grant != OnGrant::Release {
        // The row may come late. On a backend that had other clients it may then be another client's.
        (quick_proof(&[id], mode), format!("CASE {keep}ELSE '{GOT_LATE}' END"))
    } else {
        (proof(&[id], mode, None), format!("'{GOT_UNPROVEN}'"))
    };
    let (claimed, unreleased) = match on_grant {
        OnGrant::Keep { .. } if is_own_backend => (
            format!("WHEN {} THEN '{GOT_CLAIMED}' ", is_claimed(id)),
            unreleased_branch(id, mode, on_grant),
        ),
        _ => Default::default(),
    };
    let store_cancelled = store_result(&format!("'{GOT_CANCELLED}'"));
    let lock_and_prove = store_result(&format!(
        "CASE WHEN pg_catalog.set_config('lock_timeout', '{milliseconds}ms', true) IS NULL THEN '{GOT_UNPROVEN}' \
         {look}WHEN {} IS NULL THEN '{GOT_UNPROVEN}' WHEN NOT EXISTS ({proof}) THEN {no_row} \
         {claimed}{keep}{unreleased}ELSE '1' END",
        call("pg_advisory_xact_lock", id, mode),
    ));
    format!(
        "DO $$ BEGIN BEGIN PERFORM {lock_and_prove}; \
         EXCEPTION WHEN lock_not_available THEN PERFORM {}; \
         WHEN query_canceled THEN PERFORM {store_cancelled}; END; \
         EXCEPTION WHEN query_canceled THEN PERFORM {store_cancelled}; END $$; \
         SELECT {STORED_RESULT} AS {GOT_COLUMN}, {STORED_RESULT} = '1' AS {PROVEN_COLUMN}, \
         pg_catalog.pg_backend_pid() AS backend_pid",
        store_result("'0'"),
    )
}

/// Returns the branch of [`wait_slice`] for a lock that nobody has released.
fn unreleased_branch(id: KeyId, mode: Mode, on_grant: OnGrant) -> String {
    let has_waited = match on_grant {
        OnGrant::Keep { just_arrived: true } => format!("{} AND ", has_waited_for(ARRIVAL_TIME)),
        _ => String::new(),
    };
    format!(
        "WHEN {has_waited}{} THEN '{GOT_UNRELEASED}' ",
        is_without_receipt(id, mode)
    )
}

/// Returns the condition that the server received the query this long ago, or longer.
fn has_waited_for(time: Duration) -> String {
    format!(
        "pg_catalog.interval_ge(pg_catalog.timestamptz_mi(pg_catalog.clock_timestamp(), \
         pg_catalog.statement_timestamp()), '{} ms')",
        time.as_millis()
    )
}

/// Returns the condition that there is no receipt of a key's release, for a session that was just granted the key.
///
/// Those who share a key can be granted it together, and would take each other's question for a receipt.
fn is_without_receipt(id: KeyId, mode: Mode) -> String {
    match mode {
        Mode::Exclusive => format!("NOT {}", is_held_by_others(receipt_key(id), Mode::Exclusive)),
        Mode::Shared => format!(
            "NOT EXISTS (SELECT 1 FROM pg_catalog.pg_lock_status() WHERE {IS_GRANTED} AND mode = 'ShareLock' AND {} \
             AND {IN_THIS_DATABASE})",
            row_condition(receipt_key(id))
        ),
    }
}

/// Returns the condition that the loser of a key claims it, for a session that was just granted the key. Those who
/// share a key may take each other's question for a claim, and wait in vain for a moment.
fn is_claimed(id: KeyId) -> String {
    is_held_by_others(claim_key(id), Mode::Exclusive)
}

/// Returns the condition that another session holds a key so that it cannot be acquired in this mode. Trying to acquire
/// it is much cheaper than reading `pg_locks`, and leaves nothing held. What is derived from a key is released before
/// the next client can be granted that key, who asks the same.
fn is_held_by_others(id: KeyId, mode: Mode) -> String {
    let ask = |function| call(function, id, mode);
    format!(
        "CASE WHEN {} THEN NOT {} ELSE true END",
        ask("pg_try_advisory_lock"),
        ask("pg_advisory_unlock")
    )
}

/// Returns the query that proves a key that this session holds, and reports whether its loser claims it.
pub(super) fn look_for_claim(id: KeyId, mode: Mode) -> String {
    format!(
        "SELECT pg_catalog.pg_backend_pid() AS backend_pid, {} AS {CLAIMED_COLUMN}, 1 AS {GOT_COLUMN}; {}",
        is_claimed(id),
        proof(&[id], mode, None)
    )
}

/// Returns the statement that proves a lock: one row with [`PROVEN_COLUMN`] for each of the keys that this session
/// holds.
///
/// A query that is repeated has a condition: without one, the server would scan all its locks after each failed try.
fn proof(keys: &[KeyId], mode: Mode, condition: Option<&str>) -> String {
    let condition = condition.map_or_else(String::new, |condition| format!("{condition} AND "));
    format!(
        "SELECT true AS {PROVEN_COLUMN} FROM pg_catalog.pg_locks WHERE {condition}{IS_GRANTED} AND {}",
        own_row_condition(keys, mode)
    )
}

/// Returns the statement that proves a lock to a session that asks for the first time, or in a block of its own. It
/// reads the function that `pg_locks` is made of, since to look up that view takes as long as to scan it. A server
/// whose `pg_locks` is made of something else may not show the lock here, so what this does not prove is looked for in
/// `pg_locks` (see `late_proof`).
fn quick_proof(keys: &[KeyId], mode: Mode) -> String {
    let rows = own_row_condition(keys, mode);
    format!("SELECT true AS {PROVEN_COLUMN} FROM pg_catalog.pg_lock_status() WHERE {IS_GRANTED} AND {rows}")
}

/// Returns the condition that a row of `pg_locks` is this session's, for one of the keys and in this mode.
fn own_row_condition(keys: &[KeyId], mode: Mode) -> String {
    row_condition_of("pg_catalog.pg_backend_pid()", keys, mode)
}

/// Returns the condition that a row of `pg_locks` is that of a backend, for one of the keys and in this mode.
fn row_condition_of(backend_pid: &str, keys: &[KeyId], mode: Mode) -> String {
    let mode = match mode {
        Mode::Exclusive => "ExclusiveLock",
        Mode::Shared => "ShareLock",
    };
    let is_row_of_a_key = match keys {
        [key] => row_condition(*key),
        keys => {
            let conditions: Vec<String> = keys.iter().map(|key| row_condition(*key)).collect();
            format!("({})", conditions.join(" OR "))
        }
    };
    format!("pg_catalog.int4eq(pid, {backend_pid}) AND pg_catalog.texteq(mode, '{mode}') AND {is_row_of_a_key}")
}

/// Returns the query that applies a holder's settings to the session.
pub(super) fn configure_session(server_limit: Duration) -> String {
    let expressions = setting_expressions(server_limit, Scope::Session).join(", ");
    format!("SELECT {expressions}")
}

/// The column of [`key_numbers`].
pub(super) const NUMBER_COLUMN: &str = "number";

/// Returns the query for the numbers that only the server can compute: a row for each of them, in this order. (A column
/// for each would limit them to 1664.)
pub(super) fn key_numbers(numbers: &[Number]) -> String {
    let rows: Vec<String> = numbers
        .iter()
        .filter_map(|number| match number {
            Number::Computed(expression) => Some(format!("(({expression})::text)")),
            Number::Known(_) => None,
        })
        .collect();
    format!(
        "SELECT column1 AS {NUMBER_COLUMN} FROM (VALUES {}) AS numbers",
        rows.join(", ")
    )
}

/// Returns the query for a fencing token, in the column `token`, which is NULL unless `is_held`: that is looked at
/// after the token was created. See [`super::token::fencing_token`].
///
/// With `local`, the commit waits for the disk of this server and for no standby. `on` would wait for a synchronous
/// standby, indefinitely if it is away, and `off` for nothing.
pub(super) fn fencing_token(is_held: &str) -> String {
    format!(
        "SELECT pg_catalog.set_config('synchronous_commit', 'local', true); \
         SELECT CASE WHEN {is_held} THEN pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8) \
         || pg_catalog.lpad(pg_catalog.split_part(lsn, '/', 1), 8, '0') \
         || pg_catalog.lpad(pg_catalog.split_part(lsn, '/', 2), 8, '0') END AS token \
         FROM (SELECT pg_catalog.pg_logical_emit_message(true, 'pglock', '')::text AS lsn OFFSET 0) AS message"
    )
}

/// Returns the query for whether what the server writes is durable, in the column `fsync`.
pub(super) fn fsync() -> String {
    "SELECT pg_catalog.current_setting('fsync') AS fsync".to_owned()
}

/// Returns the query that tries to lock a ticket behind all others of this class: `number` is its number, `acquired`
/// whether we got it. Two waiters that arrive together compute the same number, and one of them gets it.
///
/// The number is the server's clock in hundredths of a second since 1970, modulo 2^31, so it wraps around every 248
/// days. A queue that is never empty then counts on in the upper half of the 32 bits.
pub(super) fn take_ticket(class: i32) -> String {
    let clock = "(extract(epoch FROM pg_catalog.clock_timestamp()) * 100)::bigint % 2147483648";
    let last = select_tickets(class, "pg_catalog.max(objid::bigint)");
    format!(
        "SELECT number, pg_catalog.pg_try_advisory_lock('{class}'::int, number::bit(32)::int) AS acquired FROM (\
         SELECT CASE WHEN last >= clock THEN last + 1 ELSE clock END AS number \
         FROM (SELECT {clock} AS clock, ({last}) AS last OFFSET 0) AS line OFFSET 0) AS ticket"
    )
}

/// Returns the query for the highest ticket number of this class below `number`, in the column `before`.
pub(super) fn preceding_ticket(class: i32, number: u32) -> String {
    let highest = select_tickets(class, "pg_catalog.max(objid::bigint) AS before");
    format!("{highest} AND objid::bigint < {number}")
}

/// Returns the query that releases a ticket.
pub(super) fn release_ticket(class: i32, number: u32) -> String {
    let number = number as i32;
    format!("SELECT pg_catalog.pg_advisory_unlock('{class}'::int, '{number}'::int)")
}

/// Returns the condition that there are tickets of this class.
fn has_tickets(class: i32) -> String {
    format!("EXISTS ({})", select_tickets(class, "1"))
}

fn select_tickets(class: i32, columns: &str) -> String {
    format!(
        "SELECT {columns} FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND objsubid = 2 \
         AND classid = {} AND granted AND mode = 'ExclusiveLock' AND {IN_THIS_DATABASE}",
        class as u32
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::query_message::QueryMessage;

    const LIMIT: Duration = Duration::from_secs(23);

    fn lock(keys: Keys, mode: Mode, scope: Scope) -> Lock {
        Lock { keys, mode, scope }
    }

    fn all(ids: &[KeyId]) -> Keys {
        Keys::All(ids.to_vec())
    }

    fn client_info(choice: ScopeChoice) -> ClientInfo {
        ClientInfo {
            application_name: "pglock:a web1:7".into(),
            choice,
            server_limit: None,
            settling: Settling::ServerAndPool,
            known_start: None,
        }
    }

    #[test]
    fn tries_name_function_mode_and_keys() {
        let (bigint, pair) = (KeyId::Bigint(-5), KeyId::IntPair(1, -2));
        let candidates = || Keys::OneOf {
            keys: vec![KeyId::Bigint(10), KeyId::Bigint(11), KeyId::Bigint(12)],
            start: 2,
        };
        for (lock, expected) in [
            (
                lock(all(&[bigint]), Mode::Exclusive, Scope::Session),
                "CASE WHEN NOT pg_catalog.pg_try_advisory_lock('-5'::bigint) THEN 0 ELSE 1 END",
            ),
            (
                lock(all(&[bigint, pair]), Mode::Shared, Scope::Transaction),
                "CASE WHEN NOT pg_catalog.pg_try_advisory_xact_lock_shared('-5'::bigint) THEN 0 \
                 WHEN NOT pg_catalog.pg_try_advisory_xact_lock_shared('1'::int, '-2'::int) THEN 1 ELSE 2 END",
            ),
            (
                lock(candidates(), Mode::Exclusive, Scope::Session),
                "CASE WHEN pg_catalog.pg_try_advisory_lock('12'::bigint) THEN 2 \
                 WHEN pg_catalog.pg_try_advisory_lock('10'::bigint) THEN 0 \
                 WHEN pg_catalog.pg_try_advisory_lock('11'::bigint) THEN 1 ELSE -1 END",
            ),
        ] {
            assert_eq!(
                lock.try_expression(None, Looks::Nowhere),
                (expected.into(), String::new())
            );
        }
    }

    #[test]
    fn a_queue_with_tickets_counts_as_busy() {
        let one = lock(all(&[KeyId::Bigint(1)]), Mode::Exclusive, Scope::Session);
        assert!(one.try_expression(Some(-3), Looks::Nowhere).0.starts_with(
            "CASE WHEN EXISTS (SELECT 1 FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND objsubid = 2 \
             AND classid = 4294967293 AND granted AND mode = 'ExclusiveLock' AND database = (SELECT oid FROM \
             pg_catalog.pg_database WHERE datname = pg_catalog.current_database())) THEN 0 WHEN NOT "
        ));
    }

    #[test]
    fn proofs_name_mode_and_rows() {
        let one = lock(all(&[KeyId::Bigint(-1)]), Mode::Exclusive, Scope::Session);
        let row = "pg_catalog.texteq(locktype, 'advisory') AND granted AND pg_catalog.int4eq(pid, \
                   pg_catalog.pg_backend_pid()) AND pg_catalog.texteq(mode, 'ExclusiveLock') AND \
                   pg_catalog.oideq(classid, '4294967295') AND pg_catalog.oideq(objid, '4294967295') AND \
                   pg_catalog.int2eq(objsubid, '1')";
        assert_eq!(
            one.proof(),
            format!("SELECT true AS proven FROM pg_catalog.pg_locks WHERE {row}")
        );
        assert_eq!(
            quick_proof(&[KeyId::Bigint(-1)], Mode::Exclusive),
            format!("SELECT true AS proven FROM pg_catalog.pg_lock_status() WHERE {row}")
        );
        let two = lock(
            all(&[KeyId::Bigint(2), KeyId::IntPair(3, 4)]),
            Mode::Shared,
            Scope::Session,
        );
        let rows = [(0, 2, 1), (3, 4, 2)].map(|(classid, objid, objsubid)| {
            format!(
                "pg_catalog.oideq(classid, '{classid}') AND pg_catalog.oideq(objid, '{objid}') AND \
                 pg_catalog.int2eq(objsubid, '{objsubid}')"
            )
        });
        let expected = format!("pg_catalog.texteq(mode, 'ShareLock') AND ({})", rows.join(" OR "));
        assert!(two.proof().ends_with(&expected));
        assert!(
            two.retry(Looks::Nowhere)
                .contains("WHERE pg_catalog.current_setting('pglock.got') = '2' AND pg_catalog.texteq(locktype, ")
        );
    }

    #[test]
    fn the_first_query_tries_only_where_a_session_lock_is_right() {
        let one = lock(all(&[KeyId::Bigint(1)]), Mode::Exclusive, Scope::Session);
        let has_name = "pg_catalog.texteq(pg_catalog.set_config('application_name', NULL, true), 'pglock:a web1:7')";
        let is_primary = "NOT pg_catalog.pg_is_in_recovery()";
        let server_settled = settling::is_server_settled();
        let settled = format!("{server_settled} AND {}", settling::is_pool_settled(has_name));
        for (choice, expected) in [
            (
                ScopeChoice::Auto,
                format!("CASE WHEN {has_name} AND {is_primary} AND {server_settled} THEN CASE WHEN NOT "),
            ),
            (
                ScopeChoice::SessionPooled,
                format!(
                    "log_min_duration_sample, CASE WHEN {is_primary} AND {settled} THEN CASE WHEN NOT CASE WHEN is_left[1] THEN false ELSE "
                ),
            ),
            (
                ScopeChoice::Transaction,
                "log_min_duration_sample, NULL AS got; SELECT true AS proven".into(),
            ),
        ] {
            let sql = one.first_query(&client_info(choice), None);
            assert!(sql.contains(&expected), "{choice:?}: {sql}");
            assert!(sql.starts_with("SELECT pg_catalog.set_config("));
        }
        // A wait that goes on does so on the same server only.
        let known = ClientInfo {
            known_start: Some(820_670_400_700_001),
            ..client_info(ScopeChoice::SessionPooled)
        };
        let is_known = settling::has_started_at(820_670_400_700_001);
        let sql = one.first_query(&known, None);
        assert!(
            sql.contains(&format!(
                "CASE WHEN {is_primary} AND {settled} AND {is_known} THEN CASE "
            )),
            "{sql}"
        );
        // Once the pool has been reached for long enough, only the server counts.
        let again = ClientInfo {
            settling: Settling::Server,
            ..client_info(ScopeChoice::SessionPooled)
        };
        let sql = one.first_query(&again, None);
        assert!(
            sql.contains(&format!("CASE WHEN {is_primary} AND {server_settled} THEN CASE ")),
            "{sql}"
        );
        // The guard of a lost lock comes first.
        let guard = ClientInfo {
            settling: Settling::Nothing,
            ..client_info(ScopeChoice::Auto)
        };
        let sql = one.first_query(&guard, None);
        assert!(
            sql.contains(&format!("CASE WHEN {has_name} AND {is_primary} THEN CASE WHEN NOT ")),
            "{sql}"
        );
    }

    #[test]
    fn a_slice_waits_for_at_least_a_millisecond() {
        let sql = |on_grant, slice| wait_slice(KeyId::Bigint(1), Mode::Shared, on_grant, slice, Looks::Nowhere);
        for (slice, expected) in [(0, "'1ms'"), (1_000, "'1ms'"), (1_001, "'2ms'"), (900_000, "'900ms'")] {
            let slice = Duration::from_micros(slice);
            let expected = format!("set_config('lock_timeout', {expected}, true)");
            assert!(sql(OnGrant::KeepAsLoser, slice).contains(&expected), "{slice:?}");
        }
        let session_lock = "pg_catalog.pg_advisory_lock_shared('1'::bigint)";
        assert!(sql(OnGrant::KeepAsLoser, Duration::ZERO).contains(session_lock));
        assert!(!sql(OnGrant::Release, Duration::ZERO).contains(session_lock));
    }

    /// It is proven, and nobody claims it, before the session has the lock.
    #[test]
    fn only_who_waited_on_a_backend_of_its_own_asks_for_claims_and_receipts() {
        let id = KeyId::Bigint(1);
        let slice = |on_grant, looks| wait_slice(id, Mode::Exclusive, on_grant, LIMIT, looks);
        let arriving = OnGrant::Keep { just_arrived: true };
        let waiting = OnGrant::Keep { just_arrived: false };
        for (on_grant, looks, if_it_waited, asks) in [
            (arriving, Looks::Nowhere, true, true),
            (waiting, Looks::Nowhere, false, true),
            (arriving, Looks::AtLeftovers, false, false),
            (OnGrant::KeepAsLoser, Looks::Nowhere, false, false),
            (OnGrant::Release, Looks::Nowhere, false, false),
        ] {
            let sql = slice(on_grant, looks);
            assert_eq!(sql.contains(&has_waited_for(ARRIVAL_TIME)), if_it_waited, "{sql}");
            for condition in [is_claimed(id), is_without_receipt(id, Mode::Exclusive)] {
                assert_eq!(sql.contains(&condition), asks, "{sql}");
            }
        }
        let sql = slice(waiting, Looks::Nowhere);
        let places = [
            "pg_advisory_xact_lock(",
            "'late'",
            "'claimed'",
            "'unreleased'",
            "ELSE '1' END",
            "lock_not_available",
        ];
        let places = places.map(|part| sql.find(part).expect("a part"));
        assert!(places.is_sorted(), "{sql}");
    }

    #[test]
    fn a_transactions_settings_come_with_its_proof() {
        let one = lock(all(&[KeyId::Bigint(1)]), Mode::Exclusive, Scope::Transaction);
        let probe = |also: &str, and: &str| {
            format!(
                "SELECT true AS probed, {}{also}, pg_catalog.pg_backend_pid() AS backend_pid, CASE WHEN NOT \
                 pg_catalog.pg_is_in_recovery(){and} THEN CASE WHEN NOT \
                 pg_catalog.pg_try_advisory_xact_lock('1'::bigint) THEN 0 ELSE 1 END END AS got",
                settling::server_columns()
            )
        };
        assert_eq!(one.probe(false), probe("", ""));
        let backend = format!(", {}", settling::backend_column("false"));
        let and = format!(" AND {}", settling::is_pool_settled("false"));
        assert_eq!(one.probe(true), probe(&backend, &and));
        assert_eq!(
            one.probe_before_try(true),
            format!("SAVEPOINT pglock; {}", one.probe(true))
        );
        let sql = one.try_in_transaction_query(LIMIT);
        assert!(
            sql.starts_with("ROLLBACK TO SAVEPOINT pglock; RELEASE SAVEPOINT pglock; SELECT "),
            "{sql}"
        );
        assert!(sql.contains("set_config('tcp_keepalives_idle', '20', true)"), "{sql}");
        assert!(sql.ends_with(&format!("AS left_behind; {}", one.proof())));
        assert_eq!(one.prove_and_commit(), format!("{}; COMMIT", one.proof()));
    }

    /// The look comes before the first try: after it, a lock of our own could not be told from one that was left
    /// behind.
    #[test]
    fn what_was_left_behind_is_not_tried() {
        let try_two = |keys| lock(keys, Mode::Shared, Scope::Transaction).try_expression(None, Looks::AtLeftovers);
        let (first, second) = (KeyId::Bigint(1), KeyId::IntPair(2, 3));
        let (expression, from) = try_two(all(&[first, second]));
        assert_eq!(
            expression,
            "CASE WHEN NOT CASE WHEN is_left[1] THEN false ELSE pg_catalog.pg_try_advisory_xact_lock_shared('1'::bigint) END \
             THEN 0 WHEN NOT CASE WHEN is_left[2] THEN false ELSE \
             pg_catalog.pg_try_advisory_xact_lock_shared('2'::int, '3'::int) END THEN 1 ELSE 2 END"
        );
        let rows = [first, second].map(row_condition);
        assert_eq!(
            from,
            format!(" FROM {}", leftover::subselect(rows.into_iter(), Mode::Shared))
        );
        let slots = Keys::OneOf {
            keys: vec![first, second],
            start: 1,
        };
        assert!(
            try_two(slots)
                .0
                .starts_with("CASE WHEN CASE WHEN is_left[2] THEN false ELSE ")
        );
        let slice = wait_slice(
            first,
            Mode::Exclusive,
            OnGrant::Keep { just_arrived: true },
            Duration::ZERO,
            Looks::AtLeftovers,
        );
        let (look, wait) = (slice.find("THEN 'left' "), slice.find("pg_advisory_xact_lock("));
        assert!(look.is_some() && look < wait, "{slice}");
    }

    /// The transaction acquires a key before the session's count changes, so that the key is never free; and nothing is
    /// changed on another backend.
    #[test]
    fn a_sessions_heartbeat_keeps_each_key() {
        let two = lock(
            all(&[KeyId::Bigint(-5), KeyId::IntPair(1, 2)]),
            Mode::Shared,
            Scope::Session,
        );
        assert_eq!(
            two.session_heartbeat(77, KeyId::IntPair(-3, 77)),
            "SELECT pg_catalog.pg_backend_pid() AS backend_pid, \
             CASE WHEN pg_catalog.pg_backend_pid() <> 77 THEN 0 \
             WHEN NOT pg_catalog.pg_try_advisory_xact_lock_shared('-5'::bigint) THEN 0 \
             WHEN NOT pg_catalog.pg_advisory_unlock_shared('-5'::bigint) THEN 0 \
             WHEN NOT pg_catalog.pg_try_advisory_lock_shared('-5'::bigint) THEN 0 \
             WHEN NOT pg_catalog.pg_try_advisory_xact_lock_shared('1'::int, '2'::int) THEN 0 \
             WHEN NOT pg_catalog.pg_advisory_unlock_shared('1'::int, '2'::int) THEN 0 \
             WHEN NOT pg_catalog.pg_try_advisory_lock_shared('1'::int, '2'::int) THEN 0 ELSE 2 END AS held, \
             CASE WHEN pg_catalog.pg_backend_pid() = 77 \
             THEN NOT pg_catalog.pg_try_advisory_xact_lock('-3'::int, '77'::int) END AS marked"
        );
    }

    #[test]
    fn a_transactions_heartbeat_reads_its_rows_and_the_mark() {
        let one = lock(all(&[KeyId::Bigint(1)]), Mode::Exclusive, Scope::Transaction);
        let (own_row, mark) = (
            own_row_condition(&[KeyId::Bigint(1)], Mode::Exclusive),
            row_condition(KeyId::IntPair(-3, 77)),
        );
        assert_eq!(
            one.scanning_heartbeat(KeyId::IntPair(-3, 77)),
            format!(
                "SELECT pg_catalog.pg_backend_pid() AS backend_pid, pg_catalog.count(*) FILTER (WHERE {own_row}) AS held, \
                 coalesce(pg_catalog.bool_or({mark}), false) AS marked \
                 FROM pg_catalog.pg_locks WHERE pg_catalog.texteq(locktype, 'advisory') AND granted"
            )
        );
        assert!(mark.contains("oideq(classid, '4294967293')"), "{mark}");
    }

    #[test]
    fn a_session_releases_each_key() {
        let release = |ids: &[KeyId], receipt| lock(all(ids), Mode::Shared, Scope::Session).release_query(receipt);
        assert_eq!(
            release(&[KeyId::Bigint(1)], Receipt::None),
            "SELECT CASE WHEN NOT pg_catalog.pg_advisory_unlock_shared('1'::bigint) THEN 'not held' ELSE 'released' END \
             AS released"
        );
        // The receipts come before any key is free.
        let [first, second] = [KeyId::Bigint(1), KeyId::IntPair(2, 3)];
        let on_receipts = |function| {
            [first, second]
                .map(|id| call(function, receipt_key(id), Mode::Shared))
                .join(", ")
        };
        let held = [first, second]
            .map(|id| is_held_by_others(id, Mode::Shared))
            .join(" OR ");
        assert_eq!(
            release(&[first, second], Receipt::Left),
            format!(
                "SELECT CASE WHEN LEAST({}) IS NULL THEN 'not held' \
                 WHEN NOT LEAST(pg_catalog.pg_advisory_unlock_shared('1'::bigint), \
                 pg_catalog.pg_advisory_unlock_shared('2'::int, '3'::int)) THEN 'not held' \
                 WHEN {held} THEN 'kept' WHEN LEAST({}) IS NULL THEN 'not held' ELSE 'released' END AS released",
                on_receipts("pg_try_advisory_lock"),
                on_receipts("pg_advisory_unlock"),
            )
        );
        let kept = release(&[first], Receipt::Kept);
        assert!(kept.contains(" WHEN true THEN 'kept' "), "{kept}");
    }

    #[test]
    fn tickets_are_int_pairs() {
        assert!(take_ticket(-3).starts_with(
            "SELECT number, pg_catalog.pg_try_advisory_lock('-3'::int, number::bit(32)::int) AS acquired FROM ("
        ));
        assert!(preceding_ticket(-3, u32::MAX).ends_with(" AND objid::bigint < 4294967295"));
        assert_eq!(
            release_ticket(-3, u32::MAX),
            "SELECT pg_catalog.pg_advisory_unlock('-3'::int, '-1'::int)"
        );
    }

    /// Every query of this module, in every message in which it can be sent. What pglock sends through a pooler in
    /// earnest is watched by a test with a pooler that refuses SET.
    #[test]
    fn no_message_contains_set_or_is_one_query() {
        let mut queries = vec![
            configure_session(LIMIT),
            key_numbers(&[Number::Computed("hashtext('x')".into())]),
            fencing_token("true"),
            take_ticket(1),
            preceding_ticket(1, 2),
            release_ticket(1, 2),
            look_for_claim(KeyId::Bigint(1), Mode::Shared),
        ];
        for looks in [Looks::AtLeftovers, Looks::Nowhere] {
            for on_grant in [
                OnGrant::Keep { just_arrived: true },
                OnGrant::KeepAsLoser,
                OnGrant::Release,
            ] {
                queries.push(wait_slice(KeyId::Bigint(1), Mode::Shared, on_grant, LIMIT, looks));
            }
        }
        let slots = Keys::OneOf {
            keys: vec![KeyId::Bigint(1), KeyId::Bigint(2)],
            start: 1,
        };
        for keys in [all(&[KeyId::Bigint(1), KeyId::IntPair(2, 3)]), slots] {
            for scope in [Scope::Session, Scope::Transaction] {
                let lock = lock(keys.clone(), Mode::Exclusive, scope);
                for choice in [
                    ScopeChoice::Auto,
                    ScopeChoice::Session,
                    ScopeChoice::SessionPooled,
                    ScopeChoice::Transaction,
                ] {
                    let client_info = ClientInfo {
                        server_limit: Some(LIMIT),
                        ..client_info(choice)
                    };
                    queries.push(lock.first_query(&client_info, Some(1)));
                }
                let mark = KeyId::IntPair(1, 2);
                queries.extend([lock.session_heartbeat(77, mark), lock.scanning_heartbeat(mark)]);
                queries.extend([
                    lock.probe(false),
                    lock.probe_before_try(true),
                    lock.probe_before_try(false),
                    lock.late_proof(),
                    lock.try_in_transaction_query(LIMIT),
                    lock.prove_and_commit(),
                ]);
                queries
                    .extend([Receipt::Left, Receipt::Kept, Receipt::None].map(|receipt| lock.release_query(receipt)));
                queries.extend([
                    lock.try_each_query(),
                    lock.claim_in_transaction_query(),
                    lock.end_claim_query(),
                ]);
                queries.push(lock.end_receipts_query());
                queries.extend([lock.retry(Looks::AtLeftovers), lock.proof()]);
            }
        }
        let messages = queries.iter().flat_map(|query| {
            [
                QueryMessage::in_own_transaction(query),
                QueryMessage::opening_transaction(TRANSACTION_MODES, query),
                QueryMessage::in_open_transaction(query),
            ]
        });
        for message in messages {
            let statements: Vec<&str> = message.sql.split(';').map(str::trim).collect();
            assert!(
                statements.len() > 1 && statements[0].starts_with("SHOW "),
                "{message:?}"
            );
            let is_set = |statement: &&str| statement.starts_with("SET ") || statement.starts_with("RESET ");
            assert_eq!(statements.iter().find(|statement| is_set(statement)), None);
        }
    }

    #[test]
    fn only_unknown_numbers_are_computed() {
        let computed = |expression: &str| Number::Computed(expression.into());
        let numbers = [
            computed("hashtext('x')"),
            Number::Known(KeyId::Bigint(1)),
            computed("hashtext('y')"),
        ];
        assert_eq!(
            key_numbers(&numbers),
            "SELECT column1 AS number FROM (VALUES ((hashtext('x'))::text), ((hashtext('y'))::text)) AS numbers"
        );
    }
}
