//! `--record`: a run is in the table before its job starts, and complete before its lock is released.

use crate::support::hostname;
use crate::support::pgbouncer::PgBouncer;
use crate::support::pglock::{Pglock, Running};
use crate::support::proxy::Proxy;
use crate::support::run_table::RunTable;
use crate::support::server::{Server, rows};
use crate::support::unique;
use crate::support::wait::{SOON, eventually};
use nix::sys::signal::Signal;
use std::time::Duration;

/// How a pglock may reach the server: directly, through a pool of transactions, and through a pool of sessions.
struct Roads<'a> {
    table: &'a RunTable<'a>,
    transactions: PgBouncer<'a>,
    sessions: PgBouncer<'a>,
}

impl Roads<'_> {
    fn to<'a>(table: &'a RunTable<'a>) -> Roads<'a> {
        Roads {
            table,
            transactions: PgBouncer::with(table.server, &["pool_mode=transaction"]),
            sessions: PgBouncer::with(table.server, &["pool_mode=session"]),
        }
    }

    /// Returns `pglock run --key KEY` by each road, with the road's name.
    fn runs(&self, key: &str) -> Vec<(&'static str, Pglock)> {
        let within = |pglock| self.table.within(pglock);
        let scope = ["--scope", "session-pooled"];
        vec![
            ("direct", self.table.run(key)),
            (
                "direct transaction",
                self.table.run(key).args(["--scope", "transaction"]),
            ),
            ("transaction pool", within(self.transactions.run(key))),
            ("session pool", within(self.sessions.run(key)).args(scope)),
        ]
    }
}

/// P100: everything that is known is in the row from the start, by every road.
#[test]
fn a_run_is_recorded_before_its_job_starts() {
    let table = RunTable::new();
    for (road, run) in Roads::to(&table).runs("nightly") {
        let holder = run
            .args(["--record", "--token", "--note", "it's 'fine' \\o/"])
            .holding();
        let pid = holder.pid();
        let row = table.sql(
            "SELECT key, number, mode, slot, host, pid, job, note, length(token), waited BETWEEN 0 AND 20, \
             clock_timestamp() - started BETWEEN '0' AND '20 s', ended, exit_status, signal, outcome \
             FROM pglock_run ORDER BY id DESC LIMIT 1",
        );
        let expected = format!(
            "nightly|{}|exclusive||{}|{pid}|sh|it's 'fine' \\o/|24|t|t||||running",
            crate::support::server::number("nightly"),
            hostname()
        );
        assert_eq!(row[0].join("|"), expected, "{road}");
        holder.finish().code(0);
        assert_eq!(table.runs("nightly").last().unwrap(), "ok 0", "{road}");
    }
    let took = table.sql("SELECT count(*) FROM pglock_run WHERE ended - started BETWEEN '0' AND '20 s'");
    assert_eq!(took, [["4"]]);
}

/// P101
#[test]
fn the_outcome_is_that_of_the_job() {
    let table = RunTable::new();
    let not_executable = tempfile::NamedTempFile::new().unwrap();
    let not_executable = not_executable.path().to_str().unwrap();
    for scope in ["session", "transaction"] {
        let run = || table.run(scope).args(["--record", "--scope", scope]);
        run().arg("true").output().code(0);
        run().sh("exit 3").output().code(3);
        run().sh("kill -KILL $$").output().signal(Signal::SIGKILL);
        run().arg(not_executable).output().code(126);
        run().arg("/no/such/command").output().code(127);
        let expected = ["ok 0", "failed 3", "failed SIGKILL", "failed 126", "failed 127"];
        assert_eq!(table.runs(scope), expected);
    }
}

/// P101: several keys have a row each, slots have their number, and a shared lock its mode.
#[test]
fn every_kind_of_lock_is_recorded() {
    let table = RunTable::new();
    table
        .run("a")
        .args(["--record", "--key", "b", "--key", "1,2", "true"])
        .output()
        .code(0);
    let slot = table
        .run("c")
        .args(["--record", "--slots", "3"])
        .sh("echo $PGLOCK_SLOT")
        .output()
        .stdout();
    table.run("d").args(["--record", "--shared", "true"]).output().code(0);
    let rows = table.sql("SELECT key, number, mode, slot, outcome FROM pglock_run ORDER BY key");
    let number = |key| crate::support::server::number(key).to_string();
    let expected = [
        ["1,2", "1,2", "exclusive", "", "ok"],
        ["a", &number("a"), "exclusive", "", "ok"],
        ["b", &number("b"), "exclusive", "", "ok"],
        ["c", &number("c"), "exclusive", slot.trim(), "ok"],
        ["d", &number("d"), "shared", "", "ok"],
    ];
    assert_eq!(rows, expected);
}

