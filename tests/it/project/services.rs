//! P95: the recipes for systemd and HAProxy. What systemd would do with a unit is done here by its settings, and
//! systemd itself checks the unit.

use super::desk::Desk;
use crate::support::journal::Journal;
use crate::support::pglock::{Pglock, Running};
#[cfg(target_os = "linux")]
use crate::support::real_proxy::HAPROXY;
use crate::support::server::{Server, WITH_PASSWORD};
use crate::support::wait::{SOON, eventually};
use nix::sys::signal::{Signal, kill};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

/// A systemd unit file in which each setting is on one line.
struct Unit(String);

impl Unit {
    #[track_caller]
    fn value(&self, name: &str) -> &str {
        let mut lines = self.0.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_else(|| panic!("no {name}: {}", self.0))
    }

    /// Starts the service as systemd does, with its credential.
    #[track_caller]
    fn start(&self, desk: &Desk) -> Running {
        let (name, _) = self.value("LoadCredential").split_once(':').unwrap();
        let credential = desk.file(name);
        if !credential.exists() {
            fs::write(&credential, "*:*:*:*:secret\n").unwrap();
            fs::set_permissions(&credential, fs::Permissions::from_mode(0o400)).unwrap();
        }
        let directory = desk.directory().to_str().unwrap();
        let mut arguments = self.value("ExecStart").split(' ');
        let mut main = Pglock::for_program(arguments.next().unwrap()).args(arguments);
        for variable in self.value("Environment").split(' ') {
            let (name, value) = variable.split_once('=').unwrap();
            main = main.env(name, value.replace("%d", directory));
        }
        main.spawn()
    }

    /// Asserts that a termination that pglock has begun has the time that it needs when systemd stops the service.
    #[track_caller]
    fn assert_longer_to_stop_than_kill_after(&self) {
        let seconds = |text: &str| text.strip_suffix('s').unwrap().parse::<u32>().unwrap();
        let (_, after) = self.value("ExecStart").split_once("--kill-after ").unwrap();
        let (kill_after, _) = after.split_once(' ').unwrap();
        assert!(seconds(self.value("TimeoutStopSec")) > seconds(kill_after));
    }
}

/// `docs/poolers.md` shows a part of it. What it does is tested in `run::forwarded`.
#[cfg(target_os = "linux")]
#[test]
fn haproxy_accepts_its_configuration() {
    let desk = Desk::new();
    let (path, text) = (desk.file("haproxy.cfg"), desk.text("haproxy.cfg"));
    let (_, section) = text.split_once("listen postgresql\n").unwrap();
    let (section, _) = section.split_once("\n\n").unwrap();
    assert!(include_str!("../../../docs/poolers.md").contains(section), "{section}");
    fs::write(&path, text).unwrap();
    let verify = Pglock::for_program(HAPROXY).args(["-c", "-f"]).arg(path).output();
    assert!(verify.code(0).stderr.is_empty(), "{verify}");
}

#[cfg(target_os = "linux")]
#[test]
fn systemd_accepts_the_units() {
    let desk = Desk::new();
    desk.program("leader", "");
    desk.program("backup", "");
    let units = [
        ("leader.service", desk.text("leader.service")),
        ("backup.service", desk.text("backup.service")),
        ("backup.timer", desk.text("backup.timer")),
    ];
    let paths = units.map(|(name, text)| {
        let path = desk.file(name);
        fs::write(&path, text).unwrap();
        path
    });
    let verify = Pglock::for_program("systemd-analyze").arg("verify").args(&paths);
    let output = verify.output();
    output.code(0);
    // It also complains of units of this machine that would start together with ours.
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    let ours = |line: &&str| {
        paths
            .iter()
            .any(|path| line.contains(path.file_name().unwrap().to_str().unwrap()))
    };
    assert_eq!(complaints.lines().find(ours), None, "{output}");
}

/// The service is stopped on one host and loses its connection on the next; each time another host takes over.
#[test]
fn a_service_has_a_hot_standby() {
    let (desk, journal) = (Desk::new(), Journal::new());
    let job = format!(
        "{}; trap 'note TERM; exit 0' TERM; note lead; while :; do sleep 0.1 & wait $!; done",
        journal.note()
    );
    desk.program("leader", &job);
    let unit = Unit(desk.text("leader.service"));
    let start = || unit.start(&desk);

    let first = start();
    journal.await_count("lead", 1);
    let second = start();
    desk.await_locks("leader", 1, 1);
    // `systemctl stop`: with KillMode=mixed only the main process gets TERM, and so the service gets it once.
    assert_eq!(unit.value("KillMode"), "mixed");
    first.signal(Signal::SIGTERM);
    first.finish().code(0).silent();
    journal.await_count("lead", 2);
    assert_eq!(journal.count("TERM"), 1);

    let third = start();
    desk.await_locks("leader", 1, 1);
    desk.terminate_the_holder("leader");
    second.finish().code(74);
    journal.await_count("lead", 3);
    assert_eq!(unit.value("Restart"), "on-failure");
    let prevented = unit.value("RestartPreventExitStatus");
    assert_eq!(prevented, "64 78", "systemd restarts after 74 and 69");

    let waiting = start();
    desk.await_locks("leader", 1, 1);
    waiting.signal(Signal::SIGTERM);
    // systemd counts this as success.
    waiting.finish().signal(Signal::SIGTERM).silent();
    third.signal(Signal::SIGTERM);
    third.finish().code(0);
    unit.assert_longer_to_stop_than_kill_after();
}

