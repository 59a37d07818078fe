//! How a run of pglock ends, and the table of exit statuses.
//!
//! pglock's own failures use the statuses of sysexits(3), so that they rarely collide with the job's. The table is the
//! source for `--help` and the manual, and a test compares the README with it. The statuses are part of the stable
//! interface.

use std::fmt;

/// The exit statuses of pglock's own failures; see [`ExitReason`] for the job's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum ExitCode {
    /// The arguments are invalid.
    Usage = 64,
    /// The database is unreachable or rejected the connection.
    Unavailable = 69,
    /// A bug in pglock, or a failure of the operating system.
    Internal = 70,
    /// The lock was lost while the job ran.
    Lost = 74,
    /// The lock is held or the wait timed out; `--conflict-exit-code` replaces this status.
    Conflict = 75,
    /// Authentication failed or permission was denied.
    Permission = 77,
    /// The configuration is invalid, or this server cannot provide a real lock.
    Config = 78,
    /// The command was found but cannot be executed.
    CannotExecute = 126,
    /// The command was not found.
    NotFound = 127,
}

/// An exit status, and its meaning.
type ExitRow = (&'static str, &'static str);

/// The exit table as the help, the manual and the README print it.
pub(crate) const EXIT_TABLE: &[ExitRow] = &[
    (
        "the job's own",
        "the job ran; if a signal killed it, pglock dies by that signal (128+n in a shell)",
    ),
    ("64", "usage error"),
    ("69", "the database is unreachable or rejected the connection"),
    ("70", "internal error"),
    ("74", "the lock was lost while the job ran; the job was terminated"),
    (
        "75",
        "the lock is held, the wait timed out, or --once-per applies (-E changes it)",
    ),
    ("77", "authentication failed or permission denied"),
    ("78", "invalid configuration, or this server cannot provide a real lock"),
    ("126", "the command cannot be executed (the lock is released)"),
    ("127", "the command was not found (the lock is released)"),
];

/// The exit statuses of the subcommands that run no job. Those without a meaning here have that of [`EXIT_TABLE`].
const EXIT_TABLES_WITHOUT_A_JOB: &[(&str, &[ExitRow])] = &[
    (
        "list",
        &[
            ("0", "no --key is given, or none of the given keys is held"),
            ("64", ""),
            ("69", ""),
            ("70", ""),
            ("75", "one of the given keys is held"),
            ("77", ""),
            ("78", ""),
        ],
    ),
    (
        "evict",
        &[
            ("0", "the sessions have released the keys, or no session held one"),
            ("64", ""),
            ("69", ""),
            ("70", ""),
            (
                "75",
                "the user declined, a session did not end in time, or a prepared transaction holds a key",
            ),
            ("77", "authentication failed, or this role may not evict a session"),
            ("78", ""),
        ],
    ),
    (
        "check",
        &[
            ("0", "pglock run works here; there may be warnings"),
            ("64", ""),
            ("69", ""),
            ("70", ""),
            ("77", ""),
            ("78", "pglock run would refuse to run, or invalid configuration"),
        ],
    ),
    (
        "key",
        &[
            ("0", "all numbers were printed"),
            ("64", "usage error, or a number that only a server can compute"),
            ("70", ""),
            ("78", "invalid configuration (PGLOCK_HASH)"),
        ],
    ),
    (
        "history",
        &[
            ("0", "with --ok-within: each key has succeeded within that time"),
            ("64", ""),
            ("69", ""),
            ("70", ""),
            ("75", "with --ok-within: a key has not succeeded within that time"),
            ("77", ""),
            (
                "78",
                "the table does not exist or differs from what init creates, or invalid configuration",
            ),
        ],
    ),
    ("completions", &[("0", "success"), ("64", ""), ("70", "")]),
    (
        "init",
        &[
            ("0", "the table exists, and the roles may use it"),
            ("64", ""),
            ("69", ""),
            ("70", ""),
            (
                "77",
                "authentication failed, or this role may not create the table or grant the privileges",
            ),
            (
                "78",
                "a schema or role is missing, another table has its name, or invalid configuration",
            ),
        ],
    ),
];

/// Returns the exit statuses of a subcommand, and their meanings.
pub(crate) fn exit_rows(subcommand: &str) -> Vec<ExitRow> {
    if subcommand == "run" {
        return EXIT_TABLE.to_vec();
    }
    let table = EXIT_TABLES_WITHOUT_A_JOB.iter().find(|(name, _)| *name == subcommand);
    let rows = table.map_or(&[][..], |(_, rows)| rows);
    let general = |code| EXIT_TABLE.iter().find(|(candidate, _)| *candidate == code);
    let with_meaning = |row: &ExitRow| match row {
        (code, "") => general(*code).copied().unwrap_or(*row),
        _ => *row,
    };
    rows.iter().map(with_meaning).collect()
}

/// How the job ended, as wait(2) reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ExitReason {
    /// It exited with this status.
    Code(u8),
    /// This signal killed it.
    Signal(i32),
}

/// How pglock ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    /// The subcommand succeeded; it had no job.
    Success,
    /// Like the job, by exit status or by signal.
    Job(ExitReason),
    /// By the signal that interrupted the wait for the lock.
    Interrupted(i32),
    /// Without the lock, with the conflict exit status that the user chose.
    Conflict(u8),
    /// With the exit status of a failure that has been reported.
    Failed(ExitCode),
}

/// An error that ends pglock: its exit status and its message.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The exit status.
    pub code: ExitCode,
    /// The message: the outermost context first, then the causes.
    pub error: anyhow::Error,
    /// Whether the same attempt may succeed a little later: the server is away, starting, or out of connections.
    pub is_transient: bool,
}

impl Failure {
    /// Makes a failure from an error that has a message of its own.
    pub(crate) fn new(code: ExitCode, error: impl Into<anyhow::Error>) -> Failure {
        Failure {
            code,
            error: error.into(),
            is_transient: false,
        }
    }

    /// Makes a failure from a message.
    pub(crate) fn msg(code: ExitCode, message: impl fmt::Display) -> Failure {
        Failure {
            code,
            error: anyhow::anyhow!("{message}"),
            is_transient: false,
        }
    }

    /// Marks the failure as one that may be over a little later, or not.
    pub(crate) fn transient_if(self, is_transient: bool) -> Failure {
        Failure { is_transient, ..self }
    }

    /// Prefixes the message with what pglock was doing.
    pub(crate) fn context(self, context: impl fmt::Display + Send + Sync + 'static) -> Failure {
        Failure {
            error: self.error.context(context),
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
    fn the_table_lists_every_code_once() {
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
        let codes: Vec<String> = codes.iter().map(|code| (*code as u8).to_string()).collect();
        assert_eq!(table, codes);
    }
}
