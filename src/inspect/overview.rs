//! All advisory locks of a database: who holds them and who waits behind whom, whether it is a pglock or not.
//!
//! Several rows of `pg_locks` make one entry: the session that holds a ticket waits for the ticket's key, and the
//! ticket it waits for shows which session is ahead of it. A waiter that polls has no row at all (see [`polling`]).

use crate::connection::Client;
use crate::inspect::backend::Backend;
use crate::inspect::leftover::{self, HeldKey};
use crate::inspect::lock_row::{self, LockRow};
use crate::inspect::names::KeyNames;
use crate::inspect::polling;
use crate::inspect::server_time::ServerTime;
use crate::key::{Key, KeyId};
use crate::lock::{self, Mode, QueryResult, Scope};
use crate::outcome::{ExitCode, Failure};
use crate::protocol::derived_keys::{MAX_SLOTS, ticket_class};
use crate::protocol::name::{self, RunName};
use std::collections::{HashMap, HashSet};

/// A lock that a session holds or waits for.
#[derive(Clone, Debug)]
pub(crate) struct LockEntry {
    /// The number.
    pub id: KeyId,
    /// The number of the key: the same, unless this is one of its slots.
    pub base: KeyId,
    /// The key, if its name is known.
    pub key: Option<Key>,
    /// Which slot it is, if the key has several.
    pub slot: Option<usize>,
    /// The mode, if the lock has a row of its own.
    pub mode: Option<Mode>,
    /// The lifetime of the lock, if it is known.
    pub scope: Option<Scope>,
    /// What the session does with the lock.
    pub state: LockState,
    /// Since when, if it is known.
    pub since: Option<ServerTime>,
    /// The backends that it waits for.
    pub behind: Vec<i32>,
    /// The session.
    pub backend: Backend,
}

/// What a session does with a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum LockState {
    /// Holds it.
    Holding,
    /// Waits in the server's queue, or between two stays there.
    Queueing,
    /// Waits with the ticket of this number.
    Ticketed(i32),
    /// Waits by trying again and again.
    Polling,
}

/// Whether to look for waiters that poll, which takes more than a second if there are any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PollingWaiters {
    Find,
    Ignore,
}

/// The locks of a database.
pub(crate) struct Overview {
    /// The database.
    pub database: String,
    /// Our role.
    pub role: String,
    /// The locks: those of a key together, holders first.
    pub entries: Vec<LockEntry>,
    /// Whether there are sessions of which our role cannot see everything.
    pub is_partial: bool,
    /// Whether there are sessions of which the server does not record everything.
    pub is_untracked: bool,
}

impl Overview {
    /// Returns all locks, or those of these keys with their slots and tickets.
    ///
    /// # Errors
    /// The server is a hot standby, the connection is lost, or the server cannot compute the number of a key.
    pub(crate) fn fetch(client: &mut Client, keys: &[Key], polling: PollingWaiters) -> Result<Overview, Failure> {
        let (database, role) = fetch_database_and_role(client)?;
        let mut names = KeyNames::default();
        let bases = lock::key_ids(client, keys)?;
        for (key, id) in keys.iter().zip(&bases) {
            names.learn(key, *id, MAX_SLOTS);
        }
        let rows = lock_row::query(client)?;
        let is_pooled_holder = |row: &LockRow| row.is_granted && row.in_transaction && row.backend.is_pglock();
        let pollers = match polling {
            PollingWaiters::Find => polling::find_waiters(client, rows.iter().any(is_pooled_holder))?,
            PollingWaiters::Ignore => Vec::new(),
        };
        let backends: Vec<&Backend> = rows.iter().map(|row| &row.backend).chain(&pollers).collect();
        let missed = match polling {
            PollingWaiters::Find => Some(polling::missed_waiters(client)?),
            PollingWaiters::Ignore => None,
        };
        let is_partial = missed.is_some_and(|missed| missed.are_hidden)
            || backends
                .iter()
                .any(|backend| backend.is_hidden && !backend.is_untracked);
        let is_untracked =
            missed.is_some_and(|missed| missed.are_untracked) || backends.iter().any(|backend| backend.is_untracked);
        let present: HashSet<KeyId> = rows.iter().map(|row| row.id).collect();
        learn_names(client, &mut names, &backends, &rows, &present, &database);
        let rows = mark_leftovers(rows, &names, &database);
        let pollers = without_row(pollers, &rows);
        let mut entries = entries_of_rows(rows, &names);
        let polling = pollers.into_iter();
        entries.extend(polling.filter_map(|poller| LockEntry::for_poller(poller, &names, &database)));
        fill_in_behind(&mut entries);
        entries.retain(|entry| bases.is_empty() || bases.contains(&entry.base));
        entries.sort_by_cached_key(LockEntry::rank);
        mark_ambiguous(&mut entries);
        Ok(Overview {
            database,
            role,
            entries,
            is_partial,
            is_untracked,
        })
    }

