//! The session's thread: connects, acquires, holds and releases the lock, and reports each step.

use super::acquire::{AcquireOutcome, AcquiredLock, Acquirer};
use super::claim::Claim;
use super::connect;
use super::events::{Held, SessionEvent};
use super::guard::Guard;
use super::hold::{Holder, SessionLoss};
use super::orders::{Orders, interrupted};
use super::plan::SessionPlan;
use super::recorder::Recorder;
use super::reporter::Reporter;
use super::retry::{Retry, WaitMemory};
use super::session_socket::SessionSocket;
use crate::connection::{
    Canceller, Client, Connection, FULL_POOL, LimitEnforcement, is_of_closed_connection, shut_down_socket,
};
use crate::key;
use crate::lock::{Lock, Wait};
use crate::outcome::{ExitCode, Failure};
use std::sync::Arc;
use std::time::Duration;

/// How long to wait for the end of a session that has failed, before another one is opened: a server that lives replies
/// within this.
const END_LIMIT: Duration = Duration::from_millis(500);

/// What the thread works with.
pub(super) struct Worker {
    pub(super) plan: SessionPlan,
    pub(super) orders: Orders,
    pub(super) reporter: Reporter,
}

/// How the conversation with the server ended.
enum SessionEnd<'a> {
    /// The lock was released on the main thread's order.
    Released {
        was_held: bool,
        /// Has the end of the run, if it is still to be recorded, or that the lock was lost.
        recorder: Option<Recorder<'a>>,
    },
    /// The lock was lost, which was reported already.
    Lost {
        lock: Lock,
        /// The backend that held it.
        backend_pid: i32,
        by_administrator: bool,
        recorder: Option<Recorder<'a>>,
    },
    /// There was no lock, and the reason was reported already.
    NotAcquired,
    /// The wait goes on over another connection.
    GivenUp,
}

/// What follows a session.
enum Next {
    /// Nothing.
    End,
    /// The wait goes on over another connection.
    Reconnect,
}

impl Worker {
    /// Runs the session to its end. While nothing is held, a connection that fails is opened again (see `retry`).
    pub(super) fn run(self) {
        let retry = Retry {
            plan: &self.plan,
            orders: &self.orders,
            reporter: &self.reporter,
        };
        let mut memory = WaitMemory::new();
        // Closed after the report, because closing may block on the network.
        let mut failed_client = None;
        loop {
            match self.run_session(&mut memory, &mut failed_client) {
                Ok(Next::End) => return,
                Ok(Next::Reconnect) => {}
                Err(failure) => {
                    if let Err(failure) = retry.await_next_attempt(failure, &mut memory) {
                        return self.report_failure(failure, &memory);
                    }
                }
            }
        }
    }

    /// Reports why the lock was not acquired. If another client was seen to hold it and the time is up, that is a
    /// conflict.
    fn report_failure(&self, failure: Failure, memory: &WaitMemory) {
        let is_time_up = self.plan.wait.time_left() == Some(Duration::ZERO);
        if memory.was_contended() && is_time_up && failure.is_transient && self.plan.wait != Wait::Try {
            let keys = key::describe(&self.plan.options.keys);
            let message = format!("{keys} was held when the connection was lost: {failure}");
            return self.reporter.report(SessionEvent::Conflict(message));
        }
        self.reporter.report(SessionEvent::Failed(failure));
    }

    /// Runs one session: connects, acquires, holds and releases the lock.
    ///
    /// After a release the connection is handed to the main thread, which closes it.
    ///
    /// # Errors
    /// The lock was not acquired, and nothing is held. The connection, if there is one, is left in `failed_client`.
    fn run_session(&self, memory: &mut WaitMemory, failed_client: &mut Option<Client>) -> Result<Next, Failure> {
        *failed_client = None;
        let Connection {
            mut client,
            socket,
            canceller,
            ..
        } = {
            // Where the wait endures, a step that takes too long must fail rather than end pglock.
            let enforcement = if self.plan.endures(memory.has_answered) {
                LimitEnforcement::Attempt
            } else {
                LimitEnforcement::Observer
            };
            connect::connect(&self.plan, &self.reporter, enforcement)?
        };
        let socket = socket.map(SessionSocket::new).map(Arc::new);
        let end = match self.converse(&mut client, socket.clone(), canceller, memory) {
            Ok(end) => end,
            Err(failure) => {
                client.limit_end(socket.as_deref().map(SessionSocket::descriptor), END_LIMIT);
                *failed_client = Some(client);
                let is_abandoned = socket.is_some_and(|socket| socket.is_abandoned());
                if is_abandoned && is_of_closed_connection(&failure) {
                    return Err(silence(memory.is_direct()));
                }
                return Err(failure);
            }
        };
        match end {
            SessionEnd::Released { was_held, recorder } => {
                self.reporter.report(SessionEvent::Released {
                    was_held,
                    session: Box::new(client),
                });
                if let Some(recorder) = recorder {
                    recorder.complete_after_loss();
                }
            }
            SessionEnd::Lost {
                lock,
                backend_pid,
                by_administrator,
                recorder,
            } => {
                // What is left of the session must not hold any of the keys while they are acquired again, nor keep us
                // from that: its last reply may be unfinished.
                if let Some(socket) = socket {
                    shut_down_socket(socket.descriptor());
                }
                drop(client);
                let guard = Guard {
                    plan: &self.plan,
                    orders: &self.orders,
                    reporter: &self.reporter,
                    lock: &lock,
                    lost_backend_pid: backend_pid,
                };
                guard.stand(by_administrator);
                if let Some(recorder) = recorder {
                    recorder.complete_after_loss();
                }
            }
            SessionEnd::NotAcquired => {}
            SessionEnd::GivenUp => {
                self.reporter.report(SessionEvent::GivenUp);
                return Ok(Next::Reconnect);
            }
        }
        Ok(Next::End)
    }

