//! Connections that HAProxy or socat forward: the server watches the proxy, and the proxy decides when the lock of a
//! vanished host is free.
//!
//! The configuration of HAProxy is `examples/haproxy.cfg`, with shorter times.

use crate::support::journal::{Journal, now};
use crate::support::network::{Host, Network};
use crate::support::pglock::{Pglock, Running};
use crate::support::real_proxy::{RealProxy, haproxy_example};
use crate::support::server::{Server, free_port};
use crate::support::unique;
use crate::support::wait::{SOON, eventually, until};
use nix::sys::signal::Signal;
use std::thread;
use std::time::Duration;

/// H = D = G = 1 s, hence 3 s for the job. The proxies have 6 s for the lock, as the server has for a direct
/// connection.
const SHORT_OPTIONS: [&str; 4] = ["--heartbeat", "1", "--kill-after", "1"];
const JOB_LIMIT: Duration = Duration::from_secs(3);
const LOCK_LIMIT: Duration = Duration::from_secs(6);
/// How long a lock is watched after that.
const WATCH: Duration = Duration::from_millis(1500);
/// What a busy machine and the coarse timers of TCP may add.
const SLACK: Duration = Duration::from_secs(3);

/// HAProxy, and a port for each way to watch its clients.
struct HaProxy {
    process: RealProxy,
    configuration: String,
    /// Keepalives and a user timeout of TCP.
    by_tcp: u16,
    /// A limit for silence.
    by_silence: u16,
    /// Neither.
    by_nothing: u16,
    /// A limit for silence, replaced by `timeout tunnel`.
    by_tunnel: u16,
}

impl HaProxy {
    fn start(server: &Server, host: Option<&Host>) -> HaProxy {
        let [by_tcp, by_silence, by_nothing, by_tunnel] = [(); 4].map(|()| free_port());
        let target = format!("{}:{}", server.address(), server.port());
        let mut configuration = haproxy_example(&target, by_tcp, by_silence);
        configuration += &format!(
            "listen unlimited\n  bind :{by_nothing}\n  timeout client 1h\n  timeout server 1h\n  server s {target}\n\
             listen tunnel\n  bind :{by_tunnel}\n  timeout client 6s\n  timeout server 6s\n  timeout tunnel 1h\n  \
             server s {target}\n"
        );
        HaProxy {
            process: RealProxy::haproxy(server, host, &configuration, by_tunnel),
            configuration,
            by_tcp,
            by_silence,
            by_nothing,
            by_tunnel,
        }
    }
}

/// Returns `pglock run` on a host of the network, through a proxy at this address and port.
fn run_through(client: &Host, server: &Server, (proxy, port): (&Host, u16), key: &str) -> Pglock {
    let pglock = server.program("nsenter").args(client.entrance()).arg("--");
    pglock
        .env("PGHOST", proxy.address())
        .env("PGPORT", port.to_string())
        .args([env!("CARGO_BIN_EXE_pglock"), "run", "--key", key])
        .args(SHORT_OPTIONS)
}

/// A holder that is connected through a proxy, with a job that only KILL ends, and the next waiter, which is connected
/// directly.
struct Pair {
    key: String,
    journal: Journal,
    holder: Running,
    next: Running,
}

impl Pair {
    fn new(name: &str, client: &Host, server: &Server, proxy: (&Host, u16)) -> Pair {
        let (key, journal) = (unique(name), Journal::new());
        let holder = run_through(client, server, proxy, &key)
            .sh(&journal.stubborn_alone())
            .spawn();
        journal.await_count("ready", 1);
        let next = server.run(&key).sh(&journal.alone()).spawn();
        server.await_locks(&key, 1, 1);
        Pair {
            key,
            journal,
            holder,
            next,
        }
    }

    /// P22: asserts that the next job starts in time, when this one is dead.
    #[track_caller]
    fn assert_served(self, cut: u128) -> Journal {
        let dead = assert_dead(self.holder, cut);
        self.next.finish().code(0);
        self.journal.assert_alone(2..=2);
        let (key, next) = (self.key, since(cut, self.journal.last("enter")));
        println!("{key}: after the cut, the job was dead at {dead:?}, and the next one began at {next:?}");
        assert!(next < LOCK_LIMIT + SLACK, "{key}: {next:?}");
        self.journal
    }

    /// P22: asserts that the job is dead in time. Returns what waits for its lock.
    #[track_caller]
    fn assert_stays(self, cut: u128) -> (String, Running, Journal) {
        let dead = assert_dead(self.holder, cut);
        println!("{}: after the cut, the job was dead at {dead:?}", self.key);
        (self.key, self.next, self.journal)
    }
}

/// A waiter that is connected through a proxy, behind a direct holder.
struct Waiter {
    key: String,
    holder: Running,
    waiter: Running,
}

/// A waiter that was granted the lock after its host vanished, and the next one, which is connected directly.
struct Ghost {
    key: String,
    is_granted: bool,
    waiter: Running,
    next: Running,
}

