//! Network cuts: packets are silently dropped in both directions, later no more.
//!
//! The timing rule: with heartbeat interval H, deadline D and grace period G, the job is dead H+D+G after the server
//! last received a message; the server frees the lock 3 s after that. The hosts are namespaces of one machine, so that
//! all journals use one clock.

use crate::support::journal::{Journal, now};
use crate::support::network::{Host, Network};
use crate::support::pgbouncer::PgBouncer;
use crate::support::pglock::{Pglock, Running};
use crate::support::server::Server;
use crate::support::wait::{SOON, eventually};
use nix::sys::signal::Signal;
use std::time::Duration;

/// H = D = G = 1 s, hence 3 s for the job and 6 s for the lock.
const SHORT_OPTIONS: [&str; 4] = ["--heartbeat", "1", "--kill-after", "1"];
const SHORT_LIMIT: Duration = Duration::from_secs(6);
/// H = D = 5 s, G = 10 s: 20 s and 23 s.
const DEFAULT_LIMIT: Duration = Duration::from_secs(23);
/// What a busy machine and the coarse timers of TCP may add.
const SLACK: Duration = Duration::from_secs(3);

/// Returns `pglock run` on a host.
fn run_on(host: &Host, server: &Server, key: &str) -> Pglock {
    let pglock = server.program("nsenter").args(host.entrance()).arg("--");
    pglock
        .env("PGHOST", "10.77.0.1")
        .args([env!("CARGO_BIN_EXE_pglock"), "run", "--key", key])
}

/// A holder whose job ignores TERM, and the next waiter, which is not cut off.
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
        // The first pair has the default settings.
        let (options, limit) = match number {
            0 => (vec![], DEFAULT_LIMIT),
            _ => (SHORT_OPTIONS.to_vec(), SHORT_LIMIT),
        };
        let holder = run_on(&host, server, &key)
            .args(options)
            .sh(&journal.stubborn())
            .spawn();
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

    /// P22: the last beat of a job that ignores TERM comes before the first one of the next holder.
    fn check(self, network: &Network, server: &Server, cut: u128) {
        self.next.finish().code(0);
        let lost = self.holder.finish().code(74).stderr_line();
        assert!(lost.contains("the server did not respond within"), "{lost}");
        let since = |at: u128| Duration::from_nanos(at.saturating_sub(cut) as u64);
        let (last, next) = (since(self.journal.last("beat")), since(self.journal.first("next")));
        println!("after the cut: the job's last beat {last:?}, the next holder's first {next:?}");
        assert!(last < next, "two jobs at once: {last:?}, {next:?}");
        assert!(next < self.limit + SLACK, "{next:?}");
        // When the host returns, nothing of its session is left.
        network.heal(&self.host);
        server.await_locks(&self.key, 0, 0);
    }
}

/// P22, ten times with short settings and once with the defaults.
#[test]
fn the_job_is_dead_before_the_lock_is_freed() {
    let Some(mut network) = Network::new() else {
        return;
    };
    let server = Server::on(&network.host());
    let pairs: Vec<Pair> = (0..=10)
        .map(|number| Pair::new(&mut network, &server, number))
        .collect();
    // On a busy machine, it takes seconds to cut them all off.
    let cut = |pair: Pair| {
        network.cut(&pair.host);
        (pair, now())
    };
    let pairs: Vec<(Pair, u128)> = pairs.into_iter().map(cut).collect();
    for (pair, cut) in pairs.into_iter().rev() {
        pair.check(&network, &server, cut);
    }
}

/// P20: on a slow line, on which messages queue, the lock is neither lost nor freed.
#[test]
fn a_slow_line_is_no_loss() {
    let Some(mut network) = Network::new() else {
        return;
    };
    let (server, host) = (Server::on(&network.host()), network.host());
    let holder = run_on(&host, &server, "slow").args(SHORT_OPTIONS);
    let holder = holder.sh("sleep 6; exit 3").spawn();
    server.await_locks("slow", 1, 0);
    if !network.slow_down(&host) {
        println!("SKIPPED: this kernel cannot make a line slow (tc, tbf)");
    }
    holder.finish().code(3).silent();
    network.speed_up(&host);
}

