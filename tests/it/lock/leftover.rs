//! Locks that were left behind in the sessions of a pool: a key that the lent session holds already is held, although
//! PostgreSQL would grant it to that session again.

use crate::support::hostname;
use crate::support::pgbouncer::PgBouncer;
use crate::support::pglock::Pglock;
use crate::support::screen::Screen;
use crate::support::server::{Server, number, rows};
use crate::support::wait::{SOON, eventually};
use serde_json::Value;
use std::collections::BTreeSet;

/// Each of these pools is one session, which resets nothing when it changes hands.
const POOL_OF_ONE: [&str; 2] = ["pool_mode=transaction", "default_pool_size=1"];
const SESSION_POOL_OF_ONE: [&str; 3] = ["pool_mode=session", "default_pool_size=1", "server_reset_query="];

/// A pool in front of a database of its own, in which any key is free.
struct Pool<'a> {
    server: &'a Server,
    bouncer: PgBouncer<'a>,
    database: String,
}

impl Pool<'_> {
    fn with(settings: &[&str]) -> Pool<'static> {
        let server = Server::shared();
        Pool {
            server,
            bouncer: PgBouncer::with(server, settings),
            database: server.database(),
        }
    }

    /// Leaves this lock behind in a session of the pool, as a client that comes and goes. Returns its backend.
    fn leave(&self, lock: &str) -> String {
        let mut client = self.bouncer.client_in(&self.database);
        let left = rows(&mut client, &format!("SELECT pg_backend_pid(), {lock}"));
        left[0][0].clone()
    }

    /// Returns a pglock that connects to the server itself.
    fn direct(&self) -> Pglock {
        self.server.pglock().env("PGDATABASE", &self.database)
    }

    fn pglock(&self) -> Pglock {
        self.bouncer.pglock().env("PGDATABASE", &self.database)
    }

    fn run(&self, arguments: &[&str]) -> Pglock {
        self.pglock().arg("run").args(arguments)
    }

    /// Returns the advisory locks of the database, as keys and modes.
    fn locks(&self) -> Vec<Vec<String>> {
        self.server.sql(&format!(
            "SELECT classid, objid, mode FROM pg_locks WHERE locktype = 'advisory' \
             AND database = (SELECT oid FROM pg_database WHERE datname = '{}') ORDER BY 1, 2, 3",
            self.database
        ))
    }

    /// Ends every session that holds a lock while nobody uses it, and waits until they have gone.
    #[track_caller]
    fn end_leftovers(&self) {
        let end = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}' AND state = 'idle' \
             AND pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory') \
             AND state_change < clock_timestamp() - interval '200 ms'",
            self.database
        );
        eventually(SOON, "the end of the leftovers", || {
            self.server.sql(&end);
            self.locks().is_empty()
        });
    }
}

