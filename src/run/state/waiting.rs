//! Before the lock is held: connecting, waiting, and leaving the server's queue.

use super::{Action, Event, Phase, RunState, is_stop, stop_self};
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
        let Phase::Acquiring {
            connected,
            contended,
            abandoned,
        } = &mut self.phase
        else {
            return Vec::new();
        };
        match event {
            Event::Connected => {
                *connected = true;
                Vec::new()
            }
            Event::Contended => {
                *contended = true;
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
            Event::Signal(SignalInfo { signal, .. }) if ends_wait => {
                if !*connected {
                    return self.finish(Outcome::Interrupted(signal.as_raw()));
                }
                let until = now + QUEUE_LEAVE_TIMEOUT;
                self.phase = Phase::LeavingQueue { signal, until };
                vec![Action::CancelWait]
            }
            Event::Signal(info) if is_stop(info) => stop_self(),
            Event::Tick => {
                let (contended, abandoned) = (*contended, *abandoned);
                self.check_wait(contended, abandoned, now)
            }
            _ => Vec::new(),
        }
    }

    /// Ends a wait whose time is up, and a session that does not report.
    fn check_wait(&mut self, contended: bool, abandoned: bool, now: Instant) -> Vec<Action> {
        if self.wait_cutoff().is_some_and(|cutoff| now >= cutoff) {
            return self.finish(if contended {
                Outcome::Conflict(self.policy.conflict_status)
            } else {
                Outcome::Failed(ExitCode::Unavailable)
            });
        }
        if !self.is_report_overdue(now) {
            return Vec::new();
        }
        // A wait with a limit survives a server that does not respond, as it survives one that is away.
        if (contended || self.wait_deadline.is_some()) && !abandoned {
            return self.abandon_connection(now);
        }
        self.finish(Outcome::Failed(ExitCode::Unavailable))
    }

    /// Goes on waiting, because the lock is lost before the job was started: with it, another client may have lost it,
    /// whose job still runs.
    pub(super) fn await_lock_again(&mut self) -> Vec<Action> {
        self.phase = Phase::Acquiring {
            connected: true,
            contended: true,
            abandoned: false,
        };
        Vec::new()
    }

    /// Gives up a connection that does not respond while nothing is held. The session's thread, which is blocked by it,
    /// then connects again.
    fn abandon_connection(&mut self, now: Instant) -> Vec<Action> {
        if let Phase::Acquiring { abandoned, .. } = &mut self.phase {
            *abandoned = true;
        }
        self.overslept_due = None;
        self.report_due = Some(now + self.policy.timing.heartbeat);
        vec![Action::AbandonConnection]
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
        self.wait_deadline.map(|deadline| deadline + HOLDER_REPLY_GRACE)
    }
}
