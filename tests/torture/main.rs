//! The lock checker: many pglocks, a nemesis, and a check of what happened.
//!
//! A run is made from a seed: what is asked for and what is done to it, though not when exactly. Without the variables
//! below it takes a few seconds and is a part of `make test`; `make torture` makes longer ones.
//!
//! * `PGLOCK_TORTURE_SECONDS`: for how long. * `PGLOCK_TORTURE_SEED`: from which seed, if not a new one.
//! * `PGLOCK_TORTURE_FAULTS`: which faults only, with commas between them (`none`: none).
//! * `PGLOCK_TORTURE_REPORT`: a file to which the summary is appended.
//!
//! * [`history`]: what happened. [`check`]: whether that was right; `check_tests`: whether the check can tell.
//! * [`world`]: servers, pooler and hosts. [`crowd`]: those who want locks. [`nemesis`]: the faults. [`dice`]: chance.
//! * `job.rs`: the job, a program of its own.

mod check;
mod check_tests;
mod crowd;
mod dice;
mod history;
mod nemesis;
#[allow(dead_code)] // The other tests use the rest of it.
#[path = "../it/support/mod.rs"]
mod support;
mod world;

use check::{Verdict, check};
use crowd::Crowd;
use dice::Dice;
use history::{End, History, Kind};
use nemesis::{Nemesis, is_job};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant, SystemTime};
use support::wait::until;
use world::World;

/// So many want a lock at once.
const WORKERS: usize = 9;
/// How long the last ones may take, when everything is healed.
const SETTLING: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
struct Plan {
    seed: u64,
    seconds: u64,
    kinds: Vec<Kind>,
}

/// "Never twice at once", and the rest.
#[test]
fn the_promises_are_kept_under_faults() {
    let of = |name: &str| std::env::var(format!("PGLOCK_TORTURE_{name}")).ok();
    let clock = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 % 1_000_000;
    let plan = Plan {
        seed: of("SEED").map_or(clock, |seed| seed.parse().unwrap()),
        seconds: of("SECONDS").map_or(12, |seconds| seconds.parse().unwrap()),
        kinds: kinds(of("FAULTS").as_deref()),
    };
    let (summary, verdict) = torture(&plan);
    println!("{summary}");
    if let Some(file) = of("REPORT") {
        let mut report = std::fs::File::options()
            .append(true)
            .create(true)
            .open(file)
            .unwrap();
        std::io::Write::write_all(&mut report, summary.as_bytes()).unwrap();
    }
    if !verdict.violations.is_empty() {
        let smallest = if of("SECONDS").is_some() {
            shrink(plan)
        } else {
            plan
        };
        panic!(
            "{} violations:\n{}\nagain: {}",
            verdict.violations.len(),
            verdict
                .violations
                .iter()
                .take(20)
                .cloned()
                .collect::<Vec<_>>()
                .join("\n"),
            command(&smallest)
        );
    }
}

fn kinds(names: Option<&str>) -> Vec<Kind> {
    match names {
        None => Kind::ALL.to_vec(),
        Some("none") => Vec::new(),
        Some(names) => {
            let kind = |name: &str| Kind::ALL.into_iter().find(|kind| kind.name() == name);
            names
                .split(',')
                .map(|name| kind(name).unwrap_or_else(|| panic!("no fault {name}")))
                .collect()
        }
    }
}

fn command(plan: &Plan) -> String {
    let names: Vec<String> = plan.kinds.iter().map(|kind| kind.name()).collect();
    let names = if names.is_empty() {
        "none".into()
    } else {
        names.join(",")
    };
    format!(
        "make torture SECONDS={} SEED={} FAULTS={names}",
        plan.seconds, plan.seed
    )
}

/// Leaves faults out for as long as there are violations without them. What depends on the moment may come out larger
/// than it could be, but not smaller.
fn shrink(mut plan: Plan) -> Plan {
    plan.seconds = plan.seconds.min(60);
    for kind in Kind::ALL {
        let mut smaller = plan.clone();
        smaller.kinds.retain(|it| *it != kind);
        if smaller.kinds.len() < plan.kinds.len() && !torture(&smaller).1.violations.is_empty() {
            plan = smaller;
        }
    }
    plan
}

