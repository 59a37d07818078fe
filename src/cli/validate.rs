//! From parsed arguments to validated options: applies variables and defaults, and rejects contradictions.

use super::args::{
    CheckArgs, ConnectionArgs, EvictArgs, HistoryArgs, InitArgs, KeyArgs, ListArgs, RunArgs, ScopeArgs, TableArgs,
};
use super::defaults;
use super::options::{
    CheckOptions, EvictOptions, HistoryAction, HistoryOptions, InitOptions, KeyFormat, KeyOptions, KeySelection,
    ListOptions,
};
use super::value::SchemeSelection;
use super::variables;
use crate::connection::{ConnectionOptions, ConnectionString, ConnectionStringSource, has_password};
use crate::history::{RunFilter, Setup, TableName};
use crate::key::Key;
use crate::key::hash::{Scheme, SchemeInput};
use crate::lock::{Mode, ScopeChoice};
use crate::outcome::{ExitCode, Failure};
use crate::run::job;
use crate::run::options::{RecordOptions, RunOptions};
use crate::run::session::timing::Timing;
use crate::run::state::Policy;
use crate::ui::message::Verbosity;
use humantime::format_duration;
use std::collections::HashSet;
use std::ffi::OsString;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

impl RunArgs {
    /// Validates the options of `pglock run`.
    ///
    /// # Errors
    /// Fails if a variable is invalid, a value is out of range, or options contradict each other.
    pub(super) fn validate(self) -> Result<RunOptions, Failure> {
        let record = self.record_options()?;
        check_command(&self.command)?;
        let wait = if self.no_wait {
            Some(Duration::ZERO)
        } else {
            variables::PGLOCK_WAIT.or_option(self.wait)?
        };
        let on_lost = variables::PGLOCK_ON_LOST.or_option(self.on_lost)?;
        let poll = variables::PGLOCK_POLL.or_option(self.poll)?;
        let poll = poll.unwrap_or(defaults::DEFAULT_POLL);
        let origin = variables::PGLOCK_POLL.origin("--poll", self.poll);
        check_range(origin, poll, &defaults::POLL_RANGE)?;
        let timing = timing(self.heartbeat, self.kill_after)?;
        let connection = self.connection.validate()?;
        let scope = self.scope.validate()?;
        if self.slots.is_some() && self.key.len() > 1 {
            return Err(usage("--slots cannot be used with several keys"));
        }
        if self.fair {
            check_fair(self.key.len(), wait, scope)?;
        }
        let keys = distinct(resolve_keys(self.key, self.hash)?);
        job::variables::check_length(&keys).map_err(usage)?;
        let stop_signal = variables::PGLOCK_STOP_SIGNAL.or_option(self.stop_signal)?;
        let conflict_status = variables::PGLOCK_CONFLICT_EXIT_CODE.or_option(self.conflict_exit_code)?;
        Ok(RunOptions {
            connection,
            keys,
            slots: self.slots,
            mode: if self.shared { Mode::Shared } else { Mode::Exclusive },
            scope,
            fair: self.fair,
            token: self.token,
            wait,
            poll,
            policy: Policy {
                conflict_status: conflict_status.unwrap_or(defaults::DEFAULT_CONFLICT_EXIT_CODE),
                on_lost: on_lost.unwrap_or(defaults::DEFAULT_ON_LOST),
                min_hold: self.min_hold.unwrap_or(defaults::DEFAULT_MIN_HOLD),
                stop_signal,
                timing,
                is_recorded: record.is_some(),
            },
            record,
            inherit_socket: !self.close,
            verbosity: match (self.quiet, self.verbose) {
                (true, _) => Verbosity::Quiet,
                (false, true) => Verbosity::Verbose,
                (false, false) => Verbosity::Normal,
            },
            note: self.note,
            command: match self.shell_command {
                Some(text) => shell_command(text),
                None => self.command,
            },
        })
    }
}

impl RunArgs {
    /// Returns how to record the run; `None` if it is not to be recorded.
    ///
    /// # Errors
    /// Fails if `--once-per` could not keep its promise, `--table` would have no effect, or the variable is invalid.
    fn record_options(&self) -> Result<Option<RecordOptions>, Failure> {
        if self.once_per.is_some() && self.key.len() > 1 {
            return Err(usage(
                "--once-per cannot be used with several keys; run a separate pglock for each key",
            ));
        }
        if self.once_per.is_some_and(|interval| interval.is_zero()) {
            return Err(usage(
                "--once-per must be more than 0; use --record to record every run",
            ));
        }
        if !self.record && self.once_per.is_none() {
            return match self.table.table {
                Some(_) => Err(usage("--table has no effect without --record or --once-per")),
                None => Ok(None),
            };
        }
        Ok(Some(RecordOptions {
            table: self.table.clone().validate()?,
            once_per: self.once_per,
        }))
    }
}

