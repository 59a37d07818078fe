//! The hash schemes: how pglock and other tools turn a name into the number of a lock.
//!
//! Most schemes hash the name of the lock, some hash the name of the database, and some tools always use one number.
//! Every scheme is part of the stable interface, held by the golden vectors below: with a different number, pglock and
//! the tool would silently stop excluding each other. SHA-256 and MD5 also exist as an SQL expression, so that an
//! application can compute the same number.
//!
//! CRC-32 and FNV are a few lines each and will never change, so they are written out here. SHA-256, MD5 and HMAC
//! come with the PostgreSQL client library anyway.

use super::id::KeyId;
use hkdf::Hkdf;
use sha2::{Digest, Sha256};
use std::str::FromStr;

/// A way to compute the number of a lock, in the order of [`SCHEMES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// The first eight bytes of SHA-256, big-endian.
    Sha256,
    /// The first eight bytes of SHA-256, little-endian.
    Sha256Le,
    /// FNV-1a, 64 bits.
    Fnv1a,
    /// FNV-1, 64 bits.
    Fnv1,
    /// The first eight bytes of MD5, big-endian.
    Md5,
    /// Eight bytes of HKDF with SHA-256, little-endian.
    Sqlx,
    /// CRC-32 as an unsigned number.
    Crc32,
    /// CRC-32 as a signed 32-bit number.
    Crc32Signed,
    /// The pair of CRC-32 without its highest bit, and 0.
    WithAdvisoryLock,
    /// The pair of the smallest `int`, and CRC-32 as a signed 32-bit number.
    PgLock,
    /// The server's `hashtext`.
    Hashtext,
    /// The server's `hashtextextended`.
    Hashtextextended,
    /// CRC-32 of the database name, times [`RAILS_SALT`].
    RailsMigrate,
    /// CRC-32 of the database name, times [`SQLX_SALT`].
    SqlxMigrate,
    /// CRC-32 of schema, table and the path of the URL, times [`GOLANG_MIGRATE_SALT`].
    GolangMigrateUrl,
    /// CRC-32 of schema, table and database name, times [`GOLANG_MIGRATE_SALT`].
    GolangMigrateInstance,
    /// Prisma's constant.
    PrismaMigrate,
    /// goose's constant.
    Goose,
    /// node-pg-migrate's constant.
    NodePgMigrate,
}

/// What a scheme computes the number from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SchemeInput {
    /// The name of the lock.
    LockName,
    /// The name of the database; the lock itself has no name.
    DatabaseName,
    /// Nothing: the number is a constant.
    Nothing,
}

/// A scheme as the help, the manual and `docs/sharing-locks.md` describe it.
pub(crate) struct SchemeInfo {
    /// The scheme.
    pub scheme: Scheme,
    /// The value of `--hash`.
    pub name: &'static str,
    /// What the number is computed from.
    pub input: SchemeInput,
    /// The tools that use it.
    pub users: &'static str,
}

const fn info(scheme: Scheme, name: &'static str, input: SchemeInput, users: &'static str) -> SchemeInfo {
    SchemeInfo {
        scheme,
        name,
        input,
        users,
    }
}

/// Every scheme, in the order in which the help, the manual and `docs/sharing-locks.md` list them.
pub(crate) const SCHEMES: [SchemeInfo; 19] = {
    use Scheme::*;
    use SchemeInput::*;
    [
        info(
            Sha256,
            "sha256",
            LockName,
            "pglock itself; django-pglocks 2.0 and later",
        ),
        info(Sha256Le, "sha256-le", LockName, "django-pglock"),
        info(
            Fnv1a,
            "fnv1a",
            LockName,
            "go-pglock (as in its documentation), rotationalio/pglock",
        ),
        info(Fnv1, "fnv1", LockName, "coder"),
        info(Md5, "md5", LockName, "GoodJob (Ruby)"),
        info(Sqlx, "sqlx", LockName, "PgAdvisoryLock of sqlx (Rust)"),
        info(Crc32, "crc32", LockName, "Symfony Lock component (PHP)"),
        info(Crc32Signed, "crc32-signed", LockName, "django-pglocks before 2.0"),
        info(
            WithAdvisoryLock,
            "with-advisory-lock",
            LockName,
            "with_advisory_lock (Ruby), without a prefix: a pair",
        ),
        info(PgLock, "pg-lock", LockName, "heroku/pg_lock (Ruby): a pair"),
        info(Hashtext, "hashtext", LockName, "hashtext(name) in SQL"),
        info(
            Hashtextextended,
            "hashtextextended",
            LockName,
            "hashtextextended(name, 0) in SQL, PostgreSQL 11 and later",
        ),
        info(RailsMigrate, "rails-migrate", DatabaseName, "Rails migrations"),
        info(SqlxMigrate, "sqlx-migrate", DatabaseName, "sqlx migrations (Rust)"),
        info(
            GolangMigrateUrl,
            "golang-migrate-url",
            DatabaseName,
            "golang-migrate, given a URL, as on its command line",
        ),
        info(
            GolangMigrateInstance,
            "golang-migrate-instance",
            DatabaseName,
            "golang-migrate, given an open connection (WithInstance)",
        ),
        info(PrismaMigrate, "prisma-migrate", Nothing, "Prisma Migrate"),
        info(Goose, "goose", Nothing, "goose session locker"),
        info(NodePgMigrate, "node-pg-migrate", Nothing, "node-pg-migrate"),
    ]
};

