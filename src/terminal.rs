//! The terminal that pglock itself writes to: its size, and whether a line there can be updated in place.

use nix::unistd::{getpgrp, tcgetpgrp};
use std::env;
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
