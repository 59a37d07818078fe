//! Requesting holders to give up the lock.

use super::terminate::{terminate, unauthorized, wait_until_gone};
use crate::cli::EvictOptions;
use crate::connection::Client;
use crate::inspect::backend::{Backend, FORGET_SESSIONS};
use crate::inspect::eviction::may_evict_condition;
use crate::key;
use crate::lock::{self, EndStatement, QueryResult, simple_query};
use crate::outcome::Failure;
use crate::protocol::derived_keys;
use crate::protocol::query_tag::QueryTag;
use crate::run::session::timing::Timing;
use crate::ui::{message, stdout};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a mark is held at least, for a terminated session to find it.
const MARK_HOLD_TIME: Duration = Duration::from_secs(1);
/// How often to look whether the holders have released the lock.
const RELEASE_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How often to notify holders. One may have begun to listen since.
const NOTIFY_INTERVAL: Duration = Duration::from_millis(500);

/// An eviction under way.
pub(super) struct Eviction<'a> {
    client: &'a mut Client,
    force: bool,
    /// For a holder that does not show its own.
    timing: Timing,
    /// Whether the connection has no pooler between: then marks are locks of the session, and holders can be notified.
    is_direct: bool,
}

/// A session to evict.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) backend: &'a Backend,
    /// Whether it holds one of the locks, rather than waits.
    pub(super) is_holder: bool,
}

/// A holder that was asked to give up the lock.
struct Request<'a> {
    pid: i32,
    backend: &'a Backend,
    /// When it counts as unresponsive.
    deadline: Instant,
}

