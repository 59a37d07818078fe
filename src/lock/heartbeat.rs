//! Heartbeats: whether the server is there, whether it still holds the lock for us, and whether to give way.

use super::query::QueryResult;
use super::types::{Lock, Scope};
use crate::connection::Client;
use crate::protocol::derived_keys::{eviction_channel, eviction_mark};
use crate::protocol::query_tag::QueryTag;
use postgres::error::SqlState;

/// What the reply to a heartbeat says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeartbeatReply {
    /// The lock is held.
    Held {
        /// Whether `pglock evict` has marked the session.
        is_marked: bool,
    },
    /// The session lives, but no longer holds the lock.
    Vanished,
    /// Another backend answered: the connection goes through a pooler.
    OtherBackend {
        /// Its process ID.
        pid: i32,
    },
}

impl HeartbeatReply {
    /// Returns why the lock counts as lost; `None` if it is held.
    pub(crate) fn loss(self) -> Option<String> {
        match self {
            HeartbeatReply::Held { .. } => None,
            HeartbeatReply::Vanished => Some(
                "the session no longer holds it: something released it on this session (a pooler's reset query, or \
                 the job through the inherited connection)"
                    .into(),
            ),
            HeartbeatReply::OtherBackend { pid } => Some(format!(
                "backend {pid} answered instead of the one that holds it: a pooler lends the session to other clients"
            )),
        }
    }
}

impl Lock {
    /// Asks the server whether backend `backend_pid` still holds the lock for us. The tag of the query says for how
    /// long it has been held.
    ///
    /// # Errors
    /// The server reports an error, or the connection is lost.
    pub(crate) fn heartbeat(
        &self,
        client: &mut Client,
        backend_pid: i32,
        tag: QueryTag,
    ) -> Result<HeartbeatReply, postgres::Error> {
        self.query_heartbeat(client, backend_pid, tag, "")
    }

    /// Does the same, and has the server send a notification when `pglock evict` marks this session: from then on an
    /// eviction is noticed at once. A session that a pooler lends must not listen, since the next client would hear it.
    ///
    /// # Errors
    /// As for [`Lock::heartbeat`].
    pub(crate) fn heartbeat_and_listen(
        &self,
        client: &mut Client,
        backend_pid: i32,
        tag: QueryTag,
    ) -> Result<HeartbeatReply, postgres::Error> {
        // The server reads notifications in a transaction of its own, and takes a snapshot. With the defaults of the
        // session, that could wait for other clients (see `query_message`), and no heartbeat would be answered.
        let listen = format!(
            "SELECT pg_catalog.set_config('default_transaction_deferrable', 'off', false) AS deferrable; LISTEN {}; ",
            eviction_channel(backend_pid)
        );
        self.query_heartbeat(client, backend_pid, tag, &listen)
    }

    /// Runs the heartbeat after a statement that is empty or begins to listen.
    ///
    /// # Errors
    /// As for [`Lock::heartbeat`].
    fn query_heartbeat(
        &self,
        client: &mut Client,
        backend_pid: i32,
        tag: QueryTag,
        listen: &str,
    ) -> Result<HeartbeatReply, postgres::Error> {
        let mark = eviction_mark(backend_pid);
        let mut fetch = |sql: String| QueryResult::fetch_tagged(client, &format!("{listen}{sql}"), tag);
        let result = match self.scope {
            Scope::Transaction => fetch(self.scanning_heartbeat(mark))?,
            Scope::Session => match fetch(self.session_heartbeat(backend_pid, mark)) {
                // Other clients have filled the server's lock table, which changes nothing about our lock.
                Err(error) if error.code() == Some(&SqlState::OUT_OF_MEMORY) => fetch(self.scanning_heartbeat(mark))?,
                // pg_cancel_backend cancels the query, and not the lock of the session.
                Err(error) if error.code() == Some(&SqlState::QUERY_CANCELED) => {
                    fetch(self.session_heartbeat(backend_pid, mark))?
                }
                result => result?,
            },
        };
        let held_keys = result.number("held").unwrap_or_default() as usize;
        Ok(if result.backend_pid() != backend_pid {
            HeartbeatReply::OtherBackend {
                pid: result.backend_pid(),
            }
        } else if held_keys != self.keys.as_slice().len() {
            HeartbeatReply::Vanished
        } else {
            HeartbeatReply::Held {
                is_marked: result.is_true("marked"),
            }
        })
    }
}
