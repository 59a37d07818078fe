//! The one loop: waits for events, passes them to the state machine in `state`, and performs its actions.
//!
//! This is the only place that sees both the session and the job. The loop sleeps in one poll(2), on the descriptor
//! that signal handlers and the session's thread write to and on that of queued signals, until the next deadline. Every
//! blocking call happens elsewhere.

use crate::connection::{Canceller, Settings, prompt, shut_down_socket};
use crate::key;
use crate::lock::Wait;
use crate::outcome::{ExitCode, ExitReason, Failure, Outcome};
use crate::protocol::query_tag;
use crate::run::job::{self, Group, Job, Launch};
use crate::run::job_events::push_job_events;
use crate::run::messages::{self, LockLoss, Termination};
use crate::run::options::RunOptions;
use crate::run::progress::{self, WaitProgress};
use crate::run::recording::Recording;
use crate::run::service_manager::ServiceManager;
use crate::run::session::{self, Held, Session, SessionEvent, SessionPlan, SessionSocket};
use crate::run::signal_number::SignalNumber;
use crate::run::signals::{self, BlockedSignals, SignalInfo, Signals};
use crate::run::state::{Action, Event, RECORD_TIMEOUT, RunState};
use crate::ui::message;
use crate::ui::terminal;
use nix::errno::Errno;
use nix::poll::PollTimeout;
use nix::sys::signal::{SigSet, Signal};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// How long to wait for the session's thread to find out who evicted the session. The job has exited by then.
const EVICTOR_LOOKUP_TIMEOUT: Duration = Duration::from_secs(1);
/// How long to wait until a key that was guarded is released. A server that can be reached needs less.
const GUARD_RELEASE_LIMIT: Duration = Duration::from_millis(200);
/// How often to update the status of a wait.
const STATUS_UPDATE_INTERVAL: Duration = Duration::from_secs(1);
/// How often to check whether any process of a job that is being terminated is left.
const TERMINATION_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How long after SIGKILL a process counts as one that cannot be killed, and how often to check it then.
const UNKILLABLE_AFTER: Duration = Duration::from_secs(5);
const UNKILLABLE_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Runs the command under the lock and returns how pglock exits. The wait is counted from `started_at`.
///
/// # Errors
/// This process cannot be set up: no thread, no socket pair, no signal handler.
pub(crate) fn run(
    options: RunOptions,
    settings: Settings,
    started_at: Instant,
    blocked: BlockedSignals,
) -> Result<Outcome, Failure> {
    let internal = |error: std::io::Error| Failure::new(ExitCode::Internal, error);
    if let Some(program) = options.command.first() {
        query_tag::set_job(program, options.note.as_deref());
    }
    let wait = match options.wait {
        Some(limit) if limit.is_zero() => Wait::Try,
        Some(limit) => Wait::Until(started_at + limit),
        None => Wait::Indefinitely,
    };
    let options = Arc::new(options);
    let service_manager = ServiceManager::from_environment();
    let address = settings.address();
    let plan = SessionPlan {
        options: options.clone(),
        settings,
        wait,
        started_at,
        is_watched: !message::is_quiet() && terminal::status_style().is_some(),
        is_reported: service_manager.is_some(),
    };
    // The session connects while the signal handlers are being installed.
    let session = Session::start(plan, blocked.waker()).map_err(internal)?;
    let signals = blocked.handle().map_err(internal)?;
    signals.unblock().map_err(internal)?;
    Ok(Supervisor::new(options, address, wait, started_at, session, signals, service_manager).run())
}

struct Supervisor {
    options: Arc<RunOptions>,
    /// The keys as sentences name them.
    keys: String,
    address: String,
    signals: Signals,
    session: Session,
    state: RunState,
    wait: Wait,
    started_at: Instant,
    is_connected: bool,
    canceller: Option<Canceller>,
    /// The socket of a session that waits.
    wait_socket: Option<Arc<SessionSocket>>,
    /// The session is connected, but its socket could not be determined.
    is_socket_unknown: bool,
    /// Why the last connection failed, if the wait has endured it.
    last_failure: Option<String>,
    held: Option<Held>,
    job: Option<Job>,
    recording: Recording,
    /// Why the lock was not acquired or the job not started, to be printed at the end.
    failure: Option<String>,
    /// Why the job need not run, to be printed at the end.
    not_due: Option<String>,
    loss: Option<LockLoss>,
    termination: Termination,
    /// The last signal that the system did not permit, which is reported once.
    denied_signal: Option<SignalNumber>,
    /// When to check again whether any process of a job that is being terminated is left.
    group_check_due: Instant,
    /// The holders of the lock as last seen, for the status line.
    progress: Option<WaitProgress>,
    is_wait_reported: bool,
    /// The service manager, if there is one, is told what the run does.
    service_manager: Option<ServiceManager>,
}

