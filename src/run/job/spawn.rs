//! Starting a process that finds everything as pglock's caller left it.
//!
//! By posix_spawn(3), which shares our memory with the child until it executes the job: fork(2) would copy the page
//! tables of it all, and every page that we touch afterwards, which takes longer than starting a small job. What
//! posix_spawn cannot do is to have a signal ignored that we do not ignore ourselves, which concerns SIGCHLD alone;
//! that is left to fork.

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

/// What the process finds, beyond what a [`Command`] tells.
pub struct Setup<'a> {
    /// It leads a process group of its own, rather than being in ours.
    pub own_group: bool,
    /// The signal mask.
    pub mask: SigSet,
    /// Signals that pglock handles, back to their default effect.
    pub default: Vec<Signal>,
    /// Signals that were ignored when pglock began, ignored still.
    pub ignored: Vec<Signal>,
    /// A close-on-exec descriptor that it inherits all the same.
    pub inherit: Option<&'a OwnedFd>,
}

/// Starts the program of the command, with its arguments and variables; nothing else of the command counts. The caller
/// has all signals blocked, and no other thread starts processes.
pub fn spawn(command: Command, setup: &Setup) -> io::Result<Pid> {
    let set_flag = |flag| {
        let set = |socket| fcntl(socket, FcntlArg::F_SETFD(flag));
        setup.inherit.map_or(Ok(0), set)
    };
    set_flag(FdFlag::empty())?;
    let spawned = match setup.ignored.contains(&Signal::SIGCHLD) {
        true => fork(command, setup),
        false => posix_spawn(&command, setup),
    };
    // It was open a moment ago; and a process that has been started must be told of in any case.
    let _ = set_flag(FdFlag::FD_CLOEXEC);
    spawned
}

fn posix_spawn(command: &Command, setup: &Setup) -> io::Result<Pid> {
    let mut flags = PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF;
    flags.set(PosixSpawnFlags::POSIX_SPAWN_SETPGROUP, setup.own_group);
    let mut attributes = PosixSpawnAttr::init()?;
    attributes.set_flags(flags)?;
    attributes.set_pgroup(Pid::from_raw(0))?;
    attributes.set_sigmask(&setup.mask)?;
    let mut default: SigSet = setup.default.iter().copied().collect();
    // Rust's runtime has it ignored.
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

/// Our variables, with the command's changes.
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

fn c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes()).map_err(|_| Errno::EINVAL.into())
}

fn fork(mut command: Command, setup: &Setup) -> io::Result<Pid> {
    if setup.own_group {
        command.process_group(0);
    }
    sys::before_exec(&mut command, &setup.default, &setup.ignored, setup.mask);
    let child = command.spawn()?;
    Ok(Pid::from_raw(child.id() as i32))
}
