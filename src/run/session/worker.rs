//! The session's thread: connects, acquires, holds and releases the lock, and reports each step.

use super::acquire::{AcquireOutcome, AcquiredLock, Acquirer};
use super::connect;
use super::events::{Held, SessionEvent};
use super::orders::{Orders, WakeReason};
use super::plan::SessionPlan;
use super::reporter::Reporter;
use crate::connection::{Canceller, Connection};
use crate::inspect::eviction;
use crate::lock::{self, Grant, Ticket};
use crate::outcome::Failure;
use crate::protocol::name;
use postgres::Client;
use postgres::error::SqlState;
use postgres::fallible_iterator::FallibleIterator;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the thread works with.
pub(super) struct Worker {
    pub(super) plan: SessionPlan,
    pub(super) orders: Orders,
    pub(super) reporter: Reporter,
}

/// How the conversation with the server ended.
enum SessionEnd {
    /// The lock was released on the main thread's order.
    Released { was_held: bool },
    /// The reason was reported already.
    Reported,
}

/// Why a session that held the lock ended.
struct SessionLoss {
    why: String,
    /// `pg_terminate_backend` ended it, or a shutdown of the server.
    by_administrator: bool,
}

impl Worker {
    /// Runs the session to its end.
    ///
    /// Sends every report before closing the connection, because closing may block on the network. After a release the
    /// connection is handed to the main thread, which closes it.
    pub(super) fn run(self) {
        let connection = match connect::connect(&self.plan, &self.reporter) {
            Ok(connection) => connection,
            Err(failure) => return self.reporter.report(SessionEvent::Failed(failure)),
        };
        let Connection {
            mut client,
            socket,
            canceller,
        } = connection;
        match self.converse(&mut client, socket, canceller) {
            Ok(SessionEnd::Released { was_held }) => self.reporter.report(SessionEvent::Released {
                was_held,
                session: Box::new(client),
            }),
            Ok(SessionEnd::Reported) => {}
            Err(failure) => self.reporter.report(SessionEvent::Failed(failure)),
        }
    }

    /// Acquires the lock, holds it until the order to release, and releases it.
    ///
    /// # Errors
    /// The lock could not be acquired.
    fn converse(
        &self,
        client: &mut Client,
        socket: Option<OwnedFd>,
        canceller: Canceller,
    ) -> Result<SessionEnd, Failure> {
        self.reporter.report(SessionEvent::Connected);
        let acquirer = Acquirer {
            plan: &self.plan,
            orders: &self.orders,
            reporter: &self.reporter,
        };
        let acquired = match acquirer.acquire(client, canceller)? {
            AcquireOutcome::Acquired(acquired) => acquired,
            AcquireOutcome::Conflict(message) => {
                self.reporter.report(SessionEvent::Conflict(message));
                return Ok(SessionEnd::Reported);
            }
        };
        let AcquiredLock {
            ids,
            lock,
            grant,
            ticket,
            token,
        } = acquired;
        let socket = socket.map(Arc::new);
        self.reporter.expect_reply_after(grant.query_sent);
        self.reporter.report(SessionEvent::Held(Held {
            ids,
            slot: self.plan.options.slots.map(|_| grant.key_index),
            token,
            backend_pid: grant.backend_pid,
            socket: socket.clone(),
        }));
        if let Err(loss) = self.hold(client, socket.as_deref(), grant, ticket) {
            self.report_loss(loss, grant.backend_pid);
            return Ok(SessionEnd::Reported);
        }
        match lock.release(client) {
            Ok(was_held) => Ok(SessionEnd::Released { was_held }),
            Err(error) => {
                // It may have been lost at any time since the last heartbeat.
                let why = Failure::from(error).to_string();
                self.reporter.report(SessionEvent::Lost(why));
                Ok(SessionEnd::Reported)
            }
        }
    }

    /// Watches over the session until the order to release.
    ///
    /// # Errors
    /// The session is lost.
    fn hold(
        &self,
        client: &mut Client,
        socket: Option<&OwnedFd>,
        grant: Grant,
        ticket: Option<Ticket>,
    ) -> Result<(), SessionLoss> {
        let heartbeat_interval = self.plan.options.policy.timing.heartbeat;
        let held_since = Instant::now();
        let mut last_sent = grant.query_sent;
        if let Some(ticket) = ticket {
            ticket.release(client)?;
        }
        loop {
            match self.orders.sleep(socket, last_sent + heartbeat_interval) {
                WakeReason::ReleaseOrdered => return Ok(()),
                WakeReason::SocketReadable => read_unsolicited(client)?,
                WakeReason::HeartbeatDue => {
                    last_sent = Instant::now();
                    lock::heartbeat(client, last_sent.duration_since(held_since))?;
                    self.reporter.expect_reply_after(last_sent);
                }
            }
        }
    }

    /// Reports the loss at once and then, if it was an eviction, by whom.
    fn report_loss(&self, loss: SessionLoss, backend_pid: i32) {
        self.reporter.report(SessionEvent::Lost(loss.why));
        if loss.by_administrator
            && let Some(evictor) = self.find_evictor(backend_pid)
        {
            self.reporter.report(SessionEvent::Evicted(evictor));
        }
    }

    /// Returns who evicted the session with this backend. Opens another connection for it, while the main thread
    /// terminates the job.
    fn find_evictor(&self, backend_pid: i32) -> Option<String> {
        let application_name = name::for_evicted();
        let mut connection = self.plan.settings.open(&application_name, None).ok()?;
        eviction::by_whom(&mut connection.client, backend_pid).ok()?
    }
}

/// Reads what the server sent without being asked. When an idle session becomes readable, it has most often been ended.
///
/// # Errors
/// The session is lost.
fn read_unsolicited(client: &mut Client) -> Result<(), SessionLoss> {
    // Only errors matter, not the notifications.
    let read = client.notifications().timeout_iter(Duration::from_millis(1)).count();
    read?;
    if client.is_closed() {
        return Err(SessionLoss {
            why: "the server closed the connection unexpectedly".into(),
            by_administrator: false,
        });
    }
    Ok(())
}

impl From<postgres::Error> for SessionLoss {
    fn from(error: postgres::Error) -> SessionLoss {
        SessionLoss {
            by_administrator: error.code() == Some(&SqlState::ADMIN_SHUTDOWN),
            why: Failure::from(error).to_string(),
        }
    }
}
