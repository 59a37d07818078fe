//! P50: on a terminal, keys, job control and the script around pglock behave as without pglock.

use crate::support::case::Case;
use crate::support::command::command;
use crate::support::journal::{Journal, state};
use crate::support::network::can_unshare;
use crate::support::pglock::binary;
use crate::support::server::Server;
use crate::support::terminal::Terminal;
use crate::support::unique;
use crate::support::wait::{SOON, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::process::ExitStatusExt;

const INTERRUPT: &str = "\x03";
const END: &str = "\x04";
const SUSPEND: &str = "\x1a";
const QUIT: &str = "\x1c";

/// Returns whether the process is in the foreground of its terminal, according to ps(1).
fn is_in_foreground(pid: Pid) -> bool {
    let mut ps = command("ps");
    let output = ps.args(["-o", "stat=", "-p", &pid.to_string()]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).contains('+')
}

/// Returns the youngest process that pgrep(1) finds.
fn pgrep(arguments: &[&str]) -> Pid {
    let found = command("pgrep").args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&found.stdout).into_owned();
    Pid::from_raw(text.lines().next_back().expect("a process").parse().unwrap())
}

/// Returns the pglock of this key. The shell around it has the same text in its command line, and is older.
fn pglock(key: &str) -> Pid {
    pgrep(&["-f", &format!("pglock run -k {key} ")])
}

/// P50: the script's next line does not run, as without pglock, because bash sees that the command died by SIGINT.
#[test]
fn ctrl_c_ends_the_script_around() {
    let key = unique("key");
    // The job itself, or a shell that waits for it, which is reliable only once its child exists.
    for (job, sleep) in [("sleep 30.1", "sleep 30.1"), ("sh -c 'sleep 30.2; :'", "sleep 30.2")] {
        let script = format!("\"$PGLOCK\" run -k {key} -- {job}; echo NEXT LINE");
        let mut terminal = Terminal::run(Server::shared(), &["bash", "-c", &script]);
        let found = || command("pgrep").args(["-x", "-f", sleep]).output().unwrap();
        eventually(SOON, "the job", || found().status.success());
        terminal.keys(INTERRUPT);
        assert_eq!(
            terminal.end().signal(),
            Some(Signal::SIGINT as i32),
            "{}",
            terminal.screen()
        );
        assert!(!terminal.screen().contains("NEXT LINE"), "{}", terminal.screen());
        Server::shared().await_locks(&key, 0, 0);
    }
}

/// P50: Ctrl-C during the wait ends the script and the wait.
#[test]
fn ctrl_c_ends_a_wait() {
    let case = Case::new();
    let key = &case.key;
    let holder = case.holder();
    let script = format!("\"$PGLOCK\" run -k {key} -- true; echo NEXT LINE");
    let mut terminal = Terminal::run(case.server, &["bash", "-c", &script]);
    case.await_locks(1, 1);
    terminal.keys(INTERRUPT);
    assert_eq!(terminal.end().signal(), Some(Signal::SIGINT as i32));
    assert!(!terminal.screen().contains("NEXT LINE"), "{}", terminal.screen());
    case.await_locks(1, 0);
    holder.finish().code(0);
}

/// P52: signals from the terminal and from kill(2).
#[test]
fn the_job_sees_each_signal_once() {
    let (case, journal) = (Case::new(), Journal::new());
    let key = &case.key;
    let directory = tempfile::tempdir().unwrap();
    let job = directory.path().join("job");
    std::fs::write(&job, journal.recording("INT QUIT WINCH TERM HUP USR1")).unwrap();
    // The shell around gets the keys too, and would die of them.
    let script = format!(
        "trap : QUIT; \"$PGLOCK\" run -k {key} -- sh {}; echo \"status $?\"",
        job.display()
    );
    let mut terminal = Terminal::run(case.server, &["sh", "-c", &script]);
    journal.await_count("ready", 1);
    let pglock = pglock(key);
    terminal.keys(QUIT);
    journal.await_count("QUIT", 1);
    terminal.resize(91);
    journal.await_count("WINCH", 1);
    let sent = [
        ("INT", Signal::SIGINT),
        ("QUIT", Signal::SIGQUIT),
        ("WINCH", Signal::SIGWINCH),
        ("TERM", Signal::SIGTERM),
        ("HUP", Signal::SIGHUP),
        ("USR1", Signal::SIGUSR1),
    ];
    for (name, signal) in sent {
        let before = journal.count(name);
        kill(pglock, signal).unwrap();
        journal.await_count(name, before + 1);
    }
    kill(pglock, Signal::SIGUSR2).unwrap();
    terminal.expect("status 3");
    let received: Vec<String> = journal.entries().into_iter().map(|entry| entry.event).collect();
    let expected = [
        "ready", "QUIT", "WINCH", "INT", "QUIT", "WINCH", "TERM", "HUP", "USR1", "USR2",
    ];
    assert_eq!(received, expected);
}

