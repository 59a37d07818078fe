//! What pglock does when somebody else holds the lock, and that it says nothing when nobody does.

use crate::support::pglock::Output;
use crate::support::server::{Server, number, rows};
use crate::support::unique;
use std::time::Duration;

/// "A held lock (75) prints one line on stderr naming key, database and holder (from its application_name, pid,
/// since when where visible)"
#[test]
fn a_conflict_names_key_database_and_holder() {
    let server = Server::shared();
    let key = unique("named");
    let holder = server
        .run(&key)
        .sh("echo \"<$PGLOCK_BACKEND_PID>\"; read -r _; exit 0")
        .spawn();
    holder.await_stdout(">\n");
    let out = holder.stdout();
    let backend = out.trim().trim_matches(['<', '>']);
    let output = server.run(&key).args(["-n", "--", "echo", "mine"]).output();
    let line = output.code(75).stderr_line();
    let host = nix::unistd::gethostname().unwrap().into_string().unwrap();
    let since = server.value(&format!(
        "SELECT to_char(state_change AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') FROM pg_stat_activity WHERE pid = {backend}"
    ));
    assert_eq!(
        line,
        format!(
            "key {key:?} ({}) in database \"postgres\" is held by {host}:{} (backend {backend}, since {since}); \
             not waiting",
            number(&key),
            holder.pid()
        )
    );
    holder.finish().code(0);
}

/// An ordinary role may not see since when, and sees the rest. Others than pglock are named as they name themselves.
#[test]
fn a_conflict_names_what_an_ordinary_role_may_see() {
    let server = Server::shared();
    let (key, role) = (unique("ordinary"), unique("ordinary_role"));
    server.sql(&format!("CREATE ROLE {role} LOGIN"));
    let mut client = server.client();
    rows(&mut client, "SET application_name = 'an old script'");
    rows(&mut client, &format!("SELECT pg_advisory_lock({})", number(&key)));
    let backend = rows(&mut client, "SELECT pg_backend_pid()").concat().concat();
    let run = server.run(&key).env("PGUSER", role).env("PGDATABASE", "postgres");
    let line = run.args(["-n", "true"]).output().code(75).stderr_line();
    let held = format!("is held by \"an old script\" of user \"postgres\" (backend {backend}); not waiting");
    assert!(line.ends_with(&held), "{line}");
}

/// With several holders, one is named and the others are counted.
#[test]
fn a_conflict_counts_the_other_holders() {
    let server = Server::shared();
    let key = unique("several");
    let holders: Vec<_> = (0..3).map(|_| server.run(&key).arg("-s").holding()).collect();
    let line = server.run(&key).args(["-n", "true"]).output().code(75).stderr_line();
    assert!(line.contains(&format!(":{} (backend ", holders[0].pid())), "{line}");
    assert!(line.ends_with(") and 2 more; not waiting"), "{line}");
}

/// "`-q` silences it"; "`-E` changes it; `-E 0` is "skip quietly is fine""
#[test]
fn the_exit_status_and_the_words_of_a_conflict_are_the_users_to_choose() {
    let server = Server::shared();
    let key = unique("chosen");
    let holder = server.run(&key).holding();
    let run = |options: &[&str], variable: Option<&str>| -> Output {
        let run = server.run(&key).arg("-n").args(options);
        let run = match variable {
            Some(value) => run.env("PGLOCK_CONFLICT_EXIT_CODE", value),
            None => run,
        };
        let output = run.args(["--", "echo", "mine"]).output();
        assert_eq!(output.stdout, b"", "no job was to be started");
        output
    };
    run(&["-q"], None).code(75).silent();
    run(&["--quiet", "-E", "0"], None).code(0).silent();
    run(&["-E", "0"], None).code(0).stderr_line();
    run(&["-E", "255"], None).code(255).stderr_line();
    run(&["--conflict-exit-code", "9"], None).code(9).stderr_line();
    run(&[], Some("7")).code(7).stderr_line();
    // An option overrides its variable, and an empty variable is none.
    run(&["-E", "9"], Some("7")).code(9).stderr_line();
    run(&[], Some("")).code(75).stderr_line();
    holder.finish().code(0);
}

/// "`-n/--no-wait` (`--nonblock`) · `-w/--wait DURATION` (`--timeout`; ... 0 = try once; none = for ever)", and
/// `PGLOCK_WAIT`, "which an option overrides"
#[test]
fn whether_to_wait_is_said_by_option_or_variable() {
    let server = Server::shared();
    let key = unique("whether");
    let holder = server.run(&key).holding();
    let run = |options: &[&str], variable: &str| {
        let run = server.run(&key).args(options).env("PGLOCK_WAIT", variable);
        run.args(["echo", "mine"])
    };
    for (options, variable) in [
        (&["-n"][..], ""),
        (&["--no-wait"], "1h"),
        (&["--nonblock"], ""),
        (&["-w", "0"], "1h"),
        (&["--wait=0"], ""),
        (&["--timeout", "0s"], ""),
        (&[], "0"),
    ] {
        let output = run(options, variable).output();
        let line = output.code(75).stderr_line();
        assert!(line.ends_with("; not waiting"), "{output}");
        assert!(output.took < Duration::from_secs(2), "{output}");
    }
    let output = run(&[], "0.3").output();
    let line = output.code(75).stderr_line();
    assert!(line.ends_with("; gave up after 300ms"), "{output}");
    assert!(output.took > Duration::from_millis(300), "{output}");
    // These two wait: they are in the queue, and get the lock in the end.
    let waits = [run(&["-w", "1h"], "0").spawn(), run(&[], "").spawn()];
    server.await_locks(&key, 1, 2);
    holder.finish().code(0);
    for wait in waits {
        assert_eq!(wait.finish().stdout(), "mine\n");
    }
}

/// "`-v`: each step": who holds the lock is said while waiting, too.
#[test]
fn a_verbose_wait_says_for_whom_it_waits() {
    let server = Server::shared();
    let key = unique("verbose");
    let holder = server.run(&key).holding();
    let waiter = server.run(&key).args(["-v", "echo", "mine"]).spawn();
    waiter.await_stderr(&format!(":{} (backend ", holder.pid()));
    waiter.await_stderr("; waiting\n");
    holder.finish().code(0);
    let output = waiter.finish();
    assert_eq!(output.code(0).stdout, b"mine\n", "{output}");
    let lines = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(lines.lines().all(|line| line.starts_with("pglock: ")), "{lines}");
    assert!(lines.contains("acquired the lock"), "{lines}");
}

/// "pglock writes only to stderr, and on a good day nothing at all": also where it waited, or the job failed.
#[test]
fn a_good_day_is_silent() {
    let server = Server::shared();
    let key = unique("silent");
    let holder = server.run(&key).holding();
    let waits = [
        server.run(&key).arg("true").spawn(),
        server.run(&key).args(["-w", "1h", "-s", "true"]).spawn(),
        server.run(&key).args(["false"]).spawn(),
    ];
    server.await_locks(&key, 1, 3);
    holder.finish().code(0).silent();
    for (wait, code) in waits.into_iter().zip([0, 0, 1]) {
        let output = wait.finish();
        assert_eq!(output.code(code).silent().stdout, b"", "{output}");
    }
}
