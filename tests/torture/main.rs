//! The lock checker: many pglocks, a nemesis that injects faults, and a check of what happened.
//!
//! A run is made from a plan, and the plan from a seed: the requests and the faults, though not when exactly they meet.
//! Without the variables below it takes seconds and is part of `make test`; `make torture` makes longer runs.
//!
//! * `PGLOCK_TORTURE`: the plan, as in `SEED=1 SECONDS=600 FAULTS=Cut,Crash WORKERS=4`; the rest has its defaults.
//! * `PGLOCK_TORTURE_SEEDS`: the number of runs, with this seed and those that follow it.
//! * `PGLOCK_TORTURE_SHRINK`: shrinks a plan that failed, which takes many times as long as the plan.
//! * `PGLOCK_TORTURE_REPORT`: a file to which a line for each run is appended, with `PGLOCK_TORTURE_COMMIT`.
//!   `totals.awk` adds them up.
//!
//! [`plan`] and [`request`]: what is to happen. [`world`]: servers, poolers, proxy and hosts. [`crowd`]: the clients
//! that want locks. [`nemesis`]: the faults. [`history`]: what happened, and [`table`] what pglock has recorded.
//! [`check`]: whether that was right; `check_tests` and [`lies`]: whether the check notices. [`shrink`]: makes a
//! failing plan smaller. `job.rs`: the job, a program of its own.
//!
//! Linux only: it finds jobs, and what became of them, in /proc.

#![cfg(target_os = "linux")]
#![expect(unreachable_pub, clippy::missing_errors_doc, reason = "a test has no API")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    clippy::print_stdout,
    reason = "the measurements of a test are shown with --nocapture"
)]

mod check;
mod check_tests;
mod crowd;
mod dice;
mod history;
mod lies;
mod nemesis;
mod plan;
mod request;
mod shrink;
mod summary;
#[expect(dead_code, reason = "the other tests use the rest of it")]
#[path = "../it/support/mod.rs"]
mod support;
mod table;
mod world;

use check::{Verdict, check};
use crowd::Crowd;
use history::{Fault, History, Target, now};
use nemesis::{Nemesis, let_pass, living_jobs};
use plan::{Kind, Plan};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use summary::Summary;
use support::wait::until;
use world::World;

/// How long the last jobs may take once everything is healed.
const SETTLING: Duration = Duration::from_secs(30);
/// Runs take turns, or they would be faults of each other.
static ALONE: Mutex<()> = Mutex::new(());

/// Plans that failed once, or that provoke what failed once.
const KEPT: &str = include_str!("kept-plans");

