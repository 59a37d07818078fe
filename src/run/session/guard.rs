//! After the lock is lost: holding the key again until the job is dead.
//!
//! When the server ends the session (a restart, a crash, a failover, `pg_terminate_backend`), the lock is free at once,
//! but the job still has its grace period. So this thread reconnects and acquires the same key in the same mode if it
//! is free, and nobody starts before the old job is dead. The job is terminated all the same and its status stays 74:
//! this only keeps others out, and never lets a job go on. pglock's exit closes the connection, which releases the
//! lock.
//!
//! A client that waits in the server's queue is granted the key before that. So the guard claims a key that it finds
//! taken, and waits in the queue itself: a waiter that may be granted a lost key looks for a claim (`lock::receipt`).
//!
//! A newcomer leaves a server alone for the first half second after its start or, behind a pooler, after the pooler has
//! reached it again (`lock::settling`), so that the guard comes first.

use super::events::SessionEvent;
use super::hold::Holder;
use super::orders::{Orders, interrupted};
use super::plan::SessionPlan;
use super::reporter::Reporter;
use super::timing::MAX_POOL_WAIT;
use crate::connection::{Client, Connection, Settings};
use crate::inspect::backend::Backend;
use crate::inspect::{eviction, holders};
use crate::key::{self, Key, KeyId};
use crate::lock::{
    self, Acquisition, Backoff, ClientInfo, Grant, Lock, Mode, Scope, ScopeChoice, Settling, TransactionOptions, Wait,
    WaitEnd, WaitObserver, WaitOptions,
};
use crate::outcome::{ExitCode, Failure};
use crate::protocol::name;
use crate::protocol::query_tag::QueryTag;
use crate::run::state::OnLost;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The first pauses between two attempts to reconnect are this long ...
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// ... for this long. A server that recovers from a crash may take longer than newcomers leave it alone, so only more
/// frequent attempts let the guard come first. The default grace period is over by then.
const FIRST_PAUSE_PERIOD: Duration = Duration::from_secs(30);
/// The longest pause, well below the half second that newcomers wait.
const MAX_PAUSE: Duration = Duration::from_millis(200);

/// How long a waiter may take to see the claim and to give the key back, before it counts as taken.
const CLAIM_TIME: Duration = Duration::from_millis(600);
/// The pause before a claim is tried again.
const CLAIM_RETRY_PAUSE: Duration = Duration::from_millis(1);
/// How long a loser behind a pooler claims its key at a time: longer than a waiter pauses between two looks.
const CLAIM_PERIOD: Duration = Duration::from_millis(150);
/// The longest uninterrupted wait in the server's queue: well below what a server may take to reply.
const CLAIM_SLICE: Duration = Duration::from_millis(100);
/// The same while several keys are missing: the others may be free by now, and a newcomer does not look for a claim.
const CLAIM_SLICE_OF_SEVERAL: Duration = Duration::from_millis(20);

/// Guards the end of a job whose lock is lost.
pub(super) struct Guard<'a> {
    pub(super) plan: &'a SessionPlan,
    pub(super) orders: &'a Orders,
    pub(super) reporter: &'a Reporter,
    /// What was lost.
    pub(super) lock: &'a Lock,
    /// The backend that held it.
    pub(super) lost_backend_pid: i32,
}

/// How an attempt to guard ended.
enum GuardEnd {
    /// There is nothing more to do.
    Over,
    /// Another client has the key. Once it releases it, the key is guarded from the next one.
    Taken,
    /// Another client had the key for a short time, as one that polls and then finds out that the server has restarted.
    FreeAgain,
    /// The key was held, and lost again; it is acquired again.
    LostAgain {
        /// The backend that held it, if an administrator terminated it.
        terminated: Option<i32>,
    },
}

/// Whether the key is guarded.
enum GuardTry {
    Acquired {
        lock: Lock,
        grant: Grant,
        is_direct: bool,
    },
    Taken {
        /// What to acquire.
        lock: Lock,
        /// Those of its keys that we do not hold, from the first that another client has.
        missing: Lock,
        /// Whether the session may have had other clients.
        is_lent: bool,
    },
}

