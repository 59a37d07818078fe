//! `DATABASE_URL` as applications write it, and what must come out.

use super::*;
use crate::connection::settings::{RootSource, Settings, SslMode};
use crate::connection::validate::validate;
use proptest::prelude::*;
use std::path::{Path, PathBuf};

/// Returns the settings, without those of the environment; the user is `me` if the text names none.
///
/// # Errors
/// As for [`parse`] and [`validate`].
pub(super) fn settings(text: &str) -> Result<Settings, SettingsError> {
    let mut parsed = parse(text)?;
    set_defaults(&mut parsed.values, &[("user", "me")]);
    validate(&parsed.values, parsed.is_address_doubtful, Some(Path::new("/home")))
}

/// Describes the settings: addresses (`local` for the default socket), user, database and `sslmode`, then the roots and
/// the client's certificate if they are not those of the home directory.
fn described(text: &str) -> String {
    let settings = match settings(text) {
        Ok(settings) => settings,
        Err(error) => return error.to_string(),
    };
    let tls = &settings.tls;
    let address = match settings.hosts.as_slice() {
        [host] if !host.is_named => "local".into(),
        _ => settings.address(),
    };
    let mut described = format!("{} {} {} {:?}", address, settings.user, settings.dbname, tls.mode);
    match &tls.roots {
        RootSource::System => described += " roots=system",
        RootSource::File(path) if !path.path.starts_with("/home") => {
            described += &format!(" roots={}", path.path.display())
        }
        _ => {}
    }
    if let Some(path) = tls
        .client_certificate
        .as_ref()
        .filter(|path| !path.path.starts_with("/home"))
    {
        described += &format!(" certificate={}", path.path.display());
    }
    described
}

