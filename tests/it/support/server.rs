//! A throwaway PostgreSQL server: its own cluster in a temporary directory, on a private socket and a free port.
//!
//! The programs are those of `$PGLOCK_TEST_PG_BIN`, of the newest `/usr/lib/postgresql/*/bin`, or of `$PATH`. As root,
//! everything of the server runs as `postgres` or `nobody`, because PostgreSQL refuses root.
//!
//! It always ends with the test process. A watchdog reads a pipe from the test process; when the pipe closes (drop,
//! panic, abort, SIGKILL, Ctrl-C), the watchdog stops the server and removes the directory. The shared server is for
//! every test that needs only its own key, role or database; a test that needs its own settings or log, or that breaks
//! things, starts its own.

use super::command::command;
use super::network::Host;
use super::wait::{SOON, eventually, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};
use postgres::{Client, Config, NoTls, SimpleQueryMessage};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock};

/// The superuser, and the name of the initial database.
pub const SUPERUSER: &str = "postgres";
/// This role needs a password over TCP (SCRAM, if it was set so); all others need none.
pub const WITH_PASSWORD: &str = "with_password";

/// The configuration of OpenSSL that the server reads when it starts, if the file is in its directory.
pub const OPENSSL_CONF: &str = "openssl.cnf";

/// A running server, stopped and removed on drop.
pub struct Server {
    directory: PathBuf,
    port: u16,
    settings: Vec<String>,
    /// How to enter the postmaster's host, if it is not this one, and its address.
    host: Option<(Vec<String>, String)>,
    postmaster: Mutex<Option<Child>>,
    watchdog: Option<Child>,
}

/// What a server starts with.
pub enum Data<'a> {
    /// A copy of the cluster that has never run.
    New,
    /// What this makes in its directory as `data`.
    MadeBy(&'a dyn Fn(&Server)),
}

/// The number of sessions that hold a lock, and that wait for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Locks {
    pub granted: usize,
    pub waiting: usize,
}

