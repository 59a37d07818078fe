//! A lock that vanishes while its session lives: the next heartbeat notices, and the job is terminated.
//!
//! A relay runs statements in the holder's session, or lends it another backend, as a pooler or a job with the
//! inherited socket can.

use crate::support::case::Case;
use crate::support::journal::Journal;
use crate::support::meddler::Meddler;
use crate::support::pglock::{Output, Pglock};
use crate::support::server::{Server, number};
use crate::support::unique;
use crate::support::wait::{SOON, eventually};
use postgres::error::SqlState;
use std::collections::BTreeSet;
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

/// P13, P24: the heartbeat takes nothing from the lock that it proves. A client that waits in the server's own queue
/// would be granted the lock as soon as it is free.
#[test]
fn a_heartbeat_keeps_the_lock() {
    let other = unique("other");
    for shared in [false, true] {
        let case = Case::new();
        let mut options = vec!["--heartbeat", "0.1", "--key", &other];
        options.extend(shared.then_some("--shared"));
        let holder = case.run().args(options).sh("read -r _; exit 0").spawn();
        case.await_locks(1, 0);
        let heartbeats = format!(
            "SELECT query_start FROM pg_stat_activity WHERE application_name LIKE 'pglock:{}%' \
             AND query LIKE '/* pglock holds %'",
            case.key
        );
        let waiter = case.run().args(["--wait", "60"]).sh("echo mine").spawn();
        case.await_locks(1, 1);
        let mut seen = BTreeSet::new();
        eventually(SOON, "twenty heartbeats", || {
            let locks = case.locks();
            assert_eq!(locks.granted, 1, "{locks:?}");
            seen.extend(case.sql(&heartbeats));
            seen.len() >= 20
        });
        assert_eq!(waiter.stdout(), "");
        holder.finish().code(0).silent();
        assert_eq!(waiter.finish().code(0).stdout(), "mine\n");
    }
}

/// P24: but a server whose lock table is full, so that no mark of an eviction can be looked for in it, is no reason to
/// lose a lock. One that vanishes meanwhile is lost.
#[test]
fn a_full_lock_table_is_no_reason_to_lose_a_lock() {
    let server = Server::with(&["max_locks_per_transaction=10", "max_connections=20"]);
    let meddler = Meddler::before(&server);
    let run = server.run("kept").args(["--dsn", &meddler.dsn(), "--heartbeat", "0.5"]);
    let holder = run.args(["sleep", "60"]).spawn();
    server.await_locks("kept", 1, 0);
    let released = server.run("released").holding();
    let mut filler = server.client();
    let fill = "SELECT count(pg_advisory_lock(n, 0)) FROM generate_series(1, 100000) AS n";
    let error = filler.simple_query(fill).unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::OUT_OF_MEMORY), "{error}");
    let refused = || server.log().matches("STATEMENT:  /* pglock holds ").count();
    eventually(SOON, "three heartbeats that were refused", || refused() >= 3);
    // Nor can a receipt be taken.
    released.finish().code(0).silent();
    assert!(holder.stderr().is_empty(), "{}", holder.stderr());
    meddler.run("SELECT pg_advisory_unlock_all()");
    assert_lost(&holder.finish(), "kept", VANISHED);
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
    let (other, backend) = case.foreign_waiter();
    case.await_locks(1, 1);
    meddler.run("SELECT pg_advisory_unlock_all()");
    other.await_stdout("mine\n");
    let line = holder.finish().code(74).stderr_line();
    let named = format!("(backend {backend}");
    assert!(line.contains(VANISHED) && line.contains(&named), "{line}");
    other.finish().code(0).silent();
}
