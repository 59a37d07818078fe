//! A database with a run table.

use super::pglock::Pglock;
use super::server::{Server, number, rows};
use postgres::Client;
use std::collections::BTreeMap;

/// A run that failed.
pub const FAILED: [(&str, &str); 2] = [("outcome", "'failed'"), ("exit_status", "3")];
/// A run that has not ended.
pub const RUNNING: [(&str, &str); 3] = [("outcome", "'running'"), ("ended", "NULL"), ("exit_status", "NULL")];

/// A database of its own. A table without a schema in a test's SQL is in `public`.
pub struct RunTable<'a> {
    pub server: &'a Server,
    pub database: String,
}

impl RunTable<'_> {
    /// Makes a database on the shared server, in which `pglock init` creates the table.
    #[track_caller]
    pub fn new() -> RunTable<'static> {
        RunTable::on(Server::shared())
    }

    /// Makes a database on this server, in which `pglock init` creates the table.
    #[track_caller]
    pub fn on(server: &Server) -> RunTable<'_> {
        let table = RunTable {
            server,
            database: server.database(),
        };
        table.init(&[]).output().stdout();
        table
    }

    /// Makes a database without a table.
    pub fn without_table() -> RunTable<'static> {
        let server = Server::shared();
        RunTable {
            server,
            database: server.database(),
        }
    }

    /// Has a pglock use this database.
    pub fn within(&self, pglock: Pglock) -> Pglock {
        pglock.env("PGDATABASE", &self.database)
    }

    /// Returns a pglock that uses this database.
    pub fn pglock(&self) -> Pglock {
        self.within(self.server.pglock())
    }

    /// Returns `pglock init` with these arguments.
    pub fn init(&self, arguments: &[&str]) -> Pglock {
        self.pglock().arg("init").args(arguments)
    }

    /// Returns `pglock run --key KEY`; options and the command follow.
    pub fn run(&self, key: &str) -> Pglock {
        self.within(self.server.run(key))
    }

    /// Returns the runs of a key, oldest first, as `OUTCOME EXIT_STATUS SIGNAL` without what is unknown.
    pub fn runs(&self, key: &str) -> Vec<String> {
        let rows = self.sql(&format!(
            "SELECT outcome, exit_status, signal FROM pglock_run WHERE key = '{key}' ORDER BY id"
        ));
        let text = |row: Vec<String>| row.join(" ").split_whitespace().collect::<Vec<_>>().join(" ");
        rows.into_iter().map(text).collect()
    }

    /// Returns `pglock history` with these arguments.
    pub fn history(&self, arguments: &[&str]) -> Pglock {
        self.pglock().arg("history").args(arguments)
    }

    /// Inserts a run of a key that succeeded in a minute, an hour ago, with these columns replaced, each by an
    /// expression.
    pub fn insert(&self, key: &str, replaced: &[(&str, &str)]) {
        let key_number = format!("'{}'", number(key));
        let key = format!("'{}'", key.replace('\'', "''"));
        let usual = [
            ("key", key.as_str()),
            ("number", &key_number),
            ("mode", "'exclusive'"),
            ("host", "'web1'"),
            ("pid", "17240"),
            ("job", "'backup'"),
            ("waited", "0.25"),
            ("started", "now() - interval '1h'"),
            ("ended", "now() - interval '59min'"),
            ("exit_status", "0"),
            ("outcome", "'ok'"),
        ];
        let mut columns: BTreeMap<&str, &str> = usual.into_iter().collect();
        columns.extend(replaced.iter().copied());
        let names: Vec<&str> = columns.keys().copied().collect();
        let values: Vec<&str> = columns.values().copied().collect();
        let (names, values) = (names.join(", "), values.join(", "));
        self.sql(&format!("INSERT INTO public.pglock_run ({names}) VALUES ({values})"));
    }

    /// Opens a session in the database.
    pub fn client(&self) -> Client {
        self.server.client_in(&self.database)
    }

    /// Returns the rows of a statement in the database.
    pub fn sql(&self, sql: &str) -> Vec<Vec<String>> {
        rows(&mut self.client(), sql)
    }

    /// Returns the one value of a statement in the database.
    pub fn value(&self, sql: &str) -> String {
        self.sql(sql).concat().concat()
    }
}
