//! `--fair`: strictly in the order of coming.

use crate::support::journal::{Journal, now};
use crate::support::pglock::Running;
use crate::support::server::{Server, rows};
use crate::support::unique;
use crate::support::wait::{SOON, eventually};
use nix::sys::signal::Signal;

/// How many stand in line, on a server where nobody else uses pairs of integers.
fn in_line(server: &Server) -> usize {
    let sql = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND mode = 'ExclusiveLock'";
    server.sql(sql).len()
}

/// Waiters that note their number, each in line before the next one starts.
fn line_up(server: &Server, key: &str, journal: &Journal, count: usize) -> Vec<Running> {
    let waiter = |n| {
        let job = format!("{}; note {n}", journal.note());
        let waiter = server.run(key).arg("--fair").sh(&job).spawn();
        eventually(SOON, "a ticket", || in_line(server) == n + 1);
        waiter
    };
    (0..count).map(waiter).collect()
}

/// "Strict FIFO among those who ask for it, proven with 50 waiters in known order, waiters killed in the queue."
#[test]
fn fifty_waiters_are_served_in_the_order_in_which_they_came() {
    let (server, journal) = (Server::start(), Journal::new());
    let holder = server.run("key").arg("--fair").holding();
    let mut waiters = line_up(&server, "key", &journal, 50);
    let killed = [49, 31, 30, 12, 0];
    for n in killed {
        let mut waiter = waiters.remove(n);
        let signal = if n % 2 == 0 { Signal::SIGKILL } else { Signal::SIGTERM };
        waiter.signal(signal);
        eventually(SOON, "its end", || !waiter.lives());
    }
    // Those who are left come to know it by their tickets, which the server drops with their sessions.
    eventually(SOON, "the tickets to be gone", || in_line(&server) == 45);
    holder.finish().code(0);
    for waiter in waiters {
        waiter.finish().code(0).silent();
    }
    let served: Vec<usize> = journal
        .entries()
        .iter()
        .map(|entry| entry.word.parse().unwrap())
        .collect();
    let expected: Vec<usize> = (0..50).filter(|n| !killed.contains(n)).collect();
    assert_eq!(served, expected);
    assert_eq!(in_line(&server), 0);
    assert!(!server.log().contains("ERROR"), "{}", server.log());
}

/// The numbers of the tickets begin anew every 248 days; a line that is not empty then goes on in its order.
#[test]
fn a_line_goes_on_when_the_numbers_begin_anew() {
    let (server, journal) = (Server::start(), Journal::new());
    let holder = server.run("key").holding();
    let mut waiters = line_up(&server, "key", &journal, 1);
    let class = "SELECT classid::bigint::bit(32)::int FROM pg_locks WHERE objsubid = 2";
    let class = server.value(class);
    let mut last = server.client();
    rows(&mut last, &format!("SELECT pg_advisory_lock({class}, 2147483647)"));
    for n in 1..4 {
        let job = format!("{}; note {n}", journal.note());
        waiters.push(server.run("key").arg("--fair").sh(&job).spawn());
        eventually(SOON, "a ticket", || in_line(&server) == n + 2);
    }
    drop(last);
    holder.finish().code(0);
    for waiter in waiters {
        waiter.finish().code(0).silent();
    }
    let words: Vec<String> = journal.entries().into_iter().map(|e| e.word).collect();
    assert_eq!(words, ["0", "1", "2", "3"]);
}

/// "A hand-off within 3x the plain one": from the end of a job to the beginning of the next, medians of 40.
#[test]
fn a_hand_off_takes_at_most_three_times_the_plain_one() {
    let server = Server::start();
    let median = |fair: bool| {
        let key = unique("key");
        let option = if fair { "--fair" } else { "--shared" };
        let mut delays: Vec<u128> = (0..40)
            .map(|_| {
                let run = || match fair {
                    true => server.run(&key).arg(option),
                    false => server.run(&key),
                };
                let holder = run().holding();
                let waiter = run().sh("date +%s%N").spawn();
                match fair {
                    true => drop(eventually(SOON, "a ticket", || in_line(&server) == 1)),
                    false => server.await_locks(&key, 1, 1),
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

/// What happens when fair and plain waiters mix: a plain one does not stand in line, and a fair one that is not the first
/// in line does not wait for the key. Both get it.
#[test]
fn fair_and_plain_waiters_both_get_the_lock() {
    let (server, journal) = (Server::start(), Journal::new());
    let holder = server.run("key").holding();
    let fair = line_up(&server, "key", &journal, 2);
    let plain = server.run("key").sh(&format!("{}; note plain", journal.note())).spawn();
    // The first in line and the plain one.
    server.await_locks("key", 1, 2);
    holder.finish().code(0);
    plain.finish().code(0);
    fair.into_iter().for_each(|waiter| {
        waiter.finish().code(0);
    });
    let words: Vec<String> = journal.entries().into_iter().map(|entry| entry.word).collect();
    let fair: Vec<&String> = words.iter().filter(|word| *word != "plain").collect();
    assert_eq!(fair, ["0", "1"]);
}

/// A wait in line is a wait: limited, and over when it is over.
#[test]
fn a_limited_wait_in_line_ends() {
    let (server, journal) = (Server::start(), Journal::new());
    let holder = server.run("key").holding();
    let waiters = line_up(&server, "key", &journal, 2);
    for _ in 0..2 {
        let output = server.run("key").args(["--fair", "--wait", "0.4", "true"]).output();
        output.code(75);
        assert!((0.4..1.2).contains(&output.took.as_secs_f64()), "{output}");
    }
    eventually(SOON, "its ticket to be gone", || in_line(&server) == 2);
    holder.finish().code(0);
    waiters.into_iter().for_each(|waiter| {
        waiter.finish().code(0);
    });
}
