//! Whether the whole of it notices a pglock that lies: the real one behind a script that, in some runs, does what pglock
//! must never do. No faults are injected, so nothing is excused.

use super::plan::Plan;
use super::world::World;
use super::{ALONE, run};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// How a pglock can lie, and what is said of that.
const LIES: [(&str, &str); 8] = [
    ("no-lock", " at once for "),
    ("early", " at once for "),
    ("stale-token", " has token 0000"),
    ("no-token", " has no token"),
    ("status", "it must not end so"),
    ("orphan", "the job lived on"),
    ("chatter", "it does not say \"\""),
    ("false-conflict", "was told of a holder who was none"),
];

#[test]
fn a_pglock_that_lies_is_caught() {
    let _alone = ALONE.lock();
    let (world, directory) = (World::new(), tempfile::tempdir().unwrap());
    let plan = Plan::new(1, 1).with("WORKERS=10 FAULTS=none").unwrap();
    let (_, verdict) = run(&plan, &world, Path::new(env!("CARGO_BIN_EXE_pglock")));
    assert_eq!(verdict.violations, Vec::<String>::new(), "the real one");
    for (lie, words) in LIES {
        let liar = liar(directory.path(), lie);
        // A lie that does no harm in one second may do some in another.
        let is_caught = (0..20).any(|_| {
            let (_, verdict) = run(&plan, &world, &liar);
            verdict.violations.iter().any(|said| said.contains(words))
        });
        assert!(is_caught, "{lie}");
    }
    assert_eq!(world.end(), Vec::<String>::new());
}

/// A program that lies so.
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
