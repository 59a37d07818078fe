//! What pglock says, and where: `pglock: ...` on standard error, one line at a time.
//!
//! Standard output belongs to the job. Nothing here can panic or fail: a closed or broken standard error must
//! not end a pglock that guards a running job, so errors of writing are dropped.

use std::fmt::Display;
use std::io::Write;
use std::sync::OnceLock;

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

/// Sets the verbosity, once, before the first word.
pub fn set_verbosity(verbosity: Verbosity) {
    // A second call would be a fault in main, and changes nothing.
    let _ = VERBOSITY.set(verbosity);
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

/// Whether [`detail`] says anything, for details that cost something to find out.
pub fn is_verbose() -> bool {
    verbosity() >= Verbosity::Verbose
}

fn verbosity() -> Verbosity {
    VERBOSITY.get().copied().unwrap_or_default()
}

fn say(words: impl Display) {
    // One write, so that lines of several pglocks do not mix; one line, whatever a server's message holds.
    let line = format!("pglock: {words}").replace('\n', " ");
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
