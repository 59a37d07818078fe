//! pglock: run a command on one machine at a time, guarded by a PostgreSQL advisory lock.
//!
//! # Map
//! Data flows one way, `arguments -> Run -> Plan -> loop -> Outcome -> exit`; each room knows only those below it.
//!
//! | file | what it is |
//! |---|---|
//! | `main` | parse, run, report; the only exit |
//! | `cli` | arguments and `PGLOCK_*` variables -> a validated `Run` |
//! | `supervise` | the one loop: sees the session and the job, acts |
//! | `step` | the decisions: a pure `(state, event) -> actions` |
//! | `session` | the thread that owns the connection: acquire, heartbeat, loss, release |
//! | `check` | whether a connection is fit for locks |
//! | `list`, `evict` | what operators do about locks: looking, and ending sessions |
//! | `overview` | everybody who holds or waits |
//! | `names` | which names the numbers stand for; pure |
//! | `holders` | who holds a lock, from `pg_locks` |
//! | `wait_line` | what somebody who watches a wait reads |
//! | `lock` | all SQL of taking a lock and giving it back: trying, waiting, settings, answers, what a server is fit for |
//! | `line` | waiting in the order of coming, by ticket locks |
//! | `slots` | the keys of N holders; pure |
//! | `connection` | settings -> an open connection; secrets stay in here |
//! | `job` | the command: start, signal, stop, reap |
//! | `spawn` | starting a process as our caller would have |
//! | `processes` | which processes belong to the job |
//! | `signals` | what arrives, and how we were started |
//! | `terminal` | the terminal: its foreground, its size, questions |
//! | `numbers` | `pglock key`: which number a key stands for |
//! | `key` | names and numbers, and the schemes between them; pure |
//! | `outcome` | how it ended -> exit code; the table |
//! | `diag` | `pglock: ...` on standard error |
//! | `output` | what goes to standard output |
//! | `sys` | the only unsafe code |
//! | `generated` | tests only: completions and manual, from the definitions in `cli` |
//!
//! # Invariants
//! * The lock is never given back before the job is reaped, and a reaped pid is never signalled.
//! * The connection has one owner at a time, is opened once, and is never opened again.
//! * `job` and `session` do not know each other; only `supervise` sees both; only `main` sees `cli`'s parsing.
//! * `key`, `outcome`, `diag` and `sys` use nothing of ours.
//! * `run` writes nothing to standard output, which is the job's.
//! * No secret is in any text that is printed.

mod cli;
mod commands;
mod connection;
mod inspect;
mod key;
mod lock;
mod outcome;
mod protocol;
mod run;
mod sys;
mod ui;

use crate::cli::{Check, ConnectionOptions, Evict, Invocation, List, Run, Shell};
use crate::commands::{check, evict, list};
use crate::connection::Settings;
use crate::lock::Wait;
use crate::outcome::{ExitCode, ExitReason, Failure, Outcome};
use crate::run::session::{Request, Timing};
use crate::run::signals::Blocked;
use crate::run::state::Policy;
use crate::run::supervisor::Plan;
use crate::run::{session, signals, supervisor};
use crate::ui::{message, stdout, terminal};
use std::panic;
use std::process;
use std::time::Instant;

fn main() -> process::ExitCode {
    let began = Instant::now();
    sys::share_heap();
    message::report_panics();
    // A fault of ours has its own place in the table; it has been said by then. A fault of the session's thread never
    // comes here: it is a lost session, and the job is stopped.
    let outcome =
        panic::catch_unwind(|| outcome(began)).unwrap_or(Ok(Outcome::Failed(ExitCode::Internal)));
    end(outcome.unwrap_or_else(|failure| {
        message::error(&failure);
        Outcome::Failed(failure.code)
    }))
}

/// Does what the command line says.
fn outcome(began: Instant) -> Result<Outcome, Failure> {
    cli::parse(std::env::args_os()).and_then(|invocation| match invocation {
        Invocation::Run(run) => supervised(*run, began),
        Invocation::List(list) => listed(&list),
        Invocation::Evict(evict) => evicted(&evict),
        Invocation::Check(check) => checked(&check),
        Invocation::Key(question) => printed(&commands::key::lines(&question)?),
        Invocation::Completions(shell) => printed(match shell {
            Shell::Bash => include_str!("../completions/pglock.bash"),
            Shell::Zsh => include_str!("../completions/_pglock"),
            Shell::Fish => include_str!("../completions/pglock.fish"),
            Shell::Man => include_str!("../completions/pglock.1"),
        }),
        Invocation::Text(text) => printed(&text),
    })
}

