//! The check: whether a history keeps pglock's promises.
//!
//! Two jobs that exclude each other may be inside at once only where a fault has ended the first one's session, and for no
//! longer than it takes to stop a job; a cut cable is no excuse, since pglock stops the job before the server gives the
//! lock away, unless pglock itself was killed or stopped. Whatever the excuse, the tokens have to tell who was first.

use super::history::{End, Fault, History, Kind, Request, Run, Stay, Target};
use std::collections::{BTreeMap, HashMap};

const SECOND: u128 = 1_000_000_000;
/// From the end of a session to the end of the job: it is seen at once, TERM is sent, and a second later KILL
/// (`--kill-after 1`). The rest is for a busy machine.
pub const STOPPING: u128 = 6 * SECOND;
/// How long a cut can make itself felt after its end: until the server gives the connection up.
const ECHO: u128 = 10 * SECOND;
/// How long after it has met no server the pooler looks for one again (`server_login_retry`), and a bit.
const RETRY: u128 = 3 * SECOND;
/// The longest fault.
const LONGEST: u128 = 40 * SECOND;

/// What the check has found.
#[derive(Debug, Default)]
pub struct Verdict {
    pub violations: Vec<String>,
    /// Overlaps that the faults explain, by the fault.
    pub explained: BTreeMap<String, usize>,
    /// Writes that the store has refused.
    pub refused: usize,
}

/// Checks everything that can be told from the history alone.
pub fn check(history: &History) -> Verdict {
    let mut check = Check {
        history,
        faults: Faults::new(&history.faults),
        stays: history.stays.iter().map(|stay| (stay.run, stay)).collect(),
        verdict: Verdict::default(),
    };
    check.overlaps();
    check.tokens();
    check.store();
    check.ends();
    check.conflicts();
    check.verdict
}

struct Check<'a> {
    history: &'a History,
    faults: Faults<'a>,
    stays: HashMap<usize, &'a Stay>,
    verdict: Verdict,
}

