//! The clap definitions of the command line.
//!
//! A doc comment here is help text: its first paragraph is the one line that `-h` prints, and `--help` and the manual
//! have the whole. Structs have no doc comments, because clap would print them as the description of the subcommand.

use super::defaults::{self, DEFAULT_CONNECT_TIMEOUT, DEFAULT_SCHEME};
use super::help::{self, ArgNotes};
use super::options::CompletionsTarget;
use super::value::{self, SchemeSelection};
use super::variables;
use crate::history::{DEFAULT_KEEP, TableName};
use crate::inspect::server_time::in_full;
use crate::key::Key;
use crate::key::hash::Scheme;
use crate::lock::ScopeChoice;
use crate::protocol::derived_keys::MAX_SLOTS;
use crate::protocol::query_tag::MAX_NOTE_LEN;
use crate::run::signal_number::SignalNumber;
use crate::run::state::OnLost;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueHint};
use humantime::format_duration;
use std::ffi::OsString;
use std::time::Duration;

/// Defines the whole command line, for parsing, completions and the manual.
pub(super) fn command() -> clap::Command {
    Cli::command()
}

/// Run a command on one machine at a time, using the PostgreSQL server you already have
#[derive(Debug, Parser)]
#[command(name = "pglock", version, max_term_width = help::MAX_HELP_WIDTH, subcommand_required = true)]
#[command(disable_help_subcommand = true, arg_required_else_help = false)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

// clap defines only the subcommand that is used: to define them all takes longer than most of what pglock does itself.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(super) enum Command {
    /// Run a command while holding a lock
    Run(RunArgs),
    /// List the holders and waiters of a database's advisory locks
    List(ListArgs),
    /// Terminate the sessions that hold a lock; their pglocks then terminate the jobs
    Evict(EvictArgs),
    /// Check whether the connection is suitable for locks: server, pooler, timeouts
    Check(CheckArgs),
    /// Print the number of a key, without connecting to a server
    Key(KeyArgs),
    /// Print shell completions or a page of the manual
    Completions(CompletionsArgs),
    /// Create the table of recorded runs
    Init(InitArgs),
    /// Show recorded runs, or check when a job last succeeded
    History(HistoryArgs),
}

#[derive(Debug, Args)]
#[command(
    override_usage = "pglock run [OPTIONS] --key <KEY> [--] <COMMAND> [ARG]...\n       \
        pglock run [OPTIONS] --key <KEY> -c <COMMAND>",
    after_help = help::run_summary(),
    after_long_help = format!("{}\n{}\n{}", help::DURATIONS, help::exit_table("run"), help::scheme_table())
)]
pub(super) struct RunArgs {
    /// Lock to acquire: a name, an integer, or two integers A,B.
    ///
    /// name:42 is the name 42. With several keys, pglock acquires all of the locks or none.
    #[arg(short, long, value_parser = value::key_option, allow_hyphen_values = true, required_unless_present = "hash")]
    pub key: Vec<Key>,

    /// Hash scheme, to share a lock with another tool.
    ///
    /// A scheme that is a tool's own lock takes no --key.
    #[arg(long, value_name = "SCHEME", value_parser = value::scheme_parser(), hide_possible_values = true)]
    #[arg(default_note = DEFAULT_SCHEME.name(), variable_note = variables::PGLOCK_HASH.name)]
    pub hash: Option<Scheme>,

    /// Acquire a shared lock instead of an exclusive one
    #[arg(short, long)]
    pub shared: bool,

    /// Acquire an exclusive lock; this is the default
    #[arg(short = 'x', short_alias = 'e', long, conflicts_with = "shared")]
    pub exclusive: bool,

    /// Do not wait if the lock is held
    #[arg(short, long, help_heading = help::WAITING)]
    #[arg(visible_alias = "nonblock", conflicts_with = "wait")]
    pub no_wait: bool,

