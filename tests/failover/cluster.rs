//! A Patroni cluster: three members and the etcd that elects their leader, on free ports of 127.0.0.1 and in one
//! temporary directory.
//!
//! It always ends with the test process, like the servers of `support::server`, and whatever has been done to it:
//! stopped, killed, half elected. Every process of the cluster works in its directory, and no other process does, so
//! the watchdog finds them there when the pipe from the test process closes.

use crate::http;
use crate::support::server::{SUPERUSER, find, free_port, server_program, unprivileged};
use crate::support::wait::{eventually, until};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres::{Client, Config, NoTls, SimpleQueryMessage};
use serde_json::json;
use std::fs::{self, File};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The time after which etcd forgets a leader that does not renew its lease. Patroni's other times must fit into it:
/// `loop_wait` + 2 * `retry_timeout` <= `ttl`.
const LEASE_SECONDS: u32 = 5;
const LOOP_WAIT_SECONDS: u32 = 1;
const RETRY_TIMEOUT_SECONDS: u32 = 2;
/// How long a cluster may take to have a leader and two standbys that stream, also when members must be rewound.
const RECOVERY: Duration = Duration::from_secs(90);

/// A running cluster, stopped and removed on drop.
pub struct Cluster {
    directory: PathBuf,
    etcd_ports: [u16; 2],
    etcd: Mutex<Option<Child>>,
    members: [Member; 3],
    watchdog: Child,
}

/// A PostgreSQL server, and the Patroni that runs it.
pub struct Member {
    name: String,
    directory: PathBuf,
    port: u16,
    api_port: u16,
    patroni: Mutex<Option<Child>>,
}

impl Cluster {
    /// Starts a cluster, and waits until it has a leader and two standbys.
    pub fn start() -> Cluster {
        let directory = tempfile::Builder::new().prefix("pglock-failover-").tempdir();
        let directory = directory.unwrap().keep();
        if let Some(user) = unprivileged() {
            chown(&directory, Some(user.uid.into()), Some(user.gid.into())).unwrap();
        }
        let watchdog = watchdog(&directory);
        let member = |number: usize| Member {
            name: format!("member{number}"),
            directory: directory.clone(),
            port: free_port(),
            api_port: free_port(),
            patroni: Mutex::new(None),
        };
        let cluster = Cluster {
            members: [member(0), member(1), member(2)],
            etcd_ports: [free_port(), free_port()],
            etcd: Mutex::new(None),
            directory,
            watchdog,
        };
        for member in &cluster.members {
            let settings = member.settings(cluster.etcd_ports[0]).to_string();
            fs::write(member.file("yml"), settings).unwrap();
        }
        cluster.repair();
        cluster
    }

    /// Undoes every fault, and waits until there is a leader and two standbys that stream from it.
    pub fn repair(&self) {
        for member in &self.members {
            member.signal(Signal::SIGCONT);
        }
        self.start_etcd();
        for member in &self.members {
            member.start();
        }
        if !until(RECOVERY, || self.is_healthy()) {
            panic!("the cluster does not recover:\n{}", self.logs());
        }
    }

    /// Returns whether one member leads, by its own and Patroni's account, and two stream from it.
    fn is_healthy(&self) -> bool {
        const SQL: &str =
            "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND NOT pg_is_in_recovery()";
        let mut streaming: Vec<_> = self.members.iter().map(|member| member.value(SQL)).collect();
        streaming.sort();
        let leading = self.members.iter().filter(|member| member.leads());
        streaming == ["0", "0", "2"].map(|count| Some(count.to_owned())) && leading.count() == 1
    }

    /// Returns the members; pglock gets them in this order.
    pub fn members(&self) -> &[Member; 3] {
        &self.members
    }

    /// Returns the leader of a healthy cluster.
    pub fn leader(&self) -> &Member {
        let leader = self.members.iter().find(|member| member.leads());
        leader.unwrap_or_else(|| panic!("no leader:\n{}", self.logs()))
    }

