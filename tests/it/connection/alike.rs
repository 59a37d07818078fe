//! P80: the same connection string and environment, given to psql and to pglock, reach the server alike or are refused
//! by both.
//!
//! The tests compare the server, the user, the database, the start of the application name, TCP or Unix socket, and
//! TLS. Authentication methods and channel binding show in who can log in. Where the two differ, the case says why.

use crate::connection::hosts::pair;
use crate::support::pglock::Pglock;
use crate::support::server::{Server, free_port, rows};
use crate::support::tls::{PASSWORD, Secured, kerberos_server};
use crate::support::unique;
use crate::support::wait::{SOON, until};
use postgres::Client;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

/// What psql and pglock are given.
struct Comparison {
    dsn: Option<String>,
    env: Vec<(String, String)>,
    /// Why the two differ, and may; `None` if they must not.
    why: Option<&'static str>,
}

fn case(dsn: &str, env: &[(&str, &str)]) -> Comparison {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    Comparison {
        dsn: Some(dsn.to_owned()),
        env: env.iter().map(owned).collect(),
        why: None,
    }
}

/// Returns a comparison without a connection string.
fn bare(env: &[(&str, &str)]) -> Comparison {
    Comparison {
        dsn: None,
        ..case("", env)
    }
}

impl Comparison {
    fn differs(self, why: &'static str) -> Comparison {
        Comparison { why: Some(why), ..self }
    }
}

/// How the server was reached; `None` if it was not.
type Reached = Option<Vec<String>>;

struct Stage {
    server: Secured,
    names: Vec<(&'static str, String)>,
}

const HOME_FILES: [(&str, &str); 2] = [
    (
        ".pgpass",
        "# a comment\n\
         127.0.0.1:1:*:scram:wrong\n\
         localhost:*:*:md5:{escaped}\n\
         127.0.0.1:{port}:postgres:scram:{escaped}\n\
         *:*:odd db:clear:{escaped}:more\n",
    ),
    (
        ".pg_service.conf",
        "# a comment\n[tcp]\nhost=127.0.0.1\nport={port}\nuser=with_tls\ndbname=postgres\nsslmode=require\n\
         [first]\nhost={dir}\nport={port}\nuser=with_tls\nuser=scram\ndbname=postgres\n[first]\ndbname=other\n\
         [broken]\nhost\n[unknown]\nhots=x\n[nested]\nservice=tcp\n[spaced]\n  host={dir}  \nport={port}\nuser = x\n",
    ),
];

impl Stage {
    fn set() -> Stage {
        let server = Secured::start();
        let (primary, standby) = pair();
        let user = nix::unistd::User::from_uid(nix::unistd::geteuid())
            .unwrap()
            .unwrap()
            .name;
        for role in [user.as_str(), "odd user@x=y"] {
            let made = server.sql(&format!("SELECT 1 FROM pg_roles WHERE rolname = '{role}'"));
            if made.is_empty() {
                server.sql(&format!("CREATE ROLE \"{role}\" LOGIN"));
            }
        }
        for database in [user.as_str(), "odd db", "it's a \\ db", "with_tls", "a@b/c?d=e"] {
            let made = server.sql(&format!(
                "SELECT 1 FROM pg_database WHERE datname = '{}'",
                database.replace('\'', "''")
            ));
            if made.is_empty() {
                server.sql(&format!("CREATE DATABASE \"{database}\""));
            }
        }
        let mut names = vec![
            ("port", server.port().to_string()),
            ("dir", server.host().to_owned()),
            ("edir", server.host().replace('/', "%2F")),
            ("pki", server.pki("")),
            ("p1", primary.port().to_string()),
            ("p2", standby.port().to_string()),
            ("down", free_port().to_string()),
            ("os", user),
            ("pw", PASSWORD.to_owned()),
            ("epw", PASSWORD.bytes().map(|b| format!("%{b:02x}")).collect()),
            (
                "qpw",
                format!("'{}'", PASSWORD.replace('\\', "\\\\").replace('\'', "\\'")),
            ),
            ("escaped", PASSWORD.replace('\\', "\\\\").replace(':', "\\:")),
            ("kerberos", kerberos_server().to_string()),
        ];
        let home = server.home("home", &[]);
        for (file, text) in HOME_FILES {
            server.home("home", &[(file, &fill(text, &names))]);
        }
        let open = server.home("open", &[(".pgpass", &format!("*:*:*:*:{}\n", names[11].1))]);
        fs::set_permissions(open.join(".pgpass"), fs::Permissions::from_mode(0o644)).unwrap();
        let trusting = server.home("trusting", &[(".postgresql/root.crt", &read(server.pki("other.crt")))]);
        server.home(
            "keyed",
            &[
                (".postgresql/postgresql.crt", &read(server.pki("client.crt"))),
                (".postgresql/postgresql.key", &read(server.pki("client.key"))),
            ],
        );
        let system = server.home(
            "system",
            &[(
                "pg_service.conf",
                &fill(
                    "[system]\nhost={dir}\nport={port}\nuser=scram\ndbname=postgres\n",
                    &names,
                ),
            )],
        );
        for (name, path) in [
            ("home", home),
            ("open", open),
            ("trusting", trusting),
            ("system", system),
        ] {
            names.push((name, path.to_str().unwrap().to_owned()));
        }
        names.push(("keyed", server.directory().join("keyed").to_str().unwrap().to_owned()));
        Stage { server, names }
    }