impl Waiter {
    fn new(name: &str, client: &Host, server: &Server, proxy: (&Host, u16)) -> Waiter {
        let key = unique(name);
        let holder = server.run(&key).holding();
        let waiter = run_through(client, server, proxy, &key).args(["echo", "a job"]);
        let waiter = waiter.spawn();
        server.await_locks(&key, 1, 1);
        Waiter { key, holder, waiter }
    }

    /// Ends the holder. The host of the waiter has just vanished, so that the server does not know it yet, unless it
    /// takes longer than the slice of a wait until this.
    fn grant(self, server: &Server) -> Ghost {
        let Waiter { key, holder, waiter } = self;
        holder.finish().code(0);
        let is_granted = server.locks(&key).granted == 1;
        let next = server.run(&key).arg("true").spawn();
        Ghost {
            key,
            is_granted,
            waiter,
            next,
        }
    }
}

impl Ghost {
    /// P22: asserts that the next one is served in time, and that the waiter has run nothing.
    fn assert_gone(self, cut: u128) {
        self.next.finish().code(0);
        let (key, next) = (self.key, since(cut, now()));
        println!("{key}: after the cut, the one behind a ghost had run at {next:?}");
        assert!(next < LOCK_LIMIT + SLACK, "{key}: {next:?}");
        self.waiter.signal(Signal::SIGTERM);
        let waiter = self.waiter.finish();
        assert!(waiter.signal(Signal::SIGTERM).stdout.is_empty(), "{waiter}");
    }
}

/// Asserts that the job is dead in time. Returns when.
#[track_caller]
fn assert_dead(holder: Running, cut: u128) -> Duration {
    let lost = holder.finish().code(74).stderr_line();
    let dead = since(cut, now());
    assert!(lost.contains("the server did not respond within"), "{lost}");
    assert!(dead < JOB_LIMIT + SLACK, "{dead:?}");
    dead
}

/// Returns how long after the cut something was.
fn since(cut: u128, at: u128) -> Duration {
    Duration::from_nanos(at.saturating_sub(cut) as u64)
}

/// P22: with the settings of the example, the lock is free soon after the job is dead, and not before. Without them, it
/// stays although the job is dead.
#[test]
fn the_lock_of_a_vanished_host_stays_until_the_proxy_notices() {
    let Some(mut network) = Network::new() else {
        return;
    };
    let at_server = network.host();
    let server = Server::on(&at_server);
    let (at_proxy, client) = (network.host(), network.host());
    let haproxy = HaProxy::start(&server, Some(&at_proxy));
    let [socat_port, careless_port] = [free_port(), free_port()];
    let _socat = RealProxy::socat(&server, Some(&at_server), &["-T6"], socat_port);
    let careless_socat = RealProxy::socat(&server, Some(&at_server), &[], careless_port);
    let limited = [
        ("tcp", &at_proxy, haproxy.by_tcp),
        ("silence", &at_proxy, haproxy.by_silence),
        ("socat", &at_server, socat_port),
    ];
    let unlimited = [
        ("nothing", &at_proxy, haproxy.by_nothing),
        ("tunnel", &at_proxy, haproxy.by_tunnel),
        ("careless", &at_server, careless_port),
    ];
    let pair = |(name, proxy, port)| Pair::new(name, &client, &server, (proxy, port));
    let waiter = |(name, proxy, port)| Waiter::new(name, &client, &server, (proxy, port));
    // To the waiters the proxy has a reply that is never acknowledged, which is another case for TCP.
    let (limited, waiters, unlimited) = (limited.map(pair), limited.map(waiter), unlimited.map(pair));
    let cut = now();
    network.cut(&client);
    let ghosts = waiters.map(|waiter| waiter.grant(&server));
    let is_any_granted = ghosts.iter().any(|ghost| ghost.is_granted);
    assert!(is_any_granted, "no lock was granted after the cut");
    let held = thread::scope(|scope| {
        for pair in limited {
            scope.spawn(move || pair.assert_served(cut));
        }
        for ghost in ghosts {
            scope.spawn(move || ghost.assert_gone(cut));
        }
        let held = unlimited.map(|pair| scope.spawn(move || pair.assert_stays(cut)));
        held.map(|held| held.join().unwrap())
    });
    let watch = (LOCK_LIMIT + WATCH).saturating_sub(since(cut, now()));
    until(watch, || {
        for (key, _, journal) in &held {
            let (at, granted, jobs) = (since(cut, now()), server.locks(key).granted, journal.count("enter"));
            assert_eq!((granted, jobs), (1, 1), "{key}, {at:?} after the cut");
        }
        false
    });
    // The end of the proxy is the end of its connections.
    haproxy.process.kill();
    careless_socat.kill();
    for (_, next, journal) in held {
        next.finish().code(0);
        journal.assert_alone(2..=2);
    }
}

