//! P63: the schemes of `--hash`.
//!
//! What the tools themselves would lock is written here as a number computed without pglock, or as the SQL that they
//! send.

use crate::support::pgbouncer::PgBouncer;
use crate::support::pglock::Pglock;
use crate::support::server::{Server, rows};
use crate::support::unique;
use crate::support::wait::{SOON, eventually};
use postgres::Client;

/// Every scheme with its number for the name `backup` or the database `app`; for a function of the server, the SQL.
const GOLDEN: [(&str, &str); 19] = [
    ("sha256", "6111399565520850680"),
    ("sha256-le", "-518379636727623596"),
    ("fnv1a", "-8109357721908082369"),
    ("fnv1", "4510669856917780423"),
    ("md5", "4620783329284506538"),
    ("sqlx", "-413360793389268767"),
    ("crc32", "1072746924"),
    ("crc32-signed", "1072746924"),
    ("with-advisory-lock", "1072746924,0"),
    ("pg-lock", "-2147483648,1072746924"),
    ("hashtext", "hashtext('backup')"),
    ("hashtextextended", "hashtextextended('backup',0)"),
    ("rails-migrate", "6939591962871035475"),
    ("sqlx-migrate", "3469795979745788610"),
    ("golang-migrate-url", "1726534663"),
    ("golang-migrate-instance", "1787120056"),
    ("prisma-migrate", "72707369"),
    ("goose", "5887940537704921958"),
    ("node-pg-migrate", "7241865325823964"),
];

/// The first scheme that is a tool's own lock; so are all that follow.
const FIRST_TOOL_SCHEME: usize = 12;

/// The schemes that hash the name of the database.
const DATABASE_SCHEMES: [&str; 4] = [
    "rails-migrate",
    "sqlx-migrate",
    "golang-migrate-url",
    "golang-migrate-instance",
];

fn key(arguments: &[&str]) -> Pglock {
    Pglock::alone().arg("key").args(arguments)
}

/// Starts a server with a database `app`, from whose name the golden numbers are computed.
fn server_with_app(settings: &[&str]) -> Server {
    let server = Server::with(settings);
    server.sql("CREATE DATABASE app");
    server
}

/// Returns whether the server has the functions that the scheme needs.
fn is_supported(server: &Server, scheme: &str) -> bool {
    let is_supported = server.version() >= 11 || !matches!(scheme, "sha256" | "sha256-le" | "hashtextextended");
    if !is_supported {
        println!("SKIPPED: PostgreSQL before 11 cannot compute --hash {scheme}");
    }
    is_supported
}

/// P63: `--hash all` prints the number for every scheme.
#[test]
fn the_table_of_all_schemes() {
    let table = key(&["--hash", "all", "--dbname", "app", "backup"]);
    let table = table.output().stdout();
    assert_eq!(table.lines().count(), GOLDEN.len());
    for (line, (scheme, number)) in table.lines().zip(GOLDEN) {
        let (first, rest) = line.split_once(' ').unwrap();
        assert_eq!(first, scheme);
        if scheme.starts_with("hashtext") {
            assert!(
                rest.contains("computed by the server") && rest.contains(number),
                "{line}"
            )
        } else {
            assert_eq!(rest.trim(), number, "{scheme}")
        }
    }
    let table = key(&["--hash", "all", "name:42"]).output().stdout();
    let needs_database = |line: &&str| line.contains("--dbname NAME");
    assert_eq!(table.lines().filter(needs_database).count(), 4, "{table}");
    assert!(table.contains("crc32                    841265288\n"), "{table}");
}

