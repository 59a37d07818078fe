//! The name of a lock: a bigint, a pair of 32-bit integers, a name that is hashed, or the lock of another tool.
//!
//! Unless another scheme is selected (see [`hash`]), a name is hashed with SHA-256, and the first eight bytes are read
//! as a big-endian signed integer. django-pglocks 2.0 and later does the same, and one line of SQL can compute it. This
//! is part of the stable interface: two versions of pglock with different hashes would not exclude each other.
//!
//! Text that looks like a number is never silently hashed as a name: see [`Key::parse`].

pub(crate) mod hash;
mod id;

pub(crate) use id::KeyId;

use hash::{SCHEMES, Scheme, SchemeInput};
use std::fmt;

/// Forces the rest of a key to be read as a name: `name:007`.
const NAME_PREFIX: &str = "name:";

/// The scheme for names unless `--hash` or `PGLOCK_HASH` selects another.
pub(crate) const DEFAULT_SCHEME: Scheme = Scheme::Sha256;

/// A key as the user wrote it, and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    given: String,
    kind: KeyKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum KeyKind {
    Number(KeyId),
    Name {
        name: String,
        scheme: Scheme,
    },
    /// A tool's own lock, one for the server or one in each database.
    Tool(Scheme),
}

/// The number of a key, if it can be computed without a server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Number {
    /// Known without a server.
    Known(KeyId),
    /// Depends on the server's value of this SQL expression: the number itself, or the name of the database, which only
    /// the server knows for certain. See [`Key::id_from_reply`].
    Computed(String),
}

impl Number {
    /// Returns the number if it is known without a server.
    pub(crate) fn known(&self) -> Option<KeyId> {
        match self {
            Number::Known(id) => Some(*id),
            Number::Computed(_) => None,
        }
    }
}

/// The reason why an argument is not a key; the message names the argument and what is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InvalidKey(String);

impl fmt::Display for InvalidKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InvalidKey {}

impl Key {
    /// Parses a key from the command line.
    ///
    /// * A canonical integer (`42`, `-5`) is a bigint key.
    /// * Two canonical integers separated by a comma (`1,2`) are an int-pair key.
    /// * Text after `name:` is a name, whatever it looks like.
    /// * Anything else is a name.
    ///
    /// # Errors
    /// Fails if the text looks like a number or a pair but is not written as PostgreSQL prints it (`007`, `+5`, ` 5`,
    /// `1, 2`) or is out of range, because users would disagree about its meaning. Also fails for an empty name, which
    /// is most often an unset shell variable, and for a NUL byte, which PostgreSQL text cannot contain.
    pub(crate) fn parse(given: &str) -> Result<Key, InvalidKey> {
        let explicit_name = given.strip_prefix(NAME_PREFIX);
        let name = explicit_name.unwrap_or(given);
        if name.is_empty() {
            return Err(InvalidKey(
                "the key is empty; use a name, an integer, or two integers A,B".into(),
            ));
        }
        if name.contains('\0') {
            return Err(InvalidKey(format!(
                "key {given:?} contains a NUL byte, which PostgreSQL text cannot contain"
            )));
        }
        let number = if explicit_name.is_some() {
            None
        } else {
            parse_number(given)?
        };
        let kind = match number {
            Some(id) => KeyKind::Number(id),
            None => KeyKind::Name {
                name: name.to_owned(),
                scheme: DEFAULT_SCHEME,
            },
        };
        Ok(Key {
            given: given.to_owned(),
            kind,
        })
    }

    /// Sets the scheme that hashes the name; a number stays as it is.
    pub(crate) fn hashed_by(mut self, new_scheme: Scheme) -> Key {
        if let KeyKind::Name { scheme, .. } = &mut self.kind {
            *scheme = new_scheme;
        }
        self
    }

    /// Returns a tool's own lock, which is named after its scheme.
    pub(crate) fn for_tool(scheme: Scheme) -> Key {
        Key {
            given: scheme.name().to_owned(),
            kind: KeyKind::Tool(scheme),
        }
    }

    /// Returns every key that can be written like this: one for each scheme, the default scheme first.
    pub(crate) fn readings(given: &str) -> Vec<Key> {
        let mut readings: Vec<Key> = match Key::parse(given) {
            Ok(key) if key.name().is_some() => SCHEMES
                .iter()
                .filter(|info| info.input == SchemeInput::LockName)
                .map(|info| key.clone().hashed_by(info.scheme))
                .collect(),
            Ok(number) => vec![number],
            Err(_) => Vec::new(),
        };
        let tools = SCHEMES
            .iter()
            .filter(|info| info.input != SchemeInput::LockName && info.name == given);
        readings.extend(tools.map(|info| Key::for_tool(info.scheme)));
        readings
    }

