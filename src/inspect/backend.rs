//! A session of the server, and who it is.
//!
//! Every role sees the user and the application name of every session, but not the times, the client address or the
//! query of another role's session. So a pglock is recognized by its application name where its query tag is hidden.

use crate::connection::query_message;
use crate::inspect::server_time::ServerTime;
use crate::lock::{PROBE_START, cell};
use crate::protocol::name::{self, RunName};
use crate::protocol::query_tag::{MAX_QUERY_TAG_LEN, QUERY_TAG_PREFIX, QueryTagInfo};
use postgres::{SimpleQueryMessage, SimpleQueryRow};
use std::fmt;

/// A session of the server, as far as our role may see it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Backend {
    /// The backend's process ID; `None` for a prepared transaction.
    pub pid: Option<i32>,
    /// The role.
    pub user: String,
    /// The `application_name`.
    pub application_name: String,
    /// The client's address, unless it is hidden or the connection is a Unix socket.
    pub client_address: Option<String>,
    /// When it connected, unless that is hidden.
    pub connected: Option<ServerTime>,
    /// Since when a pglock has held its lock, unless that is hidden. The server does not record it for other clients.
    pub since: Option<ServerTime>,
    /// Whether its last query has a query tag, which the server may have cut.
    pub is_tagged: bool,
    /// The program of a pglock's job, unless that is hidden.
    pub job: Option<String>,
    /// The note of a pglock's user, unless that is hidden.
    pub note: Option<String>,
    /// For how many seconds a pglock that waits by trying again and again, rather than in a queue, pauses at most.
    pub polling_seconds: Option<f64>,
    /// Whether it holds the lock in shared mode, where that was queried.
    pub is_shared: bool,
    /// Whether the last query of a pglock was a wait in the server's queue.
    pub is_queueing: bool,
    /// Whether it is a pglock that lost its lock, and holds the key only until its job is dead.
    pub is_guard: bool,
    /// For how many seconds after its last query the job of a pglock may live, unless that is hidden.
    pub job_limit_seconds: Option<f64>,
    /// How long ago its last query was sent, in seconds, unless that is hidden.
    pub idle_seconds: Option<f64>,
    /// Whether its last query was sent by a pglock that tries in transactions, and holds nothing after it.
    pub is_rolled_back: bool,
    /// Whether its last query was the heartbeat of a pglock that holds a lock.
    pub is_heartbeat: bool,
    /// Whether it is the session that asks.
    pub is_own: bool,
    /// Whether it is a session of a pool that holds a lock which is not that of the client it is named after; see
    /// [`Backend::without_client`].
    pub is_leftover: bool,
    /// The pglock that the pool has lent such a session to, if it holds a lock of its own there.
    pub lent_to: Option<String>,
    /// Whether another pglock has its host name and process ID, so that only the random characters tell them apart.
    pub is_ambiguous: bool,
    /// Whether what it does is hidden: our role may not see it, or the server does not record it.
    pub is_hidden: bool,
    /// Whether the server does not record what it does, because `track_activities` is off for it.
    pub is_untracked: bool,
    /// The server's clock when this was read, in seconds since 1970.
    pub read_epoch: f64,
}

/// The statement before a query of `pg_stat_activity` in a transaction that may have looked at it before: it keeps what
/// it has once seen of the other sessions. Behind a pooler, most of ours may be in one.
pub(crate) const FORGET_SESSIONS: &str = "SELECT pg_catalog.pg_stat_clear_snapshot(); ";

/// The condition that the session's last query is one after which a pglock that tries in transactions holds nothing: a
/// ROLLBACK, the query of [`holders::find`](super::holders::find), or a probe that has ended. One that polls in a
/// session, and may hold some of several keys, sends others.
pub(super) fn is_rolled_back() -> String {
    format!(
        "(a.query LIKE '/* pglock asks %' AND (a.query LIKE '% */ ROLLBACK' OR a.query LIKE '% */ {}' \
         OR a.state = 'idle' AND a.query LIKE '% */ {}'))",
        query_message::like_pattern("SELECT l.pid,"),
        query_message::like_pattern(PROBE_START),
    )
}

