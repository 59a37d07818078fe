//! The clients that want locks: each worker makes one request after another, and records the result.

use super::history::{End, Run, now};
use super::plan::Plan;
use super::request::{Request, Road};
use super::support::command::command;
use super::support::faketime;
use super::support::probe::example;
use super::support::wait::{SOON, until};
use super::world::{HOSTS, World};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long a pglock may take beyond its wait and its job's life: faults, and a silent server.
const OVERTIME: Duration = Duration::from_secs(60);
/// A query through a pooler may wait two minutes for a session of the pool.
const OVERTIME_POOLED: Duration = Duration::from_secs(180);
/// The pause after a request that reached no server.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// A running pglock, for the nemesis to find.
#[derive(Clone, Debug)]
pub struct Running {
    pub pid: Pid,
    pub request: Request,
    due: Instant,
}

/// The state that the workers share.
pub struct Crowd {
    directory: PathBuf,
    pglock: PathBuf,
    job: PathBuf,
    pub running: Mutex<BTreeMap<usize, Running>>,
    pub runs: Mutex<BTreeMap<usize, Run>>,
    hung: Mutex<BTreeSet<usize>>,
    next: AtomicUsize,
    over: AtomicBool,
}

impl Crowd {
    /// Creates a crowd that uses this pglock, and records in this directory.
    pub fn new(directory: &Path, pglock: &Path) -> Crowd {
        fs::create_dir(directory.join("store")).unwrap();
        File::create(directory.join("history")).unwrap();
        Crowd {
            directory: directory.to_owned(),
            pglock: pglock.to_owned(),
            job: example("torture-job"),
            running: Mutex::default(),
            runs: Mutex::default(),
            hung: Mutex::default(),
            next: AtomicUsize::new(1),
            over: AtomicBool::new(false),
        }
    }

    /// Returns the lines of all jobs so far.
    pub fn history(&self) -> String {
        fs::read_to_string(self.directory.join("history")).unwrap()
    }

