//! The `PGLOCK_*` environment variables.
//!
//! Variables exist for what is configured once for a host or a crontab; an option overrides its variable. No variable
//! names the lock: a pglock in the job of another pglock would otherwise try to acquire the lock of its parent.

use super::value;
use crate::connection::quoted;
use crate::history::TableName;
use crate::key::hash::Scheme;
use crate::lock::ScopeChoice;
use crate::outcome::{ExitCode, Failure};
use crate::run::signal_number::SignalNumber;
use crate::run::state::OnLost;
use std::time::Duration;

/// An environment variable and the parser of its value.
pub(super) struct Variable<T> {
    /// The name of the variable.
    pub name: &'static str,
    parse: fn(&str) -> Result<T, String>,
}

pub(super) const PGLOCK_DSN: Variable<String> = Variable::new("PGLOCK_DSN", |text| Ok(text.to_owned()));
pub(super) const DATABASE_URL: Variable<String> = Variable::new("DATABASE_URL", |text| Ok(text.to_owned()));
pub(super) const PGLOCK_CONNECT_TIMEOUT: Variable<Duration> = Variable::new("PGLOCK_CONNECT_TIMEOUT", value::duration);
pub(super) const PGLOCK_WAIT: Variable<Duration> = Variable::new("PGLOCK_WAIT", value::duration);
pub(super) const PGLOCK_KILL_AFTER: Variable<Duration> = Variable::new("PGLOCK_KILL_AFTER", value::duration);
pub(super) const PGLOCK_HEARTBEAT: Variable<Duration> = Variable::new("PGLOCK_HEARTBEAT", value::duration);
pub(super) const PGLOCK_POLL: Variable<Duration> = Variable::new("PGLOCK_POLL", value::duration);
pub(super) const PGLOCK_CONFLICT_EXIT_CODE: Variable<u8> =
    Variable::new("PGLOCK_CONFLICT_EXIT_CODE", value::exit_status);
pub(super) const PGLOCK_STOP_SIGNAL: Variable<SignalNumber> = Variable::new("PGLOCK_STOP_SIGNAL", value::stop_signal);
pub(super) const PGLOCK_HASH: Variable<Scheme> = Variable::new("PGLOCK_HASH", str::parse);
pub(super) const PGLOCK_SCOPE: Variable<ScopeChoice> =
    Variable::new("PGLOCK_SCOPE", |text| value::choose(value::SCOPE_CHOICES, text));
pub(super) const PGLOCK_TABLE: Variable<TableName> = Variable::new("PGLOCK_TABLE", value::table);
pub(super) const PGLOCK_ON_LOST: Variable<OnLost> =
    Variable::new("PGLOCK_ON_LOST", |text| value::choose(value::ON_LOST_CHOICES, text));

impl<T> Variable<T> {
    const fn new(name: &'static str, parse: fn(&str) -> Result<T, String>) -> Variable<T> {
        Variable { name, parse }
    }

    /// Returns the value of the variable.
    ///
    /// # Errors
    /// Fails if the value is not valid.
    pub(super) fn get(&self) -> Result<Option<T>, Failure> {
        self.or_option(None)
    }

    /// Returns the value of the option or else of the variable.
    ///
    /// # Errors
    /// Fails if the variable is not UTF-8, or if its value is not valid and no option overrides it.
    pub(super) fn or_option(&self, option: Option<T>) -> Result<Option<T>, Failure> {
        match (option, self.text()?) {
            (Some(value), _) => Ok(Some(value)),
            (None, None) => Ok(None),
            (None, Some(text)) => match (self.parse)(&text) {
                Ok(value) => Ok(Some(value)),
                Err(expected) => Err(self.invalid(&text, &expected)),
            },
        }
    }

    /// Returns what an error about the value should name: the option, if it is given, or else the variable.
    pub(super) fn origin(&self, option_name: &'static str, option: Option<T>) -> &'static str {
        if option.is_some() { option_name } else { self.name }
    }

    /// Reads the variable; an empty one counts as unset, as for libpq.
    ///
    /// # Errors
    /// Fails if the value is not UTF-8.
    fn text(&self) -> Result<Option<String>, Failure> {
        let Some(value) = std::env::var_os(self.name).filter(|value| !value.is_empty()) else {
            return Ok(None);
        };
        match value.into_string() {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(Failure::msg(
                ExitCode::Config,
                format!("{} is not valid UTF-8", self.name),
            )),
        }
    }

    /// Makes the error for an invalid value; a value that may contain a password is not printed.
    pub(super) fn invalid(&self, value: &str, expected: &str) -> Failure {
        let message = format!("{} is {}; {expected}", self.name, quoted(value));
        Failure::msg(ExitCode::Config, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn errors_name_the_variable_but_not_its_secrets(value in "\\PC{0,12}(://|password=)[XYZ]{5}\\PC{0,5}") {
            let expected = value::duration(&value).expect_err("not a duration");
            let message = PGLOCK_WAIT.invalid(&value, &expected).to_string();
            prop_assert!(message.contains("PGLOCK_WAIT"), "{message:?}");
            prop_assert!(!message.contains(['X', 'Y', 'Z']), "{message:?}");
        }
    }
}
