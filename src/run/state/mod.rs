//! The decisions of a run: what to do about each event, from acquiring the lock to the exit.
//!
//! A pure state machine, `(state, event, now) -> actions`. It knows neither the job nor the session: the loop in
//! `supervisor` passes it each event and performs the actions. The machine keeps four promises, which are tested with
//! random sequences of events: no job starts without the lock; the lock is not released before the job is reaped; a
//! reaped job is not signalled; a lost lock ends in a dead job, unless the user chose to ignore the loss.
//!
//! *Stop* means job control (SIGTSTP and the like) here. A job that has to end is *terminated*.

mod event;
mod policy;
mod waiting;

pub(crate) use event::{Action, Event};
pub(crate) use policy::{OnLost, Policy, RECORD_TIMEOUT};

use crate::lock::Wait;
use crate::outcome::{ExitCode, Outcome};
use crate::run::signal_number::SignalNumber;
use crate::run::signals::SignalInfo;
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

/// How long to wait for the rest of a killed job after its leader has exited.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// How late the loop may notice a deadline. If it is later, pglock itself was stopped or starved of CPU time.
const OVERSLEEP_THRESHOLD: Duration = Duration::from_millis(100);
/// The time the session then gets, once, to report. It is well below the margin between pglock's limit and the
/// server's.
const OVERSLEEP_ALLOWANCE: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// Connecting, or waiting for the lock.
    Acquiring { connected: bool },
    /// A signal ended the wait; the session is leaving the queue.
    LeavingQueue { signal: SignalNumber, until: Instant },
    /// The lock is held; the job is about to start.
    Starting,
    /// The job runs.
    Running,
    /// The lock is lost, or another client evicts us; the job was sent SIGTERM.
    Terminating { leader_exited: bool, kill_at: Instant },
    /// The lock is lost, or another client evicts us; the job was sent SIGKILL.
    Killing { leader_exited_at: Option<Instant> },
    /// The job is reaped; the lock is held until the minimum hold time is over, for jobs shorter than the difference
    /// between the clocks of their hosts.
    KeepingLock { outcome: Outcome, until: Instant },
    /// The job is reaped; the lock is being released.
    Releasing { outcome: Outcome, until: Instant },
    /// No more actions follow.
    Finished,
}

/// The state of a run.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RunState {
    policy: Policy,
    /// How long to wait for the lock.
    wait: Wait,
    /// Another client was seen to hold the lock.
    is_contended: bool,
    /// The server has answered a query.
    has_answered: bool,
    phase: Phase,
    /// When the session's next report is due; `None` once it no longer matters.
    report_due: Option<Instant>,
    /// When the session's report was originally due, if pglock overslept that and [`OVERSLEEP_ALLOWANCE`] is running.
    overslept_due: Option<Instant>,
    /// The end of the minimum hold time.
    min_hold_until: Option<Instant>,
    /// A terminating signal arrived while the job ran, so the minimum hold time is skipped.
    got_terminating_signal: bool,
    /// The lock is lost, and the user chose to ignore that.
    is_unguarded: bool,
    /// Another client evicts us: the lock is held until the job is dead, and then released.
    is_evicted: bool,
    in_callers_group: bool,
    is_job_stopped: bool,
    /// The terminal or a client requested the job to stop, so pglock must stop as well once it has.
    stop_requested: bool,
    /// The job is stopped, and pglock has ignored that.
    is_stop_ignored: bool,
}

impl RunState {
    /// Creates the state at the start of a run.
    pub(crate) fn new(policy: Policy, wait: Wait) -> RunState {
        RunState {
            policy,
            wait,
            is_contended: false,
            has_answered: false,
            phase: Phase::Acquiring { connected: false },
            report_due: None,
            overslept_due: None,
            min_hold_until: None,
            got_terminating_signal: false,
            is_unguarded: false,
            is_evicted: false,
            in_callers_group: false,
            is_job_stopped: false,
            stop_requested: false,
            is_stop_ignored: false,
        }
    }

