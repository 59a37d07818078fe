//! Prompts for a password on the terminal, without echo, as psql does.
//!
//! pglock prompts only if the server requested a password and none is given, and only in the foreground of a terminal.
//! The prompting thread cannot be interrupted; any code that ends this process meanwhile calls [`restore_echo`] first.

use super::settings::Secret;
use crate::sys;
use nix::libc::SIGINT;
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, tcgetpgrp};
use std::fs::File;
use std::io::{Read, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

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

/// Prompts for the password. Returns `None` if none or an empty one is entered.
pub(crate) fn read_password(mut terminal: File, user: &str) -> Option<Secret> {
    let before = tcgetattr(&terminal).ok()?;
    let mut silent = before.clone();
    silent.local_flags.remove(LocalFlags::ECHO);
    silent.local_flags.insert(LocalFlags::ICANON);
    *silenced_terminal() = Some((terminal.try_clone().ok()?, before));
    // `run` has handlers of its own, beside which there can be no other. A signal that was ignored stays ignored.
    let _ = ctrlc::try_set_handler(|| {
        restore_echo();
        sys::raise_default(SIGINT);
    });
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
