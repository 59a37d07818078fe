//! The world of a run: the hosts, a server with its standby, the poolers, and a proxy.
//!
//! If network namespaces are permitted, the server, the standby, the proxy and the clients are on hosts of their own;
//! otherwise everything is on this one, and no cable can be pulled. PgDog and the pooler that forwards are reached by a
//! Unix socket, on which no cable has an effect.

use super::request::Road;
use super::support::command::command;
use super::support::forwarder::Forwarder;
use super::support::network::{Host, Network};
use super::support::pgbouncer::PgBouncer;
use super::support::pgdog::PgDog;
use super::support::real_proxy::{RealProxy, haproxy_example};
use super::support::server::{Data, SUPERUSER, Server, free_port};
use super::support::wait::{SOON, eventually, until};
use postgres::{Client, Config, NoTls, SimpleQueryMessage};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, RwLock};
use tempfile::TempDir;

/// The number of hosts on which pglocks run.
pub const HOSTS: usize = 3;
/// The settings of the servers.
const SETTINGS: [&str; 4] = [
    // For a hundred workers, the pool, and guards beside the sessions that they replace.
    "max_connections=200",
    // Needed by `commit_delay`, which simulates a slow disk.
    "fsync=on",
    "commit_siblings=0",
    "deadlock_timeout=200ms",
];

pub struct World {
    /// Whether the pooler resets each session that it lends.
    resets_sessions: bool,
    network: Option<Network>,
    clients: Vec<Host>,
    servers: Vec<Host>,
    proxy_host: Option<Host>,
    proxy_port: u16,
    /// HAProxy, while it runs.
    proxy: Mutex<Option<RealProxy>>,
    pgdog: PgDog,
    /// The socket of the pooler behind PgDog.
    pooler_socket: Arc<Mutex<PathBuf>>,
    /// The directory of the forwarding pooler's socket, and that of PgDog's.
    forwarder_directory: TempDir,
    _pgdog_directory: TempDir,
    /// All servers that were ever started.
    made: Mutex<Vec<&'static Server>>,
    now: RwLock<Now>,
    /// Held during a change, so that there is one at a time; connecting does not need it.
    change: Mutex<()>,
}

/// The current roles.
#[derive(Clone)]
struct Now {
    primary: &'static Server,
    standby: &'static Server,
    pooler: Arc<PgBouncer<'static>>,
    forwarder: Arc<Forwarder>,
    /// The number of the primary's host.
    primary_host: usize,
}

impl World {
    /// Starts everything. A pooler that resets each session has no locks left in it.
    pub fn new(resets_sessions: bool) -> World {
        let mut network = Network::new();
        let mut hosts = |count| -> Vec<Host> {
            let made = network
                .as_mut()
                .map(|network| (0..count).map(|_| network.host()).collect());
            made.unwrap_or_default()
        };
        let (servers, clients) = (hosts(2), hosts(HOSTS));
        let proxy_host = hosts(1).pop();
        let primary = leak(Server::make(&SETTINGS, servers.first(), Data::New));
        let init = command(env!("CARGO_BIN_EXE_pglock"))
            .arg("init")
            .env("PGLOCK_DSN", admin_dsn(primary))
            .output();
        assert!(init.as_ref().is_ok_and(|init| init.status.success()), "{init:?}");
        let standby = standby_of(primary, servers.get(1));
        let pooler = pooler(primary, servers.first(), resets_sessions);
        let [forwarder_directory, pgdog_directory] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let forwarder = forwarder(primary, &forwarder_directory);
        let pooler_socket = Arc::new(Mutex::new(pooler.socket()));
        let socket = Arc::clone(&pooler_socket);
        let pgdog = PgDog::start(pgdog_directory.path(), move || socket.lock().unwrap().clone(), |_| ());
        let world = World {
            resets_sessions,
            network,
            clients,
            servers,
            proxy_host,
            proxy_port: free_port(),
            proxy: Mutex::default(),
            pgdog,
            pooler_socket,
            forwarder_directory,
            _pgdog_directory: pgdog_directory,
            made: Mutex::new(vec![primary, standby]),
            now: RwLock::new(Now {
                primary,
                standby,
                pooler,
                forwarder,
                primary_host: 0,
            }),
            change: Mutex::new(()),
        };
        world.start_proxy(primary);
        world
    }

    fn now(&self) -> Now {
        self.now.read().unwrap().clone()
    }