    /// Returns the last lines.
    pub fn recent(&self) -> String {
        let mut file = File::open(self.directory.join("history")).unwrap();
        let length = file.metadata().unwrap().len();
        file.seek(SeekFrom::Start(length.saturating_sub(400_000))).unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Returns the run whose session has this name, even if only its job is left.
    pub fn whose(&self, name: &str) -> Option<(usize, Request)> {
        let is_it = |pid: i32, request: &Request| {
            let keys = format!("pglock:{} ", request.keys.join(","));
            name.starts_with(&keys) && name.ends_with(&format!(":{pid}"))
        };
        let running = self.running.lock().unwrap();
        let mut all = running.iter();
        let found = all.find(|(_, running)| is_it(running.pid.as_raw(), &running.request));
        let found = found.map(|(number, running)| (*number, running.request.clone()));
        let runs = self.runs.lock().unwrap();
        found.or_else(|| {
            let mut ended = runs.iter().rev();
            let ended = ended.find(|(_, run)| is_it(run.pid, &run.request));
            ended.map(|(number, run)| (*number, run.request.clone()))
        })
    }

    pub fn call_off(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Makes requests until called off.
    pub fn work(&self, world: &World, plan: &Plan, worker: usize) {
        for request in plan.requests(worker) {
            until(Duration::from_millis(request.pause), || self.is_over());
            if self.is_over() {
                return;
            }
            let number = self.next.fetch_add(1, Ordering::SeqCst);
            let run = self.run(world, number, worker, request);
            let has_reached_no_server = run.end == End::Code(69);
            self.runs.lock().unwrap().insert(number, run);
            if has_reached_no_server {
                until(RETRY_PAUSE, || self.is_over());
            }
        }
    }

    fn run(&self, world: &World, number: usize, worker: usize, request: Request) -> Run {
        let stderr = self.directory.join(format!("stderr-{worker}"));
        world.enter(request.host);
        let mut command = self.command(world, number, &request);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // A file, since a job that outlives its pglock would keep a pipe open.
        command.stderr(File::create(&stderr).unwrap());
        let began = now();
        let mut child = command.spawn().unwrap();
        let pid = Pid::from_raw(child.id() as i32);
        let own =
            Duration::from_secs(request.wait.unwrap_or(0)) + Duration::from_millis(request.life + request.min_hold);
        let latest = match request.road {
            Road::Direct | Road::Proxy => OVERTIME,
            Road::Pooler | Road::PgDog | Road::Forwarder => OVERTIME_POOLED,
        };
        let running = Running {
            pid,
            request: request.clone(),
            due: Instant::now() + own + latest,
        };
        self.running.lock().unwrap().insert(number, running);
        let end = self.wait(number, &mut child);
        Run {
            request,
            pid: pid.as_raw(),
            began,
            ended: now(),
            end,
            stderr: fs::read_to_string(&stderr).unwrap(),
        }
    }

    fn command(&self, world: &World, number: usize, request: &Request) -> Command {
        let mut command = command(&self.pglock);
        command.args(["run", "--heartbeat", "1", "--kill-after", "1"]);
        command.args(["--connect-timeout", "4"]);
        command.args(options(request));
        if request.record {
            command.arg(format!("--note={number}"));
        }
        command.arg("--").arg(&self.job);
        for file in ["history", "store"] {
            command.arg(self.directory.join(file));
        }
        let numbers = [number as u64, request.life, request.status as u64];
        command.args(numbers.map(|number| number.to_string()));
        command.args(request.stubborn.then_some("stubborn"));
        command.env("PGLOCK_DSN", world.dsn(request.road));
        // The clocks of the last host are wrong; the monotonic one cannot be.
        if let (Some(library), true) = (faketime(), request.host == HOSTS - 1) {
            command.env("LD_PRELOAD", library).env("FAKETIME", "+100d");
            command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        command.process_group(0);
        command
    }

    /// Waits until it exits. Removes the run from the list before its process id can be reused.
    fn wait(&self, number: usize, child: &mut Child) -> End {
        let pid = Pid::from_raw(child.id() as i32);
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        while waitid(Id::Pid(pid), flags).is_err() {}
        self.running.lock().unwrap().remove(&number);
        let status = child.wait().unwrap();
        match (self.hung.lock().unwrap().contains(&number), status.code()) {
            (true, _) => End::Hung,
            (_, Some(code)) => End::Code(code),
            (_, None) => End::Signal(status.signal().unwrap_or_default()),
        }
    }

    /// Kills pglocks that are overdue, until all have exited.
    pub fn oversee(&self) {
        let all_ended = || {
            let running = self.running.lock().unwrap();
            for (number, overdue) in running.iter().filter(|(_, running)| running.due < Instant::now()) {
                self.hung.lock().unwrap().insert(*number);
                let _ = kill(overdue.pid, Signal::SIGKILL);
            }
            self.is_over() && running.is_empty()
        };
        while !until(SOON, all_ended) {}
    }
}

/// Returns the options of the request.
fn options(request: &Request) -> Vec<String> {
    let keys = request.keys.iter();
    let mut options: Vec<String> = keys.map(|key| format!("--key={key}")).collect();
    let flags = [
        (request.shared, "--shared"),
        (request.fair, "--fair"),
        (request.token, "--token"),
    ];
    let flags = flags.into_iter().filter(|(is_set, _)| *is_set);
    options.extend(flags.map(|(_, flag)| flag.to_owned()));
    options.extend(request.slots.map(|count| format!("--slots={count}")));
    options.extend(match request.once_per {
        Some(seconds) => Some(format!("--once-per={seconds}")),
        None => request.record.then(|| "--record".into()),
    });
    if request.min_hold > 0 {
        options.push(format!("--min-hold={}ms", request.min_hold));
    }
    options.push(match request.wait {
        Some(seconds) => format!("--wait={seconds}"),
        None => "--no-wait".into(),
    });
    options
}
