//! The costs of a run that do not depend on the machine: round trips, threads, processes, files. `make bench` measures
//! the others.

use crate::support::delay_line::Relay;
use crate::support::pglock::Pglock;
use crate::support::server::{SUPERUSER, Server, WITH_PASSWORD};
use crate::support::unique;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// P93, from connecting to exiting; the TCP handshake does not count.
#[test]
fn a_run_takes_three_round_trips_and_five_with_scram() {
    let server = Server::start();
    server.sql(&format!(
        "SET password_encryption = 'scram-sha-256'; CREATE ROLE {WITH_PASSWORD} LOGIN PASSWORD 'x'"
    ));
    let relay = Relay::to(server.port(), Duration::ZERO);
    let round_trips_to = |code: i32, user: &str, key: &str, arguments: &[&str]| {
        let dsn = format!(
            "host=127.0.0.1 port={} user={user} password=x dbname=postgres sslmode=disable",
            relay.port()
        );
        let run = Pglock::alone().env("PGLOCK_DSN", dsn);
        run.args(["run", "--key", key])
            .args(arguments)
            .arg("true")
            .output()
            .code(code);
        relay.round_trips()
    };
    let round_trips = |user: &str, arguments: &[&str]| {
        let key = unique("round_trips");
        round_trips_to(0, user, &key, arguments)
    };
    assert_eq!(round_trips(SUPERUSER, &[]), 3, "connect, lock, unlock");
    assert_eq!(round_trips(WITH_PASSWORD, &[]), 5, "two more for the password");
    assert_eq!(round_trips(SUPERUSER, &["--shared", "--key", "42", "--key", "1,2"]), 3);
    assert_eq!(round_trips(SUPERUSER, &["--slots", "3"]), 3);
    assert_eq!(round_trips(SUPERUSER, &["--hash", "hashtext"]), 4, "one for the number");
    assert_eq!(round_trips(SUPERUSER, &["--token"]), 4, "the token takes one");
    server.pglock().arg("init").output().code(0);
    assert_eq!(round_trips(SUPERUSER, &["--record"]), 6, "begin, end, retention");

    let holder = server.run("held").holding();
    let refused = |arguments: &[&str]| round_trips_to(75, SUPERUSER, "held", arguments);
    assert_eq!(refused(&["--no-wait"]), 3, "connect, try, look for the holder");
    assert_eq!(refused(&["--no-wait", "-q"]), 2, "nobody would read who holds it");
    holder.finish().code(0);
}

/// P93: no roots of trust and no name service are loaded unless they are used.
#[test]
#[cfg(target_os = "linux")]
fn a_run_starts_one_thread_and_opens_no_unused_file() {
    let server = Server::shared();
    let calls = traced(server, &["--", "true"]);
    let count = |what: &dyn Fn(&str) -> bool| calls.iter().filter(|call| what(call)).count();
    let threads = count(&|call| call.contains("CLONE_THREAD"));
    assert_eq!(threads, 1, "the session's: {calls:#?}");
    let processes = count(&|call| call.starts_with("clone") || call.starts_with("vfork"));
    assert_eq!(processes - threads, 1, "the job: {calls:#?}");
    let inet = |call: &str| call.starts_with("socket(AF_INET");
    assert_eq!(count(&inet), 1, "one connection: {calls:#?}");
    let messages = count(&|call| {
        let is_sent = call.starts_with("sendto(") || call.starts_with("write(");
        is_sent
            && ["\\0\\3\\0\\0", "\"Q\\0\\0", "\"X\\0\\0\\0"]
                .iter()
                .any(|head| call.contains(head))
    });
    assert_eq!(messages, 4, "connect, lock, unlock, terminate: {calls:#?}");
    let opened = calls.iter().filter_map(|call| call.strip_prefix("openat(AT_FDCWD, \""));
    let opened: Vec<&str> = opened.filter_map(|rest| rest.split('"').next()).collect();
    let terminals = opened.iter().filter(|path| **path == "/dev/tty").count();
    assert_eq!(terminals, 1, "without a terminal, one look for it: {calls:#?}");
    let expected = ["/dev/tty", ".pgpass", ".so"];
    let other = opened
        .iter()
        .filter(|path| !expected.iter().any(|part| path.contains(part)));
    // The program loader's.
    let other: Vec<_> = other.filter(|path| !path.starts_with("/etc/ld.so")).collect();
    assert!(other.is_empty(), "{other:?}");
}

/// A start that relocates the program's addresses takes longer.
#[test]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn the_program_is_linked_at_a_fixed_address() {
    const ET_EXEC: u8 = 2;
    let program = fs::read(env!("CARGO_BIN_EXE_pglock")).unwrap();
    let is_chosen = std::env::var("RUSTFLAGS").is_ok_and(|flags| flags.contains("relocation-model"));
    assert!(
        is_chosen || program[16] == ET_EXEC,
        "e_type of the ELF header: {}",
        program[16]
    );
}

/// Returns the system calls of pglock and of its job up to the job's own. As under cron, there is not a terminal, which
/// would add the thread of ctrlc.
#[cfg(target_os = "linux")]
fn traced(server: &Server, arguments: &[&str]) -> Vec<String> {
    let file = server.directory().join(unique("trace"));
    let run = Pglock::for_program("setsid")
        .env("PGLOCK_DSN", server.dsn())
        .args(["--wait", "strace", "-f", "-qq", "-s", "64", "-e", "signal=none", "-o"])
        .arg(&file)
        .arg(env!("CARGO_BIN_EXE_pglock"))
        .args(["run", "--key", &unique("traced")])
        .args(arguments);
    run.output().code(0).silent();
    calls_of(&file)
}

/// Returns the calls in a trace, each once, without the process id.
#[cfg(target_os = "linux")]
fn calls_of(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap();
    let job = text
        .lines()
        .find(|line| line.contains("execve(") && line.contains("[\"true\"]"));
    let job = job.and_then(|line| line.split(' ').next()).unwrap_or("none");
    let calls = text.lines().filter_map(|line| {
        let (pid, call) = line.split_once(' ')?;
        let call = call.trim_start();
        (pid != job && !call.starts_with("<...")).then(|| call.to_owned())
    });
    calls.collect()
}