/// A run, its summary, and what is to be said of it.
fn torture(plan: &Plan) -> (String, Verdict) {
    println!("{}", command(plan));
    let folder = tempfile::tempdir().unwrap();
    let (world, crowd) = (World::new(), Crowd::new(folder.path()));
    let mut kinds = plan.kinds.clone();
    kinds.retain(|kind| *kind != Kind::Cut || world.has_cables());
    let began = Instant::now();
    let faults = std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (world, crowd, dice) = (&world, &crowd, Dice::new(plan.seed, worker as u64));
            scope.spawn(move || crowd.work(world, worker, dice));
        }
        // Several at once, so that faults meet.
        let nemeses = [0, 1, 2, 3].map(|number| {
            let nemesis = Nemesis {
                world: &world,
                crowd: &crowd,
                dice: Dice::new(plan.seed, (WORKERS + number) as u64),
                kinds: kinds.clone(),
                faults: Vec::new(),
            };
            scope.spawn(|| nemesis.rage())
        });
        until(Duration::from_secs(plan.seconds), || false);
        crowd.call_off();
        nemeses
            .into_iter()
            .flat_map(|nemesis| nemesis.join().unwrap())
            .collect()
    });
    let mut history = History {
        faults,
        ..History::default()
    };
    history.runs = std::mem::take(&mut *crowd.runs.lock().unwrap());
    let orphans = until(SETTLING, || jobs(&crowd).is_empty());
    let took = began.elapsed();
    let stays = History::stays_of(&crowd.history());
    let mut verdict = match stays {
        Ok(stays) => {
            history.stays = stays;
            check(&history)
        }
        Err(violation) => Verdict {
            violations: vec![violation],
            ..Verdict::default()
        },
    };
    if !orphans {
        verdict
            .violations
            .push(format!("jobs are left: {:?}", jobs(&crowd)));
    }
    verdict.violations.extend(world.end());
    (summary(plan, took, &history, &verdict), verdict)
}

/// The jobs that have not ended.
fn jobs(crowd: &Crowd) -> Vec<Pid> {
    let history = crowd.history();
    let entered = history.lines().filter(|line| line.starts_with("enter "));
    let pids =
        entered.filter_map(|line| Some(Pid::from_raw(line.split(' ').nth(3)?.parse().ok()?)));
    pids.filter(|pid| is_job(*pid)).collect()
}

fn summary(plan: &Plan, took: Duration, history: &History, verdict: &Verdict) -> String {
    let mut ends: BTreeMap<String, usize> = BTreeMap::new();
    for run in history.runs.values() {
        let end = match run.end {
            End::Code(code) if code == run.request.status => "as the job".into(),
            End::Code(code) => code.to_string(),
            End::Signal(signal) => format!("signal {signal}"),
            End::Hung => "hung".into(),
        };
        *ends.entry(end).or_default() += 1;
    }
    let mut faults: BTreeMap<String, usize> = BTreeMap::new();
    for fault in &history.faults {
        *faults.entry(fault.kind.name()).or_default() += 1;
    }
    let list = |counts: &BTreeMap<String, usize>| {
        let words: Vec<String> = counts
            .iter()
            .map(|(what, count)| format!("{what} {count}"))
            .collect();
        if words.is_empty() {
            "none".into()
        } else {
            words.join(", ")
        }
    };
    let mut text = String::new();
    let _ = writeln!(
        text,
        "seed {}, {:.0} s: {} runs, {} acquisitions, {} violations\n  ends: {}\n  faults: {}\n  overlaps explained by: {}\n  \
         writes refused by the store: {}",
        plan.seed,
        took.as_secs_f64(),
        history.runs.len(),
        history.stays.len(),
        verdict.violations.len(),
        list(&ends),
        list(&faults),
        list(&verdict.explained),
        verdict.refused
    );
    text
}
