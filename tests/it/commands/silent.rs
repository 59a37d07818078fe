//! A server that stops responding: `list`, `check` and `evict` end within their limits, and name what was not answered.

use crate::support::case::Case;
use crate::support::gate::{Answer, Gate};
use crate::support::pglock::{Output, Pglock, Running};
use crate::support::proxy::Proxy;
use crate::support::server::{Server, number, rows};
use crate::support::tls::Secured;
use crate::support::unique;
use crate::support::wait::{SOON, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::thread;
use std::time::Duration;

/// The heartbeat that makes [`REPLY_LIMIT`] the limit for each reply.
const HEARTBEAT: &str = "0.4";
const REPLY_LIMIT: &str = "800ms";
/// How much longer than the limit a busy machine may take.
const SLACK: Duration = Duration::from_secs(5);

/// Returns each command with arguments for this key.
fn commands(key: &str) -> [Vec<&str>; 3] {
    [vec!["list"], vec!["check"], vec!["evict", "--yes", "--key", key]]
}

/// Asserts that pglock gave up because this question was not answered.
#[track_caller]
fn assert_stopped_responding(output: &Output, question: &str) {
    let text = String::from_utf8_lossy(&output.code(69).stderr).into_owned();
    let front =
        format!("pglock: the server stopped responding: no reply within {REPLY_LIMIT} to the query {question} (");
    assert!(text.starts_with(&front) && text.lines().count() == 1, "{output}");
    assert!(output.took < Duration::from_millis(800) + SLACK, "{output}");
}

/// P96: after the login, and after each of the first queries.
#[test]
fn a_server_that_falls_silent_ends_each_command() {
    const HOLDERS: &str = "for the holders and waiters";
    const PHASES: [(&str, &[usize], &str); 19] = [
        ("list", &[0], HOLDERS),
        ("list", &[1], HOLDERS),
        ("list", &[2], HOLDERS),
        ("check", &[0], "for the server version"),
        ("check", &[1], "for the role"),
        ("check", &[2], "for the password and the connections"),
        ("check", &[3], "for the password and the connections"),
        ("check", &[4], "for the client address"),
        ("check", &[5], "for the durability"),
        ("check", &[6], "for the encryption"),
        ("check", &[7], "for the timeouts"),
        ("check", &[8], "for the test lock"),
        ("evict", &[0], HOLDERS),
        ("evict", &[1], HOLDERS),
        ("evict", &[2], "for the right to evict the holder"),
        ("evict", &[3], "to prepare the eviction"),
        ("evict", &[4], "to mark the session for eviction"),
        ("evict", &[5], "to terminate the session"),
        // It asks this as often as it takes.
        ("evict", &[6], "for the terminated session"),
    ];
    let server = Server::shared();
    for phases in PHASES.chunks(6) {
        thread::scope(|scope| {
            for (name, queries, question) in phases {
                scope.spawn(move || {
                    let key = unique("silent");
                    // A client that is not asked, but terminated.
                    let mut holder = server.client();
                    rows(&mut holder, &format!("SELECT pg_advisory_lock({})", number(&key)));
                    let command = commands(&key).into_iter().find(|command| command[0] == *name);
                    let pglock = Pglock::alone().args(command.unwrap());
                    let proxy = Proxy::silent_after(server, queries);
                    let output = pglock
                        .env("PGLOCK_DSN", proxy.dsn())
                        .env("PGLOCK_HEARTBEAT", HEARTBEAT)
                        .output();
                    assert_stopped_responding(&output, question);
                });
            }
        });
    }
}

/// P96: before the login, `--connect-timeout` is the limit.
#[test]
fn a_server_that_never_responds_ends_each_command() {
    let gate = Gate::before(Server::shared(), Answer::Silence);
    for command in commands("x") {
        let pglock = Pglock::alone().args(command).args(["--connect-timeout", "0.5"]);
        let output = pglock.env("PGLOCK_DSN", gate.dsn()).output();
        let text = String::from_utf8_lossy(&output.code(69).stderr).into_owned();
        assert!(text.ends_with(": timeout expired after 500ms\n"), "{output}");
    }
}

/// P96: whatever the transport is. The backend stands still between two refreshes of the list.
#[test]
fn a_stopped_backend_is_noticed_over_unix_sockets_and_tls() {
    let server = Secured::start();
    let over_tls = format!(
        "postgresql://with_tls@127.0.0.1:{}/postgres?sslmode=require",
        server.port()
    );
    let over_socket = format!(
        "host={} port={} user=postgres dbname=postgres",
        server.host(),
        server.port()
    );
    for dsn in [over_tls, over_socket] {
        let pglock = Pglock::alone().args(["list", "--watch", "--dsn", &dsn]);
        let watching = pglock.env("PGLOCK_HEARTBEAT", HEARTBEAT).spawn();
        watching.await_stdout("no locks are held");
        // The backend that was stopped before may still be ending.
        let mut backends = Vec::new();
        eventually(SOON, "one backend", || {
            backends = server
                .sql("SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'pglock list%'")
                .concat();
            backends.len() == 1
        });
        let _stopped = StoppedBackend::stop(backends[0].parse().unwrap());
        eventually(SOON, "the end of the list", || {
            watching.stderr().contains("stopped responding")
        });
        assert_eq!(watching.finish().status.code(), Some(69));
    }
}

/// A process that continues on drop, so that its server can end it.
struct StoppedBackend(Pid);

impl StoppedBackend {
    fn stop(pid: i32) -> StoppedBackend {
        let pid = Pid::from_raw(pid);
        kill(pid, Signal::SIGSTOP).unwrap();
        StoppedBackend(pid)
    }
}

impl Drop for StoppedBackend {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// P96: a signal does not wait for the limit.
#[test]
fn a_signal_ends_a_command_that_waits_for_a_reply() {
    let case = Case::new();
    let holder = case.holder();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let waiting: Vec<Running> = commands(&case.key)
            .into_iter()
            .map(|command| {
                let proxy = Proxy::silent_after(case.server, &[1]);
                let pglock = Pglock::alone().args(command).env("PGLOCK_DSN", proxy.dsn());
                let running = pglock.env("PGLOCK_HEARTBEAT", "1h").spawn();
                proxy.await_silence();
                running
            })
            .collect();
        for running in waiting {
            running.signal(signal);
            running.finish().signal(signal);
        }
    }
    holder.finish().code(0);
}

/// P96: only each answer is limited. The job takes longer to end than any reply may, on a line that is nearly too slow.
#[test]
fn an_eviction_may_take_longer_than_a_reply() {
    let case = Case::new();
    let slow_line = Proxy::with_delay(case.server, Duration::from_millis(250));
    let job = "trap 'sleep 3; exit 0' TERM; echo ready; while :; do sleep 0.05; done";
    let holder = case.run().sh(job).spawn();
    holder.await_stdout("ready\n");
    let evict = Pglock::alone().args(["evict", "--yes", "--key", &case.key]);
    let output = evict
        .env("PGLOCK_DSN", slow_line.dsn())
        .env("PGLOCK_HEARTBEAT", "1")
        .output();
    output.code(0).silent();
    assert!(output.took > Duration::from_secs(3), "{output}");
    holder.finish().code(74);
}