impl FromStr for Scheme {
    type Err = String;

    fn from_str(name: &str) -> Result<Scheme, String> {
        let info = SCHEMES.iter().find(|info| info.name == name);
        info.map(|info| info.scheme)
            .ok_or_else(|| "expected a scheme listed by 'pglock key --help'".into())
    }
}

impl Scheme {
    /// Returns the scheme's entry in [`SCHEMES`].
    pub(crate) fn info(self) -> &'static SchemeInfo {
        &SCHEMES[self as usize]
    }

    /// Returns the scheme as a value of `--hash`.
    pub(crate) fn name(self) -> &'static str {
        self.info().name
    }

    /// Returns what the scheme computes the number from.
    pub(crate) fn input(self) -> SchemeInput {
        self.info().input
    }

    /// Computes the number from the name of the lock or of the database, whichever the scheme hashes. Returns `None`
    /// if only the server can compute it.
    pub(crate) fn id(self, name: &str) -> Option<KeyId> {
        use Scheme::*;
        let bytes = name.as_bytes();
        let times_crc32 = |salt: i64| KeyId::Bigint(salt * i64::from(crc32(bytes)));
        Some(match self {
            Sha256 => KeyId::Bigint(i64::from_be_bytes(sha256_prefix(bytes))),
            Sha256Le => KeyId::Bigint(i64::from_le_bytes(sha256_prefix(bytes))),
            Fnv1a => KeyId::Bigint(fnv(bytes, |hash, byte| (hash ^ byte).wrapping_mul(FNV_PRIME))),
            Fnv1 => KeyId::Bigint(fnv(bytes, |hash, byte| hash.wrapping_mul(FNV_PRIME) ^ byte)),
            Md5 => KeyId::Bigint(i64::from_be_bytes(prefix(&md5::Md5::digest(bytes)))),
            Sqlx => KeyId::Bigint(i64::from_le_bytes(hkdf(bytes, SQLX_INFO)?)),
            Crc32 => KeyId::Bigint(crc32(bytes).into()),
            Crc32Signed => KeyId::Bigint((crc32(bytes) as i32).into()),
            WithAdvisoryLock => KeyId::IntPair((crc32(bytes) & 0x7fff_ffff) as i32, 0),
            PgLock => KeyId::IntPair(i32::MIN, crc32(bytes) as i32),
            Hashtext | Hashtextextended => return None,
            RailsMigrate => times_crc32(RAILS_SALT),
            SqlxMigrate => times_crc32(SQLX_SALT),
            GolangMigrateUrl => golang_migrate(&format!("/{name}")),
            GolangMigrateInstance => golang_migrate(name),
            PrismaMigrate => KeyId::Bigint(72_707_369),
            Goose => KeyId::Bigint(5_887_940_537_704_921_958),
            NodePgMigrate => KeyId::Bigint(7_241_865_325_823_964),
        })
    }

    /// Returns the SQL expression that computes the number from `name`, an SQL expression for the name of the lock;
    /// `None` if PostgreSQL has no function for the hash, or the scheme hashes no name.
    ///
    /// Expressions that pglock itself sends to the server qualify every function, because the `search_path` is not
    /// under its control.
    pub(crate) fn sql(self, name: &str) -> Option<String> {
        use Scheme::*;
        Some(match self {
            Sha256 => {
                format!("('x'||substr(encode(sha256(convert_to({name},'UTF8')),'hex'),1,16))::bit(64)::bigint")
            }
            Sha256Le => format!(
                "(SELECT ('x'||string_agg(substr(hex,n,2),'' ORDER BY n DESC))::bit(64)::bigint \
                 FROM generate_series(1,15,2) AS n, (SELECT encode(sha256(convert_to({name},'UTF8')),'hex') AS hex) AS hash)"
            ),
            Md5 => format!("('x'||substr(md5(convert_to({name},'UTF8')),1,16))::bit(64)::bigint"),
            Hashtext => format!("pg_catalog.hashtext({name})::bigint"),
            Hashtextextended => format!("pg_catalog.hashtextextended({name},0)"),
            _ => return None,
        })
    }
}

