//! From settings to an open connection: what psql accepts, in the order in which psql tries it.
//!
//! | file | what it is |
//! |---|---|
//! | `keyword` | the settings that there are, and values for them |
//! | `parse` | connection strings |
//! | `service`, `passfile` | libpq's two files |
//! | `settings` | all sources, in order |
//! | `validate` | values -> settings, or what is wrong with them |
//! | `tls`, `certificate` | roots, our own certificate, the check of the server's |
//! | `connector` | what comes before PostgreSQL's protocol on a TCP connection |
//! | `reply_filter` | which of the server's bytes go on to the client library, and how many |
//! | `attempt` | one attempt on one address, and what its failure means |
//! | `prompt` | asking for a password |
//!
//! Secrets are never printed: no error text of this module carries a password, a connection string that could
//! hold one, or anything of the server's that quotes one.

mod attempt;
mod certificate;
mod connector;
mod keyword;
mod parse;
mod passfile;
pub mod prompt;
mod reply_filter;
mod service;
mod settings;
mod tls;
mod validate;

pub use parse::{may_have_password, quoted};
pub use settings::Settings;

use crate::outcome::{ExitCode, Failure};
use crate::sys;
use crate::ui::message;
use attempt::{ConnectAttempt, ConnectError, RetryScope};
use connector::{Connector, Opening};
use nix::sys::socket::{SockaddrStorage, getpeername};
use postgres::{CancelToken, Client, NoTls};
use settings::{Host, Place, Secret, SslMode, TargetSessionAttrs};
use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;
use tls::Tls;

/// Where and how to connect, validated.
#[derive(Debug)]
pub struct ConnectionOptions {
    /// The connection string, from the option or a variable.
    pub dsn: Option<String>,
    /// The string is an argument of this process, for everybody to see.
    pub dsn_is_argument: bool,
    /// How long connecting to one address may take; zero is no limit, `None` leaves it to the other settings.
    pub connect_timeout: Option<Duration>,
}

/// An open connection.
pub struct Connection {
    /// The session.
    pub client: Client,
    /// A second descriptor for its socket, where it could be told which that is. High-numbered, closed on exec.
    pub socket: Option<OwnedFd>,
    /// Interrupts what the session does.
    pub canceller: Canceller,
}

/// Asks the server to interrupt what the session does, from any thread.
#[derive(Clone)]
pub struct Canceller {
    /// As the session was dialled; a Unix socket needs nothing of it.
    target: Arc<(CancelToken, Option<Connector>)>,
}

impl Canceller {
    /// Sends the request, over a connection of its own, as well encrypted as the session's. Nothing is known of its
    /// effect but what the session does.
    pub fn cancel(&self) {
        let _ = match &*self.target {
            (token, Some(connector)) => token.cancel_query(connector.clone()),
            (token, None) => token.cancel_query(NoTls),
        };
    }
}

/// Beyond its own limit, how long an attempt may take to say so.
const ATTEMPT_SLACK: Duration = Duration::from_secs(1);
/// How long a question on the terminal may stay unanswered.
const PASSWORD_PROMPT_TIMEOUT: Duration = Duration::from_secs(86_400);

impl Settings {
    /// Resolves the settings for these options, and warns of a password that every user of this system can see.
    ///
    /// # Errors
    /// As for [`Settings::resolve`].
    pub fn from_options(options: &ConnectionOptions) -> Result<Settings, Failure> {
        let settings = Settings::resolve(options.dsn.as_deref(), options.connect_timeout)?;
        if options.dsn_is_argument && settings.password_in_string() {
            message::error(
                "the password in --dsn can be seen by every user of this system; \
                 give the string in PGLOCK_DSN, or the password in a password file (~/.pgpass)",
            );
        }
        Ok(settings)
    }

    /// Connects, as this `application_name`. Before each step that is limited, `watch` is told how long it may take, if
    /// somebody watches, and ends us where it takes longer.
    ///
    /// # Errors
    /// Says where it tried to connect, and why it failed, the last failure first.
    pub fn open<'a>(&'a self, application_name: &'a str, watch: Option<Watch<'a>>) -> Result<Connection, Failure> {
        let mut opener = Opener {
            settings: self,
            application_name,
            asked: None,
            tls: None,
            watch,
            is_last: false,
        };
        let refusal = match opener.try_hosts() {
            Ok(connection) => return Ok(connection),
            Err(refusal) => refusal,
        };
        let terminal = match refusal.wants_password {
            true => prompt::terminal(),
            false => None,
        };
        let Some(terminal) = terminal else {
            return Err(refusal.failure);
        };
        opener.announce(PASSWORD_PROMPT_TIMEOUT);
        opener.asked = prompt::ask(terminal, &self.user);
        match opener.asked {
            Some(_) => opener.try_hosts().map_err(|refusal| refusal.failure),
            None => Err(refusal.failure),
        }
    }
}

