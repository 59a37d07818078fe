//! Exclusion, sharing, and that the lock is released when pglock exits.

use crate::support::case::Case;
use crate::support::server::{Locks, Server, number, rows};
use crate::support::unique;
use crate::support::wait::{SOON, eventually};
use std::fs;

/// P10
#[test]
fn sixteen_jobs_never_overlap() {
    let (case, directory) = (Case::new(), tempfile::tempdir().unwrap());
    let file = directory.path().join("events");
    let script = format!("exec >>'{}'; echo in $$; env true; echo out $$", file.display());
    let holder = case.holder();
    let runs: Vec<_> = (0..16).map(|_| case.run().sh(&script).spawn()).collect();
    case.await_locks(1, 16);
    holder.finish().code(0);
    for run in runs {
        run.finish().code(0).silent();
    }
    let events = fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = events.lines().collect();
    assert_eq!(lines.len(), 32, "{events}");
    for pair in lines.chunks(2) {
        let inside = pair[0].strip_prefix("in ");
        assert!(inside.is_some() && inside == pair[1].strip_prefix("out "), "{events}");
    }
    assert_eq!(case.locks(), Locks::default());
}

/// P11
#[test]
fn shared_holders_overlap_and_an_exclusive_one_excludes_them_all() {
    let case = Case::new();
    let shared: Vec<_> = (0..3).map(|_| case.run().arg("--shared").holding()).collect();
    assert_eq!(case.locks(), Locks { granted: 3, waiting: 0 });
    case.assert_held();

    // The exclusive one waits until the last of them has exited.
    let exclusive = case.run().sh("echo mine; read -r _; exit 0").spawn();
    case.await_locks(3, 1);
    for (n, run) in shared.into_iter().enumerate() {
        assert_eq!(exclusive.stdout(), "", "{n} of 3 have ended");
        run.finish().code(0);
    }
    exclusive.await_stdout("mine\n");

    // While it holds the lock, no shared one acquires it.
    case.run().args(["-s", "-n", "true"]).output().code(75);
    let waiter = case.run().args(["-s", "echo", "mine too"]).spawn();
    case.await_locks(1, 1);
    assert_eq!(waiter.stdout(), "");
    exclusive.finish().code(0);
    assert_eq!(waiter.finish().stdout(), "mine too\n");
}

/// P12: the next `--no-wait` acquires the lock, 200 times of 200.
#[test]
fn the_lock_is_free_when_pglock_has_exited() {
    let case = Case::new();
    let mut observer = case.client();
    for n in 0..200 {
        let mut run = case.run().args(["--no-wait", "--", "true"]);
        let status = run.command().status().unwrap();
        // This query runs sooner than the next pglock could.
        let left = rows(&mut observer, "SELECT objid FROM pg_locks WHERE locktype = 'advisory'");
        let object = (number(&case.key) as u32).to_string();
        assert!(!left.concat().contains(&object), "still held after number {n}");
        assert_eq!(status.code(), Some(0), "number {n}");
    }
}

/// P12, P13: a process that the job left behind still has the session's socket.
#[test]
fn what_a_job_leaves_behind_does_not_hold_the_lock() {
    let (case, directory) = (Case::new(), tempfile::tempdir().unwrap());
    let fifo = directory.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    // It lives until the fifo is opened for writing. Its standard streams are closed, its other descriptors are not.
    let script = format!("(read -r _ <'{}') >/dev/null 2>&1 & echo $!", fifo.display());
    let left = case.run().sh(&script).output().stdout();
    assert_eq!(case.locks(), Locks::default());
    case.run().args(["-n", "true"]).output().code(0);
    let lives = |pid: &str| nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.parse().unwrap()), None).is_ok();
    assert!(lives(left.trim()), "the process has exited too early");
    fs::write(&fifo, "\n").unwrap();
    eventually(SOON, "its end", || !lives(left.trim()));
}

/// P60: a 64-bit key, a two-integer key and the locks of another database are different locks.
#[test]
fn other_keys_and_other_databases_are_other_locks() {
    let server = Server::shared();
    let name = unique("name");
    let number = number(&name).to_string();
    let holder = server.run(&name).holding();
    // A name and its number are the same lock.
    server.run(&number).args(["-n", "true"]).output().code(75);
    server.run(&format!("{name}x")).args(["-n", "true"]).output().code(0);
    let pair = server.run("70001,2").holding();
    server.run("70001,2").args(["-n", "true"]).output().code(75);
    let as_one = ((70001i64 << 32) | 2).to_string();
    for other in ["2,70001", "70001,3", &as_one] {
        server.run(other).args(["-n", "true"]).output().code(0);
    }
    let elsewhere = server.run(&name).env("PGDATABASE", server.database());
    elsewhere.args(["-n", "true"]).output().code(0);
    holder.finish().code(0);
    pair.finish().code(0);
}

/// P60: a key may start with a dash, as the key `-2147483648,1072746924` of another tool does; an option is no key.
#[test]
fn a_key_may_begin_with_a_dash_and_an_option_may_not_be_a_key() {
    let server = Server::shared();
    for key in ["-2147483648,1072746924", "-70", "-"] {
        let printed = server.run(key).sh("echo $PGLOCK_KEY").output().stdout();
        assert_eq!(printed, format!("{key}\n"));
    }
    let output = server.run("--shared").args(["--", "true"]).output();
    let line = output.code(64).stderr_line();
    assert!(line.contains("the key is missing"), "{output}");
}
