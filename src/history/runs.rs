//! Reading runs: the newest ones, the last success of a key, and a summary of each key.
//!
//! Nothing here writes, so that it works on a standby too. For each key, the newest run is found by an index, in a
//! table of any size.

use super::failure;
use super::sql::{newest_success, seconds_between};
use super::table::TableName;
use super::types::RunOutcome;
use crate::connection::Client;
use crate::inspect::server_time::ServerTime;
use crate::key::KeyId;
use crate::lock::{cell, simple_query};
use crate::outcome::Failure;
use nix::sys::signal::Signal;
use postgres::{SimpleQueryMessage, SimpleQueryRow};
use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

/// The condition that a row is of the key `key_number`.
const OF_KEY: &str = "number = key_number";
/// By how much the end of a success may be in the future, without an interval to compare it with. More is from a time
/// when the clock of the server was wrong, and would count as the newest success until that time.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(3600);

/// A recorded run. The texts are as they were recorded, by whatever client.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Run {
    /// The key as given.
    pub key: String,
    /// The number of its lock.
    pub number: String,
    /// Exclusive or shared.
    pub mode: String,
    /// The slot, with `--slots`.
    pub slot: Option<i32>,
    /// The host of pglock.
    pub host: String,
    /// Its process there.
    pub pid: i32,
    /// The job's program.
    pub job: String,
    /// The user's note.
    pub note: Option<String>,
    /// The fencing token.
    pub token: Option<String>,
    /// How long it took to acquire the lock, in seconds.
    pub waited: f64,
    /// When the job started.
    pub started: ServerTime,
    /// When it ended.
    pub ended: Option<ServerTime>,
    /// With which status it exited.
    pub exit_status: Option<i32>,
    /// Which signal killed it.
    pub signal: Option<String>,
    /// How the run stands, or ended.
    pub outcome: String,
}

/// Which runs to read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunFilter {
    /// How many, of all keys together.
    pub last: u32,
    /// Only those that ended in another way than by success.
    pub failed: bool,
}

/// The success of a key that ended last.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NewestSuccess {
    /// How long ago it ended.
    pub ago: Duration,
    /// Where it ran.
    pub host: String,
}

/// What `pglock history --metrics` says about a key. Times are in seconds since 1970, by the server's clock.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct KeySummary {
    /// When the newest run started.
    pub started: f64,
    /// When the success that ended last did so.
    pub succeeded: Option<f64>,
    /// How long the newest run that has ended took, in seconds.
    pub took: Option<f64>,
    /// Its exit status, as a shell has it: 128+n if signal n killed it.
    pub exit_status: Option<i32>,
    /// The number of runs by outcome.
    pub counts: BTreeMap<String, u64>,
}

/// Returns the newest runs, the newest first; of these keys, if there are any.
///
/// # Errors
/// The table cannot be read, or the connection is lost.
pub(crate) fn newest_runs(
    client: &mut Client,
    table: &TableName,
    keys: &[KeyId],
    filter: RunFilter,
) -> Result<Vec<Run>, Failure> {
    let rows = fetch(client, table, &newest_runs_sql(table, keys, filter))?;
    Ok(rows.iter().map(Run::read).collect())
}

/// Returns the newest success of each of these keys that has one, without those that are in the future by more than the
/// interval: the clock was wrong when they were recorded.
///
/// # Errors
/// As for [`newest_runs`].
pub(crate) fn newest_successes(
    client: &mut Client,
    table: &TableName,
    keys: &[KeyId],
    interval: Duration,
) -> Result<BTreeMap<String, NewestSuccess>, Failure> {
    let rows = fetch(client, table, &newest_successes_sql(table, keys, interval))?;
    let successes = rows.iter().filter_map(|row| {
        let success = NewestSuccess {
            ago: Duration::try_from_secs_f64(seconds(row, "age")?.max(0.0)).ok()?,
            host: text(row, "host"),
        };
        Some((text(row, "number"), success))
    });
    Ok(successes.collect())
}

/// Returns the summary of each key, or of these. Keys that are given in the same way are one.
///
/// # Errors
/// As for [`newest_runs`].
pub(crate) fn summaries(
    client: &mut Client,
    table: &TableName,
    keys: &[KeyId],
) -> Result<BTreeMap<String, KeySummary>, Failure> {
    Ok(summarize(&fetch(client, table, &summaries_sql(table, keys))?))
}

