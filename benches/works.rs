//! The works: who does them, what is measured, and the bound of each.

use crate::Programs;
use crate::processes::{cpu_time, private_memory};
use crate::support::command::command;
use crate::support::delay_line::Relay;
use crate::support::pgbouncer::PgBouncer;
use crate::support::server::{SUPERUSER, Server, find, free_port};
use crate::support::tls::{PASSWORD, Secured};
use crate::support::wait::{SOON, eventually};
use crate::timing::{Contender, Sample, in_turn, measure_in_turn, milliseconds};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A key that nobody else has.
const KEY: &str = "4711";
/// Rounds of what takes some milliseconds.
const ROUNDS: usize = 300;
/// How long the idle holder is watched.
const IDLE: Duration = Duration::from_secs(60);

/// What was measured of one work.
pub struct Work {
    pub name: &'static str,
    pub unit: &'static str,
    /// Who has done it; the first is what the others are compared with.
    pub samples: Vec<Sample>,
    /// What the ratio of these may be, or their own value where there is nothing to compare with.
    bounds: &'static [(&'static str, f64)],
}

impl Work {
    /// In proportion to the first one, if there are others.
    fn result(&self, sample: &Sample) -> Sample {
        match self.samples.as_slice() {
            [_] => sample.clone(),
            samples => sample.ratios(&samples[0]),
        }
    }

    fn bound(&self, sample: &Sample) -> Option<f64> {
        let bound = self.bounds.iter().find(|(name, _)| *name == sample.name)?;
        Some(bound.1)
    }

    /// In words, what is worse than its bound, beyond what chance explains.
    pub fn worse(&self) -> Vec<String> {
        let worse = |sample: &Sample| {
            let (result, bound) = (self.result(sample), self.bound(sample)?);
            let limit = bound * (1.0 + 3.0 * result.noise());
            (result.median() > limit).then(|| {
                let (work, who, result) = (self.name, sample.name, result.median());
                format!("{work}: {who}: {result:.2}, and the bound is {bound:.2} (with noise {limit:.2})")
            })
        };
        self.samples.iter().filter_map(worse).collect()
    }
}

/// All works. It takes some minutes.
pub fn measure(programs: &Programs) -> Vec<Work> {
    let server = Server::with(&["track_activity_query_size=16384"]);
    let queries = Queries::of(programs, &server);
    let bench = Bench {
        programs,
        server,
        queries,
    };
    // These idle while the others are measured.
    let idle = bench.idle();
    let socket = bench.server.host().to_owned();
    let mut works = vec![
        bench.plain(
            "lock, true, unlock; TCP, trust",
            "127.0.0.1",
            &[("pglock", 1.4), ("pglock, static", 1.35)],
        ),
        bench.plain(
            "lock, true, unlock; Unix socket",
            &socket,
            &[("pglock", 1.4), ("pglock, static", 1.35)],
        ),
    ];
    works.extend(bench.with_tls());
    works.push(bench.pooled());
    works.push(bench.delayed());
    works.extend(bench.turns());
    works.extend(bench.conflicts());
    works.push(bench.hand_off());
    works.extend(bench.crowds());
    works.push(bench.version());
    works.push(bench.others());
    let floor = works[0].samples[0].median();
    works.extend(idle.finish(floor));
    works
}

/// The results as a table.
pub fn table(works: &[Work]) -> String {
    let mut text = format!(
        "{:<44} {:<16} {:>9} {:>9} {:>9} {:>7} {:>6}\n",
        "work", "by", "quartile", "median", "quartile", "ratio", "bound"
    );
    for work in works {
        for (index, sample) in work.samples.iter().enumerate() {
            let name = if index == 0 {
                format!("{} ({})", work.name, work.unit)
            } else {
                String::new()
            };
            let ratio = match index {
                0 => String::new(),
                _ => format!("{:.2}", work.result(sample).median()),
            };
            let bound = work
                .bound(sample)
                .map_or_else(String::new, |bound| format!("{bound:.2}"));
            let [low, median, high] = [0.25, 0.5, 0.75].map(|part| sample.quantile(part));
            let _ = writeln!(
                text,
                "{name:<44} {:<16} {low:>9.3} {median:>9.3} {high:>9.3} {ratio:>7} {bound:>6}",
                sample.name
            );
        }
    }
    text
}

