//! Connection strings, `postgresql://` URIs and `key=value` pairs, as libpq reads them. Pure.
//!
//! The grammar is libpq's to the letter, with its oddities: a backslash before the end of the string, a user
//! name that runs to the first `@`, blanks around `=`. An error never quotes a part of the string that could be
//! a piece of a badly quoted password; it says where the mistake is, and what it may have been.

use super::keyword::{Values, similar};

/// What a connection string says.
pub struct Parsed {
    /// The settings that it gives.
    pub values: Values,
    /// The address in it may be a piece of a password with an `@` in it, and is not to be printed.
    pub address_is_doubtful: bool,
}

/// Reads a connection string, or the name of a database, which psql takes in the same place.
pub fn parse(text: &str) -> Result<Parsed, String> {
    if let Some(rest) = ["postgresql://", "postgres://"]
        .iter()
        .find_map(|prefix| text.strip_prefix(prefix))
    {
        return parse_uri(rest);
    }
    let start = text.split(['=', ' ', '\'']).next().unwrap_or_default();
    if start.contains("://") {
        return Err("a URI begins with postgresql:// or postgres://".into());
    }
    let mut values = Values::default();
    match text.contains('=') {
        true => parse_pairs(text, &mut values)?,
        false if text.is_empty() => {}
        false => drop(values.set("dbname", text)),
    }
    Ok(Parsed {
        values,
        address_is_doubtful: false,
    })
}

/// libpq's isspace, in the C locale.
fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t'..='\r')
}

fn parse_pairs(text: &str, values: &mut Values) -> Result<(), String> {
    let mut rest = text.trim_start_matches(is_blank);
    let mut number = 0;
    // Behind a password, a word may be the rest of it.
    let mut sayable = true;
    while !rest.is_empty() {
        number += 1;
        let end = rest.find(|c| c == '=' || is_blank(c)).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        let said = match sayable && is_word(name) {
            true => format!("{name:?}"),
            false => format!("setting number {number}"),
        };
        let Some(value) = after.trim_start_matches(is_blank).strip_prefix('=') else {
            return Err(format!(
                "there is no \"=\" after {said}; a value with blanks is written in single quotes"
            ));
        };
        let value = value.trim_start_matches(is_blank);
        let quoted = value.starts_with('\'');
        let (value, after) = match quoted {
            true => quoted_value(&value[1..])
                .ok_or_else(|| format!("the quotes around the value of {said} are not closed"))?,
            false => plain_value(value),
        };
        if !values.set(name, &value) {
            return Err(format!("{said} is no setting{}", hint(name)));
        }
        sayable &= !is_secret(name);
        rest = after.trim_start_matches(is_blank);
    }
    Ok(())
}

/// Whether it looks like the name of a setting, be it misspelt.
pub fn is_word(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    !name.is_empty() && name.len() <= 40 && name.chars().all(plain)
}

/// Whether the text may be a connection string, given where none is expected, with a password in it.
pub fn may_have_password(text: &str) -> bool {
    text.contains("://") || text.to_ascii_lowercase().contains("password")
}

/// A value for an error, unless it may have a password in it.
pub fn quoted(value: &str) -> String {
    match may_have_password(value) {
        true => "a connection string".into(),
        false => format!("{value:?}"),
    }
}

/// Whether the value is nobody else's business.
pub fn is_secret(keyword: &str) -> bool {
    let secrets = [
        "password",
        "sslpassword",
        "oauth_client_secret",
        "scram_client_key",
        "scram_server_key",
    ];
    secrets.contains(&keyword)
}

fn hint(name: &str) -> String {
    similar(name)
        .map(|known| format!("; is {known} meant?"))
        .unwrap_or_default()
}

