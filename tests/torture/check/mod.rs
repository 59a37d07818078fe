//! The check: whether a history keeps pglock's promises.
//!
//! Two jobs that exclude each other may overlap only where nobody could keep the second one out, and for no longer than
//! it takes to terminate the first one ([`excuses`] says when). A restart, a crash or an eviction is no excuse, since
//! the loser guards the end of its job; nor is a cut cable, a slow line or a silent server, since pglock terminates the
//! job before the server frees the lock. Even with an excuse, the tokens must tell which job was first, and the store
//! must have refused it after the other one had written. Nor may a job be inside while another client of the pool has
//! left a lock on its key.
//!
//! The pooler that lends its first client's session hides the end of that session from those to which it is not lent,
//! until their next query. They may overlap with another job until then, but only if they notice: a pglock that
//! released its lock had it to the end, whoever shared its session.
//!
//! [`excuses`]: what explains an overlap. [`tokens`]: tokens and the store. [`ends`]: how each pglock ended, and what
//! it printed. [`records`]: the run table. [`waits`]: the waiters.

mod ends;
mod excuses;
mod records;
mod tokens;
mod waits;

use super::history::{Fault, History, Run, Stay, Target};
use super::plan::Kind;
use super::request::{Request, Road};
use std::collections::{BTreeMap, HashMap};

pub const SECOND_NS: u128 = 1_000_000_000;
/// From the end of a session to the end of the job: the loss is noticed at once, TERM is sent, and KILL a second later
/// (`--kill-after 1`); behind a cut cable the loss is noticed after two heartbeats. The rest is for a busy machine.
pub const TERMINATION_LIMIT_NS: u128 = 6 * SECOND_NS;
/// From the grant to the job's first line, on a busy machine.
const START_LIMIT_NS: u128 = 3 * SECOND_NS;
/// How long starting, connecting and taking a ticket may take, on a busy machine.
const ARRIVAL_LIMIT_NS: u128 = 4 * SECOND_NS;
/// How long a cut or a slow line has effects after its end: until messages are retransmitted, or the server gives up
/// the connection.
pub const AFTERMATH_NS: u128 = 10 * SECOND_NS;
/// How long after finding no server the pooler retries (`server_login_retry`), and a little more.
const POOLER_RETRY_NS: u128 = 3 * SECOND_NS;

/// The results of the check.
#[derive(Debug, Default)]
pub struct Verdict {
    pub violations: Vec<String>,
    /// Overlaps that a fault explains, by the fault.
    pub explained: BTreeMap<String, Explained>,
    /// Jobs that succeeded and are not recorded as such, and those that succeeded twice in an interval, by what
    /// explains it.
    pub unrecorded: BTreeMap<String, usize>,
    pub repeated: BTreeMap<String, usize>,
    /// Writes that the store accepted, and refused.
    pub accepted: usize,
    pub refused: usize,
}

/// Overlaps with one explanation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Explained {
    pub count: usize,
    /// Those in which both jobs had a token.
    pub ordered: usize,
    /// Nanoseconds.
    pub longest: u128,
}

/// Checks everything that follows from the history alone.
pub fn check(history: &History) -> Verdict {
    let forwarded = history.runs.iter().filter(|(_, run)| run.request.is_forwarded());
    let mut check = Check {
        history,
        faults: Faults::new(&history.faults),
        forwarded: forwarded.map(|(&number, run)| (number, run)).collect(),
        stays: history.stays.iter().map(|stay| (stay.run, stay)).collect(),
        verdict: Verdict::default(),
    };
    check.overlaps();
    check.leftovers();
    check.tokens();
    check.store();
    check.ends();
    check.records();
    check.conflicts();
    check.patience();
    check.order();
    check.verdict
}

struct Check<'a> {
    history: &'a History,
    faults: Faults<'a>,
    /// The runs through the forwarding pooler.
    forwarded: Vec<(usize, &'a Run)>,
    stays: HashMap<usize, &'a Stay>,
    verdict: Verdict,
}

