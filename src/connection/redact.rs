//! What may be quoted in an error: nothing that could contain a password.
//!
//! A connection string is easily given in the wrong place, and a password that is not quoted properly spills over into
//! the names and values that follow it.

use super::parameter::find_similar;

/// Returns whether an error must not quote the text: it could be a connection string, given where a plain value belongs.
pub(crate) fn may_be_connection_string(text: &str) -> bool {
    let separators = [&[';', '&'], &WHITESPACE[..]].concat();
    text.contains("://")
        || text.contains('@')
        || has_parameter(text, &separators, is_like_parameter_name)
        || has_password(text)
}

/// Returns whether the text has a recognizable password in it: as a parameter, `password=...`, or as the login of a URI,
/// `//user:password@host`. `password-rotation` and `s3://bucket/x` have none.
pub(crate) fn has_password(text: &str) -> bool {
    let separators = [&[';', '&', '?', '/', ':', '(', '"', '\''], &WHITESPACE[..]].concat();
    let mut rests_of_uris = text
        .match_indices("//")
        .map(|(at, slashes)| &text[at + slashes.len()..]);
    has_parameter(text, &separators, is_password) || rests_of_uris.any(starts_with_login)
}

/// Returns whether this is what PostgreSQL's clients call a password, possibly misspelled: `password`, `PGPASSWORD`,
/// `Pwd`. Not `password_file`, nor everything that may be secret: a lock may well be called `token=5` or `pass=2`.
fn is_password(name: &str) -> bool {
    let lower_case = name.to_ascii_lowercase();
    let last_word = lower_case.rsplit(['_', '-', '.']).next().unwrap_or_default();
    find_similar(name).is_some_and(is_secret) || last_word.contains("passw") || ["pwd", "psw"].contains(&last_word)
}

/// Returns whether a URI goes on with `user:password@` after its slashes, even if the password has another slash in it.
/// A number is a port, which libpq also takes it for: `host:5432/db@x`.
fn starts_with_login(rest: &str) -> bool {
    let is_after_host = |c: char| "/?#,".contains(c) || c.is_whitespace();
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let Some((user, after_colon)) = authority.split_once(':') else {
        return false;
    };
    let end_of_digits = after_colon.trim_start_matches(|c: char| c.is_ascii_digit());
    let is_port =
        after_colon != end_of_digits && (end_of_digits.is_empty() || end_of_digits.starts_with(is_after_host));
    let is_text = after_colon.starts_with(char::is_whitespace);
    !user.starts_with('[') && !is_port && !is_text && has_login(rest)
}

/// The whitespace that separates libpq's pairs.
pub(super) const WHITESPACE: [char; 6] = [' ', '\t', '\r', '\n', '\x0b', '\x0c'];

/// Quotes a value for an error, unless it could contain a password.
pub(crate) fn quoted(value: &str) -> String {
    if may_be_connection_string(value) || value.to_ascii_lowercase().contains("password") {
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
    value.match_indices('=').any(|(at, _)| {
        let before = value[..at].trim_end();
        before
            .rsplit(separators)
            .next()
            .is_some_and(|name| is_name(name.trim()))
    })
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
            "user=u passwrod=x",
            "\"password\"='x', db:PGPASSWORD=x",
            "jdbc:postgresql://db/app?user=u&password=x",
            "postgresql://u:x@db/app",
            "//u:x@db",
            "postgresql://u:p/x@db/app",
            "postgresql://u:/x@db/app",
            "postgresql://u:12x@db/app",
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
            "see https://wiki: ask ops@example.org",
            "ssh://git@example.org:22/app@main",
            "a=b",
            "=",
        ] {
            assert!(!has_password(text), "{text}");
        }
    }
}
