//! `pglock evict` has the holders of a lock give it up, and both sides report it. That nobody starts before the evicted
//! job is dead is in `run::eviction`.

use crate::support::case::Case;
use crate::support::pgbouncer::PgBouncer;
use crate::support::pglock::{Output, Pglock, Running};
use crate::support::screen::Screen;
use crate::support::server::{Server, number, rows};
use crate::support::wait::{SOON, eventually};
use crate::support::{hostname, unique};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres::NoTls;

fn evict(server: &Server, key: &str) -> Pglock {
    server.pglock().args(["evict", "--key", key])
}

/// Returns the lines after the table.
fn report(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = text.lines().map(str::to_owned);
    lines
        .skip_while(|line| line.starts_with("KEY ") || line.contains(" holding ") || line.contains(" waiting "))
        .collect()
}

/// P75
#[test]
fn the_evicted_holder_terminates_its_job_and_names_the_evictor() {
    let case = Case::new();
    let key = &case.key;
    let holder = case
        .run()
        .sh("trap 'echo stopped; exit 0' TERM; echo ready; while :; do sleep 0.05; done")
        .spawn();
    holder.await_stdout("ready\n");
    let pid = holder.pid();
    let running = evict(case.server, key).arg("--yes").spawn();
    let evictor = running.pid();
    let output = running.finish();
    output.code(0);
    assert!(output.stderr.is_empty());
    let lines = report(&output);
    let backend = format!("{}:{pid} (backend ", hostname());
    assert!(lines[0].starts_with(&format!("waiting for {backend}")), "{lines:?}");
    assert!(lines[0].ends_with(" to terminate its job, up to 23s"), "{lines:?}");
    assert!(lines[1].starts_with(&format!("evicted {backend}")), "{lines:?}");
    assert_eq!(lines[2..], [format!("key \"{key}\" is free")]);
    let evicted = holder.finish();
    assert_eq!(String::from_utf8_lossy(&evicted.code(74).stdout), "ready\nstopped\n");
    let line = String::from_utf8_lossy(&evicted.stderr).into_owned();
    assert!(
        line.contains(&format!("pglock: lost the lock on key \"{key}\" at 20")),
        "{line}"
    );
    let user = nix::unistd::User::from_uid(nix::unistd::getuid())
        .unwrap()
        .unwrap()
        .name;
    let by = format!(
        ": evicted by {user}@{}:{evictor} as role \"postgres\"; terminated the job with SIGTERM",
        hostname()
    );
    assert!(line.contains(&by), "{line}");
    assert_eq!(case.locks().granted, 0);
    // The marks disappear with the session of the evictor.
    let backend = lines[0]
        .split(['(', ',', ' '])
        .find_map(|word| word.parse::<u32>().ok());
    let marks = "SELECT 1 FROM pg_locks WHERE objsubid = 2 AND classid = 3681044697";
    let mark = format!("{marks} AND objid = {}", backend.unwrap());
    assert_eq!(case.sql(&mark).len(), 0);
}

/// Waiters stay unless `--waiters` is given; then none of them acquires the lock meanwhile.
#[test]
fn waiters_are_evicted_only_with_waiters() {
    let case = Case::new();
    let key = &case.key;
    let first = case.holder();
    let second = case.run().sh("echo ready; read -r _; exit 0").spawn();
    case.await_locks(1, 1);
    let output = evict(case.server, key).arg("--yes").output();
    output.code(0);
    assert!(
        report(&output)[2].starts_with(&format!(
            "key \"{key}\" is now held by {}:{} ",
            hostname(),
            second.pid()
        )),
        "{:?}",
        report(&output)
    );
    first.finish().code(74);
    second.await_stdout("ready\n");
    let third: Vec<Running> = (0..3).map(|_| case.run().sh("echo mine").spawn()).collect();
    case.await_locks(1, 3);
    let output = evict(case.server, key).args(["--yes", "--waiters"]).output();
    let lines = report(&output);
    assert_eq!(
        lines.iter().filter(|line| line.starts_with("evicted ")).count(),
        4,
        "{lines:?}"
    );
    assert_eq!(lines.last().unwrap(), &format!("key \"{key}\" is free"));
    second.finish().code(74);
    for waiter in third {
        let output = waiter.finish();
        assert!(output.code(69).stdout.is_empty(), "a waiter got the lock");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains("evicted from the queue by "), "{text}");
    }
}

