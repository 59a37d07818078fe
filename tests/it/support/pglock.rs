//! Running pglock against a server, and asserting the result.
//!
//! Variables that would change where pglock connects or what it does are removed. pglock runs in a process group of its
//! own, and thus never in the foreground of a terminal, wherever the tests run; tests of the terminal start their own
//! [`Command`]. A pglock that hangs fails its test by a deadline, and one whose test has failed is terminated.

use super::command::command;
use super::server::{SUPERUSER, Server};
use super::wait::{SOON, until};
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::fmt;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a pglock may take unless a test says otherwise.
const LIMIT: Duration = Duration::from_secs(60);

/// Returns the program under test: the one that cargo has built, unless `PGLOCK_TEST_BINARY` names one for another
/// system (`scripts/check-targets`).
pub fn binary() -> String {
    std::env::var("PGLOCK_TEST_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_pglock").into())
}

/// A pglock (or another program, to compare with) that is not started yet.
pub struct Pglock {
    command: Command,
}

impl Server {
    /// Returns a pglock that finds this server by `PGHOST`, `PGPORT` and `PGUSER`.
    pub fn pglock(&self) -> Pglock {
        self.program(&binary())
    }

    /// Returns `pglock run --key KEY`; options and the command follow.
    pub fn run(&self, key: &str) -> Pglock {
        self.pglock().args(["run", "--key", key])
    }

    /// Returns another program in the environment of [`Server::pglock`].
    pub fn program(&self, program: &str) -> Pglock {
        let port = self.port().to_string();
        Pglock::for_program(program)
            .env("PGHOST", self.host())
            .env("PGPORT", port)
            .env("PGUSER", SUPERUSER)
            .env("HOME", self.host())
    }
}

impl Pglock {
    /// Returns a pglock without a server.
    pub fn alone() -> Pglock {
        Pglock::for_program(&binary())
    }

    /// Returns another program, to compare with.
    pub fn for_program(program: &str) -> Pglock {
        let mut command = command(program);
        command.process_group(0);
        Pglock { command }
    }

    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Pglock {
        self.command.arg(argument);
        self
    }

    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Pglock {
        self.command.args(arguments);
        self
    }

    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Pglock {
        self.command.env(name, value);
        self
    }

    /// Adds a shell script as the job.
    pub fn sh(self, script: &str) -> Pglock {
        self.args(["--", "sh", "-c", script])
    }

    /// Returns the command, for what this builder has no method for.
    pub fn command(&mut self) -> &mut Command {
        &mut self.command
    }

    /// Runs it to its end, with empty standard input.
    #[track_caller]
    pub fn output(self) -> Output {
        self.output_with(b"")
    }

    /// Runs it to its end, with this standard input.
    #[track_caller]
    pub fn output_with(self, stdin: &[u8]) -> Output {
        let mut running = self.spawn();
        // The job need not read all of it.
        let _ = running.stdin().write_all(stdin);
        running.finish()
    }

    /// Starts it. Its standard input stays open until it is finished.
    #[track_caller]
    pub fn spawn(mut self) -> Running {
        let line = format!("{:?}", self.command);
        self.command.stdin(Stdio::piped());
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let began = Instant::now();
        let mut child = self.command.spawn().unwrap();
        Running {
            line,
            began,
            stdin: child.stdin.take(),
            stdout: Collected::from(child.stdout.take().unwrap()),
            stderr: Collected::from(child.stderr.take().unwrap()),
            child,
        }
    }

    /// Starts it with a job that prints `ready`, and waits for that: the lock is held from then on until it is
    /// finished.
    #[track_caller]
    pub fn holding(self) -> Running {
        let running = self.sh("echo ready; read -r _; exit 0").spawn();
        running.await_stdout("ready\n");
        running
    }

    /// Starts it with a job that prints `PGLOCK_BACKEND_PID`, as [`Pglock::holding`], and returns that too.
    #[track_caller]
    pub fn holding_with_backend(self) -> (Running, String) {
        let running = self.sh("echo $PGLOCK_BACKEND_PID; read -r _; exit 0").spawn();
        running.await_stdout("\n");
        let backend = running.stdout().trim().to_owned();
        (running, backend)
    }
}

/// Returns a program of the Python environment that `scripts/setup` makes in cargo's target directory.
pub fn python_tool(name: &str) -> Pglock {
    let ancestors = Path::new(env!("CARGO_BIN_EXE_pglock")).ancestors();
    let mut candidates = ancestors.map(|directory| directory.join("python-tools/bin").join(name));
    let found = candidates.find(|path| path.exists());
    let found = found.expect("the Python tools are not installed; run scripts/setup test");
    Pglock::for_program(found.to_str().unwrap())
}

/// A started pglock. On drop it is terminated by TERM, which it forwards, and then by KILL.
pub struct Running {
    line: String,
    began: Instant,
    stdin: Option<ChildStdin>,
    stdout: Collected,
    stderr: Collected,
    child: Child,
}

