//! Times by the server's clock.
//!
//! They are never compared with the clock of this host: each comes with its age, also by the server's clock.

use std::time::{Duration, UNIX_EPOCH};

/// A time by the server's clock, and how long ago it was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ServerTime {
    /// Seconds since 1970.
    pub epoch: f64,
    /// The time since.
    pub ago: Duration,
}

impl ServerTime {
    /// The end of the year 9999, the last that RFC 3339 can express.
    const MAX_EPOCH: f64 = 253_402_300_799.0;

    /// Makes a time of seconds since 1970; `now` is the server's clock when they were read. A server can send
    /// any number, so both are limited to what RFC 3339 can express.
    pub(crate) fn new(epoch: f64, now: f64) -> ServerTime {
        let (epoch, now) = (ServerTime::clamp(epoch), ServerTime::clamp(now));
        ServerTime {
            epoch,
            ago: Duration::from_secs_f64((now - epoch).max(0.0)),
        }
    }

    fn clamp(epoch: f64) -> f64 {
        if epoch.is_nan() {
            return 0.0;
        }
        epoch.clamp(0.0, ServerTime::MAX_EPOCH)
    }

    /// Formats the time as RFC 3339, in UTC, to the second.
    pub(crate) fn rfc3339(self) -> String {
        let time = UNIX_EPOCH + Duration::from_secs_f64(self.epoch);
        humantime::format_rfc3339_seconds(time).to_string()
    }

    /// Formats the time as ISO 8601, in UTC, to the minute.
    pub(crate) fn iso8601_minutes(self) -> String {
        let time = self.rfc3339();
        let (minutes, _) = time.rsplit_once(':').unwrap_or((&time, ""));
        format!("{minutes}Z")
    }
}

/// The units of a duration, in seconds.
const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];

/// Formats a duration in all units, to the second: `90d`, `1d3h12m5s`.
pub(crate) fn in_full(duration: Duration) -> String {
    let mut seconds = duration.as_secs();
    let mut text = String::new();
    for (unit, letter) in UNITS {
        let count = seconds / unit;
        seconds %= unit;
        if count > 0 || (unit == 1 && text.is_empty()) {
            text += &format!("{count}{letter}");
        }
    }
    text
}

/// Formats a duration in its two largest units: `12s`, `3m12s`, `5h2m`, `12d3h`.
pub(crate) fn age(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let largest = UNITS.iter().position(|(unit, _)| seconds >= *unit);
    let largest = largest.unwrap_or(UNITS.len() - 1);
    let (unit, letter) = UNITS[largest];
    let mut text = format!("{}{letter}", seconds / unit);
    if let Some((smaller_unit, letter)) = UNITS.get(largest + 1) {
        let count = seconds % unit / smaller_unit;
        if count > 0 {
            text += &format!("{count}{letter}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ages_have_two_units() {
        let age = |seconds| age(Duration::from_secs(seconds));
        assert_eq!(age(0), "0s");
        assert_eq!(age(59), "59s");
        assert_eq!(age(192), "3m12s");
        assert_eq!(age(3600), "1h");
        assert_eq!(age(18_130), "5h2m");
        assert_eq!(age(12 * 86_400 + 3 * 3600 + 59), "12d3h");
        assert_eq!(age(86_400 + 59 * 60), "1d");
    }

    #[test]
    fn a_duration_in_full_has_all_units() {
        let in_full = |seconds| in_full(Duration::from_secs(seconds));
        assert_eq!(in_full(0), "0s");
        assert_eq!(in_full(90 * 86_400), "90d");
        assert_eq!(in_full(26 * 3600), "1d2h");
        assert_eq!(in_full(86_400 + 3 * 3600 + 12 * 60 + 5), "1d3h12m5s");
    }

    proptest! {
        #[test]
        fn every_number_is_a_time(epoch in any::<f64>(), now in any::<f64>(), bits: u64) {
            for epoch in [epoch, f64::from_bits(bits), f64::INFINITY, f64::NAN, -1e300] {
                let time = ServerTime::new(epoch, now);
                prop_assert!(time.rfc3339().ends_with('Z'), "{time:?}");
                prop_assert!(!age(time.ago).is_empty());
            }
        }
    }
}
