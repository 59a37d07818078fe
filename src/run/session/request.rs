//! What is requested from the server: the lock, and what is known about the server.

use crate::key::KeyId;
use crate::lock::{Lock, Server};
use std::time::Instant;

/// The lock that we request, and the server, which supports it.
#[derive(Clone)]
pub(super) struct LockRequest {
    /// The numbers of the keys, in the order in which they were given.
    pub(super) ids: Vec<KeyId>,
    pub(super) lock: Lock,
    pub(super) server: Server,
    /// When it was tried first on the current connection, not counting a try that left a new server or pool alone.
    pub(super) tried: Instant,
}
