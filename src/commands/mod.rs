//! The subcommands, one file each.

pub mod check;
pub mod evict;
pub mod key;
pub mod list;
