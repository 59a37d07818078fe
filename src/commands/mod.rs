//! The subcommands, one file each.

pub mod check;
pub mod completions;
pub mod evict;
pub mod key;
pub mod list;
pub mod run;
