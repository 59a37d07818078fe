//! Tests against a real PostgreSQL server: each runs the pglock binary. A test that checks a promise names its number
//! in `docs/promises.md`.
//!
//! All tests are in one crate, so that they share one server (`support::server`); there is a directory per wing of the
//! program, with a file per subject. Tests run concurrently, and each uses a key of its own.

#![expect(unreachable_pub, clippy::missing_errors_doc, reason = "a test has no API")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    clippy::print_stdout,
    reason = "the measurements of a test are shown with --nocapture"
)]
#![cfg_attr(
    not(target_os = "linux"),
    allow(unused_imports, dead_code, reason = "some tests need Linux")
)]

mod cli;
mod commands;
mod connection;
mod hostile_server;
mod lock;
mod project;
mod run;
mod support;