/// P63, one scheme at a time, as in a script.
#[test]
fn each_scheme_by_itself() {
    for (n, (scheme, number)) in GOLDEN.into_iter().enumerate() {
        let arguments: &[&str] = match n {
            0..FIRST_TOOL_SCHEME => &["--hash", scheme, "backup"],
            FIRST_TOOL_SCHEME..16 => &["--hash", scheme, "--dbname", "app"],
            _ => &["--hash", scheme],
        };
        let output = key(arguments).output();
        if scheme.starts_with("hashtext") {
            assert!(output.code(64).stderr_line().contains(number), "{output}")
        } else {
            assert_eq!(output.stdout(), format!("{number}\n"))
        }
    }
    // With the highest bit set, signed and unsigned numbers differ.
    for (scheme, number) in [
        ("crc32", "2453354746"),
        ("crc32-signed", "-1841612550"),
        ("with-advisory-lock", "305871098,0"),
        ("pg-lock", "-2147483648,-1841612550"),
    ] {
        let printed = key(&["--hash", scheme, "deploy"]).output().stdout();
        assert_eq!(printed, format!("{number}\n"), "{scheme}");
    }
}

/// P63: a scheme applies to names only, and `name:` forces a name.
#[test]
fn numbers_are_not_hashed() {
    for given in [&["--hash", "md5"][..], &[]] {
        let keys = key(given).args(["--", "42", "1,2", "name:42", "backup"]);
        let printed = keys.env("PGLOCK_HASH", "md5").output().stdout();
        assert_eq!(printed, "42\n1,2\n-6786705937655499993\n4620783329284506538\n");
    }
    let overridden = key(&["--hash", "crc32", "backup"]).env("PGLOCK_HASH", "md5");
    assert_eq!(overridden.output().stdout(), "1072746924\n");
}

/// P92: a scheme that is a tool's own lock takes no key, and cannot come from a variable, which must not name the lock.
#[test]
fn senseless_combinations_are_refused() {
    for arguments in [
        &["key", "--hash", "rails-migrate"][..],
        &["key", "--hash", "rails-migrate", "backup"],
        &["key", "--hash", "goose", "42"],
        &["key", "--hash", "goose", "--dbname", "app"],
        &["key", "--dbname", "app", "backup"],
        &["key", "--hash", "rails-migrate", "--dbname", "app", "--sql"],
        &["key", "--hash", "rails-migrate", "--sql"],
        &["key", "--hash", "md5"],
        &["key", "--hash", "MD5", "backup"],
        &["key", "--hash", "all"],
        &["key", "--hash", "all", "42"],
        &["key", "--hash", "all", "a", "b"],
        &["run", "--hash", "all", "--key", "a", "true"],
        &["run", "--hash", "md5", "true"],
        &["run", "--hash", "goose", "--key", "a", "true"],
        &["run", "--hash", "--key", "a", "true"],
    ] {
        Pglock::alone().args(arguments).output().code(64).stderr_line();
    }
    for (scheme, command) in [("goose", "key"), ("gose", "key"), ("rails-migrate", "run")] {
        let arguments: &[&str] = match command {
            "key" => &["key", "a"],
            _ => &["run", "--key", "a", "true"],
        };
        let output = Pglock::alone().args(arguments).env("PGLOCK_HASH", scheme);
        let output = output.output();
        let line = output.code(78).stderr_line();
        assert!(line.contains("PGLOCK_HASH") && line.contains(scheme), "{output}");
    }
}

/// P62, for every scheme that does not hash the name of the database, with awkward names.
#[test]
fn the_server_computes_the_same_numbers() {
    let server = Server::shared();
    let mut client = server.client();
    for name in [
        "backup",
        "deploy",
        r"it's a back\slash",
        "schl\u{fc}ssel-\u{9375}-\u{1f511}",
    ] {
        let table = |more: &[&str]| {
            let table = key(&["--hash", "all"]).args(more).args(["--", name]);
            table.output().stdout()
        };
        let (numbers, expressions) = (table(&[]), table(&["--sql"]));
        for (number, expression) in numbers.lines().zip(expressions.lines()) {
            let (scheme, expression) = expression.split_once(' ').unwrap();
            let number = number.split_once(' ').unwrap().1.trim();
            if expression.ends_with("depends on the database; use --dbname NAME") {
                assert!(DATABASE_SCHEMES.contains(&scheme), "{scheme}");
            } else if is_supported(server, scheme) {
                let computed = rows(&mut client, &format!("SELECT {expression}"));
                let number = match number.strip_prefix("computed by the server: ") {
                    Some(sql) => rows(&mut client, &format!("SELECT {sql}"))[0].clone(),
                    None => number.split(',').map(str::to_owned).collect(),
                };
                assert_eq!(computed, [number], "{scheme} of {name:?}: {expression}");
            }
        }
    }
}

