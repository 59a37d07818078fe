//! The metrics of `pglock history`, in the text format of Prometheus: a stable interface, described in
//! `docs/history.md`.
//!
//! The format is that of <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use crate::history::{KeySummary, RunOutcome};
use std::collections::BTreeMap;

/// A metric with one sample for each key that has a value.
struct Metric {
    name: &'static str,
    help: &'static str,
    value: fn(&KeySummary) -> Option<f64>,
}

const METRICS: [Metric; 4] = [
    Metric {
        name: "pglock_last_start_timestamp_seconds",
        help: "When the newest run started.",
        value: |summary| Some(summary.started),
    },
    Metric {
        name: "pglock_last_success_timestamp_seconds",
        help: "When the newest successful run ended.",
        value: |summary| summary.succeeded,
    },
    Metric {
        name: "pglock_last_duration_seconds",
        help: "How long the newest run that has ended took.",
        value: |summary| summary.took,
    },
    Metric {
        name: "pglock_last_exit_status",
        help: "Exit status of the newest run that has ended; 128+n if signal n killed the job.",
        value: |summary| summary.exit_status.map(f64::from),
    },
];

/// Returns the metrics of these keys.
pub(super) fn render(summaries: &BTreeMap<String, KeySummary>) -> String {
    let mut text = String::new();
    for metric in METRICS {
        text += &header(metric.name, metric.help);
        for (key, summary) in summaries {
            if let Some(value) = (metric.value)(summary) {
                text += &format!("{}{{key=\"{}\"}} {value}\n", metric.name, escape(key));
            }
        }
    }
    let name = "pglock_runs";
    text += &header(name, "Number of recorded runs.");
    for (key, summary) in summaries {
        // An outcome that is not there yet is 0, so that an increase can be seen.
        let mut counts: BTreeMap<&str, u64> = RunOutcome::ALL.iter().map(|outcome| (outcome.name(), 0)).collect();
        counts.extend(summary.counts.iter().map(|(outcome, count)| (outcome.as_str(), *count)));
        for (outcome, count) in counts {
            let (key, outcome) = (escape(key), escape(outcome));
            text += &format!("{name}{{key=\"{key}\",outcome=\"{outcome}\"}} {count}\n");
        }
    }
    text
}

fn header(name: &str, help: &str) -> String {
    format!("# HELP {name} {help}\n# TYPE {name} gauge\n")
}

/// Escapes the value of a label.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
