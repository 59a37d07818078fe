//! `pglock list`: who holds locks and who waits for them, as a table for people or as JSON for programs.
//!
//! On a terminal the table has as many columns as fit; otherwise it has all of them.

mod json;

use crate::cli::ListOptions;
use crate::commands::lock_table;
use crate::commands::session::with_client;
use crate::connection::{Client, Settings};
use crate::inspect::overview::{Overview, PollingWaiters};
use crate::key::{self, Key};
use crate::outcome::{ExitCode, Failure, Outcome};
use crate::protocol::name;
use crate::ui::message;
use crate::ui::stdout;
use crate::ui::terminal::{self, ERASE_TO_LINE_END, truncate_to_width};
use json::LockList;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

/// How often `--watch` refreshes.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// Moves the cursor to the upper left corner (ECMA-48 CUP).
const CURSOR_HOME: &str = "\x1b[H";
/// Erases from the cursor to the end of the screen (ECMA-48 ED).
const ERASE_TO_SCREEN_END: &str = "\x1b[J";

/// Lists the locks, once or until interrupted.
///
/// # Errors
/// The settings are wrong, the connection fails, or standard output cannot be written.
pub(crate) fn run(options: &ListOptions) -> Result<Outcome, Failure> {
    let settings = Settings::from_options(&options.connection)?
        .for_lists()
        .with_reply_limit(options.reply_limit);
    let is_any_held = with_client(&settings, &name::for_list(), |client| print_locks(client, options))?;
    if is_any_held && !options.keys.is_empty() {
        Ok(Outcome::Failed(ExitCode::Conflict))
    } else {
        Ok(Outcome::Success)
    }
}

/// Prints the locks once, or until standard output is closed. Returns whether any was held the last time.
///
/// # Errors
/// The connection is lost, or standard output cannot be written.
fn print_locks(client: &mut Client, options: &ListOptions) -> Result<bool, Failure> {
    let mut is_warned = false;
    loop {
        let client = client.asking("for the holders and waiters");
        let overview = Overview::fetch(client, &options.keys, PollingWaiters::Find)?;
        if !is_warned {
            print_limits(&overview);
            is_warned = overview.is_partial || overview.is_untracked;
        }
        let text = match (options.json, options.watch) {
            (true, watch) => json(&overview, watch)?,
            (false, false) => {
                let width = terminal::stdout_size().map(|(columns, _)| columns);
                table(&overview, &options.keys, width)
            }
            (false, true) => screen(&overview, &options.keys),
        };
        let is_open = stdout::print(&text)?;
        if !options.watch || !is_open {
            return Ok(overview.is_any_held());
        }
        sleep(WATCH_INTERVAL);
    }
}

/// Returns the locks as a JSON object, on one line if there will be more of them.
///
/// # Errors
/// None: the object consists of strings, numbers, booleans and nulls.
fn json(overview: &Overview, on_one_line: bool) -> Result<String, Failure> {
    let list = LockList::from(overview);
    let json = if on_one_line {
        serde_json::to_string(&list)
    } else {
        serde_json::to_string_pretty(&list)
    };
    let json = json.map_err(|error| Failure::new(ExitCode::Internal, error))?;
    Ok(format!("{json}\n"))
}

/// Returns the table, or a sentence if there are no locks.
fn table(overview: &Overview, keys: &[Key], terminal_width: Option<usize>) -> String {
    if !overview.entries.is_empty() {
        return lock_table::render(&overview.entries, terminal_width);
    }
    let database = &overview.database;
    if keys.is_empty() {
        format!("no locks are held or waited for in database {database:?}\n")
    } else {
        format!(
            "no session holds or waits for {} in database {database:?}\n",
            key::describe(keys)
        )
    }
}

/// Returns what `--watch` prints each time, headed by the time: a full screen for a terminal, or else one more table.
fn screen(overview: &Overview, keys: &[Key]) -> String {
    let now = humantime::format_rfc3339_seconds(SystemTime::now());
    let header = format!("pglock list, database {:?}, {now}", overview.database);
    let Some((columns, lines)) = terminal::stdout_size() else {
        return format!("{header}\n{}\n", table(overview, keys, None));
    };
    let table = table(overview, keys, Some(columns));
    let mut screen: Vec<String> = std::iter::once(header.as_str())
        .chain(table.lines())
        .map(|line| truncate_to_width(line, columns))
        .collect();
    let total = screen.len();
    if total > lines {
        screen.truncate(lines.saturating_sub(1));
    }
    let more = match total - screen.len() {
        0 => String::new(),
        count => format!("\r\n({count} more)"),
    };
    // Overwriting the previous screen, instead of clearing it first, avoids flicker.
    let screen = screen.join(&format!("{ERASE_TO_LINE_END}\r\n"));
    format!("{CURSOR_HOME}{screen}{ERASE_TO_LINE_END}{more}{ERASE_TO_SCREEN_END}")
}

/// Prints why details are missing.
fn print_limits(overview: &Overview) {
    if overview.is_partial {
        message::notice(hidden_details(&overview.role));
    }
    if overview.is_untracked {
        message::notice(
            "the server does not record start times, jobs and polling waiters of some sessions; turn track_activities \
             on for their roles to show them",
        );
    }
}

/// Returns the notice that the role cannot see everything, with the remedy.
fn hidden_details(role: &str) -> String {
    format!(
        "role {role:?} cannot see the start times, jobs, client addresses and polling waiters of other roles' \
         sessions; GRANT pg_read_all_stats TO {role:?} to show them"
    )
}
