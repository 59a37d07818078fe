//! The decisions: what is done about each thing that can happen, from acquiring the lock to the end.
//!
//! A pure state machine, `(state, event, now) -> actions`. It knows neither the job nor the session; the loop in
//! `supervise` tells it what happened and does what it says. Four promises are kept here, and tested over
//! random sequences of events: no job begins without the lock; the lock is never given back before the job is reaped; a
//! reaped job is never signalled; a lost lock ends in a dead job, unless the user said to ignore it.

use crate::outcome::{ExitCode, ExitReason, Outcome};
use crate::run::session::timing::Timing;
use crate::run::signals::SignalInfo;
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A signal came.
    Arrived(SignalInfo),
    /// The session can be interrupted from now on.
    Connected,
    /// The session lives, and must say so again by this moment.
    Alive(Instant),
    /// The lock is ours.
    Held,
    /// The lock cannot be had.
    NotHeld(Outcome),
    /// The job has been started, in the caller's process group or in its own.
    Started { callers_group: bool },
    /// The job could not be started.
    NotStarted(ExitCode),
    /// The job has ended, and waits to be reaped.
    Ended(ExitReason),
    /// The job was stopped by this signal; its terminal did that, or somebody with kill(2).
    Stopped { signal: i32, by_terminal: bool },
    /// The job goes on.
    Continued,
    /// While the job is being stopped: this process has looked, and nothing of the job lives any more.
    GroupEmpty,
    /// The session is gone, and the lock with it.
    Lost,
    /// The lock is given back; it had been ours until then, or not.
    Released { was_held: bool },
    /// Time has passed.
    Tick,
}

/// What is to be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Interrupt the session's wait.
    Cancel,
    /// Pass a signal on to the job.
    Forward(Signal),
    /// Signal all of the job, descendants too.
    SignalAll(Signal),
    /// Continue the stopped job.
    Resume,
    /// Stop this process, by the signal that stopped the job, for the shell to see.
    StopSelf(i32),
    /// Take note of the job's end. It must not be signalled afterwards.
    Reap,
    /// Give the lock back.
    Release,
    /// Cut the connection, since the lock could not be given back in time.
    Cut,
    /// Say that the lock is lost and the job goes on.
    SayUnguarded,
    /// End like this.
    Finish(Outcome),
}

/// What to do with the job when the lock is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnLost {
    /// Stop it.
    #[default]
    Stop,
    /// Let it run to its end, unguarded.
    Ignore,
}

/// The limits of time, and the choices of the user.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// What the conflict is told with.
    pub conflict_status: u8,
    /// What to do with the job when the lock is lost.
    pub on_lost: OnLost,
    /// How long to keep the lock at least, counted from when it was acquired.
    pub min_hold: Duration,
    /// Heartbeat and grace; the server may take as long to answer a release as a heartbeat.
    pub timing: Timing,
}

/// For an answer that says who holds the lock to arrive after the wait is over.
const HOLDER_REPLY_GRACE: Duration = Duration::from_millis(250);
/// How long the session may take to leave the server's queue. After it, the end of the process does the same, and the
/// server notices that a second later.
const QUEUE_LEAVE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long what is left of a killed job is waited for after its leader has ended.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// How long after a deadline the loop may look at it: later, this process itself was stopped or starved.
const OVERSLEEP_THRESHOLD: Duration = Duration::from_millis(100);
/// What the session then gets, once, to find out how things are. It is part of the margin that the server's limit has
/// over ours, and well below it.
const OVERSLEEP_ALLOWANCE: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Connecting, or waiting for the lock.
    Acquiring { connected: bool },
    /// This signal ended the wait; the session leaves the queue.
    Leaving { signal: Signal, until: Instant },
    /// The lock is ours and the job is to be started.
    Starting,
    /// The job runs.
    Running,
    /// The lock is lost, and the job is being stopped.
    Stopping { ended: bool, kill_at: Instant },
    /// The lock is lost, and the job has been killed.
    Killing { ended: Option<Instant> },
    /// The job is reaped; the lock is kept until then, for jobs that are shorter than the clocks of their hosts differ.
    Keeping { outcome: Outcome, until: Instant },
    /// The job is reaped; the lock is being given back.
    Releasing { outcome: Outcome, until: Instant },
    /// Nothing more happens.
    Finished,
}