/// The HKDF info that sqlx passes.
const SQLX_INFO: &[u8] = b"SQLx (Rust) Postgres advisory lock";
/// The factors by which the migration tools multiply a CRC-32.
const RAILS_SALT: i64 = 2_053_462_845;
const SQLX_SALT: i64 = 0x3d32_ad9e;
const GOLANG_MIGRATE_SALT: u32 = 1_486_364_155;
/// golang-migrate's default schema and table.
const GOLANG_MIGRATE_TABLE: &[u8] = b"public\0schema_migrations\0";

/// Returns the first `N` bytes of the SHA-256 of a message, from which `from_be_bytes` makes the integer of a key.
pub(crate) fn sha256_prefix<const N: usize>(message: &[u8]) -> [u8; N] {
    prefix(&Sha256::digest(message))
}

fn prefix<const N: usize>(digest: &[u8]) -> [u8; N] {
    let mut prefix = [0; N];
    prefix.copy_from_slice(&digest[..N]);
    prefix
}

/// Returns the first eight bytes of HKDF-SHA-256 without a salt. HKDF fails only above 8160 bytes, so never here.
fn hkdf(secret: &[u8], info: &[u8]) -> Option<[u8; 8]> {
    let mut bytes = [0; 8];
    Hkdf::<Sha256>::new(None, secret).expand(info, &mut bytes).ok()?;
    Some(bytes)
}

/// Computes the CRC-32 of Ethernet and zlib.
fn crc32(bytes: &[u8]) -> u32 {
    let crc = bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
    });
    !crc
}

/// Computes a Fowler-Noll-Vo hash. FNV-1 and FNV-1a differ only in the order of the two operations in `step`.
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

#[cfg(test)]
mod tests {
    use super::*;
    use Scheme::*;

    #[test]
    fn the_table_has_every_scheme_in_order() {
        for (n, info) in SCHEMES.iter().enumerate() {
            assert_eq!(info.scheme as usize, n, "{}", info.name);
            assert_eq!(info.scheme.name(), info.name);
        }
        let last = NodePgMigrate as usize;
        assert_eq!(SCHEMES.len(), last + 1, "a scheme without an entry");
    }

    /// Golden vectors of the schemes that hash the name of the lock: never change one. The second name is not ASCII,
    /// and its CRC-32 has the highest bit set.
    #[test]
    fn lock_names_hash_to_the_numbers_of_the_other_tools() {
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
        // From sqlx's documentation.
        let documented = Sqlx.id("my first Postgres advisory lock!");
        assert_eq!(documented, Some(KeyId::Bigint(-5560419505042474287)));
        assert_eq!(Hashtext.id("backup"), None);
        assert_eq!(Hashtextextended.id("backup"), None);
    }

    /// Golden vectors of the migration tools, for the databases `app` and `lock`: never change one.
    #[test]
    fn database_names_hash_to_the_numbers_of_the_other_tools() {
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

    #[test]
    fn the_algorithms_reproduce_their_published_check_values() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(b""), 0);
        assert_eq!(
            Fnv1a.id("foobar"),
            Some(KeyId::Bigint(0x8594_4171_f739_67e8_u64 as i64))
        );
        assert_eq!(Fnv1.id("foobar"), Some(KeyId::Bigint(0x340d_8765_a4dd_a9c2)));
        // RFC 5869, test case 3: neither salt nor info.
        let rfc_5869 = [0x8d, 0xa4, 0xe7, 0x75, 0xa5, 0x63, 0xc1, 0x8f];
        assert_eq!(hkdf(&[0x0b; 22], b""), Some(rfc_5869));
    }
}
