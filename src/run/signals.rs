//! Signals: which ones pglock handles, what it inherited, and delivery to the main loop.
//!
//! Handlers only write to a socket pair whose other end the main loop polls. Other threads write to it as well, so that
//! the loop waits in one place ([`Waker`]). `signal-hook` delivers the signals and their origins; SIGINT goes to
//! `ctrlc` first if there is a terminal to press Ctrl-C on. A signal that was ignored on entry (nohup) is not handled,
//! so it stays ignored for pglock and for the job. Signals without a handler are queued instead (`signal_queue`).
//!
//! All threads except the main one block every signal. Handlers therefore run on the main thread only, and have
//! finished by the time the main loop reads what they left.

use crate::run::signal_number::SignalNumber;
use crate::run::signal_queue::{QueuedSignal, SignalQueue};
use crate::sys;
use crate::ui::terminal;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::unistd::{Pid, getpgrp, getsid};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::origin::WithOrigin;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// The signals pglock handles: those that operators and terminals send, those of job control, and SIGCHLD. Where
/// there is no [`SignalQueue`] to read them from, also the other signals that it forwards.
const HANDLED_SIGNALS: &[Signal] = &[
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
    #[cfg(not(target_os = "linux"))]
    Signal::SIGALRM,
    #[cfg(not(target_os = "linux"))]
    Signal::SIGVTALRM,
    #[cfg(not(target_os = "linux"))]
    Signal::SIGPROF,
    #[cfg(not(target_os = "linux"))]
    Signal::SIGXCPU,
    #[cfg(not(target_os = "linux"))]
    Signal::SIGXFSZ,
    #[cfg(not(target_os = "linux"))]
    Signal::SIGIO,
    #[cfg(not(target_os = "linux"))]
    Signal::SIGSYS,
    #[cfg(not(target_os = "linux"))]
    Signal::SIGABRT,
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
    pub signal: SignalNumber,
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
    queue: SignalQueue,
    read: UnixStream,
    waker: Waker,
}

impl BlockedSignals {
    /// Blocks every signal in the calling thread, and thus in the threads it creates afterwards.
    ///
    /// # Errors
    /// No descriptor is free.
    pub(crate) fn block_all() -> io::Result<BlockedSignals> {
        let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        let is_ignored = |signal: &Signal| sys::is_ignored(*signal as i32);
        let mut ignored: Vec<Signal> = HANDLED_SIGNALS.iter().copied().filter(is_ignored).collect();
        if sys::sigpipe_was_ignored() {
            ignored.push(Signal::SIGPIPE);
        }
        let (read, write) = UnixStream::pair()?;
        write.set_nonblocking(true)?;
        Ok(BlockedSignals {
            on_entry: SignalDispositions { mask, ignored },
            // Now, before the session's thread starts: these open and close descriptors, and that thread determines
            // which descriptors connecting opens.
            has_terminal: terminal::foreground_group().is_some(),
            queue: SignalQueue::open(HANDLED_SIGNALS)?,
            read,
            waker: Waker(Arc::new(write)),
        })
    }

    /// Returns a handle that wakes the loop in [`Signals::wait`].
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
            queue,
            read,
            waker,
        } = self;
        // SIGCHLD is handled even if it was ignored on entry: without it nothing can be supervised.
        let handled: Vec<Signal> = HANDLED_SIGNALS
            .iter()
            .copied()
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
        Ok(Signals {
            on_entry,
            delivery,
            queue,
        })
    }
}

/// The handled and the queued signals of this process.
pub(crate) struct Signals {
    on_entry: SignalDispositions,
    delivery: SignalDelivery<UnixStream, WithOrigin>,
    queue: SignalQueue,
}

impl Signals {
    /// Unblocks the handled signals in the calling thread, even those that pglock's caller had blocked: an operator
    /// must be able to end a wait. The job still starts with the caller's mask.
    ///
    /// # Errors
    /// pthread_sigmask(3) fails.
    pub(crate) fn unblock(&self) -> io::Result<()> {
        let mut mask = self.queue.add_to(self.on_entry.mask);
        for signal in HANDLED_SIGNALS {
            mask.remove(*signal);
        }
        Ok(mask.thread_set_mask()?)
    }

