//! P8, P9: what systemd passes to a service and what it is told, with systemd's own programs where it has some.

use crate::support::case::Case;
use crate::support::pglock::Pglock;
use crate::support::server::{SUPERUSER, free_port, rows};
use crate::support::wait::{SOON, eventually};
use crate::support::{hostname, unique};
use nix::sys::signal::Signal;
use std::io::Write;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

/// Returns a run that is started as systemd starts a service: with sockets and a watchdog, if `variables` says so.
fn service(case: &Case, variables: &str) -> Pglock {
    let script = format!("exec 3</dev/null 4</dev/zero; {variables}; exec \"$@\"");
    let run = case.server.program("sh").args(["-c", &script, "sh"]);
    run.args([env!("CARGO_BIN_EXE_pglock"), "run", "--key", &case.key])
}

const TO_PGLOCK: &str = "export LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_PIDFDID=7 WATCHDOG_PID=$$ WATCHDOG_USEC=9";
const TELL: &str = "echo $$ $LISTEN_PID $LISTEN_FDS ${LISTEN_PIDFDID-unset} $WATCHDOG_PID $WATCHDOG_USEC; \
    readlink /proc/$$/fd/3 /proc/$$/fd/4; \
    for fd in /proc/$$/fd/*; do case $(readlink $fd) in socket:*) echo socket ${fd##*/};; esac; done";

/// P8: what is meant for pglock is meant for the job, also for that of a nested pglock; and the session's socket, which
/// the job inherits, is not among what systemd passes.
#[test]
fn sockets_and_a_watchdog_are_the_jobs() {
    let case = Case::new();
    let pglock = env!("CARGO_BIN_EXE_pglock");
    let inner = [pglock, "run", "--key", &unique("inner"), "--"];
    for nested in [&[][..], &inner[..]] {
        let run = service(&case, TO_PGLOCK).arg("--").args(nested);
        let output = run.args(["sh", "-c", TELL]).output().stdout();
        let (first, rest) = output.split_once('\n').unwrap();
        let (pid, variables) = first.split_once(' ').unwrap();
        assert_eq!(variables, format!("{pid} 2 unset {pid} 9"), "{output}");
        let mut rest = rest.lines();
        assert_eq!([rest.next(), rest.next()], [Some("/dev/null"), Some("/dev/zero")]);
        let sockets: Vec<u32> = rest
            .map(|line| line.strip_prefix("socket ").unwrap().parse().unwrap())
            .collect();
        assert_eq!(sockets.len(), 1 + nested.len().min(1), "{output}");
        assert!(sockets.iter().all(|number| *number > 4), "{output}");
    }
}

/// P8
#[test]
fn what_is_meant_for_another_process_stays_so() {
    let case = Case::new();
    let others = "export LISTEN_PID=1 LISTEN_FDS=2 LISTEN_PIDFDID=7 WATCHDOG_PID=1 WATCHDOG_USEC=9";
    let output = service(&case, others).args(["sh", "-c", TELL]).output().stdout();
    let (_, variables) = output.lines().next().unwrap().split_once(' ').unwrap();
    assert_eq!(variables, "1 2 7 1 9");
}

