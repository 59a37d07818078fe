//! `DATABASE_URL` as applications write it, with a real server, and whitespace at the end of what is pglock's own. How
//! each tool's URL is read is tested in `src/connection/database_url`.

use crate::support::pglock::{Output, Pglock};
use crate::support::tls::{PASSWORD, Secured};
use crate::support::unique;
use std::sync::OnceLock;

fn server() -> &'static Secured {
    static SERVER: OnceLock<Secured> = OnceLock::new();
    SERVER.get_or_init(Secured::start)
}

/// Runs pglock with these variables.
fn run(variables: &[(&str, &str)]) -> Output {
    let mut run = Pglock::alone().env("HOME", "/nonexistent");
    for (name, value) in variables {
        run = run.env(name, value);
    }
    run.args(["run", "-k", &unique("database_url"), "--", "true"]).output()
}

/// Returns the URL with the server's port and directory of certificates in it.
fn filled(url: &str) -> String {
    let (port, pki) = (server().port().to_string(), server().pki(""));
    url.replace("{port}", &port).replace("{pki}/", &pki)
}

/// P80, P86: and only `DATABASE_URL` is read like this.
#[test]
fn urls_of_applications_reach_the_server_with_the_tls_that_they_ask_for() {
    for url in [
        "\"postgresql+psycopg2://with_tls@127.0.0.1:{port}/postgres?sslmode=no-verify&schema=public\"\n",
        "postgis://with_tls@localhost:{port}/postgres?ssl=true&conn_max_age=60\n",
        "jdbc:postgresql://localhost:{port}/postgres?user=with_tls&ssl=true&sslrootcert={pki}/ca.crt",
        "postgresql://with_tls@localhost:{port}/postgres?sslaccept=strict&sslcert={pki}/ca.crt&pgbouncer=true",
        "Host=127.0.0.1:{port};Port=1;Database=postgres;Username=with_tls",
        "Port={port};Host=127.0.0.1:1, 127.0.0.1;Database=postgres;Username=with_tls",
        "Host=localhost;Port={port};Database=postgres;Username=with_tls;SSL Mode=VerifyFull;Root Certificate={pki}/ca.crt",
    ] {
        let url = filled(url);
        run(&[("DATABASE_URL", &url)]).code(0).silent();
        run(&[("PGLOCK_DSN", &url)]).code(78).stderr_line();
    }
    // The database is that of the library's default, not that of a variable.
    for url in [
        "jdbc:postgresql://127.0.0.1:{port}/?user=with_tls",
        "Host=127.0.0.1:{port};Username=with_tls",
    ] {
        let line = run(&[("DATABASE_URL", &filled(url)), ("PGDATABASE", "postgres")]);
        let line = line.code(78).stderr_line();
        assert!(line.contains("database \"with_tls\" does not exist"), "{line}");
    }
    for (url, code, expected) in [
        (
            "jdbc:postgresql://localhost:{port}/postgres?user=with_tls&ssl=true&sslrootcert={pki}/other.crt",
            69,
            "not signed by a root",
        ),
        (
            "postgresql://with_tls@localhost:{port}/postgres?sslmode=disable&sslaccept=strict&sslcert={pki}/other.crt",
            69,
            "not signed by a root",
        ),
        // The role is let in without TLS only.
        (
            "postgresql://without_tls@127.0.0.1:{port}/postgres?ssl=true&sslmode=disable",
            77,
            "pg_hba.conf",
        ),
    ] {
        let line = run(&[("DATABASE_URL", &filled(url))]).code(code).stderr_line();
        assert!(line.contains(expected), "{expected:?} is not in {line:?}");
    }
}

