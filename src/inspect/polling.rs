//! The pglocks that wait without a row in `pg_locks`: behind a pooler, without plpgsql, or between two stays in the
//! queue.
//!
//! Only the tag of their last query shows that they wait (see `protocol::query_tag`). Behind a pooler it is visible
//! only until the pooler lends the session to its next client, so one query does not find them all.

use crate::inspect::backend::{Backend, IS_ROLLED_BACK, columns, rows};
use crate::lock::{NOT_DEFERRABLE, simple_query};
use crate::protocol::query_tag::QUERY_TAG_PREFIX;
use postgres::Client;
use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The seconds of a tag, as a regular expression. The number of digits is limited because any client can write a
/// comment that looks like a tag: a match must be a valid number and interval, or the query would fail.
const SECONDS_REGEX: &str = "([0-9]{1,9}[.][0-9]{3})";

/// How long to look for waiters that poll. Most send a query at least once in this time.
const SEARCH_DURATION: Duration = Duration::from_millis(1200);

/// The pause between two queries of the search.
const SEARCH_INTERVAL: Duration = Duration::from_millis(3);

/// Returns the pglocks that wait without a row, each once. If the first query finds any that poll, the search goes on
/// for [`SEARCH_DURATION`].
///
/// # Errors
/// The connection is lost, or the query fails.
pub(super) fn find_waiters(client: &mut Client) -> Result<Vec<Backend>, postgres::Error> {
    let waiting_tag = format!(
        "'^{}(?:waits|asks) {SECONDS_REGEX} '",
        QUERY_TAG_PREFIX.replace('*', "[*]")
    );
    // One that asks within no time has given up. A waiter that is overdue has gone, or has got its lock. One that has
    // rolled back has no lock: any that its session holds was left behind there.
    let sql = format!(
        "{NOT_DEFERRABLE}SELECT pid, {} FROM pg_catalog.pg_stat_activity a \
         WHERE a.datname = pg_catalog.current_database() AND a.query ~ {waiting_tag} \
         AND a.query NOT LIKE '{QUERY_TAG_PREFIX}asks 0.000 %' \
         AND a.pid <> pg_catalog.pg_backend_pid() \
         AND a.state_change > pg_catalog.clock_timestamp() - pg_catalog.make_interval(\
         secs => 1 + pg_catalog.substring(a.query, {waiting_tag})::float8) \
         AND ({IS_ROLLED_BACK} OR a.pid NOT IN (\
         SELECT pid FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND pid IS NOT NULL))",
        columns()
    );
    let mut waiters: BTreeMap<String, Backend> = BTreeMap::new();
    let start = Instant::now();
    loop {
        for row in rows(simple_query(client, &sql)?) {
            let backend = Backend::from_row(&row);
            waiters.insert(backend.application_name.clone(), backend);
        }
        let is_any_polling = waiters.values().any(|waiter| waiter.is_polling);
        if !is_any_polling || start.elapsed() > SEARCH_DURATION {
            return Ok(waiters.into_values().collect());
        }
        sleep(SEARCH_INTERVAL);
    }
}
