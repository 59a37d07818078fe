//! An open session, and the time limit for its replies.
//!
//! The client library waits for a reply indefinitely. `run` watches its session from its main thread; wherever nobody
//! else does, a watchdog shuts the socket down when a reply is overdue, and the query that waits for it fails. This
//! works for every transport: TCP, TLS and Unix sockets.

use super::sockets::shut_down_socket;
use crate::outcome::{ExitCode, Failure};
use postgres::fallible_iterator::FallibleIterator;
use postgres::{Error, SimpleQueryMessage};
use std::convert::Infallible;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What else may be the case if the server seems to have stopped responding.
pub(crate) const FULL_POOL: &str = "a pooler without a free session, see its default_pool_size, looks the same";

/// A session of the client library. Its own method [`Client::simple_query`] takes the place of the library's.
pub(crate) struct Client {
    inner: postgres::Client,
    /// Dropped after the session, whose end it watches.
    watchdog: Option<Watchdog>,
    /// What the current query asks, to complete "no reply to the query ...".
    question: &'static str,
    /// Whether a transaction is open that we have begun.
    pub(crate) is_in_transaction: bool,
    /// Whether an error has left a transaction open in which nothing can be done any more.
    pub(crate) must_roll_back: bool,
}

impl Client {
    /// Wraps a session. With a limit, its replies are watched, provided that its socket is known.
    ///
    /// # Errors
    /// The system has no descriptor or no thread left.
    pub(super) fn new(
        inner: postgres::Client,
        socket: Option<&OwnedFd>,
        reply_limit: Option<Duration>,
    ) -> io::Result<Client> {
        let watchdog = match reply_limit.zip(socket) {
            Some((limit, socket)) => Some(Watchdog::start(socket.try_clone()?, limit)?),
            None => None,
        };
        Ok(Client {
            inner,
            watchdog,
            question: "to run a query",
            is_in_transaction: false,
            must_roll_back: false,
        })
    }

    /// Sends a message by the simple query protocol; see [`query_message`](super::query_message).
    ///
    /// # Errors
    /// The server reports an error, the reply is overdue, or the connection is lost.
    pub(crate) fn simple_query(&mut self, sql: &str) -> Result<Vec<SimpleQueryMessage>, Error> {
        self.watch(|client| client.simple_query(sql))
    }

    /// Sends a query without parameters by the extended query protocol.
    ///
    /// # Errors
    /// As for [`Client::simple_query`].
    pub(crate) fn extended_query(&mut self, sql: &str) -> Result<(), Error> {
        self.watch(|client| client.query_typed(sql, &[])).map(drop)
    }

    /// Makes a request whose reply is watched, if this client's are.
    fn watch<T>(&mut self, request: impl FnOnce(&mut postgres::Client) -> T) -> T {
        if let Some(watchdog) = &self.watchdog {
            watchdog.expect_reply();
        }
        let result = request(&mut self.inner);
        if let Some(watchdog) = &self.watchdog {
            watchdog.note_reply();
        }
        // The library keeps the notifications that came with the reply, and nobody reads them.
        let mut notifications = self.inner.notifications();
        while !notifications.is_empty() && notifications.iter().next().is_ok() {}
        result
    }

    /// Limits how long dropping the session may take, for one whose replies are not watched: the library awaits the
    /// rest of an unfinished reply, which may never come.
    pub(crate) fn limit_end(&mut self, socket: Option<&OwnedFd>, limit: Duration) {
        if self.watchdog.is_none() {
            // Where the system has no descriptor or no thread left, there is no limit.
            self.watchdog = socket.and_then(|socket| Watchdog::start(socket.try_clone().ok()?, limit).ok());
        }
    }

    /// Names what the queries from now on ask, to complete "no reply to the query ...".
    pub(crate) fn asking(&mut self, question: &'static str) -> &mut Client {
        self.question = question;
        self
    }

    /// Returns whether a reply was overdue, which has ended the session.
    pub(crate) fn has_stopped_responding(&self) -> bool {
        self.watchdog.as_ref().is_some_and(Watchdog::has_expired)
    }

    /// Returns the failure of a query, or, if its reply was overdue, what was not answered.
    pub(crate) fn explain(&self, failure: Failure) -> Failure {
        match &self.watchdog {
            Some(watchdog) if watchdog.has_expired() => Failure::msg(
                ExitCode::Unavailable,
                format!(
                    "the server stopped responding: no reply within {} to the query {} ({FULL_POOL})",
                    humantime::format_duration(watchdog.limit),
                    self.question,
                ),
            )
            .transient_if(true),
            _ => failure,
        }
    }
}

/// The library ends a session whose last reply is unfinished only when the server does. That is watched like a reply.
impl Drop for Client {
    fn drop(&mut self) {
        if let Some(watchdog) = &self.watchdog {
            watchdog.expect_reply();
        }
    }
}

impl Deref for Client {
    type Target = postgres::Client;

    fn deref(&self) -> &postgres::Client {
        &self.inner
    }
}

impl DerefMut for Client {
    fn deref_mut(&mut self) -> &mut postgres::Client {
        &mut self.inner
    }
}

/// A thread that shuts the socket down when a reply is overdue.
struct Watchdog {
    limit: Duration,
    reply: Arc<Mutex<Reply>>,
    /// The thread ends when this is dropped.
    _session: Sender<Infallible>,
}

/// The state of the reply to the last query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reply {
    /// None is awaited.
    Received,
    /// It is due at this time.
    Due(Instant),
    /// It was overdue, and the socket is shut down.
    Overdue,
}

impl Watchdog {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no thread left.
    fn start(socket: OwnedFd, limit: Duration) -> io::Result<Watchdog> {
        let reply = Arc::new(Mutex::new(Reply::Received));
        let (session, session_end) = channel();
        let watched = Arc::clone(&reply);
        std::thread::Builder::new()
            .name("watchdog".into())
            .spawn(move || watch(&socket, limit, &watched, &session_end))?;
        Ok(Watchdog {
            limit,
            reply,
            _session: session,
        })
    }

    fn expect_reply(&self) {
        self.replace(Reply::Due(Instant::now() + self.limit));
    }

    fn note_reply(&self) {
        self.replace(Reply::Received);
    }

    /// Replaces the state, unless the session has ended.
    fn replace(&self, new: Reply) {
        let mut reply = lock(&self.reply);
        if *reply != Reply::Overdue {
            *reply = new;
        }
    }

    fn has_expired(&self) -> bool {
        *lock(&self.reply) == Reply::Overdue
    }
}

fn lock(reply: &Mutex<Reply>) -> MutexGuard<'_, Reply> {
    reply.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Shuts the socket down once a reply is overdue; ends with the session.
///
/// Nobody wakes this thread for a query, which would cost more than most replies take: while nothing is due, it looks
/// once in each limit, and so in time for whatever became due since.
fn watch(socket: &OwnedFd, limit: Duration, reply: &Mutex<Reply>, session_end: &Receiver<Infallible>) {
    let mut pause = limit;
    while session_end.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
        let mut reply = lock(reply);
        pause = match *reply {
            Reply::Received => limit,
            Reply::Due(time) => time.saturating_duration_since(Instant::now()),
            Reply::Overdue => return,
        };
        if pause.is_zero() {
            *reply = Reply::Overdue;
            shut_down_socket(socket);
            return;
        }
    }
}
