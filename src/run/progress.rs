//! What somebody who watches a wait on a terminal reads: what is waited for, who holds it since when, how long so far.

use crate::commands::list::truncate_to_width;
use crate::inspect::backend::{Backend, age};
use std::time::{Duration, Instant};
use unicode_width::UnicodeWidthStr;

/// Who held the lock when it was last looked.
pub struct WaitProgress {
    /// The holders.
    pub holders: Vec<Backend>,
    /// When they were seen.
    pub seen: Instant,
}

impl WaitProgress {
    /// All of it.
    pub fn sentence(&self, key: &str, waited: Duration) -> String {
        format!("waiting for {key} for {}; {}", age(waited), self.held())
    }

    /// As much of it as has room, the holder last.
    pub fn line(&self, key: &str, waited: Duration, width: usize) -> String {
        let whole = format!("pglock: {}", self.sentence(key, waited));
        match whole.width() <= width {
            true => whole,
            false => truncate_to_width(&format!("{}: {key}; {}", age(waited), self.held()), width),
        }
    }

    fn held(&self) -> String {
        let Some(first) = self.holders.first() else {
            return "held until a moment ago".into();
        };
        let more = match self.holders.len() {
            1 => String::new(),
            all => format!(" and {} more", all - 1),
        };
        let since = first.since.map_or_else(String::new, |since| {
            let ago = Duration::from_secs_f64(since.ago) + self.seen.elapsed();
            format!(" for {}", age(ago))
        });
        format!("held by {}{since}{more}", first.who())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_what_has_room() {
        let waiting = WaitProgress {
            holders: vec![Backend::named("pglock:backup web1:77"), Backend::default()],
            seen: Instant::now(),
        };
        let line = |width| waiting.line("key \"backup\"", Duration::from_secs(12), width);
        assert_eq!(
            line(80),
            "pglock: waiting for key \"backup\" for 12s; held by web1:77 and 1 more"
        );
        assert_eq!(line(40), "12s: key \"backup\"; held by web1:77 and ~");
        assert_eq!(line(10), "12s: key ~");
    }
}
