//! The one loop: waits for whatever happens, lets `step` decide, and acts.
//!
//! It is the only place that sees both the session and the job. It sleeps in one poll(2), on the descriptor that
//! signals and the session's thread write to, until the next deadline.

use crate::connection::{Canceller, Settings};
use crate::key;
use crate::lock::Wait;
use crate::outcome::{ExitCode, Failure, Outcome};
use crate::protocol::query_tag;
use crate::run::job::{self, Group, Job, Launch};
use crate::run::options::RunOptions;
use crate::run::progress::WaitProgress;
use crate::run::session::{self, Held, Session, SessionEvent, SessionPlan};
use crate::run::signals::{self, BlockedSignals, SignalInfo, Signals};
use crate::run::state::{Action, Event, RunState};
use crate::sys::WaitStatus;
use crate::ui::message;
use crate::ui::terminal::{self, StatusStyle};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// Runs the command under the lock and returns how pglock exits. The wait is counted from `began`.
///
/// # Errors
/// This process cannot be set up: no thread, no socket pair, no signal handler.
pub fn run(
    options: RunOptions,
    settings: Settings,
    began: Instant,
    blocked: BlockedSignals,
) -> Result<Outcome, Failure> {
    let internal = |error: std::io::Error| Failure::new(ExitCode::Internal, error);
    if let Some(program) = options.command.first() {
        query_tag::set_job_program(program);
    }
    let wait = match options.wait {
        Some(limit) if limit.is_zero() => Wait::Try,
        Some(limit) => Wait::Until(began + limit),
        None => Wait::Forever,
    };
    let options = Arc::new(options);
    let address = settings.address();
    // It connects while the signals are being set up.
    let session = Session::start(
        SessionPlan {
            options: options.clone(),
            settings,
            wait,
            is_watched: !message::is_quiet() && terminal::status_style().is_some(),
        },
        blocked.waker(),
    )
    .map_err(internal)?;
    let signals = blocked.handle().map_err(internal)?;
    signals.unblock().map_err(internal)?;
    let mut supervisor = Supervisor {
        name: key::describe(&options.keys),
        state: RunState::new(options.policy, wait.deadline()),
        options,
        address,
        signals,
        session,
        wait,
        began,
        connected: false,
        canceller: None,
        held: None,
        job: None,
        words: None,
        lost: None,
        evictor: None,
        stopped: Stopped::No,
        waiting: None,
        has_said_wait: false,
    };
    Ok(supervisor.run())
}

struct Supervisor {
    options: Arc<RunOptions>,
    /// The keys as a sentence names them.
    name: String,
    address: String,
    signals: Signals,
    session: Session,
    state: RunState,
    wait: Wait,
    began: Instant,
    connected: bool,
    canceller: Option<Canceller>,
    held: Option<Held>,
    job: Option<Job>,
    /// What to say at the end, of a failure or a conflict.
    words: Option<String>,
    lost: Option<LockLoss>,
    evictor: Option<String>,
    stopped: Stopped,
    /// Who held the lock when it was last looked, for whoever watches.
    waiting: Option<WaitProgress>,
    has_said_wait: bool,
}

/// What was done to the job when the lock was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stopped {
    No,
    Term,
    Kill,
    /// The system did not let us: it had become another user's.
    Denied,
}

/// The lock was lost: why, and when that was noticed.
struct LockLoss {
    why: String,
    at: SystemTime,
    noticed: Instant,
}

/// How long to wait for the session's thread to find out who has ended the session. The job is over then.
const EVICTOR_LOOKUP_TIMEOUT: Duration = Duration::from_secs(1);

/// How often the time that somebody waits is shown anew.
const WAIT_DISPLAY_INTERVAL: Duration = Duration::from_secs(1);

/// How often to look whether a job that is being stopped is gone.
const TERMINATION_POLL_INTERVAL: Duration = Duration::from_millis(50);

impl Supervisor {
    fn run(&mut self) -> Outcome {
        loop {
            let outcome = match self.state.is_starting() {
                true => self.start(),
                false => self.look(),
            };
            if let Some(outcome) = outcome {
                self.say_how_it_ended(outcome);
                return outcome;
            }
            if !self.state.is_starting() {
                self.show_wait();
                self.sleep();
            }
        }
    }

