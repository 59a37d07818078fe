//! From the sources of settings to one set of them.
//!
//! The order is libpq's: connection string, service file, variables, defaults; each fills what those before left
//! open. Nothing is opened but the service file and the password file; roots and keys of TLS are read when a TLS
//! connection is made, and cost others nothing.

use super::keyword::{KEYWORDS, Values};
use super::passfile::{self, Wanted};
use super::reply_filter::LONGEST_LIST;
use super::validate::{SOCKET_FOLDERS, settings_of};
use super::{parse, service};
use crate::outcome::{ExitCode, Failure};
use crate::ui::message;
use postgres::config::ChannelBinding;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A text that is not to be printed: it has neither `Debug` nor `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// For the server only.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A folder with a Unix socket in it; with `@` in front, a name in Linux's abstract namespace.
    Folder(String),
    /// A numeric address, as it was given (`hostaddr`).
    Address(String),
    /// A name to look up, or a numeric address.
    Name(String),
}

/// One server to try.
#[derive(Clone)]
pub struct Host {
    /// Where it is.
    pub place: Place,
    /// The name that it is known by, to its certificate and to people: `host`, or else `hostaddr`.
    pub name: String,
    /// Whether `host` was given, which a certificate can be compared with.
    pub is_named: bool,
    /// The port.
    pub port: u16,
    /// What the password file has for it, if the password is not given otherwise.
    pub password: Option<Secret>,
}

/// What a session must be like (`target_session_attrs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetSessionAttrs {
    /// `any`
    Any,
    /// `read-write`
    ReadWrite,
    /// `read-only`
    ReadOnly,
    /// `primary`
    Primary,
    /// `standby`
    Standby,
    /// `prefer-standby`
    PreferStandby,
}

/// When to use TLS (`sslmode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SslMode {
    /// `disable`
    Disable,
    /// `allow`
    Allow,
    /// `prefer`
    Prefer,
    /// `require`
    Require,
    /// `verify-ca`
    VerifyCa,
    /// `verify-full`
    VerifyFull,
}

/// Where the trusted roots are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Roots {
    /// The system's own (`sslrootcert=system`).
    System,
    /// This file; the default one (`given: false`) need not be there.
    File {
        /// Where.
        path: PathBuf,
        /// By name.
        given: bool,
    },
    /// No file is known: there is no home folder.
    Nowhere,
}

/// Whether to show a certificate of our own (`sslcertmode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertMode {
    /// Never.
    Disable,
    /// When the server asks for one and there is one.
    Allow,
    /// The server must ask for one.
    Require,
}

/// The versions of TLS that the client library for it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// 1.2
    V12,
    /// 1.3
    V13,
}

/// How TLS is to be done.
#[derive(Clone)]
pub struct Ssl {
    /// When.
    pub mode: SslMode,
    /// Without asking the server first (`sslnegotiation=direct`).
    pub direct: bool,
    /// The roots.
    pub roots: Roots,
    /// The revocation list; the default one (`false`) need not be there.
    pub crl: Option<(PathBuf, bool)>,
    /// A folder of revocation lists.
    pub crl_folder: Option<PathBuf>,
    /// Our own certificate; the default one (`false`) need not be there.
    pub certificate: Option<(PathBuf, bool)>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// Whether to show it.
    pub cert_mode: CertMode,
    /// Whether to tell the server which name we want it to be.
    pub sni: bool,
    /// The oldest version.
    pub min: TlsVersion,
    /// The newest version.
    pub max: TlsVersion,
}

/// TCP's own watch over the connection.
#[derive(Clone, Default)]
pub struct Tcp {
    /// `keepalives=0`
    pub no_keepalives: bool,
    /// Until the first probe.
    pub idle: Option<Duration>,
    /// Between probes.
    pub interval: Option<Duration>,
    /// How many.
    pub count: Option<u32>,
    /// How long data may be unacknowledged.
    pub user_timeout: Option<Duration>,
}

