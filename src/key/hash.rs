//! How other tools make the number of a lock, so that pglock can take the same one.
//!
//! Most schemes make it of a name, some of the name of the database, and some tools have one number for all. Each
//! is part of the stable interface, with golden vectors below: a changed number would exclude nobody, silently.
//! What a scheme computes can also be said in SQL, so that an application or the server itself comes to the same.
//!
//! CRC-32 and FNV are a few lines each and fixed for all time, so they are here; SHA-256, MD5 and HMAC are those
//! that the client library of PostgreSQL brings along.

use super::KeyId;
use hkdf::Hkdf;
use sha2::{Digest, Sha256};
use std::str::FromStr;

/// A way to make the number of a lock. The order is that of [`TABLE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// SHA-256, the first eight bytes, big-endian.
    Sha256,
    /// The same bytes, little-endian.
    Sha256Le,
    /// FNV-1a, 64 bits.
    Fnv1a,
    /// FNV-1, 64 bits.
    Fnv1,
    /// MD5, the first eight bytes, big-endian.
    Md5,
    /// HKDF with SHA-256, eight bytes, little-endian.
    Sqlx,
    /// CRC-32 as a positive number.
    Crc32,
    /// CRC-32 as a 32-bit signed number.
    Crc32Signed,
    /// A pair: CRC-32 without its highest bit, and 0.
    WithAdvisoryLock,
    /// A pair: the lowest integer, and CRC-32 as a 32-bit signed number.
    PgLock,
    /// A function of the server.
    Hashtext,
    /// A function of the server.
    Hashtextextended,
    /// CRC-32 of the database, times a number.
    RailsMigrate,
    /// CRC-32 of the database, times another.
    SqlxMigrate,
    /// CRC-32 of schema, table and the path of the URL, times a third.
    GolangMigrateUrl,
    /// CRC-32 of schema, table and database, times the same.
    GolangMigrateInstance,
    /// A constant.
    PrismaMigrate,
    /// A constant.
    Goose,
    /// A constant.
    NodePgMigrate,
}

/// What a scheme makes the number of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The name of the lock.
    Name,
    /// The name of the database; the lock has none.
    Database,
    /// Nothing: there is one number.
    Nothing,
}

/// A scheme as users read it.
pub struct SchemeInfo {
    /// The scheme.
    pub scheme: Scheme,
    /// As `--hash` takes it.
    pub name: &'static str,
    /// What it makes the number of.
    pub subject: Subject,
    /// Who uses it.
    pub users: &'static str,
}

const fn row(scheme: Scheme, name: &'static str, subject: Subject, users: &'static str) -> SchemeInfo {
    SchemeInfo {
        scheme,
        name,
        subject,
        users,
    }
}

/// Every scheme, as the help, the manual and the README list them.
pub const TABLE: [SchemeInfo; 19] = {
    use Scheme::*;
    use Subject::*;
    [
        row(Sha256, "sha256", Name, "pglock itself; django-pglocks 2.0 and later"),
        row(Sha256Le, "sha256-le", Name, "django-pglock"),
        row(
            Fnv1a,
            "fnv1a",
            Name,
            "go-pglock (as its documentation does), rotationalio/pglock",
        ),
        row(Fnv1, "fnv1", Name, "coder"),
        row(Md5, "md5", Name, "GoodJob (Ruby)"),
        row(Sqlx, "sqlx", Name, "PgAdvisoryLock of sqlx (Rust)"),
        row(Crc32, "crc32", Name, "the lock component of Symfony (PHP)"),
        row(Crc32Signed, "crc32-signed", Name, "django-pglocks before 2.0"),
        row(
            WithAdvisoryLock,
            "with-advisory-lock",
            Name,
            "with_advisory_lock (Ruby), without a prefix: a pair",
        ),
        row(PgLock, "pg-lock", Name, "heroku/pg_lock (Ruby): a pair"),
        row(Hashtext, "hashtext", Name, "hashtext(name) in SQL"),
        row(
            Hashtextextended,
            "hashtextextended",
            Name,
            "hashtextextended(name, 0) in SQL, PostgreSQL 11 and later",
        ),
        row(RailsMigrate, "rails-migrate", Database, "the migrations of Rails"),
        row(SqlxMigrate, "sqlx-migrate", Database, "the migrations of sqlx (Rust)"),
        row(
            GolangMigrateUrl,
            "golang-migrate-url",
            Database,
            "golang-migrate, given a URL, as its command is",
        ),
        row(
            GolangMigrateInstance,
            "golang-migrate-instance",
            Database,
            "golang-migrate, given an open connection (WithInstance)",
        ),
        row(PrismaMigrate, "prisma-migrate", Nothing, "Prisma Migrate"),
        row(Goose, "goose", Nothing, "the session locker of goose"),
        row(NodePgMigrate, "node-pg-migrate", Nothing, "node-pg-migrate"),
    ]
};

