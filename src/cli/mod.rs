//! The command line: definitions, help, and the way from arguments to a validated [`Invocation`].
//!
//! No input or output here but the reading of `PGLOCK_*` variables. What belongs to a host or a crontab rather
//! than to one call has a variable, which an option overrides; what names the lock has none, or a pglock inside
//! the job of another would take its parent's lock. Whatever is wrong is said before anything is touched.

#[cfg(test)]
mod generated;

use crate::connection::{ConnectionOptions, may_have_password, quoted};
use crate::key::Key;
use crate::key::hash::{Scheme, Subject, TABLE};
use crate::lock::{Mode, ScopeChoice};
use crate::outcome::{EXIT_TABLE, ExitCode, Failure};
use crate::protocol::derived_keys::MAX_SLOTS;
use crate::run::options::RunOptions;
use crate::run::session::timing::Timing;
use crate::run::state::{OnLost, Policy};
use crate::ui::message::Verbosity;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::error::{ContextKind, ErrorKind};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::str::FromStr;
use std::time::Duration;

/// Run a command on one machine at a time, guarded by the PostgreSQL that you already have
#[derive(Debug, Parser)]
#[command(name = "pglock", version, max_term_width = 100, subcommand_required = true)]
#[command(disable_help_subcommand = true, arg_required_else_help = false)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

// Only the subcommand that is given is defined: all of them take longer than most of what pglock does itself.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum Command {
    /// Run a command while holding a lock
    Run(RunArgs),
    /// List who holds and who waits for the locks of the database, pglock's and anybody else's
    List(ListArgs),
    /// End the sessions that hold a lock, so that it is free; their pglocks stop their jobs
    Evict(EvictArgs),
    /// Say whether the connection is fit for locks: server, pooler, timeouts, one line each
    Check(CheckArgs),
    /// Print the number of a key, without a server
    Key(KeyArgs),
    /// Print the completions for a shell, or the manual page
    Completions(CompletionsArgs),
}

#[derive(Debug, Args)]
#[command(
    override_usage = "pglock run [OPTIONS] --key <KEY> [--] <COMMAND> [ARG]...",
    after_help = format!("{}\n{}", exit_table(), scheme_table())
)]
struct RunArgs {
    /// The lock: a name, an integer, or two integers A,B; name:42 is a name. Several keys are taken
    /// together, or none
    #[arg(short, long, value_parser = key_or_option, allow_hyphen_values = true, required_unless_present = "hash")]
    key: Vec<Key>,

    /// How a name becomes a number, to share a lock with another tool; a scheme that is a tool's own lock takes no
    /// --key [default: sha256] [env: PGLOCK_HASH]
    #[arg(long, value_name = "SCHEME", value_parser = scheme_parser(), hide_possible_values = true)]
    hash: Option<Scheme>,

    /// Share the lock with others that take it shared; without, nobody else holds it
    #[arg(short, long)]
    shared: bool,

    /// Do not wait if the lock is held by someone else
    #[arg(short, long, visible_alias = "nonblock", conflicts_with = "wait")]
    no_wait: bool,

    /// Wait at most this long, connecting included; 0 is --no-wait [default: for ever]
    /// [env: PGLOCK_WAIT]
    #[arg(short, long, visible_alias = "timeout", value_name = "DURATION")]
    wait: Option<Limit>,

    /// Exit status when someone else holds the lock, or the wait is over [default: 75]
    /// [env: PGLOCK_CONFLICT_EXIT_CODE]
    #[arg(short = 'E', long, value_name = "N")]
    conflict_exit_code: Option<Code>,

    /// Let at most N hold the key at once, and tell the job which slot it has; all who use the key
    /// must give the same N
    #[arg(long, value_name = "N", conflicts_with = "shared")]
    slots: Option<Slots>,

    /// Wait in line: those who ask for it are served strictly in the order in which they came
    #[arg(long, conflicts_with = "no_wait")]
    fair: bool,

    /// Give the job a fencing token: PGLOCK_TOKEN is greater than that of every earlier holder, over
    /// crashes and failovers of the server too
    #[arg(long)]
    token: bool,

    /// Keep the lock at least this long after it was acquired, however short the job [default: 0]
    #[arg(long, value_name = "DURATION")]
    min_hold: Option<Limit>,

