//! The check of the run table, and of `--once-per` by the jobs themselves.
//!
//! A job succeeded if it exited with 0, which it notes itself. That it is not recorded as a success is explained only
//! by what happened to its pglock: it lost its lock (74, which [`super::ends`] judges); it was killed; or a fault
//! disturbed it, and it said that it could not record the end, or recorded that the lock was lost when the end was
//! being written. An immediate failover afterwards explains it too: the standby may have lagged behind. A second
//! success in the interval is explained only by a first one that is not recorded. A row has no excuse: whoever inserts
//! one has looked at all before it, in the same transaction.

use super::{Check, SECOND_NS, disturbs, silences};
use crate::history::{End, Fault, Row, Run, Stay};
use crate::plan::Kind;
use std::collections::BTreeMap;

/// How far the clock of the server's times can differ from the monotonic one, and two readings in a statement.
const CLOCK_LIMIT_NS: u128 = SECOND_NS / 20;

/// A job of a key with an interval that succeeded.
struct Success {
    started: u128,
    run: usize,
    /// What explains that it is not recorded.
    unrecorded: Option<String>,
}

impl<'a> Check<'a> {
    /// P100, P101, P102
    pub fn records(&mut self) {
        let rows: Vec<&Row> = self.history.rows.iter().collect();
        for row in &rows {
            if let Err(why) = self.is_row_true(row) {
                let run = self.run(row.run);
                let stay = self.stays.get(&row.run);
                self.violation(format!("{why}: {row:?}\n  {run:?}\n  {stay:?}"));
            }
        }
        self.running_rows(&rows);
        self.intervals(&rows);
        self.successes();
    }

    /// Checks what the row says about its run.
    fn is_row_true(&self, row: &Row) -> Result<(), String> {
        let Some(run) = self.run(row.run) else {
            return Err("a row of no run".into());
        };
        if !run.request.record || !run.request.keys.contains(&row.key.as_str()) {
            return Err("a row of a run that was not to record this key".into());
        }
        let stay = self.stays.get(&row.run).copied();
        let is_hit = |is: &dyn Fn(Kind) -> bool| self.is_hit(row.run, run, is);
        let is_started = stay.is_none_or(|stay| row.started <= stay.entered + CLOCK_LIMIT_NS);
        if !is_started || row.started + CLOCK_LIMIT_NS < run.began {
            return Err("a row with a start that is not before its job's".into());
        }
        let has_succeeded = stay.is_some_and(|stay| stay.status == Some(0));
        let was_killed = is_hit(&|kind| kind == Kind::KillJob);
        match row.outcome.as_str() {
            "ok" if !has_succeeded => Err("a recorded success of a job that did not succeed".into()),
            "ok" if row.exit_status != Some(0) => Err("a recorded success with another status".into()),
            "ok" => self.is_ended_after_the_job(row, run, stay),
            "failed" if has_succeeded && !was_killed => Err("a recorded failure of a job that succeeded".into()),
            "failed" => Ok(()),
            "lost" | "evicted" if run.end == End::Code(74) || is_hit(&disturbs) => Ok(()),
            "running" | "abandoned" if is_hit(&|kind| kind == Kind::KillPglock || disturbs(kind)) => Ok(()),
            outcome => Err(format!("nothing explains a run that is recorded as {outcome}")),
        }
    }

    /// The end is that of the job. It is counted back from when it is written, which a slow line delays.
    fn is_ended_after_the_job(&self, row: &Row, run: &Run, stay: Option<&Stay>) -> Result<(), String> {
        let (Some(ended), Some(stay)) = (row.ended, stay) else {
            return Err("a recorded success without an end".into());
        };
        let is_late = ended > run.ended + CLOCK_LIMIT_NS && !self.is_hit(row.run, run, &silences);
        if ended + CLOCK_LIMIT_NS < stay.last || is_late {
            return Err("a recorded success with an end that is not its job's".into());
        }
        Ok(())
    }

    /// A run that is recorded as running has no later one, but for those of other slots and those that share the lock:
    /// a later holder gives up a run whose pglock is dead.
    fn running_rows(&mut self, rows: &[&Row]) {
        for (index, row) in rows.iter().enumerate().filter(|(_, row)| row.outcome == "running") {
            let replaces = |later: &&&Row| {
                later.key == row.key && later.slot == row.slot && !(later.shared && row.shared) && later.run != row.run
            };
            if let Some(later) = rows[index + 1..].iter().find(replaces) {
                self.violation(format!(
                    "a run is still recorded as running: {row:?}\n  before {later:?}"
                ));
            }
        }
    }

