//! What the run table is like: its columns, its indexes, and what its comment says. Pure.
//!
//! The comment has the version of the columns and how long runs are kept, because only the owner of the table may
//! change it and everybody may read it.

use super::table::{MAX_NAME_LEN, TableName};
use crate::key::hash::sha256_prefix;
use std::time::Duration;

/// The version of the columns. Later versions only add columns.
pub(super) const VERSION: u32 = 1;
/// How long runs are kept unless `init --keep` says otherwise.
pub(crate) const DEFAULT_KEEP: Duration = Duration::from_secs(90 * 86_400);

/// A column of the table.
pub(super) struct Column {
    /// Its name.
    pub name: &'static str,
    /// Its type, as PostgreSQL's `format_type` prints it.
    pub type_name: &'static str,
    /// What else its definition says.
    pub constraints: &'static str,
}

/// The columns of version 1.
pub(super) const COLUMNS: &[Column] = &[
    column("id", "bigint", "GENERATED ALWAYS AS IDENTITY PRIMARY KEY"),
    column("key", "text", "NOT NULL"),
    column("number", "text", "NOT NULL"),
    column("mode", "text", "NOT NULL"),
    column("slot", "integer", ""),
    column("host", "text", "NOT NULL"),
    column("pid", "integer", "NOT NULL"),
    column("job", "text", "NOT NULL"),
    column("note", "text", ""),
    column("token", "text", ""),
    column("waited", "double precision", "NOT NULL"),
    column("started", "timestamp with time zone", "NOT NULL"),
    column("ended", "timestamp with time zone", ""),
    column("exit_status", "integer", ""),
    column("signal", "text", ""),
    column("outcome", "text", "NOT NULL"),
];

const fn column(name: &'static str, type_name: &'static str, constraints: &'static str) -> Column {
    Column {
        name,
        type_name,
        constraints,
    }
}

/// An index of the table.
pub(super) struct Index {
    /// The end of its name. None is the end of another, or the indexes of two tables could have the same name.
    pub suffix: &'static str,
    /// What it indexes.
    pub definition: &'static str,
}

/// The indexes of version 1: for the runs of a key, for its successes by their end, and for what is still running. A
/// table of pglock 0.2 may lack the second, and have one of successes by `id` that is no longer used.
pub(super) const INDEXES: &[Index] = &[
    Index {
        suffix: "_runs_idx",
        definition: "(number, id)",
    },
    Index {
        suffix: "_ends_idx",
        definition: "(number, ended) WHERE outcome = 'ok'",
    },
    Index {
        suffix: "_running_idx",
        definition: "(number) WHERE outcome = 'running'",
    },
];

impl Index {
    /// Returns its name for this table. Where that is too long, a hash replaces the end of the table's name, so that no
    /// two tables of a schema share an index.
    pub(super) fn name(&self, table: &TableName) -> String {
        let name = format!("{}{}", table.name, self.suffix);
        if name.len() <= MAX_NAME_LEN {
            return name;
        }
        let hash = format!("_{:08x}", u32::from_be_bytes(sha256_prefix(table.name.as_bytes())));
        let room = MAX_NAME_LEN - hash.len() - self.suffix.len();
        let end = (0..=room).rev().find(|end| table.name.is_char_boundary(*end));
        format!("{}{hash}{}", &table.name[..end.unwrap_or_default()], self.suffix)
    }
}

/// What the comment on the table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// The version of the columns.
    pub version: u32,
    /// How long runs are kept.
    pub keep: Duration,
}

impl Layout {
    /// Returns the comment.
    pub(crate) fn comment(self) -> String {
        format!(
            "Runs recorded by pglock: version {}, kept for {} s",
            self.version,
            self.keep.as_secs()
        )
    }

    /// Reads the comment. A table that was restored without it is taken as it is.
    pub(crate) fn from_comment(comment: Option<&str>) -> Layout {
        let number_after = |words: &str| {
            let (_, rest) = comment?.split_once(words)?;
            let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            rest[..end].parse::<u64>().ok()
        };
        Layout {
            version: number_after("version ")
                .and_then(|version| version.try_into().ok())
                .unwrap_or(VERSION),
            keep: number_after("kept for ").map_or(DEFAULT_KEEP, Duration::from_secs),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::server_time::in_full;
    use std::collections::HashSet;

    #[test]
    fn indexes_of_two_tables_never_share_a_name() {
        let tables = [
            "t",
            "t_runs_idx",
            "t_running_idx",
            &"x".repeat(63),
            &format!("{}y", "x".repeat(62)),
            &"ä".repeat(31),
        ];
        let tables = tables.map(|name| TableName::parse(name).expect("a table"));
        let names = tables
            .iter()
            .flat_map(|table| INDEXES.iter().map(|index| index.name(table)));
        let names: HashSet<String> = names.collect();
        assert_eq!(names.len(), tables.len() * INDEXES.len(), "{names:?}");
        assert!(names.iter().all(|name| name.len() <= MAX_NAME_LEN), "{names:?}");
        assert!(names.contains("t_ends_idx"));
        let suffixes = || INDEXES.iter().map(|index| index.suffix);
        for (one, other) in suffixes().flat_map(|one| suffixes().map(move |other| (one, other))) {
            assert!(one == other || !one.ends_with(other), "{one} {other}");
        }
    }

    #[test]
    fn the_comment_reads_back() {
        let layout = Layout {
            version: 3,
            keep: Duration::from_secs(3600),
        };
        assert_eq!(layout.comment(), "Runs recorded by pglock: version 3, kept for 3600 s");
        assert_eq!(Layout::from_comment(Some(&layout.comment())), layout);
    }

    /// The owner of the table can write any comment.
    #[test]
    fn fuzz_table_comment() {
        let examples = [
            "Runs recorded by pglock: version 3, kept for 3600 s",
            "kept for 18446744073709551615 s, version 4294967296",
        ];
        crate::fuzz::fuzz(&examples, |input| {
            let layout = Layout::from_comment(Some(&String::from_utf8_lossy(input)));
            assert_eq!(Layout::from_comment(Some(&layout.comment())), layout);
            assert!(!in_full(layout.keep).is_empty());
        });
    }

    #[test]
    fn without_a_comment_of_ours_the_defaults_hold() {
        let defaults = Layout {
            version: VERSION,
            keep: DEFAULT_KEEP,
        };
        for comment in [
            None,
            Some(""),
            Some("version x, kept for"),
            Some("kept for 99999999999999999999 s"),
        ] {
            assert_eq!(Layout::from_comment(comment), defaults, "{comment:?}");
        }
    }
}
