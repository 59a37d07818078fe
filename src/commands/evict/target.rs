//! The sessions to evict, and which of them have to be.

use crate::inspect::backend::Backend;
use crate::inspect::holders::is_lock_on;
use crate::inspect::overview::{LockEntry, LockState};
use crate::key::KeyId;

/// A session to evict.
#[derive(Clone)]
pub(super) struct Target<'a> {
    pub(super) backend: &'a Backend,
    /// Whether it holds one of the locks, rather than waits.
    pub(super) is_holder: bool,
    /// The locks that were shown.
    pub(super) ids: Vec<KeyId>,
}

impl Target<'_> {
    /// Returns the condition that a session `a` still has one of the locks that were shown: a holder holds one, and
    /// another session does that or waits for one.
    pub(super) fn has_lock(&self) -> String {
        let granted = if self.is_holder { " AND l.granted" } else { "" };
        format!(
            "EXISTS (SELECT 1 FROM pg_catalog.pg_locks l WHERE l.locktype = 'advisory' AND l.pid = a.pid{granted} AND {})",
            is_lock_on(&self.ids)
        )
    }
}

/// Returns each session once, however many of the locks it has; one of a pool with the lock of its client and one that
/// was left behind twice, once for each of them.
pub(super) fn distinct_targets(entries: &[LockEntry]) -> Vec<Target<'_>> {
    let mut targets: Vec<Target> = Vec::new();
    for entry in entries {
        let backend = &entry.backend;
        let is_holder = entry.state == LockState::Holding;
        let is_same = |target: &&mut Target| {
            backend.pid.is_some()
                && target.backend.pid == backend.pid
                && target.backend.is_leftover == backend.is_leftover
        };
        match targets.iter_mut().find(is_same) {
            Some(target) => {
                target.is_holder |= is_holder;
                target.ids.push(entry.lock_id());
            }
            None => targets.push(Target {
                backend,
                is_holder,
                ids: vec![entry.lock_id()],
            }),
        }
    }
    targets
}