/// P100: the rows of a run are locked by number to give it up, and by id to write its end. Were these two orders, the
/// next holder, which does the one while the last one does the other after a loss, could deadlock and not start its
/// job.
#[test]
fn the_rows_of_a_run_are_in_one_order() {
    let table = RunTable::new();
    for keys in [["a", "b", "1,2"], ["b", "1,2", "a"], ["1,2", "a", "b"]] {
        let [first, second, third] = keys;
        let run = table.run(first).args(["--record", "--key", second, "--key", third]);
        run.arg("true").output().code(0);
        let is_ordered = "SELECT array_agg(number ORDER BY id) = array_agg(number ORDER BY number) FROM pglock_run";
        assert_eq!(table.value(is_ordered), "t", "{keys:?}");
        table.sql("DELETE FROM pglock_run");
    }
}

/// P100: the next holder must find the end of the run, so the lock is held until it is written.
#[test]
fn the_end_is_recorded_before_the_lock_is_released() {
    let table = RunTable::new();
    for scope in ["session", "transaction"] {
        let key = unique("end");
        let holder = table.run(&key).args(["--record", "--scope", scope]).holding();
        let mut meddler = table.client();
        rows(&mut meddler, "BEGIN");
        rows(
            &mut meddler,
            &format!("SELECT 1 FROM pglock_run WHERE key = '{key}' FOR UPDATE"),
        );
        let end = std::thread::spawn(move || holder.finish());
        eventually(SOON, "the end to be written", || {
            let waiting =
                "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
            !table.sql(waiting).is_empty()
        });
        table.run(&key).args(["--no-wait", "true"]).output().code(75);
        assert_eq!(table.runs(&key), ["running"]);
        rows(&mut meddler, "COMMIT");
        end.join().unwrap().code(0).silent();
        assert_eq!(table.runs(&key), ["ok 0"]);
    }
}

/// P100: what comes after the job is not part of it, and a minimum hold does not delay the record.
#[test]
fn the_end_is_that_of_the_job() {
    let table = RunTable::new();
    let holder = table
        .run("k")
        .args(["--record", "--min-hold", "600"])
        .sh("sleep 0.3")
        .spawn();
    eventually(SOON, "the end of the run", || table.runs("k") == ["ok 0"]);
    table.run("k").args(["--no-wait", "true"]).output().code(75);
    let took = table.sql("SELECT ended - started BETWEEN '0.3 s' AND '10 s' FROM pglock_run");
    assert_eq!(took, [["t"]]);
    holder.signal(Signal::SIGTERM);
    holder.finish().code(0);
    assert_eq!(table.runs("k"), ["ok 0"]);
}

/// Starts a recorded run with a job that ends when told to by SIGTERM, or by itself at the end of its input.
fn recorded(table: &RunTable, key: &str, options: &[&str]) -> Running {
    table
        .run(key)
        .args(["--record", "--heartbeat", "0.5"])
        .args(options)
        .holding()
}

fn terminate_backend(table: &RunTable, key: &str) {
    table.sql(&format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'pglock:{key} %'"
    ));
}

/// P101: by either scope, and if the job is to go on.
#[test]
fn a_lost_lock_is_recorded_on_another_connection() {
    let table = RunTable::new();
    for scope in ["session", "transaction"] {
        let (stop, ignore) = (unique("stop"), unique("ignore"));
        let holder = recorded(&table, &stop, &["--scope", scope]);
        terminate_backend(&table, &stop);
        holder.await_stderr("lost the lock");
        holder.finish().code(74);
        assert_eq!(table.runs(&stop), ["lost SIGTERM"], "{scope}");

        let holder = recorded(&table, &ignore, &["--scope", scope, "--on-lost", "ignore"]);
        terminate_backend(&table, &ignore);
        holder.await_stderr("continues unguarded");
        assert_eq!(table.runs(&ignore), ["running"], "{scope}");
        holder.finish().code(0);
        assert_eq!(table.runs(&ignore), ["lost 0"], "{scope}");
    }
}

