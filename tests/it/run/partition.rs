//! Network cuts: packets are dropped in both directions, without a word, and then no more.
//!
//! The timing rule: with heartbeat period H, deadline D and kill grace G, the job is dead H+D+G after the server last
//! heard of it; the server gives the lock away 3 s after that. The hosts are namespaces of one machine, so that all of
//! them write their journals by one clock.

use crate::support::journal::{Journal, now};
use crate::support::network::{Host, Network};
use crate::support::pgbouncer::PgBouncer;
use crate::support::pglock::{Pglock, Running};
use crate::support::server::Server;
use crate::support::wait::{SOON, eventually};
use std::time::Duration;

/// H = D = G = 1 s, hence 3 s for the job and 6 s for the lock.
const SHORT: [&str; 4] = ["--heartbeat", "1", "--kill-after", "1"];
const SHORT_LIMIT: Duration = Duration::from_secs(6);
/// H = D = 5 s, G = 10 s: 20 s and 23 s.
const DEFAULT_LIMIT: Duration = Duration::from_secs(23);
/// What a busy machine and the coarse timers of TCP add.
const SLACK: Duration = Duration::from_secs(3);

/// `pglock run` on a host.
fn on(host: &Host, server: &Server, key: &str) -> Pglock {
    let pglock = server.around("nsenter").args(host.entrance()).arg("--");
    pglock
        .env("PGHOST", "10.77.0.1")
        .args([env!("CARGO_BIN_EXE_pglock"), "run", "--key", key])
}

/// A holder whose job ignores TERM, and the next one in the queue, who is not cut off.
struct Pair {
    key: String,
    host: Host,
    journal: Journal,
    holder: Running,
    next: Running,
    limit: Duration,
}

impl Pair {
    fn new(network: &mut Network, server: &Server, number: usize) -> Pair {
        let (host, journal, key) = (network.host(), Journal::new(), format!("pair {number}"));
        // The last one has the defaults.
        let (options, limit) = match number {
            0 => (vec![], DEFAULT_LIMIT),
            _ => (SHORT.to_vec(), SHORT_LIMIT),
        };
        let holder = on(&host, server, &key).args(options).sh(&journal.stubborn()).spawn();
        eventually(SOON, "the job", || journal.pids().len() == 3);
        let next = server.run(&key).sh(&format!("{}; note next", journal.note())).spawn();
        server.await_locks(&key, 1, 1);
        Pair {
            key,
            host,
            journal,
            holder,
            next,
            limit,
        }
    }

    /// "A TERM-ignoring job's last sign of life comes before the next holder's first."
    fn check(self, network: &Network, server: &Server, cut: u128) {
        self.next.finish().code(0);
        let lost = self.holder.finish().code(74).stderr_line();
        assert!(lost.contains("the server did not respond within"), "{lost}");
        let since = |at: u128| Duration::from_nanos(at.saturating_sub(cut) as u64);
        let (last, next) = (since(self.journal.last("beat")), since(self.journal.first("next")));
        println!("after the cut: the job's last sign of life {last:?}, the next holder's first {next:?}");
        assert!(last < next, "two jobs at once: {last:?}, {next:?}");
        assert!(next < self.limit + SLACK, "{next:?}");
        // What was cut off comes back to a lock that is somebody else's, or nobody's.
        network.heal(&self.host);
        server.await_locks(&self.key, 0, 0);
    }
}

/// "In each of 10 runs with short settings; and once the defaults."
#[test]
fn the_job_is_dead_before_the_lock_is_given_away() {
    let Some(mut network) = Network::new() else {
        return;
    };
    let server = Server::on(&network.host());
    let pairs: Vec<Pair> = (0..=10)
        .map(|number| Pair::new(&mut network, &server, number))
        .collect();
    let cut = now();
    pairs.iter().for_each(|pair| network.cut(&pair.host));
    for pair in pairs.into_iter().rev() {
        pair.check(&network, &server, cut);
    }
}

/// A line on which messages stand in a queue is not a cut one: the lock is neither lost nor given away.
#[test]
fn a_slow_line_is_no_loss() {
    let Some(mut network) = Network::new() else {
        return;
    };
    let (server, host) = (Server::on(&network.host()), network.host());
    let holder = on(&host, &server, "slow").args(SHORT);
    let holder = holder.sh("sleep 6; exit 3").spawn();
    server.await_locks("slow", 1, 0);
    if !network.slow_down(&host) {
        println!("SKIPPED: this kernel cannot make a line slow (tc, tbf)");
    }
    holder.finish().code(3).silent();
    network.speed_up(&host);
}