impl Guard<'_> {
    /// Reports who ended the session, and holds the key until the order to release. `by_administrator` says that it may
    /// have been an eviction.
    pub(super) fn stand(&self, by_administrator: bool) {
        // The backend of which it is to be found out who terminated it.
        let mut unexplained = by_administrator.then_some(self.lost_backend_pid);
        if unexplained.is_none() {
            self.reporter.report(SessionEvent::LossExplained { evictor: None });
        }
        if self.plan.options.policy.on_lost == OnLost::Ignore {
            return;
        }
        let settings = self.settings();
        let began = Instant::now();
        // The key is free already, and each millisecond is one in which another client can take it.
        let mut pause = Duration::ZERO;
        while !self.orders.is_release_ordered_within(pause) {
            match self.attempt(&settings, &mut unexplained) {
                Ok(GuardEnd::Over) => return,
                Ok(GuardEnd::Taken) => pause = MAX_PAUSE,
                Ok(GuardEnd::FreeAgain) => {}
                Ok(GuardEnd::LostAgain { terminated }) => unexplained = terminated,
                Err(failure) => {
                    if unexplained.take().is_some() {
                        self.reporter.report(SessionEvent::LossExplained { evictor: None });
                    }
                    // What is wrong with the settings, or with the server's, may be wrong temporarily, and to try
                    // again does no harm. Less often, because a server may lock out a role that fails to log in.
                    if failure.code != ExitCode::Unavailable {
                        pause = MAX_PAUSE;
                    }
                }
            }
            pause = pause.max(FIRST_PAUSE);
            if began.elapsed() > FIRST_PAUSE_PERIOD {
                pause = (pause * 3 / 2).min(MAX_PAUSE);
            }
        }
    }

    /// Returns the settings of the guard's sessions, whose replies are limited: the main thread watches the job, and no
    /// longer the session. A server that falls silent must not keep the guard from the one that takes its place.
    fn settings(&self) -> Settings {
        let options = &self.plan.options;
        let is_pooled = self.lock.scope == Scope::Transaction || options.scope == ScopeChoice::SessionPooled;
        let max_pool_wait = if is_pooled { MAX_POOL_WAIT } else { Duration::ZERO };
        let reply_limit = options.policy.timing.reply_limit() + max_pool_wait;
        self.plan.settings.clone().with_reply_limit(reply_limit)
    }

    /// Reconnects, and holds the key if it is free, unless the eviction of the backend `unexplained` was forced.
    ///
    /// # Errors
    /// The server is not there or stops responding, or its locks protect nothing.
    fn attempt(&self, settings: &Settings, unexplained: &mut Option<i32>) -> Result<GuardEnd, Failure> {
        let plan = self.plan;
        let application_name = plan.application_name();
        let Connection { mut client, socket, .. } = settings.reopen(&application_name)?;
        let result = self.try_key(&mut client, application_name)?;
        let is_claimed = match &result {
            // Nobody can be granted the keys that we hold.
            GuardTry::Taken {
                missing,
                is_lent: false,
                ..
            } => missing.claim(&mut client, || {
                !self.orders.is_release_ordered_within(CLAIM_RETRY_PAUSE)
            })?,
            _ => false,
        };
        // Only then: who ended the session is of no use to those whom the job would run beside. If the key must stay
        // free, the end of this connection releases it.
        if let Some(backend_pid) = unexplained.take()
            && self.explain_loss(&mut client, backend_pid)
        {
            return Ok(GuardEnd::Over);
        }
        let (lock, grant, is_direct) = match result {
            GuardTry::Acquired { lock, grant, is_direct } => (lock, grant, is_direct),
            GuardTry::Taken {
                lock, is_lent: true, ..
            } => {
                lock.claim_during(&mut client, || {
                    self.orders.is_release_ordered_within(CLAIM_PERIOD);
                })?;
                let is_taken = self.report_taker(&mut client, &lock, Takers::ButWaiters);
                return Ok(if is_taken { GuardEnd::Taken } else { GuardEnd::FreeAgain });
            }
            GuardTry::Taken { lock, missing, .. } => {
                let claimed = is_claimed.then(|| missing.clone());
                let grant = self.wait_for_keys(&mut client, missing, claimed.as_ref())?;
                (lock, grant, true)
            }
        };
        let guard = Holder {
            plan,
            orders: self.orders,
            reporter: self.reporter,
            lock: &lock,
            grant,
            is_direct,
            recorder: None,
            is_guard: true,
        };
        Ok(match guard.hold(&mut client, socket.as_ref(), None) {
            Ok(_) => GuardEnd::Over,
            Err(loss) => GuardEnd::LostAgain {
                terminated: loss.by_administrator.then_some(grant.backend_pid),
            },
        })
    }

    /// Reports who ended the session. Returns whether the key must stay free.
    fn explain_loss(&self, client: &mut Client, backend_pid: i32) -> bool {
        let evictor = eviction::find_evictor(client, backend_pid).ok().flatten();
        // Any client can place a mark.
        let evictor = evictor.filter(|evictor| evictor.is_authorized);
        let is_forced = evictor.as_ref().is_some_and(|evictor| evictor.is_forced);
        let evictor = evictor.map(|evictor| evictor.description);
        self.reporter.report(SessionEvent::LossExplained { evictor });
        is_forced
    }

    /// Tries the lost key in the lost mode.
    ///
    /// # Errors
    /// As for [`Lock::first_try`] and [`Lock::first_try_in_transaction`].
    fn try_key(&self, client: &mut Client, application_name: String) -> Result<GuardTry, Failure> {
        let options = &self.plan.options;
        let server_limit = options.policy.timing.server_limit();
        // Of several keys, a session's lock on a direct connection keeps those that are free. A transaction that finds
        // one of them taken is rolled back, and loses the others with it.
        let choice = match options.scope {
            ScopeChoice::Transaction if options.keys.len() > 1 => ScopeChoice::Auto,
            choice => choice,
        };
        let client_info = ClientInfo {
            application_name,
            choice,
            server_limit: Some(server_limit),
            settling: Settling::Nothing,
            known_start: None,
        };
        let lock = Lock {
            scope: Scope::Session,
            ..self.lock.clone()
        };
        let (server, outcome) = lock.first_try(client, &client_info, None)?;
        // A standby can be promoted, or the next host be the primary.
        let scope = server.usable_scope(choice).map_err(|failure| Failure {
            code: ExitCode::Unavailable,
            ..failure
        })?;
        let lock = Lock { scope, ..lock };
        let outcome = match scope {
            Scope::Session => outcome,
            Scope::Transaction => {
                let transaction_options = TransactionOptions {
                    server_limit,
                    backoff: Backoff::new(Instant::now(), options.poll),
                    known_start: None,
                    looks_at_pool: false,
                };
                lock.first_try_in_transaction(client, transaction_options, || None)?
                    .outcome
            }
        };
        let is_lent = server.pooled || options.scope == ScopeChoice::SessionPooled;
        let outcome = if is_lent {
            outcome
        } else {
            // The session's own replies are limited, so nothing watches the guard.
            lock.await_proof(client, outcome, |pause| !self.orders.is_release_ordered_within(pause))?
        };
        Ok(match outcome.into_acquisition()? {
            Acquisition::Acquired(grant) => GuardTry::Acquired {
                lock: lock.held(grant),
                grant,
                is_direct: !server.pooled,
            },
            Acquisition::Busy { key_index } => GuardTry::Taken {
                missing: if is_lent {
                    lock.clone()
                } else {
                    // Those behind it may be free, and the next newcomer would have them.
                    lock.acquire_free(client, key_index)?
                },
                lock,
                is_lent,
            },
        })
    }

    /// Waits in the server's queue for the first key that is missing, and takes the others as soon as they are free.
    /// A waiter that is granted one that is claimed releases it. Ends the claims.
    ///
    /// Another pglock that holds the first and waits for another one waits no longer than until the old job is dead.
    ///
    /// # Errors
    /// The order to release came, the server reports an error, or the connection is lost.
    fn wait_for_keys(&self, client: &mut Client, mut missing: Lock, claimed: Option<&Lock>) -> Result<Grant, Failure> {
        self.report_taker(client, &missing, Takers::ButWaiters);
        let began = Instant::now();
        let mut is_taker_reported = false;
        let mut wait_options = WaitOptions {
            wait: Wait::Indefinitely,
            max_slice: CLAIM_SLICE,
            backoff: Backoff::new(Instant::now(), self.plan.options.poll),
            try_duration: Duration::ZERO,
            leaves_queue_alone: false,
            server_start: None,
            server_limit: self.plan.options.policy.timing.server_limit(),
            is_lent: false,
            is_loser: true,
            has_waited: true,
        };
        let mut observer = GuardObserver { orders: self.orders };
        loop {
            wait_options.max_slice = match missing.ids() {
                [_] => CLAIM_SLICE,
                _ => CLAIM_SLICE_OF_SEVERAL,
            };
            wait_options.wait = Wait::Until(Instant::now() + wait_options.max_slice);
            match missing.wait(client, wait_options, 0, &mut observer)? {
                WaitEnd::Acquired(grant) => {
                    if let Some(claimed) = claimed {
                        claimed.end_claim(client)?;
                    }
                    return Ok(grant);
                }
                WaitEnd::TimedOut { key_index } => {
                    if !is_taker_reported && began.elapsed() >= CLAIM_TIME {
                        self.report_taker(client, &missing, Takers::All);
                        is_taker_reported = true;
                    }
                    missing = missing.acquire_free(client, key_index)?;
                }
                // It never does.
                WaitEnd::GiveUpConnection { .. } => return Err(interrupted()),
            }
        }
    }

    /// Reports a client that has keys of the lock now. Returns whether there is one.
    fn report_taker(&self, client: &mut Client, lock: &Lock, takers: Takers) -> bool {
        let message = taken_message(client, lock, &self.plan.options.keys, takers);
        let is_taken = message.is_some();
        if let Some(message) = message {
            self.reporter.report(SessionEvent::GuardFailed(message));
        }
        is_taken
    }
}

