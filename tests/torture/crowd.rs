//! Those who want the locks: each worker asks for one thing after the other, and writes down what became of it.

use super::dice::Dice;
use super::history::{End, Request, Run, now};
use super::support::probe::example;
use super::support::scrubbed;
use super::support::wait::until;
use super::world::{HOSTS, World};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Keys that one holds, or several share.
const KEYS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
/// The key of the slots, and how many there are.
const SLOTS: (&str, u16) = ("slots", 3);
/// The latest end of a pglock after all that it can have to wait for.
const LATEST: Duration = Duration::from_secs(60);

/// A pglock that runs, for the nemesis to find.
#[derive(Clone, Debug)]
pub struct Running {
    pub pid: Pid,
    pub request: Request,
}

/// What the workers share.
pub struct Crowd {
    folder: PathBuf,
    job: PathBuf,
    pub running: Mutex<BTreeMap<usize, Running>>,
    pub runs: Mutex<BTreeMap<usize, Run>>,
    next: AtomicUsize,
    over: AtomicBool,
}

impl Crowd {
    pub fn new(folder: &Path) -> Crowd {
        fs::create_dir(folder.join("store")).unwrap();
        File::create(folder.join("history")).unwrap();
        Crowd {
            folder: folder.to_owned(),
            job: example("torture-job"),
            running: Mutex::default(),
            runs: Mutex::default(),
            next: AtomicUsize::new(1),
            over: AtomicBool::new(false),
        }
    }

    /// The lines of all jobs so far.
    pub fn history(&self) -> String {
        fs::read_to_string(self.folder.join("history")).unwrap()
    }

    /// The last lines.
    pub fn recent(&self) -> String {
        let mut file = File::open(self.folder.join("history")).unwrap();
        let length = file.metadata().unwrap().len();
        file.seek(SeekFrom::Start(length.saturating_sub(50_000)))
            .unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub fn call_off(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Asks again and again, until that is called off.
    pub fn work(&self, world: &World, worker: usize, mut dice: Dice) {
        while !self.is_over() {
            let number = self.next.fetch_add(1, Ordering::SeqCst);
            let request = request(&mut dice, worker % HOSTS);
            let run = self.run(world, number, worker, request);
            self.runs.lock().unwrap().insert(number, run);
        }
    }

    fn run(&self, world: &World, number: usize, worker: usize, request: Request) -> Run {
        let said = self.folder.join(format!("stderr-{worker}"));
        let mut command = self.command(world, number, &request);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // A file, since a job that outlives its pglock would keep a pipe open.
        command.stderr(File::create(&said).unwrap());
        let began = now();
        let mut child = command.spawn().unwrap();
        let pid = Pid::from_raw(child.id() as i32);
        let running = Running {
            pid,
            request: request.clone(),
        };
        self.running.lock().unwrap().insert(number, running);
        let end = self.wait(number, &mut child);
        Run {
            request,
            began,
            ended: now(),
            end,
            stderr: fs::read_to_string(&said).unwrap(),
        }
    }

    fn command(&self, world: &World, number: usize, request: &Request) -> Command {
        let entrance = world.entrance(request.host);
        let mut command = scrubbed(&entrance[0]);
        command
            .args(&entrance[1..])
            .arg(env!("CARGO_BIN_EXE_pglock"));
        command.args(["run", "--heartbeat", "1", "--kill-after", "1"]);
        command.args(request.keys.iter().flat_map(|key| ["--key", key]));
        let flags = [
            (request.shared, "--shared".to_owned()),
            (request.fair, "--fair".to_owned()),
            (request.token, "--token".to_owned()),
            (
                request.min_hold > 0,
                format!("--min-hold={}ms", request.min_hold),
            ),
        ];
        command.args(
            flags
                .into_iter()
                .filter_map(|(is, flag)| is.then_some(flag)),
        );
        command.args(request.slots.map(|count| format!("--slots={count}")));
        command.arg(match request.wait {
            Some(seconds) => format!("--wait={seconds}"),
            None => "--no-wait".into(),
        });
        command.arg("--").arg(&self.job);
        command
            .arg(self.folder.join("history"))
            .arg(self.folder.join("store"));
        command.args([
            number.to_string(),
            request.life.to_string(),
            request.status.to_string(),
        ]);
        command.args(request.stubborn.then_some("stubborn"));
        command.env("PGLOCK_DSN", world.dsn(request.pooled));
        // The clocks of the last host are wrong; the monotonic one cannot be.
        if let (Some(library), true) = (faketime(), request.host == HOSTS - 1) {
            command.env("LD_PRELOAD", library).env("FAKETIME", "+100d");
            command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        command.process_group(0);
        command
    }

    /// Waits for the end. The number is taken off the list before the process id can be another's.
    fn wait(&self, number: usize, child: &mut Child) -> End {
        let id = || Id::Pid(Pid::from_raw(child.id() as i32));
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        let ended = || {
            waitid(id(), flags | WaitPidFlag::WNOHANG)
                .unwrap()
                .pid()
                .is_some()
        };
        let hung = !until(LATEST, ended);
        if hung {
            kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL).unwrap();
            waitid(id(), flags).unwrap();
        }
        self.running.lock().unwrap().remove(&number);
        let status = child.wait().unwrap();
        match (hung, status.code(), status.signal()) {
            (true, ..) => End::Hung,
            (_, Some(code), _) => End::Code(code),
            (.., signal) => End::Signal(signal.unwrap_or_default()),
        }
    }
}

/// Something to ask for.
fn request(dice: &mut Dice, host: usize) -> Request {
    let mut request = Request {
        keys: vec![dice.one_of(&KEYS)],
        token: dice.percent(80),
        pooled: dice.percent(30),
        wait: dice.percent(85).then(|| dice.number(1, 8) as f64),
        life: dice.number(0, 15),
        status: dice.one_of(&[0, 0, 3]),
        stubborn: dice.percent(10),
        host,
        ..Request::default()
    };
    if dice.percent(4) {
        request.life = dice.number(100, 1500);
    }
    if dice.percent(5) {
        request.min_hold = dice.number(10, 200);
    }
    match dice.number(0, 100) {
        0..20 => request.shared = true,
        20..35 => {
            request.keys = vec![SLOTS.0];
            request.slots = Some(SLOTS.1);
        }
        35..50 if request.wait.is_some() && !request.pooled => request.fair = true,
        50..60 => request.keys.push(dice.one_of(&KEYS)),
        _ => {}
    }
    request.keys.sort_unstable();
    request.keys.dedup();
    request
}

/// What lets a program see another time.
fn faketime() -> Option<PathBuf> {
    let folders = fs::read_dir("/usr/lib")
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()));
    let mut libraries = folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1"));
    libraries.find(|library| library.exists())
}