impl FromStr for Scheme {
    type Err = String;

    fn from_str(name: &str) -> Result<Scheme, String> {
        let found = TABLE.iter().find(|row| row.name == name);
        found
            .map(|row| row.scheme)
            .ok_or_else(|| "a scheme is expected that 'pglock key --help' lists".into())
    }
}

impl Scheme {
    /// Its row of the table.
    pub fn row(self) -> &'static SchemeInfo {
        &TABLE[self as usize]
    }

    /// As `--hash` takes it.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// The number for this name, or for the database of this name, whichever it is made of; `None` where only the
    /// server can compute it.
    pub fn id(self, subject: &str) -> Option<KeyId> {
        use Scheme::*;
        let bytes = subject.as_bytes();
        let times_crc32 = |salt: i64| KeyId::Bigint(salt * i64::from(crc32(bytes)));
        Some(match self {
            Sha256 => KeyId::Bigint(i64::from_be_bytes(sha256(bytes))),
            Sha256Le => KeyId::Bigint(i64::from_le_bytes(sha256(bytes))),
            Fnv1a => KeyId::Bigint(fnv(bytes, |hash, byte| (hash ^ byte).wrapping_mul(FNV_PRIME))),
            Fnv1 => KeyId::Bigint(fnv(bytes, |hash, byte| hash.wrapping_mul(FNV_PRIME) ^ byte)),
            Md5 => KeyId::Bigint(i64::from_be_bytes(first_eight(&md5::Md5::digest(bytes)))),
            Sqlx => KeyId::Bigint(i64::from_le_bytes(hkdf(bytes, SQLX_INFO))),
            Crc32 => KeyId::Bigint(crc32(bytes).into()),
            Crc32Signed => KeyId::Bigint((crc32(bytes) as i32).into()),
            WithAdvisoryLock => KeyId::IntPair((crc32(bytes) & 0x7fff_ffff) as i32, 0),
            PgLock => KeyId::IntPair(i32::MIN, crc32(bytes) as i32),
            Hashtext | Hashtextextended => return None,
            RailsMigrate => times_crc32(RAILS_SALT),
            SqlxMigrate => times_crc32(SQLX_SALT),
            GolangMigrateUrl => golang_migrate(&format!("/{subject}")),
            GolangMigrateInstance => golang_migrate(subject),
            PrismaMigrate => KeyId::Bigint(72_707_369),
            Goose => KeyId::Bigint(5_887_940_537_704_921_958),
            NodePgMigrate => KeyId::Bigint(7_241_865_325_823_964),
        })
    }

    /// The SQL expression (or two, for a pair) that computes it, of an expression for the name or the database.
    /// `None` where that would be a page long, or there is nothing to compute. Where it runs is not known, so what
    /// the server itself is asked to compute names the functions in full.
    pub fn sql(self, subject: &str) -> Option<String> {
        use Scheme::*;
        let bytes = format!("pg_catalog.convert_to({subject},'UTF8')");
        let crc32 = || crc32_in_sql(&bytes);
        // Without its sign, a number of 32 bits is as far above the middle as it is below it with it.
        let signed = || format!("({} # 2147483648) - 2147483648", crc32());
        let golang_migrate = |prefix: &str| {
            let crc32 = crc32_in_sql(&format!("pg_catalog.decode('{prefix}','hex')||{bytes}"));
            format!("{crc32} * {GOLANG_MIGRATE_SALT} % 4294967296")
        };
        Some(match self {
            Sha256 => {
                format!("('x'||substr(encode(sha256(convert_to({subject},'UTF8')),'hex'),1,16))::bit(64)::bigint")
            }
            Sha256Le => format!(
                "(SELECT ('x'||string_agg(substr(hex,n,2),'' ORDER BY n DESC))::bit(64)::bigint \
                 FROM generate_series(1,15,2) AS n, (SELECT encode(sha256({bytes}),'hex') AS hex) AS hash)"
            ),
            Fnv1a => fnv_in_sql(&bytes, &fnv_product(&fnv_xor("h"))),
            Fnv1 => fnv_in_sql(&bytes, &fnv_xor(&fnv_product("h"))),
            Md5 => format!("('x'||substr(md5({bytes}),1,16))::bit(64)::bigint"),
            Crc32 => crc32(),
            Crc32Signed => signed(),
            WithAdvisoryLock => format!("({} & 2147483647)::int, 0", crc32()),
            PgLock => format!("'{}'::int, ({})::int", i32::MIN, signed()),
            Hashtext => format!("pg_catalog.hashtext({subject})::bigint"),
            Hashtextextended => format!("pg_catalog.hashtextextended({subject},0)"),
            RailsMigrate => format!("{RAILS_SALT} * {}", crc32()),
            SqlxMigrate => format!("{SQLX_SALT} * {}", crc32()),
            GolangMigrateUrl => golang_migrate(&(hex(GOLANG_MIGRATE_TABLE) + "2f")),
            GolangMigrateInstance => golang_migrate(&hex(GOLANG_MIGRATE_TABLE)),
            Sqlx | PrismaMigrate | Goose | NodePgMigrate => return None,
        })
    }
}

