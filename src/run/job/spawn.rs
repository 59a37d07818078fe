//! Starting a process with the signal setup and descriptors that pglock inherited.
//!
//! Uses posix_spawn(3), which shares pglock's memory with the child until it executes the job. fork(2) copies the page
//! tables, and then every page that pglock writes to, which takes longer than starting a small job. posix_spawn cannot
//! make the child ignore a signal that pglock does not ignore itself. That can only be SIGCHLD, and then fork is used.

use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawnp};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;
use std::collections::BTreeMap;
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

/// Starts the program of the command with its arguments and variables, and disregards the command's other settings. The
/// caller has blocked all signals, and no other thread starts processes.
///
/// # Errors
/// The program cannot be executed, or the system cannot create a process.
pub(super) fn spawn(command: Command, setup: &SpawnSetup) -> io::Result<Pid> {
    set_inherited_flags(setup, FdFlag::empty())?;
    let spawned = if setup.ignored.contains(&Signal::SIGCHLD) {
        fork(command, setup)
    } else {
        posix_spawn(&command, setup)
    };
    // Cannot fail, because the descriptor is open; even if it did, a started process would have to be reported.
    let _ = set_inherited_flags(setup, FdFlag::FD_CLOEXEC);
    spawned
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
    // Rust's runtime ignores SIGPIPE.
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

/// Returns pglock's environment with the command's changes applied.
///
/// # Errors
/// A variable contains a NUL byte.
fn environment(command: &Command) -> io::Result<Vec<CString>> {
    let mut variables: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => variables.insert(name.to_owned(), value.to_owned()),
            None => variables.remove(name),
        };
    }
    let pair = |(name, value): (OsString, OsString)| {
        let mut pair = name;
        pair.push("=");
        pair.push(value);
        c_string(&pair)
    };
    variables.into_iter().map(pair).collect()
}

/// Converts a text for the system.
///
/// # Errors
/// The text contains a NUL byte.
fn c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes()).map_err(|_| Errno::EINVAL.into())
}

/// Starts the process with fork(2) and execvp(3).
///
/// # Errors
/// fork(2) or execvp(3) fails.
fn fork(mut command: Command, setup: &SpawnSetup) -> io::Result<Pid> {
    if setup.own_group {
        command.process_group(0);
    }
    sys::before_exec(&mut command, &setup.default, &setup.ignored, setup.mask);
    let child = command.spawn()?;
    Ok(Pid::from_raw(child.id() as i32))
}