    /// Time limit for connecting and waiting.
    ///
    /// 0 is --no-wait. Without a limit, pglock waits indefinitely, once the first connection has succeeded. With one,
    /// it also retries the first connection while the server is away.
    #[arg(short, long, visible_alias = "timeout", value_name = "DURATION", value_parser = value::duration)]
    #[arg(help_heading = help::WAITING)]
    #[arg(variable_note = variables::PGLOCK_WAIT.name)]
    pub wait: Option<Duration>,

    /// Exit status if the lock is held or the wait times out
    #[arg(short = 'E', long, value_name = "N", value_parser = value::exit_status)]
    #[arg(help_heading = help::WAITING)]
    #[arg(default_note = defaults::DEFAULT_CONFLICT_EXIT_CODE, range_note = "0 to 255")]
    #[arg(variable_note = variables::PGLOCK_CONFLICT_EXIT_CODE.name)]
    pub conflict_exit_code: Option<u8>,

    /// Allow N holders at once; all users of the key must give the same N.
    ///
    /// The job finds the number of its slot, 0 to N-1, in PGLOCK_SLOT.
    #[arg(long, value_name = "N", value_parser = value::slot_count, conflicts_with = "shared")]
    #[arg(range_note = format!("1 to {MAX_SLOTS}"))]
    pub slots: Option<u16>,

    /// Acquire the lock in order of arrival, among waiters with --fair
    #[arg(long, conflicts_with = "no_wait", help_heading = help::WAITING)]
    pub fair: bool,

    /// Pass a fencing token to the job in PGLOCK_TOKEN.
    ///
    /// The token is greater than that of every earlier holder, even across crashes and failovers of the server.
    #[arg(long)]
    pub token: bool,

    /// Hold the lock for at least this long.
    ///
    /// If the job exits earlier, pglock keeps the lock until then, and exits with the job's status.
    #[arg(long, value_name = "DURATION", value_parser = value::duration)]
    #[arg(default_note = format_duration(defaults::DEFAULT_MIN_HOLD))]
    pub min_hold: Option<Duration>,

    /// When the lock is lost, stop the job or let it run on
    #[arg(help_heading = help::LOSS)]
    #[arg(long, value_name = "stop|ignore", value_parser = value::choice_parser(value::ON_LOST_CHOICES))]
    #[arg(hide_possible_values = true, help_heading = help::LOSS)]
    #[arg(default_note = value::name_of(value::ON_LOST_CHOICES, defaults::DEFAULT_ON_LOST))]
    #[arg(variable_note = variables::PGLOCK_ON_LOST.name)]
    pub on_lost: Option<OnLost>,

    /// When the lock is lost, time from SIGTERM to SIGKILL
    #[arg(long, value_name = "DURATION", value_parser = value::duration, help_heading = help::LOSS)]
    #[arg(default_note = format_duration(defaults::DEFAULT_KILL_AFTER))]
    #[arg(range_note = help::duration_range(&defaults::KILL_AFTER_RANGE))]
    #[arg(variable_note = variables::PGLOCK_KILL_AFTER.name)]
    pub kill_after: Option<Duration>,

    /// Interval of heartbeats, and time limit for each reply
    #[arg(long, value_name = "DURATION", value_parser = value::duration, help_heading = help::LOSS)]
    #[arg(default_note = format_duration(defaults::DEFAULT_HEARTBEAT))]
    #[arg(range_note = help::duration_range(&defaults::HEARTBEAT_RANGE))]
    #[arg(variable_note = variables::PGLOCK_HEARTBEAT.name)]
    pub heartbeat: Option<Duration>,