/// The info text of sqlx's HKDF.
const SQLX_INFO: &[u8] = b"SQLx (Rust) Postgres advisory lock";
/// What the migrations of Rails, sqlx and golang-migrate multiply with.
const RAILS_SALT: i64 = 2_053_462_845;
const SQLX_SALT: i64 = 0x3d32_ad9e;
const GOLANG_MIGRATE_SALT: u32 = 1_486_364_155;
/// The schema and table of golang-migrate's migrations, where nothing else is configured.
const GOLANG_MIGRATE_TABLE: &[u8] = b"public\0schema_migrations\0";

fn first_eight(digest: &[u8]) -> [u8; 8] {
    let mut eight = [0; 8];
    eight.copy_from_slice(&digest[..8]);
    eight
}

fn sha256(bytes: &[u8]) -> [u8; 8] {
    first_eight(&Sha256::digest(bytes))
}

/// Returns the first eight bytes of HKDF with SHA-256, without a salt.
fn hkdf(secret: &[u8], info: &[u8]) -> [u8; 8] {
    let mut output = [0; 8];
    Hkdf::<Sha256>::new(None, secret)
        .expand(info, &mut output)
        .expect("HKDF yields up to 255 blocks");
    output
}

/// As Ethernet and zlib have it.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (CRC32_POLYNOMIAL * (crc & 1))
        })
    })
}

const CRC32_POLYNOMIAL: u32 = 0xedb8_8320;

/// Fowler, Noll and Vo's hash; the order of its two steps makes the difference between 1 and 1a.
fn fnv(bytes: &[u8], step: impl Fn(u64, u64) -> u64) -> i64 {
    let hash = bytes.iter().fold(FNV_BASIS, |hash, byte| step(hash, u64::from(*byte)));
    hash as i64
}

const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;

