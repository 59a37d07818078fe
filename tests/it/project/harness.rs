//! The test harness itself: no test may fail, or pass, because of it.

use crate::support::command::command;
use crate::support::pglock::Pglock;
use crate::support::probe;
use crate::support::server::{Locks, Server};
use crate::support::wait::{SOON, eventually};
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// Set in the process that [`a_killed_test_process_leaves_no_server`] kills.
const VICTIM: &str = "IT_VICTIM";

/// The variable that says where the programs of PostgreSQL are, which [`command`] removes.
fn server_programs() -> Option<(&'static str, OsString)> {
    Some(("PGLOCK_TEST_PG_BIN", std::env::var_os("PGLOCK_TEST_PG_BIN")?))
}

#[test]
fn a_killed_test_process_leaves_no_server() {
    if std::env::var_os(VICTIM).is_some() {
        let server = Server::start();
        // Not by print!, which the test framework captures.
        fs::write(std::env::var_os(VICTIM).unwrap(), server.host()).unwrap();
        // Blocks until this process is killed; the end of the pipe means that the other test process has ended.
        let _ = std::io::stdin().read(&mut [0]);
        return;
    }
    let note = tempfile::NamedTempFile::new().unwrap();
    let mut victim = command(std::env::current_exe().unwrap());
    victim.args(["--exact", "project::harness::a_killed_test_process_leaves_no_server"]);
    victim.env(VICTIM, note.path()).envs(server_programs());
    victim.stdin(Stdio::piped()).stdout(Stdio::null());
    let mut victim = victim.spawn().unwrap();
    let directory = || fs::read_to_string(note.path()).unwrap();
    eventually(SOON, "a server", || !directory().is_empty());
    let pid_file = Path::new(&directory()).join("data/postmaster.pid");
    let first_line = BufReader::new(fs::File::open(pid_file).unwrap()).lines().next();
    let postmaster: i32 = first_line.unwrap().unwrap().parse().unwrap();
    let is_alive = || nix::sys::signal::kill(nix::unistd::Pid::from_raw(postmaster), None).is_ok();
    assert!(is_alive());
    victim.kill().unwrap();
    victim.wait().unwrap();
    eventually(SOON, "the end of the server", || !is_alive());
    eventually(SOON, "the end of its directory", || !Path::new(&directory()).exists());
}

/// The outcome of a test must not depend on how the tests were started: from `nohup`, from the background of a script,
/// or with signals blocked. This test runs some of those that would fail first, in a test process that was started with
/// all of that. SIGCHLD is left alone: cargo itself cannot wait for a test process when it is ignored.
#[cfg(target_os = "linux")]
#[test]
fn the_tests_pass_with_signals_ignored_and_blocked() {
    const TESTS: [&str; 8] = [
        "project::harness::the_probe_records_each_signal_and_its_sender",
        "run::signals::each_signal_arrives_once",
        "run::signals::stop_and_continuation_reach_job_and_pglock",
        "run::signals::the_job_finds_mask_and_dispositions_as_without_pglock",
        "run::signals::the_whole_group_is_signalled",
        "run::signals::what_was_ignored_on_entry_stays_ignored",
        "run::terminal::a_lost_lock_terminates_the_descendants_and_not_the_script",
        "run::terminal::ctrl_c_ends_a_wait",
    ];
    let tests = std::env::current_exe().unwrap();
    let mut run = Pglock::for_program("env")
        .arg("--block-signal")
        .arg("--ignore-signal=HUP,INT,QUIT,TERM,USR1,USR2,WINCH,CONT,TSTP,TTIN,TTOU")
        .arg(tests)
        .arg("--exact")
        .args(TESTS);
    run.command().envs(server_programs());
    let output = run.output();
    output.code(0);
    let passed = format!("test result: ok. {} passed;", TESTS.len());
    assert!(String::from_utf8_lossy(&output.stdout).contains(&passed), "{output}");
}

/// A program that a test starts in another way than by [`command`] would inherit what the test process has inherited.
#[test]
fn every_program_is_started_in_one_place() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let directories = ["it", "torture", "failover", "soak"].map(|directory| tests.join(directory));
    let directories = directories.to_vec();
    let starts = containing(directories, concat!("Command::", "new("), &tests);
    assert_eq!(starts, [Path::new("it/support/command.rs")]);
}

/// What is sent in another way than by `lock::simple_query` lacks the statements that keep poolers from misreading it.
/// The others have nothing to protect: BEGIN alone, the empty query, and the one that knows no more than the
/// connection.
#[test]
fn queries_are_sent_in_one_place() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut senders = containing(vec![source.clone()], ".simple_query(", &source);
    senders.sort();
    let expected = [
        "commands/check/timeouts.rs",
        "connection/attempt.rs",
        "connection/client.rs",
        "lock/acquire.rs",
        "lock/query.rs",
    ];
    assert_eq!(senders, expected.map(Path::new));
}

/// Returns the files below these directories that contain the text, relative to `root`.
fn containing(mut directories: Vec<PathBuf>, text: &str, root: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if fs::read(&path)
                .unwrap()
                .windows(text.len())
                .any(|part| part == text.as_bytes())
            {
                files.push(path.strip_prefix(root).unwrap().to_owned());
            }
        }
    }
    files
}

#[test]
fn a_stopped_server_is_removed_on_drop() {
    let server = Server::start();
    let directory = server.directory().to_owned();
    server.stop_immediate();
    assert!(server.config().connect(postgres::NoTls).is_err());
    drop(server);
    assert!(!directory.exists());
}

#[test]
fn a_restarted_server_has_no_locks_and_the_same_address() {
    let server = Server::with(&["work_mem=123kB"]);
    let mut holder = server.client();
    holder.simple_query("SELECT pg_advisory_lock(7)").unwrap();
    assert_eq!(server.locks("7"), Locks { granted: 1, waiting: 0 });
    server.restart();
    assert!(holder.simple_query("SELECT 1").is_err());
    assert_eq!(server.locks("7"), Locks { granted: 0, waiting: 0 });
    assert_eq!(server.value("SHOW work_mem"), "123kB");
}

#[test]
fn the_probe_records_each_signal_and_its_sender() {
    use nix::sys::signal::Signal;
    let directory = tempfile::tempdir().unwrap();
    let record = directory.path().join("record");
    let probe = Server::shared().program(probe::path()).arg(&record);
    let probe = probe.args(["--end-on", "TERM", "--beat"]).spawn();
    probe.await_stdout(&format!("ready (pid {})\n", probe.pid()));
    let read = || fs::read_to_string(&record).unwrap();
    eventually(SOON, "a beat", || read().contains(" beat\n"));
    for signal in [Signal::SIGUSR1, Signal::SIGINT, Signal::SIGTERM] {
        probe.signal(signal);
        let line = format!("{} from {}\n", &signal.as_str()[3..], std::process::id());
        eventually(SOON, &line, || read().contains(&line));
    }
    probe.finish().signal(Signal::SIGTERM);
    assert_eq!(read().matches(" from ").count(), 3, "{}", read());
    assert!(read().lines().next().unwrap().contains(" blocked=0 ignored="));
}
