//! P95: more recipes in `examples/`: shared locks, pauses, replaced runs, locks for a part of a script, CI,
//! and what watches recorded runs.

use super::desk::{Desk, await_file};
use crate::support::journal::Journal;
use crate::support::pglock::{Pglock, Running};
use crate::support::wait::{SOON, eventually};
use nix::sys::signal::Signal;
use std::collections::HashSet;
use std::fs;

const UNTIL_TOLD: [&str; 3] = ["sh", "-c", "echo ready; read -r _; exit 0"];

fn holding(recipe: Pglock) -> Running {
    let running = recipe.args(UNTIL_TOLD).spawn();
    running.await_stdout("ready\n");
    running
}

#[test]
fn readers_share_and_a_writer_is_alone() {
    let desk = Desk::new();
    let readers = [(), ()].map(|()| holding(desk.script("readers-writer").arg("read")));
    let writer = desk.script("readers-writer").args(["write", "echo", "written"]).spawn();
    desk.await_locks("catalogue", 2, 1);
    let next = desk.script("readers-writer").arg("read").args(UNTIL_TOLD).spawn();
    // Each waiter stays in the server's queue for a while and rejoins it. The writer came first.
    let waits = "SELECT query_start FROM pg_stat_activity WHERE datname = current_database() AND \
                 wait_event_type = 'Lock' AND application_name LIKE 'pglock:%' ORDER BY backend_start LIMIT 1";
    eventually(SOON, "both to wait", || {
        desk.sql(&waits.replace("query_start", "count(*) OVER ()")) == "2"
    });
    let mut stays = HashSet::new();
    eventually(SOON, "the writer to rejoin the queue", || {
        stays.insert(desk.sql(waits));
        stays.len() > 4
    });
    assert_eq!((writer.stdout(), next.stdout()), (String::new(), String::new()));
    for reader in readers {
        reader.finish().code(0);
    }
    assert_eq!(writer.finish().stdout(), "written\n");
    next.await_stdout("ready\n");
    next.finish().code(0);
    desk.script("readers-writer").arg("look").output().code(64);
}

#[test]
fn a_paused_job_is_told_why() {
    let desk = Desk::new();
    let pause = desk
        .script("pause")
        .args(["600", "upgrade until 14:00, ask ops"])
        .spawn();
    desk.await_locks("nightly", 1, 0);
    let job = || {
        desk.on_path("pglock")
            .args(["run", "--key", "nightly", "-n", "true"])
            .output()
    };
    let line = job().code(75).stderr_line();
    assert!(line.contains("note: upgrade until 14:00, ask ops"), "{line}");
    let evict = desk.on_path("pglock").args(["evict", "--yes", "--key", "nightly"]);
    evict.output().code(0);
    pause.finish().code(74);
    job().code(0).silent();
}

#[test]
fn a_newer_run_replaces_the_older_one() {
    let (desk, journal) = (Desk::new(), Journal::new());
    let old = format!(
        "{}; trap 'note ended; exit 1' TERM; echo ready; sleep 600 & wait $!",
        journal.note()
    );
    let old = desk.script("replace").args(["sh", "-c", &old]).spawn();
    old.await_stdout("ready\n");
    let new = format!("{}; note started", journal.note());
    let new = desk.script("replace").args(["sh", "-c", &new]).output();
    assert_eq!(new.stdout(), "");
    old.finish().code(74);
    assert!(journal.first("ended") < journal.first("started"));
}

#[test]
fn one_waits_and_all_others_are_skipped() {
    let desk = Desk::new();
    let first = holding(desk.script("one-waiter"));
    let second = desk.script("one-waiter").args(UNTIL_TOLD).spawn();
    desk.await_locks("rebuild", 1, 1);
    for _ in 0..2 {
        desk.script("one-waiter")
            .args(["echo", "third"])
            .output()
            .code(0)
            .silent();
    }
    first.finish().code(0);
    second.await_stdout("ready\n");
    // The first place is free again.
    let third = desk.script("one-waiter").args(["echo", "third"]).spawn();
    desk.await_locks("rebuild", 1, 1);
    second.finish().code(0);
    assert_eq!(third.finish().stdout(), "third\n");
}

#[test]
fn a_part_of_a_script_is_locked() {
    let desk = Desk::new();
    let (go, ran) = (desk.file("go"), desk.file("ran"));
    desk.program("prepare", "echo prepared");
    desk.program("export-data", &format!("echo exporting; {}", await_file(&go)));
    desk.program("clean-up", &format!("echo cleaned; touch {}", ran.display()));
    let script = || desk.script("part-of-a-script");

    let first = script().spawn();
    first.await_stdout("prepared\nexporting\n");
    let second = script().spawn();
    second.await_stdout("prepared\n");
    desk.await_locks("export", 1, 1);
    fs::write(&go, "").unwrap();
    for running in [first, second] {
        assert_eq!(running.finish().stdout(), "prepared\nexporting\ncleaned\n");
    }

    // The lock is lost, or the script is terminated: it ends, with pglock's status or that of the signal, as soon as
    // its command has ended.
    let exporting = || {
        let _ = (fs::remove_file(&go), fs::remove_file(&ran));
        let running = script().spawn();
        running.await_stdout("exporting\n");
        running
    };
    let lost = exporting();
    desk.terminate_the_holder("export");
    lost.await_stderr("lost the lock");
    fs::write(&go, "").unwrap();
    lost.finish().code(74);
    assert!(!ran.exists());
    let terminated = exporting();
    terminated.signal(Signal::SIGTERM);
    fs::write(&go, "").unwrap();
    terminated.finish().code(143);
    assert!(!ran.exists());
    desk.await_locks("export", 0, 0);
}

