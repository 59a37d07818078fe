//! The subcommands `check`, `list`, `evict`, `key`, `init` and `history`, and the limits of those that ask a server.

mod check;
mod evict;
mod hash;
mod history;
mod init;
mod key;
mod list;
mod metrics;
mod silent;
