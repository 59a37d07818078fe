//! Behind a real PgBouncer: a lock that excludes, waiters that do not occupy the pool, a pool that is left clean, and a
//! loss that is noticed as on a direct connection.

use crate::support::case::Case;
use crate::support::pgbouncer::PgBouncer;
use crate::support::pglock::{Pglock, Running};
use crate::support::proxy::Proxy;
use crate::support::server::{Locks, SUPERUSER, Server, number, rows};
use crate::support::unique;
use crate::support::wait::{SOON, eventually, until};
use nix::sys::signal::{Signal, kill};
use postgres::{Client, Config, NoTls};
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

/// How a PgBouncer may treat the parameters of the startup message.
const STARTUP: [&[&str]; 2] = [
    &[],
    &["ignore_startup_parameters=application_name,extra_float_digits,options"],
];

fn bouncer<'a>(server: &'a Server, mode: &str, settings: &[&str]) -> PgBouncer<'a> {
    let mode = format!("pool_mode={mode}");
    PgBouncer::with(server, &[&[mode.as_str()], settings].concat())
}

/// Returns a pglock that connects through the pool of this database.
fn run(bouncer: &PgBouncer, key: &str, database: &str) -> Pglock {
    bouncer.run(key).env("PGDATABASE", database)
}

/// Returns all settings of this session but for the application name, which a pooler sets for each client.
fn settings(client: &mut Client) -> Vec<Vec<String>> {
    let sql = "SELECT name, setting FROM pg_settings \
               WHERE name <> 'application_name' AND name NOT LIKE 'transaction\\_%' ORDER BY name";
    rows(client, sql)
}

/// P41: no session of the pool is left with a lock or a changed setting.
#[track_caller]
fn assert_pool_is_clean(server: &Server, bouncer: &PgBouncer, database: &str, size: usize) {
    let locks = format!(
        "SELECT pid FROM pg_locks WHERE locktype = 'advisory' \
         AND database = (SELECT oid FROM pg_database WHERE datname = '{database}')"
    );
    assert_eq!(server.sql(&locks), [[""; 0]; 0]);
    // The pooler connects by TCP, which has settings that a Unix socket lacks.
    let mut direct = Config::new();
    direct.host("127.0.0.1").port(server.port());
    direct.user(SUPERUSER).dbname(database);
    let fresh = settings(&mut direct.connect(NoTls).unwrap());
    // All in a transaction at the same time, so that each occupies a session.
    let mut clients: Vec<Client> = (0..size).map(|_| bouncer.client_in(database)).collect();
    for client in &mut clients {
        rows(client, "BEGIN");
        assert_eq!(settings(client), fresh);
    }
}

/// P90: a pooler that dies at BEGIN, or whose server does, is unreachable (69), and not a pool of statements, which
/// would be a wrong setting (78).
#[test]
fn a_pooler_that_ends_at_begin_is_not_taken_for_one_that_pools_statements() {
    let server = Server::shared();
    let bouncer = bouncer(server, "transaction", &[]);
    const BEGIN: &str = "BEGIN ISOLATION LEVEL";
    for ends in [&[BEGIN][..], &[BEGIN, "SELECT 1"], &[BEGIN, "BEGIN\0", "BEGIN\0"]] {
        let proxy = Proxy::ending_at(bouncer.port(), ends);
        let run = || {
            let run = server.run(&unique("begin"));
            run.args(["--dsn", &proxy.dsn(), "-n", "true"]).output()
        };
        let line = run().code(69).stderr_line();
        assert!(!line.contains("statement pooling"), "{line}");
        run().code(0).silent();
    }
}

/// P41: something in front of the pooler that runs the statements of a message one by one does not make the session
/// look like one of our own, whose lock the other clients of the pool would share.
#[test]
fn a_pooler_is_noticed_behind_one_that_splits_messages() {
    let case = Case::new();
    let bouncer = bouncer(case.server, "transaction", &[]);
    let splitting = Proxy::splitting(bouncer.port());
    let run = || case.run().args(["-v", "--dsn", &splitting.dsn()]);
    let holder = run().holding();
    assert!(holder.stderr().contains("through a pooler"), "{}", holder.stderr());
    run().args(["-n", "true"]).output().code(75);
    holder.finish().code(0);
}

