//! Advisory locks: all SQL that acquires, proves, holds and releases one, and what a server must be like for it.
//!
//! | file | what it is |
//! |---|---|
//! | `acquire` | the first try, tries in a transaction, retries, the wait |
//! | `heartbeat` | whether the session lives and still holds the lock, and whether it is evicted |
//! | `release` | proof, release, and the claim of a lost lock |
//! | `receipt` | how a waiter in the queue knows whether a lock was released or lost; pure |
//! | `late_proof` | rows of `pg_locks` that come late |
//! | `token` | fencing tokens |
//! | `ticket` | waiting in order of arrival |
//! | `queue` | waiting in the server's queue, in slices |
//! | `backoff` | pauses between two tries where there is no queue; pure |
//! | `lending` | whether a pooler lends by the transaction or for the session; pure |
//! | `server` | which scope a server is fit for |
//! | `key_ids` | the numbers that only the server can compute |
//! | `query` | running queries, reading results and errors |
//! | `leftover` | looking for locks that the backend held before us; pure |
//! | `sql` | the text of the queries; pure |
//! | `settings` | the settings of a holder; pure |
//! | `types` | what is requested, and what it results in; pure |

mod acquire;
mod backoff;
mod heartbeat;
mod key_ids;
mod late_proof;
mod leftover;
mod lending;
mod query;
mod queue;
mod receipt;
mod release;
mod server;
mod settings;
mod settling;
mod sql;
mod ticket;
mod token;
mod types;

pub(crate) use acquire::{
    BEGIN_PROBE_PAUSE, TransactionOptions, Try, configure_session, explain_first_failure, reconnect_to_probe,
};
pub(crate) use backoff::Backoff;
pub(crate) use heartbeat::HeartbeatReply;
pub(crate) use key_ids::key_ids;
pub(crate) use lending::Lending;
pub(crate) use query::{EndStatement, QueryResult, begin, cell, end_transaction, simple_query, simple_query_tagged};
pub(crate) use queue::WaitObserver;
pub(crate) use receipt::{GUARD_TIME, Receipt};
pub(crate) use server::Server;
pub(crate) use settings::TIMEOUT_SETTINGS;
pub(crate) use settling::Settling;
pub(crate) use sql::{IN_THIS_DATABASE, PROBE_START};
pub(crate) use ticket::{Ticket, TicketQueue, Turn};
pub(crate) use token::{fencing_token, is_token_durable};
pub(crate) use types::{
    Acquisition, ClientInfo, Grant, HOT_STANDBY, Keys, Lock, Mode, Scope, ScopeChoice, TryOutcome, Wait, WaitEnd,
    WaitOptions, restarted,
};
