//! The connection parameters that libpq knows, and the values that one source gives for them.
//!
//! The table is that of libpq 18, so a newer parameter is accepted, or refused with the reason, even where the
//! installed psql is too old to know it. A name that is not in the table is an error: ignoring a misspelled `sslmode`
//! would mean connecting without TLS.

use std::borrow::Cow;
use std::collections::BTreeMap;

/// The name of a parameter, and the environment variable that sets it if nothing else does.
pub(super) type Parameter = (&'static str, Option<&'static str>);

/// Every parameter of libpq 18.
pub(super) const PARAMETERS: &[Parameter] = &[
    ("application_name", Some("PGAPPNAME")),
    ("channel_binding", Some("PGCHANNELBINDING")),
    ("client_encoding", Some("PGCLIENTENCODING")),
    ("connect_timeout", Some("PGCONNECT_TIMEOUT")),
    ("dbname", Some("PGDATABASE")),
    ("fallback_application_name", None),
    ("gssdelegation", Some("PGGSSDELEGATION")),
    ("gssencmode", Some("PGGSSENCMODE")),
    ("gsslib", Some("PGGSSLIB")),
    ("host", Some("PGHOST")),
    ("hostaddr", Some("PGHOSTADDR")),
    ("keepalives", None),
    ("keepalives_count", None),
    ("keepalives_idle", None),
    ("keepalives_interval", None),
    ("krbsrvname", Some("PGKRBSRVNAME")),
    ("load_balance_hosts", Some("PGLOADBALANCEHOSTS")),
    ("max_protocol_version", Some("PGMAXPROTOCOLVERSION")),
    ("min_protocol_version", Some("PGMINPROTOCOLVERSION")),
    ("oauth_client_id", None),
    ("oauth_client_secret", None),
    ("oauth_issuer", None),
    ("oauth_scope", None),
    ("options", Some("PGOPTIONS")),
    ("passfile", Some("PGPASSFILE")),
    ("password", Some("PGPASSWORD")),
    ("port", Some("PGPORT")),
    ("replication", None),
    ("require_auth", Some("PGREQUIREAUTH")),
    ("requirepeer", Some("PGREQUIREPEER")),
    ("scram_client_key", None),
    ("scram_server_key", None),
    ("service", Some("PGSERVICE")),
    ("servicefile", Some("PGSERVICEFILE")),
    ("ssl_max_protocol_version", Some("PGSSLMAXPROTOCOLVERSION")),
    ("ssl_min_protocol_version", Some("PGSSLMINPROTOCOLVERSION")),
    ("sslcert", Some("PGSSLCERT")),
    ("sslcertmode", Some("PGSSLCERTMODE")),
    ("sslcompression", Some("PGSSLCOMPRESSION")),
    ("sslcrl", Some("PGSSLCRL")),
    ("sslcrldir", Some("PGSSLCRLDIR")),
    ("sslkey", Some("PGSSLKEY")),
    ("sslkeylogfile", None),
    ("sslmode", Some("PGSSLMODE")),
    ("sslnegotiation", Some("PGSSLNEGOTIATION")),
    ("sslpassword", None),
    ("sslrootcert", Some("PGSSLROOTCERT")),
    ("sslsni", Some("PGSSLSNI")),
    ("target_session_attrs", Some("PGTARGETSESSIONATTRS")),
    ("tcp_user_timeout", None),
    ("user", Some("PGUSER")),
];

/// The parameter values that one or more sources give. An empty value counts as given: it keeps later sources from
/// setting the parameter, which then has its default.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Values(BTreeMap<&'static str, Value>);

#[derive(Clone, PartialEq, Eq)]
struct Value {
    text: String,
    /// The variable that set it, or else the name of the parameter.
    origin: Cow<'static, str>,
    /// The value cannot be part of a password.
    is_quotable: bool,
}

impl Value {
    fn new(text: String, origin: &'static str) -> Value {
        Value {
            text,
            origin: Cow::Borrowed(origin),
            is_quotable: true,
        }
    }
}

impl Values {
    /// Returns the value, if one is given and not empty.
    pub(super) fn get(&self, parameter: &str) -> Option<&str> {
        self.get_given(parameter).filter(|value| !value.is_empty())
    }

    /// Returns the value, if one is given, even if it is empty.
    pub(super) fn get_given(&self, parameter: &str) -> Option<&str> {
        self.0.get(parameter).map(|value| value.text.as_str())
    }

    /// Returns whether a value is given, even if it is empty.
    pub(super) fn has(&self, parameter: &str) -> bool {
        self.0.contains_key(parameter)
    }