impl Supervisor {
    fn new(
        options: Arc<RunOptions>,
        address: String,
        wait: Wait,
        started_at: Instant,
        session: Session,
        signals: Signals,
        service_manager: Option<ServiceManager>,
    ) -> Supervisor {
        Supervisor {
            keys: key::describe(&options.keys),
            state: RunState::new(options.policy, wait),
            options,
            address,
            signals,
            session,
            wait,
            started_at,
            is_connected: false,
            canceller: None,
            wait_socket: None,
            is_socket_unknown: false,
            last_failure: None,
            held: None,
            job: None,
            recording: Recording::default(),
            failure: None,
            not_due: None,
            loss: None,
            termination: Termination::NotNeeded,
            denied_signal: None,
            group_check_due: started_at,
            progress: None,
            is_wait_reported: false,
            service_manager,
        }
    }

    fn run(mut self) -> Outcome {
        loop {
            let outcome = if self.state.is_starting() {
                self.start_job()
            } else {
                self.process_events()
            };
            if let Some(outcome) = outcome {
                self.report(outcome);
                self.finish_recording();
                self.finish_preparing();
                if outcome == Outcome::Failed(ExitCode::Lost) {
                    self.finish_guarding();
                }
                return outcome;
            }
            if !self.state.is_starting() {
                self.show_progress();
                self.sleep();
            }
        }
    }

    /// Handles everything that happened since the last call. Returns the outcome if the run has ended.
    fn process_events(&mut self) -> Option<Outcome> {
        for event in self.pending_events() {
            let outcome = self.handle(event);
            if outcome.is_some() {
                return outcome;
            }
        }
        None
    }

    /// Returns the events since the last call. The session's come first: a lock that was lost before the job exited
    /// must not pass for a success.
    fn pending_events(&mut self) -> Vec<Event> {
        // This drains the wake-ups, so it must precede reading what they announce.
        let received = self.signals.received();
        let mut events = Vec::new();
        for session_event in self.session.events() {
            events.extend(self.record(session_event));
        }
        job::reap_orphans(self.job.as_ref());
        if let Some(job) = &self.job {
            push_job_events(job, &mut events);
        }
        // The terminal's signals do not reach a job that has left pglock's group.
        let has_own_group = self.job.as_ref().is_some_and(|job| job.own_group().is_some());
        // After the job's own changes: a SIGCONT that has reached the whole group need not be forwarded.
        for info in received {
            events.push(Event::Signal(SignalInfo {
                from_terminal: info.from_terminal && !has_own_group,
                ..info
            }));
        }
        if self.state.is_draining() && Instant::now() >= self.group_check_due {
            events.extend(self.look_for_processes());
        }
        events.push(Event::Tick);
        events
    }