    pub fn primary(&self) -> &'static Server {
        self.now().primary
    }

    /// Returns the versions of all programs.
    pub fn versions(&self) -> String {
        let now = self.now();
        let pglock = env!("CARGO_PKG_VERSION");
        let server = now.primary.value("SHOW server_version");
        let pooler = now.pooler.admin("SHOW VERSION").concat().concat();
        format!("pglock {pglock}, PostgreSQL {server}, {pooler}")
    }

    /// Returns a connection string for the current primary, directly or through a pooler.
    pub fn dsn(&self, road: Road) -> String {
        let now = self.now();
        let (hosts, ports, attrs) = match road {
            Road::Direct => (
                format!("{},{}", now.primary.address(), now.standby.address()),
                format!("{},{}", now.primary.port(), now.standby.port()),
                "read-write",
            ),
            Road::Pooler => (now.primary.address().to_owned(), now.pooler.port().to_string(), "any"),
            Road::PgDog => return self.pgdog.dsn(),
            Road::Proxy => {
                let address = self.proxy_host.as_ref().map_or("127.0.0.1", Host::address);
                (address.to_owned(), self.proxy_port.to_string(), "read-write")
            }
            Road::Forwarder => return now.forwarder.dsn(),
        };
        format!(
            "host={hosts} port={ports} user={SUPERUSER} dbname=postgres sslmode=disable \
             target_session_attrs={attrs}"
        )
    }

    /// Moves the calling thread to a client's host, with the programs that it starts from now on.
    pub fn enter(&self, host: usize) {
        if let Some(host) = self.clients.get(host) {
            enter(&host.namespace());
        }
    }

    pub fn has_cables(&self) -> bool {
        self.network.is_some()
    }

    /// Pulls the cable of a client's host, or that of the primary, for a while.
    pub fn cut(&self, client: Option<usize>, meanwhile: impl FnOnce()) {
        let network = self.network.as_ref().expect("a network");
        let host = self.host(client);
        network.cut(host);
        meanwhile();
        network.heal(host);
    }

    /// Makes the line of a client's host slow for a while. Returns whether the system can.
    pub fn slow_down(&self, client: usize, meanwhile: impl FnOnce()) -> bool {
        let network = self.network.as_ref().expect("a network");
        let host = self.host(Some(client));
        let is_slow = network.slow_down(host);
        if is_slow {
            meanwhile();
        }
        network.speed_up(host);
        is_slow
    }

    fn host(&self, client: Option<usize>) -> &Host {
        match client {
            Some(number) => &self.clients[number],
            None => &self.servers[self.now().primary_host],
        }
    }

    /// Stops the primary as a crash does, promotes the standby, and makes the next standby from it.
    pub fn fail_over(&self, promoted: impl FnOnce()) {
        let _change = self.change.lock().unwrap();
        let mut now = self.now();
        let old = now.primary;
        old.stop_immediate();
        self.promote_standby(&mut now);
        promoted();
        let next = self.servers.get(1 - now.primary_host);
        now.standby = standby_of(now.primary, next);
        self.made.lock().unwrap().push(now.standby);
        *self.now.write().unwrap() = now;
        // It is not started again, and there will be many.
        let _ = fs::remove_dir_all(old.directory().join("data"));
    }

    /// Stops the primary when the standby has everything, and has them change their roles. Returns whether the standby
    /// was there.
    pub fn switch_over(&self) -> bool {
        let _change = self.change.lock().unwrap();
        let mut now = self.now();
        let streaming = "SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'";
        if !until(SOON, || self.query(streaming).is_some_and(|rows| !rows.is_empty())) {
            return false;
        }
        let old = now.primary;
        old.stop_fast();
        let end = last_checkpoint(old);
        eventually(SOON, "a standby that has everything", || {
            now.standby
                .value(&format!("SELECT pg_last_wal_receive_lsn() > '{end}'"))
                == "t"
        });
        self.promote_standby(&mut now);
        old.follow(now.primary);
        old.restart();
        true
    }

    /// Promotes the standby, while the old primary is stopped, and has everything find it. The proxy leads to it
    /// already before, so that those behind it do not come later than others.
    fn promote_standby(&self, now: &mut Now) {
        self.start_proxy(now.standby);
        now.standby.promote();
        now.primary_host = 1 - now.primary_host;
        std::mem::swap(&mut now.primary, &mut now.standby);
        now.pooler = self.pooler(now);
        now.forwarder.kill();
        now.forwarder = forwarder(now.primary, &self.forwarder_directory);
        *self.now.write().unwrap() = now.clone();
    }

    pub fn crash(&self) {
        let _change = self.change.lock().unwrap();
        self.primary().restart();
    }

    /// Stops the primary as `pg_ctl stop -m fast` does, and starts it again. Nothing else changes it from what is done
    /// before that to what is done after it.
    pub fn restart(&self, before: impl FnOnce(), after: impl FnOnce()) {
        let _change = self.change.lock().unwrap();
        before();
        let primary = self.primary();
        primary.stop_fast();
        primary.restart();
        after();
    }

    /// Has this crash the primary and wait until it has recovered, while nothing else changes it: a fast stop during a
    /// recovery from a crash makes PostgreSQL 15 hang.
    pub fn crash_by(&self, crash: impl FnOnce(&'static Server) -> Option<()>) -> Option<()> {
        let _change = self.change.lock().unwrap();
        crash(self.primary())
    }

    /// Kills the pooler, and starts another one.
    pub fn replace_pooler(&self) {
        let _change = self.change.lock().unwrap();
        let mut now = self.now();
        now.pooler.kill();
        now.pooler = self.pooler(&now);
        *self.now.write().unwrap() = now;
    }

    /// Kills HAProxy, and starts another one in its place.
    pub fn replace_proxy(&self) {
        let _change = self.change.lock().unwrap();
        self.start_proxy(self.primary());
    }

    /// Starts HAProxy in front of this server, after the one that may run is killed.
    fn start_proxy(&self, server: &Server) {
        let mut proxy = self.proxy.lock().unwrap();
        *proxy = None;
        let (target, keeper) = (format!("{}:{}", server.address(), server.port()), self.first_server());
        let control = format!("maxconn 1000\n    stats socket {} level admin", self.proxy_control());
        let unused = free_port();
        let configuration = haproxy_example(&target, self.proxy_port, unused).replace("maxconn 1000", &control);
        let started = RealProxy::haproxy(keeper, self.proxy_host.as_ref(), &configuration, self.proxy_port);
        *proxy = Some(started);
    }

    /// Has HAProxy close all connections.
    pub fn cut_proxy(&self) {
        let _change = self.change.lock().unwrap();
        let mut control = None;
        eventually(SOON, "HAProxy's socket for commands", || {
            control = UnixStream::connect(self.proxy_control()).ok();
            control.is_some()
        });
        let mut control = control.unwrap();
        control
            .write_all(b"shutdown sessions server postgresql/primary\n")
            .unwrap();
        let mut reply = String::new();
        control.read_to_string(&mut reply).unwrap();
        assert_eq!(reply.trim(), "");
    }

    /// Returns the socket of HAProxy for commands, in the directory of its configuration.
    fn proxy_control(&self) -> String {
        format!("{}/haproxy", self.first_server().host())
    }

    fn first_server(&self) -> &'static Server {
        self.made.lock().unwrap()[0]
    }

    /// Kills the forwarding pooler, and starts another one in its place.
    pub fn replace_forwarder(&self) {
        let _change = self.change.lock().unwrap();
        let mut now = self.now();
        now.forwarder.kill();
        now.forwarder = forwarder(now.primary, &self.forwarder_directory);
        *self.now.write().unwrap() = now;
    }

    fn pooler(&self, now: &Now) -> Arc<PgBouncer<'static>> {
        let pooler = pooler(now.primary, self.servers.get(now.primary_host), self.resets_sessions);
        *self.pooler_socket.lock().unwrap() = pooler.socket();
        pooler
    }

    /// Returns the rows of a query to the primary over its socket; `None` if the server is not available.
    pub fn query(&self, sql: &str) -> Option<Vec<Vec<String>>> {
        let mut client = self.primary().config().connect(NoTls).ok()?;
        let messages = client.simple_query(sql).ok()?;
        let rows = messages.into_iter().filter_map(|message| {
            let SimpleQueryMessage::Row(row) = message else {
                return None;
            };
            let values = (0..row.len()).map(|index| row.get(index).unwrap_or_default().to_owned());
            Some(values.collect())
        });
        Some(rows.collect())
    }

    /// Connects through the pooler, if that is possible at once.
    pub fn pool_client(&self) -> Option<Client> {
        let now = self.now();
        let mut config = Config::new();
        config.host(now.primary.host()).port(now.pooler.port());
        config.user(SUPERUSER).dbname("postgres").connect(NoTls).ok()
    }

    pub fn reconnect_pooler(&self) {
        let _change = self.change.lock().unwrap();
        self.now().pooler.admin("RECONNECT");
    }

    /// Ends everything. Returns what of pglock is left on the server.
    pub fn end(self) -> Vec<String> {
        let now = self.now();
        // The session that it lends has the locks of clients that were killed.
        now.forwarder.kill();
        let mut left = Vec::new();
        let mut none = |what: &str, sql: &str| {
            if !until(SOON * 2, || now.primary.sql(sql).is_empty()) {
                left.push(format!("{what} are left: {:?}", now.primary.sql(sql)));
            }
        };
        none(
            "locks",
            "SELECT pid, classid, objid, granted FROM pg_locks WHERE locktype = 'advisory'",
        );
        // The pooler keeps its sessions, which are no longer pglock's.
        drop(self.now.into_inner());
        now.pooler.kill();
        none(
            "sessions",
            "SELECT pid, application_name, state FROM pg_stat_activity WHERE application_name LIKE 'pglock%'",
        );
        for server in self.made.into_inner().unwrap() {
            server.stop_immediate();
            let _ = fs::remove_dir_all(server.directory().join("data"));
        }
        left
    }
}

