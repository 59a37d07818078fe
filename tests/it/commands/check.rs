//! `pglock check`.

use crate::support::pgbouncer::PgBouncer;
use crate::support::pglock::{Output, Pglock};
use crate::support::server::{Server, WITH_PASSWORD, free_port};
use crate::support::unique;
use serde_json::Value;

/// A finding: level, subject, and the rest of the line.
type Finding = (String, String, String);

#[track_caller]
fn findings(output: &Output) -> Vec<Finding> {
    output.silent();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let lines = text.lines().map(|line| {
        let (level, rest) = line.split_once(' ').unwrap();
        let (subject, rest) = rest.trim_start().split_once(": ").unwrap();
        assert!(["ok", "warning", "refusal"].contains(&level), "{line}");
        (level.to_owned(), subject.to_owned(), rest.to_owned())
    });
    lines.collect()
}

/// Returns level and text of the only finding about a subject.
#[track_caller]
fn about<'a>(findings: &'a [Finding], subject: &str) -> (&'a str, &'a str) {
    let mut found = findings.iter().filter(|finding| finding.1 == subject);
    let (Some((level, _, text)), None) = (found.next(), found.next()) else {
        panic!("not one line about {subject}: {findings:?}");
    };
    (level, text)
}

fn check(pglock: Pglock) -> Pglock {
    pglock.arg("check")
}

const SUBJECTS: [&str; 11] = [
    "server",
    "database",
    "role",
    "connection",
    "recovery",
    "TLS",
    "timeouts",
    "vanished host",
    "waiting",
    "round trip",
    "lock",
];

/// P76
#[test]
fn a_direct_connection_is_fit() {
    let server = Server::shared();
    let database = server.database();
    let output = check(server.pglock()).env("PGDATABASE", &database).output();
    let found = findings(output.code(0));
    let subjects: Vec<&str> = found.iter().map(|finding| finding.1.as_str()).collect();
    assert_eq!(subjects, SUBJECTS);
    assert!(found.iter().all(|finding| finding.0 == "ok"), "{output}");
    let version = format!("PostgreSQL {}.", server.version());
    assert!(about(&found, "server").1.starts_with(&version), "{output}");
    assert!(about(&found, "connection").1.starts_with("direct; "));
    assert!(about(&found, "lock").1.starts_with("acquired, found in pg_locks"));
    let locks = format!(
        "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' \
         AND database = (SELECT oid FROM pg_database WHERE datname = '{database}')"
    );
    assert_eq!(server.sql(&locks), [[""; 0]; 0]);

    // Over unencrypted TCP, there is one warning, and the limit for a vanished host.
    let output = check(server.pglock()).args(["--dsn", &server.dsn()]);
    let output = output.env("PGLOCK_KILL_AFTER", "1m").output();
    let found = findings(output.code(0));
    assert_eq!(about(&found, "TLS").0, "warning");
    let bound = about(&found, "vanished host");
    assert!(bound.1.contains("released after 73 s"), "{output}");
}

/// P76: what the role may see, every timeout that pglock disables, and whether waiters can queue.
#[test]
fn timeouts_and_a_missing_plpgsql_are_reported() {
    let server = Server::shared();
    let (role, database) = (unique("poor_role"), server.database());
    let mut client = server.client_in(&database);
    let prepare = format!(
        "CREATE ROLE {role} LOGIN; ALTER ROLE {role} SET statement_timeout = '7s'; \
         ALTER ROLE {role} SET idle_in_transaction_session_timeout = '1min'; \
         REVOKE USAGE ON LANGUAGE plpgsql FROM PUBLIC"
    );
    client.batch_execute(&prepare).unwrap();
    let as_role = || {
        let pglock = server.pglock().env("PGUSER", &role);
        check(pglock.env("PGDATABASE", &database))
    };
    for scope in ["session", "transaction"] {
        let output = as_role().args(["--scope", scope]).output();
        let found = findings(output.code(0));
        let text = about(&found, "role").1;
        assert!(text.starts_with(&role) && text.contains("GRANT"), "{output}");
        let timeouts = found.iter().filter(|finding| finding.1 == "timeouts");
        let timeouts: Vec<_> = timeouts
            .map(|(level, _, text)| (level.as_str(), text.as_str()))
            .collect();
        let idle = "idle_in_transaction_session_timeout is 1min (user); pglock sets it to 0";
        let statement = "statement_timeout is 7s (user); pglock sets it to 0";
        assert_eq!(timeouts, [("ok", idle), ("ok", statement)]);
        let (level, text) = about(&found, "waiting");
        assert!(text.starts_with("by trying again"), "{output}");
        assert_eq!(level == "warning", scope == "session", "{output}");
    }
}

