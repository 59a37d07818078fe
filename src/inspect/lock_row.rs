//! The advisory locks of the database, as `pg_locks` has them.

use crate::connection::Client;
use crate::inspect::backend::{Backend, columns, rows};
use crate::key::KeyId;
use crate::lock::{IN_THIS_DATABASE, Mode, cell, simple_query};
use crate::protocol::derived_keys;
use postgres::SimpleQueryRow;

/// A row of `pg_locks`, and whose it is.
pub(super) struct LockRow {
    pub(super) id: KeyId,
    pub(super) mode: Mode,
    pub(super) is_granted: bool,
    /// Whether the session has an open transaction.
    pub(super) in_transaction: bool,
    /// Seconds since 1970.
    pub(super) waiting_since: Option<f64>,
    /// The backends that block it.
    pub(super) behind: Vec<i32>,
    pub(super) backend: Backend,
}

/// Returns all advisory locks of the database but eviction marks, receipts and claims. Those of our own session were
/// left behind in it: this session takes none. PostgreSQL 14 and later know since when a session has waited; before, it
/// is when the query began.
///
/// # Errors
/// The connection is lost, or the query fails.
pub(super) fn query(client: &mut Client) -> Result<Vec<LockRow>, postgres::Error> {
    let sql = format!(
        "WITH locks AS (SELECT * FROM pg_catalog.pg_locks) \
         SELECT l.pid, l.classid::bigint AS classid, l.objid::bigint AS objid, l.objsubid, l.mode, l.granted, \
         CASE WHEN NOT l.granted THEN extract(epoch FROM COALESCE(\
         (pg_catalog.to_jsonb(l) ->> 'waitstart')::timestamptz, a.query_start)) END AS waiting_since, \
         CASE WHEN NOT l.granted THEN pg_catalog.array_to_string(pg_catalog.pg_blocking_pids(l.pid), ' ') END \
         AS behind, l.pid IN (SELECT pid FROM locks WHERE locktype = 'virtualxid' AND granted \
         AND virtualxid = virtualtransaction) AS in_transaction, {} \
         FROM locks l LEFT JOIN pg_catalog.pg_stat_activity a USING (pid) \
         WHERE l.locktype = 'advisory' AND l.{IN_THIS_DATABASE}",
        columns()
    );
    let locks = rows(simple_query(client, &sql)?).filter_map(|row| LockRow::from_row(&row));
    Ok(locks.filter(|lock| !derived_keys::is_mark(lock.id)).collect())
}

impl LockRow {
    /// Reads a row; `None` if something that is no PostgreSQL sent it.
    fn from_row(row: &SimpleQueryRow) -> Option<LockRow> {
        let get = |column| cell(row, column);
        let number = |column| get(column)?.parse::<u32>().ok();
        let text = |column| get(column).unwrap_or_default();
        Some(LockRow {
            id: KeyId::from_pg_locks(number("classid")?, number("objid")?, number("objsubid")?),
            mode: match text("mode") {
                "ShareLock" => Mode::Shared,
                _ => Mode::Exclusive,
            },
            is_granted: text("granted") == "t",
            in_transaction: text("in_transaction") == "t",
            waiting_since: get("waiting_since").and_then(|seconds| seconds.parse().ok()),
            behind: text("behind").split(' ').filter_map(|pid| pid.parse().ok()).collect(),
            backend: Backend::from_row(row),
        })
    }
}
