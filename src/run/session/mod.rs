//! The session that holds the lock, on a thread of its own.
//!
//! A blocking call of the client library cannot be interrupted, so all of them happen here, and the main thread
//! only polls. This thread is the one owner of the connection until the lock is given back: taking the lock, the
//! heartbeat and giving it back never race each other. What is left then is to close it, and it goes to the main
//! thread with the news. This thread acts on one order ([`Session::release`]) and reports what happens; each sign of
//! life comes with the moment by which the next one is due, and it is the main thread that notices when it does not
//! come.
//!
//! The connection is opened once. It is never opened again: the lock would be somebody else's by then.

pub mod timing;

use crate::connection::{Canceller, Connection, Settings};
use crate::inspect::backend::Backend;
use crate::inspect::{eviction, holders};
use crate::key::{Key, KeyId, Number};
use crate::lock::ticket::{Ticket, TicketQueue};
use crate::lock::{
    self, ClientInfo, Computed, Grant, Keys, Lock, Scope, Server, TryOutcome, Wait, WaitObserver, WaitOptions,
};
use crate::outcome::{ExitCode, Failure};
use crate::protocol::derived_keys::slot_keys;
use crate::protocol::name;
use crate::run::options::RunOptions;
use crate::run::signals::Waker;
use crate::sys;
use crate::ui::message;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, shutdown};
use postgres::Client;
use postgres::error::SqlState;
use postgres::fallible_iterator::FallibleIterator;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// What the session has to say. The order is that of a good day.
pub enum SessionEvent {
    /// There is a server, or a pooler.
    Connected,
    /// It is the server itself, so the wait can be interrupted by this.
    Direct(Canceller),
    /// It lives; the next report is due by then, or it does not.
    Alive(Instant),
    /// Others hold the lock: these, as a glance while we wait has shown.
    Waiting(Vec<Backend>),
    /// The lock is ours.
    Held(Held),
    /// Somebody else holds it, in words.
    Conflict(String),
    /// The lock cannot be had.
    Failed(Failure),
    /// The session ended while it held the lock: why.
    Lost(String),
    /// Somebody has ended the session: who.
    Evicted(String),
    /// The lock is given back.
    Released {
        /// It was ours until then.
        was_held: bool,
        /// The session, to be closed by whoever hears this: the end of the server's process may take the processor on
        /// which the news would be heard.
        session: Box<Client>,
    },
    /// A fault of ours has ended the session, and nothing more will be said of it.
    Broken,
}

/// The lock that we hold.
pub struct Held {
    /// The numbers of the keys that were asked for, in their order.
    pub ids: Vec<KeyId>,
    /// The slot that is ours, if slots were asked for.
    pub slot: Option<usize>,
    /// A number greater than every earlier holder's, if one was asked for.
    pub token: Option<String>,
    /// The process of the server that holds it for us.
    pub backend_pid: i32,
    /// The session's socket, where it is known.
    pub socket: Option<Arc<OwnedFd>>,
}

/// What the session's thread is to acquire, and how.
pub struct SessionPlan {
    /// What the user asked for.
    pub options: Arc<RunOptions>,
    /// How to connect, from all of libpq's sources.
    pub settings: Settings,
    /// Until when to wait.
    pub wait: Wait,
    /// A person watches the wait, and is told from time to time who holds the lock.
    pub is_watched: bool,
}

/// The main thread's end of the session.
pub struct Session {
    events: Receiver<SessionEvent>,
    // Closing it is the order to release: it cannot be lost, and cannot be given twice.
    order: Option<UnixStream>,
}

impl Session {
    /// Starts to connect and to acquire.
    pub fn start(plan: SessionPlan, waker: Waker) -> io::Result<Session> {
        let (order, orders) = UnixStream::pair()?;
        let (sender, events) = channel();
        let reporter = Reporter::new(sender, waker);
        // Known before the main thread sleeps, which the first announcement would otherwise wake.
        let limit = plan.settings.connect_limit();
        limit
            .into_iter()
            .for_each(|limit| reporter.say(SessionEvent::Alive(Instant::now() + limit)));
        std::thread::Builder::new()
            .name("session".into())
            .spawn(move || Thread { plan, orders, reporter }.run())?;
        Ok(Session {
            events,
            order: Some(order),
        })
    }

