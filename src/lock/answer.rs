//! Asking the server, and reading its answers and refusals.
//!
//! Everything goes through the simple query protocol, one round trip a message, and through [`ask`].

use super::note::Note;
use super::{Attempt, Grant};
use crate::connection;
use crate::key::KeyId;
use crate::outcome::{ExitCode, Failure};
use postgres::error::SqlState;
use postgres::{Client, SimpleQueryMessage, SimpleQueryRow};
use std::time::Instant;

/// The condition that a row of `pg_locks` is of the database we are in.
pub const IN_THIS_DATABASE: &str = "database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())";

/// Sends a message and waits for the answer.
///
/// Nothing but what is PostgreSQL's own is looked up: whoever may create functions and operators in a schema of our
/// role's search path could otherwise have them run with our rights. The setting lasts as long as the message's
/// transaction.
pub fn ask(client: &mut Client, sql: &str) -> Result<Vec<SimpleQueryMessage>, postgres::Error> {
    ask_noting(client, sql, Note::Plain)
}

/// The same, with something to say besides.
fn ask_noting(
    client: &mut Client,
    sql: &str,
    note: Note,
) -> Result<Vec<SimpleQueryMessage>, postgres::Error> {
    client.simple_query(&note.on(&format!(
        "SET LOCAL search_path TO pg_catalog, pg_temp; {sql}"
    )))
}

/// A column's text; `None` for NULL, and where whoever answers has no such column or text.
pub fn cell<'a>(row: &'a SimpleQueryRow, column: &str) -> Option<&'a str> {
    row.try_get(column).ok()?
}

/// The last row that a message returns, and when the message was sent.
pub struct Answer {
    row: Option<SimpleQueryRow>,
    asked: Instant,
}

impl Answer {
    /// Sends the message and waits for the answer.
    pub fn to(client: &mut Client, sql: &str) -> Result<Answer, postgres::Error> {
        Answer::noting(client, sql, Note::Plain)
    }

    /// The same, with something to say besides.
    pub(super) fn noting(
        client: &mut Client,
        sql: &str,
        note: Note,
    ) -> Result<Answer, postgres::Error> {
        let asked = Instant::now();
        let mut messages = ask_noting(client, sql, note)?.into_iter().rev();
        let row = messages.find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        Ok(Answer { row, asked })
    }

    /// Whether there was a row at all.
    pub(super) fn has_row(&self) -> bool {
        self.row.is_some()
    }

    /// A column's text; `None` for NULL.
    pub fn get(&self, column: &str) -> Option<&str> {
        cell(self.row.as_ref()?, column)
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

    /// What was taken, as the message that tried tells it: see [`super::Keys`].
    pub(super) fn got(&self) -> usize {
        self.number("got").unwrap_or_default().max(0.0) as usize
    }

    /// What became of a try of so many keys. Whatever number comes, it is that of one of them in the end.
    pub(super) fn attempt(&self, keys: usize) -> Attempt {
        let last = keys.saturating_sub(1);
        match (self.get("acquired"), self.get("proven")) {
            (Some("t"), Some("t")) => Attempt::Acquired(Grant {
                backend_pid: self.backend_pid(),
                which: self.got().min(last),
                asked: self.asked,
            }),
            (Some("t"), _) => Attempt::Unproven,
            (Some(_), _) => Attempt::Busy(self.got().min(last)),
            (None, _) => Attempt::Untried,
        }
    }
}

/// The first message asks for nothing that PostgreSQL cannot do: an error that says so comes from something else.
pub(super) fn unlike_postgresql(error: postgres::Error) -> Failure {
    let code = error.code().map(|code| code.code().to_owned());
    match (code.as_deref(), error.as_db_error()) {
        (Some("42501"), _) | (None, _) | (_, None) => connection::failure(error),
        // By class, which are the first two characters; a server that is none may send fewer.
        (Some(code), Some(db)) if ["0A", "22", "42"].iter().any(|it| code.starts_with(it)) => {
            Failure::say(
                ExitCode::Config,
                format!(
                    "this server cannot give a lock as PostgreSQL does: {}",
                    db.message()
                ),
            )
        }
        _ => connection::failure(error),
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