/// Up to the next blank; a backslash keeps what follows it as it is, and at the very end is nothing.
fn plain_value(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            c if is_blank(c) => return (value, &text[at..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

/// Up to the closing quote.
fn quoted_value(text: &str) -> Option<(String, &str)> {
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

/// `[user[:password]@][host][:port][,...][/dbname][?name=value[&...]]`
fn parse_uri(text: &str) -> Result<Parsed, String> {
    let mut values = Values::default();
    let mut rest = text;
    if let Some(at) = rest.find(['@', '/']).filter(|at| rest[*at..].starts_with('@')) {
        let (user, password) = match rest[..at].split_once(':') {
            Some((user, password)) => (user, password),
            None => (&rest[..at], ""),
        };
        store(&mut values, "user", user)?;
        store(&mut values, "password", password)?;
        rest = &rest[at + 1..];
    }
    let (hosts, ports, after) = host_list(rest)?;
    store(&mut values, "host", &hosts)?;
    store(&mut values, "port", &ports)?;
    rest = after;
    let mut dbname = "";
    if let Some(after) = rest.strip_prefix('/') {
        let end = after.find('?').unwrap_or(after.len());
        (dbname, rest) = after.split_at(end);
        store(&mut values, "dbname", dbname)?;
    }
    if let Some(query) = rest.strip_prefix('?') {
        parse_query(query, &mut values)?;
    }
    let parts = [&*hosts, &*ports, dbname];
    let address_is_doubtful = parts.iter().any(|part| part.contains('@'));
    Ok(Parsed {
        values,
        address_is_doubtful,
    })
}

/// Stores a part of the authority or the path; one that is not there leaves the setting open.
fn store(values: &mut Values, keyword: &str, encoded: &str) -> Result<(), String> {
    if !encoded.is_empty() {
        values.set(keyword, &decode(encoded, keyword)?);
    }
    Ok(())
}

/// The hosts and ports, each as libpq's list of them, and what follows.
fn host_list(text: &str) -> Result<(String, String, &str), String> {
    let (mut hosts, mut ports) = (String::new(), String::new());
    let mut rest = text;
    loop {
        let host;
        if let Some(bracketed) = rest.strip_prefix('[') {
            let Some((address, after)) = bracketed.split_once(']') else {
                return Err("the IPv6 address has no closing \"]\"".into());
            };
            if address.is_empty() {
                return Err("the IPv6 address between \"[\" and \"]\" is empty".into());
            }
            if !after.is_empty() && !after.starts_with([':', '/', '?', ',']) {
                return Err("after \"]\", only \":\", \"/\", \"?\" or \",\" may follow".into());
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

fn parse_query(query: &str, values: &mut Values) -> Result<(), String> {
    // An "@" after the "?" can mean that all of this belongs to a password.
    let mut sayable = !query.contains('@');
    // One at the very end separates nothing.
    let query = query.strip_suffix('&').filter(|_| query != "&").unwrap_or(query);
    if query.is_empty() {
        return Ok(());
    }
    for (n, parameter) in query.split('&').enumerate() {
        let name = parameter.split('=').next().unwrap_or_default();
        let said = match sayable && is_word(name) {
            true => format!("the parameter {name:?}"),
            false => format!("parameter number {}", n + 1),
        };
        let Some((name, value)) = parameter.split_once('=') else {
            return Err(format!("{said} has no \"=\" and no value"));
        };
        if value.contains('=') {
            return Err(format!("{said} has a second \"=\"; in a value it is written %3D"));
        }
        let place = if sayable && is_word(name) { name } else { "a parameter" };
        let (name, value) = (decode(name, place)?, decode(value, place)?);
        let (name, value) = match (name.as_str(), value.as_str()) {
            ("ssl", "true") => ("sslmode", "require"),
            other => other,
        };
        if !values.set(name, value) {
            return Err(format!("{said} is no setting{}", hint(name)));
        }
        sayable &= !is_secret(name);
    }
    Ok(())
}

/// Undoes the percent-encoding.
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
                    "a \"%\" in {place} is not followed by two hexadecimal digits; the sign itself is written %25"
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
    use crate::connection::keyword::KEYWORDS;
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
    fn uris_as_libpqs_own_tests_have_them() {
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
    fn pairs_as_libpq_reads_them() {
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
    fn mistakes_are_named_where_that_gives_nothing_away() {
        let error = |text| parse(text).err().unwrap_or_else(|| panic!("{text} is accepted"));
        assert_eq!(error("ssl_mode=x"), "\"ssl_mode\" is no setting; is sslmode meant?");
        assert_eq!(
            error("password=correct horse battery"),
            "there is no \"=\" after setting number 2; a value with blanks is written in single quotes"
        );
        assert_eq!(
            error("postgres://u:p@h/d?schema=public"),
            "the parameter \"schema\" is no setting"
        );
        assert_eq!(error("postgres://u:p/a?b=c@h/d"), "parameter number 1 is no setting");
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
    fn an_address_that_may_be_half_a_password_is_doubtful() {
        let doubtful = |text| parse(text).is_ok_and(|parsed| parsed.address_is_doubtful);
        assert!(doubtful("postgres://u:p@ss@h/d"));
        assert!(doubtful("postgres://u:p@ss/w@h/d"));
        assert!(doubtful("postgres://u:p/w@h/d"));
        assert!(!doubtful("postgres://u:p@h/d?user=a@b"));
        assert!(!doubtful("postgres://u:p%40ss@h/d"));
    }

    fn keyword() -> impl Strategy<Value = &'static str> {
        (0..KEYWORDS.len()).prop_map(|n| KEYWORDS[n].0)
    }

    fn encoded(text: &str) -> String {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
        let bytes = text.bytes().map(|b| match plain(b) {
            true => char::from(b).to_string(),
            false => format!("%{b:02X}"),
        });
        bytes.collect()
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(text in ".*", tail in "[a-z=&%@:/?,\\[\\]'\\\\ 0-9]*") {
            for text in [text.clone(), format!("postgres://{text}"), format!("postgresql://{tail}"), tail.clone(),
                         format!("host={tail}{text}")] {
                let _ = parse(&text);
            }
        }

        #[test]
        fn what_is_written_as_pairs_reads_back(pairs in prop::collection::btree_map(keyword(), "[^\u{0}]*", 1..6)) {
            let written = pairs.iter().map(|(k, v)| {
                format!("{k}='{}' ", v.replace('\\', "\\\\").replace('\'', "\\'"))
            });
            let wanted: Vec<_> = pairs.clone().into_iter().collect();
            prop_assert_eq!(settings(&written.collect::<String>()), wanted);
        }

        #[test]
        fn what_is_written_as_a_uri_reads_back(pairs in prop::collection::btree_map(keyword(), "[^\u{0}]+", 1..6)) {
            let written: Vec<_> = pairs.iter().map(|(k, v)| format!("{k}={}", encoded(v))).collect();
            let wanted: Vec<_> = pairs.clone().into_iter().collect();
            prop_assert_eq!(settings(&format!("postgres://?{}", written.join("&"))), wanted);
        }

        /// However carelessly a password is put into a string.
        #[test]
        fn no_error_has_a_piece_of_a_password(
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
                if let Err(error) = parse(&text) {
                    for piece in secret.split(|c: char| !"XYZ".contains(c)).filter(|p| !p.is_empty()) {
                        prop_assert!(!error.contains(piece), "{text:?}: {error:?}");
                    }
                }
            }
        }
    }
}
