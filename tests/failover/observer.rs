//! Watches the members of a cluster during a fault: when one is promoted, and when a pglock's session began there.
//!
//! A thread per member asks it every few milliseconds. Servers, jobs and tests share one clock.

use crate::cluster::{Cluster, Member};
use crate::support::journal::now;
use nix::unistd::Pid;
use postgres::Client;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// The pause between two looks at a member.
const LOOK_PAUSE: Duration = Duration::from_millis(10);

/// What was seen since the observer was started.
#[derive(Default)]
struct Sightings {
    /// When a standby was promoted, and the number of the member.
    promotions: Vec<(u128, usize)>,
    /// When the last session of a pglock, by its process id, began on a member.
    sessions: BTreeMap<(usize, i32), u128>,
}

/// Watches until it is dropped.
pub struct Observer {
    sightings: Arc<Mutex<Sightings>>,
    is_over: Arc<AtomicBool>,
}

impl Observer {
    pub fn start(cluster: &Arc<Cluster>) -> Observer {
        let observer = Observer {
            sightings: Arc::default(),
            is_over: Arc::default(),
        };
        for number in 0..cluster.members().len() {
            let (cluster, sightings, is_over) = (
                Arc::clone(cluster),
                Arc::clone(&observer.sightings),
                Arc::clone(&observer.is_over),
            );
            // Not joined: a member that is paused does not answer.
            thread::spawn(move || watch(&cluster.members()[number], number, &sightings, &is_over));
        }
        observer
    }

    /// Returns when the first member was promoted, and its number.
    pub fn promotion(&self) -> Option<(u128, usize)> {
        self.sightings.lock().unwrap().promotions.iter().min().copied()
    }

    /// Returns when the last session of this pglock began on this member.
    pub fn session(&self, member: usize, pglock: Pid) -> Option<u128> {
        let key = (member, pglock.as_raw());
        self.sightings.lock().unwrap().sessions.get(&key).copied()
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

fn watch(member: &Member, number: usize, sightings: &Mutex<Sightings>, is_over: &AtomicBool) {
    let mut client = None;
    let mut was_standby = false;
    while !is_over.load(Ordering::Relaxed) {
        if client.as_ref().is_none_or(Client::is_closed) {
            client = member.connect().ok();
        }
        if let Some(look) = client.as_mut().and_then(look) {
            let mut sightings = sightings.lock().unwrap();
            if was_standby && !look.is_standby {
                sightings.promotions.push((look.at, number));
            }
            was_standby = look.is_standby;
            for (pglock, began) in look.sessions {
                let last = sightings.sessions.entry((number, pglock)).or_default();
                *last = began.max(*last);
            }
        }
        thread::sleep(LOOK_PAUSE);
    }
}

/// What a member was seen to be.
struct Look {
    at: u128,
    is_standby: bool,
    /// The pglocks that have a session there, and since when.
    sessions: Vec<(i32, u128)>,
}

/// Returns what a member is; `None` if the session is lost.
fn look(client: &mut Client) -> Option<Look> {
    const SQL: &str = "SELECT pg_is_in_recovery(), substring(application_name from '[0-9]+$'), \
         (extract(epoch from backend_start) * 1000000000)::bigint FROM (VALUES (1)) AS one \
         LEFT JOIN pg_stat_activity ON application_name LIKE 'pglock:%'";
    let messages = client.simple_query(SQL).ok()?;
    let at = now();
    let rows = messages.iter().filter_map(|message| match message {
        postgres::SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let rows: Vec<_> = rows.collect();
    let sessions = rows.iter().filter_map(|row| {
        let (pglock, began) = (row.get(1)?, row.get(2)?);
        Some((pglock.parse().ok()?, began.parse().ok()?))
    });
    Some(Look {
        at,
        is_standby: rows.first()?.get(0)? == "t",
        sessions: sessions.collect(),
    })
}