/// One run through the hosts, or two.
struct Opener<'a> {
    settings: &'a Settings,
    application_name: &'a str,
    /// The password that was asked for.
    asked: Option<Secret>,
    /// Loaded for the first attempt with TLS.
    tls: Option<Result<Tls, String>>,
    watch: Option<Watch<'a>>,
    /// There is nothing to try after this attempt.
    is_last: bool,
}

/// Whoever is told how long a step may take.
pub type Watch<'a> = &'a mut dyn FnMut(Duration);

impl Opener<'_> {
    fn try_hosts(&mut self) -> Result<Connection, ConnectError> {
        let targets: &[TargetSessionAttrs] = match &self.settings.target {
            TargetSessionAttrs::PreferStandby => &[TargetSessionAttrs::Standby, TargetSessionAttrs::Any],
            one => std::slice::from_ref(one),
        };
        let hosts: Vec<Host> = shuffled(self.settings.hosts.clone(), self.settings.random_order);
        let mut said: Vec<String> = Vec::new();
        let mut last = None;
        for (host, target) in targets.iter().flat_map(|t| hosts.iter().map(move |h| (h, *t))) {
            match self.try_host(host, target, &mut said) {
                Ok(connection) => return Ok(connection),
                Err(refusal) => {
                    let stop = refusal.next == RetryScope::Nothing;
                    last = Some(refusal);
                    if stop {
                        break;
                    }
                }
            }
        }
        // There is always a host.
        let mut refusal = last.unwrap_or_else(|| ConnectError::config("there is no host".into()));
        said.dedup();
        said.reverse();
        refusal.failure = Failure::say(refusal.failure.code, said.join("; "));
        Err(refusal)
    }

    /// All addresses of a host.
    fn try_host(
        &mut self,
        host: &Host,
        target: TargetSessionAttrs,
        said: &mut Vec<String>,
    ) -> Result<Connection, ConnectError> {
        let name = self.settings.address_of(host);
        let mut say = |at: Option<IpAddr>, refusal: &ConnectError| {
            // An address is worth saying only where a name stands for it.
            let at = at.filter(|at| matches!(&host.place, Place::Name(name) if name.parse() != Ok(*at)));
            let at = at.map_or(String::new(), |at| format!(" ({at})"));
            said.push(format!("cannot connect to {name}{at}: {}", refusal.failure));
        };
        let addresses = match self.addresses(host) {
            Ok(addresses) => addresses,
            Err(refusal) => {
                say(None, &refusal);
                return Err(refusal);
            }
        };
        let settings = self.settings;
        self.is_last =
            settings.hosts.len() == 1 && settings.target != TargetSessionAttrs::PreferStandby && addresses.len() == 1;
        let mut last = None;
        for address in addresses {
            match self.try_address(host, address, target) {
                Ok(connection) => return Ok(connection),
                Err(refusal) => {
                    say(address, &refusal);
                    let next = refusal.next;
                    last = Some(refusal);
                    if next != RetryScope::Address {
                        break;
                    }
                }
            }
        }
        Err(last.unwrap_or_else(|| ConnectError::unreachable("the name has no address".into())))
    }

    /// The addresses of a host; a Unix socket has one without a number.
    fn addresses(&mut self, host: &Host) -> Result<Vec<Option<IpAddr>>, ConnectError> {
        let name = match &host.place {
            Place::Folder(_) => return Ok(vec![None]),
            Place::Address(address) => {
                return address.parse().map(|ip| vec![Some(ip)]).map_err(|_| ConnectError {
                    next: RetryScope::Nothing,
                    ..ConnectError::config("hostaddr is not a numeric address".into())
                });
            }
            Place::Name(name) => name.clone(),
        };
        if let Ok(ip) = name.parse() {
            return Ok(vec![Some(ip)]);
        }
        self.announce_attempt();
        let port = host.port;
        let look_up = move || (name.as_str(), port).to_socket_addrs().map(Vec::from_iter);
        match attempt::within(self.settings.limit, look_up) {
            None => Err(ConnectError::unreachable("its name was not resolved in time".into())),
            Some(Err(error)) => Err(ConnectError::unreachable(format!(
                "its name cannot be resolved: {}",
                attempt::plain(&error)
            ))),
            Some(Ok(found)) => {
                let mut addresses: Vec<_> = found.iter().map(|address| Some(address.ip())).collect();
                addresses.dedup();
                Ok(shuffled(addresses, self.settings.random_order))
            }
        }
    }

    /// One address, with TLS and without as `sslmode` has it.
    fn try_address(
        &mut self,
        host: &Host,
        address: Option<IpAddr>,
        target: TargetSessionAttrs,
    ) -> Result<Connection, ConnectError> {
        let mode = match host.place {
            Place::Folder(_) => SslMode::Disable,
            _ => self.settings.ssl.mode,
        };
        match mode {
            SslMode::Disable => self.attempt(host, address, target, Opening::Plain),
            SslMode::Allow => {
                let refused = match self.attempt(host, address, target, Opening::Plain) {
                    Err(refusal) if refusal.before_authentication => refusal,
                    other => return other,
                };
                let tls = self.opening(host, false);
                tls.and_then(|tls| self.attempt(host, address, target, tls))
                    .map_err(|second| refused.and("with TLS", second))
            }
            SslMode::Prefer => {
                let tls = self.opening(host, true);
                match tls.and_then(|tls| self.attempt(host, address, target, tls)) {
                    Err(first) if first.is_of_tls || (first.before_authentication && first.encrypted) => {
                        message::detail(format_args!(
                            "no connection with TLS: {}; trying without",
                            first.failure
                        ));
                        self.attempt(host, address, target, Opening::Plain)
                            .map_err(|second| first.and("without TLS", second))
                    }
                    other => other,
                }
            }
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => {
                let tls = self.opening(host, false)?;
                self.attempt(host, address, target, tls)
            }
        }
    }

    fn opening(&mut self, host: &Host, or_plain: bool) -> Result<Opening, ConnectError> {
        let ssl = &self.settings.ssl;
        let loaded = self.tls.get_or_insert_with(|| Tls::load(ssl));
        let config = loaded
            .as_ref()
            .map_err(String::clone)
            .and_then(|tls| tls.config(host))
            .map_err(ConnectError::tls_settings)?;
        Ok(Opening::Tls {
            config: Arc::new(config),
            direct: ssl.direct,
            or_plain,
        })
    }

    fn attempt(
        &mut self,
        host: &Host,
        address: Option<IpAddr>,
        target: TargetSessionAttrs,
        opening: Opening,
    ) -> Result<Connection, ConnectError> {
        self.announce_attempt();
        let settings = self.settings;
        let attempt = ConnectAttempt {
            application_name: self.application_name,
            settings,
            host,
            address,
            target,
            password: self
                .asked
                .as_ref()
                .or(settings.password.as_ref())
                .or(host.password.as_ref()),
        };
        let before = Sockets::look();
        let limit = settings.limit.filter(|_| !self.is_for_watch_to_end());
        let (client, connector) = attempt.run(opening, limit)?;
        if let Some(Ok(tls)) = &self.tls
            && connector
                .as_ref()
                .is_some_and(|connector| connector.handshake_info().encrypted)
            && tls.is_certificate_unasked()
        {
            return Err(ConnectError::permission(
                "sslcertmode=require, and the server did not ask for a certificate".into(),
            ));
        }
        let socket = before.new_one(address.map(|ip| SocketAddr::new(ip, host.port)));
        if address.is_none()
            && let Some(owner) = &settings.require_peer
        {
            attempt::check_peer(socket.as_ref(), owner)?;
        }
        let canceller = Canceller {
            target: Arc::new((client.cancel_token(), connector)),
        };
        Ok(Connection {
            client,
            socket,
            canceller,
        })
    }

    /// Whether nothing is left to do when this attempt takes too long. Then whoever watches can see to it, and the attempt
    /// needs no thread that could be left to itself.
    fn is_for_watch_to_end(&self) -> bool {
        self.is_last && self.watch.is_some()
    }

    fn announce_attempt(&mut self) {
        let slack = match self.is_for_watch_to_end() {
            true => Duration::ZERO,
            false => ATTEMPT_SLACK,
        };
        if let Some(limit) = self.settings.limit {
            self.announce(limit + slack);
        }
    }

    fn announce(&mut self, limit: Duration) {
        if let Some(watch) = &mut self.watch {
            watch(limit);
        }
    }
}

