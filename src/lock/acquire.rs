//! Acquiring a lock: the first try, tries in a transaction, retries, and the wait.
//!
//! Behind a pooler the lock belongs to an open transaction, which pins the server's session to us. Such a lock is never
//! waited for but tried again and again, so that waiters occupy no session of the pool between two tries. Where the
//! pool lends whole sessions, a waiter also gives up its connection between tries (see `lending`): the caller goes on
//! with another one.
//!
//! A lock counts as acquired when the session's own row in `pg_locks` was seen: some servers report success and lock
//! nothing.
//!
//! A backend that may have had other clients may still hold the key for one of them, and would be granted it again.
//! Every query that takes a lock to keep it looks first (`leftover`): a key that the backend holds counts as held by
//! another client.

use super::backoff::Backoff;
use super::lending::MIN_REST;
use super::query::{
    Claim, EndStatement, QueryResult, end_transaction, first_query_failure, is_statement_pooling, simple_query,
};
use super::queue::{QueueOutcome, WaitObserver, cancelled, wait_in_queue};
use super::receipt::Receipt;
use super::server::{STATEMENT_POOLING, Server};
use super::settling::ServerTimes;
use super::sql::{self, Looks};
use super::ticket::TicketQueue;
use super::types::{Acquisition, ClientInfo, Keys, Lock, OnGrant, Scope, TryOutcome, WaitEnd, WaitOptions};
use crate::connection::{Client, SIMPLE_PROTOCOL_REFUSED, Settings, is_of_full_lock_table, is_simple_protocol_refused};
use crate::outcome::{ExitCode, Failure};
use crate::protocol::query_tag::QueryTag;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A try, and the backend that answered it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Try {
    /// Result of the try.
    pub outcome: TryOutcome,
    /// The backend.
    pub backend_pid: i32,
    /// How long to leave the pool alone, if nothing was tried because it has just reached its server.
    pub settling_time: Option<Duration>,
}

/// How to try in a transaction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TransactionOptions {
    /// After how long without an acknowledgement the server must end our session.
    pub server_limit: Duration,
    /// The pauses of the wait that these tries belong to.
    pub backoff: Backoff,
    /// When the server started. One that has started at another time counts as restarted: those that lost their locks
    /// in the restart come first.
    pub known_start: Option<i64>,
    /// Whether to leave a pool alone that has just reached its server.
    pub looks_at_pool: bool,
}

impl WaitOptions {
    /// Returns how to try in a transaction during the wait. By then the pool has reached its server for long enough.
    fn in_transaction(&self) -> TransactionOptions {
        TransactionOptions {
            server_limit: self.server_limit,
            backoff: self.backoff,
            known_start: self.server_start,
            looks_at_pool: false,
        }
    }
}

impl Lock {
    /// Examines the server and, where a session lock is right, tries the lock, all in one round trip.
    ///
    /// Through a pooler (unless the user chose [`SessionPooled`](super::ScopeChoice::SessionPooled)) and on a standby
    /// the lock is not even tried: it would protect nothing, and might stay behind. Where it is tried, the session also
    /// gets the settings of a holder. If `queue` has tickets, nothing is tried and the lock counts as busy.
    ///
    /// A pooler gives itself away by `application_name`: reset to its initial value, it must be the name in our startup
    /// packet. A pooler applies a client's name later, by SET.
    ///
    /// # Errors
    /// The server is not PostgreSQL or reports an error, or the connection is lost.
    pub(crate) fn first_try(
        &self,
        client: &mut Client,
        client_info: &ClientInfo,
        queue: Option<TicketQueue>,
    ) -> Result<(Server, TryOutcome), Failure> {
        let ticket_class = queue.map(TicketQueue::class);
        let sql = self.first_query(client_info, ticket_class);
        let result = QueryResult::fetch(client, &sql);
        let result = result.map_err(|error| self.final_if_own_doing(first_query_failure(error)))?;
        let server = read_first_result(&result, client_info)?;
        Ok((server, result.try_outcome(&self.keys)))
    }

