//! "`--hash` names the other schemes, so that pglock and an application can share a lock."
//!
//! What the tools themselves would take stands here as a number, worked out without pglock, or as the SQL that they
//! send.

use crate::support::pgbouncer::PgBouncer;
use crate::support::pglock::Pglock;
use crate::support::server::{Server, rows};
use crate::support::unique;
use crate::support::wait::{SOON, eventually};
use postgres::Client;

/// Every scheme, with the number for the name `backup` or the database `app`; a function of the server as SQL.
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

/// From here on they are a tool's own lock.
const FIRST_TOOL: usize = 12;

fn key(arguments: &[&str]) -> Pglock {
    Pglock::alone().arg("key").args(arguments)
}

/// A server of one's own with a database `app`, whose name the golden numbers are made of.
fn server_with_app(settings: &[&str]) -> Server {
    let server = Server::with(settings);
    server.sql("CREATE DATABASE app");
    server
}

/// Whether the server has what the scheme needs.
fn is_known(server: &Server, scheme: &str) -> bool {
    server.version() >= 11 || !matches!(scheme, "sha256" | "sha256-le" | "hashtextextended")
}

/// "`pglock key --hash all NAME` prints the whole table"
#[test]
fn the_table_of_all_schemes() {
    let table = key(&["--hash", "all", "--dbname", "app", "backup"]);
    let table = table.output().stdout();
    assert_eq!(table.lines().count(), GOLDEN.len());
    for (line, (scheme, number)) in table.lines().zip(GOLDEN) {
        let (first, said) = line.split_once(' ').unwrap();
        assert_eq!(first, scheme);
        match scheme.starts_with("hashtext") {
            true => assert!(
                said.contains("computed by the server") && said.contains(number),
                "{line}"
            ),
            false => assert_eq!(said.trim(), number, "{scheme}"),
        }
    }
    let table = key(&["--hash", "all", "name:42"]).output().stdout();
    let needs_one = |line: &&str| line.contains("--dbname NAME");
    assert_eq!(table.lines().filter(needs_one).count(), 4, "{table}");
    assert!(table.contains("crc32                    841265288\n"), "{table}");
}

/// "for every scheme of the table": one by one, as a script would ask.
#[test]
fn each_scheme_by_itself() {
    for (n, (scheme, number)) in GOLDEN.into_iter().enumerate() {
        let arguments: &[&str] = match n {
            0..FIRST_TOOL => &["--hash", scheme, "backup"],
            FIRST_TOOL..16 => &["--hash", scheme, "--dbname", "app"],
            _ => &["--hash", scheme],
        };
        let output = key(arguments).output();
        match scheme.starts_with("hashtext") {
            true => assert!(output.code(64).stderr_line().contains(number), "{output}"),
            false => assert_eq!(output.stdout(), format!("{number}\n")),
        }
    }
    // The highest bit makes the difference between what is signed and what is not.
    for (scheme, number) in [
        ("crc32", "2453354746"),
        ("crc32-signed", "-1841612550"),
        ("with-advisory-lock", "305871098,0"),
        ("pg-lock", "-2147483648,-1841612550"),
    ] {
        let told = key(&["--hash", scheme, "deploy"]).output().stdout();
        assert_eq!(told, format!("{number}\n"), "{scheme}");
    }
}

/// "`--hash` applies to names only: a key that is an integer or pair stays itself; `name:` forces a name."
#[test]
fn numbers_stay_what_they_are() {
    for given in [&["--hash", "md5"][..], &[]] {
        let keys = key(given).args(["--", "42", "1,2", "name:42", "backup"]);
        let told = keys.env("PGLOCK_HASH", "md5").output().stdout();
        assert_eq!(told, "42\n1,2\n-6786705937655499993\n4620783329284506538\n");
    }
    let overridden = key(&["--hash", "crc32", "backup"]).env("PGLOCK_HASH", "md5");
    assert_eq!(overridden.output().stdout(), "1072746924\n");
}

