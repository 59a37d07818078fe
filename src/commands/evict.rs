//! `pglock evict`: ends the sessions that hold a lock, and tells those who are evicted by whom.
//!
//! What is ended is what was shown: a session is only told to end if it still calls itself the same and still has
//! something to do with a lock. The server tells the one who is evicted nothing but that an administrator did it, so
//! whoever evicts puts a mark into `pg_locks` and stays for a moment; the evicted pglock looks for it there.

use crate::cli::EvictOptions;
use crate::commands::list;
use crate::connection::Settings;
use crate::inspect::backend::Backend;
use crate::inspect::overview::{self, LockEntry, LockState, Overview};
use crate::key::{self, Key};
use crate::lock::{self, QueryResult, ask};
use crate::outcome::{ExitCode, Failure, Outcome};
use crate::protocol::{derived_keys, name};
use crate::ui::message;
use crate::ui::stdout;
use crate::ui::terminal;
use postgres::Client;
use postgres::error::SqlState;
use std::collections::HashSet;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long the evicted have to look who it was.
const MARK_HOLD_TIME: Duration = Duration::from_secs(1);
/// How long a session may take to end. One whose process is stopped or hangs on a disk takes longer.
const TERMINATION_TIMEOUT: Duration = Duration::from_secs(10);
/// How often to look whether they have ended.
const TERMINATION_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Evicts the holders, after asking.
///
/// # Errors
/// There is no terminal to ask on, or as for [`evict`].
pub fn run(options: &EvictOptions) -> Result<Outcome, Failure> {
    if !options.yes && !terminal::can_confirm() {
        return Err(Failure::say(
            ExitCode::Usage,
            "there is no terminal to ask on: give --yes to evict without being asked",
        ));
    }
    let settings = Settings::from_options(&options.connection)?.for_lists();
    let mut client = settings.open(&name::for_evict(), None)?.client;
    evict(&mut client, &options.keys, options.waiters, options.yes)?;
    Ok(Outcome::Success)
}

/// Shows who holds the keys, asks whether they are to go, and ends their sessions.
///
/// # Errors
/// The answer was no; or our role may not do that; or a session does not end; or the server is gone.
fn evict(client: &mut Client, keys: &[Key], waiters: bool, yes: bool) -> Result<(), Failure> {
    let overview = overview::look(client, keys)?;
    let polling = overview
        .entries
        .iter()
        .filter(|entry| entry.state == LockState::Polling);
    let polling = polling.count();
    let wanted = Overview {
        entries: candidates(&overview, waiters),
        ..overview
    };
    if wanted.entries.is_empty() {
        return stdout::print(&format!("nobody holds {}\n", key::describe(keys))).map(drop);
    }
    let backends = without_duplicates(&wanted.entries);
    let width = terminal::stdout_size().map(|(columns, _)| columns);
    stdout::print(&list::table(&wanted, width))?;
    if !yes && !terminal::confirm(&question(backends.len())) {
        return Err(Failure::say(ExitCode::Conflict, "nobody was evicted"));
    }
    stdout::print(&end(client, &backends)?)?;
    if waiters && polling > 0 {
        message::notice(format_args!(
            "{polling} more wait without a session of their own, which could be ended"
        ));
    }
    stdout::print(&aftermath(client, keys)?).map(drop)
}

fn question(count: usize) -> String {
    match count {
        1 => "End this session? The job under it is stopped. [y/N] ".into(),
        count => format!("End these {count} sessions? The jobs under them are stopped. [y/N] "),
    }
}

/// Each session once.
fn without_duplicates(entries: &[LockEntry]) -> Vec<&Backend> {
    let mut seen = HashSet::new();
    let backends = entries.iter().map(|entry| &entry.backend);
    backends
        .filter(|it| it.pid.is_none_or(|pid| seen.insert(pid)))
        .collect()
}

/// Those who are to be evicted: the holders, and the waiters too if that is asked for. Who asks through a pooler has no
/// session of its own that could be ended.
fn candidates(overview: &Overview, waiters: bool) -> Vec<LockEntry> {
    let is_wanted = |entry: &&LockEntry| match entry.state {
        LockState::Holding => true,
        LockState::Queueing | LockState::InLine(_) => waiters,
        LockState::Polling => false,
    };
    overview.entries.iter().filter(is_wanted).cloned().collect()
}