    /// When the lock is lost: stop the job, or ignore it and let the job run on unguarded
    /// [default: stop] [env: PGLOCK_ON_LOST]
    #[arg(long, value_name = "stop|ignore", hide_possible_values = true)]
    on_lost: Option<OnLostArg>,

    /// How long a job that is stopped because the lock is lost has from TERM to KILL [default: 10s]
    /// [env: PGLOCK_KILL_AFTER]
    #[arg(long, value_name = "DURATION")]
    kill_after: Option<Limit>,

    /// How often to ask the server for a sign of life, and how long it may take to answer [default: 5s]
    /// [env: PGLOCK_HEARTBEAT]
    #[arg(long, value_name = "DURATION")]
    heartbeat: Option<Limit>,

    /// The longest pause between two tries, where there is no queue to wait in: behind a pooler, and
    /// without plpgsql [default: 1s] [env: PGLOCK_POLL]
    #[arg(long, value_name = "DURATION")]
    poll: Option<Limit>,

    /// Do not hand the session's socket to the job: if pglock is killed, the lock is free though the job runs
    #[arg(short = 'o', long)]
    close: bool,

    #[command(flatten)]
    connection: ConnectionArgs,

    #[command(flatten)]
    scope: ScopeArgs,

    /// Do not say it when someone else holds the lock
    #[arg(short, long, conflicts_with = "verbose")]
    quiet: bool,

    /// Say each step on standard error
    #[arg(short, long)]
    verbose: bool,

    /// The command to run, and its arguments, as they are
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND", value_hint = clap::ValueHint::CommandWithArguments)]
    command: Vec<OsString>,
}

#[derive(Debug, Args)]
struct ConnectionArgs {
    /// The server: a postgresql:// URI or key=value pairs [env: PGLOCK_DSN, else DATABASE_URL, else PG*]
    #[arg(short, long, value_name = "DSN")]
    dsn: Option<String>,

    /// How long connecting to one address may take; 0 is no limit [default: what connect_timeout or
    /// PGCONNECT_TIMEOUT says, or 10s] [env: PGLOCK_CONNECT_TIMEOUT]
    #[arg(long, value_name = "DURATION")]
    connect_timeout: Option<Limit>,
}

#[derive(Debug, Args)]
struct ScopeArgs {
    /// What the lock lives as long as: session, transaction, or session-pooled (through a pooler that
    /// pools whole sessions); auto is transaction behind a pooler, else session [default: auto]
    /// [env: PGLOCK_SCOPE]
    #[arg(long, value_name = "SCOPE", hide_possible_values = true)]
    scope: Option<ScopeArg>,
}

// Not documented for clap, which would take it for what the subcommand does.
#[derive(Debug, Args)]
struct HashArgs {
    /// How a name becomes a number, as for `run` [default: sha256] [env: PGLOCK_HASH]
    #[arg(long, value_name = "SCHEME", value_parser = scheme_parser(), hide_possible_values = true)]
    hash: Option<Scheme>,
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Only this key, with its slots and those who wait in line; exit with 75 if somebody holds it
    #[arg(short, long, value_parser = key_or_option, allow_hyphen_values = true)]
    key: Vec<Key>,

    #[command(flatten)]
    hash: HashArgs,

    /// Print JSON
    #[arg(long)]
    json: bool,

    /// Look again every 2 seconds, until interrupted
    #[arg(long)]
    watch: bool,

    #[command(flatten)]
    connection: ConnectionArgs,
}

#[derive(Debug, Args)]
struct EvictArgs {
    /// The lock whose holders are to go, with its slots
    #[arg(short, long, value_parser = key_or_option, allow_hyphen_values = true, required_unless_present = "hash")]
    key: Vec<Key>,

    #[command(flatten)]
    hash: HashArgs,

    /// Those who wait for it too
    #[arg(long)]
    waiters: bool,

    /// Do not ask; needed where there is no terminal to ask on
    #[arg(short, long)]
    yes: bool,

    #[command(flatten)]
    connection: ConnectionArgs,
}

#[derive(Debug, Args)]
struct CheckArgs {
    #[command(flatten)]
    connection: ConnectionArgs,

    #[command(flatten)]
    scope: ScopeArgs,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = scheme_table())]
struct KeyArgs {
    /// Keys, as `run --key` takes them
    #[arg(required_unless_present = "hash", value_parser = Key::parse, allow_negative_numbers = true, value_name = "NAME")]
    names: Vec<Key>,

