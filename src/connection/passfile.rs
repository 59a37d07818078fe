//! The password file, as libpq reads it: `host:port:database:user:password`, the first line that fits.
//!
//! A field matches character by character with a backslash keeping the next one as it is, so that `::1` works
//! unescaped in the first field too. A file that others may read is ignored, with a warning: whoever can read it
//! may already have the password, and whoever set it up is to notice.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What a line must be for.
pub struct Wanted<'a> {
    /// The host as it was given; `localhost` for the default folder of Unix sockets.
    pub host: &'a str,
    /// The port.
    pub port: u16,
    /// The database.
    pub dbname: &'a str,
    /// The user.
    pub user: &'a str,
}

/// The text of the file; `None` where there is none, `Err` with a warning where it must not be used.
pub fn read(path: &Path) -> Result<Option<String>, String> {
    let Ok(mut file) = File::open(path) else {
        return Ok(None);
    };
    let Ok(metadata) = file.metadata() else {
        return Ok(None);
    };
    let shown = path.display();
    if !metadata.is_file() {
        return Err(format!("the password file {shown} is not a plain file, and is ignored"));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(format!(
            "the password file {shown} has group or world access, and is ignored; make it private with chmod 0600"
        ));
    }
    let mut bytes = Vec::new();
    if file.read_to_end(&mut bytes).is_err() {
        return Ok(None);
    }
    // One odd line of another user's password must not make the others useless.
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// The password of the first line that fits. Pure.
pub fn find(text: &str, wanted: &Wanted) -> Option<String> {
    let port = wanted.port.to_string();
    let fields = [wanted.host, &port, wanted.dbname, wanted.user];
    text.split('\n')
        .map(|line| line.trim_end_matches(['\r', '\n']))
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .find_map(|line| fields.iter().try_fold(line, |rest, field| behind(rest, field)))
        .map(unescaped)
}

/// What follows the field, if it matches.
fn behind<'a>(line: &'a str, token: &str) -> Option<&'a str> {
    if let Some(rest) = line.strip_prefix("*:") {
        return Some(rest);
    }
    let mut token = token.chars();
    let mut chars = line.char_indices();
    loop {
        let (at, mut c) = chars.next()?;
        let escaped = c == '\\';
        if escaped {
            c = chars.next()?.1;
        }
        match token.next() {
            None if c == ':' && !escaped => return Some(&line[at + 1..]),
            Some(wanted) if wanted == c => {}
            _ => return None,
        }
    }
}

/// The rest of the line up to an unescaped colon.
fn unescaped(text: &str) -> String {
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
        find(
            text,
            &Wanted {
                host,
                port,
                dbname,
                user,
            },
        )
    }

    #[test]
    fn the_first_line_that_fits() {
        let text = "# h:1:d:u:comment\n\nh:1:d:other:no\r\nh:1:*:u:first\r\nh:1:d:u:second\n*:*:*:*:last";
        assert_eq!(lookup(text, "h", 1, "d", "u").as_deref(), Some("first"));
        assert_eq!(lookup(text, "x", 9, "y", "z").as_deref(), Some("last"));
        assert_eq!(lookup("h:1:d:u:p", "h", 1, "d", "uu"), None);
        assert_eq!(lookup("h*:1:d:u:p", "hx", 1, "d", "u"), None);
    }

    #[test]
    fn escapes() {
        assert_eq!(
            lookup("\\:\\:1:5432:a\\\\b:u:p\\:q\\\\r:rest", "::1", 5432, "a\\b", "u").as_deref(),
            Some("p:q\\r")
        );
        assert_eq!(lookup("::1:5432:d:u:p", "::1", 5432, "d", "u").as_deref(), Some("p"));
        assert_eq!(lookup("h:1:d:u:p\\", "h", 1, "d", "u").as_deref(), Some("p\\"));
    }

    proptest! {
        #[test]
        fn any_field_can_be_written(host in "[a-z:\\\\*é]{1,8}", dbname in "\\PC{1,8}", user in "\\PC{1,8}", password in "\\PC{0,12}") {
            let escaped = |text: &str| text.replace('\\', "\\\\").replace(':', "\\:");
            let line = format!("x:1:y:z:no\n{}:7:{}:{}:{}\n", escaped(&host), escaped(&dbname), escaped(&user), escaped(&password));
            prop_assume!(!host.starts_with('#'));
            prop_assert_eq!(lookup(&line, &host, 7, &dbname, &user), Some(password));
        }

        #[test]
        fn nothing_makes_it_panic(text in "\\PC*[:\\\\*\n\r]*\\PC*", host in "\\PC*") {
            let _ = lookup(&text, &host, 1, "d", "u");
        }
    }
}
