//! P103: `pglock init` creates the run table.

use crate::support::pgbouncer::PgBouncer;
use crate::support::pglock::{Pglock, Running};
use crate::support::run_table::RunTable;
use crate::support::server::{Server, rows};
use crate::support::unique;
use crate::support::wait::{SOON, eventually};

/// Returns everything that the catalogs say about the tables of a database and about the privileges on its schemas.
fn catalog(table: &RunTable) -> Vec<Vec<String>> {
    let schemas = "nspname NOT LIKE 'pg\\_%' AND nspname <> 'information_schema'";
    let relations = table.sql(&format!(
        "SELECT nspname, relname, relkind, relacl, obj_description(c.oid, 'pg_class') \
         FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE {schemas} ORDER BY 1, 2"
    ));
    let columns = table.sql(&format!(
        "SELECT nspname, relname, attname, format_type(atttypid, atttypmod), attnotnull, attidentity, attacl \
         FROM pg_attribute JOIN pg_class c ON c.oid = attrelid JOIN pg_namespace n ON n.oid = relnamespace \
         WHERE {schemas} AND relkind = 'r' AND attnum > 0 ORDER BY 1, 2, attnum"
    ));
    let indexes = table.sql("SELECT indexdef FROM pg_indexes WHERE schemaname <> 'pg_catalog' ORDER BY 1");
    let privileges = table.sql(&format!(
        "SELECT nspname, nspacl FROM pg_namespace WHERE {schemas} ORDER BY 1"
    ));
    [relations, columns, indexes, privileges].concat()
}

/// Makes a role that can log in.
fn role(table: &RunTable) -> String {
    let role = unique("Role");
    table.sql(&format!("CREATE ROLE \"{role}\" LOGIN"));
    role
}

const COMMENT: &str = "SELECT obj_description('public.pglock_run'::regclass, 'pg_class')";

#[test]
fn init_can_be_repeated_and_keeps_the_setting() {
    let table = RunTable::without_table();
    let role = role(&table);
    assert_eq!(
        table.init(&[]).output().stdout(),
        "created table public.pglock_run; it keeps runs for 90d\n"
    );
    assert_eq!(
        table.value(COMMENT),
        "Runs recorded by pglock: version 1, kept for 7776000 s"
    );
    let created = catalog(&table);
    let already_exists = "table public.pglock_run already exists; it keeps runs for";
    assert_eq!(table.init(&[]).output().stdout(), format!("{already_exists} 90d\n"));
    assert_eq!(catalog(&table), created);
    assert_eq!(
        table.init(&["--keep", "36h", "--grant", &role]).output().stdout(),
        format!("{already_exists} 1d12h; granted to {role}\n")
    );
    assert_eq!(table.init(&[]).output().stdout(), format!("{already_exists} 1d12h\n"));
    assert_eq!(
        table.value(COMMENT),
        "Runs recorded by pglock: version 1, kept for 129600 s"
    );
    // What is missing is created again, and a later version's mark and columns stay.
    table.sql("DROP INDEX pglock_run_ends_idx");
    table.sql("ALTER TABLE pglock_run ADD later text");
    table.sql("COMMENT ON TABLE pglock_run IS 'Runs recorded by pglock: version 2, kept for 60 s'");
    assert_eq!(
        table.init(&["--keep", "2m"]).output().stdout(),
        format!("{already_exists} 2m\n")
    );
    assert_eq!(
        table.value(COMMENT),
        "Runs recorded by pglock: version 2, kept for 120 s"
    );
    assert_eq!(
        table.value("SELECT count(*) FROM pg_indexes WHERE tablename = 'pglock_run'"),
        "4"
    );
}

#[test]
fn several_inits_at_once_succeed() {
    let table = RunTable::without_table();
    let role = role(&table);
    let inits = [(); 8].map(|()| table.init(&["--keep", "1h", "--grant", &role]).spawn());
    let outputs = inits.map(|init| init.finish().stdout());
    let created = outputs.iter().filter(|text| text.starts_with("created table "));
    assert_eq!(created.count(), 1, "{outputs:?}");
}