    /// How a name becomes a number, as for `run`; all prints every scheme [default: sha256] [env: PGLOCK_HASH]
    #[arg(long, value_name = "SCHEME", value_parser = schemes_parser(), hide_possible_values = true)]
    hash: Option<Schemes>,

    /// The database, for the schemes that make the number of its name
    #[arg(long, value_name = "NAME", conflicts_with = "sql")]
    dbname: Option<String>,

    /// Print the SQL expression that computes the number instead
    #[arg(long)]
    sql: bool,
}

/// What `key --hash` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Schemes {
    One(Scheme),
    All,
}

#[derive(Debug, Args)]
struct CompletionsArgs {
    /// bash, zsh, fish, or man for the manual page
    #[arg(value_enum, hide_possible_values = true)]
    shell: Shell,
}

/// What `pglock completions` can print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// For bash, with bash-completion
    Bash,
    /// For zsh
    Zsh,
    /// For fish
    Fish,
    /// The manual page, for man(1)
    Man,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OnLostArg {
    /// Stop it: TERM, then KILL
    Stop,
    /// Let it run to its end, unguarded
    Ignore,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ScopeArg {
    /// What is right for the connection
    Auto,
    /// A session that is ours alone
    Session,
    /// A transaction
    Transaction,
    /// A session, through a pooler of sessions
    SessionPooled,
}

/// A duration: seconds with or without a fraction, or with units as in `1m30s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limit(Duration);

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Limit, String> {
        let bare = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        let duration = match bare {
            true => text
                .parse()
                .ok()
                .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
            false => humantime::parse_duration(text).ok(),
        };
        // A longer time than this overflows the clock's arithmetic on some systems, and is for ever anyhow.
        const MAX_DURATION: Duration = Duration::from_secs(100 * 365 * 86400);
        match duration {
            Some(duration) => Ok(Limit(duration.min(MAX_DURATION))),
            None => Err("a duration is expected: seconds (10, 1.5) or with units (500ms, 90s, 5m, 1h30m)".into()),
        }
    }
}

/// An exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Code(u8);

impl FromStr for Code {
    type Err = String;

    fn from_str(text: &str) -> Result<Code, String> {
        text.parse()
            .map(Code)
            .map_err(|_| "an exit status is expected: 0 to 255".into())
    }
}

/// How many may hold a key at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slots(u16);

impl FromStr for Slots {
    type Err = String;

    fn from_str(text: &str) -> Result<Slots, String> {
        match text.parse() {
            Ok(count @ 1..=MAX_SLOTS) => Ok(Slots(count)),
            _ => Err(format!("a number of slots is expected: 1 to {}", MAX_SLOTS)),
        }
    }
}

/// What to do: the command line, validated.
#[derive(Debug)]
pub enum Invocation {
    /// `pglock run`
    Run(Box<RunOptions>),
    /// `pglock list`
    List(ListOptions),
    /// `pglock evict`
    Evict(EvictOptions),
    /// `pglock check`
    Check(Box<CheckOptions>),
    /// `pglock key`
    Key(KeyQuery),
    /// `pglock completions`
    Completions(Shell),
    /// `--help` or `--version`: a text for standard output.
    Text(String),
}

/// What is asked.
#[derive(Debug)]
pub enum KeyQuery {
    /// These keys, a line each.
    Keys {
        /// The keys.
        keys: Vec<Key>,
        /// What to say of each.
        answer: KeyFormat,
    },
    /// Every scheme, a line each, with the scheme in front.
    AllSchemes {
        /// The key, which is a name.
        name: Key,
        /// What to say of each.
        answer: KeyFormat,
    },
}

/// What to say of a key.
#[derive(Debug)]
pub enum KeyFormat {
    /// The number, in the database of this name where it depends on that.
    Number {
        /// The name.
        database: Option<String>,
    },
    /// The SQL expression.
    Sql,
}

/// `pglock list`, validated.
#[derive(Debug)]
pub struct ListOptions {
    /// Where to connect.
    pub connection: ConnectionOptions,
    /// The keys to look for; none for all.
    pub keys: Vec<Key>,
    /// JSON instead of a table.
    pub json: bool,
    /// Again and again.
    pub watch: bool,
}