    /// Returns when [`Event::Tick`] is due if nothing else happens before.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Acquiring { .. } => earliest(self.report_due, self.wait_cutoff()),
            Phase::LeavingQueue { until, .. } | Phase::Releasing { until, .. } => Some(until),
            Phase::Starting | Phase::Running => self.report_due,
            Phase::KeepingLock { until, .. } => earliest(self.report_due, Some(until)),
            Phase::Terminating { kill_at, .. } => Some(kill_at),
            Phase::Killing { leader_exited_at } => leader_exited_at.map(|at| at + DRAIN_TIMEOUT),
            Phase::Finished => None,
        }
    }

    /// Returns whether the caller must process pending events once more and then start the job, to be reported with
    /// [`Event::JobStarted`] or [`Event::JobNotStarted`].
    pub(crate) fn is_starting(&self) -> bool {
        // If pglock overslept, the session must first find out whether it still holds the lock.
        matches!(self.phase, Phase::Starting) && self.overslept_due.is_none()
    }

    /// Returns whether the caller must check for remaining processes of the job, to report [`Event::GroupEmpty`].
    pub(crate) fn is_draining(&self) -> bool {
        match self.phase {
            Phase::Terminating { leader_exited, .. } => leader_exited,
            Phase::Killing { leader_exited_at } => leader_exited_at.is_some(),
            _ => false,
        }
    }

    /// Updates the state for an event and returns the actions to perform, in order.
    pub(crate) fn handle(&mut self, event: Event, now: Instant) -> Vec<Action> {
        match event {
            Event::Alive { next_due } => {
                if matches!(self.phase, Phase::Acquiring { .. }) || self.report_due.is_some() {
                    self.report_due = Some(next_due);
                    self.overslept_due = None;
                }
                return Vec::new();
            }
            Event::JobContinued => {
                self.is_job_stopped = false;
                self.is_stop_ignored = false;
                return Vec::new();
            }
            Event::JobStopped { .. } => self.is_job_stopped = true,
            _ => {}
        }
        match self.phase {
            Phase::Acquiring { .. } => self.handle_acquiring(event, now),
            Phase::LeavingQueue { signal, until } => self.handle_leaving_queue(signal, until, event, now),
            Phase::Starting => self.handle_starting(event, now),
            Phase::Running => self.handle_running(event, now),
            Phase::Terminating { leader_exited, kill_at } => {
                self.handle_terminating(leader_exited, kill_at, event, now)
            }
            Phase::Killing { leader_exited_at } => self.handle_killing(leader_exited_at, event, now),
            Phase::KeepingLock { outcome, until } => self.handle_keeping_lock(outcome, until, event, now),
            Phase::Releasing { outcome, until } => self.handle_releasing(outcome, until, event, now),
            Phase::Finished => Vec::new(),
        }
    }

    fn handle_starting(&mut self, event: Event, now: Instant) -> Vec<Action> {
        match event {
            Event::JobStarted { in_callers_group } => {
                self.in_callers_group = in_callers_group;
                self.phase = Phase::Running;
                Vec::new()
            }
            Event::JobNotStarted(code) => self.release(Outcome::Failed(code), now),
            // The signal arrived right before the start; there is no job to forward it to.
            Event::Signal(info) if self.ends_wait(info) => {
                self.release(Outcome::Interrupted(info.signal.as_raw()), now)
            }
            Event::Signal(info) if is_stop(info) => stop_self(),
            // No job has started, and none may start now.
            Event::Withdrawn => {
                self.await_lock_again();
                Vec::new()
            }
            Event::LockLost => self.finish(Outcome::Failed(ExitCode::Unavailable)),
            Event::EvictionRequested => self.release(Outcome::Failed(ExitCode::Unavailable), now),
            // The session's thread then finds the lock lost, and either takes it back or reports that.
            Event::Tick if self.is_report_overdue(now) => {
                self.await_lock_again();
                self.end_silence(now)
            }
            _ => Vec::new(),
        }
    }

    fn handle_running(&mut self, event: Event, now: Instant) -> Vec<Action> {
        match event {
            Event::Signal(info) => self.forward(info),
            Event::JobStopped { signal, by_terminal } => self.follow_stop(signal, by_terminal),
            Event::JobExited(reason) => {
                let mut actions = vec![Action::Reap];
                actions.extend(self.finish_job(Outcome::Job(reason), now));
                actions
            }
            Event::LockLost => self.lose_lock(now),
            Event::Tick if self.is_report_overdue(now) => self.lose_lock(now),
            // A lock that was only thought to be lost is released, since nothing needs it any more.
            Event::EvictionRequested if self.is_unguarded => vec![Action::Release],
            Event::EvictionRequested => self.give_way(now),
            _ => Vec::new(),
        }
    }

    /// Stops pglock with the job, so that the shell sees it, unless a process stopped only the job: that is no reason
    /// to stop its guard, which nobody would continue. No terminal sends SIGSTOP.
    fn follow_stop(&mut self, signal: i32, by_terminal: bool) -> Vec<Action> {
        let by_job_control = signal != Signal::SIGSTOP as i32 && (self.in_callers_group || by_terminal);
        self.is_stop_ignored = !by_job_control && !self.stop_requested;
        if self.is_stop_ignored {
            Vec::new()
        } else {
            vec![Action::StopSelf(signal)]
        }
    }

    /// Keeps, releases or writes off the lock after the job has exited.
    fn finish_job(&mut self, outcome: Outcome, now: Instant) -> Vec<Action> {
        if self.is_unguarded {
            return self.disconnect(outcome);
        }
        match self.min_hold_until {
            Some(until) if now < until && !self.got_terminating_signal => {
                self.phase = Phase::KeepingLock { outcome, until };
                Vec::new()
            }
            _ => self.release(outcome, now),
        }
    }

    /// Waits for the job to terminate. Signals from operators are still forwarded.
    fn handle_terminating(&mut self, leader_exited: bool, kill_at: Instant, event: Event, now: Instant) -> Vec<Action> {
        match event {
            Event::JobExited(_) => {
                let leader_exited = true;
                self.phase = Phase::Terminating { leader_exited, kill_at };
                Vec::new()
            }
            Event::Signal(info) if !leader_exited => self.forward(info),
            Event::JobStopped { .. } if !leader_exited => vec![Action::ContinueJob],
            Event::GroupEmpty if leader_exited => self.finish_drained(now),
            Event::LockLost => self.lose_lock_while_evicted(),
            Event::Tick if now >= kill_at => {
                let leader_exited_at = leader_exited.then_some(now);
                self.phase = Phase::Killing { leader_exited_at };
                vec![Action::SignalAll(Signal::SIGKILL)]
            }
            _ => Vec::new(),
        }
    }

    fn handle_killing(&mut self, leader_exited_at: Option<Instant>, event: Event, now: Instant) -> Vec<Action> {
        match (event, leader_exited_at) {
            (Event::JobExited(_), None) => {
                let leader_exited_at = Some(now);
                self.phase = Phase::Killing { leader_exited_at };
                Vec::new()
            }
            (Event::GroupEmpty, Some(_)) => self.finish_drained(now),
            (Event::LockLost, _) => self.lose_lock_while_evicted(),
            // The lock is still held, and stays so until the process has ended or the evictor terminates the session.
            (Event::GroupAlive, Some(_)) if self.is_evicted => {
                let leader_exited_at = Some(now);
                self.phase = Phase::Killing { leader_exited_at };
                Vec::new()
            }
            // A process that cannot be killed (it is another user's now) must not keep pglock waiting indefinitely.
            (Event::Tick, Some(at)) if now >= at + DRAIN_TIMEOUT => self.finish_drained(now),
            // Processes that were forked while the others were being killed.
            (Event::Tick, Some(_)) => vec![Action::SignalAll(Signal::SIGKILL)],
            _ => Vec::new(),
        }
    }

    /// Holds the lock for the minimum hold time. The job was guarded until it exited, so its status stands whatever
    /// happens to the lock now.
    fn handle_keeping_lock(&mut self, outcome: Outcome, until: Instant, event: Event, now: Instant) -> Vec<Action> {
        match event {
            Event::LockLost => self.disconnect(outcome),
            Event::EvictionRequested => self.release(outcome, now),
            Event::Signal(info) if self.ends_wait(info) => self.release(outcome, now),
            Event::Signal(info) if is_stop(info) => stop_self(),
            Event::Tick if now >= until => self.release(outcome, now),
            Event::Tick if self.is_report_overdue(now) => self.disconnect(outcome),
            _ => Vec::new(),
        }
    }

    fn handle_releasing(&mut self, outcome: Outcome, until: Instant, event: Event, now: Instant) -> Vec<Action> {
        match event {
            Event::Released { was_held: true } => self.finish(outcome),
            // The lock was not held any more when the job exited, or the server closed the session since the last
            // report: the job may not have run alone.
            Event::Released { was_held: false } | Event::LockLost | Event::Withdrawn => {
                match (outcome, self.policy.on_lost) {
                    (Outcome::Job(_), OnLost::Stop) => self.disconnect(Outcome::Failed(ExitCode::Lost)),
                    _ => self.disconnect(outcome),
                }
            }
            Event::Tick if now >= until => self.disconnect(outcome),
            _ => Vec::new(),
        }
    }

    /// Releases the lock, and finishes with the outcome once that is confirmed or takes too long.
    fn release(&mut self, outcome: Outcome, now: Instant) -> Vec<Action> {
        let until = now + self.policy.release_timeout();
        self.phase = Phase::Releasing { outcome, until };
        vec![Action::Release]
    }

    /// Finishes without a release: the lock is lost, or the server does not respond.
    fn disconnect(&mut self, outcome: Outcome) -> Vec<Action> {
        self.phase = Phase::Finished;
        vec![Action::Disconnect, Action::Finish(outcome)]
    }

    /// Finishes once no process of the job is left, or the wait for them is over. A lock that is still held is released
    /// only now.
    fn finish_drained(&mut self, now: Instant) -> Vec<Action> {
        let outcome = Outcome::Failed(ExitCode::Lost);
        let mut actions = vec![Action::Reap];
        actions.extend(if self.is_evicted {
            self.release(outcome, now)
        } else {
            self.disconnect(outcome)
        });
        actions
    }

    fn finish(&mut self, outcome: Outcome) -> Vec<Action> {
        self.phase = Phase::Finished;
        vec![Action::Finish(outcome)]
    }

    /// Reacts to a lock that was lost while the job runs.
    fn lose_lock(&mut self, now: Instant) -> Vec<Action> {
        // The grace period counts from when the report was due, however late pglock noticed.
        let due = self.overslept_due.or(self.report_due).unwrap_or(now);
        self.report_due = None;
        match self.policy.on_lost {
            OnLost::Ignore if self.is_unguarded => Vec::new(),
            OnLost::Ignore => {
                self.is_unguarded = true;
                vec![Action::ReportUnguarded]
            }
            OnLost::Stop => self.terminate(now.min(due + OVERSLEEP_ALLOWANCE)),
        }
    }

    /// Reacts to an eviction: terminates the job while the lock is still held, so that the next holder starts only when
    /// the job is dead. A job that the user wants to go on without its lock goes on.
    fn give_way(&mut self, now: Instant) -> Vec<Action> {
        match self.policy.on_lost {
            OnLost::Ignore => {
                self.is_unguarded = true;
                self.report_due = None;
                vec![Action::Release, Action::ReportUnguarded]
            }
            OnLost::Stop => {
                self.is_evicted = true;
                self.terminate(now)
            }
        }
    }

    /// Notes that the lock is lost before the evicted job is dead. The job is being terminated already, and its grace
    /// period has begun before any deadline of the loss.
    fn lose_lock_while_evicted(&mut self) -> Vec<Action> {
        self.is_evicted = false;
        self.report_due = None;
        Vec::new()
    }

    /// Begins to terminate the job, whose grace period counts from `began`.
    fn terminate(&mut self, began: Instant) -> Vec<Action> {
        let kill_at = began + self.policy.timing.kill_after;
        let leader_exited = false;
        self.phase = Phase::Terminating { leader_exited, kill_at };
        let mut actions = vec![Action::SignalAll(Signal::SIGTERM)];
        if self.is_job_stopped {
            // A stopped process does not handle SIGTERM before it is continued.
            actions.push(Action::ContinueJob);
        }
        actions
    }

    /// Forwards a signal to the job exactly as received, unless the job has it already: a job in the caller's process
    /// group gets the terminal's signals together with pglock.
    fn forward(&mut self, info: SignalInfo) -> Vec<Action> {
        self.got_terminating_signal |= is_terminating(info.signal) || self.is_stop_signal(info);
        match info.signal.named() {
            Some(Signal::SIGCHLD) => Vec::new(),
            Some(Signal::SIGCONT) => {
                self.stop_requested = false;
                if self.in_callers_group && !self.is_job_stopped {
                    // The shell's `fg` continues the whole group, including the job.
                    Vec::new()
                } else {
                    vec![Action::ContinueJob]
                }
            }
            Some(Signal::SIGTSTP) => {
                self.stop_requested = true;
                match (self.in_callers_group && info.from_terminal, self.is_stop_ignored) {
                    (false, _) => vec![Action::Forward(info.signal)],
                    (true, false) => Vec::new(),
                    // The job has stopped itself by SIGSTOP when it got Ctrl-Z, or was stopped before.
                    (true, true) => {
                        self.is_stop_ignored = false;
                        stop_self()
                    }
                }
            }
            _ if self.in_callers_group && info.from_terminal => Vec::new(),
            _ => vec![Action::Forward(info.signal)],
        }
    }

    /// Returns whether this signal ends pglock while there is no job.
    fn ends_wait(&self, info: SignalInfo) -> bool {
        ends_wait(info.signal) || self.is_stop_signal(info)
    }

    /// Returns whether this is the stop signal that the user named. The terminal's WINCH is not: it says that a window
    /// was resized.
    fn is_stop_signal(&self, info: SignalInfo) -> bool {
        self.policy.stop_signal == Some(info.signal) && !info.from_terminal
    }

    /// Returns whether the session failed to report in time.
    ///
    /// If pglock notices late, it was stopped or starved of CPU time, and so was the session's thread. The session then
    /// gets [`OVERSLEEP_ALLOWANCE`] once: its reply has arrived already, or takes one round trip.
    fn is_report_overdue(&mut self, now: Instant) -> bool {
        let Some(due) = self.report_due.filter(|due| now >= *due) else {
            return false;
        };
        if self.overslept_due.is_none() && now > due + OVERSLEEP_THRESHOLD {
            self.overslept_due = Some(due);
            self.report_due = Some(now + OVERSLEEP_ALLOWANCE);
            return false;
        }
        true
    }
}