    /// What has been reported since the last call.
    pub fn events(&self) -> Vec<SessionEvent> {
        self.events.try_iter().collect()
    }

    /// The name of whoever has evicted us, if that is known by then.
    pub fn evictor(&self, until: Instant) -> Option<String> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            // The thread ends when it has said all it can find out.
            if let SessionEvent::Evicted(by) = self.events.recv_timeout(left).ok()? {
                return Some(by);
            }
        }
    }

    /// Orders the lock to be given back, or not to be waited for any longer, and the session to be closed.
    pub fn release(&mut self) {
        self.order = None;
    }
}

/// Ends the connection under the session, whatever it is doing and whoever has inherited the socket: the server
/// sees the end as soon as the network lets it.
pub fn shut_down_socket(socket: &OwnedFd) {
    let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
}

struct Reporter {
    sender: Sender<SessionEvent>,
    waker: Waker,
    /// The last deadline that was told.
    due: Cell<Option<Instant>>,
}

impl Reporter {
    fn new(sender: Sender<SessionEvent>, waker: Waker) -> Reporter {
        let due = Cell::new(None);
        Reporter { sender, waker, due }
    }

    fn say(&self, report: SessionEvent) {
        // Whoever sleeps until a deadline need not be woken to learn that it has moved on, or what matters only when
        // something else happens: whatever wakes it, it reads all reports first.
        let sleeps_on = match report {
            SessionEvent::Alive(until) => self.due.replace(Some(until)).is_some_and(|due| due <= until),
            SessionEvent::Connected | SessionEvent::Direct(_) => true,
            _ => false,
        };
        // The main thread may be gone already, on its way out; nobody is left to hear it then.
        let _ = self.sender.send(report);
        if !sleeps_on {
            self.waker.wake();
        }
    }
}

// A fault of the session's thread must leave the process that guards the job.
#[cfg(not(panic = "unwind"))]
compile_error!("a session that panics is reported by unwinding: see Cargo.toml");

impl Drop for Reporter {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.say(SessionEvent::Broken);
        }
    }
}

struct Thread {
    plan: SessionPlan,
    orders: UnixStream,
    reporter: Reporter,
}

impl Thread {
    /// All that is said is said before the connection is closed, which can take as long as the network and the server
    /// like, but for one that has just answered, which is closed by whoever hears that the lock is given back.
    fn run(self) {
        let connection = match self.connect() {
            Ok(connection) => connection,
            Err(failure) => return self.reporter.say(SessionEvent::Failed(failure)),
        };
        let Connection {
            mut client,
            socket,
            canceller,
        } = connection;
        match self.converse(&mut client, socket, canceller) {
            Ok(Some(was_held)) => self.reporter.say(SessionEvent::Released {
                was_held,
                session: Box::new(client),
            }),
            Ok(None) => {}
            Err(failure) => self.reporter.say(SessionEvent::Failed(failure)),
        }
    }