/// `pglock evict`, validated.
#[derive(Debug)]
pub struct EvictOptions {
    /// Where to connect.
    pub connection: ConnectionOptions,
    /// The keys, at least one.
    pub keys: Vec<Key>,
    /// Whether those who wait are to go too.
    pub waiters: bool,
    /// Whether nobody need be asked.
    pub yes: bool,
}

/// `pglock check`, validated.
#[derive(Debug)]
pub struct CheckOptions {
    /// Where to connect.
    pub connection: ConnectionOptions,
    /// What the lock is to live as long as.
    pub scope: ScopeChoice,
    /// Heartbeat and grace, as `run` would take them from the variables.
    pub timing: Timing,
    /// JSON instead of lines.
    pub json: bool,
}

/// A key as an option's value. `-1,2` is one, though clap takes only single numbers for values that begin with a
/// dash; `--shared` is not, but an option before which the key was forgotten.
fn key_or_option(given: &str) -> Result<Key, String> {
    match given.strip_prefix('-') {
        Some(rest) if !rest.is_empty() && !rest.starts_with(|c: char| c.is_ascii_digit()) => {
            Err(format!("the key is missing; write name:{given} if it is one"))
        }
        _ => Key::parse(given).map_err(|error| error.to_string()),
    }
}

fn scheme_parser() -> impl TypedValueParser<Value = Scheme> {
    scheme_names([]).try_map(|name| name.parse::<Scheme>())
}

fn schemes_parser() -> impl TypedValueParser<Value = Schemes> {
    let all = PossibleValue::new(ALL_SCHEMES).help("all of them");
    scheme_names([all]).try_map(|name| match name.as_str() {
        ALL_SCHEMES => Ok(Schemes::All),
        name => name.parse().map(Schemes::One),
    })
}

const ALL_SCHEMES: &str = "all";

/// Told to clap, so that the shells can complete them.
fn scheme_names(more: impl IntoIterator<Item = PossibleValue>) -> PossibleValuesParser {
    let names = TABLE.iter().map(|row| PossibleValue::new(row.name).help(row.users));
    PossibleValuesParser::new(names.chain(more))
}

/// Below this, a busy but healthy server would pass for a dead one.
const MIN_HEARTBEAT: Duration = Duration::from_millis(100);
/// More often would be a load without a use.
const MIN_POLL: Duration = Duration::from_millis(10);
/// The server's own limit is made of these, and the kernel takes no keepalive above 32767 s.
const LONGEST_SILENCE: Duration = Duration::from_secs(3600);

/// Reads the arguments (the first is the program's name) and the variables.
///
/// # Errors
/// One line that says which argument or variable is wrong and what is accepted.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Invocation, Failure> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let parsed = command()
        .try_get_matches_from(&arguments)
        .and_then(|m| Cli::from_arg_matches(&m));
    match parsed.map(|cli| cli.command) {
        Ok(Command::Run(arguments)) => Ok(Invocation::Run(Box::new(arguments.validate()?))),
        Ok(Command::List(arguments)) => arguments.validate().map(Invocation::List),
        Ok(Command::Evict(arguments)) => arguments.validate().map(Invocation::Evict),
        Ok(Command::Check(arguments)) => Ok(Invocation::Check(Box::new(arguments.validate()?))),
        Ok(Command::Key(arguments)) => arguments.validate().map(Invocation::Key),
        Ok(Command::Completions(CompletionsArgs { shell })) => Ok(Invocation::Completions(shell)),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Ok(Invocation::Text(error.render().to_string())),
            _ => Err(Failure::say(ExitCode::Usage, one_line(&error, &arguments))),
        },
    }
}

/// The whole command line, for parsing, completions and the manual.
pub fn command() -> clap::Command {
    Cli::command()
}

/// The schemes, with what they make the number of.
fn scheme_table() -> String {
    let lines = |subject| {
        let rows = TABLE.iter().filter(move |row| row.subject == subject);
        rows.map(|row| format!("  {:<24} {}\n", row.name, row.users))
            .collect::<String>()
    };
    format!(
        "Schemes of --hash:\n{}A tool's own lock, in each database another one:\n{}A tool's own lock, everywhere the same number:\n{}",
        lines(Subject::Name),
        lines(Subject::Database),
        lines(Subject::Nothing)
    )
}

fn exit_table() -> String {
    let rows = EXIT_TABLE
        .iter()
        .map(|(code, meaning)| format!("  {code:<14} {meaning}\n"));
    format!("Exit status:\n{}", rows.collect::<String>())
}

