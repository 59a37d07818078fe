//! Recording a run: before its job starts, and when it has ended.

use super::failure;
use super::layout::Layout;
use super::sql;
use super::table::TableName;
use super::types::{NewRun, RunEnd};
use crate::connection::Client;
use crate::inspect::server_time::{age, in_full};
use crate::key::KeyId;
use crate::lock::QueryResult;
use crate::outcome::{ExitCode, Failure};
use crate::protocol::query_tag::QueryTag;
use std::time::Duration;

/// A run that is recorded as running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecordedRun {
    /// Its rows, one for each key.
    rows: Vec<i64>,
    /// The numbers of its locks.
    ids: Vec<KeyId>,
    /// How long runs are kept.
    keep: Duration,
}

/// Whether a run may start.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Begun {
    /// It may, and is recorded.
    Recorded(RecordedRun),
    /// It may not: the key has succeeded within the interval. Nothing is recorded.
    NotDue(LastSuccess),
}

/// The newest success of a key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LastSuccess {
    /// How long ago it started, in seconds.
    age: f64,
    /// How long it took, in seconds.
    took: f64,
    /// Where it ran.
    host: String,
}

impl LastSuccess {
    /// Returns the sentence that says why the job is not started.
    pub(crate) fn sentence(&self, keys: &str, interval: Duration) -> String {
        let age_of = |seconds: f64| age(Duration::try_from_secs_f64(seconds).unwrap_or_default());
        format!(
            "{keys} last succeeded {} ago on {} (took {}); not again within {}",
            age_of(self.age),
            self.host,
            age_of(self.took),
            in_full(interval)
        )
    }
}

/// Records that a run starts, unless it is not due. `lock_timeout` limits the wait for a table that is locked.
///
/// # Errors
/// The table cannot be used (see [`failure`]), the lock is lost, or the connection is.
pub(crate) fn begin(
    client: &mut Client,
    table: &TableName,
    run: &NewRun,
    lock_timeout: Duration,
) -> Result<Begun, Failure> {
    let query = sql::begin(table, run, lock_timeout);
    let result = QueryResult::fetch_in_own_transaction(client, sql::WRITE_MODES, &query, QueryTag::ProgramOnly)
        .map_err(|error| failure::explain(error, table))?;
    if !result.is_true("held") {
        let message = "lost the lock before the job was started: its session has ended";
        return Err(Failure::msg(ExitCode::Unavailable, message).transient_if(true));
    }
    let rows: Vec<i64> = result.column("run").filter_map(|row| row.parse().ok()).collect();
    if rows.len() == run.keys.len() {
        return Ok(Begun::Recorded(RecordedRun {
            rows,
            ids: run.keys.iter().map(|(_, id)| *id).collect(),
            keep: Layout::from_comment(result.get("comment")).keep,
        }));
    }
    match (result.number("age"), result.get("host")) {
        (Some(age), Some(host)) if rows.is_empty() => Ok(Begun::NotDue(LastSuccess {
            age,
            took: result.number("took").unwrap_or_default(),
            host: host.to_owned(),
        })),
        _ => Err(Failure::msg(
            ExitCode::Config,
            format!("table {table} discards the rows that are inserted; remove its triggers and rules"),
        )),
    }
}

/// Completes a run. Returns whether its rows were still there, and running.
///
/// # Errors
/// The server reports an error, or the connection is lost.
pub(crate) fn complete(
    client: &mut Client,
    table: &TableName,
    run: &RecordedRun,
    end: &RunEnd,
    lock_timeout: Duration,
) -> Result<bool, postgres::Error> {
    let query = sql::complete(table, &run.rows, end, lock_timeout);
    let result = QueryResult::fetch_in_own_transaction(client, sql::WRITE_MODES, &query, QueryTag::ProgramOnly)?;
    Ok(result.number("completed") == Some(run.rows.len() as f64))
}

/// Removes old runs of the keys of a run, at most some hundred of each.
///
/// # Errors
/// The server reports an error, or the connection is lost.
pub(crate) fn prune(
    client: &mut Client,
    table: &TableName,
    run: &RecordedRun,
    lock_timeout: Duration,
) -> Result<(), postgres::Error> {
    let query = sql::prune(table, &run.ids, run.keep, lock_timeout);
    QueryResult::fetch_in_own_transaction(client, sql::WRITE_MODES, &query, QueryTag::ProgramOnly)?;
    Ok(())
}
