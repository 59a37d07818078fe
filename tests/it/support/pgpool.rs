//! A Pgpool-II in front of a test's servers, on a free port of 127.0.0.1, with its files beside the first server's.
//!
//! Like the servers, it always ends with the test: the shell that started it stops it when the pipe from the test
//! process closes.

use super::pglock::Pglock;
use super::server::{SUPERUSER, Server, free_port, rows, unprivileged};
use super::wait::{SOON, eventually, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres::{Client, NoTls};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

/// A running Pgpool-II, stopped on drop.
pub struct Pgpool<'a> {
    primary: &'a Server,
    port: u16,
    pcp_port: u16,
    pid: Pid,
    keeper: Child,
}

/// The password for `pcp_detach_node` and its like, and its MD5.
const PCP_PASSWORD: (&str, &str) = ("secret", "5ebe2294ecd0e0f08eab7690d2a6ee69");

impl Pgpool<'_> {
    /// Starts one that does nothing but forward to this server (`raw`).
    pub fn raw(server: &Server) -> Pgpool<'_> {
        Pgpool::with(&[server], "backend_clustering_mode = 'raw'\n")
    }

    /// Starts one that balances the load of a primary and its standby.
    pub fn balancing<'a>(primary: &'a Server, standby: &'a Server) -> Pgpool<'a> {
        let pgpool = Pgpool::with(
            &[primary, standby],
            "backend_clustering_mode = 'streaming_replication'\nload_balance_mode = on\n\
             statement_level_load_balance = on\nsr_check_period = 1\n",
        );
        eventually(SOON, "a primary and a standby", || {
            let roles: Vec<_> = pgpool
                .nodes()
                .iter()
                .map(|node| (node[3].clone(), node[6].clone()))
                .collect();
            roles == [("up", "primary"), ("up", "standby")].map(|(up, role)| (up.to_owned(), role.to_owned()))
        });
        pgpool
    }

    fn with<'a>(servers: &[&'a Server], settings: &str) -> Pgpool<'a> {
        let primary = servers[0];
        // Another program may have taken a port since it was found free.
        (0..10)
            .find_map(|_| {
                let (port, pcp_port) = (free_port(), free_port());
                let file = |what: &str| file(primary, port, what);
                let mut text = format!(
                    "listen_addresses = '127.0.0.1'\nport = {port}\nsocket_dir = '{0}'\n\
                     pcp_listen_addresses = '127.0.0.1'\npcp_port = {pcp_port}\npcp_socket_dir = '{0}'\n\
                     pid_file_name = '{1}'\nlogdir = '{0}'\npool_passwd = ''\nnum_init_children = 12\n\
                     sr_check_user = '{SUPERUSER}'\nsearch_primary_node_timeout = 1\n\
                     failover_on_backend_shutdown = off\n{settings}",
                    primary.host(),
                    file("pid").display(),
                );
                for (index, server) in servers.iter().enumerate() {
                    // All queries that are balanced go to the last one.
                    text += &format!(
                        "backend_hostname{index} = '{}'\nbackend_port{index} = {}\nbackend_weight{index} = {index}\n\
                         backend_flag{index} = 'ALLOW_TO_FAILOVER'\n",
                        server.host(),
                        server.port(),
                    );
                }
                fs::write(file("conf"), text).unwrap();
                fs::write(file("hba"), "").unwrap();
                fs::write(file("pcp"), format!("{SUPERUSER}:{}\n", PCP_PASSWORD.1)).unwrap();
                Pgpool::launch(primary, port, pcp_port)
            })
            .expect("Pgpool-II starts")
    }

    fn launch(primary: &Server, port: u16, pcp_port: u16) -> Option<Pgpool<'_>> {
        const KEEPER: &str = "\"$1\" -n -f \"$2.conf\" -a \"$2.hba\" -F \"$2.pcp\" >\"$2.log\" 2>&1 </dev/null & \
             echo $!; trap '' HUP INT QUIT TERM; read -r _; kill -INT $! 2>/dev/null; wait";
        let file = |what: &str| file(primary, port, what);
        let mut keeper = primary.command("sh");
        keeper.args(["-c", KEEPER, "keeper"]);
        keeper.arg(program("pgpool")).arg(file("conf").with_extension(""));
        keeper.process_group(0).stdin(Stdio::piped());
        let mut keeper = keeper.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(keeper.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        let pgpool = Pgpool {
            primary,
            port,
            pcp_port,
            pid: Pid::from_raw(line.trim().parse().unwrap()),
            keeper,
        };
        let mut log = String::new();
        let is_ready = until(SOON, || {
            log = fs::read_to_string(file("log")).unwrap_or_default();
            log.contains("FATAL") || pgpool.config().connect(NoTls).is_ok()
        });
        assert!(is_ready, "{log}");
        (!log.contains("FATAL")).then_some(pgpool)
    }

    fn config(&self) -> postgres::Config {
        let mut config = postgres::Config::new();
        config.host("127.0.0.1").port(self.port).user(SUPERUSER);
        config
    }

    /// Opens a session through it.
    pub fn client(&self) -> Client {
        self.config().connect(NoTls).unwrap()
    }

    /// Returns a pglock that connects through it.
    pub fn pglock(&self) -> Pglock {
        let port = self.port.to_string();
        self.primary.pglock().env("PGHOST", "127.0.0.1").env("PGPORT", port)
    }

    /// Returns `pglock run --key KEY` through it; options and the command follow.
    pub fn run(&self, key: &str) -> Pglock {
        self.pglock().args(["run", "--key", key])
    }

    /// Returns the rows of `SHOW pool_nodes`: the fourth column is the status, the seventh the role.
    pub fn nodes(&self) -> Vec<Vec<String>> {
        rows(&mut self.client(), "SHOW pool_nodes")
    }

    /// Detaches a node, as an administrator does, and waits until it counts as down.
    pub fn detach(&self, node: usize) {
        let passwords = file(self.primary, self.port, "pcppass");
        fs::write(&passwords, format!("*:*:{SUPERUSER}:{}\n", PCP_PASSWORD.0)).unwrap();
        fs::set_permissions(&passwords, fs::Permissions::from_mode(0o600)).unwrap();
        let user = unprivileged().map(|user| user.uid.as_raw());
        chown(&passwords, user, None).unwrap();
        let mut detach = self.primary.command("sh");
        detach.args(["-c", "exec \"$0\" -h 127.0.0.1 -w -U \"$1\" -p \"$2\" -n \"$3\""]);
        detach
            .arg(program("pcp_detach_node"))
            .args([SUPERUSER, &self.pcp_port.to_string(), &node.to_string()]);
        let output = detach.env("PCPPASSFILE", &passwords).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// Stops it as an administrator does (`pgpool -m fast stop`): all sessions end.
    pub fn stop(&self) {
        kill(self.pid, Signal::SIGINT).unwrap();
    }

    /// Starts it again after [`Pgpool::stop`], on the same port.
    pub fn start_again(mut self) -> Self {
        let (primary, port, pcp_port) = (self.primary, self.port, self.pcp_port);
        drop(self.keeper.stdin.take());
        self.keeper.wait().unwrap();
        drop(self);
        fs::remove_file(file(primary, port, "log")).unwrap();
        Pgpool::launch(primary, port, pcp_port).expect("Pgpool-II starts again")
    }
}

impl Drop for Pgpool<'_> {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// Returns one of its files.
fn file(primary: &Server, port: u16, what: &str) -> PathBuf {
    primary.directory().join(format!("pgpool-{port}.{what}"))
}

/// Returns the path of one of its programs, which Debian keeps in a directory that is not on an ordinary user's `PATH`.
fn program(name: &str) -> PathBuf {
    let usual = Path::new("/usr/sbin").join(name);
    if usual.exists() { usual } else { name.into() }
}
