//! `pglock check`.

use crate::connection::hosts::pair;
use crate::support::gate::{Answer, Gate};
use crate::support::pgbouncer::PgBouncer;
use crate::support::pglock::{Output, Pglock};
use crate::support::proxy::Proxy;
#[cfg(target_os = "linux")]
use crate::support::real_proxy::RealProxy;
use crate::support::server::{Server, WITH_PASSWORD, free_port};
use crate::support::socket_forwarder::SocketForwarder;
use crate::support::unique;
use crate::support::wait::{SOON, eventually};
use serde_json::Value;
use std::time::Duration;

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

const SUBJECTS: [&str; 12] = [
    "server",
    "database",
    "role",
    "connections",
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
    let server = Server::with(&["fsync=on"]);
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

/// P18, P76: without fsync, a token does not survive everything. The tests' servers are such.
#[test]
fn a_server_without_fsync_is_reported() {
    let found = findings(check(Server::shared().pglock()).output().code(0));
    let (level, text) = about(&found, "durability");
    assert!(
        level == "warning" && text.contains("--token") && text.contains("fsync = on"),
        "{found:?}"
    );
}

/// P76: what the role may see, every timeout that pglock disables, and whether waiters can queue.
#[test]
fn timeouts_and_a_missing_plpgsql_are_reported() {
    let server = Server::shared();
    let (role, database) = (unique("Poor role"), server.database());
    let mut client = server.client_in(&database);
    let prepare = format!(
        "CREATE ROLE \"{role}\" LOGIN; ALTER ROLE \"{role}\" SET statement_timeout = '7s'; \
         ALTER ROLE \"{role}\" SET idle_in_transaction_session_timeout = '1min'; \
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
        assert!(text.starts_with(&role), "{output}");
        assert!(
            text.contains(&format!("GRANT pg_read_all_stats TO \"{role}\" ")),
            "{output}"
        );
        let timeouts = found.iter().filter(|finding| finding.1 == "timeouts");
        let timeouts: Vec<_> = timeouts
            .map(|(level, _, text)| (level.as_str(), text.as_str()))
            .collect();
        let idle = "idle_in_transaction_session_timeout is 1min (user); pglock sets it to 0";
        let statement = "statement_timeout is 7s (user); pglock sets it to 0";
        assert_eq!(timeouts, [("ok", idle), ("ok", statement)]);
        let (level, text) = about(&found, "waiting");
        assert!(text.starts_with("by polling"), "{output}");
        assert_eq!(level == "warning", scope == "session", "{output}");
    }
}

/// P76: such a role may not see its own session, and from PostgreSQL 12 on not even whether that is encrypted.
#[test]
fn a_role_other_than_that_of_the_login_gets_a_report() {
    let server = Server::shared();
    let (role, database) = (unique("Owner"), server.database());
    server.sql(&format!("CREATE ROLE \"{role}\""));
    server.sql(&format!(
        "ALTER ROLE postgres IN DATABASE {database} SET role = '{role}'"
    ));
    let dsn = server.dsn().replace("/postgres?", &format!("/{database}?"));
    let output = check(Pglock::alone()).args(["--dsn", &dsn]).output();
    let found = findings(output.code(0));
    let text = match server.version() {
        12.. => format!("unknown, hidden from this role; GRANT pg_read_all_stats TO \"{role}\" to show it"),
        _ => "none; sslmode=require encrypts, sslmode=verify-full also authenticates the server".into(),
    };
    assert_eq!(about(&found, "TLS"), ("warning", text.as_str()), "{output}");
    // Over a socket there is nothing to see.
    let output = check(server.pglock().env("PGDATABASE", &database)).output();
    let found = findings(output.code(0));
    assert_eq!(about(&found, "TLS"), ("ok", "not needed on a Unix socket"), "{output}");
}

/// P76: something forwards the connection, so the server's limits watch that.
#[test]
fn a_proxy_is_reported_and_nothing_false_is_said() {
    let server = Server::shared();
    let proxy = Proxy::with_delay(server, Duration::ZERO);
    let over_tcp = check(Pglock::alone()).args(["--dsn", &proxy.dsn()]).output();
    let to_socket = SocketForwarder::to(server);
    let dsn = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", to_socket.port());
    let over_socket = check(Pglock::alone()).args(["--dsn", &dsn]).output();
    let emulated = [(over_tcp, "127.0.0.1:"), (over_socket, "a Unix socket")];
    for (output, seen) in emulated.into_iter().chain(through_real_proxies(server)) {
        let found = findings(output.code(0));
        let (level, text) = about(&found, "proxy");
        assert!(
            level == "warning" && text.contains(&format!("sees its client at {seen}")),
            "{output}"
        );
        assert!(text.contains("ClientAliveInterval"), "{output}");
        let (level, text) = about(&found, "vanished host");
        assert!(level == "warning" && text.starts_with("the proxy decides"), "{output}");
        let (level, text) = about(&found, "TLS");
        assert!(level == "warning" && text.starts_with("none; "), "{output}");
    }
    let run = Pglock::alone()
        .args(["run", "-v", "-d", &dsn, "-k", &unique("proxied"), "true"])
        .output();
    let log = String::from_utf8_lossy(&run.code(0).stderr).into_owned();
    assert!(log.contains("the server sees its client at a Unix socket"), "{log}");
}

/// Returns what is found through HAProxy, and through socat to the server's socket, and how the server sees its client.
#[cfg(target_os = "linux")]
fn through_real_proxies(server: &Server) -> Vec<(Output, &'static str)> {
    let [haproxy_port, socat_port] = [free_port(), free_port()];
    let configuration = format!(
        "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n\
         listen l\n  bind 127.0.0.1:{haproxy_port}\n  server s 127.0.0.1:{}\n",
        server.port()
    );
    let _running = [
        RealProxy::haproxy(server, None, &configuration, haproxy_port),
        RealProxy::socat(server, None, &[], socat_port),
    ];
    let check_through = |port: u16| {
        let dsn = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres");
        check(Pglock::alone()).args(["--dsn", &dsn]).output()
    };
    vec![
        (check_through(haproxy_port), "127.0.0.1:"),
        (check_through(socat_port), "a Unix socket"),
    ]
}

#[cfg(not(target_os = "linux"))]
fn through_real_proxies(_server: &Server) -> Vec<(Output, &'static str)> {
    Vec::new()
}

/// P76: what will hurt later.
#[test]
fn an_expiring_password_a_template_and_full_connections_are_reported() {
    let server = Server::shared();
    let role = unique("Expiring role");
    server.sql(&format!("CREATE ROLE \"{role}\" LOGIN SUPERUSER"));
    for (until, expected) in [
        (
            "now() + interval '13 days'",
            Some(("warning", "in less than two weeks")),
        ),
        ("now() + interval '15 days'", Some(("ok", "expires on"))),
        ("now() - interval '1 day'", Some(("warning", "expired on"))),
        ("'infinity'::timestamptz", None),
    ] {
        let alter = format!("SELECT format('ALTER ROLE \"{role}\" VALID UNTIL %L', {until})");
        server.sql(&server.value(&alter));
        let as_role = server.pglock().env("PGUSER", &role).env("PGDATABASE", "postgres");
        let output = check(as_role).output();
        let found = findings(output.code(0));
        let is_reported = found.iter().any(|finding| finding.1 == "expiry");
        let Some((level, text)) = expected else {
            assert!(!is_reported, "{output}");
            continue;
        };
        let finding = about(&found, "expiry");
        assert!(finding.0 == level && finding.1.contains(text), "{output}");
        let remedy = format!("ALTER ROLE \"{role}\" PASSWORD");
        assert_eq!(finding.1.contains(&remedy), level == "warning", "{output}");
    }
    let output = check(server.pglock()).env("PGDATABASE", "template1").output();
    let found = findings(output.code(0));
    assert_eq!(about(&found, "database").0, "warning", "{output}");

    // PostgreSQL 11 counts the WAL senders among the connections.
    let small = Server::with(&["max_connections=12", "max_wal_senders=0"]);
    let level_with = |clients: &[postgres::Client]| {
        let output = check(small.pglock()).output();
        let level = about(&findings(output.code(0)), "connections").0.to_owned();
        (level, clients.len())
    };
    assert_eq!(level_with(&[]), ("ok".into(), 0));
    // Three are reserved for superusers, and check itself uses one.
    let clients: Vec<_> = (0..8).map(|_| small.client()).collect();
    assert_eq!(level_with(&clients), ("warning".into(), 8));
}

/// P76: the login is by a method that PostgreSQL deprecates.
#[test]
fn a_login_by_md5_is_reported() {
    let server = Server::with(&["password_encryption=md5"]);
    server.sql(&format!("CREATE ROLE {WITH_PASSWORD} LOGIN PASSWORD 'secret'"));
    let hba = server.value("SHOW hba_file");
    let rules = std::fs::read_to_string(&hba).unwrap().replace("scram-sha-256", "md5");
    std::fs::write(&hba, rules).unwrap();
    server.sql("SELECT pg_reload_conf()");
    let dsn = format!(
        "postgresql://{WITH_PASSWORD}:secret@127.0.0.1:{}/postgres",
        server.port()
    );
    eventually(SOON, "a warning about the login", || {
        let output = check(Pglock::alone()).env("PGLOCK_DSN", &dsn).output();
        output.status.success() && {
            let found = findings(&output);
            found
                .iter()
                .any(|finding| finding.1 == "login" && finding.0 == "warning")
        }
    });
}

/// P76: locks of two primaries do not exclude each other.
#[test]
fn two_primaries_in_the_list_are_reported() {
    let (first, second) = (Server::shared(), Server::start_another_cluster());
    let check_hosts = |ports: [u16; 2]| {
        let [first, second] = ports;
        let dsn = format!("host=127.0.0.1,127.0.0.1 port={first},{second} user=postgres dbname=postgres");
        let output = check(Pglock::alone()).args(["--dsn", &dsn]).output();
        let found = findings(output.code(0));
        let (level, text) = about(&found, "hosts");
        (level.to_owned(), text.to_owned())
    };
    let (level, text) = check_hosts([first.port(), second.port()]);
    assert!(
        level == "warning" && text.contains("primaries of different clusters"),
        "{text}"
    );
    let (primary, standby) = pair();
    let (level, text) = check_hosts([primary.port(), standby.port()]);
    assert_eq!((level.as_str(), text.as_str()), ("ok", "primaries: 1, standbys: 1"));
    // Two addresses can lead to one server.
    let (level, text) = check_hosts([first.port(), Gate::before(first, Answer::Relay).port()]);
    assert_eq!((level.as_str(), text.as_str()), ("ok", "primaries: 1, standbys: 0"));
    let (level, text) = check_hosts([primary.port(), free_port()]);
    assert!(
        level == "warning" && text.contains("cannot connect to 127.0.0.1:"),
        "{text}"
    );
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
    let server = Server::with(&["fsync=on"]);
    let bouncer = PgBouncer::with(&server, &["pool_mode=transaction"]);
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
    let (pooling, others): (Vec<_>, Vec<_>) = subjects.into_iter().partition(|subject| *subject == "pooling");
    assert_eq!((pooling.len(), others), (1, SUBJECTS.to_vec()));
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
