//! What pglock says, and where: `pglock: ...` on standard error, one line at a time.
//!
//! Standard output belongs to the job. Nothing here can panic or fail: a closed or broken standard error must
//! not end a pglock that guards a running job, so errors of writing are dropped, and so is a line that nobody reads.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fmt::{self, Display};
use std::io::Write;
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How much pglock says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// `-q`: not even that the lock is held by someone else.
    Quiet,
    /// Nothing on a good day, one line on a bad one.
    #[default]
    Normal,
    /// `-v`: each step.
    Verbose,
}

static VERBOSITY: OnceLock<Verbosity> = OnceLock::new();

/// Whether a line that changes is on the terminal, and the cursor behind it.
static IS_LIVE: Mutex<bool> = Mutex::new(false);

/// Sets the verbosity, once, before the first word.
pub fn set_verbosity(verbosity: Verbosity) {
    // A second call would be a fault in main, and changes nothing.
    let _ = VERBOSITY.set(verbosity);
}

/// Has a fault of ours said like everything else: in one line, and nothing in it that a terminal would obey.
pub fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        error(format_args!("internal error: {panic}"));
    }));
}

/// Says what the operator must know: an error, or a lost lock.
pub fn error(words: impl Display) {
    say(words);
}

/// Says what `-q` silences: that the lock is held by someone else.
pub fn notice(words: impl Display) {
    if verbosity() >= Verbosity::Normal {
        say(words);
    }
}

/// Says what only `-v` asks for.
pub fn detail(words: impl Display) {
    if is_verbose() {
        say(words);
    }
}

/// Whether [`notice`] says nothing.
pub fn is_quiet() -> bool {
    verbosity() == Verbosity::Quiet
}

/// Whether [`detail`] says anything, for details that cost something to find out.
pub fn is_verbose() -> bool {
    verbosity() >= Verbosity::Verbose
}

/// Shows a line in place of the one that was shown before, on a terminal that is wide enough for it.
pub fn live(line: &str) {
    let mut is_live = is_live();
    *is_live = true;
    let line = line.replace(char::is_control, " ");
    // It comes again, so a terminal that is stopped by Ctrl-S is not waited for.
    write(format_args!("\r{line}\x1b[K"), Duration::ZERO);
}

/// Takes the changing line away.
pub fn erase() {
    let mut is_live = is_live();
    if std::mem::take(&mut *is_live) {
        write(format_args!("\r\x1b[K"), WRITE_TIMEOUT);
    }
}

/// The lock is held while something is written, so that two threads do not write into each other's line.
fn is_live() -> MutexGuard<'static, bool> {
    IS_LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn verbosity() -> Verbosity {
    VERBOSITY.get().copied().unwrap_or_default()
}

/// The longest line: a pipe that has room at all takes this much without blocking (POSIX's PIPE_BUF is at least 512,
/// Linux's 4096).
const MAX_LINE_LEN: usize = 4096;
/// How long a reader may take to make room. Whoever does not read must not keep us from our job, or from its end.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);

fn say(words: impl Display) {
    // One write, so that lines of several pglocks do not mix; one line, whatever a server's message holds, and
    // nothing in it that a terminal would obey.
    let mut line = format!("pglock: {words}").replace(char::is_control, " ");
    if line.len() >= MAX_LINE_LEN {
        let end = (0..MAX_LINE_LEN - 4).rev().find(|end| line.is_char_boundary(*end));
        line.truncate(end.unwrap_or_default());
        line.push_str("...");
    }
    let before = match std::mem::take(&mut *is_live()) {
        true => "\r\x1b[K",
        false => "",
    };
    write(format_args!("{before}{line}\n"), WRITE_TIMEOUT);
}

/// Writes if there is room, or will be within this time.
fn write(text: fmt::Arguments, patience: Duration) {
    let stderr = std::io::stderr();
    let end = Instant::now() + patience;
    loop {
        let mut room = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
        let left = end.saturating_duration_since(Instant::now());
        match poll(&mut room, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(0) => return,
            // A signal, and no room.
            Err(Errno::EINTR) => {}
            _ => break,
        }
    }
    let _ = stderr.lock().write_all(text.to_string().as_bytes());
}