/// P22, P31: also if the waiter is granted the lock as its host vanishes. The queue and the lock are free afterwards,
/// and no job was started.
#[test]
fn a_vanished_waiter_neither_stays_in_the_queue_nor_becomes_a_ghost_holder() {
    let Some(mut network) = Network::new() else {
        return;
    };
    let server = Server::on(&network.host());
    if server.version() < 12 {
        println!("SKIPPED: PostgreSQL before 12 has no tcp_user_timeout, and so no limit");
        return;
    }
    let mut waiting = |key: &str| {
        let host = network.host();
        let holder = server.run(key).holding();
        let waiter = run_on(&host, &server, key)
            .args(SHORT_OPTIONS)
            .args(["echo", "a job"])
            .spawn();
        server.await_locks(key, 1, 1);
        (host, holder, waiter)
    };
    let (vanished, still_holding, waiter) = waiting("vanished");
    let mut hosts = Vec::new();
    let granted: Vec<_> = (0..3)
        .map(|n| (format!("granted {n}"), waiting(&format!("granted {n}"))))
        .collect();
    network.cut(&vanished);
    let mut waiters = vec![waiter];
    let mut ghosts = 0;
    let mut next = Vec::new();
    for (key, (host, holder, waiter)) in granted {
        network.cut(&host);
        holder.finish().code(0);
        // The server does not know yet that the host has vanished.
        ghosts += server.locks(&key).granted;
        next.push(server.run(&key).arg("true").spawn());
        waiters.push(waiter);
        hosts.push(host);
    }
    // On a busy machine, it takes seconds to cut them all off.
    let cut = now();
    assert!(ghosts > 0, "no lock was granted at the time of the cut");
    for next in next {
        next.finish().code(0);
    }
    server.await_locks("vanished", 1, 0);
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE client_addr <> '10.77.0.1'";
    eventually(SOON, "the end of the sessions", || server.value(sessions) == "0");
    let took = Duration::from_nanos((now() - cut) as u64);
    println!("{ghosts} ghost holders; all was free again after {took:?}");
    assert!(took < SHORT_LIMIT + SLACK, "{took:?}");
    // They try to reconnect, and run nothing meanwhile.
    for waiter in waiters {
        waiter.signal(Signal::SIGTERM);
        assert!(waiter.finish().signal(Signal::SIGTERM).stdout.is_empty());
    }
    still_holding.finish().code(0);
}

/// The settings of PgBouncer that make the timing rule hold behind it: after 6 s of silence a client is gone.
const POOLER_SETTINGS: [&str; 5] = [
    "pool_mode=transaction",
    "tcp_keepidle=3",
    "tcp_keepintvl=1",
    "tcp_keepcnt=3",
    "tcp_user_timeout=6000",
];

/// P22: if the pooler is cut off from the server, by what pglock sets for its transaction; if the client is cut off
/// from the pooler, by the settings of the pooler.
#[test]
fn behind_a_pooler_the_job_is_dead_before_the_lock_is_freed() {
    let Some(mut network) = Network::new() else {
        return;
    };
    let server = Server::on(&network.host());
    let (far, near) = (network.host(), network.host());
    let pools = [&far, &near].map(|host| PgBouncer::on(host, &server, &POOLER_SETTINGS));
    let client = network.host();
    let journals = [Journal::new(), Journal::new()];
    let hold = |pglock: Pglock, journal: &Journal| {
        let holder = pglock.args(SHORT_OPTIONS).sh(&journal.stubborn()).spawn();
        eventually(SOON, "the job", || journal.pids().len() == 3);
        holder
    };
    let through = |program: &str| server.program(program).env("PGPORT", pools[1].port().to_string());
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
    let cuts = [&far, &client].map(|host| {
        network.cut(host);
        now()
    });
    for (((holder, next), journal), cut) in holders.into_iter().zip(nexts).zip(&journals).zip(cuts) {
        next.finish().code(0);
        holder.finish().code(74);
        let since = |at: u128| Duration::from_nanos(at.saturating_sub(cut) as u64);
        let (last, next) = (since(journal.last("beat")), since(journal.first("next")));
        println!("after the cut: the job's last beat {last:?}, the next holder's first {next:?}");
        assert!(last < next, "two jobs at once: {last:?}, {next:?}");
        assert!(next < SHORT_LIMIT + SLACK, "{next:?}");
    }
}
