//! What the main thread tells the session's thread: to release, and how a recorded run ended.

use crate::history::RunEnd;
use crate::outcome::{ExitCode, Failure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

/// The receiving end of the order to release. The main thread gives the order by closing the other end, so it cannot be
/// lost, nor given twice. Before that, it may write a byte: the job has ended, and the end is in the channel.
pub(super) struct Orders {
    release: UnixStream,
    job_end: Receiver<RunEnd>,
}

/// Why a sleep ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WakeReason {
    /// The job has ended, and its run is to be recorded. The lock is kept.
    JobEnded,
    /// The main thread orders to release the lock.
    ReleaseOrdered,
    /// The session's socket is readable; or it is unknown, and the session should be checked.
    SocketReadable,
    /// The next heartbeat is due.
    HeartbeatDue,
}

/// Returns the failure of what the order to release has interrupted.
pub(super) fn interrupted() -> Failure {
    Failure::msg(ExitCode::Unavailable, "interrupted")
}

/// How often to check a session whose socket is unknown.
const BLIND_CHECK_INTERVAL: Duration = Duration::from_millis(250);

impl Orders {
    pub(super) fn new(release: UnixStream, job_end: Receiver<RunEnd>) -> Orders {
        Orders { release, job_end }
    }

    /// Returns the end of a recorded run, if it has come.
    pub(super) fn job_end(&self) -> Option<RunEnd> {
        self.job_end.try_recv().ok()
    }

    /// Waits for the end of a recorded run; `None` if there will be none, because pglock ends.
    pub(super) fn await_job_end(&self) -> Option<RunEnd> {
        self.job_end.recv().ok()
    }

    /// Sleeps until the order to release or the end of the job, or for `pause`. Returns whether either has come:
    /// nothing need be acquired any more.
    pub(super) fn is_release_ordered_within(&self, pause: Duration) -> bool {
        let order = PollFd::new(self.release.as_fd(), PollFlags::POLLIN);
        // No signal interrupts this thread.
        poll(&mut [order], poll_timeout(pause)).is_ok_and(|ready| ready > 0)
    }

    /// Sleeps until there is something to do.
    pub(super) fn sleep(&self, socket: Option<&OwnedFd>, heartbeat_due: Instant) -> WakeReason {
        loop {
            let time_left = heartbeat_due.saturating_duration_since(Instant::now());
            let limit = if socket.is_some() {
                time_left
            } else {
                time_left.min(BLIND_CHECK_INTERVAL)
            };
            let mut fds = vec![PollFd::new(self.release.as_fd(), PollFlags::POLLIN)];
            fds.extend(socket.map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
            match poll(&mut fds, poll_timeout(limit)) {
                Ok(0) if limit == time_left => return WakeReason::HeartbeatDue,
                Ok(0) => return WakeReason::SocketReadable,
                // Before the order: a session that the server closed is lost, even if the job has ended meanwhile.
                Ok(_) if fds.get(1).is_some_and(|socket| socket.any() == Some(true)) => {
                    // A server that never stops sending must not keep us from the heartbeat.
                    return if time_left.is_zero() {
                        WakeReason::HeartbeatDue
                    } else {
                        WakeReason::SocketReadable
                    };
                }
                Ok(_) if self.read_byte() => return WakeReason::JobEnded,
                Ok(_) => return WakeReason::ReleaseOrdered,
                Err(_) => {}
            }
        }
    }
}

impl Orders {
    /// Takes the byte that announces the job's end. Returns whether there was one, and not the order to release.
    fn read_byte(&self) -> bool {
        // It is readable, so this does not block.
        (&self.release).read(&mut [0]).is_ok_and(|count| count > 0)
    }
}

/// Converts to a poll(2) timeout, rounded up: waking a little early would only mean polling again.
pub(crate) fn poll_timeout(limit: Duration) -> PollTimeout {
    PollTimeout::try_from(limit.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::mpsc::channel;

    #[test]
    fn a_due_heartbeat_does_not_wait_for_a_silent_server() {
        let (order, receiver) = UnixStream::pair().expect("a pair of sockets");
        let (_job_end, job_end_receiver) = channel();
        let orders = Orders::new(receiver, job_end_receiver);
        let (mut server, socket) = UnixStream::pair().expect("a pair of sockets");
        let socket = OwnedFd::from(socket);
        server.write_all(b"talk").expect("room in the buffer");
        let now = Instant::now();
        let later = now + Duration::from_secs(60);
        assert_eq!(orders.sleep(Some(&socket), later), WakeReason::SocketReadable);
        assert_eq!(orders.sleep(Some(&socket), now), WakeReason::HeartbeatDue);
        drop(order);
        let (_silent_server, socket) = UnixStream::pair().expect("a pair of sockets");
        let socket = OwnedFd::from(socket);
        assert_eq!(orders.sleep(Some(&socket), later), WakeReason::ReleaseOrdered);
    }

    #[test]
    fn timeouts_round_up() {
        assert_eq!(poll_timeout(Duration::from_micros(1)).as_millis(), Some(1));
        assert_eq!(poll_timeout(Duration::ZERO).as_millis(), Some(0));
    }
}
