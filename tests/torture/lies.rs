//! Whether the checker notices a pglock that lies: the real one behind a script that does, in some runs, what pglock
//! must never do. No faults are injected, so nothing is excused.

use super::plan::Plan;
use super::world::World;
use super::{ALONE, run};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// How a pglock can lie, and the violation that this causes.
const LIES: [(&str, &str); 10] = [
    ("no-lock", " overlap for "),
    ("early", " overlap for "),
    ("stale-token", " has token 0000"),
    ("no-token", " has no token"),
    ("status", "unexpected exit"),
    ("orphan", "the job lived on"),
    ("chatter", "it does not say \"\""),
    ("false-conflict", "reported a holder that was none"),
    ("again", " began within the interval of run "),
    ("unrecorded", " is not recorded"),
];

#[test]
fn a_pglock_that_lies_is_caught() {
    let _alone = ALONE.lock();
    let (world, directory) = (World::new(true), tempfile::tempdir().unwrap());
    let plan = |seed, seconds| Plan::new(seed, seconds).with("WORKERS=10 FAULTS=none").unwrap();
    let (_, verdict) = run(&plan(1, 1), &world, Path::new(env!("CARGO_BIN_EXE_pglock")));
    assert_eq!(verdict.violations, Vec::<String>::new(), "the real one");
    for (lie, expected) in LIES {
        let liar = liar(directory.path(), lie);
        // A lie that does no harm in one plan may do some in the next.
        let is_caught = (1..=20).any(|seed| {
            let (_, verdict) = run(&plan(seed, seed.min(4)), &world, &liar);
            verdict.violations.iter().any(|violation| violation.contains(expected))
        });
        assert!(is_caught, "{lie}");
    }
    assert_eq!(world.end(), Vec::<String>::new());
}

/// Returns a program that tells this lie.
fn liar(directory: &Path, lie: &str) -> PathBuf {
    let file = directory.join(lie);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/torture/liar");
    let real = env!("CARGO_BIN_EXE_pglock");
    let text = format!(
        "#!/bin/sh\nLIE={lie} PGLOCK_TORTURE_REAL='{real}' exec '{}' \"$@\"\n",
        script.display()
    );
    std::fs::write(&file, text).unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
    file
}
