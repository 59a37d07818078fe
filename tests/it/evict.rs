//! `pglock evict`: ends the sessions that hold a lock, and says so on both sides.

use crate::support::pgbouncer::PgBouncer;
use crate::support::pglock::{Output, Pglock, Running};
use crate::support::screen::Screen;
use crate::support::server::{Server, number, rows};
use crate::support::unique;

fn evict(server: &Server, key: &str) -> Pglock {
    server.pglock().args(["evict", "--key", key])
}

fn host() -> String {
    nix::unistd::gethostname().unwrap().into_string().unwrap()
}

/// What is said after the table.
fn report(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = text.lines().map(str::to_owned);
    lines
        .skip_while(|line| line.starts_with("KEY ") || line.contains(" holding ") || line.contains(" waiting "))
        .collect()
}

/// "ends the holder's session (pg_terminate_backend), after showing who it is ...; the evicted pglock stops its job and
/// exits 74 with a line that says it was evicted by whom; waits until the key is free and reports it"
#[test]
fn the_evicted_holder_stops_its_job_and_says_by_whom() {
    let server = Server::shared();
    let key = unique("evicted");
    let holder = server
        .run(&key)
        .sh("trap 'echo stopped; exit 0' TERM; echo ready; while :; do sleep 0.05; done")
        .spawn();
    holder.await_stdout("ready\n");
    let pid = holder.pid();
    let running = evict(server, &key).arg("--yes").spawn();
    let evictor = running.pid();
    let output = running.finish();
    output.code(0);
    assert!(output.stderr.is_empty());
    let lines = report(&output);
    assert!(
        lines[0].starts_with(&format!("evicted {}:{pid} (backend ", host())),
        "{lines:?}"
    );
    assert_eq!(lines[1..], [format!("key \"{key}\" is free")]);
    let evicted = holder.finish();
    assert_eq!(String::from_utf8_lossy(&evicted.code(74).stdout), "ready\nstopped\n");
    let line = String::from_utf8_lossy(&evicted.stderr).into_owned();
    let user = nix::unistd::User::from_uid(nix::unistd::getuid())
        .unwrap()
        .unwrap()
        .name;
    let by = format!(
        "(evicted by {user}@{}:{evictor} as role \"postgres\"); stopped the job with TERM",
        host()
    );
    assert!(line.contains(&by), "{line}");
    assert_eq!(server.locks(&key).granted, 0);
    // The marks are gone with whoever evicted.
    let backend = lines[0]
        .split(['(', ',', ' '])
        .find_map(|word| word.parse::<u32>().ok());
    let marks = "SELECT 1 FROM pg_locks WHERE objsubid = 2 AND classid = 3681044697";
    let mark = format!("{marks} AND objid = {}", backend.unwrap());
    assert_eq!(server.sql(&mark).len(), 0);
}

/// Those who wait stay, unless `--waiters` is given, and then nobody gets the lock on the way.
#[test]
fn waiters_stay_or_go_too() {
    let server = Server::shared();
    let key = unique("waiters");
    let first = server.run(&key).holding();
    let second = server.run(&key).sh("echo ready; read -r _; exit 0").spawn();
    server.await_locks(&key, 1, 1);
    let output = evict(server, &key).arg("--yes").output();
    output.code(0);
    assert!(
        report(&output)[1].starts_with(&format!("key \"{key}\" is now held by {}:{} ", host(), second.pid())),
        "{:?}",
        report(&output)
    );
    first.finish().code(74);
    second.await_stdout("ready\n");
    let third: Vec<Running> = (0..3).map(|_| server.run(&key).sh("echo mine").spawn()).collect();
    server.await_locks(&key, 1, 3);
    let output = evict(server, &key).args(["--yes", "--waiters"]).output();
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
    }
}

