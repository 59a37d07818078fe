//! What a server is like, and whether a lock of it protects anything.
//!
//! Decided from the first message's answer alone; what is refused here is refused with the remedy. `pglock check` says the
//! same, by the same code.

use super::{Scope, ScopeChoice};
use crate::outcome::{ExitCode, Failure};
use std::time::Duration;

/// What the first message tells of the server.
#[derive(Clone, Debug)]
pub struct Server {
    /// Something between us and the server answers in its name.
    pub pooled: bool,
    /// The server is a hot standby, whose locks nobody else sees.
    pub standby: bool,
    /// The database, in which all locks live.
    pub database: String,
    /// What the server calls itself.
    pub version: String,
    /// The process of the server that has answered.
    pub backend_pid: i32,
    /// How long one stay in its queue may be.
    pub slice: Duration,
}

/// A server that gives locks in name only.
const STUBS: [(&str, &str); 2] = [("CockroachDB", "CockroachDB"), ("Redshift", "Amazon Redshift")];

impl Server {
    /// The product, for one of which it is known that its advisory locks protect nothing.
    pub fn stub(&self) -> Option<&'static str> {
        let is_it = |(sign, _): &&(&str, &str)| self.version.contains(sign);
        STUBS.iter().find(is_it).map(|(_, product)| *product)
    }

    /// Why no lock of this server protects anything, and what to do.
    pub fn refusal(&self) -> Option<String> {
        if let Some(product) = self.stub() {
            return Some(format!(
                "this is {product}, whose advisory locks protect nothing; give the address of a PostgreSQL server"
            ));
        }
        self.standby.then(|| STANDBY.to_owned())
    }

    /// The scope that is right for this connection.
    ///
    /// # Errors
    /// What was asked for protects nothing here; and what to do.
    pub fn scope(&self, choice: ScopeChoice) -> Result<Scope, &'static str> {
        match (choice, self.pooled) {
            (ScopeChoice::Session, true) => Err(
                "the connection goes through a pooler, where the lock of a session protects nothing; give the port \
                 of the PostgreSQL server itself, or leave --scope out (--scope session-pooled is for a pooler that \
                 pools whole sessions)",
            ),
            (ScopeChoice::SessionPooled, _) | (ScopeChoice::Auto | ScopeChoice::Session, false) => Ok(Scope::Session),
            (ScopeChoice::Transaction, _) | (ScopeChoice::Auto, true) => Ok(Scope::Transaction),
        }
    }

    /// The scope of a lock that is to protect something.
    ///
    /// # Errors
    /// There is none; and what to do.
    pub fn fit(&self, choice: ScopeChoice) -> Result<Scope, Failure> {
        if let Some(words) = self.refusal() {
            return Err(Failure::say(ExitCode::Config, words));
        }
        self.scope(choice)
            .map_err(|words| Failure::say(ExitCode::Config, words))
    }
}

pub(super) const STANDBY: &str = "the server is a hot standby, and the primary does not see its locks; give the address of the \
     primary, or all hosts with target_session_attrs=primary";

pub(super) const STATEMENT_POOLING: &str = "the pooler ends the connection at BEGIN, as one does that pools statements, and no \
     lock outlives a statement there; give the port of the PostgreSQL server itself, or a pool with pool_mode = \
     transaction";

#[cfg(test)]
mod tests {
    use super::*;

    fn server(pooled: bool, standby: bool, version: &str) -> Server {
        Server {
            pooled,
            standby,
            database: "app".into(),
            version: version.into(),
            backend_pid: 1,
            slice: Duration::ZERO,
        }
    }

    #[test]
    fn the_scope_is_the_one_that_is_right_for_the_connection() {
        use ScopeChoice::*;
        let scope = |choice, pooled| server(pooled, false, "PostgreSQL 15.20").scope(choice).ok();
        assert_eq!(scope(Auto, false), Some(Scope::Session));
        assert_eq!(scope(Auto, true), Some(Scope::Transaction));
        assert_eq!(scope(Session, false), Some(Scope::Session));
        assert_eq!(scope(Session, true), None);
        assert_eq!(scope(Transaction, false), Some(Scope::Transaction));
        assert_eq!(scope(Transaction, true), Some(Scope::Transaction));
        assert_eq!(scope(SessionPooled, false), Some(Scope::Session));
        assert_eq!(scope(SessionPooled, true), Some(Scope::Session));
    }

    #[test]
    fn servers_whose_locks_protect_nothing_are_refused() {
        let refusal = |standby, version| server(false, standby, version).refusal();
        assert_eq!(refusal(false, "PostgreSQL 18.4 on x86_64"), None);
        let told = |standby, version| refusal(standby, version).expect("a refusal");
        assert!(told(true, "PostgreSQL 18.4").contains("target_session_attrs=primary"));
        assert!(told(false, "CockroachDB CCL v25.1.0 (x86_64)").contains("CockroachDB"));
        assert!(told(false, "PostgreSQL 8.0.2 on i686, Redshift 1.0.77467").contains("Redshift"));
        // Whether that one's are real depends on its version and settings, which the proof finds out.
        assert_eq!(refusal(false, "PostgreSQL 15.2-YB-2025.1.0.0-b0"), None);
    }
}