    /// Starts etcd if it does not run. It keeps what it knew before.
    pub fn start_etcd(&self) {
        let mut etcd = self.etcd.lock().unwrap();
        if etcd.is_some() {
            return;
        }
        let [client, peer] = self.etcd_ports.map(|port| format!("http://127.0.0.1:{port}"));
        let mut command = server_program("etcd", &self.directory);
        command.args([
            "--name",
            "etcd",
            "--data-dir",
            "etcd",
            "--enable-v2",
            "--unsafe-no-fsync",
        ]);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("etcd={peer}")]);
        *etcd = Some(spawn(command, &self.directory.join("etcd.log")));
    }

    /// Kills etcd.
    pub fn kill_etcd(&self) {
        end(&self.etcd);
    }

    /// Returns what Patroni last decided on each member, without what PostgreSQL wrote.
    pub fn logs(&self) -> String {
        const LINES: usize = 60;
        let is_patronis = |line: &&str| {
            [" INFO: ", " WARNING: ", " ERROR: "]
                .iter()
                .any(|level| line.contains(level))
        };
        let log = |member: &Member| {
            let text = fs::read_to_string(member.file("log")).unwrap_or_default();
            let lines: Vec<&str> = text.lines().filter(is_patronis).collect();
            let last = &lines[lines.len().saturating_sub(LINES)..];
            format!("--- {}\n{}\n", member.name, last.join("\n"))
        };
        self.members.iter().map(log).collect()
    }

    /// Returns the directory of everything.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.watchdog.stdin.take());
        for child in self.members.iter().map(|member| &member.patroni).chain([&self.etcd]) {
            // Poisoned if the program could not be started.
            let mut child = child.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(mut child) = child.take() {
                let _ = child.wait();
            }
        }
        let _ = self.watchdog.wait();
    }
}

impl Member {
    pub fn name(&self) -> &str {
        &self.name
    }

    fn file(&self, extension: &str) -> PathBuf {
        self.directory.join(format!("{}.{extension}", self.name))
    }

    fn data_directory(&self) -> PathBuf {
        self.directory.join(&self.name)
    }

    /// Returns Patroni's settings, in JSON, which is YAML too.
    fn settings(&self, etcd_port: u16) -> serde_json::Value {
        let role = json!({ "username": SUPERUSER });
        let address = format!("127.0.0.1:{}", self.port);
        let api_address = format!("127.0.0.1:{}", self.api_port);
        json!({
            "scope": "pglock",
            "name": self.name,
            "restapi": { "listen": api_address, "connect_address": api_address },
            // Version 2 of the protocol: with version 3, a leader of Patroni before 3.0.3 that was paused can overwrite
            // the key of its successor when it goes on (its pull request 2689), and the cluster returns to the old
            // timeline.
            "etcd": { "host": format!("127.0.0.1:{etcd_port}") },
            "bootstrap": {
                "dcs": {
                    "ttl": LEASE_SECONDS,
                    "loop_wait": LOOP_WAIT_SECONDS,
                    "retry_timeout": RETRY_TIMEOUT_SECONDS,
                    "postgresql": { "use_pg_rewind": true },
                },
                "initdb": ["no-sync", { "locale": "C" }, { "encoding": "UTF8" }],
            },
            "postgresql": {
                "listen": address,
                "connect_address": address,
                "data_dir": self.data_directory(),
                "bin_dir": find("postgres").parent(),
                "pgpass": self.file("pgpass"),
                "authentication": { "superuser": role, "replication": role, "rewind": role },
                "basebackup": ["no-sync", { "checkpoint": "fast" }],
                "pg_hba": ["local all all trust", "host all,replication all 127.0.0.1/32 trust"],
                "parameters": {
                    "unix_socket_directories": self.directory,
                    // Files in the directory of the cluster, which go with it.
                    "dynamic_shared_memory_type": "mmap",
                    "shared_buffers": "16MB",
                    "fsync": "off",
                },
            },
        })
    }

    /// Starts Patroni if it does not run.
    fn start(&self) {
        let mut patroni = self.patroni.lock().unwrap();
        if patroni.is_none() {
            let mut command = server_program("patroni", &self.directory);
            command.arg(self.file("yml"));
            *patroni = Some(spawn(command, &self.file("log")));
        }
    }

