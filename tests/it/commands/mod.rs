//! The subcommands `check`, `list`, `evict` and `key`.

mod check;
mod evict;
mod hash;
mod key;
mod list;