/// P101: the status says that the lock was lost, so the run does, although its success was recorded before.
#[test]
fn a_loss_at_the_release_is_recorded() {
    let table = RunTable::new();
    let proxy = Proxy::ending_at(table.server.port(), &["AS released"]);
    let dsn = proxy.dsn().replace("/postgres?", &format!("/{}?", table.database));
    let run = table.run("k").args(["--record", "--dsn", &dsn, "true"]);
    run.output().code(74);
    assert_eq!(table.runs("k"), ["lost 0"]);
}

/// P101: nobody knows whether an end has arrived with which the session was lost, also during a minimum hold.
#[test]
fn a_loss_while_the_end_is_written_is_recorded() {
    let table = RunTable::new();
    for (min_hold, status) in [("0", 74), ("600", 0)] {
        let proxy = Proxy::ending_at(table.server.port(), &["AS completed"]);
        let dsn = proxy.dsn().replace("/postgres?", &format!("/{}?", table.database));
        let run = table.run(min_hold).args(["--record", "--min-hold", min_hold]);
        run.args(["--dsn", &dsn, "true"]).output().code(status);
        assert_eq!(table.runs(min_hold), ["lost 0"]);
    }
}

/// P101: a lock that is lost after the job, during the minimum hold, takes nothing away from a success.
#[test]
fn a_loss_in_the_minimum_hold_leaves_the_success() {
    let table = RunTable::new();
    for scope in ["session", "transaction"] {
        let key = unique("kept");
        let run = table
            .run(&key)
            .args(["--record", "--scope", scope, "--min-hold", "600"]);
        let holder = run.arg("true").spawn();
        eventually(SOON, "the end of the run", || table.runs(&key) == ["ok 0"]);
        // pglock must have heard of it: the reply was sent, and another session that wrote it is closed.
        let resting = format!(
            "SELECT string_agg(state, ' ') LIKE 'idle%' AND count(*) = 1 FROM pg_stat_activity \
             WHERE application_name LIKE 'pglock:{key} %'"
        );
        eventually(SOON, "one session at rest", || table.value(&resting) == "t");
        terminate_backend(&table, &key);
        holder.finish().code(0);
        assert_eq!(table.runs(&key), ["ok 0"]);
    }
}

/// P101
#[test]
fn an_eviction_is_recorded() {
    let table = RunTable::new();
    let evict = |key: &str, option: &[&str]| {
        let evictor = table.pglock();
        evictor
            .args(["evict", "--yes", "--key", key])
            .args(option)
            .output()
            .code(0);
    };
    for (options, status, expected) in [
        (&[][..], 74, "evicted SIGTERM"),
        (&["--on-lost", "ignore"], 0, "evicted 0"),
    ] {
        for force in [&[][..], &["--force"]] {
            let key = unique("evicted");
            let holder = recorded(&table, &key, options);
            evict(&key, force);
            holder.await_stderr("lost the lock");
            holder.finish().code(status);
            // Nobody finds out who ended the session while the job goes on.
            let expected = if status == 0 && !force.is_empty() {
                "lost 0"
            } else {
                expected
            };
            assert_eq!(table.runs(&key), [expected], "{options:?} {force:?}");
        }
    }
}

/// P101: of a pglock that was killed, nobody records the end, so the next holder of the key does.
#[test]
fn the_next_holder_finds_an_abandoned_run() {
    let table = RunTable::new();
    for scope in ["session", "transaction"] {
        let key = unique("abandoned");
        let holder = table.run(&key).args(["--record", "-o", "--scope", scope]).holding();
        // A holder of another key leaves it alone, as one does that did not get this one.
        table.run(&unique("other")).args(["--record", "true"]).output().code(0);
        table
            .run(&key)
            .args(["--record", "--no-wait", "true"])
            .output()
            .code(75);
        assert_eq!(table.runs(&key), ["running"]);
        holder.signal(Signal::SIGKILL);
        table
            .run(&key)
            .args(["--record", "--wait", "20", "true"])
            .output()
            .code(0);
        holder.finish().signal(Signal::SIGKILL);
        assert_eq!(table.runs(&key), ["abandoned", "ok 0"]);
    }
}

