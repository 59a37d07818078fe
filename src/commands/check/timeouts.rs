//! Findings about timeouts, and about how fast a lost connection is noticed.

use super::query::{fetch_all, fetch_one, is_true, text};
use super::report::Finding;
use crate::connection::Client;
use crate::lock::TIMEOUT_SETTINGS;
use crate::outcome::Failure;
use crate::run::session::timing::Timing;
use std::time::{Duration, Instant};

/// The number of round trips that are timed.
const ROUND_TRIP_COUNT: usize = 15;

/// A timeout that the role, the database or the server sets.
pub(super) struct ConfiguredTimeout {
    name: String,
    /// Its name, value and source.
    description: String,
}

/// Returns the timeouts that could end a session or cancel a wait.
///
/// # Errors
/// The query fails, or the connection is lost.
pub(super) fn fetch_configured(client: &mut Client) -> Result<Vec<ConfiguredTimeout>, Failure> {
    let names = TIMEOUT_SETTINGS.map(|name| format!("'{name}'")).join(", ");
    let rows = fetch_all(
        client,
        &format!(
            "SELECT name, pg_catalog.current_setting(name) AS value, source \
             FROM pg_catalog.pg_settings WHERE name IN ({names}) AND setting <> '0' ORDER BY name"
        ),
    )?;
    let timeouts = rows.iter().map(|row| {
        let name = text(row, "name");
        let description = format!("{name} is {} ({})", text(row, "value"), text(row, "source"));
        ConfiguredTimeout { name, description }
    });
    Ok(timeouts.collect())
}

/// Returns the values of these timeouts now, if the session or transaction has been configured for a lock.
///
/// # Errors
/// The query fails, or the connection is lost.
pub(super) fn timeouts(
    client: &mut Client,
    configured: &[ConfiguredTimeout],
    is_session_configured: bool,
) -> Result<Vec<Finding>, Failure> {
    const SUBJECT: &str = "timeouts";
    if configured.is_empty() {
        let fact = "none is set that could end a session or cancel a wait";
        return Ok(vec![Finding::ok(SUBJECT, fact)]);
    }
    let mut findings = Vec::new();
    for ConfiguredTimeout { name, description } in configured {
        if !is_session_configured {
            findings.push(Finding::ok(SUBJECT, description));
            continue;
        }
        let sql = format!("SELECT pg_catalog.current_setting('{name}') AS value");
        let value = text(&fetch_one(client, &sql)?, "value");
        findings.push(if value == "0" {
            Finding::ok(SUBJECT, format!("{description}; pglock sets it to 0"))
        } else {
            Finding::warning(SUBJECT, format!("{description}, and remains {value}"))
                .with_remedy("set it to 0 for this role")
        });
    }
    Ok(findings)
}

/// Returns when the lock of a host that has vanished is released. The server watches the pooler or the proxy, if there
/// is one.
///
/// # Errors
/// The query fails, or the connection is lost.
pub(super) fn vanished_host(client: &mut Client, timing: Timing, watched: Option<&str>) -> Result<Finding, Failure> {
    const SUBJECT: &str = "vanished host";
    let row = fetch_one(
        client,
        "SELECT pg_catalog.inet_client_addr() IS NULL AS local, \
         pg_catalog.current_setting('tcp_keepalives_idle')::int \
         + pg_catalog.current_setting('tcp_keepalives_interval')::int \
         * pg_catalog.current_setting('tcp_keepalives_count')::int AS keepalive, \
         pg_catalog.current_setting('tcp_user_timeout', true) IS NOT NULL AS user_timeout",
    )?;
    let (server_limit, job_limit) = (timing.server_limit(), timing.job_limit());
    let keepalive = text(&row, "keepalive").parse().unwrap_or_default();
    let is_keepalive_accepted = (job_limit..=server_limit * 2).contains(&Duration::from_secs(keepalive));
    let (server_limit, job_limit) = (server_limit.as_secs_f64(), job_limit.as_secs_f64());
    Ok(if let Some(watched) = watched {
        let remedy = format!(
            "set its keepalives and its TCP user timeout to more than {job_limit} s (the time to terminate a job), and \
             to less than you are willing to wait for the lock"
        );
        let fact = format!("{watched} decides when its lock is released; its job is dead within {job_limit} s");
        Finding::warning(SUBJECT, fact).with_remedy(remedy)
    } else if is_true(&row, "local") {
        Finding::ok(SUBJECT, "a Unix socket: server and client vanish together")
    } else if !is_keepalive_accepted {
        let fact = format!("the server does not accept keepalive limits, and has {keepalive} s");
        Finding::warning(SUBJECT, fact).with_remedy("check the TCP settings of its operating system")
    } else if !is_true(&row, "user_timeout") {
        let fact = format!("its lock is released after {server_limit} s, or much later if a reply was under way to it");
        Finding::warning(SUBJECT, fact)
            .with_remedy("PostgreSQL 12 and later support tcp_user_timeout, which limits that too")
    } else {
        let margin = server_limit - job_limit;
        let fact = format!("its lock is released after {server_limit} s, {margin} s after its job is dead");
        Finding::ok(SUBJECT, fact)
    })
}

/// Returns how long a round trip takes.
///
/// # Errors
/// The connection is lost.
pub(super) fn round_trip(client: &mut Client, timing: Timing) -> Result<Finding, Failure> {
    const SUBJECT: &str = "round trip";
    let mut durations = Vec::new();
    for _ in 0..ROUND_TRIP_COUNT {
        let start = Instant::now();
        client.simple_query("")?;
        durations.push(start.elapsed());
    }
    durations.sort();
    let (median, longest) = (durations[ROUND_TRIP_COUNT / 2], durations[ROUND_TRIP_COUNT - 1]);
    let milliseconds = |duration: Duration| duration.as_secs_f64() * 1000.0;
    let fact = format!(
        "{:.2} ms (median of {ROUND_TRIP_COUNT}; longest {:.2} ms)",
        milliseconds(median),
        milliseconds(longest)
    );
    if longest * 4 <= timing.heartbeat {
        return Ok(Finding::ok(SUBJECT, fact));
    }
    Ok(Finding::warning(SUBJECT, fact).with_remedy(format!(
        "with --heartbeat {}, a lock could be considered lost although it is not; increase it",
        humantime::format_duration(timing.heartbeat)
    )))
}
