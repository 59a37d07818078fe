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

use crate::cli::Invocation;
use crate::outcome::{ExitCode, ExitReason, Failure, Outcome};
use crate::run::signals;
use crate::ui::{message, stdout};
use std::panic;
use std::process;
use std::time::Instant;

fn main() -> process::ExitCode {
    let began = Instant::now();
    sys::share_heap();
    message::report_panics();
    // A fault of ours has its own place in the table; it has been said by then. A fault of the session's thread never
    // comes here: it is a lost session, and the job is stopped.
    let outcome = panic::catch_unwind(|| outcome(began)).unwrap_or(Ok(Outcome::Failed(ExitCode::Internal)));
    end(outcome.unwrap_or_else(|failure| {
        message::error(&failure);
        Outcome::Failed(failure.code)
    }))
}

/// Parses the command line and runs the subcommand.
fn outcome(began: Instant) -> Result<Outcome, Failure> {
    match cli::parse(std::env::args_os())? {
        Invocation::Run(options) => commands::run::run(*options, began),
        Invocation::List(options) => commands::list::run(&options),
        Invocation::Evict(options) => commands::evict::run(&options),
        Invocation::Check(options) => commands::check::run(&options),
        Invocation::Key(query) => commands::key::run(&query),
        Invocation::Completions(shell) => commands::completions::run(shell),
        Invocation::Text(text) => stdout::print(&text).map(|_| Outcome::Success),
    }
}

/// Ends as the outcome says: by exit status, or by the signal that ended the job or the wait.
fn end(outcome: Outcome) -> process::ExitCode {
    // The session's thread may be asking for a password at this moment.
    connection::prompt::restore_echo();
    let by_signal = |number: i32| {
        signals::die_with(number);
        // Still alive, as process 1 of a container is: the way a shell would say it.
        process::ExitCode::from(128u8.saturating_add(number as u8))
    };
    match outcome {
        Outcome::Success => process::ExitCode::SUCCESS,
        Outcome::Job(ExitReason::Code(code)) | Outcome::Conflict(code) => code.into(),
        Outcome::Job(ExitReason::Signal(number)) | Outcome::Interrupted(number) => by_signal(number),
        Outcome::Failed(code) => (code as u8).into(),
    }
}