/// Returns the summaries that these rows contain.
pub(crate) fn summarize(rows: &[impl Row]) -> BTreeMap<String, KeySummary> {
    let mut summaries: BTreeMap<String, KeySummary> = BTreeMap::new();
    let mut keys_by_number: BTreeMap<String, String> = BTreeMap::new();
    for row in rows {
        let number_text = text(row, "number");
        if let Some(key) = row.cell("key") {
            // The key with the newest run comes last.
            let summary = summaries.entry(key.to_owned()).or_default();
            summary.started = seconds(row, "started").unwrap_or_default();
            summary.succeeded = seconds(row, "succeeded").or(summary.succeeded);
            summary.took = seconds(row, "took").or(summary.took);
            summary.exit_status = exit_status(row).or(summary.exit_status);
            keys_by_number.insert(number_text, key.to_owned());
        } else if let Some(summary) = keys_by_number.get(&number_text).and_then(|key| summaries.get_mut(key)) {
            let count = summary.counts.entry(text(row, "outcome")).or_default();
            *count = count.saturating_add(number(row, "runs").unwrap_or(0));
        }
    }
    summaries
}

/// Returns the rows of a query on the table.
///
/// # Errors
/// As for [`newest_runs`].
fn fetch(client: &mut Client, table: &TableName, sql: &str) -> Result<Vec<SimpleQueryRow>, Failure> {
    let results = simple_query(client, sql).map_err(|error| failure::explain_use(error, table, "read"))?;
    let rows = results.into_iter().filter_map(|result| match result {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    Ok(rows.collect())
}

/// A row of a result.
pub(crate) trait Row {
    /// Returns the text of a column; `None` if it is NULL, missing or not text.
    fn cell(&self, column: &str) -> Option<&str>;
}

impl Row for SimpleQueryRow {
    fn cell(&self, column: &str) -> Option<&str> {
        cell(self, column)
    }
}

impl Run {
    pub(crate) fn read(row: &impl Row) -> Run {
        let now = number(row, "now").unwrap_or_default();
        let time = |column| number(row, column).map(|epoch| ServerTime::new(epoch, now));
        let some_text = |column| row.cell(column).map(str::to_owned);
        Run {
            key: text(row, "key"),
            number: text(row, "number"),
            mode: text(row, "mode"),
            slot: number(row, "slot"),
            host: text(row, "host"),
            pid: number(row, "pid").unwrap_or_default(),
            job: text(row, "job"),
            note: some_text("note"),
            token: some_text("token"),
            waited: number(row, "waited").unwrap_or_default(),
            started: time("started").unwrap_or(ServerTime::new(0.0, now)),
            ended: time("ended"),
            exit_status: number(row, "exit_status"),
            signal: some_text("signal"),
            outcome: text(row, "outcome"),
        }
    }

    /// Returns how long the job took, if it has ended.
    pub(crate) fn took(&self) -> Option<Duration> {
        let seconds = self.ended?.epoch - self.started.epoch;
        Some(Duration::try_from_secs_f64(seconds).unwrap_or_default())
    }
}

fn text(row: &impl Row, column: &str) -> String {
    row.cell(column).unwrap_or_default().to_owned()
}

fn number<T: FromStr>(row: &impl Row, column: &str) -> Option<T> {
    row.cell(column)?.parse().ok()
}

/// Returns a number of seconds. Someone may have written an infinite time into the table.
fn seconds(row: &impl Row, column: &str) -> Option<f64> {
    number(row, column).filter(|seconds: &f64| seconds.is_finite())
}

/// Returns the exit status of a run as a shell has it.
fn exit_status(row: &impl Row) -> Option<i32> {
    let signal_number = || {
        let signal = row.cell("signal")?;
        let named = Signal::from_str(signal).ok().map(|signal| signal as i32);
        128_i32.checked_add(named.or_else(|| signal.parse().ok())?)
    };
    number(row, "exit_status").or_else(signal_number)
}

/// Returns the query for the newest runs.
fn newest_runs_sql(table: &TableName, keys: &[KeyId], filter: RunFilter) -> String {
    let (last, name) = (filter.last, table.sql());
    let mut conditions = Vec::new();
    if filter.failed {
        let [running, ok] = [RunOutcome::Running, RunOutcome::Ok].map(RunOutcome::name);
        conditions.push(format!("outcome NOT IN ('{running}', '{ok}')"));
    }
    let rows = if keys.is_empty() {
        newest(&name, &conditions, last)
    } else {
        conditions.push(OF_KEY.to_owned());
        let of_key = newest(&name, &conditions, last);
        format!(
            "SELECT run.* FROM {} CROSS JOIN LATERAL ({of_key}) AS run ORDER BY id DESC LIMIT {last}",
            key_numbers(keys)
        )
    };
    format!(
        "SELECT key, number, mode, slot, host, pid, job, note, token, waited, extract(epoch FROM started) AS started, \
         extract(epoch FROM ended) AS ended, exit_status, signal, outcome, \
         extract(epoch FROM clock_timestamp()) AS now FROM ({rows}) AS run ORDER BY id DESC"
    )
}

/// Returns the query for the newest successes.
fn newest_successes_sql(table: &TableName, keys: &[KeyId], interval: Duration) -> String {
    format!(
        "SELECT key_number AS number, {} AS age, run.host \
         FROM {} CROSS JOIN LATERAL ({}) AS run",
        seconds_between("run.ended", "clock_timestamp()"),
        key_numbers(keys),
        newest_success(&table.sql(), OF_KEY, interval, "*")
    )
}

/// Returns the query for the summaries, and that for the counts.
fn summaries_sql(table: &TableName, keys: &[KeyId]) -> String {
    let name = table.sql();
    let (numbers, count_condition) = if keys.is_empty() {
        (all_numbers(&name), String::new())
    } else {
        (
            key_numbers(keys),
            format!(" WHERE number = ANY (ARRAY[{}])", literals(keys)),
        )
    };
    let of_key = |condition: &str| {
        let mut conditions = vec![OF_KEY.to_owned()];
        conditions.extend((!condition.is_empty()).then(|| condition.to_owned()));
        newest(&name, &conditions, 1)
    };
    format!(
        "SELECT run.number, run.key, extract(epoch FROM run.started) AS started, \
         extract(epoch FROM success.ended) AS succeeded, {} AS took, \
         finished.exit_status, finished.signal \
         FROM {numbers} CROSS JOIN LATERAL ({}) AS run \
         LEFT JOIN LATERAL ({}) AS success ON true LEFT JOIN LATERAL ({}) AS finished ON true ORDER BY run.id; \
         SELECT number, outcome, count(*) AS runs FROM {name}{count_condition} GROUP BY number, outcome",
        seconds_between("finished.started", "finished.ended"),
        of_key(""),
        newest_success(&name, OF_KEY, CLOCK_TOLERANCE, "*"),
        of_key("ended IS NOT NULL"),
    )
}

/// Returns the query for the newest rows that meet these conditions.
fn newest(name: &str, conditions: &[String], count: u32) -> String {
    let condition = if conditions.is_empty() {
        String::new()
    } else {
        format!(" WHERE {}", conditions.join(" AND "))
    };
    format!("SELECT * FROM {name}{condition} ORDER BY id DESC LIMIT {count}")
}

/// Returns the numbers of these keys as a table of `key_number`.
fn key_numbers(keys: &[KeyId]) -> String {
    format!(
        "(SELECT DISTINCT unnest(ARRAY[{}]) AS key_number) AS keys",
        literals(keys)
    )
}

/// Returns the numbers of all keys as a table of `key_number`. Each is found by the index, which takes as long as there
/// are keys; PostgreSQL would look for them in all rows.
fn all_numbers(name: &str) -> String {
    format!(
        "(WITH RECURSIVE keys (key_number) AS (\
         (SELECT number FROM {name} ORDER BY number LIMIT 1) UNION ALL \
         SELECT (SELECT number FROM {name} WHERE number > key_number ORDER BY number LIMIT 1) \
         FROM keys WHERE key_number IS NOT NULL) \
         SELECT key_number FROM keys WHERE key_number IS NOT NULL) AS keys"
    )
}

fn literals(keys: &[KeyId]) -> String {
    let numbers: Vec<String> = keys.iter().map(|key| format!("'{key}'::text")).collect();
    numbers.join(", ")
}

#[cfg(test)]
impl Row for BTreeMap<&str, String> {
    fn cell(&self, column: &str) -> Option<&str> {
        self.get(column).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Any client with the privilege can write any row.
    #[test]
    fn a_signal_that_cannot_be_has_no_exit_status() {
        for (signal, expected) in [
            ("SIGKILL", Some(137)),
            ("40", Some(168)),
            ("2147483647", None),
            ("x", None),
        ] {
            let row = [("key", "a".to_owned()), ("signal", signal.to_owned())];
            let summaries = summarize(&[BTreeMap::from(row)]);
            assert_eq!(summaries["a"].exit_status, expected, "{signal}");
        }
    }
}