    /// Returns whether any of the locks is held.
    pub(crate) fn is_any_held(&self) -> bool {
        self.entries.iter().any(|entry| entry.state == LockState::Holding)
    }
}

/// Returns the name of our database and our role.
///
/// # Errors
/// The server is a hot standby, which does not know the locks of its primary; the connection is lost, or the query
/// fails.
fn fetch_database_and_role(client: &mut Client) -> Result<(String, String), Failure> {
    let sql = "SELECT pg_catalog.current_database() AS database, current_user AS role, \
               pg_catalog.pg_is_in_recovery() AS standby";
    let result = QueryResult::fetch(client, sql)?;
    if result.is_true("standby") {
        return Err(Failure::msg(ExitCode::Config, lock::HOT_STANDBY));
    }
    let text = |column| result.get(column).unwrap_or_default().to_owned();
    Ok((text("database"), text("role")))
}

/// Learns the names of the numbers in `present` from the sessions that hold or wait for them. The server is asked only
/// about the names that would otherwise stand for none of these numbers, or not for the one that their session holds.
fn learn_names(
    client: &mut Client,
    names: &mut KeyNames,
    backends: &[&Backend],
    rows: &[LockRow],
    present: &HashSet<KeyId>,
    database: &str,
) {
    let runs = backends.iter().filter_map(|backend| backend.run_name());
    let given: HashSet<(&str, u16)> = runs
        .flat_map(|run| {
            let key_lists = run.key_lists().enumerate();
            // If what looks like a number of slots is the end of a key, there are no slots.
            key_lists.map(move |(index, keys)| (keys, run.slots.filter(|_| index == 0).unwrap_or(1)))
        })
        .collect();
    let classes: HashSet<i32> = present.iter().filter_map(|id| id.class()).collect();
    let is_present = |id| present.contains(&id) || classes.contains(&ticket_class(id));
    let mut unknown = given.clone();
    unknown.retain(|(keys, slots)| !names.learn_readings(keys, *slots, database, is_present));
    let lent = lent_backends(rows, names, database);
    let unnamed = rows.iter().filter(|row| is_leftover(row, names, database, &lent));
    let unnamed: HashSet<&str> = unnamed
        .filter_map(|row| row.backend.run_name())
        .flat_map(RunName::key_lists)
        .collect();
    unknown.extend(given.into_iter().filter(|(keys, _)| unnamed.contains(keys)));
    for keys in unknown {
        names.learn_computed(client, keys, database, is_present);
    }
    for id in present {
        names.learn_tickets(*id);
    }
}

/// Returns what is known about the key of this row.
fn held_key<'a>(row: &LockRow, names: &'a KeyNames) -> HeldKey<'a> {
    // A ticket has no name of its own.
    let id = names.key_of_ticket(row.id).unwrap_or(row.id);
    let base = names.meaning(id).base;
    HeldKey {
        id,
        base,
        given: names.given(base),
        is_beside_own: false,
    }
}

