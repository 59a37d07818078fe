//! What may be quoted in an error: nothing that could contain a password.
//!
//! A connection string is easily given in the wrong place, and a password that is not quoted properly spills over into
//! the names and values that follow it.

use super::parameter::find_similar;

/// Returns whether the text could be a connection string with a password, given where a plain value belongs.
pub(crate) fn may_have_password(text: &str) -> bool {
    text.contains("://") || text.to_ascii_lowercase().contains("password")
}

/// The whitespace that separates libpq's pairs.
pub(super) const WHITESPACE: [char; 6] = [' ', '\t', '\r', '\n', '\x0b', '\x0c'];

/// Quotes a value for an error, unless it could contain a password.
pub(crate) fn quoted(value: &str) -> String {
    let separators = [&[';', '&'], &WHITESPACE[..]].concat();
    let has_parameters = has_parameter(value, &separators, is_like_parameter_name);
    if may_have_password(value) || has_parameters || value.contains('@') {
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
