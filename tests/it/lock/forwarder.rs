//! A pooler that forwards the first client's startup packet: by the session's name, the first client has a session of
//! its own, and so it is with no other.

use crate::support::command::command;
use crate::support::forwarder::Forwarder;
use crate::support::journal::Journal;
use crate::support::pglock::Pglock;
use crate::support::server::{Server, rows};
use crate::support::unique;
use crate::support::wait::{SOON, eventually, until};
use postgres::{Client, NoTls};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

const ROUNDS: u64 = 100;
const SEED: u64 = 17;

/// Returns a pglock that is process 1, as in a container: every one has the same host name and process ID.
fn through(forwarder: &Forwarder, key: &str) -> Pglock {
    let namespaces = [
        "--user",
        "--map-root-user",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ];
    let run = if can_be_process_1() {
        Pglock::for_program("unshare")
            .args(namespaces)
            .arg(env!("CARGO_BIN_EXE_pglock"))
    } else {
        Pglock::alone()
    };
    run.args(["run", "--key", key, "--dsn", &forwarder.dsn()])
}

fn can_be_process_1() -> bool {
    static CAN: OnceLock<bool> = OnceLock::new();
    *CAN.get_or_init(|| {
        let status = command("unshare")
            .args(["--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "true"])
            .status();
        let can = status.is_ok_and(|status| status.success());
        if !can {
            println!("SKIPPED: process namespaces are not permitted; the pglocks have different process IDs");
        }
        can
    })
}

/// Returns a pause of up to 12 ms, in which a pglock gets about as far as acquiring its lock.
fn pause(random: &mut u64) -> Duration {
    // Constants of Knuth's MMIX.
    *random = random
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    Duration::from_micros((*random >> 33) % 12_000)
}

/// P10, P41: although the other client has the same host name and process ID.
#[test]
fn no_other_client_takes_the_first_ones_session_for_its_own() {
    let server = Server::shared();
    let mut random = SEED;
    let mut direct = 0;
    for round in 0..ROUNDS {
        let (forwarder, key) = (Forwarder::to(server), unique("forwarded"));
        // In a third of the rounds the first client is one that has gone.
        if round % 3 == 0 {
            through(&forwarder, &unique("gone")).arg("true").output().code(0);
        }
        let holder = through(&forwarder, &key).arg("-v").holding();
        let is_direct = !holder.stderr().contains("through a pooler");
        direct += u64::from(is_direct);
        until(pause(&mut random), || false);
        let other = through(&forwarder, &key)
            .args(["-n", "-v", "--", "echo", "ran"])
            .spawn();
        if is_direct {
            let output = other.finish();
            let text = String::from_utf8_lossy(&output.code(75).stderr).into_owned();
            assert!(
                output.stdout.is_empty() && text.contains(", through a pooler"),
                "{output}"
            );
            holder.finish().code(0);
        } else {
            // The only session is the holder's until it ends.
            until(pause(&mut random), || false);
            assert_eq!(other.stdout(), "");
            holder.finish().code(0);
            other.finish().code(0);
        }
        assert_eq!(server.locks(&key).granted, 0);
    }
    assert!(direct > ROUNDS / 2, "{direct} holders took their session for direct");
}

/// P10: whoever of two comes first, and however far it has got when the other one comes.
#[test]
fn two_clients_that_race_run_one_after_the_other() {
    let server = Server::shared();
    let mut random = SEED;
    for _ in 0..ROUNDS / 2 {
        let (forwarder, key, journal) = (Forwarder::to(server), unique("race"), Journal::new());
        let job = |who: &str| {
            let note = journal.note();
            format!("{note}; note in-{who}; read -r _; note out-{who}")
        };
        let first = through(&forwarder, &key).sh(&job("first")).spawn();
        until(pause(&mut random), || false);
        let second = through(&forwarder, &key).args(["-w", "20"]).sh(&job("second")).spawn();
        eventually(SOON, "one of the jobs", || !journal.entries().is_empty());
        until(pause(&mut random), || false);
        let (one, other) = match journal.count("in-first") {
            0 => (second, first),
            _ => (first, second),
        };
        assert_eq!(journal.entries().len(), 1);
        one.finish().code(0);
        other.finish().code(0);
        let events: Vec<String> = journal.entries().into_iter().map(|entry| entry.event).collect();
        let names: Vec<&str> = events.iter().map(|event| event.split_once('-').unwrap().0).collect();
        assert_eq!(names, ["in", "out", "in", "out"], "{events:?}");
        assert_eq!(server.locks(&key).granted, 0);
    }
}
/// P20, P21: a lock that another client of the same session takes away is noticed by the next heartbeat, within H + D.
#[test]
fn a_lock_that_another_client_releases_is_noticed() {
    const HEARTBEAT: Duration = Duration::from_millis(500);
    let server = Server::shared();
    for release in ["SELECT pg_advisory_unlock_all()", "DISCARD ALL"] {
        let (forwarder, key) = (Forwarder::to(server), unique("taken"));
        let holder = through(&forwarder, &key).args(["--heartbeat", "0.5", "-v"]);
        let holder = holder.sh("echo ready; exec sleep 60").spawn();
        holder.await_stdout("ready\n");
        assert!(!holder.stderr().contains("through a pooler"), "{}", holder.stderr());
        let mut other = Client::connect(&forwarder.dsn(), NoTls).unwrap();
        rows(&mut other, release);
        let taken = Instant::now();
        assert_eq!(server.locks(&key).granted, 0);
        holder.await_stderr("lost the lock");
        let noticed = taken.elapsed();
        assert!(
            noticed < HEARTBEAT * 2 + Duration::from_millis(500),
            "{release}: {noticed:?}"
        );
        holder.finish().code(74);
    }
}
