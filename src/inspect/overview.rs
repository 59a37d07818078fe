//! All advisory locks of a database: who holds, who waits and behind whom, pglock's and anybody else's.
//!
//! A session's rows of `pg_locks` are folded into what they mean: a ticket of a line is a waiter of its key, and what it
//! waits for is whom it stands behind. A waiter that asks again and again has no row at all; its last message says that it
//! waits (see `lock::note`). Behind a pooler such a message is only seen until the next client is lent the session, so
//! then the server is looked at for a while.

use crate::inspect::backend::{Backend, Moment, columns, rows};
use crate::inspect::names::Names;
use crate::key::{self, Key, KeyId};
use crate::lock::{self, AT_ONCE, IN_THIS_DATABASE, Mode, Scope, ask, cell};
use crate::outcome::Failure;
use crate::protocol::derived_keys::{self, slot_keys};
use crate::protocol::query_tag::QUERY_TAG_PREFIX;
use postgres::{Client, SimpleQueryRow};
use std::collections::{BTreeMap, HashSet};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A lock that a session holds or waits for.
#[derive(Clone, Debug)]
pub struct LockEntry {
    /// The number.
    pub id: KeyId,
    /// The number of the key of which it is a slot, or the same.
    pub base: KeyId,
    /// What the key is called, where that is known.
    pub key: Option<Key>,
    /// Which slot it is, where there are several.
    pub slot: Option<usize>,
    /// The mode, where there is a row.
    pub mode: Option<Mode>,
    /// What the lock lives as long as, where that can be told.
    pub scope: Option<Scope>,
    /// Holding or waiting.
    pub state: LockState,
    /// Since when, where that is known.
    pub since: Option<Moment>,
    /// The processes of the server that are before it.
    pub behind: Vec<i32>,
    /// Who.
    pub backend: Backend,
}

/// What a session does with a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LockState {
    /// It holds it.
    Holding,
    /// It waits in the server's queue, or between two stays there.
    Queueing,
    /// It waits in line, with this ticket.
    InLine(i32),
    /// It waits, and asks again and again.
    Polling,
}

/// What there is in a database.
pub struct Overview {
    /// The database.
    pub database: String,
    /// Our role.
    pub role: String,
    /// The locks, holders first, those of a key together.
    pub entries: Vec<LockEntry>,
    /// The words for that there are none.
    pub nothing: String,
    /// There are sessions of which our role is not shown everything.
    pub is_partial: bool,
}

/// Looks at everything, or at these keys alone, with whatever slots and lines they have.
///
/// # Errors
/// The server is gone, or does not compute the number of a key.
pub fn look(client: &mut Client, only: &[Key]) -> Result<Overview, Failure> {
    let (database, role) = whereabouts(client)?;
    let mut names = Names::default();
    let bases = lock::numbers(client, only)?;
    for (key, id) in only.iter().zip(&bases) {
        names.learn(key, *id, derived_keys::MAX_SLOTS);
    }
    let locks = locks(client)?;
    let mut pollers = pollers(client)?;
    // One that has been in the queue a moment ago is only about to come back.
    let seen: HashSet<&str> = locks.iter().map(|it| it.backend.application_name.as_str()).collect();
    pollers.retain(|poller| !seen.contains(poller.application_name.as_str()));
    let present: HashSet<KeyId> = locks.iter().map(|lock| lock.id).collect();
    let backends: Vec<&Backend> = locks.iter().map(|lock| &lock.backend).chain(&pollers).collect();
    let is_partial = backends.iter().any(|backend| backend.is_hidden);
    learn_names(client, &mut names, &backends, &present, &database);
    let mut entries = fold(locks, &names);
    entries.extend(pollers.into_iter().flat_map(|it| polling(it, &names, &database)));
    stand_behind(&mut entries);
    entries.retain(|entry| bases.is_empty() || bases.contains(&entry.base));
    entries.sort_by(|a, b| a.rank().cmp(&b.rank()));
    let nothing = match only.is_empty() {
        true => "nothing is held or waited for".into(),
        false => format!("nobody holds or waits for {}", key::describe(only)),
    };
    Ok(Overview {
        database,
        role,
        entries,
        nothing,
        is_partial,
    })
}