/// Where a run is.
#[derive(Clone, Debug)]
pub struct RunState {
    policy: Policy,
    /// By when the lock must have been acquired.
    wait_until: Option<Instant>,
    phase: Phase,
    /// By when the session must report; `None` once it does not matter any more.
    silent_at: Option<Instant>,
    /// The session was due by then, has been given [`OVERSLEEP_ALLOWANCE`] for a while that we slept, and has not reported since.
    allowed_since: Option<Instant>,
    /// Until when to keep the lock at least.
    keep_until: Option<Instant>,
    /// A signal that ends things came while the job ran: the lock is not kept for its own sake then.
    told_to_end: bool,
    /// The lock is lost, and the user said to ignore it.
    unguarded: bool,
    callers_group: bool,
    job_stopped: bool,
    /// We have passed a stop signal on, and owe our caller to be stopped as well.
    stop_forwarded: bool,
}

impl RunState {
    /// Before anything has happened.
    pub fn new(policy: Policy, wait_until: Option<Instant>) -> RunState {
        RunState {
            policy,
            wait_until,
            phase: Phase::Acquiring { connected: false },
            silent_at: None,
            allowed_since: None,
            keep_until: None,
            told_to_end: false,
            unguarded: false,
            callers_group: false,
            job_stopped: false,
            stop_forwarded: false,
        }
    }

