//! The subcommands: a module each, and what several of them share.

pub(crate) mod check;
pub(crate) mod completions;
pub(crate) mod evict;
pub(crate) mod history;
pub(crate) mod init;
pub(crate) mod key;
pub(crate) mod list;
mod lock_table;
pub(crate) mod run;
mod session;