/// Returns the backends in which a pglock holds a key of its own: if one is a pool's, it is lent to that pglock.
fn lent_backends(rows: &[LockRow], names: &KeyNames, database: &str) -> HashSet<i32> {
    let is_own =
        |row: &&LockRow| row.is_granted && leftover::is_clients_own(&row.backend, &held_key(row, names), database);
    rows.iter().filter(is_own).filter_map(|row| row.backend.pid).collect()
}

/// Returns whether a session holds this lock for no client that could be named. `lent` are the [`lent_backends`].
fn is_leftover(row: &LockRow, names: &KeyNames, database: &str, lent: &HashSet<i32>) -> bool {
    let key = HeldKey {
        is_beside_own: row.backend.pid.is_some_and(|pid| lent.contains(&pid)),
        ..held_key(row, names)
    };
    row.is_granted && leftover::is_leftover(&row.backend, &key, database)
}

/// Marks the sessions that hold a lock for no client that could be named.
fn mark_leftovers(rows: Vec<LockRow>, names: &KeyNames, database: &str) -> Vec<LockRow> {
    let lent = lent_backends(&rows, names, database);
    let marked = rows.into_iter().map(|row| {
        if !is_leftover(&row, names, database, &lent) {
            return row;
        }
        let is_lent = row.backend.pid.is_some_and(|pid| lent.contains(&pid));
        let client = is_lent.then(|| row.backend.who());
        LockRow {
            backend: Backend {
                lent_to: client,
                ..row.backend.without_client()
            },
            ..row
        }
    });
    marked.collect()
}

/// Returns the waiters without a row of their own: one that had a row is between two stays in the queue.
fn without_row(mut pollers: Vec<Backend>, rows: &[LockRow]) -> Vec<Backend> {
    let of_clients = rows
        .iter()
        .map(|row| &row.backend)
        .filter(|backend| !backend.is_leftover);
    let with_row: HashSet<&str> = of_clients.map(|backend| backend.application_name.as_str()).collect();
    pollers.retain(|poller| !with_row.contains(poller.application_name.as_str()));
    pollers
}

/// Makes an entry of each lock; a session with a ticket becomes one that waits for the ticket's key.
fn entries_of_rows(rows: Vec<LockRow>, names: &KeyNames) -> Vec<LockEntry> {
    let (tickets, locks): (Vec<LockRow>, Vec<LockRow>) =
        rows.into_iter().partition(|row| names.key_of_ticket(row.id).is_some());
    let mut entries: Vec<LockEntry> = locks.into_iter().map(|row| LockEntry::from_row(row, names)).collect();
    for ticket in tickets {
        // A session that waits for the ticket ahead of its own has a row of that one too.
        if !ticket.is_granted || ticket.mode != Mode::Exclusive {
            continue;
        }
        let (Some(base), KeyId::IntPair(_, number)) = (names.key_of_ticket(ticket.id), ticket.id) else {
            continue;
        };
        let pid = ticket.backend.pid;
        let is_own = |entry: &&mut LockEntry| entry.backend.pid == pid && entry.base == base;
        match entries.iter_mut().find(is_own) {
            // A new holder is about to release its ticket.
            Some(entry) if entry.state == LockState::Holding => {}
            Some(entry) => entry.state = LockState::Ticketed(number),
            None => {
                let waiting = LockRow {
                    id: base,
                    is_granted: false,
                    behind: Vec::new(),
                    ..ticket
                };
                entries.push(LockEntry {
                    mode: None,
                    state: LockState::Ticketed(number),
                    ..LockEntry::from_row(waiting, names)
                });
            }
        }
    }
    entries
}

/// Fills in whom the waiters without a row wait for: the one with the ticket ahead, or the holders of the key and its
/// slots.
fn fill_in_behind(entries: &mut [LockEntry]) {
    let sessions: Vec<(KeyId, LockState, Option<i32>)> = entries
        .iter()
        .map(|entry| (entry.base, entry.state, entry.backend.pid))
        .collect();
    for entry in entries {
        if entry.state == LockState::Holding || !entry.behind.is_empty() {
            continue;
        }
        let of_same_key = || sessions.iter().filter(|(base, ..)| *base == entry.base);
        let own_ticket = entry.state.ticket();
        let ahead = of_same_key().filter(|(_, state, _)| state.ticket().is_some() && state.ticket() < own_ticket);
        entry.behind = match ahead.max_by_key(|(_, state, _)| state.ticket()) {
            Some((.., pid)) => pid.iter().copied().collect(),
            None => {
                let holders = of_same_key().filter(|(_, state, _)| *state == LockState::Holding);
                holders.filter_map(|(.., pid)| *pid).collect()
            }
        };
    }
}

