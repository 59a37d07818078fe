//! The table of runs that `pglock history` prints.

use crate::history::Run;
use crate::inspect::server_time::age;
use crate::ui::table::{self, Column};
use std::time::Duration;

/// On 80 columns all of these fit: only long keys, hosts and programs are shortened.
const RUN_COLUMNS: [Column<Run>; 8] = [
    column("KEY", 0, 8, key_and_slot),
    column("STARTED", 0, usize::MAX, |run| run.started.iso8601_minutes()),
    column("TOOK", 0, usize::MAX, |run| run.took().map_or_else(String::new, age)),
    column("WAITED", 2, usize::MAX, |run| {
        age(Duration::try_from_secs_f64(run.waited).unwrap_or_default())
    }),
    column("EXIT", 0, usize::MAX, exit),
    column("OUTCOME", 0, usize::MAX, |run| run.outcome.clone()),
    column("WHO", 0, 8, |run| format!("{}:{}", run.host, run.pid)),
    column("JOB", 1, 4, |run| run.job.clone()),
];

const fn column(title: &'static str, drop_order: u8, shrinks_to: usize, cell: fn(&Run) -> String) -> Column<Run> {
    Column {
        title,
        drop_order,
        shrinks_to,
        cell,
    }
}

/// Returns the table of these runs for a terminal of this width; without one, in full width.
pub(super) fn render(runs: &[Run], terminal_width: Option<usize>) -> String {
    table::render(&RUN_COLUMNS, runs, terminal_width)
}

fn key_and_slot(run: &Run) -> String {
    match run.slot {
        Some(slot) => format!("{} slot {slot}", run.key),
        None => run.key.clone(),
    }
}

/// Returns the exit status, or else the signal.
fn exit(run: &Run) -> String {
    match (run.exit_status, &run.signal) {
        (Some(status), _) => status.to_string(),
        (None, Some(signal)) => signal.clone(),
        (None, None) => String::new(),
    }
}
