//! `pglock list` shows every holder and waiter, and what is known about them.

use crate::support::case::Case;
use crate::support::pgbouncer::PgBouncer;
use crate::support::pglock::{Pglock, Running};
use crate::support::screen::Screen;
use crate::support::server::{Server, number, rows};
use crate::support::wait::{SOON, eventually};
use crate::support::{hostname, unique};
use serde_json::Value;

/// Returns the locks that this `pglock list` shows.
#[track_caller]
fn locks(list: Pglock) -> Vec<Value> {
    let output = list.arg("--json").output();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    value["locks"].as_array().unwrap().clone()
}

fn list(server: &Server) -> Pglock {
    server.pglock().arg("list")
}

/// Returns the locks that `pglock list` shows for a key.
#[track_caller]
fn locks_of(server: &Server, key: &str) -> Vec<Value> {
    locks(list(server).args(["--key", key]))
}

/// Waits until the list of a key has so many entries.
#[track_caller]
fn await_count(server: &Server, key: &str, count: usize) -> Vec<Value> {
    await_list(server, key, |found| found.len() == count)
}

/// Waits until the list of a key satisfies the condition. Between two attempts a waiter is in no queue, and less is
/// known about it.
#[track_caller]
fn await_list(server: &Server, key: &str, is_expected: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let mut found = Vec::new();
    eventually(SOON, &format!("the expected list of {key}"), || {
        found = locks_of(server, key);
        is_expected(&found)
    });
    found
}

fn pid(running: &Running) -> Value {
    running.pid().as_raw().into()
}

fn waiting(server: &Server, key: &str, options: &[&str]) -> Running {
    server.run(key).args(options).sh("echo mine").spawn()
}

/// P72
#[test]
fn holders_and_waiters_are_shown_with_all_that_is_known() {
    let case = Case::new();
    let key = &case.key;
    let tcp = case.run().env("PGHOST", "127.0.0.1").env("PGHOSTADDR", "");
    let holder = tcp.holding();
    let waiter = waiting(case.server, key, &["-s"]);
    let found = await_list(case.server, key, |found| {
        found.len() == 2 && found[1]["mode"].is_string()
    });
    let (held, waits) = (&found[0], &found[1]);
    let backend = |pid: &Value| {
        let tail = format!("%:{pid}");
        let sql = format!("SELECT pid FROM pg_stat_activity WHERE application_name LIKE '{tail}'");
        case.value(&sql).parse::<i32>().unwrap()
    };
    let host = hostname();
    assert_eq!(held["key"], number(key).to_string());
    assert_eq!(held["name"], key.as_str());
    assert_eq!(held["state"], "holding");
    assert_eq!(
        (&held["mode"], &held["scope"]),
        (&"exclusive".into(), &"session".into())
    );
    assert_eq!((&held["slot"], &held["slots"]), (&Value::Null, &Value::Null));
    assert_eq!((&held["host"], &held["pid"]), (&host.as_str().into(), &pid(&holder)));
    assert_eq!(held["backend_pid"], backend(&pid(&holder)));
    assert_eq!((&held["user"], &held["job"]), (&"postgres".into(), &"sh".into()));
    assert_eq!(held["client_address"], "127.0.0.1");
    assert_eq!(held["behind"], Value::Array(vec![]));
    let instance = held["instance"].as_str().expect("the random part");
    assert_eq!(
        held["application_name"],
        format!("pglock:{key} {host}~{instance}:{}", holder.pid())
    );
    assert_eq!((&waits["state"], &waits["mode"]), (&"waiting".into(), &"shared".into()));
    assert_eq!(waits["behind"], Value::Array(vec![held["backend_pid"].clone()]));
    assert_eq!((&waits["pid"], &waits["job"]), (&pid(&waiter), &"sh".into()));
    assert_eq!(waits["client_address"], Value::Null);
    // Times are those of the server's clock.
    let connected = |pid: &Value| {
        let sql = "SELECT to_char(backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')";
        case.value(&format!("{sql} FROM pg_stat_activity WHERE pid = {}", backend(pid)))
    };
    assert_eq!(held["connected_since"], connected(&pid(&holder)));
    assert_eq!(waits["since"], connected(&pid(&waiter)));
    holder.finish().code(0);
    waiter.finish().code(0);
}

