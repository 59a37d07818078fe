//! The job: starting the command, signalling it, and learning how it ended.
//!
//! Its standard streams, working directory and arguments are pglock's own, untouched. Its process group
//! depends on where pglock runs. In the foreground of a terminal it stays in the caller's group, so that the
//! terminal's keys reach it and the script around it exactly as without pglock. Everywhere else it leads a group of
//! its own, and is signalled as that group.
//!
//! A pid is only used while it cannot belong to anybody else: from the start until [`Job::reap`].

pub mod processes;
pub mod spawn;

use crate::key::{Key, KeyId};
use crate::lock::Mode;
use crate::outcome::{ExitCode, ExitReason, Failure};
use crate::run::job::spawn::{Setup, spawn};
use crate::run::signals::Signals;
use crate::sys::{self, WaitStatus};
use crate::ui::terminal;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getpgid, getpgrp};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A command to run under the lock.
pub struct Launch<'a> {
    /// The command and its arguments.
    pub command: &'a [OsString],
    /// The keys that are held, for the environment.
    pub keys: &'a [Key],
    /// Their numbers.
    pub ids: &'a [KeyId],
    /// How it is held, for the environment.
    pub mode: Mode,
    /// The slot that is held, for the environment.
    pub slot: Option<usize>,
    /// The fencing token, for the environment.
    pub token: Option<&'a str>,
    /// Who holds it on the server, for the environment.
    pub backend_pid: i32,
    /// The session's socket, for the job to inherit: the lock then outlives a pglock that is killed.
    pub socket: Option<&'a OwnedFd>,
}

/// A started job that is not reaped yet.
pub struct Job {
    pid: Pid,
    group: Group,
    /// Children that we had before, because a shell has become us by exec.
    others: Vec<Pid>,
}

/// Which process group the job is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// The one that pglock's caller made: the terminal's foreground.
    Caller,
    /// Its own.
    Own,
}

impl Group {
    /// What fits the moment.
    pub fn choose() -> Group {
        match terminal::foreground() {
            Some(group) if group == getpgrp() => Group::Caller,
            _ => Group::Own,
        }
    }
}

impl Job {
    /// Starts the command. The caller has all signals blocked: none must reach the child before it is the job.
    ///
    /// # Errors
    /// [`ExitCode::NotFound`] or [`ExitCode::CannotExecute`].
    pub fn start(launch: &Launch, group: Group, signals: &Signals) -> Result<Job, Failure> {
        let (program, arguments) = launch.command.split_first().ok_or_else(|| {
            Failure::say(ExitCode::Internal, "no command") // The command line asks for one.
        })?;
        let mut others = Vec::new();
        if group == Group::Caller {
            // Orphans of the job become our children, so that stopping it finds them.
            processes::adopt_orphans();
            if sys::has_children() {
                others = processes::children();
            }
        }
        let setup = Setup {
            own_group: group == Group::Own,
            mask: signals.entry().mask,
            default: signals.to_default().collect(),
            ignored: signals.entry().ignored.clone(),
            inherit: launch.socket,
        };
        let mut command = launch.command_of(program);
        command.args(arguments);
        let spawned = match spawn(command, &setup) {
            // execvp(3) runs a file without a known header by the shell; posix_spawnp(3) does not everywhere.
            Err(error) if error.raw_os_error() == Some(Errno::ENOEXEC as i32) => {
                let mut shell = launch.command_of(OsStr::new("/bin/sh"));
                shell.arg(find_in_path(program).unwrap_or_else(|| program.into()));
                shell.args(arguments);
                spawn(shell, &setup)
            }
            spawned => spawned,
        };
        let job = spawned.map(|pid| Job { pid, group, others });
        job.map_err(|error| cannot_start(program, error))
    }

    /// What has become of the job since the last call. An end is told again until it is reaped.
    pub fn change(&self) -> io::Result<Option<WaitStatus>> {
        sys::child_change(self.pid)
    }

    /// Whether it has ended, whatever it has left behind.
    pub fn has_ended(&self) -> bool {
        sys::has_ended(self.pid)
    }

    /// Passes a signal on: to the group, where the job has its own.
    pub fn signal(&self, signal: Signal) -> nix::Result<()> {
        match self.own_group() {
            Some(group) => killpg(group, signal),
            None => kill(self.pid, signal),
        }
    }

    /// The job's process group, if it is not ours: from the start, or because the job has left ours, as timeout(1) does.
    /// The terminal's keys do not reach it there.
    pub fn own_group(&self) -> Option<Pid> {
        match self.group {
            Group::Own => Some(self.pid),
            Group::Caller => getpgid(Some(self.pid)).ok().filter(|group| *group != getpgrp()),
        }
    }