impl<'a> Check<'a> {
    fn run(&self, number: usize) -> Option<&'a Run> {
        self.history.runs.get(&number)
    }

    fn blame(&mut self, words: String) {
        self.verdict.violations.push(words);
    }

    /// "Never twice at once."
    fn overlaps(&mut self) {
        let mut by_key: BTreeMap<&str, Vec<(&Stay, &Run)>> = BTreeMap::new();
        for stay in &self.history.stays {
            let Some(run) = self.run(stay.run) else {
                self.blame(format!("a job of run {}, which is unknown", stay.run));
                continue;
            };
            for key in &run.request.keys {
                by_key.entry(key).or_default().push((stay, run));
            }
        }
        for (key, mut stays) in by_key {
            stays.sort_by_key(|(stay, _)| stay.entered);
            let mut inside: Vec<(&Stay, &Run)> = Vec::new();
            for (stay, run) in stays {
                inside.retain(|(other, _)| other.last > stay.entered);
                for &(first, by) in &inside {
                    if excludes((first, &by.request), (stay, &run.request)) {
                        self.overlap(key, (first, by), (stay, run));
                    }
                }
                inside.push((stay, run));
            }
        }
    }

    fn overlap(&mut self, key: &str, (first, by): (&Stay, &Run), (second, then): (&Stay, &Run)) {
        let what = format!("{key}: run {} and run {} at once", first.run, second.run);
        match self.excuse(first, by, second.entered) {
            Some(kind) => *self.verdict.explained.entry(kind.name()).or_default() += 1,
            None => {
                let words = format!(
                    "{what} for {} ms, and no fault explains it:\n  {by:?}\n  {first:?}\n  {then:?}\n  {second:?}",
                    (first.last - second.entered) / 1_000_000
                );
                self.blame(words);
            }
        }
        if let (Some(older), Some(newer)) = (&first.token, &second.token)
            && older >= newer
        {
            self.blame(format!("{what}, with tokens {older} and {newer}"));
        }
    }

    /// The fault that had ended the session of this stay before somebody else came in.
    fn excuse(&self, stay: &Stay, run: &Run, until: u128) -> Option<Kind> {
        // Nobody was there to stop the job, or it could not be told, at some time before its end.
        let unguarded = self
            .faults
            .find(stay.run, run, run.began, stay.last, |fault| {
                matches!(
                    fault.kind,
                    Kind::KillPglock | Kind::StopPglock | Kind::StopJob
                )
            });
        let lost = |fault: &Fault| match fault.kind {
            Kind::Cut => unguarded.is_some(),
            kind if ends_sessions(kind) => {
                unguarded.is_some() || stay.last <= fault.ended + STOPPING
            }
            _ => false,
        };
        self.faults
            .find(stay.run, run, run.began, until, lost)
            .map(|fault| fault.kind)
    }

    /// A pglock that began after a token was seen has a newer one.
    fn tokens(&mut self) {
        let mut seen: Vec<(u128, &str, usize)> = Vec::new();
        let mut given: Vec<(u128, &str, usize)> = Vec::new();
        for stay in &self.history.stays {
            if let (Some(token), Some(run)) = (&stay.token, self.run(stay.run)) {
                seen.push((stay.entered, token, stay.run));
                given.push((run.began, token, stay.run));
            }
        }
        seen.sort();
        given.sort();
        let mut before = seen.iter().peekable();
        let mut newest = ("", 0);
        for (began, token, run) in given {
            while let Some((_, earlier, by)) = before.next_if(|(entered, ..)| *entered < began) {
                newest = newest.max((*earlier, *by));
            }
            if token <= newest.0 {
                self.blame(format!(
                    "run {run} has token {token}, and run {} before it had {}",
                    newest.1, newest.0
                ));
            }
        }
    }

    /// The guarded store: once a newer token has written, an older one does not.
    fn store(&mut self) {
        let mut writes: BTreeMap<(&str, Option<u16>), Vec<(u128, &str, bool, usize)>> =
            BTreeMap::new();
        for stay in &self.history.stays {
            let (Some(token), Some(run)) = (&stay.token, self.run(stay.run)) else {
                continue;
            };
            // With several keys there are as many writes, one after the other.
            for (index, (at, accepted)) in stay.writes.iter().enumerate() {
                let key = run.request.keys[index % run.request.keys.len()];
                let of = writes.entry((key, stay.slot)).or_default();
                of.push((*at, token, *accepted, stay.run));
                self.verdict.refused += usize::from(!accepted);
            }
        }
        for ((key, _), mut writes) in writes {
            writes.sort();
            let mut newest = ("", 0);
            for (at, token, accepted, run) in writes {
                // The note is made after the write, so that two of the same moment can be noted the other way round.
                if accepted && token < newest.0 && at > newest.1 + SECOND {
                    self.blame(format!(
                        "{key}: run {run} wrote with {token} after {}",
                        newest.0
                    ));
                }
                if accepted && token > newest.0 {
                    newest = (token, at);
                }
            }
        }
    }

    /// How each pglock ended, and what it said, is what happened to it.
    fn ends(&mut self) {
        for (&number, run) in &self.history.runs {
            let stay = self.stays.get(&number).copied();
            if let Err(why) = self.end(number, run, stay) {
                self.blame(format!("run {number}: {why}\n  {run:?}\n  {stay:?}"));
            }
        }
    }

    fn end(&self, number: usize, run: &Run, stay: Option<&Stay>) -> Result<(), String> {
        let hit = |is: fn(Kind) -> bool| {
            let found = self
                .faults
                .find(number, run, run.began, run.ended, |fault| is(fault.kind));
            found
                .map(|_| ())
                .ok_or("no fault explains how it ended".to_owned())
        };
        let lines: Vec<&str> = run.stderr.lines().collect();
        if lines.len() > 1 {
            return Err("it said more than one line".into());
        }
        let line = lines.first().copied().unwrap_or_default();
        let says = |words: &str| match line.contains(words) {
            true => Ok(()),
            false => Err(format!("it does not say {words:?}")),
        };
        match run.end {
            End::Hung => Err("it had to end, and did not".into()),
            End::Code(code) if stay.is_some_and(|stay| stay.left) && code == run.request.status => {
                match line {
                    "" => Ok(()),
                    // A server that is silent at the unlock.
                    _ => hit(disturbs),
                }
            }
            End::Code(74) => {
                says("lost the lock")?;
                hit(|kind| ends_sessions(kind) || silences(kind))
            }
            End::Code(75) if stay.is_none() => says("pglock: "),
            End::Code(69) if stay.is_none() => {
                says("pglock: ")?;
                hit(|kind| disturbs(kind) || kind == Kind::Exhaust)
            }
            End::Signal(9) => hit(|kind| matches!(kind, Kind::KillPglock | Kind::KillJob)),
            End::Signal(15) => hit(|kind| matches!(kind, Kind::TermPglock | Kind::TermJob)),
            _ => Err("it must not end so".into()),
        }
    }

    /// Who was told that somebody else has the lock was told the truth: somebody else wanted it in this time.
    fn conflicts(&mut self) {
        let mut by_key: BTreeMap<&str, Vec<(u128, u128, usize)>> = BTreeMap::new();
        for (&number, run) in &self.history.runs {
            // The lock of a killed pglock is its job's, which ends later.
            let last = self.stays.get(&number).map_or(0, |stay| stay.last);
            for key in &run.request.keys {
                by_key
                    .entry(key)
                    .or_default()
                    .push((run.began, run.ended.max(last), number));
            }
        }
        by_key.values_mut().for_each(|runs| runs.sort());
        for (&number, run) in &self.history.runs {
            let others = |key: &&str| {
                let runs = &by_key[*key];
                let end = runs.partition_point(|(began, ..)| *began < run.ended);
                // No run is longer than the longest fault and all waits together.
                let near = runs[..end]
                    .iter()
                    .rev()
                    .take_while(|(began, ..)| began + 3 * LONGEST > run.began);
                near.into_iter()
                    .any(|(_, ended, by)| *by != number && *ended + ECHO > run.began)
            };
            if run.end == End::Code(75) && !run.request.keys.iter().any(|key| others(key)) {
                self.blame(format!(
                    "run {number} was told of a holder, and there was nobody: {run:?}"
                ));
            }
        }
    }
}

