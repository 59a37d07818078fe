//! Hostile surroundings: schemas of other users, terminals that hang up, jobs that leave the process group, systems
//! that reveal nothing.

use crate::support::case::Case;
use crate::support::command::command;
use crate::support::journal::{Journal, now, state};
use crate::support::network::can_unshare;
use crate::support::pgbouncer::PgBouncer;
use crate::support::pglock::Pglock;
use crate::support::server::{Server, rows};
use crate::support::terminal::Terminal;
use crate::support::unique;
use crate::support::wait::{SOON, eventually};
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A user who may create functions and operators in a schema of the search path cannot have them run with pglock's
/// rights.
#[test]
fn functions_in_the_search_path_are_not_run() {
    let server = Server::shared();
    let database = server.database();
    let mut client = server.client_in(&database);
    rows(
        &mut client,
        "CREATE SCHEMA evil; CREATE TABLE public.hits (who text);
         CREATE FUNCTION evil.mul(int, numeric) RETURNS numeric LANGUAGE plpgsql AS
         $$ BEGIN INSERT INTO public.hits VALUES ('mul'); RETURN 1; END $$;
         CREATE OPERATOR evil.* (leftarg = int, rightarg = numeric, procedure = evil.mul);
         CREATE FUNCTION evil.eq(oid, int8) RETURNS bool LANGUAGE plpgsql AS
         $$ BEGIN INSERT INTO public.hits VALUES ('eq'); RETURN true; END $$;
         CREATE OPERATOR evil.= (leftarg = oid, rightarg = int8, procedure = evil.eq);
         CREATE FUNCTION evil.texteq(text, text) RETURNS bool LANGUAGE plpgsql AS
         $$ BEGIN INSERT INTO public.hits VALUES ('texteq'); RETURN true; END $$;
         CREATE OPERATOR evil.= (leftarg = text, rightarg = text, procedure = evil.texteq);
         CREATE FUNCTION evil.pg_backend_pid() RETURNS int LANGUAGE plpgsql AS
         $$ BEGIN INSERT INTO public.hits VALUES ('pid'); RETURN 1; END $$;
         CREATE FUNCTION evil.current_database() RETURNS name LANGUAGE plpgsql AS
         $$ BEGIN INSERT INTO public.hits VALUES ('db'); RETURN 'x'; END $$",
    );
    let path = format!("ALTER DATABASE {database} SET search_path = evil, pg_catalog, public");
    rows(&mut client, &path);
    for options in [
        &["--scope", "session"][..],
        &["--scope", "transaction"],
        &["--slots", "2"],
        &["--fair"],
        &["--token"],
    ] {
        let key = unique("key");
        let run = || server.run(&key).args(options).env("PGDATABASE", &database);
        let holders = [run().holding()];
        run().args(["--wait", "0.3", "-v", "true"]).output();
        let conflict = server
            .run(&key)
            .args(["-n", "true"])
            .env("PGDATABASE", &database)
            .output();
        // One of the two slots is free.
        if options[0] != "--slots" {
            let line = conflict.code(75).stderr_line();
            assert!(line.contains(&format!("in database \"{database}\"")), "{line}");
        }
        for holder in holders {
            holder.finish().code(0);
        }
    }
    let check = server.pglock().arg("check").env("PGDATABASE", &database).output();
    check.code(0);
    assert_eq!(rows(&mut client, "SELECT who FROM hits"), Vec::<Vec<String>>::new());
}

/// P21: a lock that was lost before the job ended does not pass for success, even if pglock was stopped meanwhile.
#[test]
fn a_loss_that_is_noticed_after_the_jobs_end_is_still_a_loss() {
    let case = Case::new();
    let mut running = case.run().sh("echo $$; read -r _; exit 0").spawn();
    running.await_stdout("\n");
    let job = Pid::from_raw(running.stdout().trim().parse().unwrap());
    running.signal(Signal::SIGSTOP);
    eventually(SOON, "the stop", || state(running.pid()) == Some('T'));
    case.terminate_backends();
    case.await_locks(0, 0);
    std::io::Write::write_all(running.stdin(), b"go\n").unwrap();
    eventually(SOON, "the job's end", || state(job).is_none());
    running.signal(Signal::SIGCONT);
    let output = running.finish();
    let text = String::from_utf8_lossy(&output.code(74).stderr).into_owned();
    assert!(
        text.contains("lost the lock") && text.contains("another job may have run concurrently"),
        "{text}"
    );
}

