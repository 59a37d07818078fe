//! Opening the session's connection while the main thread watches the time.

use super::plan::SessionPlan;
use super::reporter::Reporter;
use crate::connection::{Connection, LimitEnforcement};
use crate::outcome::{ExitCode, Failure};
use crate::sys;
use crate::ui::message;
use std::sync::Once;
use std::time::Duration;

/// The most descriptors that a connection needs: the socket and its duplicate, those of the client library, of name
/// resolution and of certificates.
const DESCRIPTOR_HEADROOM: usize = 12;

/// Opens the connection that is to hold the lock.
///
/// # Errors
/// [`ExitCode::Internal`] if too few descriptors are free; else as for
/// [`Settings::open`](crate::connection::Settings::open).
pub(super) fn connect(
    plan: &SessionPlan,
    reporter: &Reporter,
    enforcement: LimitEnforcement,
) -> Result<Connection, Failure> {
    sys::check_free_descriptors(DESCRIPTOR_HEADROOM).map_err(|error| {
        // Where the wait endures, it goes on: what uses them up may end.
        Failure::new(ExitCode::Internal, error)
            .context("too few file descriptors left to connect (see ulimit -n)")
            .transient_if(true)
    })?;
    let connection = open_within(plan, reporter, enforcement)?;
    if connection.socket.is_none() {
        // Once for all connections of a wait.
        static SAID: Once = Once::new();
        SAID.call_once(|| {
            message::error(
                "cannot tell which descriptor is the session's socket: a lost session is noticed later, \
                 and the job does not inherit the connection",
            );
        });
    }
    Ok(connection)
}

/// Opens a further connection with the name of the session, to see what ends it. So does a reply that takes longer
/// than `limit`: the main thread can only shut down the session's own socket.
///
/// # Errors
/// Connecting fails; see [`Settings::open`](crate::connection::Settings::open).
pub(super) fn open_to_probe(plan: &SessionPlan, reporter: &Reporter, limit: Duration) -> Result<Connection, Failure> {
    let mut watch = |limit| reporter.expect_within(limit);
    let settings = plan.settings.clone().with_reply_limit(limit);
    settings.open(&plan.application_name(), Some(&mut watch), LimitEnforcement::Attempt)
}

/// Opens a connection; `enforcement` says who ends a step that takes too long.
///
/// # Errors
/// Connecting fails; see [`Settings::open`](crate::connection::Settings::open).
fn open_within(plan: &SessionPlan, reporter: &Reporter, enforcement: LimitEnforcement) -> Result<Connection, Failure> {
    let mut watch = |limit| reporter.expect_within(limit);
    plan.settings
        .open(&plan.application_name(), Some(&mut watch), enforcement)
}
