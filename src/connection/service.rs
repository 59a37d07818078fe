//! The service file: named sets of settings, `[name]` and lines of `keyword=value`, as libpq reads it.
//!
//! The user's file is asked first, then the system's; the first that has the name is the only one that counts.
//! Within a service the first mention of a setting wins, unlike in a connection string.

use super::keyword::Values;
use super::parse;
use std::path::{Path, PathBuf};

/// Where to look.
pub struct Files {
    /// `servicefile` or PGSERVICEFILE: must be readable, if it is named.
    pub named: Option<PathBuf>,
    /// `~/.pg_service.conf`, used if nothing is named.
    pub home: Option<PathBuf>,
    /// The system's.
    pub system: PathBuf,
}

/// The settings of the service.
pub fn read(name: &str, files: &Files) -> Result<Values, String> {
    let users = match &files.named {
        Some(named) => Some(named),
        None => files.home.as_ref().filter(|path| path.exists()),
    };
    let system = Some(&files.system).filter(|path| path.exists());
    for path in users.into_iter().chain(system) {
        let text =
            std::fs::read(path).map_err(|error| format!("cannot read the service file {}: {error}", path.display()))?;
        let text = String::from_utf8_lossy(&text);
        let found = find(&text, name).map_err(|(line, what)| wrong(path, line, &what))?;
        if let Some(values) = found {
            return Ok(values);
        }
    }
    Err(format!(
        "there is no service {} in the service file",
        parse::quoted(name)
    ))
}

fn wrong(path: &Path, line: usize, what: &str) -> String {
    format!("line {line} of the service file {}: {what}", path.display())
}

/// The service's settings, or the number of a line that is wrong and what is. Pure.
pub fn find(text: &str, name: &str) -> Result<Option<Values>, (usize, String)> {
    let mut found: Option<Values> = None;
    for (n, line) in text.lines().enumerate() {
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
            let set = setting(line).map_err(|what| (n + 1, what))?;
            values.fill(set);
        }
    }
    Ok(found)
}

fn setting(line: &str) -> Result<Values, String> {
    if line.starts_with("ldap:") {
        return Err("settings from LDAP are not supported".into());
    }
    let Some((keyword, value)) = line.split_once('=') else {
        return Err("there is no \"=\"".into());
    };
    if ["service", "servicefile"].contains(&keyword) {
        return Err("a service cannot name another".into());
    }
    let mut values = Values::default();
    match values.set(keyword, value) {
        true => Ok(values),
        // What is not a word may be the rest of a password.
        false if parse::is_word(keyword) => Err(format!("{keyword:?} is no setting")),
        false => Err("what is before the \"=\" is no setting".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_mention_in_the_first_section_counts() {
        let text = "host=outside\n# c\n[a]\nhost=no\n[b]\r\n  host=h  \nport=1=2\nhost=late\n[b]\nuser=u\n";
        let found = find(text, "b").expect("a good file").expect("the service");
        let pairs: Vec<_> = found.iter().collect();
        assert_eq!(pairs, [("host", "h"), ("port", "1=2")]);
        assert!(find(text, "c").expect("a good file").is_none());
    }

    #[test]
    fn wrong_lines_are_told_by_number() {
        for (text, line) in [
            ("[a]\nhost", 2),
            ("[a]\n\nhots=x", 3),
            ("[a]\nservice=b", 2),
            ("[a]\nldap://x", 2),
        ] {
            assert_eq!(find(text, "a").err().map(|e| e.0), Some(line), "{text}");
            assert!(find(text, "b").is_ok_and(|found| found.is_none()));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(
            pairs in prop::collection::btree_map(prop::sample::select(&["host", "port", "user", "password", "sslmode"][..]), "[!-~]([ -~]{0,10}[!-~])?", 0..5),
            name in "[a-z0-9_-]{1,8}",
        ) {
            let lines: String = pairs.iter().map(|(keyword, value)| format!("{keyword}={value}\n")).collect();
            let text = format!("[x{name}]\nhost=no\n[{name}]\n{lines}[y]\nhost=no\n");
            let found = find(&text, &name).expect("a good file").expect("the service");
            let wanted: Vec<_> = pairs.iter().map(|(keyword, value)| (*keyword, value.as_str())).collect();
            prop_assert_eq!(found.iter().collect::<Vec<_>>(), wanted);
        }

        /// However carelessly a password is put into the file; and whatever else is in it.
        #[test]
        fn no_error_has_a_piece_of_a_password(
            before in "(password|pass word|PASSWORD|passwrod|user=u password|)( ?[=: ] ?)",
            secret in "[XYZ]{3}[ :/@#\\[\\]'\"=]{0,2}[XYZ]{3}=?[a-w]{0,3}",
            more in "[a-w0-9=:#\\[\\] \u{e9}]{0,20}",
        ) {
            for text in [format!("[a]\n{before}{secret}\n{more}"), format!("[a]\n{more}\n{before}\n{secret}")] {
                if let Err((line, error)) = find(&text, "a") {
                    // A bare word before an equals sign is what a misspelt setting looks like.
                    let is_word = text.lines().nth(line - 1).is_some_and(|line| line.trim().starts_with(secret.split('=').next().unwrap_or_default()));
                    prop_assert!(is_word || !error.contains(['X', 'Y', 'Z']), "{text:?}: {error:?}");
                }
            }
        }
    }
}
