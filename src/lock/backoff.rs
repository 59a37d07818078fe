//! Pauses between two tries where the server has no queue for us: behind a pooler, or without plpgsql.

use std::time::Duration;

/// A source of pauses: short at first, then longer, each shortened at random by up to half so that waiters spread out.
///
/// A slow try usually means that the pooler is overloaded, most often by its waiters. The next pause is then ten times
/// as long as the try took, up to [`Backoff::longest_pause`].
pub(super) struct Backoff {
    next: Duration,
    max_pause: Duration,
}

impl Backoff {
    const FIRST_PAUSE: Duration = Duration::from_millis(20);

    pub(super) fn new(max_pause: Duration) -> Backoff {
        Backoff {
            next: Backoff::FIRST_PAUSE.min(max_pause),
            max_pause,
        }
    }

    /// Returns the longest pause after a slow try, if other pauses last up to `max_pause`.
    pub(super) fn longest_pause(max_pause: Duration) -> Duration {
        max_pause * 4
    }

    /// Returns the pause after a try that took `try_duration`, cut to the time left.
    pub(super) fn next_pause(&mut self, try_duration: Duration, time_left: Option<Duration>) -> Duration {
        let longest_pause = Backoff::longest_pause(self.max_pause);
        let pause = self.next.max((try_duration * 10).min(longest_pause));
        self.next = (self.next * 3 / 2).min(self.max_pause);
        let pause = pause.mul_f64(1.0 - fastrand::f64() / 2.0);
        time_left.map_or(pause, |time_left| time_left.min(pause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_maximum_and_vary_at_random() {
        let max_pause = Duration::from_secs(1);
        let mut backoff = Backoff::new(max_pause);
        let pauses: Vec<Duration> = (0..50).map(|_| backoff.next_pause(Duration::ZERO, None)).collect();
        assert!(pauses[0] <= Backoff::FIRST_PAUSE && pauses[0] * 2 >= Backoff::FIRST_PAUSE);
        assert!(pauses.iter().all(|pause| *pause <= max_pause));
        assert!(pauses[20..].iter().all(|pause| *pause * 2 >= max_pause));
        assert!(pauses[20..].iter().any(|pause| *pause != pauses[20]));
        let time_left = Duration::from_millis(3);
        assert_eq!(backoff.next_pause(Duration::ZERO, Some(time_left)), time_left);
        assert!(Backoff::new(time_left).next_pause(Duration::ZERO, None) <= time_left);
    }

    #[test]
    fn slow_tries_lengthen_the_pause_up_to_a_limit() {
        let max_pause = Duration::from_secs(1);
        let mut backoff = Backoff::new(max_pause);
        assert!(backoff.next_pause(Duration::from_millis(300), None) >= max_pause * 3 / 2);
        assert!(backoff.next_pause(Duration::from_secs(60), None) <= max_pause * 4);
    }
}
