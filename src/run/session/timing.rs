//! The timing rule: how long a lost session can go unnoticed, and when the server gives its lock away.

use std::time::Duration;

/// The timing rule, a lease without leases. The last message that the server received from us was sent at most
/// one period ago; its missing answer is noticed within the deadline, and the job is dead within the grace
/// after that. The server's own limit on a silent client is longer than all of it, so that on a network cut the
/// job is dead before the lock can be given to another. No clocks are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// H: how often the server is asked for a sign of life; and D: how long it may take to give it.
    pub heartbeat: Duration,
    /// G: how long a job that is being stopped has between TERM and KILL.
    pub kill_after: Duration,
}

impl Timing {
    /// What lies between the job's latest end and the server's earliest giving away: for the kernel to deliver a
    /// KILL on a busy machine, and for the coarse timers of TCP.
    const MARGIN: Duration = Duration::from_secs(3);

    /// H + D + G: how long after the server last heard of us the job may run.
    pub fn job_limit(self) -> Duration {
        self.heartbeat * 2 + self.kill_after
    }

    /// After how long a silence the server gives the lock away.
    pub fn server_limit(self) -> Duration {
        self.job_limit() + Timing::MARGIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_job_is_dead_before_the_server_gives_the_lock_away() {
        let timing = Timing {
            heartbeat: Duration::from_secs(5),
            kill_after: Duration::from_secs(10),
        };
        assert_eq!(timing.job_limit(), Duration::from_secs(20));
        assert_eq!(timing.server_limit(), Duration::from_secs(23));
    }
}