/// P40: over TCP, where PgBouncer's message is read before it closes the connection, and over a Unix socket, where it
/// is not.
#[test]
fn a_pooler_that_refuses_simple_queries_is_a_wrong_setting() {
    let server = Server::shared();
    let pooler = bouncer(server, "transaction", &["disable_pqexec=1"]);
    for host in [server.host(), "127.0.0.1"] {
        let run = pooler.run(&unique("pqexec")).env("PGHOST", host);
        let line = run.arg("true").output().code(78).stderr_line();
        assert!(line.contains("disable_pqexec"), "{line}");
        let check = pooler.pglock().env("PGHOST", host).arg("check").output();
        check.code(78).silent();
        assert!(
            String::from_utf8_lossy(&check.stdout).contains("disable_pqexec"),
            "{check}"
        );
        for command in [&["list"][..], &["evict", "--key", "pqexec", "--yes"]] {
            let output = pooler.pglock().env("PGHOST", host).args(command).output();
            assert!(output.code(78).stderr_line().contains("disable_pqexec"), "{output}");
        }
    }
}

/// P41: a pooler or a server that ends the first query is none that refuses simple ones.
#[test]
fn a_connection_that_ends_at_the_first_query_is_unreachable() {
    let server = Server::shared();
    let pooler = bouncer(server, "transaction", &[]);
    for ends in [&["SHOW "][..], &["SHOW ", "SELECT 1"], &["SHOW ", "Q\0\0\0\x05"]] {
        for port in [server.port(), pooler.port()] {
            let proxy = Proxy::ending_at(port, ends);
            let run = server.run(&unique("first")).args(["--dsn", &proxy.dsn(), "-n", "true"]);
            let line = run.output().code(69).stderr_line();
            assert!(line.contains("closed the connection"), "{line}");
        }
    }
}

/// P90: in a pool with one session, which the lock takes, or has taken for another key.
#[test]
fn a_pool_without_room_is_named_as_the_cause() {
    let case = Case::new();
    let database = case.database();
    let pooler = bouncer(case.server, "transaction", &["default_pool_size=1"]);
    let run = |key: &str| run(&pooler, key, &database).args(["--heartbeat", "1"]);
    let output = run(&case.key).args(["--token", "true"]).output();
    let line = output.code(69).stderr_line();
    assert!(line.contains("--token") && line.contains("default_pool_size"), "{line}");
    let holder = run(&case.key).holding();
    let line = run(&unique("other"))
        .args(["-n", "true"])
        .output()
        .code(69)
        .stderr_line();
    assert!(line.contains("default_pool_size"), "{line}");
    let list = pooler.pglock().env("PGDATABASE", &database);
    let list = list.arg("list").env("PGLOCK_HEARTBEAT", "1").output();
    assert!(list.code(69).stderr_line().contains("default_pool_size"), "{list}");
    holder.finish().code(0).silent();
}

/// P40, P41
#[test]
fn each_kind_of_pool_gets_the_right_scope_or_a_refusal() {
    let server = Server::shared();
    for startup in STARTUP {
        for (mode, auto, session_pooled) in [
            ("transaction", Some("t"), None),
            ("session", Some("t"), Some("f")),
            ("statement", None, None),
        ] {
            let (key, database) = (unique("scope"), server.database());
            let bouncer = bouncer(server, mode, startup);
            let in_transaction = format!(
                "SELECT state LIKE 'idle in%' FROM pg_locks JOIN pg_stat_activity USING (pid) \
                 WHERE locktype = 'advisory' AND datname = '{database}'"
            );
            let try_scope = |scope: &str, expected: Option<&str>| match expected {
                Some(expected) => {
                    let holder = run(&bouncer, &key, &database).args(["--scope", scope]);
                    let holder = holder.holding();
                    assert_eq!(server.locks(&key).granted, 1);
                    assert_eq!(server.sql(&in_transaction), [[expected]], "{mode} {scope}");
                    run(&bouncer, &key, &database).args(["-n", "true"]).output().code(75);
                    holder.finish().code(0).silent();
                }
                None => {
                    let output = run(&bouncer, &key, &database).args(["--scope", scope]);
                    let output = output.args(["echo", "ran"]).output();
                    let line = output.code(78).stderr_line();
                    assert!(line.contains("connect to the port of the PostgreSQL server itself"));
                }
            };
            try_scope("auto", auto);
            try_scope("transaction", auto);
            try_scope("session", None);
            if session_pooled.is_some() {
                try_scope("session-pooled", session_pooled);
            }
            if mode != "statement" {
                assert_pool_is_clean(server, &bouncer, &database, 2);
            }
        }
    }
}

