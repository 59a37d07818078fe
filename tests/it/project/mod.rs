//! The repository: examples, completions, the manual, release checks, workflows, and the test harness itself.

mod completions;
mod desk;
mod documents;
mod examples;
mod gates;
mod harness;
mod kubernetes;
mod manual;
mod promises;
mod recipes;
mod services;
mod setup;
mod transcripts;
mod wings;
mod workflows;
