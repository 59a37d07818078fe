//! One attempt to connect to one address, within its limit, and what its failure means for the next.
//!
//! libpq's rules: an address that cannot be reached leads to the next one, a server of the wrong role or one that
//! is starting to the next host, and anything else that a server says ends the search: another server's answer
//! must not hide that a password is wrong. The one addition is that a connection closed without a word counts as
//! not reached: proxies do that whose server is gone.

use super::code_of;
use super::connector::{Connector, HandshakeInfo, Opening};
use super::settings::{Host, Place, Secret, Settings, TargetSessionAttrs};
use super::tls;
use crate::outcome::{ExitCode, Failure};
use postgres::config::{SslMode, SslNegotiation};
use postgres::error::SqlState;
use postgres::{Client, Config, NoTls, SimpleQueryMessage};
use std::error::Error;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::channel;
use std::time::Duration;

/// What to try.
pub struct ConnectAttempt<'a> {
    /// The name of the session.
    pub application_name: &'a str,
    /// Everything that does not depend on the host.
    pub settings: &'a Settings,
    /// The host.
    pub host: &'a Host,
    /// One of its addresses; `None`: its Unix socket.
    pub address: Option<IpAddr>,
    /// What the session must be like.
    pub target: TargetSessionAttrs,
    /// The password for it.
    pub password: Option<&'a Secret>,
}

/// What to try after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryScope {
    /// The next address of the host, or the next host.
    Address,
    /// The next host.
    Host,
    /// Nothing.
    Nothing,
}

/// Why there is no connection.
pub struct ConnectError {
    /// For the operator.
    pub failure: Failure,
    /// What may still help.
    pub next: RetryScope,
    /// TLS failed, or could not begin.
    pub is_of_tls: bool,
    /// The connection was encrypted.
    pub encrypted: bool,
    /// The server said no before it was content with who we are: pg_hba.conf may say otherwise with or without TLS.
    pub before_authentication: bool,
    /// The server asks for a password, and there is none.
    pub wants_password: bool,
}

impl ConnectError {
    fn new(code: ExitCode, words: String, next: RetryScope) -> ConnectError {
        ConnectError {
            failure: Failure::say(code, words),
            next,
            is_of_tls: false,
            encrypted: false,
            before_authentication: false,
            wants_password: false,
        }
    }

    /// Nobody answers there.
    pub fn unreachable(words: String) -> ConnectError {
        ConnectError::new(ExitCode::Unavailable, words, RetryScope::Address)
    }

    /// A setting is wrong that only concerns this host.
    pub fn config(words: String) -> ConnectError {
        ConnectError::new(ExitCode::Config, words, RetryScope::Host)
    }

    /// One side does not trust the other.
    pub fn permission(words: String) -> ConnectError {
        ConnectError::new(ExitCode::Permission, words, RetryScope::Nothing)
    }

    /// TLS cannot begin, for a fault of the settings or of their files.
    pub fn tls_settings(words: String) -> ConnectError {
        ConnectError {
            is_of_tls: true,
            ..ConnectError::new(ExitCode::Config, words, RetryScope::Nothing)
        }
    }

    /// This failure, and then that of the second way to the same server.
    pub fn and(self, way: &str, second: ConnectError) -> ConnectError {
        let (one, two) = (self.failure.to_string(), second.failure.to_string());
        let words = match one == two {
            true => one,
            false => format!("{two} ({way}; before that: {one})"),
        };
        ConnectError {
            failure: Failure::say(second.failure.code, words),
            ..second
        }
    }
}

