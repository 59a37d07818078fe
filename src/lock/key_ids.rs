//! The numbers of keys that depend on the server.

use super::query::{QueryResult, first_query_failure, is_unlike_postgresql};
use super::sql;
use crate::connection::Client;
use crate::key::{self, Key, KeyId, Number};
use crate::outcome::{ExitCode, Failure};

/// Returns the numbers of the keys, in one query if some depend on the server, else without any.
///
/// # Errors
/// The server does not compute a number, reports another error, or the connection is lost.
pub(crate) fn key_ids(client: &mut Client, keys: &[Key]) -> Result<Vec<KeyId>, Failure> {
    let numbers: Vec<Number> = keys.iter().map(Key::number).collect();
    if let Some(ids) = numbers.iter().map(Number::known).collect() {
        return Ok(ids);
    }
    let result = QueryResult::fetch(client, &sql::key_numbers(&numbers)).map_err(|error| failure(error, keys))?;
    let mut replies = result.column(sql::NUMBER_COLUMN);
    let ids = keys.iter().zip(numbers).map(|(key, number)| {
        let id = number.known().or_else(|| key.id_from_reply(replies.next()?));
        id.ok_or_else(|| {
            Failure::msg(
                ExitCode::Config,
                format!("the server did not compute a number for key {key}"),
            )
        })
    });
    ids.collect()
}

/// Converts an error of the query for numbers. PostgreSQL, too, may be unable to compute one: the encoding of the
/// database may lack a character of the name, and before version 11 there is no `hashtextextended`.
fn failure(error: postgres::Error, keys: &[Key]) -> Failure {
    let message = match error.as_db_error() {
        Some(db_error) if is_unlike_postgresql(db_error.code()) => db_error.message(),
        _ => return first_query_failure(error),
    };
    let computed: Vec<Key> = keys
        .iter()
        .filter(|key| key.number().known().is_none())
        .cloned()
        .collect();
    Failure::msg(
        ExitCode::Config,
        format!(
            "the server cannot compute the number of {} with this --hash: {message}",
            key::describe(&computed)
        ),
    )
}
