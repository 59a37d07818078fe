//! Turns parameter values into settings, or into the error that names the invalid one.
//!
//! Every parameter of libpq either takes effect, has no effect on a lock for a reason given here, or is refused with a
//! one-line error. Pure, apart from looking for the directory of the server's socket and the name of the system user.

use super::file::SettingsFile;
use super::misplaced;
use super::parameter::Values;
use super::redact::quoted;
use super::reply_filter::MAX_REPLY_BYTES;
use super::settings::{
    ClientCertificateMode, Host, HostAddress, RequireAuth, RootSource, Secret, Settings, SslMode, TargetSessionAttrs,
    TcpSettings, TlsSettings, TlsVersion, WhitespaceNotes,
};
use super::settings_error::SettingsError;
use postgres::config::ChannelBinding;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The default directory for Unix sockets of Debian's libpq, and of others that are packaged.
const PACKAGED_SOCKET_DIRECTORY: &str = "/var/run/postgresql";
/// The default of the PostgreSQL sources, where any user can listen.
const UPSTREAM_SOCKET_DIRECTORY: &str = "/tmp";
const DEFAULT_PORT: u16 = 5432;
/// The time limit for connecting to one address, unless the settings have one. libpq's own default is no limit.
pub(crate) const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Validates the values of all sources. A doubtful address may be part of a password, and is not quoted in errors.
///
/// # Errors
/// A value is invalid, contradicts another, or requires a feature of libpq that pglock does not support.
pub(super) fn validate(
    values: &Values,
    is_address_doubtful: bool,
    home: Option<&Path>,
) -> Result<Settings, SettingsError> {
    misplaced::refuse(values)?;
    refuse_unsupported(values)?;
    let owned = |parameter: &str| values.get(parameter).map(str::to_owned);
    let user = match owned("user") {
        Some(user) => user,
        None => system_user()
            .map(|user| user.name)
            .ok_or_else(|| SettingsError::inconsistent("no user given, and the system user has no name; set user"))?,
    };
    let connect_timeout = match integer(values, "connect_timeout")? {
        None => Some(DEFAULT_CONNECT_TIMEOUT),
        Some(seconds) => positive(seconds).map(Duration::from_secs),
    };
    let load_balancing = choice(values, "load_balance_hosts", &[("disable", false), ("random", true)])?;
    Ok(Settings {
        hosts: hosts(values, is_address_doubtful)?,
        is_order_random: load_balancing.unwrap_or(false),
        dbname: owned("dbname").unwrap_or_else(|| user.clone()),
        user,
        password: owned("password").map(Secret::new),
        passfile: file(values, "passfile", home, ".pgpass"),
        options: owned("options"),
        application_name: owned("application_name").or(owned("fallback_application_name")),
        connect_timeout,
        target: target_session_attrs(values)?,
        tls: tls(values, home)?,
        tcp: tcp(values)?,
        channel_binding: channel_binding(values)?,
        require_auth: require_auth(values.get("require_auth").unwrap_or_default())?,
        require_peer: owned("requirepeer"),
        is_password_in_dsn: false,
        whitespace_notes: WhitespaceNotes::default(),
        is_address_doubtful,
        max_reply_bytes: MAX_REPLY_BYTES,
        reply_limit: None,
        prompted_password: Arc::default(),
    })
}

/// Returns the entry of the user database for the effective user.
pub(super) fn system_user() -> Option<nix::unistd::User> {
    nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten()
}

