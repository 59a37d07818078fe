//! A newcomer leaves a server alone that has just started, for those that lost their locks in the restart to come
//! first.

use crate::support::gate::{Answer, Gate};
use crate::support::journal::now;
use crate::support::pgbouncer::PgBouncer;
use crate::support::pglock::{Output, Pglock};
use crate::support::server::{SUPERUSER, Server};
use crate::support::unique;
use crate::support::wait::{SOON, eventually};
use nix::sys::signal::Signal;
use std::time::Duration;

/// Nanoseconds.
const HALF_SECOND: u128 = 500_000_000;

/// With `-v`.
const SETTLING: &str = "the server has just started, or could not be reached before; waiting half a second for jobs that \
                        lost their locks\n";

/// How often to try to be in time on a busy machine.
const TRIES: usize = 10;

/// Returns when the server started, in nanoseconds since 1970.
fn started(server: &Server) -> u128 {
    epoch(server, "pg_postmaster_start_time()")
}

fn epoch(server: &Server, expression: &str) -> u128 {
    let microseconds = server.value(&format!("SELECT (extract(epoch FROM {expression}) * 1000000)::bigint"));
    microseconds.parse::<u128>().unwrap() * 1000
}

/// Asserts that this pglock starts its job half a second after the server's start, and not before.
#[track_caller]
fn assert_settles(server: &Server, restart: fn(&Server), start: fn(&Server) -> u128, run: impl Fn() -> Pglock) {
    for _ in 0..TRIES {
        restart(server);
        let output = run().args(["-v", "date", "+%s%N"]).output();
        let text = String::from_utf8(output.code(0).stdout.clone()).unwrap();
        let ran: u128 = text.trim().parse().unwrap();
        let since_start = ran - start(server);
        assert!(since_start >= HALF_SECOND, "{since_start} ns after the start: {output}");
        if String::from_utf8_lossy(&output.stderr).contains(SETTLING) {
            return;
        }
    }
    panic!("no newcomer was in time to be held up");
}

/// P25: neither a lock of the session nor of a transaction, of one key, several or a slot, by any hash.
#[test]
fn a_newcomer_waits_until_the_server_is_half_a_second_old() {
    let server = Server::start();
    let (key, other) = (unique("young"), unique("other"));
    let kinds: [&[&str]; 6] = [
        &["-n"],
        &["-n", "--scope", "transaction"],
        &["-n", "--key", &other],
        &["-n", "--slots", "2"],
        &["-n", "--hash", "hashtext"],
        &["--fair", "--shared"],
    ];
    for options in kinds {
        assert_settles(&server, Server::restart, started, || server.run(&key).args(options));
    }
}

/// P25: through a pooler too, which is older.
#[test]
fn a_newcomer_behind_a_pooler_waits_too() {
    let server = Server::start();
    let bouncer = PgBouncer::with(&server, &["pool_mode=transaction", "server_login_retry=1"]);
    let key = unique("young");
    assert_settles(&server, Server::restart, started, || bouncer.run(&key));
}

/// P25: a pooler may reach the server long after its start, and a guard behind the pooler cannot come before that.
#[test]
fn a_newcomer_behind_a_pooler_waits_until_the_pooler_has_reached_the_server_for_half_a_second() {
    let restart = |server: &Server| {
        server.restart();
        let age = "SELECT clock_timestamp() - pg_postmaster_start_time() > '0.6s'";
        eventually(SOON, "a server that is old enough", || server.value(age) == "t");
    };
    // The pooler connects by TCP.
    let reached = |server: &Server| {
        epoch(
            server,
            "(SELECT min(backend_start) FROM pg_stat_activity WHERE client_addr IS NOT NULL)",
        )
    };
    for (mode, options) in [
        ("pool_mode=transaction", &["--scope", "auto"]),
        ("pool_mode=session", &["--scope", "session-pooled"]),
    ] {
        let server = Server::start();
        let bouncer = PgBouncer::with(&server, &[mode, "server_login_retry=1"]);
        let key = unique("reached");
        assert_settles(&server, restart, reached, || bouncer.run(&key).args(options));
    }
}

/// P25: the server counts from before its recovery, which can take long, so a newcomer that could not reach it leaves
/// it alone when it can.
#[test]
fn a_newcomer_that_could_not_reach_the_server_leaves_it_alone_at_first() {
    let server = Server::shared();
    let starting = Answer::Error("57P03", "the database system is starting up");
    let (gate, key) = (Gate::before(server, starting), unique("recovered"));
    let run = server.run(&key).env("PGLOCK_DSN", gate.dsn());
    let newcomer = run.args(["-v", "--wait", "20", "date", "+%s%N"]).spawn();
    // When the second one began, the first had failed.
    eventually(SOON, "two attempts", || gate.connections() > 1);
    let reached = now();
    gate.set(Answer::Relay);
    let output = newcomer.finish();
    let ran: u128 = String::from_utf8_lossy(&output.code(0).stdout).trim().parse().unwrap();
    assert!(
        ran - reached >= HALF_SECOND,
        "{} ns after the recovery: {output}",
        ran - reached
    );
    assert!(String::from_utf8_lossy(&output.stderr).contains(SETTLING), "{output}");
}

