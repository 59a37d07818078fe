//! Connecting: connection strings, hosts, passwords and TLS, compared with libpq.

mod alike;
mod connecting;
mod database_url;
pub mod hosts;
mod secrets;
mod tls;
mod tls_matrix;
mod unreadable;
