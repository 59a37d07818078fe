//! P40: servers that respond like PostgreSQL and lock nothing.

use crate::support::pgbouncer::PgBouncer;
use crate::support::pglock::{Output, Pglock};
use crate::support::server::{Server, rows};
use crate::support::wait::{SOON, eventually};
use nix::sys::signal::Signal;
use postgres::Client;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

/// The functions by which pglock acquires a lock, and what they return.
const FUNCTIONS: [(&str, &str); 4] = [
    ("pg_try_advisory_lock", "boolean"),
    ("pg_try_advisory_xact_lock", "boolean"),
    ("pg_advisory_lock", "void"),
    ("pg_advisory_xact_lock", "void"),
];

/// Starts a PostgreSQL server whose advisory locks are stubs that always report success, as those of other products
/// are. Only the first attempt reports `first`, so that waiting can be tested too.
fn stub(first: bool) -> Server {
    let server = Server::with(&["allow_system_table_mods=on"]);
    let mut client = server.client();
    for (function, returns) in FUNCTIONS {
        let body = match (function, returns) {
            ("pg_try_advisory_lock", _) => format!("SELECT {first}"),
            (_, "boolean") => "SELECT true".into(),
            _ => "SELECT NULL::void".into(),
        };
        replace(&mut client, function, returns, "sql", &body);
    }
    server
}

/// Starts a PostgreSQL server whose `pg_locks` hides a session's own advisory locks for so many seconds after it was
/// granted one, as that of YugabyteDB does for about a second.
fn hiding(seconds: &str) -> Server {
    let server = Server::with(&["allow_system_table_mods=on"]);
    let mut client = server.client();
    const NOTE: &str = "PERFORM set_config('hiding.since', clock_timestamp()::text, false)";
    for (function, returns) in FUNCTIONS {
        let body = match returns {
            "boolean" => {
                format!("DECLARE got boolean := real_{function}($1); BEGIN IF got THEN {NOTE}; END IF; RETURN got; END")
            }
            _ => format!("BEGIN PERFORM real_{function}($1); {NOTE}; END"),
        };
        replace(&mut client, function, returns, "plpgsql", &body);
    }
    let view = format!(
        "ALTER VIEW pg_catalog.pg_locks RENAME TO real_pg_locks; CREATE VIEW pg_catalog.pg_locks AS SELECT * \
         FROM pg_catalog.real_pg_locks WHERE locktype <> 'advisory' OR pid <> pg_backend_pid() \
         OR clock_timestamp() > nullif(current_setting('hiding.since', true), '')::timestamptz + interval '{seconds} s'; \
         GRANT SELECT ON pg_catalog.pg_locks TO PUBLIC; \
         ALTER FUNCTION pg_catalog.pg_lock_status() RENAME TO real_pg_lock_status; \
         CREATE FUNCTION pg_catalog.pg_lock_status() RETURNS SETOF pg_catalog.pg_locks LANGUAGE sql \
         AS 'SELECT * FROM pg_catalog.pg_locks'"
    );
    rows(&mut client, &view);
    server
}

/// Replaces a function of PostgreSQL's by another one of that name, which can call it as `real_...`.
fn replace(client: &mut Client, function: &str, returns: &str, language: &str, body: &str) {
    rows(
        client,
        &format!(
            "ALTER FUNCTION pg_catalog.{function}(bigint) RENAME TO real_{function}; CREATE FUNCTION \
             pg_catalog.{function}(bigint) RETURNS {returns} LANGUAGE {language} VOLATILE AS $body${body}$body$"
        ),
    );
}

#[track_caller]
fn refuses(run: Pglock) {
    let output = run.args(["echo", "ran"]).output();
    let line = output.code(78).stderr_line();
    assert!(line.contains("it is not in pg_locks"), "{output}");
}

/// P40
#[test]
fn a_server_that_grants_without_locking_is_refused() {
    let server = stub(true);
    refuses(server.run("stubbed"));
    refuses(server.run("stubbed").arg("--no-wait"));
    refuses(server.run("stubbed").args(["--scope", "transaction"]));
    let pooler = PgBouncer::with(&server, &["pool_mode=transaction"]);
    refuses(pooler.run("stubbed"));
    refuses(pooler.run("stubbed").args(["--scope", "session-pooled"]));

    let output = server.pglock().arg("check").output();
    output.code(78).silent();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("\nrefusal  lock: "), "{output}");
}