/// The service tells systemd that it is ready, for which it is permitted to send messages beside pglock's.
#[cfg(target_os = "linux")]
#[test]
fn a_service_says_when_it_is_ready() {
    let desk = Desk::new();
    desk.program("leader", "systemd-notify --ready; echo notified");
    let unit = Unit(desk.text("leader.service"));
    assert_eq!((unit.value("Type"), unit.value("NotifyAccess")), ("notify", "all"));
    let socket = std::os::unix::net::UnixDatagram::bind(desk.file("notify")).unwrap();
    let notify = format!("NOTIFY_SOCKET={}", desk.file("notify").display());
    let with_manager = format!("Environment={notify} ");
    let unit = Unit(unit.0.replace("Environment=", &with_manager));
    let running = unit.start(&desk);
    let mut buffer = [0; 4096];
    let mut receive = || {
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let messages = [receive(), receive()];
    assert!(messages[0].starts_with("STATUS=running "), "{messages:?}");
    assert!(messages[1].contains("READY=1"), "{messages:?}");
    // systemd-notify now waits until a second message, which nobody reads here, has been read.
    running.signal(Signal::SIGTERM);
    running.finish();
}

/// C11: on each host at the same time, the job runs once; and a stop is one TERM, where systemd's default would be two.
#[test]
fn a_timer_runs_the_job_on_one_host() {
    let (desk, journal) = (Desk::new(), Journal::new());
    let job = format!(
        "{}; trap 'note TERM' TERM; trap 'exit 3' USR1; note \"pid $$\"; while :; do sleep 0.05 & wait $!; done",
        journal.note()
    );
    desk.program("backup", &job);
    let unit = Unit(desk.text("backup.service"));
    assert_eq!(unit.value("Type"), "oneshot");
    unit.assert_longer_to_stop_than_kill_after();

    let first = unit.start(&desk);
    eventually(SOON, "the job", || journal.pids().len() == 1);
    let began = Instant::now();
    unit.start(&desk).finish().code(0).silent();
    assert!(began.elapsed() < SOON && journal.pids().len() == 1);

    assert_eq!(unit.value("KillMode"), "mixed");
    first.signal(Signal::SIGTERM);
    journal.await_count("TERM", 1);
    // What control-group does: first to one process, then to the other.
    first.signal(Signal::SIGTERM);
    journal.await_count("TERM", 2);
    kill(journal.pids()[0], Signal::SIGTERM).unwrap();
    journal.await_count("TERM", 3);
    first.signal(Signal::SIGUSR1);
    first.finish().code(3).silent();
    assert_eq!(journal.count("TERM"), 3, "one for the stop, two for the default");
}

/// The credential is readable for root alone, or, with `User=`, for the user and in some versions for the group.
#[test]
fn the_password_can_be_a_credential() {
    let server = Server::start();
    server.sql(&format!(
        "SET password_encryption = 'scram-sha-256'; CREATE ROLE {WITH_PASSWORD} LOGIN PASSWORD 'secret'"
    ));
    let directory = tempfile::tempdir().unwrap();
    let run = |variable: &str, service: &str, text: &str, mode| {
        let path = directory.path().join(variable);
        // What is there may be read-only.
        let _ = fs::remove_file(&path);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let port = server.port();
        let dsn = format!("host=127.0.0.1 port={port} user={WITH_PASSWORD} dbname=postgres {service}");
        let run = Pglock::alone().args(["run", "-k", "credential", "-d", &dsn, "true"]);
        run.env(variable, path).output()
    };
    let passfile = format!("*:*:*:{WITH_PASSWORD}:secret\n");
    run("PGPASSFILE", "", &passfile, 0o400).code(0).silent();
    run("PGPASSFILE", "", &passfile, 0o440).code(77);
    let service_file = "[locks]\npassword=secret\n";
    run("PGSERVICEFILE", "service=locks", service_file, 0o440)
        .code(0)
        .silent();
}
