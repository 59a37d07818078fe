//! Connection strings in the place of a single value: a URI in `PGDATABASE`, or pairs with whitespace or `;` between
//! them.

use super::parameter::Values;
use super::redact::{
    WHITESPACE, has_login, has_parameter, holds_parameter, is_like_parameter_name, is_secret, is_similar_to_parameter,
};
use super::settings_error::SettingsError;

/// Refuses a value that is a connection string, or goes on with another parameter as one does that was written for
/// another library. libpq would resolve it as a host name, or send it as a name to the server, and its message would
/// show the password.
///
/// # Errors
/// There is such a value. The error does not quote it.
pub(super) fn refuse(values: &Values) -> Result<(), SettingsError> {
    for (parameter, value) in values.iter().filter(|(parameter, _)| !is_secret(parameter)) {
        let origin = values.origin(parameter);
        let is_address = ["dbname", "host", "hostaddr", "port", "user"].contains(&parameter);
        // A name may contain whitespace and `=`.
        let is_parameter = |name: &str| is_like_parameter_name(name) && is_similar_to_parameter(name);
        let has_pairs = || has_parameter(value, &WHITESPACE, is_parameter);
        if is_address && (value.contains("://") || has_login(value) || has_pairs()) {
            return Err(SettingsError::inconsistent(format!(
                "{origin} is a connection string; use --dsn or PGLOCK_DSN"
            )));
        }
        let is_name = if is_address {
            is_like_parameter_name
        } else {
            is_similar_to_parameter
        };
        if holds_parameter(value, &[';', '&'], is_name) {
            return Err(SettingsError::inconsistent(format!(
                "{origin} goes on with another parameter after \";\" or \"&\"; give each parameter a value of its own"
            )));
        }
    }
    Ok(())
}