/// Many light pglocks at once, without a pipe or a thread for each; killed on drop.
struct Crowd(Vec<Child>);

impl Crowd {
    fn join(&mut self, mut run: Pglock, stderr: &File) {
        let command = run.command();
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(stderr.try_clone().unwrap());
        self.0.push(command.spawn().unwrap());
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for child in &mut self.0 {
            if child.try_wait().unwrap().is_none() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

/// How many tries a second a waiter makes when its pauses have grown to 0.2 s or so, after five seconds.
const RARE_TRIES: usize = 6;

/// Returns how many wait behind a pool of five: a thousand or more take minutes on a small machine.
fn crowd_size() -> usize {
    let given = std::env::var("PGLOCK_TEST_WAITERS").ok();
    given.map_or(200, |given| given.parse().unwrap())
}

/// P10, P41: all acquire the lock one after another, and other clients of the pool are served meanwhile.
#[test]
fn a_crowd_behind_a_pool_of_five_takes_turns_and_does_not_hog_it() {
    let size = crowd_size();
    let server = Server::start();
    let (key, database) = (unique("crowd"), server.database());
    let bouncer = bouncer(&server, "transaction", &[]);
    let directory = tempfile::tempdir().unwrap();
    let (events, errors) = (directory.path().join("events"), directory.path().join("errors"));
    let stderr = File::create(&errors).unwrap();
    let script = format!("exec >>'{}'; echo in $$; echo out $$", events.display());
    let holder = run(&bouncer, &key, &database).holding();

    let began = Instant::now();
    let mut crowd = Crowd(Vec::new());
    for _ in 0..size {
        crowd.join(run(&bouncer, &key, &database).sh(&script), &stderr);
    }
    let clients = || bouncer.pool(&database, "cl_active") + bouncer.pool(&database, "cl_waiting");
    eventually(SOON * 6, "every client of the crowd", || clients() == size + 1);
    println!("{size} have connected within {:?}", began.elapsed());

    let (stop, replies) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (waited, turns) = std::thread::scope(|threads| {
        let other_client = || threads.spawn(|| latencies(&bouncer, &database, &stop, &replies));
        let stop_and_join = |other_client: ScopedJoinHandle<Vec<Duration>>| {
            stop.store(true, Ordering::SeqCst);
            let latencies = other_client.join().unwrap();
            stop.store(false, Ordering::SeqCst);
            latencies
        };
        // As in a wait for a job that is not the shortest.
        let mut last = (Instant::now(), bouncer.stats(&database, "total_xact_count"));
        eventually(SOON * 6, "pauses that have grown", || {
            let tries = bouncer.stats(&database, "total_xact_count");
            let (seconds, more) = (last.0.elapsed().as_secs_f64(), tries - last.1);
            if seconds >= 1.0 {
                last = (Instant::now(), tries);
            }
            seconds >= 1.0 && more as f64 <= (RARE_TRIES * size) as f64 * seconds
        });
        let other = other_client();
        eventually(SOON, "replies", || replies.load(Ordering::SeqCst) >= 200);
        let waited = stop_and_join(other);
        println!("{}", memory(&bouncer, &crowd));
        let other = other_client();
        holder.finish().code(0).silent();
        let freed = Instant::now();
        eventually(SOON * 30, "the turn of every waiter", || {
            crowd.0.retain_mut(|c| c.try_wait().unwrap().is_none());
            crowd.0.is_empty()
        });
        println!("{size} turns in {:?}", freed.elapsed());
        (waited, stop_and_join(other))
    });
    println!("replies to another client while they wait: {}", quantiles(&waited));
    println!("and while they take turns: {}", quantiles(&turns));
    assert!(waited[waited.len() / 2] < Duration::from_millis(50));

    assert_eq!(fs::read_to_string(&errors).unwrap(), "");
    let events = fs::read_to_string(&events).unwrap();
    let lines: Vec<&str> = events.lines().collect();
    assert_eq!(lines.len(), 2 * size);
    for pair in lines.chunks(2) {
        let inside = pair[0].strip_prefix("in ");
        assert!(inside.is_some() && inside == pair[1].strip_prefix("out "));
    }
    assert_pool_is_clean(&server, &bouncer, &database, 5);
}

/// Measures how long another client of the pool waits for each reply, until `stop` is set.
fn latencies(bouncer: &PgBouncer, database: &str, stop: &AtomicBool, replies: &AtomicUsize) -> Vec<Duration> {
    let mut client = bouncer.client_in(database);
    let mut latencies = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        let sent = Instant::now();
        rows(&mut client, "SELECT 1");
        latencies.push(sent.elapsed());
        replies.fetch_add(1, Ordering::SeqCst);
        until(Duration::from_millis(10), || stop.load(Ordering::SeqCst));
    }
    latencies.sort();
    latencies
}

fn quantiles(sorted: &[Duration]) -> String {
    let quantile = |percent: usize| sorted[(sorted.len() - 1) * percent / 100];
    let (median, late, last) = (quantile(50), quantile(99), quantile(100));
    format!(
        "{median:?} (median), {late:?} (99 %), {last:?} (longest of {})",
        sorted.len()
    )
}

/// Returns the memory that they use, where /proc tells.
fn memory(bouncer: &PgBouncer, crowd: &Crowd) -> String {
    let kilobytes_of = |pid: u32, field: &str| -> u64 {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let line = rollup.lines().find_map(|line| line.strip_prefix(field));
        let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        kilobytes.unwrap_or_default()
    };
    let waiters: u64 = crowd.0.iter().map(|child| kilobytes_of(child.id(), "Pss:")).sum();
    format!(
        "a waiter takes {} kB, the pooler {} kB",
        waiters / crowd.0.len().max(1) as u64,
        kilobytes_of(bouncer.pid().as_raw() as u32, "Rss:")
    )
}

/// P30, P41: through the pool and direct. The holder has no transaction id and no snapshot.
#[test]
fn neither_holder_nor_waiters_block_create_index_concurrently() {
    let case = Case::new();
    let database = case.database();
    let bouncer = bouncer(case.server, "transaction", &[]);
    let holder = run(&bouncer, &case.key, &database).holding();
    let waiters: Vec<_> = (0..3)
        .map(|_| run(&bouncer, &case.key, &database).arg("true").spawn())
        .collect();
    await_polling(&bouncer, &database, 4);
    for (name, mut job) in [
        ("pooled", bouncer.client_in(&database)),
        ("direct", case.client_in(&database)),
    ] {
        let table = format!("CREATE TABLE {name} AS SELECT generate_series(1, 1000) AS n");
        rows(&mut job, &table);
        let began = Instant::now();
        let index = format!("CREATE INDEX CONCURRENTLY ON {name} (n)");
        let indexing = std::thread::spawn(move || rows(&mut job, &index));
        eventually(SOON, "the index", || indexing.is_finished());
        indexing.join().unwrap();
        println!("the index was created in {:?}, {name}", began.elapsed());
    }
    let kept = "SELECT backend_xid, backend_xmin FROM pg_locks JOIN pg_stat_activity USING (pid) \
                WHERE locktype = 'advisory' AND datname = ";
    assert_eq!(case.sql(&format!("{kept}'{database}'")), [["", ""]]);
    holder.finish().code(0);
    for waiter in waiters {
        waiter.finish().code(0).silent();
    }
}

/// P41, P72: a waiter's tries are nearly all in vain, so each is one message. It keeps nothing: what the session holds
/// after it was left behind there.
#[test]
fn a_try_in_vain_is_one_message_that_keeps_nothing() {
    let server = Server::with(&["log_statement=all", "default_transaction_isolation=serializable"]);
    let bouncer = bouncer(&server, "transaction", &["default_pool_size=2"]);
    // Left behind in both sessions of the pool.
    let mut clients = [0, 1].map(|_| bouncer.client_in("postgres"));
    for sql in ["BEGIN", "SELECT pg_advisory_lock_shared(42)", "COMMIT"] {
        for client in &mut clients {
            rows(client, sql);
        }
    }
    drop(clients);
    let waiters: Vec<Running> = (0..10)
        .map(|_| run(&bouncer, "42", "postgres").arg("true").spawn())
        .collect();

    let is_probe = |statement: &&str| statement.contains("asks") && statement.contains("; SELECT true AS probed,");
    eventually(SOON, "twenty probes", || {
        let log = server.log();
        let (lines, _) = log.rsplit_once('\n').unwrap_or_default();
        let statements = lines.lines().filter_map(|line| Some(line.split_once("statement: ")?.1));
        let probes: Vec<&str> = statements.filter(is_probe).collect();
        // A serializable one would burden other clients.
        let is_whole =
            |statement: &&&str| statement.contains("ISOLATION LEVEL READ COMMITTED") && statement.ends_with("; COMMIT");
        assert_eq!(probes.iter().find(|statement| !is_whole(statement)), None);
        probes.len() >= 20
    });

    let sessions_of_probes = || {
        let sessions = server.sql("SELECT pid, query FROM pg_stat_activity WHERE state = 'idle'");
        let of_probes = sessions.into_iter().filter(|session| is_probe(&session[1].as_str()));
        of_probes.map(|session| session[0].clone()).collect::<Vec<String>>()
    };
    let is_busy = "SELECT FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() \
                   AND (state <> 'idle' OR state_change > clock_timestamp() - interval '50 ms')";
    let signal_all = |signal| waiters.iter().for_each(|waiter| waiter.signal(signal));
    let mut are_left = Vec::new();
    eventually(SOON, "two locks of sessions whose last query is a probe", || {
        // The pooler has passed on what the waiters had sent before they were stopped.
        signal_all(Signal::SIGSTOP);
        let is_quiet = until(Duration::from_secs(1), || server.sql(is_busy).is_empty());
        let sessions = sessions_of_probes();
        let list = server.pglock().args(["list", "--json"]).output();
        let list: Value = serde_json::from_slice(&list.code(0).stdout).unwrap();
        signal_all(Signal::SIGCONT);
        let locks = list["locks"].as_array().unwrap().iter();
        let held = locks.filter(|lock| {
            is_quiet && lock["state"] == "holding" && sessions.contains(&lock["backend_pid"].to_string())
        });
        are_left.extend(held.map(|lock| lock["leftover"] == true && lock["pid"].is_null()));
        are_left.len() >= 2
    });
    assert!(are_left.iter().all(|is_left| *is_left), "{are_left:?}");
    drop(waiters);
}

/// P41: no waiter stays on a connection to a pooler for more than a minute, so that the pooler can end. On the next
/// one it sends a probe first, and examines the server anew only where the lock may be free.
#[test]
fn a_waiter_goes_on_over_another_connection_by_a_probe() {
    let server = Server::with(&["log_statement=all"]);
    let bouncer = bouncer(&server, "transaction", &["default_pool_size=2"]);
    let holder = server.run("1").holding();
    let waiter = || run(&bouncer, "1", "postgres").arg("true");
    let waiters: Vec<Running> = (0..6).map(|_| waiter().spawn()).collect();
    // The same address becomes that of the server itself.
    let directory = tempfile::tempdir().unwrap();
    let address = directory.path().join(".s.PGSQL.5432");
    symlink(bouncer.socket(), &address).unwrap();
    let moving = || waiter().env("PGHOST", directory.path()).env("PGPORT", "5432").spawn();
    let moving: Vec<Running> = (0..3).map(|_| moving()).collect();
    let connections = || -> Vec<Vec<String>> {
        let clients = bouncer
            .admin("SHOW CLIENTS")
            .into_iter()
            .filter(|row| row[2] == "postgres");
        // When it was opened, and by which process.
        clients.map(|row| vec![row[8].clone(), row[15].clone()]).collect()
    };
    let mut first = Vec::new();
    eventually(SOON, "nine waiters", || {
        first = connections();
        first.len() == 9
    });
    fs::remove_file(&address).unwrap();
    let socket = format!(".s.PGSQL.{}", server.port());
    symlink(Path::new(server.host()).join(socket), &address).unwrap();
    eventually(Duration::from_secs(75), "the first connections to be closed", || {
        !connections().iter().any(|connection| first.contains(connection))
    });
    // In a transaction of its own, it looks whether the pool has just reached the server.
    let is_of_next = |line: &str| line.contains("; SELECT true AS probed,") && line.contains("AS backend_start");
    eventually(SOON, "a waiter that goes on", || {
        server
            .log()
            .lines()
            .any(|line| is_of_next(line) && line.ends_with("; COMMIT"))
    });
    // A direct connection is not taken for one of the pool.
    server.await_locks("1", 1, 3);
    holder.finish().code(0);
    for waiter in waiters.into_iter().chain(moving) {
        waiter.finish().code(0).silent();
    }
}

/// Waits until so many clients are connected to the pool of the database.
#[track_caller]
fn await_polling(bouncer: &PgBouncer, database: &str, clients: usize) {
    eventually(SOON, "clients of the pool", || {
        let of_pool = |row: &&Vec<String>| row[2] == database;
        bouncer.admin("SHOW CLIENTS").iter().filter(of_pool).count() == clients
    });
}

/// Asserts that this holder loses its lock now: job terminated, status 74, and the reason.
#[track_caller]
fn loses(holder: Running, what: &str, lose: impl FnOnce()) {
    holder.await_stdout("ready\n");
    let began = Instant::now();
    lose();
    holder.await_stderr("lost the lock");
    let noticed = began.elapsed();
    let output = holder.finish();
    output.code(74);
    assert!(
        output.stderr.ends_with(b"terminated the job with SIGTERM\n"),
        "{output}"
    );
    assert!(noticed < Duration::from_secs(2), "{what}: {noticed:?}");
    println!("{what}: noticed after {noticed:?}");
}

/// P20, P21: the loss of the pooler, or of the server connection, is handled as on a direct connection.
#[test]
fn a_holder_notices_the_loss_of_its_lock() {
    let case = Case::new();
    let database = case.database();
    // A guard meets the killed pool, after which PgBouncer would leave the server alone for 15 s.
    let pooler = bouncer(case.server, "transaction", &["server_login_retry=1"]);
    let holder = || {
        run(&pooler, &case.key, &database)
            .sh("echo ready; exec sleep 60")
            .spawn()
    };
    let backend = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_locks \
         WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = '{database}')"
    );
    loses(holder(), "pg_terminate_backend", || {
        assert_eq!(case.sql(&backend), [["t"]]);
    });
    loses(holder(), "KILL", || {
        pooler.admin(&format!("KILL {database}"));
    });
    case.await_locks(0, 0);
    pooler.admin(&format!("RESUME {database}"));
    loses(holder(), "a killed pooler", || pooler.kill());
    case.await_locks(0, 0);
}