/// "missing rights -> 77 with the role needed"
#[test]
fn a_role_that_may_not_is_told_what_it_needs() {
    let server = Server::shared();
    let (key, owner, role) = (unique("rights"), unique("owner"), unique("role"));
    server.sql(&format!("CREATE ROLE {owner} LOGIN; CREATE ROLE {role} LOGIN"));
    let holder = server
        .run(&key)
        .env("PGUSER", &owner)
        .env("PGDATABASE", "postgres")
        .holding();
    let try_it = || {
        let evict = evict(server, &key).env("PGUSER", &role).env("PGDATABASE", "postgres");
        evict.arg("--yes").output()
    };
    let refused = try_it();
    let words = String::from_utf8_lossy(&refused.code(77).stderr).into_owned();
    assert!(
        words.contains(&format!("a session of role \"{owner}\": GRANT pg_signal_backend to it")),
        "{words}"
    );
    assert_eq!(server.locks(&key).granted, 1);
    server.sql(&format!("GRANT pg_signal_backend TO {role}"));
    try_it().code(0);
    let evicted = holder.finish();
    let words = String::from_utf8_lossy(&evicted.code(74).stderr).into_owned();
    assert!(words.contains(&format!(" as role \"{role}\")")), "{words}");
}

/// "`--yes` elsewhere": without a terminal nobody can be asked, and that is said before anything is touched.
#[test]
fn nobody_is_evicted_unasked() {
    let line = Pglock::alone()
        .args(["evict", "--key", "x"])
        .output()
        .code(64)
        .stderr_line();
    assert!(line.contains("--yes"), "{line}");
    let line = Pglock::alone().args(["evict", "--yes"]).output().code(64).stderr_line();
    assert!(line.contains("--key"), "{line}");
    let server = Server::shared();
    let key = unique("nobody");
    let output = evict(server, &key).arg("--yes").output();
    assert_eq!(output.code(0).stdout(), format!("nobody holds key \"{key}\"\n"));
}

/// "asking on a terminal", on screens of 80x24 and 40x10
#[test]
fn on_a_terminal_it_asks() {
    let server = Server::shared();
    for size in [(80, 24), (40, 10)] {
        let key = unique("asks");
        let holder = server.run(&key).holding();
        let screen = Screen::new(server, size, &[]);
        let ask = || {
            screen.line(&format!("clear; pglock evict -k {key}"));
            screen.expect("question", |lines| {
                lines
                    .concat()
                    .ends_with("Terminate this session and stop its job? [y/N]")
            })
        };
        let asked = ask();
        assert!(asked[0].starts_with("KEY ") && asked[1].starts_with(&key), "{asked:?}");
        assert!(asked[1].contains(&format!("{}:{}", host(), holder.pid())), "{asked:?}");
        screen.line("n; echo $?");
        let no = screen.expect("refusal", |lines| lines.last().is_some_and(|line| line == "$"));
        assert!(no.concat().contains("pglock: nobody was evicted"), "{no:?}");
        screen.line("clear; echo $?");
        assert_eq!(server.locks(&key).granted, 1);
        ask();
        screen.line("y");
        let yes = screen.expect("report", |lines| {
            lines.iter().any(|line| line == &format!("key \"{key}\" is free"))
        });
        assert!(
            yes.concat()
                .contains(&format!("evicted {}:{} (backend ", host(), holder.pid())),
            "{yes:?}"
        );
        holder.finish().code(74);
    }
}

/// Behind a pooler the holder's session is the pool's, and goes; those who ask have none.
#[test]
fn a_holder_behind_a_pooler_is_evicted_and_knows_by_whom() {
    let server = Server::shared();
    let bouncer = PgBouncer::with(server, &["pool_mode=transaction"]);
    for evictor in [bouncer.pglock(), server.pglock()] {
        let key = unique("pooled");
        let holder = bouncer.run(&key).holding();
        let waiter = bouncer.run(&key).sh("echo mine").spawn();
        let evict = evictor.args(["evict", "--yes", "--waiters", "--key", &key]);
        evict.output().code(0);
        let evicted = holder.finish();
        let words = String::from_utf8_lossy(&evicted.code(74).stderr).into_owned();
        assert!(words.contains("(evicted by "), "{words}");
        assert_eq!(waiter.finish().code(0).stdout(), "mine\n");
    }
}

/// Anybody's session is evicted, and one that holds several locks once.
#[test]
fn others_are_evicted_too() {
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