/// Ends these sessions, and waits until they are gone. The words for what was done, a line each.
///
/// # Errors
/// Our role may not do that; or a session does not end; or the server is gone.
fn end(client: &mut Client, backends: &[&Backend]) -> Result<String, Failure> {
    let mut told: Vec<i32> = Vec::new();
    let mut words = String::new();
    // The marks are those of a transaction, which are right behind a pooler too.
    ask(client, "BEGIN NOT DEFERRABLE")?;
    // Those who wait first, or they would be given the lock.
    for backend in backends.iter().rev() {
        let Some(pid) = backend.pid else {
            words += &format!("{backend} was left alone: ROLLBACK PREPARED ends it\n");
            continue;
        };
        match terminate(client, pid, backend).map_err(|error| refusal(error, backend))? {
            true => told.push(pid),
            false => words += &format!("{backend} was gone already\n"),
        }
    }
    let began = Instant::now();
    while !told.is_empty() && holds_any(client, &told)? {
        if began.elapsed() > TERMINATION_TIMEOUT {
            return Err(Failure::say(
                ExitCode::Conflict,
                format!("the server has told backend {told:?} to end, and it does not end"),
            ));
        }
        sleep(TERMINATION_POLL_INTERVAL);
    }
    let are_told = |backend: &&&Backend| backend.pid.is_some_and(|pid| told.contains(&pid));
    for backend in backends.iter().filter(are_told) {
        words += &format!("evicted {backend}\n");
    }
    if backends.iter().filter(are_told).any(|it| it.is_pglock()) {
        sleep(MARK_HOLD_TIME.saturating_sub(began.elapsed()));
    }
    ask(client, "COMMIT")?;
    Ok(words)
}

/// Leaves the mark, and tells the session to end if it is still the one that was seen. Whether it was.
fn terminate(client: &mut Client, pid: i32, seen: &Backend) -> Result<bool, postgres::Error> {
    let mark = derived_keys::eviction_mark(pid).literals();
    let sql = format!(
        "SELECT pg_catalog.pg_advisory_xact_lock_shared({mark}); \
         SELECT pg_catalog.pg_terminate_backend(pid) AS told FROM pg_catalog.pg_stat_activity a \
         WHERE pid = {pid} AND usename = {} AND application_name = {} AND EXISTS (\
         SELECT 1 FROM pg_catalog.pg_locks l WHERE l.pid = {pid} AND l.locktype = 'advisory')",
        key::sql_literal(&seen.user),
        key::sql_literal(&seen.application_name),
    );
    Ok(QueryResult::to(client, &sql)?.is_true("told"))
}

/// Whether one of these processes has something to do with an advisory lock still.
fn holds_any(client: &mut Client, pids: &[i32]) -> Result<bool, postgres::Error> {
    let pids: Vec<String> = pids.iter().map(i32::to_string).collect();
    let sql = format!(
        "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND pid IN ({})) AS any",
        pids.join(", ")
    );
    Ok(QueryResult::to(client, &sql)?.is_true("any"))
}

fn refusal(error: postgres::Error, backend: &Backend) -> Failure {
    if error.code() != Some(&SqlState::INSUFFICIENT_PRIVILEGE) {
        return Failure::from(error);
    }
    Failure::say(
        ExitCode::Permission,
        format!(
            "this role may not end {backend}, which is of role {:?}: GRANT pg_signal_backend to it, or connect as that \
             role; only a superuser may end a superuser's session",
            backend.user
        ),
    )
}

/// What became of the keys, a line each.
///
/// # Errors
/// The server is gone.
fn aftermath(client: &mut Client, keys: &[Key]) -> Result<String, Failure> {
    let after = overview::look(client, keys)?;
    let ids = lock::numbers(client, keys)?;
    let lines = keys.iter().zip(ids).map(|(key, id)| {
        let is_it = |entry: &&LockEntry| entry.state == LockState::Holding && entry.base == id;
        let holders: Vec<&LockEntry> = after.entries.iter().filter(is_it).collect();
        match holders[..] {
            [] => format!("key {key} is free\n"),
            [one] => format!("key {key} is held by {} now\n", one.backend),
            [one, ..] => format!(
                "key {key} is held by {} and {} more now\n",
                one.backend,
                holders.len() - 1
            ),
        }
    });
    Ok(lines.collect())
}