    /// Returns the dispositions that pglock inherited.
    pub(crate) fn on_entry(&self) -> &SignalDispositions {
        &self.on_entry
    }

    /// Waits until a signal or a wake-up arrives, or the timeout is over.
    pub(crate) fn wait(&self, timeout: PollTimeout) {
        let descriptors = [Some(self.delivery.get_read().as_fd()), self.queue.descriptor()];
        let readable = |descriptor| PollFd::new(descriptor, PollFlags::POLLIN);
        let mut descriptors: Vec<PollFd> = descriptors.into_iter().flatten().map(readable).collect();
        // EINTR is a signal, which is pending by now.
        let _ = poll(&mut descriptors, timeout);
    }

    /// Returns the signals received since the last call, and drains the wake-ups.
    pub(crate) fn received(&mut self) -> Vec<SignalInfo> {
        let handled = self.delivery.pending().map(|origin| QueuedSignal {
            signal: SignalNumber::from_raw(origin.signal),
            sender: origin.process.map(|process| process.pid),
        });
        let mut received: Vec<QueuedSignal> = handled.collect();
        received.extend(std::iter::from_fn(|| self.queue.next()));
        received.retain(|received| !is_own_fault(*received));
        let to_info = |received: QueuedSignal| SignalInfo {
            signal: received.signal,
            from_terminal: is_from_terminal(received),
        };
        received.into_iter().map(to_info).collect()
    }

    /// Returns the signals whose default action must be restored for the job.
    pub(crate) fn to_default(&self) -> impl Iterator<Item = Signal> {
        let ignored = &self.on_entry.ignored;
        HANDLED_SIGNALS
            .iter()
            .copied()
            .filter(move |signal| !ignored.contains(signal))
    }
}

/// Returns whether the signal is about pglock itself: one that reports a fault, such as a write beyond the file size
/// limit, and that no other process sent. Linux reports SIGXFSZ as sent by the process that wrote.
fn is_own_fault(received: QueuedSignal) -> bool {
    let reports_fault = match received.signal.named() {
        Some(Signal::SIGABRT | Signal::SIGSYS | Signal::SIGXFSZ) => true,
        #[cfg(target_os = "linux")]
        Some(Signal::SIGSTKFLT) => true,
        _ => false,
    };
    let is_from_other = |sender: i32| sender != Pid::this().as_raw();
    reports_fault && !received.sender.is_some_and(is_from_other)
}

/// Returns whether the terminal driver sent the signal. macOS gives the terminal emulator, which passes on the key, as
/// the sender. There, a signal that a terminal can send counts as the terminal's in its foreground: the job would get
/// each Ctrl-C twice otherwise. kill(1) then has to signal the job itself, or use TERM.
fn is_from_terminal(received: QueuedSignal) -> bool {
    let is_in_foreground = || terminal::foreground_group() == Some(getpgrp());
    is_sent_to_foreground_group(received.signal)
        && (received.sender.is_none() || (cfg!(target_os = "macos") && is_in_foreground()))
}

/// Returns whether the kernel sends this signal to the whole foreground group. It sends SIGHUP to the session leader
/// only, which may be pglock itself (`ssh -t host pglock run ...`); the group gets it when that leader exits. A signal
/// of a timer, such as one set by a program that `exec`ed pglock, or of a resource limit is for this process only.
fn is_sent_to_foreground_group(signal: SignalNumber) -> bool {
    match signal.named() {
        Some(Signal::SIGHUP) => getsid(None) != Ok(Pid::this()),
        Some(Signal::SIGINT | Signal::SIGQUIT | Signal::SIGTSTP | Signal::SIGWINCH | Signal::SIGCONT) => true,
        _ => false,
    }
}

/// Stops this process with the signal that stopped the job, until it is continued. In an orphaned process group, which
/// no shell could continue, the kernel ignores the signals of job control. It never ignores SIGSTOP, so SIGTSTP takes
/// its place.
pub(crate) fn stop_with(signal: i32) {
    let signal = if signal == Signal::SIGSTOP as i32 {
        Signal::SIGTSTP as i32
    } else {
        signal
    };
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