fn printed(text: &str) -> Result<Outcome, Failure> {
    stdout::print(text).map(|_| Outcome::Success)
}

/// From what was asked to a plan, and through it.
fn supervised(run: Run, began: Instant) -> Result<Outcome, Failure> {
    message::set_verbosity(run.verbosity);
    let settings = settings(&run.target)?;
    let timing = Timing {
        heartbeat: run.heartbeat,
        kill_after: run.kill_after,
    };
    let wait = match run.wait {
        Some(limit) if limit.is_zero() => Wait::Try,
        Some(limit) => Wait::Until(began + limit),
        None => Wait::Forever,
    };
    let plan = Plan {
        rules: Policy {
            wait_until: match wait {
                Wait::Until(end) => Some(end),
                Wait::Try | Wait::Forever => None,
            },
            conflict_code: run.conflict_code,
            on_lost: run.on_lost,
            kill_after: run.kill_after,
            min_hold: run.min_hold,
            patience: run.heartbeat,
        },
        request: Request {
            settings,
            keys: run.keys,
            slots: run.slots,
            fair: run.fair,
            token: run.token,
            mode: run.mode,
            scope: run.scope,
            wait,
            poll: run.poll,
            timing,
            is_watched: false,
        },
        command: run.command,
        inherit_socket: run.inherit_socket,
        began,
    };
    let blocked = Blocked::all().map_err(|error| Failure::new(ExitCode::Internal, error))?;
    supervisor::run(plan, blocked)
}

/// How to connect.
fn settings(target: &ConnectionOptions) -> Result<Settings, Failure> {
    let settings = Settings::resolve(target.dsn.as_deref(), target.connect_timeout)?;
    if target.dsn_is_argument && settings.password_in_string() {
        message::error(
            "the password in --dsn can be seen by every user of this system; \
             give the string in PGLOCK_DSN, or the password in a password file (~/.pgpass)",
        );
    }
    Ok(settings)
}

/// Lists the locks, once or until interrupted.
fn listed(list: &List) -> Result<Outcome, Failure> {
    let name = session::application_name(None, "pglock list", None);
    let settings = settings(&list.target)?.for_lists();
    let mut client = settings.open(&name, None)?.client;
    let is_held = list::show(&mut client, &list.keys, list.json, list.watch)?;
    Ok(match is_held && !list.keys.is_empty() {
        true => Outcome::Failed(ExitCode::Conflict),
        false => Outcome::Success,
    })
}

/// Ends the sessions that hold a lock, if that is really wanted.
fn evicted(evict: &Evict) -> Result<Outcome, Failure> {
    if !evict.yes && !terminal::can_ask() {
        let words = "there is no terminal to ask on: give --yes to evict without being asked";
        return Err(Failure::say(ExitCode::Usage, words));
    }
    let name = evict::application_name();
    let settings = settings(&evict.target)?.for_lists();
    let mut client = settings.open(&name, None)?.client;
    evict::evict(&mut client, &evict.keys, evict.waiters, evict.yes)?;
    Ok(Outcome::Success)
}

/// Looks at the connection, and says whether it is fit for locks.
fn checked(check: &Check) -> Result<Outcome, Failure> {
    let settings = settings(&check.target)?;
    let timing = Timing {
        heartbeat: check.heartbeat,
        kill_after: check.kill_after,
    };
    let report = check::report(&settings, check.scope, timing)?;
    stdout::print(&match check.json {
        true => report.json(),
        false => report.to_string(),
    })?;
    Ok(match report.is_fit() {
        true => Outcome::Success,
        false => Outcome::Failed(ExitCode::Config),
    })
}

/// Ends as the outcome says: by exit status, or by the signal that ended the job or the wait.
fn end(outcome: Outcome) -> process::ExitCode {
    // The session's thread may be asking for a password at this moment.
    connection::prompt::restore_echo();
    let by_signal = |number: i32| {
        signals::die_by(number);
        // Still alive, as process 1 of a container is: the way a shell would say it.
        process::ExitCode::from(128u8.saturating_add(number as u8))
    };
    match outcome {
        Outcome::Success => process::ExitCode::SUCCESS,
        Outcome::Job(ExitReason::Code(code)) | Outcome::Conflict(code) => code.into(),
        Outcome::Job(ExitReason::Signal(number)) | Outcome::Interrupted(number) => {
            by_signal(number)
        }
        Outcome::Failed(code) => (code as u8).into(),
    }
}