/// P22: the server's own limits watch the proxy. A waiter behind the proxy reconnects. No job runs beside another one.
#[test]
fn a_vanished_server_frees_the_lock_of_its_proxy_when_the_job_is_dead() {
    let Some(mut network) = Network::new() else {
        return;
    };
    let at_server = network.host();
    let server = Server::on(&at_server);
    if server.version() < 12 {
        println!("SKIPPED: PostgreSQL before 12 has no tcp_user_timeout, and so no limit");
        return;
    }
    let (at_proxy, client) = (network.host(), network.host());
    let haproxy = HaProxy::start(&server, Some(&at_proxy));
    let ports = [
        ("tcp", haproxy.by_tcp),
        ("silence", haproxy.by_silence),
        ("nothing", haproxy.by_nothing),
    ];
    let pairs = ports.map(|(name, port)| {
        let pair = Pair::new(name, &client, &server, (&at_proxy, port));
        let waiter = run_through(&client, &server, (&at_proxy, port), &pair.key);
        let waiter = waiter.sh(&pair.journal.alone()).spawn();
        server.await_locks(&pair.key, 1, 2);
        (pair, waiter)
    });
    let cut = now();
    network.cut(&at_server);
    let waiters = thread::scope(|scope| {
        let served = pairs.map(|(pair, waiter)| scope.spawn(move || (pair.assert_served(cut), waiter)));
        served.map(|served| served.join().unwrap())
    });
    network.heal(&at_server);
    for (journal, waiter) in waiters {
        waiter.finish().code(0);
        journal.assert_alone(3..=3);
        println!(
            "a waiter behind the proxy began at {:?}",
            since(cut, journal.last("enter"))
        );
    }
}

/// Returns `pglock run` through a proxy on this host.
fn run_locally(server: &Server, port: u16, key: &str) -> Pglock {
    let run = server.run(key).env("PGHOST", "127.0.0.1");
    run.env("PGPORT", port.to_string()).args(["--heartbeat", "1"])
}

/// P20, P26: a proxy that is killed ends its connections at once. The loser guards the key when the proxy is back, and
/// a waiter does not start beside its job.
#[test]
fn a_killed_proxy_is_a_lost_lock_at_once() {
    const GRACE: Duration = Duration::from_secs(3);
    let server = Server::shared();
    let run = |port, key: &str| run_locally(server, port, key).args(["--kill-after", "3"]);
    let haproxy = HaProxy::start(server, None);
    let socat_port = free_port();
    let socat = RealProxy::socat(server, None, &[], socat_port);
    let ports = [haproxy.by_tcp, socat_port];
    let pairs = ports.map(|port| {
        let (key, journal) = (unique("killed"), Journal::new());
        let holder = run(port, &key).sh(&journal.stubborn_alone());
        let holder = holder.spawn();
        journal.await_count("ready", 1);
        let next = run(port, &key).sh(&journal.alone()).spawn();
        server.await_locks(&key, 1, 1);
        Pair {
            key,
            journal,
            holder,
            next,
        }
    });
    let killed = now();
    haproxy.process.kill();
    socat.kill();
    let _again = [
        RealProxy::haproxy(server, None, &haproxy.configuration, haproxy.by_tcp),
        RealProxy::socat(server, None, &[], socat_port),
    ];
    for pair in pairs {
        let lost = pair.holder.finish().code(74).stderr_line();
        let dead = since(killed, now());
        assert!(lost.contains("server closed the connection unexpectedly"), "{lost}");
        assert!(dead < GRACE + SLACK, "{dead:?}");
        pair.next.finish().code(0);
        pair.journal.assert_alone(2..=2);
        let next = since(killed, pair.journal.last("enter"));
        println!("after the kill, the job was dead at {dead:?}, and the next one began at {next:?}");
        // The waiter saw the guard: it need not wait for the 8 s after which the job must be dead.
        assert!(next < GRACE + SLACK, "{next:?}");
    }
}

/// A reload of HAProxy, which stops the old process softly, leaves the lock alone.
#[test]
fn a_reloaded_haproxy_keeps_the_lock() {
    let (server, key) = (Server::shared(), unique("reloaded"));
    let mut old = HaProxy::start(server, None);
    let port = old.by_silence;
    let holder = run_locally(server, port, &key).holding();
    old.process.signal(Signal::SIGUSR1);
    eventually(SOON, "the end of the listener", || !old.process.listens_on(port));
    let _new = RealProxy::haproxy(server, None, &old.configuration, port);
    let newcomer = || run_locally(server, port, &key).args(["--no-wait", "true"]).output();
    newcomer().code(75);
    holder.finish().code(0).silent();
    newcomer().code(0).silent();
}

/// HAProxy closes a connection without a message if no server is up: that is a database that is away.
#[test]
fn a_wait_survives_a_haproxy_without_a_server() {
    let (server, key) = (Server::start(), "without a server");
    let haproxy = HaProxy::start(&server, None);
    server.stop_immediate();
    let run = || run_locally(&server, haproxy.by_silence, key);
    let at_once = run().arg("true").output().code(69).stderr_line();
    assert!(
        at_once.contains("server closed the connection unexpectedly"),
        "{at_once}"
    );
    let waiter = run().args(["-v", "--wait", "60", "true"]).spawn();
    waiter.await_stderr("server closed the connection unexpectedly");
    server.restart();
    waiter.finish().code(0);
}
