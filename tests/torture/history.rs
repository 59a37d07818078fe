//! What happened: the runs of pglock, the times of their jobs under the lock, and the injected faults.
//!
//! All times are nanoseconds of the monotonic clock, which the processes of a machine share.

use super::plan::Kind;
use super::request::Request;
use nix::time::{ClockId, clock_gettime};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Returns the time.
pub fn now() -> u128 {
    let time = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap());
    time.as_nanos()
}

/// How a pglock ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Code(i32),
    Signal(i32),
    /// It had not exited long after it should have.
    Hung,
}

/// A pglock, from start to end.
#[derive(Clone, Debug)]
pub struct Run {
    pub request: Request,
    pub pid: i32,
    pub began: u128,
    pub ended: u128,
    pub end: End,
    pub stderr: String,
}

impl Run {
    /// Returns whether its job was not started because the key had succeeded within the interval.
    pub fn was_not_due(&self) -> bool {
        self.end == End::Code(75) && self.stderr.contains(" last succeeded ")
    }
}

/// A job, from its first line to its last.
#[derive(Clone, Debug, Default)]
pub struct Stay {
    pub run: usize,
    pub pid: i32,
    pub entered: u128,
    /// Its last line.
    pub last: u128,
    /// It recorded that it leaves; otherwise it was killed after its last line.
    pub left: bool,
    /// The status with which it then exited; `None` if TERM ended it.
    pub status: Option<i32>,
    pub slot: Option<u16>,
    pub token: Option<String>,
    pub writes: Vec<Write>,
}

/// What the store did with a job's write. The time was taken while the store was locked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub at: u128,
    pub key: String,
    pub accepted: bool,
}

/// A row of the run table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub id: i64,
    /// From its note.
    pub run: usize,
    pub key: String,
    pub slot: u16,
    pub shared: bool,
    pub started: u128,
    pub ended: Option<u128>,
    pub exit_status: Option<i32>,
    pub outcome: String,
}

/// What a fault can have hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Run(usize),
    Host(usize),
    Key(&'static str),
    Pooled,
    Forwarded,
    Proxied,
    All,
}

/// Something that the nemesis did.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub kind: Kind,
    pub target: Target,
    pub began: u128,
    pub ended: u128,
}

/// Everything that is to be checked.
#[derive(Default)]
pub struct History {
    /// By their numbers.
    pub runs: BTreeMap<usize, Run>,
    pub stays: Vec<Stay>,
    pub faults: Vec<Fault>,
    /// The run table at the end.
    pub rows: Vec<Row>,
}

impl History {
    /// Returns the stays in the jobs' lines, or an error that quotes an impossible line.
    pub fn stays_from(text: &str) -> Result<Vec<Stay>, String> {
        let mut stays: BTreeMap<usize, Stay> = BTreeMap::new();
        let mut twice = BTreeSet::new();
        for line in text.lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            let bad = || format!("an unknown line: {line:?}");
            let number = |index: usize| fields.get(index).and_then(|field| field.parse().ok());
            let (Some(at), Some(run)) = (number(1), number(2)) else {
                return Err(bad());
            };
            let stay = stays.entry(run as usize).or_default();
            stay.last = stay.last.max(at);
            match (fields[0], &fields[3..]) {
                ("enter", [pid, slot, token]) => {
                    if stay.entered > 0 {
                        twice.insert(run);
                    }
                    stay.run = run as usize;
                    stay.entered = at;
                    stay.pid = pid.parse().map_err(|_| bad())?;
                    stay.slot = slot.parse().ok();
                    stay.token = (*token != "-").then(|| (*token).to_owned());
                }
                (event @ ("written" | "refused"), [key]) => stay.writes.push(Write {
                    at,
                    key: (*key).to_owned(),
                    accepted: event == "written",
                }),
                ("leave", [status]) => {
                    stay.left = true;
                    stay.status = status.parse().ok();
                }
                ("alive", []) => {}
                _ => return Err(bad()),
            }
        }
        match twice.first() {
            Some(run) => Err(format!("run {run} has started its job twice")),
            None => Ok(stays.into_values().collect()),
        }
    }
}
