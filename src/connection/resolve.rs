//! Resolves the connection settings from all sources: connection string, service file, environment variables, defaults.
//!
//! The order is libpq's; each source sets the parameters that those before it left open. Only the service file and the
//! password file are opened here. Certificates and keys are read when a TLS connection is made, so that other
//! connections do not pay for them.

use super::database_url;
use super::parameter::{PARAMETERS, Values};
use super::parse::parse;
use super::passfile::{self, Passfile, PassfileQuery};
use super::service::{self, ServiceFiles};
use super::settings::{ConnectionOptions, ConnectionString, ConnectionStringSource, Secret, Settings, WhitespaceNotes};
use super::settings_error::SettingsError;
use super::validate::{default_socket_directory, system_user, validate};
use crate::outcome::Failure;
use crate::ui::message;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the settings depend on besides the connection string.
struct Environment<'a> {
    variable: &'a dyn Fn(&str) -> Result<Option<String>, SettingsError>,
    home: Option<PathBuf>,
}

/// The values of all sources.
struct CollectedValues {
    values: Values,
    is_password_in_dsn: bool,
    is_address_doubtful: bool,
    whitespace_notes: WhitespaceNotes,
}

impl Settings {
    /// Resolves the settings for these options, and warns of a password that every user of this system can see.
    ///
    /// # Errors
    /// As for [`Settings::resolve`].
    pub(crate) fn from_options(options: &ConnectionOptions) -> Result<Settings, Failure> {
        let settings = Settings::resolve(options.dsn.as_ref(), options.connect_timeout)?;
        let source = options.dsn.as_ref().map(|dsn| dsn.source);
        if source == Some(ConnectionStringSource::Option) && settings.is_password_in_dsn {
            message::error(
                "the password in --dsn is visible to every user of this system; \
                 pass the connection string in PGLOCK_DSN, or the password in a password file (~/.pgpass)",
            );
        }
        Ok(settings)
    }

    /// Resolves the settings of a connection string, completed from the service file, libpq's environment variables and
    /// the defaults. A `connect_timeout` given here overrides all of them; zero means no limit.
    ///
    /// # Errors
    /// A value is invalid or not supported, or the service file or a named password file cannot be used.
    fn resolve(dsn: Option<&ConnectionString>, connect_timeout: Option<Duration>) -> Result<Settings, Failure> {
        let environment = Environment {
            variable: &environment_variable,
            home: home_directory(),
        };
        let mut settings = resolve_in(dsn, &environment)?;
        if let Some(timeout) = connect_timeout {
            settings.connect_timeout = Some(timeout).filter(|timeout| !timeout.is_zero());
        }
        settings.read_passfile()?;
        Ok(settings)
    }

    /// Looks up the password of each host, unless another source gives one.
    ///
    /// # Errors
    /// A parameter names the file, and it may not be read.
    fn read_passfile(&mut self) -> Result<(), SettingsError> {
        let Some(file) = self.passfile.as_ref().filter(|_| self.password.is_none()) else {
            return Ok(());
        };
        let Some(path) = file.find("password file")? else {
            return Ok(());
        };
        let text = match passfile::read(path) {
            Passfile::Missing => return Ok(()),
            Passfile::Ignored(warning) => {
                message::error(warning);
                return Ok(());
            }
            Passfile::Text(text) => text,
        };
        for host in &mut self.hosts {
            let is_default_socket = host.name == default_socket_directory();
            let query = PassfileQuery {
                host: if is_default_socket { "localhost" } else { &host.name },
                port: host.port,
                dbname: &self.dbname,
                user: &self.user,
            };
            let password = passfile::find(&text, &query).filter(|password| !password.is_empty());
            if let Some(password) = &password {
                let name = format!("the password in {}", path.display());
                self.whitespace_notes.password = WhitespaceNotes::describe(&name, password, "it");
            }
            host.password = password.map(Secret::new);
        }
        Ok(())
    }
}

/// Resolves the settings in this environment.
///
/// # Errors
/// A value is invalid or not supported, or the service file cannot be used.
fn resolve_in(dsn: Option<&ConnectionString>, environment: &Environment) -> Result<Settings, SettingsError> {
    let collected = collect(dsn, environment)?;
    let home = environment.home.as_deref();
    let notes = collected.whitespace_notes;
    match validate(&collected.values, collected.is_address_doubtful, home) {
        Ok(settings) => Ok(Settings {
            is_password_in_dsn: collected.is_password_in_dsn,
            whitespace_notes: notes,
            ..settings
        }),
        Err(error) => Err(match notes.dsn {
            Some(note) => SettingsError::inconsistent(format!("{error} ({note})")),
            None => error,
        }),
    }
}