/// clap's errors fill a screen; an operator reads one line, which says where there is more.
fn one_line(error: &clap::Error, arguments: &[OsString]) -> String {
    let text = without_connection_strings(error.render().to_string(), arguments);
    let said = text.split("\n\n").next().unwrap_or_default();
    let said = said.strip_prefix("error: ").unwrap_or(said);
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    let similar = error
        .get(ContextKind::SuggestedArg)
        .or_else(|| error.get(ContextKind::SuggestedSubcommand));
    let tip = similar.map_or_else(String::new, |similar| format!("; is {similar} meant?"));
    let definition = command();
    let subcommand = arguments.get(1).and_then(|n| definition.find_subcommand(n));
    let help = match subcommand {
        Some(subcommand) => format!("pglock {} --help", subcommand.get_name()),
        None => "pglock --help".to_owned(),
    };
    format!("{said}{tip} (see '{help}')")
}

/// The text without whatever may have a password in it: a connection string is easily given where none is expected
/// (`pglock list postgresql://...`), and cron mails the error.
fn without_connection_strings(mut text: String, arguments: &[OsString]) -> String {
    for argument in arguments {
        let argument = argument.to_string_lossy();
        let value = argument.split_once('=').map(|(_, value)| value);
        for piece in [Some(&*argument), value].into_iter().flatten() {
            if may_have_password(piece) {
                text = text.replace(piece, "(a connection string)");
            }
        }
    }
    text
}

impl RunArgs {
    fn validate(self) -> Result<RunOptions, Failure> {
        let wait = match (self.no_wait, self.wait) {
            (true, _) => Some(Limit(Duration::ZERO)),
            (false, wait) => or_variable(wait, "PGLOCK_WAIT")?,
        };
        let on_lost = choice_or_variable(self.on_lost, "PGLOCK_ON_LOST", "stop or ignore")?;
        let poll = or_variable(self.poll, "PGLOCK_POLL")?;
        let poll = poll.map_or(Duration::from_secs(1), |limit| limit.0);
        if !(MIN_POLL..=LONGEST_SILENCE).contains(&poll) {
            return Err(Failure::say(
                ExitCode::Usage,
                "the pause between two tries can be 10ms to 1h",
            ));
        }
        let timing = timing(self.heartbeat, self.kill_after)?;
        let connection = self.connection.validate()?;
        let scope = self.scope.validate()?;
        let tries_once = wait.is_some_and(|limit| limit.0.is_zero());
        let senseless = match self.key.len() {
            2.. if self.slots.is_some() => Some("--slots takes one --key"),
            2.. if self.fair => Some("--fair takes one --key"),
            _ if self.fair && tries_once => Some("--fair waits in line, and a wait of 0 does not wait"),
            _ if self.fair && scope == ScopeChoice::Transaction => {
                Some("--fair needs a session to stand in line with, and --scope transaction has none")
            }
            _ => None,
        };
        if let Some(words) = senseless {
            return Err(Failure::say(ExitCode::Usage, words));
        }
        Ok(RunOptions {
            slots: self.slots.map(|slots| slots.0),
            fair: self.fair,
            token: self.token,
            keys: without_duplicates(the_keys(self.key, self.hash)?),
            mode: if self.shared { Mode::Shared } else { Mode::Exclusive },
            wait: wait.map(|limit| limit.0),
            policy: Policy {
                conflict_status: or_variable(self.conflict_exit_code, "PGLOCK_CONFLICT_EXIT_CODE")?
                    .map_or(ExitCode::Conflict as u8, |code| code.0),
                on_lost: match on_lost {
                    Some(OnLostArg::Ignore) => OnLost::Ignore,
                    Some(OnLostArg::Stop) | None => OnLost::Stop,
                },
                min_hold: self.min_hold.map_or(Duration::ZERO, |limit| limit.0),
                timing,
            },
            inherit_socket: !self.close,
            poll,
            connection,
            scope,
            verbosity: match (self.quiet, self.verbose) {
                (true, _) => Verbosity::Quiet,
                (_, true) => Verbosity::Verbose,
                _ => Verbosity::Normal,
            },
            command: self.command,
        })
    }
}