#[test]
fn a_type_and_a_number_are_one_key() {
    let desk = Desk::new();
    let holder = holding(desk.script("composite-key").arg("42"));
    let held =
        desk.sql("SELECT NOT pg_try_advisory_lock((7::bigint << 32) | 42), pg_try_advisory_lock(7::bigint << 32)");
    assert_eq!(held, "tt");
    holder.finish().code(0);
}

/// Inserts a run of the key 42 that succeeded an hour ago.
fn insert_success(desk: &Desk) {
    desk.sql(
        "INSERT INTO pglock_run (key, number, mode, host, pid, job, waited, started, ended, exit_status, outcome) \
         VALUES ('42', '42', 'exclusive', 'web1', 7, 'job', 0, now(), now() - interval '1h', 0, 'ok')",
    );
}

#[test]
fn a_check_tells_success_from_failure_and_ignorance() {
    let desk = Desk::new();
    let check = |arguments: &[&str]| desk.script("check-success").args(arguments).output();
    let unknown = check(&["2h", "42"]);
    let text = String::from_utf8_lossy(&unknown.code(3).silent().stdout).into_owned();
    assert!(
        text.starts_with("UNKNOWN: pglock: table public.pglock_run does not exist; "),
        "{text}"
    );
    desk.on_path("pglock").arg("init").output().stdout();
    insert_success(&desk);
    assert_eq!(check(&["2h", "42"]).stdout(), "OK: succeeded within 2h\n");
    let critical = check(&["2h", "a key", "42"]);
    let text = String::from_utf8_lossy(&critical.code(2).silent().stdout).into_owned();
    assert_eq!(text, "CRITICAL: pglock: key \"a key\" has no recorded success\n");
}

#[test]
fn the_textfile_collector_never_sees_half_a_file() {
    let desk = Desk::new();
    let directory = desk.file("textfile");
    fs::create_dir(&directory).unwrap();
    let write = || {
        desk.script("node-exporter")
            .env("TEXTFILE_DIRECTORY", &directory)
            .output()
    };
    let files = || -> Vec<_> {
        let entries = fs::read_dir(&directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect()
    };
    write().code(78).stderr_line();
    assert!(files().is_empty(), "{:?}", files());
    desk.on_path("pglock").arg("init").output().stdout();
    insert_success(&desk);
    write().stdout();
    assert_eq!(files(), ["pglock.prom"]);
    let metrics = fs::read_to_string(directory.join("pglock.prom")).unwrap();
    assert!(metrics.contains("pglock_last_exit_status{key=\"42\"} 0\n"), "{metrics}");
    desk.sql("DROP TABLE pglock_run");
    write().code(78).stderr_line();
    assert_eq!(fs::read_to_string(directory.join("pglock.prom")).unwrap(), metrics);
}

/// The command of a step is run as the runner runs it: by a shell that stops at the first error, in the checkout.
#[test]
fn a_ci_step_gets_the_signals_of_a_cancelled_run() {
    let desk = Desk::new();
    let deploy = "trap 'echo cancelled; exit 1' INT TERM; echo \"deploys to $1\"; sleep 600 & wait $!";
    desk.program("deploy", deploy);
    for (step, shell) in [
        (ci_command(&desk.ci("github-actions.yml"), "run: |\n"), "bash -e"),
        (ci_command(&desk.ci("gitlab-ci.yml"), "- exec "), "sh -e"),
    ] {
        let (shell, option) = shell.split_once(' ').unwrap();
        let mut runner = desk.on_path(shell).args([option, "-c", &step]);
        runner.command().current_dir(desk.directory());
        let running = runner.spawn();
        running.await_stdout("deploys to production\n");
        assert_eq!(desk.locks("deploy/production").granted, 1);
        running.signal(Signal::SIGTERM);
        let output = running.finish();
        assert!(
            String::from_utf8_lossy(&output.stdout).ends_with("cancelled\n"),
            "{output}"
        );
        eventually(SOON, "the release", || desk.locks("deploy/production").granted == 0);
    }
}

/// Returns the only command of a step, which is on the line that starts so, or that follows it.
fn ci_command(text: &str, start: &str) -> String {
    let (_, rest) = text.split_once(start).unwrap();
    let line = rest.lines().next().unwrap().trim();
    match start.strip_prefix("- ") {
        Some(first_word) => format!("{first_word}{line}"),
        None => line.to_owned(),
    }
}
