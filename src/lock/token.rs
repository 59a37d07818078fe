//! Fencing tokens.

use super::query::QueryResult;
use super::sql;
use crate::connection::Client;

/// Returns a number that only grows, even across crashes and failovers of the server: timeline and WAL position, as 24
/// hexadecimal digits that sort as text.
///
/// The position is that of a logical message written for this purpose, which nothing decodes. It is on this server's
/// disk when the result arrives, whatever `synchronous_commit` and `synchronous_standby_names` are set to. That is
/// enough: a standby that has not received it leads in the timeline once it is promoted.
///
/// Returns `None` if this session is not that of the lock and its server does not meet `lock_condition`: the lock is
/// lost, or is another server's, whose tokens cannot be compared with those of the lock's holders.
///
/// # Errors
/// The server reports an error, or the connection is lost.
pub(crate) fn fencing_token(
    client: &mut Client,
    lock_condition: Option<&str>,
) -> Result<Option<String>, postgres::Error> {
    let sql = sql::fencing_token(lock_condition.unwrap_or("true"));
    let result = QueryResult::fetch(client, &sql)?;
    Ok(result.get("token").map(str::to_owned))
}

/// Returns whether the server waits for its disk before it reports that something was written. Otherwise a token can go
/// back after a crash of the server's host.
///
/// # Errors
/// The server reports an error, or the connection is lost.
pub(crate) fn is_token_durable(client: &mut Client) -> Result<bool, postgres::Error> {
    let result = QueryResult::fetch(client, &sql::fsync())?;
    Ok(result.get("fsync") != Some("off"))
}