/// P43: for every form of a lock. Nothing is left of a lock that was not acquired, and the leftover stays.
#[test]
fn a_key_that_the_lent_session_holds_is_held() {
    let exclusive = "pg_advisory_lock(42)";
    let both_slots = format!("{exclusive}, pg_advisory_lock({})", slot_1_of_42());
    let transaction: &[(&str, &[&str], i32)] = &[
        (exclusive, &["-k", "42"], 75),
        (exclusive, &["-k", "42", "--scope", "transaction"], 75),
        (exclusive, &["-k", "42", "-s"], 75),
        ("pg_advisory_lock_shared(42)", &["-k", "42"], 75),
        ("pg_advisory_lock_shared(42)", &["-k", "42", "-s"], 0),
        (exclusive, &["-k", "43"], 0),
        (exclusive, &["-k", "0,42"], 0),
        ("pg_advisory_lock(7, -8)", &["-k", "7,-8"], 75),
        ("pg_advisory_lock(7, -8)", &["-k", "7,-8", "-s"], 75),
        ("pg_advisory_lock_shared(7, -8)", &["-k", "7,-8", "-s"], 0),
        // The first of several keys is acquired before the second is found held, and released again.
        (exclusive, &["-k", "1", "-k", "42"], 75),
        (exclusive, &["-k", "42", "-k", "99"], 75),
        (exclusive, &["-k", "1", "-k", "2", "-k", "0,42"], 0),
        (exclusive, &["-k", "42", "--slots", "2"], 0),
        (exclusive, &["-k", "42", "--slots", "1"], 75),
        (&both_slots, &["-k", "42", "--slots", "2"], 75),
        (
            "pg_advisory_lock(hashtext('x'))",
            &["-k", "x", "--hash", "hashtext"],
            75,
        ),
        (
            "pg_advisory_lock(hashtextextended('x', 0))",
            &["-k", "x", "--hash", "hashtextextended"],
            75,
        ),
        ("pg_advisory_lock(6111399565520850680)", &["-k", "backup"], 75),
        (
            "pg_advisory_lock(('x'||substr(md5('x'), 1, 16))::bit(64)::bigint)",
            &["-k", "x", "--hash", "md5"],
            75,
        ),
        (
            "pg_advisory_lock(hashtext('x'))",
            &["-k", "x", "-k", "y", "--hash", "hashtext"],
            75,
        ),
    ];
    for (settings, scope) in [
        (&POOL_OF_ONE[..], None),
        (&SESSION_POOL_OF_ONE[..], Some(["--scope", "session-pooled"])),
        (&SESSION_POOL_OF_ONE[..], None),
    ] {
        let pool = Pool::with(settings);
        for (left, arguments, code) in transaction {
            if scope.is_some() && arguments.contains(&"--scope") {
                continue;
            }
            if pool.server.version() < 11 && arguments.contains(&"hashtextextended") {
                println!("SKIPPED: PostgreSQL before 11 has no hashtextextended()");
                continue;
            }
            pool.leave(left);
            let locks = pool.locks();
            let run = pool.run(arguments).args(scope.into_iter().flatten());
            let output = run.args(["-n", "--", "echo", "ran"]).output();
            let expected: &[u8] = if *code == 0 { b"ran\n" } else { b"" };
            assert_eq!(output.code(*code).stdout, expected, "{left}: {output}");
            assert_eq!(pool.locks(), locks, "{left}: {output}");
            pool.end_leftovers();
            // The key was free but for the leftover.
            let run = pool.run(arguments).args(scope.into_iter().flatten());
            run.args(["-n", "true"]).output().code(0).silent();
            assert_eq!(pool.locks(), [[""; 0]; 0]);
        }
    }
}

/// Returns the key of slot 1 of 42, as documented: computed without pglock.
fn slot_1_of_42() -> i64 {
    number("pglock slot 1 of 42")
}

/// P43: of several slots, those that were left behind are passed over.
#[test]
fn a_slot_that_was_left_behind_is_passed_over() {
    let pool = Pool::with(&POOL_OF_ONE);
    pool.leave("pg_advisory_lock(42)");
    for _ in 0..20 {
        let run = pool.run(&["-k", "42", "--slots", "2", "-n"]);
        assert_eq!(run.sh("echo $PGLOCK_SLOT").output().stdout(), "1\n");
    }
}

/// P43: a waiter acquires the key when the session that holds it has ended.
#[test]
fn a_waiter_waits_for_the_end_of_the_session() {
    let pool = Pool::with(&POOL_OF_ONE);
    let backend = pool.leave("pg_advisory_lock(42)");
    for arguments in [
        &["-k", "42"][..],
        &["-k", "42", "--slots", "1"],
        &["-k", "1", "-k", "42"],
    ] {
        let output = pool.run(arguments).args(["-w", "1.5", "echo", "ran"]).output();
        let line = output.code(75).stderr_line();
        assert!(
            line.contains(&format!("a session of the pool (backend {backend})")),
            "{line}"
        );
        assert!(line.ends_with("; gave up after 1s 500ms"), "{line}");
    }
    let waiter = pool.run(&["-k", "42", "-v", "echo", "ran"]).spawn();
    waiter.await_stderr("; waiting\n");
    pool.end_leftovers();
    assert_eq!(waiter.finish().code(0).stdout, b"ran\n");
    assert_eq!(pool.locks(), [[""; 0]; 0]);
}

