//! From the values of all sources to settings that can be used.
//!
//! Everything that libpq knows is honoured, is without effect on a lock for a reason given here, or is refused in
//! one line. Pure, but for a look at where a server's socket is and who runs this process.

use super::keyword::Values;
use super::parse::quoted;
use super::reply_filter::LONGEST_ANSWER;
use super::settings::*;
use postgres::config::ChannelBinding;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// libpq's folder for sockets where it is built for Debian, and the one of its own sources.
pub const SOCKET_FOLDERS: [&str; 2] = ["/var/run/postgresql", "/tmp"];
const DEFAULT_PORT: u16 = 5432;
/// How long connecting to one address may take, if nothing is said about it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Validates. The address may be half a password, and is not to be printed then.
pub fn settings_of(values: &Values, address_is_doubtful: bool, home: Option<&Path>) -> Result<Settings, String> {
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
            ("any", TargetSessionAttrs::Any),
            ("read-write", TargetSessionAttrs::ReadWrite),
            ("read-only", TargetSessionAttrs::ReadOnly),
            ("primary", TargetSessionAttrs::Primary),
            ("standby", TargetSessionAttrs::Standby),
            ("prefer-standby", TargetSessionAttrs::PreferStandby),
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
    let order = choice(values, "load_balance_hosts", &[("disable", false), ("random", true)])?;
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
        passfile: file(values, "passfile", home, ".pgpass").map(|(path, _)| path),
        options: owned("options"),
        application_name: owned("application_name").or(owned("fallback_application_name")),
        limit,
        target: target.unwrap_or(TargetSessionAttrs::Any),
        ssl: ssl(values, home)?,
        tcp: tcp(values)?,
        channel_binding: binding.unwrap_or(ChannelBinding::Prefer),
        require_auth: require_auth(values.get("require_auth").unwrap_or_default())?,
        require_peer: owned("requirepeer"),
        password_in_string: false,
        address_is_doubtful,
        longest_answer: LONGEST_ANSWER,
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
        return Err("gssencmode=require cannot be had: pglock has no Kerberos; TLS encrypts as well".into());
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
fn choice<T: Copy>(values: &Values, keyword: &str, words: &[(&str, T)]) -> Result<Option<T>, String> {
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
            "{} is {}; one of {} is expected",
            values.source(keyword),
            quoted(value),
            list()
        )),
    }
}

/// A number, as libpq reads one: blanks home it, an optional sign.
fn integer(values: &Values, keyword: &str) -> Result<Option<i32>, String> {
    let given = values.has(keyword).then(|| values.get(keyword).unwrap_or_default());
    let number = given.map(|value| {
        let digits = value.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b');
        digits.parse::<i32>().map_err(|_| {
            let source = values.source(keyword);
            format!("{source} is {}; a whole number is expected", quoted(value))
        })
    });
    number.transpose()
}

fn positive(number: i32) -> Option<u64> {
    u64::try_from(number).ok().filter(|number| *number > 0)
}

/// A file by the setting's name, or the default one in the home folder; and whether it was named.
fn file(values: &Values, keyword: &str, home: Option<&Path>, default: &str) -> Option<(PathBuf, bool)> {
    match values.get(keyword) {
        Some(path) => Some((path.into(), true)),
        None => Some((home?.join(default), false)),
    }
}

/// The lists of hosts, addresses and ports, taken apart.
fn hosts(values: &Values, address_is_doubtful: bool) -> Result<Vec<Host>, String> {
    // It would be looked up, and said as the address that was tried.
    for keyword in ["host", "hostaddr"] {
        if values.get(keyword).is_some_and(|value| value.contains("://")) {
            let source = values.source(keyword);
            return Err(format!(
                "{source} is a connection string; that is for --dsn or PGLOCK_DSN"
            ));
        }
    }
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
    let number = text.trim_matches(blank).parse().ok().filter(|port| *port > 0);
    match (text, number) {
        ("", _) => Ok(DEFAULT_PORT),
        (_, Some(number)) => Ok(number),
        (_, None) if address_is_doubtful => Err(format!("{source} is wrong; a number from 1 to 65535 is expected")),
        (_, None) => Err(format!(
            "{source} is {}; a number from 1 to 65535 is expected",
            quoted(text)
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

fn ssl(values: &Values, home: Option<&Path>) -> Result<Ssl, String> {
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
    let direct = choice(values, "sslnegotiation", &[("postgres", false), ("direct", true)])?;
    let direct = direct.unwrap_or(false);
    let roots = match file(values, "sslrootcert", home, ".postgresql/root.crt") {
        Some((path, true)) if path == Path::new("system") => Roots::System,
        Some((path, given)) => Roots::File { path, given },
        None => Roots::Nowhere,
    };
    let mode = match (mode, &roots) {
        (Some(mode), Roots::System) if mode != SslMode::VerifyFull => {
            return Err(
                "sslrootcert=system needs sslmode=verify-full: anybody can have a certificate of those roots".into(),
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
    let key = file(values, "sslkey", home, ".postgresql/postgresql.key");
    let folder = values.get("sslcrldir").map(PathBuf::from);
    Ok(Ssl {
        mode,
        direct,
        roots,
        // A folder that is given replaces the default file.
        crl: file(values, "sslcrl", home, ".postgresql/root.crl").filter(|(_, given)| *given || folder.is_none()),
        crl_folder: folder,
        certificate: file(values, "sslcert", home, ".postgresql/postgresql.crt"),
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
                "{} is {}; one of TLSv1, TLSv1.1, TLSv1.2, TLSv1.3 is expected",
                values.source(keyword),
                quoted(value)
            ))
    };
    let (min, max) = (rank("ssl_min_protocol_version")?, rank("ssl_max_protocol_version")?);
    if max.is_some_and(|max| max < min.unwrap_or(0)) {
        return Err("ssl_max_protocol_version is older than ssl_min_protocol_version".into());
    }
    let newest = match max {
        Some(0 | 1) => {
            return Err("ssl_max_protocol_version: versions before TLSv1.2 are broken, and cannot be had".into());
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

const AUTH_METHODS: [&str; 7] = ["password", "md5", "gss", "sspi", "scram-sha-256", "oauth", "none"];

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
                "require_auth has {}; one of {} is expected",
                quoted(method),
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
