//! `pglock key`: prints the number of a key, or the SQL that computes it, without connecting to a server.
//!
//! For the keys on the command line, a script gets either every number or a failure. The table of all schemes is for
//! people: where a number cannot be computed locally, it says why.

use crate::cli::{KeyFormat, KeyOptions, KeySelection};
use crate::key::hash::{SCHEMES, SchemeInput};
use crate::key::{Key, KeyId, Number};
use crate::outcome::{ExitCode, Failure, Outcome};
use crate::ui::stdout;

/// Runs `pglock key`.
///
/// # Errors
/// Fails if a number depends on a server, if `--dbname` has no effect, or if standard output cannot be written.
pub(crate) fn run(options: &KeyOptions) -> Result<Outcome, Failure> {
    let text = match &options.selection {
        KeySelection::Keys(keys) => print_keys(keys, &options.format)?,
        KeySelection::AllSchemes(name) => print_all_schemes(name, &options.format),
    };
    stdout::print(&text)?;
    Ok(Outcome::Success)
}

/// Returns the keys in this format, one per line.
///
/// # Errors
/// Fails if a number depends on a server, or if `--dbname` has no effect.
fn print_keys(keys: &[Key], format: &KeyFormat) -> Result<String, Failure> {
    let mut text = String::new();
    for key in keys {
        text += &print_key(key, format)?;
        text.push('\n');
    }
    Ok(text)
}

/// Returns the key in this format.
///
/// # Errors
/// Fails if the number depends on a server, or if `--dbname` has no effect.
fn print_key(key: &Key, format: &KeyFormat) -> Result<String, Failure> {
    let KeyFormat::Number { database } = format else {
        return key.sql().ok_or_else(|| {
            let message = format!("there is no SQL expression for key {key}, which {}", why_unknown(key));
            Failure::msg(ExitCode::Usage, message)
        });
    };
    if database.is_some() && key.number().known().is_some() {
        return Err(Failure::msg(
            ExitCode::Usage,
            format!("--dbname has no effect: key {key} does not depend on the database"),
        ));
    }
    match id_in(key, database.as_deref()) {
        Some(id) => Ok(id.to_string()),
        None => {
            let reason = why_unknown(key);
            let message = if key.name().is_some() {
                format!("the number of key {key} is {reason}; use --sql to print the expression")
            } else {
                format!("the number of key {key} {reason}")
            };
            Err(Failure::msg(ExitCode::Usage, message))
        }
    }
}

fn print_all_schemes(name: &Key, format: &KeyFormat) -> String {
    let width = SCHEMES.iter().map(|info| info.name.len()).max().unwrap_or_default();
    let mut text = String::new();
    for info in &SCHEMES {
        let key = match info.input {
            SchemeInput::LockName => name.clone().hashed_by(info.scheme),
            SchemeInput::DatabaseName | SchemeInput::Nothing => Key::for_tool(info.scheme),
        };
        let value = match format {
            KeyFormat::Sql => key.sql().unwrap_or_else(|| why_unknown(&key)),
            KeyFormat::Number { database } => match id_in(&key, database.as_deref()) {
                Some(id) => id.to_string(),
                None => why_unknown(&key),
            },
        };
        text += &format!("{:<width$}  {value}\n", info.name);
    }
    text
}

fn id_in(key: &Key, database: Option<&str>) -> Option<KeyId> {
    match key.number() {
        Number::Known(id) => Some(id),
        Number::Computed(_) => key.id_in(database?),
    }
}

fn why_unknown(key: &Key) -> String {
    match key.sql() {
        Some(expression) => format!("computed by the server: {expression}"),
        None => "depends on the database; use --dbname NAME".to_owned(),
    }
}
