//! A pglock's main thread: the real state machine, with the job and the loop around it (`run::supervisor`).

use super::rules::Rules;
use super::time::{Ticks, at, now};
use super::world::{Client, Connection, Exception, Job, Process, Record, Report, Thread, WaitMemory, World};
use crate::lock::Wait;
use crate::outcome::{ExitCode, ExitReason, Outcome};
use crate::run::signals::SignalInfo;
use crate::run::state::{Action, Event, OnLost, Policy, RunState};
use nix::sys::signal::Signal;
use std::time::Duration;

/// The longest that is counted of what a run owes.
pub(super) const MAX_OWED: Ticks = 30;

impl Client {
    pub(super) fn new(rules: &Rules, number: usize) -> Client {
        Client {
            process: Process::NotStarted,
            state: initial_state(rules),
            inbox: Vec::new(),
            is_signalled: false,
            is_launching: false,
            is_release_ordered: false,
            thread: Thread::Ended,
            reply: None,
            memory: WaitMemory::default(),
            connection: Connection::None,
            session: number,
            is_cut: false,
            job: Job::None,
            is_loop_delayed: false,
            is_thread_delayed: false,
            record: Record::default(),
        }
    }

    pub(super) fn start(&mut self) {
        self.process = Process::Alive;
        self.thread = Thread::Connecting;
    }

    /// Sends a report to the loop. One that does not wake the loop is read with the next event or deadline, and no
    /// decision depends on it before: so a loop that could run reads it at once, and a delayed one when it can.
    pub(super) fn report(&mut self, report: Report) {
        if report.wakes() || !self.inbox.is_empty() || self.is_loop_delayed {
            self.inbox.push(report);
            return;
        }
        let actions = self.state.handle(event(report), now());
        assert!(actions.is_empty(), "{report:?} has actions");
    }

    /// Reports by when the next report is due, so many ticks from now.
    pub(super) fn report_alive(&mut self, next_due: Ticks) {
        self.report(Report::Alive { next_due });
    }

    pub(super) fn can_loop_step(&self) -> bool {
        if self.process != Process::Alive || self.is_loop_delayed {
            return false;
        }
        self.is_launching
            || self.is_signalled
            || self.job == Job::Exited
            || self.state.is_starting()
            || self.state.is_draining()
            || self.state.deadline().is_some_and(|deadline| deadline <= now())
            || !self.inbox.is_empty()
    }

    /// Forgets everything about a process that has ended but what its job and a later judgement need.
    fn forget(&mut self, rules: &Rules) {
        let is_running = self.job == Job::Running;
        let record = Record {
            is_granted: is_running,
            // Where another client has the key already, a killed pglock leaves its job to run beside that client's.
            exception: self.record.exception.filter(|_| is_running).map(|_| Exception::Killed),
            ..Record::default()
        };
        *self = Client {
            process: self.process,
            job: if is_running { Job::Running } else { Job::None },
            is_cut: self.is_cut,
            record,
            ..Client::new(rules, self.session)
        };
    }
}

fn initial_state(rules: &Rules) -> RunState {
    let policy = Policy {
        conflict_status: 75,
        on_lost: OnLost::Stop,
        min_hold: Duration::ZERO,
        stop_signal: None,
        timing: rules.policy_timing,
        is_recorded: false,
    };
    RunState::new(policy, Wait::Indefinitely)
}

fn event(report: Report) -> Event {
    match report {
        Report::Connected => Event::Connected,
        Report::Alive { next_due } => Event::Alive { next_due: at(next_due) },
        Report::Answered => Event::Answered,
        Report::Contended => Event::Contended,
        Report::Retrying => Event::Disconnected,
        Report::Held => Event::Acquired,
        Report::Withdrawn => Event::Withdrawn,
        Report::Failed => Event::NotAcquired(Outcome::Failed(ExitCode::Unavailable)),
        Report::Lost => Event::LockLost,
        Report::EvictionRequested => Event::EvictionRequested,
        Report::Released { was_held } => Event::Released { was_held },
    }
}

impl World {
    /// Runs the loop once: all pending events, and then the decision to start the job. The start itself is a step of
    /// its own, since pglock can be delayed in between.
    pub(super) fn step_loop(&mut self, rules: &Rules, client: usize) {
        if self.clients[client].is_launching {
            self.launch(rules, client);
            return;
        }
        self.process_events(rules, client);
        let client = &mut self.clients[client];
        client.is_launching = client.process == Process::Alive && client.state.is_starting();
    }