/// P43: in a pool of sessions the waiter has the session to itself, and with it the leftover. It polls, since the
/// server's queue would grant it the key.
#[test]
fn a_waiter_in_a_pool_of_sessions_does_not_queue_behind_itself() {
    let pool = Pool::with(&SESSION_POOL_OF_ONE);
    pool.leave("pg_advisory_lock(42), pg_advisory_lock(43, 44)");
    for arguments in [
        &["-k", "42"][..],
        &["-k", "42", "-s"],
        &["-k", "43,44"],
        &["-k", "1", "-k", "42"],
        &["-k", "42", "--slots", "1"],
        &["-k", "42", "--fair"],
    ] {
        let locks = pool.locks();
        let run = pool.run(arguments).args(["--scope", "session-pooled"]);
        let output = run.args(["-w", "1.5", "echo", "ran"]).output();
        let line = output.code(75).stderr_line();
        assert!(line.contains("a session of the pool"), "{line}");
        let keys_of = |locks: Vec<Vec<String>>| locks.into_iter().map(|lock| lock.join(" "));
        let held: BTreeSet<String> = keys_of(pool.locks()).collect();
        assert!(keys_of(locks).all(|lock| held.contains(&lock)), "{held:?}");
    }
}

/// P43: over a hundred tries through a pool of five, whose sessions are lent in every order, whichever of them is lent.
#[test]
fn no_session_of_a_larger_pool_is_granted_the_key() {
    const TRIES: usize = 100;
    let pool = Pool::with(&["pool_mode=transaction", "default_pool_size=5"]);
    let mut clients: Vec<_> = (0..5).map(|_| pool.bouncer.client_in(&pool.database)).collect();
    let begin = |client: &mut postgres::Client| rows(client, "BEGIN; SELECT pg_backend_pid()").concat().concat();
    let backends: Vec<String> = clients.iter_mut().map(begin).collect();
    assert_eq!(backends.iter().collect::<BTreeSet<_>>().len(), 5);
    rows(&mut clients[2], "SELECT pg_advisory_lock(42)");
    let mut lent = BTreeSet::new();
    for n in 0..TRIES {
        // The last session that is returned is lent first.
        for step in 1..=5 {
            rows(&mut clients[(n + step) % 5], "COMMIT");
        }
        let output = pool.run(&["-k", "42", "-n", "-v", "--", "echo", "ran"]).output();
        assert!(output.code(75).stdout.is_empty(), "{output}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let named = text
            .split("(backend ")
            .nth(1)
            .and_then(|rest| rest.split([')', ',']).next());
        assert_eq!(named, Some(backends[2].as_str()), "{text}");
        let used = text.split(", backend ").nth(1).and_then(|rest| rest.split(',').next());
        lent.insert(used.unwrap_or_else(|| panic!("{text}")).to_owned());
        clients.iter_mut().for_each(|client| drop(begin(client)));
    }
    assert_eq!(lent.len(), 5, "lent were {lent:?}");
    drop(clients);
    pool.end_leftovers();
    pool.run(&["-k", "42", "-n", "true"]).output().code(0).silent();
}

/// P43, P70, P72, P75, P76: a leftover is shown as one by every command, through the session that holds it too, and
/// `evict` ends that session.
#[test]
fn every_command_shows_the_leftover_and_evict_ends_it() {
    let pool = Pool::with(&POOL_OF_ONE);
    for is_direct in [false, true] {
        let backend = pool.leave("pg_advisory_lock(42)");
        let line = pool.run(&["-k", "42", "-n", "true"]).output().code(75).stderr_line();
        assert_eq!(
            line,
            format!(
                "key 42 in database {:?} is held by a session of the pool (backend {backend}): left behind, or held by \
                 another client of the same pool; pglock evict --key 42 or pg_terminate_backend({backend}) ends it; \
                 not waiting",
                pool.database
            )
        );
        let pglock = || {
            if is_direct { pool.direct() } else { pool.pglock() }
        };
        let check = pool.pglock().args(["check", "--json"]).output();
        let report: Value = serde_json::from_slice(&check.code(0).stdout).unwrap();
        let findings = report["findings"].as_array().unwrap();
        let leftovers = findings
            .iter()
            .find(|finding| finding["subject"] == "leftovers")
            .unwrap();
        assert_eq!(leftovers["level"], "warning");
        let fact = leftovers["fact"].as_str().unwrap();
        assert!(
            fact.starts_with(&format!("a session of the pool (backend {backend}) holds 42: ")),
            "{fact}"
        );

        // The pool's last client is a pglock that holds nothing.
        pool.run(&["-k", "42", "-n", "-q", "true"]).output().code(75);
        let list = pglock().args(["list", "--json"]).output();
        let list: Value = serde_json::from_slice(&list.code(0).stdout).unwrap();
        let locks = list["locks"].as_array().unwrap();
        assert_eq!(locks.len(), 1, "{list}");
        assert_eq!(locks[0]["backend_pid"].to_string(), backend);
        assert_eq!(
            (&locks[0]["key"], &locks[0]["state"]),
            (&"42".into(), &"holding".into())
        );
        assert_eq!(
            (&locks[0]["leftover"], &locks[0]["pid"]),
            (&true.into(), &Value::Null),
            "{list}"
        );

        let evict = pglock().args(["evict", "--key", "42", "--yes"]).output();
        assert!(
            evict
                .code(0)
                .to_string()
                .contains(" cannot be asked; terminated its session"),
            "{evict}"
        );
        let text = String::from_utf8_lossy(&evict.stdout).into_owned();
        let report = format!("evicted a session of the pool (backend {backend}");
        assert!(text.contains(&report) && text.ends_with("key 42 is free\n"), "{text}");
        pool.run(&["-k", "42", "-n", "true"]).output().code(0).silent();
        let check = pool.pglock().arg("check").output();
        assert!(!String::from_utf8_lossy(&check.code(0).stdout).contains("leftovers"));
    }
}

/// P43, P75: a session that has lost the leftover while the question is open is the pool's again, and is left alone.
#[test]
fn a_session_without_the_leftover_is_left_alone() {
    let pool = Pool::with(&POOL_OF_ONE);
    let backend = pool.leave("pg_advisory_lock(42)");
    // The pool's last client is a pglock that holds nothing.
    pool.run(&["-k", "42", "-n", "-q", "true"]).output().code(75);
    let screen = Screen::new(pool.server, (100, 24), &[("PGDATABASE", &pool.database)]);
    screen.line("clear; pglock evict -k 42");
    screen.expect("question", |lines| lines.concat().ends_with("[y/N]"));
    pool.leave("pg_advisory_unlock(42)");
    let next = pool.run(&["-k", "payroll"]).holding();
    screen.line("y");
    let gone = format!("a session of the pool (backend {backend}) was already gone");
    let report = screen.expect("report", |lines| lines.iter().any(|line| line == "key 42 is free"));
    assert!(report.contains(&gone), "{report:?}");
    next.finish().code(0).silent();
}

/// P43, P72, P75: a pglock that the pool lends the session to has its own lock there. The leftover is not taken for its
/// lock, neither before its first heartbeat nor after it, and its job is not terminated to end the leftover.
#[test]
fn a_leftover_beside_the_lock_of_a_pglock_is_not_evicted() {
    for heartbeat in ["60", "0.3"] {
        let pool = Pool::with(&POOL_OF_ONE);
        let backend = pool.leave("pg_advisory_lock(42)");
        let run = || pool.run(&["-k", "payroll", "--heartbeat", heartbeat]);
        let other = run().holding();
        let sent = format!(
            "SELECT 1 FROM pg_stat_activity WHERE pid = {backend} AND query LIKE '/* pglock {}%'",
            if heartbeat == "60" { "job " } else { "holds " }
        );
        eventually(SOON, "its query tag", || !pool.server.sql(&sent).is_empty());
        let list = pool.direct().args(["list", "--json"]).output().code(0).stdout();
        let list: Value = serde_json::from_str(&list).unwrap();
        let is_leftover = |lock: &Value| (lock["key"] == "42", lock["leftover"] == true);
        let locks: Vec<_> = list["locks"].as_array().unwrap().iter().map(is_leftover).collect();
        assert!(
            locks.len() == 2 && locks.iter().all(|(is_42, is_leftover)| is_42 == is_leftover),
            "{list:#}"
        );

        let evict = |keys: &[&str]| pool.direct().args(["evict", "--yes"]).args(keys).output();
        let session = format!("a session of the pool (backend {backend})");
        let lent = format!(
            "{session} was not evicted: the pool has lent it to {}:{}",
            hostname(),
            other.pid()
        );
        let text = evict(&["-k", "42"]).code(75).to_string();
        assert!(
            text.contains(&lent) && text.contains(&format!("key 42 is now held by {session}")),
            "{text}"
        );
        other.finish().code(0).silent();

        // It can be ended when that pglock has been evicted, too, or by force.
        let other = run().holding();
        eventually(SOON, "its query tag", || !pool.server.sql(&sent).is_empty());
        let further = if heartbeat == "60" {
            &["--force"][..]
        } else {
            &["-k", "payroll"]
        };
        let text = evict(&[&["-k", "42"], further].concat()).code(0).to_string();
        assert!(text.contains("\nkey 42 is free"), "{text}");
        other.finish().code(74);
    }
}
