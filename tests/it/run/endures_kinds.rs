//! Every kind of wait survives, on every road to the server: a network that is cut, a terminal, poolers.

use super::endures::assert_one_loss;
use crate::support::gate::{Answer, Gate};
use crate::support::journal::{Journal, now};
use crate::support::network::{Host, Network};
use crate::support::pgbouncer::PgBouncer;
use crate::support::pglock::{Pglock, Running};
use crate::support::screen::Screen;
use crate::support::server::Server;
use crate::support::tls::Secured;
use crate::support::unique;
use crate::support::wait::{SOON, eventually};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

/// P39: each loses its place in the queue and starts over, and nothing stays locked.
#[test]
fn every_kind_of_wait_survives_a_restart() {
    let server = Server::start();
    let other = unique("other");
    let kinds: [&[&str]; 6] = [
        &["--fair"],
        &["--slots", "1"],
        &["--key", &other],
        &["--shared"],
        &["--hash", "hashtext"],
        &["--scope", "transaction"],
    ];
    let runs = kinds.map(|options| {
        let (key, journal) = (unique("kind"), Journal::new());
        // With --shared the holder excludes the waiters.
        let own = if options == ["--shared"] { &[] } else { options };
        let holder = server.run(&key).args(own).args(["--kill-after", "60"]);
        let holder = holder.sh(&journal.recording("TERM")).spawn();
        journal.await_count("ready", 1);
        let run = || server.run(&key).args(options).args(["-v", "echo", "mine"]).spawn();
        let waiters = [run(), run()];
        for waiter in &waiters {
            waiter.await_stderr("; waiting\n");
        }
        (holder, waiters)
    });
    server.stop_fast();
    server.restart();
    for (holder, waiters) in &runs {
        for waiter in waiters {
            let is_back = || waiter.stderr().matches("; waiting\n").count() == 2;
            eventually(SOON, "another wait", is_back);
        }
        holder.signal(Signal::SIGUSR2);
    }
    for (holder, waiters) in runs {
        holder.finish().code(74);
        for waiter in waiters {
            assert_eq!(waiter.finish().code(0).stdout, b"mine\n");
        }
    }
    let locked = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
    eventually(SOON, "free locks", || server.value(locked) == "0");
}

fn run_on(host: &Host, server: &Server, key: &str) -> Pglock {
    let pglock = server.program("nsenter").args(host.entrance()).arg("--");
    let pglock = pglock.env("PGHOST", server.address());
    pglock.args([env!("CARGO_BIN_EXE_pglock"), "run", "--key", key])
}

/// P39
#[test]
fn a_waiter_comes_back_after_a_cut_of_its_network() {
    let Some(mut network) = Network::new() else {
        return;
    };
    let (server, host) = (Server::on(&network.host()), network.host());
    let key = unique("cut");
    let holder = server.run(&key).holding();
    let options = ["--heartbeat", "0.3", "--connect-timeout", "1", "echo", "mine"];
    let waiter = run_on(&host, &server, &key).args(options).spawn();
    server.await_locks(&key, 1, 1);
    network.cut(&host);
    waiter.await_stderr("; reconnecting\n");
    // The session that it lost leaves the queue.
    server.await_locks(&key, 1, 0);
    network.heal(&host);
    server.await_locks(&key, 1, 1);
    holder.finish().code(0);
    let freed = Instant::now();
    let output = waiter.finish();
    assert!(freed.elapsed() < Duration::from_secs(2), "{:?}", freed.elapsed());
    assert_eq!(output.code(0).stdout, b"mine\n");
    assert_one_loss(&output, &key, ": the server stopped responding; ");
}

/// P37, P39
#[test]
fn the_waiting_line_shows_why_it_reconnects() {
    let server = Server::start();
    let key = unique("shown");
    let limits = ["--heartbeat", "0.5", "--kill-after", "0.5"];
    let holder = server.run(&key).args(limits).holding();
    let screen = Screen::new(&server, (200, 24), &[("NO_COLOR", "1")]);
    let short = "--heartbeat 0.5 --kill-after 0.5";
    screen.line(&format!("clear; pglock run -k {key} {short} -- echo my turn"));
    let head = format!("pglock: waiting for key \"{key}\" for ");
    let shows = |text: &str| {
        screen.expect(text, |lines| {
            lines.iter().any(|line| line.starts_with(&head) && line.contains(text))
        });
    };
    shows("; held by ");
    server.stop_fast();
    holder.finish().code(74);
    shows("; reconnecting: ");
    server.restart();
    shows("; the job of the last holder may still be running");
    screen.expect("turn", |lines| lines.iter().any(|line| line == "my turn"));
}