    /// Records what the session reports, and translates it for the state machine. What does not concern that is no
    /// event: only when all reports are recorded is it known whether one is overdue.
    fn record(&mut self, session_event: SessionEvent) -> Option<Event> {
        match session_event {
            SessionEvent::Connected(socket) => {
                self.is_connected = true;
                self.is_socket_unknown = socket.is_none();
                self.wait_socket = socket;
                self.recording.is_begun = false;
                Some(Event::Connected)
            }
            SessionEvent::Answered => Some(Event::Answered),
            SessionEvent::Contended => Some(Event::Contended),
            SessionEvent::GivenUp => {
                self.forget_socket();
                Some(Event::Disconnected)
            }
            SessionEvent::Retrying(reason) => {
                self.forget_socket();
                self.canceller = None;
                self.progress = Some(WaitProgress::reconnecting(&reason));
                self.last_failure = Some(reason);
                Some(Event::Disconnected)
            }
            SessionEvent::AwaitingOldJob => {
                self.progress = Some(WaitProgress::OldJob);
                None
            }
            SessionEvent::Cancellable(canceller) => {
                self.canceller = Some(canceller);
                Some(Event::Connected)
            }
            SessionEvent::Alive(next_due) => Some(Event::Alive { next_due }),
            SessionEvent::Waiting(holders) => {
                self.progress = Some(WaitProgress::held(holders, Instant::now()));
                None
            }
            SessionEvent::Preparing => {
                self.recording.is_begun = true;
                None
            }
            SessionEvent::Held(held) => self.record_acquisition(held),
            SessionEvent::Withdrawn => {
                self.forget_lock();
                Some(Event::Withdrawn)
            }
            SessionEvent::Conflict(holder) => {
                self.failure = Some(holder);
                Some(Event::NotAcquired(Outcome::Conflict(
                    self.options.policy.conflict_status,
                )))
            }
            SessionEvent::NotDue(message) => {
                self.not_due = Some(message);
                Some(Event::NotAcquired(Outcome::Conflict(
                    self.options.policy.conflict_status,
                )))
            }
            SessionEvent::Recorded(result) => {
                self.recording.note_result(result);
                None
            }
            SessionEvent::Failed(failure) => {
                self.failure = Some(failure.to_string());
                Some(Event::NotAcquired(Outcome::Failed(failure.code)))
            }
            SessionEvent::Released { was_held, session } => {
                // Closes the session explicitly: a process that the job left behind has the socket too, and must not
                // keep the session open.
                drop(session);
                if !was_held {
                    self.recording.expect_result();
                }
                Some(Event::Released { was_held })
            }
            SessionEvent::Panicked => Some(self.record_panic()),
            loss => self.record_loss(loss),
        }
    }

    /// Forgets a lock under which no job is started.
    fn forget_lock(&mut self) {
        self.held = None;
        self.recording.is_wanted = false;
    }

    fn forget_socket(&mut self) {
        self.wait_socket = None;
        self.is_socket_unknown = false;
    }

    /// Records what the session reports about a lock that is lost, or to be given up.
    fn record_loss(&mut self, session_event: SessionEvent) -> Option<Event> {
        match session_event {
            SessionEvent::Lost(reason) => {
                self.loss.get_or_insert_with(|| LockLoss::new(reason));
                if self.session.is_release_ordered() {
                    self.recording.expect_result();
                }
                Some(Event::LockLost)
            }
            SessionEvent::EvictionRequested(evictor) => {
                self.loss.get_or_insert_with(|| LockLoss::new_evicted(&evictor));
                Some(Event::EvictionRequested)
            }
            SessionEvent::LossExplained { evictor } => {
                if let Some(loss) = &mut self.loss {
                    loss.explain(evictor);
                }
                None
            }
            SessionEvent::GuardFailed(message) => {
                if let Some(loss) = &mut self.loss {
                    loss.guard_failure.get_or_insert(message);
                }
                None
            }
            _ => None,
        }
    }

    fn record_acquisition(&mut self, held: Held) -> Option<Event> {
        if held.socket.as_ref().is_some_and(|socket| socket.is_abandoned()) {
            // The reply had arrived before we ended the connection. The session's thread finds the lock lost.
            return None;
        }
        self.progress = None;
        self.wait_socket = None;
        message::clear_status();
        message::detail(messages::acquired(&self.keys, self.started_at.elapsed()));
        self.recording.is_wanted = held.is_recorded;
        self.held = Some(held);
        Some(Event::Acquired)
    }

    /// Records a panic of the session's thread. A lock that was held counts as lost.
    fn record_panic(&mut self) -> Event {
        if self.held.is_some() {
            self.loss
                .get_or_insert_with(|| LockLoss::new(messages::SESSION_PANICKED));
            Event::LockLost
        } else {
            self.failure = Some(messages::SESSION_PANICKED.into());
            Event::NotAcquired(Outcome::Failed(ExitCode::Internal))
        }
    }

    /// Returns whether processes of the job are left, if that can be seen: the system may not show all.
    fn look_for_processes(&mut self) -> Option<Event> {
        // Where ps(1) lists the processes, its exit is an event as well, and must not make it run again at once.
        if cfg!(not(target_os = "linux")) {
            self.group_check_due = Instant::now() + TERMINATION_POLL_INTERVAL;
        }
        let processes = self.job.as_mut()?.look_for_processes();
        if processes.is_none_left {
            return Some(Event::GroupEmpty);
        }
        (!processes.visible.is_empty()).then_some(Event::GroupAlive)
    }

