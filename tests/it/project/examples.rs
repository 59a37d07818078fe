//! P95: the recipes in `examples/`, each run as an operator would run it, with the tools that it names.
//!
//! The operator's own programs (`nightly`, `make-report`) are put beside pglock into a directory that stands for
//! `/usr/local/bin`. Each test has a database of its own, and so its own locks. The recipes for systemd and Kubernetes
//! are in `services` and `kubernetes`.

use super::desk::{Desk, EXAMPLES, await_file};
use crate::support::journal::{Journal, state};
use crate::support::pglock::Running;
use crate::support::wait::{SOON, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::time::Duration;

/// Every file is run by a test of this file, `recipes.rs`, `services.rs` or `kubernetes.rs`, and is in the table of
/// `docs/running-jobs.md`.
#[test]
fn every_example_has_a_test_and_a_line_in_the_docs() {
    let tests = concat!(
        include_str!("examples.rs"),
        include_str!("recipes.rs"),
        include_str!("services.rs"),
        include_str!("kubernetes.rs")
    );
    let page = include_str!("../../../docs/running-jobs.md");
    let names: Vec<_> = fs::read_dir(EXAMPLES).unwrap().collect();
    assert!(!names.is_empty());
    for name in names {
        let name = name.unwrap().file_name().into_string().unwrap();
        let is_used = ["script", "text", "ci"].map(|by| tests.contains(&format!(".{by}(\"{name}\")")));
        assert!(is_used.contains(&true), "examples/{name} has no test");
        let line = format!("| [`{name}`](../examples/{name}) |");
        assert!(page.contains(&line), "docs/running-jobs.md lacks {line}");
    }
}

/// P17: the job has ended on the first host before cron starts it on the second.
#[test]
fn a_crontab_runs_the_nightly_job_on_one_host() {
    let desk = Desk::new();
    let ran = desk.file("ran");
    desk.program("nightly", &format!("echo $$ >> {}", ran.display()));
    let (variables, commands) = crontab(&desk.text("crontab"));
    let cron = || desk.cron(&variables, &commands[0]);
    let pids = || fs::read_to_string(&ran).unwrap_or_default();

    let mut before = String::new();
    for _day in 0..2 {
        let first = cron().spawn();
        eventually(SOON, "the start of the job", || {
            pids().len() > before.len() && pids().ends_with('\n')
        });
        before = pids();
        let job = before.lines().last().unwrap().parse().unwrap();
        eventually(SOON, "the job to be reaped", || kill(Pid::from_raw(job), None).is_err());
        cron().output().code(0).silent();
        assert_eq!(pids(), before, "it ran on the second host as well");
        // End the five minutes of --min-hold, for pglock itself and not for cron's shell.
        let pid = desk.sql(
            "SELECT substring(application_name FROM '[0-9]+$') FROM pg_stat_activity \
             WHERE datname = current_database() AND application_name LIKE 'pglock:nightly %'",
        );
        kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGTERM).unwrap();
        first.finish().code(0).silent();
    }
    assert_eq!(before.lines().count(), 2);
}

/// P102: the second attempt runs the job again that has failed, and the third leaves it alone.
#[test]
fn a_crontab_runs_the_report_until_it_succeeds() {
    let desk = Desk::new();
    desk.on_path(env!("CARGO_BIN_EXE_pglock")).arg("init").output().code(0);
    let ran = desk.file("ran");
    let has_run_before = format!("echo ran >> {0}; [ $(wc -l < {0}) -gt 1 ]", ran.display());
    desk.program("report", &has_run_before);
    let (variables, commands) = crontab(&desk.text("crontab"));
    for (status, runs) in [(1, 1), (0, 2), (0, 2)] {
        desk.cron(&variables, &commands[1]).output().code(status).silent();
        assert_eq!(fs::read_to_string(&ran).unwrap().lines().count(), runs);
    }
}

#[test]
fn a_crontab_runs_the_weekly_job_on_every_host_in_turn() {
    let (desk, journal) = (Desk::new(), Journal::new());
    let go = desk.file("go");
    let job = format!("{}; note begin; {}; note end", journal.note(), await_file(&go));
    desk.program("weekly", &job);
    let (variables, commands) = crontab(&desk.text("crontab"));
    let hosts = [(), ()].map(|()| desk.cron(&variables, &commands[2]).spawn());
    desk.await_locks("weekly", 1, 1);
    fs::write(&go, "").unwrap();
    for host in hosts {
        host.finish().code(0).silent();
    }
    let events: Vec<_> = journal.entries().into_iter().map(|entry| entry.event).collect();
    assert_eq!(events, ["begin", "end", "begin", "end"]);
}

