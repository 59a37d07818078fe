//! `pglock list`: who holds and who waits, as a table for people or as JSON for programs.
//!
//! On a terminal the table has the columns that fit; piped, it has them all. JSON is part of the stable interface.

use crate::cli::ListOptions;
use crate::connection::Settings;
use crate::inspect::overview::{self, LockEntry, LockState, Overview};
use crate::key::Key;
use crate::outcome::{ExitCode, Failure, Outcome};
use crate::protocol::name;
use crate::ui::message;
use crate::ui::stdout;
use crate::ui::terminal;
use postgres::Client;
use serde_json::{Value, json};
use std::thread::sleep;
use std::time::{Duration, SystemTime};
use unicode_width::UnicodeWidthStr;

/// Lists the locks, once or until interrupted.
///
/// # Errors
/// It cannot connect, or the connection or standard output fails.
pub fn run(options: &ListOptions) -> Result<Outcome, Failure> {
    let name = name::for_list();
    let settings = Settings::from_options(&options.connection)?.for_lists();
    let mut client = settings.open(&name, None)?.client;
    let is_held = show(&mut client, &options.keys, options.json, options.watch)?;
    if is_held && !options.keys.is_empty() {
        Ok(Outcome::Failed(ExitCode::Conflict))
    } else {
        Ok(Outcome::Success)
    }
}

/// A column of the table. The order of the columns is that of the page.
struct Column {
    title: &'static str,
    /// What goes first when there is no room: the highest.
    dispensable: u8,
    cell: fn(&LockEntry) -> String,
}

const COLUMNS: [Column; 13] = [
    column("KEY", 0, name),
    column("NUMBER", 6, |entry| match &entry.key {
        Some(key) if key.given() != entry.id.to_string() => entry.id.to_string(),
        _ => String::new(),
    }),
    column("STATE", 0, |entry| state(entry.state).into()),
    column("FOR", 0, age),
    column("WHO", 0, |entry| entry.backend.who()),
    column("BACKEND", 1, |entry| {
        entry.backend.pid.map(|pid| pid.to_string()).unwrap_or_default()
    }),
    column("BEHIND", 2, |entry| words(&entry.behind)),
    column("JOB", 3, |entry| entry.backend.job.clone().unwrap_or_default()),
    column("MODE", 4, |entry| {
        entry.mode.map(|mode| mode.name().into()).unwrap_or_default()
    }),
    column("USER", 5, |entry| entry.backend.user.clone()),
    column("CLIENT", 7, |entry| {
        entry.backend.client_address.clone().unwrap_or_default()
    }),
    column("SCOPE", 8, |entry| {
        entry.scope.map(|scope| scope.name().into()).unwrap_or_default()
    }),
    column("SINCE", 9, |entry| {
        entry.since.map(|since| since.rfc3339()).unwrap_or_default()
    }),
];

const fn column(title: &'static str, dispensable: u8, cell: fn(&LockEntry) -> String) -> Column {
    Column {
        title,
        dispensable,
        cell,
    }
}

/// How often `--watch` looks.
const PERIOD: Duration = Duration::from_secs(2);

/// Prints who holds and who waits for these keys, or for all, once or again and again. Whether somebody holds one.
///
/// # Errors
/// The server is gone, or there is nowhere to print to.
pub fn show(client: &mut Client, keys: &[Key], json: bool, watch: bool) -> Result<bool, Failure> {
    let mut has_said = false;
    loop {
        let overview = overview::look(client, keys)?;
        if let Some(words) = shortcoming(&overview).filter(|_| !has_said) {
            message::notice(words);
            has_said = true;
        }
        let is_read = stdout::print(&match (json, watch) {
            (true, false) => format!("{:#}\n", self::json(&overview)),
            (true, true) => format!("{}\n", self::json(&overview)),
            (false, false) => table(&overview, terminal::stdout_size().map(|(columns, _)| columns)),
            (false, true) => screen(&overview),
        })?;
        if !watch || !is_read {
            return Ok(overview.entries.iter().any(|entry| entry.state == LockState::Holding));
        }
        sleep(PERIOD);
    }
}

/// What a terminal shows at a time, with the time in front; elsewhere one table after the other.
fn screen(overview: &Overview) -> String {
    let now = humantime::format_rfc3339_seconds(SystemTime::now());
    let head = format!("pglock list, database {:?}, {now}", overview.database);
    let Some((columns, lines)) = terminal::stdout_size() else {
        return format!("{head}\n{}\n", table(overview, None));
    };
    let table = table(overview, Some(columns));
    let all: Vec<String> = std::iter::once(head.as_str())
        .chain(table.lines())
        .map(|line| terminal::truncate_to_width(line, columns))
        .collect();
    let shown = match all.len() > lines {
        true => &all[..lines.saturating_sub(1)],
        false => &all[..],
    };
    let more = match all.len() - shown.len() {
        0 => String::new(),
        more => format!("\r\n({more} more)"),
    };
    // From the upper left corner over what was there, and the rest is cleared.
    format!("\x1b[H{}\x1b[J", shown.join("\x1b[K\r\n") + "\x1b[K" + &more)
}

