//! The lock is lost while the job runs: the whole job is terminated, and pglock reports it.
//!
//! Every loss is real: a session terminated by an administrator, a server that crashes or restarts, a frozen backend.
//! Network cuts are in `partition`.

use crate::support::case::Case;
use crate::support::journal::{Journal, now, state};
use crate::support::pglock::{Output, binary};
use crate::support::server::Server;
use crate::support::unique;
use crate::support::wait::{SOON, eventually};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, getsid};
use std::time::{Duration, Instant};

/// Asserts status 74 and one line that names the key.
#[track_caller]
pub(super) fn assert_lost(output: &Output, key: &str, why: &str, done: &str) {
    let line = output.code(74).stderr_line();
    let begin = format!("lost the lock on key \"{key}\" at 20");
    assert!(
        line.starts_with(&begin) && line.contains(why) && line.ends_with(done),
        "{line}"
    );
}

/// P20: the job gets TERM within 100 ms (median).
#[test]
fn an_ended_session_is_noticed_in_milliseconds() {
    let mut delays: Vec<u128> = (0..9)
        .map(|_| {
            let (case, journal) = (Case::new(), Journal::new());
            let job = format!(
                "{}; trap 'note TERM; exit 0' TERM; note ready; while :; do sleep 1 & wait $!; done",
                journal.note()
            );
            let running = case.run().sh(&job).spawn();
            journal.await_count("ready", 1);
            let pid = case.backend();
            let mut client = case.client();
            let began = now();
            client
                .simple_query(&format!("SELECT pg_terminate_backend({pid})"))
                .unwrap();
            let output = running.finish();
            assert_lost(
                &output,
                &case.key,
                "terminating connection due to administrator command",
                "terminated the job with SIGTERM",
            );
            assert_eq!(journal.count("TERM"), 1);
            journal.first("TERM").saturating_sub(began) / 1_000_000
        })
        .collect();
    delays.sort_unstable();
    println!("from pg_terminate_backend to the job's TERM handler, ms: {delays:?}");
    assert!(delays[delays.len() / 2] <= 100, "{delays:?}");
}

/// P20, P21
#[test]
fn a_crashed_or_restarted_server_terminates_the_job() {
    let server = Server::start();
    for (key, go) in [
        ("crash", Server::stop_immediate as fn(&Server)),
        ("restart", Server::restart),
    ] {
        let journal = Journal::new();
        let running = server.run(key).sh(&journal.recording("INT")).spawn();
        journal.await_count("ready", 1);
        go(&server);
        assert_lost(&running.finish(), key, "", "terminated the job with SIGTERM");
        server.restart();
    }
}

/// P21
#[test]
fn a_job_that_ignores_term_is_killed_with_its_children() {
    let (case, journal) = (Case::new(), Journal::new());
    let running = case.run().args(["--kill-after", "0.7"]).sh(&journal.stubborn()).spawn();
    eventually(SOON, "three processes", || journal.pids().len() == 3);
    let began = Instant::now();
    case.terminate_backends();
    let output = running.finish();
    let took = began.elapsed();
    assert_lost(
        &output,
        &case.key,
        "terminating connection",
        "terminated the job with SIGTERM, then SIGKILL",
    );
    assert!(
        took >= Duration::from_millis(700) && took < Duration::from_secs(5),
        "{took:?}"
    );
    assert!(
        journal.pids().iter().all(|pid| state(*pid).is_none()),
        "{:?}",
        journal.pids()
    );
}

/// P21: timeout(1), the job of another pglock and the jobs of a shell have groups of their own, also when their parent
/// has exited.
#[test]
fn what_has_left_the_group_of_the_job_is_terminated_too() {
    let directory = tempfile::tempdir().unwrap();
    let stubborn = directory.path().join("stubborn");
    let nested = format!("{} run --shared --key {} --", binary(), unique("inner"));
    for around in ["timeout 100", &nested, "set -m;"] {
        let (case, journal) = (Case::new(), Journal::new());
        let script = format!(
            "trap '' TERM; {}; note \"pid $$\"; while :; do sleep 0.05; done",
            journal.note()
        );
        std::fs::write(&stubborn, script).unwrap();
        let start = format!("{around} sh {}", stubborn.display());
        let job = format!("({start} &); {start}; :");
        let running = case
            .run()
            .args(["--kill-after", "0.5", "--", "bash", "-c", &job])
            .spawn();
        eventually(SOON, "both processes", || journal.pids().len() == 2);
        case.terminate_backends();
        let done = "terminated the job with SIGTERM, then SIGKILL";
        assert_lost(&running.finish(), &case.key, "", done);
        let left = journal.pids().iter().filter(|pid| state(**pid).is_some()).count();
        assert_eq!(left, 0, "{around:?}");
    }
}