/// Whether two stays on one key exclude each other.
fn excludes((a, of_a): (&Stay, &Request), (b, of_b): (&Stay, &Request)) -> bool {
    match (of_a.slots, of_b.slots) {
        (Some(_), Some(_)) => a.slot == b.slot,
        _ => !(of_a.shared && of_b.shared),
    }
}

/// The lock is free at once, as the server or the pooler ends the session.
fn ends_sessions(kind: Kind) -> bool {
    use Kind::*;
    matches!(
        kind,
        EndSession | Evict | KillBackend | Crash | Failover | KillPooler
    )
}

/// The server seems silent, while nobody gets the lock.
fn silences(kind: Kind) -> bool {
    matches!(kind, Kind::Cut | Kind::StopPglock)
}

/// Something can fail on the way to the lock, or back.
fn disturbs(kind: Kind) -> bool {
    ends_sessions(kind) || silences(kind) || matches!(kind, Kind::Reconnect)
}

/// The faults in their order, to be found by time.
struct Faults<'a>(Vec<&'a Fault>);

impl<'a> Faults<'a> {
    fn new(faults: &'a [Fault]) -> Faults<'a> {
        let mut faults: Vec<&Fault> = faults.iter().collect();
        faults.sort_by_key(|fault| fault.began);
        Faults(faults)
    }

    /// A fault that can have met this run between these times, echoes included.
    fn find(
        &self,
        number: usize,
        run: &Run,
        from: u128,
        until: u128,
        is: impl Fn(&Fault) -> bool,
    ) -> Option<&'a Fault> {
        let end = self.0.partition_point(|fault| fault.began <= until);
        let near = self.0[..end].iter().rev();
        let mut near = near.take_while(|fault| fault.began + LONGEST + ECHO > from);
        let meets = |fault: &Fault| match fault.target {
            Target::Run(target) => target == number,
            Target::Host(host) => host == run.request.host,
            Target::Key(key) => run.request.keys.contains(&key),
            Target::Pooled => run.request.pooled,
            Target::All => true,
        };
        let lasts = |fault: &Fault| match fault.kind {
            Kind::Cut => fault.ended + ECHO,
            _ if run.request.pooled && fault.target == Target::All => fault.ended + RETRY,
            _ => fault.ended,
        };
        near.find(|fault| lasts(fault) >= from && meets(fault) && is(fault))
            .copied()
    }
}
