//! `pglock evict`: has the holders of a lock give it up.
//!
//! A pglock that holds the lock is only asked: it terminates its job, and releases the lock when the job is dead
//! (`request`). Sessions of other clients, of waiters and of a pglock that does not react are terminated (`terminate`),
//! but not that of a pglock whose time limit is not known. Only what was shown is evicted (`target`): a session that
//! still has the same name and role and, unless it is a pglock that waits, one of the locks. The evicted pglock learns
//! from a mark who evicts it (`inspect::eviction`).

mod leftover;
mod request;
mod target;
mod terminate;

use crate::cli::EvictOptions;
use crate::commands::lock_table;
use crate::commands::session::with_client;
use crate::connection::{Client, Settings};
use crate::inspect::backend::Backend;
use crate::inspect::overview::{LockEntry, LockState, Overview, PollingWaiters};
use crate::key::{self, Key};
use crate::lock;
use crate::outcome::{ExitCode, Failure, Outcome};
use crate::protocol::name;
use crate::ui::message;
use crate::ui::stdout;
use crate::ui::terminal;
use leftover::terminate_leftovers;
use request::{Eviction, is_living_holder};
use target::{Target, distinct_targets};
use terminate::{Evictor, check_authorization};

/// Evicts the holders of the keys, after confirmation.
///
/// # Errors
/// There is no terminal to confirm on, the user declines, our role lacks the privilege for one of the sessions (then
/// none is evicted), a session does not terminate, a holder whose limit is hidden is not done, a key was left behind in
/// a session that is lent to a pglock, a prepared transaction holds a key, or the connection is lost.
pub(crate) fn run(options: &EvictOptions) -> Result<Outcome, Failure> {
    if !options.yes && !terminal::can_confirm() {
        return Err(Failure::msg(
            ExitCode::Usage,
            "cannot ask for confirmation without a terminal; use --yes to evict without confirmation",
        ));
    }
    let settings = Settings::from_options(&options.connection)?
        .for_lists()
        .with_reply_limit(options.timing.reply_limit());
    let application_name = name::for_evict();
    with_client(&settings, &application_name, |client| {
        evict(client, options, &settings, &application_name)
    })?;
    Ok(Outcome::Success)
}

/// Shows who holds the keys, asks for confirmation, terminates their sessions, and reports who holds the keys then.
///
/// # Errors
/// As for [`run`].
fn evict(
    client: &mut Client,
    options: &EvictOptions,
    settings: &Settings,
    application_name: &str,
) -> Result<(), Failure> {
    let (keys, waiters) = (&options.keys, options.waiters);
    let polling = if waiters {
        PollingWaiters::Find
    } else {
        PollingWaiters::Ignore
    };
    let client = client.asking("for the holders and waiters");
    let entries = Overview::fetch(client, keys, polling)?.entries;
    let polling = entries.iter().filter(|entry| entry.state == LockState::Polling);
    let polling_count = polling.count();
    let mut targets = entries;
    targets.retain(|entry| is_target(entry, waiters));
    if targets.is_empty() {
        return stdout::print(&format!("no session holds {}\n", key::describe(keys))).map(drop);
    }
    let distinct = distinct_targets(&targets);
    let width = terminal::stdout_size().map(|(columns, _)| columns);
    stdout::print(&lock_table::render(&targets, width))?;
    if !options.yes && !terminal::confirm(&question(distinct.len())) {
        return Err(Failure::msg(ExitCode::Conflict, "no session was evicted"));
    }
    let can_ask = |target: &Target| !options.force && is_living_holder(target, options.timing);
    for target in &distinct {
        let evictor = if can_ask(target) {
            Evictor::Login
        } else {
            Evictor::Current
        };
        check_authorization(client, target.backend, evictor)?;
    }
    let (leftovers, of_clients): (Vec<Target>, Vec<Target>) = distinct
        .into_iter()
        .partition(|target| target.backend.is_leftover && !can_ask(target));
    let mut unknown = Vec::new();
    if !of_clients.is_empty() {
        unknown = Eviction::begin(client, options, application_name)?.carry_out(&of_clients)?;
    }
    let lent = evict_leftovers(client, options, settings, leftovers)?;
    if waiters && polling_count > 0 {
        message::notice(format_args!(
            "{polling_count} more clients wait by polling, and have no session that could be terminated"
        ));
    }
    let now = Overview::fetch(client.asking("for the current holder"), keys, PollingWaiters::Ignore)?.entries;
    stdout::print(&current_holders(client, keys, &now)?)?;
    // What was asked may have released another lock.
    let is_left =
        |backend: &&Backend| backend.is_leftover && targets.iter().any(|target| target.backend.pid == backend.pid);
    let left = now.iter().map(|entry| &entry.backend).filter(is_left);
    let prepared = targets.iter().map(|entry| &entry.backend);
    let mut not_evicted = unknown
        .into_iter()
        .chain(&lent)
        .chain(left)
        .chain(prepared.filter(|backend| backend.pid.is_none()));
    not_evicted
        .next()
        .map_or(Ok(()), |backend| Err(not_evicted_failure(backend)))
}