    /// The whole conversation with the server, until the lock is given back: whether it was ours until then. Of any other
    /// end it has been said what it was.
    fn converse(
        &self,
        client: &mut Client,
        socket: Option<OwnedFd>,
        canceller: Canceller,
    ) -> Result<Option<bool>, Failure> {
        self.reporter.say(SessionEvent::Connected);
        let (asked, got) = self.first_try(client, canceller)?;
        let mut acquired = match got {
            Ok(acquired) => acquired,
            Err(taken) => match self.wait(client, &asked, taken)? {
                Ok(acquired) => acquired,
                Err(busy) => {
                    let conflict = self.conflict(client, &asked, busy)?;
                    self.reporter.say(SessionEvent::Conflict(conflict));
                    return Ok(None);
                }
            },
        };
        let Asked { ids, lock, .. } = asked;
        let token = match self.plan.options.token {
            true => Some(self.token(client, &lock, &mut acquired.grant)?),
            false => None,
        };
        // The timing rule counts from the last message that was sent, and the answer to it may have been a long wait.
        if acquired.grant.asked.elapsed() >= self.plan.options.policy.timing.heartbeat {
            self.beat(client, &mut acquired.grant)?;
        }
        let socket = socket.map(Arc::new);
        self.reporter
            .say(SessionEvent::Alive(self.next_sign(acquired.grant.asked)));
        self.reporter.say(SessionEvent::Held(Held {
            ids,
            slot: self.plan.options.slots.map(|_| acquired.grant.which),
            token,
            backend_pid: acquired.grant.backend_pid,
            socket: socket.clone(),
        }));
        let lock = lock.held(acquired.grant);
        let backend_pid = acquired.grant.backend_pid;
        if let Err(loss) = self.hold(client, socket.as_deref(), acquired) {
            self.reporter.say(SessionEvent::Lost(loss.why));
            if loss.is_by_command
                && let Some(by) = self.evictor(backend_pid)
            {
                self.reporter.say(SessionEvent::Evicted(by));
            }
            return Ok(None);
        }
        let released = lock.release(client).map_err(|error| {
            // Nobody knows since when.
            let why = Failure::from(error).to_string();
            self.reporter.say(SessionEvent::Lost(why));
        });
        Ok(released.ok())
    }

    /// Who has ended the session that had this process of the server. It is asked on another session, which is no
    /// lock's; the job is being stopped meanwhile.
    fn evictor(&self, backend_pid: i32) -> Option<String> {
        let name = name::for_evicted();
        let mut connection = self.plan.settings.open(&name, None).ok()?;
        eviction::by_whom(&mut connection.client, backend_pid).ok()?
    }

    fn connect(&self) -> Result<Connection, Failure> {
        sys::check_free_descriptors(HEADROOM).map_err(|error| {
            Failure::new(ExitCode::Internal, error)
                .context("too few file descriptors are left to connect (see ulimit -n)")
        })?;
        let connection = self.open()?;
        if connection.socket.is_none() {
            message::detail(
                "cannot tell which descriptor the session's socket is: its loss is noticed later, \
                 and the job does not inherit it",
            );
        }
        Ok(connection)
    }

    /// What is asked for with these numbers, if it is to live as long as this.
    fn lock(&self, ids: &[KeyId], scope: Scope) -> Lock {
        let ids = ids.iter().copied();
        let keys = match self.plan.options.slots {
            // At random, so that those who come at once do not all knock at the same door.
            Some(count) => {
                let first = RandomState::new().hash_one(()) % u64::from(count);
                let slots = ids.flat_map(|id| slot_keys(id, count)).collect();
                Keys::OneOf(slots, first as usize)
            }
            None => Keys::All(ids.collect::<BTreeSet<_>>().into_iter().collect()),
        };
        Lock {
            keys,
            mode: self.plan.options.mode,
            scope,
        }
    }

    /// The line to wait in, if it is to be waited in line.
    fn line(&self, ids: &[KeyId]) -> Option<TicketQueue> {
        let in_line = self.plan.options.fair || self.plan.options.slots.is_some();
        let id = ids.first().filter(|_| in_line && self.plan.wait != Wait::Try);
        id.map(|id| TicketQueue::for_key(*id))
    }

    /// Looks at the server, and tries the lock for the first time: in the same message, unless a transaction is
    /// needed for it.
    fn first_try(
        &self,
        client: &mut Client,
        canceller: Canceller,
    ) -> Result<(Asked, Result<Acquired, usize>), Failure> {
        let (asked, attempt) = self.first_message(client)?;
        let Asked { lock, server, .. } = &asked;
        // A pooler is not asked to cancel: PgBouncer 1.18 can end by it, with everybody's locks, and a wait there has
        // hardly anything to interrupt.
        if !server.pooled {
            self.reporter.say(SessionEvent::Direct(canceller));
        }
        message::detail(format_args!(
            "connected to database {:?}, backend {}{}",
            server.database,
            server.backend_pid,
            if server.pooled { ", through a pooler" } else { "" },
        ));
        let attempt = match lock.scope {
            Scope::Session => attempt,
            Scope::Transaction if self.plan.options.fair => {
                return Err(Failure::say(
                    ExitCode::Config,
                    "--fair needs a session of its own to stand in line with; give the port of the PostgreSQL server \
                     itself, or leave --fair out",
                ));
            }
            Scope::Transaction => {
                self.alive(patience_with(server));
                lock.first_try_in_transaction(
                    client,
                    self.plan.options.policy.timing.server_limit(),
                    self.plan.options.poll,
                    || match self.is_ordered_within(lock::BEFORE_AGAIN) {
                        true => None,
                        false => Some(self.open().ok()?.client),
                    },
                )?
            }
        };
        let got = attempt.outcome()?.map(|grant| Acquired { grant, ticket: None });
        Ok((asked, got))
    }

