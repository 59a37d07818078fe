//! Why a run table cannot be used, and what to do about it.

use super::table::TableName;
use crate::connection::final_if_session_lives;
use crate::key::sql_literal;
use crate::outcome::{ExitCode, Failure};
use postgres::Error;
use std::fmt::Display;

/// Returns the failure of a query that records a run.
pub(crate) fn explain(error: Error, table: &TableName) -> Failure {
    explain_use(error, table, "record runs in")
}

/// Returns the failure of a query on the table, which was to `action` it. By SQLSTATE: 42501 lacks a privilege, 3F000
/// and 42P01 lack the table; the rest of the classes 42 (wrong columns), 22 (wrong types) and 23 (constraints) show a
/// table that `pglock init` has not created, or that has been altered. But 23505 on `id` is of an identity behind its
/// rows.
pub(super) fn explain_use(error: Error, table: &TableName, action: &'static str) -> Failure {
    let Some(server_error) = error.as_db_error() else {
        return Failure::from(error);
    };
    let message = server_error.message();
    match server_error.code().code() {
        "42501" => Failure::msg(
            ExitCode::Permission,
            format!(
                "cannot {action} table {table}: {message}; as its owner, run: pglock init{} --grant ROLE",
                table.option()
            ),
        ),
        "42P01" | "3F000" => no_table(table),
        // unique_violation; the detail names the column in every language.
        "23505" if server_error.detail().is_some_and(|detail| detail.contains("(id)=")) => identity_behind(table),
        // feature_not_supported: a transaction that writes, on a standby; or a table with rules.
        // untranslatable_character: a key or a note that the encoding of the database does not have.
        "0A000" | "22P05" => Failure::msg(ExitCode::Config, format!("cannot {action} table {table}: {message}")),
        code if ["22", "23", "42"].iter().any(|class| code.starts_with(class)) => not_as_made(table, message),
        // lock_not_available
        "55P03" => Failure::msg(
            ExitCode::Unavailable,
            format!("cannot {action} table {table}, because it is locked: {message}"),
        ),
        _ => final_if_session_lives(error).context(format!("cannot {action} table {table}")),
    }
}

/// Returns the failure for a table whose identity is behind its rows, as after a copy by logical replication.
fn identity_behind(table: &TableName) -> Failure {
    let name = table.sql();
    Failure::msg(
        ExitCode::Config,
        format!(
            "cannot record runs in table {table}: the next id is one that is taken, as after a copy of the rows alone; \
             as its owner, run: SELECT setval(pg_get_serial_sequence({}, 'id'), max(id)) FROM {name}",
            sql_literal(&name)
        ),
    )
}

/// Returns the failure for a table that does not exist.
pub(super) fn no_table(table: &TableName) -> Failure {
    Failure::msg(
        ExitCode::Config,
        format!(
            "table {table} does not exist; create it with: pglock init{}",
            table.option()
        ),
    )
}

/// Returns the failure for a table that differs from what `pglock init` creates.
pub(super) fn not_as_made(table: &TableName, difference: impl Display) -> Failure {
    Failure::msg(
        ExitCode::Config,
        format!(
            "table {table} differs from what pglock init creates: {difference}; make it match the output of pglock \
             init{} --print, or choose another with --table",
            table.option()
        ),
    )
}