/// Returns the columns that [`Backend::from_row`] reads, besides `pid`. `a` is `pg_stat_activity` or
/// `pg_stat_get_activity`. Of a query only the tag is read, and nothing of a query without one.
pub(crate) fn columns() -> String {
    format!(
        "pg_catalog.pg_get_userbyid(a.usesysid) AS usename, a.application_name, \
         pg_catalog.host(a.client_addr) AS client_address, extract(epoch FROM a.backend_start) AS connected, \
         extract(epoch FROM a.query_start) AS query_start, extract(epoch FROM a.state_change) AS state_change, \
         CASE WHEN a.query LIKE '{QUERY_TAG_PREFIX}%' THEN pg_catalog.left(a.query, {MAX_QUERY_TAG_LEN}) END AS tag, \
         a.query = '<insufficient privilege>' AS hidden, a.state = 'disabled' AS untracked, \
         a.pid = pg_catalog.pg_backend_pid() AS own, \
         {} AS rolled_back, \
         extract(epoch FROM pg_catalog.clock_timestamp()) AS now",
        is_rolled_back()
    )
}

impl Backend {
    /// Returns a session of which only the name is known.
    #[cfg(test)]
    pub(crate) fn named(application_name: &str) -> Backend {
        Backend {
            pid: Some(4242),
            user: "app".into(),
            application_name: application_name.into(),
            ..Backend::default()
        }
    }

    /// Reads a row of a query for `pid` and [`columns`].
    pub(crate) fn from_row(row: &SimpleQueryRow) -> Backend {
        let get = |column| cell(row, column);
        let text = |column| get(column).unwrap_or_default().to_owned();
        let number = |column| get(column).and_then(|text| text.parse::<f64>().ok());
        let read_epoch = number("now").unwrap_or_default();
        let time = |column| number(column).map(|epoch| ServerTime::new(epoch, read_epoch));
        let tag = get("tag").and_then(QueryTagInfo::parse);
        // A heartbeat says for how long the lock has been held. Before the first one, the session's last query is the
        // one that acquired the lock, or one that followed immediately.
        let since = tag.as_ref().and_then(|tag| match tag.held_seconds {
            Some(seconds) => number("query_start").map(|sent| ServerTime::new(sent - seconds, read_epoch)),
            None => time("state_change"),
        });
        Backend {
            pid: get("pid").and_then(|pid| pid.parse().ok()),
            user: text("usename"),
            application_name: text("application_name"),
            client_address: get("client_address").map(str::to_owned),
            connected: time("connected"),
            since,
            polling_seconds: tag.as_ref().and_then(|tag| tag.polling_seconds),
            is_shared: get("mode") == Some("ShareLock"),
            is_queueing: tag.as_ref().is_some_and(|tag| tag.is_queueing),
            is_guard: tag.as_ref().is_some_and(|tag| tag.is_guard),
            job_limit_seconds: tag.as_ref().and_then(|tag| tag.job_limit_seconds),
            idle_seconds: number("query_start").map(|sent| read_epoch - sent),
            is_rolled_back: get("rolled_back") == Some("t"),
            is_heartbeat: tag
                .as_ref()
                .is_some_and(|tag| tag.held_seconds.is_some() || tag.is_guard),
            is_own: get("own") == Some("t"),
            is_leftover: false,
            lent_to: None,
            is_ambiguous: false,
            is_tagged: tag.is_some(),
            job: tag.as_ref().and_then(|tag| tag.program).map(str::to_owned),
            note: tag.and_then(|tag| tag.note),
            is_hidden: get("hidden") == Some("t") || get("untracked") == Some("t"),
            is_untracked: get("untracked") == Some("t"),
            read_epoch,
        }
    }

    /// Returns the session without what is known about the client that used it last: the lock is not that client's.
    pub(super) fn without_client(self) -> Backend {
        Backend {
            is_leftover: true,
            polling_seconds: None,
            is_tagged: false,
            job: None,
            note: None,
            since: None,
            ..self
        }
    }

    /// Returns the session without its last client, if it is our own and the caller does not hold the lock.
    pub(crate) fn without_client_if_own(self) -> Backend {
        if self.is_own { self.without_client() } else { self }
    }