/// Refuses what libpq supports and pglock does not. These have no effect and need none: `client_encoding` (there is no
/// text of the user's to convert), `krbsrvname`, `gsslib` and `gssdelegation` (there is no Kerberos), `sslcompression`
/// (no current TLS library has it), `sslpassword` (an encrypted key is refused).
///
/// # Errors
/// A parameter is not supported, or its value is invalid.
fn refuse_unsupported(values: &Values) -> Result<(), SettingsError> {
    let gss_encryption = choice(
        values,
        "gssencmode",
        &[("disable", false), ("prefer", false), ("require", true)],
    )?;
    if gss_encryption == Some(true) {
        return Err(SettingsError::not_supported(
            "gssencmode=require",
            " (no Kerberos); use TLS",
        ));
    }
    let replication = values.get("replication").map(str::to_ascii_lowercase);
    if replication.is_some_and(|value| !["false", "off", "no", "0"].contains(&value.as_str())) {
        return Err(SettingsError::not_supported(
            "replication",
            " (a lock needs an ordinary session)",
        ));
    }
    choice(
        values,
        "max_protocol_version",
        &[("3.0", true), ("3.2", true), ("latest", true)],
    )?;
    let is_min_version_3_0 = choice(
        values,
        "min_protocol_version",
        &[("3.0", true), ("3.2", false), ("latest", false)],
    )?;
    if is_min_version_3_0 == Some(false) {
        return Err(SettingsError::not_supported(
            "min_protocol_version later than 3.0",
            " (pglock speaks protocol 3.0)",
        ));
    }
    for (parameter, detail) in [
        ("scram_client_key", "; use a password"),
        ("scram_server_key", "; use a password"),
        ("oauth_issuer", " (no OAuth)"),
        ("oauth_client_id", " (no OAuth)"),
        ("oauth_client_secret", " (no OAuth)"),
        ("oauth_scope", " (no OAuth)"),
        ("sslkeylogfile", " (pglock never writes TLS secrets)"),
    ] {
        if values.get(parameter).is_some() {
            return Err(SettingsError::not_supported(parameter, detail));
        }
    }
    Ok(())
}

/// Parses `target_session_attrs`.
///
/// # Errors
/// The value is invalid.
fn target_session_attrs(values: &Values) -> Result<TargetSessionAttrs, SettingsError> {
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
    Ok(target.unwrap_or(TargetSessionAttrs::Any))
}

/// Parses `channel_binding`.
///
/// # Errors
/// The value is invalid.
fn channel_binding(values: &Values) -> Result<ChannelBinding, SettingsError> {
    let binding = choice(
        values,
        "channel_binding",
        &[
            ("disable", ChannelBinding::Disable),
            ("prefer", ChannelBinding::Prefer),
            ("require", ChannelBinding::Require),
        ],
    )?;
    Ok(binding.unwrap_or(ChannelBinding::Prefer))
}

fn invalid_value(values: &Values, parameter: &str, value: &str, expected: impl Into<String>) -> SettingsError {
    SettingsError::InvalidValue {
        origin: values.origin(parameter).to_owned(),
        value: values.is_quotable(parameter).then(|| quoted(value)),
        expected: expected.into(),
    }
}

/// Parses one of a few names. As in libpq, an empty value is none of them.
///
/// # Errors
/// The value is not one of the choices.
fn choice<T: Copy>(values: &Values, parameter: &str, choices: &[(&str, T)]) -> Result<Option<T>, SettingsError> {
    let Some(value) = values.get_given(parameter) else {
        return Ok(None);
    };
    match choices.iter().find(|(name, _)| *name == value) {
        Some((_, meaning)) => Ok(Some(*meaning)),
        None => {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            let expected = format!("one of {}", names.join(", "));
            Err(invalid_value(values, parameter, value, expected))
        }
    }
}

/// Removes what libpq's `isspace` accepts around a number.
fn trim(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b')
}

/// Parses an integer as libpq does: surrounding whitespace and a sign are allowed.
///
/// # Errors
/// The value is not an integer, or out of range.
fn integer(values: &Values, parameter: &str) -> Result<Option<i32>, SettingsError> {
    let Some(value) = values.get_given(parameter) else {
        return Ok(None);
    };
    match trim(value).parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(invalid_value(values, parameter, value, "an integer")),
    }
}

fn positive(number: i32) -> Option<u64> {
    u64::try_from(number).ok().filter(|number| *number > 0)
}

/// Returns the file that the parameter names, or the default one in the home directory.
fn file(values: &Values, parameter: &str, home: Option<&Path>, default: &str) -> Option<SettingsFile> {
    match values.get(parameter) {
        Some(path) => Some(SettingsFile {
            path: path.into(),
            is_explicit: true,
        }),
        None => Some(SettingsFile {
            path: home?.join(default),
            is_explicit: false,
        }),
    }
}

