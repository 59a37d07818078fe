//! What a lock is called: a bigint, a pair of 32-bit integers, a name that is hashed, or the lock of another tool.
//!
//! PostgreSQL keeps the two kinds of number in disjoint spaces: `(7)` and `(0,7)` are different locks.
//! Unless another scheme is asked for (see [`hash`]), a name is hashed with SHA-256 and its first eight bytes are
//! read as a big-endian signed integer, which is what django-pglocks (2.0 and later) does, and what one line of SQL
//! can compute. That is part of the stable interface: do not change it, or two versions of pglock would no longer
//! exclude each other.
//!
//! Nothing that looks like a number is ever silently taken for a name: see [`Key::parse`].

pub mod hash;

use hash::{Scheme, Subject, TABLE};
use std::fmt;

/// Marks what follows as a name, whatever it looks like: `name:007`.
const NAME_PREFIX: &str = "name:";

/// The number (or pair of numbers) that PostgreSQL knows a lock by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeyId {
    /// `pg_advisory_lock(bigint)`; in `pg_locks`, `objsubid` is 1.
    Bigint(i64),
    /// `pg_advisory_lock(int, int)`; in `pg_locks`, `objsubid` is 2.
    IntPair(i32, i32),
}

impl KeyId {
    /// The columns `classid`, `objid` and `objsubid` of `pg_locks`.
    pub fn in_pg_locks(self) -> (u32, u32, u8) {
        match self {
            KeyId::Bigint(id) => ((id >> 32) as u32, id as u32, 1),
            KeyId::IntPair(a, b) => (a as u32, b as u32, 2),
        }
    }

    /// The first of two integers.
    pub fn class(self) -> Option<i32> {
        match self {
            KeyId::Bigint(_) => None,
            KeyId::IntPair(class, _) => Some(class),
        }
    }

    /// From these columns.
    pub fn from_pg_locks(classid: u32, objid: u32, objsubid: u32) -> KeyId {
        match objsubid {
            1 => KeyId::Bigint((i64::from(classid) << 32) | i64::from(objid)),
            _ => KeyId::IntPair(classid as i32, objid as i32),
        }
    }

    /// The argument list of `pg_advisory_lock`. A minus sign binds less tightly than a cast, and `-(2^63)::bigint`
    /// would overflow; hence the quotes.
    pub fn literals(self) -> String {
        match self {
            KeyId::Bigint(id) => format!("'{id}'::bigint"),
            KeyId::IntPair(a, b) => format!("'{a}'::int, '{b}'::int"),
        }
    }
}

/// A key as it was given, and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    given: String,
    what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    Number(KeyId),
    Name {
        name: String,
        scheme: Scheme,
    },
    /// The one lock that a tool has, or has in each database.
    Tool(Scheme),
}

/// The number of a key, as far as it is known without a server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Number {
    /// It is this.
    Known(KeyId),
    /// The server computes it, a bigint, by this SQL expression: it is made by a function of the server's, or of the
    /// name of the database, which only the server knows for sure.
    Computed(String),
}

impl Number {
    /// The number, where it is known.
    pub fn known(&self) -> Option<KeyId> {
        match self {
            Number::Known(id) => Some(*id),
            Number::Computed(_) => None,
        }
    }
}

/// Why an argument is not a key. The text names the argument and says what is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidKey(String);

impl fmt::Display for InvalidKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InvalidKey {}

impl Key {
    /// Reads a key as the command line gives it.
    ///
    /// * a canonical integer (`42`, `-5`) is the bigint key itself;
    /// * two canonical integers with a comma between them (`1,2`) are the int-pair key;
    /// * `name:` in front makes a name of whatever follows;
    /// * anything else is a name.
    ///
    /// # Errors
    /// What looks like a number or a pair but is not one as PostgreSQL prints it (`007`, `+5`, ` 5`, `1, 2`,
    /// or a value out of range) is refused, because both readings of it would surprise somebody. So are the
    /// empty name (most often an unset shell variable) and a NUL byte, which no PostgreSQL text can hold.
    pub fn parse(given: &str) -> Result<Key, InvalidKey> {
        let explicit_name = given.strip_prefix(NAME_PREFIX);
        let name = explicit_name.unwrap_or(given);
        if name.is_empty() {
            return Err(InvalidKey(
                "the key is empty; give a name, an integer, or two integers A,B".into(),
            ));
        }
        if name.contains('\0') {
            return Err(InvalidKey(format!(
                "key {given:?} has a NUL byte, which PostgreSQL cannot hold in a text"
            )));
        }
        let number = if explicit_name.is_some() {
            None
        } else {
            parse_number(given)?
        };
        Ok(Key {
            given: given.to_owned(),
            what: match number {
                Some(id) => What::Number(id),
                None => What::Name {
                    name: name.to_owned(),
                    scheme: Scheme::Sha256,
                },
            },
        })
    }