    /// Returns what its name says, if it is that of a `pglock run`.
    pub(crate) fn run_name(&self) -> Option<RunName<'_>> {
        RunName::parse(&self.application_name).filter(|_| !self.is_leftover)
    }

    /// Returns whether it may be a `pglock run` after all, if it counts as a session of a pool only because it is named
    /// after other keys: any name can be given to a session.
    pub(crate) fn may_be_misnamed(&self) -> bool {
        let is_certain = self.is_own || self.is_rolled_back || self.lent_to.is_some();
        self.is_leftover && !is_certain && RunName::parse(&self.application_name).is_some()
    }

    /// Returns whether it is a `pglock run`, by its name or by its query tag. The user can replace the front of the
    /// name, and the tag may be hidden.
    pub(crate) fn is_pglock(&self) -> bool {
        let is_of_any_instance = || !self.is_leftover && name::is_of_any_instance(&self.application_name);
        self.is_tagged || self.run_name().is_some() || is_of_any_instance()
    }

    /// Returns a short description: host and process ID of a pglock, with the random characters if need be, that it is
    /// a pool's, application name and user of any other client.
    pub(crate) fn who(&self) -> String {
        if self.is_leftover {
            return "a session of the pool".into();
        }
        if let Some(run) = self.run_name() {
            return match run.instance {
                Some(instance) if self.is_ambiguous => format!("{}~{instance}:{}", run.host, run.pid),
                _ => format!("{}:{}", run.host, run.pid),
            };
        }
        if self.pid.is_none() {
            return "a prepared transaction".into();
        }
        match self.application_name.as_str() {
            "" => format!("user {:?}", self.user),
            name => format!("{name:?} of user {:?}", self.user),
        }
    }
}

/// Describes the session, with its backend's process ID and, if known, since when its client has held the lock.
impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.who())?;
        let Some(pid) = self.pid else {
            return f.write_str(" (see pg_prepared_xacts)");
        };
        write!(f, " (backend {pid}")?;
        // The age of a session says nothing about a lock that was left behind in it.
        if self.is_leftover {
            return f.write_str(")");
        }
        match (self.since, self.connected) {
            (Some(since), _) => write!(f, ", since {}", since.rfc3339())?,
            (None, Some(connected)) => write!(f, ", connected since {}", connected.rfc3339())?,
            (None, None) => {}
        }
        if self.is_guard {
            f.write_str(", until the job that lost the lock is dead")?;
        }
        if let Some(note) = &self.note {
            write!(f, ", note: {note}")?;
        }
        f.write_str(")")
    }
}

/// Returns the rows of a result.
pub(crate) fn rows(messages: Vec<SimpleQueryMessage>) -> impl Iterator<Item = SimpleQueryRow> {
    messages.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_pglock_is_described_by_host_and_pid() {
        let noon = ServerTime::new(1_767_355_200.7, 1_767_355_393.0);
        let web1 = Backend {
            since: Some(noon),
            connected: Some(noon),
            ..Backend::named("pglock:night backup web1:77")
        };
        assert_eq!(web1.to_string(), "web1:77 (backend 4242, since 2026-01-02T12:00:00Z)");
        let psql = Backend::named("psql");
        assert_eq!(psql.to_string(), "\"psql\" of user \"app\" (backend 4242)");
        assert_eq!(Backend::named("").to_string(), "user \"app\" (backend 4242)");
        let psql = Backend {
            connected: Some(noon),
            ..psql
        };
        assert!(psql.to_string().contains("connected since 2026-01-02T12"));
        let prepared = Backend::default();
        assert_eq!(prepared.to_string(), "a prepared transaction (see pg_prepared_xacts)");
    }

    proptest! {
        /// Any client can call itself anything.
        #[test]
        fn every_session_has_a_description(
            name in "(pglock:)?\\PC{0,20}( slots=[0-9]{1,6})?( \\PC{0,9})?(:[0-9]{0,12})?",
            user in "\\PC{0,9}",
            pid in any::<Option<i32>>(),
            connected in any::<Option<f64>>(),
        ) {
            let connected = connected.map(|epoch| ServerTime::new(epoch, 0.0));
            let backend = Backend { pid, user, connected, ..Backend::named(&name) };
            prop_assert!(!backend.who().is_empty() && backend.to_string().starts_with(&backend.who()));
        }
    }
}
