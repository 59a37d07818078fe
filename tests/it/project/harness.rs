//! The harness itself: a test that stands on it should not fail, or pass, because of it.

use crate::support::server::{Locks, Server};
use crate::support::wait::{SOON, eventually, until};
use crate::support::{probe, scrubbed};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

/// Set in the process that [`a_killed_test_process_leaves_no_server`] kills.
const VICTIM: &str = "IT_VICTIM";

/// "It is gone afterwards in every case."
#[test]
fn a_killed_test_process_leaves_no_server() {
    if std::env::var_os(VICTIM).is_some() {
        let server = Server::start();
        // Not by print!, which the test framework keeps to itself.
        fs::write(std::env::var_os(VICTIM).unwrap(), server.host()).unwrap();
        until(SOON, || false);
        return;
    }
    let note = tempfile::NamedTempFile::new().unwrap();
    let mut victim = scrubbed(std::env::current_exe().unwrap());
    victim.args(["--exact", "harness::a_killed_test_process_leaves_no_server"]);
    victim.env(VICTIM, note.path()).stdout(Stdio::null());
    if let Some(folder) = std::env::var_os("PGLOCK_TEST_PG_BIN") {
        victim.env("PGLOCK_TEST_PG_BIN", folder);
    }
    let mut victim = victim.spawn().unwrap();
    let folder = || fs::read_to_string(note.path()).unwrap();
    eventually(SOON, "a server", || !folder().is_empty());
    let pid_file = Path::new(&folder()).join("data/postmaster.pid");
    let first_line = BufReader::new(fs::File::open(pid_file).unwrap()).lines().next();
    let postmaster: i32 = first_line.unwrap().unwrap().parse().unwrap();
    let lives = || nix::sys::signal::kill(nix::unistd::Pid::from_raw(postmaster), None).is_ok();
    assert!(lives());
    victim.kill().unwrap();
    victim.wait().unwrap();
    eventually(SOON, "the end of the server", || !lives());
    eventually(SOON, "the end of its folder", || !Path::new(&folder()).exists());
}

#[test]
fn a_dropped_server_is_gone_also_when_it_was_stopped_before() {
    let server = Server::start();
    let folder = server.folder().to_owned();
    server.stop_immediate();
    assert!(server.config().connect(postgres::NoTls).is_err());
    drop(server);
    assert!(!folder.exists());
}

#[test]
fn a_restarted_server_has_lost_its_locks_and_is_found_where_it_was() {
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
fn the_probe_records_each_signal_once_and_by_whom() {
    use nix::sys::signal::Signal;
    let folder = tempfile::tempdir().unwrap();
    let record = folder.path().join("record");
    let probe = Server::shared().around(probe::path()).arg(&record);
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
