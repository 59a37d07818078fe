//! Opens a connection: tries hosts, addresses and TLS modes in order, until an attempt succeeds.

use super::attempt::{ConnectAttempt, OpenedSession, check_peer, no_thread, within};
use super::client::Client;
use super::connector::{Connector, Encryption};
use super::error::{ConnectError, RetryScope, TlsFailure, describe_io_error};
use super::prompt;
use super::settings::{Host, HostAddress, Settings, SslMode, TargetSessionAttrs, TlsVersion};
use super::settings_error::SettingsError;
use super::tls::TlsConfig;
use crate::outcome::Failure;
use crate::ui::message;
use postgres::{CancelToken, NoTls};
use std::net::{IpAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// An open connection.
pub(crate) struct Connection {
    /// The session.
    pub client: Client,
    /// A duplicate of the session's descriptor, if that could be determined; close-on-exec, with a high number.
    pub socket: Option<OwnedFd>,
    /// Cancels the current query of the session.
    pub canceller: Canceller,
    /// How the server authenticated us, as `require_auth` names it; unknown for a Unix socket.
    pub authentication_method: Option<&'static str>,
}

/// Asks the server to cancel the current query of a session, from any thread.
#[derive(Clone)]
pub(crate) struct Canceller {
    /// The connector is that of the session; a Unix socket has none.
    target: Arc<(CancelToken, Option<Connector>)>,
}

impl Canceller {
    /// Sends the request over a new connection, which is encrypted like the session's. Whether the server complies
    /// shows only in the session.
    pub(crate) fn cancel(&self) {
        let _ = match &*self.target {
            (token, Some(connector)) => token.cancel_query(connector.clone()),
            (token, None) => token.cancel_query(NoTls),
        };
    }
}

/// A function that is called before each step of connecting that has a time limit, with that limit.
pub(super) type TimeLimitObserver<'a> = &'a mut dyn FnMut(Duration);

/// Who enforces the time limit of the last attempt, after which nothing is left to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LimitEnforcement {
    /// The observer, which ends this process. The attempt then needs no thread of its own.
    Observer,
    /// The attempt, which fails.
    Attempt,
}

/// How long an attempt may exceed its own time limit.
const ATTEMPT_SLACK: Duration = Duration::from_secs(1);
/// How long the password prompt may stay unanswered.
const PASSWORD_PROMPT_TIMEOUT: Duration = Duration::from_secs(86_400);

impl Settings {
    /// Connects under this application name. `enforcement` says who ends a step that exceeds its time limit.
    ///
    /// # Errors
    /// No attempt succeeded. The error names each server and the reason, the last attempt first.
    pub(crate) fn open<'a>(
        &'a self,
        application_name: &'a str,
        observer: Option<TimeLimitObserver<'a>>,
        enforcement: LimitEnforcement,
    ) -> Result<Connection, Failure> {
        let mut opener = Opener::new(self, application_name, observer);
        opener.enforcement = enforcement;
        let error = match opener.try_hosts() {
            Ok(connection) => return Ok(connection),
            Err(error) => self.with_whitespace_notes(error),
        };
        if !error.is_password_missing || self.prompted_password.get().is_some() {
            return Err(error.into());
        }
        let Some(terminal) = prompt::open_terminal() else {
            return Err(error.into());
        };
        opener.announce(PASSWORD_PROMPT_TIMEOUT);
        let Some(password) = prompt::read_password(terminal, &self.user) else {
            return Err(error.into());
        };
        self.prompted_password.get_or_init(|| password);
        let connected = opener.try_hosts();
        Ok(connected.map_err(|error| self.with_whitespace_notes(error))?)
    }

    /// Connects again under this application name, without asking for a password: with the one that was typed before,
    /// if any.
    ///
    /// # Errors
    /// As for [`Settings::open`].
    pub(crate) fn reopen(&self, application_name: &str) -> Result<Connection, Failure> {
        let connected = Opener::new(self, application_name, None).try_hosts();
        Ok(connected.map_err(|error| self.with_whitespace_notes(error))?)
    }

    /// Adds that the connection string or the password ends in whitespace, which may be why the connection failed.
    fn with_whitespace_notes(&self, error: ConnectError) -> ConnectError {
        let notes = &self.whitespace_notes;
        // The password is not why a server is away.
        let password = notes.password.as_ref().filter(|_| !error.is_transient);
        let mut message = error.message;
        for note in notes.dsn.iter().chain(password) {
            message += &format!(" ({note})");
        }
        ConnectError { message, ..error }
    }
}

