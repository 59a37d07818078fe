//! The session that holds the lock, on a thread of its own.
//!
//! Calls of the client library block and cannot be interrupted, so all of them happen on this thread; the main thread
//! only polls. Until the lock is released the thread alone owns the connection: acquiring, heartbeats and releasing
//! never race each other. After the release only closing is left, which the main thread does.
//!
//! The thread obeys one order ([`Session::release`]), is told how a recorded run ended, and reports what happens. Each
//! [`SessionEvent::Alive`] announces by when the next report is due; the main thread notices if it does not come.
//!
//! Until the job starts, a connection that fails is opened again (see `retry` and `claim`). Once it has started, it is
//! not: by then another client could hold the lock. What is opened after that loss only guards the end of the job (see
//! `guard`).

mod acquire;
mod claim;
mod connect;
mod events;
mod guard;
mod hold;
mod orders;
mod plan;
mod prepare;
mod recorder;
mod reporter;
mod request;
mod retry;
mod session_socket;
pub(crate) mod timing;
mod wait_observer;
mod worker;

pub(crate) use events::{Held, SessionEvent};
pub(crate) use orders::poll_timeout;
pub(crate) use plan::SessionPlan;
pub(crate) use session_socket::SessionSocket;

use crate::history::RunEnd;
use crate::run::signals::Waker;
use orders::Orders;
use reporter::Reporter;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;
use worker::Worker;

/// The main thread's handle of the session.
pub(crate) struct Session {
    events: Receiver<SessionEvent>,
    /// Closing it is the order to release. A byte says that the job's end has been sent.
    release_order: Option<UnixStream>,
    /// The end of a recorded run.
    job_end: Sender<RunEnd>,
}

impl Session {
    /// Starts to connect and to acquire the lock.
    ///
    /// # Errors
    /// The system has no descriptors or no thread left.
    pub(crate) fn start(plan: SessionPlan, waker: Waker) -> io::Result<Session> {
        let (release_order, order_receiver) = UnixStream::pair()?;
        let (sender, events) = channel();
        let (job_end, job_end_receiver) = channel();
        let reporter = Reporter::new(sender, waker, plan.options.policy.timing);
        // Announced before the main thread sleeps: the first announcement would wake it.
        if let Some(limit) = plan.settings.connect_timeout() {
            reporter.expect_within(limit);
        }
        let worker = Worker {
            plan,
            orders: Orders::new(order_receiver, job_end_receiver),
            reporter,
        };
        std::thread::Builder::new()
            .name("session".into())
            .spawn(move || worker.run())?;
        Ok(Session {
            events,
            release_order: Some(release_order),
            job_end,
        })
    }

    /// Returns the reports since the last call.
    pub(crate) fn events(&self) -> Vec<SessionEvent> {
        self.events.try_iter().collect()
    }

    /// Waits for the next report, until the deadline.
    pub(crate) fn next_event(&self, deadline: Instant) -> Option<SessionEvent> {
        let time_left = deadline.saturating_duration_since(Instant::now());
        self.events.recv_timeout(time_left).ok()
    }

    /// Has the thread record the end of the run, which was recorded when it began.
    pub(crate) fn record_end(&self, end: RunEnd) {
        // A thread that has ended with a panic records nothing.
        let _ = self.job_end.send(end);
        if let Some(mut order) = self.release_order.as_ref() {
            let _ = order.write_all(b"e");
        }
    }

    /// Orders the thread to release the lock, or to stop waiting for it.
    pub(crate) fn release(&mut self) {
        self.release_order = None;
    }

    /// Returns whether the order to release has been given.
    pub(crate) fn is_release_ordered(&self) -> bool {
        self.release_order.is_none()
    }
}
