//! Failures before the job starts: the documented exit status, one clear line, no job, and no secret.

use crate::support::pglock::{Output, Pglock};
use crate::support::server::{Server, WITH_PASSWORD, free_port};
use crate::support::unique;
use std::ffi::OsStr;
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

const RIGHT: &str = "right-s3cret";
const WRONG: &str = "wr0ng%2Fs3cret";

/// Asserts that this run, with a job, fails as P91 says, with this status. Returns the line.
#[track_caller]
fn fails(run: Pglock, code: i32) -> String {
    refused(&run.args(["--", "echo", "the job ran"]).output(), code)
}

#[track_caller]
fn refused(output: &Output, code: i32) -> String {
    let mut output = output.clone();
    // A warning may precede the failure.
    let warning = b"pglock: the password in --dsn is visible";
    if output.stderr.starts_with(warning) {
        let end = output.stderr.iter().position(|byte| *byte == b'\n');
        output.stderr.drain(..=end.unwrap());
    }
    let line = output.code(code).stderr_line();
    for secret in [RIGHT, WRONG, "wr0ng", "s3cret"] {
        assert!(!line.contains(secret), "a secret is shown: {output}");
    }
    line
}

/// Creates the role that needs a password, once.
fn role_with_password(server: &Server) {
    static MADE: std::sync::Once = std::sync::Once::new();
    MADE.call_once(|| {
        server.sql(&format!(
            "SET password_encryption = 'scram-sha-256'; \
             DO $$ BEGIN CREATE ROLE {WITH_PASSWORD} LOGIN; EXCEPTION WHEN OTHERS THEN NULL; END $$; \
             ALTER ROLE {WITH_PASSWORD} PASSWORD '{RIGHT}'"
        ));
    });
}

/// P90: 64, usage.
#[test]
fn wrong_arguments_are_64() {
    let server = Server::shared();
    let pglock = || server.pglock().arg("run");
    let keyed = || server.run(&unique("usage"));
    for (run, expected) in [
        (keyed().arg("--no-such-option"), "--no-such-option"),
        (keyed().arg("--no-wiat"), "--no-wait"),
        (keyed().args(["-E", "600"]), "0 to 255"),
        (keyed().args(["-E", "-1"]), "-1"),
        (keyed().args(["-E", "1.5"]), "0 to 255"),
        (keyed().args(["-w", "soon"]), "a duration"),
        (keyed().args(["-w", "-1"]), "-1"),
        (keyed().args(["-n", "-w", "1"]), "cannot be used with"),
        (keyed().args(["-q", "-v"]), "cannot be used with"),
        (keyed().args(["--on-lost", "panic"]), "stop, ignore"),
        (pglock(), "--key"),
        (pglock().args(["-k", ""]), "the key is empty"),
        (pglock().args(["-k", "007"]), "name:007"),
        (pglock().args(["-k", "9223372036854775808"]), "out of range"),
        (pglock().args(["-k", "1,99999999999"]), "out of range"),
        (pglock().arg("-k").arg(OsStr::from_bytes(b"\xff")), "UTF-8"),
    ] {
        let line = fails(run, 64);
        assert!(line.contains(expected), "{expected:?} is not in {line:?}");
    }
    for arguments in [&["run", "-k", "x"][..], &["run", "-k", "x", "--"], &[], &["rnu"]] {
        let output = server.pglock().args(arguments).output();
        let line = refused(&output, 64);
        assert!(line.contains("--help'"), "{line}");
    }
}

