//! The connection settings: what to connect to and how, validated, with nothing opened yet.
//!
//! Only types, and how messages describe them. [`super::resolve`] collects the values, [`super::validate`] converts
//! them to these types, and [`super::open`] connects.

use super::file::SettingsFile;
use super::reply_filter::MAX_LIST_REPLY_BYTES;
use postgres::config::ChannelBinding;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// The connection options of the command line.
#[derive(Debug)]
pub(crate) struct ConnectionOptions {
    /// The connection string, if one is given.
    pub dsn: Option<ConnectionString>,
    /// The connect timeout for each address. Zero means no limit, `None` leaves it to the other settings.
    pub connect_timeout: Option<Duration>,
}

/// A connection string, and where it was found.
#[derive(Debug)]
pub(crate) struct ConnectionString {
    /// The text, which may contain a password.
    pub text: String,
    /// Where it was found.
    pub source: ConnectionStringSource,
}

/// Where a connection string was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnectionStringSource {
    /// `--dsn`, which every user of this system can see.
    Option,
    /// `PGLOCK_DSN`, which is parsed as strictly.
    PglockDsn,
    /// `DATABASE_URL`, which belongs to an application, and is written for the library that it uses.
    DatabaseUrl,
}

impl ConnectionStringSource {
    /// Returns what to call it in a message.
    pub(super) fn name(self) -> &'static str {
        match self {
            ConnectionStringSource::Option => "--dsn",
            ConnectionStringSource::PglockDsn => "PGLOCK_DSN",
            ConnectionStringSource::DatabaseUrl => "DATABASE_URL",
        }
    }
}

/// A text that must not be printed: it implements neither `Debug` nor `Display`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    /// Wraps a password.
    pub(crate) fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// Returns the text, which only the server may receive.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

/// How to reach a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum HostAddress {
    /// The directory of a Unix socket; with a leading `@`, a name in Linux's abstract namespace.
    SocketDirectory(String),
    /// A numeric address (`hostaddr`), as it was given.
    Numeric(String),
    /// A host name to resolve, or a numeric address given as `host`.
    Name(String),
}

/// One server to try.
#[derive(Clone)]
pub(super) struct Host {
    /// How to reach it.
    pub address: HostAddress,
    /// The name for messages, the password file and the certificate: `host`, or else `hostaddr`.
    pub name: String,
    /// `host` was given, so there is a name to compare the certificate with.
    pub is_named: bool,
    /// The port.
    pub port: u16,
    /// The password from the password file, if no other source gives one.
    pub password: Option<Secret>,
}

/// The required kind of session (`target_session_attrs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TargetSessionAttrs {
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
pub(super) enum SslMode {
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

/// The source of the trusted root certificates (`sslrootcert`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RootSource {
    /// The roots of the operating system (`sslrootcert=system`).
    System,
    /// This file.
    File(SettingsFile),
    /// No file is known, because there is no home directory.
    Unknown,
}

/// Whether to send a client certificate (`sslcertmode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientCertificateMode {
    /// Never.
    Disable,
    /// If the server requests one and there is one.
    Allow,
    /// The server must request one.
    Require,
}

/// The TLS versions that the settings distinguish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum TlsVersion {
    /// 1.1 and 1.0, which rustls does not support, but libpq may.
    Older,
    /// 1.2
    V12,
    /// 1.3
    V13,
}

/// The TLS parameters.
#[derive(Clone)]
pub(super) struct TlsSettings {
    /// When to use TLS.
    pub mode: SslMode,
    /// Start TLS without asking the server first (`sslnegotiation=direct`).
    pub is_direct: bool,
    /// The trusted root certificates.
    pub roots: RootSource,
    /// The certificate revocation list (`sslcrl`).
    pub revocation_list: Option<SettingsFile>,
    /// A directory of certificate revocation lists (`sslcrldir`).
    pub revocation_directory: Option<PathBuf>,
    /// The client certificate (`sslcert`).
    pub client_certificate: Option<SettingsFile>,
    /// Its private key (`sslkey`).
    pub client_key: Option<SettingsFile>,
    /// Whether to send the client certificate.
    pub client_certificate_mode: ClientCertificateMode,
    /// Send the host name to the server (`sslsni`).
    pub has_sni: bool,
    /// The oldest acceptable version.
    pub min_version: TlsVersion,
    /// The newest acceptable version.
    pub max_version: TlsVersion,
}

/// The options of the TCP socket.
#[derive(Clone)]
pub(super) struct TcpSettings {
    /// Send keepalive probes (`keepalives`).
    pub has_keepalives: bool,
    /// Idle time before the first probe (`keepalives_idle`).
    pub keepalive_idle: Option<Duration>,
    /// Time between probes (`keepalives_interval`).
    pub keepalive_interval: Option<Duration>,
    /// Number of unanswered probes after which the connection is dead (`keepalives_count`).
    pub keepalive_count: Option<u32>,
    /// How long sent data may remain unacknowledged (`tcp_user_timeout`).
    pub user_timeout: Option<Duration>,
}