/// The failure for a prepared transaction, for a session that is lent to a pglock, or for a holder that may still be
/// terminating its job within its limit.
fn not_evicted_failure(backend: &Backend) -> Failure {
    let reason = match (backend.pid, &backend.lent_to) {
        (None, _) => "end it with ROLLBACK PREPARED or COMMIT PREPARED".to_owned(),
        (Some(_), Some(client)) => format!(
            "the pool has lent it to {client}, which holds another lock there; try again when that job has ended, or \
             use --force, which takes that lock as well"
        ),
        (Some(_), None) if backend.is_leftover => {
            "it has the name of a pglock that may hold the lock; try again, or use --force".to_owned()
        }
        (Some(_), None) => {
            let cause = match (backend.is_untracked, backend.is_hidden) {
                (true, _) => "is not recorded, because track_activities is off for it",
                (false, true) => "is hidden from this role; GRANT pg_read_all_stats to it",
                (false, false) => {
                    "is not in its query tag, before its first heartbeat or because track_activity_query_size is too \
                     small"
                }
            };
            format!("its job may still be terminating, and its limit {cause}; try again, or use --force")
        }
    };
    Failure::msg(ExitCode::Conflict, format!("{backend} was not evicted: {reason}"))
}

fn question(count: usize) -> String {
    match count {
        1 => "Evict this session and terminate its job? [y/N] ".into(),
        _ => format!("Evict these {count} sessions and terminate their jobs? [y/N] "),
    }
}

/// Returns whether to evict the session: a holder, or a waiter with `--waiters`. A waiter that polls has no session of
/// its own.
fn is_target(entry: &LockEntry, waiters: bool) -> bool {
    match entry.state {
        LockState::Holding => true,
        LockState::Queueing | LockState::Ticketed(_) => waiters,
        LockState::Polling => false,
    }
}

/// Ends the sessions that one of the keys was left behind in. Returns those that are lent to a pglock now, which would
/// lose its own lock: they are terminated only by force.
///
/// # Errors
/// As for [`terminate_leftovers`].
fn evict_leftovers(
    client: &mut Client,
    options: &EvictOptions,
    settings: &Settings,
    mut leftovers: Vec<Target>,
) -> Result<Vec<Backend>, Failure> {
    let mut lent = Vec::new();
    if !options.force && !leftovers.is_empty() {
        client.asking("for the clients of the pool");
        let entries = Overview::fetch(client, &options.keys, PollingWaiters::Ignore)?.entries;
        let backends = entries.into_iter().map(|entry| entry.backend);
        lent.extend(backends.filter(|backend| backend.lent_to.is_some()));
        leftovers.retain(|target| lent.iter().all(|backend| backend.pid != target.backend.pid));
    }
    terminate_leftovers(client, settings, &leftovers, options.force)?;
    Ok(lent)
}

/// Returns who holds the keys now, a line for each key.
///
/// # Errors
/// The connection is lost, or the server cannot compute the number of a key.
fn current_holders(client: &mut Client, keys: &[Key], entries: &[LockEntry]) -> Result<String, Failure> {
    let ids = lock::key_ids(client, keys)?;
    let lines = keys.iter().zip(ids).map(|(key, id)| {
        let is_holder = |entry: &&LockEntry| entry.state == LockState::Holding && entry.base == id;
        let holders: Vec<&LockEntry> = entries.iter().filter(is_holder).collect();
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
