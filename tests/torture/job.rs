//! The job of the lock checker: writes down when it has the lock, and writes to a store that its token guards.
//!
//! `torture-job HISTORY STORE RUN MILLISECONDS STATUS [stubborn]` stays for so long and exits with STATUS. Each line that it
//! appends to HISTORY is whole: the word, the monotonic clock in nanoseconds, which all processes of a machine share, and
//! RUN. TERM ends it, unless it is stubborn; it ends in any case, so that none is left behind.

use nix::fcntl::{Flock, FlockArg};
use nix::time::{ClockId, clock_gettime};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::process::exit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How much longer than it was told a stubborn one stays.
const STUBBORN: Duration = Duration::from_secs(3);
const GLANCE: Duration = Duration::from_millis(2);

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [history, store, run, life, status, rest @ ..] = arguments.as_slice() else {
        return Err(io::Error::other("usage: see torture/job.rs"));
    };
    let stubborn = !rest.is_empty();
    let told = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGTERM, Arc::clone(&told))?;
    let mut history = File::options().append(true).open(history)?;
    let mut note = |word: &str, rest: &str| {
        let line = format!("{word} {} {run} {rest}\n", now());
        history.write_all(line.as_bytes())
    };

    let of = |name| std::env::var(name).unwrap_or_default();
    let (slot, token) = (of("PGLOCK_SLOT"), of("PGLOCK_TOKEN"));
    let or_none = |text: &str| {
        if text.is_empty() {
            "-".into()
        } else {
            text.to_owned()
        }
    };
    let pid = std::process::id();
    note(
        "enter",
        &format!("{pid} {} {}", or_none(&slot), or_none(&token)),
    )?;
    let guarded = |note: &mut dyn FnMut(&str, &str) -> io::Result<()>| {
        for key in of("PGLOCK_KEY").lines() {
            if !token.is_empty() && of("PGLOCK_MODE") == "exclusive" {
                let name = format!("{key} {slot}");
                let word = write(&Path::new(store).join(&name), &token)?;
                note(word, "")?;
            }
        }
        Ok::<(), io::Error>(())
    };
    guarded(&mut note)?;
    let mut end = Instant::now() + Duration::from_millis(life.parse().unwrap_or(0));
    let mut extended = false;
    while Instant::now() < end {
        sleep(GLANCE.min(end.saturating_duration_since(Instant::now())));
        if !told.load(Ordering::Relaxed) {
            continue;
        }
        if !stubborn {
            guarded(&mut note)?;
            note("leave", "")?;
            return signal_hook::low_level::emulate_default_handler(signal_hook::consts::SIGTERM);
        }
        if !extended {
            end += STUBBORN;
            extended = true;
        }
        note("alive", "")?;
    }
    guarded(&mut note)?;
    note("leave", "")?;
    exit(status.parse().unwrap_or(0))
}

/// Writes to the store, which refuses a token that is older than the newest that it has seen.
fn write(file: &Path, token: &str) -> io::Result<&'static str> {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(file)?;
    let mut store = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
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
