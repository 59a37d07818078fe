//! The probe: a job that records each signal that it gets, with time and sender, and reports when it is ready.
//!
//! `probe RECORD [--end-on SIGNAL]... [--beat]` appends lines to the file RECORD, each starting with the monotonic
//! clock in nanoseconds, which all processes of a machine share: `ready PID blocked=MASK ignored=MASK` (its inherited
//! masks, as in proc(5)), `TERM from PID` or `TERM from kernel`, and with `--beat`, every 10 ms, `beat`. A real-time
//! signal is a number there. After the first line it prints `ready (pid PID)`. A signal that was ignored on entry stays
//! ignored. The probe dies of a signal of `--end-on`, of one that cannot be caught, or of its own SIGALRM after two
//! minutes, so that none is left behind.

#![expect(clippy::missing_errors_doc, reason = "a program has no API")]

use nix::libc;
use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::origin::WithOrigin;
use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

/// TSTP, TTIN and TTOU keep their default effect.
const RECORDED: [Signal; 16] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGCONT,
    Signal::SIGALRM,
    Signal::SIGVTALRM,
    Signal::SIGPROF,
    Signal::SIGXCPU,
    Signal::SIGXFSZ,
    Signal::SIGIO,
    Signal::SIGSYS,
    Signal::SIGABRT,
];

/// The numbers of all recorded signals.
#[cfg(target_os = "linux")]
fn recorded() -> impl Iterator<Item = i32> {
    let of_linux = [libc::SIGPWR, libc::SIGSTKFLT];
    let named = RECORDED.into_iter().map(|signal| signal as i32).chain(of_linux);
    named.chain(libc::SIGRTMIN()..=libc::SIGRTMAX())
}

/// The numbers of all recorded signals.
#[cfg(not(target_os = "linux"))]
fn recorded() -> impl Iterator<Item = i32> {
    RECORDED.into_iter().map(|signal| signal as i32)
}

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let Some(record) = arguments.next() else {
        return Err(io::Error::other("usage: probe RECORD [--end-on SIGNAL]... [--beat]"));
    };
    let mut ends = Vec::new();
    let mut beats = false;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--beat" => beats = true,
            "--end-on" => ends.push(arguments.next().unwrap_or_default()),
            _ => return Err(io::Error::other(argument)),
        }
    }
    nix::unistd::alarm::set(120);
    let record = Record::open(&record)?;
    let (blocked, ignored) = (mask("SigBlk:"), mask("SigIgn:"));
    let is_ignored = |signal: &i32| ignored >> (*signal - 1) & 1 == 1;
    let mut signals = SignalsInfo::<WithOrigin>::new(recorded().filter(|signal| !is_ignored(signal)))?;
    let pid = std::process::id();
    record.line(&format!("ready {pid} blocked={blocked:x} ignored={ignored:x}"))?;
    writeln!(io::stdout(), "ready (pid {pid})")?;
    if beats {
        let record = record.clone();
        std::thread::spawn(move || {
            while record.line("beat").is_ok() {
                std::thread::sleep(Duration::from_millis(10));
            }
        });
    }
    for origin in &mut signals {
        let named = Signal::try_from(origin.signal).map(Signal::as_str);
        let name = named.map_or(origin.signal.to_string(), |name| name[3..].to_owned());
        let sender = origin.process.map(|process| process.pid.to_string());
        record.line(&format!("{name} from {}", sender.as_deref().unwrap_or("kernel")))?;
        let is_own_alarm = origin.signal == libc::SIGALRM && origin.process.is_none();
        if is_own_alarm || ends.contains(&name) {
            signal_hook::low_level::emulate_default_handler(origin.signal)?;
        }
    }
    Ok(())
}

#[derive(Clone)]
struct Record(Arc<File>);

impl Record {
    fn open(path: &str) -> io::Result<Record> {
        let file = File::options().append(true).create(true).open(path)?;
        Ok(Record(Arc::new(file)))
    }

    /// Appends a line with one write, so that neither two threads nor two probes mix their lines.
    fn line(&self, event: &str) -> io::Result<()> {
        let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?).as_nanos();
        (&*self.0).write_all(format!("{now} {event}\n").as_bytes())
    }
}

/// Returns a signal mask of this process; 0 without `/proc`.
fn mask(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let value = status.lines().find_map(|line| line.strip_prefix(field));
    u64::from_str_radix(value.unwrap_or_default().trim(), 16).unwrap_or(0)
}
