//! A pglock's session thread: a simplified `run::session`.

use super::rules::Rules;
use super::server::Way;
use super::time::Ticks;
use super::world::{Client, Connection, Evictor, Job, Process, Reply, Report, Thread, World};
use crate::lock::Receipt;

impl Client {
    /// Notes a delay of a tick.
    pub(super) fn delay(&mut self, is_loop: bool) {
        self.record.was_delayed = true;
        if is_loop {
            self.is_loop_delayed = true;
            self.record.loop_delay += 1;
        } else {
            self.is_thread_delayed = true;
        }
    }
}

impl Client {
    /// Holds the lost key again.
    pub(super) fn stand_guard(&mut self, rules: &Rules) {
        self.report_alive(2 * rules.timing.heartbeat);
        self.thread = Thread::Holding {
            sent: 0,
            is_guard: true,
            is_told: false,
        };
    }
}

impl World {
    pub(super) fn can_thread_step(&self, rules: &Rules, number: usize) -> bool {
        let client = &self.clients[number];
        if client.process != Process::Alive || client.is_thread_delayed {
            return false;
        }
        let (is_ordered, is_there) = (client.is_release_ordered, self.server.away_for.is_none());
        let is_ended = client.is_disconnected();
        let has_reply = client.reply.is_some();
        match client.thread {
            Thread::Ended => false,
            // Without the network, a release is blocked as well, but nobody waits for that longer than H.
            _ if client.is_cut => match client.thread {
                Thread::Holding { sent, .. } => is_ended || -sent >= rules.timing.heartbeat && !is_ordered,
                Thread::Guarding { .. } => is_ordered,
                Thread::Claiming => is_ended || is_ordered,
                _ => is_ended,
            },
            // The first attempt fails.
            Thread::Connecting => is_there || !client.memory.has_answered,
            Thread::AwaitingOldJob { is_look_due } => {
                is_ended || is_ordered || is_look_due || self.is_holder_accounted_for(number)
            }
            Thread::AwaitingClaim { is_over } => is_ended || is_ordered || is_over || self.server.claims != 0,
            Thread::Settling => is_ended || is_ordered || !self.server.is_young,
            Thread::Queueing { .. } => is_ended || has_reply,
            Thread::Pausing { is_over } => is_ended || is_ordered || is_over,
            Thread::Holding { sent, .. } => is_ended || is_ordered || -sent >= rules.timing.heartbeat,
            Thread::Blocked { .. } => true,
            // Without a claim, it tries again and again, which changes nothing as long as the key is taken.
            Thread::Guarding { looks_for_evictor } => {
                let can_change = looks_for_evictor || rules.fixes.guard_claims || self.server.holder.is_none();
                is_ordered || is_there && can_change
            }
            Thread::Claiming => is_ended || is_ordered,
        }
    }

    pub(super) fn step_thread(&mut self, rules: &Rules, number: usize) {
        let thread = self.clients[number].thread;
        let is_ended = self.clients[number].is_disconnected();
        let is_ordered = self.clients[number].is_release_ordered;
        match thread {
            Thread::Ended => {}
            Thread::Connecting => self.connect(rules, number),
            Thread::Queueing { sent } => self.read_reply(rules, number, sent),
            Thread::AwaitingOldJob { .. }
            | Thread::Settling
            | Thread::Pausing { .. }
            | Thread::AwaitingClaim { .. }
                if is_ended =>
            {
                self.lose_contact(rules, number);
            }
            Thread::AwaitingClaim { .. } => self.await_claim(rules, number),
            Thread::AwaitingOldJob { .. } | Thread::Settling | Thread::Pausing { .. } if is_ordered => {
                self.fail(number)
            }
            Thread::AwaitingOldJob { .. } => self.take_up_wait(rules, number),
            Thread::Settling | Thread::Pausing { .. } => self.try_key(rules, number),
            Thread::Holding { is_guard, .. } | Thread::Blocked { is_guard, .. } if is_ended => {
                self.lose(rules, number, is_guard);
            }
            Thread::Holding { is_guard, .. } if is_ordered => {
                self.release(rules, number, is_guard);
            }
            Thread::Holding { is_guard, is_told, .. } if self.clients[number].is_cut => {
                let sent = 0;
                self.clients[number].thread = Thread::Blocked {
                    sent,
                    is_guard,
                    is_told,
                };
            }
            Thread::Holding { is_guard, is_told, .. } => self.heartbeat(rules, number, 0, is_guard, is_told),
            Thread::Blocked {
                sent,
                is_guard,
                is_told,
            } => self.heartbeat(rules, number, sent, is_guard, is_told),
            Thread::Guarding { looks_for_evictor } => self.guard(rules, number, looks_for_evictor),
            Thread::Claiming if is_ordered => self.clients[number].thread = Thread::Ended,
            Thread::Claiming => {
                let client = &mut self.clients[number];
                client.connection = Connection::None;
                client.thread = Thread::Guarding {
                    looks_for_evictor: false,
                };
            }
        }
    }

