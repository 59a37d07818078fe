//! Behind a PgBouncer that lends whole sessions: waiters give up their sessions between tries, so that few of them do
//! not use up the pool.

use crate::support::delay_line::Relay;
use crate::support::journal::Journal;
use crate::support::pgbouncer::PgBouncer;
use crate::support::pglock::Running;
use crate::support::server::{Server, find, number};
use crate::support::unique;
use crate::support::wait::{SOON, eventually};
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::io::Write;
use std::time::{Duration, Instant};

/// The scopes in which a lock can be requested in such a pool.
const SCOPES: [&str; 2] = ["auto", "session-pooled"];

/// How many wait, for a pool of five.
const WAITERS: usize = 20;

fn pool(server: &Server) -> PgBouncer<'_> {
    pool_with(server, "server_reset_query=DISCARD ALL")
}

fn pool_with<'a>(server: &'a Server, setting: &str) -> PgBouncer<'a> {
    let bouncer = PgBouncer::with(server, &["pool_mode=session", "default_pool_size=5", setting]);
    // PgBouncer shows a pool from its first client on.
    drop(bouncer.client_in("postgres"));
    bouncer
}

/// Returns how many sessions of the pool are lent.
fn lent(bouncer: &PgBouncer) -> usize {
    bouncer.pool("postgres", "sv_active")
}

/// Returns how many clients the pool has.
fn clients(bouncer: &PgBouncer) -> usize {
    bouncer.pool("postgres", "cl_active") + bouncer.pool("postgres", "cl_waiting")
}

/// P41, P10: the job of the holder is served by the same pool, and all get their turn.
#[test]
fn twenty_waiters_leave_the_pool_to_the_holders_job() {
    let server = Server::shared();
    for scope in SCOPES {
        let (bouncer, key, journal) = (pool(server), unique("sessions"), Journal::new());
        let psql = format!(
            "'{}' -XAtqw -h 127.0.0.1 -p {} -U postgres -d postgres -c 'SELECT 6 * 7'",
            find("psql").display(),
            bouncer.port()
        );
        let run = || bouncer.run(&key).args(["--scope", scope]);
        // Each line that the job reads makes it ask the pool.
        let mut holder = run()
            .sh(&format!("echo ready; while read -r _; do {psql}; done"))
            .spawn();
        holder.await_stdout("ready\n");
        let waiters: Vec<Running> = (0..WAITERS).map(|_| run().sh(&journal.alone()).spawn()).collect();
        eventually(SOON, "every waiter", || clients(&bouncer) > WAITERS * 3 / 4);
        let mut expected = String::from("ready\n");
        for _ in 0..5 {
            let asked = Instant::now();
            holder.stdin().write_all(b"\n").unwrap();
            expected += "42\n";
            eventually(SOON, "the reply to the job", || holder.stdout() == expected);
            println!("{scope}: the pool has answered the job after {:?}", asked.elapsed());
        }
        assert_eq!(holder.finish().code(0).stdout(), expected);
        for waiter in waiters {
            waiter.finish().code(0).silent();
        }
        journal.assert_alone(WAITERS..=WAITERS);
    }
}

/// P41, P33: a waiter stays a client of the pooler, which lends it no session but for a try. What it does is no loss:
/// it prints nothing, and begins soon after the lock is free. A signal ends it at once, most often in a rest.
#[test]
fn a_waiter_gives_up_its_session_between_tries() {
    let server = Server::shared();
    for scope in SCOPES {
        let (bouncer, key) = (pool(server), unique("rests"));
        let holder = server.run(&key).holding();
        let run = || bouncer.run(&key).args(["--scope", scope, "echo", "mine"]);
        let waiters = [run().spawn(), run().spawn()];
        // A try takes a few milliseconds of a rest.
        let mut rests = 0;
        eventually(SOON, "waiters that rest", || {
            rests += usize::from(clients(&bouncer) == 2 && lent(&bouncer) == 0);
            rests >= 20
        });
        for signal in [Signal::SIGTERM, Signal::SIGHUP] {
            let ended = run().spawn();
            eventually(SOON, "another client that rests", || {
                clients(&bouncer) == 3 && lent(&bouncer) == 0
            });
            let sent = Instant::now();
            ended.signal(signal);
            ended.finish().signal(signal).silent();
            assert!(sent.elapsed() < Duration::from_millis(500), "{:?}", sent.elapsed());
        }
        holder.finish().code(0);
        let freed = Instant::now();
        for waiter in waiters {
            assert_eq!(waiter.finish().code(0).stdout(), "mine\n");
        }
        // Each rests for 0.6 s at most in its first seconds.
        assert!(freed.elapsed() < Duration::from_secs(3), "{:?}", freed.elapsed());
    }
}