    /// Returns what to call the parameter in an error: the variable that set it, or its own name.
    pub(super) fn origin<'a>(&'a self, parameter: &'a str) -> &'a str {
        self.0.get(parameter).map_or(parameter, |value| &value.origin)
    }

    /// Returns whether an error may quote the value of the parameter.
    pub(super) fn is_quotable(&self, parameter: &str) -> bool {
        self.0.get(parameter).is_none_or(|value| value.is_quotable)
    }

    /// Keeps errors from quoting the value of a parameter, because it may be part of a password.
    pub(super) fn hide(&mut self, parameter: &str) {
        if let Some(value) = self.0.get_mut(parameter) {
            value.is_quotable = false;
        }
    }

    /// Makes errors say that these values come from this variable.
    pub(super) fn attribute_to(&mut self, variable: &str) {
        for (parameter, value) in &mut self.0 {
            value.origin = format!("{parameter} in {variable}").into();
        }
    }

    /// Sets a parameter from an environment variable.
    pub(super) fn set_from(&mut self, variable: &'static str, parameter: &'static str, text: String) {
        self.0.insert(parameter, Value::new(text, variable));
    }

    /// Sets a parameter, replacing an earlier value of the same source. Returns `false` if there is no such parameter.
    #[must_use]
    pub(super) fn set(&mut self, parameter: &str, value: &str) -> bool {
        // The boolean predecessor of sslmode, which libpq still accepts.
        let (parameter, value) = match (parameter, value.as_bytes().first()) {
            ("requiressl", Some(b'1')) => ("sslmode", "require"),
            ("requiressl", _) => ("sslmode", "prefer"),
            _ => (parameter, value),
        };
        let known = PARAMETERS.iter().find(|(name, _)| *name == parameter);
        if let Some((name, _)) = known {
            self.0.insert(name, Value::new(value.to_owned(), name));
        }
        known.is_some()
    }

    /// Sets a parameter that is in the table.
    pub(super) fn set_known(&mut self, parameter: &str, value: &str) {
        let is_known = self.set(parameter, value);
        debug_assert!(is_known, "{parameter} is not in the table");
    }

    /// Adds the values of the next source for the parameters that are not given yet.
    pub(super) fn fill(&mut self, next: Values) {
        for (parameter, value) in next.0 {
            self.0.entry(parameter).or_insert(value);
        }
    }

    /// Iterates over all given values.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(name, value)| (*name, value.text.as_str()))
    }
}

/// Returns the parameter that a misspelled name probably stands for.
pub(super) fn find_similar(name: &str) -> Option<&'static str> {
    let wanted = match normalized(name).as_str() {
        "username" => "user".to_owned(),
        "database" | "db" => "dbname".to_owned(),
        "hostname" => "host".to_owned(),
        "ssl" => "sslmode".to_owned(),
        other => other.to_owned(),
    };
    find_similar_in(&wanted, PARAMETERS.iter().map(|(known, _)| *known))
}

/// Returns the first of these names that differs from a misspelled one in no more than one letter, in case, or in
/// punctuation.
pub(super) fn find_similar_in(name: &str, mut known: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let wanted = normalized(name);
    known.find(|known| {
        let known = normalized(known);
        wanted.len() > 3 && (known == wanted || is_one_edit_away(&known, &wanted))
    })
}

/// Returns the letters and digits of a name, in lower case.
pub(super) fn normalized(name: &str) -> String {
    let kept = name.chars().filter(char::is_ascii_alphanumeric);
    kept.collect::<String>().to_ascii_lowercase()
}

/// Returns whether one insertion, deletion or substitution turns one text into the other.
fn is_one_edit_away(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let common_prefix = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    let (rest_a, rest_b) = (&a[common_prefix..], &b[common_prefix..]);
    match a.len().abs_diff(b.len()) {
        0 => rest_a.get(1..) == rest_b.get(1..),
        1 if a.len() > b.len() => &rest_a[1..] == rest_b,
        1 => rest_a == &rest_b[1..],
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelled_names_are_recognized() {
        assert_eq!(find_similar("ssl_mode"), Some("sslmode"));
        assert_eq!(find_similar("sslmod"), Some("sslmode"));
        assert_eq!(find_similar("database"), Some("dbname"));
        assert_eq!(find_similar("pool_size"), None);
        assert_eq!(find_similar("x"), None);
    }

    #[test]
    fn an_empty_value_is_not_filled_from_the_next_source() {
        let mut values = Values::default();
        assert!(values.set("host", ""));
        let mut next = Values::default();
        assert!(next.set("host", "elsewhere") && next.set("port", "1"));
        values.fill(next);
        assert_eq!((values.get("host"), values.get("port")), (None, Some("1")));
        assert!(values.has("host") && !values.set("hots", "x"));
    }
}