/// P40, if the lock is granted after a wait.
#[test]
fn so_is_one_that_grants_without_locking_after_a_wait() {
    refuses(stub(false).run("stubbed"));
}

/// P10, P40: rows that come late are waited for, after a try and after a wait, in either scope.
#[test]
fn a_lock_that_is_in_pg_locks_a_second_later_is_real() {
    let server = hiding("1");
    for scope in ["session", "transaction"] {
        let run = || server.run("late").args(["--scope", scope]);
        let holder = run().holding();
        assert_eq!(server.locks("late").granted, 1);
        run().args(["--no-wait", "true"]).output().code(75);
        let waiter = run().arg("--token").sh("echo $PGLOCK_TOKEN").spawn();
        eventually(SOON, "a waiter", || {
            server.value("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pglock:late %'") == "2"
        });
        holder.finish().code(0);
        let output = waiter.finish();
        assert_eq!(output.code(0).stdout().len(), 25, "{output}");
        assert!(Duration::from_secs(1) < output.took, "{output}");
    }
    let slots = server
        .run("late")
        .args(["--slots", "3"])
        .sh("echo $PGLOCK_SLOT")
        .output();
    assert_eq!(slots.stdout().len(), 2, "{slots}");
    let output = server.pglock().arg("check").output();
    let text = String::from_utf8_lossy(&output.code(0).stdout).into_owned();
    assert!(
        text.contains("\nok       lock: acquired, found in pg_locks"),
        "{output}"
    );
}

/// P40: not for long, nor on a backend that may have had other clients, whose row would come late as well. A signal
/// ends the wait.
#[test]
fn a_row_that_does_not_come_in_time_is_refused() {
    let server = hiding("60");
    for scope in ["session", "transaction"] {
        let output = server.run("late").args(["--scope", scope, "echo", "ran"]).output();
        let line = output.code(78).stderr_line();
        assert!(line.contains("it is not in pg_locks"), "{output}");
        assert!((3..10).contains(&output.took.as_secs()), "{output}");
    }
    let pooler = PgBouncer::with(&server, &["pool_mode=transaction"]);
    let session_pooler = PgBouncer::with(&server, &["pool_mode=session"]);
    for (pooler, scope) in [(pooler, "auto"), (session_pooler, "session-pooled")] {
        let output = pooler.run("late").args(["--scope", scope, "echo", "ran"]).output();
        assert!(
            output.code(78).stderr_line().contains("it is not in pg_locks"),
            "{output}"
        );
        assert!(output.took < Duration::from_secs(3), "{output}");
    }
    server.await_locks("late", 0, 0);
    let run = server.run("late").args(["echo", "ran"]).spawn();
    server.await_locks("late", 1, 0);
    run.signal(Signal::SIGTERM);
    let output = run.finish();
    output.signal(Signal::SIGTERM);
    assert!(output.took < Duration::from_secs(3), "{output}");
}

/// P10, P40: CockroachDB's functions for sessions do nothing and return true. Those for transactions are decided by the
/// proof.
#[test]
fn locks_of_transactions_are_decided_by_the_proof_even_where_those_of_sessions_are_stubs() {
    let server = Server::with(&["allow_system_table_mods=on"]);
    let mut client = server.client();
    replace(&mut client, "pg_try_advisory_lock", "boolean", "sql", "SELECT true");
    replace(&mut client, "pg_advisory_lock", "void", "sql", "SELECT NULL::void");
    rows(
        &mut client,
        "ALTER FUNCTION pg_catalog.version() RENAME TO real_version; CREATE FUNCTION pg_catalog.version() RETURNS text \
         LANGUAGE sql AS $$ SELECT 'CockroachDB CCL v24.3.0 (x86_64-pc-linux-gnu)' $$",
    );
    for scope in ["auto", "session", "session-pooled"] {
        let output = server.run("stub").args(["--scope", scope, "echo", "ran"]).output();
        let line = output.code(78).stderr_line();
        assert!(
            line.starts_with("this is CockroachDB, whose session-level advisory locks"),
            "{output}"
        );
        assert!(line.contains("--scope transaction"), "{output}");
    }
    let run = || server.run("stub").args(["--scope", "transaction"]);
    let holder = run().holding();
    run().args(["--no-wait", "true"]).output().code(75);
    holder.finish().code(0);
    let check = |scope| server.pglock().args(["check", "--scope", scope]).output();
    check("auto").code(78);
    check("transaction").code(0);
    // Where they are stubs as well.
    replace(
        &mut client,
        "pg_try_advisory_xact_lock",
        "boolean",
        "sql",
        "SELECT true",
    );
    refuses(run());
    check("transaction").code(78);
}