/// P73
#[test]
fn the_exit_status_tells_whether_a_key_is_held() {
    let server = Server::shared();
    let (key, other) = (unique("asked"), unique("other"));
    let ask = |key: &str| list(server).args(["--key", key]).output();
    let free = format!("no session holds or waits for key \"{key}\" in database \"postgres\"\n");
    assert_eq!(ask(&key).code(0).stdout(), free);
    let holder = server.run(&key).holding();
    let held = ask(&key);
    let table = String::from_utf8_lossy(&held.code(75).stdout).into_owned();
    assert!(held.stderr.is_empty() && table.starts_with("KEY "), "{table}");
    ask(&other).code(0);
    list(server).output().code(0);
    list(server).args(["--key", &other, "--key", &key]).output().code(75);
    holder.finish().code(0);
    ask(&key).code(0);
}

/// P72: `since` is when the lock was acquired, not when the session started, and heartbeats do not change it.
#[test]
fn since_is_when_the_lock_was_acquired() {
    let case = Case::new();
    let (server, key) = (case.server, &case.key);
    let first = case.holder();
    let second = case
        .run()
        .args(["--heartbeat", "1"])
        .sh("echo ready; read -r _; exit 0")
        .spawn();
    await_count(server, key, 2);
    let begun = locks_of(server, key)[1]["connected_since"].clone();
    // The time is in whole seconds; wait for the next one.
    eventually(SOON, "another second", || {
        server.value("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')") != begun
    });
    first.finish().code(0);
    second.await_stdout("ready\n");
    let at = locks_of(server, key)[0].clone();
    assert_eq!((&at["state"], &at["connected_since"]), (&"holding".into(), &begun));
    let since = at["since"].as_str().unwrap().to_owned();
    assert!(since.as_str() > begun.as_str().unwrap(), "{at}");
    let beats = format!(
        "SELECT query FROM pg_stat_activity WHERE application_name LIKE 'pglock:{key} %' AND query LIKE '/* pglock holds %'"
    );
    let mut seen = Vec::new();
    eventually(SOON, "four heartbeats", || {
        seen.extend(server.sql(&beats));
        seen.dedup();
        seen.len() >= 4
    });
    let second_later = |text: &str| text[text.len() - 3..text.len() - 1].parse::<i32>().unwrap();
    let now = locks_of(server, key)[0]["since"].as_str().unwrap().to_owned();
    // They are read at two times of one round trip, between which the second can change.
    let apart = (second_later(&now) - second_later(&since)).rem_euclid(60);
    assert!([0, 1, 59].contains(&apart), "{since} {now}");
    second.finish().code(0);
}

/// P72: `list` shows which slot each holder has, and the N that each was given.
#[test]
fn slots_are_shown_with_their_number_and_n() {
    let case = Case::new();
    let key = &case.key;
    let slots = |count: &str| case.run().args(["--slots", count]);
    let holders: Vec<Running> = (0..3).map(|_| slots("3").holding()).collect();
    // This one was given another N.
    let odd = slots("4").holding();
    let waiters: Vec<Running> = (0..2).map(|_| slots("3").sh("echo mine").spawn()).collect();
    let found = await_list(case.server, key, |found| {
        found.len() == 6 && found[5]["behind"][0] == found[4]["backend_pid"]
    });
    let held: Vec<_> = found.iter().filter(|lock| lock["state"] == "holding").collect();
    let numbers: Vec<_> = held.iter().map(|lock| lock["slot"].as_i64().unwrap()).collect();
    assert_eq!(numbers, [0, 1, 2, 3]);
    let counts: Vec<_> = held.iter().map(|lock| lock["slots"].as_i64().unwrap()).collect();
    assert_eq!(counts, [3, 3, 3, 4]);
    assert!(found.iter().all(|lock| lock["name"] == key.as_str()), "{found:?}");
    let waits: Vec<_> = found.iter().filter(|lock| lock["state"] == "waiting").collect();
    assert_eq!(waits[0]["slot"], Value::Null);
    assert_eq!(waits[0]["slots"], 3);
    // The first in the queue waits for all holders, the second for the first.
    assert_eq!(waits[0]["behind"].as_array().unwrap().len(), 4);
    assert_eq!(waits[1]["behind"], Value::Array(vec![waits[0]["backend_pid"].clone()]));
    let table = String::from_utf8(list(case.server).args(["--key", key]).output().stdout).unwrap();
    assert!(table.contains(&format!("{key} slot 3/4 ")), "{table}");
    assert!(table.contains(&format!("{key} slots=3 ")), "{table}");
    odd.finish().code(0);
    for running in holders {
        running.finish().stdout();
    }
    for running in waiters {
        running.finish().stdout();
    }
}

