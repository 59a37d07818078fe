//! What one writes in an afternoon with the client library that pglock has: connect, try, name the holder or run the
//! job, release, exit as the job did. It supervises nothing and proves nothing.
//!
//! `naive CONNECTION KEY JOB...`; with `QUIET` in the environment it does not look for the holder.
//!
//! With `PGLOCK_FIRST_QUERY`, it is the prototype of a pglock that has nothing else in it: it sends this query, pglock's
//! own, in place of its own, waits in the queue if the key is held (but not with `NO_WAIT`), and starts the job if the
//! lock is proven. In the query and the connection string, `KEY` stands for the key.
#![expect(clippy::unwrap_used, reason = "it has no errors to report")]
#![expect(clippy::print_stderr, reason = "it names the holder")]

use postgres::{Client, NoTls, SimpleQueryMessage};
use std::process::{Command, exit};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [connection, key, job @ ..] = arguments.as_slice() else {
        exit(64);
    };
    let mut client = Client::connect(&connection.replace("KEY", key), NoTls).unwrap();
    let first_query = std::env::var("PGLOCK_FIRST_QUERY").ok();
    let number: i64 = key.parse().unwrap();
    let is_acquired = match &first_query {
        Some(query) => acquire_proven(&mut client, &query.replace("KEY", key), number),
        None => {
            let row = client.query_one("SELECT pg_try_advisory_lock($1)", &[&number]);
            row.unwrap().get(0)
        }
    };
    if !is_acquired {
        if std::env::var_os("QUIET").is_none() {
            eprintln!("held by {}", holder(&mut client, number));
        }
        exit(75);
    }
    let status = Command::new(&job[0]).args(&job[1..]).status().unwrap();
    if first_query.is_some() {
        client
            .simple_query(&format!("SELECT pg_advisory_unlock({number})"))
            .unwrap();
    } else {
        client.query_one("SELECT pg_advisory_unlock($1)", &[&number]).unwrap();
    }
    exit(status.code().unwrap_or(1));
}

/// Sends pglock's first query. Returns whether the lock is acquired.
fn acquire_proven(client: &mut Client, query: &str, key: i64) -> bool {
    let reply = client.simple_query(query).unwrap();
    let is_proven = reply
        .iter()
        .any(|message| matches!(message, SimpleQueryMessage::Row(row) if row.columns()[0].name() == "proven"));
    if !is_proven && std::env::var_os("NO_WAIT").is_none() {
        client.simple_query(&format!("SELECT pg_advisory_lock({key})")).unwrap();
        return true;
    }
    is_proven
}

fn holder(client: &mut Client, key: i64) -> String {
    let sql = "SELECT a.application_name, a.pid FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid \
               WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 \
               AND l.classid::bigint = ($1::bigint >> 32) & 4294967295 AND l.objid::bigint = $1::bigint & 4294967295";
    match client.query_opt(sql, &[&key]).unwrap() {
        Some(row) => format!("{} (backend {})", row.get::<_, String>(0), row.get::<_, i32>(1)),
        None => "nobody any more".into(),
    }
}
