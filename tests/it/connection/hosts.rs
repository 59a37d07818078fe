//! Several hosts, one of which is down, hangs, is a standby or refuses: which one pglock connects to, how soon, and
//! what it reports about the others.

use crate::support::network::can_unshare;
use crate::support::pglock::{Output, Pglock, binary};
use crate::support::server::{Server, free_port};
use crate::support::unique;
use crate::support::wait::{SOON, eventually};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, connect, listen, socket};
use nix::unistd::{User, geteuid};
use std::fs;
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

/// Returns a primary and its standby, which are started once.
pub fn pair() -> &'static (Server, Server) {
    static PAIR: OnceLock<(Server, Server)> = OnceLock::new();
    PAIR.get_or_init(|| {
        let primary = Server::start();
        let standby = Server::standby_of(&primary);
        (primary, standby)
    })
}

fn pglock(dsn: &str) -> Pglock {
    let run = Pglock::alone().env("PGLOCK_DSN", dsn).env("HOME", "/nonexistent");
    run.args(["run", "-k", &unique("hosts")])
}

fn run(dsn: &str) -> Output {
    pglock(dsn).args(["--", "true"]).output()
}

/// Returns `host=127.0.0.1,... port=...` for these ports.
fn hosts(ports: &[u16], rest: &str) -> String {
    let list = ports.iter().map(|port| port.to_string()).collect::<Vec<_>>();
    let names = vec!["127.0.0.1"; ports.len()].join(",");
    format!(
        "host={names} port={} user=postgres dbname=postgres sslmode=disable {rest}",
        list.join(",")
    )
}

/// A listener whose backlog is full: the kernel drops further SYNs, as a black hole would.
struct BlackHole {
    port: u16,
    _sockets: Vec<OwnedFd>,
}

impl BlackHole {
    fn new() -> BlackHole {
        let stream = || {
            let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
            fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
            socket
        };
        let port = free_port();
        let listener = stream();
        let address = SockaddrIn::new(127, 0, 0, 1, port);
        bind(listener.as_raw_fd(), &address).unwrap();
        listen(&listener, Backlog::new(0).unwrap()).unwrap();
        let mut sockets = vec![listener];
        for _ in 0..4 {
            let waiting = stream();
            // All but the first stay in progress.
            let _ = connect(waiting.as_raw_fd(), &address);
            sockets.push(waiting);
        }
        BlackHole {
            port,
            _sockets: sockets,
        }
    }
}

/// P81: the others are down, hang, or have the wrong role.
#[test]
fn the_first_host_that_is_fit_is_taken() {
    let (primary, standby) = pair();
    let (down, silent, hole) = (
        free_port(),
        TcpListener::bind(("127.0.0.1", 0)).unwrap(),
        BlackHole::new(),
    );
    let silent_port = silent.local_addr().unwrap().port();
    run(&hosts(&[down, primary.port()], "")).code(0).silent();
    for hanging in [silent_port, hole.port] {
        let output = run(&hosts(&[hanging, primary.port()], "connect_timeout=1"));
        output.code(0).silent();
        assert!(
            output.took >= Duration::from_secs(1) && output.took < Duration::from_secs(3),
            "{output}"
        );
    }
    for (target, ports, code) in [
        ("any", [primary.port(), standby.port()], 0),
        ("read-write", [standby.port(), primary.port()], 0),
        ("primary", [standby.port(), primary.port()], 0),
        // pglock connects, and refuses to lock.
        ("read-only", [primary.port(), standby.port()], 78),
        ("standby", [primary.port(), standby.port()], 78),
        ("prefer-standby", [primary.port(), standby.port()], 78),
        ("prefer-standby", [primary.port(), down], 0),
        ("primary", [standby.port(), down], 69),
    ] {
        let output = run(&hosts(&ports, &format!("target_session_attrs={target}")));
        output.code(code);
        if code == 78 {
            assert!(output.stderr_line().contains("hot standby"), "{target}: {output}");
        }
    }
    // A primary whose transactions are read-only by default is a primary, but not a read-write server.
    let options = "options='-c default_transaction_read_only=on'";
    run(&hosts(
        &[primary.port()],
        &format!("{options} target_session_attrs=primary"),
    ))
    .code(0);
    run(&hosts(
        &[primary.port()],
        &format!("{options} target_session_attrs=read-only"),
    ))
    .code(0);
    let line = run(&hosts(
        &[primary.port()],
        &format!("{options} target_session_attrs=read-write"),
    ))
    .code(69)
    .stderr_line();
    assert!(line.contains("read-only"), "{line}");
}