/// The URLs, by tool, and what must come out. `XYZ` is in every password.
pub(super) const URLS: &[(&str, &str)] = &[
    // What libpq accepts.
    ("postgres://u:XYZ@h/d", "h:5432 u d Prefer"),
    ("postgresql://u:XYZ@h:6432/d?sslmode=require", "h:6432 u d Require"),
    (
        "postgres://u:XYZ@a:1,b:2/d?target_session_attrs=read-write",
        "a:1, b:2 u d Prefer",
    ),
    ("postgres://u:XYZ@[::1]:5433/d", "[::1]:5433 u d Prefer"),
    ("postgres://u%40x:XYZ%2F%40@h/d%20e", "h:5432 u@x d e Prefer"),
    ("postgres://u:XYZ+1@h/d?options=-c%20geqo%3Doff", "h:5432 u d Prefer"),
    (
        "postgres://u@h/d?application_name=a+b&password=XYZ",
        "h:5432 u d Prefer",
    ),
    ("host=h user=u dbname=d password=XYZ", "h:5432 u d Prefer"),
    ("d", "local me d Prefer"),
    ("", "local me me Prefer"),
    // Around the value.
    ("\"postgres://u:XYZ@h/d\"", "h:5432 u d Prefer"),
    ("'postgres://u:XYZ@h/d?sslmode=require'\n", "h:5432 u d Require"),
    ("postgres://u:XYZ@h/d\n", "h:5432 u d Prefer"),
    ("postgres://u:XYZ@h/d\r\n", "h:5432 u d Prefer"),
    ("  postgres://u:XYZ@h/d?sslmode=verify-full \t", "h:5432 u d VerifyFull"),
    ("\"\"", "local me me Prefer"),
    // Prisma.
    ("postgresql://u:XYZ@h:5432/d?schema=public", "h:5432 u d Prefer"),
    (
        "postgres://u:XYZ@h/d?schema=public&connection_limit=1",
        "h:5432 u d Prefer",
    ),
    (
        "postgres://u:XYZ@h:6543/d?pgbouncer=true&connection_limit=1&pool_timeout=0",
        "h:6543 u d Prefer",
    ),
    (
        "postgres://u:XYZ@h/d?sslaccept=strict",
        "h:5432 u d VerifyFull roots=system",
    ),
    (
        "postgres://u:XYZ@h/d?sslaccept=strict&sslmode=prefer",
        "h:5432 u d VerifyFull roots=system",
    ),
    (
        "postgres://u:XYZ@h/d?sslmode=disable&sslaccept=strict",
        "h:5432 u d VerifyFull roots=system",
    ),
    (
        "postgres://u:XYZ@h/d?sslmode=require&sslaccept=accept_invalid_certs",
        "h:5432 u d Require",
    ),
    (
        "postgres://u:XYZ@h/d?schema=s&sslcert=/p/ca.pem&sslmode=require",
        "h:5432 u d Require roots=/p/ca.pem",
    ),
    (
        "postgres://u:XYZ@h/d?sslcert=/p/ca.pem&sslaccept=strict",
        "h:5432 u d VerifyFull roots=/p/ca.pem",
    ),
    (
        "postgres://u:XYZ@h/d?sslcert=/p/c.pem&sslkey=/p/k.pem&schema=s",
        "h:5432 u d Prefer certificate=/p/c.pem",
    ),
    (
        "postgres://u:XYZ@h/d?sslidentity=c.p12&sslpassword=XYZ&sslcert=ca.pem",
        "invalid DATABASE_URL: parameter \"sslidentity\" is not supported (a PKCS12 file); use sslcert and sslkey, in \
         PEM form; PGLOCK_DSN and --dsn take precedence over DATABASE_URL",
    ),
    (
        "postgresql://u:XYZ@localhost/d?host=/cloudsql/p:r:i",
        "/cloudsql/p:r:i/.s.PGSQL.5432 u d Prefer",
    ),
    // Rails, with Heroku.
    (
        "postgres://u:XYZ@h/d?pool=5&prepared_statements=false",
        "h:5432 u d Prefer",
    ),
    (
        "postgresql://u:XYZ@h/d?encoding=unicode&reaping_frequency=10&sslmode=require",
        "h:5432 u d Require",
    ),
    (
        "postgres://u:XYZ@h/d?variables[statement_timeout]=5000&advisory_locks=false",
        "h:5432 u d Prefer",
    ),
    ("postgres:///d?host=/run/pg&pool=5", "/run/pg/.s.PGSQL.5432 me d Prefer"),
    // Django.
    ("postgis://u:XYZ@h:5432/d", "h:5432 u d Prefer"),
    ("pgsql://u:XYZ@h/d?conn_max_age=600", "h:5432 u d Prefer"),
    (
        "psql://u:XYZ@h/d?CONN_MAX_AGE=600&currentSchema=app",
        "h:5432 u d Prefer",
    ),
    (
        "postgres://u:XYZ@%2Fcloudsql%2Fp%3Ar%3Ai/d",
        "/cloudsql/p:r:i/.s.PGSQL.5432 u d Prefer",
    ),
    // SQLAlchemy, with psycopg and asyncpg.
    (
        "postgresql+psycopg2://u:XYZ@h/d?sslmode=verify-full&sslrootcert=/ca",
        "h:5432 u d VerifyFull roots=/ca",
    ),
    (
        "postgresql+psycopg://u:XYZ@/d?host=/run/pg",
        "/run/pg/.s.PGSQL.5432 u d Prefer",
    ),
    (
        "postgresql+psycopg2://u:XYZ@/d?host=a:5433&host=b:5434&host=c",
        "a:5433, b:5434, c:5432 u d Prefer",
    ),
    ("postgresql+asyncpg://u:XYZ@h:1/d?host=a&host=b", "a:1, b:1 u d Prefer"),
    ("postgresql://u:XYZ@/d?host=a,b&port=1,2", "a:1, b:2 u d Prefer"),
    ("postgresql://u:XYZ@/d?host=a:1", "a:1 u d Prefer"),
    (
        "postgresql://u:XYZ@/d?host=::1&host=/run/pg:1",
        "[::1]:5432, /run/pg:1/.s.PGSQL.5432 u d Prefer",
    ),
    (
        "postgresql://u:XYZ@/d?host=a:1&host=b&port=2",
        "invalid DATABASE_URL: both host and port give a port",
    ),
    ("host=a host=b user=u", "b:5432 u u Prefer"),
    ("postgresql+asyncpg://u:XYZ@h/d?ssl=require", "h:5432 u d Require"),
    (
        "postgresql+asyncpg://u:XYZ@h/d?prepared_statement_cache_size=0&ssl=verify-full",
        "h:5432 u d VerifyFull",
    ),
    (
        "postgres+asyncpg://u:XYZ@h/d?ssl=prefer&min_size=2&max_size=4",
        "h:5432 u d Prefer",
    ),
    // node-postgres.
    ("postgres://u:XYZ@h/d?ssl=true", "h:5432 u d Require"),
    (
        "postgres://u:XYZ@h/d?ssl=1&max=20&idleTimeoutMillis=30000",
        "h:5432 u d Require",
    ),
    ("postgres://u:XYZ@h/d?sslmode=no-verify", "h:5432 u d Require"),
    ("postgres://u:XYZ@h/d?ssl=no-verify", "h:5432 u d Require"),
    ("postgres://u:XYZ@h/d?ssl=false", "h:5432 u d Disable"),
    ("postgres://u:XYZ@h/d?ssl=false&sslmode=require", "h:5432 u d Require"),
    (
        "postgres://u:XYZ@h/d?sslmode=verify-full&ssl=true",
        "h:5432 u d VerifyFull",
    ),
    (
        "postgres://u:XYZ@h/d?sslmode=no-verify&sslmode=disable",
        "h:5432 u d Require",
    ),
    (
        "postgres://u:XYZ@h/d?uselibpqcompat=true&sslmode=require",
        "h:5432 u d Require",
    ),
    // Go: pgx and lib/pq.
    (
        "postgres://u:XYZ@h/d?pool_max_conns=10&sslmode=verify-ca",
        "h:5432 u d VerifyCa",
    ),
    (
        "postgres://u:XYZ@h/d?statement_cache_capacity=0&default_query_exec_mode=exec",
        "h:5432 u d Prefer",
    ),
    (
        "host=h dbname=d user=u password=XYZ sslmode=require pool_max_conns=4",
        "h:5432 u d Require",
    ),
    (
        "postgres://u:XYZ@h/d?binary_parameters=yes&search_path=app&sslmode=disable",
        "h:5432 u d Disable",
    ),
    (
        "postgres://u:XYZ@h/d?sslinline=true",
        "parameter \"sslinline\" is not supported (certificates within the URL); use files",
    ),
    // sqlx.
    (
        "postgres://u:XYZ@h/d?statement-cache-capacity=0&ssl-mode=verify-full&ssl-ca=/ca",
        "h:5432 u d VerifyFull roots=/ca",
    ),
    (
        "postgres://u:XYZ@h/d?options[search_path]=app&sslmode=require",
        "h:5432 u d Require",
    ),
    (
        "postgres://u:XYZ@h/d?ssl-cert=/c&ssl-key=/k",
        "h:5432 u d Prefer certificate=/c",
    ),
    // Ecto.
    (
        "ecto://u:XYZ@h/d?ssl=true&pool_size=10&timeout=15000",
        "h:5432 u d Require",
    ),
    // JDBC.
    (
        "jdbc:postgresql://h:5433/d?user=u&password=XYZ&ssl=true",
        "h:5433 u d VerifyFull",
    ),
    ("jdbc:postgresql://h/d?user=u&password=XYZ&ssl", "h:5432 u d VerifyFull"),
    (
        "jdbc:postgresql://h/d?user=u&password=XYZ&ssl=false",
        "h:5432 u d Prefer",
    ),
    (
        "jdbc:postgresql://h/d?sslmode=require&user=u&password=XYZ&ssl=true",
        "h:5432 u d VerifyFull",
    ),
    ("jdbc:postgresql://h/d?sslmode=verify-ca&user=u", "h:5432 u d VerifyCa"),
    (
        "jdbc:postgresql://a:1,b:2/d?user=u&targetServerType=primary",
        "a:1, b:2 u d Prefer",
    ),
    (
        "jdbc:postgresql:d?user=u&prepareThreshold=0",
        "localhost:5432 u d Prefer",
    ),
    ("jdbc:postgresql:/", "localhost:5432 me me Prefer"),
    (
        "jdbc:postgresql:///d?ApplicationName=app&loadBalanceHosts=true",
        "localhost:5432 me d Prefer",
    ),
    (
        "jdbc:postgresql://h/d?ssl=true&sslfactory=org.postgresql.ssl.NonValidatingFactory&currentSchema=s",
        "h:5432 me d VerifyFull",
    ),
    (
        "jdbc:postgresql://h/d?sslmode=require&sslfactory=org.postgresql.ssl.DefaultJavaSSLFactory",
        "h:5432 me d VerifyFull roots=system",
    ),
    (
        "jdbc:postgresql:///d?socketFactory=com.google.cloud.sql.postgres.SocketFactory&cloudSqlInstance=p:r:i",
        "unknown connection parameter \"cloudSqlInstance\"; parameter \"socketFactory\" is not supported (pglock cannot \
         load Java classes)",
    ),
    // Npgsql.
    (
        "Host=h;Port=5433;Database=d;Username=u;Password=XYZ",
        "h:5433 u d Prefer",
    ),
    (
        "Server=h:5433;Database=d;User Id=u;Password='X;YZ';SSL Mode=VerifyFull;",
        "h:5433 u d VerifyFull",
    ),
    (
        "Host=h;Username=u;Password=XYZ;SslMode=Require;Trust Server Certificate=true",
        "h:5432 u u Require",
    ),
    (
        "Host=h;Username=u;SSL Mode=Require;Trust Server Certificate=false",
        "h:5432 u u VerifyFull",
    ),
    (
        "Host=h;Username=u;SSL Mode=VerifyCA;Root Certificate=/ca;Maximum Pool Size=9",
        "h:5432 u u VerifyCa roots=/ca",
    ),
    (
        "Host=h;Username=u;Integrated Security=true",
        "parameter \"Integrated Security\" is not supported (no Kerberos)",
    ),
    (
        "Pooling=false;Host=h;Port=5433;Database=d;Username=u;Password=XYZ",
        "h:5433 u d Prefer",
    ),
    ("Host=h:5433;Port=1;Username=u", "h:5433 u u Prefer"),
    ("Port=7;Host=a:6, b ,[::2]:8;Username=u", "a:6, b:7, [::2]:8 u u Prefer"),
    ("Host=a:6,b;Username=u", "a:6, b:5432 u u Prefer"),
    ("Host=::1;Port=7;Username=u", "[::1]:7 u u Prefer"),
    ("Host=/run/a:b;Port=7;Username=u", "/run/a:b/.s.PGSQL.7 u u Prefer"),
    (
        "Host=tcp://h:5433;Username=u",
        "the value of parameter \"Host\" is not a list of host or host:port; PGLOCK_DSN",
    ),
    (
        "Host=postgres://u:XYZ@h/d;Username=u",
        "is not a list of host or host:port",
    ),
    ("Host=u:XYZ@h;Username=u", "is not a list of host or host:port"),
    ("Host=a,,b;Username=u", "is not a list of host or host:port"),
    ("Host=[::1;Username=u", "is not a list of host or host:port"),
    ("ApplicationName=web;Host=h;User=u;Password=XYZ", "h:5432 u u Prefer"),
    ("Application Name=my web;host=h;user id=u;pwd=XYZ", "h:5432 u u Prefer"),
    ("User=u;Host=h;Password=XYZ;", "h:5432 u u Prefer"),
    ("Password=\"X;Y Z=1\"; Host=h; UID=u", "h:5432 u u Prefer"),
    // A semicolon in libpq's pairs.
    ("password='XYZ;host=XYZ' host=h user=u", "h:5432 u u Prefer"),
    ("host=h password='XYZ;host=XYZ' user=u", "h:5432 u u Prefer"),
    ("host=h password=X;Y=Z user=u", "h:5432 u u Prefer"),
    (
        "host=h user=u;password=XYZ dbname=d",
        "the value of parameter \"user\" goes on with another parameter after \";\"; separate pairs by whitespace",
    ),
    (
        "user=u;host=h password=XYZ",
        "the value of parameter \"host\" goes on with another parameter after whitespace; separate parameters by \";\"",
    ),
    ("postgres://u:XYZ@h/d?sslMode=VerifyFull", "h:5432 u d VerifyFull"),
    ("postgres://u:XYZ@h/d?SSL%20Mode=Require", "h:5432 u d Require"),
    // What is refused.
    (
        "postgres://u:XYZ@h/d?shema=public&bogus=1&sslmod=require",
        "invalid DATABASE_URL: unknown connection parameters \"shema\" (did you mean schema?), \"bogus\", \"sslmod\" \
         (did you mean sslmode?); PGLOCK_DSN and --dsn take precedence over DATABASE_URL",
    ),
    (
        "postgres://u:XYZ@h/d?sslmode=verify_all",
        "parameter \"sslmode\" is \"verify_all\"; expected one of disable",
    ),
    (
        "postgres://u:XYZ@h/d?ssl={rejectUnauthorized:false}",
        "expected true, false, or a value of sslmode",
    ),
    (
        "postgres://u:XYZ@h/d?connect_timeout=soon",
        "connect_timeout in DATABASE_URL is \"soon\"; expected an integer",
    ),
    (
        "postgres://u:XYZ@h:x/d",
        "port in DATABASE_URL is \"x\"; expected a number from 1 to 65535",
    ),
    (
        "postgres://u:XYZ@h/d?user=u&password=XYZ&YZX=1",
        "unknown connection parameter number 3",
    ),
    (
        "postgres://u:XYZ@h/d?schema",
        "missing \"=\" after parameter \"schema\"",
    ),
    (
        "postgres://u:XY%ZZ@h/d",
        "\"%\" in password is not followed by two hexadecimal digits",
    ),
    (
        "mysql://u:XYZ@h/d",
        "DATABASE_URL is for mysql, not for PostgreSQL; PGLOCK_DSN and --dsn take precedence",
    ),
    (
        "mysql+pymysql://u:XYZ@h/d?charset=utf8",
        "DATABASE_URL is for mysql+pymysql, not for PostgreSQL",
    ),
    (
        "sqlite:///app.db?mode=rwc",
        "DATABASE_URL is for sqlite, not for PostgreSQL",
    ),
    ("sqlite::memory:", "DATABASE_URL is for sqlite, not for PostgreSQL"),
    ("file:./dev.db", "DATABASE_URL is for file, not for PostgreSQL"),
    (
        "mongodb+srv://u:XYZ@h/d",
        "DATABASE_URL is for mongodb+srv, not for PostgreSQL",
    ),
    (
        "jdbc:mysql://h/d?user=u&password=XYZ",
        "DATABASE_URL is for mysql, not for PostgreSQL",
    ),
    (
        "prisma+postgres://accelerate.prisma-data.net/?api_key=XYZ",
        "DATABASE_URL is for prisma+postgres, not for",
    ),
    (
        "u:XYZ@h/d",
        "DATABASE_URL is not a PostgreSQL URL (postgresql:// or postgres://); PGLOCK_DSN",
    ),
    ("u:XYZ@h/d?sslmode=require", "unknown connection parameter number 1"),
    ("XYZ://h/d", "DATABASE_URL is not a PostgreSQL URL"),
    ("postgres:XYZ@h/d", "DATABASE_URL is not a PostgreSQL URL"),
    ("\"postgres://u:XYZ@h/d", "DATABASE_URL is not a PostgreSQL URL"),
    ("postgres+://u:XYZ@h/d", "DATABASE_URL is not a PostgreSQL URL"),
];