/// P50: a terminal that is closed ends the job as without pglock, also if pglock leads the session (`ssh -t host pglock
/// run ...`), in which case the kernel signals pglock alone.
#[test]
fn a_hangup_reaches_the_job_of_a_session_leader() {
    let case = Case::new();
    let pglock = env!("CARGO_BIN_EXE_pglock");
    let terminal = Terminal::run(case.server, &[pglock, "run", "-k", &case.key, "--", "sleep", "63"]);
    case.await_locks(1, 0);
    terminal.hang_up();
    case.await_locks(0, 0);
}

/// P50: a job that leaves pglock's process group, as timeout(1) does, still gets the keys of the terminal.
#[test]
fn keys_reach_a_job_that_has_left_the_group() {
    let case = Case::new();
    let key = &case.key;
    let mut terminal = Terminal::run(case.server, &["bash", "--norc", "--noprofile", "-i"]);
    terminal.expect("prompt> ");
    terminal.keys(&format!("\"$PGLOCK\" run -k {key} -- timeout 60 sleep 64\n"));
    let sleep = || command("pgrep").args(["-x", "-f", "sleep 64"]).output().unwrap();
    eventually(SOON, "the job", || sleep().status.success());
    terminal.keys("\x1a");
    terminal.expect("Stopped");
    assert_eq!(case.locks().granted, 1);
    terminal.keys("fg\n");
    let pid: i32 = String::from_utf8_lossy(&sleep().stdout).trim().parse().unwrap();
    eventually(SOON, "it to go on", || state(Pid::from_raw(pid)) == Some('S'));
    terminal.keys("\x03");
    case.await_locks(0, 0);
    terminal.keys("echo status $?\n");
    terminal.expect("status 1");
}

/// P13, P23: what the job leaves behind holds neither the lock nor the session.
#[test]
fn an_ignored_loss_does_not_leave_the_lock_to_what_the_job_leaves_behind() {
    let case = Case::new();
    let options = ["--on-lost", "ignore", "--heartbeat", "0.3"];
    let job = "sleep 65 >/dev/null 2>&1 & echo $!; read -r _; exit 0";
    let running = case.run().args(options).sh(job).spawn();
    running.await_stdout("\n");
    let left_behind = Pid::from_raw(running.stdout().trim().parse().unwrap());
    let frozen = case.backend();
    kill(frozen, Signal::SIGSTOP).unwrap();
    running.await_stderr("unguarded");
    kill(frozen, Signal::SIGCONT).unwrap();
    running.finish().code(0);
    case.await_locks(0, 0);
    assert!(state(left_behind).is_some());
    kill(left_behind, Signal::SIGKILL).unwrap();
}

/// P21: without /proc, a job is not taken for gone because pglock cannot see it.
#[cfg(target_os = "linux")]
#[test]
fn without_proc_a_job_that_ignores_term_is_killed_too() {
    if !can_unshare("-m") {
        return;
    }
    let (case, journal) = (Case::new(), Journal::new());
    let hide = "mount -t tmpfs none /proc; exec \"$@\"";
    let pglock = env!("CARGO_BIN_EXE_pglock");
    let running = case
        .program("unshare")
        .args([
            "-m",
            "sh",
            "-c",
            hide,
            "sh",
            pglock,
            "run",
            "--key",
            &case.key,
            "--kill-after",
            "0.5",
        ])
        .sh(&journal.stubborn())
        .spawn();
    eventually(SOON, "three processes", || journal.pids().len() == 3);
    case.terminate_backends();
    running.finish().code(74);
    assert!(
        journal.pids().iter().all(|pid| state(*pid).is_none()),
        "{:?}",
        journal.pids()
    );
}

/// P21: children that a shell had before it became pglock are not part of the job.
#[test]
fn children_from_before_are_not_terminated() {
    let case = Case::new();
    let key = &case.key;
    let script = format!("trap '' HUP; sleep 66 & echo pid $!.; exec \"$PGLOCK\" run -k {key} -- sleep 67");
    let mut terminal = Terminal::run(case.server, &["bash", "-c", &script]);
    terminal.expect("pid ");
    terminal.expect(".");
    let screen = terminal.screen();
    let before = screen.split("pid ").nth(1).unwrap().split('.').next().unwrap();
    let before = Pid::from_raw(before.parse().unwrap());
    case.await_locks(1, 0);
    let sleep = || command("pgrep").args(["-x", "-f", "sleep 67"]).output().unwrap();
    eventually(SOON, "the job", || sleep().status.success());
    case.terminate_backends();
    assert_eq!(terminal.end().code(), Some(74), "{}", terminal.screen());
    assert!(state(before).is_some());
    kill(before, Signal::SIGKILL).unwrap();
}