impl Server {
    /// Returns the server that most tests share. It lives as long as the test process.
    pub fn shared() -> &'static Server {
        static SHARED: OnceLock<Server> = OnceLock::new();
        SHARED.get_or_init(Server::start)
    }

    /// Starts a server.
    pub fn start() -> Server {
        Server::with(&[])
    }

    /// Starts a server with settings such as `deadlock_timeout=20ms`.
    pub fn with(settings: &[&str]) -> Server {
        Server::make(settings, None, Data::New)
    }

    /// Starts a server whose system identifier no other one has.
    pub fn start_another_cluster() -> Server {
        Server::make(&[], None, Data::MadeBy(&|server| initdb(&server.directory)))
    }

    /// Starts a hot standby that streams from this server.
    pub fn standby_of(primary: &Server) -> Server {
        Server::make(&[], None, Data::MadeBy(&|standby| standby.copy(primary)))
    }

    /// Starts a server on a host of a test's network. Its socket can be reached from here too.
    pub fn on(host: &Host) -> Server {
        Server::make(&[], Some(host), Data::New)
    }

    /// Starts a server with any of these.
    pub fn make(settings: &[&str], host: Option<&Host>, data: Data) -> Server {
        let (directory, watchdog) = watched_directory();
        let mut server = Server {
            directory,
            port: free_port(),
            settings: settings.iter().map(|s| (*s).to_owned()).collect(),
            host: host.map(|host| (host.entrance(), host.address().to_owned())),
            postmaster: Mutex::new(None),
            watchdog: Some(watchdog),
        };
        match data {
            Data::New => server.copy_data(&new_cluster().join("data")),
            Data::MadeBy(make) => make(&server),
        }
        // Another program may have taken the port since it was found free.
        while !server.try_launch() {
            assert!(server.log().contains("could not bind"), "{}", server.log());
            fs::remove_file(server.log_file()).unwrap();
            server.port = free_port();
        }
        eventually(SOON, "a server that newcomers need not leave alone", || {
            is_settled(&mut server.client())
        });
        server
    }

    /// Copies the primary as a crash leaves it, which needs no other program of the server's version.
    fn copy(&self, primary: &Server) {
        primary.stop_immediate();
        self.copy_data(&primary.directory.join("data"));
        primary.restart();
        self.follow(primary);
    }

    fn copy_data(&self, from: &Path) {
        let to = self.directory.join("data");
        let copied = self.command("cp").arg("-R").arg(from).arg(to).status();
        assert!(copied.unwrap().success());
    }

    /// Makes it a standby of this server from its next start on, with data of that server's.
    pub fn follow(&self, primary: &Server) {
        let to = self.directory.join("data");
        let (host, port) = (primary.host(), primary.port());
        let conninfo = format!("primary_conninfo = 'host={host} port={port} user={SUPERUSER}'\n");
        let (file, text) = match primary.version() {
            12.. => {
                fs::write(to.join("standby.signal"), "").unwrap();
                ("postgresql.auto.conf", conninfo)
            }
            _ => ("recovery.conf", format!("standby_mode = on\n{conninfo}")),
        };
        let file = to.join(file);
        fs::write(&file, text).unwrap();
        // The server rewrites or syncs the file on promotion, and may run as another user.
        let user = unprivileged().map(|user| user.uid.as_raw());
        std::os::unix::fs::chown(&file, user, None).unwrap();
    }

    /// Starts the postmaster. Returns `false` if it exited at once.
    fn try_launch(&self) -> bool {
        let log = File::options().append(true).create(true).open(self.log_file());
        let log = log.unwrap();
        let mut command = self.postmaster();
        command.arg("-D").arg(self.directory.join("data"));
        command.arg("-k").arg(&self.directory);
        command.args(["-p", &self.port.to_string(), "-h", self.address()]);
        command.args(["-c", "fsync=off", "-c", "max_connections=300"]);
        for setting in &self.settings {
            command.args(["-c", setting]);
        }
        // A Ctrl-C for the tests does not reach its process group.
        command.process_group(0).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let mut postmaster = command.spawn().unwrap();
        let mut lives = true;
        let answers = until(SOON, || {
            lives = postmaster.try_wait().unwrap().is_none();
            !lives || self.config().connect(NoTls).is_ok()
        });
        assert!(answers, "the server does not start: {}", self.log());
        if lives {
            *self.postmaster.lock().unwrap() = Some(postmaster);
        }
        lives
    }

    /// Returns the postmaster, on its host.
    fn postmaster(&self) -> Command {
        match &self.host {
            None => {
                let mut command = self.command("postgres");
                let openssl = self.directory.join(OPENSSL_CONF);
                if openssl.exists() {
                    command.env("OPENSSL_CONF", openssl);
                }
                command
            }
            Some((entrance, _)) => entering(entrance, find("postgres")),
        }
    }

    /// Returns a program on a host of a test's network, as the server's user.
    pub fn command_on(&self, host: &Host, program: &str) -> Command {
        let mut command = entering(&host.entrance(), find(program));
        command.current_dir(&self.directory);
        command
    }

    /// Returns its address for TCP.
    pub fn address(&self) -> &str {
        let address = self.host.as_ref().map(|(_, address)| address.as_str());
        address.unwrap_or("127.0.0.1")
    }

    /// Returns a program as the server's user.
    pub fn command(&self, program: &str) -> Command {
        server_program(program, &self.directory)
    }

    /// Stops the server as a crash would: it ends every session and writes nothing.
    pub fn stop_immediate(&self) {
        self.stop(Signal::SIGQUIT);
    }

    /// Stops the server as `pg_ctl stop -m fast` does: it terminates every session.
    pub fn stop_fast(&self) {
        self.stop(Signal::SIGINT);
    }

    fn stop(&self, signal: Signal) {
        let Some(mut postmaster) = self.postmaster.lock().unwrap().take() else {
            return;
        };
        kill(Pid::from_raw(postmaster.id() as i32), signal).unwrap();
        postmaster.wait().unwrap();
    }

    /// Kills the backend of a session of its own, upon which the server ends all sessions and recovers. Waits until it
    /// answers again.
    pub fn crash_restart(&self) {
        let (mut client, mut other) = (self.client(), self.client());
        let pid: i32 = rows(&mut client, "SELECT pg_backend_pid()").concat()[0]
            .parse()
            .unwrap();
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        eventually(SOON, "the end of all sessions", || other.simple_query("").is_err());
        eventually(SOON, "the recovery", || self.config().connect(NoTls).is_ok());
    }

    /// Stops it if it runs, and starts it again on the same port.
    pub fn restart(&self) {
        self.stop_immediate();
        assert!(self.try_launch(), "{}", self.log());
    }

    /// Kills the postmaster with SIGKILL, and starts it again as soon as the backends that it leaves behind have ended.
    pub fn kill_and_restart(&self) {
        self.stop(Signal::SIGKILL);
        eventually(SOON, "a restart after the backends have ended", || self.try_launch());
    }

    /// Promotes a standby to primary.
    pub fn promote(&self) {
        let mut promote = self.command("pg_ctl");
        promote.arg("-D").arg(self.directory.join("data")).arg("promote");
        let output = promote.output().unwrap();
        assert!(output.status.success(), "{output:?}\n{}", self.log());
        let promoted = "SELECT pg_is_in_recovery()";
        eventually(SOON, "the promotion", || self.value(promoted) == "f");
    }

    /// Returns the directory of the cluster (`data`), of the socket, and of files that are to be removed with the
    /// server.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the directory of the socket, as for `PGHOST`.
    pub fn host(&self) -> &str {
        self.directory.to_str().unwrap()
    }

    /// Returns the port, of the socket and of 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns a connection string for TCP.
    pub fn dsn(&self) -> String {
        let port = self.port;
        format!("postgresql://{SUPERUSER}@127.0.0.1:{port}/postgres?sslmode=disable")
    }

    /// Returns the parameters of a connection over the socket.
    pub fn config(&self) -> Config {
        let mut config = Config::new();
        config.host(self.host()).port(self.port).user(SUPERUSER);
        config
    }

    /// Opens a session of the superuser.
    pub fn client(&self) -> Client {
        self.client_in("postgres")
    }

    /// Opens a session of the superuser in this database.
    pub fn client_in(&self, database: &str) -> Client {
        let mut config = self.config();
        let config = config.dbname(database);
        let mut client = config.connect(NoTls);
        // A server that many others connect to at the same time has no room for one more.
        let is_crowded = |client: &Result<Client, postgres::Error>| {
            let cause = client
                .as_ref()
                .err()
                .and_then(|error| error.source()?.downcast_ref::<io::Error>());
            cause.is_some_and(|cause| cause.kind() == ErrorKind::WouldBlock)
        };
        until(SOON, || {
            if is_crowded(&client) {
                client = config.connect(NoTls);
            }
            !is_crowded(&client)
        });
        client.unwrap()
    }

    /// Returns the rows of a statement; NULL is the empty text.
    pub fn sql(&self, sql: &str) -> Vec<Vec<String>> {
        rows(&mut self.client(), sql)
    }

    /// Returns the one value of a statement.
    pub fn value(&self, sql: &str) -> String {
        self.sql(sql).concat().concat()
    }

    /// Creates a database: what holds back VACUUM or CREATE INDEX CONCURRENTLY does so within one database.
    pub fn database(&self) -> String {
        let name = super::unique("database");
        self.sql(&format!("CREATE DATABASE {name}"));
        name
    }

    /// Returns the server's version, as in 15.
    pub fn version(&self) -> u32 {
        self.value("SELECT current_setting('server_version_num')::int / 10000")
            .parse()
            .unwrap()
    }

    /// Returns how many sessions hold and await the key (a name, or a 64-bit key), in any database.
    pub fn locks(&self, key: &str) -> Locks {
        self.locks_where(key, "true")
    }

    /// Returns how many sessions hold and await the key, in the database of this name.
    pub fn locks_in(&self, database: &str, key: &str) -> Locks {
        let is_there = format!("database = (SELECT oid FROM pg_database WHERE datname = '{database}')");
        self.locks_where(key, &is_there)
    }

    fn locks_where(&self, key: &str, condition: &str) -> Locks {
        let count = |granted| {
            let (class, object) = halves(key);
            self.sql(&format!(
                "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 \
                 AND classid = {class} AND objid = {object} AND granted = {granted} AND {condition}"
            ))
            .len()
        };
        Locks {
            granted: count(true),
            waiting: count(false),
        }
    }

    /// Waits until so many sessions hold the key and so many await it.
    #[track_caller]
    pub fn await_locks(&self, key: &str, granted: usize, waiting: usize) {
        let expected = Locks { granted, waiting };
        eventually(SOON, &format!("{expected:?} of {key}"), || self.locks(key) == expected);
    }

    /// Returns the server's log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.directory.join("log")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(mut watchdog) = self.watchdog.take() else {
            return;
        };
        drop(watchdog.stdin.take());
        if let Some(mut postmaster) = self.postmaster.lock().unwrap().take() {
            let _ = postmaster.wait();
        }
        let _ = watchdog.wait();
    }
}

