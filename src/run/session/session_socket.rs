//! The socket of a session, which both threads have.

use crate::connection::shut_down_socket;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

/// The socket of a session, and whether the main thread has abandoned the connection.
pub(crate) struct SessionSocket {
    descriptor: OwnedFd,
    is_abandoned: AtomicBool,
}

impl SessionSocket {
    pub(super) fn new(descriptor: OwnedFd) -> SessionSocket {
        SessionSocket {
            descriptor,
            is_abandoned: AtomicBool::new(false),
        }
    }

    /// Returns the descriptor, which the session's thread polls and the job may inherit.
    pub(crate) fn descriptor(&self) -> &OwnedFd {
        &self.descriptor
    }

    /// Shuts the connection down because the server does not respond, while no job runs. The session's thread then
    /// connects again.
    pub(crate) fn abandon(&self) {
        self.is_abandoned.store(true, Ordering::SeqCst);
        shut_down_socket(&self.descriptor);
    }

    /// Returns whether the connection was abandoned. A reply that had arrived before can still be read.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.is_abandoned.load(Ordering::SeqCst)
    }
}
