//! Fencing tokens.

use super::query::QueryResult;
use super::sql;
use crate::connection::Client;

/// Returns a number that only grows, even across crashes and failovers of the server: timeline and WAL position, as 24
/// hexadecimal digits that sort as text.
///
/// The position is that of a logical message written for this purpose, which nothing decodes. It is on disk when the
/// result arrives, whatever `synchronous_commit` is set to.
///
/// # Errors
/// The server reports an error, or the connection is lost.
pub(crate) fn fencing_token(client: &mut Client) -> Result<String, postgres::Error> {
    let result = QueryResult::fetch(client, &sql::fencing_token())?;
    Ok(result.get("token").unwrap_or_default().to_owned())
}