/// P81: the last one first; the refusal of a server ends the search.
#[test]
fn every_host_that_was_tried_is_reported() {
    let (primary, standby) = pair();
    let down = [free_port(), free_port()];
    let line = run(&hosts(&down, "")).code(69).stderr_line();
    let refused = |port: u16| format!("cannot connect to 127.0.0.1:{port}: connection refused");
    assert_eq!(line, format!("{}; {}", refused(down[1]), refused(down[0])));
    let both = hosts(&[down[0], primary.port()], "").replace("user=postgres", "user=no_such_role");
    let line = run(&both).code(77).stderr_line();
    assert!(
        line.contains("no_such_role") && line.contains(&refused(down[0])),
        "{line}"
    );
    let first_refuses = hosts(&[primary.port(), standby.port()], "").replace("user=postgres", "user=no_such_role");
    let line = run(&first_refuses).code(77).stderr_line();
    assert!(!line.contains(&format!(":{}", standby.port())), "{line}");
    let line = run("host=no-such-host.invalid").code(69).stderr_line();
    assert!(
        line.contains("no-such-host.invalid:5432: could not translate host name to address"),
        "{line}"
    );
    let line = run(&hosts(&[primary.port()], "")
        .replace("127.0.0.1", "localhost")
        .replace("host=localhost", "host=localhost hostaddr=::1 connect_timeout=2"))
    .code(69)
    .stderr_line();
    assert!(line.contains("localhost:") && line.contains("(::1)"), "{line}");
}

/// P80: `load_balance_hosts=random`.
#[test]
fn hosts_can_be_tried_at_random() {
    let (primary, standby) = pair();
    let dsn = hosts(&[primary.port(), standby.port()], "load_balance_hosts=random");
    let mut seen = std::collections::HashSet::new();
    for _ in 0..64 {
        seen.insert(run(&dsn).status.code());
        if seen.len() == 2 {
            return;
        }
    }
    panic!("the same host was first 64 times: {seen:?}");
}

/// P32
#[test]
fn a_black_hole_does_not_outlast_the_wait() {
    let (primary, _) = pair();
    let hole = BlackHole::new();
    let dsn = hosts(&[hole.port, primary.port()], "");
    let output = pglock(&dsn).args(["--wait", "5", "--", "true"]).output();
    output.code(69);
    assert!(
        output.took >= Duration::from_secs(5) && output.took < Duration::from_millis(5600),
        "{output}"
    );
    let line = output.stderr_line();
    assert!(line.contains(&format!("127.0.0.1:{}", hole.port)), "{line}");
    // With --connect-timeout, pglock tries the next host within the wait.
    let output = pglock(&dsn)
        .args(["--wait", "5", "--connect-timeout", "0.5", "--", "true"])
        .output();
    output.code(0).silent();
    assert!(output.took < Duration::from_secs(3), "{output}");
}

/// P39: a server that accepts connections and stays silent, over TCP and a Unix socket, costs a wait no thread and no
/// descriptor that stays.
#[test]
fn abandoned_attempts_leave_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let _unix = UnixListener::bind(directory.path().join(".s.PGSQL.1")).unwrap();
    let tcp = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let unix_dsn = format!("host={} port=1 user=u dbname=d", directory.path().display());
    for dsn in [hosts(&[tcp.local_addr().unwrap().port()], ""), unix_dsn] {
        let run = pglock(&dsn).args(["-v", "--wait", "60", "--connect-timeout", "0.2", "true"]);
        let waiter = run.spawn();
        let await_attempts = |number| {
            let attempts = || waiter.stderr().matches("timeout expired").count();
            eventually(SOON, "the attempts", || attempts() >= number);
        };
        let count = |what: &str| fs::read_dir(format!("/proc/{}/{what}", waiter.pid())).unwrap().count();
        await_attempts(1);
        let descriptors = count("fd");
        await_attempts(7);
        // The main thread, the session's, that of an attempt and one that ends.
        let is_small = || count("task") <= 4 && count("fd") <= descriptors + 4;
        eventually(SOON, "no thread and no descriptor of the first attempts", is_small);
    }
}