impl ConnectAttempt<'_> {
    /// Connects, and sees whether the session is what is wanted; within the limit, if one is given.
    pub fn run(&self, opening: Opening, limit: Option<Duration>) -> Result<(Client, Option<Connector>), ConnectError> {
        let config = self.config()?;
        let settings = self.settings;
        let connector = self
            .address
            .map(|_| Connector::new(opening, settings.require_auth.clone(), settings.longest_answer));
        if connector.is_none() {
            self.check_unix()?;
        }
        let (target, used) = (self.target, connector.clone());
        let connected = within(limit, move || {
            let mut client = match used {
                Some(connector) => config.connect(connector),
                None => config.connect(NoTls),
            }?;
            let mismatch = mismatch(&mut client, target)?;
            Ok((client, mismatch))
        });
        let handshake = connector.as_ref().map(Connector::handshake_info).unwrap_or_default();
        match connected {
            None => Err(ConnectError::unreachable(self.timed_out())),
            Some(Err(error)) => Err(self.refusal(&error, &handshake)),
            Some(Ok((_, Some(words)))) => Err(ConnectError::new(ExitCode::Unavailable, words.into(), RetryScope::Host)),
            Some(Ok((client, None))) => Ok((client, connector)),
        }
    }

    fn timed_out(&self) -> String {
        let limit = self.settings.limit.unwrap_or_default();
        format!("no connection within {}", humantime::format_duration(limit))
    }

    fn config(&self) -> Result<Config, ConnectError> {
        let settings = self.settings;
        let mut config = Config::new();
        config
            .application_name(self.application_name)
            .user(&settings.user)
            .dbname(&settings.dbname)
            .port(self.host.port)
            .channel_binding(settings.channel_binding);
        if let Some(options) = &settings.options {
            config.options(options);
        }
        if let Some(password) = self.password {
            config.password(password.expose());
        }
        if let Some(limit) = settings.limit {
            config.connect_timeout(limit);
        }
        match (&self.host.place, self.address) {
            (Place::Folder(folder), _) => {
                // Linux's abstract namespace is told by a zero byte.
                config.host_path(folder.replacen('@', "\0", usize::from(folder.starts_with('@'))));
                config.ssl_mode(SslMode::Disable);
            }
            (_, Some(address)) => {
                // With an address of its own, a host can be called anything, also by the path of a folder.
                let name = match self.host.name.starts_with('/') {
                    true => address.to_string(),
                    false => self.host.name.clone(),
                };
                config.host(&name).hostaddr(address);
                // Whatever sslmode says: see `connector`.
                config
                    .ssl_mode(SslMode::Require)
                    .ssl_negotiation(SslNegotiation::Direct);
                self.watch_over(&mut config);
            }
            (_, None) => return Err(ConnectError::config("the host has no address".into())),
        }
        Ok(config)
    }

    fn watch_over(&self, config: &mut Config) {
        let tcp = &self.settings.tcp;
        config.keepalives(!tcp.no_keepalives);
        if let Some(idle) = tcp.idle {
            config.keepalives_idle(idle);
        }
        if let Some(interval) = tcp.interval {
            config.keepalives_interval(interval);
        }
        if let Some(count) = tcp.count {
            config.keepalives_retries(count);
        }
        if let Some(limit) = tcp.user_timeout {
            config.tcp_user_timeout(limit);
        }
    }

    /// What has to be known of a Unix socket before anything is sent over it.
    fn check_unix(&self) -> Result<(), ConnectError> {
        let Place::Folder(folder) = &self.host.place else {
            return Ok(());
        };
        let required = &self.settings.require_auth.given;
        if !required.is_empty() {
            return Err(ConnectError::new(
                ExitCode::Config,
                "require_auth cannot be had on a Unix socket; requirepeer can".into(),
                RetryScope::Nothing,
            ));
        }
        if let Some(owner) = &self.settings.require_peer {
            let path = format!("{folder}/.s.PGSQL.{}", self.host.port);
            let probe = UnixStream::connect(path).map_err(|error| ConnectError::unreachable(plain(&error)))?;
            check_peer(Some(&probe), owner)?;
        }
        Ok(())
    }

    fn refusal(&self, error: &postgres::Error, handshake: &HandshakeInfo) -> ConnectError {
        let base = match error.as_db_error() {
            Some(db) => {
                let next = match *db.code() {
                    SqlState::CANNOT_CONNECT_NOW => RetryScope::Host,
                    _ => RetryScope::Nothing,
                };
                let mut words = db.message().to_owned();
                let from_file = self.settings.password.is_none() && self.host.password.is_some();
                if from_file
                    && *db.code() == SqlState::INVALID_PASSWORD
                    && let Some(path) = &self.settings.passfile
                {
                    words += &format!(" (with the password of {})", path.display());
                }
                ConnectError {
                    before_authentication: !handshake.authenticated && next == RetryScope::Nothing,
                    ..ConnectError::new(code_of(db.code().code()), words, next)
                }
            }
            None => self.refusal_without_words(error, handshake),
        };
        ConnectError {
            encrypted: handshake.encrypted,
            ..base
        }
    }

    /// The server has not said why.
    fn refusal_without_words(&self, error: &postgres::Error, handshake: &HandshakeInfo) -> ConnectError {
        let cause = error.source().map(ToString::to_string).unwrap_or_default();
        if let Some(words) = &handshake.tls_failure {
            return ConnectError {
                is_of_tls: true,
                ..ConnectError::new(ExitCode::Unavailable, words.clone(), RetryScope::Nothing)
            };
        }
        let method = handshake.method.unwrap_or("that");
        if handshake.unwanted {
            let required = &self.settings.require_auth.given;
            return ConnectError::permission(match method {
                "none" => {
                    format!("the server asks for no authentication, and require_auth is {required}")
                }
                _ => format!("the server asks for {method} authentication, and require_auth is {required}"),
            });
        }
        if cause == "password missing" {
            return ConnectError {
                wants_password: true,
                ..ConnectError::permission(format!(
                    "the server asks for a password, and none is given (PGPASSWORD, or a line in {})",
                    self.passfile()
                ))
            };
        }
        match cause.as_str() {
            "unsupported authentication method" => ConnectError::permission(format!(
                "the server asks for {method} authentication, which cannot be had"
            )),
            _ if error.to_string().starts_with("authentication error") => ConnectError::permission(cause),
            "" if error.is_closed() => {
                ConnectError::unreachable("the server closed the connection without a word".into())
            }
            _ => match alert(error) {
                // TLS 1.3 tells only after the handshake what the server thinks of our certificate.
                Some(alert) if tls::is_about_our_certificate(alert) => ConnectError::permission(innermost(error)),
                _ => ConnectError::unreachable(innermost(error)),
            },
        }
    }

    fn passfile(&self) -> String {
        match &self.settings.passfile {
            Some(path) => path.display().to_string(),
            None => "~/.pgpass".into(),
        }
    }
}