#[test]
fn two_deployers_migrate_once_with_an_index_built_concurrently() {
    let desk = Desk::new();
    let (directory, go) = (desk.file("migrations"), desk.file("go"));
    fs::create_dir(&directory).unwrap();
    let write = |name: &str, sql: &str| fs::write(directory.join(name), sql).unwrap();
    let pause = await_file(&go);
    write("001_it's.sql", &format!("CREATE TABLE t (n int);\n\\! {pause}\n"));
    write("002_index.sql", "CREATE INDEX CONCURRENTLY by_n ON t (n);\n");
    let deploy = || desk.script("migrate").arg(&directory);

    let first = deploy().spawn();
    first.await_stdout("001_it's.sql\n");
    let second = deploy().spawn();
    desk.await_locks("migrate", 1, 1);
    // From here on the index is built while the second one waits.
    fs::write(&go, "").unwrap();
    assert_eq!(first.finish().stdout(), "001_it's.sql\n002_index.sql\n");
    assert_eq!(second.finish().stdout(), "");
    assert_eq!(
        desk.sql("SELECT indisvalid FROM pg_index WHERE indexrelid = 'by_n'::regclass"),
        "t"
    );

    write("003_wrong.sql", "SELECT wrong;\n");
    write("004_next.sql", "SELECT 1;\n");
    let failed = deploy().output();
    assert!(failed.code(3).stdout == b"003_wrong.sql\n", "{failed}");
    write("003_wrong.sql", "");
    assert_eq!(deploy().output().stdout(), "003_wrong.sql\n004_next.sql\n1\n");
}

/// What a killed migration was doing does not go on at the server, without the lock.
#[test]
fn a_killed_migration_ends_its_statement() {
    let desk = Desk::new();
    if desk.server.version() < 14 {
        println!("SKIPPED: PostgreSQL before 14 does not notice during a statement that its client has gone");
        return;
    }
    let directory = desk.file("migrations");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("001_long.sql"), "SELECT pg_sleep(600);\n").unwrap();
    let migrate = desk.script("migrate").arg(&directory).spawn();
    let statements = || {
        desk.sql(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' \
             AND query LIKE 'SELECT pg_sleep%'",
        )
    };
    eventually(SOON, "the statement", || statements() == "1");
    desk.terminate_the_holder("migrate");
    migrate.finish().code(74);
    eventually(SOON, "the end of the statement", || statements() == "0");
}

#[test]
fn a_pool_of_three_gives_each_a_port() {
    let desk = Desk::new();
    let job = ["sh", "-c", "echo $LICENCE_PORT; read -r _; exit 4"];
    let start = || desk.script("pool").args(job).spawn();
    let port = |running: &Running| {
        running.await_stdout("\n");
        running.stdout()
    };
    let three = [start(), start(), start()];
    let mut ports = three.each_ref().map(port);
    ports.sort();
    assert_eq!(ports, ["7000\n", "7001\n", "7002\n"]);

    let fourth = start();
    let sessions = "SELECT count(*) FROM pg_stat_activity \
        WHERE datname = current_database() AND application_name LIKE 'pglock:licence%'";
    eventually(SOON, "the session of the fourth", || desk.sql(sessions) == "4");
    assert_eq!(fourth.stdout(), "");
    let [first, second, third] = three;
    let freed = first.stdout();
    first.finish().code(4);
    assert_eq!(port(&fourth), freed);
    for running in [second, third, fourth] {
        running.finish().code(4);
    }
}

