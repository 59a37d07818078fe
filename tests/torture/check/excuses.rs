//! What explains that a job was inside without its lock.
//!
//! A session that is ended frees the lock at once, but its pglock takes it again until the job is dead. That fails in
//! these cases only: pglock itself was killed or stopped; the lock was to be free at once (`pglock evict --force`);
//! another client wanted the lock when `pg_terminate_backend` or the proxy ended the session, and had just arrived or
//! polled; it had arrived after the old primary was stopped; or the server could not be reached. Behind a pooler that
//! lends its first client's session, the pglock does not know before its next query.

use super::{ARRIVAL_LIMIT_NS, cuts, disturbs, ends_proxied, ends_sessions, restarts, share_a_key};
use super::{Check, Holder, SECOND_NS, START_LIMIT_NS, TERMINATION_LIMIT_NS};
use crate::history::{End, Fault, Run, Target};
use crate::plan::Kind;
use crate::request::Road;

/// How late a client can have come that got the lock before the loser of a terminated session, and how late a session
/// can end, on a busy machine.
const GAP_LIMIT_NS: u128 = SECOND_NS / 2;
/// How long a client may take from its start into the queue, on a busy machine.
const QUEUEING_AFTER_NS: u128 = 2 * SECOND_NS;
/// How long after a cut the server cannot be reached: until the first message of a connection is retransmitted.
const UNREACHABLE_AFTER_CUT_NS: u128 = 4 * SECOND_NS;
/// How long after another fault it cannot be reached, on a busy machine.
const UNREACHABLE_AFTER_NS: u128 = SECOND_NS;

/// How long a pglock that has waited for its job waits for the reply to the release (D). Without one it ends as its
/// job, although the session may have ended before.
const RELEASE_REPLY_NS: u128 = SECOND_NS;

impl<'a> Check<'a> {
    /// Returns what let another holder's job start although this one's was still inside.
    pub fn excuse(&self, victim: Holder<'a>, other: Holder<'a>, until: u128) -> Option<String> {
        self.excuse_for(victim, until, Some(other))
    }

    /// Returns what freed the lock although this holder's job was still inside: for the other holder, or for a client
    /// that is not known.
    fn excuse_for(&self, victim: Holder<'a>, until: u128, other: Option<Holder<'a>>) -> Option<String> {
        let waited = |fault: &Fault| other.is_some_and(|other| self.has_known_the_holder(other, fault));
        let Holder { stay, run } = victim;
        if has_kept_its_lock(victim) {
            return None;
        }
        let hit = |kinds: &[Kind]| {
            let is = |fault: &Fault| kinds.contains(&fault.kind);
            self.faults.find(stay.run, run, run.began, stay.last, is)
        };
        // No pglock was there to terminate the job and to take the lock again, or not before this.
        let is_killed = hit(&[Kind::KillPglock]).is_some();
        let back = hit(&[Kind::StopPglock, Kind::Stall]).map(|fault| fault.ended);
        let is_stopped_in_time = |fault: &Fault| {
            let noticed = fault.ended.max(back.unwrap_or_default());
            is_killed || stay.last <= noticed + TERMINATION_LIMIT_NS
        };
        let reason = |fault: &Fault| match fault.kind {
            _ if is_killed => Some(" of a killed pglock"),
            _ if back.is_some() && waited(fault) => None,
            _ if back.is_some() => Some(" of a stopped pglock"),
            Kind::EvictForced => Some(""),
            // A server that is being stopped ends one session after the other, and only pglocks leave the key alone.
            kind if restarts(kind) && other.is_none() && until <= fault.ended => Some(" before the other session"),
            Kind::EndSession | Kind::TermBackend if self.was_faster(fault, victim, other) => Some(""),
            kind if ends_proxied(kind) && self.was_faster(fault, victim, other) => Some(""),
            // The new primary is old, so who knows nothing of the holder does not leave it alone.
            Kind::Failover | Kind::Switchover if other.is_some_and(|other| is_newcomer(other, fault)) => {
                Some(" and a newcomer")
            }
            _ if run.request.is_forwarded() => Some(" behind the forwarding pooler"),
            // Its pooler is gone for good, or keeps it waiting before it tries the server again.
            kind if run.request.is_pooled() && (kind == Kind::KillPooler || restarts(kind)) => {
                Some(" behind the pooler")
            }
            _ if self.is_out_of_reach(fault, victim, until) => Some(" with the server out of reach"),
            _ => None,
        };
        let explains = |fault: &Fault| {
            // One that was over before pglock began ended another client's session.
            let ends = ends_sessions(fault.kind) && fault.ended + GAP_LIMIT_NS >= run.began;
            let frees = ends || cuts(fault.kind) && (is_killed || back.is_some());
            frees && is_stopped_in_time(fault) && reason(fault).is_some()
        };
        let from = stay.entered.saturating_sub(START_LIMIT_NS);
        let fault = self.faults.find(stay.run, run, from, until, explains)?;
        Some(fault.kind.name() + reason(fault).unwrap_or_default())
    }

