//! Connection strings, `postgresql://` URIs and `key=value` pairs, as libpq parses them. Pure.
//!
//! The grammar is exactly libpq's, including its oddities: a backslash at the end of the string, a user name that runs
//! to the first `@`, whitespace around `=`. An error never quotes a part of the string that could belong to a badly
//! quoted password; it locates the mistake and suggests a name for a misspelled parameter.

use super::parameter::{Values, find_similar};
use super::redact::{is_like_parameter_name, is_secret};
use super::settings_error::SettingsError;

/// The contents of a connection string.
pub(super) struct ParsedConnectionString {
    /// The parameters that it sets.
    pub values: Values,
    /// The address may be part of a password with an unencoded `@`, and must not be printed.
    pub is_address_doubtful: bool,
}

/// Parses a connection string, or a database name, which psql accepts in the same place.
///
/// # Errors
/// The string is malformed, or names an unknown parameter.
pub(super) fn parse(text: &str) -> Result<ParsedConnectionString, SettingsError> {
    parse_either(text).map_err(|problem| SettingsError::ConnectionString { problem })
}

/// Parses a URI, `key=value` pairs, or a database name.
///
/// # Errors
/// The string is malformed, or names an unknown parameter.
fn parse_either(text: &str) -> Result<ParsedConnectionString, String> {
    for prefix in ["postgresql://", "postgres://"] {
        if let Some(rest) = text.strip_prefix(prefix) {
            return parse_uri(rest);
        }
    }
    let start = text.split(['=', ' ', '\'']).next().unwrap_or_default();
    if start.contains("://") {
        return Err("a URI starts with postgresql:// or postgres://".into());
    }
    let mut values = Values::default();
    if text.contains('=') {
        parse_pairs(text, &mut values)?;
    } else if !text.is_empty() {
        set(&mut values, "dbname", text)?;
    }
    Ok(ParsedConnectionString {
        values,
        is_address_doubtful: false,
    })
}

/// libpq's `isspace`, in the C locale.
fn is_whitespace(c: char) -> bool {
    matches!(c, ' ' | '\t'..='\r')
}

/// Parses `key=value` pairs.
///
/// # Errors
/// A pair is malformed, or names an unknown parameter.
fn parse_pairs(text: &str, values: &mut Values) -> Result<(), String> {
    let mut rest = text.trim_start_matches(is_whitespace);
    let mut number = 0;
    // What follows a password may be the rest of it.
    let mut is_quotable = true;
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
            None => parse_plain_value(value),
        };
        if !values.set(name, &value) {
            return Err(unknown_parameter(&label, name));
        }
        is_quotable &= !is_secret(name);
        rest = after.trim_start_matches(is_whitespace);
    }
    Ok(())
}

