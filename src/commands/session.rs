//! The session of a subcommand that runs no job.

use crate::connection::{Client, LimitEnforcement, Settings};
use crate::lock;
use crate::outcome::Failure;
use std::time::Instant;

/// Opens a session, uses it, and explains its failures.
///
/// # Errors
/// The connection fails, or the use of it does.
pub(super) fn with_client<T>(
    settings: &Settings,
    application_name: &str,
    use_client: impl FnOnce(&mut Client) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut client = settings.open(application_name, None, LimitEnforcement::Attempt)?.client;
    let began = Instant::now();
    use_client(&mut client).map_err(|failure| {
        let reconnect = || lock::reconnect_to_probe(settings, application_name);
        let failure = lock::explain_first_failure(failure, &client, began.elapsed(), reconnect);
        client.explain(failure)
    })
}
