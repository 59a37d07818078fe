//! The signals that pglock only forwards: on Linux, read from a descriptor (signalfd(2)).
//!
//! These are all signals that pglock neither handles nor leaves alone, some forty with the real-time signals. A handler
//! for each would cost every run two system calls per signal, and the job would need each reset. Instead they stay
//! blocked, in all threads, and keep the disposition that pglock inherited. So nothing must be restored for the job
//! except the mask, and abort(3), which unblocks its signal, still ends pglock.
//!
//! Other systems have no signalfd(2). There, `signals` handles the ones that POSIX names. Real-time signals, SIGEMT and
//! SIGINFO stay blocked: they do not reach the job, but they do not end pglock either.

use crate::run::signal_number::SignalNumber;
use nix::sys::signal::{SigSet, Signal};
use std::io;
use std::os::fd::BorrowedFd;

#[cfg(target_os = "linux")]
use crate::sys;
#[cfg(target_os = "linux")]
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
#[cfg(target_os = "linux")]
use std::os::fd::AsFd;

/// The signals left alone: the synchronous ones, which report a fault of the program itself, those of a background
/// process's access to the terminal, and those that pglock has its own use for.
const LEFT_ALONE: [Signal; 9] = [
    Signal::SIGSEGV,
    Signal::SIGBUS,
    Signal::SIGFPE,
    Signal::SIGILL,
    Signal::SIGTRAP,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGPIPE,
    Signal::SIGURG,
];

/// A queued signal and who sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QueuedSignal {
    /// The signal.
    pub signal: SignalNumber,
    /// The process that sent it; `None` if the kernel did, 0 if it is a process of another PID namespace.
    pub sender: Option<i32>,
}

/// The signals that stay blocked, and on Linux the descriptor they are read from.
#[derive(Debug)]
pub(super) struct SignalQueue {
    blocked: SigSet,
    #[cfg(target_os = "linux")]
    descriptor: SignalFd,
}

impl SignalQueue {
    /// Opens the queue, for all signals except those that are left alone or in `handled`. The caller has blocked all
    /// signals.
    ///
    /// # Errors
    /// No descriptor is free.
    pub(super) fn open(handled: &[Signal]) -> io::Result<SignalQueue> {
        // Remove names from the full set: nix has none for the real-time signals, so they cannot be added.
        let mut blocked = SigSet::all();
        for signal in LEFT_ALONE.iter().chain(handled) {
            blocked.remove(*signal);
        }
        Ok(SignalQueue {
            blocked,
            #[cfg(target_os = "linux")]
            descriptor: SignalFd::with_flags(&blocked, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?,
        })
    }

    /// Returns the mask with the queued signals added.
    pub(super) fn add_to(&self, mask: SigSet) -> SigSet {
        let mut with_queued = SigSet::all();
        for signal in Signal::iterator() {
            if !self.blocked.contains(signal) && !mask.contains(signal) {
                with_queued.remove(signal);
            }
        }
        with_queued
    }

    /// Returns the descriptor that is readable when a signal is queued, if there is one.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        #[cfg(target_os = "linux")]
        return Some(self.descriptor.as_fd());
        #[cfg(not(target_os = "linux"))]
        None
    }

    /// Returns the next queued signal that was not ignored on entry; the kernel queues a blocked signal even if it is
    /// ignored.
    pub(super) fn next(&self) -> Option<QueuedSignal> {
        #[cfg(target_os = "linux")]
        while let Ok(Some(info)) = self.descriptor.read_signal() {
            let queued = QueuedSignal::from(info);
            if !sys::is_ignored(queued.signal.as_raw()) {
                return Some(queued);
            }
        }
        None
    }
}

#[cfg(target_os = "linux")]
impl From<siginfo> for QueuedSignal {
    fn from(info: siginfo) -> QueuedSignal {
        // sigaction(2): a positive si_code is the kernel's.
        let is_from_process = info.ssi_code <= 0;
        QueuedSignal {
            signal: SignalNumber::from_raw(info.ssi_signo as i32),
            sender: is_from_process.then_some(info.ssi_pid as i32),
        }
    }
}
