//! The steps of the model: what can happen in a world, and the world after it.

use super::client::MAX_OWED;
use super::rules::Rules;
use super::time::{self, Ticks};
use super::world::{Budget, Client, Connection, Job, Loss, Process, Report, Server, Thread, World};
use crate::run::state::Phase;

/// A step of the model. A number is that of a client, or of its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A tick passes, because nobody has anything to do now.
    Tick,
    Start(usize),
    Loop(usize),
    Thread(usize),
    Evictor,
    JobEnds(usize),
    Mend(usize),
    // The rest are faults.
    /// A client starts, and a pooler lends it another one's session.
    StartOnLoan {
        client: usize,
        session: usize,
    },
    Terminate(usize),
    Restart {
        away_for: Ticks,
    },
    Cut(usize),
    Evict(usize),
    ForceEviction(usize),
    Kill {
        client: usize,
        keeps_socket: bool,
    },
    DelayLoop(usize),
    DelayThread(usize),
    Vanish(usize),
    Signal(usize),
}

impl World {
    pub(super) fn new(rules: &Rules) -> World {
        World {
            clients: (0..rules.clients).map(|number| Client::new(rules, number)).collect(),
            server: Server {
                away_for: None,
                is_young: false,
                sessions: vec![None; rules.clients],
                holder: None,
                queue: Vec::new(),
                claims: 0,
            },
            evictor: None,
            budget: rules.budget,
            is_spinning: false,
            has_ungranted_job: false,
            has_failed_wait: false,
        }
    }

    /// Appends what can happen now.
    pub(super) fn push_steps(&self, rules: &Rules, steps: &mut Vec<Step>) {
        let mut is_idle = true;
        for (number, client) in self.clients.iter().enumerate() {
            if client.can_loop_step() {
                steps.push(Step::Loop(number));
                is_idle = false;
            }
            if self.can_thread_step(rules, number) {
                steps.push(Step::Thread(number));
                is_idle = false;
            }
            if client.job == Job::Running {
                steps.push(Step::JobEnds(number));
            }
            if client.is_cut {
                steps.push(Step::Mend(number));
            }
        }
        if self.can_evictor_step() {
            steps.push(Step::Evictor);
            is_idle = false;
        }
        // Clients are alike, so they start in order.
        let next = self
            .clients
            .iter()
            .position(|client| client.process == Process::NotStarted);
        steps.extend(next.map(Step::Start));
        if is_idle {
            steps.push(Step::Tick);
        }
        if self.budget.total > 0 {
            self.push_server_faults(rules, next, steps);
            self.push_client_faults(steps);
        }
    }

    fn push_server_faults(&self, rules: &Rules, next: Option<usize>, steps: &mut Vec<Step>) {
        let budget = &self.budget;
        if budget.restarts > 0 && self.server.away_for.is_none() {
            steps.extend((0..=rules.longest_restart).map(|away_for| Step::Restart { away_for }));
        }
        if budget.terminations > 0 {
            let sessions = (0..self.server.sessions.len()).filter(|number| self.server.sessions[*number].is_some());
            steps.extend(sessions.map(Step::Terminate));
        }
        let Some(holder) = self.server.holder else {
            return;
        };
        if budget.evictions > 0 && self.evictor.is_none() {
            steps.extend([Step::Evict(holder), Step::ForceEviction(holder)]);
        }
        let is_lent = self
            .clients
            .iter()
            .enumerate()
            .any(|(number, client)| number != holder && client.session == holder);
        if budget.vanishings > 0 && !is_lent {
            steps.push(Step::Vanish(holder));
        }
        if let (true, Some(client)) = (budget.loans > 0, next) {
            let session = holder;
            steps.push(Step::StartOnLoan { client, session });
        }
    }

    fn push_client_faults(&self, steps: &mut Vec<Step>) {
        let budget = &self.budget;
        for (number, client) in self.clients.iter().enumerate() {
            if client.process != Process::Alive {
                if budget.cuts > 0 && !client.is_cut && self.server.sessions[number].is_some() {
                    steps.push(Step::Cut(number));
                }
                continue;
            }
            if budget.cuts > 0 && !client.is_cut {
                steps.push(Step::Cut(number));
            }
            if budget.kills > 0 {
                let kill = |keeps_socket| Step::Kill {
                    client: number,
                    keeps_socket,
                };
                steps.push(kill(false));
                if client.job == Job::Running {
                    steps.push(kill(true));
                }
            }
            if budget.loop_delays > 0 && !client.is_loop_delayed {
                steps.push(Step::DelayLoop(number));
            }
            if budget.thread_delays > 0 && !client.is_thread_delayed && client.thread != Thread::Ended {
                steps.push(Step::DelayThread(number));
            }
            if budget.signals > 0 {
                steps.push(Step::Signal(number));
            }
        }
    }

