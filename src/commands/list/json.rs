//! The JSON of `pglock list`: a stable interface, described in `docs/protocol.md`.
//!
//! Fields may be added. They are in alphabetical order, so that the output of two versions can be compared.

use crate::inspect::overview::{LockEntry, LockState, Overview};
use serde::Serialize;

/// The locks of a database.
#[derive(Serialize)]
pub struct LockList<'a> {
    /// Whether our role can see everything.
    complete: bool,
    database: &'a str,
    locks: Vec<LockObject<'a>>,
}

/// A lock that a session holds or waits for. What is unknown is null.
#[derive(Serialize)]
struct LockObject<'a> {
    application_name: &'a str,
    backend_pid: Option<i32>,
    behind: &'a [i32],
    client_address: Option<&'a str>,
    connected_since: Option<String>,
    host: Option<&'a str>,
    job: Option<&'a str>,
    /// A string: a JSON number need not have 64 bits.
    key: String,
    mode: Option<&'static str>,
    name: Option<&'a str>,
    pid: Option<u32>,
    scope: Option<&'static str>,
    since: Option<String>,
    slot: Option<usize>,
    slots: Option<u16>,
    state: &'static str,
    user: &'a str,
}

impl<'a> From<&'a Overview> for LockList<'a> {
    fn from(overview: &'a Overview) -> LockList<'a> {
        LockList {
            complete: !overview.is_partial,
            database: &overview.database,
            locks: overview.entries.iter().map(LockObject::from).collect(),
        }
    }
}

impl<'a> From<&'a LockEntry> for LockObject<'a> {
    fn from(entry: &'a LockEntry) -> LockObject<'a> {
        let backend = &entry.backend;
        let run = backend.run_name();
        LockObject {
            application_name: &backend.application_name,
            backend_pid: backend.pid,
            behind: &entry.behind,
            client_address: backend.client_address.as_deref(),
            connected_since: backend.connected.map(|time| time.rfc3339()),
            host: run.map(|run| run.host),
            job: backend.job.as_deref(),
            key: entry.id.to_string(),
            mode: entry.mode.map(|mode| mode.name()),
            name: entry.key.as_ref().map(|key| key.given()),
            pid: run.map(|run| run.pid),
            scope: entry.scope.map(|scope| scope.name()),
            since: entry.since.map(|time| time.rfc3339()),
            slot: entry.slot,
            slots: entry.slots(),
            state: match entry.state {
                LockState::Holding => "holding",
                LockState::Queueing | LockState::Ticketed(_) | LockState::Polling => "waiting",
            },
            user: &backend.user,
        }
    }
}
