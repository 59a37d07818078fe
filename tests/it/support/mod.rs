//! What the tests stand on: a throwaway server, a pglock to run against it, a connection to meddle with.
//!
//! The only sleep of the crate is in `wait`. Whatever a test starts here is gone when the test is: by `Drop`, and
//! where the test process is killed, because pipes to it end.

pub mod journal;
pub mod network;
pub mod pgbouncer;
pub mod pglock;
pub mod probe;
pub mod proxy;
pub mod screen;
pub mod server;
pub mod terminal;
pub mod tls;
pub mod wait;

use std::ffi::OsStr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// A name that no other test uses, be it for a key, a database or a role.
pub fn unique(what: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{what}_{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A command that knows nothing of the databases of whoever runs the tests.
pub fn scrubbed(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("PG") || text == "DATABASE_URL" {
            command.env_remove(&name);
        }
    }
    command
}
