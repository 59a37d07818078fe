//! From settings to an open connection.
//!
//! Secrets are never printed: no error text of this module carries a password, a connection string that could
//! hold one, or anything of the server's that quotes one.

use crate::outcome::{ExitCode, Failure};
use crate::sys;
use nix::sys::socket::{SockaddrStorage, getpeername};
use postgres::config::Host;
use postgres::error::SqlState;
use postgres::{CancelToken, Client, Config, NoTls};
use std::collections::HashSet;
use std::os::fd::{OwnedFd, RawFd};
use std::time::Duration;

/// Where and how to connect: everything that there is to know, nothing opened yet.
#[derive(Clone)]
pub struct Settings {
    config: Config,
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
pub struct Canceller(CancelToken);

impl Canceller {
    /// Sends the request, over a connection of its own. Nothing is known of its effect but what the session does.
    pub fn cancel(&self) {
        let _ = self.0.cancel_query(NoTls);
    }
}

/// libpq's folder for sockets where it is built for Debian, and the one of its own sources.
const SOCKET_FOLDERS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

impl Settings {
    /// The settings of a connection string, with what it leaves open taken from libpq's variables and defaults.
    ///
    /// # Errors
    /// A setting that cannot be understood.
    pub fn resolve(
        dsn: Option<&str>,
        connect_timeout: Option<Duration>,
    ) -> Result<Settings, Failure> {
        let mut config = match dsn {
            // The error's own text may quote the string, and the string may hold a password.
            Some(dsn) => dsn.parse::<Config>().map_err(|error| {
                let cause = std::error::Error::source(&error).map(|cause| cause.to_string());
                Failure::say(
                    ExitCode::Config,
                    format!(
                        "the connection string is not valid: {}",
                        cause.unwrap_or_default()
                    ),
                )
            })?,
            None => Config::new(),
        };
        fill_from_environment(&mut config)?;
        if let Some(limit) = connect_timeout {
            config.connect_timeout(limit);
        }
        Ok(Settings { config })
    }

    /// How long connecting may take, in all.
    pub fn connect_timeout(&self) -> Option<Duration> {
        self.config.get_connect_timeout().copied()
    }

    /// Connects, as this `application_name`.
    ///
    /// # Errors
    /// Says where it tried to connect, and why it failed.
    pub fn open(&self, application_name: &str) -> Result<Connection, Failure> {
        let mut config = self.config.clone();
        config.application_name(application_name);
        let before = open_descriptors();
        let client = config.connect(NoTls).map_err(|error| {
            failure(error).context(format!("cannot connect to {}", self.address()))
        })?;
        let socket = new_socket(&before);
        let canceller = Canceller(client.cancel_token());
        Ok(Connection {
            client,
            socket,
            canceller,
        })
    }

    /// The address, for people.
    pub fn address(&self) -> String {
        let hosts = self.config.get_hosts().iter().enumerate().map(|(n, host)| {
            let ports = self.config.get_ports();
            let port = ports
                .get(n)
                .or(ports.first())
                .copied()
                .unwrap_or(DEFAULT_PORT);
            match host {
                Host::Tcp(name) => format!("{name}:{port}"),
                Host::Unix(folder) => format!("{}/.s.PGSQL.{port}", folder.display()),
            }
        });
        hosts.collect::<Vec<_>>().join(", ")
    }
}

const DEFAULT_PORT: u16 = 5432;

/// Fills what the string left open.
fn fill_from_environment(config: &mut Config) -> Result<(), Failure> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    if config.get_ports().is_empty() {
        let port = match variable("PGPORT") {
            Some(port) => port.parse().map_err(|_| {
                Failure::say(
                    ExitCode::Config,
                    format!("PGPORT is {port:?}; a port number is expected"),
                )
            })?,
            None => DEFAULT_PORT,
        };
        config.port(port);
    }
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        let port = config.get_ports()[0];
        let host = variable("PGHOST").unwrap_or_else(|| default_host(port));
        config.host(&host);
    }
    if config.get_user().is_none() {
        let user = match variable("PGUSER") {
            Some(user) => user,
            None => nix::unistd::User::from_uid(nix::unistd::geteuid())
                .ok()
                .flatten()
                .map(|user| user.name)
                .ok_or_else(|| {
                    Failure::say(
                        ExitCode::Config,
                        "no user name given, and this system user has none",
                    )
                })?,
        };
        config.user(&user);
    }
    if config.get_password().is_none()
        && let Some(password) = variable("PGPASSWORD")
    {
        config.password(password);
    }
    if config.get_dbname().is_none() {
        let user = config.get_user().unwrap_or_default().to_owned();
        config.dbname(&variable("PGDATABASE").unwrap_or(user));
    }
    Ok(())
}

/// The folder where a server's socket is.
fn default_host(port: u16) -> String {
    let has_socket = |folder: &&str| {
        std::path::Path::new(folder)
            .join(format!(".s.PGSQL.{port}"))
            .exists()
    };
    SOCKET_FOLDERS
        .into_iter()
        .find(has_socket)
        .unwrap_or(SOCKET_FOLDERS[0])
        .to_owned()
}

/// What kind of failure an error of the client library is.
pub fn failure(error: postgres::Error) -> Failure {
    // The library finds this out by itself, and calls it a wrong configuration.
    let cause = std::error::Error::source(&error).map(|cause| cause.to_string());
    if cause.as_deref() == Some("password missing") {
        let words = "the server asks for a password, and none is given";
        return Failure::say(ExitCode::Permission, words);
    }
    let code = error.code().cloned();
    let class = code.as_ref().map(|code| code.code()[..2].to_owned());
    let kind = match (code, class.as_deref()) {
        (Some(SqlState::INSUFFICIENT_PRIVILEGE), _) | (_, Some("28")) => ExitCode::Permission,
        (_, Some("3D")) => ExitCode::Config,
        _ => ExitCode::Unavailable,
    };
    // What the server says is enough where it says something; the rest is the library's framing.
    match error.as_db_error() {
        Some(db) => Failure::say(kind, db.message()),
        None => Failure::new(kind, error),
    }
}

/// The descriptors that are open now.
fn open_descriptors() -> HashSet<RawFd> {
    let Ok(entries) = std::fs::read_dir("/dev/fd") else {
        return HashSet::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

/// A duplicate of the one connected stream socket that was not open before: the client library does not tell.
///
/// Looking at what is new, and not only at who is at the other end, matters to a pglock inside the job of another:
/// it has inherited the outer one's socket. Numbered high, since scripts use 3 to 9 and bash 255 for themselves.
fn new_socket(before: &HashSet<RawFd>) -> Option<OwnedFd> {
    let mut new = open_descriptors()
        .into_iter()
        .filter(|fd| !before.contains(fd) && getpeername::<SockaddrStorage>(*fd).is_ok());
    let (Some(fd), None) = (new.next(), new.next()) else {
        return None;
    };
    [512, 256, 10]
        .into_iter()
        .find_map(|lowest| sys::duplicate_from(fd, lowest).ok())
}