/// P91: too few descriptors are an error with a message, not a panic.
#[test]
fn too_few_descriptors_are_reported() {
    let case = Case::new();
    for limit in 7..16 {
        let limit = format!("ulimit -n {limit}; exec \"$@\"");
        let run = case
            .program("sh")
            .args(["-c", &limit, "sh", env!("CARGO_BIN_EXE_pglock")]);
        let output = run.args(["run", "--key", &case.key, "true"]).output();
        if output.status.code() != Some(0) {
            output.code(70).stderr_line();
        }
    }
}

/// P33, if all signals were blocked on entry.
#[test]
fn a_blocked_signal_ends_the_wait() {
    let case = Case::new();
    let holder = case.holder();
    for signal in [Signal::SIGTERM, Signal::SIGQUIT] {
        let pglock = env!("CARGO_BIN_EXE_pglock");
        let run = case
            .program("env")
            .args(["--block-signal", pglock, "run", "--key", &case.key, "true"]);
        let waiter = run.spawn();
        case.await_locks(1, 1);
        waiter.signal(signal);
        waiter.finish().signal(signal).silent();
        case.await_locks(1, 0);
    }
    holder.finish().code(0);
}

/// P14, over TCP.
#[test]
fn the_job_keeps_the_lock_of_a_killed_pglock_over_tcp() {
    let (case, journal) = (Case::new(), Journal::new());
    let job = format!("{}; note \"pid $$\"; read -r _; exit", journal.note());
    let mut running = case.run().args(["-d", &case.dsn()]).sh(&job).spawn();
    eventually(SOON, "the job", || journal.pids().len() == 1);
    running.signal(Signal::SIGKILL);
    eventually(SOON, "the end of pglock", || !running.lives());
    case.assert_held();
    let freed = now();
    kill(journal.pids()[0], Signal::SIGKILL).unwrap();
    case.await_locks(0, 0);
    assert!(now() - freed < 5_000_000_000);
}

/// P38: with deferrable transactions as the default of a role or database, each transaction would wait until no other
/// client writes in a serializable one. pglock's do not.
#[test]
fn deferrable_transactions_do_not_wait_for_writers() {
    let server = Server::start();
    let pooler = PgBouncer::with(&server, &["pool_mode=transaction"]);
    // With the server's own defaults.
    let mut observer = server.client();
    for setting in ["deferrable = on", "isolation = serializable", "read_only = on"] {
        server.sql(&format!("ALTER DATABASE postgres SET default_transaction_{setting}"));
    }
    let mut writer = server.client();
    rows(
        &mut writer,
        "BEGIN ISOLATION LEVEL SERIALIZABLE READ WRITE; CREATE TABLE written ()",
    );
    // Only a session that waits can prove the setup.
    let waits = command("psql")
        .args(["-h", server.host(), "-p", &server.port().to_string()])
        .args(["-U", "postgres", "-c", "SELECT 1"])
        .env("PGOPTIONS", "-c statement_timeout=300")
        .output();
    assert!(
        !waits.unwrap().status.success(),
        "a deferrable transaction does not wait"
    );
    for pooled in [false, true] {
        let run = |options: &[&str]| {
            let limits = ["run", "--heartbeat", "2"];
            let pglock = if pooled { pooler.pglock() } else { server.pglock() };
            pglock.args(limits).args(options)
        };
        for options in [
            &["-k", "key"][..],
            &["-k", "key", "--token"],
            &["-k", "key", "--hash", "hashtext"],
            &["-k", "key", "--hash", "hashtext", "-k", "other"],
            &["-k", "key", "--slots", "2"],
        ] {
            run(options).arg("true").output().stdout();
        }
        let primary = ("PGTARGETSESSIONATTRS", "primary");
        run(&["-k", "key"])
            .env(primary.0, primary.1)
            .arg("true")
            .output()
            .stdout();
        let pglock = if pooled { pooler.pglock() } else { server.pglock() };
        let check = pglock.arg("check").env("PGLOCK_HEARTBEAT", "2").output();
        check.code(0);
        let holder = run(&["-k", "key"]).holding();
        for wait in ["0", "1"] {
            let output = run(&["-k", "key", "--wait", wait, "true"]).output();
            let line = output.code(75).stderr_line();
            assert!(line.contains(" is held by "), "{line}");
        }
        holder.finish().code(0).silent();
    }
    let holder = server.run("key").holding();
    // The server reads notifications in a transaction that it begins itself, with the defaults of the session.
    let listening = "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%holds%LISTEN%' AND pid <> pg_backend_pid()";
    eventually(SOON, "listening", || !rows(&mut observer, listening).is_empty());
    rows(&mut observer, "NOTIFY another_channel");
    let list = ["list", "--key", "key"];
    server.pglock().args(list).output().code(75);
    let evict = ["evict", "--key", "key", "--yes"];
    server.pglock().args(evict).output().code(0);
    holder.await_stderr("evicted by ");
    holder.finish().code(74);
}

