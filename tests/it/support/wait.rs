//! Waiting for a condition with a deadline.
//!
//! Tests do not wait for a fixed time. A deadline says when a test has failed, not how long it takes: it is generous,
//! unless the test is about how long something takes.

use std::time::{Duration, Instant};

/// The deadline for what has no reason to take long, on a machine that may be busy.
pub const SOON: Duration = Duration::from_secs(20);

/// Waits until the condition holds, and fails if it does not within `limit`. Returns how long it took.
#[track_caller]
pub fn eventually(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    assert!(until(limit, &mut condition), "not within {limit:?}: {what}");
    began.elapsed()
}

/// Waits until the condition holds, and returns whether it did within `limit`.
pub fn until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
