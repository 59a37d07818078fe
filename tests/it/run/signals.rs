//! Signals and the job, without a terminal; and unusual parents.
//!
//! The job without pglock is the reference for what a job should find.

use crate::support::case::Case;
use crate::support::journal::{Journal, state};
use crate::support::pglock::Pglock;
use crate::support::probe;
use crate::support::server::{Locks, Server};
use crate::support::unique;
use crate::support::wait::{SOON, eventually};
use nix::libc;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::time::{Duration, Instant};

/// P51, P52: signals sent by kill(2).
#[test]
fn each_signal_arrives_once() {
    let (case, journal) = (Case::new(), Journal::new());
    let running = case
        .run()
        .sh(&journal.recording("TERM INT HUP QUIT USR1 WINCH CONT"))
        .spawn();
    journal.await_count("ready", 1);
    let signals = [
        ("TERM", Signal::SIGTERM),
        ("INT", Signal::SIGINT),
        ("HUP", Signal::SIGHUP),
        ("QUIT", Signal::SIGQUIT),
        ("USR1", Signal::SIGUSR1),
        ("WINCH", Signal::SIGWINCH),
        ("CONT", Signal::SIGCONT),
    ];
    for (name, signal) in signals {
        running.signal(signal);
        journal.await_count(name, 1);
    }
    running.signal(Signal::SIGUSR2);
    running.finish().code(3).silent();
    let mut received: Vec<String> = journal.entries().into_iter().map(|entry| entry.event).collect();
    received.retain(|word| word != "ready");
    assert_eq!(
        received,
        ["TERM", "INT", "HUP", "QUIT", "USR1", "WINCH", "CONT", "USR2"]
    );
}

/// Returns the first real-time signal that the program under test can receive. musl keeps one more to itself than
/// glibc.
#[cfg(target_os = "linux")]
fn first_real_time_signal() -> libc::c_int {
    let is_built_with_musl = std::env::var_os("PGLOCK_TEST_BINARY").is_some();
    if is_built_with_musl { 35 } else { libc::SIGRTMIN() }
}

/// Returns the signals that end a program by default and that neither operators nor terminals send, with the names that
/// the probe records.
#[cfg(target_os = "linux")]
fn other_signals() -> Vec<(String, libc::c_int)> {
    let named = [
        ("ALRM", libc::SIGALRM),
        ("VTALRM", libc::SIGVTALRM),
        ("PROF", libc::SIGPROF),
        ("XCPU", libc::SIGXCPU),
        ("XFSZ", libc::SIGXFSZ),
        ("IO", libc::SIGIO),
        ("PWR", libc::SIGPWR),
        ("SYS", libc::SIGSYS),
        ("ABRT", libc::SIGABRT),
        ("STKFLT", libc::SIGSTKFLT),
    ];
    let real_time = (first_real_time_signal()..=libc::SIGRTMAX()).map(|number| (number.to_string(), number));
    named
        .map(|(name, number)| (name.to_owned(), number))
        .into_iter()
        .chain(real_time)
        .collect()
}

/// P52: every signal that kills a program by default, with the real-time signals from the first to the last.
#[cfg(target_os = "linux")]
#[test]
fn every_other_signal_arrives_once() {
    let server = Server::shared();
    let directory = tempfile::tempdir().unwrap();
    let record = directory.path().join("record");
    let run = server.run(&unique("key")).args(["--", probe::path()]).arg(&record);
    let running = run.args(["--end-on", "TERM"]).spawn();
    running.await_stdout("ready");
    let read = || std::fs::read_to_string(&record).unwrap();
    let signals = other_signals();
    let mut expected: Vec<String> = Vec::new();
    for (name, number) in &signals {
        running.signal_number(*number);
        expected.push(format!("{name} from {}", running.pid()));
        eventually(SOON, name, || read().contains(&expected[expected.len() - 1]));
    }
    assert_eq!(
        server.value("SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory'"),
        "t"
    );
    running.signal(Signal::SIGTERM);
    expected.push(format!("TERM from {}", running.pid()));
    running.finish().signal(Signal::SIGTERM);
    let received = read();
    let received = received.lines().skip(1).map(|line| line.split_once(' ').unwrap().1);
    assert_eq!(received.collect::<Vec<_>>(), expected);
}

