//! The connection strings of .NET, `Host=db;Username=app;SSL Mode=Require`, as Npgsql reads them.
//!
//! Names and values are trimmed. A value in double or single quotes may contain anything; its quote is doubled inside.

use super::super::grammar::{GivenParameter, ParameterSink, parse_host_list};
use super::super::parameter::normalized;
use super::super::redact::{holds_parameter, is_like_parameter_name, is_similar_to_parameter, may_be_secret};
use super::parameters;

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

/// What separates libpq's pairs.
const WHITESPACE: [char; 4] = [' ', '\t', '\r', '\n'];

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

/// Parses the parameters. A port in a host (`Host=a:5433,b`) becomes a parameter of its own.
///
/// # Errors
/// A parameter is malformed, or the sink refuses it.
pub(super) fn parse(text: &str, sink: ParameterSink) -> Result<(), String> {
    let mut rest = text;
    let (mut is_quotable, mut is_value_quotable) = (true, true);
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
        let given = |name: &str, value: &str| GivenParameter {
            name: name.to_owned(),
            value: value.to_owned(),
            label: label.clone(),
            is_value_quotable,
        };
        if ["host", "server"].contains(&normalized(name).as_str()) && !value.starts_with('/') {
            let (hosts, ports, _) = parse_host_list(&value)?;
            sink(given("host", &hosts))?;
            if ports.contains(|c| c != ',') {
                sink(given("port", &ports))?;
            }
        } else {
            sink(given(name, &value))?;
        }
        rest = after;
    }
    Ok(())
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