    /// A run of a key with an interval is not even recorded within the interval after the start of a recorded success.
    fn intervals(&mut self, rows: &[&'a Row]) {
        let mut newest: BTreeMap<&str, &Row> = BTreeMap::new();
        for row in rows {
            let interval = self.run(row.run).and_then(|run| run.request.once_per);
            let Some(interval) = interval.map(|seconds| u128::from(seconds) * SECOND_NS) else {
                continue;
            };
            if let Some(success) = newest.get(row.key.as_str())
                && row.started + CLOCK_LIMIT_NS < success.started + interval
            {
                self.violation(format!(
                    "run {} began within the interval of run {}, which had succeeded: {row:?}\n  {success:?}",
                    row.run, success.run
                ));
            }
            if row.outcome == "ok" {
                newest.insert(&row.key, row);
            }
        }
    }

    /// Every job that succeeded is recorded, and none succeeded twice in an interval, unless a fault explains it.
    fn successes(&mut self) {
        let mut rows: BTreeMap<usize, Vec<&Row>> = BTreeMap::new();
        for row in &self.history.rows {
            rows.entry(row.run).or_default().push(row);
        }
        let mut by_key: BTreeMap<&str, Vec<Success>> = BTreeMap::new();
        for stay in self.history.stays.iter().filter(|stay| stay.status == Some(0)) {
            let Some(run) = self.run(stay.run).filter(|run| run.request.record) else {
                continue;
            };
            let of_run = rows.get(&stay.run).map(Vec::as_slice).unwrap_or_default();
            let ok = of_run.iter().filter(|row| row.outcome == "ok");
            let why = (ok.count() < run.request.keys.len()).then(|| self.unrecorded_because(stay, run, of_run));
            if let Some(why) = &why {
                match why {
                    Some(why) => *self.verdict.unrecorded.entry(why.clone()).or_default() += 1,
                    None => self.violation(format!(
                        "run {} succeeded and is not recorded, and no fault explains it: {run:?}\n  {stay:?}\n  {of_run:?}",
                        stay.run
                    )),
                }
            }
            if run.request.once_per.is_some() {
                let started = of_run.first().map_or(stay.entered, |row| row.started);
                let all = by_key.entry(run.request.keys[0]).or_default();
                all.push(Success {
                    started,
                    run: stay.run,
                    unrecorded: why.flatten(),
                });
            }
        }
        for (key, mut all) in by_key {
            all.sort_by_key(|success| success.started);
            for pair in all.windows(2) {
                self.repetition(key, &pair[0], &pair[1]);
            }
        }
    }

    /// Checks two successes of a key that follow each other.
    fn repetition(&mut self, key: &str, first: &Success, second: &Success) {
        let interval = self.run(first.run).and_then(|run| run.request.once_per);
        let interval = u128::from(interval.unwrap_or_default()) * SECOND_NS;
        if second.started + CLOCK_LIMIT_NS >= first.started + interval {
            return;
        }
        match &first.unrecorded {
            Some(why) => *self.verdict.repeated.entry(why.clone()).or_default() += 1,
            None => self.violation(format!(
                "{key}: run {} and run {} succeeded within one interval, {} ms apart",
                first.run,
                second.run,
                (second.started - first.started) / 1_000_000
            )),
        }
    }

    /// Returns what explains that the success of a job is not recorded.
    fn unrecorded_because(&self, stay: &Stay, run: &Run, rows: &[&Row]) -> Option<String> {
        let hit = |is: &dyn Fn(Kind) -> bool| {
            let is = |fault: &Fault| is(fault.kind);
            self.faults.find(stay.run, run, run.began, run.ended, is)
        };
        let name = |fault: &Fault| fault.kind.name();
        let was_missed = || {
            let is_it = |fault: &&Fault| fault.kind == Kind::Failover && fault.ended > stay.last;
            self.history
                .faults
                .iter()
                .find(is_it)
                .map(|_| "a standby that lagged behind".to_owned())
        };
        match run.end {
            End::Code(74) => Some("a lost lock".into()),
            End::Signal(9) => hit(&|kind| matches!(kind, Kind::KillPglock | Kind::KillJob)).map(name),
            End::Code(_) if run.stderr.contains("could not record how the run on ") => hit(&disturbs).map(name),
            // A loss when the end was being written: nobody knows whether it has arrived.
            End::Code(_) if rows.iter().any(|row| row.outcome == "lost") => hit(&disturbs).map(name),
            _ => was_missed(),
        }
    }

    fn is_hit(&self, number: usize, run: &Run, is: &dyn Fn(Kind) -> bool) -> bool {
        let is = |fault: &Fault| is(fault.kind);
        self.faults.find(number, run, run.began, run.ended, is).is_some()
    }
}
