//! The validated options of `pglock run`.

use crate::connection::ConnectionOptions;
use crate::history::TableName;
use crate::key::Key;
use crate::lock::{Mode, ScopeChoice};
use crate::run::state::Policy;
use crate::ui::message::Verbosity;
use std::ffi::OsString;
use std::time::Duration;

/// How to record a run.
#[derive(Debug)]
pub(crate) struct RecordOptions {
    /// The run table.
    pub table: TableName,
    /// Start the job only if the key has not succeeded within this time.
    pub once_per: Option<Duration>,
}

/// The options of `pglock run`, validated.
#[derive(Debug)]
pub(crate) struct RunOptions {
    /// The server and how to connect to it.
    pub connection: ConnectionOptions,
    /// The keys to lock, at least one.
    pub keys: Vec<Key>,
    /// Acquire one of this many slots of the only key, instead of the key itself.
    pub slots: Option<u16>,
    /// Exclusive or shared.
    pub mode: Mode,
    /// The lifetime of the lock.
    pub scope: ScopeChoice,
    /// Acquire the lock strictly in order of arrival among fair waiters.
    pub fair: bool,
    /// Pass the job a fencing token.
    pub token: bool,
    /// Record the run, if it is to be recorded.
    pub record: Option<RecordOptions>,
    /// The time limit for connecting and waiting; zero tries once, `None` waits indefinitely.
    pub wait: Option<Duration>,
    /// The maximum interval between attempts where the server has no queue for us.
    pub poll: Duration,
    /// Exit statuses and time limits.
    pub policy: Policy,
    /// Let the job inherit the connection's socket.
    pub inherit_socket: bool,
    /// A text for those who find the lock held.
    pub note: Option<String>,
    /// How much to print.
    pub verbosity: Verbosity,
    /// The command and its arguments.
    pub command: Vec<OsString>,
}
