//! The defaults and limits of the options, shared by the help text, the manual and the validation.

// These two are also the defaults of the wings below.
pub(super) use crate::connection::DEFAULT_CONNECT_TIMEOUT;
pub(super) use crate::key::DEFAULT_SCHEME;

use crate::lock::ScopeChoice;
use crate::outcome::ExitCode;
use crate::run::state::OnLost;
use std::ops::RangeInclusive;
use std::time::Duration;

pub(super) const DEFAULT_CONFLICT_EXIT_CODE: u8 = ExitCode::Conflict as u8;
pub(super) const DEFAULT_MIN_HOLD: Duration = Duration::ZERO;
pub(super) const DEFAULT_ON_LOST: OnLost = OnLost::Stop;
pub(super) const DEFAULT_SCOPE: ScopeChoice = ScopeChoice::Auto;
pub(super) const DEFAULT_KILL_AFTER: Duration = Duration::from_secs(10);
pub(super) const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(5);
pub(super) const DEFAULT_LAST: u32 = 20;
pub(super) const DEFAULT_POLL: Duration = Duration::from_secs(5);

/// The server's limit for a silent client is computed from these, and Linux accepts no keepalive above 32767 s.
const MAX_INTERVAL: Duration = Duration::from_secs(3600);

/// With a shorter heartbeat, a busy but healthy server would look dead.
pub(super) const HEARTBEAT_RANGE: RangeInclusive<Duration> = Duration::from_millis(100)..=MAX_INTERVAL;
pub(super) const KILL_AFTER_RANGE: RangeInclusive<Duration> = Duration::ZERO..=MAX_INTERVAL;
/// Polling more often would add load without benefit.
pub(super) const POLL_RANGE: RangeInclusive<Duration> = Duration::from_millis(10)..=MAX_INTERVAL;
