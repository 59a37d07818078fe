//! One attempt to connect to one address within its time limit, and what its failure means for the next.
//!
//! The rules are libpq's: an unreachable address leads to the next one, a server in the wrong role or still starting
//! leads to the next host, and any other error of a server ends the search, because the reply of another server must
//! not hide a wrong password. There is one addition: a connection that is closed without an error message counts as
//! unreachable, because proxies do that when their server is down.

use super::connector::{Connector, Encryption, HandshakeInfo};
use super::error::{
    CONNECTION_CLOSED, ClientErrorKind, ConnectError, RetryScope, describe_io_error, exit_code_for, is_transient,
    root_cause, tls_alert,
};
use super::query_message::QueryMessage;
use super::settings::{Host, HostAddress, Secret, Settings, TargetSessionAttrs};
use super::sockets::{SocketSnapshot, shut_down_socket};
use super::tls;
use crate::outcome::ExitCode;
use postgres::config::{SslMode, SslNegotiation};
use postgres::error::{DbError, SqlState};
use postgres::{Client, Config, NoTls, SimpleQueryMessage};
use std::error::Error;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::channel;
use std::time::Duration;

/// What to connect to.
pub(super) struct ConnectAttempt<'a> {
    /// The application name of the session.
    pub application_name: &'a str,
    /// The settings for all hosts.
    pub settings: &'a Settings,
    /// The host.
    pub host: &'a Host,
    /// One of its addresses; `None` for its Unix socket.
    pub address: Option<IpAddr>,
    /// The required kind of session.
    pub target: TargetSessionAttrs,
    /// The password for this host.
    pub password: Option<&'a Secret>,
}

/// A session that an attempt has opened.
pub(super) struct OpenedSession {
    /// The session.
    pub client: Client,
    /// What has made the connection; `None` for a Unix socket.
    pub connector: Option<Connector>,
    /// A duplicate of the session's descriptor, if that could be determined.
    pub socket: Option<OwnedFd>,
}