/// P91: what others can see is refused if it has a password in it.
#[test]
fn a_value_with_a_password_is_64() {
    let server = Server::shared();
    let pairs = format!("host=127.0.0.1 user=u password={RIGHT}");
    let uri = format!("postgresql://user_of_the_application:{RIGHT}@database.internal.example.org:5432/application");
    let joined = format!("-k{uri}");
    for arguments in [
        &["run", "-k", &pairs, "true"][..],
        &["run", &joined, "true"],
        &["run", "-k", "x", "--note", &uri, "true"],
        &["run", "-k", "x", "--record", "--table", &uri, "true"],
        &["run", "-k", "x", &uri, "true"],
        &["run", "-k", "x", &pairs, "true"],
        &["list", "-k", &pairs],
        &["evict", "-k", &uri],
        &["history", "-k", &uri],
        &["key", &pairs],
        &["init", "--grant", &uri],
        &["init", "--table", &uri],
    ] {
        let line = refused(&server.pglock().args(arguments).output(), 64);
        assert!(line.contains("with --dsn or PGLOCK_DSN"), "{arguments:?}: {line}");
    }
    let line = refused(&server.pglock().arg("init").env("PGLOCK_TABLE", &uri).output(), 78);
    assert!(line.contains("with --dsn or PGLOCK_DSN"), "{line}");
    for variable in ["PGPASSWORD", "BORG_PASSPHRASE", "http_proxy"] {
        let assignment = format!("{variable}={RIGHT}");
        let line = refused(&server.run("x").args(["--", &assignment, "true"]).output(), 64);
        assert!(line.contains("in front of pglock"), "{line}");
    }
}

/// P90: 69, the database cannot be reached.
#[test]
fn a_server_that_cannot_be_reached_is_69() {
    let server = Server::shared();
    let port = free_port().to_string();
    let run = || server.run(&unique("down")).env("PGPORT", &port);
    let line = fails(run().env("PGHOST", "127.0.0.1"), 69);
    assert!(line.contains(&format!("127.0.0.1:{port}")), "{line}");
    let line = fails(run(), 69);
    assert!(line.contains(&format!("{}/.s.PGSQL.{port}", server.host())), "{line}");
    let line = fails(run().env("PGHOST", "no-such-host.invalid"), 69);
    assert!(line.contains("no-such-host.invalid"), "{line}");

    let role = unique("crowded_role");
    server.sql(&format!("CREATE ROLE {role} LOGIN CONNECTION LIMIT 0"));
    let run = server
        .run(&unique("crowded"))
        .env("PGUSER", &role)
        .env("PGDATABASE", "postgres");
    let line = fails(run, 69);
    assert!(line.contains("too many connections"), "{line}");
}

/// P32, P90: a server that accepts the connection and then sends nothing is limited by `--wait` and by
/// `--connect-timeout`.
#[test]
fn a_server_that_does_not_respond_is_69_in_time() {
    let silent = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let dsn = format!("postgresql://u:{RIGHT}@{}/d", silent.local_addr().unwrap());
    let server = Server::shared();
    for options in [["--connect-timeout", "0.4"], ["--wait", "0.4"]] {
        let run = server.run("x").args(options).args(["-d", &dsn]);
        let output = run.args(["--", "echo", "the job ran"]).output();
        let line = refused(&output, 69);
        assert!(line.contains("cannot connect to 127.0.0.1"), "{line}");
        let took = output.took;
        assert!(
            took >= Duration::from_millis(400) && took < Duration::from_millis(1200),
            "{output}"
        );
    }
    let run = server
        .run("x")
        .env("PGLOCK_CONNECT_TIMEOUT", "0.4")
        .env("PGLOCK_DSN", &dsn);
    fails(run, 69);
}