    /// Looks at the server, and tries the lock if it is a session's.
    fn first_message(&self, client: &mut Client) -> Result<(Asked, TryOutcome), Failure> {
        if let Some(expression) = self.only_key_to_compute() {
            return self.first_message_computing(client, &expression);
        }
        let ids = self.ids(client)?;
        let lock = self.lock(&ids, Scope::Session);
        self.alive(Duration::ZERO);
        let (server, attempt) = lock.first_try(client, &self.caller(), self.line(&ids))?;
        let scope = server.fit(self.plan.options.scope)?;
        let lock = Lock { scope, ..lock };
        Ok((Asked { ids, lock, server }, attempt))
    }

    /// The same of a key whose number the server computes by this expression, in the same message.
    fn first_message_computing(&self, client: &mut Client, expression: &str) -> Result<(Asked, TryOutcome), Failure> {
        self.alive(Duration::ZERO);
        let Computed { server, id, attempt } =
            lock::first_try_computed(client, expression, self.plan.options.mode, &self.caller())?;
        let scope = server.fit(self.plan.options.scope)?;
        let ids = vec![lock::computed(&self.plan.options.keys[0], id)?];
        let lock = self.lock(&ids, scope);
        Ok((Asked { ids, lock, server }, attempt))
    }

    fn caller(&self) -> ClientInfo {
        ClientInfo {
            application_name: self.name(),
            choice: self.plan.options.scope,
            limit: Some(self.plan.options.policy.timing.server_limit()),
        }
    }

    /// The numbers of the keys. Those that only the server knows take a message: more is made of them than the message
    /// that tries could tell, as the order of several keys or the numbers of slots.
    fn ids(&self, client: &mut Client) -> Result<Vec<KeyId>, Failure> {
        let numbers: Vec<Number> = self.plan.options.keys.iter().map(Key::number).collect();
        let known: Option<Vec<KeyId>> = numbers.iter().map(Number::known).collect();
        match known {
            Some(ids) => Ok(ids),
            None => {
                self.alive(Duration::ZERO);
                lock::numbers(client, &self.plan.options.keys)
            }
        }
    }

    /// The expression for the number of the only key, where only the server knows it and nothing else is made of it.
    fn only_key_to_compute(&self) -> Option<String> {
        match &self.plan.options.keys[..] {
            [key] if self.plan.options.slots.is_none() && !self.plan.options.fair => match key.number() {
                Number::Computed(expression) => Some(expression),
                Number::Known(_) => None,
            },
            _ => None,
        }
    }

    /// Waits for the lock, if it is to be waited for. The key that is somebody else's, when the time is up.
    fn wait(&self, client: &mut Client, asked: &Asked, taken: usize) -> Result<Result<Acquired, usize>, Failure> {
        if self.plan.wait == Wait::Try {
            return Ok(Err(taken));
        }
        if message::is_verbose() {
            let held = self.busy(client, asked, taken);
            message::detail(format_args!("{held}; waiting"));
        }
        let Asked { ids, lock, server } = asked;
        let mut terms = WaitOptions {
            wait: self.plan.wait,
            poll: self.plan.options.poll,
            limit: self.plan.options.policy.timing.server_limit(),
            slice: server.slice,
        };
        let mut talk = WaitReporter {
            thread: self,
            server,
            ids: lock.ids(),
            looked: Instant::now(),
        };
        let mut ticket = None;
        if let (Some(line), Scope::Session) = (self.line(ids), lock.scope) {
            ticket = lock::wait_for_turn(line, client, terms, &mut talk)?;
            if ticket.is_none() {
                return Ok(Err(taken));
            }
            // Only the first in line asks, so it may ask often.
            terms.poll = terms.poll.min(FIRST_IN_LINE);
        }
        let got = lock.wait(client, terms, taken, &mut talk)?;
        Ok(got.map(|grant| Acquired { grant, ticket }))
    }

