//! A waiter in the server's queue leaves a key alone that its holder has lost, and takes one that was released at once.

use crate::support::case::Case;
use crate::support::journal::Journal;
use crate::support::pglock::{Output, Running};
use crate::support::server::{receipt, rows};
use crate::support::wait::{SOON, eventually};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

/// What a waiter says with `-v` that leaves the key alone.
const UNRELEASED: &str = "the last holder has not released the lock; leaving it alone for half a second, for its job\n";

/// Returns whether the waiter has left the key alone.
fn has_left_alone(output: &Output) -> bool {
    String::from_utf8_lossy(&output.stderr).contains(UNRELEASED)
}

const KILLED: &str = "; terminated the job with SIGTERM, then SIGKILL";

/// Starts a pglock whose job only KILL ends, 1.2 s after its lock is lost.
#[track_caller]
fn stubborn(case: &Case, options: &[&str], journal: &Journal) -> Running {
    let run = case.run().args(["--kill-after", "1.2"]).args(options);
    let holder = run.sh(&journal.stubborn_alone()).spawn();
    journal.await_count("ready", 1);
    holder
}

/// Kills a pglock and its job, which has the session's socket as well.
fn kill(holder: Running) {
    holder.signal(Signal::SIGKILL);
    drop(holder);
}

/// P25: nobody who waits in the queue starts before the job is dead whose session an administrator has ended.
#[test]
fn a_key_that_was_lost_is_left_to_the_loser_by_all_who_wait_in_the_queue() {
    for (holder_options, waiter_options) in [
        ([].as_slice(), [].as_slice()),
        (&["--shared"], &[]),
        (&[], &["--shared"]),
        (&["--fair"], &["--fair"]),
    ] {
        let (case, journal) = (Case::new(), Journal::new());
        let holder = stubborn(&case, holder_options, &journal);
        let backend = case.backend();
        let count = if waiter_options == ["--shared"] { 1 } else { 3 };
        let start_waiter = |_| {
            let waiter = case.run().arg("-v").args(waiter_options).sh(&journal.alone()).spawn();
            waiter.await_stderr("; waiting\n");
            waiter
        };
        let waiters: Vec<Running> = (0..count).map(start_waiter).collect();
        let in_queue = if waiter_options == ["--fair"] { 1 } else { count };
        case.await_locks(1, in_queue);
        case.sql(&format!("SELECT pg_terminate_backend({backend})"));
        let line = holder.finish().code(74).stderr_line();
        // Nobody else had the key.
        assert!(line.ends_with(KILLED), "{line}");
        let mut left_alone = 0;
        for waiter in waiters {
            left_alone += usize::from(has_left_alone(waiter.finish().code(0)));
        }
        assert!(left_alone >= in_queue, "{left_alone} of {in_queue}");
        journal.assert_alone(count + 1..=count + 1);
    }
}

/// P25: the server that is stopped ends its sessions one after another.
#[test]
fn a_waiter_whose_session_is_ended_right_after_the_holders_starts_no_job() {
    let (case, journal) = (Case::new(), Journal::new());
    let holder = stubborn(&case, &[], &journal);
    let old = case.backend();
    let waiter = case.run().sh(&journal.alone()).spawn();
    case.await_locks(1, 1);
    let [new] = case
        .backends()
        .into_iter()
        .filter(|pid| *pid != old)
        .collect::<Vec<_>>()[..]
    else {
        panic!("{:?}", case.backends());
    };
    case.sql(&format!(
        "SELECT pg_terminate_backend({old}), pg_sleep(0.1), pg_terminate_backend({new})"
    ));
    let line = holder.finish().code(74).stderr_line();
    assert!(line.ends_with(KILLED), "{line}");
    waiter.finish().code(0);
    journal.assert_alone(2..=2);
}

/// Nobody guards the key of a pglock that was killed, so it is free half a second later, but not for a wait that
/// ends before.
#[test]
fn the_key_of_a_killed_pglock_is_left_alone_for_half_a_second() {
    let case = Case::new();
    let holder = case.holder();
    let waiter = case.run().args(["-v", "echo", "mine"]).spawn();
    case.await_locks(1, 1);
    let killed = Instant::now();
    kill(holder);
    waiter.await_stdout("mine\n");
    assert!(killed.elapsed() >= Duration::from_millis(500), "{:?}", killed.elapsed());
    assert!(has_left_alone(waiter.finish().code(0)));

    let holder = case.holder();
    let mut waiter = case.run().args(["--wait", "0.5", "-v", "echo", "mine"]).spawn();
    eventually(SOON, "a waiter in the queue", || {
        case.locks().waiting == 1 || !waiter.lives()
    });
    kill(holder);
    let output = waiter.finish();
    assert!(output.code(75).stdout.is_empty(), "{output}");
    assert!(output.took >= Duration::from_millis(500), "{output}");
}

/// A release is recognized, so turns follow each other at once. On a busy machine a receipt may be gone before it
/// is seen.
#[test]
fn those_who_wait_in_the_queue_see_that_a_key_was_released() {
    let case = Case::new();
    let first = case.holder();
    let waiters: Vec<Running> = (0..20).map(|_| case.run().args(["-v", "true"]).spawn()).collect();
    case.await_locks(1, waiters.len());
    first.finish().code(0).silent();
    let count = waiters.len();
    let unseen = |waiter: Running| has_left_alone(waiter.finish().code(0));
    let unseen = waiters.into_iter().map(unseen).filter(|unseen| *unseen).count();
    assert!(unseen <= count / 2, "{unseen} of {count} releases were not seen");
}

/// The receipt is the lock that the protocol says, and `list` does not show it.
#[test]
fn a_receipt_is_the_documented_lock() {
    let case = Case::new();
    let holder = case.holder();
    let waiter = case.run().args(["-v", "echo", "mine"]).spawn();
    case.await_locks(1, 1);
    let mut other = case.client();
    let receipt = receipt(&case.key);
    rows(&mut other, &format!("SELECT pg_advisory_lock_shared({receipt})"));
    let list = case.server.pglock().arg("list").output();
    let class = receipt.split(',').next().unwrap();
    assert!(
        list.stdout().contains(&case.key) && !list.stdout().contains(class),
        "{list}"
    );
    kill(holder);
    assert!(!has_left_alone(waiter.finish().code(0)));
}
