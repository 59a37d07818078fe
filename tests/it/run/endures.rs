//! A wait survives what is not an answer: a server that restarts, is away, starts up or has no connection left.

use crate::support::command::command;
use crate::support::gate::{Answer, Gate};
use crate::support::journal::{Journal, now};
use crate::support::pglock::{Output, Pglock, Running};
use crate::support::proxy::Proxy;
use crate::support::server::{Server, WITH_PASSWORD};
use crate::support::tls::Secured;
use crate::support::unique;
use crate::support::wait::{SOON, eventually};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

/// What a waiter prints when it loses its connection, without the cause.
fn loss_line(key: &str) -> String {
    format!("pglock: lost the connection while waiting for key \"{key}\": ")
}

/// Asserts that it has printed nothing but, at most, the line about the loss, with this cause in it.
#[track_caller]
pub fn assert_one_loss(output: &Output, key: &str, cause: &str) {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let is_loss = text.starts_with(&loss_line(key)) && text.ends_with("; reconnecting\n") && text.contains(cause);
    assert!(text.is_empty() || (is_loss && text.lines().count() == 1), "{output}");
}

/// Starts a holder whose job goes on after TERM until USR2, so that it guards its key after a restart.
#[track_caller]
fn lingering(run: Pglock, journal: &Journal) -> Running {
    let before = journal.count("ready");
    let holder = run.args(["--kill-after", "60"]).sh(&journal.recording("TERM")).spawn();
    journal.await_count("ready", before + 1);
    holder
}

/// Ends the job of [`lingering`].
#[track_caller]
fn end(holder: Running) {
    holder.signal(Signal::SIGUSR2);
    holder.finish().code(74);
}

/// H = D = G = 0.5 s: the job of a holder that lost its lock is dead after 1.5 s, and the lock is left alone for 4.5 s.
const SHORT: [&str; 4] = ["--heartbeat", "0.5", "--kill-after", "0.5"];
const SHORT_LIMIT: Duration = Duration::from_millis(4500);
/// What a busy machine may add.
const SLACK: Duration = Duration::from_millis(1500);

/// P39, P25: all get their turn, one after the other, though the holder lost its lock.
#[test]
fn waiters_get_their_turn_after_a_restart() {
    let server = Server::start();
    let (key, journal) = (unique("restart"), Journal::new());
    let holder = lingering(server.run(&key), &journal);
    let waiters: Vec<Running> = (0..3).map(|_| server.run(&key).sh(&journal.alone()).spawn()).collect();
    server.await_locks(&key, 1, 3);
    server.stop_fast();
    server.restart();
    // They have seen the guard, and are queued behind it.
    server.await_locks(&key, 1, 3);
    end(holder);
    let freed = Instant::now();
    for waiter in waiters {
        assert_one_loss(waiter.finish().code(0), &key, "");
    }
    assert!(freed.elapsed() < Duration::from_secs(5), "{:?}", freed.elapsed());
    journal.assert_alone(3..=3);
    server.await_locks(&key, 0, 0);
}

/// P39, P26: a holder whose job died at once has no guard. The waiters start when its job must be dead, and not later.
#[test]
fn waiters_start_when_the_old_job_must_be_dead() {
    let server = Server::start();
    let (key, journal) = (unique("away"), Journal::new());
    let holder = server.run(&key).args(SHORT).holding();
    let waiters: Vec<Running> = (0..3)
        .map(|_| server.run(&key).args(SHORT).sh(&journal.alone()).spawn())
        .collect();
    server.await_locks(&key, 1, 3);
    let stopped = now();
    server.stop_fast();
    holder.finish().code(74);
    for waiter in &waiters {
        waiter.await_stderr(&loss_line(&key));
    }
    let is_lost = now();
    server.restart();
    for waiter in waiters {
        assert_one_loss(waiter.finish().code(0), &key, "");
    }
    let started = journal.first("enter");
    let since = |at: u128| Duration::from_nanos(started.saturating_sub(at) as u64);
    println!("after the loss of the server: {:?}", since(stopped));
    assert!(since(stopped) >= SHORT_LIMIT, "{:?}", since(stopped));
    assert!(since(is_lost) < SHORT_LIMIT + SLACK, "{:?}", since(is_lost));
    journal.assert_alone(3..=3);
}

