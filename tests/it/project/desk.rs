//! The desk at which the recipes in `examples/` are tried: a database, and the operator's own programs.

use crate::support::pglock::Pglock;
use crate::support::server::{Locks, SUPERUSER, Server, rows};
use crate::support::terminal::Terminal;
use crate::support::wait::{SOON, eventually};
use std::fs;
use std::path::{Path, PathBuf};

/// The directory of the recipes.
pub const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples");
/// A path in the recipes that is replaced here.
const BIN: &str = "/usr/local/bin";
/// A connection string in the recipes that is replaced here.
const DSN: &str = "postgresql://locks@db.internal/app";

/// An operator's database, and the programs on the PATH of the hosts.
pub struct Desk {
    pub server: &'static Server,
    database: String,
    directory: tempfile::TempDir,
}

impl Desk {
    pub fn new() -> Desk {
        let server = Server::shared();
        let desk = Desk {
            server,
            database: server.database(),
            directory: tempfile::tempdir().unwrap(),
        };
        let pglock = env!("CARGO_BIN_EXE_pglock");
        std::os::unix::fs::symlink(pglock, desk.file("pglock")).unwrap();
        desk
    }

    /// Returns the directory that stands for `/usr/local/bin`.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    /// Puts a program of the operator's on the PATH. A shell writes it: if a concurrent test forks, a file that this
    /// process has just written could still be open for writing, and could not be executed.
    pub fn program(&self, name: &str, script: &str) {
        let write = Pglock::for_program("sh").args(["-c", "cat > \"$0\"; chmod +x \"$0\""]);
        let text = format!("#!/bin/sh\n{script}\n");
        let output = write.arg(self.file(name)).output_with(text.as_bytes());
        assert_eq!(output.stdout(), "");
    }

    /// Returns a recipe that is a script, unchanged.
    pub fn script(&self, name: &str) -> Pglock {
        self.on_path(&format!("{EXAMPLES}/{name}"))
    }

    pub fn on_path(&self, program: &str) -> Pglock {
        let path = std::env::var("PATH").unwrap();
        let path = format!("{}:{path}", self.directory().display());
        let around = self.server.program(program).env("PATH", path);
        around.env("PGDATABASE", &self.database)
    }

    /// Runs a program on a terminal, with the operator's programs on the PATH.
    pub fn terminal(&self, program: &[&str]) -> Terminal {
        let path = std::env::var("PATH").unwrap();
        Terminal::with(program, |command| {
            command.env("PATH", format!("{}:{path}", self.directory().display()));
            command
                .env("PGHOST", self.server.host())
                .env("PGPORT", self.server.port().to_string());
            command.env("PGUSER", SUPERUSER).env("PGDATABASE", &self.database);
        })
    }

    /// Returns the indented line of a recipe's comment that starts so, which the operator is to copy.
    pub fn comment(&self, name: &str, start: &str) -> String {
        let text = fs::read_to_string(format!("{EXAMPLES}/{name}")).unwrap();
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("#   "));
        lines.find(|line| line.starts_with(start)).unwrap().to_owned()
    }

    /// Returns a recipe that is not a script, with the directory and the connection string replaced.
    pub fn text(&self, name: &str) -> String {
        let text = fs::read_to_string(format!("{EXAMPLES}/{name}")).unwrap();
        assert_eq!(text.contains(BIN), text.contains(DSN), "{text}");
        let dsn = self.server.dsn().replace("/postgres?", &format!("/{}?", self.database));
        let bin = self.directory().to_str().unwrap();
        text.replace(BIN, bin).replace(DSN, &dsn)
    }

    /// Returns a recipe for a CI system.
    pub fn ci(&self, name: &str) -> String {
        fs::read_to_string(format!("{EXAMPLES}/{name}")).unwrap()
    }

    /// Returns a command line of a crontab as cron runs it, with cron's bare environment.
    pub fn cron(&self, variables: &[(String, String)], command: &str) -> Pglock {
        let mut cron = Pglock::for_program("/bin/sh").args(["-c", command]);
        cron.command().env_clear().current_dir(self.directory());
        let bare = [("HOME", "/"), ("LOGNAME", SUPERUSER), ("SHELL", "/bin/sh")];
        cron.command().envs(bare).env("PATH", "/usr/bin:/bin");
        cron.command().envs(variables.iter().cloned());
        cron
    }

    /// Returns the value of a statement in this desk's database.
    pub fn sql(&self, sql: &str) -> String {
        let mut client = self.server.client_in(&self.database);
        rows(&mut client, sql).concat().concat()
    }

    /// Returns how many sessions hold and await the key in this desk's database.
    pub fn locks(&self, key: &str) -> Locks {
        self.server.locks_in(&self.database, key)
    }

    /// Waits until so many sessions hold the key and so many await it.
    #[track_caller]
    pub fn await_locks(&self, key: &str, granted: usize, waiting: usize) {
        let expected = Locks { granted, waiting };
        eventually(SOON, &format!("{expected:?} of {key}"), || self.locks(key) == expected);
    }

    /// Terminates the holder's session, as the server does with a silent one.
    pub fn terminate_the_holder(&self, key: &str) {
        assert_eq!(self.locks(key).granted, 1);
        let ended = self.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_database d ON d.oid = database \
             WHERE locktype = 'advisory' AND granted AND datname = current_database()",
        );
        assert_eq!(ended, "t");
    }
}

/// Returns a line of shell script that waits until the file exists.
pub fn await_file(file: &Path) -> String {
    format!("until [ -e '{}' ]; do sleep 0.02; done", file.display())
}
