//! Jobs that work on the database of their own lock, as `docs/running-jobs.md` describes them.

use crate::support::pgbouncer::PgBouncer;
use crate::support::server::{Server, rows};
use crate::support::unique;
use crate::support::wait::{SOON, eventually};

/// What ends sessions that have been idle in a transaction, but for pglock's.
const KILLER: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
    WHERE state = 'idle in transaction' AND datname = current_database()";
const EXCEPT_PGLOCK: &str = "AND application_name NOT LIKE 'pglock:%'";

/// P20, P41: a holder behind a pooler has an open transaction, which pg_repack waits for, and a direct one has none.
#[test]
fn only_a_holder_behind_a_pooler_is_idle_in_a_transaction() {
    let server = Server::shared();
    let (key, database) = (unique("key"), server.database());
    let mut client = server.client_in(&database);
    // As pg_repack looks for transactions.
    let mut transactions = |pid: &str| {
        rows(
            &mut client,
            &format!("SELECT 1 FROM pg_locks WHERE locktype = 'virtualxid' AND pid = {pid}"),
        )
        .len()
    };
    let (direct, pid) = server.run(&key).env("PGDATABASE", &database).holding_with_backend();
    assert_eq!(transactions(&pid), 0);
    direct.finish().code(0);

    let pooler = PgBouncer::with(server, &["pool_mode=transaction"]);
    let run = pooler.run(&key).env("PGDATABASE", &database);
    let pooled = run.sh("echo $PGLOCK_BACKEND_PID; exec sleep 60").spawn();
    pooled.await_stdout("\n");
    assert_eq!(transactions(pooled.stdout().trim()), 1);

    let mut admin = server.client_in(&database);
    assert_eq!(rows(&mut admin, &format!("{KILLER} {EXCEPT_PGLOCK}")), [[""; 0]; 0]);
    server.await_locks(&key, 1, 0);
    assert_eq!(rows(&mut admin, KILLER), [["t"]]);
    pooled.finish().code(74);
}

/// P20: the job ends its own lock, unless it leaves out its holder, or the lock belongs to another database.
#[test]
fn a_job_that_ends_all_sessions_spares_its_lock() {
    let server = Server::shared();
    let (key, database) = (unique("key"), server.database());
    // In a database of its own: other tests share the server.
    let end_all = |except: &str| {
        format!(
            "psql -XAtqc \"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
             WHERE datname = '{database}' AND pid NOT IN (pg_backend_pid(), {except})\" postgres; sleep 60"
        )
    };
    let run = |database: &str| server.run(&key).env("PGDATABASE", database);
    run(&database).sh(&end_all("0")).output().code(74);

    let spared = end_all("$PGLOCK_BACKEND_PID").replace("sleep 60", "true");
    let output = run(&database).sh(&spared).output();
    assert_eq!(output.stdout(), "0\n", "{output}");

    let drop = format!("psql -Xqc 'DROP DATABASE {database}' postgres");
    let output = run(&database).sh(&drop).output();
    assert!(
        !output.status.success() && output.to_string().contains("is being accessed"),
        "{output}"
    );
    run("postgres").sh(&drop).output().code(0).silent();
    eventually(SOON, "the end of the database", || {
        server.value(&format!(
            "SELECT count(*) FROM pg_database WHERE datname = '{database}'"
        )) == "0"
    });
}