/// P101: runs that may be alive are never given up: those of other slots, and those that share the lock.
#[test]
fn a_run_that_may_be_alive_is_not_abandoned() {
    let table = RunTable::new();
    let slots = [0, 1].map(|_| table.run("slots").args(["--record", "--slots", "2"]).holding());
    assert_eq!(table.runs("slots"), ["running", "running"]);
    let shared = [0, 1].map(|_| table.run("shared").args(["--record", "--shared"]).holding());
    assert_eq!(table.runs("shared"), ["running", "running"]);
    for holder in slots.into_iter().chain(shared) {
        holder.finish().code(0);
    }
    // The next exclusive holder gives up the shared ones.
    table.sql("UPDATE pglock_run SET outcome = 'running'");
    table
        .run("shared")
        .args(["--record", "--shared", "true"])
        .output()
        .code(0);
    assert_eq!(table.runs("shared"), ["running 0", "running 0", "ok 0"]);
    table.run("shared").args(["--record", "true"]).output().code(0);
    assert_eq!(table.runs("shared"), ["abandoned 0", "abandoned 0", "ok 0", "ok 0"]);
}

/// P102: a run that another holder has given up does not become a success: that holder may have started the job again.
#[test]
fn a_run_that_was_given_up_stays_so() {
    let table = RunTable::new();
    for scope in ["session", "transaction"] {
        let key = unique("given_up");
        let holder = recorded(&table, &key, &["--scope", scope]);
        table.sql(&format!(
            "UPDATE pglock_run SET outcome = 'abandoned' WHERE key = '{key}'"
        ));
        let line = holder.finish().code(0).clone();
        let line = String::from_utf8_lossy(&line.stderr).into_owned();
        assert!(line.contains("could not record how the run on key"), "{line}");
        assert!(line.contains("abandoned") && line.lines().count() == 1, "{line}");
        assert_eq!(table.runs(&key), ["abandoned"]);
    }
}

/// P102: where another session records the run than the one that holds the lock, it may come too late: the lock is
/// lost, and the next holder has begun. That one's run is not abandoned.
#[test]
fn a_record_that_comes_late_writes_nothing() {
    let table = RunTable::new();
    let proxy = Proxy::holding_back(table.server, "INSERT INTO");
    let dsn = proxy.dsn().replace("/postgres?", &format!("/{}?", table.database));
    let late = table
        .run("k")
        .args(["--record", "--scope", "transaction", "--heartbeat", "60"]);
    let late = late.args(["--no-wait", "--dsn", &dsn, "echo", "the job ran"]).spawn();
    proxy.await_silence();
    table.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_stat_activity USING (pid) \
               WHERE locktype = 'advisory' AND datname = current_database()",
    );
    let holder = table.run("k").args(["--once-per", "1h", "-w", "20"]).holding();
    proxy.resume();
    let line = late.finish().code(69).stderr_line();
    assert!(line.contains("lost the lock before the job was started"), "{line}");
    assert_eq!(table.runs("k"), ["running"]);
    holder.finish().code(0).silent();
    assert_eq!(table.runs("k"), ["ok 0"]);
}

/// P100: without a record there is no job, and the line says what to do.
#[test]
fn a_run_that_cannot_be_recorded_is_not_started() {
    let table = RunTable::new();
    let role = unique("role");
    table.sql(&format!("CREATE ROLE \"{role}\" LOGIN"));
    let run = || table.run("k").args(["--record", "--heartbeat", "0.5", "-w", "5"]);
    for scope in ["session", "transaction"] {
        let run = || run().args(["--scope", scope]);
        let fails = |run: Pglock, code, expected: &str| {
            let line = run.args(["echo", "the job ran"]).output().code(code).stderr_line();
            assert!(line.contains(expected), "{line}");
        };
        fails(run().args(["--table", "no.such"]), 78, "pglock init --table 'no.such'");
        fails(
            run().args(["--table", "public.no"]),
            78,
            "pglock init --table 'public.no'",
        );
        fails(run().env("PGLOCK_TABLE", "pg_class"), 78, "public.pg_class");
        fails(
            run().args(["--table", "pg_catalog.pg_class"]),
            78,
            "pg_catalog.pg_class",
        );
        fails(run().env("PGUSER", &role), 77, "pglock init --grant");
        let mut locker = table.client();
        rows(&mut locker, "BEGIN");
        rows(&mut locker, "LOCK TABLE pglock_run");
        fails(run(), 69, "table public.pglock_run");
        rows(&mut locker, "ROLLBACK");
        for alteration in [
            "ALTER TABLE pglock_run DROP COLUMN host",
            "ALTER TABLE pglock_run ALTER COLUMN pid TYPE boolean USING true",
            "ALTER TABLE pglock_run ADD COLUMN extra int NOT NULL",
            "ALTER TABLE pglock_run ADD CHECK (waited > 100)",
            "ALTER TABLE pglock_run ALTER COLUMN id DROP IDENTITY",
            "CREATE RULE nothing AS ON INSERT TO pglock_run DO INSTEAD SELECT 7 AS run",
        ] {
            rows(&mut locker, "BEGIN");
            rows(&mut locker, "CREATE TABLE altered (LIKE pglock_run INCLUDING ALL)");
            rows(&mut locker, &alteration.replace("pglock_run", "altered"));
            rows(&mut locker, "COMMIT");
            fails(run().args(["--table", "altered"]), 78, "table public.altered");
            rows(&mut locker, "DROP TABLE altered");
        }
    }
    assert_eq!(table.runs("k"), [""; 0]);
}