/// Each task is done once, although one worker is busy with its first while the other does the rest.
#[test]
fn workers_share_the_tasks() {
    let desk = Desk::new();
    desk.sql("CREATE TABLE task (name text PRIMARY KEY, done timestamptz)");
    desk.sql("INSERT INTO task VALUES ('1'), ('2'), ('3'), ('it''s a $task; *'), ('fails')");
    let (done, go, fails) = (desk.file("done"), desk.file("go"), desk.file("fails"));
    fs::write(&fails, "").unwrap();
    let job = format!(
        "[ \"$1\" != fails ] || [ ! -e {} ] || exit 1
        echo \"$1\" >> {}
        [ \"$1\" != 1 ] || {{ {}; }}",
        fails.display(),
        done.display(),
        await_file(&go)
    );
    desk.program("task-do", &job);
    let lines = || -> Vec<String> {
        let text = fs::read_to_string(&done).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    };

    let first = desk.script("worker").spawn();
    eventually(SOON, "the start of the first task", || lines() == ["1"]);
    desk.script("worker").output().code(1).silent();
    assert_eq!(lines(), ["1", "2", "3", "it's a $task; *"]);
    assert_eq!(
        desk.sql("SELECT string_agg(name, ' ' ORDER BY name) FROM task WHERE done IS NULL"),
        "1 fails"
    );
    fs::remove_file(&fails).unwrap();
    fs::write(&go, "").unwrap();
    assert_eq!(first.finish().stdout(), "");
    assert_eq!(lines(), ["1", "2", "3", "it's a $task; *", "fails"]);
    assert_eq!(desk.sql("SELECT count(*) FROM task WHERE done IS NULL"), "0");
}

/// P18: the first host is frozen while it makes its report, the server gives it up, and a second host writes.
#[test]
fn an_overtaken_holder_writes_nothing() {
    let desk = Desk::new();
    desk.sql(&desk.comment("guarded-write", "CREATE TABLE "));
    let (go, pid) = (desk.file("go"), desk.file("pid"));
    let job = format!(
        "cd {}; echo $$ > pid; {}; date +%s%N",
        desk.directory().display(),
        await_file(&go)
    );
    desk.program("make-report", &job);

    let first = desk.script("guarded-write").spawn();
    let mut group = 0;
    eventually(SOON, "the first report", || {
        let text = fs::read_to_string(&pid).unwrap_or_default();
        let job = text.trim().parse().map(Pid::from_raw);
        group = job.map_or(0, |job| nix::unistd::getpgid(Some(job)).unwrap().as_raw());
        text.ends_with('\n')
    });
    let job = Pid::from_raw(-group);
    first.signal(Signal::SIGSTOP);
    kill(job, Signal::SIGSTOP).unwrap();
    desk.terminate_the_holder("report");
    fs::write(&go, "").unwrap();
    assert_eq!(desk.script("guarded-write").output().stdout(), "");
    let written = desk.sql("SELECT body || token FROM report");
    assert!(!written.is_empty());

    // The job continues before pglock, which would terminate it.
    kill(job, Signal::SIGCONT).unwrap();
    first.await_stderr("overtaken by a later holder");
    assert_eq!(desk.sql("SELECT body || token FROM report"), written);
    first.signal(Signal::SIGCONT);
    first.finish().code(74);
    assert_eq!(desk.script("guarded-write").output().stdout(), "");
    assert_ne!(desk.sql("SELECT body || token FROM report"), written);
}

#[test]
fn a_script_runs_itself_under_the_lock() {
    let desk = Desk::new();
    desk.program("clean-up", "for a; do echo \"<$a>\"; done; read -r _; exit 3");
    let first = desk.script("self-locking").args(["a  b", "", "*"]).spawn();
    first.await_stdout("<a  b>\n<>\n<*>\n");

    // A process that a job left behind believes that it holds the lock. The script also works as `sh self-locking`.
    let mut second = desk.on_path("sh").args(["self-locking", "second"]);
    second = second.env("PGLOCK_KEY", "clean-up").env("PGLOCK_MODE", "shared");
    second.command().current_dir(EXAMPLES);
    let second = second.spawn();
    desk.await_locks("clean-up", 1, 1);
    assert_eq!(second.stdout(), "");
    first.finish().code(3);
    second.await_stdout("<second>\n");
    second.finish().code(3);

    let line = desk.comment("self-locking", "[ ");
    desk.program("short", &format!("{line}\necho \"$PGLOCK_KEY $1\""));
    let short = desk.on_path("short").arg("a  b").output();
    assert_eq!(short.stdout(), "clean-up a  b\n");
}

#[test]
fn the_wait_and_the_job_have_limits() {
    let desk = Desk::new();
    let limits = || desk.script("limits");
    assert_eq!(limits().args(["echo", "a  b"]).output().stdout(), "a  b\n");
    limits().args(["sh", "-c", "exit 5"]).output().code(5);

    let (alive, job) = (desk.file("alive"), "sleep 600 & echo $! > \"$0\"; wait");
    let limited = limits().env("MAX_RUN", "0.5").args(["sh", "-c", job]);
    limited.arg(&alive).output().code(124).silent();
    let child = fs::read_to_string(&alive).unwrap().trim().parse().unwrap();
    eventually(SOON, "the end of the command's child", || {
        state(Pid::from_raw(child)).is_none()
    });

    let holder = limits().args(["sh", "-c", "echo ready; read -r _"]).spawn();
    holder.await_stdout("ready\n");
    let output = limits().env("MAX_WAIT", "0.3").arg("true").output();
    output.code(75);
    assert!(output.took >= Duration::from_millis(300), "{output}");
}

/// Returns the variables of a crontab, and its command lines without their five fields.
fn crontab(text: &str) -> (Vec<(String, String)>, Vec<String>) {
    let (mut variables, mut commands) = (Vec::new(), Vec::new());
    for line in text.lines() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if line.starts_with(|c: char| c.is_ascii_uppercase()) {
            let (name, value) = line.split_once('=').unwrap();
            variables.push((name.to_owned(), value.to_owned()));
            continue;
        }
        let mut rest = line;
        for _ in 0..5 {
            let (field, after) = rest.split_once(' ').unwrap();
            let is_time = |byte: u8| byte.is_ascii_digit() || b"*-".contains(&byte);
            assert!(field.bytes().all(is_time), "{line}");
            rest = after.trim_start();
        }
        // cron turns it into a line break.
        assert!(!rest.contains('%'), "{line}");
        commands.push(rest.to_owned());
    }
    (variables, commands)
}
