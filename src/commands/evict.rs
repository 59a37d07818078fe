//! `pglock evict`: terminates the sessions that hold a lock, and leaves a mark that names the evictor.
//!
//! Only what was shown is terminated: a session that still has the same name and role, and still holds or waits for an
//! advisory lock. The server tells an evicted session only that an administrator terminated it. So this command holds a
//! lock that marks the eviction, and stays connected for a second; the evicted pglock looks for the mark
//! (`inspect::eviction`).

use crate::cli::EvictOptions;
use crate::commands::lock_table;
use crate::connection::Settings;
use crate::inspect::backend::Backend;
use crate::inspect::overview::{LockEntry, LockState, Overview};
use crate::key::{self, Key};
use crate::lock::{self, QueryResult, simple_query};
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

/// How long a mark is held at least, for the evicted to find it.
const MARK_HOLD_TIME: Duration = Duration::from_secs(1);
/// How long a backend may take to terminate. One that is stopped or blocked on a disk takes longer.
const TERMINATION_TIMEOUT: Duration = Duration::from_secs(10);
/// How often to look whether the backends have terminated.
const TERMINATION_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Evicts the holders of the keys, after confirmation.
///
/// # Errors
/// There is no terminal to confirm on, the user declines, our role lacks the privilege, a session does not terminate, or
/// the connection is lost.
pub(crate) fn run(options: &EvictOptions) -> Result<Outcome, Failure> {
    if !options.yes && !terminal::can_confirm() {
        return Err(Failure::msg(
            ExitCode::Usage,
            "cannot ask for confirmation without a terminal; use --yes to evict without confirmation",
        ));
    }
    let settings = Settings::from_options(&options.connection)?.for_lists();
    let mut client = settings.open(&name::for_evict(), None)?.client;
    evict(&mut client, options, &settings)?;
    Ok(Outcome::Success)
}

/// Shows who holds the keys, asks for confirmation, terminates their sessions, and reports who holds the keys then.
///
/// # Errors
/// As for [`run`].
fn evict(client: &mut Client, options: &EvictOptions, settings: &Settings) -> Result<(), Failure> {
    let (keys, waiters) = (&options.keys, options.waiters);
    let entries = Overview::fetch(client, keys)?.entries;
    let polling = entries.iter().filter(|entry| entry.state == LockState::Polling);
    let polling_count = polling.count();
    let mut targets = entries;
    targets.retain(|entry| is_target(entry, waiters));
    if targets.is_empty() {
        return stdout::print(&format!("nobody holds {}\n", key::describe(keys))).map(drop);
    }
    let backends = distinct_backends(&targets);
    let width = terminal::stdout_size().map(|(columns, _)| columns);
    stdout::print(&lock_table::render(&targets, width))?;
    if !options.yes && !terminal::confirm(&question(backends.len())) {
        return Err(Failure::msg(ExitCode::Conflict, "nobody was evicted"));
    }
    let (leftovers, of_clients): (Vec<&Backend>, Vec<&Backend>) =
        backends.into_iter().partition(|backend| backend.is_leftover);
    if !of_clients.is_empty() {
        stdout::print(&terminate_all(client, &of_clients)?)?;
    }
    stdout::print(&terminate_leftovers(client, settings, &leftovers)?)?;
    if waiters && polling_count > 0 {
        message::notice(format_args!(
            "{polling_count} more clients wait by polling, and have no session that could be terminated"
        ));
    }
    stdout::print(&current_holders(client, keys)?).map(drop)
}

fn question(count: usize) -> String {
    match count {
        1 => "Terminate this session and stop its job? [y/N] ".into(),
        _ => format!("Terminate these {count} sessions and stop their jobs? [y/N] "),
    }
}

/// Returns whether to evict the session: a holder, or a waiter if those are wanted too. A waiter that polls has no session
/// of its own.
fn is_target(entry: &LockEntry, waiters: bool) -> bool {
    match entry.state {
        LockState::Holding => true,
        LockState::Queueing | LockState::Ticketed(_) => waiters,
        LockState::Polling => false,
    }
}

/// Returns each session once, however many of the locks it has.
fn distinct_backends(entries: &[LockEntry]) -> Vec<&Backend> {
    let mut seen = HashSet::new();
    let mut backends: Vec<&Backend> = entries.iter().map(|entry| &entry.backend).collect();
    backends.retain(|backend| backend.pid.is_none_or(|pid| seen.insert(pid)));
    backends
}

/// Terminates these sessions and waits until they have gone. Returns the report, a line for each.
///
/// # Errors
/// Our role lacks the privilege, a session does not terminate, or the connection is lost.
fn terminate_all(client: &mut Client, backends: &[&Backend]) -> Result<String, Failure> {
    let mut report = String::new();
    let mut terminated: Vec<(i32, &Backend)> = Vec::new();
    // The marks are transaction-level locks, which are correct behind a pooler too.
    simple_query(client, "BEGIN NOT DEFERRABLE")?;
    // Waiters first, or they would acquire the lock.
    for backend in backends.iter().rev() {
        let Some(pid) = backend.pid else {
            report += &format!("{backend} was not evicted: end it with ROLLBACK PREPARED\n");
            continue;
        };
        if mark_and_terminate(client, pid, backend).map_err(|error| explain(error, backend))? {
            terminated.push((pid, backend));
        } else {
            report += &format!("{backend} was already gone\n");
        }
    }
    let start = Instant::now();
    let pids: Vec<i32> = terminated.iter().map(|(pid, _)| *pid).collect();
    wait_until_gone(client, &pids)?;
    for (_, backend) in terminated.iter().rev() {
        report += &format!("evicted {backend}\n");
    }
    if terminated.iter().any(|(_, backend)| backend.is_pglock()) {
        sleep(MARK_HOLD_TIME.saturating_sub(start.elapsed()));
    }
    simple_query(client, "COMMIT")?;
    Ok(report)
}

