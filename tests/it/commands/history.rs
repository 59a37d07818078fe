//! P103: `pglock history` reads the run table, which these tests fill by SQL.

use crate::support::pgbouncer::PgBouncer;
use crate::support::pglock::{Output, Pglock};
use crate::support::run_table::{FAILED, RUNNING, RunTable};
use crate::support::screen::Screen;
use crate::support::server::{Server, number};
use crate::support::unique;
use crate::support::wait::{SOON, eventually};
use serde_json::{Value, json};

/// Returns what `pglock history --json` shows with these arguments.
#[track_caller]
fn runs(table: &RunTable, arguments: &[&str]) -> Vec<Value> {
    let text = table.history(&["--json"]).args(arguments).output().stdout();
    let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    value["runs"].as_array().unwrap().clone()
}

/// Returns this field of each run.
fn fields(runs: &[Value], name: &str) -> Vec<String> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    runs.iter().map(|run| text(&run[name])).collect()
}

/// Returns the lines on standard error, without pglock's name.
fn lines(output: &Output) -> Vec<String> {
    assert!(output.stdout.is_empty(), "{output}");
    let text = String::from_utf8_lossy(&output.stderr);
    let lines = text.lines().map(|line| line.strip_prefix("pglock: ").unwrap());
    lines.map(str::to_owned).collect()
}

#[test]
fn json_has_every_field_exactly() {
    let table = RunTable::new();
    table.insert("plain", &[]);
    table.sql(
        "INSERT INTO pglock_run (key, number, mode, slot, host, pid, job, note, token, waited, started, ended, signal, \
         outcome) VALUES ('1,2', '1,2', 'shared', 3, 'web2', 2147483647, './job', 'why', '0001', 1.5, \
         '2026-11-26 03:00:00.9+01', '2026-11-26 03:01:02+01', 'SIGKILL', 'lost')",
    );
    table.insert("plain", &RUNNING);
    let runs = runs(&table, &[]);
    assert_eq!(runs.len(), 3);
    let expected = json!({
        "key": "1,2", "number": "1,2", "mode": "shared", "slot": 3, "host": "web2", "pid": 2147483647, "job": "./job",
        "note": "why", "token": "0001", "waited": 1.5, "started": "2026-11-26T02:00:00Z",
        "ended": "2026-11-26T02:01:02Z", "exit_status": null, "signal": "SIGKILL", "outcome": "lost"
    });
    assert_eq!(runs[1], expected);
    let running = json!([null, null, null, null, null, null, "running"]);
    let names = ["slot", "note", "token", "ended", "exit_status", "signal", "outcome"];
    assert_eq!(
        names.map(|name| runs[0][name].clone()).to_vec(),
        *running.as_array().unwrap()
    );
    assert_eq!(runs[2]["number"], number("plain").to_string());
    assert_eq!(runs[2]["exit_status"], 0);
}