    /// The same key, hashed by this scheme if it is a name; a number stays what it is.
    pub fn hashed_by(mut self, by: Scheme) -> Key {
        if let What::Name { scheme, .. } = &mut self.what {
            *scheme = by;
        }
        self
    }

    /// The lock of a tool, for a scheme that needs no name: it goes by the name of the scheme.
    pub fn of_tool(scheme: Scheme) -> Key {
        Key {
            given: scheme.name().to_owned(),
            what: What::Tool(scheme),
        }
    }

    /// All keys that are given by this text, whatever the scheme. The usual scheme comes first.
    pub fn readings(given: &str) -> Vec<Key> {
        let tools = TABLE.iter().filter(|row| row.subject != Subject::Name);
        let tools = tools.filter(|row| row.name == given);
        let mut readings: Vec<Key> = match Key::parse(given) {
            Ok(key) if key.name().is_some() => {
                let schemes = TABLE.iter().filter(|row| row.subject == Subject::Name);
                schemes.map(|row| key.clone().hashed_by(row.scheme)).collect()
            }
            Ok(number) => vec![number],
            Err(_) => Vec::new(),
        };
        readings.extend(tools.map(|row| Key::of_tool(row.scheme)));
        readings
    }

    /// The key as it was given, for messages and for `PGLOCK_KEY`.
    pub fn given(&self) -> &str {
        &self.given
    }

    /// The number that the server knows it by, or how the server comes to know it.
    pub fn number(&self) -> Number {
        let id = match &self.what {
            What::Number(id) => Some(*id),
            What::Name { name, scheme } => scheme.id(name),
            What::Tool(scheme) if scheme.row().subject == Subject::Database => None,
            What::Tool(scheme) => scheme.id(""),
        };
        id.map_or_else(|| Number::Computed(self.sql()), Number::Known)
    }

    /// The number in the database of this name.
    pub fn id_in(&self, database: &str) -> Option<KeyId> {
        match &self.what {
            What::Tool(scheme) => scheme.id(database),
            What::Number(_) | What::Name { .. } => self.number().known(),
        }
    }

    /// The name, where the key is one.
    pub fn name(&self) -> Option<&str> {
        match &self.what {
            What::Name { name, .. } => Some(name),
            What::Number(_) | What::Tool(_) => None,
        }
    }

    /// A SQL expression (or two, for a pair) that computes the key: the argument list of `pg_advisory_lock`. What SQL
    /// cannot compute at a reasonable length is said as the number that it is.
    /// The one for a name needs PostgreSQL 11 (`sha256`), unless its scheme says otherwise.
    pub fn sql(&self) -> String {
        let (scheme, name, subject) = match &self.what {
            What::Number(id) => return id.literals(),
            What::Name { name, scheme } => (scheme, name.as_str(), sql_literal(name)),
            What::Tool(scheme) => (scheme, "", "pg_catalog.current_database()".to_owned()),
        };
        scheme
            .sql(&subject)
            .or_else(|| scheme.id(name).map(KeyId::literals))
            .unwrap_or_default()
    }
}

/// The keys as a sentence names them.
pub fn describe(keys: &[Key]) -> String {
    let names: Vec<String> = keys.iter().map(Key::to_string).collect();
    match names.len() {
        1 => format!("key {}", names[0]),
        _ => format!("keys {}", names.join(", ")),
    }
}

/// As a person reads it: the name in quotes, the number, or the scheme.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            What::Number(id) => id.fmt(f),
            What::Name { name, .. } => write!(f, "{name:?}"),
            What::Tool(scheme) => f.write_str(scheme.name()),
        }
    }
}

/// As `pg_advisory_lock` takes it: `42`, or `1,2`.
impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyId::Bigint(id) => write!(f, "{id}"),
            KeyId::IntPair(a, b) => write!(f, "{a},{b}"),
        }
    }
}

/// The number that `given` is, `None` where it does not look like one.
fn parse_number(given: &str) -> Result<Option<KeyId>, InvalidKey> {
    let parts: Vec<&str> = given.split(',').collect();
    if parts.len() > 2 || !parts.iter().all(|part| looks_like_integer(part.trim())) {
        return Ok(None);
    }
    let (id, kind) = match parts[..] {
        [a, b] => (
            a.parse().ok().zip(b.parse().ok()).map(|(a, b)| KeyId::IntPair(a, b)),
            "a pair of 32-bit integers",
        ),
        _ => (given.parse().ok().map(KeyId::Bigint), "a 64-bit integer"),
    };
    match id {
        // Only what prints back as it was written is canonical: not 007, +5 or -0.
        Some(id) if id.to_string() == given => Ok(Some(id)),
        Some(id) => Err(InvalidKey(format!(
            "key {given:?} could be a number or a name; write {id} for the number, or {NAME_PREFIX}{given} for the name"
        ))),
        None => Err(InvalidKey(match given.contains(char::is_whitespace) {
            true => format!(
                "key {given:?} could be a number or a name; write the number without blanks, or {NAME_PREFIX}... for the name"
            ),
            false => format!("key {given:?} is out of range for {kind}; write {NAME_PREFIX}{given} for the name"),
        })),
    }
}

