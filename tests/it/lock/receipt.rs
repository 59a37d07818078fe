//! A waiter in the server's queue leaves a key alone that its holder has lost, and takes one that was released at once.

use crate::support::case::Case;
use crate::support::journal::Journal;
use crate::support::pgbouncer::PgBouncer;
use crate::support::pglock::{Output, Running};
use crate::support::server::{claim, receipt, rows};
use crate::support::unique;
use crate::support::wait::{SOON, eventually};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::time::{Duration, Instant};

/// What a waiter says with `-v` that leaves the key alone.
const UNRELEASED: &str = "the last holder has not released the lock; giving it half a second to claim it for its job\n";

/// Returns whether the waiter has left the key alone.
fn has_left_alone(output: &Output) -> bool {
    String::from_utf8_lossy(&output.stderr).contains(UNRELEASED)
}

const KILLED: &str = "; terminated the job with SIGTERM, then SIGKILL";

/// Starts a pglock whose job only KILL ends, 2 s after its lock is lost.
#[track_caller]
fn stubborn(case: &Case, options: &[&str], journal: &Journal) -> Running {
    let run = case.run().args(["--kill-after", "2"]).args(options);
    let holder = run.sh(&journal.stubborn_alone()).spawn();
    journal.await_count("ready", 1);
    holder
}

/// Waits until so many sessions hold the key, and so many have stood in the queue for so long that they count as
/// waiting rather than as just arrived.
#[track_caller]
fn await_queue(case: &Case, granted: usize, waiting: usize) {
    case.await_locks(granted, waiting);
    eventually(SOON, "waiters who have stood in the queue", || are_all_waiting(case));
}

/// Returns whether nobody who stands in the queue counts as just arrived.
fn are_all_waiting(case: &Case) -> bool {
    let arriving = format!(
        "SELECT 1 FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE NOT granted AND locktype = 'advisory' \
         AND application_name LIKE 'pglock:{} %' AND clock_timestamp() - query_start < '20 ms'",
        case.key
    );
    case.sql(&arriving).is_empty()
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
        await_queue(&case, 1, in_queue);
        case.sql(&format!("SELECT pg_terminate_backend({backend})"));
        let line = holder.finish().code(74).stderr_line();
        // Nobody else had the key.
        assert!(line.ends_with(KILLED), "{line}");
        let outputs = waiters.into_iter().map(|waiter| waiter.finish().code(0).clone());
        let outputs: Vec<Output> = outputs.collect();
        assert!(outputs.iter().any(has_left_alone));
        journal.assert_alone(count + 1..=count + 1);
    }
}

/// Returns the one backend beside this one.
fn other_backend(case: &Case, backend: Pid) -> Pid {
    match case.backends()[..] {
        [first, second] if second == backend => first,
        [first, second] if first == backend => second,
        ref backends => panic!("{backends:?}"),
    }
}

/// P25: one that comes to the head of the queue of `--fair` in the same moment has waited as well.
#[test]
fn a_fair_waiter_whose_predecessor_is_ended_with_the_holder_starts_no_job() {
    let (case, journal) = (Case::new(), Journal::new());
    let holder = stubborn(&case, &["--fair"], &journal);
    let lost = case.backend();
    let predecessor = case.run().args(["--fair", "true"]).spawn();
    await_queue(&case, 1, 1);
    let ticket = other_backend(&case, lost);
    let waiter = case.run().args(["--fair", "-v"]).sh(&journal.alone()).spawn();
    waiter.await_stderr("; waiting\n");
    eventually(SOON, "a second ticket", || {
        let tickets = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND mode = 'ShareLock'";
        !case
            .sql(&format!("{tickets} AND {ticket} = ANY (pg_blocking_pids(pid))"))
            .is_empty()
    });
    case.sql(&format!(
        "SELECT pg_terminate_backend({lost}), pg_terminate_backend({ticket})"
    ));
    let line = holder.finish().code(74).stderr_line();
    assert!(line.ends_with(KILLED), "{line}");
    waiter.finish().code(0);
    predecessor.finish().code(0);
    journal.assert_alone(2..=2);
}

