//! The programs that cargo builds as examples, such as the probe (`tests/probe/probe.rs`), a job that records its
//! signals.
//!
//! `cargo test` builds them; `cargo test --test it` alone does not, so they are built here if necessary.

use super::command::command;
use std::path::PathBuf;
use std::sync::OnceLock;

/// Returns the path of the probe.
pub fn path() -> &'static str {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| example("probe")).to_str().unwrap()
}

/// Returns the path of an example.
pub fn example(name: &str) -> PathBuf {
    // This binary is in `deps`; examples are next to that directory.
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
