//! The settings that a session or a transaction needs in order to hold or wait for a lock.
//!
//! They neutralise the timeouts of the role, the database and the server, for us alone, and make the server notice in time
//! that our host has vanished. They ride in the message that takes the lock, so that no lock of ours is ever without
//! them, and whoever has to wait can begin to at once.

use super::ask;
use postgres::Client;
use std::time::Duration;

/// Settings that would end a session that only holds a lock, or cancel one that waits. Each is unknown to some
/// supported version.
pub const TIMEOUTS: [&str; 5] = [
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "transaction_timeout",
];

/// In front of what is asked before the settings are made: a role's transactions may be deferrable, and such a one
/// can wait for others before it does anything.
pub const AT_ONCE: &str = "SET TRANSACTION NOT DEFERRABLE; ";

/// A setting of ours, and its value.
struct Setting {
    name: &'static str,
    value: String,
    /// Every version that we know has it.
    is_everywhere: bool,
}

impl Setting {
    fn new(name: &'static str, value: impl ToString) -> Setting {
        Setting {
            name,
            value: value.to_string(),
            is_everywhere: true,
        }
    }

    fn if_known(name: &'static str, value: impl ToString) -> Setting {
        Setting {
            is_everywhere: false,
            ..Setting::new(name, value)
        }
    }

    /// The expression that makes it, for the session or for the transaction alone.
    fn expression(&self, local: bool) -> String {
        let Setting { name, value, .. } = self;
        let set = format!("pg_catalog.set_config('{name}', '{value}', {local})");
        match self.is_everywhere {
            true => set,
            false => format!("CASE WHEN pg_catalog.current_setting('{name}', true) IS NOT NULL THEN {set} END"),
        }
    }
}

/// What makes the server notice within `limit` that whoever it talks to has vanished.
///
/// Both kinds of TCP limit are needed: keepalives see nothing while an answer is unacknowledged, the user
/// timeout nothing on an idle session. On a Unix socket they have no effect, and need none.
fn watch(limit: Duration) -> [Setting; 4] {
    // Seconds, as keepalives are counted in; three probes one second apart fill the end of the limit.
    let seconds = limit.as_millis().div_ceil(1000).max(4);
    [
        Setting::new("tcp_keepalives_idle", seconds - 3),
        Setting::new("tcp_keepalives_interval", 1),
        Setting::new("tcp_keepalives_count", 3),
        Setting::if_known("tcp_user_timeout", seconds * 1000),
    ]
}

/// The expressions that neutralise all the timeouts, and make the server notice within `limit` that we have vanished: for
/// the session, or for the transaction alone.
pub(super) fn settings(limit: Duration, local: bool) -> Vec<String> {
    let timeouts = TIMEOUTS.map(|name| Setting::if_known(name, 0));
    // See [`AT_ONCE`].
    let at_once = Setting::new("default_transaction_deferrable", "off");
    let all = timeouts.into_iter().chain(watch(limit)).chain([at_once]);
    all.map(|setting| setting.expression(local)).collect()
}

/// Makes a session what the message that takes the lock makes it.
pub fn set_up(client: &mut Client, limit: Duration) -> Result<(), postgres::Error> {
    let sql = format!("{AT_ONCE}SELECT {}", settings(limit, false).join(", "));
    ask(client, &sql).map(drop)
}

/// The settings that say after what time the server logs a wait or a statement: each that waits for a lock
/// (`log_lock_waits`), each slow one, and each slow one of a sample, which are all by default (PostgreSQL 13 and later).
pub(super) const LOGGED_AFTER: [&str; 3] = [
    "deadlock_timeout",
    "log_min_duration_statement",
    "log_min_duration_sample",
];

/// The longest slice of waiting, and so the longest that a waiter which is at an end stays in the queue.
const LONGEST_SLICE: Duration = Duration::from_millis(900);

/// The shortest: below it the queue would be left more often than is good for anybody.
const SHORTEST_SLICE: Duration = Duration::from_millis(20);

/// A slice that stays under all of [`LOGGED_AFTER`], or each one would be logged. They come as the server writes them: `1s`,
/// `-1` for never.
pub(super) fn slice(logged_after: [Option<&str>; LOGGED_AFTER.len()]) -> Duration {
    // What even the shortest slice exceeds is logged anyhow, the less often the longer the slices are.
    let limits = logged_after.into_iter().flatten();
    limits
        .filter_map(|limit| humantime::parse_duration(limit).ok())
        .map(|limit| limit.mul_f64(0.9))
        .filter(|slice| *slice >= SHORTEST_SLICE)
        .fold(LONGEST_SLICE, Duration::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_stays_under_what_the_server_would_log() {
        let ms = Duration::from_millis;
        for (logged_after, expected) in [
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
            let text = logged_after.map(Some);
            assert_eq!(slice(text), ms(expected), "{logged_after:?}");
        }
        assert_eq!(slice([None; 3]), ms(900));
    }
}