/// Which ways of authentication the server may ask for (`require_auth`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequireAuth {
    /// As it was given.
    pub given: String,
    pub(super) methods: Vec<String>,
    pub(super) negated: bool,
}

impl RequireAuth {
    /// Whether the server may ask for this, or for nothing at all (`none`).
    pub fn allows(&self, method: &str) -> bool {
        let listed = self.methods.iter().any(|m| m == method);
        self.given.is_empty() || listed != self.negated
    }
}

/// Where and how to connect: everything that there is to know, nothing opened yet.
#[derive(Clone)]
pub struct Settings {
    /// The servers, in order.
    pub(super) hosts: Vec<Host>,
    /// They are to be tried in a random order.
    pub(super) random_order: bool,
    pub(super) user: String,
    pub(super) dbname: String,
    pub(super) password: Option<Secret>,
    /// The file that passwords of hosts come from.
    pub(super) passfile: Option<PathBuf>,
    pub(super) options: Option<String>,
    pub(super) application_name: Option<String>,
    /// For one address.
    pub(super) limit: Option<Duration>,
    pub(super) target: TargetSessionAttrs,
    pub(super) ssl: Ssl,
    pub(super) tcp: Tcp,
    pub(super) channel_binding: ChannelBinding,
    pub(super) require_auth: RequireAuth,
    pub(super) require_peer: Option<String>,
    pub(super) password_in_string: bool,
    pub(super) address_is_doubtful: bool,
    /// How many bytes the server may send for one answer.
    pub(super) longest_answer: usize,
}

/// What the settings are drawn from, besides the connection string.
struct Environment<'a> {
    variable: &'a dyn Fn(&str) -> Result<Option<String>, String>,
    home: Option<PathBuf>,
}

impl Settings {
    /// The settings of a connection string, with what it leaves open taken from a service, libpq's variables and
    /// defaults. A `connect_timeout` that is given here overrides theirs; zero is no limit.
    ///
    /// # Errors
    /// A setting that cannot be understood, or cannot be honoured.
    pub fn resolve(dsn: Option<&str>, connect_timeout: Option<Duration>) -> Result<Settings, Failure> {
        let around = Environment {
            variable: &variable,
            home: home(),
        };
        let wrong = |what: String| Failure::say(ExitCode::Config, what);
        let mut settings = collect(dsn.unwrap_or_default(), &around)
            .and_then(|(values, doubtful)| settings_of(&values, doubtful, around.home.as_deref()))
            .map_err(wrong)?;
        if let Some(limit) = connect_timeout {
            settings.limit = Some(limit).filter(|limit| !limit.is_zero());
        }
        settings.password_in_string =
            dsn.is_some_and(|dsn| parse::parse(dsn).is_ok_and(|parsed| parsed.values.get("password").is_some()));
        settings.read_passfile();
        Ok(settings)
    }

    /// Whether the connection string itself has a password.
    pub fn password_in_string(&self) -> bool {
        self.password_in_string
    }

    /// The same, for a session that asks for all locks of a database.
    pub fn for_lists(self) -> Settings {
        Settings {
            longest_answer: LONGEST_LIST,
            ..self
        }
    }

    /// What the user wants the session to be called, if anything.
    pub fn application_name(&self) -> Option<&str> {
        self.application_name.as_deref()
    }

    /// How long connecting to one address may take.
    pub fn connect_limit(&self) -> Option<Duration> {
        self.limit
    }

    /// The address, for people.
    pub fn address(&self) -> String {
        let addresses = self.hosts.iter().map(|host| self.address_of(host));
        addresses.collect::<Vec<_>>().join(", ")
    }

    /// The address of one host.
    pub(super) fn address_of(&self, host: &Host) -> String {
        let port = host.port;
        match &host.place {
            _ if self.address_is_doubtful => {
                "the server of the connection string (an \"@\" in a password is written %40 there)".into()
            }
            Place::Folder(folder) => format!("{folder}/.s.PGSQL.{port}"),
            Place::Address(address) if *address != host.name => {
                format!("{}:{port} ({address})", host.name)
            }
            Place::Address(name) | Place::Name(name) if name.contains(':') => {
                format!("[{name}]:{port}")
            }
            Place::Address(name) | Place::Name(name) => format!("{name}:{port}"),
        }
    }

