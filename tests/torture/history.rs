//! What happened: the runs of pglock, the stays of their jobs under the lock, and the faults that were injected.
//!
//! All times are nanoseconds of the monotonic clock, which the processes of a machine share.

use nix::time::{ClockId, clock_gettime};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The time.
pub fn now() -> u128 {
    let time = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap());
    time.as_nanos()
}

/// What a pglock was asked for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub keys: Vec<&'static str>,
    pub shared: bool,
    pub slots: Option<u16>,
    pub fair: bool,
    pub token: bool,
    /// Through the pooler.
    pub pooled: bool,
    /// Seconds; `None` for one try.
    pub wait: Option<f64>,
    /// Milliseconds.
    pub life: u64,
    pub min_hold: u64,
    /// The job's own exit status.
    pub status: i32,
    pub stubborn: bool,
    /// Which host it runs on.
    pub host: usize,
}

/// How a pglock ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Code(i32),
    Signal(i32),
    /// It had not ended long after it had to.
    Hung,
}

/// A pglock, from start to end.
#[derive(Clone, Debug)]
pub struct Run {
    pub request: Request,
    pub began: u128,
    pub ended: u128,
    pub end: End,
    pub stderr: String,
}

/// A job, from its first line to its last.
#[derive(Clone, Debug, Default)]
pub struct Stay {
    pub run: usize,
    pub pid: i32,
    pub entered: u128,
    /// Its last sign of life.
    pub last: u128,
    /// It has said that it leaves; otherwise it was killed, after its last line.
    pub left: bool,
    pub slot: Option<u16>,
    pub token: Option<String>,
    /// Its writes to the store, and whether they were accepted.
    pub writes: Vec<(u128, bool)>,
}

/// What the nemesis can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    KillPglock,
    StopPglock,
    TermPglock,
    KillJob,
    StopJob,
    TermJob,
    /// `pg_terminate_backend`.
    EndSession,
    Evict,
    /// SIGKILL of one process of the server, which ends all sessions.
    KillBackend,
    /// Immediate stop and start.
    Crash,
    Failover,
    KillPooler,
    /// PgBouncer's RECONNECT.
    Reconnect,
    /// The cable of a host is pulled for a while; a short while is a delay.
    Cut,
    SlowDisk,
    /// All connections of the server are taken.
    Exhaust,
}

impl Kind {
    pub const ALL: [Kind; 16] = [
        Kind::KillPglock,
        Kind::StopPglock,
        Kind::TermPglock,
        Kind::KillJob,
        Kind::StopJob,
        Kind::TermJob,
        Kind::EndSession,
        Kind::Evict,
        Kind::KillBackend,
        Kind::Crash,
        Kind::Failover,
        Kind::KillPooler,
        Kind::Reconnect,
        Kind::Cut,
        Kind::SlowDisk,
        Kind::Exhaust,
    ];

    pub fn name(self) -> String {
        format!("{self:?}")
    }
}

/// Whom a fault can have met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Run(usize),
    Host(usize),
    Key(&'static str),
    Pooled,
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

/// Everything, to be checked.
#[derive(Default)]
pub struct History {
    /// By their numbers.
    pub runs: BTreeMap<usize, Run>,
    pub stays: Vec<Stay>,
    pub faults: Vec<Fault>,
}

impl History {
    /// The stays that the jobs' lines tell of. A line that cannot be is told in the error.
    pub fn stays_of(text: &str) -> Result<Vec<Stay>, String> {
        let mut stays: BTreeMap<usize, Stay> = BTreeMap::new();
        let mut twice = BTreeSet::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let bad = || format!("a line that is not one: {line:?}");
            let (Some(at), Some(run)) = (
                words.get(1).and_then(|at| at.parse().ok()),
                words.get(2).and_then(|run| run.parse().ok()),
            ) else {
                return Err(bad());
            };
            let stay = stays.entry(run).or_default();
            stay.last = at;
            match (words[0], &words[3..]) {
                ("enter", [pid, slot, token]) => {
                    if stay.entered > 0 {
                        twice.insert(run);
                    }
                    stay.run = run;
                    stay.entered = at;
                    stay.pid = pid.parse().map_err(|_| bad())?;
                    stay.slot = slot.parse().ok();
                    stay.token = (*token != "-").then(|| (*token).to_owned());
                }
                ("written", _) => stay.writes.push((at, true)),
                ("refused", _) => stay.writes.push((at, false)),
                ("leave", _) => stay.left = true,
                ("alive", _) => {}
                _ => return Err(bad()),
            }
        }
        match twice.first() {
            Some(run) => Err(format!("run {run} has started its job twice")),
            None => Ok(stays.into_values().collect()),
        }
    }
}
