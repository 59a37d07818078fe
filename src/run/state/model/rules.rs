//! The sizes of the model, and which fixes are switched on.

use super::time::{TickTiming, Ticks};
use super::world::Budget;
use crate::run::session::timing::Timing;

/// The fixes, each of which can be switched off to see the model find the fault.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fixes {
    /// The session's thread acquires a lost key again until the job is dead (`session::guard`).
    pub(super) guard_stands: bool,
    /// A newcomer leaves a server alone that has just started (`lock::server`).
    pub(super) newcomer_waits: bool,
    /// An eviction leaves the session alone until the job is dead (`commands::evict::request`).
    pub(super) eviction_asks: bool,
    /// A lock that the lent session holds already counts as held by another client.
    pub(super) leftovers_count: bool,
    /// A heartbeat proves the lock (`lock::heartbeat`).
    pub(super) heartbeat_proves: bool,
    /// A waiter that lost its connection waits for the job of the client that held the lock (`session::retry`).
    pub(super) waiter_waits: bool,
    /// A lock that is lost before the job was started ends no wait (`session::claim`).
    pub(super) waiter_withdraws: bool,
    /// A waiter in the queue gives its loser time to claim a lock that nobody has released (`lock::receipt`).
    pub(super) waiter_wants_receipt: bool,
    /// A guard that finds its key taken claims it (`session::guard`).
    pub(super) guard_claims: bool,
}

impl Fixes {
    pub(super) const ALL: Fixes = Fixes {
        guard_stands: true,
        newcomer_waits: true,
        eviction_asks: true,
        leftovers_count: true,
        heartbeat_proves: true,
        waiter_waits: true,
        waiter_withdraws: true,
        waiter_wants_receipt: true,
        guard_claims: true,
    };
}

/// What does not change during a run of the model.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) clients: usize,
    pub(super) fixes: Fixes,
    pub(super) budget: Budget,
    pub(super) policy_timing: Timing,
    pub(super) timing: TickTiming,
    /// How long the evictor waits for a holder: as long as the server does.
    pub(super) eviction_limit: Ticks,
    /// How long a waiter that lost its connection waits for an old job of which it sees nothing.
    pub(super) old_job_limit: Ticks,
    /// How many ticks of delay of the loop the margin covers: the margin, less the allowance of a pglock that
    /// overslept.
    pub(super) covered_delay: Ticks,
    /// The longest that a restart keeps the server away.
    pub(super) longest_restart: Ticks,
}

impl Rules {
    /// Returns rules for a number of pglocks with a heartbeat interval and a grace period of so many ticks.
    pub(super) fn new(clients: usize, heartbeat: u64, kill_after: u64, budget: Budget) -> Rules {
        let policy_timing = TickTiming::timing(heartbeat, kill_after);
        let timing = TickTiming::new(policy_timing);
        Rules {
            clients,
            fixes: Fixes::ALL,
            budget,
            policy_timing,
            timing,
            eviction_limit: timing.server_limit,
            old_job_limit: timing.server_limit,
            covered_delay: timing.server_limit - timing.job_limit - 1,
            longest_restart: 1,
        }
    }
}
