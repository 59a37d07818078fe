//! A PgBouncer in front of a test's server, in the server's socket directory and on a free port.
//!
//! Like the server, it always ends with the test: the shell that started it kills it when the pipe from the test
//! process closes.

use super::network::Host;
use super::pglock::Pglock;
use super::server::{SUPERUSER, Server, free_port, rows};
use super::wait::{SOON, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres::{Client, NoTls, SimpleQueryMessage};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

/// A running PgBouncer, killed on drop.
pub struct PgBouncer<'a> {
    server: &'a Server,
    port: u16,
    pid: Pid,
    keeper: Child,
}

impl PgBouncer<'_> {
    /// Starts one in front of this server, with settings such as `pool_mode=session`.
    pub fn with<'a>(server: &'a Server, settings: &[&str]) -> PgBouncer<'a> {
        PgBouncer::make(server, None, settings)
    }

    /// Starts one on a host of a test's network.
    pub fn on<'a>(host: &Host, server: &'a Server, settings: &[&str]) -> PgBouncer<'a> {
        PgBouncer::make(server, Some(host), settings)
    }

    /// Starts one on a host of a test's network, if one is given. It can be reached from here too.
    pub fn make<'a>(server: &'a Server, host: Option<&Host>, settings: &[&str]) -> PgBouncer<'a> {
        // Another program may have taken the port since it was found free.
        (0..10)
            .find_map(|_| PgBouncer::launch(server, host, free_port(), settings))
            .expect("PgBouncer starts")
    }

    fn launch<'a>(server: &'a Server, host: Option<&Host>, port: u16, settings: &[&str]) -> Option<PgBouncer<'a>> {
        let directory = server.directory();
        let file = |what: &str| directory.join(format!("pgbouncer-{port}.{what}"));
        fs::write(file("users"), format!("\"{SUPERUSER}\" \"\"\n")).unwrap();
        let mut text = format!(
            "[databases]\n* = host={} port={}\n[pgbouncer]\nlisten_addr={}\nlisten_port={port}\n\
             unix_socket_dir={}\nauth_type=trust\nauth_file={}\nadmin_users={SUPERUSER}\n\
             default_pool_size=5\nmax_client_conn=5000\n",
            server.address(),
            server.port(),
            host.map_or("127.0.0.1", Host::address),
            server.host(),
            file("users").display(),
        );
        for setting in settings {
            text += &format!("{setting}\n");
        }
        fs::write(file("ini"), text).unwrap();
        const KEEPER: &str = "ulimit -n 16384 2>/dev/null; \"$1\" \"$2\" >\"$3\" 2>&1 </dev/null & echo $!; \
             trap '' HUP INT QUIT TERM; read -r _; kill -KILL $! 2>/dev/null";
        let mut keeper = match host {
            None => server.command("sh"),
            Some(host) => server.command_on(host, "sh"),
        };
        keeper.args(["-c", KEEPER, "keeper"]);
        keeper.arg(program()).arg(file("ini")).arg(file("log"));
        keeper.process_group(0).stdin(Stdio::piped());
        let mut keeper = keeper.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(keeper.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        let bouncer = PgBouncer {
            server,
            port,
            pid: Pid::from_raw(line.trim().parse().unwrap()),
            keeper,
        };
        let mut log = String::new();
        let ready = until(SOON, || {
            log = fs::read_to_string(file("log")).unwrap_or_default();
            log.contains("process up") || log.contains("FATAL")
        });
        assert!(ready, "{log}");
        (!log.contains("FATAL")).then_some(bouncer)
    }

    /// Returns `pglock run --key KEY` through the pooler; options and the command follow.
    pub fn run(&self, key: &str) -> Pglock {
        self.server.run(key).env("PGPORT", self.port.to_string())
    }

    /// Starts one on the port of another, which was killed.
    pub fn again(self, settings: &[&str]) -> Self {
        let (server, port) = (self.server, self.port);
        drop(self);
        let _ = fs::remove_file(server.directory().join(format!("pgbouncer-{port}.log")));
        PgBouncer::launch(server, None, port, settings).expect("PgBouncer starts again")
    }

    /// Points it to another server, for the next session of the pool that is lent.
    pub fn point_to(&self, server: &Server) {
        let file = self.server.directory().join(format!("pgbouncer-{}.ini", self.port));
        let text = fs::read_to_string(&file).unwrap();
        let target = |server: &Server| format!("host={} port={}\n", server.address(), server.port());
        let changed = text.replace(&target(self.server), &target(server));
        assert_ne!(changed, text);
        fs::write(&file, changed).unwrap();
        self.admin("RELOAD");
        self.admin("RECONNECT");
    }

    /// Returns its port, over TCP and of its socket.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the path of its socket.
    pub fn socket(&self) -> PathBuf {
        Path::new(self.server.host()).join(format!(".s.PGSQL.{}", self.port))
    }

    /// Returns a pglock that connects through the pooler.
    pub fn pglock(&self) -> Pglock {
        self.server.pglock().env("PGPORT", self.port.to_string())
    }

    /// Opens a session through the pool of this database.
    pub fn client_in(&self, database: &str) -> Client {
        let mut config = postgres::Config::new();
        config.host(self.server.host()).port(self.port);
        config.user(SUPERUSER).dbname(database);
        config.connect(NoTls).unwrap()
    }

    /// Returns the rows of a command on the admin console.
    pub fn admin(&self, command: &str) -> Vec<Vec<String>> {
        rows(&mut self.client_in("pgbouncer"), command)
    }

    /// Returns a column of `SHOW POOLS` for this database.
    pub fn pool(&self, database: &str, column: &str) -> usize {
        self.column("SHOW POOLS", database, column)
    }

    /// Returns a column of `SHOW STATS` for this database.
    pub fn stats(&self, database: &str, column: &str) -> usize {
        self.column("SHOW STATS", database, column)
    }

    fn column(&self, command: &str, database: &str, column: &str) -> usize {
        let messages = self.client_in("pgbouncer").simple_query(command).unwrap();
        let value = messages.into_iter().find_map(|message| match message {
            SimpleQueryMessage::Row(pool) if pool.get("database") == Some(database) => {
                Some(pool.get(column).unwrap().parse().unwrap())
            }
            _ => None,
        });
        value.unwrap_or_else(|| panic!("{command}: no {database}"))
    }

    /// Returns its process id.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Kills it, as a crash would.
    pub fn kill(&self) {
        kill(self.pid, Signal::SIGKILL).unwrap();
    }
}

impl Drop for PgBouncer<'_> {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// Returns the program, which Debian keeps in a directory that is not on an ordinary user's `PATH`.
fn program() -> PathBuf {
    let usual = Path::new("/usr/sbin/pgbouncer");
    if usual.exists() {
        usual.to_owned()
    } else {
        "pgbouncer".into()
    }
}