impl KeyArgs {
    fn validate(self) -> Result<KeyQuery, Failure> {
        let answer = match (self.sql, self.dbname) {
            (true, _) => KeyFormat::Sql,
            (false, database) => KeyFormat::Number { database },
        };
        let one = match self.hash {
            Some(Schemes::All) => {
                let mut names = self.names.into_iter();
                return match (names.next().filter(|key| key.name().is_some()), names.next()) {
                    (Some(name), None) => Ok(KeyQuery::AllSchemes { name, answer }),
                    _ => Err(usage("--hash all takes one name; name:42 is the name 42")),
                };
            }
            Some(Schemes::One(scheme)) => Some(scheme),
            None => None,
        };
        Ok(KeyQuery::Keys {
            keys: the_keys(self.names, one)?,
            answer,
        })
    }
}

/// The keys that are meant: those that are given, or else the one that the scheme is.
fn the_keys(given: Vec<Key>, hash: Option<Scheme>) -> Result<Vec<Key>, Failure> {
    match given.is_empty() {
        true => Ok(vec![the_key(None, hash)?]),
        false => given.into_iter().map(|key| the_key(Some(key), hash)).collect(),
    }
}

/// The key that is meant, hashed as the option or else the variable says. A scheme that is a tool's own lock names the
/// lock all by itself: it comes with no key, and like a key it has no variable.
fn the_key(key: Option<Key>, hash: Option<Scheme>) -> Result<Key, Failure> {
    const VARIABLE: &str = "PGLOCK_HASH";
    let needs_a_name = |scheme: &Scheme| scheme.row().subject == Subject::Name;
    match (key, hash) {
        (None, Some(scheme)) if !needs_a_name(&scheme) => Ok(Key::of_tool(scheme)),
        (None, _) => Err(usage("the key is missing: there is no name to hash")),
        (Some(key), Some(scheme)) if needs_a_name(&scheme) => Ok(key.hashed_by(scheme)),
        (Some(key), Some(scheme)) => Err(usage(format!(
            "--hash {} is the one lock of that tool, and takes no key: leave {key} out",
            scheme.name()
        ))),
        (Some(key), None) => match or_variable(None::<Scheme>, VARIABLE)? {
            None => Ok(key),
            Some(scheme) if needs_a_name(&scheme) => Ok(key.hashed_by(scheme)),
            Some(scheme) => Err(wrong_variable(
                VARIABLE,
                scheme.name(),
                "a scheme that hashes names is expected; a tool's own lock is taken by the option --hash",
            )),
        },
    }
}

fn usage(words: impl std::fmt::Display) -> Failure {
    Failure::say(ExitCode::Usage, words)
}

impl ConnectionArgs {
    fn validate(self) -> Result<ConnectionOptions, Failure> {
        let connect_timeout = or_variable(self.connect_timeout, "PGLOCK_CONNECT_TIMEOUT")?;
        Ok(ConnectionOptions {
            dsn_is_argument: self.dsn.is_some(),
            dsn: match self.dsn {
                Some(dsn) => Some(dsn),
                None => match variable("PGLOCK_DSN")? {
                    Some(dsn) => Some(dsn),
                    None => variable("DATABASE_URL")?,
                },
            },
            connect_timeout: connect_timeout.map(|limit| limit.0),
        })
    }
}

impl ScopeArgs {
    fn validate(self) -> Result<ScopeChoice, Failure> {
        let scopes = "auto, session, transaction or session-pooled";
        let scope = choice_or_variable(self.scope, "PGLOCK_SCOPE", scopes)?;
        Ok(match scope {
            None | Some(ScopeArg::Auto) => ScopeChoice::Auto,
            Some(ScopeArg::Session) => ScopeChoice::Session,
            Some(ScopeArg::Transaction) => ScopeChoice::Transaction,
            Some(ScopeArg::SessionPooled) => ScopeChoice::SessionPooled,
        })
    }
}

impl ListArgs {
    fn validate(self) -> Result<ListOptions, Failure> {
        let all = self.key.is_empty() && self.hash.hash.is_none();
        Ok(ListOptions {
            keys: match all {
                true => Vec::new(),
                false => the_keys(self.key, self.hash.hash)?,
            },
            connection: self.connection.validate()?,
            json: self.json,
            watch: self.watch,
        })
    }
}

impl EvictArgs {
    fn validate(self) -> Result<EvictOptions, Failure> {
        Ok(EvictOptions {
            keys: without_duplicates(the_keys(self.key, self.hash.hash)?),
            connection: self.connection.validate()?,
            waiters: self.waiters,
            yes: self.yes,
        })
    }
}

