//! Prompts for a password on the terminal, without echo, as psql does.
//!
//! pglock prompts only if the server requested a password and none is given, and only in the foreground of a terminal.
//! The prompting thread cannot be interrupted; any code that ends this process meanwhile calls [`restore_echo`] first.

use super::settings::Secret;
use crate::sys;
use nix::sys::signal::Signal;
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, tcgetpgrp};
use signal_hook::iterator::Signals;
use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

/// The terminal whose echo is off, and its attributes before that.
static SILENCED_TERMINAL: Mutex<Option<(File, Termios)>> = Mutex::new(None);

fn silenced_terminal() -> MutexGuard<'static, Option<(File, Termios)>> {
    SILENCED_TERMINAL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Restores the attributes of the terminal, if a password prompt is open.
pub(crate) fn restore_echo() {
    if let Some((terminal, before)) = silenced_terminal().take() {
        let _ = tcsetattr(&terminal, SetArg::TCSANOW, &before);
        let _ = (&terminal).write_all(b"\n");
    }
}

/// Returns whether the password prompt is open.
pub(crate) fn is_open() -> bool {
    silenced_terminal().is_some()
}

/// Opens the terminal, if there is one and this process is in its foreground.
pub(crate) fn open_terminal() -> Option<File> {
    let terminal = File::options().read(true).write(true).open("/dev/tty").ok()?;
    let is_in_foreground = tcgetpgrp(&terminal).is_ok_and(|group| group == getpgrp());
    is_in_foreground.then_some(terminal)
}

/// The signals that an operator or a terminal ends a program with.
const ENDING_SIGNALS: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

/// From now on, restores the terminal before one of these signals ends this process. `run` has handlers of its own, and
/// a signal that was ignored stays ignored. A thread does it, since what restoring takes is not allowed in a handler.
///
/// # Errors
/// The system has no descriptor or no thread left.
fn restore_echo_on_signals() -> io::Result<()> {
    let numbers = ENDING_SIGNALS.map(|signal| signal as i32).into_iter();
    let unhandled: Vec<i32> = numbers.filter(|signal| sys::has_default_action(*signal)).collect();
    if unhandled.is_empty() {
        return Ok(());
    }
    let mut signals = Signals::new([] as [i32; 0])?;
    let handle = signals.handle();
    // Before the handlers: without it, nothing would become of the signals.
    thread::Builder::new().name("prompt".into()).spawn(move || {
        for signal in signals.forever() {
            restore_echo();
            sys::raise_default(signal);
        }
    })?;
    unhandled.into_iter().try_for_each(|signal| handle.add_signal(signal))
}

/// Prompts for the password. Returns `None` if none or an empty one is entered, or the terminal cannot be used.
pub(crate) fn read_password(mut terminal: File, user: &str) -> Option<Secret> {
    let before = tcgetattr(&terminal).ok()?;
    let mut silent = before.clone();
    silent.local_flags.remove(LocalFlags::ECHO);
    silent.local_flags.insert(LocalFlags::ICANON);
    restore_echo_on_signals().ok()?;
    *silenced_terminal() = Some((terminal.try_clone().ok()?, before));
    let password = tcsetattr(&terminal, SetArg::TCSAFLUSH, &silent)
        .ok()
        .and_then(|()| write!(terminal, "Password for user {user}: ").ok())
        .and_then(|()| read_line(&mut terminal));
    restore_echo();
    password.filter(|password| !password.is_empty()).map(Secret::new)
}

/// Reads one line, byte by byte, so that what is typed after it is left to the next reader.
fn read_line(terminal: &mut File) -> Option<String> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while terminal.read(&mut byte).ok()? == 1 && byte[0] != b'\n' {
        bytes.push(byte[0]);
    }
    String::from_utf8(bytes).ok()
}