impl TableArgs {
    /// Returns the table from the option, the variable or the default.
    ///
    /// # Errors
    /// Fails if the variable is invalid.
    fn validate(self) -> Result<TableName, Failure> {
        Ok(variables::PGLOCK_TABLE.or_option(self.table)?.unwrap_or_default())
    }
}

/// Checks that the command begins neither with a connection string nor with the assignment of a variable, as a shell
/// takes it in front of a command: `list`, the run table and the server show the name of the command.
///
/// # Errors
/// It begins with either. The error does not quote it.
fn check_command(command: &[OsString]) -> Result<(), Failure> {
    let Some(name) = command.first().map(|name| name.to_string_lossy()) else {
        return Ok(());
    };
    let is_variable = |text: &str| {
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '_';
        !text.is_empty() && text.chars().all(is_allowed) && !text.starts_with(|c: char| c.is_ascii_digit())
    };
    let before_value = name.split_once('=').map(|(before, _)| before);
    let variable = before_value.filter(|before| is_variable(before));
    // The parameters of a connection string are in lower case, at least in part.
    let is_parameter = |variable: &str| variable.contains(|c: char| c.is_ascii_lowercase());
    if has_password(&name) && variable.is_none_or(is_parameter) {
        return Err(usage(
            "the name of the command contains a password; pass a connection string with --dsn or PGLOCK_DSN, \
             and a command line with -c",
        ));
    }
    if variable.is_some() {
        return Err(usage(
            "the command begins with the assignment of a variable; put it in front of pglock",
        ));
    }
    Ok(())
}

/// Returns the command that runs a text with the user's shell, as `flock -c` does.
fn shell_command(text: OsString) -> Vec<OsString> {
    let shell = std::env::var_os("SHELL").filter(|shell| !shell.is_empty());
    vec![shell.unwrap_or_else(|| "/bin/sh".into()), "-c".into(), text]
}

/// Checks that the options allow queueing with `--fair`.
///
/// # Errors
/// Fails if the lock has several keys, no wait, or the scope of a transaction.
fn check_fair(key_count: usize, wait: Option<Duration>, scope: ScopeChoice) -> Result<(), Failure> {
    if key_count > 1 {
        return Err(usage("--fair cannot be used with several keys"));
    }
    if wait == Some(Duration::ZERO) {
        return Err(usage("--fair cannot be used with a wait of 0: it queues for the lock"));
    }
    if scope == ScopeChoice::Transaction {
        return Err(usage(
            "--fair cannot be used with --scope transaction: a place in the queue needs a session",
        ));
    }
    Ok(())
}

impl ListArgs {
    /// Validates the options of `pglock list`.
    ///
    /// # Errors
    /// Fails if a variable is invalid or the scheme does not suit the keys.
    pub(super) fn validate(self) -> Result<ListOptions, Failure> {
        Ok(ListOptions {
            keys: resolve_any_keys(self.key, self.hash.hash)?,
            connection: self.connection.validate()?,
            json: self.json,
            watch: self.watch,
            reply_limit: timing(None, None)?.reply_limit(),
        })
    }
}

impl EvictArgs {
    /// Validates the options of `pglock evict`.
    ///
    /// # Errors
    /// Fails if a variable is invalid or the scheme does not suit the keys.
    pub(super) fn validate(self) -> Result<EvictOptions, Failure> {
        Ok(EvictOptions {
            keys: distinct(resolve_keys(self.key, self.hash.hash)?),
            connection: self.connection.validate()?,
            waiters: self.waiters,
            force: self.force,
            timing: timing(None, None)?,
            yes: self.yes,
        })
    }
}

impl CheckArgs {
    /// Validates the options of `pglock check`.
    ///
    /// # Errors
    /// Fails if a variable is invalid or out of range.
    pub(super) fn validate(self) -> Result<CheckOptions, Failure> {
        Ok(CheckOptions {
            connection: self.connection.validate()?,
            scope: self.scope.validate()?,
            timing: timing(None, None)?,
            json: self.json,
        })
    }
}

