//! Who comes first after a lock is acquired: the main thread, which starts the job, or the loss of the lock.
//!
//! A server that is stopped can grant the lock to a waiter in its last moment. As long as no job has started under it,
//! such a grant is of no consequence, and the wait goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The right to start the job under a lock that was acquired. Both threads have it, and one of them can use it, once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Claim {
    is_used: Arc<AtomicBool>,
}

impl Claim {
    /// Uses the claim: to start the job, or so that it is never started. Returns whether it was unused.
    pub(crate) fn take(&self) -> bool {
        !self.is_used.swap(true, Ordering::SeqCst)
    }
}
