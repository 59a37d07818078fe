//! What a wait waits for: the status line on a terminal, with the lock, how long so far, who holds it and since when;
//! and the status text for a service manager.

use crate::inspect::backend::Backend;
use crate::inspect::server_time::age;
use crate::ui::message;
use crate::ui::terminal::{self, StatusStyle, truncate_to_width};
use std::time::{Duration, Instant};
use unicode_width::UnicodeWidthStr;

/// The width assumed for a terminal that does not report one.
const DEFAULT_COLUMNS: usize = 80;

/// What a wait waits for, as last seen.
pub(crate) enum WaitProgress {
    /// The holders of the lock.
    Held {
        holders: Vec<Backend>,
        /// When the holders were queried.
        seen: Instant,
    },
    /// A server that is away, for this reason.
    Reconnecting(String),
    /// The end of a job whose holder may have lost its lock.
    OldJob,
}

impl WaitProgress {
    /// Creates the progress of a wait for these holders.
    pub(crate) fn held(holders: Vec<Backend>, seen: Instant) -> WaitProgress {
        WaitProgress::Held { holders, seen }
    }

    /// Creates the progress of a wait for a server.
    pub(crate) fn reconnecting(reason: &str) -> WaitProgress {
        WaitProgress::Reconnecting(reason.to_owned())
    }

    /// Shows the status on the terminal, in place or, where that is not possible, once.
    pub(crate) fn show(&self, keys: &str, waited: Duration, is_reported: &mut bool) {
        match terminal::status_style() {
            Some(StatusStyle::InPlace) => {
                // Leave the last column empty: some terminals move to the next line after a character there.
                let columns = terminal::stderr_columns().unwrap_or(DEFAULT_COLUMNS).saturating_sub(1);
                message::show_status(&self.line(keys, waited, columns));
            }
            Some(StatusStyle::Once) if !*is_reported => {
                message::notice(self.sentence(keys, waited));
                *is_reported = true;
            }
            Some(StatusStyle::Once) | None => {}
        }
    }

    /// Returns the status for a service manager. It has points in time, not durations, so that it stays true.
    pub(crate) fn status_text(&self, keys: &str) -> String {
        let cause = match self {
            WaitProgress::Held { holders, .. } => held_since(holders),
            _ => Some(self.holder()),
        };
        match cause {
            Some(cause) => format!("{} ({cause})", waiting_for(keys)),
            None => waiting_for(keys),
        }
    }

    /// Returns the status in full.
    fn sentence(&self, keys: &str, waited: Duration) -> String {
        format!("waiting for {keys} for {}; {}", age(waited), self.holder())
    }

    /// Returns the status shortened to this many columns. The holder is at the end, so it is cut off first.
    fn line(&self, keys: &str, waited: Duration, columns: usize) -> String {
        let full = format!("pglock: {}", self.sentence(keys, waited));
        if full.width() <= columns {
            return full;
        }
        truncate_to_width(&format!("{}: {keys}; {}", age(waited), self.holder()), columns)
    }

    fn holder(&self) -> String {
        let (holders, seen) = match self {
            WaitProgress::Held { holders, seen } => (holders, seen),
            WaitProgress::Reconnecting(reason) => return format!("reconnecting: {reason}"),
            WaitProgress::OldJob => return "the job of the last holder may still be running".into(),
        };
        let Some(first) = holders.first() else {
            return "just released".into();
        };
        let held_for = match first.since {
            Some(since) => {
                let duration = since.ago + seen.elapsed();
                format!(" for {}", age(duration))
            }
            None => String::new(),
        };
        let more = match holders.len() {
            1 => String::new(),
            count => format!(" and {} more", count - 1),
        };
        format!("held by {}{held_for}{more}", first.who())
    }
}

/// Returns the status of a wait for a service manager when nothing more is known.
pub(crate) fn waiting_for(keys: &str) -> String {
    format!("waiting for {keys}")
}

/// Returns who holds the lock and since when; `None` if nobody did when it was last looked at.
fn held_since(holders: &[Backend]) -> Option<String> {
    let (first, more) = holders.split_first()?;
    let since = first.since.map(|since| format!(" since {}", since.rfc3339()));
    let more = match more.len() {
        0 => String::new(),
        count => format!(" and {count} more"),
    };
    Some(format!("held by {}{}{more}", first.who(), since.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::server_time::ServerTime;

    #[test]
    fn the_status_for_a_service_manager_has_points_in_time() {
        let web1 = Backend {
            since: Some(ServerTime::new(1_767_355_200.7, 1_767_355_393.0)),
            ..Backend::named("pglock:leader web1:77")
        };
        let status = |holders| WaitProgress::held(holders, Instant::now()).status_text("key \"leader\"");
        assert_eq!(status(vec![]), "waiting for key \"leader\"");
        assert_eq!(
            status(vec![web1.clone()]),
            "waiting for key \"leader\" (held by web1:77 since 2026-01-02T12:00:00Z)"
        );
        assert_eq!(
            status(vec![web1, Backend::default()]),
            "waiting for key \"leader\" (held by web1:77 since 2026-01-02T12:00:00Z and 1 more)"
        );
        assert_eq!(
            WaitProgress::reconnecting("cannot connect").status_text("key 1"),
            "waiting for key 1 (reconnecting: cannot connect)"
        );
    }

    #[test]
    fn the_line_is_shortened_to_the_terminal() {
        let holders = vec![Backend::named("pglock:backup web1:77"), Backend::default()];
        let progress = WaitProgress::held(holders, Instant::now());
        let line = |columns| progress.line("key \"backup\"", Duration::from_secs(12), columns);
        assert_eq!(
            line(80),
            "pglock: waiting for key \"backup\" for 12s; held by web1:77 and 1 more"
        );
        assert_eq!(line(40), "12s: key \"backup\"; held by web1:77 and ~");
        assert_eq!(line(10), "12s: key ~");
    }
}
