//! Running queries, and reading their results and errors.
//!
//! Everything goes through the simple query protocol, one round trip per query, and through [`simple_query`].

use super::sql::{GOT_COLUMN, PROVEN_COLUMN};
use super::types::{Grant, Keys, TryOutcome};
use crate::connection::Client;
use crate::connection::query_message::QueryMessage;
use crate::outcome::{ExitCode, Failure};
use crate::protocol::query_tag::QueryTag;
use postgres::error::{DbError, SqlState};
use postgres::{SimpleQueryMessage, SimpleQueryRow};
use std::time::Instant;

/// Runs a query and returns its result: in the transaction that is open, or else in one of its own. What is sent around
/// it, and why, is described in [`query_message`](crate::connection::query_message).
///
/// # Errors
/// The server reports an error, or the connection is lost.
pub(crate) fn simple_query(client: &mut Client, sql: &str) -> Result<Vec<SimpleQueryMessage>, postgres::Error> {
    simple_query_tagged(client, sql, QueryTag::ProgramOnly)
}

/// Like [`simple_query`], with a tag that tells observers what we are doing.
///
/// # Errors
/// As for [`simple_query`].
pub(crate) fn simple_query_tagged(
    client: &mut Client,
    sql: &str,
    tag: QueryTag,
) -> Result<Vec<SimpleQueryMessage>, postgres::Error> {
    if client.is_in_transaction {
        send(client, &QueryMessage::in_open_transaction(sql), tag)
    } else {
        send_beginning(client, &QueryMessage::in_own_transaction(sql), tag)
    }
}

/// Begins a transaction with these modes and runs its first query, if there is one. After an error there is no
/// transaction.
///
/// # Errors
/// As for [`simple_query`].
pub(crate) fn begin(client: &mut Client, modes: &str, sql: &str) -> Result<Vec<SimpleQueryMessage>, postgres::Error> {
    let message = QueryMessage::opening_transaction(modes, sql);
    let results = send_beginning(client, &message, QueryTag::ProgramOnly)?;
    client.is_in_transaction = true;
    Ok(results)
}

/// Ends the open transaction with a tag that tells observers what we are doing.
///
/// # Errors
/// As for [`simple_query`].
pub(crate) fn end_transaction(
    client: &mut Client,
    statement: EndStatement,
    tag: QueryTag,
) -> Result<(), postgres::Error> {
    client.simple_query(&tag.prepend_to(statement.sql()))?;
    client.is_in_transaction = false;
    client.must_roll_back = false;
    Ok(())
}

/// How to end a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndStatement {
    /// Keeping what it did.
    Commit,
    /// Undoing what it did.
    Rollback,
}

impl EndStatement {
    fn sql(self) -> &'static str {
        match self {
            EndStatement::Commit => "COMMIT",
            EndStatement::Rollback => "ROLLBACK",
        }
    }
}

/// Sends a message with a tag, and returns what the query in it returns.
///
/// # Errors
/// As for [`simple_query`].
fn send(
    client: &mut Client,
    message: &QueryMessage,
    tag: QueryTag,
) -> Result<Vec<SimpleQueryMessage>, postgres::Error> {
    let results = client.simple_query(&tag.prepend_to(&message.sql))?;
    Ok(message.results_of_query(results))
}

/// Sends a message that begins a transaction. An error of the server leaves that transaction open; it is rolled back
/// before the next one, if there is one: the error is to be reported without waiting for another reply.
///
/// # Errors
/// As for [`simple_query`].
fn send_beginning(
    client: &mut Client,
    message: &QueryMessage,
    tag: QueryTag,
) -> Result<Vec<SimpleQueryMessage>, postgres::Error> {
    if client.must_roll_back {
        end_transaction(client, EndStatement::Rollback, QueryTag::ProgramOnly)?;
    }
    let result = send(client, message, tag);
    client.must_roll_back = result.is_err();
    result
}

/// Returns a column's text; `None` if it is NULL, missing or not text.
pub(crate) fn cell<'a>(row: &'a SimpleQueryRow, column: &str) -> Option<&'a str> {
    row.try_get(column).ok()?
}

