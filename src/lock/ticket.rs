//! A queue in order of arrival, made of nothing but locks.
//!
//! Each waiter holds a *ticket*: an int-pair lock whose first number is derived from the key, and whose second is the
//! server's clock on arrival. A waiter finds the ticket right before its own in `pg_locks` and waits until that one is
//! released; the head of the queue has none before it. A waiter that is killed loses its ticket with its session, and
//! the queue closes the gap.
//!
//! Slots need tickets because PostgreSQL can only wait for one lock: the head of the queue tries all slots again and
//! again, and no other waiter does. `--fair` needs them because waiting in slices rotates the server's own queue.

use super::query::{QueryResult, simple_query};
use super::queue::{QueueOutcome, WaitObserver, wait_in_queue};
use super::sql;
use super::types::{Mode, OnGrant, WaitOptions};
use crate::connection::Client;
use crate::key::KeyId;
use crate::outcome::{ExitCode, Failure};
use crate::protocol::derived_keys;
use std::time::Duration;

/// The ticket queue of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TicketQueue {
    class: i32,
}

/// A place in a ticket queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    class: i32,
    /// As `pg_locks` shows it: unsigned.
    number: u32,
}

/// Result of waiting to reach the head of a ticket queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// We are at the head, and hold this ticket.
    Reached(Ticket),
    /// The wait timed out before.
    TimedOut,
}

impl TicketQueue {
    /// Returns the queue of all clients that wait for this key.
    pub(crate) fn for_key(key: KeyId) -> TicketQueue {
        TicketQueue {
            class: derived_keys::ticket_class(key),
        }
    }

    /// Returns the first number of the tickets' keys.
    pub(super) fn class(self) -> i32 {
        self.class
    }

    /// Takes a ticket and waits until no other is before it.
    ///
    /// # Errors
    /// The wait was cancelled, the server has no plpgsql for us or reports another error, or the connection is lost.
    pub(crate) fn wait_for_turn(
        self,
        client: &mut Client,
        options: WaitOptions,
        observer: &mut impl WaitObserver,
    ) -> Result<Turn, Failure> {
        observer.before_query(Duration::ZERO);
        let ticket = self.take_ticket(client)?;
        loop {
            observer.before_query(Duration::ZERO);
            let Some(predecessor) = ticket.predecessor(client)? else {
                return Ok(Turn::Reached(ticket));
            };
            match wait_in_queue(client, predecessor, Mode::Shared, OnGrant::Release, options, observer)? {
                QueueOutcome::Acquired(_) => {}
                QueueOutcome::TimedOut => return Ok(Turn::TimedOut),
                QueueOutcome::NoQueue => return Err(Failure::msg(ExitCode::Config, NO_PLPGSQL)),
            }
        }
    }

    /// Takes a ticket behind all others.
    ///
    /// # Errors
    /// The server reports an error, or the connection is lost.
    fn take_ticket(self, client: &mut Client) -> Result<Ticket, postgres::Error> {
        let class = self.class;
        loop {
            let result = QueryResult::fetch(client, &sql::take_ticket(class))?;
            if result.is_true("acquired") {
                let number = result.number("number").unwrap_or_default() as u32;
                return Ok(Ticket { class, number });
            }
        }
    }
}

impl Ticket {
    /// Returns the key of the ticket right before this one; `None` at the head of the queue.
    ///
    /// # Errors
    /// The server reports an error, or the connection is lost.
    fn predecessor(self, client: &mut Client) -> Result<Option<KeyId>, postgres::Error> {
        let sql = sql::preceding_ticket(self.class, self.number);
        let number = QueryResult::fetch(client, &sql)?.number("before");
        Ok(number.map(|number| KeyId::IntPair(self.class, number as u32 as i32)))
    }

    /// Releases the ticket, which makes the next one the head of the queue.
    ///
    /// # Errors
    /// The server reports an error, or the connection is lost.
    pub(crate) fn release(self, client: &mut Client) -> Result<(), postgres::Error> {
        simple_query(client, &sql::release_ticket(self.class, self.number)).map(drop)
    }
}

const NO_PLPGSQL: &str = "waiting with --fair or --slots requires the language plpgsql, which this role may not use; \
     GRANT USAGE ON LANGUAGE plpgsql to it, or wait without --fair and --slots";