/// P90: 77, authentication or permission.
#[test]
fn a_rejected_login_is_77() {
    let server = Server::shared();
    role_with_password(server);
    let port = server.port();
    let run = || server.run(&unique("secret"));
    let by_password = |password: &str| {
        let host = run().env("PGHOST", "127.0.0.1").env("PGUSER", WITH_PASSWORD);
        host.env("PGDATABASE", "postgres").env("PGPASSWORD", password)
    };
    // The right password must work, or the rest proves nothing.
    by_password(RIGHT).arg("true").output().code(0).silent();
    let line = fails(by_password(WRONG), 77);
    assert!(line.contains("password authentication failed"), "{line}");
    assert!(line.contains(&format!("127.0.0.1:{port}")), "{line}");
    let dsn = format!("postgresql://{WITH_PASSWORD}:{WRONG}@127.0.0.1:{port}/postgres");
    fails(run().args(["-d", &dsn]), 77);
    fails(run().env("DATABASE_URL", &dsn), 77);
    let dsn = format!("host=127.0.0.1 port={port} user={WITH_PASSWORD} password='{WRONG}'");
    fails(run().args(["-v", "-d", &dsn]).arg("-q"), 64);
    fails(run().args(["-q", "-d", &dsn]), 77);
    let line = fails(by_password(""), 77);
    assert!(line.contains("no password supplied"), "{line}");

    let line = fails(run().env("PGUSER", "no_such_role"), 77);
    assert!(line.contains("no_such_role"), "{line}");
    let (database, role) = (server.database(), unique("shut_out_role"));
    server.sql(&format!(
        "CREATE ROLE {role} LOGIN; REVOKE CONNECT ON DATABASE {database} FROM PUBLIC"
    ));
    let line = fails(run().env("PGUSER", &role).env("PGDATABASE", &database), 77);
    assert!(line.contains("permission denied"), "{line}");
}

/// P91: a timeout that ends the first query, before pglock can set it to 0, is named.
#[test]
fn a_timeout_that_is_too_short_for_the_first_query_is_named() {
    let server = Server::shared();
    let (role, database) = (unique("hasty"), server.database());
    server.sql(&format!(
        "CREATE ROLE {role} LOGIN; ALTER ROLE {role} SET statement_timeout = '50ms'"
    ));
    // Every query waits for this.
    let mut client = server.client_in(&database);
    let lock = "BEGIN; LOCK TABLE pg_catalog.pg_proc IN ACCESS EXCLUSIVE MODE";
    client.batch_execute(lock).unwrap();
    for hash in ["sha256", "hashtext"] {
        let run = server.run(&unique("hasty")).args(["--hash", hash]);
        let line = fails(run.env("PGUSER", &role).env("PGDATABASE", &database), 69);
        assert!(line.contains("statement timeout; if this happens again"), "{line}");
    }
}

/// P90: 78, a wrong setting.
#[test]
fn a_wrong_setting_is_78() {
    let server = Server::shared();
    let run = || server.run(&unique("setting"));
    let wrong_dsns = [
        format!("postgresql://u:{WRONG}@127.0.0.1:no-port/d"),
        format!("postgresql://u:{WRONG}@127.0.0.1:1/d?no_such_setting={WRONG}"),
        format!("host=127.0.0.1 password='{WRONG}"),
        format!("password={WRONG} no_such_setting=1"),
        format!("host=127.0.0.1 password={WRONG} port=x"),
        format!("mysql://u:{WRONG}@127.0.0.1/d"),
        format!("mysql://u:{WRONG}@127.0.0.1/d?a=b"),
    ];
    for dsn in &wrong_dsns {
        fails(run().args(["-d", dsn]), 78);
        fails(run().env("PGLOCK_DSN", dsn), 78);
    }
    let line = fails(run().env("PGDATABASE", "no_such_database"), 78);
    assert!(line.contains("no_such_database"), "{line}");
    for (variable, value) in [
        ("PGPORT", "x"),
        ("PGLOCK_WAIT", "soon"),
        ("PGLOCK_CONFLICT_EXIT_CODE", "600"),
        ("PGLOCK_ON_LOST", "panic"),
        ("PGLOCK_CONNECT_TIMEOUT", "-1"),
    ] {
        let line = fails(run().env(variable, value), 78);
        assert!(line.contains(variable) && line.contains(value), "{line}");
    }
}

/// P90
#[test]
fn help_and_version_go_to_standard_output() {
    let help = Pglock::alone().args(["run", "--help"]).output().stdout();
    for code in ["64", "69", "70", "74", "75", "77", "78", "126", "127"] {
        let row = format!("\n  {code} ");
        assert!(help.contains(&row), "{code} is missing: {help}");
    }
    let version = Pglock::alone().arg("--version").output().stdout();
    assert_eq!(version, concat!("pglock ", env!("CARGO_PKG_VERSION"), "\n"));
}
