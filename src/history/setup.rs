//! Creating the run table, and granting what a role needs to record and to read runs: `pglock init`.
//!
//! Everything happens in one transaction, which also looks at the result before it commits. A lock keeps several of
//! these apart: CREATE IF NOT EXISTS does not, and two GRANTs at the same time fail.

use super::description::{self, Description};
use super::failure;
use super::layout::{COLUMNS, DEFAULT_KEEP, INDEXES, Index, Layout, VERSION};
use super::sql::WRITE_MODES;
use super::table::{TableName, quoted_identifier};
use crate::connection::Client;
use crate::key::sql_literal;
use crate::lock::{self, EndStatement, cell, simple_query};
use crate::outcome::{ExitCode, Failure};
use crate::protocol::derived_keys::INIT_LOCK;
use crate::protocol::query_tag::QueryTag;
use postgres::error::DbError;
use postgres::{Error, SimpleQueryMessage};
use std::time::Duration;

/// What a role needs on the table.
const PRIVILEGES: [&str; 4] = ["SELECT", "INSERT", "UPDATE", "DELETE"];

/// What `pglock init` is to achieve.
#[derive(Debug)]
pub(crate) struct Setup {
    /// The table.
    pub table: TableName,
    /// The roles that are to record and read runs, each taken literally.
    pub roles: Vec<String>,
    /// How long to keep runs; `None` leaves the setting of an existing table.
    pub keep: Option<Duration>,
}

/// What `pglock init` has achieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SetupResult {
    /// Whether there was no such table before.
    pub is_new: bool,
    /// How long the table keeps runs.
    pub keep: Duration,
}

impl Setup {
    /// Returns the statements for a table that does not exist, as a script.
    pub(crate) fn script(&self) -> String {
        let statements = self.statements(None).into_iter();
        statements.map(|statement| statement + ";\n").collect()
    }

    /// Creates the table unless it exists, completes it, and grants the privileges.
    ///
    /// # Errors
    /// The table is not a run table, the schema or a role does not exist, our role lacks a privilege, or the connection
    /// is lost. Nothing is changed then.
    pub(crate) fn carry_out(&self, client: &mut Client) -> Result<SetupResult, Failure> {
        let (class, number) = INIT_LOCK;
        let begin = format!(
            "SELECT pg_advisory_xact_lock({class}, {number}); {}",
            description::query(&self.table)
        );
        let results = lock::begin(client, WRITE_MODES, &begin).map_err(|error| self.explain(error))?;
        let result = self.complete(client, &Description::read(&results));
        let end = if result.is_ok() {
            EndStatement::Commit
        } else {
            EndStatement::Rollback
        };
        let ended = lock::end_transaction(client, end, QueryTag::ProgramOnly);
        let result = result?;
        ended?;
        Ok(result)
    }

    /// Does what is missing, in the open transaction.
    ///
    /// # Errors
    /// As for [`Setup::carry_out`].
    fn complete(&self, client: &mut Client, found: &Description) -> Result<SetupResult, Failure> {
        let existing = found.verify(&self.table)?;
        let mut statements = self.statements(existing.map(|layout| (layout, found)));
        statements.push(description::query(&self.table));
        statements.extend(self.roles.iter().map(|role| self.unprivileged(role)));
        let results = simple_query(client, &statements.join("; ")).map_err(|error| self.explain(error))?;
        let made = Description::read(&results);
        let layout = made.verify(&self.table)?;
        let layout = layout.ok_or_else(|| failure::no_table(&self.table))?;
        if let Some(index) = INDEXES.iter().find(|index| !made.has_index(index, &self.table)) {
            let name = index.name(&self.table);
            return Err(failure::not_as_made(
                &self.table,
                format!("{name} is not its index but another relation, which must be renamed"),
            ));
        }
        match first_cell(&results, "unprivileged") {
            Some(role) => Err(self.cannot_grant(role)),
            None => Ok(SetupResult {
                is_new: existing.is_none(),
                keep: layout.keep,
            }),
        }
    }

