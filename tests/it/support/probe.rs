//! Where the probe is (`tests/probe/probe.rs`): a job that records the signals that it gets.
//!
//! `cargo test` builds it, as an example; `cargo test --test it` alone does not, so it is built here if need be.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// The probe's file.
pub fn path() -> &'static str {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    let path = PATH.get_or_init(|| {
        // This binary is in `deps`; examples are beside that folder.
        let me = std::env::current_exe().unwrap();
        let path = me
            .parent()
            .unwrap()
            .with_file_name("examples")
            .join("probe");
        if !path.exists() {
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let built = Command::new(cargo)
                .args(["build", "--quiet", "--example", "probe"])
                .status();
            assert!(built.unwrap().success(), "the probe does not build");
        }
        assert!(
            path.exists(),
            "{path:?} is missing: run the tests by 'cargo test'"
        );
        path
    });
    path.to_str().unwrap()
}