    /// Returns the failure to acquire the lock. If our own keys may have filled the server's table of locks, it is
    /// final: each further attempt would fill the table again, which ends the transactions of other clients.
    fn final_if_own_doing(&self, failure: Failure) -> Failure {
        let is_own_doing = self.has_many_keys() && is_of_full_lock_table(&failure);
        let is_transient = failure.is_transient && !is_own_doing;
        failure.transient_if(is_transient)
    }

    /// Tries for the first time in a transaction, and finds out whether there can be one.
    ///
    /// A PgBouncer with statement pooling reports an error and closes the connection; the client library, if it sees
    /// both at once, only reports the latter. A pooler that is shut down at that time looks the same, and so does one
    /// that has lost its server. `reconnect` therefore opens further connections, to see whether BEGIN ends each of
    /// them.
    ///
    /// # Errors
    /// [`ExitCode::Config`] behind statement pooling; else the server reports an error, or the connection is lost.
    pub(crate) fn first_try_in_transaction(
        &self,
        client: &mut Client,
        options: TransactionOptions,
        mut reconnect: impl FnMut() -> Option<Client>,
    ) -> Result<Try, Failure> {
        let began = Instant::now();
        let error = match self.try_in_transaction(client, options) {
            Ok(result) => return Ok(result),
            Err(error) => error,
        };
        let was_closed_at_once =
            error.is_closed() && !client.has_stopped_responding() && began.elapsed() < Duration::from_secs(1);
        let mut is_closed_again = |_| reconnect().is_some_and(is_closed_by_begin);
        if is_statement_pooling(&error) || was_closed_at_once && (0..BEGIN_PROBE_COUNT).all(&mut is_closed_again) {
            Err(Failure::msg(ExitCode::Config, STATEMENT_POOLING))
        } else {
            Err(self.final_if_own_doing(Failure::from(error)))
        }
    }

    /// Tries once, in a transaction that stays open if the lock is ours, or is said to be ours without proof, and is
    /// rolled back otherwise. Given when the server has started, finds out whether it has done so again, or is another
    /// one: a pooler hides that.
    ///
    /// The backend is the pool's, so the query that takes the lock looks for leftovers. A probe, which costs a
    /// fraction, precedes it.
    ///
    /// # Errors
    /// The server reports an error, or the connection is lost.
    fn try_in_transaction(&self, client: &mut Client, options: TransactionOptions) -> Result<Try, postgres::Error> {
        let began = Instant::now();
        let probe = self.probe_before_try(options.looks_at_pool);
        let result = QueryResult::begin(client, sql::TRANSACTION_MODES, &probe)?;
        let times = ServerTimes::read(|column| result.get(column));
        let backend_pid = result.backend_pid();
        let outcome = match result.claim(&self.keys) {
            _ if is_restarted(times, options.known_start) => TryOutcome::Restarted,
            Claim::Acquired { .. } => {
                let sql = self.try_in_transaction_query(options.server_limit);
                QueryResult::fetch(client, &sql)?.try_outcome(&self.keys)
            }
            Claim::Busy { key_index } => TryOutcome::Busy { key_index },
            Claim::Untried => TryOutcome::Untried,
        };
        if !matches!(outcome, TryOutcome::Acquired(_) | TryOutcome::Unproven { .. }) {
            // A session of the pool shows this as its last query until another client uses it.
            let tag = QueryTag::Polling(options.backoff.longest_pause(began.elapsed()));
            end_transaction(client, EndStatement::Rollback, tag)?;
        }
        let is_unsettled = options.looks_at_pool && outcome == TryOutcome::Untried;
        Ok(Try {
            outcome,
            backend_pid,
            settling_time: times.settling_time().filter(|_| is_unsettled),
        })
    }

