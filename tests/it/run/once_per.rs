//! `--once-per`: not again in the same interval, on any host.

use crate::support::pgbouncer::PgBouncer;
use crate::support::run_table::RunTable;
use crate::support::server::Server;
use crate::support::wait::SOON;
use crate::support::{faketime, hostname, repetitions, unique};
use nix::sys::signal::Signal;
use std::time::Duration;

/// P102: by the road of every user, and again when the interval is over.
#[test]
fn a_success_prevents_another_within_the_interval() {
    let table = RunTable::new();
    let transactions = PgBouncer::with(table.server, &["pool_mode=transaction"]);
    let sessions = PgBouncer::with(table.server, &["pool_mode=session"]);
    let run_by = |road: &str| match road {
        "direct" => table.run(road),
        "transaction" => table.within(transactions.run(road)),
        _ => table.within(sessions.run(road)).args(["--scope", "session-pooled"]),
    };
    for key in ["direct", "transaction", "session"] {
        let run = || run_by(key).args(["--once-per", "20h"]);
        run().sh("echo ran").output().code(0);
        let line = run().args(["echo", "the job ran"]).output().code(75).stderr_line();
        let (age, rest) = line.split_once(" ago on ").unwrap_or_else(|| panic!("{line}"));
        assert!(age.starts_with(&format!("key {key:?} last succeeded ")), "{line}");
        assert!(rest.starts_with(&format!("{} (took ", hostname())), "{line}");
        assert!(rest.ends_with("); not again within 20h"), "{line}");
        // As if the lock were held.
        run()
            .args(["-E", "0", "echo", "the job ran"])
            .output()
            .code(0)
            .stderr_line();
        let quiet = run().args(["-q", "echo", "the job ran"]).output();
        assert!(quiet.code(75).silent().stdout.is_empty(), "{quiet}");
        // The lock is free, and whoever does not ask runs.
        table.run(key).args(["--no-wait", "true"]).output().code(0).silent();
        // The interval counts from the start, not from the end.
        table.sql(&format!(
            "UPDATE pglock_run SET started = started - interval '19:59:50' WHERE key = '{key}'"
        ));
        run().args(["echo", "the job ran"]).output().code(75);
        table.sql(&format!(
            "UPDATE pglock_run SET started = started - interval '20 s' WHERE key = '{key}'"
        ));
        run().arg("true").output().code(0).silent();
        assert_eq!(table.runs(key), ["ok 0", "ok 0"]);
    }
}

/// P102: the interval may be over between the look for a success and its description.
#[test]
fn a_success_that_is_leaving_the_interval_is_described() {
    let table = RunTable::new();
    let seven_seconds_ago = "clock_timestamp() - interval '7 s'";
    table.insert(
        "leaving",
        &[("started", seven_seconds_ago), ("ended", "clock_timestamp()")],
    );
    table.sql(
        "CREATE FUNCTION sleep() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN PERFORM pg_sleep(4); RETURN NULL; END $$; \
         CREATE TRIGGER slow AFTER INSERT ON pglock_run FOR EACH STATEMENT EXECUTE PROCEDURE sleep()",
    );
    let run = table.run("leaving").args(["--once-per", "10s", "echo", "the job ran"]);
    let line = run.output().code(75).stderr_line();
    assert!(line.ends_with("; not again within 10s"), "{line}");
}

/// P102
#[test]
fn only_a_success_counts() {
    let table = RunTable::new();
    let run = || table.run("k").args(["--once-per", "1h", "--heartbeat", "0.5"]);
    run().arg("false").output().code(1);
    run().arg("/no/such/command").output().code(127);
    run().sh("kill -KILL $$").output().signal(Signal::SIGKILL);
    let lost = run().holding();
    table.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'pglock:k %'");
    lost.await_stderr("lost the lock");
    lost.finish().code(74);
    let evicted = run().holding();
    let evictor = table.pglock();
    evictor.args(["evict", "--yes", "--key", "k"]).output().code(0);
    evicted.await_stderr("lost the lock");
    evicted.finish().code(74);
    let abandoned = run().arg("-o").holding();
    abandoned.signal(Signal::SIGKILL);
    abandoned.finish().signal(Signal::SIGKILL);
    run().args(["--wait", "20", "true"]).output().code(0).silent();
    run().arg("true").output().code(75);
    let expected = [
        "failed 1",
        "failed 127",
        "failed SIGKILL",
        "lost SIGTERM",
        "evicted SIGTERM",
        "abandoned",
        "ok 0",
    ];
    assert_eq!(table.runs("k"), expected);
}

