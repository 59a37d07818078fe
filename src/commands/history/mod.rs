//! `pglock history`: what the run table says, as a table, JSON or metrics, or by the exit status; and removing old
//! runs.

mod json;
mod metrics;
mod run_table;

use crate::cli::{HistoryAction, HistoryOptions};
use crate::commands::session::with_client;
use crate::connection::{Client, Settings};
use crate::history::{self, RunFilter, TableName};
use crate::inspect::server_time::in_full;
use crate::key::{self, Key, KeyId};
use crate::lock;
use crate::outcome::{ExitCode, Failure, Outcome};
use crate::protocol::name;
use crate::ui::message;
use crate::ui::stdout;
use crate::ui::terminal;
use std::time::Duration;

/// Runs `pglock history`.
///
/// # Errors
/// The settings are wrong, the connection fails, the table cannot be used, or standard output cannot be written.
pub(crate) fn run(options: &HistoryOptions) -> Result<Outcome, Failure> {
    let settings = Settings::from_options(&options.connection)?
        .for_lists()
        .with_reply_limit(options.reply_limit);
    with_client(&settings, &name::for_history(), |client| act(client, options))
}

/// Does what the options say.
///
/// # Errors
/// As for [`run`].
fn act(client: &mut Client, options: &HistoryOptions) -> Result<Outcome, Failure> {
    let (table, keys) = (&options.table, &options.keys);
    let layout = history::require_table(client.asking("for the run table"), table)?;
    let ids = lock::key_ids(client, keys)?;
    let client = client.asking("for the runs");
    let text = match options.action {
        HistoryAction::Show { filter, json } => {
            let runs = history::newest_runs(client, table, &ids, filter)?;
            if json {
                json::render(&runs)?
            } else if runs.is_empty() {
                nothing_found(table, keys, filter)
            } else {
                run_table::render(&runs, terminal::stdout_size().map(|(columns, _)| columns))
            }
        }
        HistoryAction::CheckSuccess(interval) => return check_success(client, table, keys, &ids, interval),
        HistoryAction::Metrics => metrics::render(&history::summaries(client, table, &ids)?),
        HistoryAction::Prune => {
            let removed = history::prune_all(client.asking("to remove old runs"), table, layout)?;
            let runs = if removed == 1 { "run" } else { "runs" };
            let keep = in_full(layout.keep);
            format!("removed {removed} {runs} from table {table}, which keeps them for {keep}\n")
        }
    };
    stdout::print(&text)?;
    Ok(Outcome::Success)
}

/// Returns the sentence for a table without such runs.
fn nothing_found(table: &TableName, keys: &[Key], filter: RunFilter) -> String {
    let runs = if filter.failed { "failed runs" } else { "runs" };
    let keys = if keys.is_empty() {
        String::new()
    } else {
        format!(" of {}", key::describe(keys))
    };
    format!("no {runs}{keys} are recorded in table {table}\n")
}

/// Reports each key that has not succeeded within this time, and returns whether there is none.
///
/// # Errors
/// As for [`run`].
fn check_success(
    client: &mut Client,
    table: &TableName,
    keys: &[Key],
    ids: &[KeyId],
    interval: Duration,
) -> Result<Outcome, Failure> {
    let successes = history::newest_successes(client, table, ids, interval)?;
    let mut outcome = Outcome::Success;
    for (key, id) in keys.iter().zip(ids) {
        let problem = match successes.get(&id.to_string()) {
            Some(success) if success.ago <= interval => continue,
            Some(success) => format!(
                "last succeeded {} ago on {}, not within {}",
                in_full(success.ago),
                success.host,
                in_full(interval)
            ),
            None => "has no recorded success".to_owned(),
        };
        message::error(format_args!("key {key} {problem}"));
        outcome = Outcome::Failed(ExitCode::Conflict);
    }
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Run, summarize};
    use std::collections::BTreeMap;
    use unicode_width::UnicodeWidthStr;

    /// Returns the value of a label and what follows it, as Prometheus reads them.
    fn label(text: &str) -> Option<(String, &str)> {
        let mut value = String::new();
        let mut chars = text.char_indices();
        loop {
            match chars.next()? {
                (end, '"') => return Some((value, &text[end + 1..])),
                (_, '\\') => value.push(match chars.next()?.1 {
                    'n' => '\n',
                    c @ ('"' | '\\') => c,
                    _ => return None,
                }),
                (_, c) => value.push(c),
            }
        }
    }

    /// The columns of the queries for runs and for summaries.
    const COLUMNS: [&str; 20] = [
        "key",
        "number",
        "mode",
        "slot",
        "host",
        "pid",
        "job",
        "note",
        "token",
        "waited",
        "started",
        "ended",
        "exit_status",
        "signal",
        "outcome",
        "now",
        "succeeded",
        "took",
        "age",
        "runs",
    ];

    /// Returns a row of these cells, which NUL bytes separate; an empty one is NULL.
    fn row(cells: &str) -> BTreeMap<&str, String> {
        let cells = COLUMNS.into_iter().zip(cells.split('\0').map(str::to_owned));
        cells.filter(|(_, cell)| !cell.is_empty()).collect()
    }

    /// Any client with the privilege can write any row. The input is one, and after a newline the row of a count.
    #[test]
    fn fuzz_recorded_run() {
        let examples = [
            "nightly\x005\0exclusive\x002\0web1\x0017240\0backup\0until 14:00\x007\x000.25\x001795657853.9\x001795657912.1\x00\0\
             SIGKILL\0failed\x001795661700\x001795657912\x0058.2\n\x005\0\0\0\0\0\0\0\0\0\0\0\0\0failed\0\0\0\0\x0018446744073709551615",
            "a\"\\b\x0042\0shared\0\0h\x00-1\0\x1b[2J\0\0\0inf\0-inf\0NaN\x00256\x002147483647\0running\x001e300\n",
        ];
        crate::fuzz::fuzz(&examples, |input| {
            let text = String::from_utf8_lossy(input);
            let (run_cells, count_cells) = text.split_once('\n').unwrap_or((&text, ""));
            let rows = [row(run_cells), row(count_cells)];
            let runs = [Run::read(&rows[0])];
            for width in [None, Some(80)] {
                let table = run_table::render(&runs, width);
                assert!(
                    table.lines().count() == 2 && !table.replace('\n', "").contains(char::is_control),
                    "{table:?}"
                );
                assert!(
                    table
                        .lines()
                        .all(|line| width.is_none_or(|width| line.width() <= width)),
                    "{table:?}"
                );
            }
            let json = json::render(&runs).expect("no error");
            let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
            assert_eq!(json["runs"][0]["key"], runs[0].key);
            let summaries = summarize(&rows);
            for line in metrics::render(&summaries)
                .lines()
                .filter(|line| !line.starts_with('#'))
            {
                let (_, rest) = line.split_once("{key=\"").expect("a label");
                let (key, mut rest) = label(rest).expect("a value");
                assert!(summaries.contains_key(&key), "{line:?}");
                if let Some(after) = rest.strip_prefix(",outcome=\"") {
                    rest = label(after).expect("a value").1;
                }
                let value = rest.strip_prefix("} ").expect("a value");
                assert!(value.parse().is_ok_and(f64::is_finite), "{line:?}");
            }
        });
    }
}
