//! From connection settings to an open connection: what psql accepts, in the order in which psql tries it.
//!
//! | file | contents |
//! |---|---|
//! | `settings` | the validated settings; only types |
//! | `parameter` | the connection parameters of libpq, and their values from one source |
//! | `redact` | what may be quoted in an error |
//! | `file` | files that the settings name, or that libpq looks for by default |
//! | `settings_error` | errors in the settings |
//! | `grammar` | URIs and `key=value` pairs |
//! | `parse` | connection strings, as libpq reads them |
//! | `database_url` | `DATABASE_URL`, as applications write it |
//! | `service`, `passfile` | the service file and the password file |
//! | `misplaced` | connection strings in the place of a single value |
//! | `validate` | from values to settings |
//! | `resolve` | all sources, in order |
//! | `tls` | certificates: roots, the client's, and the server's |
//! | `error` | why a connection attempt failed, and what to try next |
//! | `reply_filter` | which bytes of the server reach the client library, and how many |
//! | `connector` | TLS negotiation and a look at the authentication, on a TCP connection |
//! | `attempt` | one attempt at one address |
//! | `prompt` | the password prompt |
//! | `sockets` | finds the descriptor of the session's socket, and shuts it down |
//! | `query_message` | the statements around a query; pure |
//! | `client` | an open session, and the time limit for its replies |
//! | `open` | hosts, addresses and TLS modes in order, until an attempt succeeds |
//!
//! Secrets are never printed: no message of this wing contains a password, a connection string that could contain one,
//! or any text of the server that quotes one.

mod attempt;
mod client;
mod connector;
mod database_url;
mod error;
mod file;
mod grammar;
mod misplaced;
mod open;
mod parameter;
mod parse;
mod passfile;
pub(crate) mod prompt;
pub(crate) mod query_message;
mod redact;
mod reply_filter;
mod resolve;
mod service;
mod settings;
mod settings_error;
mod sockets;
mod tls;
mod validate;

pub(crate) use client::{Client, FULL_POOL};
pub(crate) use error::{
    CONNECTION_CLOSED, SIMPLE_PROTOCOL_REFUSED, final_if_session_lives, is_lock_table_full, is_of_closed_connection,
    is_of_full_lock_table, is_simple_protocol_refused,
};
pub(crate) use open::{Canceller, Connection, LimitEnforcement};
pub(crate) use redact::{has_password, may_have_password, quoted};
pub(crate) use settings::{ConnectionOptions, ConnectionString, ConnectionStringSource, Settings};
pub(crate) use sockets::shut_down_socket;
pub(crate) use validate::DEFAULT_CONNECT_TIMEOUT;
