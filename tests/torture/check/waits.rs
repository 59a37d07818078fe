//! The check of the waiters: a reported holder exists, no client waits while the lock is free, and the queue is served
//! in the order in which clients came.

use super::{ARRIVAL_LIMIT_NS, Check, Faults, SECOND_NS};
use super::{ends_sessions, felt_until, meets, restarts, share_a_key, silences};
use crate::history::{End, Fault, Run};
use crate::plan::Kind;
use std::collections::{BTreeMap, HashMap};

/// How long no job may run while a client waits: the hand-off, and the start of a job. Behind a pooler, waiters pause
/// for up to four seconds in the first minute of a wait.
const IDLE_LIMIT_NS: u128 = 4 * SECOND_NS;
const IDLE_POOLED_LIMIT_NS: u128 = 8 * SECOND_NS;
/// How long the lock of a silent client can remain: until the server gives up the connection, or longer if its backend
/// was stopped.
const GHOST_LIMIT_NS: u128 = 20 * SECOND_NS;

/// How long a waiter that lost its session leaves the key alone, since the job of the holder may still run: H + D + G
/// and the margin, and then its next try.
const OLD_JOB_LIMIT_NS: u128 = 7 * SECOND_NS;

/// A client that wants a key, or has it.
#[derive(Clone, Copy)]
struct Wanting<'a> {
    number: usize,
    run: &'a Run,
    /// From the grant, as far as it is known, until nothing of the client is left.
    inside: Option<(u128, u128)>,
    gone: u128,
}

impl<'a> Check<'a> {
    fn wanting(&self, number: usize, run: &'a Run) -> Wanting<'a> {
        let stay = self.stays.get(&number);
        // The lock of a killed pglock is its job's, which ends later; that of a silent client remains on the server for
        // a while.
        let was_silent = || {
            let is = |fault: &Fault| silences(fault.kind);
            let found = self.faults.find(number, run, run.began, run.ended, is);
            found.is_some() || self.was_lent_to_others(number, run)
        };
        let is_clean = matches!(run.end, End::Code(code) if code == run.request.status || code == 75);
        let gone = match run.end {
            // What it leaves in the session that is lent to others stays there.
            _ if run.request.is_forwarded() && (!is_clean || was_silent()) => self.forwarded_session_end(run.ended),
            End::Code(code) if code == run.request.status && !was_silent() => run.ended,
            _ => stay.map_or(run.ended, |stay| stay.last.max(run.ended)) + GHOST_LIMIT_NS,
        };
        // The first of several keys may be held while pglock waits for the others.
        let is_partly_inside = run.request.keys.len() > 1;
        let is_reported = matches!(run.end, End::Code(69 | 75)) && (is_clean || !run.request.is_forwarded());
        let inside = match stay {
            _ if is_partly_inside => Some((run.began, gone)),
            Some(stay) => Some((stay.entered.saturating_sub(ARRIVAL_LIMIT_NS), gone)),
            None if is_reported => None,
            None => Some((run.began, gone)),
        };
        Wanting {
            number,
            run,
            inside,
            gone,
        }
    }

    /// Returns when the session of the forwarding pooler has ended for sure, after this time.
    fn forwarded_session_end(&self, after: u128) -> u128 {
        let ends = |fault: &&Fault| {
            let is_end = restarts(fault.kind) || matches!(fault.kind, Kind::KillForwarder | Kind::EndForwarded);
            is_end && fault.began > after
        };
        let end = self.history.faults.iter().filter(ends).map(|fault| fault.ended).min();
        end.unwrap_or(u128::MAX)
    }

    fn by_key(&self) -> BTreeMap<&'a str, Vec<Wanting<'a>>> {
        let mut by_key: BTreeMap<&str, Vec<Wanting>> = BTreeMap::new();
        for (&number, run) in &self.history.runs {
            for key in &run.request.keys {
                let all = by_key.entry(key).or_default();
                all.push(self.wanting(number, run));
            }
        }
        for all in by_key.values_mut() {
            all.sort_by_key(|wanting| wanting.run.began);
        }
        by_key
    }

    /// P70: the holder that is named in a conflict wanted the lock at that time.
    pub fn conflicts(&mut self) {
        let mut by_pid: HashMap<i32, Vec<usize>> = HashMap::new();
        for (&number, run) in &self.history.runs {
            by_pid.entry(run.pid).or_default().push(number);
        }
        for (&number, run) in &self.history.runs {
            let Some(pid) = named_holder(run) else {
                continue;
            };
            // A session of the pool can be lent to another client between the server's looks at the lock and at the
            // name.
            let could_hold = |other: &usize| {
                let other = self.wanting(*other, &self.history.runs[other]);
                other.number != number
                    && (share_a_key(&other.run.request, &run.request) || other.run.request.is_pooled())
                    && other.run.began < run.ended
                    && other.gone > run.began
            };
            // The session of the forwarding pooler has the name of its first client, who may be gone.
            let was_first = |other: &usize| {
                let other = &self.history.runs[other];
                other.request.is_forwarded() && other.began < run.ended
            };
            // A session in which a lock was left has the name of the pool's last client.
            let is_leftover = |fault: &Fault| fault.kind == Kind::Leftover;
            if self
                .faults
                .find(number, run, run.began, run.ended, is_leftover)
                .is_some()
            {
                continue;
            }
            let named = by_pid.get(&pid).into_iter().flatten();
            if !named.clone().any(|other| could_hold(other) || was_first(other)) {
                let runs = &self.history.runs;
                let named: Vec<_> = named.map(|number| (number, &runs[number])).collect();
                self.violation(format!(
                    "run {number} reported a holder that was none: {run:?}\n  {named:?}"
                ));
            }
        }
    }

    /// P31: no client gives up while the lock is free.
    pub fn patience(&mut self) {
        let by_key = self.by_key();
        for (&number, run) in &self.history.runs {
            let [key] = run.request.keys[..] else {
                continue;
            };
            // Those who are forwarded also wait for the session, which those with other keys may have.
            let has_waited = run.end == End::Code(75) && run.request.wait.is_some() && !run.was_not_due();
            if !has_waited || run.request.is_forwarded() {
                continue;
            }
            let near = near(&by_key[key], run);
            let idle = if run.request.is_pooled() {
                IDLE_POOLED_LIMIT_NS
            } else {
                IDLE_LIMIT_NS
            };
            let gaps = gaps(run.began + ARRIVAL_LIMIT_NS, run.ended, &near);
            let is_calm =
                |(from, until): &(u128, u128)| until - from > idle && !is_disturbed(&self.faults, &near, *from, *until);
            if let Some((from, until)) = gaps.into_iter().find(is_calm) {
                self.violation(format!(
                    "run {number} waited in vain, though no client held {key} for {} ms: {run:?}",
                    (until - from) / 1_000_000
                ));
            }
        }
    }

    /// P35, as far as two clients came at different times and nothing happened to them.
    pub fn order(&mut self) {
        let mut late = Vec::new();
        for (key, all) in self.by_key() {
            let queued = |wanting: &&Wanting| wanting.run.request.fair;
            let queued: Vec<&Wanting> = all.iter().filter(queued).collect();
            for (index, first) in queued.iter().enumerate() {
                let served = self.served(first);
                let rest = queued[index + 1..].iter();
                let later = rest.skip_while(|wanting| wanting.run.began < first.run.began + ARRIVAL_LIMIT_NS);
                let mut later = later.take_while(|wanting| wanting.run.began < served);
                let Some(second) = later.find(|it| {
                    let entered = self.stays.get(&it.number).map(|stay| stay.entered);
                    entered.is_some_and(|entered| entered + ARRIVAL_LIMIT_NS < served)
                }) else {
                    continue;
                };
                let is_calm = !is_disturbed(&self.faults, &all, first.run.began, served);
                if is_calm {
                    late.push(format!(
                        "{key}: run {} came before run {} and was served after it:\n  {:?}\n  {:?}",
                        first.number, second.number, first.run, second.run
                    ));
                }
            }
        }
        for violation in late {
            self.violation(violation);
        }
    }

    /// Returns when its wait was over.
    fn served(&self, it: &Wanting) -> u128 {
        let stay = self.stays.get(&it.number);
        stay.map_or(it.run.ended, |stay| stay.entered)
    }
}

/// Returns the clients that want the key at the time of this run, itself included.
fn near<'a>(all: &[Wanting<'a>], run: &Run) -> Vec<Wanting<'a>> {
    let end = all.partition_point(|wanting| wanting.run.began < run.ended);
    let is_near = |wanting: &&Wanting| wanting.gone > run.began;
    all[..end].iter().filter(is_near).copied().collect()
}