#[test]
fn the_newest_runs_come_first_and_can_be_chosen() {
    let table = RunTable::new();
    assert_eq!(
        table.history(&[]).output().stdout(),
        "no runs are recorded in table public.pglock_run\n"
    );
    for n in 1..=12 {
        table.insert("a", &[("exit_status", &n.to_string())]);
        table.insert("b", &[FAILED[0], ("exit_status", &(100 + n).to_string())]);
    }
    table.insert("c", &RUNNING);
    let statuses = |arguments: &[&str]| fields(&runs(&table, arguments), "exit_status").join(" ");
    let all = runs(&table, &[]);
    assert_eq!(
        (all.len(), &fields(&all, "key")[..3]),
        (20, &["c", "b", "a"].map(str::to_owned)[..])
    );
    assert_eq!(runs(&table, &["--last", "4000000000"]).len(), 25);
    assert_eq!(statuses(&["--last", "4"]), "null 112 12 111");
    assert_eq!(statuses(&["--key", "a", "--last", "3"]), "12 11 10");
    assert_eq!(
        statuses(&["--key", "a", "--key", "c", "-k", "a", "--last", "3"]),
        "null 12 11"
    );
    assert_eq!(statuses(&["--failed", "--last", "2"]), "112 111");
    assert_eq!(runs(&table, &["--failed"]).len(), 12);
    assert_eq!(runs(&table, &["--failed", "--key", "a"]).len(), 0);
    // A key is resolved as for run, also by the server.
    let hashtext = table.value("SELECT hashtext('x')");
    table.insert("x", &[("number", &format!("'{hashtext}'"))]);
    assert_eq!(runs(&table, &["--key", "x"]).len(), 0);
    assert_eq!(runs(&table, &["--key", "x", "--hash", "hashtext"]).len(), 1);
    assert_eq!(runs(&table, &["--key", &hashtext]).len(), 1);
    let nothing = table
        .history(&["--failed", "--key", "x", "--key", "7"])
        .output()
        .stdout();
    assert_eq!(
        nothing,
        "no failed runs of keys \"x\", 7 are recorded in table public.pglock_run\n"
    );
    for outcome in ["'lost'", "'evicted'", "'abandoned'", "'failed'"] {
        table.insert("d", &[("outcome", outcome)]);
    }
    assert_eq!(runs(&table, &["--failed", "--key", "d"]).len(), 4);
}

/// All columns fit 80; STARTED, EXIT and OUTCOME are never shortened.
#[test]
fn the_table_fits_80_columns() {
    let table = RunTable::new();
    let started = ("started", "'2026-11-26 02:00:59+00'");
    table.insert(
        "nightly",
        &[started, ("ended", "'2026-11-26 02:12:04+00'"), ("waited", "61")],
    );
    table.insert(
        "nightly",
        &[
            started,
            ("ended", "NULL"),
            ("exit_status", "NULL"),
            ("outcome", "'running'"),
        ],
    );
    let killed = [
        started,
        ("slot", "3"),
        ("ended", "'2026-11-26 02:00:59.5+00'"),
        ("exit_status", "NULL"),
        ("signal", "'SIGKILL'"),
        ("outcome", "'failed'"),
    ];
    table.insert("pool", &killed);
    let whole = "KEY          STARTED            TOOK   WAITED  EXIT     OUTCOME  WHO         JOB\n\
                 pool slot 3  2026-11-26T02:00Z  0s     0s      SIGKILL  failed   web1:17240  backup\n\
                 nightly      2026-11-26T02:00Z         0s               running  web1:17240  backup\n\
                 nightly      2026-11-26T02:00Z  11m5s  1m1s    0        ok       web1:17240  backup\n";
    assert_eq!(table.history(&[]).output().stdout(), whole);
    let long = [
        ("host", "'a-long-name-of-a-host.example.com'"),
        ("job", "'/usr/local/bin/a-long-name-of-a-job'"),
        ("outcome", "'abandoned'"),
        started,
        ("ended", "'2026-11-27 01:58:59+00'"),
    ];
    table.insert("a long name of a key that somebody has made", &long);
    let screen = Screen::new(table.server, (80, 24), &[("PGDATABASE", &table.database)]);
    screen.line("clear; pglock history");
    let lines = screen.expect("table", |lines| lines.len() == 6 && lines[5] == "$");
    let columns: Vec<&str> = lines[0].split_whitespace().collect();
    assert_eq!(
        columns,
        ["KEY", "STARTED", "TOOK", "WAITED", "EXIT", "OUTCOME", "WHO", "JOB"]
    );
    assert!(lines.iter().all(|line| line.chars().count() <= 80), "{lines:?}");
    assert!(lines[1].starts_with("a long"), "{lines:?}");
    for part in ["~  2026-11-26T02:00Z  23h58m  0s  ", "  abandoned  a-long-~  /usr"] {
        assert!(lines[1].contains(part), "{part:?}: {lines:?}");
    }
    assert!(lines[2].contains("  SIGKILL  failed  "), "{lines:?}");
}

