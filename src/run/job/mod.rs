//! The job: starting the command, signalling it, and learning how it exited.
//!
//! The job gets pglock's standard streams, working directory and arguments unchanged. Its process group depends on
//! where pglock runs. In the foreground of a terminal the job stays in the caller's group, so that Ctrl-C and Ctrl-Z
//! reach the job and the surrounding script exactly as without pglock. Everywhere else the job leads its own group and
//! is signalled as that group. To terminate it, pglock also looks for descendants that have left the group.
//!
//! A pid is used only while it cannot be reused: from the start of the job until [`Job::reap`].

#[cfg(target_os = "linux")]
mod proc_fs;
mod process_list;
mod processes;
mod spawn;
pub(crate) mod variables;

use crate::key::{Key, KeyId};
use crate::lock::Mode;
use crate::outcome::{ExitCode, ExitReason, Failure};
use crate::run::ancestors;
use crate::run::job::process_list::{Process, ProcessList};
use crate::run::job::processes::{JobProcesses, JobSessions};
use crate::run::job::spawn::{SpawnSetup, spawn};
use crate::run::signal_number::SignalNumber;
use crate::run::signals::Signals;
use crate::sys::{self, WaitStatus};
use crate::ui::terminal;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{AccessFlags, Pid, access, getpgid, getpgrp};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A command to run under the lock.
pub(crate) struct Launch<'a> {
    /// The command and its arguments.
    pub command: &'a [OsString],
    /// The keys as given, for `PGLOCK_KEY`.
    pub keys: &'a [Key],
    /// The numbers of the keys, for `PGLOCK_KEY_ID`.
    pub ids: &'a [KeyId],
    /// Exclusive or shared, for `PGLOCK_MODE`.
    pub mode: Mode,
    /// The acquired slot, for `PGLOCK_SLOT`.
    pub slot: Option<usize>,
    /// The fencing token, for `PGLOCK_TOKEN`.
    pub token: Option<&'a str>,
    /// The backend that holds the lock, for `PGLOCK_BACKEND_PID`.
    pub backend_pid: i32,
    /// The session's socket, if the job inherits it: the lock then outlives a pglock that is killed.
    pub socket: Option<&'a OwnedFd>,
}

/// A started job that is not reaped yet.
pub(crate) struct Job {
    pid: Pid,
    group: Group,
    /// Children inherited when a shell `exec`ed pglock; they are not part of the job.
    inherited_children: Vec<Pid>,
    sessions: JobSessions,
}

/// The process group of the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    /// pglock's own, which is in the foreground of the terminal.
    Caller,
    /// A new group that the job leads.
    Own,
}

impl Group {
    /// Returns the caller's group if pglock runs in the foreground of a terminal, else a new one.
    pub(crate) fn for_terminal() -> Group {
        if terminal::foreground_group() == Some(getpgrp()) {
            Group::Caller
        } else {
            Group::Own
        }
    }
}

impl Job {
    /// Starts the command. The caller has blocked all signals, so that none reaches the child before it is the job.
    ///
    /// # Errors
    /// [`ExitCode::NotFound`] or [`ExitCode::CannotExecute`].
    pub(crate) fn start(launch: &Launch, group: Group, signals: &Signals) -> Result<Job, Failure> {
        let Some((program, arguments)) = launch.command.split_first() else {
            // A bug: the command line requires a command.
            return Err(Failure::msg(ExitCode::Internal, "no command"));
        };
        // So that terminating the job finds them.
        processes::adopt_orphans();
        let inherited_children = if sys::has_children() {
            processes::children()
        } else {
            Vec::new()
        };
        let setup = SpawnSetup {
            own_group: group == Group::Own,
            mask: signals.on_entry().mask,
            default: signals.to_default().collect(),
            ignored: signals.on_entry().ignored.clone(),
            inherit: launch.socket,
        };
        let mut command = launch.to_command(program);
        command.args(arguments);
        let mut spawned = spawn(command, &setup);
        // execvp(3) runs a file of unknown format with the shell; posix_spawnp(3) does not on every system.
        if let Err(error) = &spawned
            && error.raw_os_error() == Some(Errno::ENOEXEC as i32)
        {
            let mut shell = launch.to_command(OsStr::new("/bin/sh"));
            shell.arg(find_in_path(program).unwrap_or_else(|| program.into()));
            shell.args(arguments);
            spawned = spawn(shell, &setup);
        }
        match spawned {
            Ok(pid) => Ok(Job {
                pid,
                group,
                inherited_children,
                sessions: JobSessions::new(),
            }),
            Err(error) => Err(start_failure(program, error)),
        }
    }

