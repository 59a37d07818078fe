//! What there is in the model: pglocks, one server, an evictor, and what is left of the budget for faults.

use super::time::Ticks;
use crate::run::state::RunState;

/// A state of the model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) clients: Vec<Client>,
    pub(super) server: Server,
    pub(super) evictor: Option<Evictor>,
    pub(super) budget: Budget,
    /// A step changed nothing and would be repeated at once: a busy loop, in which time does not pass.
    pub(super) is_spinning: bool,
    /// A job was started although no lock had been granted for it.
    pub(super) has_ungranted_job: bool,
    /// A wait ended without an answer.
    pub(super) has_failed_wait: bool,
}

/// How many faults may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Budget {
    /// Of all kinds together.
    pub(super) total: u8,
    /// `pg_terminate_backend` by an operator.
    pub(super) terminations: u8,
    /// Restarts and crashes of the server.
    pub(super) restarts: u8,
    pub(super) cuts: u8,
    /// `pglock evict`, with and without `--force`.
    pub(super) evictions: u8,
    /// `kill -9` of a pglock, with and without an inherited socket.
    pub(super) kills: u8,
    /// Ticks for which the loop does not run.
    pub(super) loop_delays: u8,
    /// Ticks for which the session's thread does not run.
    pub(super) thread_delays: u8,
    /// Locks that vanish from a living session.
    pub(super) vanishings: u8,
    /// Sessions that a pooler lends to a second client.
    pub(super) loans: u8,
    /// SIGTERM to a pglock.
    pub(super) signals: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Process {
    NotStarted,
    Alive,
    Exited,
    /// By `kill -9`.
    Killed {
        /// Whether the job has inherited the session's socket.
        keeps_socket: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Job {
    None,
    Running,
    /// It is dead, and pglock does not know yet.
    Exited,
    /// It is dead, and pglock knows.
    Seen,
}

/// One pglock, its job, and what is to be known of it to judge a second job.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Client {
    pub(super) process: Process,
    pub(super) state: RunState,
    /// The reports that the loop has not read yet.
    pub(super) inbox: Vec<Report>,
    pub(super) is_signalled: bool,
    /// The loop has decided to start the job, and not started it yet.
    pub(super) is_launching: bool,
    pub(super) is_release_ordered: bool,
    pub(super) thread: Thread,
    /// The reply to the slice in the queue, which the thread has not read yet.
    pub(super) reply: Option<Reply>,
    pub(super) memory: WaitMemory,
    pub(super) connection: Connection,
    /// The session that the connection uses: its own, but for loans of a pooler.
    pub(super) session: usize,
    pub(super) is_cut: bool,
    pub(super) job: Job,
    pub(super) is_loop_delayed: bool,
    pub(super) is_thread_delayed: bool,
    pub(super) record: Record,
}

/// What happened to a pglock, as far as an exception depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Record {
    /// The server has granted it the lock.
    pub(super) is_granted: bool,
    /// How the server came to take the lock back.
    pub(super) loss: Option<Loss>,
    /// It did so in this tick.
    pub(super) is_loss_fresh: bool,
    /// Since then, a tick has passed in which the guard could not run or had no network.
    pub(super) is_guard_hindered: bool,
    /// Which waiters were in contact with the server when a restart took the lock back, one bit for each: they leave
    /// the key alone until the job must be dead.
    pub(super) witnesses: u8,
    /// How many ticks the loop has been delayed altogether.
    pub(super) loop_delay: Ticks,
    /// Any of its threads has ever been delayed.
    pub(super) was_delayed: bool,
    /// How long after the lock vanished the job may still run.
    pub(super) vanished_for: Ticks,
    /// Why its job and a later one may run at once.
    pub(super) exception: Option<Exception>,
    /// For how many ticks it has owed its next step.
    pub(super) overdue: Ticks,
}

/// How a server takes a lock back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Loss {
    /// `pg_terminate_backend`, by an operator.
    Terminated,
    /// A restart or a crash of the server.
    Restarted,
    /// The client was silent for longer than the server's limit.
    Silent,
    /// The evictor ended the session after it did not react.
    Unresponsive,
    /// The evictor ended the session with `--force`.
    Forced,
    /// The evictor ended the session at once, as in version 0.1.
    EvictedAtOnce,
    /// The session lives, without the lock.
    Vanished,
}

