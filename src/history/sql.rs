//! The text of every query on the run table. Pure functions; nothing here talks to a server.

use super::table::TableName;
use super::types::{NewRun, RunEnd, RunOutcome};
use crate::key::{KeyId, sql_literal};
use crate::lock::Mode;
use crate::outcome::ExitReason;
use nix::sys::signal::Signal;
use std::time::Duration;

/// The modes of the transaction in which a run is written: each statement sees what was committed before it, whatever
/// the defaults of the role are.
pub(super) const WRITE_MODES: &str = "ISOLATION LEVEL READ COMMITTED READ WRITE";

/// How many of a key's oldest runs a holder examines for removal.
const PRUNE_BATCH: u32 = 500;

/// By how much longer than within the interval the success that prevented a run is looked for, to describe it. Its start
/// leaves the interval while the query runs.
const DESCRIPTION_ALLOWANCE: Duration = Duration::from_secs(3600);

/// Returns the settings of such a transaction. Its commit waits for the disk of this server and for no standby: one
/// that is away must not stop a job. A table that someone has locked must not either.
fn write_settings(lock_timeout: Duration) -> String {
    format!(
        "SELECT pg_catalog.set_config('synchronous_commit', 'local', true), \
         pg_catalog.set_config('lock_timeout', '{}', true); ",
        lock_timeout.as_millis().max(1)
    )
}

/// Returns the query that gives up runs of dead pglocks, inserts a run unless it is not due, and describes the table.
/// The column `run` has the numbers of the rows, `comment` the comment on the table; `age`, `took` and `host` describe
/// the last success, if `--once-per` asks for it.
///
/// Another session than that of the lock may run it late, when the lock has been lost and the next holder has begun. It
/// therefore writes nothing unless the lock is held: each statement looks for the lock after it has taken its snapshot,
/// so a run that it sees is not that of a later holder. `held` says whether the lock was there to the end.
pub(super) fn begin(table: &TableName, run: &NewRun, lock_timeout: Duration) -> String {
    let name = table.sql();
    let numbers = numbers(run);
    let mode = run.mode.name();
    let held = run.lock_condition.as_deref().unwrap_or("true");
    // We hold the lock, so no other run of this slot is alive; slot 0 has the lock of the key itself. Only a shared one
    // can be, if we share the lock.
    let abandon = format!(
        "UPDATE {name} SET outcome = '{}' WHERE number IN ({numbers}) AND outcome = '{}' \
         AND coalesce(slot, 0) = {}{} AND {held}; ",
        RunOutcome::Abandoned.name(),
        RunOutcome::Running.name(),
        run.slot.unwrap_or_default(),
        match run.mode {
            Mode::Exclusive => "",
            Mode::Shared => " AND mode <> 'shared'",
        }
    );
    // Ordered by number: the end is written by id and a dead run is given up by number, and in two orders these could
    // deadlock.
    let rows: Vec<String> = run.keys.iter().map(|(key, id)| row(run, key, *id, mode)).collect();
    let (condition, last) = match run.once_per {
        None => (
            String::new(),
            "SELECT NULL AS age, NULL AS took, NULL AS host".to_owned(),
        ),
        Some(interval) => {
            let age = seconds_between("started", "pg_catalog.clock_timestamp()");
            let columns = format!("{age} AS age, {} AS took, host", seconds_between("started", "ended"));
            let last = |within, columns: &str| last_success(&name, &numbers, within, interval, columns);
            let described = last(interval + DESCRIPTION_ALLOWANCE, &columns);
            (format!(" AND NOT EXISTS ({})", last(interval, "")), described)
        }
    };
    format!(
        "{}{abandon}\
         INSERT INTO {name} (key, number, mode, slot, host, pid, job, note, token, waited, started, outcome) \
         SELECT * FROM (VALUES {}) AS run (key, number, mode, slot, host, pid, job, note, token, waited, started, outcome) \
         WHERE {held}{condition} ORDER BY number RETURNING id AS run; \
         SELECT {held} AS held, pg_catalog.obj_description({}::pg_catalog.regclass, 'pg_class') AS comment; {last}",
        write_settings(lock_timeout),
        rows.join(", "),
        sql_literal(&name)
    )
}

