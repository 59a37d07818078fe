//! Every setting that libpq knows, and the values that a source gives for them.
//!
//! The table is that of libpq 18: a newer setting is accepted, or refused with its reason, also where the
//! installed psql is too old to know it. What no table has is refused by name, since a misspelt `sslmode` that
//! is dropped is a connection without TLS.

use std::collections::BTreeMap;

/// A setting, and the variable that gives it where nothing else does.
pub type Keyword = (&'static str, Option<&'static str>);

/// The settings.
pub const KEYWORDS: &[Keyword] = &[
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

/// What one source, or several, have given. An empty value is given, too: it keeps later sources from filling
/// the setting, and then means its default.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Values(BTreeMap<&'static str, Value>);

#[derive(Clone, PartialEq, Eq)]
struct Value {
    text: String,
    /// The variable that it comes from, or the setting's own name.
    source: &'static str,
}

impl Values {
    /// The value, if it is given and not empty.
    pub fn get(&self, keyword: &str) -> Option<&str> {
        self.0
            .get(keyword)
            .map(|value| value.text.as_str())
            .filter(|value| !value.is_empty())
    }

    /// Whether it is given, be it empty.
    pub fn has(&self, keyword: &str) -> bool {
        self.0.contains_key(keyword)
    }

    /// What to call it where it is wrong: the variable that gave it, or the setting.
    pub fn source<'a>(&self, keyword: &'a str) -> &'a str {
        self.0.get(keyword).map_or(keyword, |value| value.source)
    }

    /// Sets it from a variable.
    pub fn set_from(&mut self, variable: &'static str, keyword: &'static str, text: String) {
        let source = variable;
        self.0.insert(keyword, Value { text, source });
    }

    /// Sets it, as a later mention of the same source does. `false`: there is no such setting.
    pub fn set(&mut self, keyword: &str, value: &str) -> bool {
        // libpq's first word for sslmode, from before there was a choice.
        let (keyword, value) = match (keyword, value.as_bytes().first()) {
            ("requiressl", Some(b'1')) => ("sslmode", "require"),
            ("requiressl", _) => ("sslmode", "prefer"),
            _ => (keyword, value),
        };
        let known = KEYWORDS.iter().find(|(name, _)| *name == keyword);
        if let Some((name, _)) = known {
            let text = value.to_owned();
            self.0.insert(name, Value { text, source: name });
        }
        known.is_some()
    }

    /// Fills what is open from the next source.
    pub fn fill(&mut self, next: Values) {
        for (keyword, value) in next.0 {
            self.0.entry(keyword).or_insert(value);
        }
    }

    /// Everything that is given.
    #[cfg(test)]
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(k, v)| (*k, v.text.as_str()))
    }
}

/// The setting that a misspelt name is likely to mean.
pub fn similar(name: &str) -> Option<&'static str> {
    let plain = |text: &str| -> String {
        let kept = text.chars().filter(|c| c.is_ascii_alphanumeric());
        kept.collect::<String>().to_ascii_lowercase()
    };
    let wanted = match plain(name).as_str() {
        "username" => "user".to_owned(),
        "database" | "db" => "dbname".to_owned(),
        "hostname" => "host".to_owned(),
        "ssl" => "sslmode".to_owned(),
        other => other.to_owned(),
    };
    let close = |known: &str| {
        let known = plain(known);
        known == wanted || is_one_edit_away(&known, &wanted)
    };
    KEYWORDS
        .iter()
        .map(|(known, _)| *known)
        .find(|known| wanted.len() > 3 && close(known))
}

/// One letter too many, too few or wrong.
fn is_one_edit_away(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let same_start = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    let (rest_a, rest_b) = (&a[same_start..], &b[same_start..]);
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
    fn misspelt_names_are_recognised() {
        assert_eq!(similar("ssl_mode"), Some("sslmode"));
        assert_eq!(similar("sslmod"), Some("sslmode"));
        assert_eq!(similar("database"), Some("dbname"));
        assert_eq!(similar("pool_size"), None);
        assert_eq!(similar("x"), None);
    }

    #[test]
    fn what_is_given_empty_stays_given() {
        let mut values = Values::default();
        assert!(values.set("host", ""));
        let mut next = Values::default();
        next.set("host", "elsewhere");
        next.set("port", "1");
        values.fill(next);
        assert_eq!((values.get("host"), values.get("port")), (None, Some("1")));
        assert!(values.has("host") && !values.set("hots", "x"));
    }
}
