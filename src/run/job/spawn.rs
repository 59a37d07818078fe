//! Starting a process with the signal setup and descriptors that pglock inherited.
//!
//! Uses posix_spawn(3), which shares pglock's memory with the child until it executes the job. fork(2) copies the page
//! tables, and then every page that pglock writes to, which takes longer than starting a small job. There are two
//! things that posix_spawn cannot do, and then fork is used: make the child ignore a signal that pglock does not ignore
//! itself, which can only be SIGCHLD, and tell the child its own process ID, which systemd's protocols require.

use crate::sys::{self, ChildEnvironment};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawnp};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The setup of the new process, beyond what a [`Command`] describes.
pub(super) struct SpawnSetup<'a> {
    /// Whether it leads its own process group instead of joining pglock's.
    pub own_group: bool,
    /// The signal mask.
    pub mask: SigSet,
    /// Signals to reset to their default action, because pglock handles them.
    pub default: Vec<Signal>,
    /// Signals to ignore, because they were ignored when pglock started.
    pub ignored: Vec<Signal>,
    /// A descriptor that it inherits although it is close-on-exec.
    pub inherit: Option<&'a OwnedFd>,
}

/// The variables that name the process which sockets and a watchdog of systemd are meant for: sd_listen_fds(3),
/// sd_watchdog_enabled(3).
const ADDRESSEE_VARIABLES: [&str; 2] = [LISTEN_PID, "WATCHDOG_PID"];
const LISTEN_PID: &str = "LISTEN_PID";
/// A second, unique ID of the process in `LISTEN_PID`, which systemd 259 and later add. Without it, `LISTEN_PID` alone
/// counts.
const LISTEN_PIDFDID: &str = "LISTEN_PIDFDID";

/// Starts the program of the command with its arguments and variables, and disregards the command's other settings. The
/// caller has blocked all signals, and no other thread starts processes.
///
/// # Errors
/// The program cannot be executed, or the system cannot create a process.
pub(super) fn spawn(mut command: Command, setup: &SpawnSetup) -> io::Result<Pid> {
    let passed_on: Vec<&str> = ADDRESSEE_VARIABLES.into_iter().filter(|name| names_us(name)).collect();
    for name in &passed_on {
        command.env_remove(name);
    }
    if passed_on.contains(&LISTEN_PID) {
        command.env_remove(LISTEN_PIDFDID);
    }
    set_inherited_flags(setup, FdFlag::empty())?;
    let spawned = if setup.ignored.contains(&Signal::SIGCHLD) || !passed_on.is_empty() {
        fork(&command, setup, &passed_on)
    } else {
        posix_spawn(&command, setup)
    };
    // Cannot fail, because the descriptor is open; even if it did, a started process would have to be reported.
    let _ = set_inherited_flags(setup, FdFlag::FD_CLOEXEC);
    spawned
}

/// Returns whether the variable is pglock's own process ID. What is meant for another process is none of the job's.
fn names_us(variable: &str) -> bool {
    let value = std::env::var(variable).ok();
    value.and_then(|pid| pid.parse().ok()) == Some(std::process::id())
}

/// Sets the flags of the inherited descriptor, if there is one.
///
/// # Errors
/// The descriptor is not open.
fn set_inherited_flags(setup: &SpawnSetup, flags: FdFlag) -> nix::Result<()> {
    if let Some(descriptor) = setup.inherit {
        fcntl(descriptor, FcntlArg::F_SETFD(flags))?;
    }
    Ok(())
}

/// Starts the process with posix_spawnp(3).
///
/// # Errors
/// posix_spawnp(3) fails, or a string contains a NUL byte.
fn posix_spawn(command: &Command, setup: &SpawnSetup) -> io::Result<Pid> {
    let mut flags = PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF;
    flags.set(PosixSpawnFlags::POSIX_SPAWN_SETPGROUP, setup.own_group);
    let mut attributes = PosixSpawnAttr::init()?;
    attributes.set_flags(flags)?;
    attributes.set_pgroup(Pid::from_raw(0))?;
    attributes.set_sigmask(&setup.mask)?;
    let mut default: SigSet = setup.default.iter().copied().collect();
    // pglock itself ignores SIGPIPE.
    if !setup.ignored.contains(&Signal::SIGPIPE) {
        default.add(Signal::SIGPIPE);
    }
    attributes.set_sigdefault(&default)?;
    let mut actions = PosixSpawnFileActions::init()?;
    for descriptor in sys::closed_on_entry() {
        actions.add_close(descriptor)?;
    }
    let arguments = [command.get_program()].into_iter().chain(command.get_args());
    let arguments: Vec<CString> = arguments.map(c_string).collect::<io::Result<_>>()?;
    let pid = posix_spawnp(&arguments[0], &actions, &attributes, &arguments, &environment(command)?)?;
    Ok(pid)
}

/// Returns pglock's environment as it is, in its order, with the command's changes applied.
///
/// # Errors
/// A variable contains a NUL byte.
fn environment(command: &Command) -> io::Result<Vec<CString>> {
    let is_changed = |entry: &CString| {
        let entry = entry.to_bytes();
        let name = entry.split(|byte| *byte == b'=').next().unwrap_or(entry);
        command.get_envs().any(|(changed, _)| changed.as_bytes() == name)
    };
    let mut entries = sys::environment();
    entries.retain(|entry| !is_changed(entry));
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            entries.push(c_string(
                &[name, OsStr::new("="), value].into_iter().collect::<OsString>(),
            )?);
        }
    }
    Ok(entries)
}

/// Converts a text for the system.
///
/// # Errors
/// The text contains a NUL byte.
fn c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes()).map_err(|_| Errno::EINVAL.into())
}

/// Starts the process with fork(2) and execvp(3). The variables of these names become the process ID of the child.
///
/// # Errors
/// fork(2) or execvp(3) fails, or a variable contains a NUL byte.
fn fork(command: &Command, setup: &SpawnSetup, pid_names: &[&str]) -> io::Result<Pid> {
    let environment = ChildEnvironment::new(environment(command)?, pid_names);
    let mut forked = Command::new(command.get_program());
    forked.args(command.get_args());
    if setup.own_group {
        forked.process_group(0);
    }
    sys::before_exec(&mut forked, environment, &setup.default, &setup.ignored, setup.mask);
    let child = forked.spawn()?;
    Ok(Pid::from_raw(child.id() as i32))
}