impl KeyArgs {
    /// Validates the options of `pglock key`.
    ///
    /// # Errors
    /// Fails if a variable is invalid or the scheme does not suit the keys.
    pub(super) fn validate(self) -> Result<KeyOptions, Failure> {
        let format = if self.sql {
            KeyFormat::Sql
        } else {
            KeyFormat::Number { database: self.dbname }
        };
        let selection = match self.hash {
            Some(SchemeSelection::All) => KeySelection::AllSchemes(only_name(self.names)?),
            Some(SchemeSelection::One(scheme)) => KeySelection::Keys(resolve_keys(self.names, Some(scheme))?),
            None => KeySelection::Keys(resolve_keys(self.names, None)?),
        };
        Ok(KeyOptions { selection, format })
    }
}

impl InitArgs {
    /// Validates the options of `pglock init`.
    ///
    /// # Errors
    /// Fails if a variable is invalid or a value is out of range.
    pub(super) fn validate(self) -> Result<InitOptions, Failure> {
        // The table stores whole seconds.
        if self.keep.is_some_and(|keep| keep < Duration::from_secs(1)) {
            return Err(usage("--keep must be at least 1s"));
        }
        Ok(InitOptions {
            connection: self.connection.validate()?,
            setup: Setup {
                table: self.table.validate()?,
                roles: self.grant,
                keep: self.keep,
            },
            print: self.print,
        })
    }
}

impl HistoryArgs {
    /// Validates the options of `pglock history`.
    ///
    /// # Errors
    /// Fails if a variable is invalid, the scheme does not suit the keys, or there is nothing to check.
    pub(super) fn validate(self) -> Result<HistoryOptions, Failure> {
        let keys = distinct(resolve_any_keys(self.key, self.hash.hash)?);
        let action = match self.ok_within {
            Some(_) if keys.is_empty() => return Err(usage("--ok-within needs --key")),
            Some(interval) if interval.is_zero() => return Err(usage("--ok-within must be more than 0")),
            Some(interval) => HistoryAction::CheckSuccess(interval),
            None if self.metrics => HistoryAction::Metrics,
            None if self.prune => HistoryAction::Prune,
            None => HistoryAction::Show {
                filter: RunFilter {
                    last: self.last.unwrap_or(defaults::DEFAULT_LAST),
                    failed: self.failed,
                },
                json: self.json,
            },
        };
        Ok(HistoryOptions {
            connection: self.connection.validate()?,
            table: self.table.validate()?,
            keys,
            action,
            reply_limit: timing(None, None)?.reply_limit(),
        })
    }
}

/// Returns the only key, which must be a name.
///
/// # Errors
/// Fails for several keys, and for a number.
fn only_name(keys: Vec<Key>) -> Result<Key, Failure> {
    match <[Key; 1]>::try_from(keys) {
        Ok([key]) if key.name().is_some() => Ok(key),
        _ => Err(usage("--hash all takes a single name; write name:42 for the name 42")),
    }
}

impl ConnectionArgs {
    /// Completes the options from the variables.
    ///
    /// # Errors
    /// Fails if a variable is invalid.
    fn validate(self) -> Result<ConnectionOptions, Failure> {
        let connect_timeout = variables::PGLOCK_CONNECT_TIMEOUT.or_option(self.connect_timeout)?;
        let (text, source) = if self.dsn.is_some() {
            (self.dsn, ConnectionStringSource::Option)
        } else if let Some(dsn) = variables::PGLOCK_DSN.get()? {
            (Some(dsn), ConnectionStringSource::PglockDsn)
        } else {
            (variables::DATABASE_URL.get()?, ConnectionStringSource::DatabaseUrl)
        };
        Ok(ConnectionOptions {
            dsn: text.map(|text| ConnectionString { text, source }),
            connect_timeout,
        })
    }
}

impl ScopeArgs {
    /// Returns the scope from the option, the variable or the default.
    ///
    /// # Errors
    /// Fails if the variable is invalid.
    fn validate(self) -> Result<ScopeChoice, Failure> {
        let scope = variables::PGLOCK_SCOPE.or_option(self.scope)?;
        Ok(scope.unwrap_or(defaults::DEFAULT_SCOPE))
    }
}

