//! `pglock run`: from validated options to a supervised run.

use crate::connection::Settings;
use crate::outcome::{ExitCode, Failure, Outcome};
use crate::run::options::RunOptions;
use crate::run::signals::BlockedSignals;
use crate::run::supervisor;
use crate::ui::message;
use std::time::Instant;

/// Runs the command under the lock. `--wait` counts from `started`.
///
/// # Errors
/// Fails if the connection settings are invalid or signals cannot be blocked.
pub(crate) fn run(options: RunOptions, started: Instant) -> Result<Outcome, Failure> {
    message::set_verbosity(options.verbosity);
    let settings = Settings::from_options(&options.connection)?;
    let blocked = BlockedSignals::block_all().map_err(|error| Failure::new(ExitCode::Internal, error))?;
    supervisor::run(options, settings, started, blocked)
}
