//! Requesting holders to give up the lock.

use super::target::Target;
use super::terminate::{Evictor, announce, check_authorization, terminate, wait_until_gone};
use crate::cli::EvictOptions;
use crate::connection::Client;
use crate::inspect::backend::{Backend, FORGET_SESSIONS};
use crate::key;
use crate::lock::{self, EndStatement, QueryResult, simple_query};
use crate::outcome::Failure;
use crate::protocol::derived_keys;
use crate::protocol::query_tag::QueryTag;
use crate::run::session::timing::Timing;
use crate::ui::stdout;
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

/// A holder that was asked to give up the lock.
struct Request<'t, 'b> {
    pid: i32,
    target: &'t Target<'b>,
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

    /// Evicts these sessions, waits until they hold the lock no more, and prints a line for each. Returns the holders
    /// that have not given up the lock, but may still be within their limits, which they have not shown.
    ///
    /// # Errors
    /// A session does not terminate, or the connection is lost.
    pub(super) fn carry_out<'b>(mut self, targets: &[Target<'b>]) -> Result<Vec<&'b Backend>, Failure> {
        let can_ask = |target: &&Target| !self.force && is_living_holder(target, self.timing);
        let (asked, others): (Vec<&Target>, Vec<&Target>) = targets.iter().partition(can_ask);
        let start = Instant::now();
        // Waiters first, or they would acquire the lock.
        let others: Vec<&Target> = others.into_iter().rev().collect();
        let terminated = self.terminate_each(&others)?;
        let requests = self.request(&asked)?;
        // A session that does not end keeps nobody from terminating the job.
        let ended = match self.await_end(&terminated, "cannot be asked") {
            Err(failure) if self.client.has_stopped_responding() => return Err(failure),
            ended => ended,
        };
        let overdue = self.await_release(&requests)?;
        let is_limit_unknown = |target: &&Target| target.backend.job_limit_seconds.is_none();
        let (unknown, unresponsive): (Vec<&Target>, Vec<&Target>) = overdue.into_iter().partition(is_limit_unknown);
        // The role that may ask them may be another one.
        for target in &unresponsive {
            check_authorization(self.client, target.backend, Evictor::Current)?;
        }
        let terminated_late = self.terminate_each(&unresponsive)?;
        self.await_end(&terminated_late, "did not react")?;
        let mut terminated = terminated.iter().chain(&terminated_late);
        if terminated.any(|(_, target)| target.backend.is_pglock()) {
            sleep(MARK_HOLD_TIME.saturating_sub(start.elapsed()));
        }
        if !self.is_direct {
            let client = self.client.asking("to end the eviction");
            lock::end_transaction(client, EndStatement::Commit, QueryTag::ProgramOnly)?;
        }
        ended?;
        Ok(unknown.into_iter().map(|target| target.backend).collect())
    }

    /// Marks and terminates these sessions, in this order. Returns those that were still there.
    ///
    /// # Errors
    /// Our role lacks the privilege, or the connection is lost.
    fn terminate_each<'t, 'b>(&mut self, targets: &[&'t Target<'b>]) -> Result<Vec<(i32, &'t Target<'b>)>, Failure> {
        let mut terminated = Vec::new();
        for target in targets.iter().copied() {
            let Some(pid) = target.backend.pid else { continue };
            self.mark(pid)?;
            if terminate(self.client, pid, target)? {
                terminated.push((pid, target));
            } else {
                print(&format!("{} was already gone", target.backend))?;
            }
        }
        Ok(terminated)
    }

    /// Waits until these sessions are gone, and prints a line for each. Says for which reason a holder was terminated,
    /// unless that is forced.
    ///
    /// # Errors
    /// A session does not terminate, or the connection is lost.
    fn await_end(&mut self, terminated: &[(i32, &Target)], reason: &str) -> Result<(), Failure> {
        for (pid, target) in terminated {
            wait_until_gone(self.client, *pid)?;
            if target.is_holder && !self.force {
                announce(target.backend, reason);
            }
            print(&format!("evicted {}", target.backend))?;
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

    /// Marks these holders, notifies them, and prints what is waited for.
    ///
    /// # Errors
    /// The connection is lost, or standard output cannot be written.
    fn request<'t, 'b>(&mut self, asked: &[&'t Target<'b>]) -> Result<Vec<Request<'t, 'b>>, Failure> {
        let mut requests = Vec::new();
        for target in asked.iter().copied() {
            let backend = target.backend;
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
                target,
                deadline: Instant::now() + limit,
            });
        }
        if self.is_direct && !requests.is_empty() {
            self.client.asking("to notify the holders");
            self.notify(&requests.iter().collect::<Vec<_>>())?;
        }
        Ok(requests)
    }

    /// Waits until the holders have none of the locks any more, and prints a line for each that has none. Returns those
    /// that still have one at their deadline.
    ///
    /// # Errors
    /// The connection is lost, or standard output cannot be written.
    fn await_release<'t, 'b>(&mut self, requests: &[Request<'t, 'b>]) -> Result<Vec<&'t Target<'b>>, Failure> {
        let mut overdue = Vec::new();
        let mut pending: Vec<&Request> = requests.iter().collect();
        let mut next_notification = Instant::now() + NOTIFY_INTERVAL;
        self.client.asking("for the release of the lock");
        while !pending.is_empty() {
            if self.is_direct && Instant::now() >= next_notification {
                next_notification = Instant::now() + NOTIFY_INTERVAL;
                self.notify(&pending)?;
            }
            let holding = self.backends_with_locks(&pending, true)?;
            let (still_pending, released): (Vec<&Request>, Vec<&Request>) =
                pending.into_iter().partition(|request| holding.contains(&request.pid));
            for request in released {
                // The pool has lent the session to another client, and the lock that was left there is still held.
                let is_leftover = request.target.backend.is_leftover;
                if is_leftover && !self.backends_with_locks(&[request], false)?.is_empty() {
                    overdue.push(request.target);
                } else {
                    print(&format!("evicted {}", request.target.backend))?;
                }
            }
            let now = Instant::now();
            let (late, in_time): (Vec<&Request>, Vec<&Request>) =
                still_pending.into_iter().partition(|request| now >= request.deadline);
            overdue.extend(late.iter().map(|request| request.target));
            pending = in_time;
            sleep(RELEASE_POLL_INTERVAL);
        }
        Ok(overdue)
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

    /// Returns which of these backends still have one of the locks, and the same client if that is required. A pooler
    /// lends a backend that is released to the next client, and most likely to one that was waiting for the lock.
    ///
    /// # Errors
    /// The connection is lost.
    fn backends_with_locks(&mut self, requests: &[&Request], is_client_same: bool) -> Result<Vec<i32>, Failure> {
        let sessions: Vec<String> = requests
            .iter()
            .map(|Request { pid, target, .. }| {
                let name = key::sql_literal(&target.backend.application_name);
                let client = if is_client_same {
                    format!(" AND application_name = {name}")
                } else {
                    String::new()
                };
                format!("(pid = {pid}{client} AND {})", target.has_lock())
            })
            .collect();
        let sql = format!(
            "{FORGET_SESSIONS}SELECT pg_catalog.string_agg(pid::text, ',') AS pids FROM pg_catalog.pg_stat_activity a \
             WHERE {}",
            sessions.join(" OR ")
        );
        let result = QueryResult::fetch(self.client, &sql)?;
        let pids = result.get("pids").unwrap_or_default().split(',');
        Ok(pids.filter_map(|pid| pid.parse().ok()).collect())
    }
}

/// Returns whether the session is one of a pglock that lives, as far as our role can see. The backend of a lock that
/// was left in a pool bears the name of the pool's last client; but a living holder has sent a heartbeat within its
/// limit, unless its first heartbeat is still to come, which will show the limit.
pub(super) fn is_living_holder(target: &Target, timing: Timing) -> bool {
    let backend = target.backend;
    let may_be_misnamed = backend.may_be_misnamed();
    if !target.is_holder || backend.pid.is_none() || !(backend.is_pglock() || may_be_misnamed) {
        return false;
    }
    let limit = job_limit(backend, timing).as_secs_f64();
    let is_within_limit = backend.idle_seconds.is_none_or(|idle| idle <= limit);
    let is_limit_unknown = backend.job_limit_seconds.is_none();
    backend.is_hidden
        || backend.is_tagged && (is_limit_unknown || is_within_limit)
        || may_be_misnamed && is_within_limit
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
