//! The nemesis: does one bad thing after the other, each undone before the end, and writes down what it did and when.

use super::crowd::{Crowd, Running};
use super::dice::Dice;
use super::history::{Fault, Kind, Target, now};
use super::support::scrubbed;
use super::support::server::SUPERUSER;
use super::support::wait::{SOON, until};
use super::world::{HOSTS, World};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres::NoTls;
use std::collections::HashMap;
use std::fs;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

pub struct Nemesis<'a> {
    pub world: &'a World,
    pub crowd: &'a Crowd,
    pub dice: Dice,
    pub kinds: Vec<Kind>,
    pub faults: Vec<Fault>,
}

impl Nemesis<'_> {
    /// Goes on until the crowd is called off.
    pub fn rage(mut self) -> Vec<Fault> {
        while !self.crowd.is_over() && !self.kinds.is_empty() {
            self.pause(20, 300);
            let kind = self.dice.one_of(&self.kinds);
            // What stops everybody is rare, or there would be nothing else.
            let is_rare = matches!(
                kind,
                Kind::Crash | Kind::KillBackend | Kind::Exhaust | Kind::KillPooler
            );
            let is_very_rare = kind == Kind::Failover;
            if is_rare && !self.dice.percent(30) || is_very_rare && !self.dice.percent(10) {
                continue;
            }
            let began = now();
            let target = self.strike(kind);
            let ended = now();
            self.faults.extend(target.map(|target| Fault {
                kind,
                target,
                began,
                ended,
            }));
        }
        self.faults
    }

    fn pause(&mut self, low: u64, high: u64) {
        sleep(Duration::from_millis(self.dice.number(low, high)));
    }

    /// Does it. `None` if there was nobody to do it to.
    fn strike(&mut self, kind: Kind) -> Option<Target> {
        match kind {
            Kind::KillPglock => self.signal_pglock(&[Signal::SIGKILL]),
            Kind::TermPglock => self.signal_pglock(&[Signal::SIGTERM]),
            Kind::StopPglock => self.signal_pglock(&[Signal::SIGSTOP, Signal::SIGCONT]),
            Kind::KillJob => self.signal_job(&[Signal::SIGKILL]),
            Kind::TermJob => self.signal_job(&[Signal::SIGTERM]),
            Kind::StopJob => self.signal_job(&[Signal::SIGSTOP, Signal::SIGCONT]),
            Kind::EndSession => self.end_session(),
            Kind::Evict => self.evict(),
            Kind::KillBackend => self.kill_backend(),
            Kind::Crash => {
                self.world.crash();
                Some(Target::All)
            }
            Kind::Failover => {
                self.world.fail_over();
                Some(Target::All)
            }
            Kind::KillPooler => {
                self.world.replace_pooler();
                Some(Target::Pooled)
            }
            Kind::Reconnect => {
                self.world.reconnect_pooler();
                Some(Target::Pooled)
            }
            Kind::Cut => self.cut(),
            Kind::SlowDisk => self.slow_disk(),
            Kind::Exhaust => self.exhaust(),
        }
    }

    fn somebody(&mut self) -> Option<(usize, Running)> {
        let running = self.crowd.running.lock().unwrap().clone();
        let all: Vec<_> = running.into_iter().collect();
        let count = all.len() as u64;
        (count > 0).then(|| all[self.dice.number(0, count) as usize].clone())
    }

    /// Sends the first signal, and after a while the others. Whoever has ended in between is spared.
    fn signal_pglock(&mut self, signals: &[Signal]) -> Option<Target> {
        let (number, _) = self.somebody()?;
        for (index, signal) in signals.iter().enumerate() {
            if index > 0 {
                self.pause(20, 4000);
            }
            // On the list, its process id is its own.
            let running = self.crowd.running.lock().unwrap();
            if let Some(found) = running.get(&number) {
                let _ = kill(found.pid, *signal);
            }
        }
        Some(Target::Run(number))
    }

    fn signal_job(&mut self, signals: &[Signal]) -> Option<Target> {
        let jobs = jobs_of(&self.crowd.recent());
        let living: Vec<_> = jobs.iter().filter(|(_, pid)| is_job(**pid)).collect();
        let count = living.len() as u64;
        let (number, pid) = match count {
            0 => return None,
            _ => living[self.dice.number(0, count) as usize],
        };
        for (index, signal) in signals.iter().enumerate() {
            if index > 0 {
                self.pause(20, 4000);
            }
            if is_job(*pid) {
                let _ = kill(*pid, *signal);
            }
        }
        Some(Target::Run(*number))
    }

    /// One of the server's sessions that are pglocks': its process, and whose it is.
    fn backend(&mut self) -> Option<(i32, Target)> {
        let sql = "SELECT pid, application_name FROM pg_stat_activity WHERE application_name LIKE 'pglock:%'";
        let found = self.ask(sql)?;
        let count = found.len() as u64;
        let row = match count {
            0 => return None,
            _ => &found[self.dice.number(0, count) as usize],
        };
        let pid = row[1].rsplit(':').next()?.parse().ok()?;
        let running = self.crowd.running.lock().unwrap();
        let (number, whose) = running
            .iter()
            .find(|(_, it)| it.pid == Pid::from_raw(pid))?;
        // A session of the pool can be another client's by now.
        let target = match whose.request.pooled {
            true => Target::Pooled,
            false => Target::Run(*number),
        };
        Some((row[0].parse().ok()?, target))
    }

    fn end_session(&mut self) -> Option<Target> {
        let (backend, target) = self.backend()?;
        self.ask(&format!("SELECT pg_terminate_backend({backend})"))?;
        Some(target)
    }

    /// The server ends all its sessions, and recovers.
    fn kill_backend(&mut self) -> Option<Target> {
        let (backend, _) = self.backend()?;
        let mut witness = self.world.primary().config().connect(NoTls).ok()?;
        let name = fs::read_to_string(format!("/proc/{backend}/comm")).ok()?;
        if name.trim() != "postgres" || kill(Pid::from_raw(backend), Signal::SIGKILL).is_err() {
            return None;
        }
        until(SOON, || witness.simple_query("").is_err());
        self.await_server();
        Some(Target::All)
    }

    fn await_server(&self) {
        until(SOON, || self.ask("SELECT 1").is_some());
    }

    fn evict(&mut self) -> Option<Target> {
        let (_, running) = self.somebody()?;
        let key = running.request.keys[0];
        let mut evict = scrubbed(env!("CARGO_BIN_EXE_pglock"));
        evict.args(["evict", "--yes", "--key", key]);
        evict.env("PGLOCK_DSN", self.dsn_from_here());
        evict
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        evict.status().unwrap();
        Some(Target::Key(key))
    }

    fn cut(&mut self) -> Option<Target> {
        let host = self.dice.number(0, HOSTS as u64) as usize;
        self.world.cut(host);
        // Half of them are no more than delays.
        match self.dice.percent(50) {
            true => self.pause(20, 500),
            false => self.pause(500, 9000),
        }
        self.world.heal(host);
        Some(Target::Host(host))
    }

    /// Each flush of the WAL waits before it writes.
    fn slow_disk(&mut self) -> Option<Target> {
        self.ask("ALTER SYSTEM SET commit_delay = 100000")?;
        self.ask("SELECT pg_reload_conf()")?;
        self.pause(200, 2000);
        self.ask("ALTER SYSTEM RESET commit_delay")?;
        self.ask("SELECT pg_reload_conf()")?;
        Some(Target::All)
    }

    fn exhaust(&mut self) -> Option<Target> {
        let config = self.world.primary().config();
        let mut taken = Vec::new();
        while let Ok(client) = config.connect(NoTls) {
            taken.push(client);
        }
        self.pause(100, 1500);
        drop(taken);
        self.await_server();
        Some(Target::All)
    }

    fn dsn_from_here(&self) -> String {
        let server = self.world.primary();
        format!(
            "host={} port={} user={SUPERUSER} dbname=postgres",
            server.host(),
            server.port()
        )
    }

    /// The rows of an answer, over the socket; `None` if the server cannot be asked.
    fn ask(&self, sql: &str) -> Option<Vec<Vec<String>>> {
        let mut client = self.world.primary().config().connect(NoTls).ok()?;
        let messages = client.simple_query(sql).ok()?;
        let rows = messages.into_iter().filter_map(|message| match message {
            postgres::SimpleQueryMessage::Row(row) => Some(
                (0..row.len())
                    .map(|index| row.get(index).unwrap_or_default().to_owned())
                    .collect(),
            ),
            _ => None,
        });
        Some(rows.collect())
    }
}

/// The jobs of these lines, which may have ended.
fn jobs_of(history: &str) -> HashMap<usize, Pid> {
    let enters = history.lines().filter(|line| line.starts_with("enter "));
    enters
        .filter_map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            Some((
                words.get(2)?.parse().ok()?,
                Pid::from_raw(words.get(3)?.parse().ok()?),
            ))
        })
        .collect()
}

/// Whether this process is a job of ours still.
pub fn is_job(pid: Pid) -> bool {
    fs::read(format!("/proc/{pid}/comm")).is_ok_and(|name| name == b"torture-job\n")
}