/// Returns a connection string for the server's socket.
pub fn admin_dsn(server: &Server) -> String {
    let (host, port) = (server.host(), server.port());
    format!("host={host} port={port} user={SUPERUSER} dbname=postgres")
}

/// Returns where in the WAL the last checkpoint of a server is that is stopped.
fn last_checkpoint(server: &Server) -> String {
    let mut control = server.command("pg_controldata");
    let output = control.arg(server.directory().join("data")).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let place = lines.find_map(|line| line.strip_prefix("Latest checkpoint location:"));
    place.unwrap_or_else(|| panic!("{output:?}")).trim().to_owned()
}

/// Moves the calling thread to a network namespace.
#[cfg(target_os = "linux")]
fn enter(namespace: &str) {
    use nix::sched::{CloneFlags, setns};
    setns(fs::File::open(namespace).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
}

/// Only Linux has network namespaces.
#[cfg(not(target_os = "linux"))]
fn enter(namespace: &str) {
    unreachable!("{namespace}");
}

/// Leaks a server, which [`World::end`] stops and which is removed with the test process: threads may still refer to
/// it.
fn leak(server: Server) -> &'static Server {
    Box::leak(Box::new(server))
}

/// Starts a standby of this primary on the host, with a backup of it. The primary keeps running. It may have no
/// connection left for a moment, or crash.
fn standby_of(primary: &'static Server, host: Option<&Host>) -> &'static Server {
    let port = primary.port().to_string();
    let back_up = |standby: &Server| {
        eventually(SOON, "a backup of the primary", || {
            let mut backup = standby.command("pg_basebackup");
            backup.args(["-h", primary.host(), "-p", &port, "-U", SUPERUSER, "-w"]);
            backup.args(["--checkpoint=fast", "--wal-method=fetch", "--no-sync"]);
            backup.arg("-D").arg(standby.directory().join("data"));
            backup.output().unwrap().status.success()
        });
        standby.follow(primary);
    };
    leak(Server::make(&SETTINGS, host, Data::MadeBy(&back_up)))
}

/// Starts a pooler that lends the session of its first client.
fn forwarder(server: &Server, directory: &TempDir) -> Arc<Forwarder> {
    let directory = directory.path().to_owned();
    Arc::new(Forwarder::make(server, directory, None, true))
}

/// Starts a pooler that resets every session as thoroughly as possible or, as most do, not at all, and that waits for a
/// silent client as long as the server would.
fn pooler(server: &'static Server, host: Option<&Host>, resets_sessions: bool) -> Arc<PgBouncer<'static>> {
    let settings = [
        "pool_mode=transaction",
        "default_pool_size=20",
        "server_login_retry=1",
        "server_reset_query=DISCARD ALL",
        if resets_sessions {
            "server_reset_query_always=1"
        } else {
            "server_reset_query_always=0"
        },
        "tcp_keepidle=3",
        "tcp_keepintvl=1",
        "tcp_keepcnt=3",
        "tcp_user_timeout=6000",
    ];
    let pooler = PgBouncer::make(server, host, &settings);
    eventually(SOON, "the pooler", || pooler.admin("SHOW VERSION").len() == 1);
    Arc::new(pooler)
}