/// P63, for `hashtext` and `hashtextextended`.
#[test]
fn functions_of_the_server_are_computed_by_the_server() {
    let server = Server::shared();
    for (scheme, function) in [("hashtext", "hashtext('"), ("hashtextextended", "hashtextextended('")] {
        let name = unique("it_is");
        let rest = if scheme == "hashtext" { "')" } else { "', 0)" };
        if is_supported(server, scheme) {
            let number = server.value(&format!("SELECT {function}{name}{rest}"));
            let run = server.run(&name).args(["--hash", scheme]);
            let printed = run.sh("echo $PGLOCK_KEY $PGLOCK_KEY_ID").output().stdout();
            assert_eq!(printed, format!("{name} {number}\n"));
        }
    }
}

/// P63: whichever of the two acquires the lock, the other one cannot.
#[test]
fn an_application_and_pglock_exclude_each_other() {
    let server = server_with_app(&[]);
    let mut application = server.client_in("app");
    for (n, (scheme, number)) in GOLDEN.into_iter().enumerate() {
        if !is_supported(&server, scheme) {
            continue;
        }
        let run = || {
            let run = server.pglock().env("PGDATABASE", "app");
            let run = run.args(["run", "--hash", scheme]);
            if n < FIRST_TOOL_SCHEME {
                run.args(["--key", "backup"])
            } else {
                run
            }
        };
        assert!(acquires(&mut application, number), "{scheme}");
        let output = run().args(["--no-wait", "--", "true"]).output();
        let line = output.code(75).stderr_line();
        assert!(
            line.contains("in database \"app\" is held by user \"postgres\""),
            "{output}"
        );
        assert!(number.starts_with('h') || line.contains(number), "{output}");
        releases(&mut application, number);

        let holder = run().holding();
        assert!(!acquires(&mut application, number), "{scheme}");
        holder.finish().code(0).silent();
        assert!(acquires(&mut application, number), "{scheme}");
        releases(&mut application, number);
    }
}

/// P63, P4: the lock of Rails and sqlx is that of the *current* database, and the job learns which one it is.
#[test]
fn the_lock_of_a_migration_is_that_of_its_database() {
    let server = server_with_app(&[]);
    let awkward = "o'clock schl\u{fc}ssel-\u{9375}";
    server.sql(&format!("CREATE DATABASE \"{awkward}\""));
    for (scheme, number, other) in [
        ("rails-migrate", "6939591962871035475", "737815420147457505"),
        ("sqlx-migrate", "3469795979745788610", "368907709894077238"),
    ] {
        let run = |database: &str| {
            let run = server.pglock().env("PGDATABASE", database);
            run.args(["run", "--hash", scheme])
        };
        let printed = |database| run(database).sh("echo $PGLOCK_KEY $PGLOCK_KEY_ID").output().stdout();
        assert_eq!(printed("app"), format!("{scheme} {number}\n"));
        assert_eq!(printed("postgres"), format!("{scheme} {other}\n"));
        let number = key(&["--hash", scheme, "--dbname", awkward]).output().stdout();
        assert_eq!(printed(awkward), format!("{scheme} {number}"));
        let holder = run("app").holding();
        let name = "SELECT application_name FROM pg_stat_activity WHERE application_name LIKE 'pglock:%'";
        let name = server.value(name);
        assert!(name.starts_with(&format!("pglock:{scheme} ")), "{name}");
        run("postgres").args(["-n", "true"]).output().code(0);
        run("app").args(["-n", "true"]).output().code(75);
        holder.finish().code(0);
    }
}