    /// Maximum interval between attempts when polling.
    ///
    /// pglock polls where it cannot wait in the server's queue: behind a pooler, and without PL/pgSQL. The interval is
    /// a twentieth of the time waited, and at most a second in the first minute; this is its maximum. Behind a pooler
    /// that may lend whole sessions, it is at least 300ms after the first second.
    #[arg(long, value_name = "DURATION", value_parser = value::duration, help_heading = help::WAITING)]
    #[arg(default_note = format_duration(defaults::DEFAULT_POLL))]
    #[arg(range_note = help::duration_range(&defaults::POLL_RANGE))]
    #[arg(variable_note = variables::PGLOCK_POLL.name)]
    pub poll: Option<Duration>,

    /// Do not let the job inherit the connection.
    ///
    /// The lock is then released if pglock is killed, even while the job runs.
    #[arg(short = 'o', long, help_heading = help::LOSS)]
    pub close: bool,

    /// Signal that also ends a wait, such as an image's STOPSIGNAL.
    ///
    /// TERM, INT, HUP and QUIT always do. USR1, USR2 and WINCH are for the job, so without this option they do not end
    /// a wait for the lock.
    #[arg(long, value_name = "SIGNAL", value_parser = value::stop_signal, help_heading = help::WAITING)]
    #[arg(variable_note = variables::PGLOCK_STOP_SIGNAL.name)]
    pub stop_signal: Option<SignalNumber>,

    /// Record the run in the table of pglock init, for pglock history.
    ///
    /// The run is inserted before the job starts and completed before the lock is released. If it cannot be inserted,
    /// the job is not started.
    #[arg(long)]
    pub record: bool,

    /// Record the run, and skip a job that has succeeded this recently.
    ///
    /// Implies --record. Once pglock holds the lock, it looks for a run of the key that started less than this long ago
    /// and succeeded. If there is one, it exits as if the lock were held. Other runs do not count: those that failed,
    /// whose lock was lost, or whose pglock died. It requires a single key, without --shared and --slots: otherwise
    /// several holders could look at the same time.
    #[arg(long, value_name = "DURATION", value_parser = value::duration)]
    #[arg(conflicts_with_all = ["shared", "slots"])]
    pub once_per: Option<Duration>,

    #[command(flatten)]
    pub table: TableArgs,

    #[command(flatten)]
    pub connection: ConnectionArgs,

    #[command(flatten)]
    pub scope: ScopeArgs,

    /// Text to show while the lock is held, such as a reason.
    ///
    /// It appears in pglock list and in the messages of other pglocks that find the lock held.
    #[arg(long, value_name = "TEXT", value_parser = value::note, range_note = format!("up to {MAX_NOTE_LEN} bytes"))]
    pub note: Option<String>,

    /// Do not report that the lock is already held
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,

    /// Log each step to standard error
    #[arg(short, long)]
    pub verbose: bool,

    /// Run this text with $SHELL, or /bin/sh.
    ///
    /// As in flock(1), this replaces the command and its arguments.
    #[arg(short = 'c', long = "command", value_name = "COMMAND", allow_hyphen_values = true)]
    #[arg(conflicts_with = "command")]
    pub shell_command: Option<OsString>,

