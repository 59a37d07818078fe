//! The table of locks that `pglock list` and `pglock evict` print.

use crate::inspect::overview::{LockEntry, LockState};
use crate::inspect::server_time::age;
use crate::ui::table::{self, Column};

const LOCK_COLUMNS: [Column<LockEntry>; 14] = [
    column("KEY", 0, key_and_slot),
    column("NUMBER", 6, number_of_named_key),
    column("STATE", 0, |entry| state(entry).into()),
    column("FOR", 0, held_for),
    column("WHO", 0, |entry| entry.backend.who()),
    column("BACKEND", 1, |entry| text(entry.backend.pid)),
    column("BEHIND", 2, |entry| {
        let pids: Vec<String> = entry.behind.iter().map(i32::to_string).collect();
        pids.join(" ")
    }),
    column("JOB", 3, |entry| text(entry.backend.job.as_ref())),
    column("NOTE", 0, |entry| text(entry.backend.note.as_ref())),
    column("MODE", 4, |entry| text(entry.mode.map(|mode| mode.name()))),
    column("USER", 5, |entry| entry.backend.user.clone()),
    column("CLIENT", 7, |entry| text(entry.backend.client_address.as_ref())),
    column("SCOPE", 8, |entry| text(entry.scope.map(|scope| scope.name()))),
    column("SINCE", 9, |entry| text(entry.since.map(|since| since.rfc3339()))),
];

const fn column(title: &'static str, drop_order: u8, cell: fn(&LockEntry) -> String) -> Column<LockEntry> {
    Column {
        title,
        drop_order,
        shrinks_to: usize::MAX,
        cell,
    }
}

/// Returns the table of these locks for a terminal of this width; without one, with all columns.
pub(super) fn render(entries: &[LockEntry], terminal_width: Option<usize>) -> String {
    table::render(&LOCK_COLUMNS, entries, terminal_width)
}

/// Returns the name, or else the number, with the slot.
fn key_and_slot(entry: &LockEntry) -> String {
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

fn number_of_named_key(entry: &LockEntry) -> String {
    match &entry.key {
        Some(key) if key.given() != entry.id.to_string() => entry.id.to_string(),
        _ => String::new(),
    }
}

/// Returns the state, as the JSON has it, except that a guard and a waiter that polls are shown as such: the job of a
/// guard is being terminated, and one that polls has no place in a queue.
fn state(entry: &LockEntry) -> &'static str {
    match entry.state {
        LockState::Holding if entry.backend.is_guard => "guarding",
        LockState::Holding => "holding",
        LockState::Queueing | LockState::Ticketed(_) => "waiting",
        LockState::Polling => "polling",
    }
}

/// Returns for how long. Of a holder that is no pglock only the session's age is known, which is the most it can be.
fn held_for(entry: &LockEntry) -> String {
    match (entry.since, entry.backend.connected) {
        (Some(since), _) => age(since.ago),
        (None, Some(connected)) if entry.state == LockState::Holding => format!("<{}", age(connected.ago)),
        _ => String::new(),
    }
}

fn text(value: Option<impl ToString>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}