/// P5: the errors are those of a run without systemd.
#[test]
fn a_service_that_cannot_be_started_is_126_or_127() {
    let case = Case::new();
    let run = |command: &str| service(&case, TO_PGLOCK).args(["--", command]).output();
    assert!(run("no-such-command").code(127).stderr_line().contains("not found"));
    assert!(run("/dev/null").code(126).stderr_line().contains("Permission denied"));
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("script");
    std::fs::write(&script, "[ $LISTEN_PID = $$ ]; exit $?\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    run(script.to_str().unwrap()).code(0).silent();
}

/// P8: systemd-socket-proxyd is a server that systemd starts with its socket; here, under the lock.
/// systemd-socket-activate listens as systemd does, and starts it with the first connection.
#[test]
fn a_server_finds_its_socket() {
    let case = Case::new();
    let port = free_port();
    let backend = format!("{}/.s.PGSQL.{}", case.server.host(), case.server.port());
    let activate = case.server.program("systemd-socket-activate");
    let activate = activate.args(["--listen", &format!("127.0.0.1:{port}")]);
    let activate = activate.args(["-E", "PGHOST", "-E", "PGPORT", "-E", "PGUSER"]);
    let activate = activate.args([env!("CARGO_BIN_EXE_pglock"), "run", "--key", &case.key, "--"]);
    let running = activate.args(["/lib/systemd/systemd-socket-proxyd", &backend]).spawn();
    running.await_stderr("Listening on");
    let dsn = format!("host=127.0.0.1 port={port} user={SUPERUSER} dbname=postgres");
    let mut client = postgres::Client::connect(&dsn, postgres::NoTls).unwrap();
    assert_eq!(rows(&mut client, "SELECT 6 * 7").concat().concat(), "42");
    assert_eq!(case.locks().granted, 1);
    drop(client);
    running.signal(Signal::SIGTERM);
    running.finish().signal(Signal::SIGTERM);
}

/// A service manager that is a socket.
struct Manager {
    socket: UnixDatagram,
    /// The value of `NOTIFY_SOCKET`.
    address: String,
    /// What has arrived, and when.
    messages: Vec<(Instant, String)>,
}

impl Manager {
    fn at_path(directory: &tempfile::TempDir) -> Manager {
        let path = directory.path().join("notify");
        Manager::new(UnixDatagram::bind(&path).unwrap(), path.to_str().unwrap().to_owned())
    }

    fn in_abstract_namespace() -> Manager {
        let name = unique("notify");
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        Manager::new(UnixDatagram::bind_addr(&address).unwrap(), format!("@{name}"))
    }

    fn new(socket: UnixDatagram, address: String) -> Manager {
        socket.set_nonblocking(true).unwrap();
        let messages = Vec::new();
        Manager {
            socket,
            address,
            messages,
        }
    }

    fn receive(&mut self) {
        let mut buffer = [0; 4096];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            let message = String::from_utf8(buffer[..length].to_vec()).unwrap();
            self.messages.push((Instant::now(), message));
        }
    }

    /// Waits for a message that starts so, and returns it.
    #[track_caller]
    fn await_message(&mut self, start: &str) -> String {
        let mut found = None;
        eventually(SOON, start, || {
            self.receive();
            found = self
                .messages
                .iter()
                .find(|(_, message)| message.starts_with(start))
                .cloned();
            found.is_some()
        });
        found.unwrap().1
    }

    /// Returns the status texts in order.
    fn statuses(&mut self) -> Vec<&str> {
        self.receive();
        let messages = self.messages.iter().map(|(_, message)| message.as_str());
        messages.filter_map(|message| message.strip_prefix("STATUS=")).collect()
    }

    /// Returns when each extension arrived, and how long it is.
    fn extensions(&mut self) -> Vec<(Instant, Duration)> {
        self.receive();
        let messages = self.messages.iter();
        let extensions = messages.filter_map(|(at, message)| {
            let microseconds = message.strip_prefix("EXTEND_TIMEOUT_USEC=")?.parse().unwrap();
            Some((*at, Duration::from_micros(microseconds)))
        });
        extensions.collect()
    }
}

/// Asserts that the text is `before`, a time, and `after`.
#[track_caller]
fn assert_timed(text: &str, before: &str, after: &str) {
    let time = text.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
    let time = time.unwrap_or_else(|| panic!("{text:?} is not {before:?}, a time, {after:?}"));
    assert!(
        time.len() == 20 && time.ends_with('Z') && time.starts_with("20"),
        "{text:?}"
    );
}

/// P9: what it waits for, then that it runs.
#[test]
fn a_standby_tells_what_it_waits_for_and_then_runs() {
    let directory = tempfile::tempdir().unwrap();
    for mut manager in [Manager::at_path(&directory), Manager::in_abstract_namespace()] {
        let case = Case::new();
        let holder = case.holder();
        let pid = holder.pid();
        let job = "[ \"$NOTIFY_SOCKET\" = \"$0\" ] && read -r _";
        let run = case.run().env("NOTIFY_SOCKET", &manager.address);
        let standby = run.args(["--", "sh", "-c", job, &manager.address]).spawn();
        let waiting = format!("waiting for key \"{}\"", case.key);
        let held = format!("{waiting} (held by {}:{pid} since ", hostname());
        manager.await_message(&format!("STATUS={held}"));
        holder.finish().code(0);
        manager.await_message("STATUS=running");
        // The last is for the job, which has as long to start as one that did not have to wait.
        eventually(SOON, "the job's time to start", || {
            manager
                .extensions()
                .last()
                .is_some_and(|(_, length)| length.as_secs() == 90)
        });
        drop(standby);
        let mut statuses = manager.statuses();
        // On a busy machine, the first one comes before the holder is known.
        statuses.retain(|status| *status != waiting);
        assert_eq!(statuses.len(), 2, "{statuses:?}");
        assert_timed(statuses[0], &held, ")");
        assert_timed(statuses[1], "running sh (lock held since ", ")");
    }
}

/// P9: each message of the wait comes before the time that the last one gave it is over.
#[test]
fn the_start_timeout_is_extended_without_a_gap() {
    let (case, directory) = (Case::new(), tempfile::tempdir().unwrap());
    let mut manager = Manager::at_path(&directory);
    let holder = case.holder();
    let started = Instant::now();
    let standby = case.run().env("NOTIFY_SOCKET", &manager.address).arg("true").spawn();
    eventually(SOON, "three extensions", || manager.extensions().len() >= 3);
    let mut valid_until = started + Duration::from_secs(3);
    for (at, length) in manager.extensions() {
        assert!(at < valid_until, "a gap before {:?}", at - started);
        valid_until = at + length;
    }
    holder.finish().code(0);
    standby.finish().code(0).silent();
}

