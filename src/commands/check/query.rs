//! Queries of `pglock check`, each of a few columns.

use crate::connection::Client;
use crate::lock::{cell, simple_query};
use crate::outcome::{ExitCode, Failure};
use postgres::{SimpleQueryMessage, SimpleQueryRow};

/// Returns the rows of a query.
///
/// # Errors
/// The query fails, or the connection is lost.
pub(super) fn fetch_all(client: &mut Client, sql: &str) -> Result<Vec<SimpleQueryRow>, Failure> {
    let messages = simple_query(client, sql)?.into_iter();
    let rows = messages.filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    Ok(rows.collect())
}

/// Returns the only row of a query.
///
/// # Errors
/// As for [`fetch_all`], or a server that is no PostgreSQL returns no row.
pub(super) fn fetch_one(client: &mut Client, sql: &str) -> Result<SimpleQueryRow, Failure> {
    fetch_all(client, sql)?.pop().ok_or_else(|| {
        Failure::msg(
            ExitCode::Config,
            "the server returned no row where PostgreSQL returns one; connect to a PostgreSQL server",
        )
    })
}

/// Returns a column's text, empty for NULL.
pub(super) fn text(row: &SimpleQueryRow, column: &str) -> String {
    cell(row, column).unwrap_or_default().to_owned()
}

/// Returns whether a boolean column is true.
pub(super) fn is_true(row: &SimpleQueryRow, column: &str) -> bool {
    cell(row, column) == Some("t")
}