fn golang_migrate(database: &str) -> KeyId {
    let crc = crc32(&[GOLANG_MIGRATE_TABLE, database.as_bytes()].concat());
    KeyId::Bigint(crc.wrapping_mul(GOLANG_MIGRATE_SALT).into())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// CRC-32 of an expression for bytes, bit by bit: PostgreSQL has had a function for it only since 18.
fn crc32_in_sql(bytes: &str) -> String {
    format!(
        "(WITH RECURSIVE crc(n, c) AS (SELECT 0, 4294967295 UNION ALL \
         SELECT n + 1, (c >> 1) # ({CRC32_POLYNOMIAL} * (c & 1)) FROM (SELECT n, \
         c # CASE n % 8 WHEN 0 THEN pg_catalog.get_byte(bytes, n / 8) ELSE 0 END AS c \
         FROM crc, (SELECT {bytes} AS bytes) AS name WHERE n < 8 * pg_catalog.octet_length(bytes)) AS bit) \
         SELECT c # 4294967295 FROM crc ORDER BY n DESC LIMIT 1)"
    )
}

/// FNV of an expression for bytes. `step` makes the next hash of the hash `h` and the number `byte`; in `numeric`,
/// because a product that exceeds 64 bits is an error for `bigint`.
fn fnv_in_sql(bytes: &str, step: &str) -> String {
    format!(
        "(WITH RECURSIVE fnv(n, h) AS (SELECT 0, {FNV_BASIS} UNION ALL SELECT n + 1, {step} FROM \
         (SELECT n, h, get_byte(bytes, n) AS byte FROM fnv, (SELECT {bytes} AS bytes) AS name \
         WHERE n < octet_length(bytes)) AS next) \
         SELECT (h - CASE WHEN h < 9223372036854775808 THEN 0 ELSE 18446744073709551616 END)::bigint \
         FROM fnv ORDER BY n DESC LIMIT 1)"
    )
}

fn fnv_product(hash: &str) -> String {
    format!("mod({hash} * {FNV_PRIME}, 18446744073709551616)")
}

/// There is no exclusive or for `numeric`; only the lowest byte changes.
fn fnv_xor(hash: &str) -> String {
    format!("({hash} - mod({hash}, 256) + (mod({hash}, 256)::int # byte))")
}

#[cfg(test)]
mod tests {
    use super::*;
    use Scheme::*;

    #[test]
    fn the_table_has_every_scheme_in_order() {
        for (n, row) in TABLE.iter().enumerate() {
            assert_eq!(row.scheme as usize, n, "{}", row.name);
            assert_eq!(row.scheme.row().name, row.name);
        }
        let last = NodePgMigrate as usize;
        assert_eq!(TABLE.len(), last + 1, "a scheme without a row");
    }

    /// The golden vectors of the schemes that hash a name: never change one. The second name has a CRC-32 with its
    /// highest bit set, and is not ASCII.
    #[test]
    fn names_become_the_numbers_that_the_tools_make_of_them() {
        let bigints = [
            (Sha256, 6111399565520850680, 955943806777422632),
            (Sha256Le, -518379636727623596, 2950759170027111437),
            (Fnv1a, -8109357721908082369, 5814075214936365255),
            (Fnv1, 4510669856917780423, 5145317239755652975),
            (Md5, 4620783329284506538, -8374353819531157336),
            (Sqlx, -413360793389268767, 2996177863773299133),
            (Crc32, 1072746924, 2267915330),
            (Crc32Signed, 1072746924, -2027051966),
        ];
        for (scheme, backup, other) in bigints {
            assert_eq!(scheme.id("backup"), Some(KeyId::Bigint(backup)), "{scheme:?}");
            assert_eq!(scheme.id("schlüssel-鍵"), Some(KeyId::Bigint(other)), "{scheme:?}");
        }
        let pairs = [
            (WithAdvisoryLock, (1072746924, 0), (120431682, 0)),
            (PgLock, (i32::MIN, 1072746924), (i32::MIN, -2027051966)),
        ];
        for (scheme, (a, b), (c, d)) in pairs {
            assert_eq!(scheme.id("backup"), Some(KeyId::IntPair(a, b)), "{scheme:?}");
            assert_eq!(scheme.id("schlüssel-鍵"), Some(KeyId::IntPair(c, d)), "{scheme:?}");
        }
        // The vector of sqlx's own documentation.
        let documented = Sqlx.id("my first Postgres advisory lock!");
        assert_eq!(documented, Some(KeyId::Bigint(-5560419505042474287)));
        assert_eq!(Hashtext.id("backup"), None);
        assert_eq!(Hashtextextended.id("backup"), None);
    }

    /// Those of the migrations, for the databases `app` and `lock`.
    #[test]
    fn databases_become_the_numbers_that_the_tools_make_of_them() {
        let vectors = [
            (RailsMigrate, 6939591962871035475, 4670263450421423190),
            (SqlxMigrate, 3469795979745788610, 2335131724073543844),
            (GolangMigrateUrl, 1726534663, 3409071448),
            (GolangMigrateInstance, 1787120056, 604970550),
            (PrismaMigrate, 72707369, 72707369),
            (Goose, 5887940537704921958, 5887940537704921958),
            (NodePgMigrate, 7241865325823964, 7241865325823964),
        ];
        for (scheme, app, lock) in vectors {
            assert_eq!(scheme.id("app"), Some(KeyId::Bigint(app)), "{scheme:?}");
            assert_eq!(scheme.id("lock"), Some(KeyId::Bigint(lock)), "{scheme:?}");
        }
    }

    /// The check values that are published with the algorithms.
    #[test]
    fn the_algorithms_have_their_published_check_values() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(b""), 0);
        assert_eq!(
            Fnv1a.id("foobar"),
            Some(KeyId::Bigint(0x8594_4171_f739_67e8_u64 as i64))
        );
        assert_eq!(Fnv1.id("foobar"), Some(KeyId::Bigint(0x340d_8765_a4dd_a9c2)));
        // RFC 5869, test case 3: neither salt nor info.
        assert_eq!(hkdf(&[0x0b; 22], b""), [0x8d, 0xa4, 0xe7, 0x75, 0xa5, 0x63, 0xc1, 0x8f]);
    }
}