/// P86
#[test]
fn what_is_not_for_pglock_is_refused_at_once_and_can_be_overridden() {
    let url = filled("postgres://scram:{password}@127.0.0.1:{port}/postgres?shema=public&bogus=1");
    let line = run(&[("DATABASE_URL", &url.replace("{password}", "s3cret"))])
        .code(78)
        .stderr_line();
    assert_eq!(
        line,
        "invalid DATABASE_URL: unknown connection parameters \"shema\" (did you mean schema?), \"bogus\"; \
         PGLOCK_DSN and --dsn take precedence over DATABASE_URL"
    );
    let foreign = ("DATABASE_URL", "mysql://app:s3cret@db/app");
    let line = run(&[foreign]).code(78).stderr_line();
    assert_eq!(
        line,
        "DATABASE_URL is for mysql, not for PostgreSQL; PGLOCK_DSN and --dsn take precedence over it"
    );
    let own = server().at("127.0.0.1", "user=with_tls");
    run(&[foreign, ("PGLOCK_DSN", &own)]).code(0).silent();
    let option = Pglock::alone().env(foreign.0, foreign.1).env("HOME", "/nonexistent");
    let option = option.args(["run", "-k", &unique("database_url"), "-d", &own, "--", "true"]);
    option.output().code(0).silent();
}

/// P82, P86: it is used as it is, the message says so, and does not print it.
#[test]
fn whitespace_at_the_end_is_mentioned_when_the_connection_fails() {
    let uri = filled("postgresql://with_tls@127.0.0.1:{port}/postgres");
    let line = run(&[("PGLOCK_DSN", &(uri.clone() + "\n"))]).code(78).stderr_line();
    assert!(
        line.ends_with("does not exist (PGLOCK_DSN ends in a newline, which is part of its last value)"),
        "{line}"
    );
    let line = run(&[("PGLOCK_DSN", &(uri.clone() + "?sslmode=require\n"))])
        .code(78)
        .stderr_line();
    assert!(
        line.contains("sslmode is \"require\\n\"") && line.contains("PGLOCK_DSN ends in a newline"),
        "{line}"
    );
    let option = Pglock::alone().args(["run", "-k", "x", "-d", &(uri + " "), "--", "true"]);
    let line = option.output().code(78).stderr_line();
    assert!(
        line.ends_with("(--dsn ends in whitespace, which is part of its last value)"),
        "{line}"
    );
    // Between pairs whitespace means nothing.
    let pairs = server().at("127.0.0.1", "user=with_tls\n");
    run(&[("PGLOCK_DSN", &pairs)]).code(0).silent();

    let scram = server().at("127.0.0.1", "user=scram");
    let password = format!("{PASSWORD}\n");
    let line = run(&[("PGLOCK_DSN", &scram), ("PGPASSWORD", &password)])
        .code(77)
        .stderr_line();
    assert!(
        line.ends_with("(PGPASSWORD ends in a newline, which is part of the password)") && !line.contains("w@rd"),
        "{line}"
    );
    let quoted = PASSWORD.replace('\\', "\\\\").replace('\'', "\\'");
    let line = run(&[("PGLOCK_DSN", &format!("{scram} password='{quoted} '"))])
        .code(77)
        .stderr_line();
    assert!(
        line.ends_with("(the password ends in whitespace, which is part of the password)") && !line.contains("w@rd"),
        "{line}"
    );
    let escaped = PASSWORD.replace('\\', "\\\\").replace(':', "\\:");
    let home = server().home("whitespace", &[(".pgpass", &format!("*:*:*:scram:{escaped} \n"))]);
    let home = home.display().to_string();
    let line = run(&[("PGLOCK_DSN", &scram), ("HOME", &home)]).code(77).stderr_line();
    assert!(
        line.contains(".pgpass ends in whitespace, which is part of it)"),
        "{line}"
    );
    // A password that ends in a newline can be right.
    server().sql("ALTER ROLE clear PASSWORD E'new\\n'");
    let clear = server().at("127.0.0.1", "user=clear");
    run(&[("PGLOCK_DSN", &clear), ("PGPASSWORD", "new\n")]).code(0).silent();
}
