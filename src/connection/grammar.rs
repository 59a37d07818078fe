//! The grammar of connection strings: URIs and `key=value` pairs. Pure.
//!
//! It is exactly libpq's, including its oddities: a backslash at the end of the string, a user name that runs to the
//! first `@`, whitespace around `=`. An error never quotes a part of the string that could belong to a badly quoted
//! password; it locates the mistake.

use super::parameter::Values;
use super::redact::{holds_parameter, is_like_parameter_name, is_similar_to_parameter, may_be_secret};

/// A parameter that a connection string gives.
pub(super) struct GivenParameter {
    /// The name.
    pub name: String,
    /// The value.
    pub value: String,
    /// What an error calls the parameter: by its name only if that cannot be part of a password.
    pub label: String,
    /// The value cannot be part of a password.
    pub is_value_quotable: bool,
}

/// Receives the parameters in their order. Parsing ends with the first error.
pub(super) type ParameterSink<'a> = &'a mut dyn FnMut(GivenParameter) -> Result<(), String>;

/// A URI, except for its scheme.
pub(super) struct ParsedUri<'a> {
    /// The parameters that the authority and the path set.
    pub values: Values,
    /// The text after `?`, still encoded.
    pub query: &'a str,
    /// The address may be part of a password with an unencoded `@`, and must not be printed.
    pub is_address_doubtful: bool,
}

/// libpq's `isspace`, in the C locale.
fn is_whitespace(c: char) -> bool {
    matches!(c, ' ' | '\t'..='\r')
}

/// Parses `key=value` pairs.
///
/// # Errors
/// A pair is malformed, or the sink refuses it.
pub(super) fn parse_pairs(text: &str, sink: ParameterSink) -> Result<(), String> {
    let mut rest = text.trim_start_matches(is_whitespace);
    let mut number = 0;
    // What follows a password may be the rest of it, and what follows text that is no name may belong to one.
    let (mut is_quotable, mut is_value_quotable) = (true, true);
    while !rest.is_empty() {
        number += 1;
        let end = rest.find(|c| c == '=' || is_whitespace(c)).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        let label = if is_quotable && is_like_parameter_name(name) {
            format!("parameter {name:?}")
        } else {
            format!("parameter number {number}")
        };
        let Some(value) = after.trim_start_matches(is_whitespace).strip_prefix('=') else {
            return Err(format!(
                "missing \"=\" after {label}; enclose values that contain whitespace in single quotes"
            ));
        };
        let value = value.trim_start_matches(is_whitespace);
        let (value, after) = match value.strip_prefix('\'') {
            Some(value) => parse_quoted_value(value).ok_or_else(|| format!("unterminated quoted value of {label}"))?,
            None => {
                let (value, after) = parse_plain_value(value);
                // It would take the rest of the string for its own, and the server would be that of the defaults.
                if holds_parameter(&value, &[';'], is_similar_to_parameter) {
                    return Err(format!(
                        "the value of {label} goes on with another parameter after \";\"; separate pairs by \
                         whitespace, or enclose the value in single quotes"
                    ));
                }
                (value, after)
            }
        };
        is_value_quotable &= is_like_parameter_name(name);
        is_quotable &= is_value_quotable && !may_be_secret(name);
        sink(GivenParameter {
            name: name.to_owned(),
            value,
            label,
            is_value_quotable,
        })?;
        rest = after.trim_start_matches(is_whitespace);
    }
    Ok(())
}

