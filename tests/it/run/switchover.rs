//! The primary of two servers goes, and its standby is promoted. `tests/failover` does the same with Patroni.

use super::endures::assert_one_loss;
use crate::support::gate::{Answer, Gate};
use crate::support::journal::{Journal, now};
use crate::support::pglock::{Pglock, Running};
use crate::support::server::Server;
use crate::support::unique;
use crate::support::wait::{SOON, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::{Duration, Instant};

/// A primary and a standby that streams from it, which pglock gets as one list of hosts.
struct Pair {
    primary: Server,
    standby: Server,
    key: String,
    journal: Journal,
}

impl Pair {
    fn start() -> Pair {
        let primary = Server::start();
        let standby = Server::standby_of(&primary);
        let streaming = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
        eventually(SOON, "a standby that streams", || primary.value(streaming) == "1");
        Pair {
            primary,
            standby,
            key: unique("switchover"),
            journal: Journal::new(),
        }
    }

    fn run(&self, options: &[&str]) -> Pglock {
        let dsn = format!(
            "host=127.0.0.1,127.0.0.1 port={},{} user=postgres dbname=postgres sslmode=disable \
             target_session_attrs=primary",
            self.primary.port(),
            self.standby.port()
        );
        let run = self.primary.run(&self.key).args(["--dsn", &dsn, "--token"]);
        run.args(options)
    }

    /// Starts a holder whose job goes on after TERM until USR2.
    fn holder(&self, options: &[&str]) -> Running {
        let job = format!("note \"token $PGLOCK_TOKEN\"; {}", self.journal.recording("TERM"));
        let holder = self.run(options).sh(&format!("{}; {job}", self.journal.note())).spawn();
        self.journal.await_count("ready", 1);
        holder
    }

    /// Starts three waiters, whose jobs must run alone, and waits until they wait.
    fn waiters(&self, options: &[&str]) -> Vec<Running> {
        let job = format!("{}; note \"token $PGLOCK_TOKEN\"", self.journal.alone());
        let waiters = (0..3).map(|_| self.run(options).sh(&job).spawn());
        let waiters = waiters.collect();
        self.primary.await_locks(&self.key, 1, 3);
        waiters
    }

    /// Asserts that the waiters ran their jobs one after the other, with ascending tokens, and printed one line each.
    #[track_caller]
    fn assert_served(&self, waiters: Vec<Running>, cause: &str) {
        for waiter in waiters {
            let output = waiter.finish();
            output.code(0).stderr_line();
            assert_one_loss(&output, &self.key, cause);
        }
        self.journal.assert_alone(3..=3);
        let entries = self.journal.entries();
        let tokens = entries.iter().filter_map(|entry| entry.event.strip_prefix("token "));
        let tokens: Vec<&str> = tokens.collect();
        let is_ascending = tokens.is_sorted_by(|one, next| one < next);
        assert!(tokens.len() == 4 && is_ascending, "{tokens:?}");
    }
}

/// H = D = G = 0.5 s, so the old job must be dead after 1.5 s, and the waiters start 3 s later.
const SHORT: [&str; 4] = ["--heartbeat", "0.5", "--kill-after", "0.5"];
const LIMIT: Duration = Duration::from_millis(4500);

/// P10, P18, P25, P26, P39: the loser holds the key on the new primary until its job is dead, and the waiters wait
/// there.
#[test]
fn the_loser_guards_its_key_on_the_new_primary() {
    let pair = Pair::start();
    let holder = pair.holder(&["--kill-after", "60"]);
    let waiters = pair.waiters(&[]);
    pair.primary.stop_fast();
    pair.journal.await_count("TERM", 1);
    pair.standby.promote();
    pair.standby.await_locks(&pair.key, 1, 3);
    assert_eq!(pair.journal.count("enter"), 0);
    holder.signal(Signal::SIGUSR2);
    holder.finish().code(74);
    pair.assert_served(waiters, "terminating connection due to administrator command");
}

/// P10, P18, P26, P39
#[test]
fn the_waiters_start_on_the_new_primary_when_the_old_job_must_be_dead() {
    let pair = Pair::start();
    let holder = pair.holder(&SHORT);
    let waiters = pair.waiters(&SHORT);
    let stopped = now();
    pair.primary.stop_immediate();
    holder.finish().code(74);
    pair.standby.promote();
    pair.assert_served(waiters, "");
    let since = Duration::from_nanos((pair.journal.first("enter") - stopped) as u64);
    assert!(since >= LIMIT && since < LIMIT + Duration::from_secs(2), "{since:?}");
}

/// P26: the old server falls silent, which the waiter notices a second later at the earliest. A newcomer has the key on
/// the new server by then, and is not the client that the waiter saw holding it.
#[test]
fn a_waiter_does_not_take_a_newcomer_on_the_new_server_for_the_old_holder() {
    let (old, new, key) = (Server::start(), Server::start(), unique("silent"));
    let gate = Gate::before(&old, Answer::Relay);
    let hosts = format!(
        "host=127.0.0.1,127.0.0.1 port={},{} user=postgres dbname=postgres sslmode=disable",
        gate.port(),
        new.port()
    );
    let holder = old.run(&key).args(SHORT).holding();
    let waiter = old.run(&key).args(["--dsn", &hosts]).args(SHORT);
    let waiter = waiter.env("PGLOCK_CONNECT_TIMEOUT", "0.5").arg("true").spawn();
    old.await_locks(&key, 1, 1);
    gate.set(Answer::Silence);
    let backend = old.value("SELECT pid FROM pg_locks WHERE NOT granted");
    let backend = Pid::from_raw(backend.parse().unwrap());
    kill(backend, Signal::SIGSTOP).unwrap();
    let silent = Instant::now();
    let newcomer = new.run(&key).holding();
    // It waits for the newcomer only when the job of the old holder must be dead.
    new.await_locks(&key, 1, 1);
    let waited = silent.elapsed();
    kill(backend, Signal::SIGCONT).unwrap();
    newcomer.finish().code(0);
    waiter.finish().code(0);
    holder.finish().code(0);
    assert!(waited >= LIMIT, "{waited:?}");
}
