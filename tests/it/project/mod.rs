//! The repository: examples, completions, release checks, and the test harness itself.

mod completions;
mod examples;
mod gates;
mod harness;
mod promises;
mod wings;
