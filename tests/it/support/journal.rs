//! Jobs that tell what happens to them: the signals that arrive, and that they are still alive.
//!
//! Each is a shell script that appends lines `<nanoseconds> <word>` to a journal, `ready` first, so that nobody has to
//! guess when its traps are set. A shell runs a trap as soon as its `wait` is interrupted, which is within
//! a millisecond or two.

use super::command::command;
use super::wait::{SOON, eventually};
use nix::unistd::Pid;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// Where a job writes, and what it has written.
pub struct Journal {
    directory: tempfile::TempDir,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Nanoseconds of the system's clock.
    pub at: u128,
    /// What happened.
    pub word: String,
}

/// Now, as the journals count.
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

    /// The shell function `note`, which the scripts write with. What the shell itself says of killed children is not
    /// ours to test.
    pub fn note(&self) -> String {
        format!(
            "exec 2>/dev/null; note() {{ echo \"$(date +%s%N) $1\" >> '{}'; }}",
            self.path().display()
        )
    }

    /// A job that notes these signals, each time they come, until USR2 ends it with status 3.
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

    /// A job that ignores TERM, INT and HUP, and notes `beat` every few milliseconds; so do its two children.
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

    pub fn entries(&self) -> Vec<Entry> {
        let text = std::fs::read_to_string(self.path()).unwrap_or_default();
        let entry = |line: &str| {
            let (at, word) = line.split_once(' ')?;
            Some(Entry {
                at: at.parse().ok()?,
                word: word.to_owned(),
            })
        };
        text.lines().filter_map(entry).collect()
    }

    /// How often the word has been noted.
    pub fn count(&self, word: &str) -> usize {
        self.entries().iter().filter(|entry| entry.word == word).count()
    }

    /// When the word was noted first.
    #[track_caller]
    pub fn first(&self, word: &str) -> u128 {
        let entries = self.entries();
        entries
            .iter()
            .find(|entry| entry.word == word)
            .unwrap_or_else(|| panic!("no {word}: {entries:?}"))
            .at
    }

    /// When the word was noted last.
    #[track_caller]
    pub fn last(&self, word: &str) -> u128 {
        let entries = self.entries();
        entries
            .iter()
            .rfind(|entry| entry.word == word)
            .unwrap_or_else(|| panic!("no {word}: {entries:?}"))
            .at
    }

    /// Waits until the word has been noted so often.
    #[track_caller]
    pub fn await_count(&self, word: &str, count: usize) {
        eventually(SOON, &format!("{count} times {word}"), || self.count(word) >= count);
    }

    /// The processes that noted their pid.
    pub fn pids(&self) -> Vec<Pid> {
        let pid = |entry: &Entry| entry.word.strip_prefix("pid ")?.trim().parse().ok();
        self.entries().iter().filter_map(pid).map(Pid::from_raw).collect()
    }
}

/// The state letter of a process as ps(1) shows it; `None` when it is gone, or only waits to be reaped.
pub fn state(pid: Pid) -> Option<char> {
    let output = command("ps")
        .args(["-o", "stat=", "-p", &pid.to_string()])
        .output()
        .unwrap();
    let state = String::from_utf8_lossy(&output.stdout).trim().chars().next();
    state.filter(|state| *state != 'Z')
}
