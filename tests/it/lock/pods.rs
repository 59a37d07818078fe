//! Pods of one name: each has process ID 1 and a host name whose end was cut off, which is where pods differ.

use crate::support::network::can_unshare;
use crate::support::pgbouncer::PgBouncer;
use crate::support::pglock::{Pglock, Running};
use crate::support::server::Server;
use crate::support::unique;
use crate::support::wait::{SOON, eventually, until};
use serde_json::Value;
use std::collections::BTreeSet;

/// Longer than what a session's name has room for.
const POD: &str = "billing-reports-nightly-28391340";

const PGLOCK: &str = env!("CARGO_BIN_EXE_pglock");

/// Starts a program in an environment that leads to the server.
type Road<'a> = &'a dyn Fn(&str) -> Pglock;

/// Returns a pglock with this job that finds itself on a host of this name, with process ID 1.
fn in_pod(road: Road, host: &str, key: &str, job: &str) -> Pglock {
    let script = "hostname \"$0\" && exec \"$@\"";
    let namespaces = ["--uts", "--pid", "--fork", "--kill-child", "--mount-proc"];
    road("unshare")
        .args(namespaces)
        .args(["sh", "-c", script, host, PGLOCK, "run", "--key", key])
        .args(["--heartbeat", "1", "--", "sh", "-c", job])
}

/// Returns the locks of the key that are held or waited for.
fn locks(road: Road, key: &str) -> Vec<Value> {
    let list = road(PGLOCK);
    let output = list.args(["list", "--json", "--key", key]).output();
    let mut list: Value = serde_json::from_slice(&output.stdout).unwrap();
    list["locks"].as_array_mut().map(std::mem::take).unwrap()
}

/// P71, P72, P75: a holder and two waiters, all called alike, and each is seen; the holder is the one that is evicted.
#[track_caller]
fn check(road: Road) {
    if !can_unshare("--uts") || !can_unshare("--pid") {
        return;
    }
    // The names of the sessions have no room for all of it.
    let key = format!("{}-with-a-long-name", unique("p"));
    let host = |number: u32| format!("{POD}-{number}");
    let holder = in_pod(road, &host(1), &key, "echo ready; read -r _; exit 0").spawn();
    holder.await_stdout("ready\n");
    let waiters: Vec<Running> = [2, 3]
        .map(|number| in_pod(road, &host(number), &key, "exit 0").spawn())
        .into();
    let mut found = Vec::new();
    // On a busy machine the tries are slow, and so rare that a list may miss one.
    let are_seen = until(SOON * 3, || {
        found = locks(road, &key);
        found.len() == 3
    });
    let reports: Vec<String> = waiters.iter().map(Running::stderr).collect();
    assert!(are_seen, "not a holder and two waiters: {found:?} {reports:?}");
    let hosts: BTreeSet<&str> = found.iter().map(|lock| lock["host"].as_str().unwrap()).collect();
    let expected = [1, 2, 3].map(|number| format!("billing-reports..htly-28391340-{number}"));
    assert_eq!(hosts, expected.iter().map(|host| &host[..]).collect());
    let instances: BTreeSet<&str> = found.iter().map(|lock| lock["instance"].as_str().unwrap()).collect();
    assert_eq!(instances.len(), 3);
    assert!(
        found
            .iter()
            .all(|lock| lock["pid"] == 1 && lock["name"] == key.as_str())
    );
    assert_eq!(
        (&found[0]["state"], found[0]["host"].as_str()),
        (&"holding".into(), Some(&expected[0][..]))
    );
    let evict = road(PGLOCK);
    evict.args(["evict", "--yes", "--key", &key]).output().code(0);
    holder.finish().code(74);
    for waiter in waiters {
        waiter.finish().code(0);
    }
}

#[test]
fn pods_are_told_apart_directly() {
    check(&|program| Server::shared().program(program));
}

/// The list goes through the same pool.
#[test]
fn pods_are_told_apart_through_a_pool() {
    let bouncer = PgBouncer::with(Server::shared(), &["pool_mode=transaction"]);
    let port = bouncer.port().to_string();
    check(&|program| Server::shared().program(program).env("PGPORT", &port));
}

#[test]
fn pods_are_told_apart_through_a_pool_that_appends_the_address() {
    let settings = ["pool_mode=transaction", "application_name_add_host=1"];
    let bouncer = PgBouncer::with(Server::shared(), &settings);
    let port = bouncer.port().to_string();
    check(&|program| Server::shared().program(program).env("PGPORT", &port));
}

/// P71: where even the whole names are equal, the random part tells them apart in the table too.
#[test]
fn pods_of_the_same_name_are_told_apart_in_the_table() {
    if !can_unshare("--uts") || !can_unshare("--pid") {
        return;
    }
    let (road, key): (Road, String) = (&|program| Server::shared().program(program), unique("pods"));
    let holder = in_pod(road, "web", &key, "echo ready; read -r _; exit 0").spawn();
    holder.await_stdout("ready\n");
    let list = || {
        let output = road(PGLOCK).args(["list", "--key", &key]).output();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(list().contains(" web:1 "), "{}", list());
    let waiter = in_pod(road, "web", &key, "exit 0").spawn();
    let mut instances = Vec::new();
    eventually(SOON, "both in the list", || {
        instances = locks(road, &key)
            .iter()
            .map(|lock| lock["instance"].as_str().unwrap().to_owned())
            .collect();
        instances.len() == 2
    });
    let table = list();
    for instance in instances {
        assert!(table.contains(&format!(" web~{instance}:1 ")), "{table}");
    }
    holder.finish().code(0);
    waiter.finish().code(0);
}