/// P100: the server has answered, so nothing is tried again, although the disk may have room later: each further try
/// would acquire the lock, and keep it from others.
#[test]
fn a_full_disk_ends_the_run_at_once() {
    let table = RunTable::new();
    table.sql(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN RAISE EXCEPTION 'No space left on device' USING ERRCODE = 'disk_full'; END $$; \
         CREATE TRIGGER full_disk BEFORE INSERT ON pglock_run FOR EACH ROW EXECUTE PROCEDURE fail()",
    );
    for scope in ["session", "transaction"] {
        for options in [&["-w", "5"][..], &[]] {
            let run = table.run("k").args(["--record", "--scope", scope]).args(options);
            let line = run.args(["echo", "the job ran"]).output().code(69).stderr_line();
            assert_eq!(
                line, "cannot record runs in table public.pglock_run: No space left on device",
                "{scope}"
            );
        }
    }
}

/// P26: a lock that is acquired at once, and lost before the job has started, may have been free only because the
/// server had ended the session of a client whose job still runs.
#[test]
fn a_lock_that_is_lost_while_its_run_is_prepared_is_left_alone_at_first() {
    let table = RunTable::new();
    let port = table.server.port();
    let proxies = [
        ("--record", Proxy::ending_at(port, &["INSERT INTO"])),
        ("--token", Proxy::ending_at(port, &["pg_logical_emit_message"])),
    ];
    for (option, proxy) in proxies {
        let dsn = proxy.dsn().replace("/postgres?", &format!("/{}?", table.database));
        // H = D = G = 0.5 s, and the margin is 3 s.
        let run = table.run("k").args(["--heartbeat", "0.5", "--kill-after", "0.5"]);
        let output = run.args([option, "--dsn", &dsn, "echo", "mine"]).output();
        assert_eq!(output.code(0).stdout, b"mine\n");
        assert!(output.took >= Duration::from_millis(4500), "{output}");
    }
}

/// P100: the rows of a table can be copied without its identity, by logical replication or COPY. The remedy is SQL.
#[test]
fn an_identity_behind_its_rows_is_named_with_its_remedy() {
    let table = RunTable::new();
    table.insert("k", &[]);
    table.sql("ALTER TABLE pglock_run ALTER id RESTART WITH 1");
    let run = || table.run("k").args(["--record", "echo", "the job ran"]).output();
    let line = run().code(78).stderr_line();
    let (_, remedy) = line.split_once(", run: ").unwrap_or_else(|| panic!("{line}"));
    table.sql(remedy);
    assert_eq!(run().code(0).stdout(), "the job ran\n");
}

/// P103: runs that count as running, however many, do not keep older ones from being removed.
#[test]
fn old_runs_are_removed_behind_many_that_are_running() {
    let table = RunTable::without_table();
    table.init(&["--keep", "10d"]).output().stdout();
    let old = "now() - interval '11 days'";
    table.insert(
        "k",
        &[
            ("outcome", "'running'"),
            ("started", old),
            ("ended", "NULL"),
            ("slot", "1"),
        ],
    );
    table.sql(
        "INSERT INTO pglock_run (key, number, mode, slot, host, pid, job, waited, started, outcome) \
         SELECT key, number, mode, slot, host, pid, job, waited, started, outcome \
         FROM pglock_run, generate_series(1, 600)",
    );
    table.insert("k", &[("outcome", "'failed'"), ("started", old), ("ended", old)]);
    table.run("k").args(["--record", "true"]).output().code(0).silent();
    let counts = table.sql("SELECT outcome, count(*) FROM pglock_run GROUP BY outcome ORDER BY outcome");
    assert_eq!(counts, [["ok", "1"], ["running", "601"]]);
}