/// What is wrong with the session, for the purpose; `None`: nothing.
fn mismatch(client: &mut Client, target: TargetSessionAttrs) -> Result<Option<&'static str>, postgres::Error> {
    if target == TargetSessionAttrs::Any {
        return Ok(None);
    }
    let rows = client.simple_query(
        "SELECT pg_catalog.pg_is_in_recovery(), \
         pg_catalog.pg_is_in_recovery() OR pg_catalog.current_setting('default_transaction_read_only')::bool",
    )?;
    let row = rows.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    // What is not there is not so.
    let is = |column: usize| row.and_then(|row| row.try_get(column).ok()?) == Some("t");
    let (standby, read_only) = (is(0), is(1));
    Ok(match target {
        TargetSessionAttrs::ReadWrite if read_only => Some("the session is read-only"),
        TargetSessionAttrs::ReadOnly if !read_only => Some("the session is not read-only"),
        TargetSessionAttrs::Primary if standby => Some("the server is a hot standby"),
        TargetSessionAttrs::Standby if !standby => Some("the server is not a hot standby"),
        _ => None,
    })
}

impl From<postgres::Error> for Failure {
    fn from(error: postgres::Error) -> Failure {
        // What the server says is enough where it says something; the rest is the library's framing.
        match error.as_db_error() {
            Some(db) => Failure::say(code_of(db.code().code()), db.message()),
            None => Failure::new(ExitCode::Unavailable, error),
        }
    }
}

/// The cause of all, as people write it.
fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source().filter(|_| !cause.is::<std::io::Error>()) {
        cause = next;
    }
    match cause.downcast_ref::<std::io::Error>() {
        Some(error) => plain(error),
        None => cause.to_string(),
    }
}

/// What TLS has told us at the end, if it has.
fn alert(error: &postgres::Error) -> Option<rustls::AlertDescription> {
    let error = error.source()?.downcast_ref::<std::io::Error>()?;
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}

/// An error of the system without its number, or one of TLS.
pub fn plain(error: &std::io::Error) -> String {
    if let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref()) {
        return tls::words(error);
    }
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let text = text
        .strip_prefix("failed to lookup address information: ")
        .unwrap_or(text);
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => "the connection failed".into(),
    }
}

/// Does it on a thread of its own, and waits no longer than the limit: nothing in it can be interrupted. `None`:
/// the time is up. What comes too late is dropped, and a session closed by that.
pub fn within<T: Send + 'static>(limit: Option<Duration>, act: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let Some(limit) = limit else {
        return Some(act());
    };
    let (sender, receiver) = channel();
    let spawned = std::thread::Builder::new().name("connect".into()).spawn(move || {
        // Nobody waits any more for what comes too late.
        let _ = sender.send(act());
    });
    match spawned {
        Ok(_) => receiver.recv_timeout(limit).ok(),
        Err(_) => None,
    }
}

/// Whether the process at the other end of a Unix socket is this user's (`requirepeer`).
pub fn check_peer(socket: Option<&impl AsFd>, owner: &str) -> Result<(), ConnectError> {
    let found = socket.and_then(peer_of);
    match found {
        Some(found) if found == owner => Ok(()),
        Some(found) => Err(ConnectError::permission(format!(
            "requirepeer is {owner:?}, and the server belongs to {found:?}"
        ))),
        None => Err(ConnectError::permission(format!(
            "requirepeer is {owner:?}, and whose the server is cannot be told"
        ))),
    }
}

fn peer_of(socket: &impl AsFd) -> Option<String> {
    #[cfg(target_os = "linux")]
    let uid = {
        use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
        nix::unistd::Uid::from_raw(getsockopt(socket, PeerCredentials).ok()?.uid())
    };
    #[cfg(not(target_os = "linux"))]
    let uid = nix::unistd::getpeereid(socket).ok()?.0;
    let user = nix::unistd::User::from_uid(uid).ok().flatten()?;
    Some(user.name)
}
