//! pglock is killed with SIGKILL: the lock lives exactly as long as the job.
//!
//! The job has inherited the session's socket, as a job under flock(1) inherits the locked file.

use crate::support::case::Case;
use crate::support::journal::Journal;
use crate::support::pglock::Pglock;
use crate::support::wait::{SOON, eventually, until};
use nix::sys::signal::{Signal, kill};
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// P14
#[test]
fn the_job_keeps_the_lock_of_a_killed_pglock() {
    let case = Case::new();
    assert_job_keeps_lock(&case, case.run());
}

/// P14: the peer of a connection to the unspecified address is the loopback.
#[test]
fn and_with_the_unspecified_address_of_the_server() {
    for host in ["0.0.0.0", "0"] {
        let case = Case::new();
        assert_job_keeps_lock(&case, case.run().env("PGHOST", host));
    }
}

/// Kills this pglock, and asserts that the key is held until its job is dead.
#[track_caller]
fn assert_job_keeps_lock(case: &Case, run: Pglock) {
    let journal = Journal::new();
    let job = format!("{}; note \"pid $$\"; read -r _; exit", journal.note());
    let mut running = run.sh(&job).spawn();
    eventually(SOON, "the job", || journal.pids().len() == 1);
    running.signal(Signal::SIGKILL);
    eventually(SOON, "the end of pglock", || !running.lives());
    case.assert_held();
    // The waiter waits only for the job.
    let waiter = case.run().args(["echo", "mine"]).spawn();
    case.await_locks(1, 1);
    kill(journal.pids()[0], Signal::SIGKILL).unwrap();
    assert_eq!(waiter.finish().stdout(), "mine\n");
}

/// P14: `--close` turns that off.
#[test]
fn with_close_the_lock_ends_with_pglock() {
    for option in ["-o", "--close"] {
        let (case, journal) = (Case::new(), Journal::new());
        let job = format!("{}; note \"pid $$\"; sleep 60", journal.note());
        let running = case.run().arg(option).sh(&job).spawn();
        eventually(SOON, "the job", || journal.pids().len() == 1);
        running.signal(Signal::SIGKILL);
        case.await_locks(0, 0);
        let job = journal.pids()[0];
        nix::sys::signal::killpg(job, Signal::SIGKILL).unwrap();
    }
}

/// P13: neither the lock nor the session.
#[test]
fn what_the_job_leaves_behind_keeps_nothing() {
    let case = Case::new();
    let key = &case.key;
    let job = "sleep 60 >/dev/null 2>&1 & echo $!";
    let output = case.run().sh(job).output();
    let left_behind = output.stdout().trim().parse().unwrap();
    case.run().args(["--no-wait", "true"]).output().code(0);
    let session = format!("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pglock:{key} %'");
    eventually(SOON, "the end of the session", || case.value(&session) == "0");
    kill(nix::unistd::Pid::from_raw(left_behind), Signal::SIGKILL).unwrap();
}

/// P10, P14: pglock is killed at random times of its life, 200 times or more, with contenders waiting: no two jobs
/// overlap, and no lock is left once the job is gone.
#[test]
fn two_hundred_kills_at_random_times() {
    let (case, journal) = (Case::new(), Journal::new());
    let job = format!("{}; note in; sleep 0.02; note out", journal.note());
    let lanes = 5;
    std::thread::scope(|scope| {
        for _ in 0..lanes {
            scope.spawn(|| {
                for run in 0..2000 / lanes {
                    // A slow machine reaches fewer jobs in as many runs.
                    if run >= 200 / lanes && journal.entries().len() >= 20 {
                        break;
                    }
                    let mut running = case.run().sh(&job).spawn();
                    // Within 120 ms: before, during and after it waits, holds and releases, while the lock circulates
                    // among the five. Or later: a killed holder leaves no receipt, so the next one waits for half a
                    // second before it starts its job.
                    let longest = if run % 4 == 0 { 800_000 } else { 120_000 };
                    let limit = Duration::from_micros(RandomState::new().hash_one(()) % longest);
                    let has_ended = until(limit, || !running.lives());
                    if !has_ended {
                        running.signal(Signal::SIGKILL);
                    }
                    eventually(SOON, "the end of pglock", || !running.lives());
                }
            });
        }
    });
    case.await_locks(0, 0);
    let events: Vec<String> = journal.entries().into_iter().map(|entry| entry.event).collect();
    let expected: Vec<&str> = ["in", "out"].into_iter().cycle().take(events.len()).collect();
    println!("jobs that ran: {}", events.len() / 2);
    assert_eq!(events, expected);
    assert!(events.len() >= 20, "hardly a job was reached: {events:?}");
}
