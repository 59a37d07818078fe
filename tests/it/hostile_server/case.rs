//! One case: a pglock, a hostile server, and what must hold whatever that server does.
//!
//! The seed determines the case: which pglock, which stages, which mutations. A failing case reports what was wrong,
//! and its seed repeats it.

use super::mutation::{KINDS, Mutation};
use super::random::Random;
use super::relay::{Relay, Stage, Tampering};
use crate::support::journal::state;
use crate::support::pglock::{Pglock, Running};
use crate::support::server::number;
use crate::support::tls::{PASSWORD, Secured};
use crate::support::wait::until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres::Client;
use std::fmt;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What pglock does in a case. All of them have [`LIMITS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    Trust,
    Scram,
    Md5,
    Clear,
    /// Another client holds the lock throughout.
    Refused,
    WaitTimesOut,
    /// Another client holds the lock until pglock waits for it.
    Waits,
    WaitsForTurn,
    WaitsForSlot,
    Transaction,
    Slots,
    SeveralKeys,
    Computed,
    Token,
    TokenInTransaction,
    /// An operator ends the wait by TERM.
    Interrupted,
    /// The job ignores TERM.
    Stubborn,
    IgnoresLoss,
    HoldsLonger,
    Tls,
    PreferTls,
    List,
    Check,
    Evict,
}

const SCENARIOS: [Scenario; 24] = [
    Scenario::Trust,
    Scenario::Scram,
    Scenario::Md5,
    Scenario::Clear,
    Scenario::Refused,
    Scenario::WaitTimesOut,
    Scenario::Waits,
    Scenario::WaitsForTurn,
    Scenario::WaitsForSlot,
    Scenario::Transaction,
    Scenario::Slots,
    Scenario::SeveralKeys,
    Scenario::Computed,
    Scenario::Token,
    Scenario::TokenInTransaction,
    Scenario::Interrupted,
    Scenario::Stubborn,
    Scenario::IgnoresLoss,
    Scenario::HoldsLonger,
    Scenario::Tls,
    Scenario::PreferTls,
    Scenario::List,
    Scenario::Check,
    Scenario::Evict,
];

/// The limits that pglock is given: for connecting to one address, for a heartbeat, from TERM to KILL.
const LIMITS: [&str; 6] = ["--connect-timeout", "1", "--heartbeat", "0.2", "--kill-after", "0.3"];
/// What these limits add up to: twice connecting (with and without TLS) with its slack, of two sessions; the wait (1
/// s); the job (0.7 s); twice the heartbeat; the allowance for a process that was not scheduled; the query for who
/// evicted us, which is a session of its own; the time to KILL; and draining the job's group.
const TIME_LIMIT: Duration = Duration::from_millis(2 * 2 * 2000 + 1000 + 700 + 400 + 1000 + 1000 + 2000 + 300 + 2000);
/// What a busy machine may add.
const SLACK: Duration = Duration::from_secs(20);
/// When the relay hangs up on `list`, `check` and `evict`, which wait for a silent server without limit.
const OBSERVER_LIMIT: Duration = Duration::from_millis(1500);
/// The memory that a pglock may need whatever it receives; a list may be long.
const MOST_MEMORY_KB: u64 = 128 * 1024;
const MOST_MEMORY_OF_LISTS_KB: u64 = 256 * 1024;
/// A part of [`PASSWORD`] that looks the same however it is quoted.
const PASSWORD_PART: &str = "w@rd";
/// The exit status of a job that is not terminated.
const JOB_STATUS: i32 = 5;
/// The possible exit statuses: never a signal, an internal error, or a usage error, of which there is none.
const EXIT_STATUSES: [i32; 7] = [JOB_STATUS, 0, 69, 74, 75, 77, 78];

/// A case, made from its seed.
pub struct FuzzCase {
    pub seed: u64,
    pub scenario: Scenario,
    tamperings: Vec<Tampering>,
}

/// The result of a case.
#[derive(Default)]
pub struct Verdict {
    /// What was tampered with.
    pub done: Vec<(Stage, usize)>,
    pub code: Option<i32>,
    pub memory_kb: u64,
    pub took: Duration,
    /// What pglock did wrong.
    pub violations: Vec<String>,
}

impl fmt::Display for FuzzCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PGLOCK_FUZZ_CASE={}: {:?}", self.seed, self.scenario)?;
        for tampering in &self.tamperings {
            let kind = KINDS[tampering.mutation.kind];
            write!(f, ", {:?} {} {kind}", tampering.stage, tampering.nth)?;
        }
        Ok(())
    }
}

impl FuzzCase {
    pub fn from_seed(seed: u64) -> FuzzCase {
        let random = &mut Random::from_seed(seed);
        let scenario = random.one_of(&SCENARIOS);
        let count = random.one_of(&[1, 1, 1, 2, 3]);
        let tamperings = (0..count).map(|_| tampering(scenario, random)).collect();
        FuzzCase {
            seed,
            scenario,
            tamperings,
        }
    }

    /// Runs the case, and judges it.
    pub fn run(&self, server: &Secured, client: &Arc<Mutex<Client>>, directory: &Path) -> Verdict {
        let key = format!("fuzz {:x}", self.seed);
        let held = match self.scenario {
            Scenario::SeveralKeys => format!("{key} b"),
            _ => key.clone(),
        };
        let is_locked = held_query(&key);
        let observer = Arc::clone(client);
        let file = directory.join(format!("{:x}", self.seed));
        let ran = file.clone();
        let relay = Relay::start(server.port(), self.tamperings.clone(), move || {
            let answer = observer.lock().unwrap().simple_query(&is_locked);
            answer.is_ok_and(|answer| answer.len() > 2) || ran.exists()
        });
        let mut holder = self.is_contended().then(|| hold(server, &held));
        let mut running = self.pglock(&relay, &key, &file).spawn();
        let limit = TIME_LIMIT + SLACK + self.patience_with_poolers();
        let (mut memory_kb, mut was_terminated) = (0, false);
        let began = Instant::now();
        let ended = until(limit, || {
            memory_kb = memory_kb.max(peak_memory_kb(running.pid()));
            if self.releases_when_waited_for() && relay.is_waiting() {
                holder = None;
            }
            if self.scenario == Scenario::Interrupted && relay.is_waiting() && !was_terminated {
                running.signal(Signal::SIGTERM);
                was_terminated = true;
            }
            if self.is_observer() && began.elapsed() > OBSERVER_LIMIT {
                relay.end();
            }
            !running.lives()
        });
        let mut verdict = Verdict {
            done: relay.done(),
            memory_kb,
            took: began.elapsed(),
            ..Verdict::default()
        };
        if !ended {
            verdict.violation(format!("has not exited after {limit:?}: {:?}", running.stderr()));
            return verdict;
        }
        self.judge(running, &relay, &file, &mut verdict);
        verdict
    }

    /// Checks what must hold.
    fn judge(&self, running: Running, relay: &Relay, file: &Path, verdict: &mut Verdict) {
        // First of all: pglock has exited, and so must have the job.
        let job = fs::read_to_string(file).ok();
        let pids = job.iter().flat_map(|pids| pids.split_whitespace());
        let pids: Vec<Pid> = pids.filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect();
        let alive: Vec<&Pid> = pids.iter().filter(|pid| state(**pid).is_some()).collect();
        if !alive.is_empty() {
            verdict.violation(format!("{alive:?} of the job are still alive"));
            for pid in &pids {
                let _ = kill(*pid, Signal::SIGKILL);
            }
        }
        if running.stderr().contains("panicked") {
            verdict.violation(format!("a panic: {}", running.stderr()));
            return;
        }
        let output = running.finish();
        verdict.code = output.status.code();
        let stderr = match String::from_utf8(output.stderr.clone()) {
            Ok(stderr) => stderr,
            Err(_) => return verdict.violation(format!("not UTF-8: {output}")),
        };
        match output.status.code() {
            Some(code) if EXIT_STATUSES.contains(&code) => {}
            None if output.status.signal() == self.may_end_by() => {}
            _ => verdict.violation(format!("undocumented exit status: {output}")),
        }
        let is_ours = |line: &str| line.starts_with("pglock: ") && !line.contains(char::is_control);
        if !stderr.lines().all(is_ours) {
            verdict.violation(format!("a line that is not pglock's: {stderr:?}"));
        }
        let stdout = String::from_utf8_lossy(&output.stdout);
        if [&*stderr, &stdout].iter().any(|text| text.contains(PASSWORD_PART)) {
            verdict.violation("the password is shown".into());
        }
        let most = match self.scenario {
            Scenario::List | Scenario::Evict => MOST_MEMORY_OF_LISTS_KB,
            _ => MOST_MEMORY_KB,
        };
        if verdict.memory_kb > most {
            verdict.violation(format!("used {} kB of memory", verdict.memory_kb));
        }
        let is_encrypted = verdict.done.iter().any(|(stage, _)| *stage == Stage::Encrypted);
        match job {
            // With sslmode=prefer there may have been a second session in plain text.
            Some(_) if is_encrypted && relay.tampered_before_grant() && !relay.has_granted() => {
                verdict.violation(format!("the job ran though TLS was tampered with: {output}"));
            }
            Some(_) if !self.is_tls() && !relay.has_granted() => {
                verdict.violation(format!("the job ran without a lock: {output}"));
            }
            None if output.status.code() == Some(JOB_STATUS) => {
                verdict.violation(format!("exited like a job that did not run: {output}"));
            }
            _ => {}
        }
    }

    /// Returns the extra time for a server that passes for a pooler, whose replies may take longer unless we hold the
    /// lock.
    fn patience_with_poolers(&self) -> Duration {
        let before = |tampering: &Tampering| matches!(tampering.stage, Stage::Asking | Stage::Waiting);
        if self.tamperings.iter().any(before) {
            Duration::from_secs(121)
        } else {
            Duration::ZERO
        }
    }

    fn may_end_by(&self) -> Option<i32> {
        (self.scenario == Scenario::Interrupted).then_some(Signal::SIGTERM as i32)
    }

    fn is_tls(&self) -> bool {
        matches!(self.scenario, Scenario::Tls | Scenario::PreferTls)
    }

    fn is_observer(&self) -> bool {
        matches!(self.scenario, Scenario::List | Scenario::Check | Scenario::Evict)
    }

    /// Returns whether another client holds the lock at first.
    fn is_contended(&self) -> bool {
        use Scenario::*;
        let all = [
            Refused,
            WaitTimesOut,
            Waits,
            WaitsForTurn,
            WaitsForSlot,
            SeveralKeys,
            Interrupted,
            List,
            Evict,
        ];
        all.contains(&self.scenario)
    }

    /// Returns whether that client releases it once pglock waits.
    fn releases_when_waited_for(&self) -> bool {
        use Scenario::*;
        [Waits, WaitsForTurn, WaitsForSlot, SeveralKeys].contains(&self.scenario)
    }

    fn pglock(&self, relay: &Relay, key: &str, file: &Path) -> Pglock {
        use Scenario::*;
        let (user, mode) = match self.scenario {
            Scram => ("scram", "disable"),
            Md5 => ("md5", "disable"),
            Clear => ("clear", "disable"),
            Tls => ("scram", "require"),
            PreferTls => ("scram", "prefer"),
            _ => ("postgres", "disable"),
        };
        let dsn = format!(
            "host=127.0.0.1 port={} user={user} dbname=postgres sslmode={mode}",
            relay.port()
        );
        let pglock = Pglock::alone()
            .env("PGLOCK_DSN", dsn)
            .env("PGPASSWORD", PASSWORD)
            .env("HOME", file.parent().unwrap());
        let pglock = match self.scenario {
            List => return pglock.args(["list", "--connect-timeout", "1"]),
            Check => return pglock.args(["check", "--connect-timeout", "1"]),
            Evict => {
                let evict = ["evict", "--connect-timeout", "1", "--yes", "--key", key];
                return pglock.args(evict);
            }
            _ => pglock
                .args(["run", "--key", key])
                .args(LIMITS)
                .args(std::env::var_os("FV")),
        };
        let second = format!("{key} b");
        let options: &[&str] = match self.scenario {
            Refused => &["--no-wait"],
            WaitTimesOut => &["--wait", "0.4"],
            Waits => &["--wait", "1"],
            WaitsForTurn => &["--wait", "1", "--fair"],
            // The key is slot 0, the only one.
            WaitsForSlot => &["--wait", "1", "--slots", "1"],
            Transaction => &["--scope", "transaction"],
            Slots => &["--slots", "3"],
            SeveralKeys => &["--wait", "1", "--key", &second],
            Interrupted => &["--wait", "1"],
            IgnoresLoss => &["--on-lost", "ignore"],
            HoldsLonger => &["--min-hold", "0.3"],
            Computed => &["--hash", "hashtext"],
            Token => &["--token"],
            TokenInTransaction => &["--token", "--scope", "transaction"],
            _ => &[],
        };
        // A job that lasts some heartbeats, if the tampering happens then.
        let holds = |tampering: &Tampering| matches!(tampering.stage, Stage::Holding | Stage::Encrypted);
        let time = if self.tamperings.iter().any(holds) { "0.7" } else { "0" };
        let trap = if self.scenario == Stubborn {
            "trap '' TERM; "
        } else {
            ""
        };
        let script = format!("{trap}sleep \"$2\" & echo $$ $! >\"$1\"; wait; exit 5");
        let job = ["sh", "-c", &script, "job"];
        pglock.args(options).arg("--").args(job).arg(file).arg(time)
    }
}

impl Verdict {
    fn violation(&mut self, what: String) {
        self.violations.push(what);
    }
}

/// Returns a tampering that this scenario is likely to reach.
fn tampering(scenario: Scenario, random: &mut Random) -> Tampering {
    use Scenario::*;
    let stages: &[Stage] = match scenario {
        Tls | PreferTls => &[Stage::Tls, Stage::Encrypted, Stage::Encrypted, Stage::Encrypted],
        Scram | Md5 | Clear => &[Stage::Login, Stage::Login, Stage::Startup],
        Refused | List | Check | Evict => &[Stage::Asking],
        WaitTimesOut | Waits | WaitsForTurn | WaitsForSlot | SeveralKeys | Interrupted => {
            &[Stage::Asking, Stage::Waiting, Stage::Waiting, Stage::Holding]
        }
        Stubborn | IgnoresLoss => &[Stage::Holding],
        HoldsLonger => &[Stage::Holding, Stage::Release],
        Trust => &[
            Stage::Login,
            Stage::Startup,
            Stage::Asking,
            Stage::Holding,
            Stage::Release,
        ],
        Transaction | Slots | Computed | Token | TokenInTransaction => {
            &[Stage::Asking, Stage::Asking, Stage::Holding, Stage::Release]
        }
    };
    let stage = random.one_of(stages);
    let most = match stage {
        Stage::Tls => 1,
        Stage::Login => 4,
        Stage::Startup => 18,
        Stage::Asking if matches!(scenario, List | Check | Evict) => 40,
        Stage::Asking => 10,
        Stage::Waiting | Stage::Holding => 12,
        Stage::Release => 6,
        Stage::Encrypted => 6000,
    };
    let session = match scenario {
        TokenInTransaction => random.below(2),
        _ => usize::from(random.below(16) == 0),
    };
    Tampering {
        session,
        stage,
        nth: random.below(most),
        mutation: Mutation::draw(random),
    }
}

/// Acquires the lock in a session of its own, which releases it on drop.
fn hold(server: &Secured, key: &str) -> Client {
    let mut client = server.client();
    let sql = format!("SELECT pg_advisory_lock({})", number(key));
    client.simple_query(&sql).unwrap();
    client
}

/// Returns a query that has a row if a client holds the lock.
fn held_query(key: &str) -> String {
    let id = number(key);
    format!(
        "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1 \
         AND classid = {} AND objid = {}",
        (id >> 32) as u32,
        id as u32
    )
}

/// Returns the peak memory of the process so far; 0 where /proc does not tell.
pub fn peak_memory_kb(pid: Pid) -> u64 {
    let status = fs::read_to_string(PathBuf::from(format!("/proc/{pid}/status")));
    let status = status.unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.unwrap_or_default()
}
