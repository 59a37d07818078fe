//! What systemd, or another service manager with its protocol, is told about a run: sd_notify(3).
//!
//! A service of `Type=notify` is starting until its job sends `READY=1`. A standby that waits for the lock has no job,
//! so pglock extends the start timeout until the job is started, and shows what it waits for in the status text.
//!
//! No message matters enough to hold up a run: the socket never blocks, and what cannot be sent is dropped. The crates
//! for this protocol send with a blocking socket, so that a service manager that does not read would stop the run.

use nix::errno::Errno;
use std::env;
use std::ffi::OsStr;
use std::io;
#[cfg(target_os = "linux")]
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

/// How long the service manager is to wait for the next message of a wait.
const EXTENSION: Duration = Duration::from_secs(20);
/// How often to send one. Some may be lost or late.
const EXTENSION_INTERVAL: Duration = Duration::from_secs(5);
/// How long a wait may last before the service manager is told: most end sooner.
const FIRST_REPORT_DELAY: Duration = Duration::from_secs(1);
/// How long the job may then take to be ready: systemd's default start timeout, which the wait has used up.
const JOB_START_TIMEOUT: Duration = Duration::from_secs(90);
/// The longest status text. systemd reads no more than 4096 bytes of a message.
const MAX_STATUS_LEN: usize = 2048;

/// The service manager's socket, and what it has been sent.
pub(crate) struct ServiceManager {
    socket: UnixDatagram,
    address: SocketAddr,
    /// The last status text.
    status: String,
    /// When the last extension was sent.
    extended: Option<Instant>,
}

impl ServiceManager {
    /// Returns the service manager that `NOTIFY_SOCKET` names, if it names one that can be reached.
    ///
    /// The socket stays open: the session's thread must be able to tell which descriptors connecting opens.
    pub(crate) fn from_environment() -> Option<ServiceManager> {
        let address = parse_address(&env::var_os("NOTIFY_SOCKET")?).ok()?;
        let socket = UnixDatagram::unbound().ok()?;
        socket.set_nonblocking(true).ok()?;
        Some(ServiceManager {
            socket,
            address,
            status: String::new(),
            extended: None,
        })
    }

    /// Shows what the run has waited for since `started_at`, and extends the start timeout when that is due. To be
    /// called at least once a second.
    pub(crate) fn report_wait(&mut self, started_at: Instant, status: impl FnOnce() -> String) {
        if started_at.elapsed() < FIRST_REPORT_DELAY {
            return;
        }
        let now = Instant::now();
        self.report_status(status());
        let is_due = |extended: Instant| now.duration_since(extended) >= EXTENSION_INTERVAL;
        if self.extended.is_none_or(is_due) && self.send(&extension(EXTENSION)) {
            self.extended = Some(now);
        }
    }

    /// Shows that the job runs. If it had to wait for the lock, gives it the time to start that a job without a wait
    /// has.
    pub(crate) fn report_job(&mut self, status: String) {
        self.report_status(status);
        if self.extended.is_some() {
            self.send(&extension(JOB_START_TIMEOUT));
        }
    }

    /// Sends the status text if it has changed.
    pub(crate) fn report_status(&mut self, status: String) {
        if status != self.status && self.send(&format!("STATUS={}", status_text(&status))) {
            self.status = status;
        }
    }

    /// Sends a message. Returns whether it was sent; there is nothing to be done if it was not.
    fn send(&self, message: &str) -> bool {
        self.socket.send_to_addr(message.as_bytes(), &self.address).is_ok()
    }
}

/// Parses `NOTIFY_SOCKET`: a path, or a name in Linux's abstract namespace after an `@`.
///
/// # Errors
/// It is neither, or too long.
fn parse_address(text: &OsStr) -> io::Result<SocketAddr> {
    match text.as_bytes() {
        [b'/', ..] => SocketAddr::from_pathname(text),
        #[cfg(target_os = "linux")]
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => Err(Errno::EAFNOSUPPORT.into()),
    }
}

fn extension(duration: Duration) -> String {
    format!("EXTEND_TIMEOUT_USEC={}", duration.as_micros())
}

/// Returns the text on one line, since the protocol has a line for each variable, and no longer than the service
/// manager reads.
fn status_text(text: &str) -> String {
    let line = text.replace(char::is_control, " ");
    let end = (0..=MAX_STATUS_LEN.min(line.len()))
        .rev()
        .find(|end| line.is_char_boundary(*end));
    line[..end.unwrap_or_default()].to_owned()
}
