//! A waiter that loses its connection: a simplified `run::session::retry`.

use super::rules::Rules;
use super::world::{Client, Connection, Evictor, Record, Report, Thread, World};

impl Client {
    /// Returns whether the client knows that its connection is of no use any more. In a cut network it does not hear
    /// of the server's end.
    pub(super) fn is_disconnected(&self) -> bool {
        match self.connection {
            Connection::Ended => !self.is_cut,
            Connection::Abandoned => true,
            Connection::None | Connection::Open => false,
        }
    }

    /// Returns whether the job of a client that held the lock may still run without it.
    pub(super) fn must_await_old_job(&self, rules: &Rules) -> bool {
        self.memory
            .holder_lost_at
            .is_some_and(|lost_at| -lost_at < rules.old_job_limit)
    }
}

impl World {
    /// Notes that the server has answered the first query on a connection.
    pub(super) fn note_answer(&mut self, number: usize) {
        let client = &mut self.clients[number];
        if !client.memory.has_answered {
            client.report(Report::Answered);
        }
        client.memory.has_answered = true;
        client.memory.has_answered_here = true;
    }

    /// Notes that another client holds the lock.
    pub(super) fn note_contention(&mut self, number: usize) {
        let client = &mut self.clients[number];
        if !client.memory.was_contended {
            client.report(Report::Contended);
        }
        client.memory.was_contended = true;
    }

    /// Returns whether only an answer may end the client's wait. An evictor may, too, of which the client may have seen
    /// the mark when it is gone: a lock that it has acquired meanwhile is then released at once.
    pub(super) fn must_endure(&self, number: usize) -> bool {
        let client = &self.clients[number];
        client.memory.has_answered && !client.is_release_ordered && self.evictor.is_none()
    }

    /// Returns, one bit for each, which clients wait and know of the holder, and have not noticed that their connection
    /// is lost.
    pub(super) fn witnesses(&self) -> u8 {
        let is_witness = |client: &Client| client.memory.was_contended && client.memory.has_answered_here;
        let witnesses = self.clients.iter().enumerate().filter(|(_, client)| is_witness(client));
        witnesses.fold(0, |bits, (number, _)| bits | 1 << number)
    }

    /// Gives up a connection that does not respond.
    pub(super) fn abandon_connection(&mut self, rules: &Rules, number: usize) {
        let client = &mut self.clients[number];
        let is_open = client.connection == Connection::Open;
        // A reply that has arrived can still be read.
        client.connection = Connection::Abandoned;
        let (session, is_cut) = (client.session, client.is_cut);
        if is_open && !is_cut {
            self.close_session(rules, session);
        }
    }

    /// After the connection of a waiter is lost: connects again, if the server has answered before.
    pub(super) fn lose_contact(&mut self, rules: &Rules, number: usize) {
        let client = &mut self.clients[number];
        if !client.memory.has_answered || client.is_release_ordered {
            return self.fail(number);
        }
        let knows_holder = client.memory.was_contended && client.memory.has_answered_here;
        if knows_holder && rules.fixes.waiter_waits {
            client.memory.holder_lost_at = Some(0);
            client.memory.is_granted_since = false;
        }
        client.memory.has_answered_here = false;
        client.connection = Connection::None;
        client.session = number;
        // A lock that was granted, and is lost before we knew of it, is of no consequence.
        client.record = Record {
            loop_delay: client.record.loop_delay,
            was_delayed: client.record.was_delayed,
            overdue: client.record.overdue,
            ..Record::default()
        };
        client.report(Report::Retrying);
        client.thread = Thread::Connecting;
    }

    /// After the lock is lost before the job was started: connects again, whether another client was seen or not, and
    /// ends if it finds that its session was evicted.
    pub(super) fn withdraw(&mut self, rules: &Rules, number: usize) {
        let client = &mut self.clients[number];
        client.report(Report::Withdrawn);
        let session = client.session;
        if !client.is_cut && self.evictor == Some(Evictor::Forcing { session }) {
            // It need not endure that.
            client.memory.has_answered = false;
            return self.fail(number);
        }
        client.memory.was_contended = true;
        client.memory.has_answered_here = true;
        self.lose_contact(rules, number);
    }

    /// On a new connection: leaves the key alone as long as the old job may run, and tries it then.
    pub(super) fn take_up_wait(&mut self, rules: &Rules, number: usize) {
        if self.clients[number].must_await_old_job(rules) {
            self.hear(number);
            self.clients[number].memory.has_answered_here = true;
            if !self.is_holder_accounted_for(number) {
                let client = &mut self.clients[number];
                client.report_alive(2 * rules.timing.heartbeat + 1);
                client.thread = Thread::AwaitingOldJob { is_look_due: false };
                return;
            }
        }
        let memory = &mut self.clients[number].memory;
        memory.holder_lost_at = None;
        memory.is_granted_since = false;
        self.try_key(rules, number);
    }

    /// Returns whether the key is held by a guard, or has been held by the same client since before the waiter lost its
    /// connection.
    pub(super) fn is_holder_accounted_for(&self, number: usize) -> bool {
        let is_old = self.server.holder.is_some() && !self.clients[number].memory.is_granted_since;
        is_old || self.is_held_by_guard()
    }

    /// Returns whether the key is held by a guard.
    pub(super) fn is_held_by_guard(&self) -> bool {
        let is_guard = |client: &Client| {
            let is_guard = matches!(
                client.thread,
                Thread::Holding { is_guard: true, .. } | Thread::Blocked { is_guard: true, .. }
            );
            is_guard && self.server.holder == Some(client.session)
        };
        self.clients.iter().any(is_guard)
    }
}
