//! Where it happens: the hosts, a server with its standby, and a pooler, which come and go.
//!
//! Where network namespaces are to be had, the server, the standby and the clients are on hosts of their own; otherwise
//! all are here, and no cable can be pulled.

use super::support::network::{Host, Network};
use super::support::pgbouncer::PgBouncer;
use super::support::server::{SUPERUSER, Server};
use super::support::wait::{SOON, eventually};
use std::sync::{Mutex, RwLock};

/// Hosts on which pglocks run.
pub const HOSTS: usize = 3;
/// What the servers can bear.
const SETTINGS: [&str; 4] = [
    "max_connections=40",
    // The delays of a slow disk, `commit_delay`, need it.
    "fsync=on",
    "commit_siblings=0",
    "deadlock_timeout=200ms",
];

pub struct World {
    network: Option<Network>,
    clients: Vec<Host>,
    servers: Vec<Host>,
    /// Each server lives until the end, for whoever still looks at it.
    made: Mutex<Vec<&'static Server>>,
    now: RwLock<Now>,
}

/// Who is who at the moment.
struct Now {
    primary: &'static Server,
    standby: &'static Server,
    pooler: PgBouncer<'static>,
    /// Which of the hosts the primary is on.
    place: usize,
}

impl World {
    pub fn new() -> World {
        let mut network = Network::new();
        let mut hosts = |count| -> Vec<Host> {
            let made = network
                .as_mut()
                .map(|network| (0..count).map(|_| network.host()).collect());
            made.unwrap_or_default()
        };
        let (servers, clients) = (hosts(2), hosts(HOSTS));
        let primary = leak(Server::make(&SETTINGS, servers.first(), None));
        let standby = leak(Server::make(&SETTINGS, servers.get(1), Some(primary)));
        let pooler = pooler(primary, servers.first());
        World {
            network,
            clients,
            servers,
            made: Mutex::new(vec![primary, standby]),
            now: RwLock::new(Now {
                primary,
                standby,
                pooler,
                place: 0,
            }),
        }
    }

    pub fn primary(&self) -> &'static Server {
        self.now.read().unwrap().primary
    }

    /// How a client reaches whichever server can be written to, or the pooler.
    pub fn dsn(&self, pooled: bool) -> String {
        let now = self.now.read().unwrap();
        let (hosts, ports) = match pooled {
            true => (
                now.primary.address().to_owned(),
                now.pooler.port().to_string(),
            ),
            false => (
                format!("{},{}", now.primary.address(), now.standby.address()),
                format!("{},{}", now.primary.port(), now.standby.port()),
            ),
        };
        format!(
            "host={hosts} port={ports} user={SUPERUSER} dbname=postgres sslmode=disable \
             target_session_attrs={}",
            if pooled { "any" } else { "read-write" }
        )
    }

    /// The words in front of a command that runs it on a host of the clients'.
    pub fn entrance(&self, host: usize) -> Vec<String> {
        let Some(host) = self.clients.get(host) else {
            return vec!["env".into()];
        };
        let mut words = vec!["nsenter".to_owned()];
        words.extend(host.entrance());
        words.push("--".into());
        words
    }

    pub fn has_cables(&self) -> bool {
        self.network.is_some()
    }

    pub fn cut(&self, host: usize) {
        let network = self.network.as_ref().expect("a network");
        network.cut(&self.clients[host]);
    }

    pub fn heal(&self, host: usize) {
        let network = self.network.as_ref().expect("a network");
        network.heal(&self.clients[host]);
    }

    /// The standby becomes the primary, and the next standby is made of it.
    pub fn fail_over(&self) {
        let mut now = self.now.write().unwrap();
        now.primary.stop_immediate();
        now.standby.promote();
        now.place = 1 - now.place;
        now.primary = now.standby;
        now.pooler = pooler(now.primary, self.servers.get(now.place));
        let next = self.servers.get(1 - now.place);
        now.standby = leak(Server::make(&SETTINGS, next, Some(now.primary)));
        self.made.lock().unwrap().push(now.standby);
    }

    pub fn crash(&self) {
        let now = self.now.write().unwrap();
        now.primary.restart();
    }

    pub fn replace_pooler(&self) {
        let mut now = self.now.write().unwrap();
        now.pooler.kill();
        now.pooler = pooler(now.primary, self.servers.get(now.place));
    }

    pub fn reconnect_pooler(&self) {
        let now = self.now.read().unwrap();
        now.pooler.admin("RECONNECT");
    }

    /// Ends everything; nothing of ours is left on the server by then.
    pub fn end(self) -> Vec<String> {
        let mut left = Vec::new();
        let now = self.now.into_inner().unwrap();
        let none =
            |sql: &str| super::support::wait::until(SOON * 2, || now.primary.sql(sql).is_empty());
        let locks = "SELECT pid, classid, objid, granted FROM pg_locks WHERE locktype = 'advisory'";
        if !none(locks) {
            left.push(format!("locks are left: {:?}", now.primary.sql(locks)));
        }
        drop(now.pooler);
        let sessions = "SELECT pid, application_name, state FROM pg_stat_activity WHERE application_name LIKE 'pglock%'";
        if !none(sessions) {
            left.push(format!(
                "sessions are left: {:?}",
                now.primary.sql(sessions)
            ));
        }
        self.made
            .into_inner()
            .unwrap()
            .iter()
            .for_each(|server| server.stop_immediate());
        left
    }
}

/// It is stopped by [`World::end`], and removed with the test process.
fn leak(server: Server) -> &'static Server {
    Box::leak(Box::new(server))
}

/// One that resets what it hands out as roughly as it can.
fn pooler(server: &'static Server, host: Option<&Host>) -> PgBouncer<'static> {
    let settings = [
        "pool_mode=transaction",
        "default_pool_size=15",
        "server_login_retry=1",
        "server_reset_query=DISCARD ALL",
        "server_reset_query_always=1",
    ];
    let pooler = PgBouncer::make(server, host, &settings);
    eventually(SOON, "the pooler", || {
        pooler.admin("SHOW VERSION").len() == 1
    });
    pooler
}
