//! Messages: `pglock: ...` on standard error, one line each.
//!
//! Standard output belongs to the job. Nothing here panics or fails: a closed or broken standard error must not end a
//! pglock that guards a running job, so write errors are ignored, and a line that nobody reads is dropped.

use crate::ui::terminal::ERASE_TO_LINE_END;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fmt::{self, Display};
use std::io::Write;
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How much pglock prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verbosity {
    /// `-q`: errors only. Does not report that the lock is held.
    Quiet,
    /// Nothing on success, one line otherwise.
    #[default]
    Normal,
    /// `-v`: each step.
    Verbose,
}

static VERBOSITY: OnceLock<Verbosity> = OnceLock::new();

/// Whether a status line is on the terminal, with the cursor at its end.
static STATUS_LINE_SHOWN: Mutex<bool> = Mutex::new(false);

/// The longest line. A pipe that polls as writable takes PIPE_BUF bytes without blocking; POSIX guarantees 512, Linux
/// has 4096.
const MAX_LINE_LEN: usize = 4096;
/// How long to wait for a reader to make room. A reader that has stalled must not delay the job or its exit.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);
/// Erases the line that the cursor is on (ECMA-48 EL).
const ERASE_LINE: &str = "\r\x1b[K";

/// Sets the verbosity. To be called once, before the first message.
pub(crate) fn set_verbosity(verbosity: Verbosity) {
    // A second call would be a bug in main; it has no effect.
    let _ = VERBOSITY.set(verbosity);
}

/// Installs a panic hook that prints a panic like any other message: on one line, without control characters.
pub(crate) fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        error(format_args!("internal error: {panic}"));
    }));
}

/// Prints an error, or that the lock was lost. Never silenced.
pub(crate) fn error(text: impl Display) {
    print(text);
}

/// Prints what `-q` silences: that the lock is held.
pub(crate) fn notice(text: impl Display) {
    if verbosity() >= Verbosity::Normal {
        print(text);
    }
}

/// Prints a step, with `-v` only.
pub(crate) fn detail(text: impl Display) {
    if is_verbose() {
        print(text);
    }
}

/// Returns whether [`notice`] prints nothing.
pub(crate) fn is_quiet() -> bool {
    verbosity() == Verbosity::Quiet
}

/// Returns whether [`detail`] prints anything, so that callers can skip details that are expensive to obtain.
pub(crate) fn is_verbose() -> bool {
    verbosity() >= Verbosity::Verbose
}

/// Shows a status line, replacing the previous one. The line must fit the width of the terminal.
pub(crate) fn show_status(line: &str) {
    let mut is_shown = lock_status_line();
    *is_shown = true;
    let line = line.replace(char::is_control, " ");
    // The line is refreshed soon, so do not wait for a terminal that Ctrl-S has suspended.
    write(format_args!("\r{line}{ERASE_TO_LINE_END}"), Duration::ZERO);
}

/// Removes the status line, if there is one.
pub(crate) fn clear_status() {
    let mut is_shown = lock_status_line();
    if std::mem::take(&mut *is_shown) {
        write(format_args!("{ERASE_LINE}"), WRITE_TIMEOUT);
    }
}

/// Locks the status line. Held while it is drawn or cleared, so that two threads do not draw over each other.
fn lock_status_line() -> MutexGuard<'static, bool> {
    STATUS_LINE_SHOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn verbosity() -> Verbosity {
    VERBOSITY.get().copied().unwrap_or_default()
}

fn print(text: impl Display) {
    // One write, so that the lines of several pglocks do not mix. One line without control characters, whatever a
    // server put into its message, so that the terminal does not interpret any of it.
    let mut line = format!("pglock: {text}").replace(char::is_control, " ");
    if line.len() >= MAX_LINE_LEN {
        let end = (0..MAX_LINE_LEN - 4).rev().find(|end| line.is_char_boundary(*end));
        line.truncate(end.unwrap_or_default());
        line.push_str("...");
    }
    let had_status = std::mem::take(&mut *lock_status_line());
    let erase = if had_status { ERASE_LINE } else { "" };
    write(format_args!("{erase}{line}\n"), WRITE_TIMEOUT);
}

/// Writes to standard error, unless it does not become writable within the timeout.
fn write(text: fmt::Arguments, timeout: Duration) {
    let stderr = std::io::stderr();
    let deadline = Instant::now() + timeout;
    loop {
        let mut descriptors = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
        let remaining = deadline.saturating_duration_since(Instant::now());
        let poll_timeout = PollTimeout::try_from(remaining).unwrap_or(PollTimeout::MAX);
        match poll(&mut descriptors, poll_timeout) {
            Ok(0) => return,
            // Interrupted by a signal; standard error may still be full.
            Err(Errno::EINTR) => {}
            _ => break,
        }
    }
    let _ = stderr.lock().write_all(text.to_string().as_bytes());
}