/// P10, P12, P18, P20, P21, P31, P35, P100, P101, P102
#[test]
fn the_promises_are_kept_under_faults() {
    let _alone = ALONE.lock();
    let variable = |name: &str| std::env::var(name).ok();
    let given = variable("PGLOCK_TORTURE");
    let first = Plan::new(1, 8).with(given.as_deref().unwrap_or_default());
    let first = first.unwrap();
    let seeds = variable("PGLOCK_TORTURE_SEEDS").map_or(1, |count| count.parse().unwrap());
    let failed: Vec<String> = (0..seeds)
        .filter_map(|number| {
            let mut plan = first.clone();
            plan.seed += number;
            judge(plan)
        })
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Each line is a plan. They take too long for `make test`; `make torture` runs them.
#[test]
fn plans_that_failed_once_pass() {
    let is_plan = |line: &&str| !line.is_empty() && !line.starts_with('#');
    let plans = KEPT.lines().filter(is_plan);
    let plans = plans.map(|line| Plan::new(1, 8).with(line).unwrap());
    let plans: Vec<Plan> = plans.collect();
    if std::env::var_os("PGLOCK_TORTURE").is_none() {
        println!("SKIPPED: {} plans; make torture has them", plans.len());
        return;
    }
    let _alone = ALONE.lock();
    let failed: Vec<String> = plans.into_iter().filter_map(judge).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Makes a run. Returns what is wrong with it, and how to repeat it.
fn judge(plan: Plan) -> Option<String> {
    println!("make torture {}", plan.line());
    let (verdict, record) = torture(&plan);
    if let Ok(file) = std::env::var("PGLOCK_TORTURE_REPORT") {
        let mut options = File::options();
        let mut report = options.append(true).create(true).open(file).unwrap();
        report.write_all(record.as_bytes()).unwrap();
    }
    if verdict.violations.is_empty() {
        return None;
    }
    let shown: Vec<&str> = verdict.violations.iter().take(20).map(String::as_str).collect();
    println!("{}", shown.join("\n"));
    let smallest = if std::env::var_os("PGLOCK_TORTURE_SHRINK").is_some() {
        shrink::shrink(plan, |plan| {
            println!("smaller: {}", plan.line());
            !torture(plan).0.violations.is_empty()
        })
    } else {
        plan
    };
    Some(format!(
        "{} violations:\n{}\nto repeat it, perhaps not at the first attempt: make torture {}",
        verdict.violations.len(),
        shown.join("\n"),
        smallest.line()
    ))
}

/// Makes a run in a world of its own, and prints its summary. Returns its verdict, and its line for the report.
fn torture(plan: &Plan) -> (Verdict, String) {
    let resets_sessions = !plan.kinds.contains(&Kind::Leftover);
    let (began, world) = (Instant::now(), World::new(resets_sessions));
    let versions = world.versions();
    let (history, mut verdict) = run(plan, &world, Path::new(env!("CARGO_BIN_EXE_pglock")));
    verdict.violations.extend(world.end());
    let summary = Summary {
        plan,
        took: began.elapsed(),
        history: &history,
        verdict: &verdict,
    };
    println!("{}", summary.text(&versions));
    let commit = std::env::var("PGLOCK_TORTURE_COMMIT");
    let record = summary.record(&commit.unwrap_or_else(|_| "unknown".into()));
    (verdict, record)
}

/// Makes a run of this pglock, from the first request until the last job is gone.
fn run(plan: &Plan, world: &World, pglock: &Path) -> (History, Verdict) {
    let directory = tempfile::tempdir().unwrap();
    let crowd = Crowd::new(directory.path(), pglock);
    table::clear(world);
    let mut history = History {
        faults: meet(plan, world, &crowd),
        ..History::default()
    };
    let are_gone = until(SETTLING, || living_jobs(&crowd.history()).is_empty());
    history.rows = table::read(world);
    history.runs = std::mem::take(&mut *crowd.runs.lock().unwrap());
    let stays = History::stays_from(&crowd.history());
    let mut violations = Vec::new();
    match stays {
        Ok(stays) => history.stays = stays,
        Err(violation) => violations.push(violation),
    }
    if !are_gone {
        violations.push(format!("jobs still run: {:?}", living_jobs(&crowd.history())));
    }
    let mut verdict = check(&history);
    verdict.violations.extend(violations);
    (history, verdict)
}

/// Lets the crowd and the nemeses work for the planned time, and returns the faults.
fn meet(plan: &Plan, world: &World, crowd: &Crowd) -> Vec<Fault> {
    let mut possible = plan.clone();
    let is_possible = |kind: &Kind| world.has_cables() || !kind.needs_cables();
    possible.kinds.retain(is_possible);
    let nemesis = Nemesis { world, crowd };
    std::thread::scope(|scope| {
        for worker in 0..plan.workers {
            scope.spawn(move || crowd.work(world, plan, worker));
        }
        scope.spawn(|| crowd.oversee());
        let nemeses = (0..plan.nemeses).map(|number| {
            let (nemesis, strikes) = (&nemesis, possible.strikes(number));
            scope.spawn(move || nemesis.run(strikes))
        });
        let nemeses: Vec<_> = nemeses.collect();
        let watcher = scope.spawn(|| stalls(crowd));
        let_pass(Duration::from_secs(plan.seconds));
        crowd.call_off();
        let all = nemeses.into_iter().chain([watcher]);
        all.flat_map(|thread| thread.join().unwrap()).collect()
    })
}

/// Returns the times when the machine stood still, as noticed here: pglock's documented limits do not cover them.
fn stalls(crowd: &Crowd) -> Vec<Fault> {
    const STALL: u128 = check::SECOND_NS / 2;
    let mut found = Vec::new();
    let mut before = now();
    while !crowd.is_over() {
        until(Duration::from_millis(10), || crowd.is_over());
        let after = now();
        if after - before > STALL {
            found.push(Fault {
                kind: Kind::Stall,
                target: Target::All,
                began: before,
                ended: after,
            });
        }
        before = after;
    }
    found
}
