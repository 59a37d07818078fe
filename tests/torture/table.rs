//! The run table of the primary: emptied before a run, and read after it.

use super::history::{Row, now};
use super::support::wait::{SOON, eventually};
use super::world::World;
use std::time::{SystemTime, UNIX_EPOCH};

/// Removes the rows of earlier runs.
pub fn clear(world: &World) {
    eventually(SOON, "the run table", || {
        world.query("DELETE FROM pglock_run").is_some()
    });
}

/// Returns the rows in their order, with times of the monotonic clock: the server's clock is that of this machine.
pub fn read(world: &World) -> Vec<Row> {
    let sql = "SELECT id, note, key, coalesce(slot, 0), (mode = 'shared')::int, \
        (extract(epoch FROM started) * 1000000)::bigint, (extract(epoch FROM ended) * 1000000)::bigint, \
        exit_status, outcome FROM pglock_run ORDER BY id";
    let mut rows = None;
    eventually(SOON, "the run table", || {
        rows = world.query(sql);
        rows.is_some()
    });
    let wall_clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    let offset = wall_clock - now();
    let monotonic = |text: &str| Some((text.parse::<u128>().ok()? * 1000).saturating_sub(offset));
    let row = |columns: &Vec<String>| -> Option<Row> {
        let [id, run, key, slot, shared, started, ended, exit_status, outcome] = &columns[..] else {
            return None;
        };
        Some(Row {
            id: id.parse().ok()?,
            run: run.parse().ok()?,
            key: key.clone(),
            slot: slot.parse().ok()?,
            shared: shared == "1",
            started: monotonic(started)?,
            ended: monotonic(ended),
            exit_status: exit_status.parse().ok(),
            outcome: outcome.clone(),
        })
    };
    let rows = rows.unwrap_or_default();
    rows.iter()
        .map(|columns| row(columns).unwrap_or_else(|| panic!("an unknown row: {columns:?}")))
        .collect()
}
