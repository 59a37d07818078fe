//! What pglock reports when another client holds the lock, and that it reports nothing when none does.

use crate::support::case::Case;
use crate::support::pglock::Output;
use crate::support::server::{number, rows};
use crate::support::{hostname, unique};
use std::time::Duration;

/// P70
#[test]
fn a_conflict_names_key_database_and_holder() {
    let case = Case::new();
    let key = &case.key;
    let (holder, backend) = case.run().holding_with_backend();
    let output = case.run().args(["-n", "--", "echo", "mine"]).output();
    let line = output.code(75).stderr_line();
    let host = hostname();
    let since = case.value(&format!(
        "SELECT to_char(state_change AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') FROM pg_stat_activity WHERE pid = {backend}"
    ));
    assert_eq!(
        line,
        format!(
            "key {key:?} ({}) in database \"postgres\" is held by {host}:{} (backend {backend}, since {since}); \
             not waiting",
            number(key),
            holder.pid()
        )
    );
    holder.finish().code(0);
}

/// P70, P74: an ordinary role does not see since when. Another client is named by its application name.
#[test]
fn a_conflict_names_what_an_ordinary_role_may_see() {
    let (case, role) = (Case::new(), unique("ordinary_role"));
    case.sql(&format!("CREATE ROLE {role} LOGIN"));
    let mut client = case.client();
    rows(&mut client, "SET application_name = 'an old script'");
    rows(&mut client, &format!("SELECT pg_advisory_lock({})", number(&case.key)));
    let backend = rows(&mut client, "SELECT pg_backend_pid()").concat().concat();
    let run = case.run().env("PGUSER", role).env("PGDATABASE", "postgres");
    let line = run.args(["-n", "true"]).output().code(75).stderr_line();
    let held = format!("is held by \"an old script\" of user \"postgres\" (backend {backend}); not waiting");
    assert!(line.ends_with(&held), "{line}");
}

/// P70: of several holders, one is named and the others are counted.
#[test]
fn a_conflict_counts_the_other_holders() {
    let case = Case::new();
    let holders: Vec<_> = (0..3).map(|_| case.run().arg("-s").holding()).collect();
    let line = case.run().args(["-n", "true"]).output().code(75).stderr_line();
    assert!(line.contains(&format!(":{} (backend ", holders[0].pid())), "{line}");
    assert!(line.ends_with(") and 2 more; not waiting"), "{line}");
}

/// P70
#[test]
fn options_choose_status_and_message_of_a_conflict() {
    let case = Case::new();
    let holder = case.holder();
    let run = |options: &[&str], variable: Option<&str>| -> Output {
        let run = case.run().arg("-n").args(options);
        let run = match variable {
            Some(value) => run.env("PGLOCK_CONFLICT_EXIT_CODE", value),
            None => run,
        };
        let output = run.args(["--", "echo", "mine"]).output();
        assert_eq!(output.stdout, b"", "the job was started");
        output
    };
    run(&["-q"], None).code(75).silent();
    run(&["--quiet", "-E", "0"], None).code(0).silent();
    run(&["-E", "0"], None).code(0).stderr_line();
    run(&["-E", "255"], None).code(255).stderr_line();
    run(&["--conflict-exit-code", "9"], None).code(9).stderr_line();
    run(&[], Some("7")).code(7).stderr_line();
    // An option overrides its variable, and an empty variable counts as unset.
    run(&["-E", "9"], Some("7")).code(9).stderr_line();
    run(&[], Some("")).code(75).stderr_line();
    holder.finish().code(0);
}

/// P32
#[test]
fn options_and_a_variable_limit_the_wait() {
    let case = Case::new();
    let holder = case.holder();
    let run = |options: &[&str], variable: &str| {
        let run = case.run().args(options).env("PGLOCK_WAIT", variable);
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
    // A server that has not answered by then, on a busy machine, would be reported as that.
    let output = run(&[], "1.5").output();
    let line = output.code(75).stderr_line();
    assert!(line.ends_with("; gave up after 1s 500ms"), "{output}");
    assert!(output.took > Duration::from_millis(1500), "{output}");
    // These two wait in the queue, and acquire the lock in the end.
    let waiters = [run(&["-w", "1h"], "0").spawn(), run(&[], "").spawn()];
    case.await_locks(1, 2);
    holder.finish().code(0);
    for waiter in waiters {
        assert_eq!(waiter.finish().stdout(), "mine\n");
    }
}

/// P70: with `-v` the holder is named while pglock waits.
#[test]
fn a_verbose_wait_names_the_holder() {
    let case = Case::new();
    let holder = case.holder();
    let waiter = case.run().args(["-v", "echo", "mine"]).spawn();
    waiter.await_stderr(&format!(":{} (backend ", holder.pid()));
    waiter.await_stderr("; waiting\n");
    holder.finish().code(0);
    let output = waiter.finish();
    assert_eq!(output.code(0).stdout, b"mine\n", "{output}");
    let lines = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(lines.lines().all(|line| line.starts_with("pglock: ")), "{lines}");
    assert!(lines.contains("acquired the lock"), "{lines}");
}

/// P6, also after a wait, and if the job fails.
#[test]
fn success_prints_nothing() {
    let case = Case::new();
    let holder = case.holder();
    let waiters = [
        case.run().arg("true").spawn(),
        case.run().args(["-w", "1h", "-s", "true"]).spawn(),
        case.run().args(["false"]).spawn(),
    ];
    case.await_locks(1, 3);
    holder.finish().code(0).silent();
    for (waiter, code) in waiters.into_iter().zip([0, 0, 1]) {
        let output = waiter.finish();
        assert_eq!(output.code(code).silent().stdout, b"", "{output}");
    }
}

/// P77
#[test]
fn a_note_tells_others_why_the_key_is_held() {
    let case = Case::new();
    let note = "db upgrade */ until '14:00', 100 % M\u{fc}nchen; ask \"ops\" note job";
    let holder = case.run().args(["--note", note]).holding();
    let line = case.run().args(["-n", "true"]).output().code(75).stderr_line();
    assert!(line.ends_with(&format!(", note: {note}); not waiting")), "{line}");
    let list = |arguments: &[&str]| {
        let output = case
            .pglock()
            .args(["list", "--key", &case.key])
            .args(arguments)
            .output();
        String::from_utf8(output.code(75).stdout.clone()).unwrap()
    };
    assert!(list(&[]).contains(note));
    let json: serde_json::Value = serde_json::from_str(&list(&["--json"])).unwrap();
    assert_eq!(json["locks"][0]["note"], note);
    assert_eq!(json["locks"][0]["job"], "sh");
    let evicted = case.pglock().args(["evict", "--yes", "--key", &case.key]).output();
    assert!(evicted.code(0).stdout().contains(note));
    holder.finish().code(74);
}

/// P77
#[test]
fn a_note_that_cannot_be_shown_in_one_line_is_refused() {
    let longest = "\u{e4}".repeat(100);
    Case::new()
        .run()
        .args(["--note", &longest, "true"])
        .output()
        .code(0)
        .silent();
    for note in ["", " ", "a\nb", "\u{1b}[2J", &format!("{longest}x")] {
        let line = Case::new()
            .run()
            .args(["--note", note, "true"])
            .output()
            .code(64)
            .stderr_line();
        assert!(line.contains("--note") && line.contains("at most 200 bytes"), "{line}");
    }
}