    /// Opens a session on each server that a comparison can reach.
    fn sessions(&self) -> Vec<Client> {
        let (primary, standby) = pair();
        [&*self.server, primary, standby].map(Server::client).into()
    }

    fn dress(&self, program: Pglock, case: &Comparison) -> Pglock {
        let home = self.names.iter().find(|(name, _)| *name == "home").unwrap();
        let mut program = program.env("HOME", &home.1);
        for (name, value) in &case.env {
            program = program.env(name, fill(value, &self.names));
        }
        program.command().stdin(Stdio::null());
        program
    }

    fn psql(&self, case: &Comparison) -> Reached {
        const WHERE: &str = "SELECT current_setting('port'), session_user, current_database(), \
            split_part(current_setting('application_name'), ' ', 1), inet_client_addr() IS NOT NULL, \
            (SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid())";
        let psql = self.dress(Pglock::for_program("psql"), case);
        let mut psql = psql.args(["-X", "-w", "-A", "-t", "-F", "\x1f", "-c", WHERE]);
        if let Some(dsn) = &case.dsn {
            psql = psql.args(["-d", &fill(dsn, &self.names)]);
        }
        let output = psql.output();
        let text = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
        let mut reached: Vec<String> = text.split('\x1f').map(str::to_owned).collect();
        if output.status.success() && reached[3] == "psql" {
            reached[3] = "its own".into();
        }
        output.status.success().then_some(reached)
    }

    fn pglock(&self, case: &Comparison, sessions: &mut [Client]) -> Reached {
        let mut pglock = self.dress(Pglock::alone(), case);
        if let Some(dsn) = &case.dsn {
            pglock = pglock.env("PGLOCK_DSN", fill(dsn, &self.names));
        }
        let pglock = pglock.args(["run", "-k", &unique("alike")]);
        let mut running = pglock.sh("echo \"<$PGLOCK_BACKEND_PID>\"; read -r _; exit 0").spawn();
        let mut lives = true;
        until(SOON, || {
            lives = running.lives();
            !lives || running.stdout().contains(">\n")
        });
        let out = running.stdout();
        let reached = lives.then(|| session_of(sessions, out.trim().trim_matches(['<', '>']), running.pid().as_raw()));
        let output = running.finish();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !stderr.contains(PASSWORD) && !stderr.contains("w@rd"),
            "a secret is shown: {stderr}"
        );
        match reached {
            Some(_) => output.code(0),
            None => {
                assert!([69, 77, 78].contains(&output.status.code().unwrap_or(-1)), "{output}");
                assert!(!stderr.is_empty(), "{output}");
                &output
            }
        };
        reached
    }
}

