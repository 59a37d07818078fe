//! Asking for a password on the terminal, without echo, as psql does.
//!
//! Only when the server has asked for one and none is given, and only in the foreground of a terminal. The thread
//! that asks cannot be interrupted; whoever ends this process meanwhile calls [`restore_echo`] first.

use super::settings::Secret;
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, tcgetpgrp};
use std::fs::File;
use std::io::{Read, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The terminal whose echo is off, and how it was.
static SILENCED: Mutex<Option<(File, Termios)>> = Mutex::new(None);

fn silenced() -> MutexGuard<'static, Option<(File, Termios)>> {
    SILENCED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts the terminal back as it was, if a password is being asked for.
pub fn restore_echo() {
    if let Some((terminal, before)) = silenced().take() {
        let _ = tcsetattr(&terminal, SetArg::TCSANOW, &before);
        let _ = (&terminal).write_all(b"\n");
    }
}

/// The terminal that can be asked on.
pub fn terminal() -> Option<File> {
    let terminal = File::options().read(true).write(true).open("/dev/tty").ok()?;
    let in_foreground = tcgetpgrp(&terminal).is_ok_and(|group| group == getpgrp());
    in_foreground.then_some(terminal)
}

/// Asks. `None`: no answer, or an empty one.
pub fn ask(mut terminal: File, user: &str) -> Option<Secret> {
    let before = tcgetattr(&terminal).ok()?;
    let mut silent = before.clone();
    silent.local_flags.remove(LocalFlags::ECHO);
    silent.local_flags.insert(LocalFlags::ICANON);
    *silenced() = Some((terminal.try_clone().ok()?, before));
    let answer = tcsetattr(&terminal, SetArg::TCSAFLUSH, &silent)
        .ok()
        .and_then(|()| write!(terminal, "Password for user {user}: ").ok())
        .and_then(|()| line(&mut terminal));
    restore_echo();
    answer.filter(|answer| !answer.is_empty()).map(Secret::new)
}

/// One line, byte by byte: what is typed after it is for others.
fn line(terminal: &mut File) -> Option<String> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while terminal.read(&mut byte).ok()? == 1 && byte[0] != b'\n' {
        bytes.push(byte[0]);
    }
    String::from_utf8(bytes).ok()
}
