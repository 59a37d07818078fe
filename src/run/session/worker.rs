//! The session's thread: connects, acquires, holds and releases the lock, and reports each step.

use super::acquire::{AcquireOutcome, AcquiredLock, Acquirer};
use super::connect;
use super::events::{Held, SessionEvent};
use super::guard::Guard;
use super::hold::Holder;
use super::orders::Orders;
use super::plan::SessionPlan;
use super::reporter::Reporter;
use crate::connection::{Canceller, Connection};
use crate::lock::Lock;
use crate::outcome::Failure;
use postgres::Client;
use std::os::fd::OwnedFd;
use std::sync::Arc;

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
    /// The lock was lost, which was reported already.
    Lost {
        lock: Lock,
        /// The backend that held it.
        backend_pid: i32,
        by_administrator: bool,
    },
    /// There was no lock, and the reason was reported already.
    NotAcquired,
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
            Ok(SessionEnd::Lost {
                lock,
                backend_pid,
                by_administrator,
            }) => {
                // What is left of the session must not hold any of the keys while they are acquired again.
                drop(client);
                let guard = Guard {
                    plan: &self.plan,
                    orders: &self.orders,
                    reporter: &self.reporter,
                    lock: &lock,
                    lost_backend_pid: backend_pid,
                };
                guard.stand(by_administrator);
            }
            Ok(SessionEnd::NotAcquired) => {}
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
                return Ok(SessionEnd::NotAcquired);
            }
        };
        let AcquiredLock {
            ids,
            lock,
            grant,
            is_direct,
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
        let holder = Holder {
            plan: &self.plan,
            orders: &self.orders,
            reporter: &self.reporter,
            lock: &lock,
            grant,
            is_direct,
            is_guard: false,
        };
        match holder.hold(client, socket.as_deref(), ticket) {
            Ok(was_held) => Ok(SessionEnd::Released { was_held }),
            Err(loss) => {
                self.reporter.report(SessionEvent::Lost(loss.why));
                let backend_pid = grant.backend_pid;
                let by_administrator = loss.by_administrator;
                Ok(SessionEnd::Lost {
                    lock,
                    backend_pid,
                    by_administrator,
                })
            }
        }
    }
}