    /// Opens a session of the superuser.
    ///
    /// # Errors
    /// The server is away.
    pub fn connect(&self) -> Result<Client, postgres::Error> {
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.port);
        config.user(SUPERUSER).connect_timeout(Duration::from_secs(5));
        config.connect(NoTls)
    }

    /// Returns the one value of a statement; `None` if the server is away.
    pub fn value(&self, sql: &str) -> Option<String> {
        let messages = self.connect().ok()?.simple_query(sql).ok()?;
        messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
    }

    /// Returns whether it is a primary; `None` if it is away.
    pub fn is_primary(&self) -> Option<bool> {
        Some(self.value("SELECT pg_is_in_recovery()")? == "f")
    }

    /// Returns whether Patroni says that this member holds the leader's lease.
    fn leads(&self) -> bool {
        http::request(self.api_port, "GET", "/leader", "").is_some_and(|status| status == 200)
    }

    /// Hands the leadership to another member, as `patronictl switchover` does. Returns once Patroni is about to do it.
    pub fn switch_over_to(&self, candidate: &Member) {
        let body = json!({ "leader": self.name, "candidate": candidate.name }).to_string();
        // Patroni answers when it is done, by which time the test has much to observe.
        let asked = http::send(self.api_port, "POST", "/switchover", &body);
        assert!(asked.is_some(), "the leader does not take requests");
    }

    /// Kills Patroni and PostgreSQL at once.
    pub fn kill(&self) {
        end(&self.patroni);
        self.signal(Signal::SIGKILL);
    }

    /// Stops Patroni and PostgreSQL, as a frozen virtual machine would.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets Patroni and PostgreSQL go on.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Sends this signal to Patroni, if it runs, and to all processes of PostgreSQL.
    fn signal(&self, signal: Signal) {
        let patroni = self.patroni.lock().unwrap();
        let patroni = patroni.as_ref().map(|child| Pid::from_raw(child.id() as i32));
        let working_here = processes_in(&self.data_directory());
        for pid in patroni.into_iter().chain(working_here) {
            match kill(pid, signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => panic!("{signal} to {pid}: {error}"),
            }
        }
    }
}

/// Returns a connection string with these members, of which one is to be the primary.
pub fn dsn<'a>(members: impl IntoIterator<Item = &'a Member>) -> String {
    let ports: Vec<String> = members.into_iter().map(|member| member.port.to_string()).collect();
    let hosts = vec!["127.0.0.1"; ports.len()].join(",");
    format!(
        "host={hosts} port={} user={SUPERUSER} dbname=postgres sslmode=disable target_session_attrs=primary",
        ports.join(",")
    )
}

/// Starts it in a process group of its own, which a Ctrl-C for the tests does not reach.
fn spawn(mut command: std::process::Command, log: &Path) -> Child {
    let log = File::options().append(true).create(true).open(log).unwrap();
    command.process_group(0).stdin(Stdio::null());
    command.stdout(log.try_clone().unwrap()).stderr(log);
    command
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}; run make test-failover"))
}

fn end(child: &Mutex<Option<Child>>) {
    if let Some(mut child) = child.lock().unwrap().take() {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

/// Returns the processes whose working directory is this one. PostgreSQL's is the data directory.
fn processes_in(directory: &Path) -> Vec<Pid> {
    let works_there = |pid: &i32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == directory);
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(works_there).map(Pid::from_raw).collect()
}

/// Starts the watchdog, which ends the cluster when the test process drops it, or ends.
///
/// Patroni and etcd go first, because Patroni would start PostgreSQL again. A PostgreSQL that is shut down removes its
/// shared memory; of one that was killed it is removed by the number that `postmaster.pid` has.
fn watchdog(directory: &Path) -> Child {
    const SCRIPT: &str = r#"
        trap '' HUP INT QUIT TERM; read -r _
        signal() { # signal NAME PATTERN: to the processes whose directory matches; says whether there are any
            found=1
            for link in $(find /proc -mindepth 2 -maxdepth 2 -name cwd -lname "$2"); do
                pid=${link#/proc/}; kill -s "$1" "${pid%/cwd}" && found=0
            done
            return $found
        }
        while signal KILL "$2" || signal KILL "$2 (deleted)"; do sleep 0.05; done
        signal CONT "$2/*"
        for data in "$2"/member?; do "$1" -D "$data" -m immediate -t 10 stop; done
        while signal KILL "$2*"; do sleep 0.05; done
        for file in "$2"/member?/postmaster.pid; do
            memory=$(sed -n '7s/.* //p' "$file") && ipcrm -m "$memory"
        done
        rm -rf "$2""#;
    let mut command = server_program("sh", directory);
    command.args(["-c", SCRIPT, "watchdog"]);
    command.arg(find("pg_ctl")).arg(directory).process_group(0);
    // It must not find itself.
    command.current_dir("/");
    command.stdin(Stdio::piped());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

/// Waits until no process works in the directory, and it is gone.
pub fn await_removal(directory: &Path) {
    let directories = ["", "member0", "member1", "member2"].map(|name| directory.join(name));
    eventually(RECOVERY, "the end of the cluster", || {
        let is_empty = directories.iter().all(|directory| processes_in(directory).is_empty());
        is_empty && !directory.exists()
    });
}