/// A full pipe that nothing reads.
struct Unread {
    directory: TempDir,
    pipe: File,
}

impl Unread {
    fn new() -> Unread {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("pipe");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let mut options = File::options();
        options.read(true).write(true);
        let mut pipe = options.custom_flags(OFlag::O_NONBLOCK.bits()).open(path).unwrap();
        while pipe.write(&[b'.'; 4096]).is_ok() {}
        Unread { directory, pipe }
    }

    /// `pglock run` with it as its standard error.
    fn run(&self, server: &Server, key: &str) -> Pglock {
        let path = self.directory.path().join("pipe");
        let pglock = env!("CARGO_BIN_EXE_pglock");
        let sh = server.program("sh").args(["-c", "exec \"$@\" 2>\"$0\""]);
        sh.arg(path).args([pglock, "run", "--key", key])
    }

    /// Empties the pipe, and returns what was written since there was room.
    fn drain(&mut self) -> String {
        let mut written = Vec::new();
        let _ = self.pipe.read_to_end(&mut written);
        String::from_utf8(written).unwrap().replace('.', "")
    }
}

/// P12: a standard error that is not read keeps pglock neither from its job nor from exiting; nor do signals that
/// arrive meanwhile.
#[test]
fn an_unread_standard_error_does_not_block() {
    let (case, unread) = (Case::new(), Unread::new());
    let run = unread.run(case.server, &case.key).args(["-v", "true"]).output();
    assert!(run.code(0).took < Duration::from_secs(15), "{run}");

    let holder = case.holder();
    let mut refused = unread.run(case.server, &case.key).args(["-n", "true"]).spawn();
    eventually(SOON, "its end", || {
        let lives = refused.lives();
        if lives {
            refused.signal(Signal::SIGWINCH);
        }
        !lives
    });
    refused.finish().code(75);
    holder.finish().code(0);
}

/// P10: a lock that is known to be lost starts no job, however long it took to report that it was acquired.
#[cfg(target_os = "linux")]
#[test]
fn a_loss_while_reporting_the_acquisition_starts_no_job() {
    let (case, mut unread) = (Case::new(), Unread::new());
    let key = &case.key;
    let running = unread
        .run(case.server, key)
        .args(["--no-wait", "-v", "echo", "ran"])
        .spawn();
    case.await_locks(1, 0);
    let lost = case.backend();
    case.terminate_backends();
    // The session's thread has reported the loss and guards the key; the main thread waits for room in the pipe.
    eventually(SOON, "the guard", || {
        case.locks().granted == 1 && case.backend() != lost
    });
    let mut written = String::new();
    eventually(SOON, "the last message", || {
        written += &unread.drain();
        written.contains("not started")
    });
    assert_eq!(running.finish().code(69).stdout, b"");
    // Over a Unix socket, the client library can forget the server's last message.
    let (begin, end) = (
        format!("pglock: lost the lock on key \"{key}\" at 20"),
        "; the job was not started\n",
    );
    let last = written.lines().last().unwrap();
    assert!(last.starts_with(&begin) && written.ends_with(end), "{written}");
}

/// P10, P39: nor does such a loss end a wait. It may have come with the loss of another client, whose job is dead only
/// H + D + G later: 6.5 s with the margin.
#[cfg(target_os = "linux")]
#[test]
fn a_loss_while_reporting_the_acquisition_ends_no_wait() {
    let (case, mut unread) = (Case::new(), Unread::new());
    let running = unread.run(case.server, &case.key).args(["-v", "--heartbeat", "1.5"]);
    let mut running = running.args(["--kill-after", "0.5", "echo", "ran"]).spawn();
    case.await_locks(1, 0);
    let (lost, since) = (case.backend(), Instant::now());
    case.terminate_backends();
    // The session's thread has noticed the loss, and waits on; the main thread waits for room in the pipe.
    eventually(SOON, "another session", || {
        case.backends().first().is_some_and(|backend| *backend != lost)
    });
    let mut written = String::new();
    eventually(SOON, "its end", || {
        written += &unread.drain();
        !running.lives()
    });
    assert_eq!(running.finish().code(0).stdout, b"ran\n");
    assert!(since.elapsed() >= Duration::from_millis(6500), "{:?}", since.elapsed());
    assert!(
        written.contains("the holder may have lost its lock in the meantime"),
        "{written}"
    );
}
