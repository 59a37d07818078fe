//! pglock as process 1 of a container, and images whose stop signal is not TERM.

use crate::support::case::Case;
use crate::support::command::command;
use crate::support::gate::{Answer, Gate};
use crate::support::network::can_unshare;
use crate::support::pglock::{Pglock, Running};
use crate::support::server::{Locks, free_port};
use crate::support::wait::{SOON, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::Duration;

/// Returns `pglock run --key KEY` as process 1 of a PID namespace.
fn contained(case: &Case) -> Pglock {
    let unshare = case.server.program("unshare").args(["-pf", "--mount-proc"]);
    unshare.args([env!("CARGO_BIN_EXE_pglock"), "run", "--key", &case.key])
}

/// Returns the children of a process, zombies included.
fn children(pid: Pid) -> Vec<Pid> {
    let output = command("pgrep").args(["-P", &pid.to_string()]).output().unwrap();
    let pids = String::from_utf8(output.stdout).unwrap();
    pids.lines().map(|pid| Pid::from_raw(pid.parse().unwrap())).collect()
}

/// Returns process 1 of the container, which outside is an ordinary process.
#[track_caller]
fn process_1(container: &Running) -> Pid {
    let mut found = Vec::new();
    eventually(SOON, "process 1", || {
        found = children(container.pid());
        !found.is_empty()
    });
    found[0]
}

/// Sends a signal to process 1 from outside its namespace; from inside the kernel lets only those through that it
/// handles, as from here.
fn stop(container: &Running, signal: Signal) {
    kill(process_1(container), signal).unwrap();
}

/// P3: a death by signal becomes an exit status of 128+n.
#[test]
fn the_exit_status_of_process_1_is_the_jobs() {
    if !can_unshare("-pf") {
        return;
    }
    let case = Case::new();
    contained(&case).sh("exit 7").output().code(7).silent();
    contained(&case).sh("kill -TERM $$").output().code(128 + 15).silent();
    let running = contained(&case).sh("trap 'exit 5' TERM; echo ready; while :; do sleep 0.05 & wait $!; done");
    let running = running.spawn();
    running.await_stdout("ready");
    stop(&running, Signal::SIGTERM);
    running.finish().code(5);
}

/// P7: processes whose parents have ended become children of process 1. Here those are three generations that end one
/// after another, each with a child that has ended before it.
#[test]
fn process_1_reaps_the_tree_that_the_job_leaves_to_it() {
    if !can_unshare("-pf") {
        return;
    }
    let case = Case::new();
    let tree = "generation() { [ $1 -eq 0 ] || (sleep 0.05 & generation $(($1 - 1)) & exec sleep 0.$1); }
        (generation 3 &)
        (generation 3 & generation 2 &)
        until [ $(ps -A | grep -c sleep) -gt 2 ]; do sleep 0.02; done; echo grown
        until [ $(ps -A -o stat=,comm= | grep -c 'sleep\\|^Z') = 0 ]; do /bin/true; done
        ps -A -o ppid=,stat=,comm= | sort";
    let output = contained(&case).sh(tree).output().stdout();
    let (grown, left) = output.split_once('\n').unwrap();
    assert_eq!(grown, "grown");
    assert!(!left.contains('Z') && left.contains("pglock"), "{left}");
}

/// P7: as do those that `docker exec` and the probes of a kubelet leave behind while pglock waits.
#[test]
fn process_1_reaps_while_it_waits() {
    if !can_unshare("-pf") {
        return;
    }
    let case = Case::new();
    let holder = case.holder();
    let waiter = contained(&case).args(["echo", "mine"]).spawn();
    case.await_locks(1, 1);
    let one = process_1(&waiter);
    let enter = ["-t", &one.to_string(), "-p", "sh", "-c", "sleep 600 & exit 0"].map(str::to_owned);
    assert!(command("nsenter").args(enter).status().unwrap().success());
    let mut orphans = Vec::new();
    eventually(SOON, "an orphan", || {
        orphans = children(one);
        !orphans.is_empty()
    });
    kill(orphans[0], Signal::SIGKILL).unwrap();
    // A zombie can be signalled.
    eventually(SOON, "the orphan to be reaped", || kill(orphans[0], None).is_err());
    assert_eq!(case.locks(), Locks { granted: 1, waiting: 1 });
    holder.finish().code(0);
    assert_eq!(waiter.finish().stdout(), "mine\n");
}

/// P33: before there is a job, TERM ends process 1, although it cannot die by it.
#[test]
fn term_ends_process_1_before_the_job() {
    if !can_unshare("-pf") {
        return;
    }
    let case = Case::new();
    let gate = Gate::before(case.server, Answer::Silence);
    let connecting = contained(&case).args(["-d", &gate.dsn(), "true"]).spawn();
    eventually(SOON, "a connection", || gate.connections() > 0);
    let away = format!("host=127.0.0.1 port={} user=nobody dbname=none", free_port());
    let reconnecting = contained(&case).args(["--wait", "600", "-d", &away, "true"]).spawn();
    reconnecting.await_stderr("retrying");
    let holder = case.holder();
    let waiting = contained(&case).arg("true").spawn();
    case.await_locks(1, 1);
    for container in [connecting, reconnecting, waiting] {
        stop(&container, Signal::SIGTERM);
        container.finish().code(128 + 15);
    }
    assert_eq!(case.locks(), Locks { granted: 1, waiting: 0 });
    holder.finish().code(0);
}

/// P17, P21: after the job, and while the job of a lost lock is being terminated.
#[test]
fn term_reaches_process_1_after_the_job_and_after_a_loss() {
    if !can_unshare("-pf") {
        return;
    }
    let case = Case::new();
    let keeping = contained(&case)
        .args(["--min-hold", "600"])
        .sh("echo ran; exit 4")
        .spawn();
    keeping.await_stdout("ran");
    let one = process_1(&keeping);
    eventually(SOON, "the job to be reaped", || children(one).is_empty());
    stop(&keeping, Signal::SIGTERM);
    keeping.finish().code(4).silent();

    let job = "trap 'echo TERM' TERM; echo ready; while :; do sleep 0.05 & wait $!; done";
    let terminating = contained(&case).args(["--kill-after", "2"]).sh(job).spawn();
    terminating.await_stdout("ready\n");
    case.terminate_backends();
    terminating.await_stdout("TERM\n");
    stop(&terminating, Signal::SIGTERM);
    terminating.await_stdout("TERM\nTERM\n");
    terminating.finish().code(74);
}

/// P33: what an image names as its stop signal ends a wait as TERM does, although without that it is for the job only.
#[test]
fn the_stop_signal_of_an_image_ends_the_wait() {
    let case = Case::new();
    let holder = case.holder();
    let waiting = |run: Pglock| {
        let waiter = run.arg("true").spawn();
        case.await_locks(1, 1);
        waiter
    };
    for (name, signal) in [
        ("USR1", Signal::SIGUSR1),
        ("SIGUSR2", Signal::SIGUSR2),
        ("15", Signal::SIGTERM),
    ] {
        let waiter = waiting(case.run().args(["--stop-signal", name]));
        waiter.signal(signal);
        let output = waiter.finish();
        output.signal(signal).silent();
        assert_eq!(case.locks(), Locks { granted: 1, waiting: 0 }, "{name}");
    }
    // No process dies by WINCH.
    let waiter = waiting(case.run().env("PGLOCK_STOP_SIGNAL", "WINCH"));
    waiter.signal(Signal::SIGUSR1);
    waiter.signal(Signal::SIGWINCH);
    waiter.finish().code(128 + Signal::SIGWINCH as i32).silent();
    // The others still do.
    let waiter = waiting(case.run().args(["--stop-signal", "WINCH"]));
    waiter.signal(Signal::SIGTERM);
    waiter.finish().signal(Signal::SIGTERM).silent();
    holder.finish().code(0);
}

/// P17, P52: the job gets it, and a minimum hold ends with it.
#[test]
fn the_stop_signal_is_forwarded_to_the_job() {
    let case = Case::new();
    // The shell reports that its sleep was killed, if it gets to that.
    let job = "exec 2>/dev/null; trap 'exit 5' USR1; echo ready; while :; do sleep 0.05 & wait $!; done";
    let run = case.run().args(["--stop-signal", "USR1", "--min-hold", "600"]);
    let running = run.sh(job).spawn();
    running.await_stdout("ready");
    running.signal(Signal::SIGUSR1);
    let output = running.finish();
    output.code(5).silent();
    assert!(output.took < Duration::from_secs(60), "{output}");
    assert_eq!(case.locks(), Locks::default());
}

/// P91: before anything is touched.
#[test]
fn a_signal_that_cannot_end_a_wait_is_refused() {
    let run = || Pglock::alone().args(["run", "-k", "x", "-d", "host=127.0.0.1 port=1"]);
    for text in ["KILL", "SIGSTOP", "CHLD", "nonsense", "0", "99"] {
        let line = run().args(["--stop-signal", text, "true"]).output();
        let line = String::from_utf8_lossy(&line.code(64).stderr).into_owned();
        assert!(
            line.contains("--stop-signal") && line.contains("expected a signal"),
            "{line}"
        );
        let line = run()
            .env("PGLOCK_STOP_SIGNAL", text)
            .arg("true")
            .output()
            .code(78)
            .stderr_line();
        assert!(line.contains("PGLOCK_STOP_SIGNAL"), "{line}");
    }
}