/// P41: `RECONNECT` and `PAUSE` of PgBouncer let the holder's transaction go on, and waiters wait.
#[test]
fn a_holder_is_not_disturbed_by_reconnect_and_pause() {
    let case = Case::new();
    let database = case.database();
    let bouncer = bouncer(case.server, "transaction", &[]);
    let holder = run(&bouncer, &case.key, &database)
        .args(["--heartbeat", "0.5"])
        .holding();
    let wait = |arguments: &[&str]| {
        let waiter = run(&bouncer, &case.key, &database).arg("-v").args(arguments).spawn();
        waiter.await_stderr("; waiting\n");
        waiter
    };
    let slow = "sleep 0.7; echo mine";
    let waiter = wait(&["--heartbeat", "0.5", "sh", "-c", slow]);
    let limited = wait(&["-w", "2", "true"]);
    let signalled = wait(&["true"]);
    bouncer.admin(&format!("RECONNECT {database}"));
    std::thread::scope(|threads| {
        // PAUSE waits for the holder's transaction to end, and lends no session meanwhile.
        let pause = threads.spawn(|| bouncer.admin(&format!("PAUSE {database}")));
        eventually(SOON, "an attempt that the pause holds up", || {
            bouncer.pool(&database, "cl_waiting") > 0
        });
        assert!(!pause.is_finished());
        assert_eq!(case.locks().granted, 1);
        assert_eq!(waiter.stdout(), "");
        // A signal and a limit end the wait although the pooler does not respond. The pooler checks its queue of
        // clients once a second.
        let sent = Instant::now();
        signalled.signal(Signal::SIGTERM);
        signalled.finish().signal(Signal::SIGTERM);
        assert!(sent.elapsed() < Duration::from_secs(3), "{:?}", sent.elapsed());
        let limited = limited.finish();
        limited.code(75);
        assert!(limited.took < Duration::from_secs(3), "{limited}");

        holder.finish().code(0).silent();
        eventually(SOON, "the pause", || pause.is_finished());
    });
    // The reply to the attempt may come later than one to a heartbeat: it has waited in the pooler, and the lock is no
    // older than the reply.
    eventually(SOON, "an attempt that waits for seconds", || {
        bouncer.pool(&database, "maxwait") > 1
    });
    bouncer.admin(&format!("RESUME {database}"));
    assert_eq!(waiter.finish().code(0).stdout, b"mine\n");
    assert_eq!(case.locks(), Locks::default());
}