/// Returns the query for these columns of the last success of a key that started within this time. A start that is in
/// the future by more than the tolerance is from a time when the clock was wrong.
///
/// What counts is the start and not the `id`: the identity of a table that was copied may be behind its rows, and a run
/// that was recorded while the clock was behind does not hide another. No success ends before its start, so the index
/// of ends finds all of them; it needs a time that is the same in the whole statement.
fn last_success(name: &str, numbers: &str, within: Duration, tolerance: Duration, columns: &str) -> String {
    let within = interval_literal(within);
    format!(
        "SELECT {columns} FROM {name} WHERE number IN ({numbers}) AND outcome = '{}' \
         AND ended > pg_catalog.statement_timestamp() - {within} \
         AND started > pg_catalog.clock_timestamp() - {within} \
         AND started < pg_catalog.clock_timestamp() + {} ORDER BY started DESC LIMIT 1",
        RunOutcome::Ok.name(),
        interval_literal(tolerance)
    )
}

/// Returns the query for these columns of the success that ended last, of those that meet the condition. One that is in
/// the future by more than the tolerance is from a time when the clock was wrong.
///
/// It need not be the one with the highest `id`: with `--slots` or `--shared`, a longer run may have ended later.
pub(super) fn newest_success(name: &str, condition: &str, tolerance: Duration, columns: &str) -> String {
    format!(
        "SELECT {columns} FROM {name} WHERE {condition} AND outcome = '{}' \
         AND ended < pg_catalog.clock_timestamp() + {} ORDER BY ended DESC LIMIT 1",
        RunOutcome::Ok.name(),
        interval_literal(tolerance)
    )
}

/// Returns the numbers of a run's locks as a list of literals.
fn numbers(run: &NewRun) -> String {
    let numbers: Vec<String> = run.keys.iter().map(|(_, id)| number(*id)).collect();
    numbers.join(", ")
}

/// Returns the number of a lock as the table has it.
fn number(id: KeyId) -> String {
    format!("'{id}'")
}

/// Returns the row of a key. Every value has its type, because a list of VALUES decides on its own.
fn row(run: &NewRun, key: &str, id: KeyId, mode: &str) -> String {
    let text = |value: Option<&str>| value.map_or_else(|| "NULL".to_owned(), sql_literal) + "::text";
    let slot = run.slot.map_or_else(|| "NULL".to_owned(), |slot| slot.to_string());
    format!(
        "({}, {}::text, '{mode}'::text, {slot}::integer, {}, {}, {}, {}, {}, {}::double precision, \
         pg_catalog.clock_timestamp(), '{}'::text)",
        text(Some(key)),
        number(id),
        text(Some(&run.host)),
        run.pid,
        text(Some(&run.job)),
        text(run.note),
        text(run.token),
        run.waited.as_secs_f64(),
        RunOutcome::Running.name()
    )
}

/// Returns the query that completes these rows, and returns their number in the column `completed`.
///
/// A success or a failure is written only while the run is running: a later holder that has given it up was right, as
/// far as it could know. That the lock was lost is written over anything.
pub(super) fn complete(table: &TableName, rows: &[i64], end: &RunEnd, lock_timeout: Duration) -> String {
    let name = table.sql();
    let rows: Vec<String> = rows.iter().map(i64::to_string).collect();
    let rows = rows.join(", ");
    let statement = match end {
        RunEnd::NotStarted => format!("DELETE FROM {name} WHERE id IN ({rows})"),
        RunEnd::Ended { outcome, exit, at } => {
            let (exit_status, signal) = match exit {
                None => ("NULL".to_owned(), "NULL".to_owned()),
                Some(ExitReason::Code(code)) => (code.to_string(), "NULL".to_owned()),
                Some(ExitReason::Signal(signal)) => ("NULL".to_owned(), format!("'{}'", signal_name(*signal))),
            };
            let condition = match outcome {
                RunOutcome::Lost | RunOutcome::Evicted => String::new(),
                _ => format!(" AND outcome = '{}'", RunOutcome::Running.name()),
            };
            format!(
                "UPDATE {name} SET outcome = '{}', exit_status = {exit_status}, signal = {signal}, \
                 ended = GREATEST(started, pg_catalog.clock_timestamp() - {}) WHERE id IN ({rows}){condition}",
                outcome.name(),
                interval_literal(at.elapsed())
            )
        }
    };
    format!(
        "{}WITH completed AS ({statement} RETURNING id) SELECT pg_catalog.count(*) AS completed FROM completed",
        write_settings(lock_timeout)
    )
}

/// Returns the query that removes old runs of these keys, but not the newest success, nor what is still running. It
/// examines the oldest of the others only, so that it takes as long in a table of any size. The rows to remove are an
/// array, or PostgreSQL could read the whole table to join them with it.
pub(super) fn prune(table: &TableName, ids: &[KeyId], keep: Duration, lock_timeout: Duration) -> String {
    let name = table.sql();
    let statements: Vec<String> = ids
        .iter()
        .map(|id| {
            let number = number(*id);
            format!(
                "DELETE FROM {name} WHERE id = ANY (ARRAY(SELECT id FROM (SELECT id, started FROM {name} \
                 WHERE number = {number} AND outcome <> '{}' ORDER BY id LIMIT {PRUNE_BATCH}) AS oldest \
                 WHERE started < pg_catalog.clock_timestamp() - {})) AND id IS DISTINCT FROM ({})",
                RunOutcome::Running.name(),
                interval_literal(keep),
                newest_success(&name, &format!("number = {number}"), keep, "id")
            )
        })
        .collect();
    format!("{}{}", write_settings(lock_timeout), statements.join("; "))
}

