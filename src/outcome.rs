//! How a run ended, and the one table of exit codes.
//!
//! Where pglock itself failed the codes are those of sysexits(3), so that they rarely collide with a job's own.
//! The table below is the source for `--help` and the manual, and a test holds the README to it.
//! The codes are part of the stable interface.

use std::fmt;

/// pglock's own ways to end. A job's own ending is [`ExitReason`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// The arguments are wrong.
    Usage = 64,
    /// The database cannot be reached, or refuses us.
    Unavailable = 69,
    /// A fault of pglock's own, or of the system under it.
    Internal = 70,
    /// The lock was lost while the job ran.
    Lost = 74,
    /// Not acquired: held by someone else, or the wait timed out. `--conflict-exit-code` replaces it.
    Conflict = 75,
    /// Authentication or permission.
    Permission = 77,
    /// A setting is wrong, or this server cannot give a real lock.
    Config = 78,
    /// The command was found and cannot be executed.
    CannotExecute = 126,
    /// The command was not found.
    NotFound = 127,
}

/// The exit table as users read it.
pub const EXIT_TABLE: &[(&str, &str)] = &[
    (
        "the job's own",
        "it ran; if a signal ended it, pglock ends by the same signal (128+n in a shell)",
    ),
    ("64", "usage"),
    ("69", "the database cannot be reached, or refuses us"),
    ("70", "internal error"),
    ("74", "the lock was lost while the job ran; the job was stopped"),
    (
        "75",
        "not acquired: held by someone else, or the wait timed out (-E changes it)",
    ),
    ("77", "authentication or permission"),
    ("78", "a setting is wrong, or this server cannot give a real lock"),
    ("126", "the command cannot be executed (the lock is released first)"),
    ("127", "the command is not found (the lock is released first)"),
];

/// How the job ended, as wait(2) tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// It exited with this status.
    Code(u8),
    /// This signal ended it.
    Signal(i32),
}

/// How pglock ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything asked for was done, and there was no job whose end to repeat.
    Success,
    /// As the job ended.
    Job(ExitReason),
    /// By the signal that ended the wait for the lock.
    Interrupted(i32),
    /// The lock was not acquired; the code is the user's to choose.
    Conflict(u8),
    /// As pglock's own fault demands.
    Failed(ExitCode),
}

/// A fault that ends pglock: the code to exit with, and the words for it.
#[derive(Debug)]
pub struct Failure {
    /// What the shell gets.
    pub code: ExitCode,
    /// What the operator reads: the outermost context first, then the causes.
    pub error: anyhow::Error,
}

impl Failure {
    /// A failure with these words.
    pub fn new(code: ExitCode, error: impl Into<anyhow::Error>) -> Failure {
        Failure {
            code,
            error: error.into(),
        }
    }

    /// A failure that is said in one sentence.
    pub fn say(code: ExitCode, words: impl fmt::Display) -> Failure {
        Failure {
            code,
            error: anyhow::anyhow!("{words}"),
        }
    }

    /// The same failure, with what was being done said in front of it.
    pub fn context(self, words: impl fmt::Display + Send + Sync + 'static) -> Failure {
        Failure {
            error: self.error.context(words),
            ..self
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_every_code_once() {
        use ExitCode::*;
        let codes = [
            Usage,
            Unavailable,
            Internal,
            Lost,
            Conflict,
            Permission,
            Config,
            CannotExecute,
            NotFound,
        ];
        let table: Vec<String> = EXIT_TABLE[1..].iter().map(|(code, _)| code.to_string()).collect();
        let listed: Vec<String> = codes.iter().map(|code| (*code as u8).to_string()).collect();
        assert_eq!(table, listed);
    }
}