/// P25: the server that is stopped ends its sessions one after another.
#[test]
fn a_waiter_whose_session_is_ended_right_after_the_holders_starts_no_job() {
    let (case, journal) = (Case::new(), Journal::new());
    let holder = stubborn(&case, &[], &journal);
    let old = case.backend();
    let waiter = case.run().sh(&journal.alone()).spawn();
    await_queue(&case, 1, 1);
    let new = other_backend(&case, old);
    case.sql(&format!(
        "SELECT pg_terminate_backend({old}), pg_sleep(0.1), pg_terminate_backend({new})"
    ));
    let line = holder.finish().code(74).stderr_line();
    assert!(line.ends_with(KILLED), "{line}");
    waiter.finish().code(0);
    journal.assert_alone(2..=2);
}

/// Nobody guards the key of a pglock that was killed, so the next job starts half a second later, and none if the wait
/// ends before.
#[test]
fn the_key_of_a_killed_pglock_is_left_alone_for_half_a_second() {
    let case = Case::new();
    let holder = case.holder();
    let waiter = case.run().args(["-v", "echo", "mine"]).spawn();
    await_queue(&case, 1, 1);
    let killed = Instant::now();
    kill(holder);
    waiter.await_stdout("mine\n");
    assert!(killed.elapsed() >= Duration::from_millis(500), "{:?}", killed.elapsed());
    assert!(has_left_alone(waiter.finish().code(0)));

    let holder = case.holder();
    let mut waiter = case.run().args(["--wait", "0.5", "echo", "mine"]).spawn();
    eventually(SOON, "a waiter in the queue", || {
        case.locks().waiting == 1 && are_all_waiting(&case) || !waiter.lives()
    });
    kill(holder);
    let output = waiter.finish();
    assert!(output.code(75).stdout.is_empty(), "{output}");
    assert!(output.took >= Duration::from_millis(500), "{output}");
}

/// A client that is no pglock leaves no receipt. A waiter whose turn comes keeps it, rather than to queue again behind
/// others of that kind.
#[test]
fn a_waiter_is_served_among_clients_that_leave_no_receipt() {
    const MINE: &str = "mine\n";
    let case = Case::new();
    let (mut holder, _) = case.foreign_waiter();
    holder.await_stdout(MINE);
    let waiter = case.run().sh("echo mine; read -r _; exit 0").spawn();
    await_queue(&case, 1, 1);
    // Between two slices, another one can overtake it.
    for _ in 0..5 {
        let (next, _) = case.foreign_waiter();
        await_queue(&case, 1, 2);
        holder.finish();
        eventually(SOON, "the next holder", || {
            waiter.stdout() == MINE || next.stdout().ends_with(MINE)
        });
        holder = next;
        if waiter.stdout() == MINE {
            break;
        }
    }
    assert_eq!(waiter.stdout(), MINE);
    waiter.finish().code(0).silent();
    holder.await_stdout(MINE);
}

/// P25: the receipt of one who shared the key says nothing of another one.
#[test]
fn a_shared_key_that_was_lost_is_not_taken_for_one_that_another_holder_released() {
    let (case, journal) = (Case::new(), Journal::new());
    let lost = stubborn(&case, &["--shared"], &journal);
    let backend = case.backend();
    let released = case.run().arg("--shared").holding();
    let waiter = case.run().sh(&journal.alone()).spawn();
    await_queue(&case, 2, 1);
    case.sql(&format!("SELECT pg_terminate_backend({backend})"));
    eventually(SOON, "the claim", || has_claim(&case));
    released.finish().code(0).silent();
    let line = lost.finish().code(74).stderr_line();
    assert!(line.ends_with(KILLED), "{line}");
    waiter.finish().code(0).silent();
    journal.assert_alone(2..=2);
}

