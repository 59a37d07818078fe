//! What most tests start with: the shared server, and a key of their own.

use super::pglock::{Pglock, Running};
use super::server::{Locks, Server, number};
use nix::unistd::Pid;
use std::io::Write;
use std::ops::Deref;

/// A key that no other test uses, on the shared server.
pub struct Case {
    pub server: &'static Server,
    pub key: String,
}

impl Case {
    pub fn new() -> Case {
        Case {
            server: Server::shared(),
            key: super::unique("key"),
        }
    }

    /// Returns `pglock run --key KEY`; options and the command follow.
    pub fn run(&self) -> Pglock {
        self.server.run(&self.key)
    }

    /// Starts a pglock that holds the key until it is finished.
    #[track_caller]
    pub fn holder(&self) -> Running {
        self.run().holding()
    }

    /// Returns how many sessions hold and await the key.
    pub fn locks(&self) -> Locks {
        self.server.locks(&self.key)
    }

    /// Waits until so many sessions hold the key and so many await it.
    #[track_caller]
    pub fn await_locks(&self, granted: usize, waiting: usize) {
        self.server.await_locks(&self.key, granted, waiting);
    }

    /// Asserts that the key is held: a pglock that does not wait gets the status of a conflict.
    #[track_caller]
    pub fn assert_held(&self) {
        self.run().args(["--no-wait", "true"]).output().code(75);
    }

    /// Starts a client that is no pglock and waits in the server's queue for the key, holding it until it is finished.
    /// Returns it and its backend.
    #[track_caller]
    pub fn foreign_waiter(&self) -> (Running, String) {
        let mut psql = self.server.program("psql").args(["-XqAt"]).spawn();
        let sql = format!(
            "SELECT pg_backend_pid();\nSELECT pg_advisory_lock({});\nSELECT 'mine';\n",
            number(&self.key)
        );
        psql.stdin().write_all(sql.as_bytes()).unwrap();
        psql.await_stdout("\n");
        let backend = psql.stdout().trim().to_owned();
        (psql, backend)
    }

    /// Returns the backend of the only pglock that has this key.
    #[track_caller]
    pub fn backend(&self) -> Pid {
        let backends = self.backends();
        assert_eq!(backends.len(), 1, "{backends:?}");
        backends[0]
    }

    /// Terminates the sessions of all pglocks that have this key.
    pub fn terminate_backends(&self) {
        for backend in self.backends() {
            self.sql(&format!("SELECT pg_terminate_backend({backend})"));
        }
    }

    /// Returns the sessions of all pglocks that have this key.
    pub fn backends(&self) -> Vec<Pid> {
        let sql = format!(
            "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'pglock:{} %'",
            self.key
        );
        let pids = self.sql(&sql).concat();
        pids.iter().map(|pid| Pid::from_raw(pid.parse().unwrap())).collect()
    }
}

impl Deref for Case {
    type Target = Server;

    fn deref(&self) -> &Server {
        self.server
    }
}