/// The authentication methods that the server may request (`require_auth`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RequireAuth {
    /// The value as it was given; empty if any method is acceptable.
    pub given: String,
    pub(super) methods: Vec<String>,
    pub(super) is_negated: bool,
}

impl RequireAuth {
    /// Returns whether the server may request this method, or no authentication at all (`none`).
    pub(super) fn allows(&self, method: &str) -> bool {
        let is_listed = self.methods.iter().any(|listed| listed == method);
        self.given.is_empty() || is_listed != self.is_negated
    }
}

/// What to add to the message of a failure, because whitespace at the end of a value is used as it is, and is easily
/// overlooked.
#[derive(Clone, Default)]
pub(super) struct WhitespaceNotes {
    /// About the connection string.
    pub dsn: Option<String>,
    /// About the password.
    pub password: Option<String>,
}

impl WhitespaceNotes {
    /// Says that the value of this name ends in whitespace, and what it is part of; `None` if it does not.
    pub(super) fn describe(name: &str, value: &str, whole: &str) -> Option<String> {
        let kind = match value.chars().last()? {
            '\n' | '\r' => "a newline",
            last if last.is_whitespace() => "whitespace",
            _ => return None,
        };
        Some(format!("{name} ends in {kind}, which is part of {whole}"))
    }
}

/// Where and how to connect.
#[derive(Clone)]
pub(crate) struct Settings {
    /// The servers, in the given order.
    pub(super) hosts: Vec<Host>,
    /// Try hosts and addresses in random order (`load_balance_hosts`).
    pub(super) is_order_random: bool,
    pub(super) user: String,
    pub(super) dbname: String,
    pub(super) password: Option<Secret>,
    pub(super) passfile: Option<SettingsFile>,
    pub(super) options: Option<String>,
    pub(super) application_name: Option<String>,
    /// For each address.
    pub(super) connect_timeout: Option<Duration>,
    pub(super) target: TargetSessionAttrs,
    pub(super) tls: TlsSettings,
    pub(super) tcp: TcpSettings,
    pub(super) channel_binding: ChannelBinding,
    pub(super) require_auth: RequireAuth,
    pub(super) require_peer: Option<String>,
    pub(super) is_password_in_dsn: bool,
    pub(super) whitespace_notes: WhitespaceNotes,
    /// The address may be part of a password; see [`super::parse::ParsedConnectionString`].
    pub(super) is_address_doubtful: bool,
    /// How much the server may send in reply to one query.
    pub(super) max_reply_bytes: usize,
    /// How long the reply to a query may take; `None` if the caller watches that.
    pub(super) reply_limit: Option<Duration>,
    /// What the user typed at the prompt, so that nobody is asked twice.
    pub(super) prompted_password: Arc<OnceLock<Secret>>,
}

impl Settings {
    /// Returns the same settings for a session that lists all locks of a database.
    pub(crate) fn for_lists(self) -> Settings {
        Settings {
            max_reply_bytes: MAX_LIST_REPLY_BYTES,
            ..self
        }
    }

    /// Returns the settings for each host alone, whatever kind of session it has, with the name of the host.
    pub(crate) fn of_each_host(&self) -> Vec<(String, Settings)> {
        let of_host = |host: &Host| {
            let settings = Settings {
                hosts: vec![host.clone()],
                target: TargetSessionAttrs::Any,
                ..self.clone()
            };
            (self.address_of(host), settings)
        };
        self.hosts.iter().map(of_host).collect()
    }

    /// Returns the same settings for sessions that end when a reply takes longer than this.
    pub(crate) fn with_reply_limit(self, limit: Duration) -> Settings {
        Settings {
            reply_limit: Some(limit),
            ..self
        }
    }

    /// Returns the application name that the user chose, if any.
    pub(crate) fn application_name(&self) -> Option<&str> {
        self.application_name.as_deref()
    }

    /// Returns the connect timeout for each address.
    pub(crate) fn connect_timeout(&self) -> Option<Duration> {
        self.connect_timeout
    }

    /// Describes the servers for a message.
    pub(crate) fn address(&self) -> String {
        let addresses = self.hosts.iter().map(|host| self.address_of(host));
        addresses.collect::<Vec<_>>().join(", ")
    }

    /// Describes one server for a message.
    pub(super) fn address_of(&self, host: &Host) -> String {
        if self.is_address_doubtful {
            return "the server in the connection string (in a password, encode \"@\" as %40)".into();
        }
        let port = host.port;
        match &host.address {
            HostAddress::SocketDirectory(directory) => format!("{directory}/.s.PGSQL.{port}"),
            HostAddress::Numeric(address) if *address != host.name => format!("{}:{port} ({address})", host.name),
            HostAddress::Numeric(name) | HostAddress::Name(name) if name.contains(':') => format!("[{name}]:{port}"),
            HostAddress::Numeric(name) | HostAddress::Name(name) => format!("{name}:{port}"),
        }
    }
}