impl CheckArgs {
    fn validate(self) -> Result<CheckOptions, Failure> {
        Ok(CheckOptions {
            connection: self.connection.validate()?,
            scope: self.scope.validate()?,
            timing: timing(None, None)?,
            json: self.json,
        })
    }
}

/// Each lock once, as it was given first, as far as the numbers are known without a server.
fn without_duplicates(keys: Vec<Key>) -> Vec<Key> {
    let mut seen = std::collections::HashSet::new();
    keys.into_iter().filter(|key| seen.insert(key.number())).collect()
}

/// The heartbeat, and the time from TERM to KILL.
fn timing(heartbeat: Option<Limit>, kill_after: Option<Limit>) -> Result<Timing, Failure> {
    let heartbeat = or_variable(heartbeat, "PGLOCK_HEARTBEAT")?;
    let heartbeat = heartbeat.map_or(Duration::from_secs(5), |limit| limit.0);
    let kill_after = or_variable(kill_after, "PGLOCK_KILL_AFTER")?;
    let kill_after = kill_after.map_or(Duration::from_secs(10), |limit| limit.0);
    match heartbeat < MIN_HEARTBEAT || heartbeat.max(kill_after) > LONGEST_SILENCE {
        true => Err(Failure::say(
            ExitCode::Usage,
            "the heartbeat can be 100ms to 1h, and the time to KILL at most 1h",
        )),
        false => Ok(Timing { heartbeat, kill_after }),
    }
}

/// The option, or else what the variable says, which is one of these words.
fn choice_or_variable<T: ValueEnum>(option: Option<T>, name: &str, words: &str) -> Result<Option<T>, Failure> {
    match (option, variable(name)?) {
        (Some(option), _) => Ok(Some(option)),
        (None, Some(value)) => T::from_str(&value, false)
            .map(Some)
            .map_err(|_| wrong_variable(name, &value, &format!("{words} is expected"))),
        (None, None) => Ok(None),
    }
}

/// The option, or else what the variable says.
fn or_variable<T: FromStr<Err = String>>(option: Option<T>, name: &str) -> Result<Option<T>, Failure> {
    match (option, variable(name)?) {
        (Some(option), _) => Ok(Some(option)),
        (None, Some(value)) => value
            .parse()
            .map(Some)
            .map_err(|what: String| wrong_variable(name, &value, &what)),
        (None, None) => Ok(None),
    }
}

/// A variable that is set to something: an empty one is an unset one, as for libpq.
fn variable(name: &str) -> Result<Option<String>, Failure> {
    match std::env::var_os(name) {
        None => Ok(None),
        Some(value) if value.is_empty() => Ok(None),
        Some(value) => value
            .into_string()
            .map(Some)
            .map_err(|_| Failure::say(ExitCode::Config, format!("the variable {name} is not valid UTF-8"))),
    }
}

