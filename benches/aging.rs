//! What waiting behind a pooler costs by how long it has lasted: their tries become rarer, and a free lock is found
//! later.
//!
//! The holders are direct, so that all of the pool of five is the waiters'. For some numbers of waiters, and after some
//! time: the CPU time that they and the servers use, and how long a hand-off takes, from the end of a job to the
//! beginning of the next. This takes half an hour, most of which all of them sleep.

use crate::Programs;
use crate::growth::{end, median};
use crate::processes::cpu_time;
use crate::support::command::command;
use crate::support::pgbouncer::PgBouncer;
use crate::support::server::{SUPERUSER, Server};
use crate::support::wait::{SOON, eventually};
use std::fmt::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long CPU time is counted.
const SAMPLE: Duration = Duration::from_secs(20);

/// What is measured: so many keys, each with so many waiters, who have waited for so many seconds. The last of these is
/// followed by the hand-offs, [`SAMPLE`] later.
const PLANS: [(usize, usize, &[u64]); 8] = [
    (12, 1, &[10]),
    (12, 1, &[60]),
    (3, 10, &[10]),
    (3, 10, &[60]),
    (1, 100, &[10]),
    (1, 100, &[60]),
    (1, 2000, &[10]),
    (1, 2000, &[60, 300, 1200]),
];

/// Returns the table.
pub fn measure(programs: &Programs) -> String {
    let mut text = format!(
        "waiters, through PgBouncer (transaction, a pool of 5)\n{:>6} {:>6} {:>10} {:>14} {:>14} {:>18}\n",
        "keys", "each", "after, s", "pglocks, ms/s", "servers, ms/s", "hand-off, ms"
    );
    let server = Server::start();
    let pooler = PgBouncer::with(&server, &["pool_mode=transaction"]);
    let pools = Pools {
        programs,
        server: &server,
        pooler: &pooler,
    };
    for (keys, each, ages) in PLANS {
        pools.measure(keys, each, ages, &mut text);
        println!("{text}");
    }
    text
}

struct Pools<'a> {
    programs: &'a Programs,
    server: &'a Server,
    pooler: &'a PgBouncer<'a>,
}

impl Pools<'_> {
    fn pglock(&self, port: u16, key: usize, job: &str) -> Command {
        let mut command = command(&self.programs.pglock);
        let dsn =
            format!("host=127.0.0.1 port={port} user={SUPERUSER} dbname=postgres sslmode=disable connect_timeout=60");
        command
            .env("PGLOCK_DSN", dsn)
            .args(["run", "--wait", "1h", "--key", &key.to_string()]);
        command.arg(&self.programs.floor).arg(job);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command
    }

    fn measure(&self, keys: usize, each: usize, ages: &[u64], text: &mut String) {
        let keys: Vec<usize> = (1000..1000 + keys).collect();
        let start = |port, key, job| self.pglock(port, key, job).spawn().unwrap();
        let holders: Vec<Child> = keys.iter().map(|key| start(self.server.port(), *key, "last")).collect();
        for key in &keys {
            self.server.await_locks(&key.to_string(), 1, 0);
        }
        let waiters: Vec<Vec<Child>> = keys
            .iter()
            .map(|key| (0..each).map(|_| start(self.pooler.port(), *key, "stamp")).collect())
            .collect();
        let began = Instant::now();
        let pids: Vec<u32> = waiters.iter().flatten().map(Child::id).collect();
        for (index, age) in ages.iter().enumerate() {
            let left = Duration::from_secs(*age).saturating_sub(began.elapsed());
            std::thread::sleep(left);
            let [own, servers] = self.cpu(&pids);
            let _ = write!(
                text,
                "{:>6} {each:>6} {age:>10} {own:>14.1} {servers:>14.1}",
                keys.len()
            );
            if index + 1 < ages.len() {
                text.push('\n');
                println!("{text}");
            }
        }
        let mut first = Vec::new();
        let mut between = Vec::new();
        for (holder, waiters) in holders.into_iter().zip(waiters) {
            let mut times = vec![end(holder)];
            times.extend(waiters.into_iter().map(end));
            times.sort_by(f64::total_cmp);
            let pauses = times.windows(2).map(|pair| pair[1] - pair[0]);
            first.push(times[1] - times[0]);
            between.extend(pauses);
        }
        let longest = first.iter().copied().fold(0.0, f64::max);
        let _ = writeln!(
            text,
            " first {:.1} (longest {longest:.1}), all {:.1}",
            median(first),
            median(between)
        );
    }

    /// Returns how many milliseconds of CPU a second these processes use, and the server and the pooler.
    fn cpu(&self, pids: &[u32]) -> [f64; 2] {
        let sum = |pids: &[u32]| pids.iter().filter_map(|pid| cpu_time(*pid)).sum::<Duration>();
        let server_pids = || -> Vec<u32> {
            let sql = "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()";
            let backends = self.server.sql(sql).concat();
            let backends = backends.iter().map(|pid| pid.parse().unwrap());
            backends.chain([self.pooler.pid().as_raw() as u32]).collect()
        };
        let mut servers = Vec::new();
        eventually(SOON, "the servers", || {
            servers = server_pids();
            servers.len() > 1
        });
        let before = [sum(pids), sum(&servers)];
        let began = Instant::now();
        std::thread::sleep(SAMPLE);
        let seconds = began.elapsed().as_secs_f64();
        let after = [sum(pids), sum(&servers)];
        [0, 1].map(|index| after[index].saturating_sub(before[index]).as_secs_f64() * 1000.0 / seconds)
    }
}