/// P25: a loser behind a pooler claims its key, too.
#[test]
fn a_direct_waiter_leaves_the_key_to_a_loser_behind_a_pooler() {
    let (case, journal) = (Case::new(), Journal::new());
    let bouncer = PgBouncer::with(case.server, &["pool_mode=transaction"]);
    let run = bouncer.run(&case.key).args(["--kill-after", "2"]);
    let lost = run.sh(&journal.stubborn_alone()).spawn();
    journal.await_count("ready", 1);
    let waiters = [0; 2].map(|_| case.run().sh(&journal.alone()).spawn());
    await_queue(&case, 1, 2);
    let holder = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid IN \
         (SELECT unnest(pg_blocking_pids(waiting.pid)) FROM pg_locks AS waiting JOIN pg_stat_activity USING (pid) \
         WHERE NOT granted AND application_name LIKE 'pglock:{} %')",
        case.key
    );
    case.sql(&holder);
    let line = lost.finish().code(74).stderr_line();
    assert!(line.ends_with(KILLED), "{line}");
    for waiter in waiters {
        waiter.finish().code(0).silent();
    }
    journal.assert_alone(3..=3);
}

/// P25: one that came before the guard is no stepping stone for those behind it.
#[test]
fn a_waiter_behind_one_that_came_first_leaves_the_key_to_the_guard() {
    let (case, journal) = (Case::new(), Journal::new());
    let lost = stubborn(&case, &[], &journal);
    let backend = case.backend();
    let (first, _) = case.foreign_waiter();
    let waiter = case.run().sh(&journal.alone()).spawn();
    await_queue(&case, 1, 2);
    case.sql(&format!("SELECT pg_terminate_backend({backend})"));
    eventually(SOON, "the claim", || has_claim(&case));
    let mut other = case.client();
    rows(
        &mut other,
        &format!("SELECT pg_advisory_lock_shared({})", receipt(&case.key)),
    );
    first.finish();
    // It names the first one if that still had the key when it looked.
    let line = lost.finish().code(74).stderr_line();
    assert!(line.contains(KILLED), "{line}");
    waiter.finish().code(0).silent();
    journal.assert_alone(2..=2);
}

/// Returns whether a loser claims the key.
fn has_claim(case: &Case) -> bool {
    let claim = claim(&case.key);
    case.value(&format!("SELECT NOT pg_try_advisory_xact_lock({claim})")) == "t"
}

/// A release is recognized, so turns follow each other at once. On a busy machine a receipt may be gone before it is
/// seen.
#[test]
fn those_who_wait_in_the_queue_see_that_a_key_was_released() {
    let (second, third) = (unique("second"), unique("third"));
    for other_keys in [[].as_slice(), &["--key", &second, "--key", &third]] {
        let case = Case::new();
        let first = case.run().args(other_keys).holding();
        let start_waiter = |_| case.run().args(other_keys).args(["-v", "true"]).spawn();
        let waiters: Vec<Running> = (0..20).map(start_waiter).collect();
        let queue = format!(
            "SELECT 1 FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' AND NOT granted \
             AND application_name LIKE 'pglock:{}%'",
            case.key
        );
        eventually(SOON, "a queue", || case.sql(&queue).len() == waiters.len());
        first.finish().code(0).silent();
        let count = waiters.len();
        let has_left_alone = |waiter: Running| has_left_alone(waiter.finish().code(0));
        let unseen = waiters.into_iter().map(has_left_alone).filter(|unseen| *unseen).count();
        assert!(unseen <= count / 2, "{unseen} of {count} releases were not seen");
    }
}

/// The receipt is the lock that the protocol says, and `list` does not show it.
#[test]
fn a_receipt_is_the_documented_lock() {
    let case = Case::new();
    let holder = case.holder();
    let waiter = case.run().args(["-v", "echo", "mine"]).spawn();
    await_queue(&case, 1, 1);
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