/// P40: by its name, whatever it reports about its locks.
#[test]
fn redshift_is_recognized_by_its_version() {
    let row = [
        ("version", "PostgreSQL 8.0.2 on i686-pc-linux-gnu, Redshift 1.0.77467"),
        ("standby", "f"),
        ("got", "1"),
        ("proven", "t"),
    ];
    let port = listen(move |out| {
        let names: Vec<u8> = row
            .iter()
            .flat_map(|(name, _)| [name.as_bytes(), &[0; 19]].concat())
            .collect();
        let count = (row.len() as u16).to_be_bytes();
        let values = row
            .iter()
            .flat_map(|(_, value)| [&(value.len() as u32).to_be_bytes()[..], value.as_bytes()].concat());
        let values: Vec<u8> = values.collect();
        // Of the statements before the query.
        for tag in [b"SHOW\0".as_slice(), b"BEGIN\0", b"SELECT 1\0"] {
            send(out, b'C', tag)?;
        }
        send(out, b'T', &[&count[..], &names].concat())?;
        send(out, b'D', &[&count[..], &values].concat())?;
        send(out, b'C', b"SELECT 1\0")
    });
    let output = run_against(port, &["run", "-k", "x", "echo", "ran"]);
    let line = output.code(78).stderr_line();
    assert!(line.starts_with("this is Amazon Redshift"), "{output}");
    let output = run_against(port, &["check"]);
    let text = String::from_utf8_lossy(&output.code(78).silent().stdout).into_owned();
    assert!(text.starts_with("refusal  server: Amazon Redshift"), "{output}");
}

/// P40: an SQL error of class 42 or 0A in the reply to the first query.
#[test]
fn a_server_that_does_not_know_the_functions_is_refused() {
    for code in ["42883", "0A000"] {
        let port = listen(move |out| {
            let fields = format!("SERROR\0C{code}\0Munimplemented: such functions\0\0");
            send(out, b'E', fields.as_bytes())
        });
        let output = run_against(port, &["run", "-k", "x", "echo", "ran"]);
        let line = output.code(78).stderr_line();
        assert_eq!(
            line,
            "this server does not support advisory locks as PostgreSQL does: unimplemented: such functions"
        );
    }
}

fn run_against(port: u16, arguments: &[&str]) -> Output {
    let dsn = format!("postgresql://postgres@127.0.0.1:{port}/x?sslmode=disable");
    let pglock = Pglock::alone().env("PGLOCK_DSN", dsn);
    pglock.args(arguments).output()
}

/// Starts a server that accepts every login and sends the same reply to every query. Returns its port.
fn listen(answer: impl Fn(&mut TcpStream) -> io::Result<()> + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for client in listener.incoming() {
            // A client that hangs up early is not an error.
            let _ = client.and_then(|mut client| converse(&mut client, &answer));
        }
    });
    port
}

fn converse(client: &mut TcpStream, answer: impl Fn(&mut TcpStream) -> io::Result<()>) -> io::Result<()> {
    // The startup message has a length, and no type.
    let mut length = [0; 4];
    client.read_exact(&mut length)?;
    skip(client, length)?;
    send(client, b'R', &[0; 4])?;
    send(client, b'K', &[0; 8])?;
    send(client, b'Z', b"I")?;
    loop {
        let mut head = [0; 5];
        client.read_exact(&mut head)?;
        skip(client, head[1..].try_into().unwrap())?;
        if head[0] == b'X' {
            return Ok(());
        }
        answer(client)?;
        send(client, b'Z', b"I")?;
    }
}

fn skip(client: &mut TcpStream, length: [u8; 4]) -> io::Result<()> {
    let rest = u64::from(u32::from_be_bytes(length)) - 4;
    io::copy(&mut client.take(rest), &mut io::sink()).map(drop)
}

fn send(client: &mut TcpStream, kind: u8, body: &[u8]) -> io::Result<()> {
    let length = (body.len() as u32 + 4).to_be_bytes();
    client.write_all(&[&[kind], &length[..], body].concat())
}
