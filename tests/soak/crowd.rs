//! The pglocks: holders, waiters, and veterans, which wait for a key that is never released.

use super::Plan;
use super::support::pglock::binary;
use super::support::server::{Server, number, rows};
use super::support::wait::until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres::Client;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// How long it may take after a restart until each key is held and all others wait: the timing rule takes 23 s, and
/// hundreds of processes start.
const SETTLING: Duration = Duration::from_secs(180);
/// For how long nothing may change in a crowd that has settled.
const STEADY: Duration = Duration::from_secs(5);
/// The status of a pglock that has lost its lock.
const LOST: i32 = 74;
/// The key of the veterans.
const KEPT_KEY: &str = "soak-kept";

/// What a pglock does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Holder,
    Waiter,
    Veteran,
}

/// A pglock.
pub struct Member {
    key: String,
    child: Child,
    /// The number of the cycle in which it was started.
    pub since: u32,
    pub role: Role,
}

impl Member {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

/// All of them, ended on drop.
pub struct Crowd<'a> {
    server: &'a Server,
    plan: Plan,
    cycle: u32,
    members: Vec<Member>,
    observer: Client,
}

impl<'a> Crowd<'a> {
    pub fn start(server: &'a Server, plan: Plan) -> Crowd<'a> {
        let mut crowd = Crowd {
            server,
            plan,
            cycle: 1,
            members: Vec::new(),
            observer: server.client(),
        };
        crowd.keep();
        let veterans = plan.waiters.div_ceil(10);
        let keys = plan.holders + plan.waiters - veterans;
        for number in 0..keys {
            crowd.add(format!("soak-{}", number % plan.holders), Role::Waiter);
        }
        for _ in 0..veterans {
            crowd.add(KEPT_KEY.into(), Role::Veteran);
        }
        crowd
    }

    /// Starts a pglock. It ends with the test process, even if that is killed.
    fn add(&mut self, key: String, role: Role) {
        let log = File::options()
            .append(true)
            .create(true)
            .open(log(self.server))
            .unwrap();
        // Nobody waits for so long, but a first connection attempt is repeated with a limit only.
        let wait = (2 * self.plan.time.as_secs() + 3600).to_string();
        let mut pglock = self
            .server
            .program("setpriv")
            .args(["--pdeathsig", "TERM"])
            .arg(binary());
        pglock = pglock.args(["run", "--key", &key, "--wait", &wait, "--", "sleep", "1000000"]);
        let command = pglock.command().stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.members.push(Member {
            key,
            child: command.spawn().unwrap(),
            since: self.cycle,
            role,
        });
    }

    /// Returns what the pglocks have written most recently.
    pub fn messages(&self) -> String {
        messages(self.server, "")
    }

    pub fn begin_cycle(&mut self, number: u32) {
        self.cycle = number;
    }

    /// Connects again, after a restart.
    pub fn reconnect(&mut self) {
        self.observer = self.server.client();
    }

    /// Acquires the key of the veterans in a prepared transaction, which lives through every restart.
    fn keep(&mut self) {
        let key = number(KEPT_KEY);
        let sql = format!("BEGIN; SELECT pg_try_advisory_xact_lock({key}); PREPARE TRANSACTION 'kept'");
        assert_eq!(rows(&mut self.observer, &sql), [["t"]]);
    }

    /// Waits until all keys are held, all others wait, and nothing changes any more. Returns how long it took.
    pub fn settle(&mut self) -> Duration {
        let (began, mut changed) = (Instant::now(), Instant::now());
        let is_steady = until(SETTLING, || {
            if self.replace_ended() || !self.find_holders() {
                changed = Instant::now();
            }
            changed.elapsed() >= STEADY
        });
        let connections = self.connections();
        assert!(
            is_steady,
            "{connections} connections after {SETTLING:?}: {}",
            self.messages()
        );
        changed - began
    }

    /// Starts a waiter for each pglock that has lost its lock, and returns whether there is one.
    fn replace_ended(&mut self) -> bool {
        let mut keys = Vec::new();
        self.members.retain_mut(|member| {
            let Some(status) = member.child.try_wait().unwrap() else {
                return true;
            };
            // A waiter can have been granted the lock while the server terminated one session after the other.
            let is_loss = status.code() == Some(LOST) && member.role != Role::Veteran;
            assert!(
                is_loss,
                "{:?} of {}: {status}\n{}",
                member.role,
                member.key,
                messages(self.server, &member.key)
            );
            keys.push(member.key.clone());
            false
        });
        for key in &keys {
            self.add(key.clone(), Role::Waiter);
        }
        !keys.is_empty()
    }

    /// Returns whether any pglock has ended.
    pub fn has_ended(&mut self) -> bool {
        self.members
            .iter_mut()
            .any(|member| member.child.try_wait().unwrap().is_some())
    }

    /// Finds out who holds a key. Returns whether each key is held, and each pglock has one connection.
    fn find_holders(&mut self) -> bool {
        let sql = "SELECT substring(a.application_name FROM '[0-9]+$') \
                   FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid \
                   WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND a.application_name LIKE 'pglock:soak-%'";
        let pids = rows(&mut self.observer, sql).concat();
        let pids: BTreeSet<u32> = pids.iter().filter_map(|pid| pid.parse().ok()).collect();
        for member in self.members.iter_mut().filter(|member| member.role != Role::Veteran) {
            let holds = pids.contains(&member.pid());
            member.role = if holds { Role::Holder } else { Role::Waiter };
        }
        let holders = self.members.iter().filter(|member| member.role == Role::Holder);
        let keys: BTreeSet<&str> = holders.map(|member| member.key.as_str()).collect();
        keys.len() == self.plan.holders && self.connections() == self.members.len()
    }

    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Returns the number of the server's connections, without that of the test.
    pub fn connections(&mut self) -> usize {
        let sql = "SELECT count(*) - 1 FROM pg_stat_activity WHERE backend_type = 'client backend'";
        rows(&mut self.observer, sql)[0][0].parse().unwrap()
    }
}

fn log(server: &Server) -> PathBuf {
    server.directory().join("soak.log")
}

/// Returns the newest lines that contain this text.
fn messages(server: &Server, text: &str) -> String {
    let written = fs::read_to_string(log(server)).unwrap_or_default();
    // Some messages name no key.
    let is_wanted = |line: &&str| line.contains(text) || !line.contains("key \"");
    let lines: Vec<&str> = written.lines().filter(is_wanted).collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

impl Drop for Crowd<'_> {
    fn drop(&mut self) {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            let has_ended = |member: &mut Member| matches!(member.child.try_wait(), Ok(Some(_)));
            self.members.retain_mut(|member| !has_ended(member));
            for member in &self.members {
                let _ = kill(Pid::from_raw(member.pid() as i32), signal);
            }
            until(Duration::from_secs(30), || self.members.iter_mut().all(has_ended));
        }
    }
}