/// The named cases in which two jobs may run at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Exception {
    /// `kill -9` of pglock, and its session ended: nobody is left to guard or to terminate the job.
    Killed,
    /// `evict --force`: the operator wants the key at once.
    Forced,
    /// A client that tried the key in the instant of an operator's `pg_terminate_backend` came before the guard.
    CameBeforeGuard,
    /// The server ended the session while pglock was frozen or cut off for longer than a newcomer waits. This is no
    /// excuse for a waiter whose session ended together with the holder's.
    GuardHindered,
    /// pglock was frozen for longer than the margin covers.
    Frozen,
    /// pglock was frozen when it was to react to an eviction, which said that the job may still run.
    Unresponsive,
    /// The lock vanished from the living session; for as long as noticing that and terminating the job take.
    Vanished,
}

/// What the session's thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Thread {
    Connecting,
    /// Leaves the key alone as long as the job of a client that held it may run.
    AwaitingOldJob {
        is_look_due: bool,
    },
    /// Leaves a server alone that has just started.
    Settling,
    /// Waits for the reply to a slice in the server's queue.
    Queueing {
        sent: Ticks,
    },
    /// Sleeps between two tries.
    Pausing {
        is_over: bool,
    },
    /// Has a key that nobody has released, and waits whether its loser claims it.
    AwaitingClaim {
        is_over: bool,
    },
    Holding {
        sent: Ticks,
        is_guard: bool,
        is_told: bool,
    },
    /// A heartbeat is on its way, and the network is cut.
    Blocked {
        sent: Ticks,
        is_guard: bool,
        is_told: bool,
    },
    /// Reconnects to acquire the lost key again.
    Guarding {
        looks_for_evictor: bool,
    },
    /// Claims the lost key, and waits for it in the queue.
    Claiming,
    Ended,
}

/// What a wait remembers from one connection to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct WaitMemory {
    /// The server has answered a query.
    pub(super) has_answered: bool,
    /// Another client was seen to hold the lock.
    pub(super) was_contended: bool,
    /// The server has answered on the current connection.
    pub(super) has_answered_here: bool,
    /// The holder could have lost its session together with us, at this time.
    pub(super) holder_lost_at: Option<Ticks>,
    /// Since then the key was granted to a client.
    pub(super) is_granted_since: bool,
}

/// The client's end of the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Connection {
    None,
    Open,
    /// The server has closed it.
    Ended,
    /// The client has shut it down, because the server did not respond.
    Abandoned,
}

/// A report of the session's thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Report {
    Connected,
    Alive { next_due: Ticks },
    Answered,
    Contended,
    Retrying,
    Held,
    Withdrawn,
    Failed,
    Lost,
    EvictionRequested,
    Released { was_held: bool },
}

impl Report {
    /// Returns whether the loop must read it now; see `session::reporter`.
    pub(super) fn wakes(self) -> bool {
        !matches!(
            self,
            Report::Connected | Report::Alive { .. } | Report::Answered | Report::Contended
        )
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Server {
    /// How many ticks it stays away; `None` if it is there.
    pub(super) away_for: Option<Ticks>,
    /// It has started in this tick.
    pub(super) is_young: bool,
    /// One for each client, by number.
    pub(super) sessions: Vec<Option<Session>>,
    /// The session that holds the key.
    pub(super) holder: Option<usize>,
    pub(super) queue: Vec<Queued>,
    /// The sessions that claim the key, one bit for each.
    pub(super) claims: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Queued {
    pub(super) session: usize,
    /// When the slice ends.
    pub(super) left: Ticks,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Session {
    /// For how long the server has heard nothing.
    pub(super) silent_for: Ticks,
    /// `pglock evict` has marked it.
    pub(super) is_marked: bool,
    /// A pooler owns it, and has lent it to more than one client.
    pub(super) is_lent: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Reply {
    Granted,
    /// It was granted, but nobody has released it.
    Unreleased,
    /// It was granted, and given back because its loser claims it.
    Claimed,
    Busy,
    Cancelled,
}

/// A `pglock evict` that was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Evictor {
    /// Waits for the session to release the lock.
    Asking { session: usize, left: Ticks },
    /// Has forced an eviction, and holds the mark for this tick.
    Forcing { session: usize },
}