/// "A scheme that is a tool's own lock takes no key", and has no variable: it names the lock.
#[test]
fn senseless_combinations_are_refused() {
    for arguments in [
        &["key", "--hash", "rails-migrate"][..],
        &["key", "--hash", "rails-migrate", "backup"],
        &["key", "--hash", "goose", "42"],
        &["key", "--hash", "goose", "--dbname", "app"],
        &["key", "--dbname", "app", "backup"],
        &["key", "--hash", "rails-migrate", "--dbname", "app", "--sql"],
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

/// "each SQL expression evaluated by the server equals the printed number", for awkward names and databases too.
#[test]
fn the_server_computes_the_same_numbers() {
    let server = Server::shared();
    let database = unique("o'clock schl\u{fc}ssel-\u{9375}");
    server.sql(&format!("CREATE DATABASE \"{database}\""));
    let mut client = server.client_of(&database);
    for name in [
        "backup",
        "deploy",
        r"it's a back\slash",
        "schl\u{fc}ssel-\u{9375}-\u{1f511}",
    ] {
        let table = |more: &[&str]| {
            let asked = key(&["--hash", "all"]).args(more).args(["--", name]);
            asked.output().stdout()
        };
        let (numbers, expressions) = (table(&["--dbname", &database]), table(&["--sql"]));
        for (number, expression) in numbers.lines().zip(expressions.lines()) {
            let (scheme, expression) = expression.split_once(' ').unwrap();
            let number = number.split_once(' ').unwrap().1.trim();
            if is_known(server, scheme) {
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

/// "hashtext/hashtextextended equal the server's"
#[test]
fn functions_of_the_server_are_the_servers() {
    let server = Server::shared();
    for (scheme, function) in [("hashtext", "hashtext('"), ("hashtextextended", "hashtextextended('")] {
        let name = unique("it_is");
        let rest = if scheme == "hashtext" { "')" } else { "', 0)" };
        if is_known(server, scheme) {
            let number = server.value(&format!("SELECT {function}{name}{rest}"));
            let run = server.run(&name).args(["--hash", scheme]);
            let told = run.sh("echo $PGLOCK_KEY $PGLOCK_KEY_ID").output().stdout();
            assert_eq!(told, format!("{name} {number}\n"));
        }
    }
}

/// "an application holding the lock by plain SQL excludes pglock, and the other way round"
#[test]
fn an_application_and_pglock_exclude_each_other() {
    let server = server_with_app(&[]);
    let mut application = server.client_of("app");
    for (n, (scheme, number)) in GOLDEN.into_iter().enumerate() {
        if !is_known(&server, scheme) {
            continue;
        }
        let run = || {
            let run = server.pglock().env("PGDATABASE", "app");
            let run = run.args(["run", "--hash", scheme]);
            match n < FIRST_TOOL {
                true => run.args(["--key", "backup"]),
                false => run,
            }
        };
        assert!(takes(&mut application, number), "{scheme}");
        let output = run().args(["--no-wait", "--", "true"]).output();
        let line = output.code(75).stderr_line();
        assert!(
            line.contains("in database \"app\" is held by user \"postgres\""),
            "{output}"
        );
        assert!(number.starts_with('h') || line.contains(number), "{output}");
        gives_back(&mut application, number);

        let holder = run().holding();
        assert!(!takes(&mut application, number), "{scheme}");
        holder.finish().code(0).silent();
        assert!(takes(&mut application, number), "{scheme}");
        gives_back(&mut application, number);
    }
}

/// The same with the words of Rails and sqlx, in the database where they are: the lock is that of the *current*
/// database, and the job is told which it is.
#[test]
fn the_lock_of_a_migration_is_that_of_its_database() {
    let server = server_with_app(&[]);
    for (scheme, number, other) in [
        ("rails-migrate", "6939591962871035475", "737815420147457505"),
        ("sqlx-migrate", "3469795979745788610", "368907709894077238"),
    ] {
        let run = |database: &str| {
            let run = server.pglock().env("PGDATABASE", database);
            run.args(["run", "--hash", scheme])
        };
        let told = |database| run(database).sh("echo $PGLOCK_KEY $PGLOCK_KEY_ID").output().stdout();
        assert_eq!(told("app"), format!("{scheme} {number}\n"));
        assert_eq!(told("postgres"), format!("{scheme} {other}\n"));
        let holder = run("app").holding();
        let name = "SELECT application_name FROM pg_stat_activity WHERE application_name LIKE 'pglock:%'";
        let name = server.value(name);
        assert!(name.starts_with(&format!("pglock:{scheme} ")), "{name}");
        run("postgres").args(["-n", "true"]).output().code(0);
        run("app").args(["-n", "true"]).output().code(75);
        holder.finish().code(0);
    }
}

/// A key that the server has computed is waited for as any other, shared or not.
#[test]
fn a_computed_key_is_waited_for() {
    let server = Server::shared();
    let name = unique("waited for");
    let call = format!("hashtext('{name}')");
    let mut application = server.client();
    for mode in [&[][..], &["--shared"]] {
        assert!(takes(&mut application, &call));
        let run = server.run(&name).args(["--hash", "hashtext"]).args(mode);
        let mut waiter = run.sh("echo mine; read -r _; exit 0").spawn();
        let waiting = format!(
            "SELECT 1 FROM pg_locks WHERE NOT granted AND objsubid = 1 AND locktype = 'advisory' \
             AND objid = ({call}::bigint & 4294967295)::oid"
        );
        eventually(SOON, "one who waits", || !server.sql(&waiting).is_empty());
        assert!(waiter.lives() && waiter.stdout().is_empty());
        gives_back(&mut application, &call);
        waiter.await_stdout("mine\n");
        assert!(!takes(&mut application, &call));
        waiter.finish().code(0).silent();
    }
}

/// "The client must use the server's current_database(): a pooler's alias may differ from the dbname asked for."
#[test]
fn behind_a_pooler_the_database_is_that_of_the_server() {
    let server = server_with_app(&[]);
    let alias = format!("alias = dbname=app host={} port={}", server.host(), server.port());
    let bouncer = PgBouncer::with(&server, &["pool_mode=transaction", "[databases]", &alias]);
    let run = || {
        let run = bouncer.pglock().env("PGDATABASE", "alias");
        run.args(["run", "--hash", "rails-migrate"])
    };
    let mut application = server.client_of("app");
    assert!(takes(&mut application, "6939591962871035475"));
    let output = run().args(["-n", "true"]).output();
    let line = output.code(75).stderr_line();
    assert!(line.contains("(6939591962871035475) in database \"app\""), "{output}");
    gives_back(&mut application, "6939591962871035475");
    let holder = run().holding();
    assert!(!takes(&mut application, "6939591962871035475"));
    holder.finish().code(0).silent();
    assert!(takes(&mut application, "6939591962871035475"));
}

/// "computed by the server in the same round trip as the first try"
#[test]
fn computing_a_key_costs_no_round_trip() {
    let server = server_with_app(&["log_statement=all"]);
    let statements = |arguments: &[&str]| {
        let before = server.log().len();
        let run = server.pglock().env("PGDATABASE", "app").arg("run");
        run.args(arguments).args(["--", "true"]).output().code(0).silent();
        // The log is written before the answer is sent.
        let log = server.log()[before..].to_owned();
        log.matches("statement:").count()
    };
    let known = statements(&["--key", "backup"]);
    assert!(known > 1);
    assert_eq!(statements(&["--hash", "rails-migrate"]), known);
    assert_eq!(statements(&["--hash", "hashtext", "--key", "backup"]), known);
}

/// A key that the server computes is one of several, has slots and is waited for in line, as any other.
#[test]
fn a_computed_key_goes_with_everything_else() {
    let server = Server::shared();
    let mut application = server.client();
    let (name, pair) = (unique("combined"), format!("77,{}", std::process::id()));
    let hashed = format!("hashtext('{name}')");
    let number = server.value(&format!("SELECT {hashed}"));
    let run = || server.run(&name).args(["--hash", "hashtext"]);
    let told = "echo $PGLOCK_KEY_ID $PGLOCK_SLOT";

    // Several, of which the server computes one: either holder keeps it out, and nothing is left of the other.
    for scope in ["session", "transaction"] {
        let both = || run().args(["--scope", scope, "--key", &pair]);
        for (held, other, words) in [
            (&hashed, &pair, format!("key \"{name}\" ({number}) in ")),
            (&pair, &hashed, format!("key {pair} in ")),
        ] {
            assert!(takes(&mut application, held));
            let output = both().args(["--no-wait", "--", "true"]).output();
            let line = output.code(75).stderr_line();
            assert!(line.starts_with(&words), "{line}");
            assert!(takes(&mut application, other));
            gives_back(&mut application, other);
            let waiter = both().sh(told).spawn();
            gives_back(&mut application, held);
            assert_eq!(waiter.finish().stdout(), format!("{number} {pair}\n"));
        }
        let holder = both().holding();
        assert!(!takes(&mut application, &hashed) && !takes(&mut application, &pair));
        holder.finish().code(0).silent();
    }
    // The same lock under two names is taken, and given back, once.
    let twice = run().args(["--key", &number]).sh(told).output().stdout();
    assert_eq!(twice, format!("{number} {number}\n"));

    // A plain holder has slot 0 of two, and whoever comes takes the other one.
    let slots = || run().args(["--slots", "2"]);
    assert!(takes(&mut application, &hashed));
    assert_eq!(slots().sh(told).output().stdout(), format!("{number} 1\n"));
    let holder = slots().holding();
    let output = slots().args(["--no-wait", "--", "true"]).output();
    let line = output.code(75).stderr_line();
    assert!(
        line.starts_with(&format!("all 2 slots of key \"{name}\" ({number}) in ")),
        "{line}"
    );
    let waiter = slots().sh(told).spawn();
    gives_back(&mut application, &hashed);
    assert_eq!(waiter.finish().stdout(), format!("{number} 0\n"));
    holder.finish().code(0).silent();

    // Those in line wait for a plain holder, each in its turn.
    assert!(takes(&mut application, &hashed));
    let fair = || run().arg("--fair");
    let first = fair().sh("echo first; read -r _; exit 0").spawn();
    let tickets = "SELECT 1 FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory' \
                   AND l.objsubid = 2 AND l.mode = 'ExclusiveLock' AND a.application_name LIKE 'pglock:";
    let in_line = || server.sql(&format!("{tickets}{name}%'")).len();
    eventually(SOON, "a ticket", || in_line() == 1);
    let second = fair().sh("echo second").spawn();
    eventually(SOON, "another", || in_line() == 2);
    gives_back(&mut application, &hashed);
    first.await_stdout("first\n");
    assert!(!takes(&mut application, &hashed) && second.stdout().is_empty());
    first.finish().code(0).silent();
    assert_eq!(second.finish().stdout(), "second\n");
    assert!(takes(&mut application, &hashed));
    gives_back(&mut application, &hashed);
}

/// Whether the application gets the lock, with these arguments of the function.
fn takes(application: &mut Client, arguments: &str) -> bool {
    let sql = format!("SELECT pg_try_advisory_lock({arguments})");
    rows(application, &sql) == [["t"]]
}

fn gives_back(application: &mut Client, arguments: &str) {
    let sql = format!("SELECT pg_advisory_unlock({arguments})");
    assert_eq!(rows(application, &sql), [["t"]]);
}
