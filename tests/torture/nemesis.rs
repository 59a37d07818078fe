//! The nemesis: injects one fault after another, heals each, and records what it did and when.
//!
//! The plan says what it does; who is hit depends on what is running. A fault counts from when it is attempted.

use super::crowd::{Crowd, Running};
use super::history::{Fault, Target, now};
use super::plan::{Kind, Strike};
use super::request::{Request, Road};
use super::support::command::command;
use super::support::server::number;
use super::support::wait::{SOON, until};
use super::world::{HOSTS, World, admin_dsn};
use nix::sys::signal::Signal::{SIGCONT, SIGKILL, SIGSTOP, SIGTERM};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres::{NoTls, SimpleQueryMessage};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

/// How long a client of the pool waits for a lock that it leaves there.
const LEFTOVER_WAIT: Duration = Duration::from_millis(1500);

/// How often it is seen whether the lock is still there.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// How old a server may be for the losers of a restart to come before newcomers, which leave it alone for half a
/// second, on a busy machine.
const LONGEST_SHORT_STALL: Duration = Duration::from_millis(300);

/// The condition that a pglock's session is the one that the forwarding pooler lends: all others come by TCP.
const IS_FORWARDED: &str = "client_addr IS NULL";

pub struct Nemesis<'a> {
    pub world: &'a World,
    pub crowd: &'a Crowd,
}

