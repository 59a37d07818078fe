//! Ending sessions of a pool that hold a lock for no client that could be named.

use super::target::Target;
use super::terminate::{announce, wait_until_gone};
use crate::connection::{Client, Settings};
use crate::key;
use crate::lock::QueryResult;
use crate::outcome::Failure;
use crate::protocol::name;
use crate::ui::stdout;
use postgres::error::SqlState;

/// Ends sessions of a pool that hold a lock for no client that could be named, and prints a line for each.
///
/// No mark is left, since no pglock holds that lock; one that may is asked first (see [`super::request`]). The name of
/// such a session changes with each client of the pool, so it is not compared: what counts is that it still holds the
/// lock. The session may be the one that the pool has lent to us: then ours ends with it.
///
/// # Errors
/// Our role may not terminate the session, it does not terminate, the connection is lost, or standard output cannot be
/// written.
pub(super) fn terminate_leftovers(
    client: &mut Client,
    settings: &Settings,
    leftovers: &[Target],
    force: bool,
) -> Result<(), Failure> {
    for target in leftovers {
        let backend = target.backend;
        let Some(pid) = backend.pid else { continue };
        let sql = format!(
            "SELECT pg_catalog.pg_terminate_backend(pid) AS terminated FROM pg_catalog.pg_stat_activity a \
             WHERE pid = {pid} AND usename = {} AND {}",
            key::sql_literal(&backend.user),
            target.has_lock(),
        );
        let is_terminated = match QueryResult::fetch(client.asking("to terminate a session of the pool"), &sql) {
            Ok(result) => result.is_true("terminated"),
            Err(error)
                if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) || client.has_stopped_responding() =>
            {
                return Err(error.into());
            }
            Err(_) => {
                *client = settings.reopen(&name::for_evict())?.client;
                true
            }
        };
        if is_terminated {
            wait_until_gone(client, pid)?;
            if !force {
                announce(backend, "cannot be asked");
            }
        }
        stdout::print(&if is_terminated {
            format!("evicted {backend}\n")
        } else {
            format!("{backend} was already gone\n")
        })?;
    }
    Ok(())
}