/// In a random order, if it is to be one: the standard library's hasher is seeded by the system.
fn shuffled<T>(mut items: Vec<T>, random: bool) -> Vec<T> {
    if random {
        let random = RandomState::new();
        for n in (1..items.len()).rev() {
            items.swap(n, (random.hash_one(n) % (n as u64 + 1)) as usize);
        }
    }
    items
}

/// What kind of failure it is when the server says no to what we ask for. See [`ExitCode`].
fn code_of(sqlstate: &str) -> ExitCode {
    match sqlstate {
        "42501" => ExitCode::Permission,
        code if code.starts_with("28") => ExitCode::Permission,
        code if code.starts_with("3D") => ExitCode::Config,
        _ => ExitCode::Unavailable,
    }
}

/// The sockets that have somebody at the other end.
struct Sockets {
    /// Descriptors beyond the low ones were looked at too.
    all: bool,
    found: HashSet<RawFd>,
}

/// How many descriptors are low. A new one gets the lowest number that is free, so to look at the low ones is enough while
/// more of them are free than a connection needs; to list them all takes ten times as long.
const LOW_DESCRIPTORS: usize = 256;

impl Sockets {
    /// Those that are open now.
    fn look() -> Sockets {
        let low = sys::open_descriptors::<LOW_DESCRIPTORS>();
        let low = low.ok().filter(|low| low.len() < LOW_DESCRIPTORS - 50);
        let all = low.is_none();
        let found = low.unwrap_or_else(all_descriptors).into_iter();
        Sockets {
            all,
            found: found.filter(|fd| peer(*fd).is_some()).collect(),
        }
    }