impl Nemesis<'_> {
    /// Injects the planned faults until the crowd is called off.
    pub fn run(&self, plan: impl Iterator<Item = Strike>) -> Vec<Fault> {
        let mut faults = Vec::new();
        for strike in plan {
            until(millis(strike.pause), || self.crowd.is_over());
            if self.crowd.is_over() {
                break;
            }
            match strike.kind {
                Kind::Leftover => {
                    faults.extend(self.leave_a_lock(&strike));
                    continue;
                }
                Kind::StalledRestart => {
                    faults.extend(self.restart_while_stalled(&strike));
                    continue;
                }
                Kind::Failover => {
                    faults.push(self.fail_over());
                    continue;
                }
                _ => {}
            }
            let began = now();
            let target = self.strike(&strike);
            let ended = now();
            faults.extend(target.map(|target| Fault {
                kind: strike.kind,
                target,
                began,
                ended,
            }));
        }
        faults
    }

    /// Injects the fault. Returns `None` if there was nothing to hit.
    fn strike(&self, strike: &Strike) -> Option<Target> {
        match strike.kind {
            Kind::KillPglock => self.signal_pglock(strike, SIGKILL),
            Kind::TermPglock => self.signal_pglock(strike, SIGTERM),
            Kind::StopPglock => self.signal_pglock(strike, SIGSTOP),
            Kind::KillJob => self.signal_job(strike, SIGKILL),
            Kind::TermJob => self.signal_job(strike, SIGTERM),
            Kind::StopJob => self.signal_job(strike, SIGSTOP),
            Kind::EndSession => self.end_session(strike),
            Kind::EndForwarded => self.end_forwarded(),
            Kind::TermBackend => self.signal_backend(strike, SIGTERM),
            Kind::StopBackend => self.signal_backend(strike, SIGSTOP),
            Kind::KillBackend => self.kill_backend(strike),
            Kind::Evict => self.evict(strike, &[]),
            Kind::EvictForced => self.evict(strike, &["--force"]),
            Kind::Cut => {
                let host = self.host(strike);
                self.world.cut(Some(host), || wait_for_fault(strike));
                Some(Target::Host(host))
            }
            Kind::Delay => {
                let host = self.host(strike);
                let is_done = self.world.slow_down(host, || wait_for_fault(strike));
                is_done.then_some(Target::Host(host))
            }
            _ => self.strike_all(strike),
        }
    }

    /// Injects a fault that hits all, or all that connect through a pooler.
    fn strike_all(&self, strike: &Strike) -> Option<Target> {
        match strike.kind {
            Kind::Crash => self.world.crash(),
            Kind::Restart => self.world.restart(|| (), || ()),
            Kind::Switchover => self.world.switch_over().then_some(())?,
            Kind::KillPooler => self.world.replace_pooler(),
            Kind::KillForwarder => self.world.replace_forwarder(),
            Kind::Reconnect => self.world.reconnect_pooler(),
            Kind::KillProxy => self.world.replace_proxy(),
            Kind::CutProxy => self.world.cut_proxy(),
            Kind::CutServer => self.world.cut(None, || wait_for_fault(strike)),
            Kind::SlowDisk => self.slow_disk(strike)?,
            Kind::Exhaust => self.exhaust(strike),
            _ => return None,
        }
        Some(match strike.kind {
            Kind::KillPooler | Kind::Reconnect => Target::Pooled,
            Kind::KillForwarder => Target::Forwarded,
            Kind::KillProxy | Kind::CutProxy => Target::Proxied,
            _ => Target::All,
        })
    }

    /// Promotes the standby in place of the primary, and makes the next standby. The fault is over with the promotion.
    fn fail_over(&self) -> Fault {
        let began = now();
        let promoted = Cell::new(began);
        self.world.fail_over(|| promoted.set(now()));
        Fault {
            kind: Kind::Failover,
            target: Target::All,
            began,
            ended: promoted.get(),
        }
    }

    /// Restarts the server while the pglocks whose jobs run stand still, until it is as old as the strike lasts. Their
    /// stop is a fault of its own if newcomers may come before them.
    fn restart_while_stalled(&self, strike: &Strike) -> Vec<Fault> {
        let jobs = RefCell::new(BTreeMap::new());
        let signal = |signal| {
            // While one is on the list, its process id is not reused.
            let running = self.crowd.running.lock().unwrap();
            for found in jobs.borrow().keys().filter_map(|number| running.get(number)) {
                let _ = kill(found.pid, signal);
            }
        };
        let (mut began, mut age) = (now(), None);
        self.world.restart(
            || {
                began = now();
                jobs.replace(living_jobs(&self.crowd.recent()));
                signal(SIGSTOP);
            },
            || {
                until(SOON, || {
                    age = self.server_age();
                    age.is_none_or(|age| age >= millis(strike.lasts))
                });
                signal(SIGCONT);
            },
        );
        let (ended, jobs) = (now(), jobs.into_inner());
        let fault = |kind, target| Fault {
            kind,
            target,
            began,
            ended,
        };
        let mut faults = vec![fault(Kind::StalledRestart, Target::All)];
        if age.is_none_or(|age| age > LONGEST_SHORT_STALL) {
            faults.extend(jobs.keys().map(|&number| fault(Kind::StopPglock, Target::Run(number))));
        }
        faults
    }

    /// Returns how long ago the server was started.
    fn server_age(&self) -> Option<Duration> {
        let sql = "SELECT EXTRACT(epoch FROM clock_timestamp() - pg_postmaster_start_time())";
        let seconds = self.world.query(sql)?.concat().concat();
        Duration::try_from_secs_f64(seconds.parse().ok()?).ok()
    }

    fn pick_running(&self, strike: &Strike) -> Option<(usize, Running)> {
        let jobs = if strike.is_aimed {
            living_jobs(&self.crowd.recent())
        } else {
            BTreeMap::new()
        };
        let running = self.crowd.running.lock().unwrap();
        let mut aimed = running.clone();
        aimed.retain(|number, _| jobs.contains_key(number));
        let (number, found) = picked(strike, &aimed).or_else(|| picked(strike, &running))?;
        Some((*number, found.clone()))
    }

    /// Picks a host; an aimed strike one whose job the server alone keeps from overlapping with the next: it is
    /// connected directly, and only SIGKILL ends it.
    fn host(&self, strike: &Strike) -> usize {
        let jobs = living_jobs(&self.crowd.recent());
        let mut aimed = self.crowd.running.lock().unwrap().clone();
        aimed.retain(|number, found| {
            let Request { road, stubborn, .. } = found.request;
            strike.is_aimed && jobs.contains_key(number) && road == Road::Direct && stubborn
        });
        let host = picked(strike, &aimed).map(|(_, running)| running.request.host);
        host.unwrap_or(strike.pick as usize % HOSTS)
    }

    fn signal_pglock(&self, strike: &Strike, signal: Signal) -> Option<Target> {
        let (number, _) = self.pick_running(strike)?;
        signal_for_a_while(strike, signal, || {
            // While it is on the list, its process id is not reused.
            let running = self.crowd.running.lock().unwrap();
            running.get(&number).map(|found| found.pid)
        });
        Some(Target::Run(number))
    }

    fn signal_job(&self, strike: &Strike, signal: Signal) -> Option<Target> {
        let jobs = living_jobs(&self.crowd.recent());
        let (number, pid) = picked(strike, &jobs)?;
        signal_for_a_while(strike, signal, || is_job(*pid, *number).then_some(*pid));
        Some(Target::Run(*number))
    }

    /// Returns the process id of one of the pglocks' sessions, and whose it is.
    fn backend(&self, strike: &Strike) -> Option<(Pid, Target)> {
        let jobs = living_jobs(&self.crowd.recent());
        let server = self.world.primary();
        let sql = format!(
            "SELECT pid, application_name, client_addr = '{}', {IS_FORWARDED} FROM pg_stat_activity \
             WHERE application_name LIKE 'pglock:%'",
            server.address()
        );
        let found = self.world.query(&sql)?.into_iter();
        let found = found.filter_map(|row| <[String; 4]>::try_from(row).ok());
        let found: BTreeMap<String, [String; 3]> = found
            .map(|[pid, name, is_local, is_forwarded]| (pid, [name, is_local, is_forwarded]))
            .collect();
        let mut aimed = found.clone();
        aimed.retain(|_, [name, ..]| {
            let owner = self.crowd.whose(name);
            strike.is_aimed && owner.is_some_and(|(number, _)| jobs.contains_key(&number))
        });
        let (backend, [name, is_local, is_forwarded]) = picked(strike, &aimed).or_else(|| picked(strike, &found))?;
        // A session of the pool keeps the name of its last client, and may serve another one by now.
        let is_pooled = self.world.has_cables() && is_local == "t";
        let target = match self.crowd.whose(name) {
            _ if is_forwarded == "t" => Target::Forwarded,
            Some((number, request)) if !request.is_pooled() && !is_pooled => Target::Run(number),
            _ => Target::Pooled,
        };
        Some((Pid::from_raw(backend.parse().ok()?), target))
    }

    fn end_session(&self, strike: &Strike) -> Option<Target> {
        let (backend, target) = self.backend(strike)?;
        self.world.query(&format!("SELECT pg_terminate_backend({backend})"));
        Some(target)
    }

    fn end_forwarded(&self) -> Option<Target> {
        let sql = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'pglock:%' AND {IS_FORWARDED}"
        );
        let ended = self.world.query(&sql)?;
        (!ended.is_empty()).then_some(Target::Forwarded)
    }

    fn signal_backend(&self, strike: &Strike, signal: Signal) -> Option<Target> {
        let (backend, target) = self.backend(strike)?;
        let server = self.world.primary().directory().to_owned();
        signal_for_a_while(strike, signal, || {
            is_child_of(backend, &server.join("data")).then_some(backend)
        });
        // A stopped backend may block all others.
        Some(if signal == SIGSTOP { Target::All } else { target })
    }

    /// Kills a backend, whereupon the server ends all its sessions and recovers.
    fn kill_backend(&self, strike: &Strike) -> Option<Target> {
        let (backend, _) = self.backend(strike)?;
        self.world.crash_by(|server| {
            let mut witness = server.config().connect(NoTls).ok()?;
            if !is_child_of(backend, &server.directory().join("data")) {
                return None;
            }
            kill(backend, SIGKILL).ok()?;
            until(SOON, || witness.simple_query("").is_err());
            self.await_server();
            Some(())
        })?;
        Some(Target::All)
    }

    fn await_server(&self) {
        until(SOON, || self.world.query("SELECT 1").is_some());
    }

    fn evict(&self, strike: &Strike, options: &[&str]) -> Option<Target> {
        let (_, running) = self.pick_running(strike)?;
        let key = running.request.keys[0];
        let mut evict = command(env!("CARGO_BIN_EXE_pglock"));
        evict.args(["evict", "--yes", "--key", key]).args(options);
        // Those of the pglocks: a holder that is new does not show its own yet.
        evict.env("PGLOCK_HEARTBEAT", "1").env("PGLOCK_KILL_AFTER", "1");
        evict.env("PGLOCK_DSN", admin_dsn(self.world.primary()));
        evict.stdin(Stdio::null()).stdout(Stdio::null());
        evict.stderr(Stdio::null()).status().unwrap();
        Some(Target::Key(key))
    }

    /// Takes a lock of the session through the pooler, and leaves. The fault lasts for as long as the lock was seen to
    /// be there; the end of its session is another one.
    fn leave_a_lock(&self, strike: &Strike) -> Vec<Fault> {
        let Some((_, running)) = self.pick_running(strike) else {
            return Vec::new();
        };
        let key = running.request.keys[0];
        let (pid, mut faults) = self.lock_in_pool(key, strike.is_aimed);
        let (Some(pid), began) = (pid, now()) else {
            return faults;
        };
        let present = format!("SELECT 1 FROM pg_locks WHERE pid = {pid} AND locktype = 'advisory' AND granted");
        let end = began + u128::from(strike.lasts) * 1_000_000;
        let (mut ended, mut is_there) = (began, true);
        while is_there && now() < end && !self.crowd.is_over() {
            let_pass(LOOK_INTERVAL);
            let at = now();
            let found = self.world.query(&present);
            is_there = found.as_ref().is_none_or(|rows| !rows.is_empty());
            if found.is_some() && is_there {
                ended = at;
            }
        }
        let ending = now();
        until(SOON, || {
            self.world
                .query(&format!("SELECT pg_terminate_backend({pid})"))
                .is_some()
        });
        let fault = |kind, target, began, ended| Fault {
            kind,
            target,
            began,
            ended,
        };
        faults.push(fault(Kind::Leftover, Target::Key(key), began, ended));
        faults.push(fault(Kind::EndSession, Target::Pooled, ending, now()));
        faults
    }

    /// Waits for the lock in the server's queue, and so comes before the pglock that loses its session meanwhile: if it
    /// `pushes`, those that it waits for do. Returns the process id of the session that then has the lock.
    fn lock_in_pool(&self, key: &str, pushes: bool) -> (Option<String>, Vec<Fault>) {
        let Some(mut client) = self.world.pool_client() else {
            return (None, Vec::new());
        };
        let Some(pid) = first_cell(client.simple_query("BEGIN; SELECT pg_backend_pid()")) else {
            return (None, Vec::new());
        };
        let (wait, key) = (LEFTOVER_WAIT.as_millis(), number(key));
        let sql = format!("SET LOCAL lock_timeout = {wait}; SELECT 1 FROM pg_advisory_lock({key}); COMMIT");
        thread::scope(|scope| {
            let waiter = scope.spawn(|| first_cell(client.simple_query(&sql)));
            let mut faults = Vec::new();
            until(LEFTOVER_WAIT, || {
                faults = if pushes { self.end_blockers(&pid) } else { Vec::new() };
                !faults.is_empty() || waiter.is_finished()
            });
            (waiter.join().unwrap().map(|_| pid), faults)
        })
    }

    /// Ends the pglocks' own sessions for which this backend waits.
    fn end_blockers(&self, waiter: &str) -> Vec<Fault> {
        let began = now();
        let sql = format!(
            "SELECT pid, application_name FROM pg_stat_activity \
             WHERE pid = ANY (pg_blocking_pids({waiter})) AND application_name LIKE 'pglock:%'"
        );
        let found = self.world.query(&sql).unwrap_or_default().into_iter();
        let found = found.filter_map(|row| <[String; 2]>::try_from(row).ok());
        let owned = found.filter_map(|[pid, name]| {
            let (number, request) = self.crowd.whose(&name)?;
            request.has_session().then_some((pid, number))
        });
        let ended = owned.map(|(pid, number)| {
            self.world.query(&format!("SELECT pg_terminate_backend({pid})"));
            Fault {
                kind: Kind::EndSession,
                target: Target::Run(number),
                began,
                ended: now(),
            }
        });
        ended.collect()
    }

    /// Delays each flush of the WAL.
    fn slow_disk(&self, strike: &Strike) -> Option<()> {
        self.world.query("ALTER SYSTEM SET commit_delay = 100000")?;
        self.world.query("SELECT pg_reload_conf()");
        wait_for_fault(strike);
        // The server may be down meanwhile.
        let heal = "ALTER SYSTEM RESET commit_delay";
        until(SOON, || self.world.query(heal).is_some());
        self.world.query("SELECT pg_reload_conf()");
        Some(())
    }

    fn exhaust(&self, strike: &Strike) {
        let config = self.world.primary().config();
        let mut taken = Vec::new();
        while let Ok(client) = config.connect(NoTls) {
            taken.push(client);
        }
        wait_for_fault(strike);
        drop(taken);
        self.await_server();
    }
}

