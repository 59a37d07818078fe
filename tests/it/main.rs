//! The tests against a real PostgreSQL: each runs the pglock binary, and quotes the promise that it checks.
//!
//! One crate, so that all of them share one server (`support::server`); one file per subject. Tests run side by
//! side, and each has a key of its own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    clippy::print_stdout,
    reason = "what a test measured is for whoever asks with --nocapture"
)]

mod check;
mod combinations;
mod completions;
mod conflict;
mod connecting;
mod connection_alike;
mod connection_hosts;
mod connection_secrets;
mod connection_tls;
mod cost;
mod evict;
mod examples;
mod exclusion;
mod failures;
mod fair;
mod gates;
mod harness;
mod hash;
mod hostile;
mod hostile_server;
mod impostor;
mod job;
mod keys;
mod list;
mod lost;
mod min_hold;
mod orphan;
mod partition;
mod pooler;
mod several_keys;
mod signals;
mod slots;
mod standby;
mod support;
mod terminal;
mod token;
mod waiting;
mod waiting_line;
mod words;
