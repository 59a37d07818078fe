//! Findings about the server, the role and the connection.

use super::query::{fetch_all, fetch_one, is_true, text};
use super::report::Finding;
use crate::connection::Client;
use crate::inspect::proxy::ForwardedConnection;
use crate::key::KeyId;
use crate::lock::{Scope, ScopeChoice, Server, cell};
use crate::outcome::Failure;
use crate::run::session::timing::Timing;

/// Returns what the server is.
pub(super) fn product(server: &Server, choice: ScopeChoice) -> Finding {
    if let Some(stub) = server.stub(choice) {
        return Finding::refusal("server", stub.description()).with_remedy(stub.remedy());
    }
    let version = server.version.as_str();
    // As in "PostgreSQL 15.20 (Debian 15.20-0+deb12u1) on x86_64-pc-linux-gnu, compiled by gcc".
    let short = version.split(" on ").next().unwrap_or(version);
    if version.starts_with("PostgreSQL ") && !version.contains("-YB-") {
        return Finding::ok("server", short);
    }
    Finding::warning("server", format!("{short}; pglock is tested with PostgreSQL only"))
        .with_remedy("the lock below shows whether this server's locks are real")
}

/// Returns the database to which the locks belong.
pub(super) fn database(server: &Server) -> Finding {
    if matches!(server.database.as_str(), "template0" | "template1") {
        let fact = format!(
            "{}, a template database: CREATE DATABASE fails while a lock is held",
            server.database
        );
        let remedy = "connect to another database, the same one for every client";
        return Finding::warning("database", fact).with_remedy(remedy);
    }
    Finding::ok(
        "database",
        format!(
            "{}; locks are per database, so every client must use this one",
            server.database
        ),
    )
}

/// Returns our role, and what it can see of other sessions.
///
/// # Errors
/// The query fails, or the connection is lost.
pub(super) fn role(client: &mut Client) -> Result<Finding, Failure> {
    let row = fetch_one(
        client,
        "SELECT current_user AS role, pg_catalog.quote_ident(current_user) AS quoted, \
         pg_catalog.pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS sees_all",
    )?;
    let role = text(&row, "role");
    if is_true(&row, "sees_all") {
        return Ok(Finding::ok(
            "role",
            format!("{role}, which sees all details of lock holders"),
        ));
    }
    let fact = format!("{role}, which sees who holds a lock, but not since when or from which address");
    Ok(Finding::ok("role", fact).with_remedy(format!(
        "GRANT pg_read_all_stats TO {} to show these too",
        text(&row, "quoted")
    )))
}

/// Returns that the session's socket was not found among the descriptors.
pub(super) fn unknown_socket() -> Finding {
    let fact = "cannot tell which descriptor is the session's; a lost session is noticed later, and kill -9 of pglock \
                releases the lock while the job runs";
    Finding::warning("socket", fact).with_remedy("close unneeded descriptors before starting pglock, and mount /proc")
}

/// Returns whether the connection goes through a pooler, and the lifetime of a lock.
pub(super) fn connection(server: &Server, choice: ScopeChoice) -> Finding {
    let path = if server.pooled { "through a pooler" } else { "direct" };
    let scope = match server.scope(choice) {
        Ok(scope) => scope.name(),
        Err(failure) => return Finding::refusal("connection", failure.to_string()),
    };
    let fact = format!("{path}; a lock lives as long as its {scope}");
    if server.pooled && choice == ScopeChoice::SessionPooled {
        return Finding::warning("connection", fact)
            .with_remedy("safe only if the pooler pools whole sessions and resets them");
    }
    Finding::ok("connection", fact)
}

/// Returns that something forwards the connection, and what the timing rule still guarantees.
pub(super) fn proxy(forwarded: ForwardedConnection, timing: Timing) -> Finding {
    let job_limit = timing.job_limit().as_secs_f64();
    let remedy = format!(
        "a proxy or address translation is in between; behind a proxy, the job is still dead within {job_limit} s after \
         the network fails, but the lock of a vanished host stays until the proxy notices (its keepalives and user \
         timeout; ClientAliveInterval of sshd)"
    );
    Finding::warning("proxy", forwarded.to_string()).with_remedy(remedy)
}

/// Returns whether the server is a primary.
pub(super) fn recovery(server: &Server) -> Finding {
    if server.standby {
        return Finding::refusal("recovery", "a hot standby, whose locks the primary does not see")
            .with_remedy("connect to the primary, or give all hosts with target_session_attrs=primary");
    }
    Finding::ok("recovery", "a primary")
}

/// Returns that a fencing token may not survive a crash of the server's host, if the server does not wait for its disk.
///
/// # Errors
/// The query fails, or the connection is lost.
pub(super) fn durability(client: &mut Client) -> Result<Option<Finding>, Failure> {
    if crate::lock::is_token_durable(client)? {
        return Ok(None);
    }
    let fact = "fsync is off: after a crash of the server's host, a --token can be lower than an earlier one";
    let remedy = "set fsync = on, without which such a crash can also corrupt all data";
    Ok(Some(Finding::warning("durability", fact).with_remedy(remedy)))
}

