//! The status line of a wait on a terminal: which lock, for how long so far, who holds it and since when.

use crate::inspect::backend::Backend;
use crate::inspect::server_time::age;
use crate::ui::terminal::truncate_to_width;
use std::time::{Duration, Instant};
use unicode_width::UnicodeWidthStr;

/// The holders of the lock as last seen.
pub(crate) struct WaitProgress {
    /// The holders.
    pub holders: Vec<Backend>,
    /// When the holders were queried.
    pub seen: Instant,
}

impl WaitProgress {
    /// Returns the status in full.
    pub(crate) fn sentence(&self, keys: &str, waited: Duration) -> String {
        format!("waiting for {keys} for {}; {}", age(waited), self.holder())
    }

    /// Returns the status shortened to this many columns. The holder is at the end, so it is cut off first.
    pub(crate) fn line(&self, keys: &str, waited: Duration, columns: usize) -> String {
        let full = format!("pglock: {}", self.sentence(keys, waited));
        if full.width() <= columns {
            return full;
        }
        truncate_to_width(&format!("{}: {keys}; {}", age(waited), self.holder()), columns)
    }

    fn holder(&self) -> String {
        let Some(first) = self.holders.first() else {
            return "just released".into();
        };
        let held_for = match first.since {
            Some(since) => {
                let duration = since.ago + self.seen.elapsed();
                format!(" for {}", age(duration))
            }
            None => String::new(),
        };
        let more = match self.holders.len() {
            1 => String::new(),
            count => format!(" and {} more", count - 1),
        };
        format!("held by {}{held_for}{more}", first.who())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_shortened_to_the_terminal() {
        let progress = WaitProgress {
            holders: vec![Backend::named("pglock:backup web1:77"), Backend::default()],
            seen: Instant::now(),
        };
        let line = |columns| progress.line("key \"backup\"", Duration::from_secs(12), columns);
        assert_eq!(
            line(80),
            "pglock: waiting for key \"backup\" for 12s; held by web1:77 and 1 more"
        );
        assert_eq!(line(40), "12s: key \"backup\"; held by web1:77 and ~");
        assert_eq!(line(10), "12s: key ~");
    }
}