    /// Passes the event to the state machine and performs its actions. Returns the outcome if the run has ended.
    fn handle(&mut self, event: Event) -> Option<Outcome> {
        if let Event::JobExited(exit) = event {
            self.recording.job_end = Some((exit, Instant::now()));
        }
        for action in self.state.handle(event, Instant::now()) {
            match action {
                Action::Finish(outcome) => return Some(outcome),
                Action::AbandonConnection => {
                    if !self.abandon_connection() {
                        return self.handle(Event::NotAcquired(Outcome::Failed(ExitCode::Unavailable)));
                    }
                }
                action => self.perform(action),
            }
        }
        None
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::CancelWait => self.cancel_wait(),
            Action::Forward(signal) => {
                self.signal_job(signal, |job| job.signal(signal));
            }
            Action::SignalAll(signal) => self.terminate_job(signal),
            Action::ContinueJob => {
                self.signal_job(Signal::SIGCONT.into(), Job::resume);
            }
            Action::StopSelf(signal) => {
                message::clear_status();
                signals::stop_with(signal);
            }
            Action::Reap => {
                if let Some(mut job) = self.job.take() {
                    self.note_survivors(&mut job);
                    job.reap();
                }
                self.record_end();
            }
            Action::Release => {
                self.record_end();
                self.session.release();
            }
            Action::Disconnect => self.disconnect(),
            Action::ReportUnguarded => {
                let heartbeat = self.options.policy.timing.heartbeat;
                let loss = self.loss.get_or_insert_with(|| LockLoss::new_unresponsive(heartbeat));
                message::error(loss.ignored(&self.keys));
                self.report_loss(|program| format!("running {program} without the lock"));
            }
            Action::Finish(_) | Action::AbandonConnection => {}
        }
    }

    /// Ends the session's connection, so that its thread connects again. Returns false if that is impossible, since it
    /// is not known which socket is the connection's: then nothing would end a wait for a server that is silent.
    fn abandon_connection(&mut self) -> bool {
        let acquired = self.held.as_ref().and_then(|held| held.socket.clone());
        self.forget_lock();
        match self.wait_socket.clone().or(acquired) {
            Some(socket) => socket.abandon(),
            None if self.is_socket_unknown => return false,
            // It is connecting.
            None => {}
        }
        true
    }

    /// Starts the job, unless a pending event forbids that: reporting the acquisition may have taken a while. All
    /// signals are blocked meanwhile, because a signal that precedes the job must not be mistaken for one that the
    /// terminal has sent to the job as well.
    fn start_job(&mut self) -> Option<Outcome> {
        // Neither this nor unblocking can fail: the same calls have succeeded before.
        let _ = SigSet::all().thread_block();
        let mut outcome = self.process_events();
        if outcome.is_none() && self.state.is_starting() {
            let event = self.launch_job();
            outcome = self.handle(event);
        }
        let _ = self.signals.unblock();
        outcome
    }

    fn launch_job(&mut self) -> Event {
        let group = Group::for_terminal();
        let Some(held) = &self.held else {
            self.failure = Some(messages::NO_LOCK_TO_START.into());
            return Event::JobNotStarted(ExitCode::Internal);
        };
        if !held.claim.take() {
            return Event::Withdrawn;
        }
        let inherited = held.socket.as_deref().filter(|_| self.options.inherit_socket);
        let launch = Launch {
            command: &self.options.command,
            keys: &self.options.keys,
            ids: &held.ids,
            mode: self.options.mode,
            slot: held.slot,
            token: held.token.as_deref(),
            backend_pid: held.backend_pid,
            socket: inherited.map(SessionSocket::descriptor),
        };
        match Job::start(&launch, group, &self.signals) {
            Ok(job) => {
                self.job = Some(job);
                self.report_job();
                let in_callers_group = group == Group::Caller;
                Event::JobStarted { in_callers_group }
            }
            Err(failure) => {
                self.failure = Some(failure.to_string());
                self.recording.job_end = Some((ExitReason::Code(failure.code as u8), Instant::now()));
                Event::JobNotStarted(failure.code)
            }
        }
    }

    /// Sends a signal to the whole job because the lock is lost.
    fn terminate_job(&mut self, signal: Signal) {
        let heartbeat = self.options.policy.timing.heartbeat;
        // If the session has not reported a loss, the missing report is the loss.
        self.loss.get_or_insert_with(|| LockLoss::new_unresponsive(heartbeat));
        let had_exited = self.job.as_ref().is_some_and(Job::has_exited);
        let is_sent = self.signal_job(signal.into(), |job| job.signal_all(signal));
        // What the command has left is signalled, too, but how it ended itself is known.
        if had_exited && matches!(self.termination, Termination::NotNeeded | Termination::Denied) {
            return;
        }
        self.termination = match signal {
            _ if !is_sent => Termination::Denied,
            Signal::SIGKILL => Termination::Kill,
            _ => Termination::Term,
        };
        self.report_loss(|program| format!("terminating {program}"));
    }

    /// Returns how long to wait until the next look for processes of a job that is being terminated: longer, if they
    /// can apparently not be killed.
    fn termination_poll_interval(&self) -> Duration {
        let limit = self.options.policy.timing.kill_after + UNKILLABLE_AFTER;
        match &self.loss {
            Some(loss) if loss.noticed_at.elapsed() > limit => UNKILLABLE_POLL_INTERVAL,
            _ => TERMINATION_POLL_INTERVAL,
        }
    }

    /// Notes which processes of a job that was terminated are left.
    fn note_survivors(&mut self, job: &mut Job) {
        if let Some(loss) = self
            .loss
            .as_mut()
            .filter(|_| self.termination != Termination::NotNeeded)
        {
            loss.survivors = job.look_for_processes().visible;
        }
    }

    /// Sends a signal to the job. Returns whether the system permitted it, and reports it if not.
    fn signal_job(&mut self, signal: SignalNumber, send: impl FnOnce(&mut Job) -> nix::Result<()>) -> bool {
        match self.job.as_mut().map(send) {
            // ESRCH: the job is not reaped yet, but no process is left that could receive a signal.
            None | Some(Ok(()) | Err(Errno::ESRCH)) => true,
            Some(Err(error)) => {
                if self.denied_signal.replace(signal) != Some(signal) {
                    let failure = messages::signal_failure(signal, error);
                    message::error(match &self.loss {
                        Some(loss) => loss.with_failure(&self.keys, &failure),
                        None => failure,
                    });
                }
                false
            }
        }
    }

    /// Cancels the wait for the lock. The cancel request needs a connection of its own, so a thread sends it and the
    /// loop does not block. The session is ordered to release as well: between two queries there is nothing to cancel,
    /// and through a pooler nothing is cancelled.
    fn cancel_wait(&mut self) {
        self.session.release();
        if let Some(canceller) = self.canceller.clone() {
            // If no thread can be created, pglock's exit ends the wait: the server notices within a second.
            let _ = std::thread::Builder::new().spawn(move || canceller.cancel());
        }
    }

    fn disconnect(&self) {
        if let Some(socket) = self.held.as_ref().and_then(|held| held.socket.as_ref()) {
            shut_down_socket(socket.descriptor());
            message::detail(messages::DISCONNECTED);
        }
    }

    /// Shows a person at the terminal, and the service manager, what pglock waits for.
    fn show_progress(&mut self) {
        if let Some(progress) = self.progress.as_ref().filter(|_| !message::is_quiet()) {
            let waited = self.started_at.elapsed();
            progress.show(&self.keys, waited, &mut self.is_wait_reported);
        }
        if let Some(service_manager) = self.service_manager.as_mut().filter(|_| self.held.is_none()) {
            let status = || match &self.progress {
                Some(progress) => progress.status_text(&self.keys),
                None => progress::waiting_for(&self.keys),
            };
            service_manager.report_wait(self.started_at, status);
        }
    }

    /// Tells the service manager that the job runs.
    fn report_job(&mut self) {
        if let (Some(service_manager), Some(program)) = (&mut self.service_manager, self.options.command.first()) {
            service_manager.report_job(messages::job_started(program, SystemTime::now()));
        }
    }

    /// Tells the service manager that the lock is lost, and what happens to the program.
    fn report_loss(&mut self, what_happens: impl FnOnce(std::ffi::os_str::Display) -> String) {
        let (Some(loss), Some(program)) = (&self.loss, self.options.command.first()) else {
            return;
        };
        if let Some(service_manager) = &mut self.service_manager {
            service_manager.report_status(loss.status(&what_happens(program.display())));
        }
    }

    fn sleep(&self) {
        let until_deadline = self
            .state
            .deadline()
            .map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let interval = if self.state.is_draining() {
            Some(self.termination_poll_interval())
        } else if self.progress.is_some() || (self.service_manager.is_some() && self.held.is_none()) {
            Some(STATUS_UPDATE_INTERVAL)
        } else {
            None
        };
        let limit = until_deadline.into_iter().chain(interval).min();
        let timeout = limit.map_or(PollTimeout::NONE, session::poll_timeout);
        self.signals.wait(timeout);
    }

    /// Prints why the run ended, unless it ended as the job did.
    fn report(&mut self, outcome: Outcome) {
        message::clear_status();
        match outcome {
            Outcome::Conflict(_) => {
                let wait_limit = self
                    .wait
                    .deadline()
                    .map(|end| end.saturating_duration_since(self.started_at));
                let holder = self.failure.as_deref();
                let conflict = || messages::conflict(&self.keys, holder, wait_limit);
                message::notice(self.not_due.clone().unwrap_or_else(conflict));
            }
            Outcome::Failed(ExitCode::Lost) => {
                self.await_explanation();
                let loss = self.loss.get_or_insert_with(LockLoss::new_at_release);
                message::error(loss.with_termination(&self.keys, self.termination));
            }
            Outcome::Failed(_) => message::error(self.failure_message()),
            Outcome::Success | Outcome::Job(_) | Outcome::Interrupted(_) => {}
        }
    }

    /// Waits for the session's thread to find out who ended the session.
    fn await_explanation(&mut self) {
        while let Some(loss) = self.loss.as_ref().filter(|loss| !loss.is_explained()) {
            let deadline = loss.noticed_at + EVICTOR_LOOKUP_TIMEOUT;
            let Some(session_event) = self.session.next_event(deadline) else {
                return;
            };
            self.record(session_event);
        }
    }

    /// Has the session's thread record the end of the run, once that is known.
    fn record_end(&mut self) {
        let is_explained = self.loss.as_ref().is_none_or(LockLoss::is_explained);
        if is_explained && self.job.is_none() {
            self.recording.order(&self.session, self.loss.as_ref());
        }
    }

    /// Waits for the session's thread to record the end of the run, and reports it if that fails.
    fn finish_recording(&mut self) {
        if !self.recording.is_wanted {
            return;
        }
        self.recording.order(&self.session, self.loss.as_ref());
        // The thread must not go on guarding a job that is dead.
        self.session.release();
        while let Some(deadline) = self.recording.deadline() {
            let Some(session_event) = self.session.next_event(deadline) else {
                break;
            };
            self.record(session_event);
        }
        if let Some(reason) = self.recording.failure() {
            message::error(messages::not_recorded(&self.keys, &reason));
        }
    }

    /// Has the session's thread remove a run that it is recording: the lock was acquired at the end of the wait, and no
    /// job starts under it.
    fn finish_preparing(&mut self) {
        if self.options.record.is_none() || self.held.is_some() {
            return;
        }
        self.session.release();
        let limit = Instant::now() + RECORD_TIMEOUT;
        loop {
            let deadline = if self.recording.is_begun { limit } else { Instant::now() };
            match self.session.next_event(deadline) {
                Some(SessionEvent::Preparing) => self.recording.is_begun = true,
                Some(_) => {}
                None => return,
            }
        }
    }

    /// Has the session's thread release a key that it guards: the end of the connection would free it as well, but a
    /// waiter would then take it for lost, and give the loser time.
    fn finish_guarding(&mut self) {
        self.session.release();
        let deadline = Instant::now() + GUARD_RELEASE_LIMIT;
        while let Some(session_event) = self.session.next_event(deadline) {
            self.record(session_event);
        }
    }

    fn failure_message(&self) -> String {
        let elapsed = self.started_at.elapsed();
        match (&self.failure, &self.loss) {
            (Some(failure), _) => failure.clone(),
            (None, Some(loss)) => loss.before_start(&self.keys),
            // The server has answered, and the session's thread still waits for the user.
            (None, None) if prompt::is_open() => messages::password_timeout(&self.address, elapsed),
            (None, None) if self.last_failure.is_some() => {
                messages::wait_failed(self.last_failure.as_deref().unwrap_or_default(), elapsed)
            }
            // The session failed to report in time.
            (None, None) if self.is_connected => messages::unresponsive(elapsed),
            (None, None) => messages::connect_timeout(&self.address, elapsed),
        }
    }
}
