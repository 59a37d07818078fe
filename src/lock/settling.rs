//! How long ago the server started, and whether a newcomer leaves it alone for now. Pure.
//!
//! A newcomer waits until the server is [`MIN_SERVER_AGE`] old, so that a client that lost its lock in the restart
//! comes first. The server decides, in the query that would acquire the lock; the client reads the same times and knows
//! how long to wait. Both compare with the time at which the server received the query, so they always agree.
//!
//! A time is sent as the hexadecimal digits of PostgreSQL's binary format: microseconds since 2000, whatever the
//! session's `TimeZone` and `DateStyle`. All expressions are calls of functions: to resolve an operator, GREATEST or a
//! number's arithmetic for the first time costs a new session several times as much.

use std::time::Duration;

/// How long a newcomer leaves a server alone that has just started. A pglock that lost its lock in the restart acquires
/// it again within that time, to guard the end of its job.
pub(super) const MIN_SERVER_AGE: Duration = Duration::from_millis(500);

/// What a newcomer leaves alone for [`MIN_SERVER_AGE`], so that a client that lost its lock comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settling {
    /// Nothing: the client lost its lock itself, or only looks.
    Nothing,
    /// A server that has just started.
    Server,
    /// That, and a backend that a pooler has just opened: a pooler that was restarted, or could not reach its server
    /// for a while, opens new ones, and a client that lost its lock in the same pool comes back no earlier.
    ServerAndPool,
}

/// When the server received the query.
const NOW: &str = "pg_catalog.statement_timestamp()";

/// When the server started. All sessions of the time before have ended, and their jobs may still be terminating.
const POSTMASTER_START: &str = "pg_catalog.pg_postmaster_start_time()";

/// When the server restarted after a crash, because its statistics are reset then (from PostgreSQL 15 on; before, to
/// ask for that could take 10 ms). `pg_stat_reset_shared` with no argument or with `bgwriter` looks the same, which
/// costs waiters some time and nobody the lock. A second kind of statistics could tell the two apart, but to read one
/// that all these versions have, each new session would look up a composite type.
const STATISTICS_RESET: &str = "CASE WHEN pg_catalog.text_ge(pg_catalog.current_setting('server_version_num'), '150000') \
     THEN pg_catalog.pg_stat_get_bgwriter_stat_reset_time() END";

/// When the backend began. A pool has reached its server for at least as long. To a new session this costs as much as
/// twenty functions, so only a pool's is asked for it.
const BACKEND_START: &str = "(SELECT backend_start FROM pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid()))";

/// Becomes the role that logged in, until the transaction ends; false, or NULL where it is that role already. Only who
/// has the privileges of that role may see when the backend began, and `ALTER ROLE ... SET role` takes them away.
const BECOME_LOGIN_ROLE: &str = "CASE WHEN pg_catalog.namene(current_user, session_user) THEN \
     pg_catalog.set_config('role', 'none', true) IS NULL END";

/// Returns the columns for when the server started, and the time of the query.
pub(super) fn server_columns() -> String {
    format!(
        "{} AS query_received, {} AS postmaster_start, {} AS statistics_reset",
        digits(NOW),
        digits(POSTMASTER_START),
        digits(STATISTICS_RESET)
    )
}

/// Returns the column for when a backend began that was lent by a pooler, NULL where the condition is true.
pub(super) fn backend_column(unless: &str) -> String {
    format!("{} AS backend_start", digits(&backend_start(unless)))
}

/// Returns the condition that the server has been there for long enough.
pub(super) fn is_server_settled() -> String {
    format!("{} AND {}", is_old(POSTMASTER_START), is_old(STATISTICS_RESET))
}

/// Returns the condition that a pool has reached its server for long enough, or that the condition is true.
pub(super) fn is_pool_settled(unless: &str) -> String {
    is_old(&backend_start(unless))
}

/// Returns the condition that the server started at this time, as [`ServerTimes::start`] has it.
pub(super) fn has_started_at(start: i64) -> String {
    let last = format!("GREATEST({POSTMASTER_START}, {STATISTICS_RESET})");
    format!("{} = '{start:016x}'", digits(&last))
}

/// A backend that does not tell has just begun, for all we know. CASE evaluates its conditions in order.
fn backend_start(unless: &str) -> String {
    format!("CASE WHEN {unless} THEN NULL WHEN {BECOME_LOGIN_ROLE} THEN NULL ELSE coalesce({BACKEND_START}, {NOW}) END")
}

fn digits(time: &str) -> String {
    format!("pg_catalog.encode(pg_catalog.timestamptz_send({time}), 'hex')")
}