/// The rows that a query returned, and when the query was sent.
///
/// Each statement of the query returns one row, and no two share a column; but the proof of a lock returns one row for
/// each key.
pub(crate) struct QueryResult {
    rows: Vec<SimpleQueryRow>,
    query_sent: Instant,
}

/// What a try claims to have done, before it is proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// The lock was acquired: of several candidates, the one with this index.
    Acquired { key_index: usize },
    /// The key with this index is held by another client.
    Busy { key_index: usize },
    /// Nothing was tried.
    Untried,
}

impl QueryResult {
    /// Runs a query and returns its rows.
    ///
    /// # Errors
    /// The server reports an error, or the connection is lost.
    pub(crate) fn fetch(client: &mut Client, sql: &str) -> Result<QueryResult, postgres::Error> {
        QueryResult::fetch_tagged(client, sql, QueryTag::ProgramOnly)
    }

    /// Runs a query that also tells observers what we are doing, and returns its rows.
    ///
    /// # Errors
    /// As for [`simple_query`].
    pub(super) fn fetch_tagged(client: &mut Client, sql: &str, tag: QueryTag) -> Result<QueryResult, postgres::Error> {
        let query_sent = Instant::now();
        let messages = simple_query_tagged(client, sql, tag)?;
        Ok(QueryResult::new(messages, query_sent))
    }

    /// Runs a query in a transaction of its own with these modes and this tag, and returns its rows. No transaction may
    /// be open.
    ///
    /// # Errors
    /// As for [`simple_query`].
    pub(crate) fn fetch_in_own_transaction(
        client: &mut Client,
        modes: &str,
        sql: &str,
        tag: QueryTag,
    ) -> Result<QueryResult, postgres::Error> {
        let query_sent = Instant::now();
        let message = QueryMessage::in_own_transaction_with(modes, sql);
        let messages = send_beginning(client, &message, tag)?;
        Ok(QueryResult::new(messages, query_sent))
    }

    /// Begins a transaction with these modes, and returns the rows of its first query.
    ///
    /// # Errors
    /// As for [`simple_query`].
    pub(super) fn begin(client: &mut Client, modes: &str, sql: &str) -> Result<QueryResult, postgres::Error> {
        let query_sent = Instant::now();
        let messages = begin(client, modes, sql)?;
        Ok(QueryResult::new(messages, query_sent))
    }

    /// Returns the rows among the results of a query.
    fn new(messages: Vec<SimpleQueryMessage>, query_sent: Instant) -> QueryResult {
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        QueryResult {
            rows: rows.collect(),
            query_sent,
        }
    }

    pub(super) fn has_row(&self) -> bool {
        !self.rows.is_empty()
    }

    /// Returns a column's text; `None` if it is NULL or missing.
    pub(crate) fn get(&self, column: &str) -> Option<&str> {
        self.rows.iter().find_map(|row| cell(row, column))
    }

    /// Returns a column's texts, in all rows that have it.
    pub(crate) fn column(&self, column: &str) -> impl Iterator<Item = &str> {
        self.rows.iter().filter_map(move |row| cell(row, column))
    }

    /// Returns whether a boolean column is true.
    pub(crate) fn is_true(&self, column: &str) -> bool {
        self.get(column) == Some("t")
    }

    /// Returns a column's number.
    pub(crate) fn number(&self, column: &str) -> Option<f64> {
        self.get(column)?.parse().ok()
    }

    pub(super) fn backend_pid(&self) -> i32 {
        self.number("backend_pid").unwrap_or_default() as i32
    }

    /// Returns the outcome of a query that tried these keys and proved them.
    pub(super) fn try_outcome(&self, keys: &Keys) -> TryOutcome {
        match self.claim(keys) {
            Claim::Acquired { key_index } => self.prove(keys, key_index),
            Claim::Busy { key_index } => TryOutcome::Busy { key_index },
            Claim::Untried => TryOutcome::Untried,
        }
    }

