//! What a paused primary does when it goes on: it grants locks until its Patroni finds that another member leads.
//!
//! No client can tell. What pglock promises then is the fencing token: a job with a lock of the old primary has a lower
//! one than every job with a lock of the new primary, because the timeline leads. So what the jobs write to can refuse
//! it.

use crate::cluster::{Cluster, Member};
use crate::scene::{JobToken, Scene, pglock, short_job, tokens};
use crate::support::journal::{Journal, now};
use crate::support::pglock::{Output, Running};
use crate::support::wait::until;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// G of the newcomers.
const GRACE: Duration = Duration::from_millis(500);
/// The pause between two newcomers.
const NEWCOMER_PAUSE: Duration = Duration::from_millis(25);
/// How long the old primary may grant locks after it goes on: Patroni looks every second, and gives etcd two to answer.
const DEMOTION_LIMIT: Duration = Duration::from_secs(5);

/// Lets the paused primary go on beside the new one, while newcomers try the key on the old one first, and asserts that
/// the tokens tell the jobs of the two primaries apart. The waiters of the scene may come to either of them.
pub fn let_go_on(cluster: &Cluster, paused: &Member, scene: Scene) {
    let mut members: Vec<&Member> = cluster.members().iter().collect();
    members.sort_by_key(|member| member.name() != paused.name());
    let newcomer = || {
        let run = pglock(members.iter().copied(), &scene.key, GRACE).arg("--no-wait");
        run.sh(&short_job(&scene.journal)).spawn()
    };
    let is_demoted = AtomicBool::new(false);
    let (resumed, demoted, newcomers) = thread::scope(|scope| {
        let starter = scope.spawn(|| {
            let mut started: Vec<Running> = Vec::new();
            while !is_demoted.load(Ordering::Relaxed) {
                started.push(newcomer());
                thread::sleep(NEWCOMER_PAUSE);
            }
            started
        });
        let resumed = now();
        paused.resume();
        let is_refused = until(DEMOTION_LIMIT * 2, || paused.is_primary() != Some(true));
        let demoted = now();
        is_demoted.store(true, Ordering::Relaxed);
        let newcomers = starter.join().unwrap();
        assert!(is_refused, "{} still leads:\n{}", paused.name(), cluster.logs());
        (resumed, demoted, newcomers)
    });
    let newcomers: Vec<Output> = newcomers.into_iter().map(Running::finish).collect();
    let waiters: Vec<Output> = scene.waiters.into_iter().map(Running::finish).collect();
    scene.holder.finish().code(74);
    // One job of the new primary at least.
    let last = pglock(cluster.members(), &scene.key, GRACE).args(["--wait", "60"]);
    last.sh(&short_job(&scene.journal)).output().code(0);
    let since = |at: u128| Duration::from_nanos(at.saturating_sub(resumed) as u64);
    let outputs = [&newcomers[..], &waiters[..]].concat();
    assert_explained(&outputs);
    let stale = assert_told_apart(&scene.journal);
    let last = stale.iter().map(|job| since(job.at)).max().unwrap_or_default();
    let overlaps = overlaps(&scene.journal).len();
    println!(
        "  the old primary was demoted after {:.2?}; {} jobs had its locks, the last after {last:.2?}; {overlaps} looks \
         saw two jobs at once",
        since(demoted),
        stale.len(),
    );
    assert!(
        last < since(demoted) + Duration::from_secs(1),
        "{last:?} after {:?}",
        since(demoted)
    );
}

/// Every pglock ran its job, was told that the key is held, lost its lock, or found no primary, and says so.
fn assert_explained(outputs: &[Output]) {
    for output in outputs {
        let text = String::from_utf8_lossy(&output.stderr);
        let is_explained = match output.status.code() {
            Some(0) => text.is_empty() || text.ends_with("; reconnecting\n"),
            Some(69) => text.starts_with("pglock: "),
            Some(74) => text.contains("lost the lock on key"),
            Some(75) => text.contains(" is held") || text.contains(" was held"),
            _ => false,
        };
        assert!(is_explained, "{output}");
    }
}

/// Asserts that the jobs of either primary ran one after the other with ascending tokens, and that two jobs that ran at
/// once had locks of different primaries. Returns the jobs that had locks of the old primary while there was a new one.
fn assert_told_apart(journal: &Journal) -> Vec<JobToken> {
    let jobs = tokens(journal);
    let (old, new): (Vec<_>, Vec<_>) = {
        let first = jobs[0].timeline().to_owned();
        jobs.into_iter().partition(|job| job.timeline() == first)
    };
    for jobs in [&old, &new] {
        let is_ascending = jobs.is_sorted_by(|one, next| one.token < next.token);
        assert!(is_ascending, "{jobs:?}");
    }
    assert!(!new.is_empty(), "no job had a lock of the new primary");
    let lowest = new.iter().map(|job| &job.token).min();
    assert!(old.iter().all(|job| Some(&job.token) < lowest), "{old:?} {new:?}");
    for pids in overlaps(journal) {
        let is_old = pids.map(|pid| old.iter().any(|job| job.pid == pid));
        assert!(
            is_old[0] != is_old[1],
            "two jobs at once of one primary: {pids:?} {:?}",
            journal.entries()
        );
    }
    // The first is the holder, before the fault.
    old.into_iter().skip(1).collect()
}

/// Returns the jobs that saw each other. A job is seen by its own process, or by that of its child.
fn overlaps(journal: &Journal) -> Vec<[i32; 2]> {
    let jobs: Vec<i32> = tokens(journal).iter().map(|job| job.pid).collect();
    let entries = journal.entries();
    let overlaps = entries.iter().filter_map(|entry| {
        let mut words = entry.event.strip_prefix("overlap ")?.split(' ').map(str::parse::<i32>);
        let (own, other) = (words.next()?.ok()?, words.next()?.ok()?);
        // As in proc(5): the program and the state are between a process and its parent.
        let parent = words.nth(2)?.ok()?;
        Some([own, if jobs.contains(&other) { other } else { parent }])
    });
    overlaps.collect()
}
