//! A pglock in the job of another: it must not wait for a lock that is released only after it has exited.

use crate::support::case::Case;
use crate::support::pgbouncer::PgBouncer;
use crate::support::pglock::Pglock;
use crate::support::server::Server;
use crate::support::unique;
use crate::support::wait::{SOON, eventually};

const PGLOCK: &str = env!("CARGO_BIN_EXE_pglock");

/// Returns the pglock with a job that is another pglock, with these options, whose exit status it prints.
fn around(outer: Pglock, inner: &str) -> Pglock {
    outer.sh(&format!("{PGLOCK} run {inner} -- echo inner; echo status $?"))
}

/// P44
#[test]
fn a_nested_run_for_the_same_key_fails_instead_of_waiting_for_itself() {
    let case = Case::new();
    let key = &case.key;
    let other = unique("other");
    for inner in [
        format!("-k {key}"),
        format!("-k {key} -n"),
        format!("-s -k {key}"),
        format!("-k {other} -k {key} --wait 60"),
        format!("-k {key} --slots 1"),
        format!("-k {key} --fair"),
    ] {
        let output = around(case.run(), &inner).output();
        assert_eq!(output.stdout, b"status 64\n", "{inner}");
        let line = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            line.lines().count() == 1 && line.contains(key) && line.contains("an ancestor of this pglock"),
            "{inner}: {line}"
        );
    }
}

/// P44: an ancestor at any level, whatever its session is called.
#[test]
fn a_run_within_runs_for_other_keys_recognizes_the_outermost() {
    let case = Case::new();
    let (key, between) = (&case.key, unique("between"));
    let inner = format!("-k {between} -- {PGLOCK} run -k {key}");
    for name in ["", "nightly"] {
        let output = around(case.run().env("PGAPPNAME", name), &inner).output();
        assert_eq!(output.stdout, b"status 64\n", "{output}");
    }
}

/// P44
#[test]
fn nested_runs_that_can_share_the_lock_run() {
    let case = Case::new();
    let key = &case.key;
    for (outer, inner) in [
        (vec!["-s"], format!("-s -k {key}")),
        (vec!["--slots", "2"], format!("-k {key} --slots 2")),
        (vec![], format!("-k {}", unique("other"))),
    ] {
        let output = around(case.run().args(outer), &inner).output();
        assert_eq!(output.code(0).stdout(), "inner\nstatus 0\n", "{inner}");
    }
}

/// P44: with slots, a slot that another client holds may be released.
#[test]
fn a_nested_run_waits_for_a_slot_of_another_client() {
    let case = Case::new();
    let holder = case.run().args(["--slots", "2"]).holding();
    let inner = format!("-k {} --slots 2", case.key);
    let running = around(case.run().args(["--slots", "2"]), &inner).spawn();
    let waits = || {
        let list = case.pglock().args(["list", "--key", &case.key]).output();
        String::from_utf8_lossy(&list.stdout).contains("waiting")
    };
    eventually(SOON, "the nested pglock waits", waits);
    holder.finish().code(0);
    assert_eq!(running.finish().code(0).stdout(), "inner\nstatus 0\n");
}

/// P44: the variable alone proves nothing. A stale one, as of a job that outlived its pglock, matches no session.
#[test]
fn a_stale_variable_does_no_harm() {
    let case = Case::new();
    let stale = case.run().sh("echo $PGLOCK_ANCESTORS").output().stdout();
    let stale = stale.trim();
    assert!(!stale.is_empty());
    let holder = case.holder();
    let waiting = case.run().env("PGLOCK_ANCESTORS", stale).sh("echo ran").spawn();
    case.await_locks(1, 1);
    holder.finish().code(0);
    assert_eq!(waiting.finish().code(0).stdout(), "ran\n");
}

/// P44, P41
#[test]
fn a_nested_run_is_recognized_through_a_pooler() {
    let server = Server::shared();
    let bouncer = PgBouncer::with(server, &["pool_mode=transaction"]);
    let key = unique("nested");
    let outer = bouncer.pglock().args(["run", "-k", &key]);
    let output = around(outer, &format!("-k {key}")).output();
    assert_eq!(output.stdout, b"status 64\n", "{output}");
}