/// P102: a waiter looks once it holds the lock.
#[test]
fn a_waiter_looks_again() {
    let table = RunTable::new();
    for scope in ["session", "transaction"] {
        let run = || table.run(scope).args(["--scope", scope, "--once-per", "1h"]);
        for (status, waiter_status) in [(3, 0), (0, 75)] {
            table.sql("DELETE FROM pglock_run");
            let holder = run().sh(&format!("echo ready; read x; exit {status}")).spawn();
            holder.await_stdout("ready");
            let waiter = run().args(["-v", "--wait", "60", "--poll", "0.02", "true"]).spawn();
            waiter.await_stderr("; waiting");
            holder.finish().code(status);
            waiter.finish().code(waiter_status);
        }
        assert_eq!(table.runs(scope), ["ok 0"]);
    }
}

/// P102: a clock of the server that was wrong for a while must not stop the job for as long as it was fast.
#[test]
fn a_start_in_the_future_counts_for_an_interval() {
    let table = RunTable::new();
    let run = || table.run("k").args(["--once-per", "20h", "true"]);
    table.insert(
        "k",
        &[
            ("started", "now() + interval '19h'"),
            ("ended", "now() + interval '19h'"),
        ],
    );
    run().output().code(75);
    table.sql("UPDATE pglock_run SET started = now() + interval '21h'");
    run().output().code(0).silent();
    run().output().code(75);
    // It does not hide an older success that counts.
    table.insert(
        "k",
        &[
            ("started", "now() + interval '21h'"),
            ("ended", "now() + interval '21h'"),
        ],
    );
    run().output().code(75);
}

/// P102: what counts is the start of a success, and not in which order the rows were numbered: the identity may be
/// behind the rows of a table that was copied, and a run may have been recorded while the clock of the server was
/// behind.
#[test]
fn the_last_start_counts_whatever_its_id() {
    let table = RunTable::new();
    let run = |key: &str| table.run(key).args(["--once-per", "20h", "true"]).output();
    let yesterday = [
        ("started", "now() - interval '25h'"),
        ("ended", "now() - interval '25h'"),
    ];
    table.sql("ALTER TABLE pglock_run ALTER id RESTART WITH 1000000");
    table.insert("copied", &yesterday);
    table.sql("ALTER TABLE pglock_run ALTER id RESTART WITH 1");
    run("copied").code(0).silent();
    run("copied").code(75);
    table.insert("behind", &[]);
    table.insert("behind", &yesterday);
    let line = run("behind").code(75).stderr_line();
    assert!(line.starts_with("key \"behind\" last succeeded 1h ago"), "{line}");
    assert_eq!(table.runs("copied").len() + table.runs("behind").len(), 4);
}

/// P102: the last success is found by an index, in a table of any size.
#[test]
fn a_large_table_is_not_read() {
    let server = Server::with(&["log_statement=all"]);
    let table = RunTable::on(&server);
    table.sql(
        "INSERT INTO pglock_run (key, number, mode, host, pid, job, waited, started, ended, exit_status, outcome) \
         SELECT '7', '7', 'exclusive', 'h', 1, 'true', 0, now() - n * interval '1 min', now() - n * interval '1 min', \
         0, 'ok' FROM generate_series(100000, 100, -1) AS n",
    );
    table.sql("VACUUM ANALYZE pglock_run");
    let before = server.log().len();
    table
        .run("7")
        .args(["--once-per", "1h", "true"])
        .output()
        .code(0)
        .silent();
    let log = server.log()[before..].to_owned();
    let is_query = |text: &&str| text.contains("pglock_run") && text.starts_with(['U', 'I', 'S', 'D']);
    let queries: Vec<&str> = log.lines().flat_map(|line| line.split("; ")).filter(is_query).collect();
    assert!(queries.iter().any(|query| query.starts_with("INSERT ")), "{log}");
    assert!(queries.iter().any(|query| query.starts_with("DELETE ")), "{log}");
    for query in queries {
        let plan = table.sql(&format!("EXPLAIN (COSTS off) {query}")).concat().join("\n");
        assert!(!plan.contains("Seq Scan"), "{query}\n{plan}");
        let is_by_end = !query.contains("ended > ") || plan.contains("pglock_run_ends_idx");
        assert!(is_by_end, "{query}\n{plan}");
    }
}