#[test]
fn urls_of_applications() {
    assert!(URLS.len() >= 60);
    for (text, expected) in URLS {
        let described = described(text);
        let is_settings = settings(text).is_ok();
        if is_settings {
            assert_eq!(described, *expected, "{text}");
        }
        assert!(
            described.contains(expected),
            "{text}\n gives {described}\n  and not {expected}"
        );
        assert!(!described.contains(['X', 'Y', 'Z']), "{text}: {described}");
        assert!(is_settings || described.contains("DATABASE_URL"), "{text}: {described}");
    }
}

/// Parameters that say something about TLS, in a URI that is not JDBC's, and the weakest mode that each allows.
const TLS_STATEMENTS: &[(&str, SslMode)] = &[
    ("sslmode=disable", SslMode::Disable),
    ("sslmode=allow", SslMode::Allow),
    ("sslmode=prefer", SslMode::Prefer),
    ("sslmode=require", SslMode::Require),
    ("sslmode=no-verify", SslMode::Require),
    ("sslmode=verify-ca", SslMode::VerifyCa),
    ("sslmode=verify-full", SslMode::VerifyFull),
    ("sslMode=VerifyFull", SslMode::VerifyFull),
    ("ssl-mode=verify-ca", SslMode::VerifyCa),
    ("SSL%20Mode=Require", SslMode::Require),
    ("ssl=true", SslMode::Require),
    ("ssl=1", SslMode::Require),
    ("ssl=require", SslMode::Require),
    ("ssl=verify-full", SslMode::VerifyFull),
    ("ssl=false", SslMode::Disable),
    ("requiressl=1", SslMode::Require),
    ("requiressl=0", SslMode::Prefer),
    ("sslaccept=strict", SslMode::VerifyFull),
    ("sslaccept=accept_invalid_certs", SslMode::Disable),
    ("sslaccept=anything", SslMode::VerifyFull),
    ("Trust%20Server%20Certificate=true", SslMode::Disable),
    ("Trust%20Server%20Certificate=false", SslMode::Disable),
];

