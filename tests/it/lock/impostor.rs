//! P40: servers that respond like PostgreSQL and lock nothing.

use crate::support::pgbouncer::PgBouncer;
use crate::support::pglock::{Output, Pglock};
use crate::support::server::{Server, rows};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

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
        let language = "LANGUAGE sql VOLATILE";
        rows(
            &mut client,
            &format!(
                "ALTER FUNCTION pg_catalog.{function}(bigint) RENAME TO real_{function}; \
                 CREATE FUNCTION pg_catalog.{function}(bigint) RETURNS {returns} {language} AS '{body}'"
            ),
        );
    }
    server
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

/// P40: by its name, whatever it reports about its locks.
#[test]
fn cockroachdb_is_recognized_by_its_version() {
    let row = [
        ("version", "CockroachDB CCL v25.1.0 (x86_64-pc-linux-gnu)"),
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
    assert!(line.starts_with("this is CockroachDB"), "{output}");
    let output = run_against(port, &["check"]);
    let text = String::from_utf8_lossy(&output.code(78).silent().stdout).into_owned();
    assert!(text.starts_with("refusal  server: CockroachDB"), "{output}");
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
