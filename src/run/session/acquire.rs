//! Acquiring the lock, on the session's thread: the first try, the wait, or the conflict.

use super::connect;
use super::events::SessionEvent;
use super::orders::{Orders, interrupted};
use super::plan::SessionPlan;
use super::prepare::{Prepared, Preparer};
use super::reporter::Reporter;
use super::request::LockRequest;
use super::retry::{Retry, WaitMemory};
use super::wait_observer::{SessionWaitObserver, max_pool_wait};
use crate::connection::{Canceller, Client};
use crate::history::{Begun, LastSuccess, RecordedRun};
use crate::inspect::backend::Backend;
use crate::inspect::{holders, proxy};
use crate::key::{self, KeyId};
use crate::lock::{
    self, Acquisition, Backoff, ClientInfo, Grant, Keys, Lock, Mode, Receipt, Scope, ScopeChoice, Server, Settling,
    Ticket, TicketQueue, TransactionOptions, Try, TryOutcome, Turn, Wait, WaitEnd, WaitOptions,
};
use crate::outcome::{ExitCode, Failure};
use crate::protocol::derived_keys::slot_keys;
use crate::protocol::query_tag::QueryTag;
use crate::run::ancestors;
use crate::run::options::RunOptions;
use crate::ui::message;
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// The longest pause between two tries of the head of a ticket queue, which may try often: no other waiter tries.
const HEAD_OF_QUEUE_MAX_PAUSE: Duration = Duration::from_millis(20);

/// How long a waiter behind a pooler holds the lock before it proves it again and starts its job.
///
/// A server that is stopped ends its newest sessions first (`SignalSomeChildren`; in PostgreSQL 18 `SignalChildren`),
/// and those of a pool are old: the key may be free only because the holder's session was ended a moment before ours.
/// Seen on a busy machine: at least 24 ms.
const SECOND_PROOF_DELAY: Duration = Duration::from_millis(100);

/// Acquires the lock of a plan.
pub(super) struct Acquirer<'a> {
    pub(super) plan: &'a SessionPlan,
    pub(super) orders: &'a Orders,
    pub(super) reporter: &'a Reporter,
    /// The session's socket, if it is known.
    pub(super) socket: Option<&'a OwnedFd>,
}

/// How acquiring ended.
pub(super) enum AcquireOutcome {
    Acquired(AcquiredLock),
    /// Another client holds the lock; the message for the user.
    Conflict(String),
    /// The key has succeeded within the interval of `--once-per`; the message for the user. Nothing is held.
    NotDue(String),
    /// The wait goes on over another connection; nothing is held.
    GivenUp,
}

/// The lock that we acquired.
pub(super) struct AcquiredLock {
    /// The numbers of the keys, in the order in which they were given.
    pub(super) ids: Vec<KeyId>,
    /// The lock that is held, and later released.
    pub(super) lock: Lock,
    pub(super) grant: Grant,
    /// Whether the session is the server's own, with no pooler between.
    pub(super) is_direct: bool,
    /// Our place in the ticket queue, to be released.
    pub(super) ticket: Option<Ticket>,
    pub(super) token: Option<String>,
    /// The run, if it is recorded.
    pub(super) run: Option<RecordedRun>,
}

/// How the wait ended.
enum WaitOutcome {
    Acquired { grant: Grant, ticket: Option<Ticket> },
    Busy { key_index: usize },
    GivenUp { pause: Duration },
}

