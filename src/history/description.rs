//! What the server's catalogs say about a table, and whether it is a run table.
//!
//! Before pglock reads or creates a run table, it looks at this description, and refuses a table that someone has
//! altered with a clear message.

use super::failure;
use super::layout::{COLUMNS, Index, Layout};
use super::table::TableName;
use crate::connection::Client;
use crate::key::sql_literal;
use crate::lock::{cell, simple_query};
use crate::outcome::Failure;
use postgres::SimpleQueryMessage;

/// A table as the catalogs describe it.
#[derive(Debug, Default)]
pub(super) struct Description {
    /// The `relkind` of `pg_class`; `None` if there is no such table.
    kind: Option<String>,
    /// The comment on it.
    comment: Option<String>,
    /// The columns, each with its type.
    columns: Vec<(String, String)>,
    /// The names of its indexes.
    indexes: Vec<String>,
}

/// Returns what a run table keeps to.
///
/// # Errors
/// There is no such table, it is not a run table, or the connection is lost.
pub(crate) fn require(client: &mut Client, table: &TableName) -> Result<Layout, Failure> {
    let results = simple_query(client, &query(table)).map_err(|error| failure::explain_use(error, table, "read"))?;
    let layout = Description::read(&results).verify(table)?;
    layout.ok_or_else(|| failure::no_table(table))
}

/// Returns the query for the description. Every role may read the catalogs.
pub(super) fn query(table: &TableName) -> String {
    let this_table = format!(
        "pg_class AS t JOIN pg_namespace AS s ON s.oid = t.relnamespace AND s.nspname = {} AND t.relname = {}",
        sql_literal(&table.schema),
        sql_literal(&table.name)
    );
    format!(
        "SELECT t.relkind AS kind, obj_description(t.oid, 'pg_class') AS comment FROM {this_table}; \
         SELECT a.attname AS column_name, format_type(a.atttypid, a.atttypmod) AS column_type \
         FROM {this_table} JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped; \
         SELECT i.relname AS index_name \
         FROM {this_table} JOIN pg_index ON indrelid = t.oid JOIN pg_class AS i ON i.oid = indexrelid"
    )
}

impl Description {
    /// Reads the description from the results of the query.
    pub(super) fn read(results: &[SimpleQueryMessage]) -> Description {
        let mut description = Description::default();
        for result in results {
            let SimpleQueryMessage::Row(row) = result else {
                continue;
            };
            let text = |column| cell(row, column).map(str::to_owned);
            if let Some(kind) = text("kind") {
                description.kind = Some(kind);
                description.comment = text("comment");
            }
            description.columns.extend(text("column_name").zip(text("column_type")));
            description.indexes.extend(text("index_name"));
        }
        description
    }

    /// Returns whether the table has this index.
    pub(super) fn has_index(&self, index: &Index, table: &TableName) -> bool {
        self.indexes.contains(&index.name(table))
    }

    /// Returns what the table keeps to; `None` if there is none.
    ///
    /// # Errors
    /// It is not a table, or it lacks a column, or a column has another type.
    pub(super) fn verify(&self, table: &TableName) -> Result<Option<Layout>, Failure> {
        let Some(kind) = &self.kind else {
            return Ok(None);
        };
        let problem = match kind.as_str() {
            "r" | "p" => self.column_problem(),
            kind => Some(format!("it is {}", kind_name(kind))),
        };
        match problem {
            Some(problem) => Err(failure::not_as_made(table, problem)),
            None => Ok(Some(Layout::from_comment(self.comment.as_deref()))),
        }
    }

    /// Returns how the columns differ from those of a run table. Further columns do no harm.
    fn column_problem(&self) -> Option<String> {
        COLUMNS.iter().find_map(
            |column| match self.columns.iter().find(|(name, _)| name == column.name) {
                None => Some(format!("it has no column {}", column.name)),
                Some((_, type_name)) if type_name != column.type_name => Some(format!(
                    "its column {} has the type {type_name} instead of {}",
                    column.name, column.type_name
                )),
                Some(_) => None,
            },
        )
    }
}

/// Returns what a `relkind` stands for, as the documentation of `pg_class` has it.
fn kind_name(kind: &str) -> &'static str {
    match kind {
        "v" => "a view",
        "m" => "a materialized view",
        "f" => "a foreign table",
        "i" | "I" => "an index",
        "S" => "a sequence",
        "c" => "a composite type",
        _ => "no table",
    }
}
