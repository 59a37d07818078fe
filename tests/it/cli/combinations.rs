//! Every option combined with every other: a sensible combination runs the job, any other is refused before pglock
//! connects.

use crate::support::server::Server;
use crate::support::unique;

/// Options of `run`, each with a letter for [`REFUSED`].
const OPTIONS: [(char, &[&str]); 12] = [
    ('k', &["--key", "other"]),
    ('h', &["--hash", "hashtext"]),
    ('s', &["--shared"]),
    ('n', &["--no-wait"]),
    ('w', &["--wait", "20"]),
    ('S', &["--slots", "2"]),
    ('f', &["--fair"]),
    ('t', &["--token"]),
    ('m', &["--min-hold", "0.01"]),
    ('x', &["--scope", "transaction"]),
    ('o', &["--close"]),
    ('i', &["--on-lost", "ignore"]),
];

/// Combinations that are a usage error.
const REFUSED: [&str; 6] = ["nw", "nf", "Ss", "Sk", "fk", "fx"];

/// P92, for all sets of up to three options.
#[test]
fn every_combination_runs_or_is_refused() {
    let server = Server::start();
    let sets = (0u32..1 << OPTIONS.len()).filter(|set| set.count_ones() <= 3);
    let sets: Vec<u32> = sets.collect();
    std::thread::scope(|scope| {
        for half in sets.chunks(sets.len().div_ceil(4)) {
            scope.spawn(|| half.iter().for_each(|set| check(&server, *set)));
        }
    });
    let left = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
    assert_eq!(server.value(left), "0");
}

fn check(server: &Server, set: u32) {
    let chosen = OPTIONS.iter().enumerate().filter(|(n, _)| set & 1 << n != 0);
    let chosen: Vec<_> = chosen.map(|(_, option)| option).collect();
    let letters: String = chosen.iter().map(|(letter, _)| *letter).collect();
    // Every set has keys of its own.
    let mut run = server.run(&unique("key"));
    for (letter, options) in &chosen {
        run = match letter {
            'k' => run.args(["--key", &unique("other")]),
            _ => run.args(*options),
        };
    }
    let output = run
        .sh("echo \"$PGLOCK_MODE,${PGLOCK_SLOT+slot},${PGLOCK_TOKEN+token}\"")
        .output();
    let has = |pair: &&&str| pair.chars().all(|letter| letters.contains(letter));
    if let Some(refused) = REFUSED.iter().find(has) {
        let line = output.code(64).stderr_line();
        assert!(!line.is_empty(), "{refused}");
        return;
    }
    let expected = format!(
        "{},{},{}\n",
        if letters.contains('s') { "shared" } else { "exclusive" },
        if letters.contains('S') { "slot" } else { "" },
        if letters.contains('t') { "token" } else { "" },
    );
    assert_eq!(output.stdout(), expected, "{letters}");
}

/// P92, for the values of options.
#[test]
fn values_out_of_range_are_refused() {
    let server = Server::shared();
    for options in [
        ["--slots", "0"],
        ["--slots", "1001"],
        ["--slots", "-1"],
        ["--slots", "two"],
        ["--min-hold", "-1"],
    ] {
        server
            .run("x")
            .args(options)
            .arg("true")
            .output()
            .code(64)
            .stderr_line();
    }
    server
        .run("x")
        .args(["--fair", "--wait", "0", "true"])
        .output()
        .code(64)
        .stderr_line();
}