    /// Returns the key as the user wrote it, for messages and `PGLOCK_KEY`.
    pub(crate) fn given(&self) -> &str {
        &self.given
    }

    /// Returns the name of the scheme that hashes its name, or of a tool's own lock; `None` for a number.
    pub(crate) fn scheme_name(&self) -> Option<&'static str> {
        match &self.kind {
            KeyKind::Name { scheme, .. } | KeyKind::Tool(scheme) => Some(scheme.name()),
            KeyKind::Number(_) => None,
        }
    }

    /// Returns the options that name this key on a command line, quoted for a shell. A message has no control
    /// characters, so a name that contains any is replaced by its number, if that is known.
    pub(crate) fn options(&self) -> String {
        if let Some(id) = self.known().filter(|_| self.given.contains(char::is_control)) {
            return format!("--key {id}");
        }
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.,:/@".contains(c);
        let given = match &self.given {
            plain if plain.chars().all(is_plain) => plain.clone(),
            other => format!("'{}'", other.replace('\'', "'\\''")),
        };
        match &self.kind {
            KeyKind::Name { scheme, .. } if *scheme != DEFAULT_SCHEME => {
                format!("--hash {} --key {given}", scheme.name())
            }
            KeyKind::Name { .. } | KeyKind::Number(_) => format!("--key {given}"),
            KeyKind::Tool(scheme) => format!("--hash {}", scheme.name()),
        }
    }

    /// Returns the number of the lock, or what the server must be asked to know it.
    pub(crate) fn number(&self) -> Number {
        match self.known() {
            Some(id) => Number::Known(id),
            None => Number::Computed(self.sql().unwrap_or_else(|| "pg_catalog.current_database()".to_owned())),
        }
    }

    /// Returns the number if it does not depend on the server.
    fn known(&self) -> Option<KeyId> {
        match &self.kind {
            KeyKind::Number(id) => Some(*id),
            KeyKind::Name { name, scheme } => scheme.id(name),
            KeyKind::Tool(scheme) if scheme.input() == SchemeInput::DatabaseName => None,
            KeyKind::Tool(scheme) => scheme.id(""),
        }
    }

    /// Returns the number, given the server's value of the expression in [`Number::Computed`].
    pub(crate) fn id_from_reply(&self, reply: &str) -> Option<KeyId> {
        match &self.kind {
            KeyKind::Tool(scheme) => scheme.id(reply),
            KeyKind::Number(_) | KeyKind::Name { .. } => reply.parse().ok().map(KeyId::Bigint),
        }
    }

    /// Returns the number in the database of this name, or `None` if only the server can compute it.
    pub(crate) fn id_in(&self, database: &str) -> Option<KeyId> {
        match &self.kind {
            KeyKind::Tool(scheme) => scheme.id(database),
            KeyKind::Number(_) | KeyKind::Name { .. } => self.known(),
        }
    }

    /// Returns the name, if the key has one.
    pub(crate) fn name(&self) -> Option<&str> {
        match &self.kind {
            KeyKind::Name { name, .. } => Some(name),
            KeyKind::Number(_) | KeyKind::Tool(_) => None,
        }
    }

    /// Returns an SQL expression (or two, for a pair) that computes the key: the argument list of `pg_advisory_lock`.
    /// Falls back to the number itself where SQL has no function for the hash; `None` if the number depends on the
    /// database. With the default scheme a name needs PostgreSQL 11 or later, for `sha256`.
    pub(crate) fn sql(&self) -> Option<String> {
        let expression = match &self.kind {
            KeyKind::Name { name, scheme } => scheme.sql(&sql_literal(name)),
            KeyKind::Number(_) | KeyKind::Tool(_) => None,
        };
        expression.or_else(|| self.known().map(KeyId::literals))
    }
}

/// Returns the keys for use in a message: `key "a"`, or `keys "a", 42`.
pub(crate) fn describe(keys: &[Key]) -> String {
    let names: Vec<String> = keys.iter().map(Key::to_string).collect();
    let noun = if names.len() == 1 { "key" } else { "keys" };
    format!("{noun} {}", names.join(", "))
}

/// Prints the key for people: the name in quotes, the number, or the scheme.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            KeyKind::Number(id) => id.fmt(f),
            KeyKind::Name { name, .. } => write!(f, "{name:?}"),
            KeyKind::Tool(scheme) => f.write_str(scheme.name()),
        }
    }
}

