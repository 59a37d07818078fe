//! `--token`: a number that only grows, and how to use it.

use crate::support::gate::{Answer, Gate};
use crate::support::server::{Server, rows};
use crate::support::unique;
use crate::support::wait::{SOON, eventually};
use std::time::{Duration, Instant};

const JOB: &str = "echo $PGLOCK_TOKEN";

/// Returns the token that a job gets.
#[track_caller]
fn token(server: &Server, options: &[&str]) -> String {
    let token = server.run("key").arg("--token").args(options).sh(JOB).output().stdout();
    let token = token.trim().to_owned();
    let is_hex = token.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
    assert!(token.len() == 24 && is_hex, "{token:?}");
    token
}

#[track_caller]
fn assert_growing(tokens: &[String]) {
    let mut sorted = tokens.to_vec();
    sorted.sort();
    sorted.dedup();
    assert_eq!(tokens, sorted);
}

/// P18, in either scope, and with `synchronous_commit` off for the role.
#[test]
fn tokens_grow_over_hand_offs() {
    let server = Server::with(&["synchronous_commit=off"]);
    let scopes = [&["--scope", "session"][..], &["--scope", "transaction"]];
    let tokens: Vec<String> = (0..40).map(|n| token(&server, scopes[n % 2])).collect();
    assert_growing(&tokens);
    // Without --token there is none, even inside the job of a pglock that gave one.
    let plain = server
        .run("key")
        .env("PGLOCK_TOKEN", "outer")
        .sh("echo \"<$PGLOCK_TOKEN>\"");
    assert_eq!(plain.output().stdout(), "<>\n");
}

/// P18, for ten crashes under load.
#[test]
fn tokens_grow_over_crashes() {
    let server = Server::with(&["synchronous_commit=off"]);
    server.sql("CREATE TABLE load (n int)");
    let mut tokens = Vec::new();
    for _ in 0..10 {
        // A stream of transactions, the last of which a crash may lose.
        let mut load = server.client();
        let loading = std::thread::spawn(move || {
            while load
                .simple_query("INSERT INTO load SELECT generate_series(1, 50)")
                .is_ok()
            {}
        });
        eventually(SOON, "load", || server.value("SELECT count(*) FROM load") != "0");
        tokens.extend((0..3).map(|_| token(&server, &[])));
        server.restart();
        loading.join().unwrap();
        tokens.push(token(&server, &[]));
    }
    assert_growing(&tokens);
}

/// P18, P93: in either scope, while a synchronous standby is away, for which a commit waits indefinitely, and for a
/// role whose commits need not even reach the disk. Neither delays a token, and each is on disk.
#[test]
fn a_token_waits_for_no_standby_and_survives_a_killed_postmaster() {
    let server = Server::with(&["synchronous_standby_names=ghost"]);
    // What these statements commit would itself wait for the standby.
    server.sql("SET synchronous_commit = local; CREATE ROLE hasty LOGIN");
    server.sql("SET synchronous_commit = local; ALTER ROLE hasty SET synchronous_commit = off");
    let mut tokens = Vec::new();
    for round in 0..3 {
        for role in ["postgres", "hasty"] {
            for scope in ["session", "transaction"] {
                let run = |options: &[&str]| {
                    let run = server
                        .run("key")
                        .env("PGDATABASE", "postgres")
                        .env("PGUSER", role)
                        .args(["--scope", scope]);
                    let began = Instant::now();
                    let output = run.args(options).sh(JOB).output();
                    (output.stdout().trim().to_owned(), began.elapsed())
                };
                let (_, plain) = run(&[]);
                let (token, with_token) = run(&["--token"]);
                assert!(
                    with_token < plain + Duration::from_secs(1),
                    "{role}, {scope}: {with_token:?} instead of {plain:?}"
                );
                tokens.push(token);
            }
        }
        // The last token of each round is one of the hasty role.
        if round < 2 {
            server.kill_and_restart();
        }
    }
    assert_growing(&tokens);
}

/// P18: the standby is behind in the WAL, and ahead in its timeline.
#[test]
fn tokens_grow_over_a_failover_to_a_standby_that_lags() {
    let primary = Server::start();
    let standby = Server::standby_of(&primary);
    primary.sql("CREATE TABLE ahead (n int)");
    let streaming = "SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'";
    eventually(SOON, "the standby to stream", || !primary.sql(streaming).is_empty());
    let before = token(&primary, &[]);
    // From here on the standby receives nothing.
    standby.stop_immediate();
    primary.sql("INSERT INTO ahead SELECT generate_series(1, 200000)");
    let last = token(&primary, &[]);
    primary.stop_immediate();
    standby.restart();
    standby.promote();
    let after = token(&standby, &[]);
    assert!(after[8..] < last[8..], "the standby did not lag: {last} {after}");
    assert_growing(&[before, last, after]);
}

/// P18, P95: the SQL of `docs/lost-locks.md`.
#[test]
fn a_table_refuses_an_older_token() {
    let page = include_str!("../../../docs/lost-locks.md");
    let sql = page.split("```sql\n").nth(1).unwrap().split("```").next().unwrap();
    let (server, given) = (Server::start(), "000000010000000001A2B3C4");
    assert!(sql.contains(given), "{sql}");
    let (create, write) = sql.split_once(';').unwrap();
    let mut client = server.client();
    rows(&mut client, create);
    let mut write = |token: &str, body: &str| {
        rows(
            &mut client,
            &write.replace(given, token).replace("'new'", &format!("'{body}'")),
        );
        rows(&mut client, "SELECT body FROM report").concat().concat()
    };
    let (old, new) = (token(&server, &[]), token(&server, &[]));
    assert_eq!(write(&old, "first"), "first");
    assert_eq!(write(&old, "again"), "again", "the same holder writes twice");
    assert_eq!(write(&new, "newer"), "newer");
    assert_eq!(write(&old, "late"), "newer");
}

/// P18: with `--scope transaction`, a token takes a connection of its own, which may reach another server than that of
/// the lock: one that has been promoted while the old one still serves its sessions. No job gets its token.
#[test]
fn a_token_of_another_server_is_refused() {
    let (old, new, key) = (Server::start(), Server::start(), unique("moved"));
    let gate = Gate::before(&old, Answer::Relay);
    let hosts = format!(
        "host=127.0.0.1,127.0.0.1 port={},{} user=postgres dbname=postgres sslmode=disable",
        gate.port(),
        new.port()
    );
    let holder = old.run(&key).holding();
    let waiter = old
        .run(&key)
        .args(["--dsn", &hosts, "--scope", "transaction", "--token"]);
    let short = ["--heartbeat", "0.5", "--kill-after", "0.5", "-v"];
    let waiter = waiter.args(short).sh("echo started; read -r _; exit 0").spawn();
    waiter.await_stderr("; waiting\n");
    // From now on, connections reach the new server only.
    gate.set(Answer::Close);
    holder.finish().code(0);
    waiter.await_stderr(": lost the lock before the job was started: ");
    // It waits for its turn on the new server.
    waiter.await_stdout("started\n");
    assert_eq!((old.locks(&key).granted, new.locks(&key).granted), (0, 1));
    waiter.finish().code(0);
}
