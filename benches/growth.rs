//! How cost grows: holders and waiters on direct connections, and waiters through a PgBouncer.
//!
//! For each number of them: the private memory of a pglock and of its backend, the CPU time that all of them and the
//! servers use at rest, and how long a hand-off takes, from the end of a job to the beginning of the next.

use crate::Programs;
use crate::processes::{cpu_time, private_memory};
use crate::support::command::command;
use crate::support::pgbouncer::PgBouncer;
use crate::support::server::{SUPERUSER, Server};
use crate::support::wait::{SOON, eventually};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long they are watched at rest.
const REST: Duration = Duration::from_secs(6);
/// Hand-offs of which the median is taken.
const HAND_OFFS: usize = 12;
const KEY: &str = "4711";

/// What so many of them cost.
struct Cost {
    count: usize,
    /// Bytes of one pglock.
    memory: f64,
    /// Bytes of the process of the server that is behind one.
    backend: f64,
    /// Milliseconds of CPU a second: all pglocks, and the server or the pooler with its server.
    cpu: [f64; 2],
    /// Milliseconds.
    hand_off: f64,
}

/// The tables.
pub fn measure(programs: &Programs) -> String {
    let server = Server::with(&["max_connections=450"]);
    let pooler = PgBouncer::with(&server, &["pool_mode=transaction"]);
    let direct = Crowd {
        programs,
        server: &server,
        port: server.port(),
        pooler: None,
    };
    let pooled = Crowd {
        port: pooler.port(),
        pooler: Some(&pooler),
        ..direct
    };
    let counts = [1, 10, 50, 100, 200, 400];
    let holders = counts.map(|count| direct.holders(count));
    let waiters = counts.map(|count| direct.waiters(count));
    let behind = [1, 10, 100, 400, 1000, 2000].map(|count| pooled.waiters(count));
    let tables = [
        table("holders, direct", &holders),
        table("waiters, direct", &waiters),
        table("waiters, through PgBouncer (transaction, a pool of 5)", &behind),
    ];
    tables.join("\n")
}

fn table(title: &str, costs: &[Cost]) -> String {
    let mut text = format!(
        "{title}\n{:>6} {:>12} {:>12} {:>16} {:>16} {:>12}\n",
        "count", "pglock, MB", "servers, MB", "pglocks, ms/s", "servers, ms/s", "hand-off, ms"
    );
    for cost in costs {
        let Cost {
            count,
            memory,
            backend,
            cpu: [pglocks, servers],
            hand_off,
        } = cost;
        // Of all of them: behind a pooler it is little for each.
        let [memory, backend] = [*memory, backend * *count as f64].map(|bytes| bytes / 1e6);
        let _ = writeln!(
            text,
            "{count:>6} {memory:>12.2} {backend:>12.2} {pglocks:>16.2} {servers:>16.2} {hand_off:>12.2}"
        );
    }
    text
}

#[derive(Clone, Copy)]
struct Crowd<'a> {
    programs: &'a Programs,
    server: &'a Server,
    port: u16,
    pooler: Option<&'a PgBouncer<'a>>,
}