/// P101: the wait can end while the run is being recorded. No job starts, so no run is left in the table.
#[test]
fn a_wait_that_ends_while_its_run_is_recorded_leaves_no_run() {
    let table = RunTable::new();
    for (road, run) in Roads::to(&table).runs("k") {
        let mut locker = table.client();
        rows(&mut locker, "BEGIN");
        rows(&mut locker, "LOCK TABLE pglock_run");
        let late = run.args(["--record", "-w", "0.5", "echo", "the job ran"]).spawn();
        late.await_stderr("\n");
        rows(&mut locker, "COMMIT");
        let line = late.finish().code(69).stderr_line();
        assert!(line.contains("stopped responding"), "{road}: {line}");
        let is_over = "SELECT count(*) = 0 FROM pg_locks JOIN pg_stat_activity USING (pid) \
                       WHERE datname = current_database() AND pid <> pg_backend_pid() \
                       AND (locktype = 'advisory' OR state = 'active')";
        eventually(SOON, "neither a lock nor a query", || table.value(is_over) == "t");
        assert_eq!(table.runs("k"), [""; 0], "{road}");
    }
}

/// P100: a key that the encoding of the database does not have is no fault of the table.
#[test]
fn a_key_that_the_database_cannot_store_is_not_recorded() {
    let table = RunTable {
        server: Server::shared(),
        database: unique("latin1"),
    };
    table.server.sql(&format!(
        "CREATE DATABASE {} TEMPLATE template0 ENCODING LATIN1 LC_COLLATE 'C' LC_CTYPE 'C'",
        table.database
    ));
    table.init(&[]).output().stdout();
    table.run("ä").args(["--record", "true"]).output().code(0).silent();
    let run = table.run("鍵").args(["--record", "echo", "the job ran"]).output();
    let line = run.code(78).stderr_line();
    assert!(
        line.starts_with("cannot record runs in table public.pglock_run: character"),
        "{line}"
    );
    assert!(line.contains("LATIN1") && !line.contains("init"), "{line}");
}