/// Starts a holder and a waiter through the pooler, and waits until the waiter has been answered.
#[track_caller]
fn pair(server: &Server, bouncer: &PgBouncer, options: &[&str], key: &str) -> (Running, Running) {
    let holder = server.run(key).holding();
    let waiter = bouncer.run(key).args(options).args(["-v", "echo", "mine"]).spawn();
    waiter.await_stderr("; waiting\n");
    (holder, waiter)
}

/// Returns the scopes in which a waiter can wait behind a pooler, and the pooler's settings for each.
fn modes() -> [(&'static [&'static str], [&'static str; 2]); 2] {
    [
        (&[], ["pool_mode=transaction", "server_login_retry=1"]),
        (
            &["--scope", "session-pooled"],
            ["pool_mode=session", "server_login_retry=1"],
        ),
    ]
}

/// P39
#[test]
fn waiters_survive_a_restart_of_the_pooler() {
    let server = Server::shared();
    for (options, settings) in modes() {
        let bouncer = PgBouncer::with(server, &settings);
        let key = unique("pooler");
        let (holder, waiter) = pair(server, &bouncer, options, &key);
        bouncer.kill();
        waiter.await_stderr("; reconnecting\n");
        let _bouncer = bouncer.again(&settings);
        let is_back = || waiter.stderr().matches("; waiting\n").count() == 2;
        eventually(SOON, "another wait", is_back);
        holder.finish().code(0);
        assert_eq!(waiter.finish().code(0).stdout, b"mine\n");
    }
}

/// P39: the holder guards its key meanwhile.
#[test]
fn waiters_survive_a_restart_of_the_poolers_server() {
    let server = Server::start();
    for (options, settings) in modes() {
        let bouncer = PgBouncer::with(&server, &settings);
        let (key, journal) = (unique("server"), Journal::new());
        let holder = server.run(&key).args(["--kill-after", "60"]);
        let holder = holder.sh(&journal.recording("TERM")).spawn();
        journal.await_count("ready", 1);
        let run = bouncer.run(&key).args(options).args(["-v", "echo", "mine"]);
        let waiter = run.spawn();
        waiter.await_stderr("; waiting\n");
        server.stop_fast();
        server.restart();
        let is_back = || waiter.stderr().matches("; waiting\n").count() == 2;
        eventually(SOON, "another wait", is_back);
        holder.signal(Signal::SIGUSR2);
        holder.finish().code(74);
        assert_eq!(waiter.finish().code(0).stdout, b"mine\n");
    }
}

/// P26: a pooler hides the restart from the waiter, which finds out by the age of the server.
#[test]
fn a_pooled_waiter_leaves_the_old_job_its_time() {
    let server = Server::start();
    for (options, settings) in modes() {
        let bouncer = PgBouncer::with(&server, &settings);
        let (key, journal) = (unique("hidden"), Journal::new());
        let short = ["--heartbeat", "0.5", "--kill-after", "0.5"];
        let holder = server.run(&key).args(short).holding();
        let run = bouncer.run(&key).args(short).args(options).arg("-v");
        let waiter = run.sh(&journal.alone()).spawn();
        waiter.await_stderr("; waiting\n");
        let stopped = now();
        server.stop_fast();
        holder.finish().code(74);
        server.restart();
        let output = waiter.finish();
        output.code(0);
        let since = Duration::from_nanos((journal.first("enter") - stopped) as u64);
        println!("{since:?} after the restart");
        assert!(since >= Duration::from_millis(4500), "{since:?}: {output}");
    }
}

/// P39
#[test]
fn a_wait_covers_a_full_pooler() {
    let server = Server::shared();
    // No place for another client, and no free session of the pool.
    let crowded = ["pool_mode=transaction", "max_client_conn=1"];
    let narrow = ["pool_mode=transaction", "default_pool_size=1", "query_wait_timeout=1"];
    for (settings, cause) in [
        (&crowded[..], "no more connections allowed"),
        (&narrow, "query_wait_timeout"),
    ] {
        let bouncer = PgBouncer::with(server, settings);
        let mut client = bouncer.client_in("postgres");
        client.simple_query("BEGIN").unwrap();
        // Over a Unix socket the client library drops what comes together with the end of the connection.
        let run = || bouncer.run(&unique("full")).env("PGHOST", "127.0.0.1");
        let line = run().arg("true").output().code(69).stderr_line();
        assert!(line.contains(cause), "{line}");
        let waiter = run().args(["--wait", "20", "echo", "mine"]).spawn();
        waiter.await_stderr(cause);
        drop(client);
        let output = waiter.finish();
        assert_eq!(output.code(0).stdout, b"mine\n");
        assert_eq!(
            output.stderr.iter().filter(|byte| **byte == b'\n').count(),
            1,
            "{output}"
        );
    }
}

/// P39: a server without a free connection says so before the login. That is no reason to try without TLS, or with it,
/// where the answer may be final.
#[test]
fn a_refusal_for_the_moment_does_not_depend_on_tls() {
    let server = Secured::start();
    let (certificate, key) = (server.pki("good.crt"), server.pki("good.key"));
    let settings = [
        "client_tls_sslmode=require",
        &format!("client_tls_cert_file={certificate}"),
        &format!("client_tls_key_file={key}"),
        "max_client_conn=1",
    ];
    let bouncer = PgBouncer::with(&server, &settings);
    let client = bouncer.client_in("postgres");
    let run = bouncer.run(&unique("prefer")).env("PGHOST", "127.0.0.1");
    let run = run.env("PGSSLMODE", "prefer");
    let waiter = run.args(["--wait", "20", "echo", "mine"]).spawn();
    waiter.await_stderr("no more connections allowed");
    drop(client);
    assert_eq!(waiter.finish().code(0).stdout, b"mine\n");

    let gate = Gate::before(&server, Answer::Error("53300", "sorry, too many clients already"));
    let dsn = gate.dsn().replace("=disable", "=allow");
    let run = Pglock::alone().args(["run", "--key", &unique("allow"), "-d", &dsn]);
    let waiter = run.args(["--wait", "20", "echo", "mine"]).spawn();
    waiter.await_stderr("too many clients already");
    gate.set(Answer::Relay);
    assert_eq!(waiter.finish().code(0).stdout, b"mine\n");
}

/// P26: a pooler that is pointed to another server, as after a failover, hides it from the waiter. That server is older
/// than the wait, so its age tells nothing.
#[test]
fn a_pooled_waiter_notices_another_server() {
    let (first, second) = (Server::start(), Server::start());
    let modes = modes()
        .into_iter()
        .chain([(&[][..], ["pool_mode=session", "server_login_retry=1"])]);
    for (options, settings) in modes {
        let bouncer = PgBouncer::with(&first, &settings);
        let (key, journal) = (unique("moved"), Journal::new());
        let short = ["--heartbeat", "0.5", "--kill-after", "0.5"];
        let holder = first.run(&key).args(short).holding();
        let run = bouncer.run(&key).args(short).args(options).arg("-v");
        let waiter = run.sh(&journal.alone()).spawn();
        waiter.await_stderr("; waiting\n");
        let began = Instant::now();
        eventually(SOON, "a wait of some tries", || {
            began.elapsed() > Duration::from_millis(1500) && bouncer.stats("postgres", "total_xact_count") > 6
        });
        let moved = now();
        bouncer.point_to(&second);
        let output = waiter.finish();
        output.code(0);
        let since = Duration::from_nanos((journal.first("enter") - moved) as u64);
        println!("{since:?} after the change");
        assert!(since >= Duration::from_millis(4500), "{since:?}: {output}");
        holder.finish().code(0);
    }
}

/// P39: a reset of the statistics looks like a restart to a waiter that polls. It waits the old job out, and says why.
#[test]
fn a_reset_of_the_statistics_is_named() {
    let server = Server::start();
    if server.version() < 15 {
        println!("SKIPPED: PostgreSQL before 15 does not tell waiters when it crashed");
        return;
    }
    let key = unique("reset");
    let holder = server.run(&key).holding();
    let run = server.run(&key).args(["--heartbeat", "0.5", "--kill-after", "0.5"]);
    let waiter = run.args(["--scope", "transaction", "-v", "echo", "mine"]).spawn();
    waiter.await_stderr("; waiting\n");
    server.sql("SELECT pg_stat_reset_shared('bgwriter')");
    waiter.await_stderr(
        ": the server was restarted, or its statistics were reset (pg_stat_reset_shared); reconnecting\n",
    );
    holder.finish().code(0);
    assert_eq!(waiter.finish().code(0).stdout, b"mine\n");
}