/// P91: a thread that cannot be created is no timeout.
#[test]
fn a_missing_thread_is_named() {
    if !geteuid().is_root() {
        return;
    }
    // The user has no other process. Of its two threads, none is left for an attempt.
    const FEW: &str = "ulimit -u 2; exec \"$@\"";
    let dsn = hosts(&[free_port(), free_port()], "");
    let run = Pglock::for_program("bash")
        .env("PGLOCK_DSN", dsn)
        .env("HOME", "/nonexistent");
    let mut run = run.args(["-c", FEW, "bash", &binary(), "run", "-k", &unique("thread"), "true"]);
    run.command().uid(61_234).gid(61_234);
    let line = run.output().code(70).stderr_line();
    assert!(
        line.ends_with("cannot create a thread: resource temporarily unavailable"),
        "{line}"
    );
}

/// P80: `requirepeer` finds a socket in Linux's abstract namespace, where psql finds it.
#[test]
#[cfg(target_os = "linux")]
fn the_owner_of_an_abstract_socket_is_known() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::SocketAddr;
    let directory = format!("@{}", unique("abstract"));
    let name = format!("{}/.s.PGSQL.1", &directory[1..]);
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let _ = client.write_all(b"E\0\0\0\x22SFATAL\0C53300\0Mreached, full\0\0");
            // Ended by the client, which has read the message by then.
            let _ = io::copy(&mut client, &mut io::sink());
        }
    });
    let user = User::from_uid(geteuid()).unwrap().unwrap().name;
    for (owner, code, expected) in [
        (&*user, 69, "reached, full"),
        ("other", 77, "requirepeer specifies \"other\""),
    ] {
        let dsn = format!("host={directory} port=1 user=u dbname=d requirepeer={owner}");
        let line = run(&dsn).code(code).stderr_line();
        assert!(line.contains(expected), "{line}");
    }
}

/// P20: of all sockets that were tried, exactly one is left, and pglock finds it.
#[test]
fn the_socket_is_found_behind_a_host_that_hangs() {
    let (primary, _) = pair();
    let silent = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let dsn = hosts(
        &[silent.local_addr().unwrap().port(), free_port(), primary.port()],
        "connect_timeout=1",
    );
    let output = pglock(&dsn).args(["-v", "--", "true"]).output();
    let stderr = String::from_utf8_lossy(&output.code(0).stderr).into_owned();
    assert!(!stderr.contains("cannot tell which descriptor"), "{stderr}");
}

/// P20, P76: a socket that is not found is reported: here, because most low descriptors are in use, and without /proc
/// the others cannot be listed.
#[test]
fn a_socket_that_is_not_found_is_reported() {
    if !can_unshare("--mount") {
        return;
    }
    let (primary, _) = pair();
    let blind = |arguments: &[&str]| {
        const BLIND: &str =
            "mount -t tmpfs none /proc && for n in {1..220}; do exec {fd}</dev/null; done && exec \"$@\"";
        let pglock = primary
            .program("unshare")
            .args(["--mount", "bash", "-c", BLIND, "bash"]);
        pglock.arg(binary()).args(arguments).output()
    };
    const CAUSE: &str = "cannot tell which descriptor is the session's";
    let line = blind(&["run", "--key", &unique("blind"), "true"]).code(0).stderr_line();
    assert!(line.contains(CAUSE), "{line}");
    let report = blind(&["check"]).stdout();
    assert!(report.contains(&format!("\nwarning  socket: {CAUSE}")), "{report}");
    let report = primary.pglock().arg("check").output().stdout();
    assert!(!report.contains(CAUSE), "{report}");
}

/// P80: where Debian's psql looks for the socket in its own directory only, so does pglock. In /tmp, any user could
/// listen, and be sent the password.
#[test]
fn no_socket_in_tmp_takes_the_place_of_a_server_that_is_down() {
    const PACKAGED: &str = "/var/run/postgresql";
    if !Path::new(PACKAGED).is_dir() {
        return;
    }
    let port = free_port();
    let socket = PathBuf::from(format!("/tmp/.s.PGSQL.{port}"));
    let _listener = UnixListener::bind(&socket).unwrap();
    let run = Pglock::alone()
        .env("PGPORT", port.to_string())
        .env("PGUSER", "postgres");
    let run = run.args(["run", "-k", &unique("socket"), "--connect-timeout", "2", "--", "true"]);
    let output = run.output();
    fs::remove_file(&socket).unwrap();
    let line = output.code(69).stderr_line();
    assert!(
        line.contains(&format!("{PACKAGED}/.s.PGSQL.{port}: no such file")),
        "{line}"
    );
}