    /// Signals all of the job: the group, or the job and its descendants.
    pub fn signal_all(&self, signal: Signal) -> nix::Result<()> {
        let signalled = self.signal(signal);
        if self.group == Group::Caller {
            let others = self
                .living()
                .unwrap_or_default()
                .into_iter()
                .filter(|pid| *pid != self.pid);
            for pid in others {
                // One that has ended in the meantime needs no signal.
                let _ = kill(pid, signal);
            }
        }
        signalled
    }

    /// The processes of the job that still live; `None` where the system does not tell.
    pub fn living(&self) -> Option<Vec<Pid>> {
        match self.group {
            Group::Own => processes::in_group(self.pid),
            Group::Caller => processes::descendants(&self.others),
        }
    }

    /// Whether this stop is the terminal's doing, and so concerns the shell that pglock runs under.
    pub fn is_stopped_by_terminal(&self, signal: i32) -> bool {
        let asks_for_it = [Signal::SIGTTIN as i32, Signal::SIGTTOU as i32].contains(&signal);
        asks_for_it || terminal::foreground() == Some(self.pid)
    }

    /// Continues a stopped job, in the foreground if that is where pglock is.
    pub fn resume(&self) -> nix::Result<()> {
        if self.group == Group::Own && terminal::foreground() == Some(getpgrp()) {
            terminal::set_foreground(self.pid);
        }
        self.signal(Signal::SIGCONT)
    }

    /// Reaps the ended job. Its pid may belong to anybody from now on, hence the end of this value.
    pub fn reap(self) {
        if self.group == Group::Own && terminal::foreground() == Some(self.pid) {
            terminal::set_foreground(getpgrp());
        }
        let _ = waitpid(self.pid, None);
    }

    /// Reaps children that are not the job: a container's first process, and the adopter of the job's orphans,
    /// is given them.
    pub fn reap_orphans(&self) {
        while let Ok(Some(pid)) = sys::ended_child() {
            // The job's own end hides the others' until it is reaped; so be it.
            if pid == self.pid || waitpid(pid, None).is_err() {
                return;
            }
        }
    }
}

/// How the job ended, if that is what changed.
pub fn end_of(change: WaitStatus) -> Option<ExitReason> {
    match change {
        WaitStatus::Exited(code) => Some(ExitReason::Code(code as u8)),
        WaitStatus::Killed(signal) => Some(ExitReason::Signal(signal)),
        WaitStatus::Stopped(_) | WaitStatus::Continued => None,
    }
}

impl Launch<'_> {
    /// The program, with the variables that tell it of the lock.
    fn command_of(&self, program: &OsStr) -> Command {
        let mut command = Command::new(program);
        command
            .env("PGLOCK_KEY", lines(self.keys.iter().map(|key| key.given().to_owned())))
            .env("PGLOCK_KEY_ID", lines(self.ids.iter().map(KeyId::to_string)))
            .env("PGLOCK_MODE", self.mode.name())
            .env("PGLOCK_BACKEND_PID", self.backend_pid.to_string());
        // What a surrounding pglock set would not be true of this lock.
        let slot = self.slot.map(|slot| slot.to_string());
        for (name, value) in [("PGLOCK_SLOT", slot.as_deref()), ("PGLOCK_TOKEN", self.token)] {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }
}

/// Several keys, a line each.
fn lines(texts: impl Iterator<Item = String>) -> String {
    texts.collect::<Vec<_>>().join("\n")
}

fn cannot_start(program: &OsStr, error: io::Error) -> Failure {
    let name = program.to_string_lossy();
    let not_found = || Failure::say(ExitCode::NotFound, format!("command {name:?} is not found"));
    match (error.kind(), find_in_path(program)) {
        (io::ErrorKind::NotFound, None) => not_found(),
        // For execvp(3), a folder of PATH that we may not search could have had it. To a shell it is not found.
        (io::ErrorKind::PermissionDenied, None) if !program.as_encoded_bytes().contains(&b'/') => not_found(),
        (io::ErrorKind::NotFound, Some(path)) => Failure::say(
            ExitCode::CannotExecute,
            format!("cannot execute {:?}: its interpreter is not found", path.display()),
        ),
        _ => {
            let why = error.raw_os_error().map(Errno::from_raw).unwrap_or(Errno::UnknownErrno);
            let words = format!("cannot execute {name:?}: {}", why.desc());
            Failure::say(ExitCode::CannotExecute, words)
        }
    }
}

/// The file that execvp(3) would execute.
fn find_in_path(program: &OsStr) -> Option<PathBuf> {
    if program.as_encoded_bytes().contains(&b'/') {
        return Path::new(program).exists().then(|| program.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}
