//! A hot standby grants advisory locks that its primary does not know.

use crate::support::pgbouncer::PgBouncer;
use crate::support::server::{Locks, Server};
use crate::support::wait::{SOON, eventually};

/// P40, P73, P75, P81: with both hosts listed, pglock connects to the primary.
#[test]
fn a_standby_is_refused_and_the_primary_taken() {
    let primary = Server::start();
    let standby = Server::standby_of(&primary);
    eventually(SOON, "a standby that streams", || {
        standby.value("SELECT status FROM pg_stat_wal_receiver") == "streaming"
    });

    for scope in ["auto", "session", "transaction", "session-pooled"] {
        let run = standby.run("pair").args(["--scope", scope]);
        let output = run.args(["echo", "ran"]).output();
        let line = output.code(78).stderr_line();
        assert!(line.contains("hot standby"), "{output}");
        assert!(line.contains("target_session_attrs=primary"), "{output}");
    }
    let pooler = PgBouncer::with(&standby, &["pool_mode=transaction"]);
    let output = pooler.run("pair").args(["echo", "ran"]).output();
    let line = output.code(78).stderr_line();
    assert!(line.contains("hot standby"), "{output}");
    assert_eq!(standby.locks("pair"), Locks::default());

    for (first, second) in [(&standby, &primary), (&primary, &standby)] {
        let dsn = format!(
            "host={},{} port={},{} user=postgres target_session_attrs=primary",
            first.host(),
            second.host(),
            first.port(),
            second.port()
        );
        let run = primary.run("pair").args(["--dsn", &dsn]).holding();
        assert_eq!(primary.locks("pair").granted, 1);
        run.finish().code(0);
    }

    // What they would show are the locks of the standby alone.
    for arguments in [
        &["list"][..],
        &["list", "--key", "pair"],
        &["evict", "--key", "pair", "--yes"],
    ] {
        let output = standby.pglock().args(arguments).output();
        let line = output.code(78).stderr_line();
        assert!(line.contains("hot standby") && output.stdout.is_empty(), "{output}");
    }

    let output = standby.pglock().arg("check").output();
    output.code(78).silent();
    let text = String::from_utf8_lossy(&output.stdout);
    let refusals = text.lines().filter(|line| line.starts_with("refusal"));
    let refusals: Vec<_> = refusals.collect();
    assert_eq!(refusals.len(), 1, "{output}");
    assert!(refusals[0].starts_with("refusal  recovery: "), "{output}");
}