    /// A number for the job. The server has heard of the lock's session once more then.
    fn token(&self, client: &mut Client, lock: &Lock, grant: &mut Grant) -> Result<String, Failure> {
        let token = match lock.scope {
            Scope::Session => {
                self.alive(Duration::ZERO);
                grant.asked = Instant::now();
                lock::token(client)
            }
            Scope::Transaction => {
                // The message would give the transaction an id, which holds VACUUM back while the lock is held.
                let token = lock::token(&mut self.open()?.client);
                self.beat(client, grant)?;
                token
            }
        };
        token.map_err(|error| {
            let context = "cannot make a token (it needs PostgreSQL 10 or later)";
            Failure::from(error).context(context)
        })
    }

    /// Has the server hear of the lock's session once more, before anybody is told that the lock is ours.
    fn beat(&self, client: &mut Client, grant: &mut Grant) -> Result<(), Failure> {
        self.alive(Duration::ZERO);
        grant.asked = Instant::now();
        lock::heartbeat(client, Duration::ZERO).map_err(Failure::from)
    }

    /// The name by which the server knows this session.
    fn name(&self) -> String {
        let configured = self.plan.settings.application_name();
        name::for_run(configured, &self.plan.options.keys, self.plan.options.slots)
    }

    fn open(&self) -> Result<Connection, Failure> {
        let mut watched = |limit| {
            self.reporter.say(SessionEvent::Alive(Instant::now() + limit));
        };
        self.plan.settings.open(&self.name(), Some(&mut watched))
    }

    /// Sleeps this long, or until the order comes to give the lock back: whether it has come.
    fn is_ordered_within(&self, rest: Duration) -> bool {
        let order = PollFd::new(self.orders.as_fd(), PollFlags::POLLIN);
        // No signal interrupts this thread.
        poll(&mut [order], timeout(rest)).is_ok_and(|ready| ready > 0)
    }

    /// Why the lock is not ours, and whose it is. What had been taken of it is given back.
    fn conflict(&self, client: &mut Client, asked: &Asked, busy: usize) -> Result<String, Failure> {
        let sentence = self.busy(client, asked, busy);
        if asked.lock.scope == Scope::Session && busy > 0 {
            lock::release_all(client)?;
        }
        Ok(sentence)
    }

    /// Which key is somebody else's, and whose.
    fn busy(&self, client: &mut Client, asked: &Asked, busy: usize) -> String {
        self.alive(patience_with(&asked.server));
        let taken = match &asked.lock.keys {
            Keys::All(ids) => &ids[busy..=busy],
            Keys::OneOf(ids, _) => ids,
        };
        let found = holders::find(client, taken).ok();
        let given = asked.ids.iter().position(|id| *id == taken[0]);
        let given = given.unwrap_or_default();
        holders::conflict_message(
            &self.plan.options.keys[given],
            asked.ids[given],
            self.plan.options.slots,
            &asked.server.database,
            found.as_deref(),
        )
    }

    /// Watches over the session until the order to release comes (`Ok`) or it is lost (`Err`: why).
    fn hold(&self, client: &mut Client, socket: Option<&OwnedFd>, acquired: Acquired) -> Result<(), SessionLoss> {
        let heartbeat = self.plan.options.policy.timing.heartbeat;
        let since = Instant::now();
        let mut last_sent = acquired.grant.asked;
        if let Some(ticket) = acquired.ticket {
            ticket.leave(client)?;
        }
        loop {
            match self.next_event(socket, last_sent + heartbeat) {
                WakeReason::Order => return Ok(()),
                WakeReason::Readable => ended_by_server(client)?,
                WakeReason::Beat => {
                    last_sent = Instant::now();
                    let held = last_sent.duration_since(since);
                    lock::heartbeat(client, held)?;
                    self.reporter.say(SessionEvent::Alive(self.next_sign(last_sent)));
                }
            }
        }
    }

