//! Signals by number, for those that nix has no name for.

use nix::sys::signal::Signal;
use std::fmt;

/// A signal. Unlike nix's [`Signal`], it can be a real-time signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SignalNumber(i32);

impl SignalNumber {
    /// Makes a signal of the number that the system reported.
    pub(crate) fn from_raw(number: i32) -> SignalNumber {
        SignalNumber(number)
    }

    /// Returns the system's number.
    pub(crate) fn as_raw(self) -> i32 {
        self.0
    }

    /// Returns the signal as nix names it; `None` for a real-time signal.
    pub(crate) fn named(self) -> Option<Signal> {
        Signal::try_from(self.0).ok()
    }
}

impl From<Signal> for SignalNumber {
    fn from(signal: Signal) -> SignalNumber {
        SignalNumber(signal as i32)
    }
}

impl fmt::Display for SignalNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.named() {
            Some(signal) => signal.fmt(f),
            None => write!(f, "signal {}", self.0),
        }
    }
}