/// P103: a success that a wrong clock of the server has dated does not count for as long as that was fast.
#[test]
fn a_success_in_the_future_is_no_recent_one() {
    let table = RunTable::new();
    let succeeds = |within: &str| table.history(&["--key", "k", "--ok-within", within]).output();
    table.insert("k", &[("ended", "now() + interval '1 year'")]);
    succeeds("26h").code(75);
    table.insert("k", &[("ended", "now() - interval '25h'")]);
    table.insert("k", &[("ended", "now() + interval '1 year'")]);
    succeeds("26h").code(0).silent();
    succeeds("24h").code(75);
    table.insert("k", &[("ended", "now() + interval '1 min'")]);
    succeeds("24h").code(0).silent();
}

/// P103: someone may write any time into the table, and PostgreSQL cannot subtract infinite ones.
#[test]
fn infinite_times_are_read() {
    let table = RunTable::new();
    for (key, started, ended) in [
        ("future", "'infinity'", "'infinity'"),
        ("past", "'-infinity'", "'-infinity'"),
        ("ever", "'-infinity'", "'infinity'"),
    ] {
        table.insert(key, &[("started", started), ("ended", ended)]);
        let output = table.history(&["--key", key, "--ok-within", "1h"]).output();
        assert_eq!(lines(output.code(75)), [format!("key {key:?} has no recorded success")]);
    }
    table.history(&[]).output().code(0);
    table.history(&["--json"]).output().code(0);
    assert!(
        table
            .history(&["--metrics"])
            .output()
            .stdout()
            .contains("{key=\"ever\",outcome=\"ok\"} 1\n")
    );
    for key in ["future", "past", "ever"] {
        table
            .run(key)
            .args(["--once-per", "1h", "true"])
            .output()
            .code(0)
            .silent();
    }
}

/// Texts are stored by whatever client. JSON has them exactly, and no terminal interprets them.
#[test]
fn hostile_texts_are_shown_as_they_are() {
    let table = RunTable::new();
    let hostile = [
        "it's \"quoted\" \\ 'x' $1 %s {} \u{0}".replace('\0', "nul"),
        "two\nlines\r\tand\u{1b}[31mred\u{1b}]0;title\u{7}\u{9b}2J".to_owned(),
        "schlüssel 鍵 \u{202e}\u{1f980}".to_owned(),
        "x'); DROP TABLE pglock_run; --".to_owned(),
        "ä".repeat(4096),
    ];
    let literal = |text: &str| format!("'{}'", text.replace('\'', "''"));
    for text in &hostile {
        let text = literal(text);
        let texts = ["job", "host", "note", "token"].map(|column| (column, text.as_str()));
        table.insert("k", &texts);
        table.sql(&format!(
            "UPDATE pglock_run SET key = {text} WHERE id = (SELECT max(id) FROM pglock_run)"
        ));
    }
    let found = runs(&table, &[]);
    let expected: Vec<String> = hostile.iter().rev().cloned().collect();
    for name in ["key", "job", "host", "note", "token"] {
        assert_eq!(fields(&found, name), expected, "{name}");
    }
    let text = table.history(&[]).output().stdout();
    assert_eq!(text.lines().count(), 1 + hostile.len());
    assert!(!text.replace('\n', "").contains(char::is_control), "{text:?}");
    // A key is found by its number, whatever is written beside that.
    assert_eq!(runs(&table, &["--key", "k"]).len(), hostile.len());
    let line = table.history(&["--ok-within", "1", "--key", "k"]).output();
    let [line] = &lines(line.code(75))[..] else {
        panic!("{line}");
    };
    assert!(
        line.starts_with("key \"k\" last succeeded 59m") && !line.contains(char::is_control),
        "{line:?}"
    );
}

