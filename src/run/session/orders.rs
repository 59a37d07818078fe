//! The main thread's only order, to release, and waiting for it.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// The receiving end of the order to release. The main thread gives the order by closing the other end, so it cannot be
/// lost, nor given twice.
pub(super) struct Orders(UnixStream);

/// Why a sleep ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WakeReason {
    /// The main thread orders to release the lock.
    ReleaseOrdered,
    /// The session's socket is readable; or it is unknown, and the session should be checked.
    SocketReadable,
    /// The next heartbeat is due.
    HeartbeatDue,
}

/// How often to check a session whose socket is unknown.
const BLIND_CHECK_INTERVAL: Duration = Duration::from_millis(250);

impl Orders {
    pub(super) fn new(receiver: UnixStream) -> Orders {
        Orders(receiver)
    }

    /// Sleeps until the order to release, or for `pause`. Returns whether the order has come.
    pub(super) fn is_release_ordered_within(&self, pause: Duration) -> bool {
        let order = PollFd::new(self.0.as_fd(), PollFlags::POLLIN);
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
            let mut fds = vec![PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
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
                Ok(_) => return WakeReason::ReleaseOrdered,
                Err(_) => {}
            }
        }
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

    #[test]
    fn a_due_heartbeat_does_not_wait_for_a_silent_server() {
        let (order, receiver) = UnixStream::pair().expect("a pair of sockets");
        let orders = Orders::new(receiver);
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