/// P21: a daemon, which has a session of its own and no parent, outlives the job that starts it, also if the leader of
/// its session has exited.
#[test]
fn a_daemon_is_not_part_of_the_job() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("daemon");
    for start in ["sh PROGRAM", "sh -c 'sh PROGRAM & exit'"] {
        let (case, journal) = (Case::new(), Journal::new());
        let daemon = format!("{}; note \"pid $$\"; note ready; exec sleep 100", journal.note());
        std::fs::write(&program, daemon).unwrap();
        let start = start.replace("PROGRAM", program.to_str().unwrap());
        let job = format!("{}; setsid --fork {start}; note started; sleep 100", journal.note());
        let running = case.run().sh(&job).spawn();
        journal.await_count("ready", 1);
        journal.await_count("started", 1);
        let daemon = journal.pids()[0];
        assert_ne!(getsid(Some(daemon)), getsid(None));
        let parent = || std::fs::read_to_string(format!("/proc/{daemon}/stat")).unwrap();
        let is_orphan = || parent().contains(&format!(") S {} ", running.pid()));
        eventually(SOON, "the end of its parent", is_orphan);
        case.terminate_backends();
        assert_lost(&running.finish(), &case.key, "", "terminated the job with SIGTERM");
        assert!(state(daemon).is_some());
        kill(daemon, Signal::SIGKILL).unwrap();
    }
}

/// A daemon that starts a process every millisecond, beside many that rest: no two lists of them are the same.
const BUSY_DAEMON: &str = "
import os, signal, sys, time

def start(lifetime):
    if os.fork() == 0:
        time.sleep(lifetime)
        os._exit(0)

if os.fork():
    os._exit(0)
os.setsid()
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for _ in range(200):
    start(60)
with open(sys.argv[1], 'a') as journal:
    journal.write(f'0 pid {os.getpid()}\\n')
end = time.monotonic() + 60
while time.monotonic() < end:
    start(0.02)
    time.sleep(0.001)
";

/// P21: nor does the lock wait for one.
#[test]
fn a_busy_daemon_does_not_keep_the_lock() {
    let (case, journal) = (Case::new(), Journal::new());
    let path = journal.path();
    let job = format!("python3 -c \"{BUSY_DAEMON}\" {}; sleep 100", path.display());
    let running = case.run().args(["--kill-after", "4"]).sh(&job).spawn();
    eventually(SOON, "the daemon", || journal.pids().len() == 1);
    let daemon = journal.pids()[0];
    case.terminate_backends();
    let output = running.finish();
    let lives = state(daemon).is_some();
    killpg(daemon, Signal::SIGKILL).unwrap();
    assert_lost(&output, &case.key, "", "terminated the job with SIGTERM");
    assert!(lives);
}

/// P21: a process whose first thread has ended looks like a zombie.
#[test]
fn a_process_without_its_first_thread_is_terminated_too() {
    let (case, journal) = (Case::new(), Journal::new());
    let program = "import ctypes, signal, threading, time\n\
        signal.signal(signal.SIGTERM, signal.SIG_IGN)\n\
        threading.Thread(target=time.sleep, args=(100,)).start()\n\
        ctypes.CDLL(None).pthread_exit(None)\n";
    let job = format!(
        "{}; python3 -c '{program}' & note \"pid $!\"; note ready; wait",
        journal.note()
    );
    let running = case.run().args(["--kill-after", "0.5"]).sh(&job).spawn();
    journal.await_count("ready", 1);
    let pid = journal.pids()[0];
    let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    eventually(SOON, "the end of the first thread", || stat().contains(") Z "));
    case.terminate_backends();
    let done = "terminated the job with SIGTERM, then SIGKILL";
    assert_lost(&running.finish(), &case.key, "", done);
    eventually(SOON, "the end of the process", || stat().is_empty());
}

