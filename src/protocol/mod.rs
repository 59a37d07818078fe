//! What pglocks of all versions tell each other and database administrators; see `docs/protocol.md`.
//!
//! A session names itself in `application_name`, a query says in a comment what it is for, and slots, tickets and
//! eviction marks are locks whose keys are derived from the key of the lock. All of it is part of the stable interface:
//! a change here keeps two versions of pglock from excluding or recognizing each other.

pub(crate) mod derived_keys;
#[cfg(test)]
pub(crate) mod document;
pub(crate) mod name;
pub(crate) mod query_tag;