/// P14, behind a pooler, which frees the lock when its client's socket is closed.
#[test]
fn the_lock_of_a_killed_pglock_lives_as_long_as_its_job() {
    let case = Case::new();
    let database = case.database();
    let pools = [
        bouncer(case.server, "transaction", &[]),
        bouncer(case.server, "session", &[]),
    ];
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let script = format!("echo ready; read -r _ <'{}'", fifo.display());
    let scope = ["--scope", "session-pooled"];
    for (bouncer, scope, option, keeps) in [
        (&pools[0], None, None, true),
        (&pools[0], None, Some("--close"), false),
        (&pools[1], Some(scope), None, true),
        (&pools[1], Some(scope), Some("--close"), false),
    ] {
        let options = scope.into_iter().flatten().chain(option);
        let killed = run(bouncer, &case.key, &database).args(options).sh(&script).spawn();
        killed.await_stdout("ready");
        killed.signal(Signal::SIGKILL);
        drop(killed);
        if keeps {
            run(bouncer, &case.key, &database)
                .args(["-n", "true"])
                .output()
                .code(75);
        } else {
            case.await_locks(0, 0);
        }
        // This ends the job.
        fs::write(&fifo, "\n").unwrap();
        case.await_locks(0, 0);
    }
}

/// P38, P41: the timeouts are disabled for the transaction alone.
#[test]
fn timeouts_of_the_database_end_neither_a_long_job_nor_a_long_wait() {
    let case = Case::new();
    let server = case.server;
    let database = server.database();
    let mut timeouts = vec![
        "statement_timeout",
        "lock_timeout",
        "idle_in_transaction_session_timeout",
    ];
    timeouts.extend((server.version() >= 17).then_some("transaction_timeout"));
    for timeout in timeouts {
        server.sql(&format!("ALTER DATABASE {database} SET {timeout} = '1s'"));
    }
    let bouncer = bouncer(server, "transaction", &[]);
    let job = run(&bouncer, &case.key, &database).sh("echo ready; sleep 3").spawn();
    job.await_stdout("ready");
    let waiter = run(&bouncer, &case.key, &database).args(["echo", "mine"]).spawn();
    assert_eq!(waiter.finish().stdout(), "mine\n");
    assert_eq!(job.finish().stdout(), "ready\n");
    assert_pool_is_clean(server, &bouncer, &database, 2);
}