/// P21: a child that still cleans up after the leader of the group has exited has all of the grace period, and no more
/// than it needs.
#[test]
fn the_rest_of_the_group_has_its_grace() {
    let (case, journal) = (Case::new(), Journal::new());
    let job = format!(
        "{}; (trap 'sleep 0.3; note clean; exit 0' TERM; note ready; while :; do sleep 0.05; done) & wait",
        journal.note()
    );
    let running = case.run().args(["--kill-after", "20"]).sh(&job).spawn();
    journal.await_count("ready", 1);
    case.terminate_backends();
    let output = running.finish();
    assert_lost(&output, &case.key, "", "terminated the job with SIGTERM");
    assert_eq!(journal.count("clean"), 1);
    assert!(output.took < Duration::from_secs(15), "{output}");
}

/// P23
#[test]
fn an_ignored_loss_is_reported_and_the_job_runs_to_its_end() {
    for variable in [false, true] {
        let (case, journal) = (Case::new(), Journal::new());
        let run = if variable {
            case.run().env("PGLOCK_ON_LOST", "ignore")
        } else {
            case.run().args(["--on-lost", "ignore"])
        };
        let running = run.sh(&journal.recording("TERM")).spawn();
        journal.await_count("ready", 1);
        case.terminate_backends();
        running.await_stderr("\n");
        running.signal(Signal::SIGUSR2);
        let output = running.finish();
        let line = output.code(3).stderr_line();
        assert!(
            line.ends_with("the job continues unguarded (--on-lost ignore)"),
            "{line}"
        );
        assert_eq!(journal.count("TERM"), 0);
    }
}

/// P21, P52: a second TERM too.
#[test]
fn signals_are_forwarded_while_the_job_is_being_terminated() {
    let (case, journal) = (Case::new(), Journal::new());
    let running = case
        .run()
        .args(["--kill-after", "60"])
        .sh(&journal.recording("TERM"))
        .spawn();
    journal.await_count("ready", 1);
    case.terminate_backends();
    journal.await_count("TERM", 1);
    running.signal(Signal::SIGTERM);
    journal.await_count("TERM", 2);
    running.signal(Signal::SIGUSR2);
    assert_lost(&running.finish(), &case.key, "", "terminated the job with SIGTERM");
}

/// P21: a job that is stopped (SIGSTOP) when the lock is lost still handles its TERM.
#[test]
fn a_stopped_job_is_continued_to_be_terminated() {
    let (case, journal) = (Case::new(), Journal::new());
    let job = format!(
        "{}; trap 'note TERM; exit' TERM; note \"pid $$\"; while :; do sleep 0.05; done",
        journal.note()
    );
    let running = case.run().args(["--kill-after", "60"]).sh(&job).spawn();
    eventually(SOON, "the job", || journal.pids().len() == 1);
    let job = journal.pids()[0];
    kill(job, Signal::SIGSTOP).unwrap();
    eventually(SOON, "the stop", || state(job) == Some('T'));
    case.terminate_backends();
    assert_lost(&running.finish(), &case.key, "", "terminated the job with SIGTERM");
    assert_eq!(journal.count("TERM"), 1);
}

/// P21: a job that has become another user's exits on its own, and pglock waits for it. It says at once why it waits.
#[cfg(target_os = "linux")]
#[test]
fn a_job_that_may_not_be_signalled_is_not_said_to_be_terminated() {
    use std::os::unix::process::CommandExt;
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let file_system = nix::sys::statvfs::statvfs(directory.path()).unwrap();
    if file_system.flags().contains(nix::sys::statvfs::FsFlags::ST_NOSUID) {
        return;
    }
    let case = Case::new();
    let become_root = directory.path().join("setpriv");
    let executable = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
    std::fs::copy("/usr/bin/setpriv", &become_root).unwrap();
    std::fs::set_permissions(&become_root, executable(0o4755)).unwrap();
    std::fs::set_permissions(directory.path(), executable(0o755)).unwrap();
    let job = format!("exec {} --reuid 0 sh -c 'echo ready; read -r _'", become_root.display());
    let mut run = case.server.program(&binary()).env("PGHOST", "127.0.0.1");
    run.command().uid(65534);
    let running = run
        .args(["run", "-k", &case.key, "--kill-after", "0.5"])
        .sh(&job)
        .spawn();
    running.await_stdout("ready\n");
    case.terminate_backends();
    running.await_stderr("cannot send SIGKILL to the job");
    let output = running.finish();
    let text = String::from_utf8_lossy(&output.code(74).stderr).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let begin = format!("pglock: lost the lock on key \"{}\" at ", case.key);
    assert!(lines.iter().all(|line| line.starts_with(&begin)), "{output}");
    let ends = [
        "; cannot send SIGTERM to the job: Operation not permitted",
        "; cannot send SIGKILL to the job: Operation not permitted",
        "; the job could not be terminated and exited on its own",
    ];
    assert_eq!(lines.len(), ends.len(), "{output}");
    assert!(
        lines.iter().zip(ends).all(|(line, end)| line.ends_with(end)),
        "{output}"
    );
}

