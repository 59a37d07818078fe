//! `DATABASE_URL`, as applications write it.
//!
//! The variable belongs to an application, so its value follows the library that the application uses: another scheme,
//! parameters of a pool, TLS in that library's words. What does not concern a lock has no effect, TLS never gets weaker
//! than any parameter asks for, and everything else is refused. `--dsn` and `PGLOCK_DSN` are pglock's own, and stay as
//! strict as psql.
//!
//! | file | contents |
//! |---|---|
//! | `parameters` | the parameters of other tools, and what each means |
//! | `translation` | from those parameters to libpq's |
//! | `tls` | what the parameters say about TLS; the strictest counts |
//! | `npgsql` | `Host=...;Username=...`, the connection strings of .NET |

mod npgsql;
mod parameters;
mod tls;
mod translation;

use self::parameters::Dialect;
use self::translation::Translation;
use super::grammar::{parse_pairs, parse_query, parse_uri};
use super::parameter::Values;
use super::parse::ParsedConnectionString;
use super::settings_error::SettingsError;
use std::borrow::Cow;

/// The name of the variable.
const VARIABLE: &str = "DATABASE_URL";
/// What follows each error.
const REMEDY: &str = "PGLOCK_DSN and --dsn take precedence over DATABASE_URL";

/// The schemes for PostgreSQL, without a driver: libpq's, `GeoDjango`'s, Ecto's, and two of django-environ.
const SCHEMES: [&str; 6] = ["postgres", "postgresql", "postgis", "ecto", "pgsql", "psql"];

/// The schemes of other servers. Only these are printed: any other text before a colon could be part of a password.
const FOREIGN_SCHEMES: [&str; 26] = [
    "clickhouse",
    "cockroachdb",
    "db2",
    "duckdb",
    "file",
    "h2",
    "http",
    "https",
    "libsql",
    "mariadb",
    "mongodb",
    "mssql",
    "mysql",
    "mysql2",
    "mysqlgis",
    "oracle",
    "prisma",
    "redis",
    "rediss",
    "redshift",
    "snowflake",
    "spatialite",
    "sqlite",
    "sqlite3",
    "sqlserver",
    "trilogy",
];

