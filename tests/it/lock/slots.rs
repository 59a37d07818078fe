//! `--slots N`: at most N holders.

use crate::support::case::Case;
use crate::support::journal::{Journal, now};
use crate::support::wait::{SOON, eventually};
use nix::sys::signal::{Signal, kill};

/// Returns the largest number of concurrent jobs, by a journal of `in` and `out`.
fn most(journal: &Journal) -> usize {
    let (mut inside, mut most) = (0usize, 0);
    for entry in journal.entries() {
        match entry.event.as_str() {
            "out" => inside -= 1,
            _ => inside += 1,
        }
        most = most.max(inside);
    }
    most
}

/// P16
#[test]
fn never_more_holders_than_slots() {
    for (scope, contenders, slots) in [("auto", 40, 3), ("transaction", 10, 2)] {
        let (case, journal) = (Case::new(), Journal::new());
        // The first ones wait until all slots are used.
        let job = format!(
            "{}; note \"in $PGLOCK_SLOT\"; until [ $(grep -c in '{}') -ge {slots} ]; do sleep 0.01; done; \
             sleep 0.05; note out",
            journal.note(),
            journal.path().display()
        );
        let running: Vec<_> = (0..contenders)
            .map(|_| {
                let run = case.run().args(["--scope", scope, "--poll", "0.05"]);
                run.args(["--slots", &slots.to_string()]).sh(&job).spawn()
            })
            .collect();
        for running in running {
            running.finish().code(0).silent();
        }
        assert_eq!(most(&journal), slots, "{scope}");
        assert_eq!(journal.count("out"), contenders);
        let mut used: Vec<String> = journal.entries().into_iter().map(|entry| entry.event).collect();
        used.sort();
        used.dedup();
        let expected = (0..slots).map(|slot| format!("in {slot}")).chain(["out".into()]);
        assert_eq!(used, expected.collect::<Vec<_>>());
    }
}

/// P14, P16
#[test]
fn a_killed_holders_slot_is_free_when_its_job_ends() {
    let (case, journal) = (Case::new(), Journal::new());
    let key = &case.key;
    let run = || case.run().args(["--slots", "2"]);
    let other = run().holding();
    let killed = run()
        .sh(&format!("{}; note \"pid $$\"; read -r _; exit", journal.note()))
        .spawn();
    eventually(SOON, "the job", || journal.pids().len() == 1);
    killed.signal(Signal::SIGKILL);
    let line = run().args(["-n", "true"]).output().code(75).stderr_line();
    assert!(line.starts_with(&format!("all 2 slots of key \"{key}\" ")), "{line}");
    let waiter = run().arg("true").spawn();
    kill(journal.pids()[0], Signal::SIGKILL).unwrap();
    waiter.finish().code(0).silent();
    other.finish().code(0);
}

/// P16
#[test]
fn a_plain_holder_counts_as_one() {
    let case = Case::new();
    let plain = case.holder();
    let run = || case.run().args(["--slots", "2"]);
    let slot = run().sh("echo slot $PGLOCK_SLOT; read -r _; exit 0").spawn();
    slot.await_stdout("slot 1\n");
    run().args(["-n", "true"]).output().code(75);
    plain.finish().code(0);
    assert_eq!(run().arg("-n").sh("echo $PGLOCK_SLOT").output().stdout(), "0\n");
    slot.finish().code(0);
}

/// P16. It leaves no ticket behind.
#[test]
fn a_waiter_takes_the_first_free_slot() {
    let mut delays = Vec::new();
    for _ in 0..8 {
        let case = Case::new();
        let run = || case.run().args(["--slots", "3"]);
        let mut holders: Vec<_> = (0..3).map(|_| run().holding()).collect();
        let waiter = run().sh("date +%s%N").spawn();
        let tickets = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2";
        eventually(SOON, "a ticket", || case.value(tickets) != "0");
        let freed = now();
        holders.swap_remove(1).finish().code(0);
        let began: u128 = waiter.finish().stdout().trim().parse().unwrap();
        delays.push((began - freed) / 1_000_000);
        for holder in holders {
            holder.finish().code(0);
        }
        assert_eq!(case.locks().granted, 0);
    }
    delays.sort_unstable();
    println!("from the end of a holder's job to the waiter's, ms: {delays:?}");
}