/// Parses a canonical number or pair; returns `None` if the text does not look like one.
///
/// # Errors
/// The text looks like a number, but is not canonical or is out of range.
fn parse_number(given: &str) -> Result<Option<KeyId>, InvalidKey> {
    let parts: Vec<&str> = given.split(',').collect();
    if parts.len() > 2 || !parts.iter().all(|part| looks_like_integer(part.trim())) {
        return Ok(None);
    }
    let (id, kind) = match parts[..] {
        [first, second] => {
            let pair = first.parse().ok().zip(second.parse().ok());
            (pair.map(|(a, b)| KeyId::IntPair(a, b)), "a pair of 32-bit integers")
        }
        _ => (given.parse().ok().map(KeyId::Bigint), "a 64-bit integer"),
    };
    let reason = match id {
        // Only canonical numbers print as they were written: not 007, +5 or -0.
        Some(id) if id.to_string() == given => return Ok(Some(id)),
        Some(id) => format!(
            "key {given:?} could be a number or a name; write {id} for the number, or {NAME_PREFIX}{given} for the name"
        ),
        None if given.contains(char::is_whitespace) => format!(
            "key {given:?} could be a number or a name; write the number without whitespace, \
             or {NAME_PREFIX}... for the name"
        ),
        None => format!("key {given:?} is out of range for {kind}; write {NAME_PREFIX}{given} for the name"),
    };
    Err(InvalidKey(reason))
}

