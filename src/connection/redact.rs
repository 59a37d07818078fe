//! What may be quoted in an error: nothing that could contain a password.
//!
//! A connection string is easily given in the wrong place, and a password that is not quoted properly spills over into
//! the names and values that follow it.

use super::parameter::find_similar;

/// Returns whether an error about an argument must not quote it: it could be a connection string with a password, given
/// where a plain value belongs. `--password`, `env=prod` and `--wait=5` may be quoted.
pub(crate) fn may_have_password(text: &str) -> bool {
    let lower_case = text.to_ascii_lowercase();
    let is_value = |rest: &str| rest.starts_with(|c: char| !c.is_ascii_alphanumeric() && !"-_./".contains(c));
    let mut rests = lower_case.split("password").skip(1);
    let is_secret_parameter = |name: &str| may_be_secret(name) && !name.starts_with('-');
    text.contains("://")
        || has_login(text)
        || rests.any(is_value)
        || has_parameter(text, &separators(), is_secret_parameter)
        || has_password(text)
}

/// Returns whether the text has a recognizable password in it: as a parameter, `password=...`, or as the login of a URI,
/// `//user:password@host`. `password-rotation` and `s3://bucket/x` have none.
pub(crate) fn has_password(text: &str) -> bool {
    let mut uris = text.match_indices("//").map(|(at, _)| text.split_at(at));
    has_parameter(text, &separators(), is_password)
        || text.contains('@') && uris.any(|(scheme, rest)| has_login_in_uri(scheme, &rest[2..]))
}

/// Returns what may precede a parameter in any connection string, or in a key after `name:`.
fn separators() -> Vec<char> {
    [&[';', '&', '?', ':'], &WHITESPACE[..]].concat()
}

/// Returns whether PostgreSQL's clients call a secret this, possibly misspelled: `password`, `PGPASSWORD`, `Pwd`. Not
/// `password_file`, nor everything that may be secret: a lock may well be called `token=5` or `pass=2`.
fn is_password(name: &str) -> bool {
    let lower_case = name.trim_matches(['"', '\'']).to_ascii_lowercase();
    let last_word = lower_case.rsplit(['_', '-', '.']).next().unwrap_or_default();
    find_similar(&lower_case).is_some_and(is_secret)
        || ["password", "passwd"].iter().any(|end| last_word.ends_with(end))
        || ["pwd", "psw"].contains(&last_word)
}

/// Returns whether a URI, given as what is in front of its slashes and what follows, goes on with `user:password@`, even
/// if the password has a slash in it. As for libpq, a number before a slash is a port: `host:5432/db@x`. Only in a URI
/// of PostgreSQL does a password contain whitespace; another one may be part of a sentence.
fn has_login_in_uri(scheme: &str, rest: &str) -> bool {
    let authority = rest.split('/').next().unwrap_or_default();
    let is_port = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // Neither an IPv6 address nor a query is the name of a user.
    let is_user = |text: &str| !text.contains(['[', '?', '#']);
    let login = authority.split_once(':');
    if !login.is_some_and(|(user, password)| is_user(user) && !is_port(password)) {
        return false;
    }
    let last_word = scheme
        .rsplit(|c: char| !c.is_ascii_alphanumeric())
        .nth(1)
        .unwrap_or_default();
    let is_postgres = ["postgres", "postgresql"]
        .iter()
        .any(|name| last_word.eq_ignore_ascii_case(name));
    let word = rest.split(WHITESPACE).next().unwrap_or_default();
    has_login(if is_postgres { rest } else { word })
}

/// The whitespace that separates libpq's pairs.
pub(super) const WHITESPACE: [char; 6] = [' ', '\t', '\r', '\n', '\x0b', '\x0c'];

/// Quotes a value for an error, unless it could contain a password.
pub(crate) fn quoted(value: &str) -> String {
    let has_parameters = has_parameter(value, &separators(), is_like_parameter_name);
    let mentions_password = value.to_ascii_lowercase().contains("password");
    if may_have_password(value) || has_parameters || mentions_password || value.contains('@') {
        "a connection string".into()
    } else {
        format!("{value:?}")
    }
}

/// Returns whether the value of a parameter may be secret, also if its name is that of another tool, or misspelled.
pub(super) fn may_be_secret(name: &str) -> bool {
    let lower_case = name.to_ascii_lowercase();
    let parts = ["pass", "pwd", "psw", "secret", "token"];
    is_secret(name) || find_similar(name).is_some_and(is_secret) || parts.iter().any(|part| lower_case.contains(part))
}

