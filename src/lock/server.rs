//! What a server is like, and whether its locks protect anything.
//!
//! Decided from the result of the first query alone; every refusal names the remedy. `pglock check` reports the same,
//! by the same code.

use super::query::QueryResult;
use super::settings::{LOG_THRESHOLD_SETTINGS, max_slice};
use super::settling::ServerTimes;
use super::sql::NAME_COLUMN;
use super::types::{HOT_STANDBY, Scope, ScopeChoice};
use crate::outcome::{ExitCode, Failure};
use std::time::Duration;

/// What the first query reports about the server.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    /// The connection goes through a pooler.
    pub pooled: bool,
    /// The server is a hot standby, whose locks no other server sees.
    pub standby: bool,
    /// The database, to which all locks belong.
    pub database: String,
    /// What `version()` returns.
    pub version: String,
    /// The backend that ran the first query.
    pub backend_pid: i32,
    /// When it started.
    pub times: ServerTimes,
    /// The longest uninterrupted stay in its queue.
    pub max_slice: Duration,
}

/// A server whose advisory locks are stubs, which report success and lock nothing.
#[derive(Debug)]
pub(crate) struct Stub {
    /// What `version()` contains.
    marker: &'static str,
    product: &'static str,
    /// Whether that is known of the locks of sessions only. Those of transactions may be real: the proof decides.
    is_of_sessions_only: bool,
}

const STUBS: [Stub; 2] = [
    // Its functions for sessions do nothing and return true. From version 24 on, those for transactions lock.
    Stub {
        marker: "CockroachDB",
        product: "CockroachDB",
        is_of_sessions_only: true,
    },
    Stub {
        marker: "Redshift",
        product: "Amazon Redshift",
        is_of_sessions_only: false,
    },
];

impl Stub {
    /// Returns what the server is.
    pub(crate) fn description(&self) -> String {
        let scope = if self.is_of_sessions_only { "session-level " } else { "" };
        format!("{}, whose {scope}advisory locks protect nothing", self.product)
    }

    /// Returns what to do.
    pub(crate) fn remedy(&self) -> &'static str {
        if self.is_of_sessions_only {
            "connect to a PostgreSQL server, or try --scope transaction, which is refused unless the lock is in pg_locks"
        } else {
            "connect to a PostgreSQL server"
        }
    }
}

impl Server {
    /// Reads the result of the first query of a session that gave itself this `application_name`.
    pub(super) fn from_first_result(result: &QueryResult, application_name: &str) -> Server {
        Server {
            pooled: result.get(NAME_COLUMN) != Some(application_name),
            standby: result.is_true("standby"),
            database: result.get("database").unwrap_or_default().to_owned(),
            version: result.get("version").unwrap_or_default().to_owned(),
            backend_pid: result.backend_pid(),
            times: ServerTimes::read(|column| result.get(column)),
            max_slice: max_slice(LOG_THRESHOLD_SETTINGS.map(|name| result.get(name))),
        }
    }

    /// Returns when it started, in microseconds since 2000 by its own clock. It tells a server from its replacement,
    /// too.
    pub(crate) fn start(&self) -> Option<i64> {
        self.times.start()
    }

    /// Returns what the server is, if its advisory locks of the chosen scope are known to protect nothing.
    pub(crate) fn stub(&self, choice: ScopeChoice) -> Option<&'static Stub> {
        let stub = STUBS.iter().find(|stub| self.version.contains(stub.marker))?;
        let is_real = stub.is_of_sessions_only && matches!(self.scope(choice), Ok(Scope::Transaction));
        (!is_real).then_some(stub)
    }

    /// Returns the scope for this connection.
    ///
    /// # Errors
    /// [`ExitCode::Config`] if the chosen scope protects nothing behind a pooler.
    pub(crate) fn scope(&self, choice: ScopeChoice) -> Result<Scope, Failure> {
        match (choice, self.pooled) {
            (ScopeChoice::Session, true) => Err(Failure::msg(ExitCode::Config, SESSION_BEHIND_POOLER)),
            (ScopeChoice::SessionPooled, _) | (ScopeChoice::Auto | ScopeChoice::Session, false) => Ok(Scope::Session),
            (ScopeChoice::Transaction, _) | (ScopeChoice::Auto, true) => Ok(Scope::Transaction),
        }
    }

    /// Returns the scope of a lock on this server that protects something.
    ///
    /// # Errors
    /// [`ExitCode::Config`] if no lock of this server protects anything, or none of the chosen scope does.
    pub(crate) fn usable_scope(&self, choice: ScopeChoice) -> Result<Scope, Failure> {
        if let Some(stub) = self.stub(choice) {
            let message = format!("this is {}; {}", stub.description(), stub.remedy());
            return Err(Failure::msg(ExitCode::Config, message));
        }
        if self.standby {
            return Err(Failure::msg(ExitCode::Config, HOT_STANDBY));
        }
        self.scope(choice)
    }
}

const SESSION_BEHIND_POOLER: &str = "the connection goes through a pooler, where a session lock protects nothing; \
     connect to the port of the PostgreSQL server itself, or leave --scope out (--scope session-pooled is for a pooler \
     with session pooling)";

/// Why a pooler with statement pooling is refused, and what to do.
pub(super) const STATEMENT_POOLING: &str = "the pooler closes the connection at BEGIN, as in statement pooling, where \
     no lock outlives a statement; connect to the port of the PostgreSQL server itself, or to a pool with pool_mode = \
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
            times: ServerTimes::default(),
            max_slice: Duration::ZERO,
        }
    }

    #[test]
    fn the_scope_suits_the_connection() {
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
        let refusal = |standby, version| {
            let scope = server(false, standby, version).usable_scope(ScopeChoice::Auto);
            scope.err().map(|failure| failure.to_string())
        };
        assert_eq!(refusal(false, "PostgreSQL 18.4 on x86_64"), None);
        let refused = |standby, version| refusal(standby, version).expect("a refusal");
        assert!(refused(true, "PostgreSQL 18.4").contains("target_session_attrs=primary"));
        let cockroach = "CockroachDB CCL v25.1.0 (x86_64)";
        assert!(refused(false, cockroach).contains("CockroachDB"));
        let scope = |pooled, version, choice| server(pooled, false, version).usable_scope(choice).ok();
        // Where the lock is a transaction's, the proof finds out.
        assert_eq!(
            scope(false, cockroach, ScopeChoice::Transaction),
            Some(Scope::Transaction)
        );
        assert_eq!(scope(true, cockroach, ScopeChoice::Auto), Some(Scope::Transaction));
        assert_eq!(scope(true, cockroach, ScopeChoice::SessionPooled), None);
        assert_eq!(scope(false, "Redshift 1.0", ScopeChoice::Transaction), None);
        assert!(refused(false, "PostgreSQL 8.0.2 on i686, Redshift 1.0.77467").contains("Redshift"));
        // Whether YugabyteDB's locks are real depends on its version and settings; the proof finds out.
        assert_eq!(refusal(false, "PostgreSQL 15.2-YB-2025.1.0.0-b0"), None);
    }
}
