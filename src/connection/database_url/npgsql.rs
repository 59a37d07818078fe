//! The connection strings of .NET, `Host=db;Username=app;SSL Mode=Require`, as Npgsql reads them.
//!
//! Names and values are trimmed. A value in double or single quotes may contain anything; its quote is doubled inside.
//! `Host` is a list of which each entry may have a port; `Port` is that of the others.

use super::super::grammar::{GivenParameter, ParameterSink};
use super::super::parameter::normalized;
use super::super::redact::{
    WHITESPACE, holds_parameter, is_like_parameter_name, is_similar_to_parameter, may_be_secret,
};
use super::parameters;
use std::net::Ipv6Addr;

/// The parameters that such a string may consist of alone.
const FIRST_NAMES: [&str; 9] = [
    "host", "server", "port", "database", "db", "username", "userid", "uid", "sslmode",
];

/// Returns whether the text is such a string, rather than libpq's pairs, where a semicolon is an ordinary character:
/// its first parameter ends with one, and it or a later parameter has a name that is known.
pub(super) fn is_like(text: &str) -> bool {
    let text = text.trim_start_matches(is_separator);
    let Some((first, rest)) = split_parameter(text) else {
        return false;
    };
    // Whitespace separates pairs.
    let has_pairs = !first.is_quoted && holds_parameter(&first.value, &WHITESPACE, is_like_parameter_name);
    if has_pairs || !rest.trim_start().starts_with(';') {
        return false;
    }
    let mut rest = rest.trim_start_matches(is_separator);
    let mut is_known = FIRST_NAMES.contains(&normalized(first.name).as_str());
    while !is_known && let Some((parameter, after)) = split_parameter(rest) {
        is_known = parameters::is_known(parameter.name);
        rest = after.trim_start_matches(is_separator);
    }
    is_known
}

fn is_separator(c: char) -> bool {
    c == ';' || c.is_whitespace()
}

/// One parameter, as it is written.
struct Written<'a> {
    name: &'a str,
    value: String,
    is_quoted: bool,
}

/// Splits the first parameter off; `None` if it has no `=`, or its quote is not closed.
fn split_parameter(text: &str) -> Option<(Written<'_>, &str)> {
    let (name, after) = text.split_at(text.find(['=', ';'])?);
    let after = after.strip_prefix('=')?.trim_start();
    let (value, rest) = parse_value(after)?;
    let parameter = Written {
        name: name.trim(),
        value,
        is_quoted: after.starts_with(['"', '\'']),
    };
    Some((parameter, rest))
}

/// The port where neither `Host` nor `Port` has one.
const DEFAULT_PORT: &str = "5432";

/// Parses the parameters.
///
/// # Errors
/// A parameter is malformed, or the sink refuses it.
pub(super) fn parse(text: &str, sink: ParameterSink) -> Result<(), String> {
    let mut rest = text;
    let (mut is_quotable, mut is_value_quotable) = (true, true);
    // The last of each counts, in any order.
    let (mut hosts, mut default_port) = (None, None);
    for number in 1.. {
        rest = rest.trim_start_matches(is_separator);
        if rest.is_empty() {
            break;
        }
        let (name, after) = rest.split_at(rest.find(['=', ';']).unwrap_or(rest.len()));
        let name = name.trim();
        let is_like_name = is_like_parameter_name(&name.replace(' ', ""));
        let label = if is_quotable && is_like_name {
            format!("parameter {name:?}")
        } else {
            format!("parameter number {number}")
        };
        let Some(after) = after.strip_prefix('=') else {
            return Err(format!("missing \"=\" after {label}"));
        };
        let after = after.trim_start();
        let is_quoted = after.starts_with(['"', '\'']);
        let (value, after) = parse_value(after).ok_or_else(|| format!("unterminated quoted value of {label}"))?;
        if !is_quoted && holds_parameter(&value, &WHITESPACE, is_similar_to_parameter) {
            return Err(format!(
                "the value of {label} goes on with another parameter after whitespace; separate parameters by \";\", \
                 or enclose the value in quotes"
            ));
        }
        is_value_quotable &= is_like_name;
        is_quotable &= is_like_name && !may_be_secret(name);
        let given = GivenParameter {
            name: name.to_owned(),
            value,
            label,
            is_value_quotable,
        };
        match normalized(name).as_str() {
            "host" | "server" => hosts = Some(given),
            "port" => default_port = Some(given),
            _ => sink(given)?,
        }
        rest = after;
    }
    add_address(hosts, default_port, sink)
}

/// Adds the hosts, and the port of each: its own, or else the value of `Port`.
///
/// # Errors
/// An entry is not a host, or the sink refuses a value.
fn add_address(
    hosts: Option<GivenParameter>,
    default_port: Option<GivenParameter>,
    sink: ParameterSink,
) -> Result<(), String> {
    let Some(hosts) = hosts else {
        return default_port.map_or(Ok(()), sink);
    };
    let entries: Option<Vec<(&str, &str)>> = hosts.value.split(',').map(|entry| split_port(entry.trim())).collect();
    let has_empty_entry =
        |entries: &[(&str, &str)]| entries.len() > 1 && entries.iter().any(|(host, _)| host.is_empty());
    let Some(entries) = entries.filter(|entries| !has_empty_entry(entries)) else {
        // The text may be a connection string with a password.
        return Err(format!(
            "the value of {} is not a list of host or host:port",
            hosts.label
        ));
    };
    let (names, mut ports): (Vec<&str>, Vec<&str>) = entries.into_iter().unzip();
    let given = |name: &str, value: String| GivenParameter {
        name: name.to_owned(),
        value,
        label: hosts.label.clone(),
        is_value_quotable: hosts.is_value_quotable,
    };
    sink(given("host", names.join(",")))?;
    if ports.iter().all(|port| port.is_empty()) {
        return default_port.map_or(Ok(()), sink);
    }
    let default_port = default_port.as_ref().map_or(DEFAULT_PORT, |given| &given.value);
    for port in ports.iter_mut().filter(|port| port.is_empty()) {
        *port = default_port;
    }
    sink(given("port", ports.join(",")))
}

/// Splits an entry of `Host` into the host and its port, which may be empty. Returns `None` for what is neither that
/// nor the directory of a Unix socket.
fn split_port(entry: &str) -> Option<(&str, &str)> {
    if entry.starts_with(['/', '@']) || entry.parse::<Ipv6Addr>().is_ok() {
        return Some((entry, ""));
    }
    let (host, port) = match entry.strip_prefix('[') {
        Some(bracketed) => bracketed.split_once(']')?,
        None => entry.split_at(entry.find(':').unwrap_or(entry.len())),
    };
    let port = match port.strip_prefix(':') {
        Some(port) => Some(port).filter(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))?,
        None if port.is_empty() => "",
        None => return None,
    };
    let is_host = !host.contains(|c: char| "/?@".contains(c) || c.is_whitespace());
    is_host.then_some((host, port))
}

/// Parses a value and returns the text after it; `None` if its quote is not closed.
fn parse_value(text: &str) -> Option<(String, &str)> {
    let Some(quote) = text.chars().next().filter(|c| ['"', '\''].contains(c)) else {
        let (value, after) = text.split_at(text.find(';').unwrap_or(text.len()));
        return Some((value.trim_end().to_owned(), after));
    };
    let mut value = String::new();
    let mut rest = &text[1..];
    loop {
        let (part, after) = rest.split_once(quote)?;
        value += part;
        let Some(quoted) = after.strip_prefix(quote) else {
            return Some((value, after));
        };
        value.push(quote);
        rest = quoted;
    }
}
