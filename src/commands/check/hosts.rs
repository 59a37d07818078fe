//! Findings about the other hosts of a connection string: locks of two primaries do not exclude each other.

use super::query::{fetch_one, is_true, text};
use super::report::Finding;
use crate::connection::{LimitEnforcement, Settings};
use crate::outcome::Failure;

/// A host that could be reached.
struct ReachedHost {
    address: String,
    is_standby: bool,
    /// The identifier of its cluster; empty if the role may not see it.
    system_identifier: String,
    /// When it started, in microseconds: two addresses can lead to one server.
    started: String,
}

impl ReachedHost {
    fn is_same_server(&self, other: &ReachedHost) -> bool {
        (&self.system_identifier, &self.started) == (&other.system_identifier, &other.started)
    }
}

/// Returns what the hosts are, if there are several.
pub(super) fn hosts(settings: &Settings, application_name: &str) -> Option<Finding> {
    const SUBJECT: &str = "hosts";
    let each = settings.of_each_host();
    if each.len() < 2 {
        return None;
    }
    let mut reached: Vec<ReachedHost> = Vec::new();
    let mut away = Vec::new();
    for (address, settings) in each {
        match reach(&address, &settings, application_name) {
            // Of the addresses of one server, the first counts.
            Ok(host) if reached.iter().any(|other| other.is_same_server(&host)) => {}
            Ok(host) => reached.push(host),
            Err(_) => away.push(address),
        }
    }
    let (standbys, primaries): (Vec<_>, Vec<_>) = reached.iter().partition(|host| host.is_standby);
    let is_of_other_cluster = |host: &ReachedHost| host.system_identifier != reached[0].system_identifier;
    let addresses = |hosts: &[&ReachedHost]| {
        let addresses: Vec<&str> = hosts.iter().map(|host| host.address.as_str()).collect();
        addresses.join(" and ")
    };
    if primaries.len() > 1 {
        let kind = if primaries.iter().any(|host| is_of_other_cluster(host)) {
            "primaries of different clusters"
        } else {
            "primaries of one cluster"
        };
        let fact = format!(
            "{} are {kind}, whose locks do not exclude each other",
            addresses(&primaries)
        );
        let remedy = "list only hosts of one cluster, of which one at a time is the primary";
        return Some(Finding::warning(SUBJECT, fact).with_remedy(remedy));
    }
    if reached.iter().any(is_of_other_cluster) {
        let fact = format!(
            "{} and {} belong to different clusters",
            addresses(&primaries),
            addresses(&standbys)
        );
        return Some(Finding::warning(SUBJECT, fact).with_remedy("list only hosts of one cluster"));
    }
    let mut fact = format!("primaries: {}, standbys: {}", primaries.len(), standbys.len());
    if away.is_empty() {
        return Some(Finding::ok(SUBJECT, fact));
    }
    fact += &format!("; cannot connect to {}", away.join(" and "));
    Some(Finding::warning(SUBJECT, fact).with_remedy("start the host, or remove it from the list"))
}

/// Connects to a host, and asks what it is.
///
/// # Errors
/// The connection fails, or the query does.
fn reach(address: &str, settings: &Settings, application_name: &str) -> Result<ReachedHost, Failure> {
    let mut client = settings.open(application_name, None, LimitEnforcement::Attempt)?.client;
    let row = fetch_one(
        &mut client,
        "SELECT pg_catalog.pg_is_in_recovery() AS standby, \
         CASE WHEN pg_catalog.has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE') \
         THEN (SELECT system_identifier FROM pg_catalog.pg_control_system()) END AS system_identifier, \
         extract(epoch FROM pg_catalog.pg_postmaster_start_time()) AS started",
    )?;
    Ok(ReachedHost {
        address: address.to_owned(),
        is_standby: is_true(&row, "standby"),
        system_identifier: text(&row, "system_identifier"),
        started: text(&row, "started"),
    })
}
