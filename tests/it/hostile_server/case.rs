//! One case: a pglock, a hostile server, and what must hold whatever that server does.
//!
//! The seed determines the case: which pglock, which stages, which mutations. A failing case reports what was wrong,
//! and its seed repeats it.

use super::mutation::{KINDS, Mutation};
use super::random::Random;
use super::relay::{Relay, Stage, Tampering};
use super::scenario::{JOB_STATUS, NOTE, Scenario};
use crate::support::journal::state;
use crate::support::pglock::{Pglock, Running};
use crate::support::server::number;
use crate::support::tls::Secured;
use crate::support::wait::until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres::Client;
use std::any::Any;
use std::fmt;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What the limits of a scenario add up to: twice connecting (with and without TLS) with its slack, of two sessions;
/// the wait (2 s); the job (0.7 s); twice the heartbeat; the allowance for a process that was not scheduled; the query
/// for who evicted us, which is a session of its own; the time to KILL; and draining the job's group.
const TIME_LIMIT: Duration = Duration::from_millis(2 * 2 * 2000 + 2000 + 700 + 400 + 1000 + 1000 + 2000 + 300 + 2000);
/// What a busy machine may add.
const SLACK: Duration = Duration::from_secs(20);
/// How long `init`, which lets a server work as long as it likes, may wait for one that hangs before it is terminated.
const PATIENCE_WITH_INIT: Duration = Duration::from_secs(5);
/// The memory that a pglock may need whatever it receives; a list may be long.
const MOST_MEMORY_KB: u64 = 128 * 1024;
const MOST_MEMORY_OF_LISTS_KB: u64 = 256 * 1024;
/// A part of the password that looks the same however it is quoted, and one that is encoded in a URL.
const PASSWORD_PARTS: [&str; 2] = ["w@rd", "w%40rd"];
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
        let scenario = random.one_of(&Scenario::ALL);
        let count = random.one_of(&[1, 1, 1, 2, 3]);
        let closing = scenario.closed_stage().map(|stage| Tampering {
            session: 0,
            stage,
            nth: random.below(3),
            mutation: Mutation::CLOSE,
        });
        let others = (0..count).map(|_| tampering(scenario, random));
        let tamperings = closing.into_iter().chain(others).collect();
        FuzzCase {
            seed,
            scenario,
            tamperings,
        }
    }

    /// Runs the case, and judges it.
    pub fn run(&self, server: &Secured, client: &Arc<Mutex<Client>>, directory: &Path) -> Verdict {
        let key = format!("fuzz {:x}", self.seed);
        let is_locked = held_query(&key);
        let observer = Arc::clone(client);
        let file = directory.join(format!("{:x}", self.seed));
        let ran = file.clone();
        let relay = Relay::start(server.port(), self.tamperings.clone(), move || {
            let answer = observer.lock().unwrap().simple_query(&is_locked);
            answer.is_ok_and(|answer| answer.len() > 2) || ran.exists()
        });
        if self.scenario.has_succeeded() {
            client.lock().unwrap().simple_query(&success(&key)).unwrap();
        }
        let mut holder = self.scenario.is_contended().then(|| self.hold(server, &key));
        let mut running = self.pglock(&relay, &key, &file).spawn();
        let limit = TIME_LIMIT + SLACK + self.patience_with_poolers();
        let (mut memory_kb, mut was_terminated, mut evictor) = (0, false, None);
        let began = Instant::now();
        let ended = until(limit, || {
            memory_kb = memory_kb.max(peak_memory_kb(running.pid()));
            if self.scenario.releases_when_waited_for() && self.is_waited_for(&relay) {
                holder = None;
            }
            let is_enough = match self.scenario {
                Scenario::Interrupted => relay.waiting_sessions() > 0,
                Scenario::Init | Scenario::InitAgain => began.elapsed() > PATIENCE_WITH_INIT,
                _ => false,
            };
            if is_enough && !was_terminated {
                running.signal(Signal::SIGTERM);
                was_terminated = true;
            }
            if self.scenario == Scenario::Evicted && evictor.is_none() && file.exists() {
                evictor = Some(server.pglock().args(["evict", "--yes", "--key", &key]).spawn());
            }
            !running.lives()
        });
        if self.scenario == Scenario::Init {
            let drop_table = format!("DROP TABLE IF EXISTS {}", self.table());
            client.lock().unwrap().simple_query(&drop_table).unwrap();
        }
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
        let is_shown = |part: &&str| stderr.contains(*part) || stdout.contains(*part);
        if PASSWORD_PARTS.iter().any(is_shown) {
            verdict.violation("the password is shown".into());
        }
        // In the metrics, a key is as it was recorded.
        if self.scenario != Scenario::HistoryMetrics && stdout.chars().any(|c| c.is_control() && c != '\n') {
            verdict.violation(format!("a control character is printed: {stdout:?}"));
        }
        let most = if self.scenario.reads_lists() {
            MOST_MEMORY_OF_LISTS_KB
        } else {
            MOST_MEMORY_KB
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
            Some(_) if !self.scenario.is_tls() && !relay.has_granted() => {
                verdict.violation(format!("the job ran without a lock: {output}"));
            }
            // If the server says that the key has succeeded within `--once-per`, it has inserted nothing.
            Some(_) if self.scenario.is_recorded() && !relay.has_recorded(self.scenario.key_count()) => {
                verdict.violation(format!("the job ran though its run was not recorded: {output}"));
            }
            None if output.status.code() == Some(JOB_STATUS) => {
                verdict.violation(format!("exited like a job that did not run: {output}"));
            }
            _ => {}
        }
        if self.scenario == Scenario::OkWithin && verdict.code == Some(0) && !relay.has_said("age") {
            verdict.violation(format!("reported a success that the server has not: {output}"));
        }
    }

    /// Returns whether pglock waits for the lock, on the connection on which it is to get it.
    fn is_waited_for(&self, relay: &Relay) -> bool {
        relay.waiting_sessions() > usize::from(self.scenario.closed_stage().is_some())
    }

    /// Returns the table that [`Scenario::Init`] creates.
    fn table(&self) -> String {
        format!("fuzz_{:x}", self.seed)
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
        let is_interrupted = matches!(
            self.scenario,
            Scenario::Interrupted | Scenario::Init | Scenario::InitAgain
        );
        is_interrupted.then_some(Signal::SIGTERM as i32)
    }

    /// Acquires the lock in a session of another client, which releases it on drop: of a pglock with a note, where its
    /// name and its query are shown or it is to give it up, or of a plain client.
    fn hold(&self, server: &Secured, key: &str) -> Box<dyn Any> {
        use Scenario::*;
        if matches!(self.scenario, Refused | List | EvictByRequest) {
            return Box::new(server.run(key).args(["--note", NOTE]).holding());
        }
        let key = match self.scenario {
            SeveralKeys => format!("{key} b"),
            _ => key.to_owned(),
        };
        let mut client = server.client();
        let sql = format!("SELECT pg_advisory_lock({})", number(&key));
        client.simple_query(&sql).unwrap();
        Box::new(client)
    }

    fn pglock(&self, relay: &Relay, key: &str, file: &Path) -> Pglock {
        let mut pglock = Pglock::alone().env("HOME", file.parent().unwrap());
        for (name, value) in self.scenario.variables(relay.port()) {
            pglock = pglock.env(name, value);
        }
        // Twice this is what a reply may take.
        if self.scenario.is_observer() {
            pglock = pglock.env("PGLOCK_HEARTBEAT", "0.2");
        }
        let holds = |tampering: &Tampering| matches!(tampering.stage, Stage::Holding | Stage::Encrypted);
        let lasts = self.scenario == Scenario::Evicted || self.tamperings.iter().any(holds);
        pglock.args(self.scenario.arguments(key, &self.table(), file, lasts))
    }
}

impl Verdict {
    fn violation(&mut self, what: String) {
        self.violations.push(what);
    }
}

/// Returns a tampering that this scenario is likely to reach.
fn tampering(scenario: Scenario, random: &mut Random) -> Tampering {
    let stage = random.one_of(scenario.stages());
    let most = match stage {
        Stage::Tls => 1,
        Stage::Login => 4,
        Stage::Startup => 18,
        Stage::Asking if scenario.is_observer() => 40,
        Stage::Asking => 10,
        Stage::Waiting | Stage::Holding => 12,
        Stage::Release => 6,
        Stage::Encrypted => 6000,
    };
    Tampering {
        session: scenario.session(random),
        stage,
        nth: random.below(most),
        mutation: Mutation::draw(random),
    }
}

/// Returns the statement that records a success of the key.
fn success(key: &str) -> String {
    format!(
        "INSERT INTO pglock_run (key, number, mode, host, pid, job, waited, started, ended, exit_status, outcome) \
         VALUES ('{key}', '{}', 'exclusive', 'web1', 7, 'backup', 0, now(), now(), 0, 'ok')",
        number(key)
    )
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