    fn launch(&mut self, rules: &Rules, client: usize) {
        let Client {
            inbox, is_launching, ..
        } = &mut self.clients[client];
        *is_launching = false;
        // The session's thread has taken the claim.
        if inbox.contains(&Report::Withdrawn) {
            return self.handle(rules, client, Event::Withdrawn);
        }
        self.has_ungranted_job |= !self.clients[client].record.is_granted;
        self.clients[client].job = Job::Running;
        self.clients[client].memory = WaitMemory::default();
        let in_callers_group = false;
        self.handle(rules, client, Event::JobStarted { in_callers_group });
    }

    /// Handles the events since the last call in the order of `Supervisor::pending_events`.
    fn process_events(&mut self, rules: &Rules, number: usize) {
        let client = &mut self.clients[number];
        let mut events: Vec<Event> = client.inbox.drain(..).map(event).collect();
        if client.job == Job::Exited {
            client.job = Job::Seen;
            events.push(Event::JobExited(ExitReason::Code(0)));
        }
        if std::mem::take(&mut client.is_signalled) {
            events.push(Event::Signal(SignalInfo {
                signal: Signal::SIGTERM.into(),
                from_terminal: false,
            }));
        }
        if client.state.is_draining() {
            events.push(Event::GroupEmpty);
        }
        events.push(Event::Tick);
        for event in events {
            if self.clients[number].process == Process::Alive {
                self.handle(rules, number, event);
            }
        }
    }

    fn handle(&mut self, rules: &Rules, number: usize, event: Event) {
        for action in self.clients[number].state.handle(event, now()) {
            let client = &mut self.clients[number];
            match action {
                Action::CancelWait => {
                    client.is_release_ordered = true;
                    if !client.is_cut && client.connection == Connection::Open {
                        let session = client.session;
                        self.cancel(session);
                    }
                }
                // A job may end at any time, so SIGTERM changes nothing.
                Action::SignalAll(Signal::SIGKILL) if client.job == Job::Running => client.job = Job::Exited,
                Action::SignalAll(_) | Action::Forward(_) => {}
                Action::Reap => client.job = Job::Seen,
                Action::Release => client.is_release_ordered = true,
                // The process ends with the next action, which closes all its connections.
                Action::Disconnect => {}
                Action::Finish(outcome) => {
                    let is_failed_wait = outcome == Outcome::Failed(ExitCode::Unavailable) && self.must_endure(number);
                    self.has_failed_wait |= is_failed_wait && event != Event::EvictionRequested;
                    self.exit(rules, number, Process::Exited);
                }
                Action::AbandonConnection => self.abandon_connection(rules, number),
                Action::ContinueJob | Action::StopSelf(_) | Action::ReportUnguarded => {
                    unreachable!("{action:?}: the model stops no job and ignores no loss")
                }
            }
        }
    }

    /// Ends the process, and with it its connections, unless the job has inherited the session's socket.
    pub(super) fn exit(&mut self, rules: &Rules, number: usize, process: Process) {
        let client = &mut self.clients[number];
        let is_guard = matches!(
            client.thread,
            Thread::Holding { is_guard: true, .. } | Thread::Blocked { is_guard: true, .. } | Thread::Claiming
        );
        let is_open = client.connection == Connection::Open;
        let is_running = client.job == Job::Running;
        client.process = match process {
            Process::Killed { keeps_socket } if is_running => Process::Killed {
                keeps_socket: keeps_socket && is_open && !is_guard,
            },
            // What would tell a killed process from another is its job.
            Process::Killed { .. } => Process::Exited,
            process => process,
        };
        client.forget(rules);
        let (session, is_cut) = (client.session, client.is_cut);
        if is_open && !is_cut && client.process != (Process::Killed { keeps_socket: true }) {
            self.close_session(rules, session);
        }
    }

    /// Ends the job by itself.
    pub(super) fn end_job(&mut self, rules: &Rules, number: usize) {
        let client = &mut self.clients[number];
        client.job = Job::Exited;
        if client.process == Process::Alive {
            return;
        }
        let keeps_socket = client.process == Process::Killed { keeps_socket: true };
        client.process = Process::Exited;
        client.forget(rules);
        let (session, is_cut) = (client.session, client.is_cut);
        if keeps_socket && !is_cut {
            self.close_session(rules, session);
        }
    }

    /// Mends the network: what the client had to say arrives, and so does the end of a process or of a connection that
    /// it has abandoned.
    pub(super) fn mend(&mut self, rules: &Rules, number: usize) {
        let client = &mut self.clients[number];
        client.is_cut = false;
        let session = client.session;
        let is_closed = match client.process {
            Process::Exited | Process::Killed { keeps_socket: false } => true,
            Process::Alive => {
                session == number && matches!(client.connection, Connection::None | Connection::Abandoned)
            }
            Process::NotStarted | Process::Killed { keeps_socket: true } => false,
        };
        if is_closed {
            self.close_session(rules, session);
        }
    }
}
