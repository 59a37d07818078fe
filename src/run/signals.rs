//! Signals: which ones pglock handles, what it inherited, and delivery to the main loop.
//!
//! Handlers only write to a socket pair whose other end the main loop polls. Other threads write to it as well, so that
//! the loop waits in one place ([`Waker`]). `signal-hook` delivers the signals and their origins; SIGINT goes to
//! `ctrlc` first if there is a terminal to press Ctrl-C on. A signal that was ignored on entry (nohup) is not handled,
//! so it stays ignored for pglock and for the job.
//!
//! All threads except the main one block every signal. Handlers therefore run on the main thread only, and have
//! finished by the time the main loop reads what they left.

use crate::sys;
use crate::ui::terminal;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::unistd::{Pid, getsid};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::origin::WithOrigin;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// The signals pglock handles: those it forwards, those of job control, and SIGCHLD.
const HANDLED_SIGNALS: [Signal; 10] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGTSTP,
    Signal::SIGCONT,
    Signal::SIGCHLD,
];

/// The signal setup that pglock inherited, to be restored for the job.
#[derive(Clone, Debug)]
pub(crate) struct SignalDispositions {
    /// The signal mask.
    pub mask: SigSet,
    /// The ignored signals, among those whose action pglock changes.
    pub ignored: Vec<Signal>,
}

/// A received signal and its origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SignalInfo {
    /// The signal.
    pub signal: Signal,
    /// Whether the terminal driver sent it (Ctrl-C, a hangup, a resized window), and thus to the whole foreground
    /// process group. Otherwise a process sent it with kill(2).
    pub from_terminal: bool,
}

/// A handle that wakes the main loop, from any thread.
#[derive(Clone)]
pub(crate) struct Waker(Arc<UnixStream>);

impl Waker {
    /// Creates a waker that is not connected to a loop.
    ///
    /// # Errors
    /// No socket pair can be created.
    #[cfg(test)]
    pub(crate) fn new_disconnected() -> io::Result<Waker> {
        Ok(Waker(Arc::new(UnixStream::pair()?.0)))
    }

    /// Makes the loop process what is pending.
    pub(crate) fn wake(&self) {
        // If the buffer is full, a wake-up is already pending.
        let _ = (&*self.0).write(b"w");
    }
}

/// All signals blocked, and none handled yet. Threads created now inherit the blocked mask.
pub(crate) struct BlockedSignals {
    on_entry: SignalDispositions,
    has_terminal: bool,
    read: UnixStream,
    waker: Waker,
}

impl BlockedSignals {
    /// Blocks every signal in the calling thread, and thus in the threads it creates afterwards.
    ///
    /// # Errors
    /// No socket pair can be created.
    pub(crate) fn block_all() -> io::Result<BlockedSignals> {
        let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        let mut ignored: Vec<Signal> = HANDLED_SIGNALS
            .into_iter()
            .filter(|signal| sys::is_ignored(*signal))
            .collect();
        if sys::sigpipe_was_ignored() {
            ignored.push(Signal::SIGPIPE);
        }
        let (read, write) = UnixStream::pair()?;
        write.set_nonblocking(true)?;
        Ok(BlockedSignals {
            on_entry: SignalDispositions { mask, ignored },
            // Now, before the session's thread starts: this opens and closes a descriptor, and that thread determines
            // which descriptors connecting opens.
            has_terminal: terminal::foreground_group().is_some(),
            read,
            waker: Waker(Arc::new(write)),
        })
    }

    /// Returns a handle that wakes the loop polling [`Signals::as_fd`].
    pub(crate) fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Installs the signal handlers. [`Signals::unblock`] then lets signals through to the main thread.
    ///
    /// # Errors
    /// A handler cannot be installed.
    pub(crate) fn handle(self) -> io::Result<Signals> {
        let BlockedSignals {
            on_entry,
            has_terminal,
            read,
            waker,
        } = self;
        // SIGCHLD is handled even if it was ignored on entry: without it nothing can be supervised.
        let handled: Vec<Signal> = HANDLED_SIGNALS
            .into_iter()
            .filter(|signal| !on_entry.ignored.contains(signal) || *signal == Signal::SIGCHLD)
            .collect();
        let write = waker.0.try_clone()?;
        // ctrlc costs a thread, so it is installed only if there is a terminal to press Ctrl-C on.
        if handled.contains(&Signal::SIGINT) && has_terminal {
            ctrlc::try_set_handler(move || waker.wake()).map_err(io::Error::other)?;
        }
        // signal-hook chains to ctrlc's handler for SIGINT, and adds the origin.
        let numbers = handled.iter().map(|signal| *signal as i32);
        let delivery = SignalDelivery::with_pipe(read, write, WithOrigin::default(), numbers)?;
        Ok(Signals { on_entry, delivery })
    }
}

/// The handled signals of this process.
pub(crate) struct Signals {
    on_entry: SignalDispositions,
    delivery: SignalDelivery<UnixStream, WithOrigin>,
}

impl Signals {
    /// Unblocks the handled signals in the calling thread, even those that pglock's caller had blocked: an operator
    /// must be able to end a wait. The job still starts with the caller's mask.
    ///
    /// # Errors
    /// pthread_sigmask(3) fails.
    pub(crate) fn unblock(&self) -> io::Result<()> {
        let mut mask = self.on_entry.mask;
        for signal in HANDLED_SIGNALS {
            mask.remove(signal);
        }
        Ok(mask.thread_set_mask()?)
    }

    /// Returns the dispositions that pglock inherited.
    pub(crate) fn on_entry(&self) -> &SignalDispositions {
        &self.on_entry
    }

    /// Returns the signals received since the last call, and drains the wake-ups from the descriptor.
    pub(crate) fn received(&mut self) -> Vec<SignalInfo> {
        let mut received = Vec::new();
        for origin in self.delivery.pending() {
            if let Ok(signal) = Signal::try_from(origin.signal) {
                let from_kernel = origin.process.is_none();
                received.push(SignalInfo {
                    signal,
                    from_terminal: from_kernel && reaches_foreground_group(signal),
                });
            }
        }
        received
    }

    /// Returns the signals whose default action must be restored for the job.
    pub(crate) fn to_default(&self) -> impl Iterator<Item = Signal> {
        let ignored = &self.on_entry.ignored;
        HANDLED_SIGNALS
            .into_iter()
            .filter(move |signal| !ignored.contains(signal))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.delivery.get_read().as_fd()
    }
}

/// Returns whether the kernel sends this signal to the whole foreground group. It sends SIGHUP to the session leader
/// only, which may be pglock itself (`ssh -t host pglock run ...`); the group gets it when that leader exits.
fn reaches_foreground_group(signal: Signal) -> bool {
    signal != Signal::SIGHUP || getsid(None) != Ok(Pid::this())
}

/// Stops this process with the signal that stopped the job, until it is continued. In an orphaned process group, which
/// no shell could continue, the kernel ignores the signals of job control.
pub(crate) fn stop_with(signal: i32) {
    sys::raise_default(signal);
}

/// Ends this process with the signal, without dumping core. Returns if the signal has no effect: the kernel protects
/// process 1 of a container from the signals it sends itself.
pub(crate) fn die_with(signal: i32) {
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    // RLIMIT_CORE does not apply if core_pattern pipes core dumps to a program (core(5)).
    #[cfg(target_os = "linux")]
    let _ = nix::sys::prctl::set_dumpable(false);
    sys::raise_default(signal);
}
