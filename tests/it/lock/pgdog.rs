//! Through a relay that treats messages as PgDog does, and a PgBouncer that lends by the transaction.

use crate::support::case::Case;
use crate::support::pgbouncer::PgBouncer;
use crate::support::pgdog::PgDog;
use crate::support::wait::{SOON, eventually};
use std::sync::{Arc, Mutex};

/// P41: nothing that pglock sends is refused, answered by the pooler itself, or sent to a standby.
#[test]
fn everything_works_through_a_pooler_that_decides_by_the_statements_of_a_message() {
    let case = Case::new();
    let pooler = PgBouncer::with(case.server, &["pool_mode=transaction"]);
    let socket = pooler.socket();
    let directory = tempfile::tempdir().unwrap();
    let messages: Arc<Mutex<Vec<String>>> = Arc::default();
    let sink = Arc::clone(&messages);
    let note = move |message: &str| sink.lock().unwrap().push(message.to_owned());
    let pgdog = PgDog::start(directory.path(), move || socket.clone(), note);
    let run = || case.run().args(["--dsn", &pgdog.dsn()]);
    let command = |name: &str| case.server.pglock().args([name, "--dsn", &pgdog.dsn()]);

    let check = command("check").output();
    let report = check.code(0).stdout();
    assert!(
        report.contains("through a pooler") && report.contains("found in pg_locks"),
        "{report}"
    );

    let holder = run().arg("-v").holding();
    assert!(holder.stderr().contains("through a pooler"), "{}", holder.stderr());
    let conflict = run().args(["-n", "true"]).output();
    assert!(conflict.code(75).stderr_line().contains(" is held by "), "{conflict}");
    let waiter = run().args(["echo", "mine"]).spawn();
    eventually(SOON, "a list of the holder and the waiter", || {
        let list = command("list").args(["--key", &case.key]).output();
        let list = String::from_utf8_lossy(&list.stdout).into_owned();
        let pids = [holder.pid(), waiter.pid()].map(|pid| format!(":{pid}"));
        list.lines()
            .filter(|line| pids.iter().any(|pid| line.contains(pid)))
            .count()
            == 2
    });
    holder.finish().code(0);
    assert_eq!(waiter.finish().stdout(), "mine\n");

    let tokens = [(); 2].map(|()| {
        let output = run().arg("--token").sh("echo $PGLOCK_TOKEN").output();
        output.stdout()
    });
    assert!(tokens[0].len() > 20 && tokens[0] < tokens[1], "{tokens:?}");

    let holders = [(); 2].map(|()| run().args(["--slots", "2"]).holding());
    run().args(["--slots", "2", "-n", "true"]).output().code(75);
    for holder in holders {
        holder.finish().code(0).silent();
    }

    let holder = run().holding();
    let evict = command("evict").args(["--key", &case.key, "--yes"]).output();
    evict.code(0);
    holder.await_stderr("evicted by ");
    holder.finish().code(74);
    case.await_locks(0, 0);

    let primary = format!("{} target_session_attrs=primary", pgdog.dsn());
    case.run().args(["--dsn", &primary, "true"]).output().code(0).silent();

    // Pgpool-II may send a message that is one SELECT, or one SHOW, to a standby.
    for message in messages.lock().unwrap().iter() {
        let is_one_query = !message.trim_end().trim_end_matches(';').contains(';')
            && ["SELECT", "SHOW", "WITH", "VALUES"]
                .iter()
                .any(|word| message.starts_with(word));
        assert!(!is_one_query, "{message}");
    }
}