/// P64: pglock waits for a key that the server computes as for any other, shared or not.
#[test]
fn a_computed_key_is_waited_for() {
    let server = Server::shared();
    let name = unique("waited for");
    let call = format!("hashtext('{name}')");
    let mut application = server.client();
    for mode in [&[][..], &["--shared"]] {
        assert!(acquires(&mut application, &call));
        let run = server.run(&name).args(["--hash", "hashtext"]).args(mode);
        let mut waiter = run.sh("echo mine; read -r _; exit 0").spawn();
        let waiting = format!(
            "SELECT 1 FROM pg_locks WHERE NOT granted AND objsubid = 1 AND locktype = 'advisory' \
             AND objid = ({call}::bigint & 4294967295)::oid"
        );
        eventually(SOON, "a waiter", || !server.sql(&waiting).is_empty());
        assert!(waiter.lives() && waiter.stdout().is_empty());
        releases(&mut application, &call);
        waiter.await_stdout("mine\n");
        assert!(!acquires(&mut application, &call));
        waiter.finish().code(0).silent();
    }
}

/// P63: a pooler may call the database by another name than the server, whose name decides.
#[test]
fn behind_a_pooler_the_database_is_that_of_the_server() {
    let server = server_with_app(&[]);
    let alias = format!("alias = dbname=app host={} port={}", server.host(), server.port());
    let bouncer = PgBouncer::with(&server, &["pool_mode=transaction", "[databases]", &alias]);
    let run = || {
        let run = bouncer.pglock().env("PGDATABASE", "alias");
        run.args(["run", "--hash", "rails-migrate"])
    };
    let mut application = server.client_in("app");
    assert!(acquires(&mut application, "6939591962871035475"));
    let output = run().args(["-n", "true"]).output();
    let line = output.code(75).stderr_line();
    assert!(line.contains("(6939591962871035475) in database \"app\""), "{output}");
    releases(&mut application, "6939591962871035475");
    let holder = run().holding();
    assert!(!acquires(&mut application, "6939591962871035475"));
    holder.finish().code(0).silent();
    assert!(acquires(&mut application, "6939591962871035475"));
}

/// P64
#[test]
fn a_key_that_depends_on_the_server_costs_one_round_trip() {
    let server = server_with_app(&["log_statement=all"]);
    let statements = |arguments: &[&str]| {
        let before = server.log().len();
        let run = server.pglock().env("PGDATABASE", "app").arg("run");
        run.args(arguments).args(["--", "true"]).output().code(0).silent();
        // The server writes its log before it replies.
        let log = server.log()[before..].to_owned();
        log.matches("statement:").count()
    };
    let known = statements(&["--key", "backup"]);
    assert!(known > 1);
    assert_eq!(statements(&["--hash", "rails-migrate"]), known + 1);
    assert_eq!(statements(&["--hash", "hashtext", "--key", "backup"]), known + 1);
}