    /// Probes the lock again. Returns the outcome if another client holds it or the server has restarted, and `None` if
    /// the lock is to be tried.
    ///
    /// # Errors
    /// The server reports an error, or the connection is lost.
    fn probe_again(
        &self,
        client: &mut Client,
        options: TransactionOptions,
        longest_pause: Duration,
    ) -> Result<Option<Try>, postgres::Error> {
        let result = fetch_probe(client, &self.probe(options.looks_at_pool), longest_pause)?;
        Ok(self.vain_try(&result, options))
    }

    /// Probes the lock on a new connection, as [`Lock::probe_again`] does. Returns `None`, too, if the pool has just
    /// reached its server, or if the session began with our application name: then there is no pooler.
    ///
    /// # Errors
    /// The server reports an error, or the connection is lost.
    pub(crate) fn probe_through_pooler(
        &self,
        client: &mut Client,
        options: TransactionOptions,
        application_name: &str,
    ) -> Result<Option<Try>, postgres::Error> {
        let longest_pause = options.backoff.longest_pause(Duration::ZERO);
        let result = fetch_probe(client, &self.probe_with_name(), longest_pause)?;
        let is_direct = result.get(sql::NAME_COLUMN) == Some(application_name);
        Ok(self.vain_try(&result, options).filter(|_| !is_direct))
    }

    /// Returns the outcome of a probe if it is certain that a try would be in vain.
    fn vain_try(&self, result: &QueryResult, options: TransactionOptions) -> Option<Try> {
        let times = ServerTimes::read(|column| result.get(column));
        let outcome = match result.claim(&self.keys) {
            _ if is_restarted(times, options.known_start) => TryOutcome::Restarted,
            Claim::Busy { key_index } => TryOutcome::Busy { key_index },
            Claim::Acquired { .. } | Claim::Untried => return None,
        };
        Some(Try {
            outcome,
            backend_pid: result.backend_pid(),
            settling_time: None,
        })
    }

    /// Waits for the lock, of which we already hold the keys before `first_busy`: key after key in the server's queue,
    /// or, where there is no queue for us, by trying again and again.
    ///
    /// # Errors
    /// The wait was cancelled, the lock would protect nothing, the server reports an error, or the connection is lost.
    pub(crate) fn wait(
        &self,
        client: &mut Client,
        options: WaitOptions,
        first_busy: usize,
        observer: &mut impl WaitObserver,
    ) -> Result<WaitEnd, Failure> {
        let end = self.wait_for_each(client, options, first_busy, observer);
        end.map_err(|failure| self.final_if_own_doing(failure))
    }

    /// Waits for the keys from `first_busy` on, one after the other.
    ///
    /// # Errors
    /// As for [`Lock::wait`], but one that another attempt would cause again may count as transient.
    fn wait_for_each(
        &self,
        client: &mut Client,
        options: WaitOptions,
        first_busy: usize,
        observer: &mut impl WaitObserver,
    ) -> Result<WaitEnd, Failure> {
        let (Scope::Session, Keys::All(ids), false) = (self.scope, &self.keys, options.leaves_queue_alone) else {
            return self.wait_by_polling(client, options, first_busy, observer);
        };
        let on_grant = if options.is_loser {
            OnGrant::KeepAsLoser
        } else {
            OnGrant::Keep {
                just_arrived: !options.has_waited,
            }
        };
        let mut end = WaitEnd::TimedOut { key_index: first_busy };
        for (key_index, id) in ids.iter().enumerate().skip(first_busy) {
            end = match wait_in_queue(client, *id, self.mode, on_grant, options, observer)? {
                QueueOutcome::Acquired(grant) => WaitEnd::Acquired(grant),
                QueueOutcome::TimedOut => return Ok(WaitEnd::TimedOut { key_index }),
                QueueOutcome::NoQueue => return self.wait_by_polling(client, options, key_index, observer),
            };
        }
        Ok(end)
    }

