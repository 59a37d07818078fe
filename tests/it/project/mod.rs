//! The repository: examples, completions, release checks, and the test harness itself.

mod completions;
mod desk;
mod documents;
mod examples;
mod gates;
mod harness;
mod kubernetes;
mod promises;
mod recipes;
mod services;
mod transcripts;
mod wings;