/// Returns the times when no client held the key.
fn gaps(from: u128, until: u128, all: &[Wanting]) -> Vec<(u128, u128)> {
    let mut inside: Vec<(u128, u128)> = all.iter().filter_map(|wanting| wanting.inside).collect();
    inside.sort_unstable();
    inside.push((until, until));
    let mut gaps = Vec::new();
    let mut free_since = from;
    for (entered, gone) in inside {
        if entered.min(until) > free_since {
            gaps.push((free_since, entered.min(until)));
        }
        free_since = free_since.max(gone);
    }
    gaps
}

/// Returns whether something happened to one of these in this time, so that the lock may have been granted to a client
/// that could not use it.
fn is_disturbed(faults: &Faults, all: &[Wanting], from: u128, until: u128) -> bool {
    let meets_one = |fault: &Fault| {
        let echo = if ends_sessions(fault.kind) { OLD_JOB_LIMIT_NS } else { 0 };
        let is_met = |it: &Wanting| felt_until(fault, it.run) + echo >= from && meets(fault, it.number, it.run);
        all.iter()
            .filter(|wanting| wanting.run.began < until && wanting.gone > from)
            .any(is_met)
    };
    faults.between(from, until).any(meets_one)
}

/// Returns the process id that a conflict names, of the only holder or the first one.
fn named_holder(run: &Run) -> Option<i32> {
    let (_, named) = run.stderr.split_once(" held by ")?;
    let (who, _) = named.split_once(" (backend ")?;
    who.rsplit(':').next()?.parse().ok()
}