    /// Handles all that has happened since the last look.
    fn look(&mut self) -> Option<Outcome> {
        let mut events = self.what_happened().into_iter();
        events.find_map(|event| self.handle(event))
    }

    /// Starts the job, unless something has happened that forbids it: to have said that the lock is ours can have taken a
    /// while. Every signal is blocked meanwhile: one that came before the job existed must not be taken for one that the
    /// terminal has given to it.
    fn start(&mut self) -> Option<Outcome> {
        // It has succeeded before, as has the other below.
        let _ = SigSet::all().thread_block();
        let mut outcome = self.look();
        if outcome.is_none() && self.state.is_starting() {
            let event = self.start_job();
            outcome = self.handle(event);
        }
        let _ = self.signals.unblock();
        outcome
    }

    /// Tells whoever watches what is waited for.
    fn show_wait(&mut self) {
        let Some(waiting) = &self.waiting else {
            return;
        };
        match terminal::status_style() {
            Some(StatusStyle::InPlace) => {
                // The last column stays free: some terminals go on to the next line after it.
                let width = terminal::stderr_columns().unwrap_or(80).saturating_sub(1);
                message::show_status(&waiting.line(&self.name, self.began.elapsed(), width));
            }
            Some(StatusStyle::Once) if !self.has_said_wait => {
                message::notice(waiting.sentence(&self.name, self.began.elapsed()));
                self.has_said_wait = true;
            }
            Some(StatusStyle::Once) | None => {}
        }
    }

    fn say_how_it_ended(&mut self, outcome: Outcome) {
        message::clear_status();
        if outcome == Outcome::Failed(ExitCode::Lost) && self.evictor.is_none() {
            let until = self.lost.as_ref().map(|lost| lost.noticed + EVICTOR_LOOKUP_TIMEOUT);
            self.evictor = until.and_then(|until| self.session.evictor(until));
        }
        let words = self.words.as_deref();
        match outcome {
            Outcome::Conflict(_) => {
                let held = words.map_or_else(
                    || {
                        format!(
                            "{} was not acquired, and the server has not said who holds it",
                            self.name
                        )
                    },
                    str::to_owned,
                );
                message::notice(format_args!("{held}; {}", self.patience_sentence()));
            }
            Outcome::Failed(ExitCode::Lost) => {
                let lost = self.loss_sentence();
                let done = match self.stopped {
                    Stopped::No => "the job had ended by then, and may not have been alone",
                    Stopped::Term => "stopped the job with TERM",
                    Stopped::Kill => "stopped the job with TERM, then KILL",
                    Stopped::Denied => "the job could not be stopped, and has ended by itself",
                };
                message::error(format_args!("{lost}; {done}"));
            }
            Outcome::Failed(_) => message::error(match (words, &self.lost) {
                (Some(words), _) => words.to_owned(),
                (None, Some(_)) => format!("{}; the job was not started", self.loss_sentence()),
                (None, None) => self.silence_sentence(),
            }),
            Outcome::Success | Outcome::Job(_) | Outcome::Interrupted(_) => {}
        }
    }

    /// Everything that has happened since the last look. The session comes first: a lock that was lost before the
    /// job ended must not pass for a good end.
    fn what_happened(&mut self) -> Vec<Event> {
        let arrivals = self.signals.received();
        let mut events = Vec::new();
        for report in self.session.events() {
            events.push(self.event_of(report));
        }
        if let Some(job) = &self.job {
            job.reap_orphans();
            while let Ok(Some(change)) = job.poll_status() {
                events.push(match (job::exit_reason(change), change) {
                    (Some(end), _) => Event::Ended(end),
                    (None, WaitStatus::Stopped(signal)) => Event::Stopped {
                        signal,
                        by_terminal: job.is_stopped_by_terminal(signal),
                    },
                    (None, _) => Event::Continued,
                });
                if job::exit_reason(change).is_some() {
                    break;
                }
            }
        }
        // What the terminal sends does not reach a job that has left our group.
        let left_us = self.job.as_ref().is_some_and(|job| job.own_group().is_some());
        // After the job's own changes: a continuation that reached the whole group need not be passed on.
        events.extend(arrivals.into_iter().map(|arrival| {
            let from_terminal = arrival.from_terminal && !left_us;
            Event::Arrived(SignalInfo {
                from_terminal,
                ..arrival
            })
        }));
        if self.state.is_draining() && self.is_job_gone() {
            events.push(Event::GroupEmpty);
        }
        events.push(Event::Tick);
        events
    }