impl<'a> Eviction<'a> {
    /// Prepares the marks. They are locks of the session; behind a pooler, of a transaction.
    ///
    /// # Errors
    /// The connection is lost.
    pub(super) fn begin(
        client: &'a mut Client,
        options: &EvictOptions,
        application_name: &str,
    ) -> Result<Eviction<'a>, Failure> {
        let sql = "SELECT pg_catalog.set_config('application_name', NULL, true) AS name";
        client.asking("to prepare the eviction");
        let is_direct = QueryResult::fetch(client, sql)?.get("name") == Some(application_name);
        if !is_direct {
            lock::begin(client, "", "")?;
        }
        Ok(Eviction {
            client,
            force: options.force,
            timing: options.timing,
            is_direct,
        })
    }

    /// Evicts these sessions, waits until they hold the lock no more, and prints a line for each.
    ///
    /// # Errors
    /// Our role may not evict one of the holders (then nothing happens), a session does not terminate, or the
    /// connection is lost.
    pub(super) fn carry_out(mut self, targets: &[Target]) -> Result<(), Failure> {
        let can_ask = |target: &&Target| !self.force && is_living_holder(target, self.timing);
        let (asked, others): (Vec<&Target>, Vec<&Target>) = targets.iter().partition(can_ask);
        for target in &asked {
            self.check_authorization(target.backend)?;
        }
        let start = Instant::now();
        let mut terminated: Vec<(i32, &Backend)> = Vec::new();
        // Waiters first, or they would acquire the lock.
        for Target { backend, .. } in others.into_iter().rev() {
            let Some(pid) = backend.pid else { continue };
            self.mark(pid)?;
            if terminate(self.client, pid, backend)? {
                terminated.push((pid, backend));
            } else {
                print(&format!("{backend} was already gone"))?;
            }
        }
        let requests = self.request(&asked)?;
        let unresponsive = self.await_release(&requests)?;
        for request in &unresponsive {
            message::notice(format_args!(
                "{} did not react; terminating its session, although its job may still run",
                request.backend
            ));
            if terminate(self.client, request.pid, request.backend)? {
                terminated.push((request.pid, request.backend));
            }
        }
        let pids: Vec<i32> = terminated.iter().map(|(pid, _)| *pid).collect();
        wait_until_gone(self.client, &pids)?;
        for Target { backend, .. } in targets {
            let is_evicted = |pid: i32| pids.contains(&pid) || requests.iter().any(|request| request.pid == pid);
            if backend.pid.is_some_and(is_evicted) {
                print(&format!("evicted {backend}"))?;
            }
        }
        if terminated.iter().any(|(_, backend)| backend.is_pglock()) {
            sleep(MARK_HOLD_TIME.saturating_sub(start.elapsed()));
        }
        if !self.is_direct {
            let client = self.client.asking("to end the eviction");
            lock::end_transaction(client, EndStatement::Commit, QueryTag::ProgramOnly)?;
        }
        Ok(())
    }

    /// # Errors
    /// Our role may not terminate the session, or the connection is lost.
    fn check_authorization(&mut self, backend: &Backend) -> Result<(), Failure> {
        let pid = backend.pid.unwrap_or_default();
        let own_role = "(SELECT oid FROM pg_catalog.pg_roles WHERE rolname = session_user)";
        let sql = format!(
            "SELECT {} AS authorized FROM pg_catalog.pg_stat_activity a WHERE pid = {pid}",
            may_evict_condition(own_role, "a.usesysid")
        );
        let client = self.client.asking("for the right to evict the holder");
        let result = QueryResult::fetch(client, &sql)?;
        if result.get("authorized") == Some("f") {
            return Err(unauthorized(backend));
        }
        Ok(())
    }

    /// Marks the eviction of this backend.
    ///
    /// # Errors
    /// The connection is lost.
    fn mark(&mut self, pid: i32) -> Result<(), Failure> {
        let function = if self.is_direct {
            "pg_advisory_lock_shared"
        } else {
            "pg_advisory_xact_lock_shared"
        };
        let mut marks = vec![derived_keys::eviction_mark(pid)];
        if self.force {
            marks.push(derived_keys::forced_eviction_mark(pid));
        }
        let calls: Vec<String> = marks
            .iter()
            .map(|mark| format!("pg_catalog.{function}({})", mark.literals()))
            .collect();
        let client = self.client.asking("to mark the session for eviction");
        simple_query(client, &format!("SELECT {}", calls.join(", ")))?;
        Ok(())
    }

    /// Marks these holders, and prints what is waited for.
    ///
    /// # Errors
    /// The connection is lost, or standard output cannot be written.
    fn request<'b>(&mut self, asked: &[&Target<'b>]) -> Result<Vec<Request<'b>>, Failure> {
        let mut requests = Vec::new();
        for Target { backend, .. } in asked {
            let Some(pid) = backend.pid else { continue };
            self.mark(pid)?;
            // After a stall of the network, the job is dead only just at its limit.
            let limit = job_limit(backend, self.timing) + Timing::MARGIN;
            print(&format!(
                "waiting for {backend} to terminate its job, up to {}",
                humantime::format_duration(Duration::from_millis(limit.as_millis() as u64))
            ))?;
            requests.push(Request {
                pid,
                backend,
                deadline: Instant::now() + limit,
            });
        }
        Ok(requests)
    }

    /// Waits until the holders have no advisory lock any more. Returns those that still have one at their deadline.
    ///
    /// # Errors
    /// The connection is lost.
    fn await_release<'b, 'c>(&mut self, requests: &'c [Request<'b>]) -> Result<Vec<&'c Request<'b>>, Failure> {
        let mut unresponsive = Vec::new();
        let mut pending: Vec<&Request> = requests.iter().collect();
        let mut next_notification = Instant::now();
        self.client.asking("for the release of the lock");
        while !pending.is_empty() {
            if self.is_direct && Instant::now() >= next_notification {
                next_notification = Instant::now() + NOTIFY_INTERVAL;
                self.notify(&pending)?;
            }
            let holding = self.backends_with_locks(&pending)?;
            pending.retain(|request| holding.contains(&request.pid));
            let now = Instant::now();
            unresponsive.extend(pending.iter().copied().filter(|request| now >= request.deadline));
            pending.retain(|request| now < request.deadline);
            sleep(RELEASE_POLL_INTERVAL);
        }
        Ok(unresponsive)
    }

    /// # Errors
    /// The connection is lost.
    fn notify(&mut self, requests: &[&Request]) -> Result<(), Failure> {
        let calls: Vec<String> = requests
            .iter()
            .map(|request| {
                let channel = derived_keys::eviction_channel(request.pid);
                format!("pg_catalog.pg_notify('{channel}', '')")
            })
            .collect();
        simple_query(self.client, &format!("SELECT {}", calls.join(", ")))?;
        Ok(())
    }

    /// Returns which of these backends still have an advisory lock and the same client. A pooler lends a backend that
    /// is released to the next client, and most likely to one that was waiting for the lock.
    ///
    /// # Errors
    /// The connection is lost.
    fn backends_with_locks(&mut self, requests: &[&Request]) -> Result<Vec<i32>, Failure> {
        let sessions: Vec<String> = requests
            .iter()
            .map(|request| {
                let application_name = key::sql_literal(&request.backend.application_name);
                format!("(pid = {} AND application_name = {application_name})", request.pid)
            })
            .collect();
        let sql = format!(
            "{FORGET_SESSIONS}SELECT pg_catalog.string_agg(pid::text, ',') AS pids FROM pg_catalog.pg_stat_activity a WHERE ({}) \
             AND EXISTS (SELECT 1 FROM pg_catalog.pg_locks l WHERE l.locktype = 'advisory' AND l.pid = a.pid)",
            sessions.join(" OR ")
        );
        let result = QueryResult::fetch(self.client, &sql)?;
        let pids = result.get("pids").unwrap_or_default().split(',');
        Ok(pids.filter_map(|pid| pid.parse().ok()).collect())
    }
}

/// Returns whether the session is one of a pglock that lives, as far as our role can see. The backend of a lock that
/// was left in a pool bears the name of the pool's last client; but a living holder has sent a heartbeat within its
/// limit.
fn is_living_holder(target: &Target, timing: Timing) -> bool {
    let backend = target.backend;
    if !target.is_holder || backend.pid.is_none() || !backend.is_pglock() {
        return false;
    }
    if backend.is_hidden {
        return true;
    }
    let limit = job_limit(backend, timing).as_secs_f64();
    backend.job.is_some() && backend.idle_seconds.is_none_or(|idle| idle <= limit)
}

/// Returns how long a holder may take to terminate its job: its own limit, or ours where it does not show one.
fn job_limit(backend: &Backend, timing: Timing) -> Duration {
    let shown = backend
        .job_limit_seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    shown.unwrap_or_else(|| timing.job_limit())
}

/// Prints a line at once: what follows can take a while.
///
/// # Errors
/// Standard output cannot be written.
fn print(line: &str) -> Result<(), Failure> {
    stdout::print(&format!("{line}\n")).map(drop)
}