/// Returns whether the server has run for long enough that pglock does not wait for those that lost their locks.
fn is_settled(client: &mut Client) -> bool {
    let sql = "SELECT clock_timestamp() - pg_postmaster_start_time() > '0.6s'";
    client.simple_query(sql).is_ok_and(|messages| {
        messages
            .iter()
            .any(|message| matches!(message, SimpleQueryMessage::Row(row) if row.get(0) == Some("t")))
    })
}

/// Returns the rows of a statement in this session; NULL is the empty text.
pub fn rows(client: &mut Client, sql: &str) -> Vec<Vec<String>> {
    let messages = client.simple_query(sql);
    let messages = messages.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let rows = messages.into_iter().filter_map(|message| {
        let SimpleQueryMessage::Row(row) = message else {
            return None;
        };
        let values = 0..row.len();
        Some(values.map(move |n| row.get(n).unwrap_or_default().to_owned()))
    });
    rows.map(Iterator::collect).collect()
}

/// Returns the number of a key (a name, or a 64-bit key), computed without pglock.
pub fn number(key: &str) -> i64 {
    key.parse().unwrap_or_else(|_| {
        let digest = Sha256::digest(key);
        i64::from_be_bytes(digest[..8].try_into().unwrap())
    })
}

/// Returns the lock that a pglock leaves when it has released the key, as the arguments of a lock function.
pub fn receipt(key: &str) -> String {
    derived_pair(key, "pglock release")
}