/// P64: a key that the server computes can be one of several, can have slots, and can be waited for with `--fair`.
#[test]
fn a_computed_key_combines_with_keys_slots_and_fair() {
    let server = Server::shared();
    let mut application = server.client();
    let (name, pair) = (unique("combined"), format!("77,{}", std::process::id()));
    let hashed = format!("hashtext('{name}')");
    let number = server.value(&format!("SELECT {hashed}"));
    let run = || server.run(&name).args(["--hash", "hashtext"]);
    let show_lock = "echo $PGLOCK_KEY_ID $PGLOCK_SLOT";

    // Several keys, one of them computed by the server: if either is held, pglock acquires neither.
    for scope in ["session", "transaction"] {
        let both = || run().args(["--scope", scope, "--key", &pair]);
        for (held, other, start) in [
            (&hashed, &pair, format!("key \"{name}\" ({number}) in ")),
            (&pair, &hashed, format!("key {pair} in ")),
        ] {
            assert!(acquires(&mut application, held));
            let output = both().args(["--no-wait", "--", "true"]).output();
            let line = output.code(75).stderr_line();
            assert!(line.starts_with(&start), "{line}");
            assert!(acquires(&mut application, other));
            releases(&mut application, other);
            let waiter = both().sh(show_lock).spawn();
            releases(&mut application, held);
            assert_eq!(waiter.finish().stdout(), format!("{number} {pair}\n"));
        }
        let holder = both().holding();
        assert!(!acquires(&mut application, &hashed) && !acquires(&mut application, &pair));
        holder.finish().code(0).silent();
    }
    // The same lock under two names is acquired and released once.
    let twice = run().args(["--key", &number]).sh(show_lock).output().stdout();
    assert_eq!(twice, format!("{number} {number}\n"));

    // A plain holder has slot 0 of two, and the next pglock acquires the other one.
    let slots = || run().args(["--slots", "2"]);
    assert!(acquires(&mut application, &hashed));
    assert_eq!(slots().sh(show_lock).output().stdout(), format!("{number} 1\n"));
    let holder = slots().holding();
    let output = slots().args(["--no-wait", "--", "true"]).output();
    let line = output.code(75).stderr_line();
    assert!(
        line.starts_with(&format!("all 2 slots of key \"{name}\" ({number}) in ")),
        "{line}"
    );
    let waiter = slots().sh(show_lock).spawn();
    releases(&mut application, &hashed);
    assert_eq!(waiter.finish().stdout(), format!("{number} 0\n"));
    holder.finish().code(0).silent();

    // Queued waiters wait for a plain holder, each in its turn.
    assert!(acquires(&mut application, &hashed));
    let fair = || run().arg("--fair");
    let first = fair().sh("echo first; read -r _; exit 0").spawn();
    let tickets = "SELECT 1 FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory' \
                   AND l.objsubid = 2 AND l.mode = 'ExclusiveLock' AND a.application_name LIKE 'pglock:";
    let tickets_held = || server.sql(&format!("{tickets}{name}%'")).len();
    eventually(SOON, "a ticket", || tickets_held() == 1);
    let second = fair().sh("echo second").spawn();
    eventually(SOON, "another", || tickets_held() == 2);
    releases(&mut application, &hashed);
    first.await_stdout("first\n");
    assert!(!acquires(&mut application, &hashed) && second.stdout().is_empty());
    first.finish().code(0).silent();
    assert_eq!(second.finish().stdout(), "second\n");
    assert!(acquires(&mut application, &hashed));
    releases(&mut application, &hashed);
}

/// Returns whether the application acquires the lock with these arguments of the function.
fn acquires(application: &mut Client, arguments: &str) -> bool {
    let sql = format!("SELECT pg_try_advisory_lock({arguments})");
    rows(application, &sql) == [["t"]]
}

fn releases(application: &mut Client, arguments: &str) {
    let sql = format!("SELECT pg_advisory_unlock({arguments})");
    assert_eq!(rows(application, &sql), [["t"]]);
}

/// P63: a name that the encoding of the database lacks is a failure of that key, not of the server.
#[test]
fn a_number_that_the_server_cannot_compute_is_reported_with_its_key() {
    let server = Server::shared();
    let database = unique("latin");
    server.sql(&format!(
        "CREATE DATABASE {database} TEMPLATE template0 ENCODING LATIN1 LC_COLLATE 'C' LC_CTYPE 'C'"
    ));
    let key = "\u{9375}";
    for arguments in [
        &["run", "--hash", "hashtext", "--key", key, "--key", "plain", "true"][..],
        &["list", "--hash", "hashtext", "--key", key, "--key", "plain"],
    ] {
        let pglock = server.pglock().env("PGDATABASE", &database).args(arguments);
        let line = pglock.output().code(78).stderr_line();
        let cause = "the server cannot compute the number of keys \"\u{9375}\", \"plain\" with this --hash: ";
        assert!(line.contains(cause) && line.contains("LATIN1"), "{line}");
    }
}