/// P52: the kernel sends a timer's signal to pglock alone, unlike the terminal's signals.
#[test]
fn an_inherited_alarm_reaches_the_job_on_a_terminal() {
    let (key, journal) = (unique("key"), Journal::new());
    let directory = tempfile::tempdir().unwrap();
    let job = directory.path().join("job");
    std::fs::write(&job, journal.recording("ALRM")).unwrap();
    let script = format!(
        "perl -e 'alarm 1; exec @ARGV' \"$PGLOCK\" run -k {key} -- sh {}; echo \"status $?\"",
        job.display()
    );
    let mut terminal = Terminal::run(Server::shared(), &["sh", "-c", &script]);
    journal.await_count("ALRM", 1);
    kill(pglock(&key), Signal::SIGUSR2).unwrap();
    terminal.expect("status 3");
    assert_eq!(journal.count("ALRM"), 1);
}

/// P50: Ctrl-Z stops the job and pglock, fg and bg continue both, and the lock is held meanwhile.
#[test]
fn job_control_of_an_interactive_shell() {
    let case = Case::new();
    let key = &case.key;
    let mut terminal = Terminal::run(case.server, &["bash", "--norc", "--noprofile", "-i"]);
    terminal.expect("prompt> ");
    terminal.keys(&format!("\"$PGLOCK\" run -k {key} -- sleep 61\n"));
    eventually(SOON, "the lock", || case.locks().granted == 1);
    let pglock = pglock(key);
    let has_job = || {
        command("pgrep")
            .args(["-P", &pglock.to_string()])
            .output()
            .unwrap()
            .status
            .success()
    };
    eventually(SOON, "the job", has_job);
    let both = [pgrep(&["-P", &pglock.to_string()]), pglock];
    let are_in_foreground = || {
        both.iter()
            .all(|pid| is_in_foreground(*pid) && state(*pid) == Some('S'))
    };
    eventually(SOON, "the foreground", are_in_foreground);
    for _ in 0..2 {
        terminal.keys(SUSPEND);
        terminal.expect("Stopped");
        terminal.expect("prompt> ");
        assert!(both.iter().all(|pid| state(*pid) == Some('T')), "{}", terminal.screen());
        assert_eq!(case.locks().granted, 1);
        terminal.keys("fg\n");
        eventually(SOON, "both to continue", are_in_foreground);
    }
    terminal.keys(SUSPEND);
    terminal.expect("Stopped");
    terminal.keys("bg\n");
    eventually(SOON, "both to continue", || {
        both.iter().all(|pid| state(*pid) == Some('S'))
    });
    terminal.keys("jobs\n");
    terminal.expect("Running");
    terminal.keys("fg\n");
    eventually(SOON, "the foreground", are_in_foreground);
    terminal.keys(INTERRUPT);
    terminal.expect("prompt> ");
    terminal.keys("echo status $?\n");
    terminal.expect("status 130");
    case.await_locks(0, 0);
}

/// P50: a pglock in the background is stopped when its job reads from the terminal, and fg gives the terminal to the
/// job.
#[test]
fn a_background_job_gets_the_terminal_by_fg() {
    let case = Case::new();
    let key = &case.key;
    let mut terminal = Terminal::run(case.server, &["bash", "--norc", "--noprofile", "-i"]);
    terminal.expect("prompt> ");
    terminal.keys(&format!("\"$PGLOCK\" run -k {key} -- cat &\n"));
    terminal.expect("prompt> ");
    eventually(SOON, "pglock to be stopped", || {
        case.locks().granted == 1 && state(pglock(key)) == Some('T')
    });
    let cat = pgrep(&["-P", &pglock(key).to_string()]);
    terminal.keys("fg\n");
    eventually(SOON, "the foreground", || is_in_foreground(cat));
    terminal.keys("hello\n");
    terminal.expect("hello\r\nhello");
    terminal.keys(SUSPEND);
    terminal.expect("Stopped");
    terminal.keys("fg\n");
    eventually(SOON, "the foreground", || is_in_foreground(cat));
    terminal.keys("again\n");
    terminal.expect("again\r\nagain");
    terminal.keys(END);
    terminal.expect("prompt> ");
    terminal.keys("echo status $?\n");
    terminal.expect("status 0");
    case.await_locks(0, 0);
}

