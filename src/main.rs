//! pglock: run a command on one machine at a time, guarded by a PostgreSQL advisory lock.
//!
//! # Map
//! Ten wings, from top to bottom. **A wing imports only wings below it; within a wing, no file imports another in a
//! circle.** A test (`tests/it/project/wings.rs`) reads the wings from this table and checks the rule.
//!
//! | wing | what it is |
//! |---|---|
//! | `commands` | the subcommands, one file each |
//! | `cli` | arguments and `PGLOCK_*` variables -> validated options; knows no command |
//! | `run` | a supervised run: the loop, the state machine, the session that holds the lock, the job |
//! | `history` | the run table: what ran, when, and how it ended |
//! | `inspect` | who holds a lock and who waits for it |
//! | `lock` | all SQL of acquiring a lock, waiting for it and releasing it |
//! | `connection` | settings -> an open connection, as libpq does it; secrets stay in here |
//! | `protocol` | what pglocks tell each other: names, query tags, derived keys |
//! | `ui` | standard error, standard output, the terminal |
//! | `key`, `outcome`, `sys` | the ground: keys and their hashes, exit statuses, the only unsafe code |
//!
//! Data flows one way: arguments -> `RunOptions` -> `Supervisor` -> `Outcome` -> exit status. `docs/architecture.md`
//! shows the threads and the states of a run.
//!
//! # Invariants
//! * The lock is never released before the job is reaped, and a reaped pid is never signalled.
//! * The connection that holds the lock has one owner at a time. After a loss the job is terminated, even though the
//!   key is acquired again meanwhile to keep others out.
//! * `run::job` and `run::session` do not know each other; only `run::supervisor` sees both.
//! * `pglock run` writes nothing to standard output, which belongs to the job.
//! * No secret appears in anything that is printed.
#![cfg_attr(all(not(test), starts_without_runtime), no_main)]

mod cli;
mod commands;
mod connection;
#[cfg(test)]
#[path = "../tests/fuzz/driver.rs"]
mod fuzz;
mod history;
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
use std::ffi::OsString;
use std::panic;
use std::time::Instant;

#[cfg(any(test, not(starts_without_runtime)))]
fn main() -> std::process::ExitCode {
    run_program(std::env::args_os().collect()).into()
}

#[cfg(all(not(test), starts_without_runtime))]
sys::define_main!(run_program);

/// Does what the arguments ask for, of which the first is the name of the program. Returns the exit status.
fn run_program(arguments: Vec<OsString>) -> u8 {
    let started_at = Instant::now();
    sys::share_heap();
    message::report_panics();
    // A panic has its own exit status; the panic hook has reported it. A panic of the session's thread does not arrive
    // here: it counts as a lost session, and the job is terminated.
    let result = panic::catch_unwind(|| run_subcommand(arguments, started_at));
    let result = result.unwrap_or(Ok(Outcome::Failed(ExitCode::Internal)));
    let outcome = result.unwrap_or_else(|failure| {
        message::error(&failure);
        Outcome::Failed(failure.code)
    });
    exit_with(outcome)
}

/// Parses the command line and runs the subcommand. The wait for a lock is counted from `started_at`.
///
/// # Errors
/// The command line is not valid, or the subcommand fails.
fn run_subcommand(arguments: Vec<OsString>, started_at: Instant) -> Result<Outcome, Failure> {
    match cli::parse(arguments)? {
        Invocation::Run(options) => commands::run::run(*options, started_at),
        Invocation::List(options) => commands::list::run(&options),
        Invocation::Evict(options) => commands::evict::run(&options),
        Invocation::Check(options) => commands::check::run(&options),
        Invocation::Key(options) => commands::key::run(&options),
        Invocation::Completions(target) => commands::completions::run(target),
        Invocation::Init(options) => commands::init::run(&options),
        Invocation::History(options) => commands::history::run(&options),
        Invocation::Text(text) => stdout::print(&text).map(|_| Outcome::Success),
    }
}

/// Returns the exit status, or ends this process with the signal that ended the job or the wait.
fn exit_with(outcome: Outcome) -> u8 {
    // The session's thread may be prompting for a password.
    connection::prompt::restore_echo();
    match outcome {
        Outcome::Success => 0,
        Outcome::Job(ExitReason::Code(code)) | Outcome::Conflict(code) => code,
        Outcome::Job(ExitReason::Signal(signal)) | Outcome::Interrupted(signal) => {
            signals::die_with(signal);
            // Process 1 of a container survives its own signal. Report the signal as a shell does.
            128u8.saturating_add(signal as u8)
        }
        Outcome::Failed(code) => code as u8,
    }
}
