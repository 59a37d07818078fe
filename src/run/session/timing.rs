//! The timing rule: how long a lost session can go unnoticed, and when the server releases its lock.

use std::time::{Duration, Instant};

/// How long a pooler may let a query wait for a free session of its pool: PgBouncer's default (`query_wait_timeout`).
pub(super) const MAX_POOL_WAIT: Duration = Duration::from_secs(120);

/// The timing rule, a lease without leases.
///
/// We sent the last query that the server received at most one heartbeat interval ago. We notice its missing reply
/// within the reply deadline, and the job is dead within the grace period after that. The server waits longer than all
/// of this before it ends a silent session, so after a network failure the job is dead before another client can
/// acquire the lock. No clocks are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Timing {
    /// H, the interval between heartbeats, and D, the time allowed for each reply.
    pub heartbeat: Duration,
    /// G, the time between SIGTERM and SIGKILL for a job that must end.
    pub kill_after: Duration,
}

impl Timing {
    /// Time between the latest end of the job and the earliest release by the server: for the kernel to deliver SIGKILL
    /// on a busy machine, and for the coarse timers of TCP.
    pub(crate) const MARGIN: Duration = Duration::from_secs(3);

    /// Returns the time between two heartbeats: a little less than H. The main thread sleeps until the reply to the
    /// next heartbeat is due, H + D after the last one that it knows of. By then the reply to the one after that has
    /// come too, so that it wakes only at every other heartbeat.
    pub(super) fn heartbeat_interval(self) -> Duration {
        self.heartbeat - self.heartbeat / 50
    }

    /// Returns H + D + G, the longest that the job may run after the server last received something from us.
    pub(crate) fn job_limit(self) -> Duration {
        self.heartbeat * 2 + self.kill_after
    }

    /// Returns how long the server must wait before it ends a silent session.
    pub(crate) fn server_limit(self) -> Duration {
        self.job_limit() + Timing::MARGIN
    }

    /// Returns how long a reply may take wherever one query follows another: as long as a holder's from one heartbeat
    /// to the reply to the next, H + D.
    pub(crate) fn reply_limit(self) -> Duration {
        self.heartbeat * 2
    }

    /// Returns by when the reply to the next heartbeat is due if the last query was sent at `query_sent`: H + D later.
    pub(super) fn next_reply_deadline(self, query_sent: Instant) -> Instant {
        query_sent + self.reply_limit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_job_is_dead_before_the_server_releases_the_lock() {
        let timing = Timing {
            heartbeat: Duration::from_secs(5),
            kill_after: Duration::from_secs(10),
        };
        assert_eq!(timing.job_limit(), Duration::from_secs(20));
        assert_eq!(timing.server_limit(), Duration::from_secs(23));
    }

    #[test]
    fn the_main_thread_wakes_at_every_other_heartbeat() {
        let timing = Timing {
            heartbeat: Duration::from_secs(5),
            kill_after: Duration::from_secs(10),
        };
        let (start, round_trip) = (Instant::now(), Duration::from_millis(100));
        let second_reply = start + timing.heartbeat_interval() * 2 + round_trip;
        assert!(second_reply < timing.next_reply_deadline(start));
    }
}