/// Returns the expression for the seconds between two times. Someone may have written an infinite time into the table,
/// which PostgreSQL does not subtract.
pub(super) fn seconds_between(from: &str, to: &str) -> String {
    format!("extract(epoch FROM {to}) - extract(epoch FROM {from})")
}

/// Returns a duration as an interval.
pub(super) fn interval_literal(duration: Duration) -> String {
    format!("pg_catalog.make_interval(secs => {})", duration.as_secs_f64())
}

/// Returns the name of a signal, or the number of one that has none.
fn signal_name(signal: i32) -> String {
    Signal::try_from(signal).map_or_else(|_| signal.to_string(), |signal| signal.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::query_message::QueryMessage;
    use std::time::Instant;

    const LIMIT: Duration = Duration::from_secs(5);

    fn run(keys: Vec<(&str, KeyId)>) -> NewRun<'_> {
        NewRun {
            keys,
            mode: Mode::Exclusive,
            slot: None,
            host: "web1".into(),
            pid: 7,
            job: "it's".into(),
            note: None,
            token: None,
            waited: Duration::from_millis(1500),
            once_per: None,
            lock_condition: None,
        }
    }

    #[test]
    fn a_run_is_one_statement_for_all_its_keys() {
        let query = begin(
            &TableName::default(),
            &run(vec![("a", KeyId::Bigint(5)), ("1,2", KeyId::IntPair(1, 2))]),
            LIMIT,
        );
        assert!(
            query.contains("WHERE number IN ('5', '1,2') AND outcome = 'running' AND coalesce(slot, 0) = 0 AND true; "),
            "{query}"
        );
        assert!(
            query.contains(
                "VALUES ('a'::text, '5'::text, 'exclusive'::text, NULL::integer, 'web1'::text, 7, 'it''s'::text, \
                 NULL::text, NULL::text, 1.5::double precision, pg_catalog.clock_timestamp(), 'running'::text), ('1,2'::text,"
            ),
            "{query}"
        );
        assert!(!query.contains("NOT EXISTS"), "{query}");
    }

    #[test]
    fn a_shared_run_leaves_other_shared_ones_alone() {
        let shared = NewRun {
            mode: Mode::Shared,
            ..run(vec![("a", KeyId::Bigint(5))])
        };
        let query = begin(&TableName::default(), &shared, LIMIT);
        assert!(
            query.contains("coalesce(slot, 0) = 0 AND mode <> 'shared' AND true; "),
            "{query}"
        );
    }

    #[test]
    fn only_a_running_run_succeeds_but_a_loss_is_always_written() {
        let condition = " WHERE id IN (3, 4) AND outcome = 'running' RETURNING";
        for outcome in RunOutcome::ALL {
            let end = RunEnd::Ended {
                outcome,
                exit: Some(ExitReason::Signal(9)),
                at: Instant::now(),
            };
            let query = complete(&TableName::default(), &[3, 4], &end, LIMIT);
            let is_loss = matches!(outcome, RunOutcome::Lost | RunOutcome::Evicted);
            assert_eq!(query.contains(condition), !is_loss, "{query}");
            assert!(query.contains("exit_status = NULL, signal = 'SIGKILL'"), "{query}");
        }
    }

    /// What no message may contain is tested with the messages of `lock`; these are composed in the same way.
    #[test]
    fn no_query_sets_anything_outside_its_transaction() {
        let once = NewRun {
            once_per: Some(LIMIT),
            ..run(vec![("a", KeyId::Bigint(5))])
        };
        let table = TableName::default();
        for query in [
            begin(&table, &once, LIMIT),
            complete(&table, &[1], &RunEnd::NotStarted, LIMIT),
            prune(&table, &[KeyId::Bigint(5)], LIMIT, LIMIT),
        ] {
            let message = QueryMessage::in_own_transaction_with(WRITE_MODES, &query).sql;
            assert!(message.starts_with(
                "SHOW transaction_isolation; BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE NOT DEFERRABLE; "
            ));
            assert!(!message.contains("; SET "), "{message}");
            assert_eq!(
                query.matches("set_config(").count(),
                query.matches(", true)").count(),
                "{query}"
            );
        }
    }
}