    /// What a report means for the decisions; what only concerns the acting is kept here.
    fn event_of(&mut self, report: SessionEvent) -> Event {
        match report {
            SessionEvent::Connected => {
                self.connected = true;
                Event::Connected
            }
            SessionEvent::Direct(canceller) => {
                self.canceller = Some(canceller);
                Event::Connected
            }
            SessionEvent::Alive(until) => Event::Alive(until),
            SessionEvent::Waiting(holders) => {
                self.waiting = Some(WaitProgress {
                    holders,
                    seen: Instant::now(),
                });
                Event::Tick
            }
            SessionEvent::Held(held) => {
                self.waiting = None;
                message::clear_status();
                message::detail(format_args!(
                    "acquired the lock on {} after {}",
                    self.name,
                    rounded(self.began.elapsed())
                ));
                self.held = Some(held);
                Event::Held
            }
            SessionEvent::Conflict(words) => {
                self.words = Some(words);
                Event::NotHeld(Outcome::Conflict(self.options.policy.conflict_status))
            }
            SessionEvent::Failed(failure) => {
                self.words = Some(failure.to_string());
                Event::NotHeld(Outcome::Failed(failure.code))
            }
            SessionEvent::Lost(why) => {
                self.lost.get_or_insert(LockLoss::now(why));
                Event::Lost
            }
            SessionEvent::Evicted(by) => {
                self.evictor = Some(by);
                Event::Tick
            }
            SessionEvent::Released { was_held, session } => {
                // An explicit goodbye: a process that the job left behind has the socket too, and must not keep the
                // session alive.
                drop(session);
                Event::Released { was_held }
            }
            SessionEvent::Broken => {
                let why = "an internal error has ended the session";
                match self.held {
                    Some(_) => self.event_of(SessionEvent::Lost(why.into())),
                    None => self.event_of(SessionEvent::Failed(Failure::say(ExitCode::Internal, why))),
                }
            }
        }
    }

    /// Whether nothing of the job is left. Where the system does not tell, it is not taken for gone.
    fn is_job_gone(&self) -> bool {
        let living = self.job.as_ref().and_then(Job::running_processes);
        living.is_some_and(|living| living.is_empty())
    }

    /// What became of the wait.
    fn patience_sentence(&self) -> String {
        match self.wait.deadline() {
            Some(end) => format!("gave up after {}", rounded(end.saturating_duration_since(self.began))),
            None => "not waiting".into(),
        }
    }

    /// The server has not reported in time, so it has said nothing that could be repeated.
    fn silence_sentence(&self) -> String {
        let waited = rounded(self.began.elapsed());
        match self.connected {
            true => format!("the server does not answer any more, {waited} after the start"),
            false => format!("cannot connect to {} within {waited}", self.address),
        }
    }