/// Marks the pglocks that have host name and process ID in common with another: in containers, both often have.
fn mark_ambiguous(entries: &mut [LockEntry]) {
    let mut instances: HashMap<(String, u32), HashSet<Option<String>>> = HashMap::new();
    for run in entries.iter().filter_map(|entry| entry.backend.run_name()) {
        let of_process = instances.entry((run.host.to_owned(), run.pid)).or_default();
        of_process.insert(run.instance.map(str::to_owned));
    }
    for entry in entries {
        let run = entry.backend.run_name();
        let of_process = run.and_then(|run| instances.get(&(run.host.to_owned(), run.pid)));
        entry.backend.is_ambiguous = of_process.is_some_and(|instances| instances.len() > 1);
    }
}

impl LockState {
    fn ticket(self) -> Option<i32> {
        match self {
            LockState::Ticketed(number) => Some(number),
            LockState::Holding | LockState::Queueing | LockState::Polling => None,
        }
    }
}

impl LockEntry {
    fn from_row(row: LockRow, names: &KeyNames) -> LockEntry {
        let meaning = names.meaning(row.id);
        let backend = row.backend;
        let is_pglock = backend.is_pglock();
        let has_slots = backend.run_name().is_some_and(|run| run.slots.is_some());
        let slot = meaning.slot.or(has_slots.then_some(0)).filter(|_| row.is_granted);
        let scope = match (row.is_granted, row.in_transaction) {
            (true, false) => Some(Scope::Session),
            // A pglock's transaction is open for its lock alone.
            (true, true) if is_pglock => Some(Scope::Transaction),
            (false, _) if is_pglock => Some(Scope::Session),
            _ => None,
        };
        let since = match (row.is_granted, is_pglock) {
            (true, _) => backend.since,
            // It leaves the queue and joins it again, but it connected in order to wait.
            (false, true) => backend.connected,
            (false, false) => row
                .waiting_since
                .map(|epoch| ServerTime::new(epoch, backend.read_epoch)),
        };
        LockEntry {
            id: row.id,
            base: meaning.base,
            key: meaning.key,
            slot,
            mode: Some(row.mode),
            scope,
            state: if row.is_granted {
                LockState::Holding
            } else {
                LockState::Queueing
            },
            since,
            behind: row.behind,
            // A waiter's last query did not acquire anything.
            backend: Backend {
                since: backend.since.filter(|_| row.is_granted),
                ..backend
            },
        }
    }

    /// Returns the entry of a pglock without a row: it waits for the first of its keys that has a known name, for the
    /// only known key that starts with its own, which was cut, or else for the first reading that has a number.
    fn for_poller(backend: Backend, names: &KeyNames, database: &str) -> Option<LockEntry> {
        let run_keys = backend.run_name()?.keys;
        let readings = Key::readings(run_keys);
        let readings = readings.iter().filter_map(|key| Some((key, key.id_in(database)?)));
        let readings: Vec<(&Key, KeyId)> = readings.collect();
        let named = readings.iter().find(|(_, id)| names.meaning(*id).key.is_some());
        let is_cut = name::is_cut(&backend.application_name);
        let cut = || names.only_key_starting_with(run_keys).filter(|_| is_cut);
        let (key, id) = named.copied().or_else(cut).or(readings.first().copied())?;
        // Behind a pooler, the session belongs to the pool: it did not connect for this client.
        let connected = backend.connected.filter(|_| backend.polling_seconds.is_none());
        Some(LockEntry {
            id,
            base: id,
            key: Some(key.clone()),
            slot: None,
            mode: None,
            scope: None,
            state: if backend.polling_seconds.is_some() {
                LockState::Polling
            } else {
                LockState::Queueing
            },
            since: connected,
            behind: Vec::new(),
            backend: Backend {
                connected,
                since: None,
                ..backend
            },
        })
    }