/// Parses the lists of hosts, addresses and ports.
///
/// # Errors
/// The lists differ in length, or a port is invalid.
fn hosts(values: &Values, is_address_doubtful: bool) -> Result<Vec<Host>, SettingsError> {
    let list = |parameter: &str| -> Vec<&str> {
        let value = values.get(parameter);
        value.map_or(Vec::new(), |value| value.split(',').collect())
    };
    let (names, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
    let count = names.len().max(addresses.len()).max(1);
    if !names.is_empty() && !addresses.is_empty() && names.len() != addresses.len() {
        return Err(SettingsError::inconsistent(format!(
            "host and hostaddr must have the same number of entries, not {} and {}",
            names.len(),
            addresses.len()
        )));
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(SettingsError::inconsistent(format!(
            "{} ports given for {count} hosts; give one port, or one for each host",
            ports.len()
        )));
    }
    let host = |n: usize| {
        let port = *ports.get(n).or(ports.first()).unwrap_or(&"");
        let name = names.get(n).copied().unwrap_or_default();
        let address = addresses.get(n).copied().unwrap_or_default();
        Ok(one_host(name, address, port_number(values, port, is_address_doubtful)?))
    };
    (0..count).map(host).collect()
}

fn one_host(name: &str, numeric: &str, port: u16) -> Host {
    let address = match (name, numeric) {
        ("", "") => HostAddress::SocketDirectory(default_socket_directory().to_owned()),
        (_, numeric) if !numeric.is_empty() => HostAddress::Numeric(numeric.to_owned()),
        (name, _) if name.starts_with(['/', '@']) => HostAddress::SocketDirectory(name.to_owned()),
        _ => HostAddress::Name(name.to_owned()),
    };
    let known_as = match (&address, name) {
        (HostAddress::SocketDirectory(directory), _) => directory,
        (_, "") => numeric,
        _ => name,
    };
    Host {
        name: known_as.to_owned(),
        is_named: !name.is_empty(),
        address,
        port,
        password: None,
    }
}

/// Parses a port; an empty text is the default.
///
/// # Errors
/// The text is not a number from 1 to 65535.
fn port_number(values: &Values, text: &str, is_address_doubtful: bool) -> Result<u16, SettingsError> {
    if text.is_empty() {
        return Ok(DEFAULT_PORT);
    }
    let number = trim(text).parse().ok().filter(|port| *port > 0);
    number.ok_or_else(|| SettingsError::InvalidValue {
        origin: values.origin("port").to_owned(),
        value: if is_address_doubtful { None } else { Some(quoted(text)) },
        expected: "a number from 1 to 65535".into(),
    })
}

/// Returns the directory of the local server's socket. Where there is a directory of the package, it is that one, even
/// if the server is down: another user's program could listen in /tmp, and would be sent the password.
pub(super) fn default_socket_directory() -> &'static str {
    if Path::new(PACKAGED_SOCKET_DIRECTORY).is_dir() {
        PACKAGED_SOCKET_DIRECTORY
    } else {
        UPSTREAM_SOCKET_DIRECTORY
    }
}

/// Parses the parameters of TCP.
///
/// # Errors
/// A value is not an integer.
fn tcp(values: &Values) -> Result<TcpSettings, SettingsError> {
    let seconds = |parameter: &str| {
        let number = integer(values, parameter)?;
        Ok::<_, SettingsError>(number.and_then(positive).map(Duration::from_secs))
    };
    let count = integer(values, "keepalives_count")?.and_then(positive);
    let user_timeout = integer(values, "tcp_user_timeout")?.and_then(positive);
    Ok(TcpSettings {
        has_keepalives: integer(values, "keepalives")? != Some(0),
        keepalive_idle: seconds("keepalives_idle")?,
        keepalive_interval: seconds("keepalives_interval")?,
        keepalive_count: count.and_then(|count| u32::try_from(count).ok()),
        user_timeout: user_timeout.map(Duration::from_millis),
    })
}

/// Parses the parameters of TLS.
///
/// # Errors
/// A value is invalid, contradicts another, or is not supported.
fn tls(values: &Values, home: Option<&Path>) -> Result<TlsSettings, SettingsError> {
    let roots = match file(values, "sslrootcert", home, ".postgresql/root.crt") {
        Some(file) if file.is_explicit && file.path == Path::new("system") => RootSource::System,
        Some(file) => RootSource::File(file),
        None => RootSource::Unknown,
    };
    let mode = ssl_mode(values, &roots)?;
    let negotiation = choice(values, "sslnegotiation", &[("postgres", false), ("direct", true)])?;
    let is_direct = negotiation.unwrap_or(false);
    if is_direct && mode < SslMode::Require {
        return Err(SettingsError::inconsistent(
            "sslnegotiation=direct needs sslmode=require, verify-ca or verify-full",
        ));
    }
    let (min_version, max_version) = tls_versions(values)?;
    let certificate_mode = choice(
        values,
        "sslcertmode",
        &[
            ("disable", ClientCertificateMode::Disable),
            ("allow", ClientCertificateMode::Allow),
            ("require", ClientCertificateMode::Require),
        ],
    )?;
    let revocation_directory = values.get("sslcrldir").map(PathBuf::from);
    // An explicit directory replaces the default file.
    let revocation_list = file(values, "sslcrl", home, ".postgresql/root.crl")
        .filter(|file| file.is_explicit || revocation_directory.is_none());
    Ok(TlsSettings {
        mode,
        is_direct,
        roots,
        revocation_list,
        revocation_directory,
        client_certificate: file(values, "sslcert", home, ".postgresql/postgresql.crt"),
        client_key: file(values, "sslkey", home, ".postgresql/postgresql.key"),
        client_certificate_mode: certificate_mode.unwrap_or(ClientCertificateMode::Allow),
        has_sni: choice(values, "sslsni", &[("0", false), ("1", true)])?.unwrap_or(true),
        min_version,
        max_version,
    })
}

