//! Rows of `pg_locks` that come late.
//!
//! YugabyteDB, for one, hides the row of a lock for about the first second. So a lock that the server reports as
//! acquired and that is not in `pg_locks` yet is looked for again, for a limited time, before it is refused. It counts
//! as acquired only when its row was seen, as any other.
//!
//! That is for a backend of our own. One that may have had other clients can hold the key for one of them, whose row
//! comes late as well, and would prove what is not ours.

use super::query::QueryResult;
use super::types::{Keys, Lock, TryOutcome};
use crate::connection::Client;
use crate::outcome::{ExitCode, Failure};
use std::time::{Duration, Instant};

/// How long the row of a lock may take.
const MAX_DELAY: Duration = Duration::from_secs(3);

/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(100);

impl Lock {
    /// Looks for the rows of a lock that the server reported as acquired without showing them, on a backend that has
    /// had no other client. Every other outcome is returned unchanged.
    ///
    /// Between two looks, `pause` sleeps. It returns whether to go on.
    ///
    /// # Errors
    /// The wait was interrupted, the server reports an error, or the connection is lost.
    pub(crate) fn await_proof(
        &self,
        client: &mut Client,
        outcome: TryOutcome,
        mut pause: impl FnMut(Duration) -> bool,
    ) -> Result<TryOutcome, Failure> {
        let TryOutcome::Unproven { backend_pid, key_index } = outcome else {
            return Ok(outcome);
        };
        let keys = match &self.keys {
            Keys::All(ids) => ids.clone(),
            Keys::OneOf { keys, .. } => vec![keys[key_index]],
        };
        let acquired = Lock {
            keys: Keys::All(keys),
            ..*self
        };
        let sql = acquired.late_proof();
        let began = Instant::now();
        while began.elapsed() < MAX_DELAY {
            if !pause(PAUSE) {
                return Err(Failure::msg(ExitCode::Unavailable, "interrupted"));
            }
            let result = QueryResult::fetch(client, &sql)?;
            // Another backend's row would be another client's.
            if result.backend_pid() != backend_pid {
                break;
            }
            let proven = result.prove(&acquired.keys, key_index);
            if matches!(proven, TryOutcome::Acquired(_)) {
                return Ok(proven);
            }
        }
        Ok(outcome)
    }
}