/// Asserts that, in this database, a run behind a pooler leaves a backend alone that the pooler has just opened, and
/// the next run does not.
#[track_caller]
fn assert_settles_behind_new_poolers(server: &Server, database: &str) {
    for (mode, scope) in [
        ("pool_mode=transaction", "auto"),
        ("pool_mode=session", "session-pooled"),
    ] {
        let bouncer = PgBouncer::with(server, &[mode]);
        let run = || {
            let run = bouncer.run(&unique("opened")).env("PGDATABASE", database);
            run.args(["-v", "--scope", scope, "true"]).output()
        };
        let first = run();
        let has_waited = |output: &Output| String::from_utf8_lossy(&output.stderr).contains(SETTLING);
        assert!(
            has_waited(&first) && first.took >= Duration::from_millis(500),
            "{first}"
        );
        let second = run();
        assert!(!has_waited(&second), "{second}");
    }
}

/// P25: so it does if only the pooler was restarted, and then no more.
#[test]
fn a_newcomer_leaves_a_backend_alone_that_the_pooler_has_just_opened() {
    assert_settles_behind_new_poolers(Server::shared(), "postgres");
}

/// P25: also where the session has another role than it logged in with, which may not see when the session began.
#[test]
fn a_newcomer_with_the_role_of_another_leaves_a_new_backend_alone() {
    let server = Server::shared();
    let (role, database) = (unique("owner"), server.database());
    server.sql(&format!("CREATE ROLE {role}"));
    server.sql(&format!(
        "ALTER ROLE {SUPERUSER} IN DATABASE {database} SET role = '{role}'"
    ));
    assert_settles_behind_new_poolers(server, &database);
}

/// The half second is not a slow try, after which a waiter pauses for ten times as long.
#[test]
fn a_waiter_that_was_held_up_by_a_new_backend_does_not_pause_for_longer() {
    let server = Server::shared();
    let hand_off = || {
        let bouncer = PgBouncer::with(server, &["pool_mode=transaction"]);
        let key = unique("cold");
        let holder = bouncer.run(&key).holding();
        let waiter = bouncer.run(&key).args(["-v", "date", "+%s%N"]).spawn();
        waiter.await_stderr("; waiting\n");
        assert!(waiter.stderr().contains(SETTLING), "{}", waiter.stderr());
        let freed = now();
        holder.finish().code(0);
        let output = waiter.finish();
        let ran: u128 = String::from_utf8_lossy(&output.code(0).stdout).trim().parse().unwrap();
        Duration::from_nanos((ran - freed) as u64)
    };
    // On a busy machine a try can be slow.
    let mut hand_offs = (0..TRIES).map(|_| hand_off());
    assert!(hand_offs.any(|took| took < Duration::from_secs(2)));
}

/// P25: a crash of a backend restarts the sessions of the server, though not the server.
#[test]
fn a_newcomer_waits_after_a_crash() {
    let server = Server::start();
    if server.version() < 15 {
        println!("SKIPPED: PostgreSQL before 15 does not tell newcomers when it crashed");
        return;
    }
    let key = unique("crashed");
    let crashed = |server: &Server| epoch(server, "pg_stat_get_bgwriter_stat_reset_time()");
    assert_settles(&server, Server::crash_restart, crashed, || server.run(&key));
}

/// P25
#[test]
fn a_signal_ends_the_half_second() {
    let server = Server::start();
    for _ in 0..TRIES {
        server.restart();
        let started = started(&server);
        let newcomer = server.run(&unique("young")).args(["-v", "-n", "echo", "ran"]).spawn();
        let has_said = |text| newcomer.stderr().contains(text);
        eventually(SOON, "the first query", || {
            has_said(SETTLING) || has_said("connected to ")
        });
        if !has_said(SETTLING) {
            newcomer.finish().code(0);
            continue;
        }
        newcomer.signal(Signal::SIGTERM);
        let output = newcomer.finish();
        if now() < started + HALF_SECOND {
            output.signal(Signal::SIGTERM);
            assert!(output.stdout.is_empty(), "{output}");
            return;
        }
    }
    panic!("no newcomer ended within the half second");
}
