//! The subcommands `check`, `list`, `evict` and `key`, and the limits of those that ask a server.

mod check;
mod evict;
mod hash;
mod key;
mod list;
mod silent;