/// A job with a lock, and its pglock.
#[derive(Clone, Copy)]
struct Holder<'a> {
    stay: &'a Stay,
    run: &'a Run,
}

impl<'a> Check<'a> {
    fn run(&self, number: usize) -> Option<&'a Run> {
        self.history.runs.get(&number)
    }

    /// Returns whether the one session of the forwarding pooler may have been lent to another client during this run.
    /// To this one, the server then seems silent.
    fn was_lent_to_others(&self, number: usize, run: &Run) -> bool {
        run.request.is_forwarded()
            && self.forwarded.iter().any(|(other, it)| {
                let last = self.stays.get(other).map_or(it.ended, |stay| stay.last.max(it.ended));
                *other != number && it.began < run.ended && last > run.began
            })
    }

    fn violation(&mut self, violation: String) {
        self.verdict.violations.push(violation);
    }

    /// P10
    fn overlaps(&mut self) {
        let mut by_key: BTreeMap<&str, Vec<Holder>> = BTreeMap::new();
        for stay in &self.history.stays {
            let Some(run) = self.run(stay.run) else {
                self.violation(format!("a job of run {}, which is unknown", stay.run));
                continue;
            };
            for key in &run.request.keys {
                by_key.entry(key).or_default().push(Holder { stay, run });
            }
        }
        for (key, mut holders) in by_key {
            holders.sort_by_key(|holder| holder.stay.entered);
            let mut inside: Vec<Holder> = Vec::new();
            for second in holders {
                inside.retain(|first| first.stay.last > second.stay.entered);
                for first in inside.iter().filter(|first| excludes(**first, second)) {
                    self.overlap(key, *first, second);
                }
                inside.push(second);
            }
        }
    }

    /// The second job started during the first one. The second may be the one that lost the lock, if its job was being
    /// started when its session ended: the tokens tell.
    fn overlap(&mut self, key: &str, first: Holder<'a>, second: Holder<'a>) {
        let (a, b) = (first.stay, second.stay);
        let tokens = a.token.as_ref().zip(b.token.as_ref());
        let excuse = match tokens {
            Some((older, newer)) if older < newer => self.excuse(first, second, b.entered),
            Some((newer, older)) if older < newer => self.excuse(second, first, a.entered),
            Some(_) => None,
            None => self
                .excuse(first, second, b.entered)
                .or_else(|| self.excuse(second, first, a.entered)),
        };
        let lasted = a.last.min(b.last) - b.entered;
        match excuse {
            Some(why) => {
                let explained = self.verdict.explained.entry(why).or_default();
                explained.count += 1;
                explained.ordered += usize::from(tokens.is_some());
                explained.longest = explained.longest.max(lasted);
            }
            None => self.violation(format!(
                "{key}: run {} and run {} overlap for {} ms, and no fault explains it:\n  {:?}\n  {a:?}\n  {:?}\n  {b:?}\n  \
                 faults: {:?}",
                a.run,
                b.run,
                lasted / 1_000_000,
                first.run,
                second.run,
                self.faults.program(first, second)
            )),
        }
    }
}

/// Returns whether two holders of one key exclude each other. Slot 0 is the key itself.
fn excludes(a: Holder, b: Holder) -> bool {
    let place = |holder: Holder| match holder.run.request.slots {
        Some(_) => holder.stay.slot,
        None => Some(0),
    };
    place(a) == place(b) && !(a.run.request.shared && b.run.request.shared)
}

/// Returns whether two requests can conflict.
fn share_a_key(a: &Request, b: &Request) -> bool {
    a.keys.iter().any(|key| b.keys.contains(key))
}

/// Returns whether the lock is free at once, because the server or the pooler ends the session.
fn ends_sessions(kind: Kind) -> bool {
    use Kind::*;
    matches!(
        kind,
        EndSession
            | EndForwarded
            | TermBackend
            | Evict
            | EvictForced
            | KillBackend
            | Crash
            | Restart
            | StalledRestart
            | Failover
            | Switchover
            | KillPooler
            | KillForwarder
            | KillProxy
            | CutProxy
    )
}