/// The database that we are in, and our role.
fn whereabouts(client: &mut Client) -> Result<(String, String), postgres::Error> {
    let sql = format!("{AT_ONCE}SELECT pg_catalog.current_database() AS database, current_user AS role");
    let answer = lock::QueryResult::to(client, &sql)?;
    let text = |column| answer.get(column).unwrap_or_default().to_owned();
    Ok((text("database"), text("role")))
}

/// A row of `pg_locks`.
struct LockRow {
    id: KeyId,
    mode: Mode,
    is_granted: bool,
    /// The session has a transaction open.
    in_transaction: bool,
    waiting_since: Option<f64>,
    behind: Vec<i32>,
    backend: Backend,
}

/// All advisory locks of the database. Since when a lock is waited for is known to PostgreSQL 14 and later.
fn locks(client: &mut Client) -> Result<Vec<LockRow>, postgres::Error> {
    let sql = format!(
        "{AT_ONCE}WITH locks AS (SELECT * FROM pg_catalog.pg_locks) \
         SELECT l.pid, l.classid::bigint AS classid, l.objid::bigint AS objid, l.objsubid, l.mode, l.granted, \
         CASE WHEN NOT l.granted THEN extract(epoch FROM COALESCE(\
         (pg_catalog.to_jsonb(l) ->> 'waitstart')::timestamptz, a.query_start)) END AS waiting_since, \
         CASE WHEN NOT l.granted THEN pg_catalog.array_to_string(pg_catalog.pg_blocking_pids(l.pid), ' ') END \
         AS behind, l.pid IN (SELECT pid FROM locks WHERE locktype = 'virtualxid' AND granted \
         AND virtualxid = virtualtransaction) AS in_transaction, {} \
         FROM locks l LEFT JOIN pg_catalog.pg_stat_activity a USING (pid) \
         WHERE l.locktype = 'advisory' AND l.{IN_THIS_DATABASE} \
         AND l.pid IS DISTINCT FROM pg_catalog.pg_backend_pid()",
        columns()
    );
    let locks = rows(ask(client, &sql)?).filter_map(|row| LockRow::of(&row));
    Ok(locks.filter(|row| !derived_keys::is_eviction_mark(row.id)).collect())
}

impl LockRow {
    fn of(row: &SimpleQueryRow) -> Option<LockRow> {
        let get = |column| cell(row, column);
        let number = |column| get(column)?.parse::<u32>().ok();
        let text = |column| get(column).unwrap_or_default();
        Some(LockRow {
            id: KeyId::from_pg_locks(number("classid")?, number("objid")?, number("objsubid")?),
            mode: match text("mode") {
                "ShareLock" => Mode::Shared,
                _ => Mode::Exclusive,
            },
            is_granted: text("granted") == "t",
            in_transaction: text("in_transaction") == "t",
            waiting_since: get("waiting_since").and_then(|it| it.parse().ok()),
            behind: text("behind").split(' ').filter_map(|pid| pid.parse().ok()).collect(),
            backend: Backend::of_row(row),
        })
    }
}

/// Seconds, as a note has them, as a regular expression. Not more digits: what strangers write into a comment must be a
/// number and a time to the server, or everybody's look would end in an error.
const SECONDS: &str = "([0-9]{1,9}[.][0-9]{3})";

/// How long to look for those who ask again and again. Most ask at least once in this time.
const LOOK: Duration = Duration::from_millis(1200);
/// How often.
const OVERVIEW_TIMEOUT: Duration = Duration::from_millis(3);