/// P102: where others could look at the same time, it could not be kept.
#[test]
fn it_needs_a_single_exclusive_lock() {
    let server = Server::shared();
    let refuses = |options: &[&str], expected: &str| {
        let run = server.run("k").args(options).args(["echo", "the job ran"]);
        let line = run.output().code(64).stderr_line();
        assert!(line.contains(expected), "{line}");
    };
    refuses(&["--once-per", "1h", "--slots", "2"], "--slots");
    refuses(&["--once-per", "1h", "--shared"], "--shared");
    refuses(&["--once-per", "1h", "--key", "l"], "several keys");
    refuses(&["--once-per", "0"], "more than 0");
    refuses(&["--once-per", "soon"], "a duration");
    refuses(&["--table", "runs"], "--record");
    refuses(&["--record", "--table", "a."], "SCHEMA.NAME");
    let run = server.run("k").args(["--record", "true"]).env("PGLOCK_TABLE", ".");
    assert!(run.output().code(78).stderr_line().contains("PGLOCK_TABLE"));
}

/// What happens to a host while its job runs, in [`two_hosts_run_it_once`].
#[derive(Clone, Copy, Debug)]
enum Fault {
    Nothing,
    FailedJob,
    KilledPglock,
    ServerCrash,
}

/// P102: crontabs of two hosts whose clocks differ by 40 minutes have the same line. The job takes 0.2 s, so that the
/// lock alone would not help. Whatever happens to the first host, one of them succeeds, and never both.
#[test]
fn two_hosts_run_it_once() {
    let server = Server::start();
    let table = RunTable::on(&server);
    let pooler = PgBouncer::with(&server, &["pool_mode=transaction", "server_login_retry=1"]);
    let library = faketime().expect("the package faketime");
    let mut random = fastrand::Rng::with_seed(7);
    let host = |key: &str, minutes_fast: u32, is_pooled: bool, status: i32| {
        let run = if is_pooled { pooler.run(key) } else { server.run(key) };
        let run = table.within(run).env("LD_PRELOAD", &library);
        let run = run.env("FAKETIME", format!("+{minutes_fast}m"));
        let run = run.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").args(["--once-per", "12h"]);
        let limits = ["--wait", "60", "--heartbeat", "0.5", "--kill-after", "0.5", "-o"];
        run.args(limits).sh(&format!("sleep 0.2; exit {status}")).spawn()
    };
    let faults = [
        Fault::Nothing,
        Fault::FailedJob,
        Fault::KilledPglock,
        Fault::ServerCrash,
    ];
    for round in 0..repetitions("PGLOCK_ONCE_PER_ROUNDS", 12) {
        let fault = faults[round % faults.len()];
        let (key, is_pooled) = (unique("nightly"), random.bool());
        let seen = format!("round {round}: {fault:?}, pooled: {is_pooled}");
        let first = host(&key, 40, is_pooled, i32::from(matches!(fault, Fault::FailedJob)));
        let moment = Duration::from_millis(random.u64(..400));
        match fault {
            Fault::Nothing | Fault::FailedJob => {}
            Fault::KilledPglock => {
                std::thread::sleep(moment);
                first.signal(Signal::SIGKILL);
            }
            Fault::ServerCrash => {
                std::thread::sleep(moment);
                server.stop_immediate();
                server.restart();
            }
        }
        // The other host's clock gets there now; in half of the rounds while the first still runs.
        let (first, second) = if random.bool() {
            let second = host(&key, 0, is_pooled, 0);
            (first.finish(), second.finish())
        } else {
            (first.finish(), host(&key, 0, is_pooled, 0).finish())
        };
        let runs = table.runs(&key);
        let successes = runs.iter().filter(|run| *run == "ok 0").count();
        assert_eq!(successes, 1, "{seen}: {runs:?}\n{first}\n{second}");
        assert!(!runs.iter().any(|run| run == "running"), "{seen}: {runs:?}");
        assert!(second.took < SOON, "{seen}: {second}");
    }
}