struct Bench<'a> {
    programs: &'a Programs,
    server: Server,
    queries: Queries,
}

/// What pglock sends, with `KEY` in place of the key.
struct Queries {
    /// The name of its session.
    name: String,
    /// Its first query.
    first: String,
    /// A waiter's query.
    wait: String,
}

impl Queries {
    /// Reads what the server shows of a holder before its first heartbeat, and of a waiter.
    fn of(programs: &Programs, server: &Server) -> Self {
        let run = || {
            let mut command = command(&programs.pglock);
            command.env("PGLOCK_DSN", dsn("127.0.0.1", server.port()));
            command.args(["run", "--key", KEY, "sh", "-c", "echo $PGLOCK_BACKEND_PID; cat"]);
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
        };
        let activity = |column, which: &str| {
            let sql = format!("SELECT coalesce(max({column}), '') FROM pg_stat_activity WHERE {which}");
            server.value(&sql).replace(KEY, "KEY")
        };
        let mut holder = run();
        let mut pid = String::new();
        BufReader::new(holder.stdout.as_mut().unwrap())
            .read_line(&mut pid)
            .unwrap();
        let [first, name] = ["query", "application_name"].map(|column| activity(column, &format!("pid = {pid}")));
        assert!(first.contains("AS proven"), "{first}");
        let waiter = run();
        let mut wait = String::new();
        eventually(SOON, "a waiter", || {
            wait = activity("query", "wait_event = 'advisory'");
            !wait.is_empty()
        });
        assert!(wait.contains("AS got"), "{wait}");
        for mut child in [holder, waiter] {
            drop(child.stdin.take());
            assert!(child.wait().unwrap().success());
        }
        Self { name, first, wait }
    }
}

/// The command line of the floor, in plain text.
fn floor(programs: &Programs, what: &'static str, host: &str, port: u16, job: &[&str]) -> Contender {
    let program = programs.floor.clone();
    let port = port.to_string();
    let words = [&[what, host, port.as_str(), KEY], job].concat();
    let words: Vec<String> = words.into_iter().map(str::to_owned).collect();
    Contender::new("floor", move || {
        let mut command = command(&program);
        command.args(&words);
        command
    })
}

/// `pglock run` of this program, with this connection string, options and job.
fn pglock(name: &'static str, program: &Path, dsn: &str, words: &[&str]) -> Contender {
    let (program, dsn) = (program.to_owned(), dsn.to_owned());
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    Contender::new(name, move || {
        let mut command = command(&program);
        command.env("PGLOCK_DSN", &dsn).args(["run", "--key", KEY]).args(&words);
        command
    })
}

fn dsn(host: &str, port: u16) -> String {
    format!("host={host} port={port} user={SUPERUSER} dbname=postgres sslmode=disable")
}

