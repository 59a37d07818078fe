//! A lock that vanishes while its session lives: the next heartbeat notices, and the job is terminated.
//!
//! A relay runs statements in the holder's session, or lends it another backend, as a pooler or a job with the
//! inherited socket can.

use crate::support::case::Case;
use crate::support::journal::Journal;
use crate::support::meddler::Meddler;
use crate::support::pglock::{Output, Pglock};
use crate::support::server::number;
use crate::support::wait::{SOON, eventually};
use crate::support::{hostname, unique};
use std::time::{Duration, Instant};

/// H and D.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// What a busy machine may add to a deadline.
const SLACK: Duration = Duration::from_secs(2);

/// Starts a holder through a relay, has `meddle` take its lock, and returns how it ended. The heartbeats before prove
/// that the lock was held, and are no reason to end.
#[track_caller]
fn lose(case: &Case, set_up: impl FnOnce(Pglock) -> Pglock, meddle: impl FnOnce(&Meddler)) -> Output {
    let (meddler, journal) = (Meddler::before(case.server), Journal::new());
    let run = set_up(case.run()).args(["--dsn", &meddler.dsn(), "--heartbeat", "0.5", "--kill-after", "20"]);
    let holder = run.sh(&journal.recording("INT")).spawn();
    journal.await_count("ready", 1);
    let heartbeats = format!(
        "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'pglock:{}%' AND query LIKE '/* pglock holds %'",
        case.key
    );
    eventually(SOON, "a heartbeat", || !case.sql(&heartbeats).is_empty());
    assert!(holder.stderr().is_empty(), "{}", holder.stderr());
    let began = Instant::now();
    meddle(&meddler);
    let output = holder.finish();
    let took = began.elapsed();
    assert!(took < HEARTBEAT * 2 + SLACK, "{took:?}: {output}");
    output
}

#[track_caller]
fn assert_lost(output: &Output, key: &str, why: &str) {
    let line = output.code(74).stderr_line();
    let front = format!("lost the lock on key \"{key}\" at 20");
    assert!(line.starts_with(&front) && line.contains(why), "{line}");
    assert!(line.ends_with("; terminated the job with SIGTERM"), "{line}");
}

const VANISHED: &str = ": the session no longer holds it: something released it on this session ";

/// P24
#[test]
fn a_lock_that_the_session_no_longer_holds_is_lost() {
    for statement in ["SELECT pg_advisory_unlock_all()", "DISCARD ALL"] {
        let case = Case::new();
        let output = lose(&case, |run| run, |meddler| meddler.run(statement));
        assert_lost(&output, &case.key, VANISHED);
        assert_eq!(case.locks().granted, 0);
    }
}

/// P24: in the mode in which it was acquired.
#[test]
fn a_shared_lock_does_not_stand_in_for_an_exclusive_one() {
    let case = Case::new();
    let output = lose(
        &case,
        |run| run,
        |meddler| {
            let key = number(&case.key);
            meddler.run(&format!(
                "SELECT pg_advisory_unlock({key}), pg_advisory_lock_shared({key})"
            ));
        },
    );
    assert_lost(&output, &case.key, VANISHED);
}

/// P24: one of several keys is enough.
#[test]
fn one_of_several_keys_that_vanishes_is_a_lost_lock() {
    let (case, other) = (Case::new(), unique("other"));
    for key in [&case.key, &other] {
        let unlock = format!("SELECT pg_advisory_unlock({})", number(key));
        let output = lose(&case, |run| run.args(["--key", &other]), |meddler| meddler.run(&unlock));
        let line = output.code(74).stderr_line();
        assert!(line.contains(VANISHED), "{line}");
    }
}

/// P24: of a slot too, whose key is another than the one that was given.
#[test]
fn a_slot_that_vanishes_is_lost() {
    let case = Case::new();
    let output = lose(
        &case,
        |run| run.args(["--slots", "3"]),
        |meddler| meddler.run("SELECT pg_advisory_unlock_all()"),
    );
    assert_lost(&output, &case.key, VANISHED);
}

/// P24: a lock of a transaction ends with it.
#[test]
fn a_transaction_that_ends_is_a_lost_lock() {
    for statement in ["ROLLBACK", "COMMIT"] {
        let case = Case::new();
        let output = lose(
            &case,
            |run| run.args(["--scope", "transaction"]),
            |meddler| meddler.run(statement),
        );
        assert_lost(&output, &case.key, VANISHED);
        assert_eq!(case.locks().granted, 0);
    }
}

/// P24: the backend that held it still does, but answers somebody else.
#[test]
fn another_backend_that_answers_is_a_lost_lock() {
    for scope in ["session", "transaction"] {
        let case = Case::new();
        let output = lose(&case, |run| run.args(["--scope", scope]), Meddler::switch_backend);
        assert_lost(&output, &case.key, " answered instead of the one that holds it: ");
        case.await_locks(0, 0);
    }
}

/// P24: a client that acquires the vanished lock keeps it, and the loser names it if its job outlives the loss.
#[test]
fn the_loser_names_who_acquired_the_vanished_lock() {
    let (case, journal) = (Case::new(), Journal::new());
    let meddler = Meddler::before(case.server);
    let limits = ["--heartbeat", "0.5", "--kill-after", "0.7"];
    let run = case.run().args(["--dsn", &meddler.dsn()]).args(limits);
    let holder = run.sh(&journal.stubborn_alone()).spawn();
    journal.await_count("ready", 1);
    let waiter = case.run().sh("echo mine; read -r _; exit 0").spawn();
    case.await_locks(1, 1);
    meddler.run("SELECT pg_advisory_unlock_all()");
    waiter.await_stdout("mine\n");
    let line = holder.finish().code(74).stderr_line();
    let named = format!(
        "; key \"{}\" was acquired by {}:{} ",
        case.key,
        hostname(),
        waiter.pid()
    );
    assert!(line.contains(VANISHED) && line.contains(&named), "{line}");
    waiter.finish().code(0).silent();
}