#[test]
fn the_table_of_modes_is_complete() {
    for (statement, weakest) in TLS_STATEMENTS {
        let settings = settings(&format!("postgres://h/d?{statement}")).expect(statement);
        assert!(settings.tls.mode >= *weakest, "{statement}");
    }
    let with_key = settings("postgres://h/d?sslkey=/k&sslcert=/c").expect("a client certificate");
    let path = with_key.tls.client_certificate.map(|file| file.path);
    assert_eq!(path, Some(PathBuf::from("/c")));
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in ".*", tail in "[a-zA-Z=&%@:/?,;\\[\\]'\"\\\\ 0-9]*") {
        for text in [text.clone(), format!("postgres://{text}"), format!("jdbc:postgresql:{tail}"), tail.clone(),
                     format!("Host={tail};{text}"), format!("postgresql+{tail}://{text}"), format!("\"{tail}\"")] {
            let _ = settings(&text);
        }
    }

    /// In any order, between parameters without effect, and for pgjdbc as well.
    #[test]
    fn tls_is_never_weaker_than_any_parameter_asks_for(
        statements in prop::collection::vec(prop::sample::select(TLS_STATEMENTS), 1..6),
        noise in prop::sample::select(&["", "schema=s", "pool=1", "search_path=a", "sslcert=c", "sslcert=c&sslkey=k"][..]),
        at in 0..6_usize,
        prefix in prop::sample::select(&["postgres://h/d?", "postgresql+asyncpg://h/d?", "jdbc:postgresql://h/d?"][..]),
    ) {
        let mut parts: Vec<&str> = statements.iter().map(|(text, _)| *text).collect();
        if !noise.is_empty() {
            parts.insert(at.min(parts.len()), noise);
        }
        let weakest = statements.iter().map(|(_, mode)| *mode).max();
        let text = format!("{prefix}{}", parts.join("&"));
        let mode = settings(&text).map(|settings| settings.tls.mode);
        prop_assert!(mode.clone().is_ok_and(|mode| Some(mode) >= weakest), "{text}: {mode:?}");
    }

    /// A string that libpq accepts means what it means there, except that the strictest `sslmode` counts.
    #[test]
    fn what_libpq_accepts_means_the_same(
        user in "[a-z]{1,5}", host in "[a-z]{1,5}", port in 1..65535_u16, dbname in "[a-z]{1,5}",
        mode in prop::sample::select(&["disable", "prefer", "require", "verify-full"][..]),
    ) {
        let text = format!("postgresql://{user}:p@{host}:{port}/{dbname}?sslmode={mode}&connect_timeout=3");
        let strict = crate::connection::parse::parse(&text).expect("a valid URI").values;
        let lenient = parse(&text).expect("a valid URI").values;
        prop_assert_eq!(strict.iter().collect::<Vec<_>>(), lenient.iter().collect::<Vec<_>>());
    }

    /// Wherever a password ends up, in a text of any form.
    #[test]
    fn nothing_shows_any_part_of_a_password(
        secret in "[XYZ]{3}[ '\"\\\\=&%@:/?,;\\[\\]#]{0,3}[XYZ]{3}[ '=@/?:&;]{0,2}[XYZ]{3}",
        tail in "[a-w=&%:/?,;\\[\\]' ]{0,12}",
        name in prop::sample::select(&["password", "Password", "PWD", "passwd", "pasword", "sslpassword"][..]),
    ) {
        for text in [
            format!("postgres://u:{secret}@h/d{tail}"),
            format!("postgresql+asyncpg://u:{secret}@h{tail}"),
            format!("jdbc:postgresql://h/d?user=u&{name}={secret}&{tail}"),
            format!("jdbc:postgresql:d?{name}={secret}{tail}"),
            format!("host=h {name}={secret} {tail}"),
            format!("Host=h;{name}={secret};{tail}"),
            format!("mysql://u:{secret}@h/d{tail}"),
            format!("u:{secret}@h/d{tail}"),
            format!("'postgres://u:{secret}@h/d?{tail}"),
        ] {
            if let Err(error) = settings(&text) {
                let error = error.to_string();
                for piece in secret.split(|c: char| !"XYZ".contains(c)).filter(|p| !p.is_empty()) {
                    prop_assert!(!error.contains(piece), "{text:?}: {error:?}");
                }
            }
        }
    }
}
