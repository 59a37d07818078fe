//! Connecting: settings, hosts, passwords and TLS, compared with libpq's.

mod alike;
mod connecting;
mod hosts;
mod secrets;
mod tls;
