//! Connecting: connection strings, hosts, passwords and TLS, compared with libpq.

mod alike;
mod connecting;
pub mod hosts;
mod secrets;
mod tls;
