//! The plan of a run, made from a seed: the requests, and the faults.
//!
//! The same seed makes the same requests and the same strikes, each in its order, and each worker and each nemesis has
//! a stream of its own. When exactly they meet depends on the machine: a run can be repeated in kind, not to the
//! instruction. A plan is one line of text, which is also the command that repeats it, and what is kept of a run that
//! failed.

use super::dice::Dice;
use super::request::{Request, brief, contested, patient};
use super::world::HOSTS;

/// The number of workers.
pub const WORKERS: usize = 18;
/// Every so many workers, one wants a lock for seconds, so that what takes seconds can happen to it; the others for a
/// short time.
pub const PATIENT: usize = 6;
/// Several strike at a time, so that faults coincide.
pub const NEMESES: usize = 4;

/// A planned fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strike {
    /// Milliseconds before it.
    pub pause: u64,
    pub kind: Kind,
    /// Selects one of the possible targets.
    pub pick: u64,
    /// Prefers a pglock whose job holds the lock.
    pub is_aimed: bool,
    /// Milliseconds until it is healed, if it can be.
    pub lasts: u64,
}

/// The kinds of faults.
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
    /// SIGTERM to a backend.
    TermBackend,
    /// SIGSTOP to a backend, and SIGCONT.
    StopBackend,
    /// SIGKILL to a backend, whereupon the server ends all sessions and recovers.
    KillBackend,
    /// `pglock evict`, which asks.
    Evict,
    /// `pglock evict --force`, which does not.
    EvictForced,
    /// A client of the pool takes a session's lock and leaves it there; later its session is ended. An aimed one waits
    /// for a lock, and the session that has it is ended.
    Leftover,
    /// Immediate stop and start.
    Crash,
    /// Fast stop and start.
    Restart,
    /// The same, and the pglocks whose jobs run stand still until the server is up: half of the times for less than the
    /// half second for which newcomers leave it alone, else for seconds.
    StalledRestart,
    /// Immediate stop, and promotion of the standby.
    Failover,
    /// Fast stop, promotion of the standby, which has everything, and the old primary becomes the standby.
    Switchover,
    KillPooler,
    /// The forwarding pooler ends, with all its connections, and starts again.
    KillForwarder,
    /// `pg_terminate_backend` of the session that the forwarding pooler lends.
    EndForwarded,
    /// PgBouncer's RECONNECT.
    Reconnect,
    /// SIGKILL to HAProxy, which is started again.
    KillProxy,
    /// HAProxy's `shutdown sessions`.
    CutProxy,
    /// The cable of a client's host is pulled.
    Cut,
    /// The cable of the server and the pooler is pulled.
    CutServer,
    /// A line so slow that messages queue.
    Delay,
    SlowDisk,
    /// All connections of the server are taken.
    Exhaust,
    /// Not planned, but noticed: the machine stood still.
    Stall,
}

impl Kind {
    /// The kinds that can be planned, and how often. What stops everything is rare, or nothing else would happen.
    pub const ALL: [(Kind, u64); 29] = [
        (Kind::KillPglock, 20),
        (Kind::StopPglock, 16),
        (Kind::TermPglock, 20),
        (Kind::KillJob, 20),
        (Kind::StopJob, 16),
        (Kind::TermJob, 20),
        (Kind::EndSession, 20),
        (Kind::TermBackend, 12),
        (Kind::StopBackend, 8),
        (Kind::KillBackend, 2),
        (Kind::Evict, 12),
        (Kind::EvictForced, 4),
        (Kind::Leftover, 8),
        (Kind::Crash, 2),
        (Kind::Restart, 2),
        (Kind::StalledRestart, 2),
        (Kind::Failover, 1),
        (Kind::Switchover, 1),
        (Kind::KillPooler, 5),
        (Kind::KillForwarder, 6),
        (Kind::EndForwarded, 6),
        (Kind::Reconnect, 12),
        (Kind::KillProxy, 6),
        (Kind::CutProxy, 6),
        (Kind::Cut, 10),
        (Kind::CutServer, 2),
        (Kind::Delay, 10),
        (Kind::SlowDisk, 10),
        (Kind::Exhaust, 3),
    ];

    pub fn all() -> Vec<Kind> {
        Kind::ALL.map(|(kind, _)| kind).to_vec()
    }

    pub fn name(self) -> String {
        format!("{self:?}")
    }

    /// Returns whether it needs hosts with cables.
    pub fn needs_cables(self) -> bool {
        matches!(self, Kind::Cut | Kind::CutServer | Kind::Delay)
    }