/// Stops the job by SIGSTOP and continues it.
fn stop_and_continue(job: Pid) {
    kill(job, Signal::SIGSTOP).unwrap();
    eventually(SOON, "the stop", || state(job) == Some('T'));
    kill(job, Signal::SIGCONT).unwrap();
    eventually(SOON, "the continuation", || state(job) != Some('T'));
}

/// P50: no shell could continue a pglock that leads the terminal's session, as in `ssh -t host pglock run ...`. A job
/// that kill(1) stops and continues there goes on, and pglock with it.
#[test]
fn a_stopped_job_does_not_stop_a_pglock_that_nobody_can_continue() {
    let (case, journal) = (Case::new(), Journal::new());
    let job = format!("{}; note \"pid $$\"; note ready; read -r _", journal.note());
    let mut terminal = Terminal::run(
        case.server,
        &[&binary(), "run", "-k", &case.key, "--", "sh", "-c", &job],
    );
    journal.await_count("ready", 1);
    stop_and_continue(journal.pids()[0]);
    terminal.keys("\n");
    assert_eq!(terminal.end().code(), Some(0));
    case.await_locks(0, 0);
}

/// P50: nor a pglock in a script, of which the shell around it does not learn that it is stopped.
#[test]
fn a_stopped_job_does_not_stop_a_pglock_in_a_script() {
    let (case, journal) = (Case::new(), Journal::new());
    let directory = tempfile::tempdir().unwrap();
    let (script, job) = (directory.path().join("script"), directory.path().join("job"));
    let program = format!("{}; note \"pid $$\"; note ready; read -r _", journal.note());
    std::fs::write(&job, program).unwrap();
    let run = format!(
        "\"$PGLOCK\" run -k {} -- sh {}; echo \"status $?\"",
        case.key,
        job.display()
    );
    std::fs::write(&script, run).unwrap();
    let mut terminal = Terminal::run(case.server, &["bash", "--norc", "--noprofile", "-i"]);
    terminal.expect("prompt> ");
    terminal.keys(&format!("bash {}\n", script.display()));
    journal.await_count("ready", 1);
    stop_and_continue(journal.pids()[0]);
    terminal.keys("\n");
    terminal.expect("status 0");
    case.await_locks(0, 0);
}

/// Loses the lock of a job on a terminal, in a shell script that begins with this, and asserts that all descendants of
/// the job are terminated, orphans too. The script around is not the job, and continues.
#[track_caller]
fn assert_descendants_are_terminated(set_up: &str, around: &[&str]) {
    let (case, journal) = (Case::new(), Journal::new());
    let key = &case.key;
    let directory = tempfile::tempdir().unwrap();
    let (child, job) = (directory.path().join("child"), directory.path().join("job"));
    let stubborn = format!(
        "trap '' TERM; {}; note \"pid $$\"; while :; do sleep 0.05; done",
        journal.note()
    );
    std::fs::write(&child, stubborn).unwrap();
    // One child, and one whose parent has exited.
    std::fs::write(&job, format!("sh {c} & (sh {c} &) ; wait", c = child.display())).unwrap();
    let script = format!(
        "{set_up}\"$PGLOCK\" run -k {key} --kill-after 0.3 -- sh {}; echo \"status $?\"; echo NEXT LINE; read -r _",
        job.display()
    );
    let mut terminal = Terminal::run(case.server, &[around, &["sh", "-c", &script]].concat());
    eventually(SOON, "both children", || journal.pids().len() == 2);
    assert!(journal.pids().iter().all(|pid| state(*pid).is_some()));
    case.terminate_backends();
    terminal.expect("lost the lock on key");
    terminal.expect("status 74");
    // The script still runs: its end would be the end of the terminal's session, and of what is left in it.
    terminal.expect("NEXT LINE");
    assert!(
        journal.pids().iter().all(|pid| state(*pid).is_none()),
        "{:?}",
        journal.pids()
    );
    terminal.keys("\n");
    assert_eq!(terminal.end().code(), Some(0));
}

/// P21
#[test]
fn a_lost_lock_terminates_the_descendants_and_not_the_script() {
    assert_descendants_are_terminated("", &[]);
}

/// P21: where the system hides the processes of others (`hidepid`), as far as it shows them.
#[test]
fn a_lost_lock_terminates_the_descendants_where_processes_are_hidden() {
    if !can_unshare("--mount") {
        return;
    }
    let hidden = "mount --bind /proc/self/fdinfo /proc/1 && ! [ -e /proc/1/stat ] && ";
    assert_descendants_are_terminated(hidden, &["unshare", "--mount"]);
}