/// P100: the job has run, so its status stands.
#[test]
fn an_end_that_cannot_be_recorded_is_one_line() {
    let table = RunTable::new();
    for scope in ["session", "transaction"] {
        let key = unique("unrecorded");
        let holder = table
            .run(&key)
            .args(["--record", "--scope", scope])
            .sh("echo ready; read x; exit 5")
            .spawn();
        holder.await_stdout("ready\n");
        table.sql("ALTER TABLE pglock_run RENAME TO elsewhere");
        let output = holder.finish();
        let line = output.code(5).clone();
        let line = String::from_utf8_lossy(&line.stderr).into_owned();
        assert!(
            line.starts_with("pglock: could not record how the run on key"),
            "{line}"
        );
        assert!(line.contains("pglock init"), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
        table.sql("ALTER TABLE elsewhere RENAME TO pglock_run");
        table.run(&key).args(["--no-wait", "true"]).output().code(0).silent();
    }
}

/// P100: the lock of a pooled run occupies a session of the pool, and the record needs another one.
#[test]
fn a_pool_of_one_has_no_room_for_a_record() {
    let table = RunTable::new();
    let pool = PgBouncer::with(table.server, &["pool_mode=transaction", "default_pool_size=1"]);
    let run = || table.within(pool.run("k")).args(["--heartbeat", "0.3"]);
    for (option, value) in [("--record", None), ("--once-per", Some("1h"))] {
        let run = run().arg(option).args(value).args(["echo", "the job ran"]);
        let line = run.output().code(69).stderr_line();
        assert!(line.contains(option) && line.contains("default_pool_size"), "{line}");
    }
    run().arg("true").output().code(0).silent();
}

/// P104: the transaction that holds the lock has neither a transaction ID nor a snapshot.
#[test]
fn a_recorded_run_through_a_pool_holds_nothing_back() {
    let table = RunTable::new();
    let pool = PgBouncer::with(table.server, &["pool_mode=transaction"]);
    let holder = table.within(pool.run("k")).args(["--once-per", "1h"]).holding();
    assert_eq!(table.runs("k"), ["running"]);
    let kept = "SELECT backend_xid, backend_xmin FROM pg_locks JOIN pg_stat_activity USING (pid) \
                WHERE locktype = 'advisory' AND datname = current_database()";
    assert_eq!(table.sql(kept), [["", ""]]);
    let mut job = table.client();
    let indexing = std::thread::spawn(move || rows(&mut job, "CREATE INDEX CONCURRENTLY ON pglock_run (host)"));
    eventually(SOON, "the index", || indexing.is_finished());
    indexing.join().unwrap();
    holder.finish().code(0);
}

/// P101: the server is gone when the job ends, so the next holder records what it can.
#[test]
fn a_crash_of_the_server_leaves_no_success() {
    let server = Server::start();
    let table = RunTable::on(&server);
    let holder = recorded(&table, "k", &["--kill-after", "1"]);
    server.stop_immediate();
    let output = holder.finish();
    output.code(74);
    assert!(output.took < Duration::from_secs(20), "{output}");
    server.restart();
    assert_eq!(table.runs("k"), ["running"]);
    table.run("k").args(["--record", "-w", "20", "true"]).output().code(0);
    assert_eq!(table.runs("k"), ["abandoned", "ok 0"]);
}

/// P104: neither a standby that is away nor a role whose transactions are read only, serializable or deferrable delays
/// or prevents a record.
#[test]
fn the_defaults_of_a_role_do_not_matter() {
    let server = Server::with(&["synchronous_standby_names=ghost", "synchronous_commit=local"]);
    let table = RunTable::on(&server);
    // What this session commits does not wait for the standby itself.
    let mut setter = table.client();
    for setting in [
        "synchronous_commit = on",
        "default_transaction_read_only = on",
        "default_transaction_isolation = serializable",
        "default_transaction_deferrable = on",
        "standard_conforming_strings = off",
        "search_path = nowhere",
        "DateStyle = 'German'",
        "IntervalStyle = 'sql_standard'",
    ] {
        rows(&mut setter, &format!("ALTER ROLE postgres SET {setting}"));
    }
    let key = unique("it\\s '");
    for scope in ["session", "transaction"] {
        let run = table.run(&key).args(["--record", "--scope", scope, "true"]);
        let output = run.output();
        output.code(0).silent();
        assert!(output.took < Duration::from_secs(3), "{output}");
    }
    assert_eq!(table.sql("SELECT outcome FROM public.pglock_run"), [["ok"], ["ok"]]);
}

/// P104
#[test]
fn hostile_texts_are_recorded_as_they_are() {
    let table = RunTable::new();
    let key = format!(
        "{}'; DROP TABLE pglock_run; -- \\ \" $$ \u{1b}[31m grün \u{202e} %",
        "x".repeat(8000)
    );
    let note = "a'b\\c\"d $1 grün %00";
    let directory = tempfile::tempdir().unwrap();
    let job = directory.path().join("a 'job' \\ \"of\" $mine;\n");
    std::os::unix::fs::symlink("/bin/true", &job).unwrap();
    for scope in ["session", "transaction"] {
        let run = table
            .run(&key)
            .args(["--record", "--scope", scope, "--note", note])
            .arg(&job);
        run.output().code(0).silent();
    }
    let row = [key.as_str(), note, job.to_str().unwrap()];
    assert_eq!(table.sql("SELECT key, note, job FROM pglock_run"), [row, row]);
}

/// P103: what `pglock init` grants is enough, in a schema that is closed to everybody else.
#[test]
fn a_role_needs_only_what_init_grants() {
    let table = RunTable::new();
    let role = unique("role");
    table.sql(&format!("CREATE ROLE \"{role}\" LOGIN"));
    table.sql("REVOKE ALL ON SCHEMA public FROM PUBLIC");
    let run = |scope| {
        let run = table.run(scope).env("PGUSER", &role);
        run.args(["--once-per", "1h", "--scope", scope, "true"]).output()
    };
    run("session").code(77);
    table.init(&["--grant", &role]).output().code(0);
    for scope in ["session", "transaction"] {
        run(scope).code(0).silent();
        run(scope).code(75);
        assert_eq!(table.runs(scope), ["ok 0"]);
    }
}