    /// Ends the wait with a failure.
    pub(super) fn fail(&mut self, number: usize) {
        self.clients[number].thread = Thread::Ended;
        self.clients[number].report(Report::Failed);
    }

    fn connect(&mut self, rules: &Rules, number: usize) {
        if self.server.away_for.is_some() {
            return self.fail(number);
        }
        let lent = self.clients[number].session;
        match &mut self.server.sessions[lent] {
            Some(session) if lent != number => {
                session.is_lent = true;
                self.clients[number].connection = Connection::Open;
            }
            _ => self.open_session(number),
        }
        self.clients[number].report(Report::Connected);
        self.take_up_wait(rules, number);
    }

    /// The first query: examines the server, and tries the key.
    pub(super) fn try_key(&mut self, rules: &Rules, number: usize) {
        self.hear(number);
        self.note_answer(number);
        let double_heartbeat = 2 * rules.timing.heartbeat;
        if self.server.is_young && rules.fixes.newcomer_waits {
            self.clients[number].report_alive(double_heartbeat + 1);
            self.clients[number].thread = Thread::Settling;
            return;
        }
        let session = self.clients[number].session;
        let is_leftover = self.server.holder == Some(session);
        if self.server.holder.is_none() || is_leftover && !rules.fixes.leftovers_count {
            self.grant(rules, number, Way::Try);
            return self.hold(rules, number, 0);
        }
        self.note_contention(number);
        self.clients[number].report_alive(double_heartbeat + 1);
        // A lent session has no place of its own in the queue.
        if session == number && !is_leftover {
            self.enqueue(number);
            self.clients[number].thread = Thread::Queueing { sent: 0 };
        } else {
            self.clients[number].thread = Thread::Pausing { is_over: false };
        }
    }

    /// Reads the reply to a slice in the queue, which can be the last that the server has sent.
    fn read_reply(&mut self, rules: &Rules, number: usize, mut sent: Ticks) {
        let session = self.clients[number].session;
        let is_ended = self.clients[number].is_disconnected();
        let is_ordered = self.clients[number].is_release_ordered;
        let is_taken = self.server.holder.is_some();
        match self.clients[number].reply.take() {
            Some(Reply::Granted) => {
                // The timing rule counts from when the last query was sent.
                if -sent >= rules.timing.heartbeat {
                    if is_ended || self.server.holder != Some(session) {
                        return self.lose(rules, number, false);
                    }
                    self.hear(number);
                    sent = 0;
                }
                self.hold(rules, number, sent);
            }
            _ if is_ended => self.lose_contact(rules, number),
            Some(Reply::Busy) if !is_ordered && (is_taken || !rules.fixes.waiter_wants_receipt) => {
                self.try_key(rules, number);
            }
            Some(Reply::Claimed) if !is_ordered => {
                self.hear(number);
                self.clients[number].report_alive(2 * rules.timing.heartbeat + 1);
                self.clients[number].thread = Thread::Pausing { is_over: false };
            }
            // One that is free between two slices may just have been lost.
            Some(Reply::Busy) if !is_ordered => {
                self.server.holder = Some(session);
                self.start_awaiting_claim(rules, number);
            }
            Some(Reply::Unreleased) if self.server.holder == Some(session) => {
                self.start_awaiting_claim(rules, number);
            }
            Some(Reply::Unreleased) => self.lose_contact(rules, number),
            Some(Reply::Busy | Reply::Claimed | Reply::Cancelled) | None => self.fail(number),
        }
    }

    /// Has a key that nobody has released.
    fn start_awaiting_claim(&mut self, rules: &Rules, number: usize) {
        self.hear(number);
        self.clients[number].report_alive(2 * rules.timing.heartbeat + 1);
        self.clients[number].thread = Thread::AwaitingClaim { is_over: false };
    }

