//! Connection strings, `postgresql://` URIs and `key=value` pairs, as libpq parses them. Pure.
//!
//! A parameter that libpq does not know is an error, with a suggestion if it is a misspelled one.

use super::grammar::{GivenParameter, parse_pairs, parse_query, parse_uri};
use super::parameter::{Values, find_similar};
use super::settings_error::SettingsError;

/// The contents of a connection string.
pub(super) struct ParsedConnectionString {
    /// The parameters that it sets.
    pub values: Values,
    /// The address may be part of a password with an unencoded `@`, and must not be printed.
    pub is_address_doubtful: bool,
    /// Whitespace at the end of the string is part of its last value.
    pub is_end_significant: bool,
}

/// Parses a connection string, or a database name, which psql accepts in the same place.
///
/// # Errors
/// The string is malformed, or names an unknown parameter.
pub(super) fn parse(text: &str) -> Result<ParsedConnectionString, SettingsError> {
    parse_either(text).map_err(|problem| SettingsError::ConnectionString {
        origin: "connection string",
        problem,
    })
}

/// Parses a URI, `key=value` pairs, or a database name.
///
/// # Errors
/// The string is malformed, or names an unknown parameter.
fn parse_either(text: &str) -> Result<ParsedConnectionString, String> {
    let mut values = Values::default();
    for prefix in ["postgresql://", "postgres://"] {
        if let Some(rest) = text.strip_prefix(prefix) {
            let uri = parse_uri(rest)?;
            values = uri.values;
            parse_query(uri.query, false, &mut |given| {
                let (name, value) = match (given.name.as_str(), given.value.as_str()) {
                    ("ssl", "true") => ("sslmode", "require"),
                    other => other,
                };
                set_known(&mut values, name, value, &given)
            })?;
            return Ok(ParsedConnectionString {
                values,
                is_address_doubtful: uri.is_address_doubtful,
                is_end_significant: true,
            });
        }
    }
    let is_around = |c: char| c.is_whitespace() || ['"', '\''].contains(&c);
    let inside = text.trim_start_matches(is_around);
    let start = inside.split(['=', ' ', '\'']).next().unwrap_or_default();
    if start.contains("://") {
        return Err("a URI starts with postgresql:// or postgres://, without a quote or whitespace before it".into());
    }
    let has_pairs = text.contains('=');
    if has_pairs {
        parse_pairs(text, &mut |given| {
            set_known(&mut values, &given.name, &given.value, &given)
        })?;
    } else if text.contains(':') && text.contains('@') {
        // The server would print it as the name of a database, with its password.
        return Err("neither a URI (postgresql://...) nor key=value pairs nor the name of a database".into());
    } else if !text.is_empty() {
        values.set_known("dbname", text);
    }
    Ok(ParsedConnectionString {
        values,
        is_address_doubtful: false,
        is_end_significant: !has_pairs,
    })
}

/// Sets a parameter of libpq to this value.
///
/// # Errors
/// The parameter is unknown.
fn set_known(values: &mut Values, name: &str, value: &str, given: &GivenParameter) -> Result<(), String> {
    if !values.set(name, value) {
        return Err(unknown_parameter(&given.label, name));
    }
    if !given.is_value_quotable {
        values.hide(name);
    }
    Ok(())
}

fn unknown_parameter(label: &str, name: &str) -> String {
    match find_similar(name) {
        Some(known) => format!("unknown connection {label}; did you mean {known}?"),
        None => format!("unknown connection {label}"),
    }
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
            " postgres://u:p@h/d",
            "'postgres://u:p@h/d'",
            "\"postgres://u:p@h/d?sslmode=require\"",
            "u:p@h/d",
            "a b=c",
            "host=db;user=app;password=XYZ",
            "application_name=web;Host=h",
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

    /// Up to the first NUL, the input is a connection string; the rest is what is inside and behind a password.
    #[test]
    fn fuzz_connection_string() {
        let examples = [
            "postgresql://u:p%40@[::1]:99,b/d?sslmode=require&connect_timeout=3\0@\0/d?port=x",
            " host = a  port='1'user=u\\ v dbname='it\\'s' \0 '\0 port=x",
            "postgres:///?user=u&port=1&\0/a?b=\0,b:0",
        ];
        crate::fuzz::fuzz(&examples, |input| {
            let input = String::from_utf8_lossy(input);
            let mut parts = input.splitn(3, '\0');
            let mut part = || parts.next().unwrap_or_default();
            let _ = parse(part());
            // Without `=`, what is inside is no parameter of its own.
            let [inside, tail] = [part(), part()].map(|part| part.replace(['X', 'Y', 'Z', '='], ""));
            let texts = [
                format!("postgres://u:XYZ{inside}XYZ@h{tail}"),
                format!("postgres://h/d?user=u&password=XYZ{inside}XYZ{tail}"),
                format!("host=h password=XYZ{inside}XYZ {tail}"),
            ];
            // One for each input, which is faster.
            let text = &texts[input.len() % texts.len()];
            if let Err(error) = parse_either(text) {
                assert!(!error.contains(['X', 'Y', 'Z']), "{text:?}: {error:?}");
            }
        });
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
