//! The check of those who wait: nobody is told of a holder who is not there, nobody waits while the lock is free, and those
//! who wait in line are served in the order of coming.

use super::{Check, Faults, SECOND, felt_until, meets, share_a_key, silences};
use crate::history::{End, Fault, Run};
use std::collections::{BTreeMap, HashMap};

/// For so long may nobody be inside while somebody waits: the hand-off, and the start of a job. Behind a pooler those who
/// wait rest for up to four times a second.
const IDLE: u128 = 4 * SECOND;
const IDLE_POOLED: u128 = 8 * SECOND;
/// What starting, connecting and standing in line take, on a busy machine.
const COMING: u128 = 4 * SECOND;

/// How long the lock of one who was not heard can stay behind: until the server gives the connection up, or longer if its
/// process was stopped.
const GHOST: u128 = 20 * SECOND;

/// Somebody who wants a key, or has it.
#[derive(Clone, Copy)]
struct Wanting<'a> {
    number: usize,
    run: &'a Run,
    /// From the grant, as far as it can be told, until nothing of it is left.
    inside: Option<(u128, u128)>,
    gone: u128,
}

impl<'a> Check<'a> {
    fn wanting(&self, number: usize, run: &'a Run) -> Wanting<'a> {
        let stay = self.stays.get(&number);
        // The lock of a killed pglock is its job's, which ends later; that of one who was not heard, the server's for a while.
        let was_silent = || {
            let is = |fault: &Fault| silences(fault.kind);
            let found = self.faults.find(number, run, run.began, run.ended, is);
            found.is_some()
        };
        let gone = match run.end {
            End::Code(code) if code == run.request.status && !was_silent() => run.ended,
            _ => stay.map_or(run.ended, |stay| stay.last.max(run.ended)) + GHOST,
        };
        // Of several keys the first ones may be held, while the others are waited for.
        let is_partly_inside = run.request.keys.len() > 1;
        let is_told = matches!(run.end, End::Code(69 | 75));
        let inside = match stay {
            _ if is_partly_inside => Some((run.began, gone)),
            Some(stay) => Some((stay.entered.saturating_sub(COMING), gone)),
            None if is_told => None,
            None => Some((run.began, gone)),
        };
        Wanting {
            number,
            run,
            inside,
            gone,
        }
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
            all.sort_by_key(|it| it.run.began);
        }
        by_key
    }

    /// Who was told that somebody else has the lock was told the truth: the one that is named wanted it then.
    pub fn conflicts(&mut self) {
        let mut by_pid: HashMap<i32, Vec<usize>> = HashMap::new();
        for (&number, run) in &self.history.runs {
            by_pid.entry(run.pid).or_default().push(number);
        }
        for (&number, run) in &self.history.runs {
            let Some(pid) = named_holder(run) else {
                continue;
            };
            // A session of the pool can be lent to the next one between the server's looks at the lock and at the name.
            let could_hold = |other: &usize| {
                let other = self.wanting(*other, &self.history.runs[other]);
                other.number != number
                    && (share_a_key(&other.run.request, &run.request) || other.run.request.pooled)
                    && other.run.began < run.ended
                    && other.gone > run.began
            };
            let named = by_pid.get(&pid).into_iter().flatten();
            if !named.clone().any(could_hold) {
                let runs = &self.history.runs;
                let named: Vec<_> = named.map(|number| (number, &runs[number])).collect();
                self.blame(format!(
                    "run {number} was told of a holder who was none: {run:?}\n  {named:?}"
                ));
            }
        }
    }

    /// Nobody gives up while the lock is free.
    pub fn patience(&mut self) {
        let by_key = self.by_key();
        for (&number, run) in &self.history.runs {
            let [key] = run.request.keys[..] else {
                continue;
            };
            if run.end != End::Code(75) || run.request.wait.is_none() {
                continue;
            }
            let near = near(&by_key[key], run);
            let idle = if run.request.pooled { IDLE_POOLED } else { IDLE };
            let gaps = gaps(run.began + COMING, run.ended, &near);
            let is_calm =
                |(from, until): &(u128, u128)| until - from > idle && !is_disturbed(&self.faults, &near, *from, *until);
            if let Some((from, until)) = gaps.into_iter().find(is_calm) {
                self.blame(format!(
                    "run {number} waited in vain, though nobody had {key} for {} ms: {run:?}",
                    (until - from) / 1_000_000
                ));
            }
        }
    }

    /// "Strictly in the order in which they came", as far as two came at different times and nothing happened to them.
    pub fn order(&mut self) {
        let mut late = Vec::new();
        for (key, all) in self.by_key() {
            let in_line = |it: &&Wanting| it.run.request.fair;
            let in_line: Vec<&Wanting> = all.iter().filter(in_line).collect();
            for (index, first) in in_line.iter().enumerate() {
                let served = self.served(first);
                let rest = in_line[index + 1..].iter();
                let later = rest.skip_while(|it| it.run.began < first.run.began + COMING);
                let mut later = later.take_while(|it| it.run.began < served);
                let Some(second) = later.find(|it| {
                    let entered = self.stays.get(&it.number).map(|stay| stay.entered);
                    entered.is_some_and(|entered| entered + COMING < served)
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
        late.into_iter().for_each(|words| self.blame(words));
    }

    /// When its wait was over.
    fn served(&self, it: &Wanting) -> u128 {
        let stay = self.stays.get(&it.number);
        stay.map_or(it.run.ended, |stay| stay.entered)
    }
}

/// Those who want the key at the time of this run, which is one of them.
fn near<'a>(all: &[Wanting<'a>], run: &Run) -> Vec<Wanting<'a>> {
    let end = all.partition_point(|it| it.run.began < run.ended);
    let is_near = |it: &&Wanting| it.gone > run.began;
    all[..end].iter().filter(is_near).copied().collect()
}

/// The times when nobody was inside.
fn gaps(from: u128, until: u128, all: &[Wanting]) -> Vec<(u128, u128)> {
    let mut inside: Vec<(u128, u128)> = all.iter().filter_map(|it| it.inside).collect();
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

/// Whether something happened to one of these in this time: the lock can have been granted to one who could not use it.
fn is_disturbed(faults: &Faults, all: &[Wanting], from: u128, until: u128) -> bool {
    let meets_one = |fault: &Fault| {
        let is_met = |it: &Wanting| felt_until(fault, it.run) >= from && meets(fault, it.number, it.run);
        all.iter()
            .filter(|it| it.run.began < until && it.gone > from)
            .any(is_met)
    };
    faults.between(from, until).any(meets_one)
}

/// The process id that a conflict names, of the one holder or the first one.
fn named_holder(run: &Run) -> Option<i32> {
    let (_, named) = run.stderr.split_once(" held by ")?;
    let (who, _) = named.split_once(" (backend ")?;
    who.rsplit(':').next()?.parse().ok()
}
