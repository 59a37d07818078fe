//! Removing old runs of all keys: `pglock history --prune`.
//!
//! It goes through the table from its oldest row on, in batches, each in a transaction of its own.

use super::failure;
use super::layout::Layout;
use super::sql::{WRITE_MODES, newest_success};
use super::table::TableName;
use super::types::RunOutcome;
use crate::connection::Client;
use crate::lock::QueryResult;
use crate::outcome::Failure;
use crate::protocol::query_tag::QueryTag;

/// How many rows are examined at a time.
const BATCH: u32 = 5_000;

/// Removes the runs that started longer ago than the table keeps them, but neither the newest success of a key nor what
/// is running. Returns how many.
///
/// # Errors
/// The table cannot be read or written, or the connection is lost. What was removed before stays removed.
pub(crate) fn prune_all(client: &mut Client, table: &TableName, layout: Layout) -> Result<u64, Failure> {
    let (mut last_id, mut removed) = (i64::MIN, 0);
    loop {
        let query = batch_sql(table, layout, last_id);
        let result = QueryResult::fetch_in_own_transaction(client, WRITE_MODES, &query, QueryTag::ProgramOnly)
            .map_err(|error| failure::explain_use(error, table, "remove runs from"))?;
        removed += result.number("removed").unwrap_or_default() as u64;
        // Rows are in the order of their starts but for changes of the clock, so what follows a batch without an old
        // row is not old.
        match result.get("last").and_then(|id| id.parse().ok()) {
            Some(id) if result.is_true("has_old") => last_id = id,
            _ => return Ok(removed),
        }
    }
}

/// Returns the query that prunes a batch. It returns how many rows it has removed, the last row that it has examined,
/// and whether any of them was old. The rows to remove are an array, or PostgreSQL could read the whole table to join
/// them with it.
fn batch_sql(table: &TableName, layout: Layout, last_id: i64) -> String {
    let name = table.sql();
    let running = RunOutcome::Running.name();
    let newest = newest_success(
        &format!("{name} AS success"),
        "success.number = batch.number",
        layout.keep,
        "success.id",
    );
    format!(
        "WITH batch AS (\
         SELECT id, number, outcome, started < clock_timestamp() - make_interval(secs => {}) AS is_old \
         FROM {name} WHERE id > '{last_id}'::bigint ORDER BY id LIMIT {BATCH}), \
         removed AS (\
         DELETE FROM {name} AS run WHERE run.id = ANY (ARRAY(\
         SELECT batch.id FROM batch WHERE is_old AND outcome <> '{running}' \
         AND batch.id IS DISTINCT FROM ({newest}))) \
         RETURNING run.id) \
         SELECT (SELECT count(*) FROM removed) AS removed, (SELECT max(id) FROM batch) AS last, \
         (SELECT bool_or(is_old) FROM batch) AS has_old",
        layout.keep.as_secs_f64()
    )
}
