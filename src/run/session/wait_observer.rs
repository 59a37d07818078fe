//! Reports of a wait, to the main thread and to a user who watches it.

use super::events::SessionEvent;
use super::orders::Orders;
use super::plan::SessionPlan;
use super::reporter::Reporter;
use super::retry::WaitMemory;
use super::timing::MAX_POOL_WAIT;
use crate::connection::Client;
use crate::inspect::backend::Backend;
use crate::inspect::holders;
use crate::lock::{Lock, Scope, Server, WaitObserver};
use crate::protocol::query_tag::QueryTag;
use crate::ui::message;
use std::time::{Duration, Instant};

/// How often the holders are refreshed for a user who watches the wait.
const HOLDER_REFRESH_INTERVAL: Duration = Duration::from_millis(850);

/// How often they are looked up otherwise, for the limits that they show, and for a service manager. A wait that
/// survives its connection needs the limits.
const LIMIT_REFRESH_INTERVAL: Duration = Duration::from_secs(30);

/// Announces each query and each pause of a wait, and ends the wait on the order to release.
pub(super) struct SessionWaitObserver<'a> {
    plan: &'a SessionPlan,
    orders: &'a Orders,
    reporter: &'a Reporter,
    server: &'a Server,
    lock: &'a Lock,
    memory: &'a mut WaitMemory,
    /// Whether the wait needs this connection: the server is direct, or our place in a queue belongs to the session.
    is_connection_kept: bool,
}

impl<'a> SessionWaitObserver<'a> {
    pub(super) fn new(
        plan: &'a SessionPlan,
        orders: &'a Orders,
        reporter: &'a Reporter,
        server: &'a Server,
        lock: &'a Lock,
        memory: &'a mut WaitMemory,
        is_connection_kept: bool,
    ) -> SessionWaitObserver<'a> {
        SessionWaitObserver {
            plan,
            orders,
            reporter,
            server,
            lock,
            memory,
            is_connection_kept,
        }
    }

    fn is_refresh_due(&self) -> bool {
        let is_first = !self.memory.has_looked_for_limits;
        let interval = if self.plan.is_watched || is_first {
            HOLDER_REFRESH_INTERVAL
        } else {
            LIMIT_REFRESH_INTERVAL
        };
        self.memory.holders_refreshed.elapsed() > interval
    }

    /// Looks up the holders; the next try follows within `pause`.
    fn refresh_holders(&mut self, client: &mut Client, pause: Duration) {
        self.reporter.expect_reply_within(max_pool_wait(self.server));
        let tag = QueryTag::between_tries(self.lock.scope == Scope::Transaction, pause);
        // On an error nothing is shown; the wait itself finds out what is wrong.
        if let Ok(mut holders) = holders::find(client, self.lock.ids(), tag) {
            self.memory.note_limits(&holders);
            match self.lock.scope {
                // We may hold some of several keys ourselves.
                Scope::Session => holders.retain(|holder| !holder.is_own),
                // We hold nothing between two tries: a lock of our backend was left behind there.
                Scope::Transaction => holders = holders.into_iter().map(Backend::without_client_if_own).collect(),
            }
            if self.plan.is_watched || self.plan.is_reported {
                self.reporter.report(SessionEvent::Waiting(holders));
            }
        }
        self.memory.has_looked_for_limits = true;
        self.memory.holders_refreshed = Instant::now();
    }
}

impl WaitObserver for SessionWaitObserver<'_> {
    fn before_query(&mut self, max_reply_time: Duration) {
        self.memory.note_query();
        let max_pool_wait = max_pool_wait(self.server);
        self.reporter.expect_reply_within(max_reply_time.max(max_pool_wait));
    }

    fn pause(&mut self, client: &mut Client, pause: Duration) -> bool {
        self.before_closing(client, pause);
        self.sleep(pause)
    }

    fn sleep(&mut self, pause: Duration) -> bool {
        // No query is sent meanwhile, so no reply is due.
        self.reporter.expect_reply_within(pause);
        !self.orders.is_release_ordered_within(pause)
    }

    fn note_unreleased(&mut self) {
        message::detail("the last holder has not released the lock; giving it half a second to claim it for its job");
    }

    fn note_backend(&mut self, backend_pid: i32) {
        self.memory.lending.note_backend(backend_pid);
    }

    fn must_close(&self, try_duration: Duration, pause: Duration) -> bool {
        if self.is_connection_kept {
            return false;
        }
        let waited = self.memory.wait_began().elapsed();
        // A session's lock behind a pooler is for pools of sessions.
        self.lock.scope == Scope::Session || self.memory.lending.must_close(waited, try_duration, pause)
    }

    fn before_closing(&mut self, client: &mut Client, pause: Duration) {
        if self.is_refresh_due() {
            self.refresh_holders(client, pause);
        }
    }
}

/// Returns how long a waiter's query may be delayed before a backend receives it: by a pooler. A holder has a session
/// already.
pub(super) fn max_pool_wait(server: &Server) -> Duration {
    if server.pooled { MAX_POOL_WAIT } else { Duration::ZERO }
}