fn earliest(first: Option<Instant>, second: Option<Instant>) -> Option<Instant> {
    first.into_iter().chain(second).min()
}

/// Returns whether an operator or a closing terminal sends this signal to end a run.
fn is_terminating(signal: SignalNumber) -> bool {
    matches!(
        signal.named(),
        Some(Signal::SIGINT | Signal::SIGTERM | Signal::SIGHUP | Signal::SIGQUIT)
    )
}

/// Returns whether this signal ends any program that does not handle it, and so pglock while there is no job. USR1 and
/// USR2 are for the job alone, as are those that have no effect by default; without a job they are ignored.
fn ends_wait(signal: SignalNumber) -> bool {
    match signal.named() {
        Some(Signal::SIGUSR1 | Signal::SIGUSR2 | Signal::SIGWINCH) => false,
        Some(Signal::SIGCHLD | Signal::SIGTSTP | Signal::SIGCONT) => false,
        // It ends a program on Linux only.
        Some(Signal::SIGIO) => cfg!(target_os = "linux"),
        _ => true,
    }
}

/// Returns whether this is Ctrl-Z's signal. While there is no job, it stops pglock alone.
fn is_stop(info: SignalInfo) -> bool {
    info.signal.named() == Some(Signal::SIGTSTP)
}

fn stop_self() -> Vec<Action> {
    vec![Action::StopSelf(Signal::SIGTSTP as i32)]
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