/// P26: the limit that the holder shows counts, with the margin, if it is longer than one's own.
#[test]
fn the_limit_of_the_holder_counts() {
    let server = Server::start();
    let (key, journal) = (unique("shown"), Journal::new());
    let holder = server
        .run(&key)
        .args(["--heartbeat", "0.5", "--kill-after", "3.5"])
        .holding();
    let waiter = server.run(&key).args(SHORT).sh(&journal.alone()).spawn();
    // It has seen the limit between two slices of its wait, after the holder's first heartbeat.
    let seen = format!(
        "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'pglock:{key} %:{}' \
         AND clock_timestamp() > backend_start + interval '2.2 s'",
        waiter.pid()
    );
    eventually(SOON, "two slices", || !server.sql(&seen).is_empty());
    let stopped = now();
    server.stop_fast();
    holder.finish().code(74);
    server.restart();
    assert_one_loss(waiter.finish().code(0), &key, "");
    let since = Duration::from_nanos((journal.first("enter") - stopped) as u64);
    // H + D + G of the holder is as long as the waiter's own limit, and the margin makes it longer.
    assert!(since >= Duration::from_millis(7500), "{since:?}");
}

/// P26: a waiter that alone lost its session waits on as before. Over TCP, since the client library can forget the last
/// message of a server on a Unix socket if the end of the connection comes with it.
#[test]
fn a_waiter_whose_own_session_was_terminated_is_not_delayed() {
    let server = Server::shared();
    let key = unique("alone");
    let holder = server.run(&key).holding();
    let over_tcp = server.run(&key).env("PGHOST", "127.0.0.1");
    let waiter = over_tcp.args(["echo", "mine"]).spawn();
    server.await_locks(&key, 1, 1);
    let name = format!("application_name LIKE 'pglock:{key} %:{}'", waiter.pid());
    let terminate = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {name}");
    assert_eq!(server.value(&terminate), "t");
    waiter.await_stderr(&loss_line(&key));
    server.await_locks(&key, 1, 1);
    holder.finish().code(0);
    let freed = Instant::now();
    let output = waiter.finish();
    assert!(freed.elapsed() < SLACK, "{:?}", freed.elapsed());
    assert_eq!(output.code(0).stdout, b"mine\n");
    let cause = "terminating connection due to administrator command";
    assert_one_loss(&output, &key, cause);
}

/// P39: from the first answer on, also where no other client was seen to hold the lock. The query after it, as that for
/// the token, stays without a reply.
#[test]
fn a_silence_after_the_first_answer_ends_no_wait() {
    let server = Server::shared();
    let output = |queries, options: &[&str]| {
        let key = unique("silence");
        let proxy = Proxy::silent_after(server, queries);
        let run = server.run(&key).env("PGLOCK_DSN", proxy.dsn());
        let run = run.arg("--token").args(SHORT).args(options);
        let output = run.args(["echo", "mine"]).output();
        proxy.await_silence();
        (output, key)
    };
    // With this hash, the first answer is the number of the key; whether the session is pooled is not known then.
    for (options, hint) in [
        (&[] as &[&str], "; "),
        (&["--hash", "hashtext"], " (a pooler without a free session, "),
    ] {
        let (endured, key) = output(&[1], options);
        assert_eq!(endured.code(0).stdout, b"mine\n");
        assert_one_loss(&endured, &key, &format!(": the server stopped responding{hint}"));
        assert!(!endured.stderr.is_empty(), "{endured}");
    }
    for (queries, options) in [(&[1], &["--no-wait"] as &[&str]), (&[0], &[])] {
        let (ended, _) = output(queries, options);
        assert!(ended.code(69).stdout.is_empty(), "{ended}");
    }
}

/// P32, P39: 75, since the lock was seen held, with the last cause; while the server is away, and after it is back.
#[test]
fn a_limited_wait_ends_in_time_without_the_server() {
    let server = Server::start();
    let key = unique("limited");
    let holder = server.run(&key).holding();
    let run = |limit: &'static str| server.run(&key).args(["--wait", limit, "true"]);
    let (brief, long) = (run("2").spawn(), run("4").spawn());
    server.await_locks(&key, 1, 2);
    server.stop_fast();
    holder.finish().code(74);
    let check = |waiter: Running, seconds: u64, cause: &str| {
        let output = waiter.finish();
        let text = String::from_utf8_lossy(&output.code(75).stderr).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{output}");
        assert!(lines[0].starts_with(&loss_line(&key)), "{output}");
        let outcome = format!("pglock: key \"{key}\" was held when the connection was lost: {cause}");
        assert!(lines[1].starts_with(&outcome), "{output}");
        assert!(lines[1].ends_with(&format!("; gave up after {seconds}s")), "{output}");
        let late = output.took.as_secs_f64() - seconds as f64;
        assert!((0.0..0.8).contains(&late), "{late} s late: {output}");
    };
    check(brief, 2, "cannot connect to ");
    server.restart();
    check(long, 4, "the job of the client that held it may still be running");
}

