//! Where the probe is (`tests/probe/probe.rs`): a job that records the signals that it gets.
//!
//! `cargo test` builds it, as an example; `cargo test --test it` alone does not, so it is built here if need be.

use super::command::command;
use std::path::PathBuf;
use std::sync::OnceLock;

/// The probe's file.
pub fn path() -> &'static str {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| example("probe")).to_str().unwrap()
}

/// The file of a program that is an example to cargo.
pub fn example(name: &str) -> PathBuf {
    // This binary is in `deps`; examples are beside that directory.
    let me = std::env::current_exe().unwrap();
    let path = me.parent().unwrap().with_file_name("examples").join(name);
    if !path.exists() {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = command(cargo);
        build.args(["build", "--quiet", "--example", name]);
        build.args((!cfg!(debug_assertions)).then_some("--release"));
        assert!(build.status().unwrap().success(), "{name} does not build");
    }
    assert!(path.exists(), "{path:?} is missing: run the tests by 'cargo test'");
    path
}