/// Returns whether the server ends all sessions and starts again, or another one is promoted.
fn restarts(kind: Kind) -> bool {
    use Kind::*;
    matches!(
        kind,
        KillBackend | Crash | Restart | StalledRestart | Failover | Switchover
    )
}

/// Returns whether the proxy closes all its connections.
fn ends_proxied(kind: Kind) -> bool {
    matches!(kind, Kind::KillProxy | Kind::CutProxy)
}

fn evicts(kind: Kind) -> bool {
    matches!(kind, Kind::Evict | Kind::EvictForced)
}

/// Returns whether the server receives nothing from us, and frees the lock after a while.
fn cuts(kind: Kind) -> bool {
    matches!(kind, Kind::Cut | Kind::CutServer | Kind::Delay)
}

/// Returns whether the server seems silent, or we seem silent to it, while no other client acquires the lock.
fn silences(kind: Kind) -> bool {
    cuts(kind) || matches!(kind, Kind::StopPglock | Kind::StopBackend | Kind::Stall)
}

/// Returns whether acquiring or releasing the lock can fail.
fn disturbs(kind: Kind) -> bool {
    ends_sessions(kind) || silences(kind) || matches!(kind, Kind::Reconnect | Kind::Exhaust)
}

/// The faults in their order, to be searched by time.
struct Faults<'a> {
    all: Vec<&'a Fault>,
    longest: u128,
}

impl<'a> Faults<'a> {
    fn new(faults: &'a [Fault]) -> Faults<'a> {
        let mut all: Vec<&Fault> = faults.iter().collect();
        all.sort_by_key(|fault| fault.began);
        let longest = all.iter().map(|fault| fault.ended - fault.began).max();
        Faults {
            all,
            longest: longest.unwrap_or_default(),
        }
    }

    /// Returns those that may have lasted until `from` or later, and began before `until`.
    fn between(&self, from: u128, until: u128) -> impl Iterator<Item = &'a Fault> {
        let end = self.all.partition_point(|fault| fault.began <= until);
        let from = from.saturating_sub(self.longest + AFTERMATH_NS);
        let start = self.all[..end].partition_point(|fault| fault.began < from);
        self.all[start..end].iter().rev().copied()
    }

    /// Returns the last fault that can have hit this run between these times, aftermath included.
    fn find(
        &self,
        number: usize,
        run: &Run,
        from: u128,
        until: u128,
        is: impl Fn(&Fault) -> bool,
    ) -> Option<&'a Fault> {
        let mut near = self.between(from, until);
        near.find(|fault| felt_until(fault, run) >= from && meets(fault, number, run) && is(fault))
    }

    /// Returns those that hit one of the two, for a message.
    fn program(&self, first: Holder, second: Holder) -> Vec<&'a Fault> {
        let from = first.run.began.min(second.run.began);
        let until = first.stay.last.max(second.stay.last);
        let met = |fault: &&Fault| {
            let is_met =
                |holder: Holder| felt_until(fault, holder.run) >= from && meets(fault, holder.stay.run, holder.run);
            is_met(first) || is_met(second)
        };
        self.between(from, until).filter(met).collect()
    }
}

fn meets(fault: &Fault, number: usize, run: &Run) -> bool {
    match fault.target {
        Target::Run(target) => target == number,
        Target::Host(host) => host == run.request.host && !run.request.road.is_local(),
        // A holder that does not react to an eviction loses its session, which is that of all who are forwarded.
        Target::Key(key) => run.request.keys.contains(&key) || evicts(fault.kind) && run.request.is_forwarded(),
        Target::Pooled => run.request.is_pooled(),
        Target::Forwarded => run.request.is_forwarded(),
        Target::Proxied => run.request.road == Road::Proxy,
        Target::All => true,
    }
}

fn felt_until(fault: &Fault, run: &Run) -> u128 {
    let echo = match fault.kind {
        kind if cuts(kind) || kind == Kind::StopBackend => AFTERMATH_NS,
        _ if run.request.is_pooled() && matches!(fault.target, Target::All | Target::Pooled) => POOLER_RETRY_NS,
        _ => 0,
    };
    fault.ended + echo
}
