//! The JSON of `pglock list`: a stable interface, described in `docs/protocol.md`.
//!
//! Fields may be added. They are in alphabetical order, so that the output of two versions can be compared.

use crate::inspect::overview::{LockEntry, LockState, Overview};
use serde::Serialize;

/// The locks of a database.
#[derive(Serialize)]
pub(super) struct LockList<'a> {
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
    guard: bool,
    host: Option<&'a str>,
    instance: Option<&'a str>,
    job: Option<&'a str>,
    /// A string: a JSON number need not have 64 bits.
    key: String,
    leftover: bool,
    mode: Option<&'static str>,
    name: Option<&'a str>,
    note: Option<&'a str>,
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
            complete: !(overview.is_partial || overview.is_untracked),
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
            guard: backend.is_guard,
            host: run.map(|run| run.host),
            instance: run.and_then(|run| run.instance),
            job: backend.job.as_deref(),
            key: entry.id.to_string(),
            leftover: backend.is_leftover,
            mode: entry.mode.map(|mode| mode.name()),
            name: entry.key.as_ref().map(|key| key.given()),
            note: backend.note.as_deref(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::backend::Backend;
    use crate::inspect::server_time::ServerTime;
    use crate::key::{Key, KeyId};
    use crate::lock::{Mode, Scope};
    use crate::protocol::document;
    use serde_json::{Value, json};

    fn overview() -> Overview {
        let since = ServerTime::new(1_795_657_853.4, 1_795_657_860.0);
        let entry = LockEntry {
            id: KeyId::Bigint(6111399565520850680),
            base: KeyId::Bigint(6111399565520850680),
            key: Some(Key::parse("backup").expect("a name")),
            slot: None,
            mode: Some(Mode::Exclusive),
            scope: Some(Scope::Session),
            state: LockState::Holding,
            since: Some(since),
            behind: Vec::new(),
            backend: Backend {
                pid: Some(17249),
                user: "postgres".into(),
                connected: Some(since),
                since: Some(since),
                job: Some("sh".into()),
                ..Backend::named("pglock:backup web1~k3x9qa:17240")
            },
        };
        Overview {
            database: "postgres".into(),
            role: "postgres".into(),
            entries: vec![entry],
            is_partial: false,
            is_untracked: false,
        }
    }

    #[test]
    fn the_documented_json_is_true() {
        let json = serde_json::to_string_pretty(&LockList::from(&overview())).expect("no error");
        assert_eq!(json + "\n", document::code_block("### Example of pglock list --json"));
    }

    #[test]
    fn every_key_is_documented_in_order() {
        let value = serde_json::to_value(LockList::from(&overview())).expect("no error");
        let keys = |value: &Value| -> Vec<String> {
            let object = value.as_object().expect("an object");
            object.keys().cloned().collect()
        };
        let expected = [keys(&value), keys(&value["locks"][0])].concat();
        let rows = document::rows("## pglock list --json");
        let documented: Vec<String> = rows.iter().map(|row| row[0].clone()).collect();
        assert_eq!(documented, expected);
    }

    /// What earlier versions printed for [`the_json_is_what_it_always_was`], a `Value`, whose keys are in alphabetical
    /// order, and the keys that were added.
    fn printed_before() -> Value {
        json!({
            "database": "postgres",
            "complete": false,
            "locks": [{
                "key": "1,-2",
                "name": null,
                "slot": 3,
                "slots": 4,
                "mode": null,
                "scope": null,
                "state": "waiting",
                "since": null,
                "behind": [17249, 7],
                "host": "h",
                "instance": null,
                "leftover": false,
                "pid": 1,
                "job": null,
                "note": null,
                "user": "\"ann\"",
                "client_address": "::1",
                "backend_pid": null,
                "connected_since": null,
                "guard": false,
                "application_name": "pglock:a\\/\u{1}\u{9375} slots=4 h:1",
            }],
        })
    }

    #[test]
    fn the_json_is_what_it_always_was() {
        let mut overview = overview();
        let session = LockEntry {
            id: KeyId::IntPair(1, -2),
            key: None,
            slot: Some(3),
            mode: None,
            scope: None,
            state: LockState::Polling,
            since: None,
            behind: vec![17249, 7],
            backend: Backend {
                pid: None,
                user: "\"ann\"".into(),
                client_address: Some("::1".into()),
                ..Backend::named("pglock:a\\/\u{1}\u{9375} slots=4 h:1")
            },
            ..overview.entries[0].clone()
        };
        overview.entries = vec![session];
        overview.is_partial = true;
        let before = printed_before();
        let list = LockList::from(&overview);
        assert_eq!(
            serde_json::to_string_pretty(&list).expect("no error"),
            format!("{before:#}")
        );
        assert_eq!(serde_json::to_string(&list).expect("no error"), before.to_string());
    }
}
