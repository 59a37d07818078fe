//! The server: sessions, the key, its queue, and what ends a session.

use super::rules::Rules;
use super::time::Ticks;
use super::world::{Client, Connection, Evictor, Exception, Job, Loss, Process, Queued, Reply, Session, Thread, World};
use crate::lock::Receipt;

/// How a client comes to the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// It tried the key, and found it free.
    Try,
    /// It waited in the server's queue.
    Queue,
}

impl World {
    /// Opens the client's own session.
    pub(super) fn open_session(&mut self, client: usize) {
        self.server.sessions[client] = Some(Session::default());
        self.clients[client].session = client;
        self.clients[client].connection = Connection::Open;
    }

    /// Grants the free key to the client's session, which has tried it or is the next in the queue.
    pub(super) fn grant(&mut self, rules: &Rules, client: usize, way: Way) {
        self.server.holder = Some(self.clients[client].session);
        for other in 0..self.clients.len() {
            if other != client && self.is_at_risk(other) && self.clients[other].record.exception.is_none() {
                self.clients[other].record.exception = self.exception(rules, other, client, way);
            }
        }
        // A waiter has to wait again.
        for client in self.clients.iter_mut().filter(|client| client.is_waiting()) {
            client.record.overdue = 0;
        }
        for client in &mut self.clients {
            client.memory.is_granted_since = client.memory.holder_lost_at.is_some();
        }
        let Client { connection, record, .. } = &mut self.clients[client];
        // A client that has given up the connection hears nothing of it.
        record.is_granted = *connection == Connection::Open;
        record.loss = None;
        record.is_guard_hindered = false;
        record.witnesses = 0;
    }

    /// Returns whether the client was granted the lock, and its job runs or may still start.
    fn is_at_risk(&self, client: usize) -> bool {
        let client = &self.clients[client];
        let may_start = client.process == Process::Alive && client.job == Job::None;
        client.record.is_granted && (client.job == Job::Running || may_start)
    }

    /// Returns the named case in which the other client may be granted the key now, although this one's job may run.
    fn exception(&self, rules: &Rules, client: usize, other: usize, way: Way) -> Option<Exception> {
        let client = &self.clients[client];
        let record = &client.record;
        if let Process::Killed { .. } = client.process {
            return Some(Exception::Killed);
        }
        match record.loss? {
            Loss::Terminated if record.is_loss_fresh && way == Way::Try => Some(Exception::CameBeforeGuard),
            Loss::Restarted if record.witnesses & (1 << other) != 0 => None,
            Loss::Terminated | Loss::Restarted if record.is_guard_hindered => Some(Exception::GuardHindered),
            Loss::Forced => Some(Exception::Forced),
            Loss::Silent if record.loop_delay > rules.covered_delay => Some(Exception::Frozen),
            Loss::Unresponsive if record.was_delayed => Some(Exception::Unresponsive),
            Loss::Vanished => Some(Exception::Vanished),
            _ => None,
        }
    }

    /// Frees the key if the session holds it, and grants it to the next one in the queue: to one that claims it, since
    /// all others give it back.
    pub(super) fn free_key(&mut self, rules: &Rules, session: usize, receipt: Receipt) {
        if self.server.holder != Some(session) {
            return;
        }
        self.server.holder = None;
        let is_claimant = |session: &usize| self.server.claims & (1 << session) != 0;
        if let Some(loser) = (0..self.clients.len()).find(is_claimant) {
            for queued in std::mem::take(&mut self.server.queue) {
                self.reply(queued.session, Reply::Claimed);
            }
            self.server.claims &= !(1 << loser);
            if self.clients[loser].thread == Thread::Claiming {
                self.grant(rules, loser, Way::Queue);
                self.clients[loser].stand_guard(rules);
            } else {
                // It was killed, which the server does not know yet.
                self.server.holder = Some(loser);
            }
        } else if !self.server.queue.is_empty() {
            let next = self.server.queue.remove(0).session;
            if receipt == Receipt::Left || !rules.fixes.waiter_wants_receipt {
                self.reply(next, Reply::Granted);
                self.grant(rules, next, Way::Queue);
            } else {
                self.reply(next, Reply::Unreleased);
                self.server.holder = Some(next);
            }
        }
    }

    /// Replies to what the client waits for in the queue, unless it has given up the connection.
    fn reply(&mut self, client: usize, reply: Reply) {
        let client = &mut self.clients[client];
        client.reply = (client.connection == Connection::Open).then_some(reply);
    }

    /// Takes the wanted place in the queue.
    pub(super) fn enqueue(&mut self, client: usize) {
        self.server.queue.push(Queued {
            session: client,
            left: 1,
        });
    }

    /// Cancels what the session waits for in the queue.
    pub(super) fn cancel(&mut self, session: usize) {
        let length = self.server.queue.len();
        self.server.queue.retain(|queued| queued.session != session);
        if self.server.queue.len() < length {
            self.reply(session, Reply::Cancelled);
        }
    }

    /// Notes that the server has received something from the client's session.
    pub(super) fn hear(&mut self, client: usize) {
        if let Some(session) = &mut self.server.sessions[self.clients[client].session] {
            session.silent_for = 0;
        }
    }

