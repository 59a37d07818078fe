//! What a process has used, as Linux tells it.

use std::fs;
use std::time::Duration;

/// Memory that is its own, in bytes: what it has written to, and shares with nobody. Of the pages that are private and
/// dirty only those that can be anonymous: others are of a program whose file is not on the disk yet.
pub fn private_memory(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let kilobytes = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().split_whitespace().next().unwrap().parse().unwrap()
    };
    kilobytes("Private_Dirty:").min(kilobytes("Anonymous:")) * 1024
}

/// The time that all of its threads have had a CPU; `None` when it has ended.
pub fn cpu_time(pid: u32) -> Option<Duration> {
    let mut nanoseconds = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        let text = fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        nanoseconds += text.split(' ').next()?.parse::<u64>().ok()?;
    }
    Some(Duration::from_nanos(nanoseconds))
}