/// The dead man's switch.
#[test]
fn ok_within_requires_the_newest_success_of_each_key() {
    let table = RunTable::new();
    table.insert("nightly", &[("ended", "now() - interval '27h12m'")]);
    table.insert("nightly", &FAILED);
    table.insert("hourly", &[]);
    table.insert("hourly", &RUNNING);
    table.insert("broken", &FAILED);
    let check = |arguments: &[&str]| table.history(arguments).output();
    assert_eq!(check(&["--ok-within", "28h", "--key", "nightly"]).stdout(), "");
    assert_eq!(
        check(&["--ok-within", "28h", "--key", "nightly", "-k", "hourly"]).stdout(),
        ""
    );
    let output = check(&["--ok-within", "26h", "--key", "nightly", "-k", "hourly"]);
    let [line] = &lines(output.code(75))[..] else {
        panic!("{output}");
    };
    assert!(line.starts_with("key \"nightly\" last succeeded 1d3h12m"), "{line}");
    assert!(line.ends_with(" ago on web1, not within 1d2h"), "{line}");
    let output = check(&[
        "--ok-within",
        "30m",
        "-k",
        "nightly",
        "-k",
        "broken",
        "-k",
        "hourly",
        "-k",
        "never",
    ]);
    let lines = lines(output.code(75));
    assert_eq!(lines.len(), 4, "{lines:?}");
    assert_eq!(lines[1], "key \"broken\" has no recorded success");
    assert_eq!(lines[3], "key \"never\" has no recorded success");
    // What counts is the newest success, and when it ended: not when it started, nor an older one.
    table.insert(
        "long",
        &[
            ("started", "now() - interval '3h'"),
            ("ended", "now() - interval '1min'"),
        ],
    );
    assert_eq!(check(&["--ok-within", "1h", "--key", "long"]).stdout(), "");
    // A shorter run of another slot was recorded later, and ended earlier.
    table.insert("long", &[("ended", "now() - interval '2h'"), ("slot", "1")]);
    assert_eq!(check(&["--ok-within", "1h", "--key", "long"]).stdout(), "");
    let metrics = table.history(&["--metrics", "--key", "long"]).output().stdout();
    let line = metrics
        .lines()
        .find(|line| line.starts_with("pglock_last_success_timestamp_seconds{"));
    let ended: f64 = line.unwrap().rsplit_once(' ').unwrap().1.parse().unwrap();
    let now: f64 = table.value("SELECT extract(epoch FROM now())").parse().unwrap();
    assert!((50.0..1800.0).contains(&(now - ended)), "{metrics}");
}

#[test]
fn contradictions_are_usage_errors() {
    for (arguments, words) in [
        (&["--ok-within", "1h"][..], "--ok-within needs --key"),
        (&["--ok-within", "0", "-k", "x"], "--ok-within must be more than 0"),
        (&["--ok-within", "1h", "-k", "x", "--json"], "cannot be used with"),
        (&["--ok-within", "1h", "-k", "x", "--metrics"], "cannot be used with"),
        (&["--ok-within", "1h", "-k", "x", "--last", "3"], "cannot be used with"),
        (&["--ok-within", "1h", "-k", "x", "--failed"], "cannot be used with"),
        (&["--metrics", "--json"], "cannot be used with"),
        (&["--metrics", "--last", "1"], "cannot be used with"),
        (&["--metrics", "--failed"], "cannot be used with"),
        (&["--prune", "--key", "x"], "cannot be used with"),
        (&["--prune", "--metrics"], "cannot be used with"),
        (&["--prune", "--json"], "cannot be used with"),
        (&["--last", "0"], "expected a number of runs, at least 1"),
        (&["--last=-1"], "expected a number of runs, at least 1"),
    ] {
        let line = Pglock::alone().arg("history").args(arguments).output();
        let line = line.code(64).stderr_line();
        assert!(line.contains(words), "{arguments:?}: {line}");
    }
}