    /// Returns the shortest and the longest duration in milliseconds; every other cut is short.
    fn lasts(self, is_short: bool) -> (u64, u64) {
        match self {
            Kind::StopPglock | Kind::StopJob | Kind::StopBackend => (20, 4000),
            Kind::Cut | Kind::CutServer if is_short => (20, 500),
            Kind::Cut => (4000, 14_000),
            Kind::CutServer => (500, 5000),
            Kind::Delay => (500, 4000),
            Kind::StalledRestart if is_short => (50, 200),
            Kind::StalledRestart => (1000, 2500),
            Kind::Leftover => (100, 2500),
            Kind::SlowDisk => (200, 2000),
            Kind::Exhaust => (100, 1500),
            _ => (0, 1),
        }
    }
}

/// The parameters of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub seed: u64,
    pub seconds: u64,
    /// The number of workers.
    pub workers: usize,
    /// Every so many workers, one is patient.
    pub patient: usize,
    pub nemeses: usize,
    /// How many times longer the pauses between strikes are, for more acquisitions per fault.
    pub calm: u64,
    /// Everybody wants the keys of the patient workers, whose jobs only KILL ends: for what happens in the second in
    /// which such a job runs without its lock.
    pub is_contested: bool,
    pub kinds: Vec<Kind>,
}

impl Plan {
    pub fn new(seed: u64, seconds: u64) -> Plan {
        Plan {
            seed,
            seconds,
            workers: WORKERS,
            patient: PATIENT,
            nemeses: NEMESES,
            calm: 1,
            is_contested: false,
            kinds: Kind::all(),
        }
    }

    /// Parses a line such as `SEED=1 SECONDS=60 WORKERS=4 FAULTS=Cut,Crash`, whose omitted parts are those of `self`.
    pub fn with(mut self, line: &str) -> Result<Plan, String> {
        for part in line.split_whitespace() {
            let (name, value) = part.split_once('=').ok_or(format!("no value: {part}"))?;
            let number = || value.parse::<u64>().map_err(|_| format!("no number: {part}"));
            match name {
                "SEED" => self.seed = number()?,
                "SECONDS" => self.seconds = number()?,
                "WORKERS" => self.workers = number()? as usize,
                "PATIENT" => self.patient = number()?.max(1) as usize,
                "NEMESES" => self.nemeses = number()? as usize,
                "CALM" => self.calm = number()?,
                "CONTESTED" => self.is_contested = number()? > 0,
                "FAULTS" => self.kinds = kinds(value)?,
                _ => return Err(format!("unknown part of a plan: {part}")),
            }
        }
        Ok(self)
    }

    /// Returns the line that [`Plan::with`] parses.
    pub fn line(&self) -> String {
        let names: Vec<String> = self.kinds.iter().map(|kind| kind.name()).collect();
        let faults = if names.is_empty() {
            "none".into()
        } else {
            names.join(",")
        };
        let contested = if self.is_contested { "CONTESTED=1 " } else { "" };
        format!(
            "SEED={} SECONDS={} WORKERS={} PATIENT={} NEMESES={} CALM={} {contested}FAULTS={faults}",
            self.seed, self.seconds, self.workers, self.patient, self.nemeses, self.calm
        )
    }

    /// Returns the requests of a worker.
    pub fn requests(&self, worker: usize) -> impl Iterator<Item = Request> + use<> {
        let mut dice = Dice::new(self.seed, worker as u64);
        let longest = (self.seconds * 250).clamp(1500, 16_000);
        let (workers, each, crowd) = (self.workers, self.patient, (PATIENT / self.patient).max(1) as u64);
        let (is_patient, is_contested) = (worker % each == each - 1, self.is_contested);
        let host = if is_patient { worker / each } else { worker } % HOSTS;
        std::iter::repeat_with(move || match is_patient {
            _ if is_contested => contested(&mut dice, host, is_patient),
            true => patient(&mut dice, host, longest, crowd),
            false => brief(&mut dice, host, workers),
        })
    }

    /// Returns the strikes of a nemesis.
    pub fn strikes(&self, nemesis: usize) -> impl Iterator<Item = Strike> + use<> {
        let mut dice = Dice::new(self.seed, 1_000_000 + nemesis as u64);
        let chances = Kind::ALL.into_iter();
        let chances: Vec<(Kind, u64)> = chances.filter(|(kind, _)| self.kinds.contains(kind)).collect();
        let (calm, is_contested) = (self.calm, self.is_contested);
        std::iter::from_fn(move || {
            let drawn = (!chances.is_empty()).then(|| strike(&mut dice, &chances, calm));
            drawn.map(|strike| Strike {
                is_aimed: strike.is_aimed || is_contested,
                ..strike
            })
        })
    }
}