/// Parses `sslmode`; its default depends on the roots.
///
/// # Errors
/// The value is invalid, or too weak for `sslrootcert=system`.
fn ssl_mode(values: &Values, roots: &RootSource) -> Result<SslMode, SettingsError> {
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
    match (mode, roots) {
        (Some(mode), RootSource::System) if mode != SslMode::VerifyFull => Err(SettingsError::inconsistent(
            "sslrootcert=system needs sslmode=verify-full, because anyone can get a certificate from those CAs",
        )),
        (Some(mode), _) => Ok(mode),
        (None, RootSource::System) => Ok(SslMode::VerifyFull),
        (None, _) => Ok(SslMode::Prefer),
    }
}

/// Parses the range of TLS versions and narrows it to what rustls supports.
///
/// # Errors
/// A value is invalid, the range is empty, or it ends before TLS 1.2.
fn tls_versions(values: &Values) -> Result<(TlsVersion, TlsVersion), SettingsError> {
    const NAMES: [&str; 4] = ["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"];
    let rank = |parameter: &str| {
        let Some(value) = values.get(parameter) else {
            return Ok(None);
        };
        match NAMES.iter().position(|name| name.eq_ignore_ascii_case(value)) {
            Some(rank) => Ok(Some(rank)),
            None => {
                let expected = format!("one of {}", NAMES.join(", "));
                Err(invalid_value(values, parameter, value, expected))
            }
        }
    };
    let (min, max) = (rank("ssl_min_protocol_version")?, rank("ssl_max_protocol_version")?);
    if max.is_some_and(|max| max < min.unwrap_or(0)) {
        return Err(SettingsError::inconsistent(
            "ssl_max_protocol_version is older than ssl_min_protocol_version",
        ));
    }
    let newest = match max {
        Some(0 | 1) => {
            return Err(SettingsError::not_supported(
                "ssl_max_protocol_version before TLSv1.2",
                " (those versions are insecure)",
            ));
        }
        Some(2) => TlsVersion::V12,
        _ => TlsVersion::V13,
    };
    let oldest = match min {
        Some(0 | 1) => TlsVersion::Older,
        Some(3) => TlsVersion::V13,
        _ => TlsVersion::V12,
    };
    Ok((oldest, newest))
}

const AUTH_METHODS: [&str; 7] = ["password", "md5", "gss", "sspi", "scram-sha-256", "oauth", "none"];

/// Parses a list of authentication methods, of which all or none have a `!` prefix.
///
/// # Errors
/// A method is unknown or repeated, or only some have the prefix.
fn require_auth(given: &str) -> Result<RequireAuth, SettingsError> {
    if given.is_empty() {
        return Ok(RequireAuth::default());
    }
    let is_negated = given.starts_with('!');
    let mut methods: Vec<String> = Vec::new();
    for item in given.split(',') {
        let method = item.strip_prefix('!').unwrap_or(item);
        if item.starts_with('!') != is_negated {
            return Err(SettingsError::inconsistent(
                "require_auth mixes methods with and without \"!\"; prefix all of them or none",
            ));
        }
        if !AUTH_METHODS.contains(&method) {
            return Err(SettingsError::inconsistent(format!(
                "require_auth contains {}; expected any of {}",
                quoted(method),
                AUTH_METHODS.join(", ")
            )));
        }
        if methods.iter().any(|known| known == method) {
            return Err(SettingsError::inconsistent(format!(
                "require_auth contains {method:?} more than once"
            )));
        }
        methods.push(method.to_owned());
    }
    Ok(RequireAuth {
        given: given.to_owned(),
        methods,
        is_negated,
    })
}