/// In a table of many rows, nothing but the counts of the metrics and the search for failures reads all of them. What
/// pglock sends is taken from the server's log, and explained.
#[test]
fn the_newest_runs_are_found_by_the_indexes() {
    let server = Server::with(&["log_statement=all", "log_min_duration_statement=-1"]);
    server.pglock().arg("init").output().stdout();
    server.sql(
        "INSERT INTO pglock_run (key, number, mode, host, pid, job, waited, started, ended, exit_status, outcome) \
         SELECT n % 40, n % 40, 'exclusive', 'h', 1, 'true', 0, now() - n * interval '1s', now(), n % 40, \
         CASE WHEN n % 40 = 7 THEN 'failed' ELSE 'ok' END FROM generate_series(200000, 1, -1) AS n",
    );
    server.sql("VACUUM ANALYZE pglock_run");
    for arguments in [
        &[][..],
        &["--key", "3"],
        &["--key", "3", "--key", "4", "--key", "41"],
        &["--failed", "--key", "7"],
        &["--ok-within", "1h", "--key", "3", "--key", "4"],
        &["--metrics"],
        &["--metrics", "--key", "3"],
        &["--prune"],
    ] {
        let before = server.log().len();
        server.pglock().arg("history").args(arguments).output().code(0);
        let log = server.log()[before..].to_owned();
        let logged: Vec<&str> = log
            .split("statement: ")
            .filter(|text| text.contains("pglock_run\" "))
            .collect();
        let [message] = logged[..] else {
            panic!("{arguments:?}: {log}");
        };
        let statements = message.lines().next().unwrap().split("; ");
        let queries = statements.filter(|text| text.contains("pglock_run\" ") && !text.contains("count(*) AS runs"));
        for query in queries {
            let plan = server.sql(&format!("EXPLAIN (COSTS off) {query}")).concat().join("\n");
            let is_scan = plan.contains("Seq Scan on pglock_run") || !plan.contains("Index");
            assert!(!is_scan && !plan.contains("Bitmap"), "{arguments:?}: {query}\n{plan}");
        }
    }
}

#[test]
fn prune_removes_what_is_old_but_no_newest_success() {
    let table = RunTable::without_table();
    table.init(&["--keep", "10d"]).output().stdout();
    let days = |days: &str| format!("now() - interval '{days} days'");
    let (old, new) = (days("11"), days("9"));
    let insert = |key: &str, started: &str, outcome: &str| {
        table.insert(key, &[("started", started), ("ended", started), ("outcome", outcome)]);
    };
    insert("a", &old, "'ok'");
    insert("a", &old, "'ok'");
    insert("a", &old, "'failed'");
    insert("b", &old, "'ok'");
    insert("b", &new, "'ok'");
    insert("b", &new, "'failed'");
    insert("c", &old, "'running'");
    insert("c", &old, "'abandoned'");
    // More than a batch.
    table.sql(
        "INSERT INTO pglock_run (key, number, mode, host, pid, job, waited, started, outcome) \
         SELECT 'd', 'd', '', '', 0, '', 0, now() - interval '1 year', 'lost' FROM generate_series(1, 12000)",
    );
    insert("e", &old, "'failed'");
    insert("e", &new, "'failed'");
    let prune = || table.history(&["--prune"]).output().stdout();
    assert_eq!(
        prune(),
        "removed 12005 runs from table public.pglock_run, which keeps them for 10d\n"
    );
    let left = "SELECT key, outcome, started < now() - interval '10 days' FROM pglock_run ORDER BY id";
    let left: Vec<String> = table.sql(left).iter().map(|row| row.join(" ")).collect();
    assert_eq!(left, ["a ok t", "b ok f", "b failed f", "c running t", "e failed f"]);
    assert_eq!(
        prune(),
        "removed 0 runs from table public.pglock_run, which keeps them for 10d\n"
    );
    table.init(&["--keep", "8d"]).output().stdout();
    assert_eq!(
        prune(),
        "removed 2 runs from table public.pglock_run, which keeps them for 8d\n"
    );
}