/// P75
#[test]
fn a_role_without_the_right_learns_which_one_it_needs() {
    let case = Case::new();
    let (owner, role) = (unique("owner"), unique("role"));
    case.sql(&format!("CREATE ROLE {owner} LOGIN; CREATE ROLE {role} LOGIN"));
    let holder = case.run().env("PGUSER", &owner).env("PGDATABASE", "postgres").holding();
    let try_evict = || {
        let evict = evict(case.server, &case.key)
            .env("PGUSER", &role)
            .env("PGDATABASE", "postgres");
        evict.arg("--yes").output()
    };
    let refused = try_evict();
    let text = String::from_utf8_lossy(&refused.code(77).stderr).into_owned();
    assert!(
        text.contains(&format!("a session of role \"{owner}\": GRANT pg_signal_backend to it")),
        "{text}"
    );
    assert_eq!(case.locks().granted, 1);
    case.sql(&format!("GRANT pg_signal_backend TO {role}"));
    try_evict().code(0);
    let evicted = holder.finish();
    let text = String::from_utf8_lossy(&evicted.code(74).stderr).into_owned();
    assert!(text.contains(&format!(" as role \"{role}\";")), "{text}");
}

/// P75: without a terminal to ask on, `--yes` is required, and its absence is reported before pglock connects.
#[test]
fn without_a_terminal_yes_is_required() {
    let line = Pglock::alone()
        .args(["evict", "--key", "x"])
        .output()
        .code(64)
        .stderr_line();
    assert!(line.contains("--yes"), "{line}");
    let line = Pglock::alone().args(["evict", "--yes"]).output().code(64).stderr_line();
    assert!(line.contains("--key"), "{line}");
    let case = Case::new();
    let key = &case.key;
    let output = evict(case.server, &case.key).arg("--yes").output();
    assert_eq!(output.code(0).stdout(), format!("no session holds key \"{key}\"\n"));
}

/// P75, on screens of 80x24 and 40x10.
#[test]
fn a_terminal_is_asked_first() {
    for size in [(80, 24), (40, 10)] {
        let case = Case::new();
        let key = &case.key;
        let holder = case.holder();
        let screen = Screen::new(case.server, size, &[]);
        let ask = || {
            screen.line(&format!("clear; pglock evict -k {key}"));
            screen.expect("question", |lines| {
                lines
                    .concat()
                    .ends_with("Evict this session and terminate its job? [y/N]")
            })
        };
        let question = ask();
        assert!(
            question[0].starts_with("KEY ") && question[1].starts_with(&case.key),
            "{question:?}"
        );
        assert!(
            question[1].contains(&format!("{}:{}", hostname(), holder.pid())),
            "{question:?}"
        );
        screen.line("n; echo $?");
        let refusal = screen.expect("refusal", |lines| lines.last().is_some_and(|line| line == "$"));
        assert!(
            refusal.concat().contains("pglock: no session was evicted"),
            "{refusal:?}"
        );
        screen.line("clear; echo $?");
        assert_eq!(case.locks().granted, 1);
        ask();
        screen.line("y");
        let report = screen.expect("report", |lines| {
            lines.iter().any(|line| line == &format!("key \"{key}\" is free"))
        });
        assert!(
            report
                .concat()
                .contains(&format!("evicted {}:{} (backend ", hostname(), holder.pid())),
            "{report:?}"
        );
        holder.finish().code(74);
    }
}

/// P75: the holder's session is the pool's; it is asked, and polling waiters have no session that could be terminated.
#[test]
fn a_holder_behind_a_pooler_is_evicted_and_names_the_evictor() {
    let server = Server::shared();
    let bouncer = PgBouncer::with(server, &["pool_mode=transaction"]);
    for evictor in [bouncer.pglock(), server.pglock()] {
        let key = unique("pooled");
        let holder = bouncer.run(&key).args(["--heartbeat", "0.5"]).holding();
        let waiter = bouncer.run(&key).sh("echo mine").spawn();
        let evict = evictor.args(["evict", "--yes", "--waiters", "--key", &key]);
        evict.output().code(0);
        let evicted = holder.finish();
        let text = String::from_utf8_lossy(&evicted.code(74).stderr).into_owned();
        assert!(text.contains(": evicted by "), "{text}");
        assert_eq!(waiter.finish().code(0).stdout(), "mine\n");
    }
}

/// P75: the session of any client is evicted, and one that holds several of the keys only once.
#[test]
fn sessions_of_other_clients_are_evicted_too() {
    let server = Server::shared();
    let (one, two) = (unique("one"), unique("two"));
    let mut psql = server.client();
    rows(&mut psql, "SET application_name = 'an old script'");
    for key in [&one, &two] {
        rows(&mut psql, &format!("SELECT pg_advisory_lock({})", number(key)));
    }
    let output = evict(server, &one).args(["--key", &two, "--yes"]).output();
    let lines = report(&output);
    assert!(
        lines[0].starts_with("evicted \"an old script\" of user \"postgres\" (backend "),
        "{lines:?}"
    );
    assert_eq!(
        lines[1..],
        [format!("key \"{one}\" is free"), format!("key \"{two}\" is free")]
    );
    assert!(psql.simple_query("SELECT 1").is_err());
}

