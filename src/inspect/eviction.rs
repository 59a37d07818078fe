//! Who evicted a session.
//!
//! The server tells an evicted session only that an administrator terminated its connection. So `pglock evict` holds an
//! eviction mark while it terminates a session, and for a second longer; the holder of that lock is the evictor.

use crate::lock::{IN_THIS_DATABASE, NOT_DEFERRABLE, QueryResult};
use crate::protocol::{derived_keys, name};
use postgres::Client;

/// Returns who evicted the backend with this process ID, if it was `pglock evict`: user, host, process and role.
///
/// # Errors
/// The connection is lost.
pub(crate) fn by_whom(client: &mut Client, backend_pid: i32) -> Result<Option<String>, postgres::Error> {
    let (classid, objid, objsubid) = derived_keys::eviction_mark(backend_pid).in_pg_locks();
    let sql = format!(
        "{NOT_DEFERRABLE}SELECT application_name, usename \
         FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a USING (pid) \
         WHERE l.locktype = 'advisory' AND l.objsubid = {objsubid} AND l.classid = {classid} AND l.objid = {objid} \
         AND l.granted AND l.{IN_THIS_DATABASE} LIMIT 1",
    );
    let result = QueryResult::fetch(client, &sql)?;
    let application_name = result.get("application_name").unwrap_or_default();
    let role = result.get("usename").unwrap_or_default();
    Ok(name::evictor(application_name).map(|evictor| format!("{evictor} as role {role:?}")))
}