    /// When [`Event::Tick`] is due, if nothing happens before.
    pub fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Acquiring { .. } => {
                let over = self.wait_until.map(|end| end + HOLDER_REPLY_GRACE);
                self.silent_at.into_iter().chain(over).min()
            }
            Phase::Leaving { until, .. } | Phase::Releasing { until, .. } => Some(until),
            Phase::Starting | Phase::Running => self.silent_at,
            Phase::Keeping { until, .. } => self.silent_at.into_iter().chain([until]).min(),
            Phase::Stopping { kill_at, .. } => Some(kill_at),
            Phase::Killing { ended } => ended.map(|at| at + DRAIN_TIMEOUT),
            Phase::Finished => None,
        }
    }

    /// Whether to start the job, after another look at what has happened, and tell [`Event::Started`] or
    /// [`Event::NotStarted`].
    pub fn is_starting(&self) -> bool {
        // After a sleep of ours the session has to find out first whether the lock is still there.
        matches!(self.phase, Phase::Starting) && self.allowed_since.is_none()
    }

    /// Whether to look for what is left of the job, and tell [`Event::GroupEmpty`].
    pub fn is_draining(&self) -> bool {
        matches!(
            self.phase,
            Phase::Stopping { ended: true, .. } | Phase::Killing { ended: Some(_) }
        )
    }

    /// Decides.
    pub fn step(&mut self, event: Event, now: Instant) -> Vec<Action> {
        match event {
            Event::Alive(until) => {
                if self.silent_at.is_some() || matches!(self.phase, Phase::Acquiring { .. }) {
                    self.silent_at = Some(until);
                    self.allowed_since = None;
                }
                Vec::new()
            }
            Event::Stopped { .. } => {
                self.job_stopped = true;
                self.dispatch(event, now)
            }
            Event::Continued => {
                self.job_stopped = false;
                Vec::new()
            }
            _ => self.dispatch(event, now),
        }
    }

    fn dispatch(&mut self, event: Event, now: Instant) -> Vec<Action> {
        match self.phase {
            Phase::Acquiring { connected } => self.acquiring(connected, event, now),
            Phase::Leaving { signal, until } => self.leaving(signal, until, event, now),
            Phase::Starting => self.starting(event, now),
            Phase::Running => self.running(event, now),
            Phase::Stopping { ended, kill_at } => self.stopping(ended, kill_at, event, now),
            Phase::Killing { ended } => self.killing(ended, event, now),
            Phase::Keeping { outcome, until } => self.keeping(outcome, until, event, now),
            Phase::Releasing { outcome, until } => self.releasing(outcome, until, event, now),
            Phase::Finished => Vec::new(),
        }
    }

    fn acquiring(&mut self, connected: bool, event: Event, now: Instant) -> Vec<Action> {
        match event {
            Event::Connected => {
                self.phase = Phase::Acquiring { connected: true };
                Vec::new()
            }
            Event::Held => {
                self.keep_until = Some(now + self.policy.min_hold);
                self.phase = Phase::Starting;
                Vec::new()
            }
            Event::NotHeld(outcome) => self.finish(outcome),
            Event::Arrived(SignalInfo { signal, .. }) if ends_a_wait(signal) => match connected {
                true => {
                    self.phase = Phase::Leaving {
                        signal,
                        until: now + QUEUE_LEAVE_TIMEOUT,
                    };
                    vec![Action::Cancel]
                }
                false => self.finish(Outcome::Interrupted(signal as i32)),
            },
            Event::Arrived(arrival) if stops(arrival) => stop_self(),
            Event::Tick => {
                let end = self.wait_until.map(|end| end + HOLDER_REPLY_GRACE);
                let waited = end.is_some_and(|end| now >= end);
                match () {
                    _ if waited && connected => self.finish(Outcome::Conflict(self.policy.conflict_status)),
                    _ if waited => self.finish(Outcome::Failed(ExitCode::Unavailable)),
                    _ if self.is_silent(now) => self.finish(Outcome::Failed(ExitCode::Unavailable)),
                    _ => Vec::new(),
                }
            }
            _ => Vec::new(),
        }
    }

    fn leaving(&mut self, signal: Signal, until: Instant, event: Event, now: Instant) -> Vec<Action> {
        let outcome = Outcome::Interrupted(signal as i32);
        match event {
            // The grant came before the interruption.
            Event::Held => self.release(outcome, now),
            Event::NotHeld(_) | Event::Lost => self.finish(outcome),
            Event::Arrived(SignalInfo { signal, .. }) if ends_a_wait(signal) => self.finish(outcome),
            Event::Tick if now >= until => self.finish(outcome),
            _ => Vec::new(),
        }
    }

    fn starting(&mut self, event: Event, now: Instant) -> Vec<Action> {
        match event {
            Event::Started { callers_group } => {
                self.callers_group = callers_group;
                self.phase = Phase::Running;
                Vec::new()
            }
            Event::NotStarted(code) => self.release(Outcome::Failed(code), now),
            // It came right before the job could be started; there is no job to pass it on to.
            Event::Arrived(SignalInfo { signal, .. }) if ends_a_wait(signal) => {
                self.release(Outcome::Interrupted(signal as i32), now)
            }
            Event::Arrived(arrival) if stops(arrival) => stop_self(),
            // Nothing has run, and nothing may.
            Event::Lost => self.finish(Outcome::Failed(ExitCode::Unavailable)),
            Event::Tick if self.is_silent(now) => self.finish(Outcome::Failed(ExitCode::Unavailable)),
            _ => Vec::new(),
        }
    }

    fn running(&mut self, event: Event, now: Instant) -> Vec<Action> {
        match event {
            Event::Arrived(arrival) => self.forward(arrival),
            // Somebody who stops the job alone, away from any shell, does not mean its guard.
            Event::Stopped { signal, by_terminal } => match self.callers_group || self.stop_forwarded || by_terminal {
                true => vec![Action::StopSelf(signal)],
                false => Vec::new(),
            },
            Event::Ended(end) => {
                let outcome = Outcome::Job(end);
                let actions = match self.keep_until {
                    _ if self.unguarded => self.cut(outcome),
                    Some(until) if now < until && !self.told_to_end => {
                        self.phase = Phase::Keeping { outcome, until };
                        Vec::new()
                    }
                    _ => self.release(outcome, now),
                };
                [vec![Action::Reap], actions].concat()
            }
            Event::Lost => self.lost(now),
            Event::Tick if self.is_silent(now) => self.lost(now),
            _ => Vec::new(),
        }
    }

    /// While the job is stopped because the lock is lost, what operators send is still passed on.
    fn stopping(&mut self, ended: bool, kill_at: Instant, event: Event, now: Instant) -> Vec<Action> {
        match event {
            Event::Ended(_) => {
                self.phase = Phase::Stopping { ended: true, kill_at };
                Vec::new()
            }
            Event::Arrived(arrival) if !ended => self.forward(arrival),
            Event::Stopped { .. } if !ended => vec![Action::Resume],
            Event::GroupEmpty if ended => self.drain(),
            Event::Tick if now >= kill_at => {
                self.phase = Phase::Killing {
                    ended: ended.then_some(now),
                };
                vec![Action::SignalAll(Signal::SIGKILL)]
            }
            _ => Vec::new(),
        }
    }

    fn killing(&mut self, ended: Option<Instant>, event: Event, now: Instant) -> Vec<Action> {
        match (event, ended) {
            (Event::Ended(_), None) => {
                self.phase = Phase::Killing { ended: Some(now) };
                Vec::new()
            }
            (Event::GroupEmpty, Some(_)) => self.drain(),
            // What cannot be killed (another user's process) is not waited for for ever.
            (Event::Tick, Some(at)) if now >= at + DRAIN_TIMEOUT => self.drain(),
            // What was born while the others were killed.
            (Event::Tick, Some(_)) => vec![Action::SignalAll(Signal::SIGKILL)],
            _ => Vec::new(),
        }
    }

    /// The job has ended well guarded, and its status stands whatever happens to the lock now.
    fn keeping(&mut self, outcome: Outcome, until: Instant, event: Event, now: Instant) -> Vec<Action> {
        match event {
            Event::Lost => self.cut(outcome),
            Event::Arrived(SignalInfo { signal, .. }) if ends_a_wait(signal) => self.release(outcome, now),
            Event::Arrived(arrival) if stops(arrival) => stop_self(),
            Event::Tick if now >= until => self.release(outcome, now),
            Event::Tick if self.is_silent(now) => self.cut(outcome),
            _ => Vec::new(),
        }
    }

    fn releasing(&mut self, outcome: Outcome, until: Instant, event: Event, now: Instant) -> Vec<Action> {
        match event {
            Event::Released { was_held: true } => self.finish(outcome),
            // The lock was not ours any more when the job ended, or the server has closed the session since we last
            // looked: the job may not have been alone.
            Event::Released { was_held: false } | Event::Lost => match (outcome, self.policy.on_lost) {
                (Outcome::Job(_), OnLost::Stop) => self.cut(Outcome::Failed(ExitCode::Lost)),
                _ => self.cut(outcome),
            },
            Event::Tick if now >= until => self.cut(outcome),
            _ => Vec::new(),
        }
    }

    fn release(&mut self, outcome: Outcome, now: Instant) -> Vec<Action> {
        self.phase = Phase::Releasing {
            outcome,
            until: now + self.policy.timing.heartbeat,
        };
        vec![Action::Release]
    }

    fn cut(&mut self, outcome: Outcome) -> Vec<Action> {
        [vec![Action::Cut], self.finish(outcome)].concat()
    }

    fn drain(&mut self) -> Vec<Action> {
        [
            vec![Action::Reap, Action::Cut],
            self.finish(Outcome::Failed(ExitCode::Lost)),
        ]
        .concat()
    }

    fn finish(&mut self, outcome: Outcome) -> Vec<Action> {
        self.phase = Phase::Finished;
        vec![Action::Finish(outcome)]
    }

    fn lost(&mut self, now: Instant) -> Vec<Action> {
        // Since when the time to the job's end runs, however late we came to know.
        let due = self.allowed_since.or(self.silent_at).unwrap_or(now);
        self.silent_at = None;
        match self.policy.on_lost {
            OnLost::Ignore if self.unguarded => Vec::new(),
            OnLost::Ignore => {
                self.unguarded = true;
                vec![Action::SayUnguarded]
            }
            OnLost::Stop => {
                let kill_at = now.min(due + OVERSLEEP_ALLOWANCE) + self.policy.timing.kill_after;
                self.phase = Phase::Stopping { ended: false, kill_at };
                let mut actions = vec![Action::SignalAll(Signal::SIGTERM)];
                // A stopped process does not see TERM before it goes on.
                actions.extend(self.job_stopped.then_some(Action::Resume));
                actions
            }
        }
    }

    /// Passes a signal on exactly as received, but for what the terminal has already given to the job, which in the
    /// caller's process group is in the terminal's foreground with us.
    fn forward(&mut self, arrival: SignalInfo) -> Vec<Action> {
        self.told_to_end |= ends_a_wait(arrival.signal);
        match arrival.signal {
            Signal::SIGCHLD => Vec::new(),
            // The shell's fg continues the whole group, and so the job: then there is nothing left to do.
            Signal::SIGCONT if self.callers_group && !self.job_stopped => Vec::new(),
            Signal::SIGCONT => {
                self.stop_forwarded = false;
                vec![Action::Resume]
            }
            _ if self.callers_group && arrival.from_terminal => Vec::new(),
            Signal::SIGTSTP => {
                self.stop_forwarded = true;
                vec![Action::Forward(Signal::SIGTSTP)]
            }
            signal => vec![Action::Forward(signal)],
        }
    }

    /// Whether the session has not reported in time.
    ///
    /// The deadline may be long past because this process itself was stopped or starved. The session has had no more time
    /// than we had, so it gets a moment to find out how things are: its answer is there already, or needs one round trip.
    fn is_silent(&mut self, now: Instant) -> bool {
        let Some(due) = self.silent_at.filter(|due| now >= *due) else {
            return false;
        };
        let overslept = self.allowed_since.is_none() && now > due + OVERSLEEP_THRESHOLD;
        if overslept {
            self.allowed_since = Some(due);
            self.silent_at = Some(now + OVERSLEEP_ALLOWANCE);
        }
        !overslept
    }
}

/// The signals by which an operator or a closing terminal says that it is enough. The others (USR1, WINCH) are for
/// the job; while there is none they are nobody's.
fn ends_a_wait(signal: Signal) -> bool {
    matches!(
        signal,
        Signal::SIGINT | Signal::SIGTERM | Signal::SIGHUP | Signal::SIGQUIT
    )
}

/// Whether this is the stop that Ctrl-Z means; while there is no job, it is meant for us alone.
fn stops(arrival: SignalInfo) -> bool {
    arrival.signal == Signal::SIGTSTP
}

fn stop_self() -> Vec<Action> {
    vec![Action::StopSelf(Signal::SIGTSTP as i32)]
}

#[cfg(test)]
mod tests;
