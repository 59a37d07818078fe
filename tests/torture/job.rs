//! The job of the lock checker: records when it holds the lock, and writes to a store that its token guards.
//!
//! `torture-job HISTORY STORE RUN MILLISECONDS STATUS [stubborn]` runs for that long and exits with STATUS. It appends
//! whole lines to HISTORY: the event, the monotonic clock in nanoseconds, which all processes of a machine share, and
//! RUN. TERM ends it, unless it is stubborn; it always ends, so that none is left behind.

#![expect(clippy::missing_errors_doc, reason = "a program has no API")]

use nix::fcntl::{Flock, FlockArg};
use nix::time::{ClockId, clock_gettime};
use signal_hook::consts::SIGTERM;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::exit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How much longer a stubborn job runs after TERM: for longer than anything but KILL may leave it.
const STUBBORN_EXTENSION: Duration = Duration::from_secs(8);
/// How often it checks for TERM.
const TERMINATION_POLL_INTERVAL: Duration = Duration::from_millis(5);
/// How often it records that it lives; every tenth time, it also writes to the store.
const BEAT_INTERVAL: Duration = Duration::from_millis(25);

struct Job {
    history: File,
    store: PathBuf,
    run: String,
    keys: String,
    slot: String,
    token: String,
    is_exclusive: bool,
}

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [history, store, run, life, status, rest @ ..] = arguments.as_slice() else {
        return Err(io::Error::other("usage: see torture/job.rs"));
    };
    let terminated = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGTERM, Arc::clone(&terminated))?;
    let variable = |name| std::env::var(name).unwrap_or_default();
    let mut job = Job {
        history: File::options().append(true).open(history)?,
        store: store.into(),
        run: run.clone(),
        keys: variable("PGLOCK_KEY"),
        slot: variable("PGLOCK_SLOT"),
        token: variable("PGLOCK_TOKEN"),
        is_exclusive: variable("PGLOCK_MODE") == "exclusive",
    };
    job.enter()?;
    job.write()?;
    let life = Duration::from_millis(life.parse().unwrap_or(0));
    let is_ended = job.live(life, &terminated, !rest.is_empty())?;
    job.write()?;
    if is_ended {
        job.note("leave", " -")?;
        signal_hook::low_level::emulate_default_handler(SIGTERM)
    } else {
        let status = status.parse().unwrap_or(0);
        job.note("leave", &format!(" {status}"))?;
        exit(status)
    }
}

impl Job {
    fn note(&mut self, event: &str, rest: &str) -> io::Result<()> {
        let line = format!("{event} {} {}{rest}\n", now(), self.run);
        self.history.write_all(line.as_bytes())
    }

    fn enter(&mut self) -> io::Result<()> {
        let or_none = |text: &str| if text.is_empty() { "-" } else { text }.to_owned();
        let (slot, token) = (or_none(&self.slot), or_none(&self.token));
        self.note("enter", &format!(" {} {slot} {token}", std::process::id()))
    }

    /// Runs for this time. Returns whether TERM has ended it before.
    fn live(&mut self, life: Duration, terminated: &AtomicBool, is_stubborn: bool) -> io::Result<bool> {
        let mut end = Instant::now() + life;
        let (mut beat, mut beats) = (Instant::now() + BEAT_INTERVAL, 0);
        let mut is_extended = false;
        while Instant::now() < end {
            sleep(TERMINATION_POLL_INTERVAL.min(end.saturating_duration_since(Instant::now())));
            if Instant::now() >= beat {
                self.note("alive", "")?;
                (beat, beats) = (Instant::now() + BEAT_INTERVAL, beats + 1);
                if beats % 10 == 0 {
                    self.write()?;
                }
            }
            match terminated.load(Ordering::Relaxed) {
                true if !is_stubborn => return Ok(true),
                true if !is_extended => {
                    end += STUBBORN_EXTENSION;
                    is_extended = true;
                }
                _ => {}
            }
        }
        Ok(false)
    }

    /// Writes to the store of each key that the job holds exclusively, if it has a token.
    fn write(&mut self) -> io::Result<()> {
        if self.token.is_empty() || !self.is_exclusive {
            return Ok(());
        }
        for key in self.keys.clone().lines() {
            // Slot 0 is the key itself.
            let name = match self.slot.as_str() {
                "" | "0" => key.to_owned(),
                slot => format!("{key}:{slot}"),
            };
            let mut store = open(&self.store.join(&name))?;
            let event = guarded_write(&mut store, &self.token)?;
            // Recorded before another job can write.
            self.note(event, &format!(" {name}"))?;
        }
        Ok(())
    }
}

fn open(file: &Path) -> io::Result<Flock<File>> {
    let mut options = File::options();
    let options = options.read(true).write(true).create(true).truncate(false);
    let file = options.open(file)?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error.into())
}

/// Writes to the store, which refuses a token older than the newest that it has seen.
fn guarded_write(store: &mut File, token: &str) -> io::Result<&'static str> {
    let mut newest = String::new();
    store.read_to_string(&mut newest)?;
    if *token < *newest {
        return Ok("refused");
    }
    store.rewind()?;
    store.write_all(token.as_bytes())?;
    Ok("written")
}

fn now() -> u128 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
    time.unwrap_or_default().as_nanos()
}
