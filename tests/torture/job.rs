//! The job of the lock checker: writes down when it has the lock, and writes to a store that its token guards.
//!
//! `torture-job HISTORY STORE RUN MILLISECONDS STATUS [stubborn]` stays for so long and exits with STATUS. Each line that it
//! appends to HISTORY is whole: the word, the monotonic clock in nanoseconds, which all processes of a machine share, and
//! RUN. TERM ends it, unless it is stubborn; it ends in any case, so that none is left behind.

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

/// How much longer than it was told a stubborn one stays.
const STUBBORN: Duration = Duration::from_secs(3);
/// How often it looks whether it was told to end.
const GLANCE: Duration = Duration::from_millis(5);
/// How often it shows that it lives; with every tenth of these it writes.
const BEAT: Duration = Duration::from_millis(25);

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
    let told = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGTERM, Arc::clone(&told))?;
    let of = |name| std::env::var(name).unwrap_or_default();
    let mut job = Job {
        history: File::options().append(true).open(history)?,
        store: store.into(),
        run: run.clone(),
        keys: of("PGLOCK_KEY"),
        slot: of("PGLOCK_SLOT"),
        token: of("PGLOCK_TOKEN"),
        is_exclusive: of("PGLOCK_MODE") == "exclusive",
    };
    job.enter()?;
    job.write()?;
    let life = Duration::from_millis(life.parse().unwrap_or(0));
    let is_ended = job.live(life, &told, !rest.is_empty())?;
    job.write()?;
    job.note("leave", "")?;
    match is_ended {
        true => signal_hook::low_level::emulate_default_handler(SIGTERM),
        false => exit(status.parse().unwrap_or(0)),
    }
}

impl Job {
    fn note(&mut self, word: &str, rest: &str) -> io::Result<()> {
        let line = format!("{word} {} {}{rest}\n", now(), self.run);
        self.history.write_all(line.as_bytes())
    }

    fn enter(&mut self) -> io::Result<()> {
        let or_none = |text: &str| if text.is_empty() { "-" } else { text }.to_owned();
        let (slot, token) = (or_none(&self.slot), or_none(&self.token));
        self.note("enter", &format!(" {} {slot} {token}", std::process::id()))
    }

    /// Stays for so long. Whether TERM has ended it before.
    fn live(&mut self, life: Duration, told: &AtomicBool, is_stubborn: bool) -> io::Result<bool> {
        let mut end = Instant::now() + life;
        let (mut beat, mut beats) = (Instant::now() + BEAT, 0);
        let mut is_extended = false;
        while Instant::now() < end {
            sleep(GLANCE.min(end.saturating_duration_since(Instant::now())));
            if Instant::now() >= beat {
                self.note("alive", "")?;
                (beat, beats) = (Instant::now() + BEAT, beats + 1);
                if beats % 10 == 0 {
                    self.write()?;
                }
            }
            match told.load(Ordering::Relaxed) {
                true if !is_stubborn => return Ok(true),
                true if !is_extended => {
                    end += STUBBORN;
                    is_extended = true;
                }
                _ => {}
            }
        }
        Ok(false)
    }

    /// Writes to the store of each key that is ours alone, if there is a token to do it with.
    fn write(&mut self) -> io::Result<()> {
        if self.token.is_empty() || !self.is_exclusive {
            return Ok(());
        }
        for key in self.keys.clone().lines() {
            // Slot 0 is the key itself.
            let place = match self.slot.as_str() {
                "" | "0" => key.to_owned(),
                slot => format!("{key}:{slot}"),
            };
            let mut store = open(&self.store.join(&place))?;
            let word = guarded_write(&mut store, &self.token)?;
            // Noted before anybody else can write.
            self.note(word, &format!(" {place}"))?;
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

/// Writes to the store, which refuses a token that is older than the newest that it has seen.
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