/// P41: the limit is kept, the lock is tried until then, and the conflict names the holder.
#[test]
fn a_limited_wait_in_a_pool_of_sessions_ends_in_time() {
    let server = Server::shared();
    for scope in SCOPES {
        let (bouncer, key) = (pool(server), unique("limited"));
        let holder = server.run(&key).holding();
        for limit in [0.3, 2.5] {
            let run = bouncer
                .run(&key)
                .args(["--scope", scope, "-w", &limit.to_string(), "true"]);
            let output = run.output();
            let line = output.code(75).stderr_line();
            assert!(line.contains(&format!(":{} (backend ", holder.pid())), "{line}");
            let late = output.took.as_secs_f64() - limit;
            assert!((0.0..0.7).contains(&late), "{late} s late");
        }
        holder.finish().code(0);
    }
}

/// P15: one that waits for a later key holds no earlier one in a rest.
#[test]
fn a_rest_holds_none_of_several_keys() {
    let server = Server::shared();
    // Such a pool resets nothing.
    let bouncer = pool_with(server, "server_reset_query=");
    let mut keys = [unique("several"), unique("several")];
    // In the order in which they are acquired.
    keys.sort_by_key(|key| number(key));
    let holder = server.run(&keys[1]).holding();
    let waiter = bouncer.run(&keys[0]).args(["--key", &keys[1]]);
    let waiter = waiter.args(["--scope", "session-pooled", "echo", "mine"]).spawn();
    eventually(SOON, "a rest", || {
        clients(&bouncer) == 1 && lent(&bouncer) == 0 && bouncer.stats("postgres", "total_query_count") > 4
    });
    for _ in 0..3 {
        server.run(&keys[0]).args(["--wait", "5", "true"]).output().code(0);
    }
    holder.finish().code(0);
    assert_eq!(waiter.finish().code(0).stdout(), "mine\n");
    server.await_locks(&keys[0], 0, 0);
}

/// P15: a waiter that is terminated between the grant and its job leaves no lock in the pool, which resets nothing.
#[test]
fn a_waiter_terminated_right_after_the_grant_leaves_no_lock() {
    let server = Server::shared();
    let (bouncer, key) = (pool_with(server, "server_reset_query="), unique("granted"));
    let holder = server.run(&key).holding();
    let waiter = bouncer
        .run(&key)
        .args(["--scope", "session-pooled", "sleep", "60"])
        .spawn();
    eventually(SOON, "a rest", || {
        clients(&bouncer) == 1 && lent(&bouncer) == 0 && bouncer.stats("postgres", "total_query_count") > 4
    });
    holder.finish().code(0);
    eventually(SOON, "the grant", || server.locks(&key).granted == 1);
    waiter.signal(Signal::SIGTERM);
    waiter.finish().signal(Signal::SIGTERM);
    server.await_locks(&key, 0, 0);
}

/// P72: a pool of sessions forgets a waiter right after each try, so a look finds those that are trying. The way to the
/// server is a long one here, so that a try takes longer than a look.
#[test]
fn list_finds_the_waiters_in_a_pool_of_sessions_that_are_trying() {
    let server = Server::shared();
    let far = Relay::to(server.port(), Duration::from_millis(20));
    let far = format!("[databases]\npostgres = host=127.0.0.1 port={}", far.port());
    let (bouncer, key) = (pool_with(server, &far), unique("listed"));
    let holder = server.run(&key).holding();
    let waiters: Vec<Running> = (0..3).map(|_| bouncer.run(&key).arg("true").spawn()).collect();
    eventually(SOON, "waiters that rest", || {
        clients(&bouncer) == 3 && lent(&bouncer) == 0
    });
    let mut seen = BTreeSet::new();
    let mut looks = 0;
    eventually(SOON * 2, "all waiters", || {
        let output = server.pglock().args(["list", "--key", &key, "--json"]).output();
        let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let locks = list["locks"].as_array().unwrap().iter();
        let waiting = locks.filter(|lock| lock["state"] == "waiting");
        seen.extend(waiting.map(|lock| lock["pid"].as_i64().unwrap()));
        looks += 1;
        seen.len() == 3
    });
    println!("all were seen after {looks} looks");
    let waiting: BTreeSet<i64> = waiters.iter().map(|waiter| waiter.pid().as_raw().into()).collect();
    assert_eq!(seen, waiting);
    holder.finish().code(0);
    for waiter in waiters {
        waiter.finish().code(0);
    }
}