/// P3: a job that such a signal kills.
#[cfg(target_os = "linux")]
#[test]
fn pglock_dies_by_the_signal_that_killed_the_job() {
    let server = Server::shared();
    for (name, number) in other_signals() {
        let running = server
            .run(&unique("key"))
            .sh("ulimit -c 0; echo $$; exec sleep 60")
            .spawn();
        running.await_stdout("\n");
        let job = Pid::from_raw(running.stdout().trim().parse().unwrap());
        running.signal_number(number);
        let output = running.finish();
        output.signal_number(number);
        assert_eq!(state(job), None, "{name} left the job behind");
        assert_eq!(output.stderr, b"", "{name}: {output}");
    }
}

/// P33
#[cfg(target_os = "linux")]
#[test]
fn every_other_signal_ends_the_wait_at_once() {
    let server = Server::shared();
    let key = unique("key");
    let holder = server.run(&key).holding();
    for (name, number) in other_signals() {
        let waiter = wrapped(server, &["env", "--block-signal"], &key)
            .args(["echo", "mine"])
            .spawn();
        server.await_locks(&key, 1, 1);
        let sent = Instant::now();
        waiter.signal_number(number);
        let output = waiter.finish();
        let took = sent.elapsed();
        output.signal_number(number).silent();
        assert_eq!(server.locks(&key), Locks { granted: 1, waiting: 0 }, "{name}");
        assert!(took < Duration::from_millis(500), "{took:?} after {name}");
    }
    let waiter = server.run(&key).args(["echo", "mine"]).spawn();
    server.await_locks(&key, 1, 1);
    for signal in [Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGWINCH] {
        waiter.signal(signal);
    }
    holder.finish().code(0);
    assert_eq!(waiter.finish().stdout(), "mine\n");
}

/// P52: a timer that the caller set before it `exec`ed pglock, as a poor man's timeout(1).
#[cfg(target_os = "linux")]
#[test]
fn an_inherited_alarm_reaches_the_job() {
    let server = Server::shared();
    let journal = Journal::new();
    let alarm = ["perl", "-e", "alarm 1; exec @ARGV"];
    let job = format!(
        "{}; trap 'note ALRM; exit 3' ALRM; while :; do sleep 0.05; done",
        journal.note()
    );
    wrapped(server, &alarm, &unique("key")).sh(&job).output().code(3);
    assert_eq!(journal.count("ALRM"), 1);
}

/// P52: what pglock itself causes is not for the job, and does not end pglock while the job runs.
#[cfg(target_os = "linux")]
#[test]
fn a_write_beyond_the_file_size_limit_does_not_end_pglock() {
    let server = Server::shared();
    let directory = tempfile::tempdir().unwrap();
    let messages = directory.path().join("messages");
    let script = format!("ulimit -f 0; exec \"$@\" 2>{}", messages.display());
    let job = "trap 'exit 5' XFSZ; echo ready; read -r _; exit 7";
    let run = wrapped(server, &["sh", "-c", &script, "sh"], &unique("key"))
        .arg("-v")
        .sh(job);
    let output = run.output();
    output.code(7);
    assert_eq!(std::fs::read(&messages).unwrap(), b"", "nothing was over the limit");
}

/// P53: the job handles what pglock ignores, so whatever pglock forwarded would leave a trace.
#[cfg(target_os = "linux")]
#[test]
fn other_signals_ignored_on_entry_are_not_forwarded() {
    let server = Server::shared();
    let directory = tempfile::tempdir().unwrap();
    let record = directory.path().join("record");
    let ignored = [
        libc::SIGALRM,
        libc::SIGPWR,
        libc::SIGABRT,
        first_real_time_signal(),
        libc::SIGRTMAX(),
    ];
    let numbers = ignored.map(|number| number.to_string()).join(",");
    let (ignore, restore) = (
        format!("--ignore-signal={numbers}"),
        format!("--default-signal={numbers}"),
    );
    let run = wrapped(server, &["env", &ignore], &unique("key"));
    let run = run.args(["--", "env", &restore, probe::path()]).arg(&record);
    let running = run.args(["--end-on", "TERM"]).spawn();
    running.await_stdout("ready");
    for number in ignored {
        running.signal_number(number);
    }
    // Two round trips, so that a signal sent before the first has been forwarded by the second.
    let received = || std::fs::read_to_string(&record).unwrap();
    for signal in [Signal::SIGUSR1, Signal::SIGUSR2] {
        running.signal(signal);
        eventually(SOON, signal.as_str(), || received().contains(&signal.as_str()[3..]));
    }
    running.signal(Signal::SIGTERM);
    running.finish().signal(Signal::SIGTERM);
    assert_eq!(received().matches(" from ").count(), 3, "{}", received());
}

