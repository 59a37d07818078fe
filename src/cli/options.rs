//! The validated options of the subcommands; those of `run` belong to `run::options`.

use crate::connection::ConnectionOptions;
use crate::history::{RunFilter, Setup, TableName};
use crate::key::Key;
use crate::lock::ScopeChoice;
use crate::run::session::timing::Timing;
use clap::ValueEnum;
use std::time::Duration;

/// The options of `pglock list`.
#[derive(Debug)]
pub(crate) struct ListOptions {
    /// The server and how to connect to it.
    pub connection: ConnectionOptions,
    /// The keys to show; empty for all.
    pub keys: Vec<Key>,
    /// Print JSON instead of a table.
    pub json: bool,
    /// Refresh until interrupted.
    pub watch: bool,
    /// How long the server may take to reply to each query.
    pub reply_limit: Duration,
}

/// The options of `pglock evict`.
#[derive(Debug)]
pub(crate) struct EvictOptions {
    /// The server and how to connect to it.
    pub connection: ConnectionOptions,
    /// The keys, at least one.
    pub keys: Vec<Key>,
    /// Terminate the waiters, too.
    pub waiters: bool,
    /// Terminate the sessions at once, without a request.
    pub force: bool,
    /// Heartbeat and grace period to expect of a holder that does not show its own.
    pub timing: Timing,
    /// Skip the confirmation prompt.
    pub yes: bool,
}

/// The options of `pglock check`.
#[derive(Debug)]
pub(crate) struct CheckOptions {
    /// The server and how to connect to it.
    pub connection: ConnectionOptions,
    /// The lifetime of the lock.
    pub scope: ScopeChoice,
    /// The timing that `run` would use with the same environment.
    pub timing: Timing,
    /// Print JSON instead of lines.
    pub json: bool,
}

/// The options of `pglock key`.
#[derive(Debug)]
pub(crate) struct KeyOptions {
    /// The keys to print.
    pub selection: KeySelection,
    /// The form in which to print them.
    pub format: KeyFormat,
}

/// The keys that `pglock key` prints.
#[derive(Debug)]
pub(crate) enum KeySelection {
    /// These keys, one per line.
    Keys(Vec<Key>),
    /// This name under every scheme, one per line, each after the name of the scheme.
    AllSchemes(Key),
}

/// The form in which `pglock key` prints a key.
#[derive(Debug)]
pub(crate) enum KeyFormat {
    /// The number, in the database of this name if it depends on the database.
    Number {
        /// The name of the database, if given.
        database: Option<String>,
    },
    /// The SQL expression that computes the number.
    Sql,
}

/// The options of `pglock init`.
#[derive(Debug)]
pub(crate) struct InitOptions {
    /// The server and how to connect to it.
    pub connection: ConnectionOptions,
    /// What is to be there.
    pub setup: Setup,
    /// Print the SQL instead.
    pub print: bool,
}

/// The options of `pglock history`.
#[derive(Debug)]
pub(crate) struct HistoryOptions {
    /// The server and how to connect to it.
    pub connection: ConnectionOptions,
    /// The run table.
    pub table: TableName,
    /// The keys; empty for all.
    pub keys: Vec<Key>,
    /// What to do.
    pub action: HistoryAction,
    /// How long the server may take to reply to each query.
    pub reply_limit: Duration,
}

/// What `pglock history` does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum HistoryAction {
    /// Show runs.
    Show {
        /// Which.
        filter: RunFilter,
        /// Print JSON instead of a table.
        json: bool,
    },
    /// Check that each key has succeeded within this time.
    CheckSuccess(Duration),
    /// Print metrics.
    Metrics,
    /// Remove old runs.
    Prune,
}

/// The text that `pglock completions` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompletionsTarget {
    /// Completions for bash, with bash-completion
    Bash,
    /// Completions for zsh
    Zsh,
    /// Completions for fish
    Fish,
    /// pglock(1), the overview, for man(1)
    Man,
    /// pglock-run(1)
    ManRun,
    /// pglock-list(1)
    ManList,
    /// pglock-evict(1)
    ManEvict,
    /// pglock-check(1)
    ManCheck,
    /// pglock-key(1)
    ManKey,
    /// pglock-completions(1)
    ManCompletions,
    /// pglock-init(1)
    ManInit,
    /// pglock-history(1)
    ManHistory,
}
