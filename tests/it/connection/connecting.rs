//! Which source of connection parameters wins: `--dsn`, `PGLOCK_DSN`, `DATABASE_URL`, the variables of libpq, its
//! defaults. What the parameters mean is tested in `alike`.

use crate::support::pglock::Pglock;
use crate::support::server::Server;
use crate::support::unique;

/// Returns where and as whom the job's lock is held: database, user, and whether over TCP.
fn held_at(server: &Server, run: Pglock) -> String {
    let (running, backend) = run.args(["run", "-k", &unique("held")]).holding_with_backend();
    let held = server.value(&format!(
        "SELECT concat_ws(' ', datname, usename, CASE WHEN client_addr IS NOT NULL THEN 'tcp' END) \
         FROM pg_stat_activity WHERE pid = {backend}"
    ));
    running.finish().code(0);
    held
}

/// P80
#[test]
fn options_override_variables_and_variables_fill_gaps() {
    let server = Server::shared();
    let (database, role) = (server.database(), unique("connecting_role"));
    server.sql(&format!("CREATE ROLE {role} LOGIN"));
    let (port, directory) = (server.port().to_string(), server.host());
    let tcp = server.dsn();
    let at = |run| held_at(server, run);
    // The variables of libpq, and its default: the database has the user's name.
    assert_eq!(at(server.pglock()), "postgres postgres");
    let elsewhere = || server.pglock().env("PGUSER", &role).env("PGDATABASE", &database);
    assert_eq!(at(elsewhere()), format!("{database} {role}"));
    assert_eq!(
        at(elsewhere().env("PGHOST", "127.0.0.1")),
        format!("{database} {role} tcp")
    );
    // DATABASE_URL overrides them, PGLOCK_DSN overrides that, and --dsn overrides all.
    assert_eq!(at(Pglock::alone().env("DATABASE_URL", &tcp)), "postgres postgres tcp");
    assert_eq!(at(elsewhere().env("DATABASE_URL", &tcp)), "postgres postgres tcp");
    let over_socket = format!("host={directory} port={port} user={role} dbname={database}");
    let both = || {
        elsewhere()
            .env("DATABASE_URL", "host=127.0.0.1 port=1")
            .env("PGLOCK_DSN", &tcp)
    };
    assert_eq!(at(both()), "postgres postgres tcp");
    let option = || both().args(["run", "-k", &unique("option"), "-d", &over_socket]);
    option().args(["-n", "true"]).output().code(0).silent();
    let conflicting = both().env("PGLOCK_DSN", "host=127.0.0.1 port=1");
    conflicting
        .args(["run", "-k", "x", "--dsn", &tcp, "true"])
        .output()
        .code(0)
        .silent();
    // The variables fill what the string leaves open.
    let partly = format!("user={role}");
    assert_eq!(
        at(elsewhere().env("PGUSER", "nobody").env("PGLOCK_DSN", &partly)),
        format!("{database} {role}")
    );
    let uri = format!("postgresql:///{database}");
    assert_eq!(
        at(server.pglock().env("PGLOCK_DSN", &uri)),
        format!("{database} postgres")
    );
    // An empty variable counts as unset.
    let empty = server
        .pglock()
        .env("DATABASE_URL", "")
        .env("PGLOCK_DSN", "")
        .env("PGDATABASE", "");
    assert_eq!(at(empty), "postgres postgres");
}
