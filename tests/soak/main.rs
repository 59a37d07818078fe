//! The soak: hundreds of pglocks for an hour, on a server that is restarted every few minutes. Nothing may grow: their
//! memory, descriptors and threads, and the connections of the server.
//!
//! `make soak` runs it. It is not part of `cargo test`, because it takes as long as it is told to.
//!
//! * `PGLOCK_SOAK`: the plan, as in `MINUTES=60 HOLDERS=200 WAITERS=400 CYCLE=300`; the rest has its defaults. `CYCLE`
//!   is the time from one restart to the next in seconds.
//!
//! Each restart costs the holders their locks, so they end with status 74, and waiters take over; new waiters replace
//! those that ended. As no such pglock lives long, a tenth of the waiters, the veterans, wait for a key that is never
//! released: they live through all restarts.
//!
//! [`crowd`]: the pglocks. [`sample`]: what they use, and whether it grew.
//!
//! Linux only: it finds what a process uses in /proc.

#![cfg(target_os = "linux")]
#![expect(unreachable_pub, clippy::missing_errors_doc, reason = "a test has no API")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    clippy::print_stdout,
    reason = "the measurements of a test are shown with --nocapture"
)]

mod crowd;
mod sample;
#[expect(dead_code, reason = "the other tests use the rest of it")]
#[path = "../it/support/mod.rs"]
mod support;

use crowd::Crowd;
use sample::{Cycle, Sample};
use std::time::{Duration, Instant};
use support::server::Server;
use support::wait::until;

/// What is to be done.
#[derive(Clone, Copy)]
pub struct Plan {
    pub time: Duration,
    pub holders: usize,
    pub waiters: usize,
    pub cycle: Duration,
}

impl Plan {
    fn from_words(words: &str) -> Plan {
        let mut plan = Plan {
            time: Duration::from_secs(3600),
            holders: 200,
            waiters: 400,
            cycle: Duration::from_secs(300),
        };
        for word in words.split_whitespace() {
            let (name, number) = word.split_once('=').unwrap();
            let number: u32 = number.parse().unwrap();
            match name {
                "MINUTES" => plan.time = number * Duration::from_secs(60),
                "HOLDERS" => plan.holders = number as usize,
                "WAITERS" => plan.waiters = number as usize,
                "CYCLE" => plan.cycle = number * Duration::from_secs(1),
                _ => panic!("unknown: {word}"),
            }
        }
        plan
    }

    /// Returns the number of cycles. Without three of them there is nothing to compare with the second.
    fn cycles(self) -> u32 {
        self.time.div_duration_f64(self.cycle).round().max(3.0) as u32
    }
}

#[test]
fn nothing_grows() {
    let plan = Plan::from_words(&std::env::var("PGLOCK_SOAK").unwrap_or_default());
    let connections = 2 * (plan.holders + plan.waiters) + 50;
    let server = Server::with(&[&format!("max_connections={connections}"), "max_prepared_transactions=1"]);
    println!(
        "{} holders and {} waiters, {} cycles of {:?}, PostgreSQL {}",
        plan.holders,
        plan.waiters,
        plan.cycles(),
        plan.cycle,
        server.value("SHOW server_version")
    );
    println!("\n{}", sample::HEADER);
    let mut crowd = Crowd::start(&server, plan);
    let cycles: Vec<Cycle> = (1..=plan.cycles())
        .map(|number| {
            let cycle = cycle(&server, &mut crowd, plan, number);
            println!("{cycle}");
            cycle
        })
        .collect();
    println!("\n{}", sample::by_age(&cycles));
    let grown = sample::growth(&cycles);
    println!("\n{}", grown.lines.join("\n"));
    assert!(grown.excesses.is_empty(), "{}", grown.excesses.join("\n"));
}

/// Restarts the server, but not in the first cycle, and samples the crowd when it has settled and at the end of the
/// cycle.
fn cycle(server: &Server, crowd: &mut Crowd, plan: Plan, number: u32) -> Cycle {
    let began = Instant::now();
    let restart = match number {
        1 => "",
        _ if number.is_multiple_of(2) => "fast",
        _ => "immediate",
    };
    if number > 1 {
        crowd.begin_cycle(number);
        match restart {
            "fast" => server.stop_fast(),
            _ => server.stop_immediate(),
        }
        server.restart();
        crowd.reconnect();
    }
    let settling = crowd.settle();
    let settled = Sample::take(crowd);
    let left = plan.cycle.saturating_sub(began.elapsed());
    // The time is the purpose: nobody may end meanwhile.
    let ended = until(left, || crowd.has_ended());
    assert!(!ended, "a pglock ended though the server ran: {}", crowd.messages());
    let end = Sample::take(crowd);
    Cycle {
        number,
        restart,
        settling,
        settled,
        end,
    }
}
