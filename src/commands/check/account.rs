//! Findings about the login and the room for connections.

use super::query::{fetch_one, text};
use super::report::Finding;
use crate::connection::Client;
use crate::outcome::Failure;

/// How long before a password expires `check` warns.
const EXPIRY_WARNING_DAYS: f64 = 14.0;

/// The share of the server's connections from which on `check` warns.
const BUSY_SHARE: f64 = 0.9;

/// Returns when the role's password expires, if it does. The server checks that only where a password is requested.
///
/// # Errors
/// The query fails, or the connection is lost.
pub(super) fn expiry(client: &mut Client) -> Result<Option<Finding>, Failure> {
    let row = fetch_one(
        client,
        "SELECT r.rolname, pg_catalog.quote_ident(r.rolname) AS quoted, \
         pg_catalog.to_char(r.rolvaliduntil, 'YYYY-MM-DD') AS until, \
         CASE WHEN pg_catalog.isfinite(r.rolvaliduntil) \
         THEN extract(epoch FROM r.rolvaliduntil - pg_catalog.clock_timestamp()) / 86400 END AS days \
         FROM (SELECT) AS one LEFT JOIN pg_catalog.pg_roles r ON r.rolname = session_user",
    )?;
    let Ok(days) = text(&row, "days").parse::<f64>() else {
        return Ok(None);
    };
    let (role, until) = (text(&row, "rolname"), text(&row, "until"));
    if days > EXPIRY_WARNING_DAYS {
        return Ok(Some(Finding::ok(
            "expiry",
            format!("the password of {role} expires on {until}"),
        )));
    }
    let fact = if days > 0.0 {
        format!("the password of {role} expires on {until}, in less than two weeks")
    } else {
        format!("the password of {role} expired on {until}; new connections with a password fail")
    };
    let remedy = format!("ALTER ROLE {} PASSWORD '...' VALID UNTIL '...'", text(&row, "quoted"));
    Ok(Some(Finding::warning("expiry", fact).with_remedy(remedy)))
}

/// Returns how the server authenticated us, if that is not as it should be.
pub(super) fn login(method: Option<&str>) -> Option<Finding> {
    let remedy = "set password_encryption to scram-sha-256, set the role's password again, and use scram-sha-256 in \
                  pg_hba.conf";
    match method {
        Some("md5") => {
            Some(Finding::warning("login", "MD5 authentication, which PostgreSQL has deprecated").with_remedy(remedy))
        }
        Some("password") => Some(
            Finding::warning("login", "the password was sent in plain text (inside TLS, if any)").with_remedy(remedy),
        ),
        _ => None,
    }
}

/// Returns how many of the server's connections are in use: each direct holder and each direct waiter takes one.
///
/// # Errors
/// The query fails, or the connection is lost.
pub(super) fn connections(client: &mut Client) -> Result<Finding, Failure> {
    const SUBJECT: &str = "connections";
    // Connections that are reserved for superusers are not for us.
    let row = fetch_one(
        client,
        "SELECT pg_catalog.sum(numbackends)::int AS used, pg_catalog.current_setting('max_connections')::int \
         - pg_catalog.current_setting('superuser_reserved_connections')::int \
         - coalesce(pg_catalog.current_setting('reserved_connections', true)::int, 0) AS usable \
         FROM pg_catalog.pg_stat_database",
    )?;
    let number = |column| text(&row, column).parse::<u32>().unwrap_or_default();
    let (used, usable) = (number("used"), number("usable"));
    let fact = format!("{used} of {usable} are in use");
    if f64::from(used) < f64::from(usable) * BUSY_SHARE {
        return Ok(Finding::ok(SUBJECT, fact));
    }
    let remedy = "raise max_connections, or connect through a pooler, where waiters take none";
    Ok(Finding::warning(SUBJECT, fact).with_remedy(remedy))
}