    /// Forgets a session. An evictor that asked for its lock is done: the number may be used again, its process is not.
    fn drop_session(&mut self, session: usize) {
        self.server.sessions[session] = None;
        self.server.claims &= !(1 << session);
        if matches!(self.evictor, Some(Evictor::Asking { session: asked, .. }) if asked == session) {
            self.evictor = None;
        }
    }

    /// Ends a session because its client has closed it.
    pub(super) fn close_session(&mut self, rules: &Rules, session: usize) {
        if self.server.sessions[session].is_some_and(|session| session.is_lent) {
            return;
        }
        self.drop_session(session);
        self.server.queue.retain(|queued| queued.session != session);
        self.free_key(rules, session, Receipt::None);
    }

    /// Ends a session from the server's side.
    pub(super) fn end_session(&mut self, rules: &Rules, session: usize, loss: Loss) {
        let witnesses = if loss == Loss::Restarted { self.witnesses() } else { 0 };
        self.drop_session(session);
        self.server.queue.retain(|queued| queued.session != session);
        for client in &mut self.clients {
            if client.session == session && client.connection == Connection::Open {
                client.connection = Connection::Ended;
            }
            if client.session == session && client.record.is_granted {
                // A lock that has vanished before is not lost again.
                client.record.loss.get_or_insert(loss);
                client.record.is_loss_fresh = true;
                client.record.witnesses = witnesses;
            }
        }
        self.free_key(rules, session, Receipt::None);
    }

    /// Has the lock vanish from the session that holds it.
    pub(super) fn vanish(&mut self, rules: &Rules, session: usize) {
        for client in self.clients.iter_mut().filter(|client| client.session == session) {
            client.record.loss = Some(Loss::Vanished);
            // Until the end of that tick.
            client.record.vanished_for = rules.timing.job_limit + 1;
        }
        self.free_key(rules, session, Receipt::None);
    }

    /// Restarts the server, which is away for some ticks. It ends one session after the other, and what the end of one
    /// frees it grants to the next in the queue, if that still lives.
    pub(super) fn restart(&mut self, rules: &Rules, away_for: Ticks) {
        for session in 0..self.server.sessions.len() {
            if self.server.sessions[session].is_some() {
                self.end_session(rules, session, Loss::Restarted);
            }
        }
        self.evictor = None;
        self.server.is_young = away_for == 0;
        self.server.away_for = (away_for > 0).then_some(away_for);
    }

    /// Lets a tick pass on the server.
    pub(super) fn pass_tick_on_server(&mut self, rules: &Rules) {
        self.server.is_young = false;
        if let Some(left) = self.server.away_for {
            self.server.away_for = (left > 1).then(|| left - 1);
            self.server.is_young = left == 1;
        }
        for queued in std::mem::take(&mut self.server.queue) {
            if queued.left > 1 {
                self.server.queue.push(Queued {
                    left: queued.left - 1,
                    ..queued
                });
            } else {
                self.reply(queued.session, Reply::Busy);
            }
        }
        let limit = rules.timing.server_limit;
        for number in 0..self.server.sessions.len() {
            let Some(session) = &mut self.server.sessions[number] else {
                continue;
            };
            session.silent_for = (session.silent_for + 1).min(limit);
            if session.silent_for == limit && self.clients[number].is_cut {
                self.end_session(rules, number, Loss::Silent);
            }
        }
    }

    /// Starts `pglock evict` for the session that holds the key.
    pub(super) fn evict(&mut self, rules: &Rules, session: usize, is_forced: bool) {
        if !is_forced && rules.fixes.eviction_asks {
            if let Some(session) = &mut self.server.sessions[session] {
                session.is_marked = true;
            }
            let left = rules.eviction_limit;
            self.evictor = Some(Evictor::Asking { session, left });
            return;
        }
        if is_forced {
            self.evictor = Some(Evictor::Forcing { session });
        }
        let loss = if is_forced { Loss::Forced } else { Loss::EvictedAtOnce };
        self.end_session(rules, session, loss);
    }

    /// Returns whether the evictor has something to do now.
    pub(super) fn can_evictor_step(&self) -> bool {
        match self.evictor {
            Some(Evictor::Asking { session, left }) => left <= 0 || self.server.holder != Some(session),
            Some(Evictor::Forcing { .. }) | None => false,
        }
    }

    /// Has the evictor end the session that did not react, or return.
    pub(super) fn step_evictor(&mut self, rules: &Rules) {
        let Some(Evictor::Asking { session, .. }) = self.evictor.take() else {
            return;
        };
        if self.server.holder == Some(session) {
            self.end_session(rules, session, Loss::Unresponsive);
        } else if let Some(session) = &mut self.server.sessions[session] {
            session.is_marked = false;
        }
    }

    /// Lets a tick pass for the evictor.
    pub(super) fn pass_tick_for_evictor(&mut self) {
        match &mut self.evictor {
            Some(Evictor::Asking { left, .. }) => *left -= 1,
            Some(Evictor::Forcing { .. }) => self.evictor = None,
            None => {}
        }
    }
}
