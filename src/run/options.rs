//! What `pglock run` was asked to do, validated.

use crate::connection::ConnectionOptions;
use crate::key::Key;
use crate::lock::{Mode, ScopeChoice};
use crate::run::state::Policy;
use crate::ui::message::Verbosity;
use std::ffi::OsString;
use std::time::Duration;

/// The options of `pglock run`, validated.
#[derive(Debug)]
pub struct RunOptions {
    /// Where and how to connect.
    pub connection: ConnectionOptions,
    /// The keys, at least one.
    pub keys: Vec<Key>,
    /// Acquire one of this many slots of the only key, instead of the key.
    pub slots: Option<u16>,
    /// Exclusive or shared.
    pub mode: Mode,
    /// The lifetime of the lock.
    pub scope: ScopeChoice,
    /// Wait in strict order of arrival.
    pub fair: bool,
    /// Acquire a fencing token.
    pub token: bool,
    /// How long to wait, connecting included; zero tries once, `None` waits indefinitely.
    pub wait: Option<Duration>,
    /// The longest pause between two tries where the server has no queue for us.
    pub poll: Duration,
    /// Exit statuses and time limits.
    pub policy: Policy,
    /// Whether the job inherits the session's socket.
    pub inherit_socket: bool,
    /// How much to print.
    pub verbosity: Verbosity,
    /// The command and its arguments.
    pub command: Vec<OsString>,
}