/// Returns the lock that a pglock holds that has lost the key and waits for it.
pub fn claim(key: &str) -> String {
    derived_pair(key, "pglock guard")
}

/// Returns a lock that is derived from a key, computed without pglock.
fn derived_pair(key: &str, purpose: &str) -> String {
    let int = |text: &str| {
        let digest = Sha256::digest(text);
        i32::from_be_bytes(digest[..4].try_into().unwrap())
    };
    format!("{}, {}", int(purpose), int(&format!("{purpose} of {}", number(key))))
}

/// Returns the key as `pg_locks` shows it.
fn halves(key: &str) -> (u32, u32) {
    let number = number(key);
    ((number >> 32) as u32, number as u32)
}

/// Returns a port of 127.0.0.1 on which nothing listens, and that no other test gets.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        if GIVEN.lock().unwrap().insert(port) {
            return port;
        }
    }
}

/// Returns the directory of a cluster that has never run. Most servers are copies of it, since a copy takes two thirds
/// of the time of initdb; these have the same system identifier.
fn new_cluster() -> &'static Path {
    static CLUSTER: OnceLock<(PathBuf, Child)> = OnceLock::new();
    let (directory, _) = CLUSTER.get_or_init(|| {
        let (directory, watchdog) = watched_directory();
        initdb(&directory);
        (directory, watchdog)
    });
    directory
}