    /// Reads [`GOT_COLUMN`]. Whatever integer a server sends, the index is that of one of the keys; anything else
    /// states nothing.
    pub(super) fn claim(&self, keys: &Keys) -> Claim {
        let Some(got) = self.get(GOT_COLUMN).and_then(|got| got.parse::<i64>().ok()) else {
            return Claim::Untried;
        };
        let count = keys.as_slice().len();
        let is_acquired = match keys {
            Keys::All(_) => got == count as i64,
            Keys::OneOf { .. } => got >= 0,
        };
        let key_index = (got.max(0) as usize).min(count.saturating_sub(1));
        if is_acquired {
            Claim::Acquired { key_index }
        } else {
            Claim::Busy { key_index }
        }
    }

    /// Returns the outcome of a try whose claim to have acquired the lock this result must prove.
    pub(super) fn prove(&self, keys: &Keys, key_index: usize) -> TryOutcome {
        if self.proves(keys) {
            TryOutcome::Acquired(Grant {
                backend_pid: self.backend_pid(),
                key_index,
                query_sent: self.query_sent,
            })
        } else {
            TryOutcome::Unproven {
                backend_pid: self.backend_pid(),
                key_index,
            }
        }
    }

    /// Returns the outcome of a wait for the only key, after which the lock is not proven.
    pub(super) fn unproven(&self) -> TryOutcome {
        TryOutcome::Unproven {
            backend_pid: self.backend_pid(),
            key_index: 0,
        }
    }

    /// Returns whether the proof found the session's own granted rows: one for each key, or one for any candidate.
    pub(super) fn proves(&self, keys: &Keys) -> bool {
        let is_proof = |row: &&SimpleQueryRow| cell(row, PROVEN_COLUMN) == Some("t");
        let proof_count = self.rows.iter().filter(is_proof).count();
        match keys {
            Keys::All(keys) => proof_count == keys.len(),
            Keys::OneOf { .. } => proof_count > 0,
        }
    }
}

/// Converts an error of the first query. That query uses nothing that PostgreSQL lacks, so an error that says so comes
/// from something else.
pub(super) fn first_query_failure(error: postgres::Error) -> Failure {
    match error.as_db_error() {
        Some(db_error) if is_unlike_postgresql(db_error.code()) => Failure::msg(
            ExitCode::Config,
            format!(
                "this server does not support advisory locks as PostgreSQL does: {}",
                db_error.message()
            ),
        ),
        Some(db_error) if *db_error.code() == SqlState::QUERY_CANCELED => hint_at_timeout(Failure::from(error)),
        _ => Failure::from(error),
    }
}

/// Adds what usually cancels a query before pglock has set the timeouts of its session to 0. The code does not tell a
/// timeout from a request, and the text may be translated.
fn hint_at_timeout(failure: Failure) -> Failure {
    let message = format!(
        "{failure}; if this happens again, the statement_timeout of the role or the database is too short even for \
         pglock's first query"
    );
    Failure::msg(failure.code, message).transient_if(failure.is_transient)
}

/// Returns whether PostgreSQL never answers the first query with this error: `feature_not_supported`, a data exception,
/// or a syntax error or access rule violation other than `insufficient_privilege`.
pub(super) fn is_unlike_postgresql(code: &SqlState) -> bool {
    // By class, the first two characters; other servers may send shorter codes.
    let classes = ["0A", "22", "42"];
    *code != SqlState::INSUFFICIENT_PRIVILEGE && classes.iter().any(|class| code.code().starts_with(class))
}

/// Returns whether a PgBouncer reports that it uses statement pooling. Only the text tells: all its errors have the
/// same code.
pub(super) fn is_statement_pooling(error: &postgres::Error) -> bool {
    let is_by_pgbouncer = |error: &DbError| {
        *error.code() == SqlState::PROTOCOL_VIOLATION && error.message().contains("statement pooling")
    };
    error.as_db_error().is_some_and(is_by_pgbouncer)
}

/// Returns whether our role cannot use plpgsql on this server.
pub(super) fn lacks_plpgsql(error: &postgres::Error) -> bool {
    let codes = [
        SqlState::INSUFFICIENT_PRIVILEGE,
        SqlState::UNDEFINED_OBJECT,
        SqlState::FEATURE_NOT_SUPPORTED,
    ];
    error.code().is_some_and(|code| codes.contains(code))
}