/// Returns whether a value goes on with another parameter after one of these separators, as in a string that was
/// written for another library: `db;password=...`. The name must be one that `is_name` accepts.
pub(super) fn holds_parameter(value: &str, separators: &[char], is_name: fn(&str) -> bool) -> bool {
    let rest = value.split_once(separators);
    rest.is_some_and(|(_, rest)| has_parameter(rest, separators, is_name))
}

/// Returns whether there is a parameter, `name=...` or `name = ...`, at the beginning or after one of these separators.
/// The name must be one that `is_name` accepts.
pub(super) fn has_parameter(value: &str, separators: &[char], is_name: fn(&str) -> bool) -> bool {
    // What follows the last `=` is no name.
    let before_values = value.rsplit('=').skip(1);
    let mut names = before_values.filter_map(|before| before.trim_end().rsplit(separators).next());
    names.any(|name| is_name(name.trim()))
}

/// Returns whether the text could be `user:password@host`. A name of a user may contain `@`, as `user@server` in Azure,
/// and an entry of a list of hosts may begin with it.
pub(super) fn has_login(text: &str) -> bool {
    let is_login = |(_, rest): (&str, &str)| rest.replace(",@", "").contains('@');
    !text.starts_with('@') && text.split_once(':').is_some_and(is_login)
}

/// Returns whether the text is the name of a parameter of libpq, or similar to one, or that of a secret.
pub(super) fn is_similar_to_parameter(name: &str) -> bool {
    find_similar(name).is_some() || may_be_secret(name)
}

/// Returns whether the value of this parameter is secret.
pub(super) fn is_secret(parameter: &str) -> bool {
    let secrets = [
        "password",
        "sslpassword",
        "oauth_client_secret",
        "scram_client_key",
        "scram_server_key",
    ];
    secrets.contains(&parameter)
}

/// Returns whether the text looks like a parameter name, possibly misspelled. Anything else may be part of a password.
pub(super) fn is_like_parameter_name(text: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    !text.is_empty() && text.len() <= 40 && text.chars().all(is_allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_told_from_a_name() {
        for text in [
            "host=db password=x",
            "Host=db;Username=u;Pwd = x",
            "name:password=x",
            "name:pwd=x",
            "user=u pasword=x",
            "\"password\"='x'",
            "'password' => 'x'",
            "db:PGPASSWORD=x",
            "jdbc:postgresql://db/app?user=u&password=x",
            "postgresql://u:x@db/app",
            "//u:x@db",
            "postgresql://u:p/x@db/app",
            "postgresql://u:/x@db/app",
            "postgresql://u:12x@db/app",
            "postgresql://u:12#x@db/app",
            "postgresql://u:p x@db/app",
            "of a.example://b, redis://:x@cache",
        ] {
            assert!(has_password(text), "{text}");
        }
        for text in [
            "backup",
            "password-rotation",
            "reset password",
            "reset-password:tenant=42",
            "s3://bucket/passwords/dt=2024",
            "password_reset=nightly",
            "passwordless=on",
            "file=/etc/passwd,host=db1",
            "RESTIC_PASSWORD_FILE=/etc/restic",
            "compass=north",
            "pass=2",
            "token=5",
            "passfile=/etc/pgpass",
            "s3://bucket/x",
            "app:v1@prod",
            "postgresql://u@db:5432/app",
            "postgresql://db:5432/app@night",
            "http://[2001:db8::1]:5432/app@main",
            "https://example.org/app:1.2@sha256:77",
            "https://example.org:8080, ask ops@example.org",
            "see (https://example.org:8080), ask ops@example.org",
            "https://wiki until 12:30h, ask ops@example.org",
            "ssh://git@example.org:22/app@main",
            "https://example.org?at=12:30&by=ops@example.org",
            "a=b",
            "=",
        ] {
            assert!(!has_password(text), "{text}");
        }
    }

    #[test]
    fn an_error_does_not_quote_what_may_have_a_password() {
        for text in [
            "password: x",
            "password x",
            "host=db pgpass=x",
            "u:x@db/app",
            "postgresql://db",
            "--password=x",
        ] {
            assert!(may_have_password(text), "{text}");
            assert_eq!(quoted(text), "a connection string");
        }
        for text in [
            "--password",
            "/opt/bin/reset-password.sh",
            "env=prod",
            "--wait=5",
            "--token=5",
            "ops@example.org",
        ] {
            assert!(!may_have_password(text), "{text}");
        }
    }
}
