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
    let successes = history::newest_successes(client, table, ids)?;
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
