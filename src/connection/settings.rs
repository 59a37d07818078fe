//! From the sources of settings to one validated set of them.
//!
//! The order is libpq's: connection string, service file, variables, defaults; each fills what those before left
//! open. Everything that libpq knows is honoured, is without effect on a lock for a reason given here, or is
//! refused in one line. Nothing is opened but the service file and the password file; roots and keys of TLS
//! are read when a TLS connection is made, and cost others nothing.

use super::keyword::{KEYWORDS, Values};
use super::passfile::{self, Wanted};
use super::{parse, service};
use crate::diag;
use crate::outcome::{ExitCode, Failure};
use postgres::config::ChannelBinding;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// libpq's folder for sockets where it is built for Debian, and the one of its own sources.
const SOCKET_FOLDERS: [&str; 2] = ["/var/run/postgresql", "/tmp"];
const DEFAULT_PORT: u16 = 5432;
/// How long connecting to one address may take, if nothing is said about it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

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
pub enum Target {
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
    methods: Vec<String>,
    negated: bool,
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
    pub(super) target: Target,
    pub(super) ssl: Ssl,
    pub(super) tcp: Tcp,
    pub(super) channel_binding: ChannelBinding,
    pub(super) require_auth: RequireAuth,
    pub(super) require_peer: Option<String>,
    password_in_string: bool,
    address_is_doubtful: bool,
}

/// What the settings are drawn from, besides the connection string.
struct Surroundings<'a> {
    variable: &'a dyn Fn(&str) -> Result<Option<String>, String>,
    home: Option<PathBuf>,
}

impl Settings {
    /// The settings of a connection string, with what it leaves open taken from a service, libpq's variables and
    /// defaults. A `connect_timeout` that is given here overrides theirs; zero is no limit.
    ///
    /// # Errors
    /// A setting that cannot be understood, or cannot be honoured.
    pub fn resolve(
        dsn: Option<&str>,
        connect_timeout: Option<Duration>,
    ) -> Result<Settings, Failure> {
        let around = Surroundings {
            variable: &variable,
            home: home(),
        };
        let wrong = |what: String| Failure::say(ExitCode::Config, what);
        let mut settings = collect(dsn.unwrap_or_default(), &around)
            .and_then(|(values, doubtful)| settings_of(&values, doubtful, &around))
            .map_err(wrong)?;
        if let Some(limit) = connect_timeout {
            settings.limit = Some(limit).filter(|limit| !limit.is_zero());
        }
        settings.password_in_string = dsn.is_some_and(|dsn| {
            parse::parse(dsn).is_ok_and(|parsed| parsed.values.get("password").is_some())
        });
        settings.read_passfile();
        Ok(settings)
    }

    /// Whether the connection string itself has a password.
    pub fn password_in_string(&self) -> bool {
        self.password_in_string
    }

