//! Signals by number, for those that nix has no name for.

#[cfg(target_os = "linux")]
use nix::libc;
use nix::sys::signal::Signal;
use std::fmt;

/// The signal that is called `RTMIN` on Linux: glibc's first real-time signal, from which images and kill(1) count.
/// musl keeps it to itself.
const RTMIN: i32 = 34;

/// A signal. Unlike nix's [`Signal`], it can be a real-time signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SignalNumber(i32);

impl SignalNumber {
    /// Makes a signal of the number that the system reported.
    pub(crate) fn from_raw(number: i32) -> SignalNumber {
        SignalNumber(number)
    }

    /// Parses a signal as a `STOPSIGNAL` is written: a number, or a name with or without `SIG`, such as `TERM`,
    /// `SIGUSR1` or `RTMIN+3`.
    pub(crate) fn parse(text: &str) -> Option<SignalNumber> {
        if let Ok(number) = text.parse() {
            let signal = SignalNumber(number);
            return Some(signal).filter(|signal| signal.named().is_some() || signal.is_real_time());
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        match format!("SIG{name}").parse() {
            Ok(signal) => Some(Signal::into(signal)),
            Err(_) => SignalNumber::parse_real_time(name),
        }
    }

    /// Parses `RTMIN`, `RTMIN+n`, `RTMAX` or `RTMAX-n`.
    fn parse_real_time(name: &str) -> Option<SignalNumber> {
        let (_, last) = SignalNumber::real_time_range()?;
        let offset = |text: &str, sign| match text {
            "" => Some(0),
            _ => text.strip_prefix(sign)?.parse::<u8>().ok().map(i32::from),
        };
        let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
            (Some(rest), _) => RTMIN + offset(rest, '+')?,
            (_, Some(rest)) => last - offset(rest, '-')?,
            (None, None) => return None,
        };
        Some(SignalNumber(number)).filter(|signal| signal.is_real_time())
    }

    /// Returns the first and the last real-time signal; `None` where pglock does not receive them.
    fn real_time_range() -> Option<(i32, i32)> {
        #[cfg(target_os = "linux")]
        return Some((libc::SIGRTMIN(), libc::SIGRTMAX()));
        #[cfg(not(target_os = "linux"))]
        None
    }

    fn is_real_time(self) -> bool {
        SignalNumber::real_time_range().is_some_and(|(first, last)| (first..=last).contains(&self.0))
    }

    /// Returns whether pglock can react to this signal by ending its wait: it is not one of those that cannot be
    /// caught, that report a fault or that the system sends for other reasons, nor one of job control.
    pub(crate) fn can_end_wait(self) -> bool {
        !matches!(
            self.named(),
            Some(
                Signal::SIGKILL
                    | Signal::SIGSTOP
                    | Signal::SIGTSTP
                    | Signal::SIGCONT
                    | Signal::SIGTTIN
                    | Signal::SIGTTOU
                    | Signal::SIGCHLD
                    | Signal::SIGPIPE
                    | Signal::SIGURG
                    | Signal::SIGSEGV
                    | Signal::SIGBUS
                    | Signal::SIGFPE
                    | Signal::SIGILL
                    | Signal::SIGTRAP
            )
        )
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_parsed_as_a_stopsignal_is_written() {
        let parse = |text| SignalNumber::parse(text).map(SignalNumber::as_raw);
        for text in ["TERM", "SIGTERM", "sigterm", "15"] {
            assert_eq!(parse(text), Some(Signal::SIGTERM as i32), "{text}");
        }
        assert_eq!(parse("WINCH"), Some(Signal::SIGWINCH as i32));
        for invalid in [
            "",
            "SIG",
            "TERMINATE",
            "0",
            "-15",
            "65",
            "TERM ",
            "SIGSIGTERM",
            "RTMIN-1",
            "RTMIN+x",
            "RTMAX+1",
        ] {
            assert_eq!(parse(invalid), None, "{invalid:?}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn real_time_signals_have_numbers_and_names() {
        let parse = |text: &str| SignalNumber::parse(text).map(SignalNumber::as_raw);
        let (first, last) = (libc::SIGRTMIN(), libc::SIGRTMAX());
        assert_eq!(parse("SIGRTMIN+3"), Some(37));
        assert_eq!(parse("RTMIN+1"), Some(35));
        assert_eq!(parse("34").is_some(), first == 34, "musl has 34 for itself");
        assert_eq!(parse("RTMAX-1"), Some(last - 1));
        assert_eq!(parse(&last.to_string()), Some(last));
        // These belong to the C library.
        assert_eq!(parse("32"), None);
        assert_eq!(parse("RTMIN+31"), None);
    }
}
