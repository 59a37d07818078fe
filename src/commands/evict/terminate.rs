//! Terminating sessions: those of other clients, and of a pglock that does not react.

use crate::connection::Client;
use crate::inspect::backend::{Backend, FORGET_SESSIONS};
use crate::key;
use crate::lock::QueryResult;
use crate::outcome::{ExitCode, Failure};
use postgres::error::SqlState;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a backend may take to terminate. One that is stopped or blocked on a disk takes longer.
const TERMINATION_TIMEOUT: Duration = Duration::from_secs(10);
/// How often to look whether the backends have terminated.
const TERMINATION_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Terminates the session. Returns whether it was still the session that was shown.
///
/// # Errors
/// Our role lacks the privilege, or the connection is lost.
pub(super) fn terminate(client: &mut Client, pid: i32, shown: &Backend) -> Result<bool, Failure> {
    let sql = format!(
        "{FORGET_SESSIONS}SELECT pg_catalog.pg_terminate_backend(pid) AS terminated FROM pg_catalog.pg_stat_activity a \
         WHERE pid = {pid} AND usename = {} AND application_name = {} AND EXISTS (\
         SELECT 1 FROM pg_catalog.pg_locks l WHERE l.pid = {pid} AND l.locktype = 'advisory')",
        key::sql_literal(&shown.user),
        key::sql_literal(&shown.application_name),
    );
    let result =
        QueryResult::fetch(client.asking("to terminate the session"), &sql).map_err(|error| explain(error, shown))?;
    Ok(result.is_true("terminated"))
}

/// Waits until none of these backends holds or waits for an advisory lock.
///
/// # Errors
/// [`ExitCode::Conflict`] if one has not gone within [`TERMINATION_TIMEOUT`], or the connection is lost.
pub(super) fn wait_until_gone(client: &mut Client, pids: &[i32]) -> Result<(), Failure> {
    if pids.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = pids.iter().map(i32::to_string).collect();
    let list = list.join(", ");
    let sql = format!(
        "SELECT EXISTS (\
         SELECT 1 FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND pid IN ({list})) AS present"
    );
    client.asking("for the terminated session");
    let start = Instant::now();
    while QueryResult::fetch(client, &sql)?.is_true("present") {
        if start.elapsed() > TERMINATION_TIMEOUT {
            let backends = if pids.len() == 1 { "backend" } else { "backends" };
            return Err(Failure::msg(
                ExitCode::Conflict,
                format!(
                    "{backends} {list} did not terminate within {}s",
                    TERMINATION_TIMEOUT.as_secs()
                ),
            ));
        }
        sleep(TERMINATION_POLL_INTERVAL);
    }
    Ok(())
}

/// Adds the remedy to an error that says that our role lacks the privilege.
fn explain(error: postgres::Error, backend: &Backend) -> Failure {
    if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) {
        unauthorized(backend)
    } else {
        Failure::from(error)
    }
}

/// The failure of a role that may not evict the session.
pub(super) fn unauthorized(backend: &Backend) -> Failure {
    let owner = &backend.user;
    Failure::msg(
        ExitCode::Permission,
        format!(
            "this role may not evict {backend}, a session of role {owner:?}: GRANT pg_signal_backend to it, or \
             connect as role {owner:?}; only a superuser may terminate a superuser's session"
        ),
    )
}
