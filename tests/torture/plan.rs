//! The plan of a run, made from a seed: the requests, and the faults.
//!
//! The same seed makes the same requests and the same strikes, each in its order, and each worker and each nemesis has
//! a stream of its own. When exactly they meet depends on the machine: a run can be repeated in kind, not to the
//! instruction. A plan is one line of text, which is also the command that repeats it, and what is kept of a run that
//! failed.

use super::dice::Dice;
use super::world::HOSTS;

/// Workers that want a lock for a short time.
pub const BRIEF_WORKERS: usize = 15;
/// Workers that want a lock for seconds, so that what takes seconds can happen to them.
pub const PATIENT_WORKERS: usize = 3;
/// Several strike at a time, so that faults coincide.
pub const NEMESES: usize = 4;

/// The keys of the brief workers.
const KEYS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
/// The keys of the patient workers, of which there are more.
const LONG_KEYS: [&str; 2] = ["long", "longer"];
/// The key with slots, and their number.
const SLOTS: (&str, u16) = ("slots", 3);

/// How a pglock reaches the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Road {
    #[default]
    Direct,
    /// Through PgBouncer.
    Pooler,
    /// Through a pooler that lends the session that its first client has opened.
    Forwarder,
}

/// The options of a pglock and of its job.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    pub keys: Vec<&'static str>,
    pub shared: bool,
    pub slots: Option<u16>,
    pub fair: bool,
    pub token: bool,
    pub road: Road,
    /// Seconds; `None` for `--no-wait`.
    pub wait: Option<u64>,
    /// Milliseconds.
    pub life: u64,
    pub min_hold: u64,
    /// The job's own exit status.
    pub status: i32,
    pub stubborn: bool,
    /// The number of the host that it runs on.
    pub host: usize,
}

impl Request {
    /// Returns whether it goes through PgBouncer.
    pub fn is_pooled(&self) -> bool {
        self.road == Road::Pooler
    }

    /// Returns whether it goes through the pooler that lends its first client's session.
    pub fn is_forwarded(&self) -> bool {
        self.road == Road::Forwarder
    }
}

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
    /// A client of the pool takes a session's lock and leaves it there; later its session is ended.
    Leftover,
    /// Immediate stop and start.
    Crash,
    Failover,
    KillPooler,
    /// The forwarding pooler ends, with all its connections, and starts again.
    KillForwarder,
    /// `pg_terminate_backend` of the session that the forwarding pooler lends.
    EndForwarded,
    /// PgBouncer's RECONNECT.
    Reconnect,
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
    pub const ALL: [(Kind, u64); 24] = [
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
        (Kind::Failover, 1),
        (Kind::KillPooler, 5),
        (Kind::KillForwarder, 6),
        (Kind::EndForwarded, 6),
        (Kind::Reconnect, 12),
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
    pub nemeses: usize,
    pub kinds: Vec<Kind>,
}