    /// Looks the password up for each host, if none is given otherwise.
    fn read_passfile(&mut self) {
        let Some(path) = self.passfile.as_ref().filter(|_| self.password.is_none()) else {
            return;
        };
        let text = match passfile::read(path) {
            Ok(None) => return,
            Ok(Some(text)) => text,
            Err(warning) => return message::error(warning),
        };
        for host in &mut self.hosts {
            let wanted = Wanted {
                host: match SOCKET_FOLDERS.contains(&host.name.as_str()) {
                    true => "localhost",
                    false => &host.name,
                },
                port: host.port,
                dbname: &self.dbname,
                user: &self.user,
            };
            host.password = passfile::find(&text, &wanted)
                .filter(|password| !password.is_empty())
                .map(Secret::new);
        }
    }
}

/// A variable, set to nothing being set.
fn variable(name: &str) -> Result<Option<String>, String> {
    std::env::var_os(name)
        .map(|value| value.into_string())
        .transpose()
        .map_err(|_| format!("the variable {name} is not valid UTF-8"))
}

/// HOME, or else what the system's user has.
fn home() -> Option<PathBuf> {
    match std::env::var_os("HOME").filter(|home| !home.is_empty()) {
        Some(home) => Some(home.into()),
        None => system_user().map(|user| user.dir),
    }
}

pub(super) fn system_user() -> Option<nix::unistd::User> {
    nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten()
}

/// All sources, one after the other; and whether the address may be half a password.
fn collect(dsn: &str, around: &Environment) -> Result<(Values, bool), String> {
    let parsed = parse::parse(dsn).map_err(|what| format!("the connection string is not valid: {what}"))?;
    let mut values = parsed.values;
    let or_variable = |given: Option<&str>, has: bool, name: &str| match has {
        true => Ok(Some(given.unwrap_or_default().to_owned())),
        false => (around.variable)(name),
    };
    let service = or_variable(values.get("service"), values.has("service"), "PGSERVICE")?;
    if let Some(service) = service {
        let named = or_variable(values.get("servicefile"), values.has("servicefile"), "PGSERVICEFILE")?;
        let folder = (around.variable)("PGSYSCONFDIR")?;
        let files = service::Files {
            named: named.map(PathBuf::from),
            home: around.home.as_ref().map(|home| home.join(".pg_service.conf")),
            system: system_folder(folder).join("pg_service.conf"),
        };
        values.fill(service::read(&service, &files)?);
    }
    values.fill(variables(around)?);
    Ok((values, parsed.address_is_doubtful))
}

/// Where libpq looks for the system's service file: Debian's folder, or the one of its own sources.
fn system_folder(given: Option<String>) -> PathBuf {
    let folders = ["/etc/postgresql-common", "/usr/local/pgsql/etc", "/etc"];
    let has_file = |folder: &&str| Path::new(folder).join("pg_service.conf").exists();
    match given {
        Some(folder) => folder.into(),
        None => folders.into_iter().find(has_file).unwrap_or(folders[0]).into(),
    }
}