/// Of which clients that have the key the guard reports one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takers {
    All,
    /// Of all but those that may still give it back.
    ButWaiters,
}

/// Ends the guard's wait on the order to release.
struct GuardObserver<'a> {
    orders: &'a Orders,
}

impl WaitObserver for GuardObserver<'_> {
    // The session's own replies are limited, so nothing watches the guard.
    fn before_query(&mut self, _max_reply_time: Duration) {}

    fn pause(&mut self, _client: &mut Client, pause: Duration) -> bool {
        self.sleep(pause)
    }

    fn sleep(&mut self, pause: Duration) -> bool {
        !self.orders.is_release_ordered_within(pause)
    }

    fn note_unreleased(&mut self) {}

    fn note_backend(&mut self, _backend_pid: i32) {}

    fn must_close(&self, _try_duration: Duration, _pause: Duration) -> bool {
        false
    }

    fn before_closing(&mut self, _client: &mut Client, _pause: Duration) {}
}

/// Returns the message that names a client that has keys of the lock now, and those of `keys`, if there is one.
fn taken_message(client: &mut Client, lock: &Lock, keys: &[Key], takers: Takers) -> Option<String> {
    let found = find_takers(client, lock.ids(), lock.mode, takers);
    let (_, taker) = found.first()?;
    let its_locks = found.iter().filter(|(_, other)| other.pid == taker.pid);
    let its_ids: BTreeSet<KeyId> = its_locks.filter_map(|(id, _)| *id).collect();
    let ids = lock::key_ids(client, keys).unwrap_or_default();
    let its_keys = keys.iter().zip(ids).filter(|(_, id)| its_ids.contains(id));
    let its_keys: Vec<Key> = its_keys.map(|(key, _)| key.clone()).collect();
    // A slot has a key of its own, which was not given.
    let named = if its_keys.is_empty() { keys } else { &its_keys };
    let was = if named.len() == 1 { "was" } else { "were" };
    let subject = key::describe(named);
    Some(format!("{subject} {was} acquired by {taker} before the job was dead"))
}

/// Returns the other clients that have one of these keys now, each with the key that it has.
fn find_takers(client: &mut Client, ids: &[KeyId], mode: Mode, takers: Takers) -> Vec<(Option<KeyId>, Backend)> {
    let mut found = holders::find_with_keys(client, ids, QueryTag::ProgramOnly).unwrap_or_default();
    let instance_id = name::instance_id();
    found.retain(|(_, holder)| {
        // Which the server may still be ending.
        let is_our_session = name::is_of_instance(&holder.application_name, &instance_id);
        let shares_with_us = holder.is_shared && mode == Mode::Shared;
        // What it does may be hidden from our role.
        let is_hidden_pglock = holder.is_hidden && name::RunName::parse(&holder.application_name).is_some();
        let may_give_back = (holder.is_queueing || is_hidden_pglock) && takers == Takers::ButWaiters;
        !(is_our_session || shares_with_us || may_give_back)
    });
    found
}