/// P76, P40: `check` and `run` come to the same exit status in every kind of pool.
#[test]
fn check_refuses_what_run_refuses() {
    let server = Server::shared();
    for (mode, scope, refused) in [
        ("transaction", "auto", None),
        ("transaction", "session", Some("connection")),
        ("session", "auto", None),
        ("session", "session-pooled", None),
        ("statement", "auto", Some("lock")),
    ] {
        let pool = format!("pool_mode={mode}");
        let bouncer = PgBouncer::with(server, &[&pool]);
        let output = check(bouncer.pglock()).args(["--scope", scope]).output();
        let run = bouncer.run(&unique("check")).args(["--scope", scope, "true"]);
        let run = run.output();
        assert_eq!(output.status.code(), run.status.code(), "{output}{run}");
        let found = findings(&output);
        let refusals = found.iter().filter(|finding| finding.0 == "refusal");
        let refusals: Vec<_> = refusals.map(|finding| finding.1.as_str()).collect();
        assert_eq!(refusals, refused.into_iter().collect::<Vec<_>>(), "{output}");
        if refused.is_none() {
            assert_eq!(about(&found, "vanished host").0, "warning");
            assert!(about(&found, "connection").1.starts_with("through a pooler; "));
            assert_eq!(about(&found, "lock").0, "ok");
        }
    }
}

/// P76
#[test]
fn json_reports_the_same_findings() {
    let server = Server::shared();
    let bouncer = PgBouncer::with(server, &["pool_mode=transaction"]);
    let json = |arguments: &[&str], code| -> Value {
        let output = check(bouncer.pglock()).arg("--json").args(arguments).output();
        serde_json::from_slice(&output.code(code).silent().stdout).unwrap()
    };
    let report = json(&[], 0);
    assert_eq!(report["fit"], true);
    assert_eq!(report["scope"], "transaction");
    let findings = report["findings"].as_array().unwrap();
    let subjects: Vec<_> = findings
        .iter()
        .map(|finding| finding["subject"].as_str().unwrap())
        .collect();
    assert_eq!(subjects, SUBJECTS);
    for finding in findings {
        assert!(finding["fact"].is_string() && finding["level"].is_string());
        assert!(finding["remedy"].is_string() || finding["remedy"].is_null());
    }
    let report = json(&["--scope", "session"], 78);
    assert_eq!(report["fit"], false);
    assert_eq!(report["scope"], Value::Null);
}

/// P90
#[test]
fn a_failure_to_connect_is_reported_as_by_run() {
    let port = free_port();
    let nobody = format!("postgresql://x@127.0.0.1:{port}/x?sslmode=disable");
    let output = check(Pglock::alone()).args(["--dsn", &nobody]).output();
    assert!(output.code(69).stderr_line().starts_with("cannot connect"));
    let server = Server::shared();
    let port = server.port();
    let wrong = format!("postgresql://{WITH_PASSWORD}:wrong@127.0.0.1:{port}/postgres?sslmode=disable");
    let output = check(Pglock::alone()).env("PGLOCK_DSN", &wrong).output();
    output.code(77).stderr_line();
    let output = check(server.pglock()).arg("extra").output();
    output.code(64).stderr_line();
}