fn variables(around: &Environment) -> Result<Values, String> {
    let mut values = Values::default();
    for (keyword, name) in KEYWORDS {
        let Some(name) = name else { continue };
        if let Some(value) = (around.variable)(name)? {
            values.set_from(name, keyword, value);
        }
    }
    if !values.has("sslmode") && (around.variable)("PGREQUIRESSL")?.is_some_and(|value| value.starts_with('1')) {
        values.set_from("PGREQUIRESSL", "sslmode", "require".into());
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// The settings of this string in this environment.
    fn resolved(dsn: &str, variables: &[(&str, &str)]) -> Result<Settings, String> {
        let variables: BTreeMap<_, _> = variables.iter().copied().collect();
        let around = Environment {
            variable: &|name| Ok(variables.get(name).map(|value| (*value).to_owned())),
            home: Some("/home/of/nobody".into()),
        };
        let (values, doubtful) = collect(dsn, &around)?;
        settings_of(&values, doubtful, around.home.as_deref())
    }

    fn error(dsn: &str, variables: &[(&str, &str)]) -> String {
        let resolved = resolved(dsn, variables);
        resolved.err().unwrap_or_else(|| panic!("{dsn} is accepted"))
    }

    #[test]
    fn each_source_fills_what_those_before_left_open() {
        let variables = [
            ("PGHOST", "a,b"),
            ("PGPORT", "1,2"),
            ("PGUSER", "u"),
            ("PGAPPNAME", "n"),
        ];
        let settings = resolved("user=v dbname=d", &variables).expect("good settings");
        assert_eq!(settings.address(), "a:1, b:2");
        assert_eq!((settings.user.as_str(), settings.dbname.as_str()), ("v", "d"));
        assert_eq!(settings.application_name(), Some("n"));
        assert_eq!(settings.limit, Some(Duration::from_secs(10)));
        let settings = resolved("host=::1 user=v connect_timeout=0", &variables[2..]);
        let settings = settings.expect("good settings");
        assert_eq!((settings.address().as_str(), settings.limit), ("[::1]:5432", None));
        assert_eq!(settings.dbname, "v");
    }

    #[test]
    fn what_is_wrong_is_named_as_it_was_given() {
        for (dsn, variable, words) in [
            ("", ("PGPORT", "x"), "PGPORT is \"x\""),
            ("port=x", ("PGPORT", "1"), "port is \"x\""),
            ("", ("PGSSLMODE", "on"), "PGSSLMODE is \"on\"; one of disable, allow"),
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
            ("require_auth=md5,!none", ("PGUSER", "u"), "either all methods"),
            ("require_auth=md5,md5", ("PGUSER", "u"), "twice"),
            ("gssencmode=require", ("PGUSER", "u"), "Kerberos"),
            ("oauth_issuer=x", ("PGUSER", "u"), "OAuth"),
            ("ssl_max_protocol_version=TLSv1.1", ("PGUSER", "u"), "broken"),
            ("min_protocol_version=3.2", ("PGUSER", "u"), "3.0"),
            ("replication=true", ("PGUSER", "u"), "an ordinary session"),
            ("host=a,b port=1,2,3", ("PGUSER", "u"), "3 ports and 2 hosts"),
        ] {
            let said = error(dsn, &[variable]);
            assert!(said.contains(words), "{words:?} is not in {said:?}");
        }
    }

    #[test]
    fn methods_of_authentication_are_a_list_or_its_opposite() {
        let allows = |list: &str, method| {
            let settings = resolved(&format!("require_auth={list} user=u"), &[]);
            settings.expect("good settings").require_auth.allows(method)
        };
        assert!(allows("''", "none") && allows("md5,none", "none") && allows("!md5", "none"));
        assert!(!allows("md5", "none") && !allows("!none,!md5", "md5") && !allows("md5", "password"));
    }

    proptest! {
        #[test]
        fn no_error_and_no_address_has_a_piece_of_a_password(
            secret in "[XYZ]{3}[ @/:%]{0,2}[XYZ]{3}",
            tail in "(/d|:x/d|,b:0|\\?port=x|\\?sslmode=x)?",
        ) {
            for dsn in [
                format!("postgres://u:{secret}@h{tail}"),
                format!("postgres://u:{secret}@h:{tail}"),
                format!("host=h port=x user=u password='{secret}'"),
                format!("host=h user=u sslmode=x password='{secret}'"),
            ] {
                let text = match resolved(&dsn, &[]) {
                    Ok(settings) => settings.address(),
                    Err(error) => error,
                };
                prop_assert!(!text.contains(['X', 'Y', 'Z']), "{dsn:?}: {text:?}");
            }
        }
    }
}
