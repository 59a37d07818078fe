//! Through Pgpool-II, which forwards to one server (raw mode), or balances the load of a primary and its standby.
//!
//! It opens a session of the server for each of ours, because our `application_name` differs from that of every other
//! client, and lends it to no other client as long as ours lives. So the lock is a session's, as on a direct
//! connection.

use crate::support::journal::Journal;
use crate::support::pglock::{Output, Running};
use crate::support::pgpool::Pgpool;
use crate::support::server::{Locks, Server};
use crate::support::unique;
use crate::support::wait::{SOON, eventually};
use nix::sys::signal::Signal;
use serde_json::Value;

/// A primary and its standby, which log every statement.
fn pair() -> (Server, Server) {
    let primary = Server::start();
    primary.sql("ALTER ROLE postgres SET log_statement = 'all'");
    let standby = Server::standby_of(&primary);
    eventually(SOON, "a standby that streams", || {
        standby.value("SELECT status FROM pg_stat_wal_receiver") == "streaming"
    });
    (primary, standby)
}

/// Runs a test through a Pgpool-II in front of one server, and through one that balances the load.
fn in_both_modes(test: impl Fn(&Server, Pgpool)) {
    let server = Server::start();
    test(&server, Pgpool::raw(&server));
    let (primary, standby) = pair();
    let pgpool = Pgpool::balancing(&primary, &standby);
    pgpool.client().simple_query("SELECT 'balanced'").unwrap();
    eventually(SOON, "a balanced query", || standby.log().contains("SELECT 'balanced'"));
    test(&primary, pgpool);
    let log = standby.log();
    assert!(!log.contains("advisory"), "{log}");
}

/// P10, P18, P40, P76: more runs than Pgpool-II has processes, so that it has sessions to lend again.
#[test]
fn every_run_locks_for_its_session_and_on_the_primary() {
    in_both_modes(|server, pgpool| {
        let mut tokens = Vec::new();
        for n in 0..15 {
            let options: &[&str] = match n % 3 {
                0 => &["-v"],
                1 => &["-v", "--token"],
                _ => &["-v", "--scope", "transaction", "--token"],
            };
            let job = "echo $PGLOCK_BACKEND_PID $PGLOCK_TOKEN; read -r _; exit 0";
            let holder = pgpool.run("key").args(options).sh(job).spawn();
            holder.await_stdout("\n");
            let stdout = holder.stdout();
            let mut words = stdout.split_whitespace();
            let backend = words.next().unwrap();
            tokens.extend(words.map(str::to_owned));
            let locks = server.sql("SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted");
            assert_eq!(locks, [[backend]]);
            let refused = pgpool.run("key").args(["-n", "true"]).output();
            let line = refused.code(75).stderr_line();
            assert!(
                line.contains(&format!(":{} (backend {backend}", holder.pid())),
                "{line}"
            );
            let output = holder.finish();
            let text = String::from_utf8_lossy(&output.code(0).stderr).into_owned();
            assert!(text.contains("pglock: connected to database"), "{text}");
            assert!(!text.contains("through a pooler"), "{text}");
        }
        assert!(tokens.len() == 10 && tokens.is_sorted(), "{tokens:?}");
        let output = pgpool.pglock().arg("check").output();
        let text = String::from_utf8_lossy(&output.code(0).stdout).into_owned();
        assert!(text.contains("\nok       connection: direct; "), "{text}");
        assert!(text.contains("\nwarning  proxy: "), "{text}");
        server.await_locks("key", 0, 0);
    });
}

/// P30, P72, P75
#[test]
fn waiters_queue_and_a_holder_is_evicted() {
    in_both_modes(|server, pgpool| {
        let key = unique("key");
        let holder = pgpool.run(&key).holding();
        let waiter = pgpool.run(&key).args(["echo", "my turn"]).spawn();
        server.await_locks(&key, 1, 1);
        let list = pgpool.pglock().args(["list", "--json"]).output();
        let list: Value = serde_json::from_slice(&list.code(0).silent().stdout).unwrap();
        let locks = list["locks"].as_array().unwrap();
        let states: Vec<_> = locks.iter().map(|lock| (&lock["state"], &lock["pid"])).collect();
        let pid = |running: &Running| Value::from(running.pid().as_raw());
        assert_eq!(
            states,
            [(&"holding".into(), &pid(&holder)), (&"waiting".into(), &pid(&waiter))]
        );
        let evict = pgpool.pglock().args(["evict", "--yes", "--key", &key]).output();
        evict.code(0).silent();
        let output = holder.finish();
        assert_lost(&output);
        assert!(output.to_string().contains(": evicted by "), "{output}");
        assert_eq!(waiter.finish().stdout(), "my turn\n");
    });
}

