//! A line of waiters in the order in which they came, made of nothing but locks.
//!
//! Each waiter holds a *ticket*: the int-pair lock whose first number stands for the key, and whose second is the
//! server's clock when it came. It finds the ticket right before its own in `pg_locks`, and waits until that one is
//! given back; the first in line has none before it. A waiter that is killed loses its ticket with its session, and
//! the line closes up.
//!
//! Slots need a line because PostgreSQL can wait for one lock only: the first in line asks for all slots, again and
//! again, and nobody else does. `--fair` needs it because waiting in slices rotates the server's own queue.

use crate::key::KeyId;
use crate::lock::{IN_THIS_DATABASE, QueryResult, ask};
use crate::protocol::derived_keys;
use postgres::Client;

/// The line for one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TicketQueue {
    class: i32,
}

/// A place in a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    line: TicketQueue,
    /// As `pg_locks` shows it: not signed.
    number: u32,
}

impl TicketQueue {
    /// Returns the queue of all clients that want this key.
    pub fn for_key(key: KeyId) -> TicketQueue {
        TicketQueue {
            class: derived_keys::ticket_class(key),
        }
    }

    /// A condition: somebody stands in the line.
    pub fn is_occupied(self) -> String {
        format!("EXISTS ({})", self.tickets("1"))
    }

    /// Takes a ticket behind all others.
    pub fn join(self, client: &mut Client) -> Result<Ticket, postgres::Error> {
        // Hundredths of a second since 1970, cut to 31 bits: they begin anew every 248 days. A line that is never
        // empty then counts on in the upper half of the 32 bits.
        let clock = "(extract(epoch FROM pg_catalog.clock_timestamp()) * 100)::bigint % 2147483648";
        let last = self.tickets("pg_catalog.max(objid::bigint)");
        loop {
            // Two that come at once find the same number free; one of them gets it.
            let sql = format!(
                "SELECT number, pg_catalog.pg_try_advisory_lock('{}'::int, number::bit(32)::int) AS acquired FROM (\
                 SELECT CASE WHEN last >= clock THEN last + 1 ELSE clock END AS number \
                 FROM (SELECT {clock} AS clock, ({last}) AS last OFFSET 0) AS line OFFSET 0) AS ticket",
                self.class
            );
            let answer = QueryResult::to(client, &sql)?;
            if answer.is_true("acquired") {
                let number = answer.number("number").unwrap_or_default() as u32;
                return Ok(Ticket { line: self, number });
            }
        }
    }

    fn tickets(self, columns: &str) -> String {
        format!(
            "SELECT {columns} FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND objsubid = 2 \
             AND classid = {} AND granted AND mode = 'ExclusiveLock' AND {IN_THIS_DATABASE}",
            self.class as u32
        )
    }
}

impl Ticket {
    /// The ticket right before this one, as the key to wait for; `None` for the first in line.
    pub fn predecessor(self, client: &mut Client) -> Result<Option<KeyId>, postgres::Error> {
        let before = self.line.tickets("pg_catalog.max(objid::bigint) AS before");
        let sql = format!("{before} AND objid::bigint < {}", self.number);
        let before = QueryResult::to(client, &sql)?.number("before");
        Ok(before.map(|number| KeyId::IntPair(self.line.class, number as u32 as i32)))
    }

    /// Gives the ticket back: the next one is the first in line now.
    pub fn leave(self, client: &mut Client) -> Result<(), postgres::Error> {
        let (class, number) = (self.line.class, self.number as i32);
        let sql = format!("SELECT pg_catalog.pg_advisory_unlock('{class}'::int, '{number}'::int)");
        ask(client, &sql).map(drop)
    }
}