    /// Tries the keys from `first_busy` on, again and again.
    ///
    /// # Errors
    /// As for [`Lock::wait`].
    fn wait_by_polling(
        &self,
        client: &mut Client,
        options: WaitOptions,
        first_busy: usize,
        observer: &mut impl WaitObserver,
    ) -> Result<WaitEnd, Failure> {
        let mut try_duration = options.try_duration;
        let mut key_index = first_busy;
        loop {
            let time_left = options.wait.time_left();
            if time_left == Some(Duration::ZERO) {
                return Ok(WaitEnd::TimedOut { key_index });
            }
            let longest_pause = options.backoff.longest_pause(try_duration);
            let next_pause = |min_pause| options.backoff.next_pause(try_duration, min_pause, time_left);
            if observer.must_close(try_duration, longest_pause) {
                let pause = next_pause(MIN_REST);
                observer.before_closing(client, pause);
                self.release_before(client, key_index)?;
                return Ok(WaitEnd::GiveUpConnection { pause });
            }
            if !observer.pause(client, next_pause(Duration::ZERO)) {
                return Err(cancelled());
            }
            let began = Instant::now();
            observer.before_query(Duration::ZERO);
            // Between two tries in transactions we hold no keys.
            let Try {
                outcome, backend_pid, ..
            } = match self.scope {
                // After a probe others have a round trip to come first. A loser gives them none.
                Scope::Transaction if options.is_loser => self.try_in_transaction(client, options.in_transaction())?,
                Scope::Transaction => match self.probe_again(client, options.in_transaction(), longest_pause)? {
                    Some(result) => result,
                    None => {
                        observer.before_query(Duration::ZERO);
                        self.try_in_transaction(client, options.in_transaction())?
                    }
                },
                Scope::Session => self.try_again(client, key_index, options)?,
            };
            try_duration = began.elapsed();
            observer.note_backend(backend_pid);
            let outcome = if options.is_lent {
                outcome
            } else {
                self.await_proof(client, outcome, |pause| {
                    let goes_on = observer.sleep(pause);
                    observer.before_query(Duration::ZERO);
                    goes_on
                })?
            };
            match outcome.into_acquisition()? {
                Acquisition::Acquired(grant) => return Ok(WaitEnd::Acquired(grant)),
                Acquisition::Busy { key_index: busy } => key_index = busy,
            }
        }
    }

