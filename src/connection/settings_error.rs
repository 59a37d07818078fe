//! Errors in the connection settings: the text that the user reads, and what it is about.
//!
//! No variant carries a secret. The code that creates one uses [`super::redact`] to decide what of the input may be
//! quoted, because a password in the wrong place (a URI in `PGPORT`, an unquoted value) must not be printed.

use crate::outcome::{ExitCode, Failure};
use nix::errno::Errno;
use std::error::Error;
use std::fmt::{self, Display};
use std::io;
use std::path::Path;

/// A mistake in a connection string, a parameter, a variable, or one of the files that they name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SettingsError {
    /// The connection string cannot be parsed.
    ConnectionString {
        /// What to call it: the variable, where that matters.
        origin: &'static str,
        /// What is wrong, and where.
        problem: String,
    },
    /// A parameter has a value that it does not accept.
    InvalidValue {
        /// The variable that set the parameter, or else the parameter itself.
        origin: String,
        /// The value in quotes, or `None` if it could be part of a password.
        value: Option<String>,
        /// What the parameter accepts.
        expected: String,
    },
    /// libpq supports this and pglock does not.
    NotSupported {
        /// The parameter, with its value where that matters.
        parameter: String,
        /// The rest of the sentence, with its punctuation: why not, and what to use instead.
        detail: String,
    },
    /// Values that are valid alone contradict each other, or a required one is missing.
    Inconsistent {
        /// The whole sentence, which names the parameters.
        problem: String,
    },
    /// A file that a parameter names cannot be read.
    Unreadable {
        /// The kind of file and its path.
        file: String,
        /// The error of the system.
        cause: Errno,
    },
    /// A file cannot be used.
    File {
        /// The kind of file and its path.
        file: String,
        /// The rest of the sentence: what is wrong with it ("does not exist").
        problem: String,
    },
    /// Another error, about something that libpq accepts, or may accept.
    OnlyOurs {
        /// The whole sentence.
        problem: String,
    },
}

impl SettingsError {
    /// Reports values that contradict each other, or a missing one.
    pub(crate) fn inconsistent(problem: impl Into<String>) -> SettingsError {
        SettingsError::Inconsistent {
            problem: problem.into(),
        }
    }

    /// Reports a parameter, or one of its values, that pglock does not support.
    pub(crate) fn not_supported(parameter: impl Into<String>, detail: impl Into<String>) -> SettingsError {
        SettingsError::NotSupported {
            parameter: parameter.into(),
            detail: detail.into(),
        }
    }

    /// Reports a problem with a file of this kind ("service file", "private key"). The problem completes the sentence.
    pub(crate) fn file(kind: &str, path: &Path, problem: impl Display) -> SettingsError {
        SettingsError::File {
            file: format!("{kind} {}", path.display()),
            problem: problem.to_string(),
        }
    }

    /// Reports a file of this kind that a parameter names, and that cannot be read.
    pub(crate) fn unreadable(kind: &str, path: &Path, cause: Errno) -> SettingsError {
        SettingsError::Unreadable {
            file: format!("{kind} {}", path.display()),
            cause,
        }
    }

    /// Reports a file of this kind that could not be read.
    pub(crate) fn io(kind: &str, path: &Path, error: &io::Error) -> SettingsError {
        match error.raw_os_error() {
            Some(errno) => SettingsError::unreadable(kind, path, Errno::from_raw(errno)),
            None => SettingsError::file(kind, path, format!("cannot be read: {error}")),
        }
    }

    /// Returns whether a file that a parameter names cannot be read: then the connection would not be what the user
    /// meant, even if it succeeded without TLS.
    pub(crate) fn is_unreadable_file(&self) -> bool {
        matches!(self, SettingsError::Unreadable { .. })
    }

    /// Marks the error as one that libpq does not have, or may not have. A file that cannot be read is always an error.
    pub(crate) fn where_libpq_may_succeed(self) -> SettingsError {
        if self.is_unreadable_file() {
            return self;
        }
        SettingsError::OnlyOurs {
            problem: self.to_string(),
        }
    }

    /// Returns whether libpq, with the same settings, fails as well.
    pub(crate) fn fails_in_libpq(&self) -> bool {
        !matches!(
            self,
            SettingsError::OnlyOurs { .. } | SettingsError::NotSupported { .. }
        )
    }
}

impl Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SettingsError::ConnectionString { origin, problem } => write!(f, "invalid {origin}: {problem}"),
            SettingsError::InvalidValue {
                origin,
                value: Some(value),
                expected,
            } => write!(f, "{origin} is {value}; expected {expected}"),
            SettingsError::InvalidValue {
                origin,
                value: None,
                expected,
            } => write!(f, "{origin} is invalid; expected {expected}"),
            SettingsError::NotSupported { parameter, detail } => write!(f, "{parameter} is not supported{detail}"),
            SettingsError::Inconsistent { problem } | SettingsError::OnlyOurs { problem } => f.write_str(problem),
            SettingsError::Unreadable { file, cause } => write!(f, "{file} cannot be read: {}", cause.desc()),
            SettingsError::File { file, problem } => write!(f, "{file} {problem}"),
        }
    }
}

impl Error for SettingsError {}

impl From<SettingsError> for Failure {
    fn from(error: SettingsError) -> Failure {
        Failure::new(ExitCode::Config, error)
    }
}