impl ConnectAttempt<'_> {
    /// Connects, and verifies that the session is of the required kind; within the time limit, if there is one.
    ///
    /// # Errors
    /// The error tells what is still worth trying.
    pub(super) fn run(&self, encryption: Encryption, limit: Option<Duration>) -> Result<OpenedSession, ConnectError> {
        let config = self.config()?;
        let settings = self.settings;
        let connector = self
            .address
            .map(|_| Connector::new(encryption, settings.require_auth.clone(), settings.max_reply_bytes));
        if connector.is_none() {
            self.check_unix_socket()?;
        }
        // Not before the owner of the Unix socket was looked up: for that, the system may open a socket and keep it.
        let snapshot = SocketSnapshot::take();
        let find_socket = || snapshot.find_new(self.address.map(|ip| SocketAddr::new(ip, self.host.port)));
        let (target, used_connector) = (self.target, connector.clone());
        let connected = within(limit, move || {
            let mut client = match used_connector {
                Some(connector) => config.connect(connector),
                None => config.connect(NoTls),
            }?;
            let mismatch = find_mismatch(&mut client, target)?;
            Ok((client, mismatch))
        });
        let handshake = connector.as_ref().map(Connector::handshake_info).unwrap_or_default();
        match connected {
            Err(error) => Err(no_thread(&error)),
            Ok(None) => {
                // The library limits only how long it takes to connect. For a reply, the abandoned thread would wait as
                // long as the server keeps the connection open.
                if let Some(socket) = find_socket() {
                    shut_down_socket(&socket);
                }
                Err(ConnectError::unreachable(self.timed_out()))
            }
            Ok(Some(Err(error))) => Err(self.connect_error(&error, &handshake)),
            Ok(Some(Ok((_, Some(mismatch))))) => Err(ConnectError::wrong_role(mismatch)),
            Ok(Some(Ok((client, None)))) => Ok(OpenedSession {
                client,
                connector,
                socket: find_socket(),
            }),
        }
    }

    fn timed_out(&self) -> String {
        let timeout = self.settings.connect_timeout.unwrap_or_default();
        format!("timeout expired after {}", humantime::format_duration(timeout))
    }

    /// Returns the configuration of the client library for this attempt.
    ///
    /// # Errors
    /// The host has no address.
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
        if let Some(timeout) = settings.connect_timeout {
            config.connect_timeout(timeout);
        }
        match (&self.host.address, self.address) {
            (HostAddress::SocketDirectory(directory), _) => {
                // The client library marks Linux's abstract namespace with a zero byte, libpq with "@".
                let abstract_marks = usize::from(directory.starts_with('@'));
                config.host_path(directory.replacen('@', "\0", abstract_marks));
                config.ssl_mode(SslMode::Disable);
            }
            (_, Some(address)) => {
                // A host with a numeric address can have any name, even the path of a directory.
                let name = if self.host.name.starts_with('/') {
                    address.to_string()
                } else {
                    self.host.name.clone()
                };
                config.host(&name).hostaddr(address);
                // Whatever sslmode is: this makes the library leave everything to the connector.
                config
                    .ssl_mode(SslMode::Require)
                    .ssl_negotiation(SslNegotiation::Direct);
                self.set_tcp_options(&mut config);
            }
            (_, None) => return Err(ConnectError::host_settings("the host has no address")),
        }
        Ok(config)
    }

    fn set_tcp_options(&self, config: &mut Config) {
        let tcp = &self.settings.tcp;
        config.keepalives(tcp.has_keepalives);
        if let Some(idle) = tcp.keepalive_idle {
            config.keepalives_idle(idle);
        }
        if let Some(interval) = tcp.keepalive_interval {
            config.keepalives_interval(interval);
        }
        if let Some(count) = tcp.keepalive_count {
            config.keepalives_retries(count);
        }
        if let Some(timeout) = tcp.user_timeout {
            config.tcp_user_timeout(timeout);
        }
    }

    /// Checks what must hold for a Unix socket before anything is sent over it.
    ///
    /// # Errors
    /// `require_auth` is set, or the socket cannot be opened or belongs to another user than `requirepeer`.
    fn check_unix_socket(&self) -> Result<(), ConnectError> {
        let HostAddress::SocketDirectory(directory) = &self.host.address else {
            return Ok(());
        };
        if !self.settings.require_auth.given.is_empty() {
            return Err(ConnectError::settings(
                "require_auth is not supported on Unix sockets; use requirepeer",
            ));
        }
        if let Some(owner) = &self.settings.require_peer {
            let probe = connect_unix_socket(&format!("{directory}/.s.PGSQL.{}", self.host.port))
                .map_err(|error| ConnectError::unreachable(describe_io_error(&error)))?;
            check_peer(Some(&probe), owner)?;
        }
        Ok(())
    }

    fn connect_error(&self, error: &postgres::Error, handshake: &HandshakeInfo) -> ConnectError {
        let connect_error = match error.as_db_error() {
            Some(db) => self.refused_by_server(db, handshake),
            None => self.failed_without_message(error, handshake),
        };
        ConnectError {
            is_encrypted: handshake.is_encrypted,
            ..connect_error
        }
    }

    /// The server sent an error message.
    fn refused_by_server(&self, db: &DbError, handshake: &HandshakeInfo) -> ConnectError {
        let retry = if *db.code() == SqlState::CANNOT_CONNECT_NOW {
            RetryScope::Host
        } else {
            RetryScope::Nothing
        };
        let mut message = db.message().to_owned();
        let is_from_passfile = self.settings.password.is_none() && self.host.password.is_some();
        if is_from_passfile
            && *db.code() == SqlState::INVALID_PASSWORD
            && let Some(file) = &self.settings.passfile
        {
            message += &format!(" (password retrieved from file {})", file.path.display());
        }
        let is_transient = is_transient(db);
        ConnectError {
            // A server without a free connection says so at this point too. Without TLS it might say something final.
            is_refused_before_authentication: !handshake.is_authenticated && !is_transient,
            is_transient,
            ..ConnectError::new(exit_code_for(db.code().code()), message, retry)
        }
    }

    /// The server did not say why, or the failure is on our side.
    fn failed_without_message(&self, error: &postgres::Error, handshake: &HandshakeInfo) -> ConnectError {
        if let Some((failure, message)) = &handshake.tls_failure {
            // Cut off, it counts as unreachable, like a connection that is closed at any other point.
            let retry = if handshake.is_tls_cut_off {
                RetryScope::Address
            } else {
                RetryScope::Nothing
            };
            return ConnectError {
                tls_failure: Some(*failure),
                is_transient: handshake.is_tls_cut_off,
                ..ConnectError::new(ExitCode::Unavailable, message, retry)
            };
        }
        if let Some(method) = handshake.method {
            if handshake.is_method_refused {
                let requested = if method == "none" { "no" } else { method };
                let required = &self.settings.require_auth.given;
                return ConnectError::permission(format!(
                    "the server requested {requested} authentication, but require_auth is {required}"
                ));
            }
            if UNSUPPORTED_METHODS.contains(&method) {
                return ConnectError::permission(format!(
                    "the server requested {method} authentication, which is not supported"
                ));
            }
        }
        match ClientErrorKind::from_error(error) {
            ClientErrorKind::PasswordMissing => ConnectError {
                is_password_missing: true,
                ..ConnectError::permission(format!(
                    "no password supplied, but the server requested one; set PGPASSWORD, or add a line to {}",
                    self.passfile()
                ))
            },
            ClientErrorKind::Authentication => {
                ConnectError::permission(error.source().map(ToString::to_string).unwrap_or_default())
            }
            ClientErrorKind::Other if error.is_closed() => ConnectError::unreachable(CONNECTION_CLOSED),
            // With TLS 1.3, the server rejects our certificate only after the handshake.
            ClientErrorKind::Other if tls_alert(error).is_some_and(tls::is_about_client_certificate) => {
                ConnectError::permission(root_cause(error))
            }
            ClientErrorKind::Other => ConnectError::unreachable(root_cause(error)),
        }
    }

    fn passfile(&self) -> String {
        match &self.settings.passfile {
            Some(file) => file.path.display().to_string(),
            None => "~/.pgpass".into(),
        }
    }
}