/// P20, P25: the server ends the session, and Pgpool-II goes on. The loser guards its job through it.
#[test]
fn a_terminated_backend_ends_the_job_and_nothing_else() {
    in_both_modes(|server, pgpool| {
        let (key, journal) = (unique("key"), Journal::new());
        let run = || pgpool.run(&key).args(["--heartbeat", "1", "--kill-after", "2"]);
        let holder = run().sh(&journal.stubborn_alone()).spawn();
        journal.await_count("ready", 1);
        let holders = || server.sql("SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted");
        let first = holders();
        server.sql("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted");
        eventually(SOON, "a guard", || {
            let now = holders();
            now.len() == 1 && now != first
        });
        let next = run().sh(&journal.alone()).spawn();
        assert_lost(&holder.finish());
        next.finish().code(0);
        journal.assert_alone(2..=2);
        let nodes = pgpool.nodes();
        assert!(nodes.iter().all(|node| node[3] == "up"), "{nodes:?}");
    });
}

/// P14: the job keeps the connection to Pgpool-II, which keeps the session.
#[test]
fn a_killed_pglock_leaves_the_lock_to_its_job() {
    in_both_modes(|server, pgpool| {
        for (options, is_held) in [(&[][..], true), (&["--close"], false)] {
            let key = unique("key");
            let holder = pgpool.run(&key).args(options).holding();
            holder.signal(Signal::SIGKILL);
            if is_held {
                pgpool.run(&key).args(["-n", "true"]).output().code(75);
            } else {
                server.await_locks(&key, 0, 0);
            }
            // Its job ends with its standard input.
            holder.finish().signal(Signal::SIGKILL);
            server.await_locks(&key, 0, 0);
        }
    });
}

/// P10, P20, P39: when Pgpool-II is stopped, all sessions end; the waiter comes back. As Pgpool-II ends one session
/// after the other, the server can grant the waiter the lock in between, as documented; then the waiter's job is
/// terminated, and this is tried again.
#[test]
fn a_restarted_pgpool_ends_the_job_before_the_next_one_starts() {
    in_both_modes(|server, pgpool| {
        let mut pgpool = Some(pgpool);
        let has_come_back = (0..TRIES_OF_A_STOP).any(|_| {
            let key = unique("key");
            let (restarted, waiter, journal) = restart_under_holder_and_waiter(server, pgpool.take().unwrap(), &key);
            if waiter.status.code() == Some(74) {
                assert_lost(&waiter);
                pgpool = Some(restarted);
                return false;
            }
            waiter.code(0);
            journal.assert_alone(2..=2);
            restarted.run(&key).args(["-n", "true"]).output().code(0);
            true
        });
        assert!(has_come_back, "the waiter was granted the lock in each stop");
    });
}

/// How often to stop Pgpool-II for one in which the waiter's session does not outlive the holder's.
const TRIES_OF_A_STOP: usize = 5;

/// Restarts Pgpool-II while one run holds the lock and another one waits. Returns it with the end of the waiter.
fn restart_under_holder_and_waiter<'a>(
    server: &Server,
    pgpool: Pgpool<'a>,
    key: &str,
) -> (Pgpool<'a>, Output, Journal) {
    let journal = Journal::new();
    let run = || pgpool.run(key).args(["--heartbeat", "1", "--kill-after", "0.5"]);
    let holder = run().sh(&journal.stubborn_alone()).spawn();
    journal.await_count("ready", 1);
    let waiter = run().sh(&journal.alone()).spawn();
    server.await_locks(key, 1, 1);
    pgpool.stop();
    assert_lost(&holder.finish());
    let pgpool = pgpool.start_again();
    (pgpool, waiter.finish(), journal)
}

/// P10, P20, P39: a detached standby ends the sessions whose queries Pgpool-II could balance. The waiter comes back.
#[test]
fn a_detached_standby_ends_the_job_before_the_next_one_starts() {
    let (primary, standby) = pair();
    let pgpool = Pgpool::balancing(&primary, &standby);
    let (key, journal) = (unique("key"), Journal::new());
    let run = || pgpool.run(&key).args(["--heartbeat", "1", "--kill-after", "0.5"]);
    let holder = run().sh(&journal.stubborn_alone()).spawn();
    journal.await_count("ready", 1);
    let waiter = run().sh(&journal.alone()).spawn();
    primary.await_locks(&key, 1, 1);
    pgpool.detach(1);
    assert_lost(&holder.finish());
    waiter.finish().code(0);
    journal.assert_alone(2..=2);
}

/// P20, P40: a detached primary ends all sessions, and the standby does not take its place for a lock.
#[test]
fn a_detached_primary_is_not_replaced_by_its_standby() {
    let (primary, standby) = pair();
    let pgpool = Pgpool::balancing(&primary, &standby);
    let holder = pgpool.run("key").sh("echo ready; exec sleep 60").spawn();
    holder.await_stdout("ready\n");
    pgpool.detach(0);
    assert_lost(&holder.finish());
    // Pgpool-II looks for a primary for a second.
    eventually(SOON, "a session on the standby", || {
        let output = pgpool.run("key").args(["-n", "echo", "ran"]).output();
        assert!([69, 78].contains(&output.status.code().unwrap()), "{output}");
        output.to_string().contains("hot standby")
    });
    assert_eq!(standby.locks("key"), Locks::default());
}

/// Asserts that a job was terminated because the lock was lost.
#[track_caller]
fn assert_lost(output: &Output) {
    let text = String::from_utf8_lossy(&output.code(74).stderr).into_owned();
    assert!(
        text.contains("pglock: lost the lock on key ") && text.contains("; terminated the job"),
        "{output}"
    );
}
