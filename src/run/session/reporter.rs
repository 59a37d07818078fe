//! The session's end of the channel to the main thread.

use super::events::SessionEvent;
use super::timing::Timing;
use crate::run::signals::Waker;
use std::cell::Cell;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

/// Sends reports, and announces by when the next one is due.
pub(super) struct Reporter {
    sender: Sender<SessionEvent>,
    waker: Waker,
    timing: Timing,
    /// The last deadline that was announced.
    deadline: Cell<Option<Instant>>,
}

impl Reporter {
    pub(super) fn new(sender: Sender<SessionEvent>, waker: Waker, timing: Timing) -> Reporter {
        Reporter {
            sender,
            waker,
            timing,
            deadline: Cell::new(None),
        }
    }

    pub(super) fn report(&self, event: SessionEvent) {
        let needs_wakeup = self.needs_wakeup(&event);
        // On its way out, the main thread no longer receives.
        let _ = self.sender.send(event);
        if needs_wakeup {
            self.waker.wake();
        }
    }

    /// Announces that a step of connecting takes at most `limit`.
    pub(super) fn expect_within(&self, limit: Duration) {
        self.report(SessionEvent::Alive(Instant::now() + limit));
    }

    /// Announces a query to which the server replies within `max_reply_time`, give or take a busy server and the
    /// network.
    pub(super) fn expect_reply_within(&self, max_reply_time: Duration) {
        let deadline = self.timing.next_reply_deadline(Instant::now()) + max_reply_time;
        self.report(SessionEvent::Alive(deadline));
    }

    /// Announces the next heartbeat reply, now that a query sent at `query_sent` was answered.
    pub(super) fn expect_reply_after(&self, query_sent: Instant) {
        self.report(SessionEvent::Alive(self.timing.next_reply_deadline(query_sent)));
    }

    /// Returns whether the main thread must handle the event now. Whenever it wakes, it reads all reports first, so it
    /// need not be woken to learn that its deadline moved on, or of what only matters with a later event.
    fn needs_wakeup(&self, event: &SessionEvent) -> bool {
        match event {
            SessionEvent::Alive(deadline) => {
                let previous = self.deadline.replace(Some(*deadline));
                previous.is_none_or(|previous| previous > *deadline)
            }
            SessionEvent::Retrying(_) | SessionEvent::GivenUp => {
                // The main thread forgets the deadline, and must be woken for the next one.
                self.deadline.set(None);
                true
            }
            SessionEvent::Connected(_)
            | SessionEvent::Cancellable(_)
            | SessionEvent::Answered
            | SessionEvent::Contended => false,
            _ => true,
        }
    }
}

// A panic of the session's thread must not end the process that guards the job.
#[cfg(not(panic = "unwind"))]
compile_error!("a panic of the session's thread is reported while unwinding: see Cargo.toml");

impl Drop for Reporter {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.report(SessionEvent::Panicked);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn a_panic_of_the_sessions_thread_is_reported() {
        let (sender, events) = channel();
        let waker = Waker::new_disconnected().expect("a pair of sockets");
        let timing = Timing {
            heartbeat: Duration::from_secs(5),
            kill_after: Duration::from_secs(10),
        };
        let reporter = Reporter::new(sender, waker, timing);
        let thread = std::thread::spawn(move || {
            let _reporter = reporter;
            panic!("on purpose");
        });
        assert!(thread.join().is_err());
        assert!(matches!(events.try_recv(), Ok(SessionEvent::Panicked)));
        assert!(events.try_recv().is_err());
    }
}