    /// Acquires the lock, holds it until the order to release, and releases it.
    ///
    /// # Errors
    /// The lock could not be acquired, or was lost before the job was started.
    fn converse(
        &self,
        client: &mut Client,
        socket: Option<Arc<SessionSocket>>,
        canceller: Canceller,
        memory: &mut WaitMemory,
    ) -> Result<SessionEnd<'_>, Failure> {
        self.reporter.report(SessionEvent::Connected(socket.clone()));
        self.rest(memory.rest())?;
        let acquirer = Acquirer {
            plan: &self.plan,
            orders: &self.orders,
            reporter: &self.reporter,
            socket: socket.as_deref().map(SessionSocket::descriptor),
        };
        match acquirer.acquire(client, canceller, memory)? {
            AcquireOutcome::Acquired(acquired) => self.hold(client, socket, acquired, memory),
            AcquireOutcome::Conflict(message) => {
                self.reporter.report(SessionEvent::Conflict(message));
                Ok(SessionEnd::NotAcquired)
            }
            AcquireOutcome::NotDue(message) => {
                self.reporter.report(SessionEvent::NotDue(message));
                Ok(SessionEnd::NotAcquired)
            }
            AcquireOutcome::GivenUp => Ok(SessionEnd::GivenUp),
        }
    }

    /// Rests on a new connection that goes on with a wait. A pooler lends it a backend with its first query only, and a
    /// pooler that ends meanwhile is noticed by it.
    ///
    /// # Errors
    /// The order to release came.
    fn rest(&self, rest: Duration) -> Result<(), Failure> {
        if rest.is_zero() {
            return Ok(());
        }
        // No query is sent meanwhile, so no reply is due.
        self.reporter.expect_reply_within(rest);
        if self.orders.is_release_ordered_within(rest) {
            return Err(interrupted());
        }
        Ok(())
    }

    /// Reports the lock, and holds it until the order to release.
    ///
    /// # Errors
    /// The lock was lost before the job was started, and the wait goes on.
    fn hold(
        &self,
        client: &mut Client,
        socket: Option<Arc<SessionSocket>>,
        acquired: AcquiredLock,
        memory: &mut WaitMemory,
    ) -> Result<SessionEnd<'_>, Failure> {
        let AcquiredLock {
            ids,
            lock,
            grant,
            is_direct,
            ticket,
            token,
            run,
        } = acquired;
        let claim = Claim::default();
        let recorder = run.and_then(|run| Recorder::new(&self.plan, &self.orders, &self.reporter, run, claim.clone()));
        self.reporter.expect_reply_after(grant.query_sent);
        self.reporter.report(SessionEvent::Held(Held {
            claim: claim.clone(),
            ids,
            slot: self.plan.options.slots.map(|_| grant.key_index),
            token,
            is_recorded: recorder.is_some(),
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
            recorder: recorder.as_ref(),
            is_guard: false,
        };
        match holder.hold(client, socket.as_deref().map(SessionSocket::descriptor), ticket) {
            Ok(was_held) => Ok(SessionEnd::Released {
                was_held,
                recorder: recorder.filter(|recorder| !(was_held && recorder.is_complete())),
            }),
            Err(loss) => {
                let is_releasing = self.orders.is_release_ordered_within(Duration::ZERO);
                if !is_releasing && self.plan.endures(true) && claim.take() {
                    return Err(self.withdraw(loss, memory));
                }
                // During the minimum hold, a run that was complete before the loss stays as it is.
                let recorder = recorder.filter(|recorder| is_releasing || !recorder.is_complete());
                self.reporter.report(SessionEvent::Lost(loss.why));
                Ok(SessionEnd::Lost {
                    lock,
                    backend_pid: grant.backend_pid,
                    by_administrator: loss.by_administrator,
                    recorder,
                })
            }
        }
    }

    /// Takes a lock back that was reported, now that it is lost and no job can start under it any more. Returns the
    /// failure after which the wait goes on. The row of a recorded run is left to the next holder of the key.
    fn withdraw(&self, loss: SessionLoss, memory: &mut WaitMemory) -> Failure {
        memory.note_withdrawal();
        self.reporter.report(SessionEvent::Withdrawn);
        Failure::msg(ExitCode::Unavailable, loss.why).transient_if(true)
    }
}

/// Returns the failure of a session whose connection the main thread has abandoned.
fn silence(is_direct: bool) -> Failure {
    let hint = if is_direct {
        String::new()
    } else {
        format!(" ({FULL_POOL})")
    };
    Failure::msg(
        ExitCode::Unavailable,
        format_args!("the server stopped responding{hint}"),
    )
    .transient_if(true)
}