/// Makes a cluster in the directory.
fn initdb(directory: &Path) {
    let data = directory.join("data");
    let output = server_program("initdb", directory)
        .args(["--no-sync", "--locale=C", "--encoding=UTF8", "--auth=trust"])
        .args(["--username", SUPERUSER, "--pgdata"])
        .arg(&data)
        .output()
        .unwrap();
    assert!(output.status.success(), "initdb: {output:?}");
    let rules = format!(
        "local all,replication all trust\n\
         host all {WITH_PASSWORD} 127.0.0.1/32 scram-sha-256\n\
         host all,replication all 127.0.0.1/32 trust\n\
         host all all 10.77.0.0/24 trust\n"
    );
    fs::write(data.join("pg_hba.conf"), rules).unwrap();
}

/// Makes a directory, and starts its watchdog.
fn watched_directory() -> (PathBuf, Child) {
    let directory = tempfile::Builder::new().prefix("pglock-test-").tempdir();
    let directory = directory.unwrap().keep();
    if let Some(user) = unprivileged() {
        chown(&directory, Some(user.uid.into()), Some(user.gid.into())).unwrap();
    }
    let watchdog = watchdog(&directory);
    (directory, watchdog)
}

/// Starts the watchdog, which ends the server when the test process cannot. A Ctrl-C does not reach its process group.
fn watchdog(directory: &Path) -> Child {
    const SCRIPT: &str = "trap '' HUP INT QUIT TERM; read -r _; \
        \"$1\" -D \"$2/data\" -m immediate -t 20 stop; rm -rf \"$2\"";
    let mut command = server_program("sh", directory);
    command.args(["-c", SCRIPT, "watchdog"]);
    command.arg(find("pg_ctl")).arg(directory).process_group(0);
    command.stdin(Stdio::piped());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

fn entering(entrance: &[String], program: PathBuf) -> Command {
    let mut command = command("nsenter");
    command.args(entrance);
    if let Some(user) = unprivileged() {
        command.args(["-S", &user.uid.to_string(), "-G", &user.gid.to_string()]);
    }
    command.arg("--").arg(program);
    command
}

/// Returns a program as the user who may run a server, in this directory.
pub fn server_program(program: &str, directory: &Path) -> Command {
    let mut command = command(find(program));
    command.current_dir(directory).env("LC_ALL", "C");
    if let Some(user) = unprivileged() {
        command.uid(user.uid.into()).gid(user.gid.into());
    }
    command
}

/// Returns the user to run as instead of root; `None` if this is not root.
pub fn unprivileged() -> Option<User> {
    let find = |name| User::from_name(name).ok().flatten();
    geteuid().is_root().then(|| {
        find("postgres")
            .or_else(|| find("nobody"))
            .expect("PostgreSQL refuses root; there is neither a user postgres nor nobody to run it")
    })
}

/// Returns the path of a program of PostgreSQL's, or its name if only `$PATH` can know.
pub fn find(program: &str) -> PathBuf {
    let version =
        |directory: &PathBuf| -> Option<u32> { directory.file_name()?.to_str()?.split('.').next()?.parse().ok() };
    let chosen = std::env::var_os("PGLOCK_TEST_PG_BIN").map(PathBuf::from);
    let installed = || {
        let directories = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
        let directories = directories.filter_map(|entry| Some(entry.ok()?.path()));
        Some(directories.max_by_key(version)?.join("bin"))
    };
    let directory = chosen.or_else(installed).unwrap_or_default();
    match directory.join(program) {
        file if file.is_file() => file,
        _ => program.into(),
    }
}
