//! Which signals pglock takes part in, and how it was started with respect to them.
//!
//! Handlers do nothing but write to one socket pair, whose other end the main loop polls; other threads write
//! to it too, so that the loop waits in one place ([`Waker`]). Signals and their origins come through `signal-hook`;
//! SIGINT comes through `ctrlc` first, where there is a terminal to type it on. A signal that was ignored on entry
//! (nohup) is not handled at all, and so stays ignored for pglock and for the job.
//!
//! All threads but the main one block every signal. A handler thus runs on the main thread only, and has
//! finished when the main loop looks at what it left.

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

/// What pglock handles: the signals that it passes on, those of job control, and the end of a child.
const HANDLED: [Signal; 10] = [
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

/// How pglock's caller had set up signals: what the job must find again.
#[derive(Clone, Debug)]
pub struct SignalDispositions {
    /// The signal mask.
    pub mask: SigSet,
    /// The signals among those that pglock changes which were ignored.
    pub ignored: Vec<Signal>,
}

/// A signal that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignalInfo {
    /// Which one.
    pub signal: Signal,
    /// The kernel sent it (a key on the terminal, a hangup, a resized window), and therefore to the whole
    /// foreground process group at once; else a process did, with kill(2).
    pub from_terminal: bool,
}

/// Wakes the main loop, from any thread.
#[derive(Clone)]
pub struct Waker(Arc<UnixStream>);

impl Waker {
    /// One that wakes nobody.
    #[cfg(test)]
    pub fn of_nobody() -> io::Result<Waker> {
        Ok(Waker(Arc::new(UnixStream::pair()?.0)))
    }

    /// Makes the loop look at what there is.
    pub fn wake(&self) {
        // A full buffer means that a wake-up is on its way already.
        let _ = (&*self.0).write(b"w");
    }
}

/// All signals are blocked, and none is handled yet: other threads may begin.
pub struct Blocked {
    entry: SignalDispositions,
    has_terminal: bool,
    read: UnixStream,
    waker: Waker,
}

impl Blocked {
    /// Blocks every signal in the calling thread, and so in the threads that it then makes.
    pub fn all() -> io::Result<Blocked> {
        let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        let mut ignored: Vec<Signal> = HANDLED.into_iter().filter(|s| sys::is_ignored(*s)).collect();
        if sys::pipe_was_ignored() {
            ignored.push(Signal::SIGPIPE);
        }
        let (read, write) = UnixStream::pair()?;
        write.set_nonblocking(true)?;
        Ok(Blocked {
            entry: SignalDispositions { mask, ignored },
            // Asked now, since the session's thread looks for what is open, and this opens and closes.
            has_terminal: terminal::foreground().is_some(),
            read,
            waker: Waker(Arc::new(write)),
        })
    }

    /// What wakes the loop that polls [`Signals::as_fd`].
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Has the signals handled; [`Signals::listen`] lets them through to the main thread.
    pub fn handle(self) -> io::Result<Signals> {
        let Blocked {
            entry,
            has_terminal,
            read,
            waker,
        } = self;
        // Whether a child's end is told cannot be left to the caller: without SIGCHLD nothing can be supervised.
        let handled: Vec<Signal> = HANDLED
            .into_iter()
            .filter(|s| !entry.ignored.contains(s) || *s == Signal::SIGCHLD)
            .collect();
        let write = waker.0.try_clone()?;
        // A key is what ctrlc is for. Without a terminal nobody can type it, and ctrlc has a thread.
        if handled.contains(&Signal::SIGINT) && has_terminal {
            ctrlc::try_set_handler(move || waker.wake()).map_err(io::Error::other)?;
        }
        // signal-hook keeps ctrlc's handler for SIGINT in place and tells us the origin in addition.
        let numbers = handled.iter().map(|signal| *signal as i32);
        let delivery = SignalDelivery::with_pipe(read, write, WithOrigin::default(), numbers)?;
        Ok(Signals { entry, delivery })
    }
}

/// The signals of this process, handled until it ends.
pub struct Signals {
    entry: SignalDispositions,
    delivery: SignalDelivery<UnixStream, WithOrigin>,
}

impl Signals {
    /// Lets the handled signals through to the calling thread, whatever the caller of pglock had blocked: an
    /// operator must be able to end a wait, and what the job does with a signal is the job's affair.
    pub fn listen(&self) -> io::Result<()> {
        let mut mask = self.entry.mask;
        HANDLED.into_iter().for_each(|signal| mask.remove(signal));
        Ok(mask.thread_set_mask()?)
    }

    /// How it was before.
    pub fn entry(&self) -> &SignalDispositions {
        &self.entry
    }

    /// What has arrived since the last call; it also takes the wake-ups out of the descriptor.
    pub fn arrived(&mut self) -> Vec<SignalInfo> {
        let arrivals = self.delivery.pending().filter_map(|origin| {
            let signal = Signal::try_from(origin.signal).ok()?;
            let from_kernel = origin.process.is_none();
            Some(SignalInfo {
                signal,
                from_terminal: from_kernel && reaches_the_group(signal),
            })
        });
        arrivals.collect()
    }

    /// The signals that the job must find with their default effect again.
    pub fn to_default(&self) -> impl Iterator<Item = Signal> {
        let ignored = &self.entry.ignored;
        HANDLED.into_iter().filter(move |signal| !ignored.contains(signal))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.delivery.get_read().as_fd()
    }
}

/// Whether the kernel sends this signal to the whole foreground group. A hangup it sends to the leader of the session
/// alone, who may be us (`ssh -t host pglock run ...`); the group only gets it when that leader ends.
fn reaches_the_group(signal: Signal) -> bool {
    signal != Signal::SIGHUP || getsid(None) != Ok(Pid::this())
}

/// Stops this process by the signal, as the job was stopped, until it is continued. In an orphaned process group, where
/// nobody could continue it, the kernel lets the signals of job control have no effect.
pub fn stop_by(signal: i32) {
    sys::raise_default(signal);
}

/// Ends this process by the signal, without a core dump of its own. Returns where the signal has no effect:
/// for process 1 of a container, which the kernel shields from its own signals.
pub fn die_by(signal: i32) {
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    // A core that is piped to a program knows no limit.
    #[cfg(target_os = "linux")]
    let _ = nix::sys::prctl::set_dumpable(false);
    sys::raise_default(signal);
}