/// The printed SQL has the same effect, whoever runs it.
#[test]
fn the_printed_sql_makes_what_init_makes() {
    for arguments in [
        &[][..],
        &["--keep", "1h", "--grant", "ROLE", "--grant", "public"],
        &["--table", "O'p\"s.a.B -- c", "--grant", "ROLE"],
        &["--table", "O'p\"s.back\\slash"],
    ] {
        let (made, printed) = (RunTable::without_table(), RunTable::without_table());
        let role = role(&made);
        let arguments: Vec<&str> = arguments
            .iter()
            .map(|argument| if *argument == "ROLE" { &role } else { *argument })
            .collect();
        for table in [&made, &printed] {
            table.sql("CREATE SCHEMA \"O'p\"\"s\"");
        }
        made.init(&arguments).output().stdout();
        let alone = Pglock::alone().args(["init", "--print"]).args(&arguments);
        let sql = alone.output().stdout();
        assert!(sql.starts_with("-- ") && sql.ends_with(";\n"), "{sql}");
        let psql = || {
            let psql = printed.server.program("psql").env("PGDATABASE", &printed.database);
            psql.args(["-X", "-q", "-1", "-v", "ON_ERROR_STOP=1"])
                .output_with(sql.as_bytes())
        };
        psql().stdout();
        assert_eq!(catalog(&printed), catalog(&made), "{sql}");
        // The notices say what is there already.
        psql().code(0);
        printed.sql(&sql);
        assert_eq!(catalog(&printed), catalog(&made));
        assert!(printed.init(&arguments).output().stdout().starts_with("table "));
    }
}

#[test]
fn the_grants_are_what_a_lock_role_needs_and_no_more() {
    let table = RunTable::without_table();
    let role = role(&table);
    table.sql("CREATE SCHEMA ops");
    let arguments = ["--table", "ops.runs", "--grant", &role];
    table.init(&arguments).output().stdout();
    let mut client = table
        .server
        .config()
        .user(&role)
        .dbname(&table.database)
        .connect(postgres::NoTls)
        .unwrap();
    for statement in [
        "INSERT INTO ops.runs (key, number, mode, host, pid, job, waited, started, outcome) \
         VALUES ('k', '1', 'exclusive', 'h', 1, 'true', 0, now(), 'running')",
        "SELECT * FROM ops.runs",
        "UPDATE ops.runs SET outcome = 'ok', ended = now()",
        "DELETE FROM ops.runs",
    ] {
        client
            .batch_execute(statement)
            .unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    }
    for statement in [
        "TRUNCATE ops.runs",
        "CREATE TABLE ops.other ()",
        "ALTER TABLE ops.runs ADD other text",
        "CREATE INDEX ON ops.runs (host)",
        "CREATE TABLE ops.other (id bigint REFERENCES ops.runs)",
    ] {
        let error = client.batch_execute(statement).unwrap_err();
        assert_eq!(error.code().unwrap().code(), "42501", "{statement}: {error}");
    }
    // Such a role finds everything done.
    let again = table.init(&arguments).env("PGUSER", &role);
    let expected = format!("table ops.runs already exists; it keeps runs for 90d; granted to {role}\n");
    assert_eq!(again.output().stdout(), expected);
}

/// Nothing else is touched if something cannot be done.
#[test]
fn a_refused_init_changes_nothing() {
    let table = RunTable::without_table();
    let (owner, stranger) = (role(&table), role(&table));
    table.sql(&format!(
        "CREATE SCHEMA ops; GRANT CREATE, USAGE ON SCHEMA ops TO \"{owner}\"; REVOKE CREATE ON SCHEMA public FROM PUBLIC"
    ));
    let before = catalog(&table);
    let refused = |arguments: &[&str], user: &str, code: i32, words: &str| {
        let init = table.init(arguments).env("PGUSER", user);
        let line = init.output().code(code).stderr_line();
        assert!(line.contains(words), "{line}");
        assert_eq!(catalog(&table), before);
    };
    refused(
        &[],
        &stranger,
        77,
        "permission denied for schema public; run this as the owner",
    );
    refused(
        &["--table", "ops.runs", "--grant", "postgres", "--grant", "no\"body"],
        "postgres",
        78,
        "role \"no\"body\" does not exist",
    );
    refused(
        &["--table", "Ops.runs"],
        "postgres",
        78,
        "schema \"Ops\" does not exist; create it with: CREATE SCHEMA \"Ops\"",
    );
    // The owner of a table may not grant USAGE on the schema of another role, and the server only warns.
    let words = format!("the privileges could not be granted to {stranger}; run this as the owner");
    refused(&["--table", "ops.runs", "--grant", &stranger], &owner, 77, &words);
    refused(&["--keep", "0.5"], "postgres", 64, "--keep must be at least 1s");
    refused(&["--table", "a."], "postgres", 64, "expected a table");
    refused(&["--grant", ""], "postgres", 64, "expected the name of a role");
    table
        .init(&["--table", "ops.runs"])
        .env("PGUSER", &owner)
        .output()
        .stdout();
    let line = table
        .init(&["--table", "ops.runs", "--keep", "1h"])
        .env("PGUSER", &stranger);
    let line = line.output().code(77).stderr_line();
    assert!(line.contains("run this as the owner"), "{line}");
}