/// Returns how the server was reached by this session.
fn session_of(sessions: &mut [Client], backend: &str, pid: i32) -> Vec<String> {
    let sql = format!(
        "SELECT current_setting('port'), usename, datname, application_name, \
             CASE WHEN client_addr IS NULL THEN 'f' ELSE 't' END, CASE WHEN ssl THEN 't' ELSE 'f' END \
             FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) \
             WHERE pid = {backend} AND application_name LIKE '% %:{pid}'"
    );
    let found = sessions.iter_mut().find_map(|client| rows(client, &sql).pop());
    let mut found = found.expect("pglock's session");
    let name = found[3].split(' ').next().unwrap_or_default().to_owned();
    found[3] = if name.starts_with("pglock:") {
        "its own".into()
    } else {
        name
    };
    found
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

/// Substitutes the names in `{...}`.
fn fill(text: &str, names: &[(&'static str, String)]) -> String {
    names.iter().fold(text.to_owned(), |text, (name, value)| {
        text.replace(&format!("{{{name}}}"), value)
    })
}

/// The environment that reaches the server by its socket, and sets nothing else.
const HERE: [(&str, &str); 2] = [("PGHOST", "{dir}"), ("PGPORT", "{port}")];

fn sources() -> Vec<Comparison> {
    let here = |more: &[(&str, &str)]| bare(&[&HERE[..], more].concat());
    let with = |dsn: &str, more: &[(&str, &str)]| case(dsn, &[&HERE[..], more].concat());
    vec![
        here(&[]),
        here(&[("PGUSER", "scram"), ("PGDATABASE", "postgres")]),
        here(&[("PGUSER", "with_tls")]),
        here(&[("PGUSER", "scram")]),
        here(&[("PGDATABASE", "odd db")]),
        here(&[("PGDATABASE", "it's a \\ db")]),
        here(&[("PGDATABASE", "no such database")]),
        here(&[("PGUSER", "")]),
        here(&[("PGDATABASE", "")]),
        here(&[("PGAPPNAME", "nightly")]),
        here(&[("PGAPPNAME", "")]).differs("psql's session then has no name, and pglock's always has one"),
        here(&[("PGOPTIONS", "-c search_path=x")]),
        here(&[("PGOPTIONS", "-c no_such_setting=1")]),
        here(&[("PGSSLMODE", "require")]),
        here(&[("PGSSLMODE", "bogus")]),
        here(&[("PGSSLMODE", "")]),
        here(&[("PGREQUIRESSL", "1")]),
        here(&[
            ("PGHOST", "127.0.0.1"),
            ("PGDATABASE", "postgres"),
            ("PGUSER", "with_tls"),
        ]),
        here(&[
            ("PGHOST", "127.0.0.1"),
            ("PGDATABASE", "postgres"),
            ("PGUSER", "without_tls"),
            ("PGREQUIRESSL", "1"),
        ]),
        here(&[
            ("PGHOST", "127.0.0.1"),
            ("PGDATABASE", "postgres"),
            ("PGUSER", "without_tls"),
            ("PGREQUIRESSL", "0"),
        ]),
        here(&[
            ("PGHOST", "127.0.0.1"),
            ("PGDATABASE", "postgres"),
            ("PGUSER", "without_tls"),
            ("PGREQUIRESSL", "1"),
            ("PGSSLMODE", "allow"),
        ]),
        here(&[
            ("PGHOST", "elsewhere.invalid"),
            ("PGHOSTADDR", "127.0.0.1"),
            ("PGUSER", "scram"),
            ("PGPASSWORD", "{pw}"),
            ("PGDATABASE", "postgres"),
        ]),
        here(&[
            ("PGHOST", "127.0.0.1"),
            ("PGUSER", "scram"),
            ("PGPASSWORD", "{pw}"),
            ("PGDATABASE", "postgres"),
        ]),
        here(&[
            ("PGHOST", "127.0.0.1"),
            ("PGUSER", "scram"),
            ("PGPASSWORD", "wrong"),
            ("PGDATABASE", "postgres"),
        ]),
        here(&[
            ("PGCHANNELBINDING", "require"),
            ("PGHOST", "127.0.0.1"),
            ("PGUSER", "scram"),
            ("PGPASSWORD", "{pw}"),
            ("PGDATABASE", "postgres"),
        ]),
        here(&[("PGCONNECT_TIMEOUT", "5")]),
        here(&[("PGCONNECT_TIMEOUT", "soon")]),
        here(&[("PGCLIENTENCODING", "LATIN1")]),
        here(&[("PGGSSENCMODE", "disable")]),
        here(&[("PGGSSENCMODE", "bogus")]),
        here(&[("PGKRBSRVNAME", "postgres")]),
        here(&[("PGTARGETSESSIONATTRS", "read-write")]),
        here(&[("PGTARGETSESSIONATTRS", "read-only")]),
        here(&[("PGTARGETSESSIONATTRS", "bogus")]),
        here(&[("PGSSLMINPROTOCOLVERSION", "tlsv1.3")]),
        here(&[("PGSSLMINPROTOCOLVERSION", "TLSv9")]),
        here(&[("PGSSLSNI", "0")]),
        here(&[("PGSSLCOMPRESSION", "1")]),
        here(&[("PGREQUIREPEER", "postgres")]),
        here(&[("PGREQUIREPEER", "somebody-else")]),
        // The string overrides some of the variables.
        with("dbname=postgres", &[("PGUSER", "scram"), ("PGDATABASE", "nothing")]),
        with("postgres", &[("PGDATABASE", "nothing")]),
        with("postgresql:///postgres", &[("PGUSER", "scram")]),
        with("postgresql://", &[("PGUSER", "scram"), ("PGDATABASE", "postgres")]),
        with("postgresql://scram@/", &[("PGDATABASE", "postgres")]),
        with("user=scram", &[("PGUSER", "nobody"), ("PGDATABASE", "postgres")]),
        with("user=scram dbname=''", &[("PGDATABASE", "nothing")]),
        with(
            "host={dir} port={port} dbname=postgres",
            &[("PGHOST", "nowhere.invalid"), ("PGPORT", "1")],
        ),
        with("dbname=postgres application_name=mine", &[("PGAPPNAME", "other")]),
        with(
            "dbname=postgres fallback_application_name=fallback",
            &[("PGAPPNAME", "other")],
        ),
        with("", &[("PGDATABASE", "postgres")]),
        with("dbname=postgres sslmode=disable", &[("PGSSLMODE", "bogus")]),
        with(
            "sslmode=require user=without_tls dbname=postgres host=127.0.0.1",
            &[("PGSSLMODE", "disable")],
        ),
        // A service comes between the string and the variables.
        bare(&[("PGSERVICE", "tcp")]),
        bare(&[("PGSERVICE", "first")]),
        bare(&[
            ("PGSERVICE", "tcp"),
            ("PGUSER", "nobody"),
            ("PGHOST", "nowhere.invalid"),
        ]),
        bare(&[("PGSERVICE", "missing")]),
        bare(&[("PGSERVICE", "broken")]),
        bare(&[("PGSERVICE", "unknown")]),
        bare(&[("PGSERVICE", "nested")]),
        bare(&[("PGSERVICE", "spaced")]),
        bare(&[("PGSERVICE", "system"), ("PGSYSCONFDIR", "{system}")]),
        bare(&[("PGSERVICE", "system")]),
        bare(&[("PGSERVICE", "system"), ("PGSERVICEFILE", "{system}/pg_service.conf")]),
        bare(&[("PGSERVICE", "system"), ("PGSERVICEFILE", "{system}/nothing")]),
        bare(&[("PGSERVICE", "tcp"), ("PGSERVICEFILE", "{system}/pg_service.conf")]),
        case("service=tcp user=scram sslmode=disable password={qpw}", &[]),
        case("postgresql://?service=first", &[]),
        case("postgresql://scram@/?service=tcp&password={epw}", &[]),
        case("service=first", &[("PGSERVICE", "missing")]),
        case("service=first dbname=with_tls", &[]),
    ]
}

fn strings() -> Vec<Comparison> {
    let tcp = |rest: &str| {
        case(
            &format!("host=127.0.0.1 port={{port}} user=scram dbname=postgres password={{qpw}} {rest}"),
            &[],
        )
    };
    let unix = |rest: &str| {
        case(
            &format!("host={{dir}} port={{port}} user=scram dbname=postgres {rest}"),
            &[],
        )
    };
    let uri = |text: &str| case(text, &[]);
    let mut cases = vec![
        uri("postgresql://scram:{epw}@127.0.0.1:{port}/postgres"),
        uri("postgres://scram:{epw}@127.0.0.1:{port}/postgres?sslmode=disable"),
        uri("postgresql://scram:{epw}@127.0.0.1:{port}/postgres?ssl=true"),
        uri("postgresql://scram:{epw}@127.0.0.1:{port}/postgres?ssl=false"),
        uri("postgresql://scram:wrong@127.0.0.1:{port}/postgres"),
        uri("postgresql://scram@127.0.0.1:{port}/postgres?password={epw}&application_name=from%20uri"),
        uri("postgresql://scram@{edir}:{port}/postgres"),
        uri("postgresql://scram@/postgres?host={dir}&port={port}"),
        uri("postgresql:///postgres?host={dir}&port={port}&user=scram&"),
        uri("postgresql://odd%20user%40x%3Dy@{edir}:{port}/odd%20db"),
        uri("postgresql://scram@{edir}:{port}/a%40b%2Fc%3Fd%3De"),
        uri("postgresql://scram@{edir}:{port}/a@b%2Fc%3fd=e"),
        uri("postgresql://%73cram@{edir}:{port}/%70ostgres"),
        uri("postgresql://scram@{edir}:{port}/postgres?"),
        uri("postgresql://scram@{edir}:{port}?dbname=postgres"),
        uri("postgresql://scram@{edir}:{port},127.0.0.1:{down}/postgres"),
        uri("postgresql://with_tls@127.0.0.1:{down},127.0.0.1:{port}/postgres"),
        uri("postgresql://with_tls@127.0.0.1,127.0.0.1:{port}/postgres"),
        uri("postgresql://with_tls@[::1]:{port},127.0.0.1:{port}/postgres"),
        uri("postgresql://with_tls@[::1]:{port}/postgres"),
        uri("postgresql://with_tls@localhost:{port}/postgres"),
        uri("postgresql://with_tls@nowhere.invalid:{port}/postgres"),
        uri("postgresql://with_tls@nowhere.invalid:{port},localhost:{port}/postgres"),
        uri("postgresql://with_tls@nowhere.invalid:{port}/postgres?hostaddr=127.0.0.1"),
        uri("postgresql://with_tls@127.0.0.1:{port}x/postgres"),
        uri("postgresql://with_tls@127.0.0.1:0/postgres"),
        uri("postgresql://with_tls@127.0.0.1:65536/postgres"),
        uri("postgresql://with_tls@127.0.0.1:-1/postgres"),
        uri("postgresql://[::1"),
        uri("postgresql://[]:1"),
        uri("postgresql://[::1]x"),
        uri("postgresql://a%zz"),
        uri("postgresql://a%00"),
        uri("postgresql://scram@{edir}:{port}/postgres?unknown=1"),
        uri("postgresql://scram@{edir}:{port}/postgres?application_name"),
        uri("postgresql://scram@{edir}:{port}/postgres?application_name=a=b"),
        uri("postgresql://scram@{edir}:{port}/postgres?&application_name=a"),
        uri("postgresql://scram@{edir}:{port}/postgres?application_name=a&application_name=b"),
        uri("postgresql://scram@{edir}:{port}/postgres?application_name=a&&options=-c%20geqo%3Doff"),
        uri("POSTGRESQL://scram@{edir}:{port}/postgres"),
        uri("mysql://scram@{edir}:{port}/postgres"),
        uri("host={dir}  port = {port}\tuser='scram' dbname=it\\'s\\ a\\ \\\\\\ db"),
        uri("host={dir} port={port} user=scram dbname='it\\'s a \\\\ db'"),
        uri("host={dir} port={port} user=scram dbname='odd db'application_name=x"),
        uri("host={dir} port={port} user=nobody user=scram dbname=postgres"),
        uri("host={dir} port={port} user=scram dbname=postgres host={dir}\\"),
        uri("host={dir} port={port} user=scram dbname='postgres"),
        uri("host={dir} port={port} user=scram dbname"),
        uri("host={dir} port={port} user scram"),
        uri("host={dir} prot={port} user=scram"),
        uri("host={dir} port=' {port} ' user=scram dbname=postgres"),
        uri("host={dir} port={port},{port} user=scram dbname=postgres"),
        uri("host={dir},127.0.0.1 port={down},{port} user=with_tls dbname=postgres"),
        uri("host={dir},{dir} port={down},{port} user=with_tls dbname=postgres"),
        uri("host=127.0.0.1,127.0.0.1 port={port} user=with_tls dbname=postgres"),
        uri("host=a,b hostaddr=127.0.0.1 port={port} user=with_tls dbname=postgres"),
        uri("host=a,b hostaddr=127.0.0.1,127.0.0.1 port={down},{port} user=with_tls dbname=postgres"),
        uri("hostaddr=127.0.0.1 port={port} user=with_tls dbname=postgres"),
        uri("hostaddr=localhost port={port} user=with_tls dbname=postgres"),
        uri("hostaddr=nonsense,127.0.0.1 port={port} user=with_tls dbname=postgres"),
        uri("host={dir} hostaddr=127.0.0.1 port={port} user=with_tls dbname=postgres"),
        uri("host=@{dir} port={port} user=with_tls dbname=postgres"),
        uri("host=,{dir} port={down},{port} user=with_tls dbname=postgres"),
        // The first host refuses, and the second is not tried.
        uri("host=127.0.0.1,127.0.0.1 port={port},{p1} user=scram password=wrong dbname=postgres"),
        uri("host=127.0.0.1,127.0.0.1 port={p2},{p1} user=postgres dbname=postgres target_session_attrs=primary"),
        uri("host=127.0.0.1,127.0.0.1 port={p2},{p1} user=postgres dbname=postgres target_session_attrs=read-write"),
        uri(
            "host=127.0.0.1,127.0.0.1 port={down},{p1} user=postgres dbname=postgres target_session_attrs=prefer-standby",
        ),
        uri("host=127.0.0.1 port={p2} user=postgres dbname=postgres target_session_attrs=primary"),
        uri("host=127.0.0.1,127.0.0.1 port={p1},{p2} user=postgres dbname=postgres target_session_attrs=standby")
            .differs("pglock refuses the lock of a standby"),
        uri(
            "host=127.0.0.1,127.0.0.1 port={p1},{p2} user=postgres dbname=postgres target_session_attrs=prefer-standby",
        )
        .differs("pglock refuses the lock of a standby"),
        tcp("require_auth=scram-sha-256").differs("psql 15 does not know require_auth"),
        tcp("sslcertmode=disable").differs("psql 15 does not know sslcertmode"),
        tcp("load_balance_hosts=random").differs("psql 15 does not know load_balance_hosts"),
        tcp("sslnegotiation=postgres").differs("psql 15 does not know sslnegotiation"),
        tcp("gssdelegation=0").differs("psql 15 does not know gssdelegation"),
        tcp("max_protocol_version=latest").differs("psql 15 does not know max_protocol_version"),
        tcp("sslcrl={pki}no.crl sslmode=verify-ca sslrootcert={pki}ca.crt")
            .differs("psql ignores a missing revocation list, and so would accept revoked certificates"),
        unix("keepalives_idle=often").differs("psql reads it only over TCP"),
        tcp("client_encoding=no_such_encoding")
            .differs("pglock has no text to convert; psql lets the server refuse the encoding"),
        unix("user=postgres replication=database").differs("a lock needs an ordinary session, and psql does not"),
    ];
    for rest in [
        "keepalives=0",
        "keepalives=1 keepalives_idle=30 keepalives_interval=5 keepalives_count=3",
        "keepalives_count=many",
        "tcp_user_timeout=20000",
        "tcp_user_timeout=soon",
        "connect_timeout=0",
        "connect_timeout=-1",
        "connect_timeout=' 7 '",
        "connect_timeout=1.5",
        "connect_timeout=''",
        "connect_timeout=99999999999",
        "gssencmode=prefer",
        "gssencmode=require",
        "gssencmode=''",
        "krbsrvname=x gsslib=gssapi",
        "sslcompression=0",
        "sslsni=0 sslmode=require",
        "sslpassword=x",
        "ssl_min_protocol_version=TLSv1.3 sslmode=require",
        "ssl_max_protocol_version=TLSv1.2 sslmode=require",
        "ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2",
        "ssl_min_protocol_version=SSLv3",
        "ssl_min_protocol_version=''",
        "target_session_attrs=any",
        "target_session_attrs=''",
        "channel_binding=''",
        "options='-c geqo=off -c statement_timeout=7s'",
        "options='-c nonsense=1'",
        "options=''",
        "replication=false",
        "client_encoding=UTF8",
        "application_name='a-name'",
        "requirepeer=nobody",
        "requiressl=1",
        "requiressl=0",
        "passfile=/nonexistent",
        "sslmode=verify-full sslrootcert={pki}ca.crt",
        "sslmode=verify-full",
        "tty=x",
        "authtype=x",
    ] {
        cases.push(tcp(rest));
        if rest.contains("ssl") || rest.contains("requirepeer") || rest.contains("gssenc") {
            cases.push(unix(rest));
        }
    }
    cases
}

fn secrets() -> Vec<Comparison> {
    let tcp = |user: &str, rest: &str, env: &[(&str, &str)]| {
        case(
            &format!("host=127.0.0.1 port={{port}} user={user} dbname=postgres {rest}"),
            env,
        )
    };
    let mut cases = vec![
        tcp("scram", "", &[]),
        tcp("scram", "password=''", &[]),
        tcp("scram", "password=wrong", &[]),
        tcp("md5", "", &[]),
        tcp("md5", "host=localhost", &[]),
        tcp("md5", "host=localhost hostaddr=127.0.0.1", &[]),
        tcp("md5", "host='' hostaddr=127.0.0.1", &[]),
        tcp("clear", "dbname='odd db'", &[]),
        tcp("clear", "", &[]),
        tcp("scram", "", &[("HOME", "{open}")]),
        tcp("scram", "", &[("HOME", "{open}"), ("PGPASSFILE", "{home}/.pgpass")]),
        tcp(
            "scram",
            "passfile={home}/.pgpass",
            &[("HOME", "{open}"), ("PGPASSFILE", "/nonexistent")],
        ),
        tcp("scram", "", &[("PGPASSFILE", "{home}")]),
        tcp("scram", "", &[("PGPASSFILE", "")]),
        tcp("scram", "", &[("PGPASSWORD", "wrong")]),
        tcp("scram", "password={qpw}", &[("PGPASSWORD", "wrong")]),
        tcp("with_cert", "sslmode=require", &[("HOME", "{keyed}")]),
        tcp("with_cert", "", &[("HOME", "{keyed}")]),
        tcp("with_cert", "sslmode=disable", &[("HOME", "{keyed}")]),
        tcp("with_cert", "sslmode=require", &[]),
        tcp(
            "with_cert",
            "sslmode=require sslcert={pki}client.crt sslkey={pki}client.key",
            &[],
        ),
        tcp(
            "with_cert",
            "sslmode=require sslcert={pki}client.crt sslkey={pki}client-open.key",
            &[],
        ),
        tcp(
            "with_cert",
            "sslmode=require sslcert={pki}client.crt sslkey={pki}no.key",
            &[],
        ),
        tcp(
            "with_cert",
            "sslmode=require sslcert={pki}no.crt sslkey={pki}client.key",
            &[],
        ),
        tcp(
            "with_cert",
            "sslmode=require sslcert={pki}client.crt sslkey={pki}client-ec.key",
            &[],
        ),
        tcp("with_tls", "sslcert={pki}client.crt sslkey={pki}no.key", &[]),
        tcp("without_tls", "sslcert={pki}client.crt sslkey={pki}no.key", &[]),
        tcp(
            "with_tls",
            "sslmode=require sslcert={pki}client-other.crt sslkey={pki}client-other.key",
            &[],
        ),
        case("host=127.0.0.1 port={kerberos} user=postgres sslmode=disable", &[]),
        tcp("with_tls", "", &[("HOME", "{trusting}")]),
        tcp("with_tls", "sslmode=require", &[("HOME", "{trusting}")]),
        tcp("without_tls", "", &[("HOME", "{trusting}")]),
        tcp(
            "with_tls",
            "sslmode=require",
            &[("HOME", "{trusting}"), ("PGSSLROOTCERT", "{pki}ca.crt")],
        ),
        tcp(
            "with_tls",
            "sslmode=verify-ca sslrootcert={pki}ca.crt sslcrl={pki}ca.crl",
            &[],
        ),
        tcp("with_tls", "sslmode=verify-ca sslrootcert={pki}client.key", &[]),
        tcp(
            "with_tls",
            "sslmode=verify-full sslrootcert={pki}ca.crt host=localhost",
            &[],
        ),
        tcp(
            "with_tls",
            "sslmode=verify-full sslrootcert={pki}ca.crt host=other hostaddr=127.0.0.1",
            &[],
        ),
        tcp(
            "with_tls",
            "sslmode=verify-full sslrootcert={pki}ca.crt host='' hostaddr=127.0.0.1",
            &[],
        ),
    ];
    for mode in [
        "disable",
        "allow",
        "prefer",
        "require",
        "verify-ca",
        "verify-full",
        "bogus",
    ] {
        for user in ["with_tls", "without_tls", "half", "scram", "md5", "clear"] {
            cases.push(tcp(user, &format!("sslmode={mode} password={{qpw}}"), &[]));
            if mode.starts_with("verify") || user == "half" {
                let rest = format!("sslmode={mode} password={{qpw}} sslrootcert={{pki}}ca.crt");
                cases.push(tcp(user, &rest, &[]));
            }
        }
        for binding in ["disable", "prefer", "require", "bogus"] {
            let rest = format!("sslmode={mode} channel_binding={binding} password={{qpw}}");
            cases.push(tcp("scram", &rest, &[]));
            if binding == "require" {
                cases.push(tcp("md5", &rest, &[]));
                cases.push(tcp("with_tls", &rest, &[]));
            }
        }
        let root = format!("sslmode={mode} sslrootcert={{pki}}other.crt");
        cases.push(tcp("with_tls", &root, &[]));
        cases.push(tcp("without_tls", &root, &[]));
    }
    cases
}

/// Returns what is wrong with these comparisons, and how many of them reach a server.
fn compare(stage: &Stage, cases: &[Comparison]) -> (Vec<String>, usize) {
    let mut sessions = stage.sessions();
    let mut reaching = 0;
    let mut wrong = Vec::new();
    for case in cases {
        let (psql, pglock) = (stage.psql(case), stage.pglock(case, &mut sessions));
        reaching += usize::from(psql.is_some());
        if (psql == pglock) == case.why.is_some() {
            let Comparison { dsn, env, why } = case;
            wrong.push(format!(
                "{dsn:?} {env:?}\n  psql   {psql:?}\n  pglock {pglock:?}\n  {why:?}"
            ));
        }
    }
    (wrong, reaching)
}

/// P80
#[test]
fn psql_and_pglock_reach_the_server_alike() {
    let stage = Stage::set();
    let cases: Vec<Comparison> = [sources(), strings(), secrets()].into_iter().flatten().collect();
    let count = cases.len();
    assert!(count >= 150, "{count}");
    // Most of the time is spent waiting for processes to start.
    let results = std::thread::scope(|scope| {
        let parts = cases.chunks(count.div_ceil(4));
        let threads: Vec<_> = parts.map(|part| scope.spawn(|| compare(&stage, part))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect::<Vec<_>>()
    });
    let reaching: usize = results.iter().map(|(_, reaching)| reaching).sum();
    let wrong: Vec<String> = results.into_iter().flat_map(|(wrong, _)| wrong).collect();
    println!("{count} comparisons, {reaching} of which reach a server by psql");
    assert!(
        wrong.is_empty(),
        "{} of {count} comparisons:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(
        reaching * 5 > count * 2,
        "too many are refused by both, which proves little"
    );
}