    /// Gives the key back if its loser claims it, and takes it otherwise.
    fn await_claim(&mut self, rules: &Rules, number: usize) {
        self.hear(number);
        let session = self.clients[number].session;
        if self.clients[number].is_release_ordered {
            self.free_key(rules, session, Receipt::None);
            return self.fail(number);
        }
        if self.server.holder != Some(session) {
            return self.try_key(rules, number);
        }
        if self.server.claims != 0 {
            self.free_key(rules, session, Receipt::None);
            self.clients[number].report_alive(2 * rules.timing.heartbeat + 1);
            self.clients[number].thread = Thread::Pausing { is_over: false };
            return;
        }
        self.grant(rules, number, Way::Queue);
        self.hold(rules, number, 0);
    }

    /// Reports the lock as ours.
    fn hold(&mut self, rules: &Rules, number: usize, sent: Ticks) {
        let client = &mut self.clients[number];
        client.report_alive(sent + 2 * rules.timing.heartbeat);
        client.report(Report::Held);
        client.thread = Thread::Holding {
            sent,
            is_guard: false,
            is_told: false,
        };
    }

    /// Receives the reply to a heartbeat, and reports it.
    fn heartbeat(&mut self, rules: &Rules, number: usize, sent: Ticks, is_guard: bool, mut is_told: bool) {
        self.hear(number);
        let session = self.clients[number].session;
        if self.server.holder != Some(session) && rules.fixes.heartbeat_proves {
            return self.lose(rules, number, is_guard);
        }
        let is_marked = self.server.sessions[session].is_some_and(|session| session.is_marked);
        let client = &mut self.clients[number];
        if is_marked && !is_told {
            is_told = true;
            client.report(Report::EvictionRequested);
        }
        client.report_alive(sent + 2 * rules.timing.heartbeat);
        client.thread = Thread::Holding {
            sent,
            is_guard,
            is_told,
        };
    }

    fn release(&mut self, rules: &Rules, number: usize, is_guard: bool) {
        self.hear(number);
        let session = self.clients[number].session;
        let was_held = self.server.holder == Some(session);
        let is_lent = self.server.sessions[session].is_some_and(|session| session.is_lent);
        self.free_key(rules, session, Receipt::unless_lent(is_lent));
        self.clients[number].thread = Thread::Ended;
        // Nobody waits for what was acquired again.
        if !is_guard {
            self.clients[number].report(Report::Released { was_held });
        }
    }

    /// Reports the loss, and sets out to guard the key; without a job, goes on waiting.
    fn lose(&mut self, rules: &Rules, number: usize, is_guard: bool) {
        let session = self.clients[number].session;
        let is_ended = self.clients[number].connection == Connection::Ended;
        if !is_ended && !self.clients[number].is_cut {
            self.close_session(rules, session);
        }
        let client = &mut self.clients[number];
        if client.job == Job::None && !client.is_release_ordered && rules.fixes.waiter_withdraws {
            return self.withdraw(rules, number);
        }
        client.connection = Connection::None;
        client.session = number;
        if !is_guard {
            client.report(Report::Lost);
        }
        client.thread = if rules.fixes.guard_stands {
            // Only the first attempt after a message of the server looks for the evictor.
            Thread::Guarding {
                looks_for_evictor: is_ended,
            }
        } else {
            Thread::Ended
        };
    }

    /// Reconnects and acquires the key again, unless it is taken, or an eviction was forced.
    fn guard(&mut self, rules: &Rules, number: usize, looks_for_evictor: bool) {
        let session = self.clients[number].session;
        let is_forced = looks_for_evictor && self.evictor == Some(Evictor::Forcing { session });
        if self.clients[number].is_release_ordered || is_forced {
            self.clients[number].thread = Thread::Ended;
            return;
        }
        if self.server.holder.is_some() {
            self.clients[number].thread = if rules.fixes.guard_claims {
                self.open_session(number);
                self.server.claims |= 1 << number;
                Thread::Claiming
            } else {
                Thread::Guarding {
                    looks_for_evictor: false,
                }
            };
            return;
        }
        self.open_session(number);
        self.grant(rules, number, Way::Try);
        self.clients[number].stand_guard(rules);
    }
}
