//! The service file: named groups of parameters, `[name]` and lines of `keyword=value`, as libpq reads it.
//!
//! The user's file is searched first, then the system's; only the first file that defines the service counts. Within a
//! service the first value of a parameter wins, unlike in a connection string.

use super::parameter::Values;
use super::redact::{is_like_parameter_name, quoted};
use super::settings_error::SettingsError;
use std::path::PathBuf;

/// The files to search.
pub(super) struct ServiceFiles {
    /// `servicefile` or `PGSERVICEFILE`; it must be readable if it is given.
    pub explicit: Option<PathBuf>,
    /// `~/.pg_service.conf`, used if none is given.
    pub user: Option<PathBuf>,
    /// The file of the whole system.
    pub system: PathBuf,
}

/// Reads the parameters of a service.
///
/// # Errors
/// A file cannot be read or has an invalid line in the service, or no file defines it.
pub(super) fn read(name: &str, files: &ServiceFiles) -> Result<Values, SettingsError> {
    let user = match &files.explicit {
        Some(explicit) => Some(explicit),
        None => files.user.as_ref().filter(|path| path.exists()),
    };
    let system = Some(&files.system).filter(|path| path.exists());
    for path in user.into_iter().chain(system) {
        let file_error = |problem: String| SettingsError::file("service file", path, problem);
        let bytes = std::fs::read(path).map_err(|error| SettingsError::io("service file", path, &error))?;
        let text = String::from_utf8_lossy(&bytes);
        let found = find(&text, name)
            .map_err(|error| file_error(format!("is invalid in line {}: {}", error.line, error.problem)))?;
        if let Some(values) = found {
            return Ok(values);
        }
    }
    Err(SettingsError::inconsistent(format!(
        "service {} is not defined in any service file",
        quoted(name)
    )))
}

/// An invalid line of a service file.
#[derive(Debug)]
struct LineError {
    /// Counted from 1.
    line: usize,
    problem: String,
}

/// Finds the parameters of a service. Pure.
///
/// # Errors
/// A line of the service is invalid.
fn find(text: &str, name: &str) -> Result<Option<Values>, LineError> {
    let mut found: Option<Values> = None;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b');
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(header) = line.strip_prefix('[') {
            if found.is_some() {
                break;
            }
            if header.strip_prefix(name).is_some_and(|rest| rest.starts_with(']')) {
                found = Some(Values::default());
            }
            continue;
        }
        if let Some(values) = &mut found {
            let parsed = parse_line(line).map_err(|problem| LineError {
                line: index + 1,
                problem,
            })?;
            values.fill(parsed);
        }
    }
    Ok(found)
}

/// Parses a line of a service.
///
/// # Errors
/// The line is malformed, names an unknown parameter, or refers to another source.
fn parse_line(line: &str) -> Result<Values, String> {
    if line.starts_with("ldap:") {
        return Err("LDAP lookups are not supported".into());
    }
    let Some((parameter, value)) = line.split_once('=') else {
        return Err("missing \"=\"".into());
    };
    if ["service", "servicefile"].contains(&parameter) {
        return Err("a service cannot refer to another service".into());
    }
    let mut values = Values::default();
    if values.set(parameter, value) {
        Ok(values)
    } else if is_like_parameter_name(parameter) {
        Err(format!("unknown connection parameter {parameter:?}"))
    } else {
        // This may be part of a password.
        Err("the text before \"=\" is not a connection parameter".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_value_in_the_first_section_counts() {
        let text = "host=outside\n# c\n[a]\nhost=no\n[b]\r\n  host=h  \nport=1=2\nhost=late\n[b]\nuser=u\n";
        let found = find(text, "b").expect("a valid file").expect("the service");
        let pairs: Vec<_> = found.iter().collect();
        assert_eq!(pairs, [("host", "h"), ("port", "1=2")]);
        assert!(find(text, "c").expect("a valid file").is_none());
    }

    #[test]
    fn errors_have_the_line_number() {
        for (text, line) in [
            ("[a]\nhost", 2),
            ("[a]\n\nhots=x", 3),
            ("[a]\nservice=b", 2),
            ("[a]\nldap://x", 2),
        ] {
            assert_eq!(find(text, "a").err().map(|error| error.line), Some(line), "{text}");
            assert!(find(text, "b").is_ok_and(|found| found.is_none()));
        }
    }

    #[test]
    fn fuzz_service_file() {
        let examples = [
            "# x\n[a]\nhost=h\nport = 1\n[b]\n",
            "[a]\npassword: x y\n[a",
            "[a]\r\nservice=b\n=\n",
        ];
        crate::fuzz::fuzz(&examples, |input| {
            let text = String::from_utf8_lossy(input);
            if let Err(error) = find(&text, "a") {
                assert!((1..=text.lines().count()).contains(&error.line));
            }
        });
    }

    proptest! {
        #[test]
        fn a_written_service_reads_back(
            pairs in prop::collection::btree_map(
                prop::sample::select(&["host", "port", "user", "password", "sslmode"][..]),
                "[!-~]([ -~]{0,10}[!-~])?",
                0..5,
            ),
            name in "[a-z0-9_-]{1,8}",
        ) {
            let lines: String = pairs.iter().map(|(keyword, value)| format!("{keyword}={value}\n")).collect();
            let text = format!("[x{name}]\nhost=no\n[{name}]\n{lines}[y]\nhost=no\n");
            let found = find(&text, &name).expect("a valid file").expect("the service");
            let wanted: Vec<_> = pairs.iter().map(|(keyword, value)| (*keyword, value.as_str())).collect();
            prop_assert_eq!(found.iter().collect::<Vec<_>>(), wanted);
        }

        /// Wherever a badly written password ends up in the file.
        #[test]
        fn no_error_contains_any_part_of_a_password(
            before in "(password|pass word|PASSWORD|passwrod|user=u password|)( ?[=: ] ?)",
            secret in "[XYZ]{3}[ :/@#\\[\\]'\"=]{0,2}[XYZ]{3}=?[a-w]{0,3}",
            more in "[a-w0-9=:#\\[\\] \u{e9}]{0,20}",
        ) {
            for text in [format!("[a]\n{before}{secret}\n{more}"), format!("[a]\n{more}\n{before}\n{secret}")] {
                if let Err(LineError { line, problem }) = find(&text, "a") {
                    // A single word before an equals sign is what a misspelled parameter looks like.
                    let start = secret.split('=').next().unwrap_or_default();
                    let is_single_word =
                        text.lines().nth(line - 1).is_some_and(|line| line.trim().starts_with(start));
                    prop_assert!(is_single_word || !problem.contains(['X', 'Y', 'Z']), "{text:?}: {problem:?}");
                }
            }
        }
    }
}