/// The table, with a line end after each line, for a terminal of this width; without one, with all columns.
pub fn table(overview: &Overview, width: Option<usize>) -> String {
    if overview.entries.is_empty() {
        return format!("{} in database {:?}\n", overview.nothing, overview.database);
    }
    let mut columns: Vec<(&Column, Vec<String>)> = COLUMNS
        .iter()
        .map(|column| {
            (
                column,
                overview.entries.iter().map(column.cell).map(printable).collect(),
            )
        })
        .filter(|(_, cells): &(_, Vec<String>)| cells.iter().any(|cell| !cell.is_empty()))
        .collect();
    let mut widths = natural_widths(&columns);
    if let Some(width) = width {
        while total(&widths) > width
            && let Some(n) = most_dispensable(&columns)
        {
            columns.remove(n);
            widths.remove(n);
        }
        shrink(&mut widths, width);
    }
    let titles = columns.iter().map(|(column, _)| column.title.to_owned()).collect();
    let lines = (0..overview.entries.len()).map(|n| columns.iter().map(|(_, cells)| cells[n].clone()).collect());
    std::iter::once(titles)
        .chain(lines)
        .map(|cells| line(cells, &widths))
        .collect()
}

/// One object: `database`, `complete` (false where our role is not shown everything), and `locks`.
pub fn json(overview: &Overview) -> Value {
    json!({
        "database": overview.database,
        "complete": !overview.is_partial,
        "locks": overview.entries.iter().map(object).collect::<Vec<_>>(),
    })
}

/// What our role is not shown, and the remedy, if there is something.
pub fn shortcoming(overview: &Overview) -> Option<String> {
    let role = &overview.role;
    overview.is_partial.then(|| {
        format!(
            "role {role:?} is not shown since when other roles' sessions hold a lock, from which address, for which job, \
             nor who asks through a pooler; GRANT pg_read_all_stats TO {role:?} shows it"
        )
    })
}

fn object(entry: &LockEntry) -> Value {
    let pglock = entry.backend.run_name();
    json!({
        "key": entry.id.to_string(),
        "name": entry.key.as_ref().map(|key| key.given()),
        "slot": entry.slot,
        "slots": entry.slots(),
        "mode": entry.mode.map(|mode| mode.name()),
        "scope": entry.scope.map(|scope| scope.name()),
        "state": match entry.state {
            LockState::Holding => "holding",
            _ => "waiting",
        },
        "since": entry.since.map(|since| since.rfc3339()),
        "behind": entry.behind,
        "host": pglock.map(|pglock| pglock.host),
        "pid": pglock.map(|pglock| pglock.pid),
        "job": entry.backend.job,
        "user": entry.backend.user,
        "client_address": entry.backend.client_address,
        "backend_pid": entry.backend.pid,
        "connected_since": entry.backend.connected.map(|connected| connected.rfc3339()),
        "application_name": entry.backend.application_name,
    })
}

fn state(state: LockState) -> &'static str {
    match state {
        LockState::Holding => "held",
        LockState::Queueing | LockState::InLine(_) => "waits",
        LockState::Polling => "asks",
    }
}

/// The name, or else the number; and the slot.
fn name(entry: &LockEntry) -> String {
    let name = match &entry.key {
        Some(key) => key.given().to_owned(),
        None => entry.id.to_string(),
    };
    match (entry.slot, entry.slots()) {
        (Some(slot), Some(slots)) => format!("{name} slot {slot}/{slots}"),
        (Some(slot), None) => format!("{name} slot {slot}"),
        (None, Some(slots)) => format!("{name} slots={slots}"),
        (None, None) => name,
    }
}

/// For how long. Of others than pglock only the session's age is known, which is the most it can be.
fn age(entry: &LockEntry) -> String {
    match (entry.since, entry.backend.connected) {
        (Some(since), _) => since.age(),
        (None, Some(connected)) if entry.state == LockState::Holding => {
            format!("<{}", connected.age())
        }
        _ => String::new(),
    }
}

fn words(pids: &[i32]) -> String {
    let words: Vec<String> = pids.iter().map(i32::to_string).collect();
    words.join(" ")
}

fn printable(cell: String) -> String {
    cell.replace(char::is_control, " ")
}

fn natural_widths(columns: &[(&Column, Vec<String>)]) -> Vec<usize> {
    let widest = |(column, cells): &(&Column, Vec<String>)| {
        let cells = cells.iter().map(|cell| cell.width());
        cells.fold(column.title.len(), usize::max)
    };
    columns.iter().map(widest).collect()
}

/// Two blanks stand between two columns.
fn total(widths: &[usize]) -> usize {
    widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1)
}

fn most_dispensable(columns: &[(&Column, Vec<String>)]) -> Option<usize> {
    let columns = columns.iter().enumerate();
    let most = columns.max_by_key(|(_, (column, _))| column.dispensable)?;
    (most.1.0.dispensable > 0).then_some(most.0)
}

/// Takes from the widest column until all fit.
fn shrink(widths: &mut [usize], width: usize) {
    const LEAST: usize = 4;
    while total(widths) > width {
        match widths.iter_mut().max().filter(|widest| **widest > LEAST) {
            Some(widest) => *widest -= 1,
            None => return,
        }
    }
}

fn line(cells: Vec<String>, widths: &[usize]) -> String {
    let padded = cells.iter().zip(widths).map(|(cell, width)| {
        let cell = terminal::truncate_to_width(cell, *width);
        let blanks = width.saturating_sub(cell.width());
        format!("{cell}{}", " ".repeat(blanks))
    });
    let padded: Vec<String> = padded.collect();
    format!("{}\n", padded.join("  ").trim_end())
}
