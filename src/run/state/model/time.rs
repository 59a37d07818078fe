//! Discrete time: a tick is a second, and now is always the same instant.
//!
//! Times are relative to now, and time passes by moving them into the past. So two worlds that behave alike are equal,
//! however much time has passed in each, and there are finitely many.

use crate::run::session::timing::Timing;
use crate::run::state::{Phase, RunState};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A number of ticks, or a time relative to now.
pub(super) type Ticks = i8;

const TICK: Duration = Duration::from_secs(1);
/// How far in the past times differ. No decision depends on more.
pub(super) const OLDEST: Ticks = -16;

/// Returns the instant that is now in every world.
pub(super) fn now() -> Instant {
    static NOW: OnceLock<Instant> = OnceLock::new();
    *NOW.get_or_init(|| Instant::now() + Duration::from_secs(3600))
}

/// Returns the instant that is this far from now.
pub(super) fn at(ticks: Ticks) -> Instant {
    let distance = TICK * u32::from(ticks.unsigned_abs());
    if ticks < 0 { now() - distance } else { now() + distance }
}

/// The timing rule in ticks.
#[derive(Clone, Copy, Debug)]
pub(super) struct TickTiming {
    /// H, and D as well.
    pub(super) heartbeat: Ticks,
    /// H + D + G.
    pub(super) job_limit: Ticks,
    /// H + D + G and the margin.
    pub(super) server_limit: Ticks,
}

impl TickTiming {
    pub(super) fn new(timing: Timing) -> TickTiming {
        TickTiming {
            heartbeat: timing.heartbeat.as_secs() as Ticks,
            job_limit: timing.job_limit().as_secs() as Ticks,
            server_limit: timing.server_limit().as_secs() as Ticks,
        }
    }

    pub(super) fn timing(heartbeat: u64, kill_after: u64) -> Timing {
        Timing {
            heartbeat: Duration::from_secs(heartbeat),
            kill_after: Duration::from_secs(kill_after),
        }
    }
}

/// Lets a tick pass for the state machine.
pub(super) fn pass_tick(state: &mut RunState) {
    match &mut state.phase {
        Phase::LeavingQueue { until, .. } | Phase::KeepingLock { until, .. } | Phase::Releasing { until, .. } => {
            move_back(until, OLDEST);
        }
        Phase::Terminating { kill_at, .. } => move_back(kill_at, OLDEST),
        Phase::Killing { leader_exited_at } => {
            if let Some(at) = leader_exited_at {
                move_back(at, OLDEST);
            }
        }
        Phase::Acquiring { .. } | Phase::Starting | Phase::Running | Phase::Finished => {}
    }
    let times = [&mut state.report_due, &mut state.overslept_due];
    for time in times.into_iter().flatten() {
        move_back(time, OLDEST);
    }
    if let Some(until) = &mut state.min_hold_until {
        // It is only compared with now.
        move_back(until, -1);
    }
}

fn move_back(time: &mut Instant, oldest: Ticks) {
    *time = (*time - TICK).max(at(oldest));
}
