//! P21: which processes are terminated with the job after a loss, and that none of them is overlooked.

use super::lost::assert_lost;
use crate::support::case::Case;
use crate::support::journal::{Journal, state};
use crate::support::network::can_unshare;
use crate::support::pglock::{Pglock, binary};
use crate::support::wait::{SOON, eventually};
use std::path::PathBuf;

/// Writes a script of this name that only KILL ends and that records its process. Returns its path.
fn stubborn(directory: &tempfile::TempDir, name: &str, journal: &Journal) -> PathBuf {
    let path = directory.path().join(name);
    let script = format!(
        "#!/bin/sh\ntrap '' TERM; {}; note \"pid $$\"; while note beat; do sleep 0.05; done",
        journal.note()
    );
    std::fs::write(&path, script).unwrap();
    path
}

/// Loses the lock of a job that starts a process of [`stubborn`], and asserts that it is killed.
#[track_caller]
fn assert_killed(case: &Case, journal: &Journal, run: Pglock, job: &str) {
    let running = run.args(["--kill-after", "0.5"]).sh(job).spawn();
    eventually(SOON, "the process", || journal.pids().len() == 1);
    case.terminate_backends();
    let done = "terminated the job with SIGTERM, then SIGKILL";
    assert_lost(&running.finish(), &case.key, "", done);
    assert_eq!(state(journal.pids()[0]), None, "{job:?}");
}

/// P21: the kernel shortens the name to 15 bytes, in the middle of a letter.
#[test]
fn a_process_whose_name_is_not_utf_8_is_terminated_too() {
    let (case, journal) = (Case::new(), Journal::new());
    let directory = tempfile::tempdir().unwrap();
    let program = stubborn(&directory, "обновление", &journal);
    let job = format!("sh -c '\"$0\"' {} & wait", program.display());
    let make_executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, make_executable).unwrap();
    assert_killed(&case, &journal, case.run(), &job);
}

/// P21: in a PID namespace, /proc may be that of another one, whose process IDs mean nothing here.
#[test]
fn the_proc_of_another_namespace_is_not_believed() {
    if !can_unshare("-pf") {
        return;
    }
    let (case, journal) = (Case::new(), Journal::new());
    let directory = tempfile::tempdir().unwrap();
    let program = stubborn(&directory, "stubborn", &journal);
    // Process 2 exists in the outer namespace as well.
    let around = ["-pf", "sh", "-c", "\"$@\"; exit $?", "sh"];
    let unshare = case.server.program("unshare").args(around);
    let run = unshare.args([&binary(), "run", "--key", &case.key, "--kill-after", "0.5"]);
    let running = run.sh(&format!("sh {} & wait", program.display())).spawn();
    eventually(SOON, "the process", || journal.pids().len() == 1);
    case.terminate_backends();
    let done = "terminated the job with SIGTERM, then SIGKILL";
    assert_lost(&running.finish(), &case.key, "", done);
}

/// P21: work that is passed on by fork and exit, faster than the processes can be listed.
#[test]
fn a_chain_of_processes_is_terminated_to_its_end() {
    let (case, journal) = (Case::new(), Journal::new());
    let chain = "import os, signal, sys, time\n\
        signal.signal(signal.SIGTERM, signal.SIG_IGN)\n\
        print(\"ready\", flush=True)\n\
        while os.path.exists(sys.argv[1]):\n  time.sleep(0.002)\n  if os.fork(): os._exit(0)\n";
    let job = format!(
        "{}; note begin; python3 -c '{chain}' {} & sleep 100",
        journal.note(),
        journal.path().display()
    );
    let running = case.run().args(["--kill-after", "0.5"]).sh(&job).spawn();
    running.await_stdout("ready\n");
    case.terminate_backends();
    let output = running.finish();
    let line = String::from_utf8_lossy(&output.code(74).stderr).into_owned();
    let done = "terminated the job with SIGTERM, then SIGKILL\n";
    assert!(line.ends_with(done), "{output}");
}

/// P21: `su -c` and the like put the command into a session of its own and wait for it, so it is no daemon. TERM ends
/// them, and what is left of the command is an orphan.
#[test]
fn a_session_whose_parent_waits_is_part_of_the_job() {
    let su = nix::unistd::geteuid().is_root().then_some("su root -s /bin/sh -c");
    for around in ["setsid --wait sh -c", "script -q /dev/null -c"].into_iter().chain(su) {
        let (case, journal) = (Case::new(), Journal::new());
        let directory = tempfile::tempdir().unwrap();
        let program = stubborn(&directory, "stubborn", &journal);
        // script(1) reports the signal.
        let job = format!("{around} 'sh {}; :' 2>/dev/null & wait", program.display());
        assert_killed(&case, &journal, case.run(), &job);
    }
}