    /// A duplicate of the one socket that was not among them and leads to a server, at this address by TCP, or by a socket
    /// with a name: the client library does not tell which descriptor it has. Other threads open what they need meanwhile,
    /// such as pairs of sockets, which have no name, or close what leads nowhere: an earlier attempt that was given up.
    ///
    /// Looking at what is new, and not only at who is at the other end, matters to a pglock inside the job of another:
    /// it has inherited the outer one's socket. Numbered high, since scripts use 3 to 9 and bash 255 for themselves; but
    /// below 64: to make the table of descriptors of a process with threads larger, Linux waits for an RCU grace period,
    /// which takes longer than everything else together.
    fn new_one(&self, address: Option<SocketAddr>) -> Option<OwnedFd> {
        let now = match self.all {
            true => all_descriptors(),
            false => sys::open_descriptors::<LOW_DESCRIPTORS>().unwrap_or_default(),
        };
        let mut new = now
            .into_iter()
            .filter(|fd| !self.found.contains(fd) && peer(*fd).is_some_and(|peer| is_server(&peer, address)));
        let (Some(fd), None) = (new.next(), new.next()) else {
            return None;
        };
        [56, 10]
            .into_iter()
            .find_map(|lowest| sys::duplicate_from(fd, lowest).ok())
    }
}

fn peer(fd: RawFd) -> Option<SockaddrStorage> {
    getpeername(fd).ok()
}

/// Whether a server that was connected to at this address, or at its socket with a name, is at the other end.
fn is_server(peer: &SockaddrStorage, address: Option<SocketAddr>) -> bool {
    match address {
        Some(SocketAddr::V4(address)) => peer
            .as_sockaddr_in()
            .is_some_and(|peer| (peer.ip(), peer.port()) == (*address.ip(), address.port())),
        Some(SocketAddr::V6(address)) => peer
            .as_sockaddr_in6()
            .is_some_and(|peer| (peer.ip(), peer.port()) == (*address.ip(), address.port())),
        None => peer
            .as_unix_addr()
            .is_some_and(|peer| peer.path().is_some() || peer.as_abstract().is_some()),
    }
}

fn all_descriptors() -> Vec<RawFd> {
    let Ok(entries) = std::fs::read_dir("/dev/fd") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    use nix::unistd::dup2;
    use std::net::{TcpListener, TcpStream};

    /// An attempt that was given up has a socket that leads nowhere yet, and closes it when it likes: the next attempt may
    /// get its number. And its own may be answered late.
    #[test]
    fn the_sessions_socket_is_found_among_those_of_others() -> std::io::Result<()> {
        let listen = || TcpListener::bind(("127.0.0.1", 0));
        let (server, other) = (listen()?, listen()?);
        let address = server.local_addr()?;
        let (family, kind) = (AddressFamily::Inet, SockType::Stream);
        let mut given_up = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
        let _inherited = TcpStream::connect(address)?;

        let before = Sockets::look();
        assert!(before.new_one(Some(address)).is_none());
        let late = TcpStream::connect(other.local_addr()?)?;
        let session = TcpStream::connect(address)?;
        let name = session.local_addr()?;
        dup2(&session, &mut given_up)?;
        drop(session);

        let found = before.new_one(Some(address)).expect("one that is new");
        assert_eq!(TcpStream::from(found).local_addr()?, name);
        drop(late);
        Ok(())
    }
}
