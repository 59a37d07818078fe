//! What one writes in an afternoon with the client library that pglock has: connect, try, name the holder or run the
//! job, release, exit as the job did. It supervises nothing and proves nothing.
//!
//! `naive CONNECTION KEY JOB...`; with `QUIET` in the environment it does not look for the holder.
#![expect(clippy::unwrap_used, reason = "it has no errors to report")]
#![expect(clippy::print_stderr, reason = "it names the holder")]

use postgres::{Client, NoTls};
use std::process::{Command, exit};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [connection, key, job @ ..] = arguments.as_slice() else {
        exit(64);
    };
    let key: i64 = key.parse().unwrap();
    let mut client = Client::connect(connection, NoTls).unwrap();
    let row = client.query_one("SELECT pg_try_advisory_lock($1)", &[&key]).unwrap();
    if !row.get::<_, bool>(0) {
        if std::env::var_os("QUIET").is_none() {
            eprintln!("held by {}", holder(&mut client, key));
        }
        exit(75);
    }
    let status = Command::new(&job[0]).args(&job[1..]).status().unwrap();
    client.query_one("SELECT pg_advisory_unlock($1)", &[&key]).unwrap();
    exit(status.code().unwrap_or(1));
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
