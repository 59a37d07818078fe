//! The terminal: its foreground process group, its size, and what it can show.

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp};
use std::env;
use std::fs::File;
use std::io::{IsTerminal, Write, stderr, stdin, stdout};
use std::os::fd::AsFd;
use std::sync::OnceLock;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Erases from the cursor to the end of the line (ECMA-48 EL).
pub(crate) const ERASE_TO_LINE_END: &str = "\x1b[K";

/// How to show a status that changes, on standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StatusStyle {
    /// Updated in place.
    InPlace,
    /// Printed once: the terminal cannot move its cursor, or its output is kept as a log.
    Once,
}

/// Returns how to show a status; `None` unless standard error is a terminal and pglock runs in its foreground.
pub(crate) fn status_style() -> Option<StatusStyle> {
    if !stderr().is_terminal() || tcgetpgrp(stderr()) != Ok(getpgrp()) {
        return None;
    }
    let is_plain = env::var_os("TERM").is_none_or(|term| term == "dumb" || term.is_empty());
    let is_ci = env::var_os("CI").is_some_and(|value| !value.is_empty());
    if is_plain || is_ci {
        Some(StatusStyle::Once)
    } else {
        Some(StatusStyle::InPlace)
    }
}

/// Returns whether a person can be asked to confirm: standard input and standard error are terminals.
pub(crate) fn can_confirm() -> bool {
    stdin().is_terminal() && stderr().is_terminal()
}

/// Prints a yes/no question and waits for the answer.
pub(crate) fn confirm(question: &str) -> bool {
    let mut answer = String::new();
    if stderr().write_all(question.as_bytes()).is_err() || stdin().read_line(&mut answer).is_err() {
        return false;
    }
    matches!(answer.trim().to_lowercase().as_str(), "y" | "yes")
}

/// Returns the columns and lines of standard output, if it is a terminal.
pub(crate) fn stdout_size() -> Option<(usize, usize)> {
    size(stdout())
}

/// Returns the columns of standard error, if it is a terminal.
pub(crate) fn stderr_columns() -> Option<usize> {
    size(stderr()).map(|(columns, _)| columns)
}

fn size(terminal: impl AsFd) -> Option<(usize, usize)> {
    let (columns, lines) = terminal_size::terminal_size_of(terminal)?;
    Some((columns.0.into(), lines.0.into()))
}

/// Truncates the text to this many columns; a `~` at the end marks what was cut off.
pub(crate) fn truncate_to_width(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    let mut remaining = columns.saturating_sub(1);
    let mut truncated = String::new();
    for character in text.chars() {
        let width = character.width().unwrap_or_default();
        if width > remaining {
            break;
        }
        remaining -= width;
        truncated.push(character);
    }
    truncated.push('~');
    truncated
}

/// Returns the foreground process group of the controlling terminal; `None` without a terminal.
///
/// A process that starts without a terminal is not given one later, so if there was none, this does not look again:
/// failing to open one takes longer than most system calls.
pub(crate) fn foreground_group() -> Option<Pid> {
    static HAD_TERMINAL: OnceLock<bool> = OnceLock::new();
    if HAD_TERMINAL.get() == Some(&false) {
        return None;
    }
    // Without /dev/tty, as in a minimal container, one of the standard streams may still be the terminal.
    let from_tty = File::open("/dev/tty").ok().and_then(|tty| tcgetpgrp(tty).ok());
    let from_stdin = || tcgetpgrp(stdin()).ok();
    let from_stderr = || tcgetpgrp(stderr()).ok();
    let group = from_tty.or_else(from_stdin).or_else(from_stderr);
    HAD_TERMINAL.get_or_init(|| group.is_some());
    group
}

/// Makes a process group of this session the foreground process group of the terminal.
pub(crate) fn set_foreground_group(group: Pid) {
    let Ok(terminal) = File::open("/dev/tty") else {
        return;
    };
    // tcsetpgrp(3) from the background stops the caller with SIGTTOU unless that is blocked.
    let mut sigttou = SigSet::empty();
    sigttou.add(Signal::SIGTTOU);
    let Ok(previous_mask) = sigttou.thread_swap_mask(SigmaskHow::SIG_BLOCK) else {
        return;
    };
    let _ = tcsetpgrp(terminal, group);
    let _ = previous_mask.thread_set_mask();
}