/// P72, P35: queued waiters are shown in their order, each behind the one before it, and tickets are not shown as
/// locks.
#[test]
fn a_queue_is_shown_in_its_order() {
    let case = Case::new();
    let database = case.database();
    let here = |pglock: Pglock| pglock.env("PGDATABASE", &database);
    let holder = here(case.run()).holding();
    let mut queue: Vec<Running> = Vec::new();
    let show = || locks(here(list(case.server)));
    for count in 1..=3 {
        queue.push(here(case.run()).args(["--fair", "true"]).spawn());
        eventually(SOON, "one more in the queue", || show().len() == count + 1);
    }
    eventually(SOON, "each behind the one before it", || {
        let found = show();
        let ids: Vec<&Value> = found.iter().map(|lock| &lock["pid"]).collect();
        let expected: Vec<Value> = [&holder].into_iter().chain(&queue).map(pid).collect();
        let in_order = ids == expected.iter().collect::<Vec<_>>();
        in_order
            && found
                .windows(2)
                .all(|two| two[1]["behind"] == Value::Array(vec![two[0]["backend_pid"].clone()]))
    });
    holder.finish().code(0);
    for running in queue {
        running.finish().stdout();
    }
}

/// P72: the name is shown for every scheme, and locks of other clients are shown too.
#[test]
fn keys_are_named_for_every_scheme_and_locks_of_other_clients_are_shown() {
    let server = Server::shared();
    let database = server.database();
    let here = |pglock: Pglock| pglock.env("PGDATABASE", &database);
    let run = |arguments: &[&str]| here(server.pglock().arg("run")).args(arguments).holding();
    let running = [
        run(&["-k", "a,b", "-k", "c"]),
        run(&["--hash", "md5", "-k", "hashed"]),
        run(&["--hash", "hashtext", "-k", "computed"]),
        run(&["--hash", "rails-migrate"]),
        run(&["-k", "-7,8", "-k", "-9"]),
    ];
    let mut psql = server.client_in(&database);
    rows(&mut psql, "SET application_name = 'an old script'");
    rows(&mut psql, "BEGIN; SELECT pg_advisory_xact_lock_shared(4711)");
    let found = locks(here(list(server)));
    let mut names: Vec<String> = found
        .iter()
        .map(|lock| format!("{}={}", lock["key"].as_str().unwrap(), lock["name"]))
        .collect();
    names.sort();
    let value = |sql: &str| rows(&mut server.client_in(&database), sql).concat().concat();
    let rails = server
        .pglock()
        .args(["key", "--hash", "rails-migrate", "--dbname", &database]);
    let md5 = server.pglock().args(["key", "--hash", "md5", "hashed"]);
    let mut expected = vec![
        format!("{}=\"a,b\"", number("a,b")),
        format!("{}=\"c\"", number("c")),
        format!("{}=\"hashed\"", md5.output().code(0).stdout().trim()),
        format!("{}=\"computed\"", value("SELECT hashtext('computed')")),
        format!("{}=\"rails-migrate\"", rails.output().code(0).stdout().trim()),
        "-7,8=\"-7,8\"".into(),
        "-9=\"-9\"".into(),
        "4711=null".into(),
    ];
    expected.sort();
    assert_eq!(names, expected);
    let other = found.iter().find(|lock| lock["key"] == "4711").unwrap();
    assert_eq!((&other["mode"], &other["host"]), (&"shared".into(), &Value::Null));
    assert_eq!((&other["scope"], &other["since"]), (&Value::Null, &Value::Null));
    assert!(other["connected_since"].is_string(), "{other}");
    // `list` resolves a key as `run` does.
    let computed = here(list(server))
        .args(["--hash", "hashtext", "-k", "computed"])
        .output();
    assert!(String::from_utf8_lossy(&computed.code(75).stdout).contains("computed"));
    here(list(server)).args(["--hash", "rails-migrate"]).output().code(75);
    here(list(server)).args(["-k", "hashed"]).output().code(0);
    for running in running {
        running.finish().stdout();
    }
}

