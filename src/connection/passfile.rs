//! The password file, as libpq reads it: `host:port:database:user:password`; the first matching line counts.
//!
//! Fields are compared character by character, where a backslash escapes the next one, so `::1` also works unescaped as
//! the first field. A file that others can read is ignored with a warning: its passwords may have leaked already, and
//! its owner should notice.

use nix::libc::O_NONBLOCK;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// The connection that a line must match.
pub(super) struct PassfileQuery<'a> {
    /// The host as it was given; `localhost` for the default directory of Unix sockets.
    pub host: &'a str,
    /// The port.
    pub port: u16,
    /// The database.
    pub dbname: &'a str,
    /// The user.
    pub user: &'a str,
}

/// Result of reading a password file.
pub(super) enum Passfile {
    /// It does not exist or cannot be read.
    Missing,
    /// It must not be used, for the reason in this warning.
    Ignored(String),
    /// Its text.
    Text(String),
}

/// Reads the file, if it exists and nobody else has access to it.
pub(super) fn read(path: &Path) -> Passfile {
    // A FIFO without a writer must not block.
    let opened = File::options().read(true).custom_flags(O_NONBLOCK).open(path);
    let Ok(mut file) = opened else {
        return Passfile::Missing;
    };
    let Ok(metadata) = file.metadata() else {
        return Passfile::Missing;
    };
    let path = path.display();
    if !metadata.is_file() {
        return Passfile::Ignored(format!("ignoring password file {path}: it is not a regular file"));
    }
    if metadata.mode() & 0o077 != 0 {
        return Passfile::Ignored(format!(
            "ignoring password file {path}: it has group or world access; permissions should be 0600 or less \
             (where chmod is not possible, copy it with install -m 600 and set PGPASSFILE to the copy)"
        ));
    }
    let mut bytes = Vec::new();
    if file.read_to_end(&mut bytes).is_err() {
        return Passfile::Missing;
    }
    // One line that is not UTF-8 must not make the others useless.
    Passfile::Text(String::from_utf8_lossy(&bytes).into_owned())
}

/// Finds the password in the first matching line. Pure.
pub(super) fn find(text: &str, query: &PassfileQuery) -> Option<String> {
    let port = query.port.to_string();
    let fields = [query.host, &port, query.dbname, query.user];
    text.split('\n')
        .map(|line| line.trim_end_matches(['\r', '\n']))
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .find_map(|line| fields.iter().try_fold(line, |rest, field| strip_field(rest, field)))
        .map(unescape)
}

/// Returns what follows the first field of the line, if that field matches.
fn strip_field<'a>(line: &'a str, wanted: &str) -> Option<&'a str> {
    if let Some(rest) = line.strip_prefix("*:") {
        return Some(rest);
    }
    let mut wanted = wanted.chars();
    let mut chars = line.char_indices();
    loop {
        let (at, mut c) = chars.next()?;
        let is_escaped = c == '\\';
        if is_escaped {
            c = chars.next()?.1;
        }
        match wanted.next() {
            None if c == ':' && !is_escaped => return Some(&line[at + 1..]),
            Some(wanted) if wanted == c => {}
            _ => return None,
        }
    }
}

/// Removes the backslashes, up to an unescaped colon.
fn unescape(text: &str) -> String {
    let mut password = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next().filter(|c| *c != ':') {
        match c {
            '\\' => password.push(chars.next().unwrap_or('\\')),
            c => password.push(c),
        }
    }
    password
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lookup(text: &str, host: &str, port: u16, dbname: &str, user: &str) -> Option<String> {
        let query = PassfileQuery {
            host,
            port,
            dbname,
            user,
        };
        find(text, &query)
    }

    #[test]
    fn the_first_matching_line_counts() {
        let text = "# h:1:d:u:comment\n\nh:1:d:other:no\r\nh:1:*:u:first\r\nh:1:d:u:second\n*:*:*:*:last";
        assert_eq!(lookup(text, "h", 1, "d", "u").as_deref(), Some("first"));
        assert_eq!(lookup(text, "x", 9, "y", "z").as_deref(), Some("last"));
        assert_eq!(lookup("h:1:d:u:p", "h", 1, "d", "uu"), None);
        assert_eq!(lookup("h*:1:d:u:p", "hx", 1, "d", "u"), None);
    }

    #[test]
    fn backslashes_escape_colons_and_backslashes() {
        assert_eq!(
            lookup("\\:\\:1:5432:a\\\\b:u:p\\:q\\\\r:rest", "::1", 5432, "a\\b", "u").as_deref(),
            Some("p:q\\r")
        );
        assert_eq!(lookup("::1:5432:d:u:p", "::1", 5432, "d", "u").as_deref(), Some("p"));
        assert_eq!(lookup("h:1:d:u:p\\", "h", 1, "d", "u").as_deref(), Some("p\\"));
    }

    #[test]
    fn fuzz_password_file() {
        let examples = [
            "h:1:d:u:secret\n",
            "*:*:*:u:a\\:b\\\\c\r\n# h:1",
            "localhost:1:d\\",
            "::::\n",
        ];
        crate::fuzz::fuzz(&examples, |input| {
            let text = String::from_utf8_lossy(input);
            if let Some(password) = lookup(&text, "h", 1, "d", "u") {
                assert!(!password.contains('\n') && password.len() <= text.len());
            }
        });
    }

    proptest! {
        #[test]
        fn any_field_can_be_escaped(
            host in "[a-z:\\\\*é]{1,8}",
            dbname in "\\PC{1,8}",
            user in "\\PC{1,8}",
            password in "\\PC{0,12}",
        ) {
            let escaped = |text: &str| text.replace('\\', "\\\\").replace(':', "\\:");
            let fields = [&host, &dbname, &user, &password].map(|field| escaped(field));
            let line = format!("x:1:y:z:no\n{}:7:{}:{}:{}\n", fields[0], fields[1], fields[2], fields[3]);
            prop_assume!(!host.starts_with('#'));
            prop_assert_eq!(lookup(&line, &host, 7, &dbname, &user), Some(password));
        }

        #[test]
        fn no_input_makes_it_panic(text in "\\PC*[:\\\\*\n\r]*\\PC*", host in "\\PC*") {
            let _ = lookup(&text, &host, 1, "d", "u");
        }
    }
}
