//! Asking the server, and reading its answers and refusals.
//!
//! Everything goes through the simple query protocol, one round trip a message, and through [`ask`].

use super::{Grant, Keys, TryOutcome};
use crate::key::KeyId;
use crate::outcome::{ExitCode, Failure};
use crate::protocol::query_tag::QueryTag;
use postgres::error::SqlState;
use postgres::{Client, SimpleQueryMessage, SimpleQueryRow};
use std::time::Instant;

/// The condition that a row of `pg_locks` is of the database we are in.
pub const IN_THIS_DATABASE: &str =
    "database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())";

/// The column in which the rows of a proof are true.
pub(super) const PROVEN: &str = "proven";

/// Sends a message and waits for the answer.
///
/// Nothing but what is PostgreSQL's own is looked up: whoever may create functions and operators in a schema of our
/// role's search path could otherwise have them run with our rights. The setting lasts as long as the message's
/// transaction.
pub fn ask(client: &mut Client, sql: &str) -> Result<Vec<SimpleQueryMessage>, postgres::Error> {
    ask_noting(client, sql, QueryTag::ProgramOnly)
}

/// The same, with something to say besides.
fn ask_noting(client: &mut Client, sql: &str, note: QueryTag) -> Result<Vec<SimpleQueryMessage>, postgres::Error> {
    client.simple_query(&note.prepend_to(&format!("SET LOCAL search_path TO pg_catalog, pg_temp; {sql}")))
}

/// A column's text; `None` for NULL, and where whoever answers has no such column or text.
pub fn cell<'a>(row: &'a SimpleQueryRow, column: &str) -> Option<&'a str> {
    row.try_get(column).ok()?
}

/// The rows that a message returns, and when the message was sent. Its statements have one row each, and no column in
/// common; but for the proof of a lock, which has as many as there are keys.
pub struct QueryResult {
    rows: Vec<SimpleQueryRow>,
    asked: Instant,
}

impl QueryResult {
    /// Sends the message and waits for the answer.
    pub fn to(client: &mut Client, sql: &str) -> Result<QueryResult, postgres::Error> {
        QueryResult::noting(client, sql, QueryTag::ProgramOnly)
    }

    /// The same, with something to say besides.
    pub(super) fn noting(client: &mut Client, sql: &str, note: QueryTag) -> Result<QueryResult, postgres::Error> {
        let asked = Instant::now();
        let messages = ask_noting(client, sql, note)?.into_iter();
        let rows = messages.filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        Ok(QueryResult {
            rows: rows.collect(),
            asked,
        })
    }

    /// Whether there was a row at all.
    pub(super) fn has_row(&self) -> bool {
        !self.rows.is_empty()
    }

    /// A column's text; `None` for NULL.
    pub fn get(&self, column: &str) -> Option<&str> {
        self.rows.iter().find_map(|row| cell(row, column))
    }

    /// Whether a column is true.
    pub fn is_true(&self, column: &str) -> bool {
        self.get(column) == Some("t")
    }

    /// A column's number.
    pub fn number(&self, column: &str) -> Option<f64> {
        self.get(column)?.parse().ok()
    }

    pub(super) fn backend_pid(&self) -> i32 {
        self.number("backend_pid").unwrap_or_default() as i32
    }

    /// A bigint key that the server has computed.
    pub(super) fn key(&self, column: &str) -> Option<KeyId> {
        self.get(column)?.parse().ok().map(KeyId::Bigint)
    }

    /// What became of a try of these keys.
    pub(super) fn attempt<K>(&self, keys: &Keys<K>) -> TryOutcome {
        match self.taken(keys) {
            Some(Ok(which)) => self.proven(keys, which),
            Some(Err(busy)) => TryOutcome::Busy(busy),
            None => TryOutcome::Untried,
        }
    }

    /// What was taken, as [`super::Lock::tries`] tells it: the key, of one of several; else which is somebody else's. Whatever
    /// number comes, it is that of one of them in the end.
    pub(super) fn taken<K>(&self, keys: &Keys<K>) -> Option<Result<usize, usize>> {
        let got = self.number("got")?;
        let (count, is_acquired) = match keys {
            Keys::All(keys) => (keys.len(), got == keys.len() as f64),
            Keys::OneOf(keys, _) => (keys.len(), got >= 0.0),
        };
        let which = (got.max(0.0) as usize).min(count.saturating_sub(1));
        Some(if is_acquired { Ok(which) } else { Err(which) })
    }

    /// The lock of these keys that the server says is ours, if it has proved it.
    pub(super) fn proven<K>(&self, keys: &Keys<K>, which: usize) -> TryOutcome {
        match self.proves(keys) {
            true => TryOutcome::Acquired(Grant {
                backend_pid: self.backend_pid(),
                which,
                asked: self.asked,
            }),
            false => TryOutcome::Unproven,
        }
    }

    /// Whether the session has its own granted rows of the lock, where [`super::Lock::proof`] was asked for them.
    pub(super) fn proves<K>(&self, keys: &Keys<K>) -> bool {
        let is_proof = |row: &&SimpleQueryRow| cell(row, PROVEN) == Some("t");
        let proofs = self.rows.iter().filter(is_proof).count();
        match keys {
            Keys::All(keys) => proofs == keys.len(),
            Keys::OneOf(..) => proofs > 0,
        }
    }
}

/// The first message asks for nothing that PostgreSQL cannot do: an error that says so comes from something else.
pub(super) fn unlike_postgresql(error: postgres::Error) -> Failure {
    let code = error.code().map(|code| code.code().to_owned());
    match (code.as_deref(), error.as_db_error()) {
        (Some("42501"), _) | (None, _) | (_, None) => Failure::from(error),
        // By class, which are the first two characters; a server that is none may send fewer.
        (Some(code), Some(db)) if ["0A", "22", "42"].iter().any(|it| code.starts_with(it)) => Failure::say(
            ExitCode::Config,
            format!("this server cannot give a lock as PostgreSQL does: {}", db.message()),
        ),
        _ => Failure::from(error),
    }
}

/// Whether a PgBouncer says so. Its errors all have the same code.
pub(super) fn pools_statements(error: &postgres::Error) -> bool {
    let says_so = |db: &postgres::error::DbError| {
        *db.code() == SqlState::PROTOCOL_VIOLATION && db.message().contains("statement pooling")
    };
    error.as_db_error().is_some_and(says_so)
}

/// Whether the error says that this server has no plpgsql for us.
pub(super) fn lacks_plpgsql(error: &postgres::Error) -> bool {
    let codes = [
        SqlState::INSUFFICIENT_PRIVILEGE,
        SqlState::UNDEFINED_OBJECT,
        SqlState::FEATURE_NOT_SUPPORTED,
    ];
    error.code().is_some_and(|code| codes.contains(code))
}
