//! What every fault must leave right: a holder, three waiters, and what becomes of them.
//!
//! The job of the holder does not end before KILL, so it lives as long after the loss of its lock as pglock lets it.
//! The jobs of the waiters record whether they are alone, and their fencing tokens.

use crate::cluster::{Cluster, Member, dsn};
use crate::observer::Observer;
use crate::support::journal::{Journal, now};
use crate::support::pglock::{Output, Pglock, Running};
use crate::support::unique;
use crate::support::wait::{SOON, eventually, until};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use std::fmt;
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// H and D.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// What pglock adds to H + D + G before the lock is anybody's.
const MARGIN: Duration = Duration::from_secs(3);
/// The time limit for one host: a member that is paused accepts connections, and answers on none.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// How long all of it may take.
const LIMIT: Duration = Duration::from_secs(90);
/// The promise: waiters reach the new primary within this time of its promotion.
const REACH_LIMIT: Duration = Duration::from_secs(2);
/// How long after the time at which it may start a waiter's job starts at the latest: a pause of 0.8 s between two
/// looks or two attempts to connect, a member that does not answer, and a busy machine.
const START_SLACK: Duration = Duration::from_millis(2500);

/// A holder and its waiters, for a key of their own.
pub struct Scene {
    /// G.
    grace: Duration,
    pub key: String,
    pub journal: Journal,
    pub holder: Running,
    /// Returns when the holder's job was dead.
    death: JoinHandle<Option<u128>>,
    pub waiters: Vec<Running>,
}

/// When what happened, in time since the fault.
pub struct Times {
    grace: Duration,
    /// The holder's job was dead.
    dead: Duration,
    /// A standby was promoted.
    promoted: Duration,
    /// The last waiter had its session on the new primary.
    reached: Duration,
    /// The first waiter's job started.
    started: Duration,
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "G {:.1}: promoted {:5.2}, waiters there {:+.2}, old job dead {:5.2}, next job {:5.2} ({:+.2} after the \
             promotion, {:+.2} after the death)",
            self.grace.as_secs_f64(),
            self.promoted.as_secs_f64(),
            self.reached.as_secs_f64() - self.promoted.as_secs_f64(),
            self.dead.as_secs_f64(),
            self.started.as_secs_f64(),
            self.started.as_secs_f64() - self.promoted.as_secs_f64(),
            self.started.as_secs_f64() - self.dead.as_secs_f64(),
        )
    }
}

/// Returns `pglock run` on this key, with a fencing token, and with these members as its hosts.
pub fn pglock<'a>(members: impl IntoIterator<Item = &'a Member>, key: &str, grace: Duration) -> Pglock {
    let seconds = |time: Duration| time.as_secs_f64().to_string();
    let run = Pglock::alone().env("PGLOCK_DSN", dsn(members));
    let run = run.env("HOME", "/nonexistent");
    run.args(["run", "--key", key, "--token"])
        .args(["--connect-timeout", &seconds(CONNECT_TIMEOUT)])
        .args(["--heartbeat", &seconds(HEARTBEAT), "--kill-after", &seconds(grace)])
}

impl Scene {
    /// Starts a holder with this grace period, and three waiters.
    pub fn start(cluster: &Cluster, grace: Duration) -> Scene {
        let (key, journal) = (unique("failover"), Journal::new());
        let job = format!(
            "trap '' TERM INT HUP; {}; sleep 600 & note \"pid $!\"; note ready; wait",
            begin(&journal)
        );
        let holder = pglock(cluster.members(), &key, grace).sh(&job).spawn();
        journal.await_count("ready", 1);
        let job = journal.pids()[0];
        let death = thread::spawn(move || until(LIMIT, || kill(job, None).is_err()).then(now));
        let job = short_job(&journal);
        let waiter = || pglock(cluster.members(), &key, grace).args(["--wait", "80"]).sh(&job);
        let waiters: Vec<Running> = (0..3).map(|_| waiter().spawn()).collect();
        let waiting = format!(
            "SELECT count(*) FROM pg_stat_activity JOIN pg_locks USING (pid) \
             WHERE application_name LIKE 'pglock:{key} %' AND locktype = 'advisory' AND NOT granted"
        );
        let leader = cluster.leader();
        eventually(SOON, "three waiters", || leader.value(&waiting).as_deref() == Some("3"));
        Scene {
            grace,
            key,
            journal,
            holder,
            death,
            waiters,
        }
    }