/// Returns the given keys, hashed by the scheme, or the one lock that the scheme stands for.
///
/// # Errors
/// Fails if there is neither a key nor a scheme that stands for a lock, and as [`hashed_key`] does.
fn resolve_keys(given: Vec<Key>, scheme: Option<Scheme>) -> Result<Vec<Key>, Failure> {
    if given.is_empty() {
        return Ok(vec![tool_key(scheme)?]);
    }
    given.into_iter().map(|key| hashed_key(key, scheme)).collect()
}

/// Returns the keys as [`resolve_keys`] does, or none if neither a key nor a scheme is given.
///
/// # Errors
/// As for [`resolve_keys`].
fn resolve_any_keys(given: Vec<Key>, scheme: Option<Scheme>) -> Result<Vec<Key>, Failure> {
    if given.is_empty() && scheme.is_none() {
        return Ok(Vec::new());
    }
    resolve_keys(given, scheme)
}

/// Returns the one lock that the scheme stands for.
///
/// # Errors
/// Fails without a scheme, and for a scheme that needs a name.
fn tool_key(scheme: Option<Scheme>) -> Result<Key, Failure> {
    match scheme {
        Some(scheme) if scheme.input() != SchemeInput::LockName => Ok(Key::for_tool(scheme)),
        Some(scheme) => Err(usage(format!(
            "the key is missing: --hash {} needs a name",
            scheme.name()
        ))),
        None => Err(usage("the key is missing")),
    }
}

/// Applies the scheme from the option or else the variable. The variable cannot select a tool's own lock, because no
/// variable may name the lock.
///
/// # Errors
/// Fails if the scheme is a tool's own lock, or the variable is invalid.
fn hashed_key(key: Key, scheme: Option<Scheme>) -> Result<Key, Failure> {
    let hashes_names = |scheme: Scheme| scheme.input() == SchemeInput::LockName;
    if let Some(scheme) = scheme {
        if hashes_names(scheme) {
            return Ok(key.hashed_by(scheme));
        }
        return Err(usage(format!(
            "--hash {} is a tool's own lock and takes no key; remove {key}",
            scheme.name()
        )));
    }
    match variables::PGLOCK_HASH.get()? {
        None => Ok(key),
        Some(scheme) if hashes_names(scheme) => Ok(key.hashed_by(scheme)),
        Some(scheme) => Err(variables::PGLOCK_HASH.invalid(
            scheme.name(),
            "expected a scheme that hashes names; use --hash for a tool's own lock",
        )),
    }
}

/// Removes repeated keys, as far as their numbers are known without a server.
fn distinct(keys: Vec<Key>) -> Vec<Key> {
    let mut seen = HashSet::new();
    keys.into_iter().filter(|key| seen.insert(key.number())).collect()
}

/// Returns the timing of the session from options, variables and defaults.
///
/// # Errors
/// Fails if a variable is invalid, or an interval is out of range.
fn timing(heartbeat: Option<Duration>, kill_after: Option<Duration>) -> Result<Timing, Failure> {
    let heartbeat_origin = variables::PGLOCK_HEARTBEAT.origin("--heartbeat", heartbeat);
    let kill_after_origin = variables::PGLOCK_KILL_AFTER.origin("--kill-after", kill_after);
    let heartbeat = variables::PGLOCK_HEARTBEAT.or_option(heartbeat)?;
    let kill_after = variables::PGLOCK_KILL_AFTER.or_option(kill_after)?;
    let timing = Timing {
        heartbeat: heartbeat.unwrap_or(defaults::DEFAULT_HEARTBEAT),
        kill_after: kill_after.unwrap_or(defaults::DEFAULT_KILL_AFTER),
    };
    check_range(heartbeat_origin, timing.heartbeat, &defaults::HEARTBEAT_RANGE)?;
    check_range(kill_after_origin, timing.kill_after, &defaults::KILL_AFTER_RANGE)?;
    Ok(timing)
}

/// Checks a value; `origin` is the option or variable that it comes from.
///
/// # Errors
/// Fails if the value is out of range.
fn check_range(origin: &str, value: Duration, range: &RangeInclusive<Duration>) -> Result<(), Failure> {
    if range.contains(&value) {
        return Ok(());
    }
    let (start, end) = (format_duration(*range.start()), format_duration(*range.end()));
    Err(usage(format!("{origin} must be between {start} and {end}")))
}

fn usage(message: impl Display) -> Failure {
    Failure::msg(ExitCode::Usage, message)
}
