//! What the session's thread reports to the main thread.

use super::claim::Claim;
use super::session_socket::SessionSocket;
use crate::connection::{Canceller, Client};
use crate::inspect::backend::Backend;
use crate::key::KeyId;
use crate::outcome::Failure;
use std::sync::Arc;
use std::time::Instant;

/// A report, in the usual order.
pub(crate) enum SessionEvent {
    /// Connected to a server or a pooler, over this socket if it is known.
    Connected(Option<Arc<SessionSocket>>),
    /// The session is alive. If there is no further report by this time, it is not.
    Alive(Instant),
    /// The server has answered a query; from now on a wait endures a server that is away.
    Answered,
    /// Connected to the server itself, so this can interrupt the wait.
    Cancellable(Canceller),
    /// Another client holds the lock.
    Contended,
    /// The connection was closed between two tries, and another one is opened at once.
    GivenUp,
    /// The connection failed while nothing was held, and is tried again; the reason.
    Retrying(String),
    /// The lock is left alone as long as the job of a client that held it may run.
    AwaitingOldJob,
    /// Who holds the lock, as seen during the wait.
    Waiting(Vec<Backend>),
    /// The lock is ours, and the run is about to be recorded.
    Preparing,
    /// The lock is ours.
    Held(Held),
    /// The lock is held by another client; the message for the user.
    Conflict(String),
    /// The key has succeeded within the interval of `--once-per`; the message for the user.
    NotDue(String),
    /// The lock could not be acquired.
    Failed(Failure),
    /// The lock is lost before the job was started, and no job may start under it. The wait goes on.
    Withdrawn,
    /// The session ended while it held the lock; the reason.
    Lost(String),
    /// A client that may do so requests the lock to be given up; who it is. The lock is still held.
    EvictionRequested(String),
    /// After a loss: who evicted the session, if anybody did and could be found.
    LossExplained {
        /// User, host, process and role.
        evictor: Option<String>,
    },
    /// After a loss: another client acquired the key before the guard; the message that names it.
    GuardFailed(String),
    /// The end of the run is recorded, or why not.
    Recorded(Result<(), Failure>),
    /// The lock is released.
    Released {
        /// Whether we held it until then.
        was_held: bool,
        /// The session, for the main thread to close: the exit of the backend could otherwise take the processor on
        /// which the main thread would handle this report.
        session: Box<Client>,
    },
    /// The thread panicked. No further report follows.
    Panicked,
}

/// The lock that we hold.
pub(crate) struct Held {
    /// To be taken before the job is started.
    pub claim: Claim,
    /// The numbers of the keys, in the order in which they were given.
    pub ids: Vec<KeyId>,
    /// Our slot, with `--slots`.
    pub slot: Option<usize>,
    /// The fencing token, with `--token`.
    pub token: Option<String>,
    /// Whether the run is recorded, and its end is to be.
    pub is_recorded: bool,
    /// The backend that holds it for us.
    pub backend_pid: i32,
    /// The session's socket, where it is known.
    pub socket: Option<Arc<SessionSocket>>,
}