impl Crowd<'_> {
    fn pglock(&self, key: &str, job: &str) -> Command {
        let mut command = command(&self.programs.pglock);
        let port = self.port;
        let dsn =
            format!("host=127.0.0.1 port={port} user={SUPERUSER} dbname=postgres sslmode=disable connect_timeout=60");
        command.env("PGLOCK_DSN", dsn).args(["run", "--key", key]);
        command.arg(&self.programs.floor).arg(job);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command
    }

    /// So many jobs, each under a lock of its own; the hand-off is that of one more key.
    fn holders(&self, count: usize) -> Cost {
        let children: Vec<Child> = (0..count)
            .map(|number| self.pglock(&(100_000 + number).to_string(), "last").spawn().unwrap())
            .collect();
        self.await_sessions(count, "granted");
        let cost = self.cost(count, &children);
        let times = (0..HAND_OFFS).map(|_| {
            let holder = self.pglock(KEY, "last").spawn().unwrap();
            self.server.await_locks(KEY, 1, 0);
            let waiter = self.pglock(KEY, "stamp").spawn().unwrap();
            self.server.await_locks(KEY, 1, 1);
            let ended = end(holder);
            end(waiter) - ended
        });
        let hand_off = median(times.collect());
        children.into_iter().for_each(|child| {
            end(child);
        });
        Cost { hand_off, ..cost }
    }

    /// So many that wait for one lock; then they take turns.
    fn waiters(&self, count: usize) -> Cost {
        let holder = self.pglock(KEY, "last").spawn().unwrap();
        self.server.await_locks(KEY, 1, 0);
        let waiters: Vec<Child> = (0..count).map(|_| self.pglock(KEY, "stamp").spawn().unwrap()).collect();
        match self.pooler {
            None => self.await_sessions(count, "NOT granted"),
            Some(pooler) => eventually(SOON * 6, "all clients", || pooler.admin("SHOW CLIENTS").len() > count),
        };
        let cost = self.cost(count, &waiters);
        let mut times = vec![end(holder)];
        // A stamp is the begin and, but for a moment, the end of its job.
        times.extend(waiters.into_iter().map(end));
        times.sort_by(f64::total_cmp);
        let between = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        Cost {
            hand_off: median(between),
            ..cost
        }
    }

    fn await_sessions(&self, count: usize, what: &str) -> Duration {
        let sql = format!("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND {what}");
        eventually(SOON * 6, "all of them", || self.server.value(&sql) == count.to_string())
    }

    /// Memory, and CPU time at rest.
    fn cost(&self, count: usize, children: &[Child]) -> Cost {
        let used = || -> Vec<(u32, Duration)> {
            let pids = children.iter().map(Child::id).chain(self.servers());
            // A session can end between two looks.
            pids.map(|pid| (pid, cpu_time(pid).unwrap_or_default())).collect()
        };
        let (began, before) = (Instant::now(), used());
        std::thread::sleep(REST);
        let (seconds, after) = (began.elapsed().as_secs_f64(), used());
        let mine: Vec<u32> = children.iter().map(Child::id).collect();
        let mut cpu = [0.0; 2];
        for (pid, time) in after {
            let earlier = before.iter().find(|(earlier, _)| *earlier == pid);
            let used = time.saturating_sub(earlier.map_or(time, |(_, time)| *time));
            cpu[usize::from(!mine.contains(&pid))] += used.as_secs_f64() * 1000.0 / seconds;
        }
        let memory = median(children.iter().map(|child| private_memory(child.id()) as f64).collect());
        let backends: Vec<f64> = match self.pooler {
            None => self.backends().map(|pid| private_memory(pid) as f64).collect(),
            Some(pooler) => {
                let pid = pooler.pid().as_raw() as u32;
                let all = self
                    .backends()
                    .chain([pid])
                    .map(|pid| private_memory(pid) as f64)
                    .sum::<f64>();
                vec![all / count as f64]
            }
        };
        Cost {
            count,
            memory,
            backend: median(backends),
            cpu,
            hand_off: 0.0,
        }
    }

    fn backends(&self) -> impl Iterator<Item = u32> {
        let sql = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
        self.server
            .sql(sql)
            .concat()
            .into_iter()
            .map(|pid| pid.parse().unwrap())
    }

    fn servers(&self) -> Vec<u32> {
        let pooler = self.pooler.map(|pooler| pooler.pid().as_raw() as u32);
        self.backends().chain(pooler).collect()
    }
}

/// Lets its job end, and returns the time that the job tells, in ms.
pub fn end(mut child: Child) -> f64 {
    drop(child.stdin.take());
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert!(child.wait().unwrap().success());
    line.trim().parse::<f64>().unwrap() / 1e6
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