/// Asserts that a job that printed the time ran within 1.5 s of this time.
#[track_caller]
fn assert_ran_soon_after(ready: u128, output: &Output, cause: &str) {
    let ran: u128 = String::from_utf8_lossy(&output.code(0).stdout).trim().parse().unwrap();
    let since = Duration::from_nanos(ran.saturating_sub(ready) as u64);
    println!("{since:?} after the server was ready");
    assert!(since < Duration::from_millis(1500) + SLACK / 3, "{since:?}: {output}");
    let line = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(line.contains(cause) && line.lines().count() == 1, "{output}");
}

/// P39: with `--wait` from the first attempt on; without it, or with `--no-wait`, 69 at once.
#[test]
fn a_wait_covers_a_server_that_is_not_started_yet() {
    let server = Server::start();
    server.stop_fast();
    let key = unique("early");
    let waiter = server.run(&key).args(["--wait", "20", "date", "+%s%N"]).spawn();
    waiter.await_stderr(&format!("; retrying until the wait for key \"{key}\" is over\n"));
    for options in [&[][..], &["-n"]] {
        let output = server.run(&key).args(options).arg("true").output();
        output.code(69).stderr_line();
        assert!(output.took < SLACK, "{output}");
    }
    server.restart();
    assert_ran_soon_after(now(), &waiter.finish(), "cannot connect to ");
    let key = unique("never");
    server.stop_fast();
    let output = server.run(&key).args(["--wait", "0.5", "true"]).output();
    let text = String::from_utf8_lossy(&output.code(69).stderr).into_owned();
    assert_eq!(text.matches("cannot connect to ").count(), 2, "{output}");
    assert!(output.took < Duration::from_millis(1300), "{output}");
}

const STARTING: Answer = Answer::Error("57P03", "the database system is starting up");

/// P39: also while the server answers that it is starting up, or does not answer at all.
#[test]
fn a_wait_covers_a_server_that_is_starting_up() {
    let server = Server::shared();
    let gate = Gate::before(server, STARTING);
    let run = || server.run(&unique("starting")).args(["-d", &gate.dsn()]);
    for options in [&[][..], &["-n"]] {
        let line = run().args(options).arg("true").output().code(69).stderr_line();
        assert!(line.ends_with("the database system is starting up"), "{line}");
    }
    assert_eq!(gate.connections(), 2, "one attempt each");
    for (answer, cause) in [
        (STARTING, "the database system is starting up"),
        (Answer::Close, "the server closed the connection unexpectedly"),
        (
            Answer::Error("08P01", "no more connections allowed (max_client_conn)"),
            "no more connections allowed",
        ),
        (
            Answer::Error("XX000", "Max client connections reached"),
            "Max client connections reached",
        ),
    ] {
        gate.set(answer);
        let before = gate.connections();
        let waiter = run().args(["--wait", "20", "date", "+%s%N"]).spawn();
        eventually(SOON, "the fifth attempt", || gate.connections() >= before + 5);
        gate.set(Answer::Relay);
        assert_ran_soon_after(now(), &waiter.finish(), cause);
    }
}

/// P39
#[test]
fn a_wait_covers_a_server_without_free_connections() {
    let settings = [
        "max_connections=4",
        "superuser_reserved_connections=0",
        "max_wal_senders=0",
    ];
    let server = Server::with(&settings);
    let key = unique("crowded");
    let mut clients = Vec::new();
    while let Ok(client) = server.config().connect(postgres::NoTls) {
        clients.push(client);
    }
    let line = server.run(&key).arg("true").output().code(69).stderr_line();
    assert!(line.contains("too many clients already"), "{line}");
    let waiter = server.run(&key).args(["--wait", "20", "date", "+%s%N"]).spawn();
    waiter.await_stderr("too many clients already; retrying");
    drop(clients);
    assert_ran_soon_after(now(), &waiter.finish(), "too many clients already");
}

/// P39: too few descriptors may be enough again.
#[test]
fn a_wait_covers_a_shortage_of_descriptors() {
    let gate = Gate::before(Server::shared(), STARTING);
    let run = Server::shared().run(&unique("shortage")).args(["-d", &gate.dsn()]);
    let waiter = run.args(["-v", "--wait", "60", "true"]).spawn();
    eventually(SOON, "an attempt", || gate.connections() > 0);
    let limit = |number: &str| {
        let arguments = ["--pid", &waiter.pid().to_string(), &format!("--nofile={number}:")];
        assert!(command("prlimit").args(arguments).status().unwrap().success());
    };
    limit("8");
    waiter.await_stderr("too few file descriptors left to connect");
    limit("256");
    gate.set(Answer::Relay);
    waiter.finish().code(0);
}

