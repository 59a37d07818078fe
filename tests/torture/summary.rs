//! The summary of a run: its plan, the requests and their results, the faults, and the findings.

use super::check::Verdict;
use super::history::{End, History, Run};
use super::plan::Plan;
use super::request::Road;
use super::support::faketime;
use super::world::HOSTS;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, SystemTime};

/// What is counted in a run.
pub struct Summary<'a> {
    pub plan: &'a Plan,
    pub took: Duration,
    pub history: &'a History,
    pub verdict: &'a Verdict,
}

impl Summary<'_> {
    /// Returns a few lines to be read.
    pub fn text(&self, versions: &str) -> String {
        let overlaps = self.verdict.explained.iter().map(|(cause, explained)| {
            format!(
                "{cause} {} ({} with two tokens, longest {} ms)",
                explained.count,
                explained.ordered,
                explained.longest / 1_000_000
            )
        });
        let overlaps: Vec<String> = overlaps.collect();
        let mut text = String::new();
        let mut line = |what: &str, text_of_line: String| {
            let value = if text_of_line.is_empty() { "none" } else { &text_of_line };
            let _ = writeln!(text, "{what}: {value}");
        };
        line("plan", self.plan.line());
        line("on", versions.to_owned());
        line(
            "result",
            format!(
                "{} violations in {} runs with {} acquisitions, {} s, {:.1} acquisitions per second",
                self.verdict.violations.len(),
                self.history.runs.len(),
                self.history.stays.len(),
                self.took.as_secs(),
                self.history.stays.len() as f64 / self.took.as_secs_f64()
            ),
        );
        line("acquisitions", listed(&self.modes(), " ", ", "));
        line("ends", listed(&self.ends(), " ", ", "));
        line("faults", listed(&self.faults(), " ", ", "));
        line("overlaps explained", overlaps.join(", "));
        line("successes not recorded", listed(&self.verdict.unrecorded, " ", ", "));
        line("successes repeated", listed(&self.verdict.repeated, " ", ", "));
        line(
            "guarded writes",
            format!("accepted {}, refused {}", self.verdict.accepted, self.verdict.refused),
        );
        text
    }

    /// Returns a line for the file that `totals.awk` adds up.
    pub fn record(&self, commit: &str) -> String {
        let verdict = self.verdict;
        let among = |texts: &[&str]| {
            let is_it = |violation: &&String| texts.iter().any(|text| violation.contains(text));
            verdict.violations.iter().filter(is_it).count()
        };
        let sum = |counts: &BTreeMap<String, usize>| counts.values().sum::<usize>();
        let causes = verdict.explained.iter();
        let causes: BTreeMap<String, usize> = causes.map(|(cause, all)| (cause.clone(), all.count)).collect();
        let longest = verdict.explained.values().map(|all| all.longest).max();
        let numbers = [
            ("seed", self.plan.seed as usize),
            ("seconds", self.took.as_secs() as usize),
            ("runs", self.history.runs.len()),
            ("acquisitions", self.history.stays.len()),
            ("faults", self.history.faults.len()),
            ("overlaps_explained", sum(&causes)),
            ("longest_ms", (longest.unwrap_or_default() / 1_000_000) as usize),
            ("writes_refused", verdict.refused),
            ("unrecorded", sum(&verdict.unrecorded)),
            ("repeated", sum(&verdict.repeated)),
            ("overlaps_unexplained", among(&[" overlap for "])),
            ("lost_waiters", among(&["waited in vain", "it had to end, and did not"])),
            ("orphans", among(&["the job lived on", "jobs still run"])),
            ("violations", verdict.violations.len()),
        ];
        let lists = [
            ("modes", self.modes()),
            ("ends", self.ends()),
            ("by_kind", self.faults()),
            ("by_cause", causes),
            ("unrecorded_by", verdict.unrecorded.clone()),
            ("repeated_by", verdict.repeated.clone()),
        ];
        let numbers = numbers.map(|(name, number)| format!("{name}={number}"));
        let lists = lists.map(|(name, counts)| format!("{name}={}", listed(&counts, ":", ",").replace(' ', "_")));
        let plan = self.plan.line().replace(' ', ";");
        format!(
            "date={} commit={commit} {} {} plan={plan}\n",
            humantime::format_rfc3339_seconds(SystemTime::now()),
            numbers.join(" "),
            lists.join(" ")
        )
    }

    fn modes(&self) -> BTreeMap<String, usize> {
        let stays = self.history.stays.iter();
        let acquired = stays.filter_map(|stay| self.history.runs.get(&stay.run));
        count(acquired.flat_map(modes))
    }

    fn ends(&self) -> BTreeMap<String, usize> {
        count(self.history.runs.values().map(end))
    }

    fn faults(&self) -> BTreeMap<String, usize> {
        count(self.history.faults.iter().map(|fault| fault.kind.name()))
    }
}

/// Returns the categories of a run.
fn modes(run: &Run) -> Vec<String> {
    let request = &run.request;
    let all = [
        (request.road == Road::Pooler, "pooled"),
        (request.road == Road::PgDog, "pgdog"),
        (request.road == Road::Proxy, "proxy"),
        (request.is_forwarded(), "forwarded"),
        (request.road == Road::Direct, "direct"),
        (request.shared, "shared"),
        (request.slots.is_some(), "slots"),
        (request.fair, "fair"),
        (request.keys.len() > 1, "several keys"),
        (request.token, "token"),
        (request.record, "recorded"),
        (request.once_per.is_some(), "once-per"),
        (request.host == HOSTS - 1 && faketime().is_some(), "wrong clock"),
    ];
    let all = all.into_iter().filter(|(is_set, _)| *is_set);
    all.map(|(_, mode)| mode.to_owned()).collect()
}

fn end(run: &Run) -> String {
    match run.end {
        End::Code(code) if code == run.request.status => "as the job".into(),
        End::Code(code) => code.to_string(),
        End::Signal(signal) => format!("signal {signal}"),
        End::Hung => "hung".into(),
    }
}

fn count(all: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    all.for_each(|one| *counts.entry(one).or_default() += 1);
    counts
}

fn listed(counts: &BTreeMap<String, usize>, between: &str, after: &str) -> String {
    let parts = counts.iter().map(|(what, count)| format!("{what}{between}{count}"));
    parts.collect::<Vec<_>>().join(after)
}
