//! The environment variables that list the keys of the lock, and how long they may become.

use crate::key::{Key, KeyId, Number};

/// The variable with the keys as given.
pub(super) const KEY: &str = "PGLOCK_KEY";
/// The variable with the numbers of the keys.
pub(super) const KEY_ID: &str = "PGLOCK_KEY_ID";

/// The most bytes of one variable, with its name, the equals sign and the terminating NUL: Linux's limit for each
/// string that execve(2) takes (`MAX_ARG_STRLEN`, 32 pages of 4 KiB).
const MAX_VARIABLE_BYTES: usize = 128 << 10;

/// The length of the longest number.
const MAX_NUMBER_BYTES: usize = "-9223372036854775808".len();

/// Returns the value of [`KEY`].
pub(super) fn key_value(keys: &[Key]) -> String {
    join_lines(keys.iter().map(|key| key.given().to_owned()))
}

/// Returns the value of [`KEY_ID`].
pub(super) fn key_id_value(ids: &[KeyId]) -> String {
    join_lines(ids.iter().map(KeyId::to_string))
}

/// Each line but the last ends with a newline.
fn join_lines(lines: impl Iterator<Item = String>) -> String {
    lines.collect::<Vec<_>>().join("\n")
}

/// Checks that these keys fit into the environment of a job, before anything is locked for it.
///
/// # Errors
/// A variable would be too long.
pub(crate) fn check_length(keys: &[Key]) -> Result<(), String> {
    let numbers = keys.iter().map(|key| match key.number() {
        Number::Known(id) => id.to_string().len(),
        Number::Computed(_) => MAX_NUMBER_BYTES,
    });
    let keys_bytes = key_value(keys).len();
    let ids_bytes = numbers.sum::<usize>() + keys.len().saturating_sub(1);
    for (name, value_bytes) in [(KEY, keys_bytes), (KEY_ID, ids_bytes)] {
        let bytes = name.len() + value_bytes + "=\0".len();
        if bytes > MAX_VARIABLE_BYTES {
            return Err(format!(
                "the keys do not fit into the job's environment: {name} needs {bytes} bytes, and the limit is \
                 {MAX_VARIABLE_BYTES}; use fewer keys, or one key for all of them"
            ));
        }
    }
    Ok(())
}