    /// Command to run, and its arguments, which are passed unchanged
    #[arg(required_unless_present = "shell_command")]
    #[arg(trailing_var_arg = true, value_name = "COMMAND", hide_short_help = true)]
    #[arg(value_hint = ValueHint::CommandWithArguments)]
    pub command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(super) struct ConnectionArgs {
    /// Server to connect to: a postgresql:// URI or key=value pairs.
    ///
    /// DATABASE_URL may also be written for the library of an application: parameters that do not concern a lock have
    /// no effect there, and TLS is never weaker than any of them requires.
    #[arg(short, long, value_name = "DSN", help_heading = help::CONNECTION)]
    #[arg(variable_note = "PGLOCK_DSN, else DATABASE_URL, else PG*")]
    pub dsn: Option<String>,

    /// Time limit for connecting to one address.
    ///
    /// 0 disables it. Overrides connect_timeout in the connection string and PGCONNECT_TIMEOUT. Once connected, pglock
    /// allows two heartbeat intervals (PGLOCK_HEARTBEAT, or --heartbeat of run) for each reply; init waits as long as
    /// the server needs.
    #[arg(long, value_name = "DURATION", value_parser = value::duration, help_heading = help::CONNECTION)]
    #[arg(default_note = format_duration(DEFAULT_CONNECT_TIMEOUT))]
    #[arg(variable_note = variables::PGLOCK_CONNECT_TIMEOUT.name)]
    pub connect_timeout: Option<Duration>,
}

#[derive(Clone, Debug, Args)]
pub(super) struct TableArgs {
    /// Table of recorded runs, as [SCHEMA.]NAME.
    ///
    /// It is split at the first dot, and both parts are taken literally: nothing is folded to lower case. Without a
    /// dot, the schema is public.
    #[arg(long, value_name = "TABLE", value_parser = value::table)]
    #[arg(default_note = TableName::default(), variable_note = variables::PGLOCK_TABLE.name)]
    pub table: Option<TableName>,
}

#[derive(Debug, Args)]
pub(super) struct ScopeArgs {
    /// Lifetime of the lock: session or transaction.
    ///
    /// auto picks transaction behind a pooler and session otherwise. session-pooled asserts that the pooler uses
    /// session pooling, which pglock cannot verify.
    #[arg(long, value_name = "SCOPE", value_parser = value::choice_parser(value::SCOPE_CHOICES))]
    #[arg(hide_possible_values = true, help_heading = help::CONNECTION)]
    #[arg(default_note = value::name_of(value::SCOPE_CHOICES, defaults::DEFAULT_SCOPE))]
    #[arg(variable_note = variables::PGLOCK_SCOPE.name)]
    pub scope: Option<ScopeChoice>,
}

#[derive(Debug, Args)]
pub(super) struct HashArgs {
    /// Hash scheme for names, as for run
    #[arg(long, value_name = "SCHEME", value_parser = value::scheme_parser(), hide_possible_values = true)]
    #[arg(default_note = DEFAULT_SCHEME.name(), variable_note = variables::PGLOCK_HASH.name)]
    pub hash: Option<Scheme>,
}

#[derive(Debug, Args)]
#[command(
    override_usage = "pglock list [OPTIONS] [--key <KEY>]...",
    after_long_help = help::exit_table("list")
)]
pub(super) struct ListArgs {
    /// Show only this key, with its slots and waiters; exit with 75 if it is held
    #[arg(short, long, value_parser = value::key_option, allow_hyphen_values = true)]
    pub key: Vec<Key>,

    #[command(flatten)]
    pub hash: HashArgs,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Refresh every 2 seconds until interrupted
    #[arg(long)]
    pub watch: bool,

    #[command(flatten)]
    pub connection: ConnectionArgs,
}

#[derive(Debug, Args)]
#[command(
    override_usage = "pglock evict [OPTIONS] --key <KEY>...",
    after_long_help = help::exit_table("evict")
)]
pub(super) struct EvictArgs {
    /// Lock whose holders to terminate, including its slots
    #[arg(short, long, value_parser = value::key_option, allow_hyphen_values = true, required_unless_present = "hash")]
    pub key: Vec<Key>,

    #[command(flatten)]
    pub hash: HashArgs,

    /// Terminate the waiters, too
    #[arg(long)]
    pub waiters: bool,

    /// Release the lock at once, even while the job is still being terminated.
    ///
    /// Without it, a pglock that holds the lock terminates its job first, and the next job starts only when the old one
    /// is dead.
    #[arg(long)]
    pub force: bool,

    /// Skip the confirmation prompt; required without a terminal
    #[arg(short, long)]
    pub yes: bool,

    #[command(flatten)]
    pub connection: ConnectionArgs,
}

#[derive(Debug, Args)]
#[command(after_long_help = help::exit_table("check"))]
pub(super) struct CheckArgs {
    #[command(flatten)]
    pub connection: ConnectionArgs,