/// P20: the limit is H + D + G.
#[test]
fn a_frozen_server_is_a_lost_lock_after_the_documented_time() {
    let (case, journal) = (Case::new(), Journal::new());
    let limits = ["--heartbeat", "0.4", "--kill-after", "0.4"];
    let running = case.run().args(limits).sh(&journal.stubborn()).spawn();
    eventually(SOON, "three processes", || journal.pids().len() == 3);
    let frozen = case.backend();
    kill(frozen, Signal::SIGSTOP).unwrap();
    let at = now();
    let output = running.finish();
    kill(frozen, Signal::SIGCONT).unwrap();
    assert_lost(
        &output,
        &case.key,
        "the server did not respond within 400ms",
        "SIGTERM, then SIGKILL",
    );
    let last = Duration::from_nanos(journal.last("beat").saturating_sub(at) as u64);
    println!("the job's last beat, after the freeze: {last:?}");
    // 1.2 s by the rule, and what a busy machine adds to it.
    assert!(
        last >= Duration::from_millis(700) && last < Duration::from_millis(2200),
        "{last:?}"
    );
    // The connection was cut, so nothing is left once the server runs again.
    case.await_locks(0, 0);
}

/// P12: pglock closes the connection, and exits with the job's status.
#[test]
fn a_server_that_is_frozen_during_the_release_does_not_hang_pglock() {
    let case = Case::new();
    let key = &case.key;
    let mut running = case
        .run()
        .args(["-v", "--heartbeat", "0.5"])
        .sh("sleep 60 & echo $!; read -r _; exit 6")
        .spawn();
    running.await_stdout("\n");
    let left_behind = Pid::from_raw(running.stdout().trim().parse().unwrap());
    let frozen = case.backend();
    kill(frozen, Signal::SIGSTOP).unwrap();
    let began = Instant::now();
    std::io::Write::write_all(running.stdin(), b"go\n").unwrap();
    eventually(SOON, "the end of pglock", || !running.lives());
    let took = began.elapsed();
    kill(frozen, Signal::SIGCONT).unwrap();
    assert!(took < Duration::from_secs(3), "{took:?}");
    running.await_stderr("closed the connection");
    // Neither lock nor session is left, although what the job left behind has inherited the socket.
    case.await_locks(0, 0);
    let session = format!("SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'pglock:{key} %'");
    eventually(SOON, "the end of the session", || case.sql(&session).is_empty());
    assert!(state(left_behind).is_some());
    kill(left_behind, Signal::SIGKILL).unwrap();
    running.finish().code(6);
}

/// P20: a pglock that was itself stopped for longer than any deadline finds its session intact when it is continued.
#[test]
fn a_continued_pglock_does_not_blame_the_server() {
    let (case, journal) = (Case::new(), Journal::new());
    let key = &case.key;
    let job = journal.recording("TERM");
    let running = case.run().args(["--heartbeat", "0.4"]).sh(&job).spawn();
    journal.await_count("ready", 1);
    running.signal(Signal::SIGSTOP);
    eventually(SOON, "the stop", || state(running.pid()) == Some('T'));
    // Longer than interval and deadline together.
    let session = format!("FROM pg_stat_activity WHERE application_name LIKE 'pglock:{key} %'");
    let is_silent = format!("SELECT clock_timestamp() - state_change > '1 s' {session}");
    eventually(SOON, "a silent session", || case.value(&is_silent) == "t");
    running.signal(Signal::SIGCONT);
    let heartbeat = format!("SELECT state_change {session}");
    let mut heartbeats = vec![case.value(&heartbeat)];
    eventually(SOON, "two more heartbeats", || {
        heartbeats.push(case.value(&heartbeat));
        heartbeats.dedup();
        heartbeats.len() > 2
    });
    running.signal(Signal::SIGUSR2);
    running.finish().code(3).silent();
    assert_eq!(journal.count("TERM"), 0);
}