    /// Returns the next status change of the job, if any. An exit is reported again by every call until the job is
    /// reaped.
    ///
    /// # Errors
    /// waitid(2) fails.
    pub(crate) fn poll_status(&self) -> io::Result<Option<WaitStatus>> {
        sys::poll_child(self.pid)
    }

    /// Returns whether the command has exited. Processes it started may still be running.
    pub(crate) fn has_exited(&self) -> bool {
        sys::has_exited(self.pid)
    }

    /// Sends a signal to the job's own group, or to the command alone if it is in the caller's group.
    ///
    /// # Errors
    /// kill(2) fails.
    pub(crate) fn signal(&mut self, signal: SignalNumber) -> nix::Result<()> {
        let target = self
            .own_group()
            .map_or(self.pid, |group| Pid::from_raw(-group.as_raw()));
        match sys::kill(target, signal.as_raw()) {
            // macOS reports this too if the group consists of zombies.
            Err(Errno::EPERM) if self.look_for_processes().is_none_left => Err(Errno::ESRCH),
            result => result,
        }
    }

    /// Returns the job's process group unless it is pglock's. Signals from the terminal do not reach that group. The
    /// job may have left pglock's group itself, as timeout(1) does.
    pub(crate) fn own_group(&self) -> Option<Pid> {
        match self.group {
            Group::Own => Some(self.pid),
            Group::Caller => getpgid(Some(self.pid)).ok().filter(|group| *group != getpgrp()),
        }
    }

    /// Sends a signal to the whole job: to its group or the command, and to its other processes.
    ///
    /// # Errors
    /// The command (or its group) could not be signalled.
    pub(crate) fn signal_all(&mut self, signal: Signal) -> nix::Result<()> {
        if self.group == Group::Own {
            // This finds the sessions of the job while their parents live: the signal can end those.
            self.running_processes();
        }
        let result = self.signal(signal.into());
        let group = self.own_group();
        for pid in self.running_processes() {
            let has_it = pid == self.pid || group.is_some() && getpgid(Some(pid)).ok() == group;
            if !has_it {
                // A descendant that has exited in the meantime needs no signal.
                let _ = kill(pid, signal);
            }
        }
        result
    }

    /// Returns the processes of the job that are still running, as far as one look shows them.
    pub(crate) fn running_processes(&mut self) -> Vec<Pid> {
        self.select(&processes::list_descendants())
    }

    /// Looks for processes of the job that are still running until it is certain that there is none, if it can be.
    pub(crate) fn look_for_processes(&mut self) -> JobProcesses {
        let group = (self.group == Group::Own).then_some(self.pid);
        processes::look(group, |list| self.select(list))
    }

    /// Returns those of the processes that run and belong to the job.
    fn select(&mut self, list: &ProcessList) -> Vec<Pid> {
        match self.group {
            Group::Own => processes::in_group(list, self.pid, &mut self.sessions, &self.inherited_children),
            Group::Caller => list
                .descendants(&self.inherited_children)
                .iter()
                .map(Process::pid)
                .collect(),
        }
    }

    /// Returns whether the terminal caused this stop, which then concerns the shell that pglock runs under.
    pub(crate) fn is_stopped_by_terminal(&self, signal: i32) -> bool {
        let is_terminal_access = signal == Signal::SIGTTIN as i32 || signal == Signal::SIGTTOU as i32;
        is_terminal_access || terminal::foreground_group() == Some(self.pid)
    }

