//! The settings that a session or a transaction needs in order to hold or wait for a lock.
//!
//! They neutralise the timeouts of the role, the database and the server, for this session alone, and make the server
//! notice in time that our host has vanished. They are part of the query that acquires the lock, so that no lock of
//! ours is ever without them and a waiter needs no further round trip.

use super::types::Scope;
use std::time::Duration;

/// Timeouts that would end a session that merely holds a lock, or cancel one that waits. No supported version knows
/// all of them.
pub(crate) const TIMEOUT_SETTINGS: [&str; 5] = [
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "transaction_timeout",
];

/// A configuration parameter and the value we set.
struct Setting {
    name: &'static str,
    value: String,
    in_every_version: bool,
}

impl Setting {
    fn new(name: &'static str, value: impl ToString) -> Setting {
        Setting {
            name,
            value: value.to_string(),
            in_every_version: true,
        }
    }

    fn if_known(name: &'static str, value: impl ToString) -> Setting {
        Setting {
            in_every_version: false,
            ..Setting::new(name, value)
        }
    }

    /// Returns the SQL expression that sets it for the session, or for the transaction alone.
    fn expression(&self, scope: Scope) -> String {
        let Setting { name, value, .. } = self;
        let is_local = scope == Scope::Transaction;
        let set_config = format!("pg_catalog.set_config('{name}', '{value}', {is_local})");
        if self.in_every_version {
            set_config
        } else {
            format!("CASE WHEN pg_catalog.current_setting('{name}', true) IS NOT NULL THEN {set_config} END")
        }
    }
}

/// Returns the settings that make the server notice within `server_limit` that the client has vanished.
///
/// Both kinds of TCP limit are needed: keepalives are not sent while data is unacknowledged, and the user timeout does
/// not expire on an idle connection. On a Unix socket neither has an effect, nor is one needed.
fn dead_client_settings(server_limit: Duration) -> [Setting; 4] {
    // Keepalives count in seconds; three probes, one second apart, end at the limit.
    let seconds = server_limit.as_millis().div_ceil(1000).max(4);
    [
        Setting::new("tcp_keepalives_idle", seconds - 3),
        Setting::new("tcp_keepalives_interval", 1),
        Setting::new("tcp_keepalives_count", 3),
        Setting::if_known("tcp_user_timeout", seconds * 1000),
    ]
}

/// Returns the SQL expressions that neutralise all timeouts and make the server notice within `server_limit` that the
/// client has vanished, for the session or for the transaction alone.
pub(super) fn setting_expressions(server_limit: Duration, scope: Scope) -> Vec<String> {
    let timeouts = TIMEOUT_SETTINGS.map(|name| Setting::if_known(name, 0));
    let settings = timeouts.into_iter().chain(dead_client_settings(server_limit));
    settings.map(|setting| setting.expression(scope)).collect()
}

/// Settings that name the time after which the server logs something: a wait for a lock (`log_lock_waits`), a slow
/// statement, or a slow statement of a sample, which by default is every one (PostgreSQL 13 and later).
pub(super) const LOG_THRESHOLD_SETTINGS: [&str; 3] = [
    "deadlock_timeout",
    "log_min_duration_statement",
    "log_min_duration_sample",
];

/// The longest slice, and so the longest that a waiter whose client is gone stays in the queue.
const LONGEST_SLICE: Duration = Duration::from_millis(900);

/// The shortest slice: anything below would leave the queue too often.
const SHORTEST_SLICE: Duration = Duration::from_millis(20);

/// Returns the longest slice that stays below all of [`LOG_THRESHOLD_SETTINGS`], or the server would log each one. The
/// values come as the server prints them: `1s`, or `-1` for never.
pub(super) fn max_slice(log_thresholds: [Option<&str>; LOG_THRESHOLD_SETTINGS.len()]) -> Duration {
    // A threshold that even the shortest slice exceeds is ignored: longer slices then mean fewer log lines.
    log_thresholds
        .into_iter()
        .flatten()
        .filter_map(|threshold| humantime::parse_duration(threshold).ok())
        .map(|threshold| threshold.mul_f64(0.9))
        .filter(|slice| *slice >= SHORTEST_SLICE)
        .fold(LONGEST_SLICE, Duration::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_stays_below_what_the_server_would_log() {
        let ms = Duration::from_millis;
        for (log_thresholds, expected) in [
            (["1s", "-1", "-1"], 900),
            (["1s", "0", "-1"], 900),
            (["500ms", "-1", "-1"], 450),
            (["1min", "100ms", "-1"], 90),
            (["1s", "-1", "200ms"], 180),
            (["1ms", "1ms", "-1"], 900),
            (["1ms", "100ms", "-1"], 90),
            (["1h", "1d", "1d"], 900),
            (["nonsense", "99999999999999999999s", ""], 900),
        ] {
            assert_eq!(max_slice(log_thresholds.map(Some)), ms(expected), "{log_thresholds:?}");
        }
        assert_eq!(max_slice([None; 3]), ms(900));
    }

    #[test]
    fn settings_apply_to_the_session_or_to_the_transaction() {
        let limit = Duration::from_secs(23);
        let session = setting_expressions(limit, Scope::Session);
        assert_eq!(
            session[0],
            "CASE WHEN pg_catalog.current_setting('statement_timeout', true) IS NOT NULL \
             THEN pg_catalog.set_config('statement_timeout', '0', false) END"
        );
        assert_eq!(session[5], "pg_catalog.set_config('tcp_keepalives_idle', '20', false)");
        assert_eq!(
            session[8],
            "CASE WHEN pg_catalog.current_setting('tcp_user_timeout', true) IS NOT NULL \
             THEN pg_catalog.set_config('tcp_user_timeout', '23000', false) END"
        );
        let transaction = setting_expressions(limit, Scope::Transaction);
        assert_eq!(
            transaction[5],
            "pg_catalog.set_config('tcp_keepalives_idle', '20', true)"
        );
    }
}
