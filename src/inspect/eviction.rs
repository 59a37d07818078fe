//! Who evicts a session.
//!
//! `pglock evict` holds an eviction mark, a lock that stands for the backend of the session, while it requests the
//! session to terminate its job or terminates the session. The server tells a terminated session only that an
//! administrator did it. The holder of the mark is the evictor.

use super::backend::FORGET_SESSIONS;
use crate::connection::Client;
use crate::lock::QueryResult;
use crate::protocol::{derived_keys, name};

/// A client that holds an eviction mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Evictor {
    /// User, host, process and role.
    pub description: String,
    /// Whether its role may terminate the session of the role that asks, as `pg_terminate_backend` decides.
    pub is_authorized: bool,
    /// Whether the key must be free at once, even while the job is still being terminated.
    pub is_forced: bool,
}

/// Returns who evicts the backend with this process ID, if a `pglock evict` has marked it. An authorized one comes
/// first, and of these one that forces it. Must be asked by a session of the role that the backend's session has: the
/// holder itself asks within the transaction to which its lock may belong, where any error would release the lock.
///
/// # Errors
/// The server reports an error, or the connection is lost.
pub(crate) fn find_evictor(client: &mut Client, backend_pid: i32) -> Result<Option<Evictor>, postgres::Error> {
    let (classid, objid, objsubid) = derived_keys::eviction_mark(backend_pid).in_pg_locks();
    let (forced_class, _, _) = derived_keys::forced_eviction_mark(backend_pid).in_pg_locks();
    let is_authorized = may_evict_condition("a.usesysid", "own.usesysid");
    let sql = format!(
        "{FORGET_SESSIONS}SELECT a.application_name, pg_catalog.pg_get_userbyid(a.usesysid) AS role, \
         {is_authorized} AS authorized, EXISTS (SELECT 1 FROM pg_catalog.pg_locks f WHERE f.locktype = 'advisory' \
         AND f.objsubid = {objsubid} AND f.classid = {forced_class} AND f.objid = {objid} AND f.pid = l.pid AND f.granted) \
         AS forced \
         FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid \
         CROSS JOIN (SELECT usesysid FROM pg_catalog.pg_stat_activity WHERE pid = pg_catalog.pg_backend_pid()) AS own \
         WHERE l.locktype = 'advisory' AND l.objsubid = {objsubid} AND l.classid = {classid} AND l.objid = {objid} \
         AND l.granted ORDER BY authorized DESC, forced DESC LIMIT 1",
    );
    let result = QueryResult::fetch(client, &sql)?;
    let application_name = result.get("application_name").unwrap_or_default();
    let role = result.get("role").unwrap_or_default();
    Ok(name::evictor(application_name).map(|evictor| Evictor {
        description: format!("{evictor} as role {role:?}"),
        is_authorized: result.is_true("authorized"),
        is_forced: result.is_true("forced"),
    }))
}

/// Returns the condition that one role may terminate a session of another: `pg_terminate_backend`'s rule. Both are SQL
/// expressions for an OID.
pub(crate) fn may_evict_condition(evictor: &str, owner: &str) -> String {
    format!(
        "coalesce(pg_catalog.pg_has_role({evictor}, {owner}, 'USAGE') \
         OR pg_catalog.pg_has_role({evictor}, 'pg_signal_backend'::pg_catalog.name, 'USAGE') \
         AND NOT (SELECT rolsuper FROM pg_catalog.pg_roles WHERE oid = {owner}), false)"
    )
}
