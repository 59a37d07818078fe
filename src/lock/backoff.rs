//! Pauses between two tries where the server has no queue for us: behind a pooler, or without plpgsql.

use std::time::{Duration, Instant};

/// The shortest pause, before jitter.
const MIN_PAUSE: Duration = Duration::from_millis(20);

/// A pause is this part of the time waited: what polling adds to a wait stays in proportion to it.
const PART_OF_WAIT: u32 = 20;

/// How long pauses stay short: a person may be watching.
const FIRST_PERIOD: Duration = Duration::from_secs(60);
/// The longest pause in the first period.
const FIRST_PERIOD_MAX_PAUSE: Duration = Duration::from_secs(1);

/// The pause after a slow try, in durations of the try.
const SLOW_TRY_FACTOR: u32 = 10;
/// The longest pause after a slow try, in longest pauses.
const SLOW_TRY_MAX_FACTOR: u32 = 4;

/// The largest part by which a pause is shortened at random, so that waiters that begin together spread out.
const JITTER: f64 = 0.25;

/// The pauses of one wait: the longer it has lasted, the longer they are, each shortened at random.
///
/// A slow try usually means that the pooler is overloaded, most often by its waiters. The next pause is then ten times
/// as long as the try took, up to four longest pauses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    began: Instant,
    max_pause: Duration,
}

impl Backoff {
    /// Returns the pauses of a wait that began then, none of which is longer than `max_pause` unless a try is slow.
    pub(crate) fn new(began: Instant, max_pause: Duration) -> Backoff {
        Backoff { began, max_pause }
    }

    /// Returns these pauses with another maximum, if that is lower.
    pub(crate) fn at_most(self, max_pause: Duration) -> Backoff {
        Backoff {
            max_pause: self.max_pause.min(max_pause),
            ..self
        }
    }

    /// Returns how long the next pause can be, after a try that took `try_duration`.
    pub(crate) fn longest_pause(&self, try_duration: Duration) -> Duration {
        longest_pause(self.began.elapsed(), self.max_pause, try_duration)
    }

    /// Returns the next pause, after a try that took `try_duration`: at least `min_pause`, and no longer than the time
    /// left.
    pub(super) fn next_pause(
        &self,
        try_duration: Duration,
        min_pause: Duration,
        time_left: Option<Duration>,
    ) -> Duration {
        // The minimum applies to the shortened pause.
        let pause = self.longest_pause(try_duration).max(min_pause.div_f64(1.0 - JITTER));
        let pause = pause.mul_f64(1.0 - fastrand::f64() * JITTER);
        time_left.map_or(pause, |time_left| time_left.min(pause))
    }
}

/// Returns the longest pause after a wait of `waited`.
fn longest_pause(waited: Duration, max_pause: Duration, try_duration: Duration) -> Duration {
    let max_pause = if waited < FIRST_PERIOD {
        max_pause.min(FIRST_PERIOD_MAX_PAUSE)
    } else {
        max_pause
    };
    let pause = (waited / PART_OF_WAIT).max(MIN_PAUSE).min(max_pause);
    pause.max(
        try_duration
            .saturating_mul(SLOW_TRY_FACTOR)
            .min(max_pause * SLOW_TRY_MAX_FACTOR),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_PAUSE: Duration = Duration::from_secs(5);

    fn pause_after(waited: f64) -> f64 {
        longest_pause(Duration::from_secs_f64(waited), MAX_PAUSE, Duration::ZERO).as_secs_f64()
    }

    #[test]
    fn pauses_are_a_twentieth_of_the_time_waited() {
        for (waited, expected) in [
            (0.0, 0.02),
            (0.4, 0.02),
            (1.0, 0.05),
            (10.0, 0.5),
            (20.0, 1.0),
            // No longer in the first minute.
            (59.9, 1.0),
            (60.0, 3.0),
            (100.0, 5.0),
            (86_400.0, 5.0),
        ] {
            assert_eq!(pause_after(waited), expected, "after {waited} s");
        }
    }

    #[test]
    fn a_maximum_below_the_shortest_pause_counts() {
        let max_pause = Duration::from_millis(10);
        for waited in [0, 1, 3600] {
            let pause = longest_pause(Duration::from_secs(waited), max_pause, Duration::ZERO);
            assert_eq!(pause, max_pause);
        }
        // One that does not try again announces no pause.
        assert!(longest_pause(MAX_PAUSE, Duration::ZERO, MAX_PAUSE).is_zero());
    }

    #[test]
    fn slow_tries_lengthen_the_pause_up_to_a_limit() {
        let pause = |waited, millis| {
            let (waited, try_duration) = (Duration::from_secs(waited), Duration::from_millis(millis));
            longest_pause(waited, MAX_PAUSE, try_duration).as_secs_f64()
        };
        assert_eq!(pause(0, 30), 0.3);
        assert_eq!(pause(0, 60_000), 4.0);
        assert_eq!(pause(600, 300), 5.0);
        assert_eq!(pause(600, 800), 8.0);
        assert_eq!(pause(600, 60_000), 20.0);
    }

    #[test]
    fn pauses_vary_at_random_between_three_quarters_and_a_whole() {
        let began = Instant::now().checked_sub(Duration::from_secs(600));
        let backoff = Backoff::new(began.expect("a clock that is old enough"), MAX_PAUSE);
        let pauses: Vec<Duration> = (0..50)
            .map(|_| backoff.next_pause(Duration::ZERO, Duration::ZERO, None))
            .collect();
        assert!(
            pauses
                .iter()
                .all(|pause| *pause <= MAX_PAUSE && *pause * 4 >= MAX_PAUSE * 3)
        );
        assert!(pauses.iter().any(|pause| *pause != pauses[0]));
        let time_left = Duration::from_millis(3);
        assert_eq!(
            backoff.next_pause(Duration::ZERO, MAX_PAUSE, Some(time_left)),
            time_left
        );
        // A minimum is one for each pause, not in the mean.
        let backoff = Backoff::new(Instant::now(), MAX_PAUSE);
        let min_pause = Duration::from_millis(300);
        let pauses = (0..50).map(|_| backoff.next_pause(Duration::ZERO, min_pause, None));
        assert!({ pauses }.all(|pause| pause >= min_pause && pause <= min_pause * 3 / 2));
    }
}