/// The state of opening a connection, for one or two passes over the hosts.
struct Opener<'a> {
    settings: &'a Settings,
    application_name: &'a str,
    /// Loaded for the first attempt with TLS.
    tls: Option<Result<TlsConfig, SettingsError>>,
    observer: Option<TimeLimitObserver<'a>>,
    enforcement: LimitEnforcement,
    /// There is nothing left to try after the current attempt.
    is_last_attempt: bool,
}

impl<'a> Opener<'a> {
    fn new(settings: &'a Settings, application_name: &'a str, observer: Option<TimeLimitObserver<'a>>) -> Opener<'a> {
        Opener {
            settings,
            application_name,
            tls: None,
            observer,
            enforcement: LimitEnforcement::Attempt,
            is_last_attempt: false,
        }
    }

    /// Tries all hosts, for `prefer-standby` twice.
    ///
    /// # Errors
    /// No attempt succeeds. The error has the messages of all attempts, the last one first.
    fn try_hosts(&mut self) -> Result<Connection, ConnectError> {
        let targets: &[TargetSessionAttrs] = match &self.settings.target {
            TargetSessionAttrs::PreferStandby => &[TargetSessionAttrs::Standby, TargetSessionAttrs::Any],
            target => std::slice::from_ref(target),
        };
        let hosts: Vec<Host> = self.in_order(self.settings.hosts.clone());
        let mut messages: Vec<String> = Vec::new();
        let mut last_error = None;
        for (host, target) in targets.iter().flat_map(|t| hosts.iter().map(move |h| (h, *t))) {
            match self.try_host(host, target, &mut messages) {
                Ok(connection) => return Ok(connection),
                Err(error) => {
                    let is_final = error.retry == RetryScope::Nothing;
                    last_error = Some(error);
                    if is_final {
                        break;
                    }
                }
            }
        }
        messages.dedup();
        messages.reverse();
        // There is always at least one host.
        let error = last_error.unwrap_or_else(|| ConnectError::settings("no host given"));
        Err(ConnectError {
            message: messages.join("; "),
            ..error
        })
    }

    /// Tries all addresses of a host. Adds a message for each failed attempt.
    ///
    /// # Errors
    /// No attempt succeeds; the error is that of the last one.
    fn try_host(
        &mut self,
        host: &Host,
        target: TargetSessionAttrs,
        messages: &mut Vec<String>,
    ) -> Result<Connection, ConnectError> {
        let settings = self.settings;
        let addresses = match self.resolve(host) {
            Ok(addresses) => addresses,
            Err(error) => {
                messages.push(failed_attempt(settings, host, None, &error));
                return Err(error);
            }
        };
        self.is_last_attempt =
            settings.hosts.len() == 1 && settings.target != TargetSessionAttrs::PreferStandby && addresses.len() == 1;
        let mut last_error = None;
        for address in addresses {
            match self.try_address(host, address, target) {
                Ok(connection) => return Ok(connection),
                Err(error) => {
                    messages.push(failed_attempt(settings, host, address, &error));
                    let retry = error.retry;
                    last_error = Some(error);
                    if retry != RetryScope::Address {
                        break;
                    }
                }
            }
        }
        Err(last_error.unwrap_or_else(|| ConnectError::unreachable("the host name has no address")))
    }

    /// Returns the addresses of a host. A Unix socket has a single one, `None`.
    ///
    /// # Errors
    /// `hostaddr` is not numeric, or the host name cannot be looked up.
    fn resolve(&mut self, host: &Host) -> Result<Vec<Option<IpAddr>>, ConnectError> {
        let name = match &host.address {
            HostAddress::SocketDirectory(_) => return Ok(vec![None]),
            HostAddress::Numeric(address) => {
                return match address.parse() {
                    Ok(ip) => Ok(vec![Some(ip)]),
                    Err(_) => Err(ConnectError::settings("hostaddr is not a numeric address")),
                };
            }
            HostAddress::Name(name) => name.clone(),
        };
        if let Ok(ip) = name.parse() {
            return Ok(vec![Some(ip)]);
        }
        self.announce_attempt();
        let port = host.port;
        let look_up = move || (name.as_str(), port).to_socket_addrs().map(Vec::from_iter);
        match within(self.settings.connect_timeout, look_up) {
            Err(error) => Err(no_thread(&error)),
            Ok(None) => Err(ConnectError::unreachable("host name lookup timed out")),
            Ok(Some(Err(error))) => Err(ConnectError::unreachable(format!(
                "could not translate host name to address: {}",
                describe_io_error(&error)
            ))),
            Ok(Some(Ok(found))) => {
                let mut addresses: Vec<_> = found.iter().map(|address| Some(address.ip())).collect();
                addresses.dedup();
                Ok(self.in_order(addresses))
            }
        }
    }

    /// Shuffles the items, if the settings require a random order.
    fn in_order<T>(&self, mut items: Vec<T>) -> Vec<T> {
        if self.settings.is_order_random {
            fastrand::shuffle(&mut items);
        }
        items
    }

    /// Tries one address, with or without TLS as `sslmode` demands.
    ///
    /// # Errors
    /// The last attempt fails; its message includes that of the first, if there were two.
    fn try_address(
        &mut self,
        host: &Host,
        address: Option<IpAddr>,
        target: TargetSessionAttrs,
    ) -> Result<Connection, ConnectError> {
        let mode = match host.address {
            HostAddress::SocketDirectory(_) => SslMode::Disable,
            _ => self.settings.tls.mode,
        };
        match mode {
            SslMode::Disable => self.attempt(host, address, target, Encryption::Plaintext),
            SslMode::Allow => match self.attempt(host, address, target, Encryption::Plaintext) {
                Err(first) if first.is_refused_before_authentication => {
                    // As in libpq: a server without TLS refuses us a second time, and its reason is the one to report.
                    let tls = self.tls_encryption(host, true);
                    tls.and_then(|tls| self.attempt(host, address, target, tls))
                        .map_err(|second| first.and_then("with TLS", second))
                }
                result => result,
            },
            SslMode::Prefer => {
                let tls = self.tls_encryption(host, true);
                match tls.and_then(|tls| self.attempt(host, address, target, tls)) {
                    Err(first)
                        if first.tls_failure == Some(TlsFailure::AlsoInLibpq)
                            || (first.is_refused_before_authentication && first.is_encrypted) =>
                    {
                        message::detail(format_args!(
                            "TLS connection failed: {}; retrying without TLS",
                            first.message
                        ));
                        self.attempt(host, address, target, Encryption::Plaintext)
                            .map_err(|second| first.and_then("without TLS", second))
                    }
                    // libpq tries without TLS after any failure, but its TLS may have succeeded here.
                    Err(first) if first.tls_failure.is_some() => Err(first.with_remedy(
                        "not falling back to plaintext, because psql may have TLS here; set sslmode=disable if plaintext is acceptable",
                    )),
                    result => result,
                }
            }
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => {
                let tls = self.tls_encryption(host, false)?;
                self.attempt(host, address, target, tls)
            }
        }
    }

    /// Returns the TLS encryption for this host.
    ///
    /// # Errors
    /// A certificate or key cannot be loaded.
    fn tls_encryption(&mut self, host: &Host, allows_plaintext: bool) -> Result<Encryption, ConnectError> {
        let settings = &self.settings.tls;
        let tls_config = self.tls.get_or_insert_with(|| TlsConfig::load(settings));
        let client_config = match tls_config {
            Ok(tls_config) => tls_config.client_config(host),
            Err(error) => Err(error.clone()),
        };
        match client_config {
            Ok(client_config) => Ok(Encryption::Tls {
                config: Arc::new(client_config),
                is_direct: settings.is_direct,
                allows_plaintext,
                libpq_has_older_tls: settings.min_version == TlsVersion::Older,
            }),
            Err(error) => Err(ConnectError {
                tls_failure: (!error.is_unreadable_file()).then(|| TlsFailure::new(error.fails_in_libpq())),
                ..ConnectError::settings(error.to_string())
            }),
        }
    }

    /// Makes one attempt at one address.
    ///
    /// # Errors
    /// The attempt fails, or the server does not meet `sslcertmode` or `requirepeer`.
    fn attempt(
        &mut self,
        host: &Host,
        address: Option<IpAddr>,
        target: TargetSessionAttrs,
        encryption: Encryption,
    ) -> Result<Connection, ConnectError> {
        self.announce_attempt();
        let settings = self.settings;
        let prompted = settings.prompted_password.get();
        let attempt = ConnectAttempt {
            application_name: self.application_name,
            settings,
            host,
            address,
            target,
            password: prompted.or(settings.password.as_ref()).or(host.password.as_ref()),
        };
        let limit = settings.connect_timeout.filter(|_| !self.is_limit_left_to_observer());
        let OpenedSession {
            client,
            connector,
            socket,
        } = attempt.run(encryption, limit)?;
        if let Some(Ok(tls)) = &self.tls
            && let Some(connector) = &connector
            && connector.handshake_info().is_encrypted
            && tls.lacks_certificate_request()
        {
            return Err(ConnectError::permission(
                "sslcertmode=require, but the server did not request a client certificate",
            ));
        }
        if address.is_none()
            && let Some(owner) = &settings.require_peer
        {
            check_peer(socket.as_ref(), owner)?;
        }
        let authentication_method = connector
            .as_ref()
            .and_then(|connector| connector.handshake_info().method);
        let canceller = Canceller {
            target: Arc::new((client.cancel_token(), connector)),
        };
        let client = Client::new(client, socket.as_ref(), settings.reply_limit).map_err(|error| {
            ConnectError::exhausted(format!("cannot watch the connection: {}", describe_io_error(&error)))
        })?;
        Ok(Connection {
            client,
            socket,
            canceller,
            authentication_method,
        })
    }

    /// Returns whether the observer alone enforces the time limit: nothing is left to try if this attempt takes too
    /// long, so the attempt needs no thread that could be abandoned.
    fn is_limit_left_to_observer(&self) -> bool {
        self.is_last_attempt && self.enforcement == LimitEnforcement::Observer
    }

    fn announce_attempt(&mut self) {
        let slack = if self.is_limit_left_to_observer() {
            Duration::ZERO
        } else {
            ATTEMPT_SLACK
        };
        if let Some(limit) = self.settings.connect_timeout {
            self.announce(limit + slack);
        }
    }

    fn announce(&mut self, limit: Duration) {
        if let Some(observer) = &mut self.observer {
            observer(limit);
        }
    }
}

/// Describes a failed attempt, with the address if it says more than the name of the host.
fn failed_attempt(settings: &Settings, host: &Host, address: Option<IpAddr>, error: &ConnectError) -> String {
    let server = settings.address_of(host);
    let message = &error.message;
    match (&host.address, address) {
        (HostAddress::Name(name), Some(address)) if name.parse() != Ok(address) => {
            format!("cannot connect to {server} ({address}): {message}")
        }
        _ => format!("cannot connect to {server}: {message}"),
    }
}