    #[command(flatten)]
    pub scope: ScopeArgs,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(
    override_usage = "pglock key [OPTIONS] <NAME>...",
    after_help = help::scheme_table(),
    after_long_help = format!("{}\n{}", help::exit_table("key"), help::scheme_table())
)]
pub(super) struct KeyArgs {
    /// Keys, as for run --key; write -- before a pair A,B with a negative A
    #[arg(required_unless_present = "hash", value_parser = value::key)]
    #[arg(allow_negative_numbers = true, value_name = "NAME")]
    pub names: Vec<Key>,

    /// Hash scheme for names, as for run; all prints every scheme
    #[arg(long, value_name = "SCHEME", value_parser = value::scheme_selection_parser(), hide_possible_values = true)]
    #[arg(default_note = DEFAULT_SCHEME.name(), variable_note = variables::PGLOCK_HASH.name)]
    pub hash: Option<SchemeSelection>,

    /// Name of the database, for schemes that hash it
    #[arg(long, value_name = "NAME", conflicts_with = "sql")]
    pub dbname: Option<String>,

    /// Print the SQL expression that computes the number
    #[arg(long)]
    pub sql: bool,
}

#[derive(Debug, Args)]
#[command(after_long_help = help::exit_table("completions"))]
pub(super) struct CompletionsArgs {
    /// What to print
    #[arg(value_enum)]
    pub target: CompletionsTarget,
}

#[derive(Debug, Args)]
#[command(after_long_help = help::exit_table("init"))]
pub(super) struct InitArgs {
    #[command(flatten)]
    pub table: TableArgs,

    /// Role to record and read runs; repeat the option for more.
    ///
    /// It is granted SELECT, INSERT, UPDATE and DELETE on the table, and USAGE on its schema. The name is taken
    /// literally; public is every role.
    #[arg(long, value_name = "ROLE", value_parser = value::role)]
    pub grant: Vec<String>,

    /// How long to keep runs, except each key's last success.
    ///
    /// Stored with the table. Without this option, the setting of an existing table does not change.
    #[arg(long, value_name = "DURATION", value_parser = value::duration)]
    #[arg(default_note = in_full(DEFAULT_KEEP))]
    pub keep: Option<Duration>,

    /// Print the SQL, for a migration tool, and do not connect
    #[arg(long)]
    pub print: bool,

    #[command(flatten)]
    pub connection: ConnectionArgs,
}

#[derive(Debug, Args)]
#[command(after_long_help = help::exit_table("history"))]
pub(super) struct HistoryArgs {
    /// Only this key; repeat the option for more
    #[arg(short, long, value_parser = value::key_option, allow_hyphen_values = true)]
    pub key: Vec<Key>,

    #[command(flatten)]
    pub hash: HashArgs,

    /// How many runs to show, of all keys together
    #[arg(long, value_name = "N", value_parser = value::run_count)]
    #[arg(default_note = defaults::DEFAULT_LAST)]
    pub last: Option<u32>,

    /// Show only runs that ended without success
    #[arg(long)]
    pub failed: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Exit with status 75 unless each --key has succeeded within this time.
    ///
    /// The end of the newest success counts. Each key that fails is named on standard error.
    #[arg(long, value_name = "DURATION", value_parser = value::duration)]
    #[arg(conflicts_with_all = ["last", "failed", "json", "metrics", "prune"])]
    pub ok_within: Option<Duration>,

    /// Print metrics in Prometheus' text format
    #[arg(long, conflicts_with_all = ["last", "failed", "json", "prune"])]
    pub metrics: bool,

    /// Remove runs of all keys that are older than --keep of pglock init
    #[arg(long, conflicts_with_all = ["key", "hash", "last", "failed", "json"])]
    pub prune: bool,

    #[command(flatten)]
    pub table: TableArgs,

    #[command(flatten)]
    pub connection: ConnectionArgs,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_are_consistent() {
        command().debug_assert();
    }
}