impl Running {
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    pub fn stdin(&mut self) -> &mut ChildStdin {
        self.stdin.as_mut().expect("the standard input is closed")
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Sends it a signal that may be a real-time signal, for which nix has no name.
    #[expect(unsafe_code, reason = "no safe function takes a number")]
    pub fn signal_number(&self, signal: libc::c_int) {
        // SAFETY: kill(2) takes two numbers.
        Errno::result(unsafe { libc::kill(self.pid().as_raw(), signal) }).unwrap();
    }

    /// Returns whether it still runs.
    pub fn lives(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Returns its standard output so far.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout.so_far()).into_owned()
    }

    /// Returns its standard error so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.so_far()).into_owned()
    }

    /// Waits until this is on standard output.
    #[track_caller]
    pub fn await_stdout(&self, text: &str) {
        let what = format!("{text:?} on the standard output of {}", self.line);
        if !until(SOON, || self.stdout().contains(text)) {
            panic!("{what}: {:?} {:?}", self.stdout(), self.stderr());
        }
    }

    /// Waits until this is on standard error.
    #[track_caller]
    pub fn await_stderr(&self, text: &str) {
        let what = format!("{text:?} on the standard error of {}", self.line);
        if !until(SOON, || self.stderr().contains(text)) {
            panic!("{what}: {:?} {:?}", self.stdout(), self.stderr());
        }
    }

    /// Closes its standard input, and waits until it exits.
    #[track_caller]
    pub fn finish(mut self) -> Output {
        self.stdin = None;
        let ended = until(LIMIT, || !self.lives());
        let took = self.began.elapsed();
        let line = &self.line;
        if !ended {
            let (out, err) = (self.stdout(), self.stderr());
            panic!("has not exited after {took:?}: {line}\n{out}\n{err}");
        }
        let output = Output {
            line: line.clone(),
            status: self.child.wait().unwrap(),
            stdout: self.stdout.whole(),
            stderr: self.stderr.whole(),
            took,
        };
        let panicked = String::from_utf8_lossy(&output.stderr).contains("panicked at");
        assert!(!panicked, "a panic:\n{output}");
        output
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            // An open standard input could keep the job running.
            self.stdin = None;
            if !self.lives() {
                return;
            }
            let _ = kill(self.pid(), signal);
            until(Duration::from_secs(2), || !self.lives());
        }
    }
}

/// The exit status of a pglock, and all that it wrote.
#[derive(Clone)]
pub struct Output {
    line: String,
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub took: Duration,
}

impl Output {
    /// Asserts that it exited with this status; a death by signal does not count.
    #[track_caller]
    pub fn code(&self, code: i32) -> &Output {
        assert_eq!(self.status.code(), Some(code), "{self}");
        self
    }

    /// This signal ended it; an exit with 128+n is something else.
    #[track_caller]
    pub fn signal(&self, signal: Signal) -> &Output {
        self.signal_number(signal as i32)
    }

    /// The signal of this number ended it.
    #[track_caller]
    pub fn signal_number(&self, signal: libc::c_int) -> &Output {
        assert_eq!(self.status.signal(), Some(signal), "{self}");
        self
    }

    /// What it wrote to standard output; it succeeded, and wrote nothing to standard error.
    #[track_caller]
    pub fn stdout(&self) -> String {
        self.code(0).silent();
        String::from_utf8(self.stdout.clone()).unwrap()
    }

    /// Asserts that it wrote nothing to standard error.
    #[track_caller]
    pub fn silent(&self) -> &Output {
        assert!(self.stderr.is_empty(), "{self}");
        self
    }

    /// Returns the one line on standard error, without pglock's name. Asserts that standard output is empty.
    #[track_caller]
    pub fn stderr_line(&self) -> String {
        assert!(self.stdout.is_empty(), "{self}");
        let text = String::from_utf8(self.stderr.clone()).unwrap();
        let line = text.strip_prefix("pglock: ");
        let line = line.and_then(|line| line.strip_suffix('\n'));
        let line = line.unwrap_or_else(|| panic!("not a line of pglock's: {self}"));
        assert!(!line.contains('\n'), "more than one line: {self}");
        line.to_owned()
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = String::from_utf8_lossy;
        writeln!(f, "{}\n{} after {:?}", self.line, self.status, self.took)?;
        writeln!(f, "--- stdout\n{}", text(&self.stdout))?;
        writeln!(f, "--- stderr\n{}", text(&self.stderr))
    }
}

/// The output of a pipe, read as it arrives.
struct Collected {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Collected {
    fn from(mut pipe: impl Read + Send + 'static) -> Collected {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&bytes);
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 8192];
            while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                sink.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
        });
        Collected {
            bytes,
            reader: Some(reader),
        }
    }

    fn so_far(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }

    /// Returns everything up to the end of the pipe, or up to now if a process that was left behind keeps it open.
    fn whole(&mut self) -> Vec<u8> {
        if let Some(reader) = self.reader.take() {
            until(Duration::from_secs(2), || reader.is_finished());
        }
        self.so_far()
    }
}
