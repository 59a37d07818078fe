//! `--fair`: strict FIFO order.

use crate::support::journal::{Journal, now};
use crate::support::pglock::Running;
use crate::support::server::{Server, rows};
use crate::support::unique;
use crate::support::wait::{SOON, eventually};
use nix::sys::signal::Signal;

/// Returns how many waiters are queued, on a server where no other client uses two-integer keys.
fn tickets(server: &Server) -> usize {
    let sql = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND mode = 'ExclusiveLock'";
    server.sql(sql).len()
}

/// Starts waiters that record their number, each queued before the next one starts.
fn queue(server: &Server, key: &str, journal: &Journal, count: usize) -> Vec<Running> {
    let waiter = |n| {
        let job = format!("{}; note {n}", journal.note());
        let waiter = server.run(key).arg("--fair").sh(&job).spawn();
        eventually(SOON, "a ticket", || tickets(server) == n + 1);
        waiter
    };
    (0..count).map(waiter).collect()
}

/// P35, with waiters killed while they are queued.
#[test]
fn fifty_waiters_are_served_in_the_order_in_which_they_came() {
    let (server, journal) = (Server::start(), Journal::new());
    let holder = server.run("key").arg("--fair").holding();
    let mut waiters = queue(&server, "key", &journal, 50);
    let killed = [49, 31, 30, 12, 0];
    for n in killed {
        let mut waiter = waiters.remove(n);
        let signal = if n % 2 == 0 { Signal::SIGKILL } else { Signal::SIGTERM };
        waiter.signal(signal);
        eventually(SOON, "its end", || !waiter.lives());
    }
    // The others notice by the tickets, which the server drops with the sessions.
    eventually(SOON, "the tickets to be gone", || tickets(&server) == 45);
    holder.finish().code(0);
    for waiter in waiters {
        waiter.finish().code(0).silent();
    }
    let served: Vec<usize> = journal
        .entries()
        .iter()
        .map(|entry| entry.event.parse().unwrap())
        .collect();
    let expected: Vec<usize> = (0..50).filter(|n| !killed.contains(n)).collect();
    assert_eq!(served, expected);
    assert_eq!(tickets(&server), 0);
    // A wait that TERM ends is cancelled, which the server reports where the statement has only just begun.
    let log = server.log();
    let is_unexpected = |line: &&str| line.contains("ERROR") && !line.contains("due to user request");
    assert_eq!(log.lines().find(is_unexpected), None);
}

/// P35: the numbers of the tickets start over every 248 days, and a queue that is not empty then keeps its order.
#[test]
fn the_order_survives_the_wraparound_of_the_numbers() {
    let (server, journal) = (Server::start(), Journal::new());
    let holder = server.run("key").holding();
    let mut waiters = queue(&server, "key", &journal, 1);
    let class = "SELECT classid::bigint::bit(32)::int FROM pg_locks WHERE objsubid = 2";
    let class = server.value(class);
    let mut last = server.client();
    rows(&mut last, &format!("SELECT pg_advisory_lock({class}, 2147483647)"));
    for n in 1..4 {
        let job = format!("{}; note {n}", journal.note());
        waiters.push(server.run("key").arg("--fair").sh(&job).spawn());
        eventually(SOON, "a ticket", || tickets(&server) == n + 2);
    }
    drop(last);
    holder.finish().code(0);
    for waiter in waiters {
        waiter.finish().code(0).silent();
    }
    let order: Vec<String> = journal.entries().into_iter().map(|e| e.event).collect();
    assert_eq!(order, ["0", "1", "2", "3"]);
}

/// P36: from the end of a job to the start of the next one, medians of 40.
#[test]
fn a_fair_hand_off_takes_at_most_three_times_as_long() {
    let server = Server::start();
    let median = |fair: bool| {
        let key = unique("key");
        let option = if fair { "--fair" } else { "--shared" };
        let mut delays: Vec<u128> = (0..40)
            .map(|_| {
                let run = || {
                    if fair {
                        server.run(&key).arg(option)
                    } else {
                        server.run(&key)
                    }
                };
                let holder = run().holding();
                let waiter = run().sh("date +%s%N").spawn();
                if fair {
                    eventually(SOON, "a ticket", || tickets(&server) == 1);
                }
                server.await_locks(&key, 1, 1);
                let freed = now();
                holder.finish().code(0);
                waiter.finish().stdout().trim().parse::<u128>().unwrap() - freed
            })
            .collect();
        delays.sort_unstable();
        delays[delays.len() / 2]
    };
    let (plain, fair) = (median(false), median(true));
    println!("hand-off, median, us: plain {}, fair {}", plain / 1000, fair / 1000);
    assert!(fair < plain * 3, "{fair} {plain}");
}

/// P35: a plain waiter is not queued, and a fair one that is not first in the queue does not wait for the key. Both
/// acquire it.
#[test]
fn fair_and_plain_waiters_both_acquire_the_lock() {
    let (server, journal) = (Server::start(), Journal::new());
    let holder = server.run("key").holding();
    let fair = queue(&server, "key", &journal, 2);
    let plain = server.run("key").sh(&format!("{}; note plain", journal.note())).spawn();
    // The first in the queue and the plain one.
    server.await_locks("key", 1, 2);
    holder.finish().code(0);
    plain.finish().code(0);
    for waiter in fair {
        waiter.finish().code(0);
    }
    let order: Vec<String> = journal.entries().into_iter().map(|entry| entry.event).collect();
    let fair: Vec<&String> = order.iter().filter(|word| *word != "plain").collect();
    assert_eq!(fair, ["0", "1"]);
}

/// P32, in the queue.
#[test]
fn a_limited_wait_in_the_queue_ends() {
    let (server, journal) = (Server::start(), Journal::new());
    let holder = server.run("key").holding();
    let waiters = queue(&server, "key", &journal, 2);
    for _ in 0..2 {
        let output = server.run("key").args(["--fair", "--wait", "1.5", "true"]).output();
        output.code(75);
        assert!((1.5..2.3).contains(&output.took.as_secs_f64()), "{output}");
    }
    eventually(SOON, "its ticket to be gone", || tickets(&server) == 2);
    holder.finish().code(0);
    for waiter in waiters {
        waiter.finish().code(0);
    }
}