    /// Returns the world after a step.
    pub(super) fn after(&self, rules: &Rules, step: Step) -> World {
        let mut world = self.clone();
        world.pay(step);
        match step {
            Step::Tick => world.pass_tick(rules),
            Step::Start(client) => world.clients[client].start(),
            Step::Loop(client) => world.step_loop(rules, client),
            Step::Thread(client) => world.step_thread(rules, client),
            Step::Evictor => world.step_evictor(rules),
            Step::JobEnds(client) => world.end_job(rules, client),
            Step::Mend(client) => world.mend(rules, client),
            Step::StartOnLoan { client, session } => {
                world.clients[client].start();
                world.clients[client].session = session;
            }
            Step::Terminate(session) => world.end_session(rules, session, Loss::Terminated),
            Step::Restart { away_for } => world.restart(rules, away_for),
            Step::Cut(client) => world.clients[client].is_cut = true,
            Step::Evict(session) => world.evict(rules, session, false),
            Step::ForceEviction(session) => world.evict(rules, session, true),
            Step::Kill { client, keeps_socket } => world.exit(rules, client, Process::Killed { keeps_socket }),
            Step::DelayLoop(client) => world.clients[client].delay(true),
            Step::DelayThread(client) => world.clients[client].delay(false),
            Step::Vanish(session) => world.vanish(rules, session),
            Step::Signal(client) => world.clients[client].is_signalled = true,
        }
        let must_progress = matches!(step, Step::Loop(_) | Step::Thread(_) | Step::Evictor);
        world.is_spinning |= must_progress && world == *self;
        world
    }

    /// Takes a fault from the budget.
    fn pay(&mut self, step: Step) {
        let Budget {
            total,
            terminations,
            restarts,
            cuts,
            evictions,
            kills,
            loop_delays,
            thread_delays,
            vanishings,
            loans,
            signals,
        } = &mut self.budget;
        let kind = match step {
            Step::Terminate(_) => terminations,
            Step::Restart { .. } => restarts,
            Step::Cut(_) => cuts,
            Step::Evict(_) | Step::ForceEviction(_) => evictions,
            Step::Kill { .. } => kills,
            Step::DelayLoop(_) => loop_delays,
            Step::DelayThread(_) => thread_delays,
            Step::Vanish(_) => vanishings,
            Step::StartOnLoan { .. } => loans,
            Step::Signal(_) => signals,
            _ => return,
        };
        *kind -= 1;
        *total -= 1;
        if *total == 0 {
            // Nothing differs any more.
            self.budget = Budget::default();
        }
    }

    fn pass_tick(&mut self, rules: &Rules) {
        let is_there = self.server.away_for.is_none();
        for client in &mut self.clients {
            client.note_hindrance(is_there);
        }
        self.pass_tick_on_server(rules);
        self.pass_tick_for_evictor();
        for number in 0..self.clients.len() {
            self.note_obligations(rules, number);
            let has_session = self.server.sessions[number].is_some();
            let client = &mut self.clients[number];
            client.pass_tick(rules);
            if matches!(client.process, Process::Exited | Process::Killed { .. }) && !has_session {
                client.is_cut = false;
            }
        }
    }

    /// Counts for how long a run has owed its next step: to acquire a free key, or to end. A delayed thread or, for the
    /// key, a cut network stops the count. A waiter that may not acquire the key yet owes nothing.
    fn note_obligations(&mut self, rules: &Rules, number: usize) {
        let (is_free, is_there) = (self.server.holder.is_none(), self.server.away_for.is_none());
        let client = &mut self.clients[number];
        let is_held = self.server.holder == Some(client.session) && client.connection == Connection::Open;
        let owes = match client.state.phase {
            _ if client.process != Process::Alive => false,
            Phase::Acquiring { .. } => is_free && is_there && !client.is_cut && !client.must_await_old_job(rules),
            Phase::Running => !is_held || client.is_cut,
            Phase::Finished => false,
            _ => true,
        };
        let is_delayed = client.is_loop_delayed || client.is_thread_delayed;
        let overdue = &mut client.record.overdue;
        *overdue = match owes {
            true if is_delayed => *overdue,
            true => (*overdue + 1).min(MAX_OWED),
            false => 0,
        };
    }
}

impl Client {
    /// Notes, as a tick passes, that the guard could not run or had no network although the server was there.
    fn note_hindrance(&mut self, is_server_there: bool) {
        let record = &mut self.record;
        record.is_loss_fresh = false;
        let is_hindered = is_server_there && (self.is_thread_delayed || self.is_cut);
        record.is_guard_hindered |= record.loss.is_some() && is_hindered;
        if record.vanished_for > 0 && !self.is_loop_delayed && !self.is_thread_delayed {
            record.vanished_for -= 1;
        }
    }

    fn pass_tick(&mut self, rules: &Rules) {
        time::pass_tick(&mut self.state);
        for report in &mut self.inbox {
            if let Report::Alive { next_due } = report {
                *next_due = (*next_due - 1).max(time::OLDEST);
            }
        }
        match &mut self.thread {
            Thread::Queueing { sent } | Thread::Holding { sent, .. } | Thread::Blocked { sent, .. } => {
                *sent = (*sent - 1).max(time::OLDEST);
            }
            Thread::Pausing { is_over: is_due }
            | Thread::AwaitingClaim { is_over: is_due }
            | Thread::AwaitingOldJob { is_look_due: is_due } => *is_due = true,
            Thread::Connecting | Thread::Settling | Thread::Guarding { .. } | Thread::Claiming | Thread::Ended => {}
        }
        if let Some(lost_at) = &mut self.memory.holder_lost_at {
            *lost_at = (*lost_at - 1).max(-rules.old_job_limit);
        }
        self.is_loop_delayed = false;
        self.is_thread_delayed = false;
    }
}