/// P74
#[test]
fn what_a_role_may_not_see_is_stated_once() {
    let (case, role) = (Case::new(), unique("role"));
    case.sql(&format!("CREATE ROLE {role} LOGIN"));
    let holder = case.holder();
    let conflict = case.run().arg("--no-wait").args(["-E", "0", "-q", "true"]);
    conflict.output().code(0).silent();
    let look = || {
        let list = list(case.server).env("PGUSER", &role).env("PGDATABASE", "postgres");
        list.args(["--key", &case.key, "--json"]).output()
    };
    let partial = look();
    let text = String::from_utf8_lossy(&partial.stderr);
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(
        text.contains(&format!("GRANT pg_read_all_stats TO \"{role}\"")),
        "{text}"
    );
    let value: Value = serde_json::from_slice(&partial.code(75).stdout).unwrap();
    assert_eq!(value["complete"], false);
    let held = &value["locks"][0];
    assert_eq!(
        (&held["name"], &held["pid"]),
        (&case.key.as_str().into(), &pid(&holder))
    );
    assert_eq!((&held["since"], &held["job"]), (&Value::Null, &Value::Null));
    case.sql(&format!("GRANT pg_read_all_stats TO {role}"));
    let whole = look();
    assert!(whole.code(75).stderr.is_empty());
    let value: Value = serde_json::from_slice(&whole.stdout).unwrap();
    assert_eq!(
        (&value["complete"], &value["locks"][0]["job"]),
        (&true.into(), &"sh".into())
    );
    holder.finish().code(0);
}

/// P72: waiters that poll through a pooler are shown, and no longer when they have gone.
#[test]
fn polling_waiters_are_shown() {
    let case = Case::new();
    let key = &case.key;
    let bouncer = PgBouncer::with(case.server, &["pool_mode=transaction"]);
    let holder = bouncer.run(key).holding();
    let waiters: Vec<Running> = (0..6).map(|_| bouncer.run(key).sh("echo mine").spawn()).collect();
    let found = await_count(case.server, key, 7);
    let held = &found[0];
    assert_eq!((&held["state"], &held["pid"]), (&"holding".into(), &pid(&holder)));
    assert_eq!((&held["scope"], &held["job"]), (&"transaction".into(), &"sh".into()));
    assert!(held["since"].is_string(), "{held}");
    let mut seen: Vec<i64> = found[1..].iter().map(|lock| lock["pid"].as_i64().unwrap()).collect();
    let mut expected: Vec<i64> = waiters.iter().map(|running| running.pid().as_raw().into()).collect();
    seen.sort();
    expected.sort();
    assert_eq!(seen, expected);
    for waits in &found[1..] {
        assert_eq!(
            (&waits["state"], &waits["name"]),
            (&"waiting".into(), &key.as_str().into())
        );
        assert_eq!(waits["behind"], Value::Array(vec![held["backend_pid"].clone()]));
    }
    holder.finish().code(0);
    for running in waiters {
        running.finish().stdout();
    }
    // The sessions of the pool keep their names, but none waits.
    assert_eq!(await_count(case.server, key, 0), [Value::Null; 0]);
}

/// P82: only the program is named, since its arguments may contain a secret.
#[test]
fn the_arguments_of_the_job_are_not_shown() {
    let case = Case::new();
    let key = &case.key;
    let holder = case
        .run()
        .args(["--heartbeat", "1"])
        .args(["--", "sh", "-c", "echo ready; read -r _", "s3cret"]);
    let holder = holder.spawn();
    holder.await_stdout("ready\n");
    let queries = format!("SELECT query FROM pg_stat_activity WHERE application_name LIKE 'pglock:{key} %'");
    let first = case.value(&queries);
    assert!(first.contains("job sh */"), "{first}");
    eventually(SOON, "a heartbeat", || case.value(&queries).contains(" holds "));
    assert!(!case.value(&queries).contains("s3cret"));
    drop(holder);
}

/// `--watch` repeats until the reader closes the pipe: a table each time or, with `--json`, an object per line.
#[test]
fn watch_repeats_until_the_reader_closes_the_pipe() {
    let case = Case::new();
    let watch = list(case.server).args(["--watch", "--json", "--key", &case.key]);
    let watch = watch.spawn();
    let free = "\"locks\":[]";
    watch.await_stdout(free);
    let holder = case.holder();
    watch.await_stdout("\"state\":\"holding\"");
    let lines: Vec<String> = watch.stdout().lines().map(str::to_owned).collect();
    assert!(lines.len() >= 2, "{lines:?}");
    for line in &lines {
        assert!(serde_json::from_str::<Value>(line).is_ok(), "{line}");
    }
    let head = case.program("sh").args([
        "-c",
        &format!("'{}' list --watch | head -n 2", env!("CARGO_BIN_EXE_pglock")),
    ]);
    let text = head.output().code(0).stdout();
    assert!(text.starts_with("pglock list, database \"postgres\", 20"), "{text}");
    watch.signal(nix::sys::signal::Signal::SIGINT);
    watch.finish().signal(nix::sys::signal::Signal::SIGINT);
    drop(holder);
}

