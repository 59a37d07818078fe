//! Jobs that record what happens to them: the signals that arrive, and that they still run.
//!
//! Each is a shell script that appends lines `<nanoseconds> <event>` to a journal, `ready` first, when its traps are
//! set. A shell runs a trap as soon as the signal interrupts its `wait`, which takes a millisecond or two.

use super::command::command;
use super::wait::{SOON, eventually};
use nix::unistd::Pid;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// The file in which a job records events.
pub struct Journal {
    directory: tempfile::TempDir,
}

/// A line of a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Nanoseconds of the system clock.
    pub at: u128,
    /// What happened.
    pub event: String,
}

/// Returns the time as the journals record it.
pub fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()
}

impl Journal {
    pub fn new() -> Journal {
        Journal {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("journal")
    }

    /// Returns the shell function `note`, with which the scripts record events. What the shell itself reports about
    /// killed children is discarded.
    pub fn note(&self) -> String {
        format!(
            "exec 2>/dev/null; note() {{ echo \"$(date +%s%N) $1\" >> '{}'; }}",
            self.path().display()
        )
    }

    /// Returns a job that records each of these signals until USR2 ends it with status 3.
    pub fn recording(&self, signals: &str) -> String {
        format!(
            "{}
            for s in {signals}; do trap \"note $s\" $s; done
            trap 'note USR2; exit 3' USR2
            note ready
            while :; do sleep 0.1 & wait $!; done",
            self.note()
        )
    }

    /// Returns a job that ignores TERM, INT and HUP, and records `beat` every few milliseconds; so do its two children.
    pub fn stubborn(&self) -> String {
        format!(
            "{}
            trap '' TERM INT HUP
            beat() {{ note \"pid $(exec sh -c 'echo $PPID')\"; while note beat; do sleep 0.005; done; }}
            beat & beat &
            note ready; beat",
            self.note()
        )
    }

    /// Returns the beginning of a job that must run alone among the jobs of this journal: it records its process, and
    /// `overlap` if a process of another job that was recorded before still runs. A job records each further process of
    /// its own by `note "pid $!"`.
    ///
    /// It records itself before it looks for others, so that of two jobs that start together one sees the other.
    pub fn alone(&self) -> String {
        format!(
            "{}
            note \"pid $$\"
            while read -r _ what other; do
                [ \"$what\" = pid ] && [ \"$other\" != $$ ] || continue
                read -r stat < /proc/$other/stat || continue
                case ${{stat##*) }} in [ZX]*) ;; *) note \"overlap $$ $stat\" ;; esac
            done < '{}'
            note enter",
            self.note(),
            self.path().display()
        )
    }

    /// Returns a job that must run alone, and that only KILL ends, as its child.
    pub fn stubborn_alone(&self) -> String {
        format!(
            "trap '' TERM INT HUP; {}; sleep 600 & note \"pid $!\"; note ready; wait",
            self.alone()
        )
    }

    /// Asserts that no two jobs ran at the same time, and that so many have run.
    #[track_caller]
    pub fn assert_alone(&self, jobs: RangeInclusive<usize>) {
        let entries = self.entries();
        let is_overlap = |entry: &&Entry| entry.event.starts_with("overlap");
        let overlaps: Vec<&Entry> = entries.iter().filter(is_overlap).collect();
        assert!(overlaps.is_empty(), "two jobs at once: {overlaps:?}\n{entries:?}");
        let entered = self.count("enter");
        assert!(
            jobs.contains(&entered),
            "{entered} jobs have run, not {jobs:?}: {entries:?}"
        );
    }

    pub fn entries(&self) -> Vec<Entry> {
        let text = std::fs::read_to_string(self.path()).unwrap_or_default();
        let entry = |line: &str| {
            let (at, event) = line.split_once(' ')?;
            Some(Entry {
                at: at.parse().ok()?,
                event: event.to_owned(),
            })
        };
        text.lines().filter_map(entry).collect()
    }

    /// Returns how often the event was recorded.
    pub fn count(&self, event: &str) -> usize {
        self.entries().iter().filter(|entry| entry.event == event).count()
    }

    /// Returns when the event was first recorded.
    #[track_caller]
    pub fn first(&self, event: &str) -> u128 {
        let entries = self.entries();
        entries
            .iter()
            .find(|entry| entry.event == event)
            .unwrap_or_else(|| panic!("no {event}: {entries:?}"))
            .at
    }

    /// Returns when the event was last recorded.
    #[track_caller]
    pub fn last(&self, event: &str) -> u128 {
        let entries = self.entries();
        entries
            .iter()
            .rfind(|entry| entry.event == event)
            .unwrap_or_else(|| panic!("no {event}: {entries:?}"))
            .at
    }

    /// Waits until the event has been recorded so often.
    #[track_caller]
    pub fn await_count(&self, event: &str, count: usize) {
        eventually(SOON, &format!("{count} times {event}"), || self.count(event) >= count);
    }

    /// Returns the processes that recorded their process id.
    pub fn pids(&self) -> Vec<Pid> {
        let pid = |entry: &Entry| entry.event.strip_prefix("pid ")?.trim().parse().ok();
        self.entries().iter().filter_map(pid).map(Pid::from_raw).collect()
    }
}

/// Returns the state letter of a process as ps(1) shows it; `None` if it is gone, or only waits to be reaped.
pub fn state(pid: Pid) -> Option<char> {
    let output = command("ps")
        .args(["-o", "stat=", "-p", &pid.to_string()])
        .output()
        .unwrap();
    let state = String::from_utf8_lossy(&output.stdout).trim().chars().next();
    state.filter(|state| *state != 'Z')
}
