//! More keys than fit: into the environment of the job, or into the server's table of locks.

use crate::support::case::Case;
use crate::support::journal::Journal;
use crate::support::pgbouncer::PgBouncer;
use crate::support::pglock::Pglock;
use crate::support::server::{Server, rows};
use crate::support::unique;
use crate::support::wait::{SOON, eventually};
use nix::sys::signal::Signal;
use std::thread;
use std::time::Duration;

/// A server whose table of locks has room for some hundred.
fn server_with_few_locks() -> Server {
    Server::with(&["max_connections=20", "max_locks_per_transaction=10"])
}

/// P97: without a server that could be asked.
#[test]
fn keys_that_do_not_fit_into_the_environment_are_a_usage_error() {
    let keys = (0..8000).map(|n| format!("--key=name{n}"));
    let output = Pglock::alone().arg("run").args(keys).arg("true").output();
    let line = output.code(64).stderr_line();
    assert!(line.contains("PGLOCK_KEY_ID needs "), "{line}");
}

/// P97: the limit is the system's own, to the byte.
#[test]
fn the_longest_key_that_fits_runs_and_the_next_one_is_refused() {
    let case = Case::new();
    let fitting = (128 << 10) - "PGLOCK_KEY=\0".len();
    let long_key = |length: usize| {
        let key = unique("long");
        let missing = length - key.len();
        key + &"k".repeat(missing)
    };
    let run = |length| {
        case.server
            .run(&long_key(length))
            .sh("printf %s \"$PGLOCK_KEY\" | wc -c")
    };
    assert_eq!(run(fitting).output().stdout().trim(), fitting.to_string());
    let line = run(fitting + 1).output().code(64).stderr_line();
    assert!(line.contains("PGLOCK_KEY needs 131073 bytes"), "{line}");
}

/// P97: 20,000 keys, direct and pooled, once and although a wait survives other shortages.
#[test]
fn keys_that_do_not_fit_into_the_lock_table_are_one_error_and_leave_nothing_locked() {
    let server = server_with_few_locks();
    let bouncer = PgBouncer::with(&server, &["pool_mode=transaction"]);
    // While the table is full, nobody can connect.
    let mut observer = server.client();
    let mut is_any_locked = || !rows(&mut observer, "SELECT 1 FROM pg_locks WHERE locktype = 'advisory'").is_empty();
    let keys: Vec<String> = (10_000..30_000).map(|key| format!("--key={key}")).collect();
    for wait in ["--no-wait", "--wait=1m"] {
        for (place, run) in [("direct", server.pglock()), ("pooled", bouncer.pglock())] {
            let output = run.arg("run").args(&keys).args([wait, "true"]).output();
            let line = output.code(69).stderr_line();
            assert!(line.contains("increase max_locks_per_transaction"), "{place}: {line}");
            assert!(
                line.len() < 300 && output.took < Duration::from_secs(30),
                "{place}: {output}"
            );
            eventually(SOON, "the release of all locks", || !is_any_locked());
        }
    }
    for run in [server.pglock(), bouncer.pglock()] {
        run.args(["run", "-n", "-k", "1", "true"]).output().code(0).silent();
    }
}

/// P97: the same if the first key is held at first, and the table is filled only after a wait for it.
#[test]
fn keys_that_do_not_fit_after_a_wait_are_one_error() {
    let server = server_with_few_locks();
    let keys: Vec<String> = (1..=2000).map(|key| format!("--key={key}")).collect();
    for scope in ["session", "transaction"] {
        let holder = server.run("1").holding();
        let waiter = server.pglock().arg("run").args(&keys);
        let waiter = waiter.args(["--scope", scope, "-v", "--", "true"]).spawn();
        waiter.await_stderr("; waiting\n");
        holder.finish().code(0);
        let output = waiter.finish();
        let text = String::from_utf8_lossy(&output.code(69).stderr).into_owned();
        assert!(text.contains("increase max_locks_per_transaction"), "{text}");
        assert!(!text.contains("lost the connection"), "{text}");
    }
}

/// P15: 2000 keys, more than a row of PostgreSQL can have columns, for each kind of lock and for keys that the server
/// computes.
#[test]
fn more_keys_than_a_row_has_columns_are_acquired_together() {
    let server = Server::with(&["max_locks_per_transaction=200"]);
    let bouncer = PgBouncer::with(&server, &["pool_mode=transaction"]);
    let keys: Vec<String> = (0..2000).map(|n| format!("--key=k{n}")).collect();
    for (pglock, options) in [
        (server.pglock(), ["--scope", "session"]),
        (server.pglock(), ["--scope", "session-pooled"]),
        (server.pglock(), ["--hash", "hashtext"]),
        (bouncer.pglock(), ["--scope", "auto"]),
    ] {
        let holder = pglock.arg("run").args(&keys).args(options).holding();
        let locks = server.sql("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted");
        assert_eq!(locks.len(), keys.len(), "{options:?}");
        holder.finish().code(0).silent();
    }
}

/// P39: a table that other clients have filled is a temporary shortage for a few keys.
#[test]
fn a_wait_survives_a_lock_table_that_others_have_filled() {
    let server = server_with_few_locks();
    let mut client = server.client();
    let fill = client.batch_execute("SELECT pg_advisory_lock(n) FROM generate_series(1, 20000) n");
    assert!(fill.is_err());
    let waiter = server.pglock().args([
        "run", "--wait", "1m", "--key", "one", "--key", "two", "--", "echo", "mine",
    ]);
    let waiter = waiter.spawn();
    waiter.await_stderr("retrying until the wait for keys \"one\", \"two\" is over");
    rows(&mut client, "SELECT pg_advisory_unlock_all()");
    let output = waiter.finish();
    assert_eq!(String::from_utf8_lossy(&output.code(0).stdout), "mine\n");
}

/// P25: a client that waits for one of 400 keys gets it when the holder's session is terminated. The guard holds the
/// others, and waits for that one; the table has no room for a claim of each.
#[test]
fn a_guard_takes_its_keys_though_the_table_has_no_room_for_as_many_claims() {
    let (server, journal) = (server_with_few_locks(), Journal::new());
    let keys = (1..=400).map(|key| format!("--key={key}"));
    let holder = server.pglock().arg("run").args(keys).args(["--kill-after", "60"]);
    let holder = holder.sh(&journal.recording("TERM")).spawn();
    journal.await_count("ready", 1);
    let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND objid = 50";
    let mut other = server.client();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| rows(&mut other, "SELECT pg_advisory_lock(50)"));
        eventually(SOON, "a waiter", || server.value(waiting) == "1");
        server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'pglock:%'");
        waiter.join().unwrap();
    });
    eventually(SOON, "a guard in the queue", || server.value(waiting) == "1");
    for key in [1, 100, 400] {
        let is_free = format!("SELECT pg_try_advisory_xact_lock({key})");
        assert_eq!(server.value(&is_free), "f", "{key}");
    }
    drop(other);
    holder.signal(Signal::SIGUSR2);
    holder.finish().code(74);
    assert!(!server.log().contains("out of shared memory"), "{}", server.log());
}

/// P15: neither acquiring nor releasing them needs room for more than the keys.
#[test]
fn a_release_of_many_keys_does_not_fill_the_table() {
    let server = server_with_few_locks();
    let keys = (1..=400).map(|key| format!("--key={key}"));
    server
        .pglock()
        .arg("run")
        .args(keys)
        .arg("true")
        .output()
        .code(0)
        .silent();
    assert!(!server.log().contains("out of shared memory"), "{}", server.log());
}
