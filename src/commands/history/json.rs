//! The JSON of `pglock history`: a stable interface, described in `docs/history.md`.
//!
//! Fields may be added. They are in alphabetical order, so that the output of two versions can be compared.

use crate::history::Run;
use crate::outcome::{ExitCode, Failure};
use serde::Serialize;

/// The runs, the newest first.
#[derive(Serialize)]
struct RunList<'a> {
    runs: Vec<RunObject<'a>>,
}

/// A run. What is unknown, or not there, is null.
#[derive(Serialize)]
struct RunObject<'a> {
    ended: Option<String>,
    exit_status: Option<i32>,
    host: &'a str,
    job: &'a str,
    key: &'a str,
    mode: &'a str,
    note: Option<&'a str>,
    /// A string: a JSON number need not have 64 bits.
    number: &'a str,
    outcome: &'a str,
    pid: i32,
    signal: Option<&'a str>,
    slot: Option<i32>,
    started: String,
    token: Option<&'a str>,
    waited: f64,
}

/// Returns the runs as a JSON object.
///
/// # Errors
/// None: the object consists of strings, numbers and nulls.
pub(super) fn render(runs: &[Run]) -> Result<String, Failure> {
    let list = RunList {
        runs: runs.iter().map(RunObject::from).collect(),
    };
    let json = serde_json::to_string_pretty(&list).map_err(|error| Failure::new(ExitCode::Internal, error))?;
    Ok(format!("{json}\n"))
}

impl<'a> From<&'a Run> for RunObject<'a> {
    fn from(run: &'a Run) -> RunObject<'a> {
        RunObject {
            ended: run.ended.map(|time| time.rfc3339()),
            exit_status: run.exit_status,
            host: &run.host,
            job: &run.job,
            key: &run.key,
            mode: &run.mode,
            note: run.note.as_deref(),
            number: &run.number,
            outcome: &run.outcome,
            pid: run.pid,
            signal: run.signal.as_deref(),
            slot: run.slot,
            started: run.started.rfc3339(),
            token: run.token.as_deref(),
            waited: run.waited,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::server_time::ServerTime;
    use crate::protocol::document;
    use serde_json::Value;

    fn run() -> Run {
        let now = 1_795_661_700.0;
        Run {
            key: "nightly".into(),
            number: "3043134503785307926".into(),
            mode: "exclusive".into(),
            slot: None,
            host: "web1".into(),
            pid: 17240,
            job: "/usr/local/bin/nightly".into(),
            note: None,
            token: None,
            waited: 0.25,
            started: ServerTime::new(1_795_657_853.9, now),
            ended: Some(ServerTime::new(1_795_657_912.1, now)),
            exit_status: Some(0),
            signal: None,
            outcome: "ok".into(),
        }
    }

    #[test]
    fn the_documented_json_is_true() {
        let json = render(&[run()]).expect("no error");
        assert_eq!(json, document::code_block("### Example of pglock history --json"));
    }

    #[test]
    fn every_key_is_documented_in_order() {
        let value = serde_json::to_value(RunObject::from(&run())).expect("no error");
        let value: &Value = &value;
        let keys: Vec<&String> = value.as_object().expect("an object").keys().collect();
        let rows = document::rows("## pglock history --json");
        let documented: Vec<&String> = rows.iter().map(|row| &row[0]).collect();
        assert_eq!(documented, keys);
    }
}
