//! Several keys: all or none, acquired in one global order.

use crate::support::server::{Locks, Server, rows};
use crate::support::unique;
use crate::support::wait::{SOON, eventually};
use nix::sys::signal::Signal;
use std::time::Duration;

/// P15: 500 times with 6 contenders, with 64-bit and two-integer keys, and with duplicates.
#[test]
fn opposite_orders_neither_deadlock_nor_overlap() {
    let server = Server::start();
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let job = format!("echo in >> {0}; echo out >> {0}", log.display());
    let orders = [
        ["a", "b", "7,7"],
        ["7,7", "b", "a"],
        ["b", "a", "7,7"],
        ["7,7", "a", "b"],
        ["a", "7,7", "a"],
        ["b", "7,7", "b"],
    ];
    let rounds = 500usize.div_ceil(orders.len());
    std::thread::scope(|scope| {
        for order in &orders {
            scope.spawn(|| {
                for _ in 0..rounds {
                    let keys = order.iter().flat_map(|key| ["--key", key]);
                    server.pglock().arg("run").args(keys).sh(&job).output().code(0).silent();
                }
            });
        }
    });
    let text = std::fs::read_to_string(&log).unwrap();
    let expected = "in\nout\n".repeat(rounds * orders.len());
    assert!(text == expected, "two jobs overlapped, or one is missing");
    assert!(!server.log().contains("deadlock"), "{}", server.log());
    assert!(!server.log().contains("ERROR"), "{}", server.log());
}

/// P15, P70
#[test]
fn a_conflict_names_the_held_key_and_acquires_none() {
    let server = Server::shared();
    for scope in ["session", "transaction"] {
        let (first, second) = (unique("one"), unique("two"));
        let both = |wait: &str| {
            let keys = ["--key", &first, "--key", &second, "--scope", scope, "--wait", wait];
            server.pglock().arg("run").args(keys).arg("true").output()
        };
        for held in [&first, &second] {
            let holder = server.run(held).holding();
            for wait in ["0", "0.3"] {
                let output = both(wait);
                let line = output.code(75).stderr_line();
                assert!(line.starts_with(&format!("key \"{held}\" ")), "{line}");
                assert!(
                    output.took >= Duration::from_secs_f64(wait.parse().unwrap()),
                    "{output}"
                );
                let other = if held == &first { &second } else { &first };
                assert_eq!(server.locks(other), Locks::default(), "{other} {scope}");
            }
            holder.finish().code(0);
        }
        both("0").code(0);
    }
}

/// P15, P4: the job finds all of them.
#[test]
fn the_keys_are_held_and_released_together() {
    let server = Server::shared();
    let (first, second) = (unique("one"), unique("two"));
    let keys = ["--key", &first, "--key", &second, "--key", &first];
    let (one, two) = (server.run(&first).holding(), server.run(&second).holding());
    let mut waiter = server
        .pglock()
        .arg("run")
        .args(keys)
        .sh("echo \"$PGLOCK_KEY\"; read -r _; exit 0")
        .spawn();
    one.finish().code(0);
    two.finish().code(0);
    waiter.await_stdout(&format!("{first}\n{second}\n"));
    assert_eq!((server.locks(&first).granted, server.locks(&second).granted), (1, 1));
    waiter.signal(Signal::SIGTERM);
    eventually(SOON, "its end", || !waiter.lives());
    waiter.finish().signal(Signal::SIGTERM);
    assert_eq!((server.locks(&first).granted, server.locks(&second).granted), (0, 0));
}

/// P71
#[test]
fn the_session_is_named_after_all_its_keys() {
    let server = Server::shared();
    let (first, second) = (unique("one"), unique("two"));
    let holder = server.run(&first).args(["--key", &second]).holding();
    let sql = format!("SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'pglock:{first},{second} %'");
    assert_eq!(rows(&mut server.client(), &sql).len(), 1);
    holder.finish().code(0);
}