    /// Returns the key of the lock itself: of a waiter with a ticket, that of the ticket.
    pub(crate) fn lock_id(&self) -> KeyId {
        match self.state {
            LockState::Ticketed(number) => KeyId::IntPair(ticket_class(self.base), number),
            LockState::Holding | LockState::Queueing | LockState::Polling => self.id,
        }
    }

    /// Returns the number of slots that its pglock was given.
    pub(crate) fn slots(&self) -> Option<u16> {
        self.backend.run_name()?.slots
    }

    /// Returns the sort key: keys by name, then unnamed ones by number; holders by slot, then waiters by arrival.
    fn rank(&self) -> impl Ord + use<> {
        let name = self.key.as_ref().map(|key| key.given().to_owned());
        let since = self.since.or(self.backend.connected);
        (
            name.is_none(),
            name,
            self.base,
            self.state != LockState::Holding,
            self.slot,
            self.state,
            since.map(|time| (time.epoch * 1000.0) as i64),
            self.backend.pid,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKUP: KeyId = KeyId::Bigint(6111399565520850680);

    fn entry(pid: i32, state: LockState) -> LockEntry {
        LockEntry {
            id: BACKUP,
            base: BACKUP,
            key: None,
            slot: None,
            mode: None,
            scope: None,
            state,
            since: None,
            behind: Vec::new(),
            backend: Backend {
                pid: Some(pid),
                ..Backend::named(&format!("pglock:backup web1:{pid}"))
            },
        }
    }

    #[test]
    fn a_waiter_without_a_row_is_behind_the_ticket_ahead_or_the_holders() {
        let mut entries = [
            entry(1, LockState::Holding),
            entry(2, LockState::Holding),
            entry(3, LockState::Ticketed(30)),
            entry(4, LockState::Ticketed(40)),
            entry(5, LockState::Ticketed(50)),
            entry(6, LockState::Polling),
            LockEntry {
                behind: vec![9],
                ..entry(7, LockState::Queueing)
            },
            LockEntry {
                base: KeyId::Bigint(8),
                ..entry(8, LockState::Polling)
            },
        ];
        fill_in_behind(&mut entries);
        let behind = entries.map(|entry| entry.behind);
        let expected: [&[i32]; 8] = [&[], &[], &[1, 2], &[3], &[4], &[1, 2], &[9], &[]];
        assert_eq!(behind, expected);
    }

    #[test]
    fn a_ticket_makes_its_holder_a_waiter() {
        let mut names = KeyNames::default();
        names.learn(&Key::parse("backup").expect("a name"), BACKUP, 1);
        let row = |id, mode, is_granted, pid| LockRow {
            id,
            mode,
            is_granted,
            in_transaction: false,
            waiting_since: None,
            behind: Vec::new(),
            backend: entry(pid, LockState::Holding).backend,
        };
        let ticket = |number| KeyId::IntPair(ticket_class(BACKUP), number);
        let rows = vec![
            row(BACKUP, Mode::Exclusive, true, 1),
            row(ticket(10), Mode::Exclusive, true, 1),
            row(BACKUP, Mode::Exclusive, false, 2),
            row(ticket(20), Mode::Exclusive, true, 2),
            row(ticket(30), Mode::Exclusive, true, 3),
            row(ticket(20), Mode::Shared, false, 3),
        ];
        let entries = entries_of_rows(rows, &names);
        let states: Vec<_> = entries.iter().map(|entry| (entry.backend.pid, entry.state)).collect();
        let expected = [
            (Some(1), LockState::Holding),
            (Some(2), LockState::Ticketed(20)),
            (Some(3), LockState::Ticketed(30)),
        ];
        assert_eq!(states, expected);
        assert!(entries.iter().all(|entry| entry.base == BACKUP && entry.key.is_some()));
    }
}