/// Returns the value of an environment variable. A variable with an empty value counts as set.
///
/// # Errors
/// The value is not UTF-8.
fn environment_variable(name: &str) -> Result<Option<String>, SettingsError> {
    match std::env::var_os(name).map(|value| value.into_string()) {
        None => Ok(None),
        Some(Ok(value)) => Ok(Some(value)),
        Some(Err(_)) => Err(SettingsError::inconsistent(format!(
            "environment variable {name} is not valid UTF-8"
        ))),
    }
}

/// Returns `HOME`, or else the home directory in the user database.
fn home_directory() -> Option<PathBuf> {
    match std::env::var_os("HOME").filter(|home| !home.is_empty()) {
        Some(home) => Some(home.into()),
        None => system_user().map(|user| user.dir),
    }
}

/// Collects the values of all sources.
///
/// # Errors
/// The connection string or a variable is malformed, or the service file cannot be used.
fn collect(dsn: Option<&ConnectionString>, environment: &Environment) -> Result<CollectedValues, SettingsError> {
    let parsed = match dsn {
        Some(dsn) if dsn.source == ConnectionStringSource::DatabaseUrl => database_url::parse(&dsn.text)?,
        Some(dsn) => parse(&dsn.text)?,
        None => parse("")?,
    };
    let mut values = parsed.values;
    let is_password_in_dsn = values.get("password").is_some();
    let value_or_variable = |parameter: &str, variable: &str| match values.get_given(parameter) {
        Some(value) => Ok(Some(value.to_owned())),
        None => (environment.variable)(variable),
    };
    if let Some(service) = value_or_variable("service", "PGSERVICE")? {
        let files = ServiceFiles {
            explicit: value_or_variable("servicefile", "PGSERVICEFILE")?.map(PathBuf::from),
            user: environment.home.as_ref().map(|home| home.join(".pg_service.conf")),
            system: system_directory((environment.variable)("PGSYSCONFDIR")?).join("pg_service.conf"),
        };
        values.fill(service::read(&service, &files)?);
    }
    values.fill(variables(environment)?);
    let significant_dsn = dsn.filter(|_| parsed.is_end_significant);
    let whitespace_notes = WhitespaceNotes {
        dsn: significant_dsn.and_then(|dsn| WhitespaceNotes::describe(dsn.source.name(), &dsn.text, "its last value")),
        password: password_note(&values),
    };
    Ok(CollectedValues {
        whitespace_notes,
        values,
        is_password_in_dsn,
        is_address_doubtful: parsed.is_address_doubtful,
    })
}

/// Says that the password ends in whitespace, if it does.
fn password_note(values: &Values) -> Option<String> {
    let name = match values.origin("password") {
        "PGPASSWORD" => "PGPASSWORD",
        _ => "the password",
    };
    WhitespaceNotes::describe(name, values.get("password")?, "the password")
}

/// Returns the directory of the system's service file: `PGSYSCONFDIR`, Debian's, or the one of the PostgreSQL sources.
fn system_directory(explicit: Option<String>) -> PathBuf {
    if let Some(directory) = explicit {
        return directory.into();
    }
    let directories = ["/etc/postgresql-common", "/usr/local/pgsql/etc", "/etc"];
    let has_file = |directory: &&str| Path::new(directory).join("pg_service.conf").exists();
    directories.into_iter().find(has_file).unwrap_or(directories[0]).into()
}