/// What the text is.
enum Form<'a> {
    /// A URI; the text after `//`.
    Uri(Cow<'a, str>, Dialect),
    /// A connection string of .NET.
    Npgsql(&'a str),
    /// libpq's `key=value` pairs.
    Pairs(&'a str),
    /// The name of a database, or nothing.
    Database(&'a str),
}

/// Parses the value of `DATABASE_URL`.
///
/// # Errors
/// It is malformed or for another server than PostgreSQL, or parameters are unknown or not supported. The error names
/// all of these, and nothing that could be part of a password.
pub(super) fn parse(text: &str) -> Result<ParsedConnectionString, SettingsError> {
    let form = form_of(unquoted(text))?;
    let mut parsed = parse_form(form).map_err(|problem| SettingsError::ConnectionString {
        origin: VARIABLE,
        problem: format!("{problem}; {REMEDY}"),
    })?;
    parsed.values.attribute_to(VARIABLE);
    Ok(parsed)
}

/// Removes what env files and secrets leave around a value: whitespace, a newline at its end, and quotes.
fn unquoted(text: &str) -> &str {
    let text = text.trim_ascii();
    let without = |quote: char| text.strip_prefix(quote)?.strip_suffix(quote);
    without('"').or(without('\'')).unwrap_or(text).trim_ascii()
}

/// Tells the forms apart.
///
/// # Errors
/// The text is for another server than PostgreSQL, or of no known form.
fn form_of(text: &str) -> Result<Form<'_>, SettingsError> {
    match split_scheme(text) {
        Some((scheme, rest)) if scheme == "jdbc" => match split_scheme(rest) {
            Some((scheme, rest)) if scheme == "postgresql" => Ok(Form::Uri(jdbc_uri(rest), Dialect::Jdbc)),
            scheme => Err(not_postgresql(scheme.map(|(scheme, _)| scheme))),
        },
        Some((scheme, rest)) if is_postgresql(&scheme) => match rest.strip_prefix("//") {
            Some(rest) => Ok(Form::Uri(rest.into(), Dialect::Other)),
            None => Err(not_postgresql(None)),
        },
        Some((scheme, _)) if is_foreign(&scheme) => Err(not_postgresql(Some(scheme))),
        _ if npgsql::is_like(text) => Ok(Form::Npgsql(text)),
        _ if text
            .split(['=', ' ', '\''])
            .next()
            .is_some_and(|start| start.contains("://")) =>
        {
            Err(not_postgresql(None))
        }
        _ if text.contains('=') => Ok(Form::Pairs(text)),
        // A URL without its scheme. As the name of a database it would be printed by the server, with its password.
        _ if text.contains([':', '@', '/']) => Err(not_postgresql(None)),
        _ => Ok(Form::Database(text)),
    }
}

/// Splits the scheme off, in lower case.
fn split_scheme(text: &str) -> Option<(String, &str)> {
    let (scheme, rest) = text.split_once(':')?;
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "+-._".contains(c);
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.chars().all(is_allowed);
    is_scheme.then(|| (scheme.to_ascii_lowercase(), rest))
}

/// Returns whether the scheme is one of PostgreSQL, with or without SQLAlchemy's driver (`postgresql+asyncpg`).
fn is_postgresql(scheme: &str) -> bool {
    let drives_postgresql =
        |(scheme, driver): (&str, &str)| ["postgres", "postgresql"].contains(&scheme) && !driver.is_empty();
    SCHEMES.contains(&scheme) || scheme.split_once('+').is_some_and(drives_postgresql)
}

/// Returns whether the scheme is that of another server, with or without a driver (`mysql+pymysql`).
fn is_foreign(scheme: &str) -> bool {
    FOREIGN_SCHEMES.contains(&scheme.split('+').next().unwrap_or_default())
}

/// Reports that the text is not for PostgreSQL. The scheme is named only if it is known.
fn not_postgresql(scheme: Option<String>) -> SettingsError {
    let problem = match scheme.filter(|scheme| is_foreign(scheme)) {
        Some(scheme) => format!("DATABASE_URL is for {scheme}, not for PostgreSQL"),
        None => "DATABASE_URL is not a PostgreSQL URL (postgresql:// or postgres://)".into(),
    };
    SettingsError::inconsistent(format!("{problem}; PGLOCK_DSN and --dsn take precedence over it"))
}

/// Returns what follows `//` in the URI. pgjdbc's manual also has `jdbc:postgresql:database`, without a server.
fn jdbc_uri(rest: &str) -> Cow<'_, str> {
    match rest.strip_prefix("//") {
        Some(rest) => rest.into(),
        None => format!("/{}", rest.trim_start_matches('/')).into(),
    }
}

/// Parses any of the forms.
///
/// # Errors
/// The text is malformed, or parameters are unknown or not supported.
fn parse_form(form: Form) -> Result<ParsedConnectionString, String> {
    let mut is_address_doubtful = false;
    let values = match form {
        Form::Uri(text, dialect) => {
            let uri = parse_uri(&text)?;
            is_address_doubtful = uri.is_address_doubtful;
            let mut translation = Translation::new(uri.values, dialect);
            if dialect == Dialect::Other {
                translation = translation.collecting_hosts();
            }
            parse_query(uri.query, dialect == Dialect::Jdbc, &mut translation.sink())?;
            let mut values = translation.finish()?;
            if dialect == Dialect::Jdbc && !values.has("service") {
                set_defaults(&mut values, &[("host", "localhost")]);
                set_defaults(&mut values, &ADDRESS_WITHOUT_VARIABLES);
            }
            values
        }
        Form::Npgsql(text) => {
            let mut translation = Translation::new(Values::default(), Dialect::Other);
            npgsql::parse(text, &mut translation.sink())?;
            let mut values = translation.finish()?;
            if !values.has("service") {
                set_defaults(&mut values, &ADDRESS_WITHOUT_VARIABLES);
            }
            values
        }
        Form::Pairs(text) => {
            let mut translation = Translation::new(Values::default(), Dialect::Other);
            parse_pairs(text, &mut translation.sink())?;
            translation.finish()?
        }
        Form::Database(name) => {
            let mut values = Values::default();
            if !name.is_empty() {
                values.set_known("dbname", name);
            }
            values
        }
    };
    Ok(ParsedConnectionString {
        values,
        is_address_doubtful,
        is_end_significant: false,
    })
}

/// The defaults of pgjdbc and Npgsql, which no variable of libpq changes: the application is connected there, and a
/// lock in another database would exclude nobody. An empty name of the database stands for that of the user.
const ADDRESS_WITHOUT_VARIABLES: [(&str, &str); 3] = [("hostaddr", ""), ("port", "5432"), ("dbname", "")];

/// Sets these parameters of libpq where they are not given.
fn set_defaults(values: &mut Values, defaults: &[(&str, &str)]) {
    for (parameter, value) in defaults {
        if !values.has(parameter) {
            values.set_known(parameter, value);
        }
    }
}

#[cfg(test)]
mod fuzz_target;
#[cfg(test)]
mod tests;
