//! The tests against a real PostgreSQL: each runs the pglock binary, and quotes the promise that it checks.
//!
//! One crate, so that all of them share one server (`support::server`); a directory per wing
//! of the program, with a file per subject. Tests run side by side, and each has a key of its own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    clippy::print_stdout,
    reason = "what a test measured is for whoever asks with --nocapture"
)]

mod cli;
mod commands;
mod connection;
mod hostile_server;
mod lock;
mod project;
mod run;
mod support;