    /// Continues a stopped job, in the foreground if pglock is in the foreground.
    ///
    /// # Errors
    /// kill(2) fails.
    pub(crate) fn resume(&mut self) -> nix::Result<()> {
        if self.group == Group::Own && terminal::foreground_group() == Some(getpgrp()) {
            terminal::set_foreground_group(self.pid);
        }
        self.signal(Signal::SIGCONT.into())
    }

    /// Reaps the exited job. Consumes the value because the pid may be reused from now on.
    pub(crate) fn reap(self) {
        if self.group == Group::Own && terminal::foreground_group() == Some(self.pid) {
            terminal::set_foreground_group(getpgrp());
        }
        let _ = waitpid(self.pid, None);
    }
}

/// Reaps exited children other than the job. pglock gets them at any time if it is process 1 of a container, and while
/// the job runs if it has adopted the job's orphans.
pub(crate) fn reap_orphans(job: Option<&Job>) {
    while let Ok(Some(pid)) = sys::exited_child() {
        // Once the job itself has exited, it may be reported before the orphans, which then stay until it is reaped.
        if job.is_some_and(|job| job.pid == pid) || waitpid(pid, None).is_err() {
            return;
        }
    }
}

/// Returns how the job exited, if this status change is its exit.
pub(crate) fn exit_reason(status: WaitStatus) -> Option<ExitReason> {
    match status {
        WaitStatus::Exited(code) => Some(ExitReason::Code(code as u8)),
        WaitStatus::Signaled(signal) => Some(ExitReason::Signal(signal)),
        WaitStatus::Stopped(_) | WaitStatus::Continued => None,
    }
}

impl Launch<'_> {
    /// Returns the program with the variables that describe the lock.
    fn to_command(&self, program: &OsStr) -> Command {
        let mut command = Command::new(program);
        command
            .env(variables::KEY, variables::key_value(self.keys))
            .env(variables::KEY_ID, variables::key_id_value(self.ids))
            .env("PGLOCK_MODE", self.mode.name())
            .env("PGLOCK_BACKEND_PID", self.backend_pid.to_string())
            .env(ancestors::VARIABLE, ancestors::of_job());
        // Variables that an outer pglock set describe its lock, not this one: override or remove them.
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

/// Describes why the command cannot be started, in the terms of a shell.
fn start_failure(program: &OsStr, error: io::Error) -> Failure {
    let name = program.to_string_lossy();
    let not_found = || Failure::msg(ExitCode::NotFound, format!("command {name:?} not found"));
    match (error.kind(), find_in_path(program)) {
        (io::ErrorKind::NotFound, None) => not_found(),
        // execvp(3) reports EACCES if PATH contains a directory that it may not search. A shell says "not found".
        (io::ErrorKind::PermissionDenied, None) if !program.as_encoded_bytes().contains(&b'/') => not_found(),
        (io::ErrorKind::NotFound, Some(path)) => Failure::msg(
            ExitCode::CannotExecute,
            format!("cannot execute {:?}: interpreter not found", path.display()),
        ),
        _ => {
            let errno = error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
            Failure::msg(
                ExitCode::CannotExecute,
                format!("cannot execute {name:?}: {}", errno.desc()),
            )
        }
    }
}

/// Returns the file that execvp(3) would execute: the first that is executable. If there is none, returns one that is
/// not.
fn find_in_path(program: &OsStr) -> Option<PathBuf> {
    if program.as_encoded_bytes().contains(&b'/') {
        return Path::new(program).exists().then(|| program.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    let files = || {
        let files = std::env::split_paths(&path).map(|directory| directory.join(program));
        files.filter(|file| file.is_file())
    };
    files()
        .find(|file| access(file, AccessFlags::X_OK).is_ok())
        .or_else(|| files().next())
}