    /// After a fault that began at `fault`: waits until the lock was lost and everybody has had a turn, and asserts
    /// that all of it was right. `can_guard` says that the loser could reconnect while the waiters could.
    pub fn judge(self, observer: &Observer, fault: u128, can_guard: bool) {
        let pids: Vec<Pid> = self.waiters.iter().map(Running::pid).collect();
        assert_lost(&self.holder.finish(), &self.key);
        for waiter in self.waiters {
            assert_served(&waiter.finish(), &self.key);
        }
        self.journal.assert_alone(4..=4);
        assert_eq!(self.journal.count("leave"), 3);
        assert_ascending(&self.journal, 4);
        let entered = self.journal.entries();
        let mut entered = entered.iter().filter(|entry| entry.event == "enter");
        let (promoted, member) = observer.promotion().expect("a promotion");
        let reached = pids
            .iter()
            .map(|pid| observer.session(member, *pid).expect("a session"));
        let since = |at: u128| Duration::from_nanos(at.saturating_sub(fault) as u64);
        let times = Times {
            grace: self.grace,
            dead: since(self.death.join().unwrap().expect("a dead job")),
            promoted: since(promoted),
            reached: since(reached.max().unwrap().max(promoted)),
            started: since(entered.nth(1).unwrap().at),
        };
        println!("  {times}");
        times.assert_kept(can_guard);
    }
}

impl Times {
    /// Asserts that the waiters came to the new primary in time, and started no later than they may: with a guard when
    /// the old job was dead, without one when it had to be dead by the timing rule, and not before. (That the old job
    /// was dead at all is what the journal says.)
    fn assert_kept(&self, can_guard: bool) {
        assert!(self.reached <= self.promoted + REACH_LIMIT, "{self}");
        let is_guarded = can_guard && self.dead > self.promoted + REACH_LIMIT;
        let is_unguarded = !can_guard || self.dead < self.promoted;
        // The job died G after the loss, or earlier.
        let rule = self.dead + HEARTBEAT * 2 + MARGIN;
        let due = if is_guarded { self.dead } else { rule.max(self.promoted) };
        assert!(self.started <= due + START_SLACK, "{self}");
        // No waiter lost its connection before the fault.
        let limit = HEARTBEAT * 2 + self.grace + MARGIN;
        assert!(!is_unguarded || self.started >= limit, "{self}");
    }
}

/// The holder exits with 74, and says why in one line.
fn assert_lost(output: &Output, key: &str) {
    let line = output.code(74).stderr_line();
    let start = format!("lost the lock on key \"{key}\" at ");
    let end = "; terminated the job with SIGTERM, then SIGKILL";
    assert!(line.starts_with(&start) && line.ends_with(end), "{output}");
}

/// A waiter exits as its job does, and has said in one line that it lost its connection.
fn assert_served(output: &Output, key: &str) {
    let line = output.code(0).stderr_line();
    let start = format!("lost the connection while waiting for key \"{key}\": ");
    assert!(line.starts_with(&start) && line.ends_with("; reconnecting"), "{output}");
}

/// Returns the beginning of a job that records whether it is alone, and its fencing token.
fn begin(journal: &Journal) -> String {
    format!(
        "{}; note \"token $$ $PGLOCK_TOKEN\"; {}",
        journal.note(),
        journal.alone()
    )
}

/// Returns a job that ends soon.
pub fn short_job(journal: &Journal) -> String {
    format!("{}; sleep 0.1; note leave", begin(journal))
}

/// Asserts that each of so many jobs recorded a fencing token that is greater than that of the one before.
fn assert_ascending(journal: &Journal, count: usize) {
    let tokens: Vec<String> = tokens(journal).into_iter().map(|job| job.token).collect();
    let is_ascending = tokens.is_sorted_by(|one, next| one < next);
    assert!(tokens.len() == count && is_ascending, "{tokens:?}");
}

/// A job, as it recorded itself.
#[derive(Debug)]
pub struct JobToken {
    pub at: u128,
    pub pid: i32,
    pub token: String,
}

impl JobToken {
    /// Returns the timeline in its token.
    pub fn timeline(&self) -> &str {
        &self.token[..8]
    }
}

/// Returns the jobs in the order in which they recorded their fencing tokens.
pub fn tokens(journal: &Journal) -> Vec<JobToken> {
    let entries = journal.entries();
    let jobs = entries.iter().filter_map(|entry| {
        let (pid, token) = entry.event.strip_prefix("token ")?.split_once(' ')?;
        Some(JobToken {
            at: entry.at,
            pid: pid.parse().ok()?,
            token: token.to_owned(),
        })
    });
    jobs.collect()
}