impl Plan {
    pub fn new(seed: u64, seconds: u64) -> Plan {
        Plan {
            seed,
            seconds,
            workers: BRIEF_WORKERS + PATIENT_WORKERS,
            nemeses: NEMESES,
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
                "NEMESES" => self.nemeses = number()? as usize,
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
        format!(
            "SEED={} SECONDS={} WORKERS={} NEMESES={} FAULTS={faults}",
            self.seed, self.seconds, self.workers, self.nemeses
        )
    }

    /// Returns the requests of a worker. Every sixth worker is a patient one.
    pub fn requests(&self, worker: usize) -> impl Iterator<Item = Request> + use<> {
        let mut dice = Dice::new(self.seed, worker as u64);
        let longest = (self.seconds * 250).clamp(1500, 16_000);
        let each = (BRIEF_WORKERS + PATIENT_WORKERS) / PATIENT_WORKERS;
        std::iter::repeat_with(move || {
            if worker % each == each - 1 {
                patient(&mut dice, worker / each % HOSTS, longest)
            } else {
                brief(&mut dice, worker % HOSTS)
            }
        })
    }

    /// Returns the strikes of a nemesis.
    pub fn strikes(&self, nemesis: usize) -> impl Iterator<Item = Strike> + use<> {
        let mut dice = Dice::new(self.seed, 1_000_000 + nemesis as u64);
        let chances = Kind::ALL.into_iter();
        let chances: Vec<(Kind, u64)> = chances.filter(|(kind, _)| self.kinds.contains(kind)).collect();
        std::iter::from_fn(move || (!chances.is_empty()).then(|| strike(&mut dice, &chances)))
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
fn strike(dice: &mut Dice, chances: &[(Kind, u64)]) -> Strike {
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
        pause: dice.number(20, 300),
        kind,
        pick: dice.number(0, u64::from(u32::MAX)),
        is_aimed: dice.percent(50),
        lasts: dice.number(low, high),
    }
}

/// Draws a request for a short time.
fn brief(dice: &mut Dice, host: usize) -> Request {
    let mut request = Request {
        keys: vec![dice.one_of(&KEYS)],
        token: dice.percent(80),
        road: road(dice, 30, 15),
        wait: dice.percent(85).then(|| dice.number(1, 8)),
        life: dice.number(0, 12),
        status: dice.one_of(&[0, 0, 3]),
        stubborn: dice.percent(10),
        host,
        ..Request::default()
    };
    if dice.percent(2) {
        request.life = dice.number(100, 800);
    }
    if dice.percent(5) {
        request.min_hold = dice.number(10, 100);
    }
    match dice.number(0, 100) {
        0..20 => request.shared = true,
        20..35 => {
            request.keys = vec![SLOTS.0];
            request.slots = Some(SLOTS.1);
        }
        35..50 if request.wait.is_some() && request.road == Road::Direct => request.fair = true,
        50..60 => request.keys.push(dice.one_of(&KEYS)),
        // The key itself is slot 0.
        60..62 => request.keys = vec![SLOTS.0],
        // Newcomers, which do not know who held the lock before: the loser of a session must come before them, and a
        // session that is lent must not let them in.
        drawn @ 62.. if drawn < 72 || request.is_forwarded() => {
            request.keys = vec![dice.one_of(&LONG_KEYS)];
            request.wait = None;
        }
        _ => {}
    }
    without_token_if_forwarded(&mut request);
    request.keys.sort_unstable();
    request.keys.dedup();
    request
}

/// Draws a request for seconds. Most want the same key, and many hold it for longer than a server waits for a silent
/// client.
fn patient(dice: &mut Dice, host: usize, longest: u64) -> Request {
    let life = if dice.percent(60) {
        dice.number(longest * 2 / 3, longest)
    } else {
        dice.number(100, longest / 3)
    };
    let mut request = Request {
        keys: vec![LONG_KEYS[usize::from(dice.percent(25))]],
        token: true,
        road: road(dice, 35, 20),
        wait: Some(dice.number(longest / 1500, longest / 600)),
        life,
        status: dice.one_of(&[0, 3]),
        stubborn: dice.percent(40),
        shared: dice.percent(10),
        host,
        ..Request::default()
    };
    without_token_if_forwarded(&mut request);
    request
}

/// Draws a road: PgBouncer and the forwarding pooler with these chances.
fn road(dice: &mut Dice, pooler: u64, forwarder: u64) -> Road {
    match dice.number(0, 100) {
        drawn if drawn < pooler => Road::Pooler,
        drawn if drawn < pooler + forwarder => Road::Forwarder,
        _ => Road::Direct,
    }
}

/// A token takes a second session while the transaction of the lock is open, and the forwarding pooler has only one.
fn without_token_if_forwarded(request: &mut Request) {
    request.token &= !request.is_forwarded();
}

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
    let modes: [fn(&Request) -> bool; 9] = [
        |request| request.shared,
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
    assert_eq!(Plan::new(0, 0).with(&plan.line()), Ok(plan));
    let none = Plan::new(3, 60).with("FAULTS=none").unwrap();
    assert_eq!(none.strikes(0).next(), None);
    assert_eq!(Plan::new(0, 0).with(&none.line()), Ok(none));
    for wrong in ["SEED", "SEED=x", "FAULTS=Nothing", "SPEED=1"] {
        assert!(Plan::new(0, 0).with(wrong).is_err(), "{wrong}");
    }
}
