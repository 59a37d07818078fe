//! pglock on a real cluster: three PostgreSQL servers that Patroni and etcd manage, on this machine.
//!
//! `make test-failover` runs it. It is not part of `cargo test`, because it needs Patroni and etcd; without them it
//! fails.
//!
//! * `PGLOCK_FAILOVER_RUNS`: how often each fault is injected; once, unless this says otherwise.
//!
//! [`cluster`]: the cluster and its faults. [`scene`]: a holder and its waiters, and what must become of them.
//! [`two_primaries`]: what is left of the promise while two members take writes. [`observer`]: when a member was
//! promoted, and when a waiter reached it.

#![expect(unreachable_pub, clippy::missing_errors_doc, reason = "a test has no API")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    clippy::print_stdout,
    reason = "the measurements of a test are shown with --nocapture"
)]

mod cluster;
mod http;
mod observer;
mod scene;
#[expect(dead_code, reason = "the other tests use the rest of it")]
#[path = "../it/support/mod.rs"]
mod support;
mod two_primaries;

use cluster::Cluster;
use observer::Observer;
use scene::Scene;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use support::command::command;
use support::journal::now;
use support::repetitions;
use support::wait::eventually;

/// G of a holder whose job is dead before another member is promoted, and of one whose job is not.
const SHORT_GRACE: Duration = Duration::from_millis(500);
const LONG_GRACE: Duration = Duration::from_secs(9);
/// How long a failover may take.
const FAILOVER: Duration = Duration::from_secs(60);

/// Returns the cluster, repaired, for one test at a time.
fn cluster() -> MutexGuard<'static, Option<Arc<Cluster>>> {
    static CLUSTER: Mutex<Option<Arc<Cluster>>> = Mutex::new(None);
    let mut cluster = CLUSTER.lock().unwrap_or_else(PoisonError::into_inner);
    match &*cluster {
        Some(cluster) => cluster.repair(),
        None => *cluster = Some(Arc::new(Cluster::start())),
    }
    cluster
}

/// Does it as often as `PGLOCK_FAILOVER_RUNS` says, on a healthy cluster.
fn repeat(name: &str, run: impl Fn(&Arc<Cluster>)) {
    let guard = cluster();
    let cluster = guard.as_ref().unwrap();
    let runs = repetitions("PGLOCK_FAILOVER_RUNS", 1);
    for number in 1..=runs {
        println!("{name}, run {number} of {runs}");
        cluster.repair();
        run(cluster);
    }
}

/// Injects a fault under two holders and six waiters, and judges what becomes of them. The fault ends with the
/// promotion, and returns when it began.
fn survive(cluster: &Arc<Cluster>, can_guard: bool, fault: impl FnOnce(&Observer) -> u128) {
    let scenes = [SHORT_GRACE, LONG_GRACE].map(|grace| Scene::start(cluster, grace));
    let observer = Observer::start(cluster);
    let began = fault(&observer);
    for scene in scenes {
        scene.judge(&observer, began, can_guard);
    }
}

fn await_promotion(observer: &Observer) {
    eventually(FAILOVER, "a promotion", || observer.promotion().is_some());
}

/// P10, P18, P21, P25, P26, P27, P39
#[test]
fn a_planned_switchover() {
    repeat("planned switchover", |cluster| {
        survive(cluster, true, |observer| {
            let leader = cluster.leader();
            let mut members = cluster.members().iter();
            let candidate = members.find(|member| member.name() != leader.name());
            let began = now();
            leader.switch_over_to(candidate.unwrap());
            await_promotion(observer);
            began
        });
    });
}

/// P10, P18, P21, P25, P26, P27, P39
#[test]
fn a_killed_primary() {
    repeat("killed primary", |cluster| {
        survive(cluster, true, |observer| {
            let (leader, began) = (cluster.leader(), now());
            leader.kill();
            await_promotion(observer);
            began
        });
    });
}

/// P10, P18, P21, P26, P27, P39: it accepts connections and answers on none, like a frozen machine. The loser keeps its
/// connection, because the primary may go on, and frees the lock when it is closed; so nobody guards.
#[test]
fn a_paused_primary() {
    repeat("paused primary", |cluster| {
        survive(cluster, false, |observer| {
            cluster.leader().pause();
            let began = now();
            await_promotion(observer);
            began
        });
    });
}

/// P18
#[test]
fn a_paused_primary_that_goes_on() {
    repeat("paused primary that goes on", |cluster| {
        let (leader, scene) = (cluster.leader(), Scene::start(cluster, SHORT_GRACE));
        let observer = Observer::start(cluster);
        leader.pause();
        await_promotion(&observer);
        two_primaries::let_go_on(cluster, leader, scene);
    });
}

/// P10, P18, P21, P25, P26, P27, P39: the leader demotes itself, and a member is promoted once etcd is back.
#[test]
fn etcd_is_away() {
    repeat("etcd away", |cluster| {
        survive(cluster, true, |observer| {
            let (leader, began) = (cluster.leader(), now());
            cluster.kill_etcd();
            eventually(FAILOVER, "a leader that demotes itself", || {
                leader.is_primary() == Some(false)
            });
            cluster.start_etcd();
            await_promotion(observer);
            began
        });
    });
}

/// The worst case: a member is paused, and another was killed.
#[test]
fn a_killed_test_process_leaves_no_cluster() {
    const VICTIM: &str = "FAILOVER_VICTIM";
    if let Some(note) = std::env::var_os(VICTIM) {
        let cluster = Cluster::start();
        let leader = cluster.leader();
        leader.pause();
        let mut members = cluster.members().iter();
        members.find(|member| member.name() != leader.name()).unwrap().kill();
        // Not by print!, which the test framework captures.
        fs::write(note, cluster.directory().to_str().unwrap()).unwrap();
        // Blocks until this process is killed; the end of the pipe means that the other test process has ended.
        let _ = std::io::stdin().read(&mut [0]);
        return;
    }
    let note = tempfile::NamedTempFile::new().unwrap();
    let mut victim = command(std::env::current_exe().unwrap());
    victim.args(["--exact", "a_killed_test_process_leaves_no_cluster"]);
    victim.env(VICTIM, note.path());
    if let Some(programs) = std::env::var_os("PGLOCK_TEST_PG_BIN") {
        victim.env("PGLOCK_TEST_PG_BIN", programs);
    }
    victim.stdin(Stdio::piped()).stdout(Stdio::null());
    let mut victim = victim.spawn().unwrap();
    let directory = || fs::read_to_string(note.path()).unwrap();
    eventually(FAILOVER, "a cluster", || !directory().is_empty());
    victim.kill().unwrap();
    victim.wait().unwrap();
    cluster::await_removal(Path::new(&directory()));
}
