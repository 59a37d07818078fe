//! Before the lock is held: connecting, waiting, and leaving the server's queue.

use super::{Action, Event, Phase, RunState, is_stop, stop_self};
use crate::lock::Wait;
use crate::outcome::{ExitCode, Outcome};
use crate::run::signal_number::SignalNumber;
use crate::run::signals::SignalInfo;
use std::time::{Duration, Instant};

/// How long after the end of the wait the query that finds the holder may take.
const HOLDER_REPLY_GRACE: Duration = Duration::from_millis(250);
/// How long the session may take to leave the server's queue. After that pglock exits, and the server removes the
/// waiter within a second.
const QUEUE_LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

impl RunState {
    pub(super) fn handle_acquiring(&mut self, event: Event, now: Instant) -> Vec<Action> {
        let ends_wait = matches!(event, Event::Signal(info) if self.ends_wait(info));
        let Phase::Acquiring { connected } = &mut self.phase else {
            return Vec::new();
        };
        match event {
            Event::Connected => {
                *connected = true;
                Vec::new()
            }
            Event::Answered => {
                self.has_answered = true;
                Vec::new()
            }
            Event::Contended => {
                self.is_contended = true;
                Vec::new()
            }
            Event::Disconnected => {
                *connected = false;
                // A pause between two attempts needs no report, and each step of an attempt announces its own limit.
                self.report_due = None;
                self.overslept_due = None;
                Vec::new()
            }
            Event::Acquired => {
                self.min_hold_until = Some(now + self.policy.min_hold);
                self.phase = Phase::Starting;
                Vec::new()
            }
            Event::NotAcquired(outcome) => self.finish(outcome),
            // Of a lock that was given up before the job was started: the wait does not go on.
            Event::LockLost | Event::EvictionRequested => self.finish(Outcome::Failed(ExitCode::Unavailable)),
            Event::Signal(SignalInfo { signal, .. }) if ends_wait => {
                if !*connected {
                    return self.finish(Outcome::Interrupted(signal.as_raw()));
                }
                let until = now + QUEUE_LEAVE_TIMEOUT;
                self.phase = Phase::LeavingQueue { signal, until };
                vec![Action::CancelWait]
            }
            Event::Signal(info) if is_stop(info) => stop_self(),
            Event::Tick => self.check_wait(now),
            _ => Vec::new(),
        }
    }

    /// Ends a wait whose time is up, and the silence of a session that does not report.
    fn check_wait(&mut self, now: Instant) -> Vec<Action> {
        if self.wait_cutoff().is_some_and(|cutoff| now >= cutoff) {
            return self.give_up();
        }
        if self.is_report_overdue(now) {
            return self.end_silence(now);
        }
        Vec::new()
    }

    /// Ends the wait without the lock.
    fn give_up(&mut self) -> Vec<Action> {
        self.finish(if self.is_contended {
            Outcome::Conflict(self.policy.conflict_status)
        } else {
            Outcome::Failed(ExitCode::Unavailable)
        })
    }

    /// Before the job is started, gives up a connection that does not respond. The session's thread, which is blocked
    /// by it, then connects again. So a wait survives a server that does not respond, as it survives one that is away,
    /// and a machine that is too busy to let the thread report. What is no such wait ends.
    pub(super) fn end_silence(&mut self, now: Instant) -> Vec<Action> {
        let endures = match self.wait {
            Wait::Try => false,
            Wait::Until(_) => true,
            Wait::Indefinitely => self.has_answered,
        };
        if !endures {
            return self.give_up();
        }
        self.overslept_due = None;
        self.report_due = Some(now + self.policy.timing.heartbeat);
        vec![Action::AbandonConnection]
    }

    /// Goes on waiting for the lock, which was acquired, but must not be used.
    pub(super) fn await_lock_again(&mut self) {
        self.phase = Phase::Acquiring { connected: true };
    }

    pub(super) fn handle_leaving_queue(
        &mut self,
        signal: SignalNumber,
        until: Instant,
        event: Event,
        now: Instant,
    ) -> Vec<Action> {
        let outcome = Outcome::Interrupted(signal.as_raw());
        match event {
            // The server granted the lock before the cancellation arrived.
            Event::Acquired => self.release(outcome, now),
            Event::NotAcquired(_) | Event::LockLost => self.finish(outcome),
            Event::Signal(info) if self.ends_wait(info) => self.finish(outcome),
            Event::Tick if now >= until => self.finish(outcome),
            _ => Vec::new(),
        }
    }

    /// Returns when to stop waiting for the lock, including the time to find its holder.
    pub(super) fn wait_cutoff(&self) -> Option<Instant> {
        self.wait.deadline().map(|deadline| deadline + HOLDER_REPLY_GRACE)
    }
}
