//! A waiter does no harm: no long snapshot, no log messages, no ghost in the queue, and exact limits.

use crate::support::case::Case;
use crate::support::proxy::Proxy;
use crate::support::server::{Locks, Server, number, receipt, rows};
use crate::support::unique;
use crate::support::wait::{SOON, eventually, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::{Duration, Instant};

/// P30, with three waiters.
#[test]
fn waiters_do_not_block_create_index_concurrently() {
    let case = Case::new();
    let database = case.database();
    let run = || case.run().env("PGDATABASE", &database);
    // The job ends once its index is built. The server cannot tell that this process runs the statement for the job.
    let holder = run().holding();
    let waiters: Vec<_> = (0..3).map(|_| run().arg("true").spawn()).collect();
    case.await_locks(1, 3);
    let mut job = case.client_in(&database);
    rows(&mut job, "CREATE TABLE t AS SELECT generate_series(1, 1000) AS n");
    rows(&mut job, "SET statement_timeout = '20s'");
    rows(&mut job, "CREATE INDEX CONCURRENTLY i ON t (n)");
    assert_eq!(case.locks().waiting, 3, "not all have been waiting meanwhile");
    holder.finish().code(0);
    for waiter in waiters {
        waiter.finish().code(0).silent();
    }
}

/// P30: not for longer than a slice of the wait.
#[test]
fn waiters_do_not_hold_back_vacuum() {
    let case = Case::new();
    let database = case.database();
    let run = || case.run().env("PGDATABASE", &database);
    let holder = run().holding();
    let waiters: Vec<_> = (0..3).map(|_| run().arg("true").spawn()).collect();
    case.await_locks(1, 3);
    let mut client = case.client_in(&database);
    rows(&mut client, "CREATE TABLE t AS SELECT generate_series(1, 1000) AS n");
    rows(&mut client, "DELETE FROM t");
    let deleted = rows(&mut client, "SELECT txid_current()").concat().concat();
    let held_back = format!(
        "SELECT backend_xmin FROM pg_stat_activity WHERE datname = '{database}' \
         AND pid <> pg_backend_pid() AND backend_xmin::text::bigint <= {deleted}"
    );
    // A slice is 900 ms.
    eventually(Duration::from_secs(3), "dead rows that VACUUM may remove", || {
        rows(&mut client, "VACUUM t");
        rows(&mut client, "SELECT pg_relation_size('t')") == [["0"]]
    });
    assert_eq!(rows(&mut client, &held_back), [[""; 0]; 0]);
    assert_eq!(case.locks().waiting, 3, "not all have been waiting meanwhile");
    holder.finish().code(0);
    for waiter in waiters {
        waiter.finish().code(0);
    }
}

/// P31: its session ends with its slice.
#[test]
fn a_killed_waiter_leaves_the_queue_within_a_slice() {
    let case = Case::new();
    let key = &case.key;
    let holder = case.holder();
    let waiter = case.run().arg("true").spawn();
    case.await_locks(1, 1);
    waiter.signal(Signal::SIGKILL);
    // Between two slices the queue is empty for a short time, so look for the session, which a ghost still has.
    let sessions = format!(
        "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'pglock:{key} %:{}'",
        waiter.pid()
    );
    eventually(Duration::from_secs(3), "the ghost's end", || {
        case.sql(&sessions).is_empty()
    });
    case.await_locks(1, 0);
    holder.finish().code(0);
}

/// P20: a wait can be longer than the heartbeat and its deadline, and the silence before the grant is not a loss of the
/// lock after it. The line is so slow that the first heartbeat reply arrives only after the job could notice.
#[test]
fn the_wait_is_not_taken_for_a_missing_heartbeat() {
    let case = Case::new();
    let key = &case.key;
    let number = number(key);
    let slow_line = Proxy::with_delay(case.server, Duration::from_millis(50));
    let mut holder = case.client();
    rows(&mut holder, &format!("SELECT pg_advisory_lock({number})"));
    let waiter = case
        .run()
        .args(["-d", &slow_line.dsn(), "--heartbeat", "0.4"])
        .sh("sleep 0.2; echo mine")
        .spawn();
    // Two periods are over when the grant arrives.
    let late_in_a_slice = format!(
        "SELECT pg_sleep(extract(epoch FROM query_start + interval '0.7 s' - clock_timestamp())) \
         FROM pg_stat_activity WHERE application_name LIKE 'pglock:{key} %' \
         AND wait_event = 'advisory' AND clock_timestamp() < query_start + interval '0.5 s'"
    );
    eventually(SOON, "the late part of a slice", || {
        !rows(&mut holder, &late_in_a_slice).is_empty()
    });
    rows(&mut holder, &format!("SELECT pg_advisory_unlock({number})"));
    assert_eq!(waiter.finish().stdout(), "mine\n");
}

/// Contends for a key: each of ten waiters waits for many slices, and one gives up.
fn contend(server: &Server) {
    let key = unique("log");
    let holder = server.run(&key).holding();
    let runs: Vec<_> = (0..10)
        .map(|_| server.run(&key).args(["sleep", "0.3"]).spawn())
        .collect();
    let impatient = server.run(&key).args(["-w", "1", "true"]).spawn();
    impatient.finish().code(75);
    holder.finish().code(0).silent();
    for run in runs {
        run.finish().code(0).silent();
    }
}

/// Returns what the server has logged since it started, except its checkpoints and that it was not ready yet.
fn complaints(server: &Server) -> Vec<String> {
    let log = server.log();
    let (_, since) = log.split_once("ready to accept connections\n").unwrap();
    let own = |line: &&str| !line.contains("checkpoint") && !line.contains("is starting up");
    since.lines().filter(own).map(str::to_owned).collect()
}

/// P30
#[test]
fn contention_leaves_no_trace_in_the_servers_log() {
    let server = Server::start();
    contend(&server);
    assert_eq!(complaints(&server), [""; 0]);
}

/// P30: each slice is shorter than `deadlock_timeout`, after which `log_lock_waits` logs it, and than
/// `log_min_duration_statement`.
#[test]
fn contention_leaves_no_trace_if_the_server_logs_slow_statements() {
    let server = Server::with(&["log_lock_waits=on", "log_min_duration_statement=500"]);
    contend(&server);
    assert_eq!(complaints(&server), [""; 0]);
    // Since version 13, for a sample of the statements, which is all of them by default.
    if server.version() >= 13 {
        let server = Server::with(&["log_min_duration_sample=500"]);
        contend(&server);
        assert_eq!(complaints(&server), [""; 0]);
    }
}

/// How many locks a session still holds after it has released one.
const LOCKS_STILL_HELD: &str = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()";

/// P34: PostgreSQL leaves a lock held that is granted as the timeout raises its error; a retry would then hold it
/// twice, and one unlock would not free it. The test makes the grant arrive at that time: it stops the waiter's
/// backend, frees the lock, and lets the timeout expire before it continues the backend.
#[test]
#[cfg(target_os = "linux")]
fn a_grant_that_comes_as_the_slice_ends_is_held_once() {
    let server = Server::start();
    let key = unique("race");
    let number = number(&key);
    let proxy = Proxy::asking(&server, LOCKS_STILL_HELD);
    let mut holder = server.client();
    rows(&mut holder, &format!("SELECT pg_advisory_lock({number})"));
    let waiter = server.run(&key).args(["-d", &proxy.dsn(), "echo", "mine"]).spawn();
    let mut observer = server.client();
    let mut waiting = || {
        let backends = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'advisory'";
        rows(&mut observer, backends)
            .concat()
            .concat()
            .parse()
            .ok()
            .map(Pid::from_raw)
    };
    let mut stopped = None;
    eventually(SOON, "a backend that is stopped within a slice", || {
        let Some(backend) = waiting() else {
            return false;
        };
        kill(backend, Signal::SIGSTOP).unwrap();
        let has_stopped = || process_state(backend, "State:").contains('T');
        eventually(SOON, "the stop of the backend", has_stopped);
        // Between two slices it may hold what other backends need.
        if waiting() != Some(backend) {
            kill(backend, Signal::SIGCONT).unwrap();
            return false;
        }
        stopped = Some(backend);
        true
    });
    let backend = stopped.unwrap();
    rows(
        &mut holder,
        &format!("SELECT pg_advisory_lock_shared({})", receipt(&key)),
    );
    rows(&mut holder, &format!("SELECT pg_advisory_unlock({number})"));
    assert_eq!(server.locks(&key), Locks { granted: 1, waiting: 0 });
    eventually(SOON, "the end of the slice", || {
        let pending = u64::from_str_radix(&process_state(backend, "ShdPnd:"), 16).unwrap();
        pending >> (Signal::SIGALRM as u32 - 1) & 1 == 1
    });
    kill(backend, Signal::SIGCONT).unwrap();
    assert_eq!(waiter.finish().stdout(), "mine\n");
    eventually(SOON, "the proxy's reply", || !proxy.answers().is_empty());
    assert_eq!(proxy.answers(), ["0"], "the lock is still held after one unlock");
}

#[cfg(target_os = "linux")]
fn process_state(pid: Pid, field: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.unwrap().trim().to_owned()
}

/// P34: many hand-offs with tiny slices, so that many grants arrive as a slice ends.
#[test]
fn many_hand_offs_leave_nothing_held() {
    let server = Server::with(&["deadlock_timeout=20ms"]);
    let key = unique("handoffs");
    let proxy = Proxy::asking(&server, LOCKS_STILL_HELD);
    let dsn = proxy.dsn();
    std::thread::scope(|threads| {
        for _ in 0..6 {
            threads.spawn(|| {
                for _ in 0..20 {
                    let run = server.run(&key).args(["-d", &dsn, "sleep", "0.01"]);
                    run.output().code(0).silent();
                }
            });
        }
    });
    eventually(SOON, "the proxy's replies", || proxy.answers().len() == 120);
    assert_eq!(proxy.answers(), ["0"; 120]);
    assert_eq!(server.locks(&key), Locks::default());
    assert_eq!(complaints(&server), [""; 0]);
}

/// P38: with timeouts of 1 s, a job and a wait of 4 s survive.
#[test]
fn timeouts_of_the_role_end_neither_a_long_job_nor_a_long_wait() {
    let (case, role) = (Case::new(), unique("impatient_role"));
    case.sql(&format!("CREATE ROLE {role} LOGIN"));
    let mut settings = vec![
        "statement_timeout",
        "lock_timeout",
        "idle_in_transaction_session_timeout",
    ];
    settings.extend((case.version() >= 14).then_some("idle_session_timeout"));
    settings.extend((case.version() >= 17).then_some("transaction_timeout"));
    for setting in settings {
        case.sql(&format!("ALTER ROLE {role} SET {setting} = '1s'"));
    }
    let run = || case.run().env("PGUSER", &role).env("PGDATABASE", "postgres");
    let job = run().sh("echo ready; sleep 4").spawn();
    job.await_stdout("ready");
    let waiter = run().args(["echo", "mine"]).spawn();
    // It polls rarely, and its session is idle between two attempts.
    let polling = run()
        .args(["--scope", "transaction", "--poll", "3", "echo", "mine"])
        .spawn();
    for output in [waiter.finish(), polling.finish()] {
        assert_eq!(output.stdout(), "mine\n");
        assert!(output.took > Duration::from_secs(3), "{output}");
    }
    assert_eq!(job.finish().stdout(), "ready\n");
}

/// P32: not before the limit, and soon after it.
#[test]
fn a_limited_wait_ends_in_time() {
    let case = Case::new();
    let holder = case.holder();
    for (limit, seconds) in [("1.5", 1.5), ("300ms", 0.3), ("0.05", 0.05)] {
        let output = case.run().args(["--wait", limit, "true"]).output();
        let line = output.code(75).stderr_line();
        let late = output.took.as_secs_f64() - seconds;
        assert!((0.0..0.7).contains(&late), "{late} s late: {output}");
        assert!(line.contains("; gave up after "), "{output}");
        assert_eq!(case.locks().waiting, 0);
    }
    // One that acquires the lock in time does not wait longer.
    let waiter = case.run().args(["--wait", "1h", "echo", "mine"]).spawn();
    case.await_locks(1, 1);
    holder.finish().code(0);
    let freed = Instant::now();
    assert_eq!(waiter.finish().stdout(), "mine\n");
    assert!(freed.elapsed() < Duration::from_secs(1), "{:?}", freed.elapsed());
}

const ENDS_A_WAIT: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// P33
#[test]
fn a_signal_ends_the_wait_at_once_and_leaves_no_waiter() {
    let case = Case::new();
    let holder = case.holder();
    for signal in ENDS_A_WAIT {
        let waiter = case.run().args(["echo", "mine"]).spawn();
        case.await_locks(1, 1);
        let sent = Instant::now();
        waiter.signal(signal);
        let output = waiter.finish();
        let took = sent.elapsed();
        output.signal(signal).silent();
        assert_eq!(case.locks(), Locks { granted: 1, waiting: 0 });
        assert!(took < Duration::from_millis(500), "{took:?} after {signal}");
        assert_eq!(output.stdout, b"", "the job was started");
    }
    holder.finish().code(0);
}

/// P33: while connecting, and between two slices.
#[test]
fn a_signal_ends_the_wait_at_any_time() {
    let server = Server::with(&["deadlock_timeout=20ms"]);
    let key = unique("moments");
    let holder = server.run(&key).holding();
    for n in 0..40 {
        let mut waiter = server.run(&key).args(["echo", "mine"]).spawn();
        let has_ended = until(Duration::from_millis(n), || !waiter.lives());
        assert!(!has_ended, "it did not wait");
        let sent = Instant::now();
        waiter.signal(Signal::SIGTERM);
        waiter.finish().signal(Signal::SIGTERM).silent();
        let took = sent.elapsed();
        assert!(took < Duration::from_millis(1500), "{took:?} when sent after {n} ms");
    }
    server.await_locks(&key, 1, 0);
    holder.finish().code(0);
}

/// P32, P33: without plpgsql, pglock polls with `pg_try_advisory_lock`.
#[test]
fn without_plpgsql_pglock_polls() {
    let case = Case::new();
    let (database, role) = (case.database(), unique("polling_role"));
    let mut client = case.client_in(&database);
    rows(&mut client, "REVOKE USAGE ON LANGUAGE plpgsql FROM PUBLIC");
    rows(&mut client, &format!("CREATE ROLE {role} LOGIN"));
    let run = || case.run().env("PGDATABASE", &database).env("PGUSER", &role);
    let mut await_polling = || {
        let polling = format!(
            "SELECT 1 FROM pg_stat_activity WHERE usename = '{role}' AND state = 'idle' \
             AND query LIKE '%pg_try_advisory_lock%' AND query NOT LIKE '%application_name%'"
        );
        eventually(SOON, "a waiter that polls", || rows(&mut client, &polling).len() == 1);
    };
    let holder = case.run().env("PGDATABASE", &database).holding();

    let output = run().args(["-w", "1.5", "true"]).output();
    output.code(75).stderr_line();
    assert!((1.5..2.2).contains(&output.took.as_secs_f64()), "{output}");

    for signal in ENDS_A_WAIT {
        let waiter = run().args(["echo", "mine"]).spawn();
        await_polling();
        let sent = Instant::now();
        waiter.signal(signal);
        waiter.finish().signal(signal).silent();
        let took = sent.elapsed();
        assert!(took < Duration::from_millis(500), "{took:?} after {signal}");
    }

    let waiter = run().args(["echo", "mine"]).spawn();
    await_polling();
    assert_eq!(case.locks(), Locks { granted: 1, waiting: 0 }, "it polls");
    holder.finish().code(0);
    assert_eq!(waiter.finish().stdout(), "mine\n");
    assert_eq!(case.locks(), Locks::default());
}

/// P70: if the server stops responding before the wait is over, no holder is named.
#[test]
fn a_server_that_falls_silent_is_not_taken_for_a_conflict() {
    let case = Case::new();
    let key = &case.key;
    let holder = case.holder();
    let waiter = case.run().args(["--wait", "1", "true"]).spawn();
    case.await_locks(1, 1);
    let backend = case.value(&format!(
        "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'pglock:{key} %:{}'",
        waiter.pid()
    ));
    let backend = Pid::from_raw(backend.parse().unwrap());
    kill(backend, Signal::SIGSTOP).unwrap();
    let output = waiter.finish();
    kill(backend, Signal::SIGCONT).unwrap();
    let expected =
        format!("could not acquire the lock on key \"{key}\"; the holder could not be determined; gave up after 1s");
    assert_eq!(output.code(75).stderr_line(), expected);
    holder.finish().code(0);
}