    /// Before the connection is given up: releases the keys that the session holds, those before the busy one.
    /// Otherwise the session would keep them if the pooler does not reset it.
    ///
    /// # Errors
    /// The server reports an error, or the connection is lost.
    fn release_before(&self, client: &mut Client, key_index: usize) -> Result<(), postgres::Error> {
        match (self.scope, &self.keys) {
            (Scope::Session, Keys::All(ids)) if key_index > 0 => {
                let keys = Keys::All(ids[..key_index].to_vec());
                Lock { keys, ..*self }.release(client, Receipt::None).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Tries the keys from `first_busy` on, for the session. The outcome counts all keys.
    ///
    /// # Errors
    /// The server reports an error, or the connection is lost.
    fn try_again(&self, client: &mut Client, first_busy: usize, options: WaitOptions) -> Result<Try, postgres::Error> {
        let (keys, keys_before) = match &self.keys {
            Keys::All(ids) => (Keys::All(ids[first_busy..].to_vec()), first_busy),
            candidates => (candidates.clone(), 0),
        };
        let remaining = Lock { keys, ..*self };
        // How long this try takes is not known yet.
        let tag = QueryTag::Polling(options.backoff.longest_pause(Duration::MAX));
        let sql = remaining.retry(Looks::if_lent(options.is_lent));
        let result = QueryResult::fetch_tagged(client, &sql, tag)?;
        let outcome = match result.try_outcome(&remaining.keys) {
            TryOutcome::Busy { key_index } => TryOutcome::Busy {
                key_index: keys_before + key_index,
            },
            outcome => outcome,
        };
        Ok(Try {
            outcome,
            backend_pid: result.backend_pid(),
            settling_time: None,
        })
    }
}

/// Returns whether the server has started at another time than the one that we know.
fn is_restarted(times: ServerTimes, known_start: Option<i64>) -> bool {
    known_start
        .zip(times.start())
        .is_some_and(|(known, start)| known != start)
}

/// Returns the failure of queries on a connection that was opened `took` ago, or, if the pooler ended the connection
/// because it refuses simple queries, what to do about that.
///
/// A PgBouncer with `disable_pqexec` says so and closes the connection; the client library, if it sees both at once,
/// only reports the latter. So does a pooler or a server that is shut down at that time. `reconnect` therefore opens
/// further connections, to see whether each of them answers a query of the extended protocol and is ended by an empty
/// simple one.
pub(crate) fn explain_first_failure(
    failure: Failure,
    client: &Client,
    took: Duration,
    mut reconnect: impl FnMut() -> Option<Client>,
) -> Failure {
    let was_closed_at_once = client.is_closed() && !client.has_stopped_responding() && took < Duration::from_secs(1);
    let mut is_closed_again = |_| reconnect().is_some_and(is_closed_by_simple_query);
    if failure.is_transient && was_closed_at_once && (0..BEGIN_PROBE_COUNT).all(&mut is_closed_again) {
        return Failure::msg(ExitCode::Config, SIMPLE_PROTOCOL_REFUSED);
    }
    failure
}

/// Returns a further connection to see what ends it, after a pause; `None` if there is none.
pub(crate) fn reconnect_to_probe(settings: &Settings, application_name: &str) -> Option<Client> {
    sleep(BEGIN_PROBE_PAUSE);
    Some(settings.reopen(application_name).ok()?.client)
}

/// Returns whether a simple query, and no earlier one of the extended protocol, ends this connection.
fn is_closed_by_simple_query(mut client: Client) -> bool {
    let is_alive = client.extended_query("SELECT 1").is_ok();
    let queried = client.simple_query("");
    is_alive && queried.is_err_and(|error| error.is_closed() || is_simple_protocol_refused(&error))
}

/// Reads what the result of the first query reports about the server.
///
/// # Errors
/// The server is not PostgreSQL.
fn read_first_result(result: &QueryResult, client_info: &ClientInfo) -> Result<Server, Failure> {
    if !result.has_row() {
        return Err(Failure::msg(
            ExitCode::Config,
            "the server returned no row for the first query, as no PostgreSQL server does",
        ));
    }
    Ok(Server::from_first_result(result, &client_info.application_name))
}

/// Runs a probe. The pauses between probes are at most `longest_pause`, unless a probe is slow.
///
/// Most tries of a waiter end with one. It is one message, a transaction of its own: what it acquires is released
/// before its reply comes. So the only thing that it can decide is to wait on.
///
/// # Errors
/// The server reports an error, or the connection is lost.
fn fetch_probe(client: &mut Client, probe: &str, longest_pause: Duration) -> Result<QueryResult, postgres::Error> {
    // The pause to come is longer if this probe is slow, which is not known yet.
    let tag = QueryTag::Polling(longest_pause * 2);
    QueryResult::fetch_in_own_transaction(client, sql::TRANSACTION_MODES, probe, tag)
}

/// Gives the session the settings that the first query gives a holder's.
///
/// # Errors
/// The server reports an error, or the connection is lost.
pub(crate) fn configure_session(client: &mut Client, server_limit: Duration) -> Result<(), postgres::Error> {
    simple_query(client, &sql::configure_session(server_limit)).map(drop)
}

/// How many further connections BEGIN, or a simple query, must end before the pooler is taken for one that always does
/// so: a pooler that cannot reach its server ends many connections at a time, and then no more.
const BEGIN_PROBE_COUNT: u32 = 10;

/// The pause before each of [`BEGIN_PROBE_COUNT`] connections.
pub(crate) const BEGIN_PROBE_PAUSE: Duration = Duration::from_millis(100);

/// Returns whether BEGIN, and no earlier query, ends this connection: a pooler whose server is gone ends it earlier.
fn is_closed_by_begin(mut client: Client) -> bool {
    let is_alive = simple_query(&mut client, "SELECT 1").is_ok();
    let begun = client.simple_query("BEGIN");
    is_alive && begun.is_err_and(|error| error.is_closed() || is_statement_pooling(&error))
}
