//! The tests against a real PostgreSQL: each runs the pglock binary, and quotes the promise that it checks.
//!
//! One crate, so that all of them share one server (`support::server`); one file per subject. Tests run side by
//! side, and each has a key of its own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod conflict;
mod connecting;
mod exclusion;
mod failures;
mod harness;
mod job;
mod keys;
mod support;
mod waiting;