/// Unknown is old enough; so is the future, of a clock that was set back.
fn is_old(time: &str) -> String {
    format!(
        "(pg_catalog.timestamptz_le({time}, {NOW}) AND \
         pg_catalog.interval_le(pg_catalog.timestamptz_mi({NOW}, {time}), '{} ms')) IS NOT TRUE",
        MIN_SERVER_AGE.as_millis()
    )
}

/// The times that a query has reported, in microseconds since 2000, by the server's clock.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ServerTimes {
    query_received: Option<i64>,
    postmaster_start: Option<i64>,
    statistics_reset: Option<i64>,
    backend_start: Option<i64>,
}

impl ServerTimes {
    /// Reads the columns that there are, of which `text` returns the text.
    pub(super) fn read<'a>(text: impl Fn(&str) -> Option<&'a str>) -> ServerTimes {
        let time = |column| {
            let digits = u64::from_str_radix(text(column)?, 16);
            digits.ok().map(u64::cast_signed)
        };
        ServerTimes {
            query_received: time("query_received"),
            postmaster_start: time("postmaster_start"),
            statistics_reset: time("statistics_reset"),
            backend_start: time("backend_start"),
        }
    }

    /// Returns when the server started, or restarted after a crash. It tells a server from its replacement, too.
    pub(super) fn start(&self) -> Option<i64> {
        self.postmaster_start.max(self.statistics_reset)
    }

    /// Returns how long a newcomer has to wait before it may try a lock; `None` if not at all.
    pub(crate) fn settling_time(&self) -> Option<Duration> {
        let now = self.query_received?;
        let times = [self.postmaster_start, self.statistics_reset, self.backend_start];
        let time_left = |time: i64| {
            let age = u64::try_from(now.checked_sub(time)?).ok()?;
            // A little more, so that the next query comes after it.
            Some(MIN_SERVER_AGE.checked_sub(Duration::from_micros(age))? + Duration::from_millis(1))
        };
        times.into_iter().flatten().filter_map(time_left).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newcomer_waits_for_a_server_that_has_just_started() {
        const NOW: i64 = 800_000_000_000_000;
        let times = |microseconds: [Option<i64>; 3]| {
            let [postmaster_start, statistics_reset, backend_start] = microseconds.map(|age| age.map(|age| NOW - age));
            ServerTimes {
                query_received: Some(NOW),
                postmaster_start,
                statistics_reset,
                backend_start,
            }
        };
        let settling_time = |ages| times(ages).settling_time();
        for (ages, milliseconds) in [
            ([Some(0), None, None], 501),
            ([Some(400_000), None, None], 101),
            ([Some(500_000), None, None], 1),
            // The last of them counts: a crash long after the start, and a pool that has just come.
            ([Some(900_000_000), Some(400_000), None], 101),
            ([Some(300_000), Some(400_000), Some(100_000)], 401),
            // As if there were no clock that was set back.
            ([Some(400_000), Some(-5), None], 101),
        ] {
            assert_eq!(
                settling_time(ages),
                Some(Duration::from_millis(milliseconds)),
                "{ages:?}"
            );
        }
        // Old enough, a clock that was set back, and a server that does not say.
        for ages in [
            [Some(500_001), Some(i64::from(u32::MAX)), None],
            [Some(-1), None, None],
            [None; 3],
        ] {
            assert_eq!(settling_time(ages), None, "{ages:?}");
        }
        let silent = ServerTimes {
            query_received: None,
            ..times([Some(0), None, None])
        };
        assert_eq!(silent.settling_time(), None);
        // Whatever a server says.
        let absurd = ServerTimes {
            query_received: Some(i64::MAX),
            postmaster_start: Some(i64::MIN),
            ..ServerTimes::default()
        };
        assert_eq!(absurd.settling_time(), None);
    }

    #[test]
    fn the_last_start_counts() {
        let start = |postmaster_start, statistics_reset| {
            let times = ServerTimes {
                postmaster_start,
                statistics_reset,
                ..ServerTimes::default()
            };
            times.start()
        };
        assert_eq!(start(Some(5), Some(7)), Some(7));
        assert_eq!(start(Some(-5), None), Some(-5));
        assert_eq!(start(None, None), None);
    }

    /// The digits of a time are the same as those that the server compares with.
    #[test]
    fn a_start_is_compared_by_its_digits() {
        assert!(has_started_at(1_000_000).ends_with(", 'hex') = '00000000000f4240'"));
        assert!(has_started_at(-1).ends_with("'ffffffffffffffff'"));
    }
}
