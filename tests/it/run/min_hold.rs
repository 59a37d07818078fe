//! `--min-hold` keeps the lock for a while, for jobs that are shorter than the clocks of their hosts differ.

use crate::support::case::Case;
use crate::support::journal::now;
use crate::support::server::Server;
use crate::support::unique;
use crate::support::wait::{SOON, eventually};
use nix::sys::signal::Signal;
use std::time::Duration;

/// P17
#[test]
fn the_lock_is_kept_after_a_short_job() {
    let case = Case::new();
    let running = case.run().args(["--min-hold", "1.5"]).sh("echo done; exit 4").spawn();
    running.await_stdout("done\n");
    case.assert_held();
    let output = running.finish();
    output.code(4).silent();
    assert!(output.took >= Duration::from_millis(1500), "{output}");
    assert_eq!(case.locks().granted, 0);
}

/// P17: it costs a long job nothing.
#[test]
fn a_long_job_is_not_delayed() {
    let case = Case::new();
    let run = case.run().args(["--min-hold", "0.3"]);
    let output = run.sh("sleep 0.4; date +%s%N").output();
    let ended: u128 = output.stdout().trim().parse().unwrap();
    let since = now() - ended;
    assert!(since < 250_000_000, "{since} ns after the job's end");
}

/// P17
#[test]
fn a_signal_ends_the_minimum_hold() {
    let case = Case::new();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let running = case.run().args(["--min-hold", "600"]).sh("echo $$; exit 4").spawn();
        running.await_stdout("\n");
        let job = running.stdout().trim().parse().unwrap();
        let job = nix::unistd::Pid::from_raw(job);
        eventually(SOON, "the job to be reaped", || {
            nix::sys::signal::kill(job, None).is_err()
        });
        running.signal(signal);
        running.finish().code(4).silent();
        assert_eq!(case.locks().granted, 0);
    }
}

/// P17: the README's crontab line on two hosts whose clocks differ by a second. With `--min-hold` the job runs once,
/// without it twice.
#[test]
fn a_crontab_on_hosts_with_clocks_a_second_apart_runs_the_job_once() {
    let server = Server::shared();
    for (min_hold, times) in [("5", 1), ("0", 2)] {
        let (key, directory) = (unique("nightly"), tempfile::tempdir().unwrap());
        let ran = directory.path().join("ran");
        let hosts = ["0", "1"].map(|seconds_behind| {
            let cron = server
                .program("sh")
                .args(["-c", "sleep $0; exec \"$@\"", seconds_behind]);
            let cron = cron.args([env!("CARGO_BIN_EXE_pglock"), "run", "--key", &key]);
            let cron = cron.args(["-n", "-E", "0", "-q", "--min-hold", min_hold]);
            cron.sh(&format!("echo ran >> {}", ran.display())).spawn()
        });
        for host in hosts {
            host.finish().code(0).silent();
        }
        let lines = std::fs::read_to_string(&ran).unwrap().lines().count();
        assert_eq!(lines, times, "--min-hold {min_hold}");
    }
}