/// P70, P32, P33
#[test]
fn a_conflict_names_the_holder_and_a_wait_ends_in_time() {
    let case = Case::new();
    let key = &case.key;
    let database = case.database();
    let bouncer = bouncer(case.server, "transaction", &[]);
    let holder = run(&bouncer, key, &database).holding();
    let name = format!(":{} (backend ", holder.pid());
    let output = run(&bouncer, key, &database).args(["-n", "true"]).output();
    assert!(output.code(75).stderr_line().contains(&name), "{output}");
    for limit in [0.3, 1.5] {
        let waiter = run(&bouncer, key, &database).args(["-w", &limit.to_string(), "true"]);
        let output = waiter.output();
        assert!(output.code(75).stderr_line().contains(&name), "{output}");
        let late = output.took.as_secs_f64() - limit;
        assert!((0.0..0.7).contains(&late), "{late} s late");
    }
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let waiter = run(&bouncer, key, &database).args(["echo", "mine"]).spawn();
        await_polling(&bouncer, &database, 2);
        let sent = Instant::now();
        waiter.signal(signal);
        waiter.finish().signal(signal).silent();
        assert!(sent.elapsed() < Duration::from_millis(500), "{:?}", sent.elapsed());
    }
    // Direct and pooled pglocks exclude each other.
    case.run()
        .env("PGDATABASE", &database)
        .args(["-n", "true"])
        .output()
        .code(75);
    let shared = run(&bouncer, key, &database).args(["-s", "-n", "true"]).output();
    shared.code(75);
    holder.finish().code(0);
    let direct = case.run().env("PGDATABASE", &database).arg("-s").holding();
    run(&bouncer, key, &database)
        .args(["-s", "-n", "true"])
        .output()
        .code(0);
    run(&bouncer, key, &database).args(["-n", "true"]).output().code(75);
    direct.finish().code(0);
}