/// Parses up to the next whitespace. A backslash escapes the next character, and is dropped at the end of the string.
fn parse_plain_value(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            c if is_whitespace(c) => return (value, &text[at..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

/// Parses up to the closing quote; `None` if there is none.
fn parse_quoted_value(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\'' => return Some((value, &text[at + 1..])),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    None
}

/// Parses `[user[:password]@][host][:port][,...][/dbname][?query]`, and leaves the query to [`parse_query`].
///
/// # Errors
/// A part is malformed.
pub(super) fn parse_uri(text: &str) -> Result<ParsedUri<'_>, String> {
    let mut values = Values::default();
    let mut rest = text;
    if let Some(at) = rest.find(['@', '/']).filter(|at| rest[*at..].starts_with('@')) {
        let (user, password) = match rest[..at].split_once(':') {
            Some((user, password)) => (user, password),
            None => (&rest[..at], ""),
        };
        set_decoded(&mut values, "user", user)?;
        set_decoded(&mut values, "password", password)?;
        rest = &rest[at + 1..];
    }
    let (hosts, ports, after) = parse_host_list(rest)?;
    set_decoded(&mut values, "host", &hosts)?;
    set_decoded(&mut values, "port", &ports)?;
    rest = after;
    let mut dbname = "";
    if let Some(after) = rest.strip_prefix('/') {
        let end = after.find('?').unwrap_or(after.len());
        (dbname, rest) = after.split_at(end);
        set_decoded(&mut values, "dbname", dbname)?;
    }
    let parts = [&*hosts, &*ports, dbname];
    Ok(ParsedUri {
        values,
        query: rest.strip_prefix('?').unwrap_or_default(),
        is_address_doubtful: parts.iter().any(|part| part.contains('@')),
    })
}

/// Sets a parameter from a part of the authority or the path; an empty part leaves it unset.
///
/// # Errors
/// The percent-encoding is invalid.
fn set_decoded(values: &mut Values, parameter: &str, encoded: &str) -> Result<(), String> {
    if encoded.is_empty() {
        return Ok(());
    }
    values.set_known(parameter, &decode(encoded, parameter)?);
    Ok(())
}

/// Parses the hosts and ports. Returns each as a comma-separated list, as libpq has them, and the rest of the string.
///
/// # Errors
/// An IPv6 address is malformed.
pub(super) fn parse_host_list(text: &str) -> Result<(String, String, &str), String> {
    let (mut hosts, mut ports) = (String::new(), String::new());
    let mut rest = text;
    loop {
        let host;
        if let Some(bracketed) = rest.strip_prefix('[') {
            let Some((address, after)) = bracketed.split_once(']') else {
                return Err("missing \"]\" after the IPv6 address".into());
            };
            if address.is_empty() {
                return Err("empty IPv6 address between \"[\" and \"]\"".into());
            }
            if !after.is_empty() && !after.starts_with([':', '/', '?', ',']) {
                return Err("unexpected character after \"]\"; expected \":\", \"/\", \"?\" or \",\"".into());
            }
            (host, rest) = (address, after);
        } else {
            let end = rest.find([':', '/', '?', ',']).unwrap_or(rest.len());
            (host, rest) = rest.split_at(end);
        }
        hosts.push_str(host);
        if let Some(after) = rest.strip_prefix(':') {
            let end = after.find(['/', '?', ',']).unwrap_or(after.len());
            ports.push_str(&after[..end]);
            rest = &after[end..];
        }
        let Some(after) = rest.strip_prefix(',') else {
            return Ok((hosts, ports, rest));
        };
        hosts.push(',');
        ports.push(',');
        rest = after;
    }
}

/// Parses the query of a URI, `name=value[&...]`. A bare name counts as one with an empty value, where that is allowed.
///
/// # Errors
/// A pair is malformed, or the sink refuses it.
pub(super) fn parse_query(query: &str, allows_bare_names: bool, sink: ParameterSink) -> Result<(), String> {
    // An "@" after the "?" may mean that the whole query belongs to a password.
    let is_value_quotable = !query.contains('@');
    let mut is_quotable = is_value_quotable;
    // A trailing "&" separates nothing.
    let query = query.strip_suffix('&').filter(|_| query != "&").unwrap_or(query);
    if query.is_empty() {
        return Ok(());
    }
    for (n, text) in query.split('&').enumerate() {
        let name = text.split('=').next().unwrap_or_default();
        let is_quotable_name = is_quotable && is_like_parameter_name(name);
        let label = if is_quotable_name {
            format!("parameter {name:?}")
        } else {
            format!("parameter number {}", n + 1)
        };
        let (encoded_name, encoded_value) = match text.split_once('=') {
            Some(pair) => pair,
            None if allows_bare_names => (text, ""),
            None => return Err(format!("missing \"=\" after {label}")),
        };
        if encoded_value.contains('=') {
            return Err(format!("extra \"=\" in the value of {label}; encode it as %3D"));
        }
        let place = if is_quotable_name { name } else { "a parameter" };
        let (name, value) = (decode(encoded_name, place)?, decode(encoded_value, place)?);
        is_quotable &= !may_be_secret(&name);
        sink(GivenParameter {
            name,
            value,
            label,
            is_value_quotable,
        })?;
    }
    Ok(())
}

/// Decodes percent-encoding; `place` is what an error calls the text.
///
/// # Errors
/// A `%` is not followed by two hexadecimal digits, or the result has a NUL byte or is not UTF-8.
fn decode(text: &str, place: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digit = |n: usize| after.get(n).and_then(|c| char::from(*c).to_digit(16));
        match (digit(0), digit(1)) {
            (Some(0), Some(0)) => return Err(format!("%00 is not allowed in {place}")),
            (Some(high), Some(low)) => bytes.push((high * 16 + low) as u8),
            _ => {
                return Err(format!(
                    "\"%\" in {place} is not followed by two hexadecimal digits; encode a literal \"%\" as %25"
                ));
            }
        }
        rest = &after[2..];
    }
    String::from_utf8(bytes).map_err(|_| format!("{place} is not valid UTF-8"))
}
