//! Terminating sessions: those of other clients, and of a pglock that does not react.

use super::target::Target;
use crate::connection::Client;
use crate::inspect::backend::{Backend, FORGET_SESSIONS};
use crate::inspect::eviction::may_evict_condition;
use crate::key;
use crate::lock::QueryResult;
use crate::outcome::{ExitCode, Failure};
use crate::ui::message;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a backend may take to terminate. One that is stopped or blocked on a disk takes longer.
const TERMINATION_TIMEOUT: Duration = Duration::from_secs(10);
/// How often to look whether the backends have terminated.
const TERMINATION_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Terminates the session. Returns whether it was still the session that was shown, with one of the locks. A pglock
/// that waits has none between two stays in the queue; it is known by its name.
///
/// # Errors
/// Our role lacks the privilege, or the connection is lost.
pub(super) fn terminate(client: &mut Client, pid: i32, target: &Target) -> Result<bool, Failure> {
    let shown = target.backend;
    let condition = if !target.is_holder && shown.is_pglock() {
        "true".to_owned()
    } else {
        target.has_lock()
    };
    let sql = format!(
        "{FORGET_SESSIONS}SELECT pg_catalog.pg_terminate_backend(pid) AS terminated FROM pg_catalog.pg_stat_activity a \
         WHERE pid = {pid} AND usename = {} AND application_name = {} AND {condition}",
        key::sql_literal(&shown.user),
        key::sql_literal(&shown.application_name),
    );
    let result = QueryResult::fetch(client.asking("to terminate the session"), &sql)?;
    Ok(result.is_true("terminated"))
}

/// Says that a session was terminated although its pglock was not asked, or has not answered.
pub(super) fn announce(backend: &Backend, reason: &str) {
    message::notice(format_args!(
        "{backend} {reason}; terminated its session, although its job may still run"
    ));
}

/// Which of the roles of our session must have the right to evict: they differ if it has switched to another role.
#[derive(Clone, Copy, Debug)]
pub(super) enum Evictor {
    /// The one that logged in, which a holder that is asked sees.
    Login,
    /// The current one, as which the server terminates a session.
    Current,
}

/// Checks that this role of ours may evict the session.
///
/// # Errors
/// [`ExitCode::Permission`] if it may not, or the connection is lost.
pub(super) fn check_authorization(client: &mut Client, backend: &Backend, evictor: Evictor) -> Result<(), Failure> {
    let Some(pid) = backend.pid else { return Ok(()) };
    let role = match evictor {
        Evictor::Login => "session_user",
        Evictor::Current => "current_user",
    };
    let sql = format!(
        "SELECT {} AS authorized, {role} AS role FROM pg_catalog.pg_stat_activity a WHERE pid = {pid}",
        may_evict_condition(
            &format!("(SELECT oid FROM pg_catalog.pg_roles WHERE rolname = {role})"),
            "a.usesysid"
        )
    );
    let result = QueryResult::fetch(client.asking("for the right to evict the holder"), &sql)?;
    if result.get("authorized") == Some("f") {
        return Err(unauthorized(backend, result.get("role").unwrap_or_default()));
    }
    Ok(())
}

/// Returns whether this backend holds or waits for an advisory lock.
///
/// # Errors
/// The connection is lost.
fn has_advisory_lock(client: &mut Client, pid: i32) -> Result<bool, Failure> {
    let sql = format!(
        "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND pid = {pid}) AS present"
    );
    Ok(QueryResult::fetch(client, &sql)?.is_true("present"))
}

/// Waits until this backend neither holds nor waits for an advisory lock.
///
/// # Errors
/// [`ExitCode::Conflict`] if it has not gone within [`TERMINATION_TIMEOUT`], or the connection is lost.
pub(super) fn wait_until_gone(client: &mut Client, pid: i32) -> Result<(), Failure> {
    client.asking("for the terminated session");
    let start = Instant::now();
    while has_advisory_lock(client, pid)? {
        if start.elapsed() > TERMINATION_TIMEOUT {
            return Err(Failure::msg(
                ExitCode::Conflict,
                format!(
                    "backend {pid} did not terminate within {}s",
                    TERMINATION_TIMEOUT.as_secs()
                ),
            ));
        }
        sleep(TERMINATION_POLL_INTERVAL);
    }
    Ok(())
}

/// The failure of a role that may not evict the session.
fn unauthorized(backend: &Backend, role: &str) -> Failure {
    let owner = &backend.user;
    Failure::msg(
        ExitCode::Permission,
        format!(
            "role {role:?} may not evict {backend}, a session of role {owner:?}: GRANT pg_signal_backend to it, or \
             become role {owner:?}; only a superuser may terminate a superuser's session"
        ),
    )
}
