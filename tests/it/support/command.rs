//! The one way to start a program from a test.
//!
//! A program inherits ignored signals and the signal mask, and a shell cannot trap a signal that was ignored when it
//! started. Without a reset, the tests would behave differently under `nohup` (SIGHUP ignored) or in the background of
//! a script (SIGINT and SIGQUIT ignored). The reset happens in the child and not in the test process, which thus
//! survives what its caller meant it to survive.

use nix::libc;
use nix::sys::signal::SigSet;
use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::OnceLock;

/// Variables, besides `PG*`, that change where pglock connects or what it does; and the search path for libraries that
/// cargo sets, which makes the loader try 50 other paths before it opens the C library, at each start.
const OTHER_VARIABLES: [&str; 5] = [
    "DATABASE_URL",
    "NOTIFY_SOCKET",
    "LISTEN_PID",
    "WATCHDOG_PID",
    "LD_LIBRARY_PATH",
];

/// Returns a command whose environment has no variables that pglock reads, and that starts with every signal
/// at its default disposition and none blocked, however the tests were started.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("PG") || OTHER_VARIABLES.contains(&&*text) {
            command.env_remove(&name);
        }
    }
    static IGNORED: OnceLock<Vec<libc::c_int>> = OnceLock::new();
    let ignored = IGNORED.get_or_init(ignored_signals);
    // With nothing to reset, the standard library starts the program by posix_spawn(3), which is faster than fork(2).
    if !ignored.is_empty() || is_any_blocked() {
        reset_before_exec(&mut command, ignored);
    }
    command
}

/// Returns the signals that this process ignores. SIGPIPE is not among them: the standard library ignores it here, and
/// resets it in each child.
#[expect(unsafe_code, reason = "no safe function queries a disposition")]
fn ignored_signals() -> Vec<libc::c_int> {
    let is_ignored = |signal: libc::c_int| {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: a null new action only queries; all-zero bytes are a valid sigaction.
        unsafe {
            libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) == 0
                && action.assume_init().sa_sigaction == libc::SIG_IGN
        }
    };
    (1..=HIGHEST_SIGNAL)
        .filter(|signal| *signal != libc::SIGPIPE && is_ignored(*signal))
        .collect()
}

#[cfg(target_os = "linux")]
const HIGHEST_SIGNAL: libc::c_int = 64;
#[cfg(not(target_os = "linux"))]
const HIGHEST_SIGNAL: libc::c_int = 31;

fn is_any_blocked() -> bool {
    SigSet::thread_get_mask().unwrap() != SigSet::empty()
}

#[expect(unsafe_code, reason = "only the child itself can change its dispositions")]
fn reset_before_exec(command: &mut Command, ignored: &'static [libc::c_int]) {
    let reset = move || {
        for signal in ignored {
            // SAFETY: SIG_DFL runs no handler.
            unsafe { libc::signal(*signal, libc::SIG_DFL) };
        }
        SigSet::empty().thread_set_mask().map_err(io::Error::from)
    };
    // SAFETY: the closure makes only async-signal-safe calls (signal, pthread_sigmask), and allocates nothing.
    unsafe { command.pre_exec(reset) };
}