/// The authentication methods that the client library refuses, as [`HandshakeInfo`] names them.
const UNSUPPORTED_METHODS: [&str; 4] = ["gss", "sspi", "kerberos", "scm"];

/// Returns why the session is not of the required kind; `None` if it is.
///
/// # Errors
/// The query fails.
fn find_mismatch(client: &mut Client, target: TargetSessionAttrs) -> Result<Option<&'static str>, postgres::Error> {
    if target == TargetSessionAttrs::Any {
        return Ok(None);
    }
    let message = QueryMessage::in_own_transaction(
        "SELECT pg_catalog.pg_is_in_recovery(), \
         pg_catalog.pg_is_in_recovery() OR pg_catalog.current_setting('default_transaction_read_only')::bool",
    );
    let results = message.results_of_query(client.simple_query(&message.sql)?);
    let row = results.iter().find_map(|result| match result {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    // A missing value counts as false.
    let is_true = |column: usize| row.and_then(|row| row.try_get(column).ok()?) == Some("t");
    let (is_standby, is_read_only) = (is_true(0), is_true(1));
    Ok(match target {
        TargetSessionAttrs::ReadWrite if is_read_only => Some("session is read-only"),
        TargetSessionAttrs::ReadOnly if !is_read_only => Some("session is not read-only"),
        TargetSessionAttrs::Primary if is_standby => Some("server is in hot standby mode"),
        TargetSessionAttrs::Standby if !is_standby => Some("server is not in hot standby mode"),
        _ => None,
    })
}

/// Runs the function on a thread of its own, because it cannot be interrupted, and returns `None` when the time limit
/// is over. A result that comes later is dropped, which closes a connection.
///
/// # Errors
/// The system has no thread left; see [`no_thread`].
pub(super) fn within<T: Send + 'static>(
    limit: Option<Duration>,
    function: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Option<T>> {
    let Some(limit) = limit else {
        return Ok(Some(function()));
    };
    let (sender, receiver) = channel();
    std::thread::Builder::new().name("connect".into()).spawn(move || {
        // Fails if the result comes too late.
        let _ = sender.send(function());
    })?;
    Ok(receiver.recv_timeout(limit).ok())
}

/// Reports that [`within`] could not start its thread.
pub(super) fn no_thread(error: &io::Error) -> ConnectError {
    ConnectError::exhausted(format!("cannot create a thread: {}", describe_io_error(error)))
}

/// Opens a Unix socket. As in libpq, a leading `@` means Linux's abstract namespace.
///
/// # Errors
/// Nothing listens there, or the name is too long.
fn connect_unix_socket(path: &str) -> io::Result<UnixStream> {
    #[cfg(target_os = "linux")]
    if let Some(name) = path.strip_prefix('@') {
        use std::os::linux::net::SocketAddrExt;
        return UnixStream::connect_addr(&std::os::unix::net::SocketAddr::from_abstract_name(name)?);
    }
    UnixStream::connect(path)
}

/// Verifies that the process at the other end of a Unix socket belongs to this user (`requirepeer`).
///
/// # Errors
/// It belongs to another user, or that cannot be determined.
pub(super) fn check_peer(socket: Option<&impl AsFd>, owner: &str) -> Result<(), ConnectError> {
    match socket.and_then(peer_user) {
        Some(user) if user == owner => Ok(()),
        Some(user) => Err(ConnectError::permission(format!(
            "requirepeer specifies {owner:?}, but actual peer user name is {user:?}"
        ))),
        None => Err(ConnectError::permission(format!(
            "requirepeer specifies {owner:?}, but the peer user name could not be determined"
        ))),
    }
}

fn peer_user(socket: &impl AsFd) -> Option<String> {
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