fn wrong_variable(name: &str, value: &str, expected: &str) -> Failure {
    let value = quoted(value);
    Failure::say(ExitCode::Config, format!("the variable {name} is {value}: {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::ffi::OsStringExt;

    #[test]
    fn the_definitions_are_consistent() {
        command().debug_assert();
    }

    #[test]
    fn durations_are_seconds_or_have_units() {
        let limit = |text: &str| text.parse::<Limit>().map(|limit| limit.0.as_millis());
        assert_eq!(limit("10"), Ok(10_000));
        assert_eq!(limit("1.5"), Ok(1_500));
        assert_eq!(limit("0"), Ok(0));
        assert_eq!(limit(".25"), Ok(250));
        assert_eq!(limit("500ms"), Ok(500));
        assert_eq!(limit("1m30s"), Ok(90_000));
        for wrong in ["", "-1", "1.5.5", "ten", "5 parsecs", "NaN", "inf", "1e3", "."] {
            assert!(limit(wrong).is_err(), "{wrong:?}");
        }
    }

    /// What command lines are made of, and what they are confused with.
    fn word() -> impl Strategy<Value = String> {
        const WORDS: &[&str] = &[
            "run",
            "list",
            "evict",
            "check",
            "key",
            "completions",
            "help",
            "bash",
            "--",
            "-",
            "",
            "true",
            "-k",
            "--key",
            "--key=x",
            "-kx",
            "x",
            "1,2",
            "-1",
            "name:7",
            "--shared",
            "-s",
            "-n",
            "--no-wait",
            "-w",
            "--wait",
            "--timeout=5",
            "1.5",
            "90s",
            "--slots",
            "3",
            "0",
            "65536",
            "--fair",
            "--token",
            "-E",
            "256",
            "--min-hold",
            "--on-lost",
            "stop",
            "--on-lost=ignore",
            "--kill-after",
            "--heartbeat",
            "--poll",
            "-o",
            "-d",
            "--dsn",
            "--scope",
            "auto",
            "--hash",
            "crc32",
            "all",
            "-q",
            "-v",
            "-qv",
            "--json",
            "--watch",
            "--yes",
            "--sql",
            "--help",
            "-h",
            "-V",
            "--version",
            "--connect-timeout",
            "99999999999999999999",
        ];
        prop_oneof![
            8 => prop::sample::select(WORDS).prop_map(str::to_owned),
            1 => "\\PC{0,20}",
            1 => "-{0,2}[a-z]{1,10}(=\\PC{0,9})?",
        ]
    }

    proptest! {
        #[test]
        fn no_command_line_panics_and_every_error_is_one_line(words in prop::collection::vec(word(), 0..10)) {
            let line = std::iter::once("pglock".to_owned()).chain(words);
            if let Err(failure) = parse(line.map(OsString::from)) {
                let said = failure.to_string();
                prop_assert!(!said.is_empty() && !said.contains('\n'), "{said:?}");
                prop_assert!(matches!(failure.code, ExitCode::Usage | ExitCode::Config), "{said:?}");
            }
        }

        #[test]
        fn bytes_that_are_no_text_do_not_panic(words in prop::collection::vec(prop::collection::vec(1u8.., 0..9), 0..5)) {
            let line = words.into_iter().map(OsString::from_vec);
            let _ = parse(["pglock", "run", "-k", "x"].map(OsString::from).into_iter().chain(line));
        }

        /// `pglock list postgresql://u:secret@h`, and worse.
        #[test]
        fn no_error_and_nothing_that_is_printed_for_developers_has_a_password(
            mut words in prop::collection::vec(word(), 0..8),
            secret in "[XYZ]{8}",
            option in "(--dsn=|-d|--dns=|--no-wait=|--wait=|--key=|--slots=|)",
            at: prop::sample::Index,
        ) {
            let dsn = [
                format!("{option}postgresql://u:{secret}@h/d"),
                format!("{option}host=h password={secret} user=u"),
                format!("{option}password='{secret}  x'"),
            ];
            for dsn in dsn {
                let place = at.index(words.len() + 1);
                words.insert(place, dsn);
                let line = std::iter::once("pglock".to_owned()).chain(words.clone());
                if let Err(failure) = parse(line.map(OsString::from)) {
                    let said = format!("{failure} {failure:?}");
                    prop_assert!(!said.contains(&secret), "{words:?}: {said:?}");
                }
                words.remove(place);
            }
        }

        #[test]
        fn durations_read_back(milliseconds in 0u64..4_000_000_000_000, text in "[0-9.]{0,25}|[0-9]{1,22}[a-z ]{0,6}|\\PC{0,9}") {
            let duration = Duration::from_millis(milliseconds);
            let written = humantime::format_duration(duration).to_string();
            let read = written.parse::<Limit>();
            prop_assert!(read.is_ok_and(|limit| limit.0 == duration.min(Duration::from_secs(100 * 365 * 86400))), "{written}");
            let seconds = milliseconds / 1000;
            prop_assert!(seconds.to_string().parse::<Limit>().is_ok_and(|limit| limit.0.as_secs() == seconds.min(100 * 365 * 86400)));
            // Whatever it is, the clock can be told to wait so long.
            if let Ok(limit) = text.parse::<Limit>() {
                let _ = std::time::Instant::now() + limit.0 + limit.0;
            }
        }

        #[test]
        fn variables_are_named_and_their_secrets_are_not(value in "\\PC{0,12}(://|password=)[XYZ]{5}\\PC{0,5}") {
            let error = value.parse::<Limit>().err().map(|what| wrong_variable("PGLOCK_WAIT", &value, &what));
            let said = error.expect("no duration").to_string();
            prop_assert!(said.contains("PGLOCK_WAIT") && !said.contains("XX") && !said.contains(['X', 'Y', 'Z']), "{said:?}");
        }
    }
}