/// P51: a child of the job gets the signal too.
#[test]
fn the_whole_group_is_signalled() {
    let (case, journal) = (Case::new(), Journal::new());
    let job = format!(
        "{}; trap 'wait; exit 4' TERM; (trap 'note child; exit' TERM; note ready; while :; do sleep 0.05; done) & wait",
        journal.note()
    );
    let running = case.run().sh(&job).spawn();
    journal.await_count("ready", 1);
    running.signal(Signal::SIGTERM);
    running.finish().code(4);
    assert_eq!(journal.count("child"), 1);
}

/// P52: TSTP and CONT stop and continue the job and pglock together, and the lock is held meanwhile.
#[test]
fn stop_and_continuation_reach_job_and_pglock() {
    let (case, journal) = (Case::new(), Journal::new());
    let job = format!(
        "{}; note \"pid $$\"; trap 'exit 3' USR2; while :; do sleep 0.05 & wait $!; done",
        journal.note()
    );
    let running = case.run().sh(&job).spawn();
    eventually(SOON, "the job", || journal.pids().len() == 1);
    let job = journal.pids()[0];
    running.signal(Signal::SIGTSTP);
    eventually(SOON, "both to stop", || {
        [job, running.pid()].iter().all(|pid| state(*pid) == Some('T'))
    });
    assert_eq!(case.locks().granted, 1);
    running.signal(Signal::SIGCONT);
    eventually(SOON, "both to continue", || {
        [job, running.pid()].iter().all(|pid| state(*pid) != Some('T'))
    });
    running.signal(Signal::SIGUSR2);
    running.finish().code(3);
}

/// P53
#[test]
fn what_was_ignored_on_entry_stays_ignored() {
    let (case, journal) = (Case::new(), Journal::new());
    // A shell cannot trap what was ignored when it started, so a HUP that reached the job would leave no trace; a child
    // that is not a shell prints its dispositions.
    let running = wrapped(case.server, &["nohup"], &case.key)
        .sh(&format!(
            "{}; note ready; sed -n s/SigIgn:.//p /proc/self/status; read -r _; exit 0",
            journal.note()
        ))
        .spawn();
    journal.await_count("ready", 1);
    running.signal(Signal::SIGHUP);
    running.signal(Signal::SIGHUP);
    let output = running.finish();
    output.code(0);
    let ignored = u64::from_str_radix(String::from_utf8_lossy(&output.stdout).trim(), 16).unwrap();
    assert_eq!(ignored & 1, 1, "{output}");
}

/// Returns `pglock run --key KEY`, started by another program.
fn wrapped(server: &Server, wrapper: &[&str], key: &str) -> Pglock {
    server
        .program(wrapper[0])
        .args(&wrapper[1..])
        .args([env!("CARGO_BIN_EXE_pglock"), "run", "--key", key])
}

/// Returns the signals of each line, except 32 and 33, which belong to the C library.
fn masks(status: &[u8]) -> Vec<u64> {
    let text = String::from_utf8_lossy(status);
    let masks = text
        .lines()
        .map(|line| u64::from_str_radix(line.rsplit('\t').next().unwrap(), 16).unwrap());
    masks.map(|mask| mask & !(0b11 << 31)).collect()
}

/// Asserts that the job prints the same under an unusual parent, with and without pglock.
#[track_caller]
fn assert_same(wrapper: &[&str], job: &[&str]) {
    let server = Server::shared();
    let bare = server.program(wrapper[0]).args(&wrapper[1..]).args(job).output();
    let under = wrapped(server, wrapper, &unique("key")).arg("--").args(job).output();
    assert_eq!(
        masks(&bare.stdout),
        masks(&under.stdout),
        "{wrapper:?}\n{bare}\n{under}"
    );
    assert_eq!(bare.status, under.status);
    assert!(masks(&bare.stdout).len() >= 4, "nothing was compared: {bare}");
}