/// P75: what holds the key has no session that could be terminated.
#[test]
fn a_prepared_transaction_is_not_evicted_and_the_exit_status_says_so() {
    let server = Server::with(&["max_prepared_transactions=1"]);
    let key = unique("prepared");
    server.sql(&format!(
        "BEGIN; SELECT pg_advisory_xact_lock({}); PREPARE TRANSACTION 'migration'",
        number(&key)
    ));
    let output = evict(&server, &key).arg("--yes").output();
    let text = String::from_utf8_lossy(&output.code(75).stderr).into_owned();
    let expected =
        "pglock: a prepared transaction (see pg_prepared_xacts) was not evicted: end it with ROLLBACK PREPARED";
    assert!(text.starts_with(expected), "{text}");
    server.sql("ROLLBACK PREPARED 'migration'");
    let output = evict(&server, &key).arg("--yes").output();
    assert_eq!(output.code(0).stdout(), format!("no session holds key \"{key}\"\n"));
}

/// P75: a waiter that is between two stays in the queue, and has no lock, is evicted too.
#[test]
fn a_waiter_between_two_stays_in_the_queue_is_evicted() {
    let case = Case::new();
    let mut psql = case.client();
    rows(&mut psql, &format!("SELECT pg_advisory_lock({})", number(&case.key)));
    let waiter = case.run().sh("echo mine").spawn();
    case.await_locks(1, 1);
    // It stays where it is after the current stay.
    waiter.signal(Signal::SIGSTOP);
    case.await_locks(1, 0);
    let output = evict(case.server, &case.key).args(["--yes", "--waiters"]).output();
    let lines = report(output.code(0));
    let who = format!("evicted {}:{} (backend ", hostname(), waiter.pid());
    assert!(lines.iter().any(|line| line.starts_with(&who)), "{lines:?}");
    eventually(SOON, "the end of its session", || case.backends().is_empty());
    waiter.signal(Signal::SIGKILL);
    waiter.finish().signal(Signal::SIGKILL);
}

/// P75: what counts is the role as which `pglock evict` terminates sessions, to which its login role may have switched.
/// If that role may not terminate one of them, none is evicted.
#[test]
fn the_role_that_a_session_has_switched_to_must_have_the_right() {
    let case = Case::new();
    let (login, owner) = (unique("login"), unique("owner"));
    case.sql(&format!(
        "CREATE ROLE {owner} LOGIN; CREATE ROLE {login} LOGIN IN ROLE {owner}; ALTER ROLE {login} SET role = '{owner}'"
    ));
    let mut holders = [&login, &owner].map(|role| {
        let mut config = case.server.config();
        let mut holder = config.user(role).dbname("postgres").connect(NoTls).unwrap();
        rows(
            &mut holder,
            &format!("SELECT pg_advisory_lock_shared({})", number(&case.key)),
        );
        holder
    });
    let try_evict = || {
        let evict = evict(case.server, &case.key).env("PGUSER", &login);
        evict.env("PGDATABASE", "postgres").arg("--yes").output()
    };
    let text = String::from_utf8_lossy(&try_evict().code(77).stderr).into_owned();
    assert_eq!(case.locks().granted, 2);
    let expected = format!("pglock: role {owner:?} may not evict user {login:?} (backend ");
    assert!(text.starts_with(&expected), "{text}");
    case.sql(&format!("GRANT pg_signal_backend TO {owner}"));
    try_evict().code(0);
    assert!(
        holders
            .iter_mut()
            .all(|holder| holder.simple_query("SELECT 1").is_err())
    );
}

/// P75: holders are asked, and terminate their jobs, although the session of another client does not end.
#[test]
fn holders_are_asked_although_another_session_does_not_end() {
    let case = Case::new();
    let lock = format!(
        "SELECT pg_advisory_lock_shared({}), pg_backend_pid()",
        number(&case.key)
    );
    let mut psql = case.client();
    let backend = Pid::from_raw(rows(&mut psql, &lock)[0][1].parse().unwrap());
    let holder = case.run().args(["--shared", "--heartbeat", "30"]).holding();
    // It has begun to listen.
    let name = format!("application_name LIKE 'pglock:%:{}'", holder.pid());
    let heartbeat = format!("SELECT 1 FROM pg_stat_activity WHERE {name} AND query LIKE '/* pglock holds %'");
    eventually(SOON, "a heartbeat", || !case.sql(&heartbeat).is_empty());
    kill(backend, Signal::SIGSTOP).unwrap();
    let evictor = evict(case.server, &case.key).arg("--yes").spawn();
    evictor.await_stdout("waiting for ");
    holder.await_stderr(": evicted by ");
    let output = evictor.finish();
    kill(backend, Signal::SIGCONT).unwrap();
    let text = output.code(75).to_string();
    assert!(
        text.contains(&format!("backend {backend} did not terminate within 10s")),
        "{text}"
    );
    assert!(
        text.contains(&format!("\nevicted {}:{} ", hostname(), holder.pid())),
        "{text}"
    );
    holder.finish().code(74);
}