/// P39, P90: what another attempt would not change ends the wait at the first attempt.
#[test]
fn a_final_failure_ends_the_wait_at_once() {
    let secured = Secured::start();
    secured.show("wrong");
    let gate = Gate::before(&secured, Answer::Relay);
    let plain = Server::shared();
    plain.sql(&format!(
        "DO $$ BEGIN CREATE ROLE {WITH_PASSWORD} LOGIN; EXCEPTION WHEN OTHERS THEN NULL; END $$"
    ));
    let plain_gate = Gate::before(plain, Answer::Relay);
    let on = |gate: &Gate, rest: &str| format!("host=127.0.0.1 port={} dbname=postgres {rest}", gate.port());
    let root = secured.pki("ca.crt");
    let (wrong, unknown) = ("user=with_password", "user=postgres dbname=no_such_database");
    let cases = [
        (&plain_gate, on(&plain_gate, &format!("{wrong} sslmode=disable")), 77, 1),
        (
            &plain_gate,
            on(&plain_gate, &format!("{unknown} sslmode=disable")),
            78,
            1,
        ),
        (&plain_gate, on(&plain_gate, "user=postgres sslmode=require"), 69, 1),
        (&plain_gate, on(&plain_gate, "user=postgres sslmode=sometimes"), 78, 0),
        (
            &gate,
            on(&gate, &format!("user=postgres sslmode=verify-full sslrootcert={root}")),
            69,
            1,
        ),
    ];
    for (gate, dsn, code, attempts) in cases {
        for options in [&["--wait", "20"][..], &[], &["-n"]] {
            let before = gate.connections();
            let run = plain
                .run(&unique("final"))
                .args(["-d", &dsn])
                .args(options)
                .env("PGPASSWORD", "wrong");
            let output = run.arg("true").output();
            output.code(code).stderr_line();
            assert!(output.took < Duration::from_secs(3), "{output}");
            assert_eq!(gate.connections() - before, attempts, "{output}");
        }
    }
}

/// P33: while the server is away, during a pause and during an attempt that hangs, before the first connection and
/// after a loss.
#[test]
fn a_signal_ends_a_wait_without_a_server_at_once() {
    let server = Server::shared();
    let check = |waiter: Running, signal: Signal, key: &str| {
        let sent = Instant::now();
        waiter.signal(signal);
        let output = waiter.finish();
        let took = sent.elapsed();
        assert!(took < Duration::from_millis(500), "{took:?}: {output}");
        let text = String::from_utf8_lossy(&output.signal(signal).stderr).into_owned();
        let expected = [loss_line(key), "pglock: cannot connect to ".into()];
        assert!(
            text.is_empty() || expected.iter().any(|line| text.starts_with(line)),
            "{output}"
        );
        assert!(text.lines().count() <= 1, "{output}");
    };
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        for away in [STARTING, Answer::Silence] {
            // Not connected yet.
            let (gate, key) = (Gate::before(server, away), unique("signal"));
            let run = || server.run(&key).args(["-d", &gate.dsn(), "--wait", "20", "true"]);
            let waiter = run().spawn();
            let attempts = if matches!(away, Answer::Silence) { 1 } else { 4 };
            eventually(SOON, "attempts", || gate.connections() >= attempts);
            check(waiter, signal, &key);
            // After a loss.
            gate.set(Answer::Relay);
            let holder = server.run(&key).holding();
            let waiter = server.run(&key).args(["-d", &gate.dsn(), "true"]).spawn();
            server.await_locks(&key, 1, 1);
            let before = gate.connections();
            gate.set(away);
            gate.close_all();
            eventually(SOON, "attempts", || gate.connections() >= before + attempts);
            check(waiter, signal, &key);
            holder.finish().code(0);
        }
    }
}

/// P39: `pglock: connection closed` says too little, and how a server has left TLS says nothing.
#[test]
fn the_line_about_a_closed_session_names_key_and_cause() {
    let server = Secured::start();
    let with_tls = |dsn: &str| dsn.replace("postgres@", "with_tls@").replace("=disable", "=require");
    for convert in [str::to_owned as fn(&str) -> String, with_tls] {
        let (gate, key) = (Gate::before(&server, Answer::Relay), unique("closed"));
        let holder = server.run(&key).holding();
        let run = |options: &[&str]| {
            let run = server.run(&key).args(options);
            run.args(["-d", &convert(&gate.dsn()), "true"]).spawn()
        };
        let (waiter, quiet) = (run(&[]), run(&["-q"]));
        server.await_locks(&key, 1, 2);
        gate.close_all();
        let line = "the server closed the connection unexpectedly; reconnecting\n";
        waiter.await_stderr(&format!("{}{line}", loss_line(&key)));
        // Each is back in the queue.
        eventually(SOON, "four connections", || gate.connections() == 4);
        server.await_locks(&key, 1, 2);
        holder.finish().code(0);
        assert_one_loss(waiter.finish().code(0), &key, line);
        quiet.finish().code(0).silent();
    }
}