    /// Lets the event be decided, and acts.
    fn handle(&mut self, event: Event) -> Option<Outcome> {
        for action in self.state.step(event, Instant::now()) {
            match action {
                Action::Finish(outcome) => return Some(outcome),
                _ => self.act(action),
            }
        }
        None
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Cancel => self.cancel(),
            Action::Forward(signal) => {
                self.signal_job(signal, |job| job.signal(signal));
            }
            Action::SignalAll(signal) => {
                self.note_silence();
                let had_ended = self.job.as_ref().is_some_and(Job::has_exited);
                let sent = self.signal_job(signal, |job| job.signal_all(signal));
                self.stopped = match signal {
                    _ if had_ended && self.stopped == Stopped::No => Stopped::No,
                    _ if !sent => Stopped::Denied,
                    Signal::SIGKILL => Stopped::Kill,
                    _ => Stopped::Term,
                };
            }
            Action::Resume => {
                self.signal_job(Signal::SIGCONT, Job::resume);
            }
            Action::StopSelf(signal) => {
                message::clear_status();
                signals::stop_with(signal);
            }
            Action::Reap => self.job.take().into_iter().for_each(Job::reap),
            Action::Release => self.session.release(),
            Action::Cut => self.cut(),
            Action::SayUnguarded => {
                self.note_silence();
                let lost = self.loss_sentence();
                message::error(format_args!("{lost}; the job goes on unguarded (--on-lost ignore)"));
            }
            Action::Finish(_) => {}
        }
    }

    fn start_job(&mut self) -> Event {
        let group = Group::for_terminal();
        let Some(held) = &self.held else {
            self.words = Some("there is no lock to run the job under".into());
            return Event::NotStarted(ExitCode::Internal);
        };
        let launch = Launch {
            command: &self.options.command,
            keys: &self.options.keys,
            ids: &held.ids,
            mode: self.options.mode,
            slot: held.slot,
            token: held.token.as_deref(),
            backend_pid: held.backend_pid,
            socket: held.socket.as_deref().filter(|_| self.options.inherit_socket),
        };
        match Job::start(&launch, group, &self.signals) {
            Ok(job) => {
                self.job = Some(job);
                Event::Started {
                    callers_group: group == Group::Caller,
                }
            }
            Err(failure) => {
                self.words = Some(failure.to_string());
                Event::NotStarted(failure.code)
            }
        }
    }

    /// Signals the job. Whether the system let us.
    fn signal_job(&self, signal: Signal, send: impl FnOnce(&Job) -> nix::Result<()>) -> bool {
        match self.job.as_ref().map(send) {
            // Not reaped yet, but nothing is left that could take a signal.
            None | Some(Ok(()) | Err(Errno::ESRCH)) => true,
            Some(Err(error)) => {
                message::error(format_args!("cannot send {signal} to the job: {}", error.desc()));
                false
            }
        }
    }

    /// Interrupts the wait on a thread of its own: it takes a connection, and the loop does not wait for one.
    /// The session is told as well, since between two messages there is nothing to interrupt, and through a pooler
    /// nothing is interrupted.
    fn cancel(&mut self) {
        self.session.release();
        let Some(canceller) = self.canceller.clone() else {
            return;
        };
        // Without the thread, the end of this process ends the wait: the server notices within a second.
        let _ = std::thread::Builder::new().spawn(move || canceller.cancel());
    }

    fn cut(&self) {
        if let Some(socket) = self.held.as_ref().and_then(|held| held.socket.as_ref()) {
            session::shut_down_socket(socket);
            message::detail("closed the connection, without the server's word that the lock is given back");
        }
    }

    /// The loss that nobody reported: the report is what did not come.
    fn note_silence(&mut self) {
        let limit = rounded(self.options.policy.timing.heartbeat);
        self.lost
            .get_or_insert_with(|| LockLoss::now(format!("the server has not answered within {limit}")));
    }

    fn sleep(&self) {
        let left = self
            .state
            .deadline()
            .map(|at| at.saturating_duration_since(Instant::now()));
        let tick = match (self.state.is_draining(), &self.waiting) {
            (true, _) => Some(TERMINATION_POLL_INTERVAL),
            (false, Some(_)) => Some(WAIT_DISPLAY_INTERVAL),
            (false, None) => None,
        };
        let limit = left.into_iter().chain(tick).min();
        let timeout = limit.map_or(PollTimeout::NONE, session::timeout);
        // An interruption is a signal, which has been noted.
        let _ = poll(&mut [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)], timeout);
    }

    fn loss_sentence(&self) -> String {
        let (why, at) = match &self.lost {
            Some(LockLoss { why, at, .. }) => (why.as_str(), *at),
            None => ("something gave it back on the server", SystemTime::now()),
        };
        let by = match &self.evictor {
            Some(by) => format!(" (evicted by {by})"),
            None => String::new(),
        };
        format!(
            "lost the lock on {} at {}: {why}{by}",
            self.name,
            humantime::format_rfc3339_seconds(at)
        )
    }
}

impl LockLoss {
    fn now(why: String) -> LockLoss {
        LockLoss {
            why,
            at: SystemTime::now(),
            noticed: Instant::now(),
        }
    }
}

/// A duration as people read it, to the millisecond.
fn rounded(duration: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_millis(duration.as_millis() as u64))
}