#[test]
fn a_table_that_is_no_run_table_is_refused() {
    let cases = [
        ("ALTER TABLE pglock_run DROP note", "it has no column note"),
        (
            "ALTER TABLE pglock_run ALTER started TYPE timestamp",
            "its column started has the type timestamp without time zone instead of timestamp with time zone",
        ),
        (
            "ALTER TABLE pglock_run RENAME TO old; CREATE VIEW pglock_run AS SELECT * FROM old",
            "it is a view",
        ),
        (
            "ALTER INDEX pglock_run_runs_idx RENAME TO x; CREATE TABLE pglock_run_runs_idx ()",
            "pglock_run_runs_idx is not its index but another relation, which must be renamed",
        ),
    ];
    for (change, words) in cases {
        let table = RunTable::new();
        table.client().batch_execute(change).unwrap();
        let before = catalog(&table);
        let line = table.init(&["--keep", "1h"]).output().code(78).stderr_line();
        let expected = format!(
            "table public.pglock_run differs from what pglock init creates: {words}; make it match the output of \
             pglock init --print, or choose another with --table"
        );
        assert_eq!(line, expected);
        assert_eq!(catalog(&table), before, "{change}");
    }
}

/// Names are taken literally, and the indexes of two tables never collide.
#[test]
fn names_are_taken_literally() {
    let table = RunTable::without_table();
    let long = "x".repeat(63);
    table.sql(&format!("CREATE SCHEMA \"{long}\"; CREATE SCHEMA \"Ops\""));
    let similar = format!("{}y", "x".repeat(62));
    let names = [
        "Runs".to_owned(),
        "runs".to_owned(),
        "runs_runs".to_owned(),
        "a.b\"c".replace("a.", "Ops."),
        "Ops.dots.in.the name; --".to_owned(),
        "schlüssel'鍵".to_owned(),
        format!("{long}.{long}"),
        format!("{long}.{similar}"),
    ];
    for name in &names {
        let created = table.init(&["--table", name]).output().stdout();
        let shown = if name.contains('.') {
            name.clone()
        } else {
            format!("public.{name}")
        };
        assert_eq!(created, format!("created table {shown}; it keeps runs for 90d\n"));
        let again = table.pglock().arg("init").env("PGLOCK_TABLE", name).output().stdout();
        assert_eq!(again, format!("table {shown} already exists; it keeps runs for 90d\n"));
        let (schema, relation) = shown.split_once('.').unwrap();
        let count = format!(
            "SELECT count(*) FROM pg_indexes WHERE schemaname = '{schema}' AND tablename = '{}'",
            relation.replace('\'', "''")
        );
        assert_eq!(table.value(&count), "4", "{name}");
    }
}

#[test]
fn a_pooler_is_no_obstacle() {
    let table = RunTable::without_table();
    let role = role(&table);
    for mode in ["transaction", "session"] {
        let bouncer = PgBouncer::with(table.server, &[&format!("pool_mode={mode}"), "default_pool_size=2"]);
        let init = |arguments: &[&str]| {
            let pglock = bouncer.pglock().env("PGDATABASE", &table.database);
            pglock.args(["init", "--table", mode]).args(arguments)
        };
        let inits: Vec<Running> = (0..4).map(|_| init(&["--grant", &role]).spawn()).collect();
        for running in inits {
            running.finish().stdout();
        }
        assert!(init(&[]).output().stdout().starts_with("table public."));
        // A failure leaves no transaction in the pool.
        init(&["--grant", "nobody at all"]).output().code(78).stderr_line();
        assert!(init(&[]).output().stdout().starts_with("table public."));
    }
    let open = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state <> 'idle' \
                AND pid <> pg_backend_pid()";
    assert_eq!(table.value(open), "0");
}

/// On a standby nothing can be created.
#[test]
fn a_standby_is_refused() {
    let primary = Server::start();
    let standby = Server::standby_of(&primary);
    let line = standby.pglock().arg("init").output().code(78).stderr_line();
    assert!(line.starts_with("cannot set up table public.pglock_run: "), "{line}");
    assert!(line.contains("during recovery"), "{line}");
}

/// P103: however long the server takes, as it does to add an index to a large table or while the table is in use.
#[test]
fn init_waits_for_a_table_that_is_in_use() {
    let table = RunTable::new();
    table.sql("DROP INDEX pglock_run_ends_idx");
    let mut writer = table.client();
    rows(&mut writer, "BEGIN; LOCK TABLE pglock_run IN ROW EXCLUSIVE MODE");
    let init = table.init(&[]).env("PGLOCK_HEARTBEAT", "0.3").spawn();
    let waits = "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'pglock init %' \
                 AND datname = current_database() AND wait_event_type = 'Lock' \
                 AND query_start < clock_timestamp() - interval '1 s'";
    eventually(SOON, "init waits for the table", || !table.sql(waits).is_empty());
    rows(&mut writer, "COMMIT");
    let output = init.finish().stdout();
    assert!(
        output.starts_with("table public.pglock_run already exists; "),
        "{output}"
    );
    assert_eq!(
        table
            .sql("SELECT 1 FROM pg_class WHERE relname = 'pglock_run_ends_idx'")
            .len(),
        1
    );
}