fn kinds(names: &str) -> Result<Vec<Kind>, String> {
    let kind = |name: &str| {
        let found = Kind::all().into_iter().find(|kind| kind.name() == name);
        found.ok_or(format!("no fault {name}"))
    };
    match names {
        "none" => Ok(Vec::new()),
        "all" => Ok(Kind::all()),
        names => names.split(',').map(kind).collect(),
    }
}

/// Draws a strike, always with the same number of draws.
fn strike(dice: &mut Dice, chances: &[(Kind, u64)], calm: u64) -> Strike {
    let all: u64 = chances.iter().map(|(_, chance)| chance).sum();
    let mut drawn = dice.number(0, all);
    let mut kind = chances[0].0;
    for &(one, chance) in chances {
        kind = one;
        if drawn < chance {
            break;
        }
        drawn -= chance;
    }
    let (low, high) = kind.lasts(dice.percent(50));
    Strike {
        pause: dice.number(20, 300) * calm,
        kind,
        pick: dice.number(0, u64::from(u32::MAX)),
        is_aimed: dice.percent(50),
        lasts: dice.number(low, high),
    }
}

#[cfg(test)]
use super::request::{LONG_KEYS, Road};

#[test]
fn the_same_seed_makes_the_same_requests_and_strikes() {
    let of = |seed| {
        let plan = Plan::new(seed, 60);
        let requests: Vec<Request> = (0..plan.workers)
            .flat_map(|worker| plan.requests(worker).take(200))
            .collect();
        let strikes: Vec<Strike> = (0..plan.nemeses)
            .flat_map(|nemesis| plan.strikes(nemesis).take(400))
            .collect();
        (requests, strikes)
    };
    let (requests, strikes) = of(7);
    assert_eq!((&requests, &strikes), (&of(7).0, &of(7).1));
    assert_ne!(requests, of(8).0);
    assert_ne!(strikes, of(8).1);
    // Every kind of fault and request occurs.
    for kind in Kind::all() {
        assert!(strikes.iter().any(|strike| strike.kind == kind), "{kind:?}");
    }
    let modes: [fn(&Request) -> bool; 14] = [
        |request| request.shared,
        |request| request.road == Road::PgDog && request.token,
        |request| request.road == Road::Proxy && request.fair,
        |request| request.once_per.is_some() && request.is_pooled() && request.wait.is_some(),
        |request| request.once_per.is_some() && request.road == Road::Direct && request.wait.is_none(),
        |request| request.record && request.once_per.is_none() && request.keys.len() > 1,
        |request| request.slots.is_some() && request.wait.is_none(),
        |request| request.slots.is_some() && request.is_pooled(),
        |request| request.fair,
        |request| request.keys.len() > 1 && request.is_pooled(),
        |request| request.keys.len() > 1 && request.road == Road::Direct,
        |request| request.is_forwarded() && request.wait.is_none(),
        |request| request.is_forwarded() && request.wait.is_some() && LONG_KEYS.contains(&request.keys[0]),
        |request| request.wait.is_none(),
    ];
    for (number, mode) in modes.iter().enumerate() {
        assert!(requests.iter().any(mode), "mode {number}");
    }
}

#[test]
fn a_plan_is_a_line_of_text() {
    let plan = Plan::new(3, 60).with("WORKERS=4 FAULTS=Cut,Crash").unwrap();
    assert_eq!(plan.kinds, [Kind::Cut, Kind::Crash]);
    let calm = plan.clone().with("CALM=5").unwrap();
    let contested = plan.clone().with("CONTESTED=1").unwrap();
    assert!(contested.strikes(0).take(20).all(|strike| strike.is_aimed));
    assert_eq!(Plan::new(0, 0).with(&contested.line()), Ok(contested));
    let pauses = |plan: &Plan| plan.strikes(0).take(20).map(|strike| strike.pause).sum::<u64>();
    assert_eq!(pauses(&calm), 5 * pauses(&plan));
    assert_eq!(Plan::new(0, 0).with(&calm.line()), Ok(calm));
    assert_eq!(Plan::new(0, 0).with(&plan.line()), Ok(plan));
    let none = Plan::new(3, 60).with("FAULTS=none").unwrap();
    assert_eq!(none.strikes(0).next(), None);
    assert_eq!(Plan::new(0, 0).with(&none.line()), Ok(none));
    for wrong in ["SEED", "SEED=x", "FAULTS=Nothing", "SPEED=1"] {
        assert!(Plan::new(0, 0).with(wrong).is_err(), "{wrong}");
    }
}