/// P72, on screens of 80, 40 and 200 columns.
#[test]
fn the_table_fits_the_screen() {
    let server = Server::shared();
    let key = unique("a_long_name_of_a_key");
    let holder = server.run(&key).holding();
    let waiter = waiting(server, &key, &[]);
    await_count(server, &key, 2);
    let columns = |screen: &[String]| screen[0].split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let show = |size| {
        let screen = Screen::new(server, size, &[]);
        // A waiter that queues again is in no queue for a moment.
        let mut tables = (1..=10).map(|number| {
            let end = format!("end {number}");
            screen.line(&format!("clear; pglock list -k {key}; echo {end}"));
            screen.expect("table", |lines| {
                lines.len() > 2 && lines[lines.len() - 2..] == [end.as_str(), "$"]
            })
        });
        tables.find(|lines| lines.len() == 5).expect("a table with the waiter")
    };
    let common = show((80, 24));
    assert_eq!(
        columns(&common),
        ["KEY", "STATE", "FOR", "WHO", "BACKEND", "BEHIND", "JOB"]
    );
    assert!(common[1].starts_with(&format!("{key}  holding  ")), "{common:?}");
    assert!(common[2].starts_with(&format!("{key}  waiting  ")), "{common:?}");
    assert!(common[2].contains(&format!(":{}  ", waiter.pid())), "{common:?}");
    let narrow = show((40, 10));
    assert_eq!(columns(&narrow), ["KEY", "STATE", "FOR", "WHO"]);
    assert!(narrow[1].contains("~  holding  "), "{narrow:?}");
    let wide = show((200, 24));
    assert_eq!(columns(&wide).len(), 12, "{wide:?}");
    holder.finish().code(0);
    waiter.finish().code(0);
}

/// `--watch` on a terminal shows one screen.
#[test]
fn watch_fits_one_screen() {
    let server = Server::shared();
    let database = server.database();
    let screen = Screen::new(server, (40, 10), &[("PGDATABASE", &database)]);
    screen.line("pglock list --watch");
    let nothing = "no locks are held or waited for in data~";
    screen.expect("empty list", |lines| lines.iter().any(|line| line == nothing));
    let here = |key: &str| server.run(key).env("PGDATABASE", &database);
    let holders: Vec<Running> = (0..12).map(|n| here(&format!("key {n}")).holding()).collect();
    let full = screen.expect("full screen", |lines| {
        lines.last().is_some_and(|line| line.ends_with(" more)"))
    });
    assert_eq!(full.len(), 10);
    assert!(full[0].starts_with("pglock list, database "), "{full:?}");
    assert_eq!(full[9], "(5 more)");
    for running in holders {
        running.finish().stdout();
    }
    screen.expect("empty list again", |lines| {
        lines.len() == 2 && lines.iter().any(|line| line == nothing)
    });
    screen.key("C-c");
    screen.expect("prompt", |lines| lines.last().is_some_and(|line| line.ends_with('$')));
}

/// P72: pglock reads comments in queries and application names, in which other clients can write anything: none of it
/// makes `list` fail.
#[test]
fn odd_comments_and_names_of_other_clients_do_no_harm() {
    let case = Case::new();
    let pglock = case.holder();
    let long = "9".repeat(400);
    let odd = [
        "1.2.3",
        ".",
        "99999999999999999999.000",
        "1e9",
        "-1.000",
        &long,
        "0.000' OR 'x",
    ];
    let clients: Vec<_> = odd
        .iter()
        .enumerate()
        .map(|(n, odd)| {
            let mut client = case.client();
            let name = format!("pglock:{} slots=65535 h:1", "a,".repeat(18));
            rows(&mut client, &format!("SET application_name = '{name}'"));
            for state in ["holds", "waits", "asks"] {
                let lock = format!("SELECT pg_advisory_lock({}), '{state}'", n + 770_000);
                rows(
                    &mut client,
                    &format!("/* pglock {state} {} job x */ {lock}", odd.replace('\'', "")),
                );
            }
            client
        })
        .collect();
    let held = locks(list(case.server));
    assert!(held.len() > clients.len(), "{held:?}");
    let pid = self::pid(&pglock);
    assert!(held.iter().any(|lock| lock["pid"] == pid), "{held:?}");
    let conflict = case.run().args(["-n", "true"]).output();
    assert!(conflict.code(75).stderr_line().contains(" is held by "), "{conflict}");
    list(case.server).args(["--key", &case.key]).output().code(75);
    drop(clients);
    pglock.finish().code(0);
}