/// P7: blocked, ignored and caught signals, for several settings of the parent.
#[cfg(target_os = "linux")]
#[test]
fn the_job_finds_mask_and_dispositions_as_without_pglock() {
    let job = ["grep", "-E", "^(Sig(Blk|Ign|Cgt)|ShdPnd)", "/proc/self/status"];
    assert_same(&["env"], &job);
    assert_same(&["env", "--block-signal"], &job);
    assert_same(&["env", "--ignore-signal"], &job);
    assert_same(&["env", "--ignore-signal=CHLD"], &job);
    assert_same(&["env", "--ignore-signal=PIPE"], &job);
    assert_same(&["env", "--default-signal=PIPE"], &job);
    assert_same(&["nohup"], &job);
    // Then the job is started by fork(2).
    assert_same(&["sh", "-c", "export WATCHDOG_PID=$$; exec \"$@\"", "sh"], &job);
}

/// P7
#[cfg(target_os = "linux")]
#[test]
fn closed_standard_streams_stay_closed() {
    let server = Server::shared();
    for closed in ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"] {
        let found = |under: bool| {
            let journal = Journal::new();
            let job = format!(
                "for n in 0 1 2; do [ -e /proc/self/fd/$n ] && echo open $n; done > {}; exit 9",
                journal.path().display()
            );
            let script = format!("exec \"$@\" {closed}");
            let wrapper = ["sh", "-c", &script, "sh"];
            let run = if under {
                wrapped(server, &wrapper, &unique("key")).args(["--", "sh", "-c", &job])
            } else {
                server.program("sh").args(&wrapper[1..]).args(["sh", "-c", &job])
            };
            run.output().code(9);
            std::fs::read_to_string(journal.path()).unwrap()
        };
        // The shell redirects its own output into the file, so 1 is open in either case.
        assert_eq!(found(true), found(false), "{closed}");
        assert!(!found(true).contains("open 0") || !closed.contains("<&-"));
    }
}

/// P7: meanwhile no socket of pglock's has the number of a standard stream, to which pglock writes its messages.
#[cfg(target_os = "linux")]
#[test]
fn closed_standard_streams_are_not_taken_by_sockets() {
    let journal = Journal::new();
    let job = format!(
        "for n in 0 1 2; do readlink /proc/$PPID/fd/$n; done >{}; exit 9",
        journal.path().display()
    );
    let wrapper = ["sh", "-c", "exec \"$@\" <&- >&- 2>&-", "sh"];
    let run = wrapped(Server::shared(), &wrapper, &unique("key")).args(["--", "sh", "-c", &job]);
    run.output().code(9);
    let streams = std::fs::read_to_string(journal.path()).unwrap();
    assert_eq!(streams, "/dev/null\n".repeat(3));
}

/// P7: the session's socket is still told apart.
#[cfg(target_os = "linux")]
#[test]
fn a_thousand_inherited_descriptors_reach_the_job() {
    let open = "ulimit -n 4096; for ((n = 10; n < 1010; n++)); do eval \"exec $n</dev/null\"; done; exec \"$@\"";
    let server = Server::shared();
    let output = wrapped(server, &["bash", "-c", open, "bash"], &unique("key"))
        .arg("-v")
        .sh("ls -l /proc/self/fd | grep -c null; ls -l /proc/self/fd | grep -c socket")
        .output();
    output.code(0);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1000\n1\n", "{output}");
    assert!(
        !String::from_utf8_lossy(&output.stderr).contains("cannot tell"),
        "{output}"
    );
}

/// P4: both keys are held, the job finds the inner one, and both are released.
#[test]
fn nested_pglocks_hold_two_keys() {
    let server = Server::shared();
    let (outer, inner) = (unique("outer"), unique("inner"));
    let mut run = server.run(&outer).arg("--shared").arg("--");
    run = run.args([env!("CARGO_BIN_EXE_pglock"), "run", "--key", &inner]);
    let running = run.sh("echo $PGLOCK_KEY $PGLOCK_MODE; read -r _; exit 0").spawn();
    running.await_stdout(&format!("{inner} exclusive\n"));
    assert_eq!((server.locks(&outer).granted, server.locks(&inner).granted), (1, 1));
    running.finish().code(0);
    assert_eq!((server.locks(&outer).granted, server.locks(&inner).granted), (0, 0));
}