    /// Returns whether this pglock waited for the lock when the server was restarted, lost its session as well, and had
    /// seen the holder: then it leaves the lock alone until that one's job must be dead, even if the holder itself
    /// stands still.
    fn has_known_the_holder(&self, waiter: Holder, fault: &Fault) -> bool {
        let Holder { stay, run } = waiter;
        let has_arrived = run.began + ARRIVAL_LIMIT_NS < fault.began;
        let disturbed = || {
            let is = |other: &Fault| disturbs(other.kind) && other.began != fault.began;
            self.faults.find(stay.run, run, run.began, stay.entered, is).is_some()
        };
        let is_witness = matches!(run.request.road, Road::Direct | Road::Proxy);
        let waits = run.request.wait.is_some() && is_witness && !run.request.shared;
        fault.kind == Kind::StalledRestart && waits && has_arrived && !disturbed()
    }

    /// Returns whether the other holder, or one that let it in, could be faster than the loser's guard: one that had
    /// just arrived, that polls, or that had just lost its own session. One that lost its own session by the same
    /// fault, and that may have seen the holder, leaves the lock to the loser, and so does one that stood in the
    /// server's queue, unless the proxy keeps the guard away. A client that leaves its lock in the pool is no pglock, and
    /// leaves it to nobody.
    fn was_faster(&self, fault: &Fault, victim: Holder, other: Option<Holder>) -> bool {
        let Some(other) = other else {
            return true;
        };
        self.history.runs.iter().any(|(&number, run)| {
            let has_lost_too = ends_proxied(fault.kind)
                && run.request.road == Road::Proxy
                && run.began + ARRIVAL_LIMIT_NS < fault.began;
            number != victim.stay.run
                && !has_lost_too
                && (fault.kind == Kind::KillProxy || !self.stood_in_queue(number, run, fault))
                && share_a_key(&run.request, &victim.run.request)
                && run.began < fault.ended + GAP_LIMIT_NS
                && run.ended > fault.began
                && self.let_in(number, other, fault, victim)
        })
    }

    /// Returns whether this is the other holder, or had the lock between the fault and that one's stay, and released it
    /// before the loser could claim it. One behind a pooler does not claim it.
    fn let_in(&self, number: usize, other: Holder, fault: &Fault, victim: Holder) -> bool {
        let claims = !victim.run.request.is_pooled() && !victim.run.request.is_forwarded();
        let was_inside = self.stays.get(&number).is_some_and(|stay| {
            let was_too_soon = stay.last < fault.ended + GAP_LIMIT_NS;
            stay.entered <= other.stay.entered && stay.last >= fault.began && (was_too_soon || !claims)
        });
        number == other.stay.run || was_inside
    }

    /// Returns whether this pglock stood in the server's queue at the time of the fault, over a connection that it had
    /// had for a while.
    fn stood_in_queue(&self, number: usize, run: &Run, fault: &Fault) -> bool {
        let request = &run.request;
        let queues = matches!(request.road, Road::Direct | Road::Proxy) && request.slots.is_none();
        let since = fault.began.saturating_sub(QUEUEING_AFTER_NS);
        let is = |other: &Fault| disturbs(other.kind) && other.began != fault.began;
        queues
            && request.wait.is_some()
            && run.began < since
            && self.faults.find(number, run, since, fault.began, is).is_none()
    }

    /// Returns whether the loser could not reach the server between the end of its session and the other job's start.
    fn is_out_of_reach(&self, fault: &Fault, victim: Holder, until: u128) -> bool {
        let is = |other: &Fault| {
            let after = match other.kind {
                kind if cuts(kind) => UNREACHABLE_AFTER_CUT_NS,
                Kind::Exhaust | Kind::StopBackend => UNREACHABLE_AFTER_NS,
                _ => return false,
            };
            other.ended + after >= fault.began
        };
        self.faults
            .find(victim.stay.run, victim.run, fault.began, until, is)
            .is_some()
    }

    /// P43: nobody enters while another client of the pool has left a lock on the key.
    pub fn leftovers(&mut self) {
        let history = self.history;
        let mut found = Vec::new();
        for fault in history.faults.iter().filter(|fault| fault.kind == Kind::Leftover) {
            let Target::Key(key) = fault.target else {
                continue;
            };
            for stay in &history.stays {
                let Some(run) = self.run(stay.run).filter(|run| run.request.keys.contains(&key)) else {
                    continue;
                };
                let is_other_slot = run.request.slots.is_some() && stay.slot != Some(0);
                let is_apart = stay.last <= fault.began || stay.entered >= fault.ended;
                if is_apart || is_other_slot || self.excuse_for(Holder { stay, run }, fault.began, None).is_some() {
                    continue;
                }
                found.push(format!(
                    "{key}: run {} was inside under a lock left in the pool:\n  {run:?}\n  {stay:?}\n  {fault:?}\n  faults: {:?}",
                    stay.run,
                    self.faults.program(Holder { stay, run }, Holder { stay, run })
                ));
            }
        }
        for violation in found {
            self.violation(violation);
        }
    }
}

/// Returns whether a pglock behind the forwarding pooler has released its lock when its job was over. No fault explains
/// an overlap with such a job: if its session had ended before, the pglock would have noticed.
fn has_kept_its_lock(holder: Holder) -> bool {
    let Holder { stay, run } = holder;
    let is_released = run.end == End::Code(run.request.status) && run.ended < stay.last + RELEASE_REPLY_NS;
    run.request.is_forwarded() && stay.left && is_released
}

/// Returns whether this pglock began after the fault had, and acquired the lock before the loser could come back.
fn is_newcomer(other: Holder, fault: &Fault) -> bool {
    other.run.began > fault.began && other.stay.entered <= fault.ended + GAP_LIMIT_NS
}