    /// What the user wants the session to be called, if anything.
    pub fn application_name(&self) -> Option<&str> {
        self.application_name.as_deref()
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
                "the server of the connection string (an \"@\" in a password is written %40 there)"
                    .into()
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
            Err(warning) => return diag::error(warning),
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

fn system_user() -> Option<nix::unistd::User> {
    nix::unistd::User::from_uid(nix::unistd::geteuid())
        .ok()
        .flatten()
}

/// All sources, one after the other; and whether the address may be half a password.
fn collect(dsn: &str, around: &Surroundings) -> Result<(Values, bool), String> {
    let parsed =
        parse::parse(dsn).map_err(|what| format!("the connection string is not valid: {what}"))?;
    let mut values = parsed.values;
    let or_variable = |given: Option<&str>, has: bool, name: &str| match has {
        true => Ok(Some(given.unwrap_or_default().to_owned())),
        false => (around.variable)(name),
    };
    let service = or_variable(values.get("service"), values.has("service"), "PGSERVICE")?;
    if let Some(service) = service {
        let named = or_variable(
            values.get("servicefile"),
            values.has("servicefile"),
            "PGSERVICEFILE",
        )?;
        let folder = (around.variable)("PGSYSCONFDIR")?;
        let files = service::Files {
            named: named.map(PathBuf::from),
            home: around
                .home
                .as_ref()
                .map(|home| home.join(".pg_service.conf")),
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
        None => folders
            .into_iter()
            .find(has_file)
            .unwrap_or(folders[0])
            .into(),
    }
}

fn variables(around: &Surroundings) -> Result<Values, String> {
    let mut values = Values::default();
    for (keyword, name) in KEYWORDS {
        let Some(name) = name else { continue };
        if let Some(value) = (around.variable)(name)? {
            values.set_from(name, keyword, value);
        }
    }
    if !values.has("sslmode")
        && (around.variable)("PGREQUIRESSL")?.is_some_and(|value| value.starts_with('1'))
    {
        values.set_from("PGREQUIRESSL", "sslmode", "require".into());
    }
    Ok(values)
}

/// Validates.
fn settings_of(
    values: &Values,
    address_is_doubtful: bool,
    around: &Surroundings,
) -> Result<Settings, String> {
    refuse_what_cannot_be_had(values)?;
    let owned = |keyword: &str| values.get(keyword).map(str::to_owned);
    let user = match owned("user") {
        Some(user) => user,
        None => system_user()
            .map(|user| user.name)
            .ok_or("no user is given, and this system user has no name")?,
    };
    let target = choice(
        values,
        "target_session_attrs",
        &[
            ("any", Target::Any),
            ("read-write", Target::ReadWrite),
            ("read-only", Target::ReadOnly),
            ("primary", Target::Primary),
            ("standby", Target::Standby),
            ("prefer-standby", Target::PreferStandby),
        ],
    )?;
    let binding = choice(
        values,
        "channel_binding",
        &[
            ("disable", ChannelBinding::Disable),
            ("prefer", ChannelBinding::Prefer),
            ("require", ChannelBinding::Require),
        ],
    )?;
    let order = choice(
        values,
        "load_balance_hosts",
        &[("disable", false), ("random", true)],
    )?;
    let limit = match integer(values, "connect_timeout")? {
        None => Some(CONNECT_TIMEOUT),
        Some(seconds) => positive(seconds).map(Duration::from_secs),
    };
    Ok(Settings {
        hosts: hosts(values, address_is_doubtful)?,
        random_order: order.unwrap_or(false),
        dbname: owned("dbname").unwrap_or_else(|| user.clone()),
        user,
        password: owned("password").map(Secret::new),
        passfile: file(values, "passfile", around, ".pgpass").map(|(path, _)| path),
        options: owned("options"),
        application_name: owned("application_name").or(owned("fallback_application_name")),
        limit,
        target: target.unwrap_or(Target::Any),
        ssl: ssl(values, around)?,
        tcp: tcp(values)?,
        channel_binding: binding.unwrap_or(ChannelBinding::Prefer),
        require_auth: require_auth(values.get("require_auth").unwrap_or_default())?,
        require_peer: owned("requirepeer"),
        password_in_string: false,
        address_is_doubtful,
    })
}

/// What libpq can do and pglock cannot. The others that have no effect need none: `client_encoding` (there is no
/// text of a user's to convert), `krbsrvname`, `gsslib` and `gssdelegation` (without Kerberos),
/// `sslcompression` (which no TLS library of today does), `sslpassword` (a key that needs it is refused).
fn refuse_what_cannot_be_had(values: &Values) -> Result<(), String> {
    let encryption = choice(
        values,
        "gssencmode",
        &[("disable", false), ("prefer", false), ("require", true)],
    )?;
    if encryption == Some(true) {
        return Err(
            "gssencmode=require cannot be had: pglock has no Kerberos; TLS encrypts as well".into(),
        );
    }
    let replication = values.get("replication").map(str::to_ascii_lowercase);
    if replication.is_some_and(|value| !["false", "off", "no", "0"].contains(&value.as_str())) {
        return Err("replication cannot be had: a lock needs an ordinary session".into());
    }
    let newest = [("3.0", true), ("3.2", true), ("latest", true)];
    choice(values, "max_protocol_version", &newest)?;
    let oldest = [("3.0", true), ("3.2", false), ("latest", false)];
    if choice(values, "min_protocol_version", &oldest)? == Some(false) {
        return Err("min_protocol_version: pglock speaks version 3.0 of the protocol".into());
    }
    for (keyword, why) in [
        ("scram_client_key", "give the password instead"),
        ("scram_server_key", "give the password instead"),
        ("oauth_issuer", "pglock has no OAuth"),
        ("oauth_client_id", "pglock has no OAuth"),
        ("oauth_client_secret", "pglock has no OAuth"),
        ("oauth_scope", "pglock has no OAuth"),
        ("sslkeylogfile", "pglock writes no secrets of TLS"),
    ] {
        if values.get(keyword).is_some() {
            return Err(format!("{keyword} cannot be had: {why}"));
        }
    }
    Ok(())
}

/// One of a few words. One that is given empty is none of them.
fn choice<T: Copy>(
    values: &Values,
    keyword: &str,
    words: &[(&str, T)],
) -> Result<Option<T>, String> {
    if !values.has(keyword) {
        return Ok(None);
    }
    let value = values.get(keyword).unwrap_or_default();
    let found = words.iter().find(|(word, _)| *word == value);
    let list = || {
        let words = words.iter().map(|(word, _)| *word);
        words.collect::<Vec<_>>().join(", ")
    };
    match found {
        Some((_, meaning)) => Ok(Some(*meaning)),
        None => Err(format!(
            "{} is {value:?}; one of {} is expected",
            values.source(keyword),
            list()
        )),
    }
}

/// A number, as libpq reads one: blanks around it, an optional sign.
fn integer(values: &Values, keyword: &str) -> Result<Option<i32>, String> {
    let given = values
        .has(keyword)
        .then(|| values.get(keyword).unwrap_or_default());
    let number = given.map(|value| {
        let digits = value.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b');
        digits.parse::<i32>().map_err(|_| {
            let source = values.source(keyword);
            format!("{source} is {value:?}; a whole number is expected")
        })
    });
    number.transpose()
}

fn positive(number: i32) -> Option<u64> {
    u64::try_from(number).ok().filter(|number| *number > 0)
}

/// A file by the setting's name, or the default one in the home folder; and whether it was named.
fn file(
    values: &Values,
    keyword: &str,
    around: &Surroundings,
    default: &str,
) -> Option<(PathBuf, bool)> {
    match values.get(keyword) {
        Some(path) => Some((path.into(), true)),
        None => Some((around.home.as_ref()?.join(default), false)),
    }
}

/// The lists of hosts, addresses and ports, taken apart.
fn hosts(values: &Values, address_is_doubtful: bool) -> Result<Vec<Host>, String> {
    let list = |keyword: &str| -> Vec<&str> {
        let given = values.get(keyword);
        given.map_or(Vec::new(), |text| text.split(',').collect())
    };
    let (names, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
    let count = names.len().max(addresses.len()).max(1);
    if !names.is_empty() && !addresses.is_empty() && names.len() != addresses.len() {
        return Err(format!(
            "there are {} hosts and {} hostaddrs; as many are expected",
            names.len(),
            addresses.len()
        ));
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(format!(
            "there are {} ports and {count} hosts; one port or as many are expected",
            ports.len()
        ));
    }
    let host = |n: usize| {
        let port = *ports.get(n).or(ports.first()).unwrap_or(&"");
        let port = port_number(values.source("port"), port, address_is_doubtful)?;
        let name = names.get(n).copied().unwrap_or_default();
        let address = addresses.get(n).copied().unwrap_or_default();
        Ok(one_host(name, address, port))
    };
    (0..count).map(host).collect()
}

fn one_host(name: &str, address: &str, port: u16) -> Host {
    let place = match (name, address) {
        ("", "") => Place::Folder(default_folder(port)),
        (_, address) if !address.is_empty() => Place::Address(address.to_owned()),
        (name, _) if name.starts_with(['/', '@']) => Place::Folder(name.to_owned()),
        _ => Place::Name(name.to_owned()),
    };
    let known_by = match (&place, name) {
        (Place::Folder(folder), _) => folder,
        (_, "") => address,
        _ => name,
    };
    Host {
        name: known_by.to_owned(),
        is_named: !name.is_empty(),
        place,
        port,
        password: None,
    }
}

fn port_number(source: &str, text: &str, address_is_doubtful: bool) -> Result<u16, String> {
    let blank = |c: char| c.is_ascii_whitespace() || c == '\x0b';
    let number = text
        .trim_matches(blank)
        .parse()
        .ok()
        .filter(|port| *port > 0);
    match (text, number) {
        ("", _) => Ok(DEFAULT_PORT),
        (_, Some(number)) => Ok(number),
        (_, None) if address_is_doubtful => Err(format!(
            "{source} is wrong; a number from 1 to 65535 is expected"
        )),
        (_, None) => Err(format!(
            "{source} is {text:?}; a number from 1 to 65535 is expected"
        )),
    }
}

/// The folder where a server's socket is.
fn default_folder(port: u16) -> String {
    let has_socket = |folder: &&str| Path::new(folder).join(format!(".s.PGSQL.{port}")).exists();
    SOCKET_FOLDERS
        .into_iter()
        .find(has_socket)
        .unwrap_or(SOCKET_FOLDERS[0])
        .to_owned()
}

fn tcp(values: &Values) -> Result<Tcp, String> {
    let seconds = |keyword: &str| {
        let number = integer(values, keyword)?;
        Ok::<_, String>(number.and_then(positive).map(Duration::from_secs))
    };
    let count = integer(values, "keepalives_count")?;
    let user_timeout = integer(values, "tcp_user_timeout")?;
    Ok(Tcp {
        no_keepalives: integer(values, "keepalives")? == Some(0),
        idle: seconds("keepalives_idle")?,
        interval: seconds("keepalives_interval")?,
        count: count
            .and_then(|count| u32::try_from(count).ok())
            .filter(|count| *count > 0),
        user_timeout: user_timeout.and_then(positive).map(Duration::from_millis),
    })
}

fn ssl(values: &Values, around: &Surroundings) -> Result<Ssl, String> {
    let mode = choice(
        values,
        "sslmode",
        &[
            ("disable", SslMode::Disable),
            ("allow", SslMode::Allow),
            ("prefer", SslMode::Prefer),
            ("require", SslMode::Require),
            ("verify-ca", SslMode::VerifyCa),
            ("verify-full", SslMode::VerifyFull),
        ],
    )?;
    let direct = choice(
        values,
        "sslnegotiation",
        &[("postgres", false), ("direct", true)],
    )?;
    let direct = direct.unwrap_or(false);
    let roots = match file(values, "sslrootcert", around, ".postgresql/root.crt") {
        Some((path, true)) if path == Path::new("system") => Roots::System,
        Some((path, given)) => Roots::File { path, given },
        None => Roots::Nowhere,
    };
    let mode = match (mode, &roots) {
        (Some(mode), Roots::System) if mode != SslMode::VerifyFull => {
            return Err(
                "sslrootcert=system needs sslmode=verify-full: anybody can have a certificate of those roots"
                    .into(),
            );
        }
        (Some(mode), _) => mode,
        (None, Roots::System) => SslMode::VerifyFull,
        (None, _) => SslMode::Prefer,
    };
    if direct && mode < SslMode::Require {
        return Err("sslnegotiation=direct needs sslmode=require, verify-ca or verify-full".into());
    }
    let (min, max) = versions(values)?;
    let cert_mode = choice(
        values,
        "sslcertmode",
        &[
            ("disable", CertMode::Disable),
            ("allow", CertMode::Allow),
            ("require", CertMode::Require),
        ],
    )?;
    let key = file(values, "sslkey", around, ".postgresql/postgresql.key");
    let folder = values.get("sslcrldir").map(PathBuf::from);
    Ok(Ssl {
        mode,
        direct,
        roots,
        // A folder that is given replaces the default file.
        crl: file(values, "sslcrl", around, ".postgresql/root.crl")
            .filter(|(_, given)| *given || folder.is_none()),
        crl_folder: folder,
        certificate: file(values, "sslcert", around, ".postgresql/postgresql.crt"),
        key: key.map(|(path, _)| path),
        cert_mode: cert_mode.unwrap_or(CertMode::Allow),
        sni: choice(values, "sslsni", &[("0", false), ("1", true)])?.unwrap_or(true),
        min,
        max,
    })
}

/// The range of versions, as far as rustls goes: an older least version is honoured by a newer one.
fn versions(values: &Values) -> Result<(TlsVersion, TlsVersion), String> {
    let rank = |keyword: &str| {
        let Some(value) = values.get(keyword) else {
            return Ok(None);
        };
        ["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"]
            .iter()
            .position(|known| known.eq_ignore_ascii_case(value))
            .map(Some)
            .ok_or(format!(
                "{} is {value:?}; one of TLSv1, TLSv1.1, TLSv1.2, TLSv1.3 is expected",
                values.source(keyword)
            ))
    };
    let (min, max) = (
        rank("ssl_min_protocol_version")?,
        rank("ssl_max_protocol_version")?,
    );
    if max.is_some_and(|max| max < min.unwrap_or(0)) {
        return Err("ssl_max_protocol_version is older than ssl_min_protocol_version".into());
    }
    let newest = match max {
        Some(0 | 1) => {
            return Err(
                "ssl_max_protocol_version: versions before TLSv1.2 are broken, and cannot be had"
                    .into(),
            );
        }
        Some(2) => TlsVersion::V12,
        _ => TlsVersion::V13,
    };
    let oldest = if min == Some(3) {
        TlsVersion::V13
    } else {
        TlsVersion::V12
    };
    Ok((oldest, newest))
}

const AUTH_METHODS: [&str; 7] = [
    "password",
    "md5",
    "gss",
    "sspi",
    "scram-sha-256",
    "oauth",
    "none",
];

/// A list of methods, all of them with a `!` in front or none.
fn require_auth(given: &str) -> Result<RequireAuth, String> {
    if given.is_empty() {
        return Ok(RequireAuth::default());
    }
    let negated = given.starts_with('!');
    let mut methods: Vec<String> = Vec::new();
    for item in given.split(',') {
        let method = item.strip_prefix('!').unwrap_or(item);
        if item.starts_with('!') != negated {
            return Err("require_auth: either all methods have a \"!\" or none has".into());
        }
        if !AUTH_METHODS.contains(&method) {
            return Err(format!(
                "require_auth has {method:?}; one of {} is expected",
                AUTH_METHODS.join(", ")
            ));
        }
        if methods.iter().any(|known| known == method) {
            return Err(format!("require_auth has {method:?} twice"));
        }
        methods.push(method.to_owned());
    }
    Ok(RequireAuth {
        given: given.to_owned(),
        methods,
        negated,
    })
}
