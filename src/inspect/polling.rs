//! The pglocks that wait without a row in `pg_locks`: behind a pooler, without plpgsql, or between two stays in the
//! queue.
//!
//! Only the tag of their last query shows that they wait (see `protocol::query_tag`). Behind a pooler it is visible
//! only until the pooler lends the session to its next client, so one query does not find them all. If we come through
//! the same pool, that client may well be us: poolers lend the session that was used last. So each look at the sessions
//! is a transaction that lasts for a while, and the waiters use others meanwhile, if the pool has any.

use crate::connection::Client;
use crate::inspect::backend::{Backend, FORGET_SESSIONS, columns, is_rolled_back, rows};
use crate::lock::{self, EndStatement, QueryResult, simple_query};
use crate::protocol::name::RUN_PREFIX;
use crate::protocol::query_tag::{QUERY_TAG_PREFIX, QueryTag};
use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The seconds of a tag, as a regular expression. The number of digits is limited because any client can write a
/// comment that looks like a tag: a match must be a valid number and interval, or the query would fail.
const SECONDS_REGEX: &str = "([0-9]{1,9}[.][0-9]{3})";

/// How long to look for waiters that poll: all that have waited for less than a minute send a query in this time.
const SEARCH_DURATION: Duration = Duration::from_millis(1200);

/// How much longer to look than the longest pause that was seen in a tag.
const SEARCH_SLACK: Duration = Duration::from_millis(200);

/// How long to look at most: for longer than the default of `--poll`.
const MAX_SEARCH_DURATION: Duration = Duration::from_secs(6);

/// How long a transaction of the search lasts. Through a pool, it keeps a session from the pool's other clients.
const TRANSACTION_DURATION: Duration = Duration::from_millis(150);

/// The pause between two queries of the search.
const SEARCH_INTERVAL: Duration = Duration::from_millis(3);

/// Returns the pglocks that wait without a row, each once. If the first query finds any that poll, or they are to be
/// expected because a lock is held behind a pooler, the search goes on for [`SEARCH_DURATION`], or for the longest
/// pause that a waiter shows.
///
/// # Errors
/// The connection is lost, or the query fails.
pub(super) fn find_waiters(client: &mut Client, are_expected: bool) -> Result<Vec<Backend>, postgres::Error> {
    let sql = polling_query();
    let mut waiters: BTreeMap<String, Backend> = BTreeMap::new();
    collect_waiters(client, &sql, &mut waiters)?;
    let start = Instant::now();
    let is_over = |waiters: &BTreeMap<String, Backend>| {
        let is_any_polling = waiters.values().any(|waiter| waiter.polling_seconds.is_some());
        // The others keep their sessions, and the tag with it.
        let lent = waiters.values().filter(|waiter| waiter.is_rolled_back);
        let pauses = lent.map(|waiter| search_duration_for(waiter.polling_seconds));
        let duration = pauses.fold(SEARCH_DURATION, Duration::max);
        !(is_any_polling || are_expected) || start.elapsed() >= duration
    };
    while !is_over(&waiters) {
        lock::begin(client, "READ ONLY", "")?;
        let transaction_start = Instant::now();
        while transaction_start.elapsed() < TRANSACTION_DURATION && !is_over(&waiters) {
            sleep(SEARCH_INTERVAL);
            simple_query(client, FORGET_SESSIONS)?;
            collect_waiters(client, &sql, &mut waiters)?;
        }
        lock::end_transaction(client, EndStatement::Commit, QueryTag::ProgramOnly)?;
    }
    Ok(waiters.into_values().collect())
}

/// Why pglocks that wait without a row may be missed.
#[derive(Clone, Copy, Debug)]
pub(super) struct MissedWaiters {
    /// Our role may not see the queries of some pglocks.
    pub(super) are_hidden: bool,
    /// The server does not record the queries of some.
    pub(super) are_untracked: bool,
}

/// Returns whether there are pglocks in this database whose queries cannot be seen: some may wait without a row.
///
/// # Errors
/// The connection is lost, or the query fails.
pub(super) fn missed_waiters(client: &mut Client) -> Result<MissedWaiters, postgres::Error> {
    let sql = format!(
        "SELECT pg_catalog.bool_or(a.query = '<insufficient privilege>') AS hidden, \
         pg_catalog.bool_or(a.state = 'disabled') AS untracked FROM pg_catalog.pg_stat_activity a \
         WHERE a.datname = pg_catalog.current_database() AND a.application_name LIKE '{RUN_PREFIX}%'"
    );
    let result = QueryResult::fetch(client, &sql)?;
    Ok(MissedWaiters {
        are_hidden: result.is_true("hidden"),
        are_untracked: result.is_true("untracked"),
    })
}

/// Adds the waiters that are visible now.
///
/// # Errors
/// The connection is lost, or the query fails.
fn collect_waiters(
    client: &mut Client,
    sql: &str,
    waiters: &mut BTreeMap<String, Backend>,
) -> Result<(), postgres::Error> {
    for row in rows(simple_query(client, sql)?) {
        let backend = Backend::from_row(&row);
        waiters.insert(backend.application_name.clone(), backend);
    }
    Ok(())
}

/// Returns the query for the pglocks that wait without a row.
fn polling_query() -> String {
    let waiting_tag = format!(
        "'^{}(?:waits|asks) {SECONDS_REGEX} '",
        QUERY_TAG_PREFIX.replace('*', "[*]")
    );
    // One that asks within no time has given up. A waiter that is overdue has gone, or has got its lock. One that tries
    // in transactions holds nothing between two tries: what its session holds was left behind there.
    format!(
        "SELECT pid, {} FROM pg_catalog.pg_stat_activity a \
         WHERE a.datname = pg_catalog.current_database() AND a.query ~ {waiting_tag} \
         AND a.query NOT LIKE '{QUERY_TAG_PREFIX}asks 0.000 %' \
         AND a.pid <> pg_catalog.pg_backend_pid() \
         AND a.state_change > pg_catalog.clock_timestamp() - pg_catalog.make_interval(\
         secs => 1 + pg_catalog.substring(a.query, {waiting_tag})::float8) \
         AND ({} OR a.pid NOT IN (\
         SELECT pid FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND pid IS NOT NULL))",
        columns(),
        is_rolled_back()
    )
}

/// Returns how long to look for waiters that pause for so many seconds.
fn search_duration_for(pause_seconds: Option<f64>) -> Duration {
    let pause = Duration::try_from_secs_f64(pause_seconds.unwrap_or_default()).unwrap_or(MAX_SEARCH_DURATION);
    pause.saturating_add(SEARCH_SLACK).min(MAX_SEARCH_DURATION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_lasts_for_a_pause_within_limits() {
        let millis = |pause| search_duration_for(pause).as_millis();
        assert_eq!(millis(Some(5.0)), 5200);
        assert_eq!(millis(Some(0.02)), 220);
        assert_eq!(millis(Some(3600.0)), 6000);
        // Any client can write anything into a comment.
        assert_eq!(millis(Some(-1.0)), 6000);
        assert_eq!(millis(None), 200);
    }
}