fn looks_like_integer(text: &str) -> bool {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// Quotes text as an SQL literal that means the same under either setting of `standard_conforming_strings`.
pub(crate) fn sql_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        format!("E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(given: &str) -> KeyId {
        let key = Key::parse(given).unwrap_or_else(|e| panic!("{given:?}: {e}"));
        match key.number() {
            Number::Known(id) => id,
            Number::Computed(sql) => panic!("{given:?}: {sql}"),
        }
    }

    fn hash(name: &str) -> KeyId {
        Scheme::Sha256.id(name).expect("SHA-256 needs no server")
    }

    fn error(given: &str) -> String {
        Key::parse(given).expect_err(given).to_string()
    }

    /// Golden vectors: never change one.
    #[test]
    fn names_hash_to_the_published_numbers() {
        assert_eq!(id("backup"), KeyId::Bigint(6111399565520850680));
        assert_eq!(id("a name with blanks"), KeyId::Bigint(6356600985533740484));
        assert_eq!(id("one,two"), KeyId::Bigint(-6812940812565345955));
        assert_eq!(id("schlüssel-鍵"), KeyId::Bigint(955943806777422632));
        assert_eq!(id("name:007"), KeyId::Bigint(7106483370208201996));
        assert_eq!(id("name:name:x"), hash("name:x"));
    }

    #[test]
    fn integers_are_the_key_itself() {
        for (given, number) in [
            ("0", 0),
            ("42", 42),
            ("-5", -5),
            ("9223372036854775807", i64::MAX),
            ("-9223372036854775808", i64::MIN),
        ] {
            assert_eq!(id(given), KeyId::Bigint(number));
            assert_eq!(id(given).to_string(), given);
        }
        assert_eq!(id("1,2"), KeyId::IntPair(1, 2));
        assert_eq!(id("-2147483648,2147483647"), KeyId::IntPair(i32::MIN, i32::MAX));
    }

    #[test]
    fn text_that_only_looks_like_a_number_is_rejected() {
        for given in ["007", "+5", "-0", " 5", "5 ", "1, 2", "+1,2", "01,2"] {
            let error = error(given);
            assert!(error.contains("could be a number or a name"), "{given}: {error}");
        }
        for given in [
            "9223372036854775808",
            "-9223372036854775809",
            "1,99999999999",
            "2147483648,0",
        ] {
            let error = error(given);
            assert!(error.contains("out of range"), "{given}: {error}");
        }
        assert!(error("").contains("empty"));
        assert!(error("name:").contains("empty"));
        assert!(error("a\0b").contains("NUL"));
    }

    #[test]
    fn everything_else_is_a_name() {
        for given in [
            "2026-11-23",
            "1,2,3",
            "a,b",
            ",",
            "-",
            "1.5",
            "0x10",
            "1,",
            "five 5",
            "\u{661}",
        ] {
            assert_eq!(id(given), hash(given), "{given}");
        }
    }

    #[test]
    fn options_name_a_key_in_a_shell() {
        let options = |given: &str| Key::parse(given).expect("a key").options();
        assert_eq!(options("nightly-1"), "--key nightly-1");
        assert_eq!(options("it's"), r"--key 'it'\''s'");
        assert_eq!(options("a\tb"), format!("--key {}", hash("a\tb")));
    }

    #[test]
    fn sql_quotes_names_and_numbers() {
        assert!(
            Key::parse("o'clock")
                .expect("a name")
                .sql()
                .expect("an expression")
                .contains("convert_to('o''clock','UTF8')")
        );
        assert!(
            Key::parse(r"a\b")
                .expect("a name")
                .sql()
                .expect("an expression")
                .contains(r"convert_to(E'a\\b','UTF8')")
        );
        assert_eq!(
            Key::parse("-9223372036854775808").expect("a number").sql().as_deref(),
            Some("'-9223372036854775808'::bigint")
        );
    }

    #[test]
    fn a_scheme_applies_to_names_only() {
        let hashed = |given: &str| Key::parse(given).expect(given).hashed_by(Scheme::Crc32);
        assert_eq!(hashed("backup").number(), Number::Known(KeyId::Bigint(1072746924)));
        assert_eq!(
            hashed("name:42").number(),
            Scheme::Crc32.id("42").map_or_else(|| unreachable!(), Number::Known)
        );
        assert_eq!(hashed("42").number(), Number::Known(KeyId::Bigint(42)));
        assert_eq!(hashed("1,2").number(), Number::Known(KeyId::IntPair(1, 2)));
    }

    #[test]
    fn keys_that_only_the_server_can_compute_are_left_to_it() {
        let hashtext = Key::parse("o'clock").expect("a name").hashed_by(Scheme::Hashtext);
        let computed = |sql: &str| Number::Computed(sql.to_owned());
        assert_eq!(hashtext.number(), computed("pg_catalog.hashtext('o''clock')::bigint"));
        assert_eq!(hashtext.id_from_reply("-7"), Some(KeyId::Bigint(-7)));
        assert_eq!(hashtext.id_from_reply("app"), None);
        let rails = Key::for_tool(Scheme::RailsMigrate);
        assert_eq!(rails.number(), computed("pg_catalog.current_database()"));
        assert_eq!(rails.sql(), None);
        for id in [rails.id_in("app"), rails.id_from_reply("app")] {
            assert_eq!(id, Some(KeyId::Bigint(6939591962871035475)));
        }
        let goose = Key::for_tool(Scheme::Goose);
        assert_eq!(goose.number(), Number::Known(KeyId::Bigint(5887940537704921958)));
        assert_eq!((goose.given(), goose.to_string().as_str()), ("goose", "goose"));
    }

    proptest! {
        /// Every name has an SQL expression by every scheme, and stays one SQL literal.
        #[test]
        fn every_scheme_accepts_every_name(name in "[^\u{0}]{1,40}|['\\\\\"$;-]{1,12}") {
            for key in Key::readings(&format!("name:{name}")) {
                let sql = key.sql().expect("an expression");
                prop_assert!(!sql.is_empty() && !sql.contains('\0'), "{key:?}: {sql:?}");
                if let Number::Known(id) = key.number() {
                    prop_assert_eq!(key.id_in("app"), Some(id));
                }
            }
            let literal = sql_literal(&name);
            let inside = literal.trim_start_matches('E').strip_prefix('\'').and_then(|rest| rest.strip_suffix('\''));
            let pairs_removed = inside.expect("quotes").replace("\\\\", "").replace("''", "");
            prop_assert!(!pairs_removed.contains(['\'', '\\']), "{literal:?}");
        }

        #[test]
        fn every_error_names_the_key_in_one_line(
            given in prop_oneof![
                "[-+ ,0-9]{1,30}",
                "-?[1-9][0-9]{18,25}",
                "[1-9][0-9]{0,12},-?[1-9][0-9]{9,12}",
                "\\PC{0,9}\u{0}\\PC{0,9}",
            ],
        ) {
            if let Err(error) = Key::parse(&given) {
                let error = error.to_string();
                prop_assert!(error.contains(&format!("{given:?}")) && !error.contains('\n'), "{error:?}");
            }
        }

        #[test]
        fn every_number_survives_the_columns_of_pg_locks(id: i64, a: i32, b: i32) {
            for id in [KeyId::Bigint(id), KeyId::IntPair(a, b)] {
                let (classid, objid, objsubid) = id.in_pg_locks();
                prop_assert_eq!(KeyId::from_pg_locks(classid, objid, objsubid.into()), id);
                prop_assert_eq!(Key::parse(&id.to_string()).expect("a number").number(), Number::Known(id));
            }
        }

        #[test]
        fn no_text_panics_and_numbers_print_as_they_were_given(given in "[-+ ,0-9a-z:]{0,24}|\\PC*") {
            if let Ok(key) = Key::parse(&given) {
                prop_assert_eq!(key.given(), given.as_str());
                if key.name().is_none() {
                    prop_assert_eq!(id(&given).to_string(), given);
                }
            }
        }
    }
}