impl Acquirer<'_> {
    /// Acquires the lock and, if requested, a fencing token and a record of the run.
    ///
    /// # Errors
    /// The lock would protect nothing, the wait was cancelled, the server reports an error, or the connection is lost.
    pub(super) fn acquire(
        &self,
        client: &mut Client,
        canceller: Canceller,
        memory: &mut WaitMemory,
    ) -> Result<AcquireOutcome, Failure> {
        self.take_up_wait(client, memory)?;
        let (request, acquisition) = match self.continue_wait(client, memory)? {
            Some((request, key_index)) => (request, Acquisition::Busy { key_index }),
            None => self.first_try(client, canceller, memory)?,
        };
        let (grant, ticket) = match acquisition {
            Acquisition::Acquired(grant) => (grant, None),
            Acquisition::Busy { key_index } => match self.wait(client, &request, key_index, memory)? {
                WaitOutcome::Acquired { grant, ticket } => (grant, ticket),
                WaitOutcome::Busy { key_index } => {
                    let message = self.give_up(client, &request, key_index)?;
                    return Ok(AcquireOutcome::Conflict(message));
                }
                WaitOutcome::GivenUp { pause } => {
                    memory.note_given_up(request, pause);
                    return Ok(AcquireOutcome::GivenUp);
                }
            },
        };
        let prepared = self.prepare(client, request, grant, ticket, memory.was_contended());
        if prepared.as_ref().is_err_and(|failure| failure.is_transient) {
            memory.note_withdrawal();
        }
        prepared
    }

    /// Prepares the run of a lock that we hold: proves the lock again if need be, creates the fencing token and records
    /// the run.
    ///
    /// # Errors
    /// The order to release came, the server reports an error, the run table cannot be used, or the lock or a
    /// connection is lost.
    fn prepare(
        &self,
        client: &mut Client,
        request: LockRequest,
        mut grant: Grant,
        ticket: Option<Ticket>,
        was_contended: bool,
    ) -> Result<AcquireOutcome, Failure> {
        let preparer = Preparer {
            plan: self.plan,
            reporter: self.reporter,
            lock: &request.lock,
            server_start: request.server.start(),
            ids: &request.ids,
        };
        let must_prove_again = was_contended && self.is_backend_lent(&request.server);
        if !self.may_prepare(must_prove_again) {
            self.give_back(client, &request, grant, ticket)?;
            return Err(interrupted());
        }
        if must_prove_again {
            preparer.refresh_grant(client, &mut grant)?;
        }
        let Prepared { token, begun } = preparer.prepare(client, &mut grant)?;
        let run = match begun {
            Some(Begun::NotDue(last)) => {
                self.give_back(client, &request, grant, ticket)?;
                return Ok(AcquireOutcome::NotDue(self.not_due_message(&last)));
            }
            Some(Begun::Recorded(run)) => Some(run),
            None => None,
        };
        // The timing rule counts from when the last query was sent, and its reply may have been a long wait.
        if grant.query_sent.elapsed() >= self.options().policy.timing.heartbeat {
            preparer.refresh_grant(client, &mut grant)?;
        }
        Ok(AcquireOutcome::Acquired(AcquiredLock {
            lock: request.lock.held(grant),
            ids: request.ids,
            grant,
            is_direct: !request.server.pooled,
            ticket,
            token,
            run,
        }))
    }

    /// Returns false if the order to release a lock came before the lock could be proven again or its run be recorded.
    /// Pauses before a second proof.
    fn may_prepare(&self, must_prove_again: bool) -> bool {
        let is_recorded = self.options().record.is_some();
        if is_recorded {
            // Then a main thread that ends either sees this report, or is seen to have given the order to release.
            self.reporter.report(SessionEvent::Preparing);
        }
        match (must_prove_again, is_recorded) {
            (true, _) => self.pause(SECOND_PROOF_DELAY),
            (false, true) => self.pause(Duration::ZERO),
            (false, false) => true,
        }
    }

    /// Releases a lock under which no job was started. The backend may be a pool's, and would keep it.
    ///
    /// # Errors
    /// The connection is lost.
    fn give_back(
        &self,
        client: &mut Client,
        request: &LockRequest,
        grant: Grant,
        ticket: Option<Ticket>,
    ) -> Result<(), Failure> {
        if let Some(ticket) = ticket {
            ticket.release(client)?;
        }
        let receipt = Receipt::unless_lent(self.is_backend_lent(&request.server));
        request.lock.held(grant).release(client, receipt)?;
        Ok(())
    }

    /// Returns the message that the key has succeeded within the interval of `--once-per`.
    fn not_due_message(&self, last: &LastSuccess) -> String {
        let interval = self.options().record.as_ref().and_then(|record| record.once_per);
        last.sentence(&key::describe(&self.options().keys), interval.unwrap_or_default())
    }

    fn options(&self) -> &RunOptions {
        &self.plan.options
    }

    /// Continues, with one probe, a wait that gave up its connection to a pool of transactions. Returns the busy key if
    /// another client still holds the lock: nothing else has to be known to wait on. Returns `None` if the server is to
    /// be examined: there is no pooler any more, the pool has just reached the server, or the lock may be free.
    ///
    /// Returns `None`, too, where the pool may lend whole sessions: the queries that examine the server also show
    /// whether they run on different backends.
    ///
    /// # Errors
    /// The server has started since then or is another one, it reports an error, or the connection is lost.
    fn continue_wait(
        &self,
        client: &mut Client,
        memory: &mut WaitMemory,
    ) -> Result<Option<(LockRequest, usize)>, Failure> {
        let is_of_transaction = |request: &&LockRequest| request.lock.scope == Scope::Transaction;
        let request = memory.request().filter(is_of_transaction);
        let Some(request) = request.filter(|_| memory.lending.is_by_transaction()) else {
            return Ok(None);
        };
        let request = LockRequest {
            tried: Instant::now(),
            ..request.clone()
        };
        self.reporter.expect_reply_within(max_pool_wait(&request.server));
        let query_sent = Instant::now();
        let options = self.transaction_options(&request, memory, Settling::ServerAndPool);
        let name = self.plan.application_name();
        let Some(result) = request.lock.probe_through_pooler(client, options, &name)? else {
            return Ok(None);
        };
        memory.note_answer();
        memory.lending.note_backend(result.backend_pid);
        let acquisition = result.outcome.into_acquisition()?;
        memory.note_answer_to(query_sent);
        match acquisition {
            Acquisition::Busy { key_index } => Ok(Some((request, key_index))),
            Acquisition::Acquired(_) => Ok(None),
        }
    }

    /// Examines the server and tries the lock for the first time: in the same query, unless that takes a transaction.
    ///
    /// # Errors
    /// As for [`Lock::first_try`] and [`Server::usable_scope`].
    fn first_try(
        &self,
        client: &mut Client,
        canceller: Canceller,
        memory: &mut WaitMemory,
    ) -> Result<(LockRequest, Acquisition), Failure> {
        let began = Instant::now();
        let mut settling = Settling::ServerAndPool;
        let may_be_unfit = !memory.has_answered;
        let (mut request, mut outcome) = match self.first_query(client, memory, settling) {
            Err(failure) if may_be_unfit => {
                let reconnect = || self.reconnect_to_probe();
                return Err(lock::explain_first_failure(failure, client, began.elapsed(), reconnect));
            }
            result => result?,
        };
        memory.note_server(&request.server);
        self.note_answer(memory);
        while let Some(settling_time) = request.server.times.settling_time() {
            self.let_server_settle(settling_time)?;
            // The pool may lend another backend now, but has reached the server for long enough.
            settling = Settling::Server;
            (request, outcome) = self.first_query(client, memory, settling)?;
        }
        let server = &request.server;
        let is_restarted = |known| server.start().is_some_and(|start| start != known);
        if memory.known_start().is_some_and(is_restarted) {
            return Err(lock::restarted());
        }
        memory.note_answer_to(request.tried);
        // A cancel request through a pooler has hardly anything to interrupt, and can make PgBouncer 1.18 exit, with
        // the locks of all its clients.
        if !server.pooled {
            self.reporter.report(SessionEvent::Cancellable(canceller));
        }
        if !memory.is_going_on() {
            message::detail(format_args!(
                "connected to database {:?}, backend {}{}",
                server.database,
                server.backend_pid,
                if server.pooled { ", through a pooler" } else { "" },
            ));
            self.report_proxy(client, server);
        }
        memory.lending.note_backend(server.backend_pid);
        let outcome = match request.lock.scope {
            Scope::Session => outcome,
            Scope::Transaction => self.first_try_in_transaction(client, &mut request, memory, settling)?,
        };
        let outcome = if self.is_backend_lent(&request.server) {
            outcome
        } else {
            request.lock.await_proof(client, outcome, |pause| self.pause(pause))?
        };
        let acquisition = outcome.into_acquisition()?;
        Ok((request, acquisition))
    }

    /// With `-v`, reports that something forwards the connection: the server's limits then watch that.
    fn report_proxy(&self, client: &mut Client, server: &Server) {
        if !message::is_verbose() || server.pooled {
            return;
        }
        self.reporter.expect_reply_within(Duration::ZERO);
        // On an error nothing is reported; the next query finds out what is wrong.
        if let Ok(Some(forwarded)) = proxy::find(client, self.socket) {
            message::detail(format_args!(
                "{forwarded}: a proxy or address translation is in between"
            ));
        }
    }

    /// After a lost connection: ends an evicted wait, and leaves the key alone as long as the job of the client that
    /// held it may run. After a failed attempt to connect, leaves the server alone for a moment.
    ///
    /// # Errors
    /// As for [`Retry::check_eviction`] and [`Retry::await_old_job`].
    fn take_up_wait(&self, client: &mut Client, memory: &mut WaitMemory) -> Result<(), Failure> {
        let retry = Retry {
            plan: self.plan,
            orders: self.orders,
            reporter: self.reporter,
        };
        retry.check_eviction(client, memory)?;
        if memory.must_await_old_job() {
            let ids = self.key_ids(client, memory)?;
            let ids = self.lock(&ids, Scope::Session).ids().to_vec();
            retry.await_old_job(client, &ids, memory)
        } else if memory.follows_failure() {
            self.let_server_settle(lock::GUARD_TIME)
        } else {
            Ok(())
        }
    }

    /// Leaves a server alone that has just started, or may have: a client that lost the lock in the restart comes
    /// first.
    ///
    /// # Errors
    /// The order to release came.
    fn let_server_settle(&self, settling_time: Duration) -> Result<(), Failure> {
        message::detail(
            "the server has just started, or could not be reached before; waiting half a second for jobs that lost \
             their locks",
        );
        self.reporter.expect_reply_within(settling_time);
        if self.orders.is_release_ordered_within(settling_time) {
            return Err(interrupted());
        }
        Ok(())
    }

    /// Tries the lock for the first time in a transaction.
    ///
    /// # Errors
    /// As for [`Lock::first_try_in_transaction`]; and [`ExitCode::Config`] with `--fair`.
    fn first_try_in_transaction(
        &self,
        client: &mut Client,
        request: &mut LockRequest,
        memory: &mut WaitMemory,
        settling: Settling,
    ) -> Result<TryOutcome, Failure> {
        if self.options().fair {
            return Err(Failure::msg(
                ExitCode::Config,
                "--fair requires a session of its own, and the connection goes through a pooler; connect to the port \
                 of the PostgreSQL server itself, or leave --fair out",
            ));
        }
        let mut options = self.transaction_options(request, memory, settling);
        loop {
            self.reporter.expect_reply_within(max_pool_wait(&request.server));
            let reconnect = || self.reconnect_to_probe();
            let Try {
                outcome,
                backend_pid,
                settling_time,
            } = request.lock.first_try_in_transaction(client, options, reconnect)?;
            memory.lending.note_backend(backend_pid);
            let Some(settling_time) = settling_time else {
                return Ok(outcome);
            };
            self.let_server_settle(settling_time)?;
            // That half second makes no slow try, after which the waiter would pause for ten times as long.
            request.tried = Instant::now();
            options.looks_at_pool = false;
        }
    }

    /// Returns how to try in a transaction.
    fn transaction_options(
        &self,
        request: &LockRequest,
        memory: &WaitMemory,
        settling: Settling,
    ) -> TransactionOptions {
        TransactionOptions {
            server_limit: self.options().policy.timing.server_limit(),
            backoff: self.backoff(memory),
            known_start: request.server.start(),
            looks_at_pool: request.server.pooled && settling == Settling::ServerAndPool,
        }
    }

    /// Returns a further connection to see what ends it, after a pause; `None` if there is none, or on the order to
    /// release.
    fn reconnect_to_probe(&self) -> Option<Client> {
        if self.orders.is_release_ordered_within(lock::BEGIN_PROBE_PAUSE) {
            return None;
        }
        let limit = self.options().policy.timing.reply_limit();
        let client = connect::open_to_probe(self.plan, self.reporter, limit).ok()?.client;
        // Two queries follow.
        self.reporter.expect_reply_within(limit * 2);
        Some(client)
    }

    /// Returns the pauses of the wait.
    fn backoff(&self, memory: &WaitMemory) -> Backoff {
        Backoff::new(memory.wait_began(), self.options().poll)
    }

    /// Examines the server and tries the lock if it is a session's.
    ///
    /// # Errors
    /// As for [`Lock::first_try`] and [`Server::usable_scope`].
    fn first_query(
        &self,
        client: &mut Client,
        memory: &mut WaitMemory,
        settling: Settling,
    ) -> Result<(LockRequest, TryOutcome), Failure> {
        let client_info = self.client_info(memory, settling);
        let tried = Instant::now();
        let ids = self.key_ids(client, memory)?;
        let lock = self.lock(&ids, Scope::Session);
        self.reporter.expect_reply_within(Duration::ZERO);
        // One that has given up a connection has no ticket, and waits for none.
        let queue = self.ticket_queue(&ids).filter(|_| !memory.is_going_on());
        let (server, outcome) = lock.first_try(client, &client_info, queue)?;
        let scope = server.usable_scope(self.options().scope)?;
        let request = LockRequest {
            ids,
            lock: Lock { scope, ..lock },
            server,
            tried,
        };
        Ok((request, outcome))
    }

    fn client_info(&self, memory: &WaitMemory, settling: Settling) -> ClientInfo {
        ClientInfo {
            application_name: self.plan.application_name(),
            choice: self.options().scope,
            server_limit: Some(self.options().policy.timing.server_limit()),
            settling,
            known_start: memory.known_start(),
        }
    }

    /// Returns the numbers of the keys. Those that depend on the server take a query of their own.
    ///
    /// # Errors
    /// As for [`lock::key_ids`].
    fn key_ids(&self, client: &mut Client, memory: &mut WaitMemory) -> Result<Vec<KeyId>, Failure> {
        let keys = &self.options().keys;
        let is_query = keys.iter().any(|key| key.number().known().is_none());
        if is_query {
            self.reporter.expect_reply_within(Duration::ZERO);
        }
        let ids = lock::key_ids(client, keys)?;
        if is_query {
            self.note_answer(memory);
        }
        Ok(ids)
    }

    /// Notes an answer of the server: from now on, the wait endures.
    fn note_answer(&self, memory: &mut WaitMemory) {
        memory.note_answer();
        self.reporter.report(SessionEvent::Answered);
    }

    /// Returns the lock to request for keys with these numbers.
    fn lock(&self, ids: &[KeyId], scope: Scope) -> Lock {
        let keys = match self.options().slots {
            // From a random slot on, so that clients that start together do not all try the same one first.
            Some(count) => Keys::OneOf {
                keys: ids.iter().flat_map(|id| slot_keys(*id, count)).collect(),
                start: fastrand::usize(..usize::from(count)),
            },
            None => {
                let sorted: BTreeSet<KeyId> = ids.iter().copied().collect();
                Keys::All(sorted.into_iter().collect())
            }
        };
        Lock {
            keys,
            mode: self.options().mode,
            scope,
        }
    }

    /// Returns whether the backend may have had other clients.
    fn is_backend_lent(&self, server: &Server) -> bool {
        server.pooled || self.options().scope == ScopeChoice::SessionPooled
    }

    /// Sleeps between two queries. Returns whether to go on.
    fn pause(&self, pause: Duration) -> bool {
        self.reporter.expect_reply_within(pause);
        let goes_on = !self.orders.is_release_ordered_within(pause);
        self.reporter.expect_reply_within(Duration::ZERO);
        goes_on
    }

    /// Returns the ticket queue to wait in, if the wait needs one.
    fn ticket_queue(&self, ids: &[KeyId]) -> Option<TicketQueue> {
        let needs_tickets = self.options().fair || self.options().slots.is_some();
        if !needs_tickets || self.plan.wait == Wait::Try {
            return None;
        }
        ids.first().map(|id| TicketQueue::for_key(*id))
    }

    /// Waits for the lock, if it is to be waited for at all.
    ///
    /// # Errors
    /// As for [`Lock::wait`].
    fn wait(
        &self,
        client: &mut Client,
        request: &LockRequest,
        key_index: usize,
        memory: &mut WaitMemory,
    ) -> Result<WaitOutcome, Failure> {
        memory.note_contention();
        self.reporter.report(SessionEvent::Contended);
        self.refuse_to_wait_for_ancestor(client, request)?;
        if self.plan.wait == Wait::Try {
            return Ok(WaitOutcome::Busy { key_index });
        }
        if message::is_verbose() && !memory.is_going_on() {
            let pause = self.backoff(memory).longest_pause(Duration::ZERO);
            let conflict = self.conflict_message(client, request, key_index, pause);
            message::detail(format_args!("{conflict}; waiting"));
        }
        let LockRequest {
            ids,
            lock,
            server,
            tried,
        } = request;
        let queue = self.ticket_queue(ids).filter(|_| self.keeps_connection(request));
        let mut wait_options = WaitOptions {
            wait: self.plan.wait,
            max_slice: server.max_slice,
            backoff: self.backoff(memory),
            try_duration: tried.elapsed(),
            leaves_queue_alone: !self.keeps_connection(request),
            server_start: server.start(),
            server_limit: self.options().policy.timing.server_limit(),
            is_lent: self.is_backend_lent(server),
            is_loser: false,
            has_waited: false,
        };
        let mut observer = SessionWaitObserver::new(
            self.plan,
            self.orders,
            self.reporter,
            server,
            lock,
            memory,
            self.keeps_connection(request),
        );
        let mut ticket = None;
        if let (Some(queue), Scope::Session) = (queue, lock.scope) {
            ticket = match queue.wait_for_turn(client, wait_options, &mut observer)? {
                Turn::Reached(ticket) => Some(ticket),
                Turn::TimedOut => return Ok(WaitOutcome::Busy { key_index }),
            };
            wait_options.backoff = wait_options.backoff.at_most(HEAD_OF_QUEUE_MAX_PAUSE);
            wait_options.has_waited = true;
        }
        Ok(match lock.wait(client, wait_options, key_index, &mut observer)? {
            WaitEnd::Acquired(grant) => WaitOutcome::Acquired { grant, ticket },
            WaitEnd::TimedOut { key_index } => WaitOutcome::Busy { key_index },
            WaitEnd::GiveUpConnection { pause } => WaitOutcome::GivenUp { pause },
        })
    }

    /// Refuses a lock that a pglock holds in whose job we run: it would be released only after we have exited.
    ///
    /// # Errors
    /// [`ExitCode::Usage`] in that case.
    fn refuse_to_wait_for_ancestor(&self, client: &mut Client, request: &LockRequest) -> Result<(), Failure> {
        let ancestors = ancestors::of_this_process();
        if ancestors.is_empty() {
            return Ok(());
        }
        let tag = QueryTag::between_tries(request.lock.scope == Scope::Transaction, self.options().poll);
        self.reporter.expect_reply_within(max_pool_wait(&request.server));
        let holders = holders::find(client, request.lock.ids(), tag)?;
        let is_obstacle = |holder: &Backend| {
            let are_compatible = holder.is_shared && self.options().mode == Mode::Shared;
            !are_compatible && ancestors::is_one_of(holder, &ancestors)
        };
        let ancestor = holders.iter().find(|holder| is_obstacle(holder));
        let is_slot_free_of_them = match request.lock.keys {
            Keys::All(_) => false,
            Keys::OneOf { .. } => holders.iter().any(|holder| !is_obstacle(holder)),
        };
        match ancestor {
            Some(ancestor) if !is_slot_free_of_them => Err(Failure::msg(
                ExitCode::Usage,
                format!(
                    "{}{} is held by {ancestor}, an ancestor of this pglock, so the wait would never end; omit the inner \
                     lock, or use another key",
                    if self.options().keys.len() > 1 { "one of " } else { "" },
                    key::describe(&self.options().keys)
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Returns whether the wait keeps its connection: a direct one, or one with a place in the queue of `--fair`.
    fn keeps_connection(&self, request: &LockRequest) -> bool {
        !request.server.pooled || self.options().fair
    }

    /// Releases the keys that were acquired, and returns the message that says who holds the lock.
    ///
    /// # Errors
    /// The connection is lost.
    fn give_up(&self, client: &mut Client, request: &LockRequest, key_index: usize) -> Result<String, Failure> {
        // With -q nobody reads it. But where tries leave no trace on the server, its query also ends the wait for those
        // who list waiters.
        let message = if message::is_quiet() && request.lock.scope == Scope::Session {
            String::new()
        } else {
            self.conflict_message(client, request, key_index, Duration::ZERO)
        };
        if request.lock.scope == Scope::Session && key_index > 0 {
            let keys = Keys::All(request.lock.ids()[..key_index].to_vec());
            let receipt = Receipt::unless_lent(self.is_backend_lent(&request.server));
            Lock { keys, ..request.lock }.release(client, receipt)?;
        }
        Ok(message)
    }

    /// Returns the message that says which key is held, and by whom. The next try follows within `pause`, or none if
    /// that is zero.
    fn conflict_message(
        &self,
        client: &mut Client,
        request: &LockRequest,
        key_index: usize,
        pause: Duration,
    ) -> String {
        self.reporter.expect_reply_within(max_pool_wait(&request.server));
        let busy_ids = match &request.lock.keys {
            Keys::All(ids) => &ids[key_index..=key_index],
            Keys::OneOf { keys, .. } => keys,
        };
        let tag = QueryTag::between_tries(request.lock.scope == Scope::Transaction, pause);
        let found = holders::find(client, busy_ids, tag).ok();
        // Slot 0 is the key itself.
        let given_index = request.ids.iter().position(|id| *id == busy_ids[0]).unwrap_or_default();
        let (key, id) = (&self.options().keys[given_index], request.ids[given_index]);
        let database = &request.server.database;
        let found = found.map(|holders| holders::mark_leftovers(holders, key, id, database));
        holders::conflict_message(key, id, self.options().slots, database, found.as_deref())
    }
}