/// Returns whether the connection is encrypted; behind a pooler, the one between the pooler and the server.
///
/// # Errors
/// The query fails, or the connection is lost.
pub(super) fn encryption(
    client: &mut Client,
    server: &Server,
    forwarded: Option<ForwardedConnection>,
) -> Result<Finding, Failure> {
    let row = fetch_one(
        client,
        "SELECT ssl, version, cipher, pg_catalog.inet_client_addr() IS NULL AS local, \
         pg_catalog.quote_ident(current_user) AS quoted \
         FROM (SELECT pg_catalog.pg_backend_pid() AS pid) AS own LEFT JOIN pg_catalog.pg_stat_ssl USING (pid)",
    )?;
    let between = if server.pooled {
        " between the pooler and the server"
    } else {
        ""
    };
    if is_true(&row, "ssl") {
        let (version, cipher) = (text(&row, "version"), text(&row, "cipher"));
        return Ok(Finding::ok("TLS", format!("{version}, {cipher}{between}")));
    }
    let is_local = match forwarded {
        Some(forwarded) => forwarded.is_local(),
        None => is_true(&row, "local"),
    };
    if is_local {
        return Ok(Finding::ok("TLS", format!("not needed on a Unix socket{between}")));
    }
    // From version 12 on, the view has no row for a session that logged in as a role of which the current one lacks the
    // privileges.
    if cell(&row, "ssl").is_none() {
        let remedy = format!("GRANT pg_read_all_stats TO {} to show it", text(&row, "quoted"));
        return Ok(Finding::warning("TLS", format!("unknown{between}, hidden from this role")).with_remedy(remedy));
    }
    let remedy = if server.pooled {
        "set server_tls_sslmode in the pooler"
    } else {
        "sslmode=require encrypts, sslmode=verify-full also authenticates the server"
    };
    Ok(Finding::warning("TLS", format!("none{between}")).with_remedy(remedy))
}

/// What `check` has seen of how a pooler lends its backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SeenLending {
    /// There is no pooler.
    Direct,
    /// Two transactions ran on different backends: the pooler lends by the transaction.
    ByTransaction,
    /// All ran on the same one.
    SameBackend,
}

/// Returns how the pooler lends its backends, if there is one.
pub(super) fn pooling(lending: SeenLending) -> Option<Finding> {
    let fact = match lending {
        SeenLending::Direct => return None,
        SeenLending::ByTransaction => "transaction pooling: two transactions ran on different backends",
        SeenLending::SameBackend => {
            "all transactions ran on one backend: session pooling, or transaction pooling with few clients"
        }
    };
    Some(Finding::ok("pooling", fact))
}

/// Returns how `run` would wait for a lock. An empty DO block requires the same privilege as one that waits.
///
/// # Errors
/// The connection is lost.
pub(super) fn waiting(client: &mut Client, scope: Option<Scope>, lending: SeenLending) -> Result<Finding, Failure> {
    const SUBJECT: &str = "waiting";
    if scope == Some(Scope::Transaction) || lending != SeenLending::Direct {
        let detail = match (scope, lending) {
            (Some(Scope::Session), _) => "; between tries a waiter occupies no session of the pool, except with --fair",
            (_, SeenLending::Direct) => "",
            (_, SeenLending::ByTransaction) => "; between tries a waiter occupies no session of the pool",
            (_, SeenLending::SameBackend) => {
                "; a waiter reconnects between tries and occupies no session of the pool meanwhile"
            }
        };
        return Ok(Finding::ok(
            SUBJECT,
            format!("by polling, at most --poll apart{detail}"),
        ));
    }
    match crate::lock::simple_query(client, "DO $$ BEGIN END $$") {
        Ok(_) => Ok(Finding::ok(SUBJECT, "in the server's queue")),
        Err(error) if error.as_db_error().is_none() => Err(Failure::from(error)),
        Err(error) => {
            let error = Failure::from(error);
            let fact = format!("by polling, at most --poll apart, because plpgsql is not available: {error}");
            let remedy = "GRANT USAGE ON LANGUAGE plpgsql lets pglock wait in the server's queue";
            Ok(Finding::warning(SUBJECT, fact).with_remedy(remedy))
        }
    }
}

/// Returns whether the session that the pool has lent to us holds advisory locks besides our own.
///
/// # Errors
/// The query fails, or the connection is lost.
pub(super) fn leftovers(client: &mut Client, own: KeyId) -> Result<Option<Finding>, Failure> {
    let (classid, objid, objsubid) = own.in_pg_locks();
    let sql = format!(
        "SELECT DISTINCT pid, classid::bigint AS classid, objid::bigint AS objid, objsubid FROM pg_catalog.pg_locks \
         WHERE locktype = 'advisory' AND granted AND pid = pg_catalog.pg_backend_pid() \
         AND NOT (classid = '{classid}' AND objid = '{objid}' AND objsubid = '{objsubid}') ORDER BY 2, 3, 4"
    );
    let rows = fetch_all(client, &sql)?;
    let Some(pid) = rows.first().map(|row| text(row, "pid")) else {
        return Ok(None);
    };
    let keys: Vec<String> = rows
        .iter()
        .map(|row| {
            let number = |column| text(row, column).parse().unwrap_or_default();
            KeyId::from_pg_locks(number("classid"), number("objid"), number("objsubid")).to_string()
        })
        .collect();
    let shown = keys[..keys.len().min(MAX_LEFTOVERS_SHOWN)].join(" and ");
    let more = match keys.len().saturating_sub(MAX_LEFTOVERS_SHOWN) {
        0 => String::new(),
        count => format!(" and {count} more"),
    };
    let fact = format!(
        "a session of the pool (backend {pid}) holds {shown}{more}: left behind, or held by another client of the same \
         pool"
    );
    let remedy = format!(
        "pglock treats such a key as held; pglock evict or pg_terminate_backend({pid}) releases it, and session-level \
         locks need a pool of sessions"
    );
    Ok(Some(Finding::warning("leftovers", fact).with_remedy(remedy)))
}

/// The most keys of leftovers that are named.
const MAX_LEFTOVERS_SHOWN: usize = 3;
