//! Connecting: connection strings, hosts, passwords and TLS, compared with libpq.

mod alike;
mod connecting;
mod hosts;
mod secrets;
mod tls;