/// Ends sessions of a pool that hold a lock for no client that could be named. Returns the report, a line for each.
///
/// No mark is left, since no pglock holds that lock. The name of such a session changes with each client of the pool,
/// so it is not compared. The session may be the one that the pool has lent to us: then ours ends with it.
///
/// # Errors
/// As for [`terminate_all`].
fn terminate_leftovers(client: &mut Client, settings: &Settings, leftovers: &[&Backend]) -> Result<String, Failure> {
    let mut report = String::new();
    for backend in leftovers {
        let Some(pid) = backend.pid else { continue };
        let sql = format!(
            "SELECT pg_catalog.pg_terminate_backend(pid) AS terminated FROM pg_catalog.pg_stat_activity \
             WHERE pid = {pid} AND usename = {} AND {}",
            key::sql_literal(&backend.user),
            has_advisory_lock(pid),
        );
        let is_terminated = match QueryResult::fetch(client, &sql) {
            Ok(result) => result.is_true("terminated"),
            Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                return Err(explain(error, backend));
            }
            Err(_) => {
                *client = settings.open(&name::for_evict(), None)?.client;
                true
            }
        };
        wait_until_gone(client, &[pid])?;
        report += &if is_terminated {
            format!("evicted {backend}\n")
        } else {
            format!("{backend} was already gone\n")
        };
    }
    Ok(report)
}

fn has_advisory_lock(pid: i32) -> String {
    format!("EXISTS (SELECT 1 FROM pg_catalog.pg_locks l WHERE l.pid = {pid} AND l.locktype = 'advisory')")
}

/// Marks the eviction and terminates the session. Returns whether it was still the session that was shown.
///
/// # Errors
/// Our role lacks the privilege, or the connection is lost.
fn mark_and_terminate(client: &mut Client, pid: i32, shown: &Backend) -> Result<bool, postgres::Error> {
    let mark = derived_keys::eviction_mark(pid).literals();
    let sql = format!(
        "SELECT pg_catalog.pg_advisory_xact_lock_shared({mark}); \
         SELECT pg_catalog.pg_terminate_backend(pid) AS terminated FROM pg_catalog.pg_stat_activity a \
         WHERE pid = {pid} AND usename = {} AND application_name = {} AND {}",
        key::sql_literal(&shown.user),
        key::sql_literal(&shown.application_name),
        has_advisory_lock(pid),
    );
    Ok(QueryResult::fetch(client, &sql)?.is_true("terminated"))
}

/// Waits until none of these backends holds or waits for an advisory lock.
///
/// # Errors
/// [`ExitCode::Conflict`] if one has not gone within [`TERMINATION_TIMEOUT`], or the connection is lost.
fn wait_until_gone(client: &mut Client, pids: &[i32]) -> Result<(), Failure> {
    if pids.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = pids.iter().map(i32::to_string).collect();
    let list = list.join(", ");
    let sql = format!(
        "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND pid IN ({list})) AS present"
    );
    let start = Instant::now();
    while QueryResult::fetch(client, &sql)?.is_true("present") {
        if start.elapsed() > TERMINATION_TIMEOUT {
            let backends = if pids.len() == 1 { "backend" } else { "backends" };
            return Err(Failure::msg(
                ExitCode::Conflict,
                format!(
                    "{backends} {list} did not terminate within {}s",
                    TERMINATION_TIMEOUT.as_secs()
                ),
            ));
        }
        sleep(TERMINATION_POLL_INTERVAL);
    }
    Ok(())
}

/// Adds the remedy to an error that says that our role lacks the privilege.
fn explain(error: postgres::Error, backend: &Backend) -> Failure {
    if error.code() != Some(&SqlState::INSUFFICIENT_PRIVILEGE) {
        return Failure::from(error);
    }
    let owner = &backend.user;
    Failure::msg(
        ExitCode::Permission,
        format!(
            "this role may not terminate {backend}, a session of role {owner:?}: GRANT pg_signal_backend to it, or connect \
             as role {owner:?}; only a superuser may terminate a superuser's session"
        ),
    )
}

/// Returns who holds the keys now, a line for each key.
///
/// # Errors
/// The connection is lost, or a query fails.
fn current_holders(client: &mut Client, keys: &[Key]) -> Result<String, Failure> {
    let overview = Overview::fetch(client, keys)?;
    let ids = lock::key_ids(client, keys)?;
    let lines = keys.iter().zip(ids).map(|(key, id)| {
        let is_holder = |entry: &&LockEntry| entry.state == LockState::Holding && entry.base == id;
        let holders: Vec<&LockEntry> = overview.entries.iter().filter(is_holder).collect();
        match holders[..] {
            [] => format!("key {key} is free\n"),
            [holder] => format!("key {key} is now held by {}\n", holder.backend),
            [first, ..] => {
                let more = holders.len() - 1;
                format!("key {key} is now held by {} and {more} more\n", first.backend)
            }
        }
    });
    Ok(lines.collect())
}
