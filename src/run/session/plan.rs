//! What the session's thread is to do.

use crate::connection::Settings;
use crate::lock::Wait;
use crate::protocol::name;
use crate::run::options::RunOptions;
use std::sync::Arc;
use std::time::Instant;

/// The lock to acquire, and how.
pub(crate) struct SessionPlan {
    /// The options of `pglock run`.
    pub options: Arc<RunOptions>,
    /// How to connect, from all of libpq's sources.
    pub settings: Settings,
    /// How long to wait.
    pub wait: Wait,
    /// When pglock started, from which the wait counts.
    pub started_at: Instant,
    /// Whether a user watches the wait and is shown who holds the lock.
    pub is_watched: bool,
    /// Whether a service manager is told who holds the lock.
    pub is_reported: bool,
}

impl SessionPlan {
    /// Returns whether the wait survives a server that is away: with `--wait` from the first attempt on, else once the
    /// server has answered a query.
    pub(super) fn endures(&self, has_answered: bool) -> bool {
        match self.wait {
            Wait::Try => false,
            Wait::Until(_) => true,
            Wait::Indefinitely => has_answered,
        }
    }

    /// Returns the `application_name` of the session.
    pub(super) fn application_name(&self) -> String {
        let configured = self.settings.application_name();
        name::for_run(configured, &self.options.keys, self.options.slots)
    }
}