impl Bench<'_> {
    /// A client written naively, with this job.
    fn naive(&self, is_quiet: bool) -> Contender {
        let (program, dsn) = (self.programs.naive.clone(), dsn("127.0.0.1", self.server.port()));
        Contender::new("naive client", move || {
            let mut command = command(&program);
            command.args([&dsn, KEY, "true"]);
            if is_quiet {
                command.env("QUIET", "1");
            }
            command
        })
    }

    /// The naive client with the first query of pglock.
    fn prototype(&self, variables: &[&'static str]) -> Contender {
        let Queries { name, first, .. } = &self.queries;
        let (program, first, variables) = (self.programs.naive.clone(), first.clone(), variables.to_vec());
        let dsn = format!("{} application_name='{name}'", dsn("127.0.0.1", self.server.port()));
        Contender::new("prototype", move || {
            let mut command = command(&program);
            command.args([&dsn, KEY, "true"]).env("PGLOCK_FIRST_QUERY", &first);
            command.envs(variables.iter().map(|name| (name, "1")));
            command
        })
    }

    /// The prototype that supervises its job as well.
    fn supervised_prototype(&self) -> Contender {
        self.prototype(&["PGLOCK_SUPERVISED"]).named("prototype, supervised")
    }

    /// The supervising prototype that waits as pglock does.
    fn waiting_prototype(&self) -> Contender {
        let supervised = self.supervised_prototype();
        let wait = self.queries.wait.clone();
        Contender::new("the same, pglock's wait", move || {
            let mut command = (supervised.command)();
            command.env("PGLOCK_WAIT_QUERY", &wait);
            command
        })
    }

    /// Lock, job, unlock: by a floor that proves its lock as pglock does, one that does not, a naive client, and
    /// pglock.
    fn plain(&self, name: &'static str, host: &str, bounds: &'static [(&'static str, f64)]) -> Work {
        let Programs {
            pglock: installed,
            released,
            ..
        } = self.programs;
        let (port, dsn) = (self.server.port(), dsn(host, self.server.port()));
        let mut contenders = vec![
            floor(self.programs, "prove", host, port, &["true"]).named("floor, proving"),
            floor(self.programs, "try", host, port, &["true"]),
            pglock("pglock", installed, &dsn, &["true"]),
            pglock("pglock, static", released, &dsn, &["true"]),
        ];
        if !host.starts_with('/') {
            contenders.extend([self.naive(false), self.prototype(&[]), self.supervised_prototype()]);
        }
        Work {
            name,
            unit: "ms",
            samples: in_turn(&contenders, ROUNDS),
            bounds,
        }
    }

    fn with_tls(&self) -> Vec<Work> {
        let secured = Secured::start();
        let roots = secured.pki("ca.crt");
        let work = |name, mode: &str, root: &str| {
            let port = secured.port().to_string();
            let floor_tls = self.programs.floor_tls.clone();
            let words = ["127.0.0.1", &port, "scram", PASSWORD, KEY, root, "true"].map(str::to_owned);
            let floor = Contender::new("floor", move || {
                let mut command = command(&floor_tls);
                command.args(&words);
                command
            });
            let root = if root == "-" { "/nowhere" } else { root };
            let password = PASSWORD.replace('\\', "\\\\").replace('\'', "\\'");
            let rest = format!("user=scram password='{password}' sslmode={mode} sslrootcert={root}");
            let pglock = pglock(
                "pglock",
                &self.programs.pglock,
                &secured.at("127.0.0.1", &rest),
                &["true"],
            );
            Work {
                name,
                unit: "ms",
                samples: in_turn(&[floor, pglock], ROUNDS / 2),
                bounds: &[("pglock", 1.35)],
            }
        };
        vec![
            work("the same with TLS and SCRAM; require", "require", "-"),
            work("the same; verify-full, a root file", "verify-full", &roots),
        ]
    }

    /// Through a PgBouncer on the same machine, whose sessions stand open.
    fn pooled(&self) -> Work {
        let [session, transaction] =
            ["session", "transaction"].map(|mode| PgBouncer::with(&self.server, &[&format!("pool_mode={mode}")]));
        let program = &self.programs.pglock;
        let through = |name, pooler: &PgBouncer, options: &[&str]| {
            let words = [options, &["true"]].concat();
            pglock(name, program, &dsn("127.0.0.1", pooler.port()), &words)
        };
        let contenders = [
            floor(self.programs, "try", "127.0.0.1", self.server.port(), &["true"]),
            through("pglock, session", &session, &["--scope", "session-pooled"]),
            through("pglock, trans.", &transaction, &[]),
        ];
        Work {
            name: "the same through PgBouncer; floor direct",
            unit: "ms",
            samples: in_turn(&contenders, ROUNDS / 2),
            bounds: &[],
        }
    }

    /// On a network whose ways take 5 ms each.
    fn delayed(&self) -> Work {
        let relay = Relay::to(self.server.port(), Duration::from_millis(5));
        let contenders = [
            floor(self.programs, "try", "127.0.0.1", relay.port(), &["true"]),
            pglock(
                "pglock",
                &self.programs.pglock,
                &dsn("127.0.0.1", relay.port()),
                &["true"],
            ),
        ];
        Work {
            name: "the same, each way 5 ms longer; TCP, trust",
            unit: "ms",
            samples: in_turn(&contenders, ROUNDS / 6),
            bounds: &[("pglock", 1.35)],
        }
    }

    /// Turns on the wire, from connecting to the end. They are exact, and no matter of chance.
    fn turns(&self) -> Vec<Work> {
        let relay = Relay::to(self.server.port(), Duration::ZERO);
        let count = |contender: &Contender| {
            relay.round_trips();
            contender.time();
            relay.round_trips() as f64
        };
        let role = "DROP ROLE IF EXISTS with_password; SET password_encryption = 'scram-sha-256'; \
                    CREATE ROLE with_password LOGIN PASSWORD 'x'";
        self.server.sql(role);
        let program = &self.programs.pglock;
        let scram = format!("{} user=with_password password=x", dsn("127.0.0.1", relay.port()));
        let trust = [
            floor(self.programs, "try", "127.0.0.1", relay.port(), &["true"]),
            pglock("pglock", program, &dsn("127.0.0.1", relay.port()), &["true"]),
        ];
        let scram = [pglock("pglock", program, &scram, &["true"])];
        vec![
            Work {
                name: "turns on the wire; trust",
                unit: "count",
                samples: measure_in_turn(&trust, 5, count),
                bounds: &[("pglock", 1.5)],
            },
            Work {
                name: "turns on the wire; SCRAM",
                unit: "count",
                samples: measure_in_turn(&scram, 5, count),
                bounds: &[("pglock", 5.0)],
            },
        ]
    }

    /// Somebody else holds the lock, and is named; or is not, because nobody reads it.
    fn conflicts(&self) -> Vec<Work> {
        let mut holder = self.server.client();
        holder.simple_query(&format!("SELECT pg_advisory_lock({KEY})")).unwrap();
        let (port, dsn) = (self.server.port(), dsn("127.0.0.1", self.server.port()));
        let pglock = |options: &[&str]| {
            let Programs {
                pglock: installed,
                released,
                ..
            } = self.programs;
            let words = [options, &["--no-wait", "true"]].concat();
            [("pglock", installed), ("pglock, static", released)]
                .map(|(name, program)| pglock(name, program, &dsn, &words).ending(75))
        };
        let floor = floor(self.programs, "try", "127.0.0.1", port, &["true"]).ending(75);
        let prototype = |variables: &[&'static str]| self.prototype(variables).ending(75);
        let named: Vec<Contender> = [floor, self.naive(false).ending(75), prototype(&["NO_WAIT"])]
            .into_iter()
            .chain(pglock(&[]))
            .collect();
        let quiet: Vec<Contender> = [self.naive(true).ending(75), prototype(&["NO_WAIT", "QUIET"])]
            .into_iter()
            .chain(pglock(&["-q"]))
            .collect();
        let work = |name, contenders: &[Contender], bounds| Work {
            name,
            unit: "ms",
            samples: in_turn(contenders, ROUNDS),
            bounds,
        };
        vec![
            work(
                "held by somebody else, who is named",
                &named,
                &[("pglock", 1.65), ("pglock, static", 1.5)],
            ),
            work(
                "the same with -q; nobody is named",
                &quiet,
                &[("pglock", 1.5), ("pglock, static", 1.4)],
            ),
        ]
    }

    /// From the end of the holder's job to the beginning of the waiter's.
    fn hand_off(&self) -> Work {
        let (port, dsn) = (self.server.port(), dsn("127.0.0.1", self.server.port()));
        let floor_path = self.programs.floor.to_str().unwrap();
        let work = |job: &[&str]| {
            let (try_it, wait) = (&self.programs.pglock, &[floor_path][..]);
            let job = [wait, job].concat();
            [
                floor(self.programs, "wait", "127.0.0.1", port, &job),
                pglock("pglock", try_it, &dsn, &job),
            ]
        };
        let (holders, waiters) = (work(&["last"]), work(&["stamp"]));
        let samples = measure_in_turn(&holders, ROUNDS / 6, |holder| {
            let waiter = waiters.iter().find(|waiter| waiter.name == holder.name).unwrap();
            let mut holder = piped(holder);
            self.server.await_locks(KEY, 1, 0);
            let waiter = piped(waiter);
            self.server.await_locks(KEY, 1, 1);
            drop(holder.stdin.take());
            let ended = clock(holder);
            (clock(waiter) - ended) / 1e6
        });
        Work {
            name: "hand-off: end of a job, begin of the next",
            unit: "ms",
            samples,
            bounds: &[("pglock", 1.1)],
        }
    }

    /// A hundred at once.
    fn crowds(&self) -> Vec<Work> {
        let (port, dsn) = (self.server.port(), dsn("127.0.0.1", self.server.port()));
        let contenders = [
            floor(self.programs, "wait-prove", "127.0.0.1", port, &["true"]).named("floor, proving"),
            floor(self.programs, "wait", "127.0.0.1", port, &["true"]),
            pglock("pglock", &self.programs.pglock, &dsn, &["true"]),
            pglock("pglock, static", &self.programs.released, &dsn, &["true"]),
            self.prototype(&[]),
            self.supervised_prototype(),
            self.waiting_prototype(),
        ];
        let sessions = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'";
        let before = self.server.value(sessions);
        let crowd = |keys: &'static dyn Fn(usize) -> String| {
            measure_in_turn(&contenders, 20, |contender| {
                // The backends of the crowd before are not charged to this one.
                eventually(SOON, "the others to be gone", || self.server.value(sessions) == before);
                let began = Instant::now();
                let children = (0..100).map(|number| {
                    let command = (contender.command)();
                    let words = command.get_args().map(|word| {
                        if word == KEY {
                            keys(number).into()
                        } else {
                            word.to_owned()
                        }
                    });
                    let mut mine = crate::support::command::command(command.get_program());
                    mine.args(words.collect::<Vec<_>>())
                        .envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
                    mine.stdin(Stdio::null()).spawn().unwrap()
                });
                let children: Vec<Child> = children.collect();
                for mut child in children {
                    assert!(child.wait().unwrap().success());
                }
                milliseconds(began.elapsed())
            })
        };
        vec![
            Work {
                name: "a hundred at once, one key",
                unit: "ms",
                samples: crowd(&|_| KEY.to_owned()),
                bounds: &[("pglock", 1.7), ("pglock, static", 1.7)],
            },
            Work {
                name: "a hundred at once, each with its own key",
                unit: "ms",
                samples: crowd(&|number| (100_000 + number).to_string()),
                bounds: &[("pglock", 1.35), ("pglock, static", 1.25)],
            },
        ]
    }

    fn version(&self) -> Work {
        let floor = self.programs.floor.clone();
        let hello = Contender::new("hello, in C", move || {
            let mut command = command(&floor);
            command.arg("hello");
            command
        });
        let version = |name, program: &Path| {
            let program = program.to_owned();
            Contender::new(name, move || {
                let mut command = command(&program);
                command.arg("--version");
                command
            })
        };
        let contenders = [
            hello,
            version("pglock", &self.programs.pglock),
            version("pglock, static", &self.programs.released),
        ];
        Work {
            name: "pglock --version",
            unit: "ms",
            samples: in_turn(&contenders, ROUNDS),
            bounds: &[("pglock", 2.0), ("pglock, static", 1.5)],
        }
    }

    /// The same as the first work, by whoever is installed.
    fn others(&self) -> Work {
        let (port, dsn) = (self.server.port(), dsn("127.0.0.1", self.server.port()));
        let file = self.server.directory().join("flock");
        let flock = Contender::new("flock", move || {
            let mut command = Command::new("flock");
            command.arg(&file).arg("true");
            command
        });
        let psql = Contender::new("psql", move || {
            let mut command = command(find("psql"));
            command.args([
                "-XqAt",
                "-h",
                "127.0.0.1",
                "-p",
                &port.to_string(),
                "-U",
                SUPERUSER,
                "postgres",
            ]);
            command.args(["-c", &format!("SELECT pg_advisory_lock({KEY})"), "-c", "\\! true"]);
            command.args(["-c", &format!("SELECT pg_advisory_unlock({KEY})")]);
            command
        });
        let mut contenders = vec![
            floor(self.programs, "try", "127.0.0.1", port, &["true"]),
            pglock("pglock", &self.programs.pglock, &dsn, &["true"]),
            flock,
            psql,
        ];
        let etcd = Etcd::start();
        contenders.extend(etcd.as_ref().map(Etcd::contender));
        let samples = in_turn(&contenders, ROUNDS / 3);
        Work {
            name: "lock, true, unlock; the others",
            unit: "ms",
            samples,
            bounds: &[],
        }
    }

    /// A holder and a waiter that have nothing to do.
    fn idle(&self) -> Idle {
        let dsn = dsn("127.0.0.1", self.server.port());
        let key = "815";
        let start = || {
            let mut command = command(&self.programs.pglock);
            command.env("PGLOCK_DSN", &dsn).args(["run", "--key", key, "cat"]);
            command.stdin(Stdio::piped()).spawn().unwrap()
        };
        let holder = start();
        self.server.await_locks(key, 1, 0);
        let waiter = start();
        self.server.await_locks(key, 1, 1);
        let (began, used) = (Instant::now(), cpu_time(holder.id()).unwrap());
        Idle {
            holder,
            waiter,
            began,
            used,
        }
    }
}

struct Idle {
    holder: Child,
    waiter: Child,
    began: Instant,
    used: Duration,
}

impl Idle {
    /// The CPU time is compared with a run of the floor, in milliseconds: both are longer on a slower machine.
    fn finish(mut self, floor: f64) -> Vec<Work> {
        std::thread::sleep(IDLE.saturating_sub(self.began.elapsed()));
        let minutes = self.began.elapsed().as_secs_f64() / 60.0;
        let used = milliseconds(cpu_time(self.holder.id()).unwrap() - self.used) / minutes;
        let megabytes = |child: &Child| private_memory(child.id()) as f64 / 1e6;
        let one = |name, unit, value, bounds| Work {
            name,
            unit,
            samples: vec![Sample::of("pglock", vec![value])],
            bounds,
        };
        let works = vec![
            one(
                "memory of an idle holder",
                "MB",
                megabytes(&self.holder),
                &[("pglock", 0.6)],
            ),
            one("memory of a waiter", "MB", megabytes(&self.waiter), &[("pglock", 0.6)]),
            Work {
                name: "CPU time of an idle holder, a minute",
                unit: "ms",
                samples: vec![
                    Sample::of("floor, one run", vec![floor]),
                    Sample::of("pglock", vec![used]),
                ],
                bounds: &[("pglock", 0.45)],
            },
        ];
        for child in [&mut self.holder, &mut self.waiter] {
            drop(child.stdin.take());
            child.wait().unwrap();
        }
        works
    }
}

fn piped(contender: &Contender) -> Child {
    let mut command = (contender.command)();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

/// The time that its job has told, in ns.
fn clock(mut child: Child) -> f64 {
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success());
    text.trim().parse().unwrap()
}

/// An etcd of our own, where it is installed.
struct Etcd {
    server: Child,
    endpoint: String,
    /// Removed after it has ended.
    _data: TempDir,
}

impl Etcd {
    fn start() -> Option<Etcd> {
        // Debian has it in a package of its own.
        Command::new("etcdctl").arg("version").output().ok()?;
        let [endpoint, peers] = [free_port(), free_port()].map(|port| format!("http://127.0.0.1:{port}"));
        let data = tempfile::tempdir().unwrap();
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(data.path());
        command.args(["--listen-client-urls", &endpoint, "--advertise-client-urls", &endpoint]);
        command.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
        command.args(["--initial-cluster", &format!("default={peers}")]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let server = command.spawn().ok()?;
        let etcd = Etcd {
            server,
            endpoint,
            _data: data,
        };
        let contender = etcd.contender();
        eventually(SOON, "etcd", || {
            let mut command = (contender.command)();
            let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
            status.is_ok_and(|status| status.success())
        });
        Some(etcd)
    }

    fn contender(&self) -> Contender {
        let endpoint = self.endpoint.clone();
        Contender::new("etcdctl", move || {
            let mut command = Command::new("etcdctl");
            command
                .env("ETCDCTL_API", "3")
                .args(["--endpoints", &endpoint, "lock", KEY, "true"]);
            command
        })
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
