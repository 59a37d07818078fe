//! HAProxy and socat, as programs in front of a test's server, in the server's directory and on free ports.
//!
//! Like the server, they always end with the test: the shell that started one kills its process group when the pipe
//! from the test process closes.

use super::network::Host;
use super::server::Server;
use super::wait::{SOON, until};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};

/// The example that `docs/poolers.md` refers to.
const HAPROXY_EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/haproxy.cfg");

/// The program, which Debian keeps in a directory that is not on an ordinary user's `PATH`.
pub const HAPROXY: &str = "/usr/sbin/haproxy";

/// Returns that example in front of this server, with the times for H = D = G = 1 s: 6 s for the lock. The port of the
/// clients that TCP watches comes first, and then that of those whose silence is limited.
pub fn haproxy_example(target: &str, by_tcp: u16, by_silence: u16) -> String {
    let mut configuration = fs::read_to_string(HAPROXY_EXAMPLE).unwrap();
    for (long, short) in [
        (":5432 tcp-ut 23s", format!(":{by_tcp} tcp-ut 6s")),
        // By default, HAProxy takes 3 s to give a server up that refuses connections.
        ("timeout connect 5s", "timeout connect 5s\n    retries 0".into()),
        ("clitcpka-idle 17s", "clitcpka-idle 3s".into()),
        ("clitcpka-intvl 2s", "clitcpka-intvl 1s".into()),
        (":5433", format!(":{by_silence}")),
        ("client 23s", "client 6s".into()),
        ("server 23s", "server 6s".into()),
        ("192.0.2.10:5432", target.into()),
    ] {
        assert!(configuration.contains(long), "{HAPROXY_EXAMPLE} has no {long}");
        configuration = configuration.replace(long, &short);
    }
    configuration
}

/// A running proxy, killed on drop.
pub struct RealProxy {
    keeper: Child,
}

impl RealProxy {
    /// Starts HAProxy with this configuration on a host of a test's network, or on this one. It is there when it
    /// listens on the port.
    pub fn haproxy(server: &Server, host: Option<&Host>, configuration: &str, port: u16) -> RealProxy {
        let file = server.directory().join(format!("haproxy-{port}.cfg"));
        fs::write(&file, configuration).unwrap();
        let file = file.to_str().unwrap();
        RealProxy::start(server, host, &[HAPROXY, "-db", "-f", file], port)
    }

    /// Starts socat, which forwards a port on a host of a test's network, or on this one, to the server's Unix socket.
    /// `options` precede the addresses, as `-T23` does.
    pub fn socat(server: &Server, host: Option<&Host>, options: &[&str], port: u16) -> RealProxy {
        let listen = format!("TCP-LISTEN:{port},fork,reuseaddr");
        let socket = format!("UNIX-CONNECT:{}/.s.PGSQL.{}", server.host(), server.port());
        let command = [&["socat"], options, &[&listen, &socket]].concat();
        RealProxy::start(server, host, &command, port)
    }

    fn start(server: &Server, host: Option<&Host>, command: &[&str], port: u16) -> RealProxy {
        const KEEPER: &str = "\"$@\" </dev/null & trap '' HUP INT QUIT TERM USR1; read -r _; kill -KILL 0";
        let log = server.directory().join(format!("proxy-{port}.log"));
        let file = fs::File::create(&log).unwrap();
        let mut keeper = match host {
            None => server.command("sh"),
            Some(host) => server.command_on(host, "sh"),
        };
        keeper.args(["-c", KEEPER, "keeper"]).args(command);
        keeper.process_group(0).stdin(Stdio::piped());
        keeper.stdout(file.try_clone().unwrap()).stderr(file);
        let mut proxy = RealProxy {
            keeper: keeper.spawn().unwrap(),
        };
        let listens = until(SOON, || proxy.listens_on(port));
        assert!(listens, "{command:?}: {}", fs::read_to_string(&log).unwrap());
        proxy
    }

    /// Returns whether the proxy listens on the port. One that was killed just before may still have its socket.
    pub fn listens_on(&mut self, port: u16) -> bool {
        assert!(self.keeper.try_wait().unwrap().is_none(), "the proxy has ended");
        let keeper = self.keeper.id();
        let read = |file: String| fs::read_to_string(file).unwrap_or_default();
        let sockets = read(format!("/proc/{keeper}/net/tcp"));
        let listener = format!(":{port:04X} 00000000:0000 0A ");
        let mut listeners = sockets.lines().filter(|line| line.contains(&listener));
        let children = read(format!("/proc/{keeper}/task/{keeper}/children"));
        let own: Vec<PathBuf> = children.split_whitespace().flat_map(descriptors).collect();
        listeners.any(|line| {
            let inode = line.split_whitespace().nth(9).unwrap_or_default();
            own.contains(&PathBuf::from(format!("socket:[{inode}]")))
        })
    }

    /// Sends a signal to the proxy, and to all processes that it has started.
    pub fn signal(&self, signal: Signal) {
        killpg(Pid::from_raw(self.keeper.id() as i32), signal).unwrap();
    }

    /// Kills it, as a crash would.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if self.keeper.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.signal(Signal::SIGKILL);
            let _ = self.keeper.wait();
        }
    }
}

/// Returns what the descriptors of a process refer to.
fn descriptors(pid: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|entry| fs::read_link(entry.path()).ok()).collect()
}

impl Drop for RealProxy {
    fn drop(&mut self) {
        self.end();
    }
}
