//! The subcommands: a module each, and what several of them share.

pub mod check;
pub mod completions;
pub mod evict;
pub mod key;
pub mod list;
mod lock_table;
pub mod run;