/// P10: a server that is being stopped ends the old sessions of a pool last, so that a waiter may be granted the lock
/// there only because the holder's session has been ended.
#[test]
fn a_waiter_whose_session_ends_right_after_it_was_granted_the_lock_starts_no_job() {
    let case = Case::new();
    let database = case.database();
    let bouncer = bouncer(case.server, "transaction", &["server_login_retry=1"]);
    let mut holder = case.server.client_in(&database);
    let number = number(&case.key);
    rows(&mut holder, &format!("SELECT pg_advisory_lock({number})"));
    let waiter = run(&bouncer, &case.key, &database)
        .args(["-v", "--heartbeat", "0.2", "--kill-after", "0.2", "--wait", "60"])
        .sh("echo started")
        .spawn();
    waiter.await_stderr(" is held by ");
    rows(
        &mut holder,
        &format!(
            "DO $$ DECLARE granted_pid int; BEGIN PERFORM pg_advisory_unlock({number}); LOOP \
             PERFORM pg_stat_clear_snapshot(); \
             SELECT pid INTO granted_pid FROM pg_locks JOIN pg_stat_activity USING (pid) \
             WHERE locktype = 'advisory' AND granted AND datname = '{database}' \
             AND state = 'idle in transaction' AND query LIKE '%RELEASE SAVEPOINT%'; \
             EXIT WHEN FOUND; PERFORM pg_sleep(0.001); END LOOP; PERFORM pg_terminate_backend(granted_pid); END $$"
        ),
    );
    waiter.await_stderr("lost the connection while waiting");
    let output = waiter.finish();
    assert_eq!(output.code(0).stdout, b"started\n");
}

/// P20: a stopped PgBouncer is silent.
#[test]
fn a_pooler_that_stops_responding_is_noticed_by_the_heartbeat() {
    let case = Case::new();
    let database = case.database();
    let bouncer = bouncer(case.server, "transaction", &[]);
    let holder = run(&bouncer, &case.key, &database).args(["--heartbeat", "0.3"]);
    let holder = holder.sh("echo ready; exec sleep 60").spawn();
    holder.await_stdout("ready\n");
    kill(bouncer.pid(), Signal::SIGSTOP).unwrap();
    holder.await_stderr("did not respond within 300ms");
    holder.finish().code(74);
}
