//! Waiting for a condition with a deadline, instead of sleeping and hoping.
//!
//! The only sleep of the tests is here. A deadline says when a test has failed, not how long it takes: it is
//! generous, unless how long something takes is what the test is about.

use std::time::{Duration, Instant};

/// For whatever has no reason to take long, on a machine that may be busy.
pub const SOON: Duration = Duration::from_secs(20);

/// Waits until the condition holds, and fails if it does not within `limit`. Returns how long it took.
#[track_caller]
pub fn eventually(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    assert!(until(limit, &mut condition), "not within {limit:?}: {what}");
    began.elapsed()
}

/// Whether the condition comes to hold within `limit`.
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