/// Reads the values that environment variables give.
///
/// # Errors
/// A value is not UTF-8.
fn variables(environment: &Environment) -> Result<Values, SettingsError> {
    let mut values = Values::default();
    for (parameter, variable) in PARAMETERS {
        let Some(variable) = variable else { continue };
        if let Some(value) = (environment.variable)(variable)? {
            values.set_from(variable, parameter, value);
        }
    }
    if !values.has("sslmode") && (environment.variable)("PGREQUIRESSL")?.is_some_and(|value| value.starts_with('1')) {
        values.set_from("PGREQUIRESSL", "sslmode", "require".into());
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// Resolves a connection string with these environment variables.
    ///
    /// # Errors
    /// As for [`resolve_in`].
    fn resolved_from(
        source: ConnectionStringSource,
        dsn: &str,
        variables: &[(&str, &str)],
    ) -> Result<Settings, SettingsError> {
        let variables: BTreeMap<_, _> = variables.iter().copied().collect();
        let environment = Environment {
            variable: &|name| Ok(variables.get(name).map(|value| (*value).to_owned())),
            home: Some("/nonexistent/home".into()),
        };
        let dsn = ConnectionString {
            text: dsn.to_owned(),
            source,
        };
        resolve_in(Some(&dsn), &environment)
    }

    /// Resolves a value of `PGLOCK_DSN`.
    ///
    /// # Errors
    /// As for [`resolve_in`].
    fn resolved(dsn: &str, variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        resolved_from(ConnectionStringSource::PglockDsn, dsn, variables)
    }

    fn error(dsn: &str, variables: &[(&str, &str)]) -> String {
        match resolved(dsn, variables) {
            Ok(_) => panic!("{dsn} is accepted"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn each_source_sets_what_those_before_it_left_open() {
        let variables = [
            ("PGHOST", "a,b"),
            ("PGPORT", "1,2"),
            ("PGUSER", "u"),
            ("PGAPPNAME", "n"),
        ];
        let settings = resolved("user=v dbname=d", &variables).expect("valid settings");
        assert_eq!(settings.address(), "a:1, b:2");
        assert_eq!((settings.user.as_str(), settings.dbname.as_str()), ("v", "d"));
        assert_eq!(settings.application_name(), Some("n"));
        assert_eq!(settings.connect_timeout, Some(Duration::from_secs(10)));
        let settings = resolved("host=::1 user=v connect_timeout=0", &variables[2..]);
        let settings = settings.expect("valid settings");
        assert_eq!(
            (settings.address().as_str(), settings.connect_timeout),
            ("[::1]:5432", None)
        );
        assert_eq!(settings.dbname, "v");
    }

    /// pgjdbc and Npgsql read no variable for the address and the database, but other libraries do.
    #[test]
    fn variables_complete_a_database_url_as_its_library_does() {
        let variables = [
            ("PGHOSTADDR", "10.0.0.1"),
            ("PGPORT", "7"),
            ("PGDATABASE", "other"),
            ("PGUSER", "v"),
        ];
        for (url, expected) in [
            ("jdbc:postgresql://h/?user=u", "h:5432 u"),
            ("jdbc:postgresql://h/", "h:5432 v"),
            ("jdbc:postgresql://h:6/d?user=u", "h:6 d"),
            ("Host=h;Username=u", "h:5432 u"),
            ("Host=h;Username=u;Database=d;Port=6", "h:6 d"),
            ("postgres://u@h", "h:7 (10.0.0.1) other"),
            ("host=h user=u", "h:7 (10.0.0.1) other"),
        ] {
            let settings = resolved_from(ConnectionStringSource::DatabaseUrl, url, &variables).expect(url);
            assert_eq!(format!("{} {}", settings.address(), settings.dbname), expected, "{url}");
        }
    }

    #[test]
    fn errors_name_the_source_of_the_invalid_value() {
        for (dsn, variable, expected) in [
            ("", ("PGPORT", "x"), "PGPORT is \"x\""),
            ("port=x", ("PGPORT", "1"), "port is \"x\""),
            (
                "",
                ("PGSSLMODE", "on"),
                "PGSSLMODE is \"on\"; expected one of disable, allow",
            ),
            (
                "sslmode=prefer sslnegotiation=direct",
                ("PGUSER", "u"),
                "needs sslmode=require",
            ),
            (
                "sslmode=require sslrootcert=system",
                ("PGUSER", "u"),
                "needs sslmode=verify-full",
            ),
            ("require_auth=md5,!none", ("PGUSER", "u"), "prefix all of them or none"),
            ("require_auth=md5,md5", ("PGUSER", "u"), "more than once"),
            ("gssencmode=require", ("PGUSER", "u"), "Kerberos"),
            ("oauth_issuer=x", ("PGUSER", "u"), "OAuth"),
            ("ssl_max_protocol_version=TLSv1.1", ("PGUSER", "u"), "insecure"),
            ("min_protocol_version=3.2", ("PGUSER", "u"), "3.0"),
            ("replication=true", ("PGUSER", "u"), "an ordinary session"),
            ("host=a,b port=1,2,3", ("PGUSER", "u"), "3 ports given for 2 hosts"),
        ] {
            let error = error(dsn, &[variable]);
            assert!(error.contains(expected), "{expected:?} is not in {error:?}");
        }
    }

    /// A connection string in the wrong place, or in the form of another library.
    #[test]
    fn a_value_that_goes_on_with_a_password_is_refused_and_not_quoted() {
        for (dsn, variables) in [
            (" postgres://app:hunter2@db/app", [("PGUSER", "u")]),
            ("'postgres://app:hunter2@db/app'", [("PGUSER", "u")]),
            ("app:hunter2@db/app", [("PGUSER", "u")]),
            ("", [("PGDATABASE", "postgres://app:hunter2@db/app")]),
            ("", [("PGUSER", "postgres://app:hunter2@db/app")]),
            ("", [("PGPORT", "postgres://app:hunter2@db/app")]),
            ("", [("PGPORT", "app:hunter2@db/app")]),
            ("", [("PGHOST", "db;User=app;Key=hunter2")]),
            ("", [("PGDATABASE", "app&key=hunter2")]),
            ("", [("PGSSLMODE", "require;pwd=hunter2")]),
            ("", [("PGSSLROOTCERT", "/ca;pwd=hunter2")]),
            ("", [("PGAPPNAME", "web;Host=db;Password=hunter2")]),
            ("", [("PGHOST", "app:hunter2@127.0.0.1/app")]),
            ("", [("PGHOST", "a,app:hunter2@b")]),
            ("", [("PGUSER", "app:hunter2@db/app")]),
            ("", [("PGDATABASE", "app:hunter2@db/app")]),
            ("dbname=app:hunter2@db/app", [("PGUSER", "u")]),
            ("postgres://u@/app?host=app:hunter2@127.0.0.1", [("PGUSER", "u")]),
            ("", [("PGDATABASE", "host=db user=app password=hunter2 dbname=app")]),
            ("", [("PGDATABASE", "password=hunter2")]),
            ("", [("PGDATABASE", "host = db user = app password = hunter2")]),
            ("", [("PGUSER", "app\u{b}password\u{c}=hunter2")]),
            ("", [("PGSSLMODE", "require pwd = hunter2")]),
            ("", [("PGHOST", "db\tuser=app password=hunter2")]),
            ("", [("PGPORT", "5432 user=app pwd=hunter2")]),
            ("", [("PGSSLMODE", "require key=hunter2")]),
            ("", [("PGSSLMODE", "pwd=hunter2")]),
            ("host=db;user=app;password=hunter2", [("PGUSER", "u")]),
            ("dbname=postgres;password=hunter2", [("PGUSER", "u")]),
            ("port=5614;pwd=hunter2", [("PGUSER", "u")]),
            ("host='db;key=hunter2'", [("PGUSER", "u")]),
            ("postgres://db/app;password=hunter2", [("PGUSER", "u")]),
        ] {
            let error = error(dsn, &variables);
            assert!(!error.contains("hunter2"), "{error}");
        }
        for dsn in [
            "dbname='a;b&c@d:e' user=u",
            "password='a;host=b' user=u",
            "application_name='a;b=c' user=u",
            "options='-c application_name=a' user='app@server' dbname='my app'",
            "host=::1,@pg user=u",
            "host=@a:b@c user=u",
            "user='odd user@x=y' dbname='a=b c' host=@abstract port=' 5432 '",
        ] {
            assert!(resolved(dsn, &[]).is_ok(), "{dsn}");
        }
    }

    #[test]
    fn require_auth_lists_the_allowed_methods_or_the_others() {
        let allows = |list: &str, method| {
            let settings = resolved(&format!("require_auth={list} user=u"), &[]);
            settings.expect("valid settings").require_auth.allows(method)
        };
        assert!(allows("''", "none") && allows("md5,none", "none") && allows("!md5", "none"));
        assert!(!allows("md5", "none") && !allows("!none,!md5", "md5") && !allows("md5", "password"));
    }

    proptest! {
        #[test]
        fn neither_errors_nor_addresses_contain_any_part_of_a_password(
            secret in "[XYZ]{3}[ @/:%]{0,2}[XYZ]{3}",
            tail in "(/d|:x/d|,b:0|\\?port=x|\\?sslmode=x)?",
        ) {
            for dsn in [
                format!("postgres://u:{secret}@h{tail}"),
                format!("postgres://u:{secret}@h:{tail}"),
                format!("host=h port=x user=u password='{secret}'"),
                format!("host=h user=u sslmode=x password='{secret}'"),
                format!("postgres://u:1/d?sslmode={secret}@h{tail}"),
                format!("postgres://u:1/d?connect_timeout={secret}@h{tail}"),
            ] {
                for source in [ConnectionStringSource::Option, ConnectionStringSource::DatabaseUrl] {
                    let text = match resolved_from(source, &dsn, &[]) {
                        Ok(settings) => settings.address(),
                        Err(error) => error.to_string(),
                    };
                    prop_assert!(!text.contains(['X', 'Y', 'Z']), "{dsn:?}: {text:?}");
                }
            }
        }
    }
}
