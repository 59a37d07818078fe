//! The terminal: its foreground, its size, and whether a line there can be updated in place.

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp};
use std::env;
use std::fs::File;
use std::io::{IsTerminal, Write, stderr, stdin, stdout};
use std::os::fd::AsFd;

/// How a line that changes can be shown on standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Live {
    /// In place.
    Updated,
    /// Once, as it is then: the terminal cannot move its cursor, or what it shows is kept as a log.
    Once,
}

/// How a changing line can be shown, if anybody watches: the terminal is there, and we are in its foreground.
pub fn live() -> Option<Live> {
    let is_set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
    if !stderr().is_terminal() || tcgetpgrp(stderr()) != Ok(getpgrp()) {
        return None;
    }
    let is_plain = env::var_os("TERM").is_none_or(|term| term == "dumb" || term.is_empty());
    match is_plain || is_set("CI") {
        true => Some(Live::Once),
        false => Some(Live::Updated),
    }
}

/// Whether somebody can be asked: who reads standard error, and types standard input.
pub fn can_ask() -> bool {
    stdin().is_terminal() && stderr().is_terminal()
}

/// Asks a question that is answered by yes or no, and waits for the answer.
pub fn ask(question: &str) -> bool {
    let mut answer = String::new();
    let asked = stderr().write_all(question.as_bytes());
    let answered = asked.and_then(|()| stdin().read_line(&mut answer));
    answered.is_ok() && matches!(answer.trim().to_lowercase().as_str(), "y" | "yes")
}

/// The columns and lines of the terminal that standard output is, if it is one.
pub fn page() -> Option<(usize, usize)> {
    size(stdout())
}

/// The columns of the terminal that standard error is.
pub fn width() -> Option<usize> {
    size(stderr()).map(|(columns, _)| columns)
}

fn size(terminal: impl AsFd) -> Option<(usize, usize)> {
    let (columns, lines) = terminal_size::terminal_size_of(terminal)?;
    Some((columns.0.into(), lines.0.into()))
}

/// The foreground process group of our terminal; `None` without a terminal.
pub fn foreground() -> Option<Pid> {
    // Where there is no /dev/tty, as in a sparse container, the terminal may still be one of the standard streams.
    let terminal = File::open("/dev/tty").ok().and_then(|tty| tcgetpgrp(tty).ok());
    let stdin = || tcgetpgrp(stdin()).ok();
    terminal.or_else(stdin).or_else(|| tcgetpgrp(stderr()).ok())
}

/// Gives the terminal to a process group of our session.
pub fn set_foreground(group: Pid) {
    let Ok(terminal) = File::open("/dev/tty") else {
        return;
    };
    // From the background, this stops the caller with SIGTTOU unless that is blocked.
    let mut only = SigSet::empty();
    only.add(Signal::SIGTTOU);
    let Ok(before) = only.thread_swap_mask(SigmaskHow::SIG_BLOCK) else {
        return;
    };
    let _ = tcsetpgrp(terminal, group);
    let _ = before.thread_set_mask();
}