fn looks_like_integer(text: &str) -> bool {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// A literal that means the same under either setting of `standard_conforming_strings`.
pub fn sql_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    match quoted.contains('\\') {
        true => format!("E'{}'", quoted.replace('\\', "\\\\")),
        false => format!("'{quoted}'"),
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
        Scheme::Sha256.id(name).expect("it needs no server")
    }

    fn refusal(given: &str) -> String {
        Key::parse(given).expect_err(given).to_string()
    }

    /// The golden vectors: never change one.
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
    fn what_only_looks_like_a_number_is_refused() {
        for given in ["007", "+5", "-0", " 5", "5 ", "1, 2", "+1,2", "01,2"] {
            assert!(
                refusal(given).contains("could be a number or a name"),
                "{given}: {}",
                refusal(given)
            );
        }
        for given in [
            "9223372036854775808",
            "-9223372036854775809",
            "1,99999999999",
            "2147483648,0",
        ] {
            assert!(refusal(given).contains("out of range"), "{given}: {}", refusal(given));
        }
        assert!(refusal("").contains("empty"));
        assert!(refusal("name:").contains("empty"));
        assert!(refusal("a\0b").contains("NUL"));
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
    fn sql_quotes_what_it_must() {
        assert!(
            Key::parse("o'clock")
                .expect("a name")
                .sql()
                .contains("convert_to('o''clock','UTF8')")
        );
        assert!(
            Key::parse(r"a\b")
                .expect("a name")
                .sql()
                .contains(r"convert_to(E'a\\b','UTF8')")
        );
        assert_eq!(
            Key::parse("-9223372036854775808").expect("a number").sql(),
            "'-9223372036854775808'::bigint"
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
    fn what_only_the_server_knows_is_left_to_it() {
        let name = Key::parse("o'clock").expect("a name");
        let computed = |sql: &str| Number::Computed(sql.to_owned());
        assert_eq!(
            name.hashed_by(Scheme::Hashtext).number(),
            computed("pg_catalog.hashtext('o''clock')::bigint")
        );
        let rails = Key::of_tool(Scheme::RailsMigrate);
        assert_eq!(rails.number(), computed(&rails.sql()));
        assert!(rails.sql().contains("current_database()"));
        assert_eq!(rails.id_in("app"), Some(KeyId::Bigint(6939591962871035475)));
        let goose = Key::of_tool(Scheme::Goose);
        assert_eq!(goose.number(), Number::Known(KeyId::Bigint(5887940537704921958)));
        assert_eq!((goose.given(), goose.to_string().as_str()), ("goose", "goose"));
    }

    proptest! {
        /// Whatever the name, every scheme has a number for it or an expression, and the name stays one literal.
        #[test]
        fn every_scheme_takes_every_name(name in "[^\u{0}]{1,40}|['\\\\\"$;-]{1,12}") {
            for key in Key::readings(&format!("name:{name}")) {
                let sql = key.sql();
                prop_assert!(!sql.is_empty() && !sql.contains('\0'), "{key:?}: {sql:?}");
                if let Number::Known(id) = key.number() {
                    prop_assert_eq!(key.id_in("app"), Some(id));
                }
            }
            let literal = sql_literal(&name);
            let inside = literal.trim_start_matches('E').strip_prefix('\'').and_then(|it| it.strip_suffix('\''));
            let pairs_removed = inside.expect("quotes").replace("\\\\", "").replace("''", "");
            prop_assert!(!pairs_removed.contains(['\'', '\\']), "{literal:?}");
        }

        #[test]
        fn what_is_no_key_is_named(given in "[-+ ,0-9]{1,30}|-?[1-9][0-9]{18,25}|[1-9][0-9]{0,12},-?[1-9][0-9]{9,12}|\\PC{0,9}\u{0}\\PC{0,9}") {
            if let Err(error) = Key::parse(&given) {
                let error = error.to_string();
                prop_assert!(error.contains(&format!("{given:?}")) && !error.contains('\n'), "{error:?}");
            }
        }

        #[test]
        fn every_number_is_the_one_of_its_row(id: i64, a: i32, b: i32) {
            for id in [KeyId::Bigint(id), KeyId::IntPair(a, b)] {
                let (classid, objid, objsubid) = id.in_pg_locks();
                prop_assert_eq!(KeyId::from_pg_locks(classid, objid, objsubid.into()), id);
                prop_assert_eq!(Key::parse(&id.to_string()).expect("a number").number(), Number::Known(id));
            }
        }

        #[test]
        fn no_text_panics_and_every_number_prints_as_it_was_given(given in "[-+ ,0-9a-z:]{0,24}|\\PC*") {
            if let Ok(key) = Key::parse(&given) {
                prop_assert_eq!(key.given(), given.as_str());
                if key.name().is_none() {
                    prop_assert_eq!(id(&given).to_string(), given);
                }
            }
        }
    }
}