    /// Sleeps until there is something to do.
    fn next_event(&self, socket: Option<&OwnedFd>, beat: Instant) -> WakeReason {
        loop {
            let left = beat.saturating_duration_since(Instant::now());
            // Without the socket, a closed session is only noticed by asking.
            let limit = if socket.is_some() { left } else { left.min(BLIND_TICK) };
            let mut fds = vec![PollFd::new(self.orders.as_fd(), PollFlags::POLLIN)];
            fds.extend(socket.map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
            match poll(&mut fds, timeout(limit)) {
                Ok(0) if limit == left => return WakeReason::Beat,
                Ok(0) => return WakeReason::Readable,
                // A session that the server has closed is lost, even if the job has ended meanwhile.
                Ok(_) if fds.get(1).is_some_and(|socket| socket.any() == Some(true)) => {
                    // A server that never stops talking is asked for a sign of life all the same.
                    return match left.is_zero() {
                        true => WakeReason::Beat,
                        false => WakeReason::Readable,
                    };
                }
                Ok(_) => return WakeReason::Order,
                Err(_) => {}
            }
        }
    }

    /// Says that a message is about to be sent that the server will answer within `longest`, but for what the
    /// network and a busy server add.
    fn alive(&self, longest: Duration) {
        let due = self.next_sign(Instant::now()) + longest;
        self.reporter.say(SessionEvent::Alive(due));
    }

    /// By when a server that received a message sent at `sent` must have answered the next one.
    fn next_sign(&self, sent: Instant) -> Instant {
        sent + self.plan.options.policy.timing.heartbeat * 2
    }
}

/// What is asked for, and the server, which is fit for it.
struct Asked {
    /// The numbers of the keys, in the order in which they were given.
    ids: Vec<KeyId>,
    lock: Lock,
    server: Server,
}

/// The lock is ours.
struct Acquired {
    grant: Grant,
    /// Our place in the line, to be given up.
    ticket: Option<Ticket>,
}

/// How many descriptors a connection needs at the most: the socket and its duplicate, the client library's own, and those of
/// name resolution and of certificates.
const HEADROOM: usize = 12;

/// The pause between two tries of the first in line. It is the only one who asks.
const FIRST_IN_LINE: Duration = Duration::from_millis(20);

/// A wait that reports of itself.
struct WaitReporter<'a> {
    thread: &'a Thread,
    server: &'a Server,
    ids: &'a [KeyId],
    /// When it was last looked who holds the lock.
    looked: Instant,
}

/// How often whoever watches is told who holds the lock.
const HOLDER_REFRESH_INTERVAL: Duration = Duration::from_millis(850);

impl WaitObserver for WaitReporter<'_> {
    fn about_to_ask(&mut self, longest: Duration) {
        self.thread.alive(longest.max(patience_with(self.server)));
    }

    fn pause(&mut self, client: &mut Client, rest: Duration) -> bool {
        if self.thread.plan.is_watched && self.looked.elapsed() > HOLDER_REFRESH_INTERVAL {
            self.thread.alive(patience_with(self.server));
            // Whoever cannot be shown is not shown; the wait itself finds out what is wrong.
            if let Ok(mut holders) = holders::find(client, self.ids) {
                holders.retain(|holder| holder.pid != Some(self.server.backend_pid));
                self.thread.reporter.say(SessionEvent::Waiting(holders));
            }
            self.looked = Instant::now();
        }
        // Nobody is asked anything meanwhile, and nobody has to answer.
        self.thread.alive(rest);
        !self.thread.is_ordered_within(rest)
    }
}

/// How long a message of one who waits may be under way, beyond what a server may take for an answer. A pooler lets
/// it wait for a free session of its pool, for two minutes by PgBouncer's default. One who holds has a session.
fn patience_with(server: &Server) -> Duration {
    match server.pooled {
        true => Duration::from_secs(120),
        false => Duration::ZERO,
    }
}

enum WakeReason {
    Order,
    Readable,
    Beat,
}

/// How often a session whose socket is unknown is looked at.
const BLIND_TICK: Duration = Duration::from_millis(250);

