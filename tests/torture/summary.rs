//! The summary of a run: its plan, the requests and their results, the faults, and the findings.

use super::check::Verdict;
use super::history::{End, History, Run};
use super::plan::{Plan, Road};
use super::support::faketime;
use super::world::HOSTS;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// Returns a few lines for the report.
pub fn summary(plan: &Plan, versions: &str, took: Duration, history: &History, verdict: &Verdict) -> String {
    let runs = history.runs.values();
    let stays = history.stays.iter();
    let acquired = stays.filter_map(|stay| history.runs.get(&stay.run));
    let acquired = count(acquired.flat_map(modes));
    let ends = count(runs.map(end));
    let faults = count(history.faults.iter().map(|fault| fault.kind.name()));
    let overlaps = verdict.explained.iter().map(|(cause, explained)| {
        format!(
            "{cause} {} ({} with two tokens, longest {} ms)",
            explained.count,
            explained.ordered,
            explained.longest / 1_000_000
        )
    });
    let mut text = String::new();
    let mut line = |what: &str, text_of_line: String| {
        let value = if text_of_line.is_empty() { "none" } else { &text_of_line };
        let _ = writeln!(text, "{what}: {value}");
    };
    line("plan", plan.line());
    line("on", versions.to_owned());
    line(
        "result",
        format!(
            "{} violations in {} runs with {} acquisitions, {} s",
            verdict.violations.len(),
            history.runs.len(),
            history.stays.len(),
            took.as_secs()
        ),
    );
    line("acquisitions", listed(&acquired));
    line("ends", listed(&ends));
    line("faults", listed(&faults));
    line("overlaps explained", overlaps.collect::<Vec<_>>().join(", "));
    line(
        "guarded writes",
        format!("accepted {}, refused {}", verdict.accepted, verdict.refused),
    );
    text
}

/// Returns the categories of a run.
fn modes(run: &Run) -> Vec<String> {
    let request = &run.request;
    let all = [
        (request.is_pooled(), "pooled"),
        (request.is_forwarded(), "forwarded"),
        (request.road == Road::Direct, "direct"),
        (request.shared, "shared"),
        (request.slots.is_some(), "slots"),
        (request.fair, "fair"),
        (request.keys.len() > 1, "several keys"),
        (request.token, "token"),
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

fn listed(counts: &BTreeMap<String, usize>) -> String {
    let parts = counts.iter().map(|(what, count)| format!("{what} {count}"));
    parts.collect::<Vec<_>>().join(", ")
}
