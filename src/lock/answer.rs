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

    /// A column's text; `None` for NULL.
    pub fn get(&self, column: &str) -> Option<&str> {
        self.row.as_ref()?.try_get(column).ok()?
    }

    /// Whether a column is true.
    pub fn is_true(&self, column: &str) -> bool {
        self.get(column) == Some("t")
    }

    /// Whether all columns are.
    pub(super) fn is_all_true(&self) -> bool {
        let all = |row: &SimpleQueryRow| (0..row.len()).all(|column| row.get(column) == Some("t"));
        self.row.as_ref().is_some_and(all)
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

    pub(super) fn attempt(&self) -> Attempt {
        let got = self.number("got").unwrap_or_default().max(0.0) as usize;
        match (self.get("acquired"), self.get("proven")) {
            (Some("t"), Some("t")) => Attempt::Acquired(Grant {
                backend_pid: self.backend_pid(),
                which: got,
                asked: self.asked,
            }),
            (Some("t"), _) => Attempt::Unproven,
            (Some(_), _) => Attempt::Busy(got),
            (None, _) => Attempt::Untried,
        }
    }
}

/// The first message asks for nothing that PostgreSQL cannot do: an error that says so comes from something else.
pub(super) fn unlike_postgresql(error: postgres::Error) -> Failure {
    let code = error.code().map(|code| code.code().to_owned());
    match (code.as_deref(), error.as_db_error()) {
        (Some("42501"), _) | (None, _) | (_, None) => connection::failure(error),
        (Some(code), Some(db)) if ["0A", "22", "42"].contains(&&code[..2]) => Failure::say(
            ExitCode::Config,
            format!(
                "this server cannot give a lock as PostgreSQL does: {}",
                db.message()
            ),
        ),
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