/// The pglocks that wait without a row, each once: those seen at one glance, and if there are any, those seen within a
/// while.
fn pollers(client: &mut Client) -> Result<Vec<Backend>, postgres::Error> {
    let waits = format!("'^{}(?:waits|asks) {SECONDS} '", QUERY_TAG_PREFIX.replace('*', "[*]"));
    // One that has not asked again in time is gone, or has what it waited for.
    let sql = format!(
        "{AT_ONCE}SELECT pid, {} FROM pg_catalog.pg_stat_activity a WHERE a.datname = pg_catalog.current_database() \
         AND a.query ~ {waits} AND a.pid <> pg_catalog.pg_backend_pid() \
         AND a.state_change > pg_catalog.clock_timestamp() - pg_catalog.make_interval(\
         secs => 1 + pg_catalog.substring(a.query, {waits})::float8) \
         AND a.pid NOT IN (SELECT pid FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND pid IS NOT NULL)",
        columns()
    );
    let mut found: BTreeMap<String, Backend> = BTreeMap::new();
    let began = Instant::now();
    loop {
        for row in rows(ask(client, &sql)?) {
            let backend = Backend::of_row(&row);
            found.insert(backend.application_name.clone(), backend);
        }
        if !found.values().any(|backend| backend.asks) || began.elapsed() > LOOK {
            return Ok(found.into_values().collect());
        }
        sleep(OVERVIEW_TIMEOUT);
    }
}

/// Learns what the numbers stand for that are there, from those who hold or wait for them.
fn learn_names(
    client: &mut Client,
    names: &mut Names,
    backends: &[&Backend],
    present: &HashSet<KeyId>,
    database: &str,
) {
    let texts: HashSet<(&str, u16)> = backends
        .iter()
        .filter_map(|backend| backend.run_name())
        .map(|pglock| (pglock.keys, pglock.slots.unwrap_or(1)))
        .collect();
    let lines: HashSet<i32> = present.iter().filter_map(|id| id.class()).collect();
    for (keys, slots) in texts {
        let is_present = |id| present.contains(&id) || lines.contains(&derived_keys::ticket_class(id));
        if !names.learn_readings(keys, slots, database, is_present) {
            // Nothing is lost if the server cannot compute them: the number is shown.
            let computed = Key::readings(keys)
                .into_iter()
                .filter(|key| key.id_in(database).is_none());
            for key in computed {
                if let Ok(ids) = lock::numbers(client, std::slice::from_ref(&key))
                    && slot_keys(ids[0], slots).into_iter().any(is_present)
                {
                    names.learn(&key, ids[0], slots);
                }
            }
        }
    }
    present.iter().for_each(|id| names.learn_line(*id));
}

/// What the rows mean.
fn fold(rows: Vec<LockRow>, names: &Names) -> Vec<LockEntry> {
    let (tickets, locks): (Vec<LockRow>, Vec<LockRow>) =
        rows.into_iter().partition(|row| names.of_ticket(row.id).is_some());
    let mut entries: Vec<LockEntry> = locks.into_iter().map(|row| LockEntry::of(row, names)).collect();
    // Who waits for the ticket of another has a row of that too.
    let tickets = tickets
        .into_iter()
        .filter(|row| row.is_granted && row.mode == Mode::Exclusive);
    for ticket in tickets {
        let (Some(base), KeyId::IntPair(_, number)) = (names.of_ticket(ticket.id), ticket.id) else {
            continue;
        };
        let pid = ticket.backend.pid;
        let row = LockRow {
            id: base,
            is_granted: false,
            behind: Vec::new(),
            ..ticket
        };
        let is_own = |entry: &&mut LockEntry| entry.backend.pid == pid && entry.base == base;
        match entries.iter_mut().find(is_own) {
            // It is about to give the ticket back.
            Some(entry) if entry.state == LockState::Holding => {}
            Some(entry) => entry.state = LockState::InLine(number),
            None => entries.push(LockEntry {
                mode: None,
                state: LockState::InLine(number),
                ..LockEntry::of(row, names)
            }),
        }
    }
    entries
}