/// A table that is missing or altered, and missing privileges, are named with the remedy.
#[test]
fn what_cannot_be_read_is_explained() {
    let table = RunTable::new();
    let role = unique("reader");
    table.sql(&format!("CREATE ROLE {role} LOGIN"));
    let failure = |arguments: &[&str], code: i32| {
        let history = table.history(arguments).env("PGUSER", &role);
        history.output().code(code).stderr_line()
    };
    assert_eq!(
        failure(&[], 77),
        "cannot read table public.pglock_run: permission denied for table pglock_run; as its owner, run: pglock init \
         --grant ROLE"
            .replace(
                "for table",
                if table.server.version() < 11 {
                    "for relation"
                } else {
                    "for table"
                }
            )
    );
    table.sql(&format!("GRANT SELECT ON pglock_run TO {role}"));
    table.history(&[]).env("PGUSER", &role).output().stdout();
    table.insert("x", &[("started", "now() - interval '1 year'")]);
    table.insert("x", &[]);
    assert!(
        failure(&["--prune"], 77).starts_with("cannot remove runs from table public.pglock_run: permission denied")
    );
    assert_eq!(
        failure(&["--table", "it's.Runs"], 78),
        "table it's.Runs does not exist; create it with: pglock init --table 'it'\\''s.Runs'"
    );
    table.sql("ALTER TABLE pglock_run ALTER waited TYPE numeric");
    for arguments in [
        &[][..],
        &["--json"],
        &["--metrics"],
        &["--ok-within", "1h", "-k", "x"],
        &["--prune"],
    ] {
        assert_eq!(
            failure(arguments, 78),
            "table public.pglock_run differs from what pglock init creates: its column waited has the type numeric \
             instead of double precision; make it match the output of pglock init --print, or choose another with \
             --table"
        );
    }
}

/// Through poolers, with a role that has only what `init --grant` gives.
#[test]
fn a_pooler_and_a_lock_role_suffice() {
    let table = RunTable::without_table();
    let role = unique("locks");
    table.sql(&format!("CREATE ROLE {role} LOGIN"));
    table.init(&["--grant", &role]).output().stdout();
    table.insert("x", &[("started", "now() - interval '1 year'")]);
    table.insert("x", &[]);
    for (mode, removed) in [("transaction", 1), ("session", 0)] {
        let users = format!("auth_file={}/{role}", table.server.host());
        std::fs::write(
            format!("{}/{role}", table.server.host()),
            format!("\"{role}\" \"\"\n\"postgres\" \"\"\n"),
        )
        .unwrap();
        let bouncer = PgBouncer::with(
            table.server,
            &[&format!("pool_mode={mode}"), "default_pool_size=1", &users],
        );
        let history = |arguments: &[&str]| {
            let pglock = bouncer.pglock().env("PGDATABASE", &table.database).env("PGUSER", &role);
            pglock.arg("history").args(arguments).output().stdout()
        };
        assert!(history(&[]).contains("  ok  "));
        assert!(history(&["--json", "--key", "x", "--hash", "hashtext"]).contains("[]"));
        assert!(history(&["--metrics", "--key", "x"]).contains("pglock_last_exit_status{key=\"x\"} 0\n"));
        assert_eq!(history(&["--ok-within", "1h", "--key", "x"]), "");
        assert!(history(&["--prune"]).starts_with(&format!("removed {removed} run")));
    }
}

#[test]
fn a_standby_can_be_read() {
    let primary = Server::start();
    primary.pglock().arg("init").output().stdout();
    let standby = Server::standby_of(&primary);
    let insert = "INSERT INTO pglock_run (key, number, mode, host, pid, job, waited, started, ended, outcome) \
                  VALUES ('42', '42', 'exclusive', 'h', 1, 'true', 0, now(), now(), 'ok')";
    primary.sql(insert);
    eventually(SOON, "the row on the standby", || {
        standby.value("SELECT count(*) FROM pglock_run") == "1"
    });
    let history = |arguments: &[&str]| standby.pglock().arg("history").args(arguments).output();
    assert!(history(&[]).stdout().contains("  ok  "));
    assert_eq!(history(&["--ok-within", "1h", "--key", "42"]).stdout(), "");
    assert!(
        history(&["--metrics"])
            .stdout()
            .contains("pglock_runs{key=\"42\",outcome=\"ok\"} 1\n")
    );
    let line = history(&["--prune"]).code(78).stderr_line();
    assert!(
        line.starts_with("cannot remove runs from table public.pglock_run: "),
        "{line}"
    );
}