/// "The vanished host's lock is freed by the server within the documented bound, [...] for a waiter, and when a waiter is
/// granted in the moment of the cut": the queue and the lock are free again, and no job was started.
#[test]
fn a_vanished_waiter_neither_stays_in_the_queue_nor_becomes_a_ghost_holder() {
    let Some(mut network) = Network::new() else {
        return;
    };
    let server = Server::on(&network.host());
    if server.version() < 12 {
        println!("SKIPPED: there is no tcp_user_timeout before PostgreSQL 12, and no such bound");
        return;
    }
    let mut waiting = |key: &str| {
        let host = network.host();
        let holder = server.run(key).holding();
        let waiter = on(&host, &server, key).args(SHORT).args(["echo", "a job"]).spawn();
        server.await_locks(key, 1, 1);
        (host, holder, waiter)
    };
    let (vanished, still_holding, waiter) = waiting("vanished");
    let mut hosts = Vec::new();
    let granted: Vec<_> = (0..3)
        .map(|n| (format!("granted {n}"), waiting(&format!("granted {n}"))))
        .collect();
    let cut = now();
    network.cut(&vanished);
    let mut waiters = vec![waiter];
    let mut ghosts = 0;
    let mut next = Vec::new();
    for (key, (host, holder, waiter)) in granted {
        network.cut(&host);
        holder.finish().code(0);
        // The server does not know that nobody is there any more.
        ghosts += server.locks(&key).granted;
        next.push(server.run(&key).arg("true").spawn());
        waiters.push(waiter);
        hosts.push(host);
    }
    assert!(ghosts > 0, "no lock was granted in the moment of the cut");
    for next in next {
        next.finish().code(0);
    }
    server.await_locks("vanished", 1, 0);
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE client_addr <> '10.77.0.1'";
    eventually(SOON, "the end of the sessions", || server.value(sessions) == "0");
    let took = Duration::from_nanos((now() - cut) as u64);
    println!("{ghosts} ghost holders; all was free again after {took:?}");
    assert!(took < SHORT_LIMIT + SLACK, "{took:?}");
    for waiter in waiters {
        let line = waiter.finish().code(69).stderr_line();
        assert!(line.contains("the server stopped responding"), "{line}");
    }
    still_holding.finish().code(0);
}

/// What a PgBouncer has to be told for the timing rule to hold behind it, for the short settings: after a silence of 6 s
/// a client is gone.
const POOLER: [&str; 5] = [
    "pool_mode=transaction",
    "tcp_keepidle=3",
    "tcp_keepintvl=1",
    "tcp_keepcnt=3",
    "tcp_user_timeout=6000",
];

/// The rule holds behind a pooler as well: where the pooler is cut off from the server, by what pglock sets for its
/// transaction; and where the client is cut off from the pooler, by what the pooler was told.
#[test]
fn behind_a_pooler_the_job_is_dead_before_the_lock_is_given_away_too() {
    let Some(mut network) = Network::new() else {
        return;
    };
    let server = Server::on(&network.host());
    let (far, near) = (network.host(), network.host());
    let pools = [&far, &near].map(|host| PgBouncer::on(host, &server, &POOLER));
    let client = network.host();
    let journals = [Journal::new(), Journal::new()];
    let hold = |pglock: Pglock, journal: &Journal| {
        let holder = pglock.args(SHORT).sh(&journal.stubborn()).spawn();
        eventually(SOON, "the job", || journal.pids().len() == 3);
        holder
    };
    let through = |program: &str| server.around(program).env("PGPORT", pools[1].port().to_string());
    let holders = [
        hold(pools[0].run("far"), &journals[0]),
        hold(
            through("nsenter")
                .args(client.entrance())
                .args(["--", env!("CARGO_BIN_EXE_pglock"), "run", "--key", "near"])
                .env("PGHOST", near.address()),
            &journals[1],
        ),
    ];
    let nexts = ["far", "near"].map(|key| {
        let next = journals[usize::from(key == "near")].note();
        let next = server.run(key).sh(&format!("{next}; note next")).spawn();
        server.await_locks(key, 1, 1);
        next
    });
    let cut = now();
    network.cut(&far);
    network.cut(&client);
    for ((holder, next), journal) in holders.into_iter().zip(nexts).zip(&journals) {
        next.finish().code(0);
        holder.finish().code(74);
        let since = |at: u128| Duration::from_nanos(at.saturating_sub(cut) as u64);
        let (last, next) = (since(journal.last("beat")), since(journal.first("next")));
        println!("after the cut: the job's last sign of life {last:?}, the next holder's first {next:?}");
        assert!(last < next, "two jobs at once: {last:?}, {next:?}");
        assert!(next < SHORT_LIMIT + SLACK, "{next:?}");
    }
}