/// What a pglock waits for that has no row: the first key that it was given whose number is known, or would be by the
/// usual scheme.
fn polling(backend: Backend, names: &Names, database: &str) -> Option<LockEntry> {
    let readings = Key::readings(backend.run_name()?.keys);
    let ids = readings.iter().filter_map(|key| Some((key, key.id_in(database)?)));
    let ids: Vec<(&Key, KeyId)> = ids.collect();
    let known = ids.iter().find(|(_, id)| names.meaning(*id).key.is_some());
    let (key, id) = *known.or(ids.first())?;
    Some(LockEntry {
        id,
        base: id,
        key: Some(key.clone()),
        slot: None,
        mode: None,
        scope: None,
        state: match backend.asks {
            true => LockState::Polling,
            false => LockState::Queueing,
        },
        since: backend.connected.filter(|_| !backend.asks),
        behind: Vec::new(),
        // Behind a pooler, that of whoever opened the session of the pool.
        backend: Backend {
            connected: backend.connected.filter(|_| !backend.asks),
            since: None,
            ..backend
        },
    })
}

/// Whoever waits in line is behind the one before it, the first in line and whoever asks behind those who hold the key,
/// or a slot of it.
fn stand_behind(entries: &mut [LockEntry]) {
    let others: Vec<(KeyId, LockState, Option<i32>)> = entries
        .iter()
        .map(|entry| (entry.base, entry.state, entry.backend.pid))
        .collect();
    for entry in entries
        .iter_mut()
        .filter(|entry| entry.behind.is_empty() && entry.state != LockState::Holding)
    {
        let others = others.iter().filter(|(base, ..)| *base == entry.base);
        let place = |state| match state {
            LockState::InLine(place) => Some(place),
            _ => None,
        };
        let before = others
            .clone()
            .filter(|(_, state, _)| place(*state).is_some() && place(*state) < place(entry.state));
        entry.behind = match before.max_by_key(|(_, state, _)| place(*state)) {
            Some((.., pid)) => pid.iter().copied().collect(),
            None => others
                .filter(|(_, state, _)| *state == LockState::Holding)
                .filter_map(|(.., pid)| *pid)
                .collect(),
        };
    }
}

impl LockEntry {
    fn of(row: LockRow, names: &Names) -> LockEntry {
        let meaning = names.meaning(row.id);
        let backend = row.backend;
        let pglock = backend.run_name();
        let is_pglock = backend.is_pglock();
        let is_slot = pglock.and_then(|pglock| pglock.slots).is_some();
        let slot = meaning.slot.or(is_slot.then_some(0)).filter(|_| row.is_granted);
        LockEntry {
            id: row.id,
            base: meaning.base,
            key: meaning.key,
            slot,
            mode: Some(row.mode),
            scope: match (row.is_granted, row.in_transaction) {
                (true, false) => Some(Scope::Session),
                // Its transaction is there for the lock alone.
                (true, true) if is_pglock => Some(Scope::Transaction),
                (false, _) if is_pglock => Some(Scope::Session),
                _ => None,
            },
            state: match row.is_granted {
                true => LockState::Holding,
                false => LockState::Queueing,
            },
            since: match (row.is_granted, is_pglock) {
                (true, _) => backend.since,
                // It leaves the queue and joins it again; but it came for this.
                (false, true) => backend.connected,
                (false, false) => row.waiting_since.map(|epoch| backend.moment(epoch)),
            },
            behind: row.behind,
            // What a waiter did last was no acquiring.
            backend: Backend {
                since: backend.since.filter(|_| row.is_granted),
                ..backend
            },
        }
    }

    /// How many slots there are, as its pglock was told.
    pub fn slots(&self) -> Option<u16> {
        self.backend.run_name().and_then(|pglock| pglock.slots)
    }

    /// Keys by name, slots by number, holders first, waiters as they came.
    fn rank(&self) -> impl Ord {
        let name = self.key.as_ref().map(|key| key.given().to_owned());
        let since = self.since.or(self.backend.connected);
        (
            name.is_none(),
            name,
            self.base,
            self.state != LockState::Holding,
            self.slot,
            self.state,
            since.map(|moment| (moment.epoch * 1000.0) as i64),
            self.backend.pid,
        )
    }
}