/// Returns the item that the strike picks.
fn picked<'a, K: Ord, V>(strike: &Strike, all: &'a BTreeMap<K, V>) -> Option<(&'a K, &'a V)> {
    let index = strike.pick.checked_rem(all.len() as u64)?;
    all.iter().nth(index as usize)
}

/// Sends the signal; a stop is undone after a while. A process that has exited by then is spared.
fn signal_for_a_while(strike: &Strike, signal: Signal, whom: impl Fn() -> Option<Pid>) {
    let send = |signal| whom().map(|pid| kill(pid, signal));
    send(signal);
    if signal == SIGSTOP {
        wait_for_fault(strike);
        send(SIGCONT);
    }
}

/// Returns the first cell of the first row of these replies.
fn first_cell(replies: Result<Vec<SimpleQueryMessage>, postgres::Error>) -> Option<String> {
    replies.ok()?.iter().find_map(|reply| match reply {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    })
}

/// Waits for the length of the fault.
fn wait_for_fault(strike: &Strike) {
    let_pass(millis(strike.lasts));
}

/// Lets a planned time pass: the length of a fault or of a run, which is an input and no wait for a condition.
pub fn let_pass(time: Duration) {
    thread::sleep(time);
}

fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// Returns whether this process is a backend of the server with this data directory, and not another process with the
/// same id.
fn is_child_of(pid: Pid, data: &Path) -> bool {
    let postmaster = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:\t"));
    parent.is_some() && parent == postmaster.lines().next()
}

/// Returns the jobs in these lines, which may have ended.
fn jobs_in(history: &str) -> BTreeMap<usize, Pid> {
    let enters = history.lines().filter(|line| line.starts_with("enter "));
    let jobs = enters.filter_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let (run, pid) = (fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?);
        Some((run, Pid::from_raw(pid)))
    });
    jobs.collect()
}

/// Returns whether this process is the job of this run, and not another process with the same id.
fn is_job(pid: Pid, run: usize) -> bool {
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut arguments = line.split('\0');
    let is_program = arguments.next().is_some_and(|name| name.ends_with("torture-job"));
    is_program && arguments.nth(2) == Some(&run.to_string())
}

/// Returns the jobs in these lines that are alive.
pub fn living_jobs(history: &str) -> BTreeMap<usize, Pid> {
    let mut jobs = jobs_in(history);
    jobs.retain(|number, pid| is_job(*pid, *number));
    jobs
}
