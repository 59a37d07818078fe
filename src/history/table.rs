//! The name of the run table.

use std::fmt;

/// The schema of a table without one.
const DEFAULT_SCHEMA: &str = "public";
/// The table without `--table`.
const DEFAULT_NAME: &str = "pglock_run";
/// The longest name that PostgreSQL keeps whole, in bytes: NAMEDATALEN - 1.
pub(crate) const MAX_NAME_LEN: usize = 63;

/// Schema and table, both taken literally: nothing is folded to lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TableName {
    /// The schema.
    pub schema: String,
    /// The table in it.
    pub name: String,
}

impl TableName {
    /// Parses `SCHEMA.NAME`, split at the first dot, or `NAME`, which is in the schema `public`.
    ///
    /// # Errors
    /// Fails if a part is empty, contains a NUL byte, or is longer than PostgreSQL's names.
    pub(crate) fn parse(text: &str) -> Result<TableName, String> {
        let (schema, name) = text.split_once('.').unwrap_or((DEFAULT_SCHEMA, text));
        let is_valid = |part: &str| !part.is_empty() && part.len() <= MAX_NAME_LEN && !part.contains('\0');
        if !is_valid(schema) || !is_valid(name) {
            return Err(format!(
                "expected a table: NAME or SCHEMA.NAME, each at most {MAX_NAME_LEN} bytes"
            ));
        }
        Ok(TableName {
            schema: schema.to_owned(),
            name: name.to_owned(),
        })
    }

    /// Returns the name for use in a query.
    pub(crate) fn sql(&self) -> String {
        format!("{}.{}", quoted_identifier(&self.schema), quoted_identifier(&self.name))
    }

    /// Returns the option that names the table to another subcommand, with a space in front; nothing for the default.
    pub(crate) fn option(&self) -> String {
        if *self == TableName::default() {
            return String::new();
        }
        format!(" --table '{}'", self.to_string().replace('\'', "'\\''"))
    }
}

impl Default for TableName {
    fn default() -> TableName {
        TableName {
            schema: DEFAULT_SCHEMA.to_owned(),
            name: DEFAULT_NAME.to_owned(),
        }
    }
}

/// Prints the name as `--table` takes it.
impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

/// Quotes a name for a query, as PostgreSQL's `quote_ident` does where it must.
pub(crate) fn quoted_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_split_at_the_first_dot_and_quoted() {
        let sql = |text: &str| TableName::parse(text).map(|table| table.sql());
        assert_eq!(sql("runs"), Ok("\"public\".\"runs\"".to_owned()));
        assert_eq!(sql("Ops.Job.Runs"), Ok("\"Ops\".\"Job.Runs\"".to_owned()));
        assert_eq!(sql("a\"b.c d"), Ok("\"a\"\"b\".\"c d\"".to_owned()));
        assert_eq!(TableName::parse("public.pglock_run"), Ok(TableName::default()));
    }

    #[test]
    fn a_part_that_postgresql_would_cut_or_refuse_is_refused() {
        for text in [
            "",
            ".",
            "a.",
            ".b",
            "a\0b",
            &"x".repeat(64),
            &format!("{}.b", "ä".repeat(32)),
        ] {
            assert!(TableName::parse(text).is_err(), "{text:?}");
        }
        assert!(TableName::parse(&"x".repeat(63)).is_ok());
    }

    /// Any table that `--table` accepts reads back: from a message, from SQL, and from a shell.
    #[test]
    fn fuzz_table_name() {
        let examples = [
            "runs",
            "Ops.Job.Runs",
            "a\"b.c d",
            "it's.mine",
            "public.pglock_run",
            "\u{e4}.'\\''",
        ];
        crate::fuzz::fuzz(&examples, |input| {
            let Ok(table) = TableName::parse(&String::from_utf8_lossy(input)) else {
                return;
            };
            assert_eq!(TableName::parse(&table.to_string()), Ok(table.clone()));
            let parts = [&table.schema, &table.name].map(|part| part.replace('"', "\"\""));
            assert_eq!(table.sql(), format!("\"{}\".\"{}\"", parts[0], parts[1]));
            let option = table.option();
            let quoted = option
                .strip_prefix(" --table '")
                .and_then(|text| text.strip_suffix('\''));
            let unquoted = quoted.map(|text| text.replace("'\\''", "\0"));
            assert!(unquoted.as_ref().is_none_or(|text| !text.contains('\'')), "{option}");
            let table = unquoted.map_or_else(TableName::default, |text| {
                TableName::parse(&text.replace('\0', "'")).expect("a table")
            });
            assert_eq!(table.option(), option);
        });
    }

    #[test]
    fn only_another_table_needs_an_option() {
        assert_eq!(TableName::default().option(), "");
        let table = TableName::parse("it's.mine").expect("a table");
        assert_eq!(table.option(), " --table 'it'\\''s.mine'");
    }
}
