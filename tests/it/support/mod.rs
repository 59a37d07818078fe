//! The test harness: throwaway servers, poolers, networks and terminals, and pglocks to run against them.
//!
//! Everything that a test starts ends with the test: by `Drop`, or, if the test process is killed, because the process
//! reads from a pipe whose other end closes.
//!
//! `tests/torture` and `benches` include this directory by `#[path]`. A crate of its own would need its own workspace
//! member, lints and packaging rules, and could not use `CARGO_BIN_EXE_pglock`, which cargo defines only for the
//! targets of pglock's own package.

pub mod case;
pub mod command;
pub mod delay_line;
pub mod forwarder;
pub mod gate;
pub mod journal;
pub mod meddler;
pub mod network;
pub mod pgbouncer;
pub mod pgdog;
pub mod pglock;
pub mod pgpool;
pub mod probe;
pub mod proxy;
#[cfg(target_os = "linux")]
pub mod real_proxy;
pub mod run_table;
pub mod screen;
pub mod server;
pub mod socket_forwarder;
pub mod terminal;
pub mod tls;
pub mod wait;

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// Returns the name of this host, as pglock reports it.
pub fn hostname() -> String {
    nix::unistd::gethostname().unwrap().into_string().unwrap()
}

/// Returns the library that shows a program another time.
pub fn faketime() -> Option<PathBuf> {
    let directories = fs::read_dir("/usr/lib").ok()?;
    let directories = directories.filter_map(|entry| Some(entry.ok()?.path()));
    let mut libraries = directories.map(|directory| directory.join("faketime/libfaketimeMT.so.1"));
    libraries.find(|library| library.exists())
}

/// Returns the number in this environment variable, which repeats a test more often than usual.
pub fn repetitions(variable: &str, usual: usize) -> usize {
    std::env::var(variable).map_or(usual, |text| text.parse().unwrap())
}

/// Returns a name that no other test uses, for a key, a database or a role. Names differ between test processes too,
/// since tests look for processes by the key on their command line.
pub fn unique(what: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    format!("{what}_{process}_{count}")
}