/// Reads what the server sent unasked. An idle session that becomes readable has most often been ended.
fn ended_by_server(client: &mut Client) -> Result<(), SessionLoss> {
    // What comes is of no interest, only whether an error does.
    let read = client.notifications().timeout_iter(Duration::from_millis(1)).count();
    read?;
    match client.is_closed() {
        true => Err(SessionLoss {
            why: "the server closed the connection".into(),
            is_by_command: false,
        }),
        false => Ok(()),
    }
}

/// Why a session that held the lock has ended.
struct SessionLoss {
    why: String,
    /// Somebody has told the server to end it: `pg_terminate_backend`, or whoever shuts the server down.
    is_by_command: bool,
}

impl From<postgres::Error> for SessionLoss {
    fn from(error: postgres::Error) -> SessionLoss {
        SessionLoss {
            is_by_command: error.code() == Some(&SqlState::ADMIN_SHUTDOWN),
            why: Failure::from(error).to_string(),
        }
    }
}

/// The time to poll, rounded up: waking a moment too early would only mean polling again.
pub fn timeout(left: Duration) -> PollTimeout {
    PollTimeout::try_from(left.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::ConnectionOptions;
    use crate::lock::{Mode, ScopeChoice};
    use crate::run::session::timing::Timing;
    use crate::run::state::{OnLost, Policy};
    use crate::ui::message::Verbosity;

    #[test]
    fn a_session_that_panics_says_so() {
        let (sender, events) = channel();
        let waker = Waker::new_disconnected().expect("a pair of sockets");
        let reporter = Reporter::new(sender, waker);
        let thread = std::thread::spawn(move || {
            let _speaker = reporter;
            panic!("on purpose");
        });
        assert!(thread.join().is_err());
        assert!(matches!(events.try_recv(), Ok(SessionEvent::Broken)));
        assert!(events.try_recv().is_err());
    }

    /// A server that never stops talking is asked for a sign of life all the same.
    #[test]
    fn a_heartbeat_that_is_due_does_not_wait_for_silence() {
        let (order, orders) = UnixStream::pair().expect("a pair of sockets");
        let (sender, _reports) = channel();
        let waker = Waker::new_disconnected().expect("a pair of sockets");
        let settings = Settings::resolve(Some("host=h user=u dbname=d password=p"), None);
        let thread = Thread {
            plan: SessionPlan {
                options: Arc::new(RunOptions {
                    connection: ConnectionOptions {
                        dsn: None,
                        dsn_is_argument: false,
                        connect_timeout: None,
                    },
                    keys: Vec::new(),
                    slots: None,
                    mode: Mode::Exclusive,
                    scope: ScopeChoice::Auto,
                    fair: false,
                    token: false,
                    wait: Some(Duration::ZERO),
                    poll: Duration::from_secs(1),
                    policy: Policy {
                        conflict_status: 75,
                        on_lost: OnLost::Stop,
                        min_hold: Duration::ZERO,
                        timing: Timing {
                            heartbeat: Duration::from_secs(5),
                            kill_after: Duration::from_secs(10),
                        },
                    },
                    inherit_socket: false,
                    verbosity: Verbosity::Normal,
                    command: Vec::new(),
                }),
                settings: settings.unwrap_or_else(|failure| panic!("{failure}")),
                wait: Wait::Try,
                is_watched: false,
            },
            orders,
            reporter: Reporter::new(sender, waker),
        };
        let (mut server, socket) = UnixStream::pair().expect("a pair of sockets");
        let socket = OwnedFd::from(socket);
        std::io::Write::write_all(&mut server, b"talk").expect("room");
        let now = Instant::now();
        let later = now + Duration::from_secs(60);
        let next = |beat| thread.next_event(Some(&socket), beat);
        assert!(matches!(next(later), WakeReason::Readable));
        assert!(matches!(next(now), WakeReason::Beat));
        drop(order);
        let (_quiet, socket) = UnixStream::pair().expect("a pair of sockets");
        let socket = OwnedFd::from(socket);
        assert!(matches!(thread.next_event(Some(&socket), later), WakeReason::Order));
    }
}