/// P9, P39: a server that is away is waited for, too.
#[test]
fn the_start_timeout_is_extended_while_the_server_is_away() {
    let directory = tempfile::tempdir().unwrap();
    let mut manager = Manager::at_path(&directory);
    let dsn = format!("host=127.0.0.1 port={} user=nobody dbname=none", free_port());
    let run = Pglock::alone().args(["run", "-k", "away", "--wait", "60", "-d", &dsn, "true"]);
    let running = run.env("NOTIFY_SOCKET", &manager.address).spawn();
    let status = manager.await_message("STATUS=waiting for key \"away\" (reconnecting: cannot connect to 127.0.0.1");
    assert!(!status.contains('\n'), "{status:?}");
    manager.await_message("EXTEND_TIMEOUT_USEC=");
    running.signal(Signal::SIGTERM);
    running.finish().signal(Signal::SIGTERM);
}

/// P9: a run that does not wait tells only that it runs.
#[test]
fn a_run_without_a_wait_tells_that_it_runs() {
    let (case, directory) = (Case::new(), tempfile::tempdir().unwrap());
    let mut manager = Manager::at_path(&directory);
    let run = case.run().env("NOTIFY_SOCKET", &manager.address);
    run.args(["--", "/bin/echo", "a secret"]).output().code(0).silent();
    let [status] = manager.statuses()[..] else {
        panic!("{:?}", manager.messages)
    };
    assert_timed(status, "running /bin/echo (lock held since ", ")");
    assert_eq!(manager.messages.len(), 1);
}

/// P9: the status does not say that the lock is held when it is lost.
#[test]
fn a_lost_lock_is_told() {
    for (on_lost, status) in [
        ("stop", "terminating sh: "),
        ("ignore", "running sh without the lock: "),
    ] {
        let (case, directory) = (Case::new(), tempfile::tempdir().unwrap());
        let mut manager = Manager::at_path(&directory);
        let run = case.run().env("NOTIFY_SOCKET", &manager.address);
        let mut running = run.args(["--on-lost", on_lost]).sh("read -r _").spawn();
        manager.await_message("STATUS=running sh (lock held since");
        case.terminate_backends();
        let reason = "terminating connection due to administrator command";
        manager.await_message(&format!("STATUS={status}{reason}"));
        running.stdin().write_all(b"\n").unwrap_or_default();
        running.finish();
    }
}

/// P9: without the variable there is not even a socket.
#[test]
fn without_a_service_manager_nobody_is_told() {
    let (case, directory) = (Case::new(), tempfile::tempdir().unwrap());
    let trace = directory.path().join("trace");
    let sockets = |address: Option<&str>| {
        let mut strace = case.server.program("strace");
        if let Some(address) = address {
            strace = strace.env("NOTIFY_SOCKET", address);
        }
        let strace = strace.args(["-f", "-e", "trace=socket", "-o"]).arg(&trace);
        let strace = strace.args([env!("CARGO_BIN_EXE_pglock"), "run", "--key", &case.key]);
        strace.arg("true").output().code(0);
        std::fs::read_to_string(&trace).unwrap().matches("SOCK_DGRAM").count()
    };
    assert_eq!((sockets(None), sockets(Some("/none"))), (0, 1));
}

/// P9, P12: a service manager that does not read, is gone, or never was.
#[test]
fn a_service_manager_cannot_hold_up_a_run() {
    let (case, directory) = (Case::new(), tempfile::tempdir().unwrap());
    let full = Manager::at_path(&directory);
    // Each sender has a limit of its own, which is less than the receiver's.
    let mut senders = Vec::new();
    let mut has_room = true;
    while has_room {
        let sender = UnixDatagram::unbound().unwrap();
        sender.set_nonblocking(true).unwrap();
        has_room = sender.send_to(b"full", &full.address).is_ok();
        while sender.send_to(b"full", &full.address).is_ok() {}
        senders.push(sender);
    }
    let gone = directory.path().join("gone");
    drop(UnixDatagram::bind(&gone).unwrap());
    let missing = directory.path().join("missing");
    let too_long = format!("/{}", "x".repeat(200));
    let gone = [
        gone.to_str().unwrap(),
        missing.to_str().unwrap(),
        "@missing",
        "vsock:2:3",
        "",
        "@",
        &too_long,
    ];
    for address in [&full.address].into_iter().map(String::as_str).chain(gone) {
        let holder = case.holder();
        let started = Instant::now();
        let standby = case.run().env("NOTIFY_SOCKET", address).args(["echo", "done"]).spawn();
        case.await_locks(1, 1);
        // Beyond the first message.
        eventually(SOON, "a wait of 1.5 s", || {
            started.elapsed() > Duration::from_millis(1500)
        });
        let freed = Instant::now();
        holder.finish().code(0);
        assert_eq!(standby.finish().stdout(), "done\n", "{address}");
        assert!(
            freed.elapsed() < Duration::from_secs(5),
            "{address}: {:?}",
            freed.elapsed()
        );
    }
}