    /// Returns the statements that complete what exists, if anything does.
    fn statements(&self, existing: Option<(Layout, &Description)>) -> Vec<String> {
        let table = self.table.sql();
        let mut statements = Vec::new();
        let is_missing = |index: &&Index| existing.is_none_or(|(_, found)| !found.has_index(index, &self.table));
        if existing.is_none() {
            statements.push(format!("CREATE TABLE IF NOT EXISTS {table} (\n{}\n)", columns()));
        }
        statements.extend(INDEXES.iter().filter(is_missing).map(|index| {
            let name = quoted_identifier(&index.name(&self.table));
            format!("CREATE INDEX IF NOT EXISTS {name} ON {table} {}", index.definition)
        }));
        let layout = match existing {
            None => Some(Layout {
                version: VERSION,
                keep: self.keep.unwrap_or(DEFAULT_KEEP),
            }),
            Some((layout, _)) => self.keep.map(|keep| Layout { keep, ..layout }),
        };
        statements
            .extend(layout.map(|layout| format!("COMMENT ON TABLE {table} IS {}", sql_literal(&layout.comment()))));
        for role in &self.roles {
            let role = quoted_identifier(role);
            let schema = quoted_identifier(&self.table.schema);
            statements.push(format!("GRANT USAGE ON SCHEMA {schema} TO {role}"));
            statements.push(format!("GRANT {} ON TABLE {table} TO {role}", PRIVILEGES.join(", ")));
        }
        statements
    }

    /// Returns the query for the role, in the column `unprivileged`, if it lacks a privilege: a GRANT by a role that
    /// has a privilege, but may not grant it, only warns.
    fn unprivileged(&self, role: &str) -> String {
        let (role, schema) = (sql_literal(role), sql_literal(&self.table.schema));
        let table = sql_literal(&self.table.sql());
        let on_table = PRIVILEGES.map(|privilege| format!("has_table_privilege({role}, {table}, '{privilege}')"));
        format!(
            "SELECT {role} AS unprivileged WHERE NOT (has_schema_privilege({role}, {schema}, 'USAGE') AND {})",
            on_table.join(" AND ")
        )
    }

    /// Returns the failure of a statement.
    fn explain(&self, error: Error) -> Failure {
        let table = &self.table;
        match error.as_db_error().map(|error| (error.code().code(), error)) {
            Some(("42501", error)) => self.not_permitted(error.message()),
            Some(("3F000", _)) => Failure::msg(
                ExitCode::Config,
                format!(
                    "cannot create table {table}: schema {schema} does not exist; create it with: CREATE SCHEMA \
                     {schema}",
                    schema = quoted_identifier(&table.schema)
                ),
            ),
            Some((_, error)) if is_wrong_request(error) => Failure::msg(
                ExitCode::Config,
                format!("cannot set up table {table}: {}", error.message()),
            ),
            _ => Failure::from(error).context(format!("cannot set up table {table}")),
        }
    }

    fn cannot_grant(&self, role: &str) -> Failure {
        self.not_permitted(&format!("the privileges could not be granted to {role}"))
    }

    fn not_permitted(&self, message: &str) -> Failure {
        Failure::msg(
            ExitCode::Permission,
            format!(
                "cannot set up table {}: {message}; run this as the owner of the schema and the table, or have the \
                 owner run the SQL that --print prints",
                self.table
            ),
        )
    }
}

/// Returns whether the request itself is wrong, or the server is one where nothing can be created. By SQLSTATE: 0A
/// (`feature_not_supported`, as on a standby) and 42 (as an unknown or reserved role).
fn is_wrong_request(error: &DbError) -> bool {
    ["0A", "42"].iter().any(|class| error.code().code().starts_with(class))
}

/// Returns the definitions of the columns.
fn columns() -> String {
    let columns = COLUMNS.iter().map(|column| {
        let definition = format!("    {} {} {}", column.name, column.type_name, column.constraints);
        definition.trim_end().to_owned()
    });
    columns.collect::<Vec<_>>().join(",\n")
}

/// Returns the first text in this column of any result.
fn first_cell<'a>(results: &'a [SimpleQueryMessage], column: &str) -> Option<&'a str> {
    results.iter().find_map(|result| match result {
        SimpleQueryMessage::Row(row) => cell(row, column),
        _ => None,
    })
}