fn unknown_parameter(label: &str, name: &str) -> String {
    match find_similar(name) {
        Some(known) => format!("unknown connection {label}; did you mean {known}?"),
        None => format!("unknown connection {label}"),
    }
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

/// Parses `[user[:password]@][host][:port][,...][/dbname][?name=value[&...]]`.
///
/// # Errors
/// A part is malformed, or the query names an unknown parameter.
fn parse_uri(text: &str) -> Result<ParsedConnectionString, String> {
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
    if let Some(query) = rest.strip_prefix('?') {
        parse_query(query, &mut values)?;
    }
    let parts = [&*hosts, &*ports, dbname];
    let is_address_doubtful = parts.iter().any(|part| part.contains('@'));
    Ok(ParsedConnectionString {
        values,
        is_address_doubtful,
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
    set(values, parameter, &decode(encoded, parameter)?)
}

/// Sets a parameter that must be in the table.
///
/// # Errors
/// The parameter is unknown.
fn set(values: &mut Values, parameter: &str, value: &str) -> Result<(), String> {
    if values.set(parameter, value) {
        Ok(())
    } else {
        Err(unknown_parameter(&format!("parameter {parameter:?}"), parameter))
    }
}

/// Parses the hosts and ports. Returns each as a comma-separated list, as libpq has them, and the rest of the string.
///
/// # Errors
/// An IPv6 address is malformed.
fn parse_host_list(text: &str) -> Result<(String, String, &str), String> {
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

/// Parses the query of a URI, `name=value[&...]`.
///
/// # Errors
/// A pair is malformed, or names an unknown parameter.
fn parse_query(query: &str, values: &mut Values) -> Result<(), String> {
    // An "@" after the "?" may mean that the whole query belongs to a password.
    let mut is_quotable = !query.contains('@');
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
        let Some((encoded_name, encoded_value)) = text.split_once('=') else {
            return Err(format!("missing \"=\" after {label}"));
        };
        if encoded_value.contains('=') {
            return Err(format!("extra \"=\" in the value of {label}; encode it as %3D"));
        }
        let place = if is_quotable_name { name } else { "a parameter" };
        let (name, value) = (decode(encoded_name, place)?, decode(encoded_value, place)?);
        let (name, value) = match (name.as_str(), value.as_str()) {
            ("ssl", "true") => ("sslmode", "require"),
            other => other,
        };
        if !values.set(name, value) {
            return Err(unknown_parameter(&label, name));
        }
        is_quotable &= !is_secret(name);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::parameter::PARAMETERS;
    use proptest::prelude::*;

    fn settings(text: &str) -> Vec<(&'static str, String)> {
        let parsed = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let pairs = parsed.values.iter().map(|(k, v)| (k, v.to_owned()));
        pairs.collect()
    }

    fn expect(text: &str, wanted: &[(&str, &str)]) {
        let wanted: Vec<_> = wanted.iter().map(|(k, v)| (*k, (*v).to_owned())).collect();
        assert_eq!(settings(text), wanted, "{text}");
    }

    #[test]
    fn uris_are_parsed_as_in_the_tests_of_libpq() {
        expect("postgresql://", &[]);
        expect("postgres:///?", &[]);
        expect("postgresql:///?user=u&port=1&", &[("port", "1"), ("user", "u")]);
        expect(
            "postgresql://uri-user:secret@host:12345/db",
            &[
                ("dbname", "db"),
                ("host", "host"),
                ("password", "secret"),
                ("port", "12345"),
                ("user", "uri-user"),
            ],
        );
        expect("postgresql://%68ost/", &[("host", "host")]);
        expect("postgresql://[::1]:99,b/", &[("host", "::1,b"), ("port", "99,")]);
        expect("postgresql://%2Fvar%2Frun/d", &[("dbname", "d"), ("host", "/var/run")]);
        expect("postgresql://@host", &[("host", "host")]);
        expect("postgresql://h?ssl=true", &[("host", "h"), ("sslmode", "require")]);
        expect(
            "postgresql://u:p:q@h?x=1".replace("?x=1", "").as_str(),
            &[("host", "h"), ("password", "p:q"), ("user", "u")],
        );
    }

    #[test]
    fn pairs_are_parsed_as_libpq_does() {
        expect("", &[]);
        expect("app", &[("dbname", "app")]);
        expect(
            " host = a  port='1'user=u\\ v dbname='it\\'s' ",
            &[("dbname", "it's"), ("host", "a"), ("port", "1"), ("user", "u v")],
        );
        expect("host=a host=b", &[("host", "b")]);
        expect("host= port=1", &[("host", "port=1")]);
        expect("host='' user=u\\", &[("host", ""), ("user", "u")]);
        expect("requiressl=1", &[("sslmode", "require")]);
    }

    #[test]
    fn errors_quote_names_only_where_they_cannot_be_part_of_a_password() {
        let error = |text| parse_either(text).err().unwrap_or_else(|| panic!("{text} is accepted"));
        assert_eq!(
            error("ssl_mode=x"),
            "unknown connection parameter \"ssl_mode\"; did you mean sslmode?"
        );
        assert_eq!(
            error("password=correct horse battery"),
            "missing \"=\" after parameter number 2; enclose values that contain whitespace in single quotes"
        );
        assert_eq!(
            error("postgres://u:p@h/d?schema=public"),
            "unknown connection parameter \"schema\""
        );
        assert_eq!(
            error("postgres://u:p/a?b=c@h/d"),
            "unknown connection parameter number 1"
        );
        for wrong in [
            "mysql://u:p@h/d?a=b",
            "mysql://u:p@h/d",
            "a b=c",
            "host='a",
            "postgresql://[::1",
            "postgresql://[]",
            "postgresql://[::1]x",
            "postgresql://h?host",
            "postgresql://h?host=a=b",
            "postgresql://%zz",
            "postgresql://%00",
            "postgresql://h?&host=a",
        ] {
            error(wrong);
        }
    }

    #[test]
    fn an_address_that_may_be_part_of_a_password_is_doubtful() {
        let doubtful = |text| parse(text).is_ok_and(|parsed| parsed.is_address_doubtful);
        assert!(doubtful("postgres://u:p@ss@h/d"));
        assert!(doubtful("postgres://u:p@ss/w@h/d"));
        assert!(doubtful("postgres://u:p/w@h/d"));
        assert!(!doubtful("postgres://u:p@h/d?user=a@b"));
        assert!(!doubtful("postgres://u:p%40ss@h/d"));
    }

    fn keyword() -> impl Strategy<Value = &'static str> {
        (0..PARAMETERS.len()).prop_map(|n| PARAMETERS[n].0)
    }

    fn encoded(text: &str) -> String {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
        let bytes = text.bytes().map(|b| {
            if plain(b) {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        });
        bytes.collect()
    }

    proptest! {
        #[test]
        fn no_input_makes_it_panic(text in ".*", tail in "[a-z=&%@:/?,\\[\\]'\\\\ 0-9]*") {
            for text in [text.clone(), format!("postgres://{text}"), format!("postgresql://{tail}"), tail.clone(),
                         format!("host={tail}{text}")] {
                let _ = parse(&text);
            }
        }

        #[test]
        fn written_pairs_parse_to_the_same_values(pairs in prop::collection::btree_map(keyword(), "[^\u{0}]*", 1..6)) {
            let written = pairs.iter().map(|(k, v)| {
                format!("{k}='{}' ", v.replace('\\', "\\\\").replace('\'', "\\'"))
            });
            let wanted: Vec<_> = pairs.clone().into_iter().collect();
            prop_assert_eq!(settings(&written.collect::<String>()), wanted);
        }

        #[test]
        fn a_written_uri_parses_to_the_same_values(pairs in prop::collection::btree_map(keyword(), "[^\u{0}]+", 1..6)) {
            let written: Vec<_> = pairs.iter().map(|(k, v)| format!("{k}={}", encoded(v))).collect();
            let wanted: Vec<_> = pairs.clone().into_iter().collect();
            prop_assert_eq!(settings(&format!("postgres://?{}", written.join("&"))), wanted);
        }

        /// Wherever a badly quoted password ends up in the string.
        #[test]
        fn no_error_contains_any_part_of_a_password(
            secret in "[XYZ]{3}[ '\\\\=&%@:/?,\\[\\]#]{0,3}[XYZ]{3}[ '=@/?:&]{0,2}[XYZ]{3}",
            tail in "[a-w=&%:/?,\\[\\]' ]{0,12}",
        ) {
            for text in [
                format!("postgres://u:{secret}@h/d{tail}"),
                format!("postgres://u:{secret}@h{tail}"),
                format!("postgres://h/d?user=u&password={secret}{tail}"),
                format!("host=h password={secret} {tail}"),
                format!("host=h password='{secret}' {tail}"),
                format!("password={secret}{tail}"),
                format!("mysql://u:{secret}@h/d{tail}"),
            ] {
                if let Err(error) = parse_either(&text) {
                    for piece in secret.split(|c: char| !"XYZ".contains(c)).filter(|p| !p.is_empty()) {
                        prop_assert!(!error.contains(piece), "{text:?}: {error:?}");
                    }
                }
            }
        }
    }
}
