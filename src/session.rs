//! The session that holds the lock, on a thread of its own.
//!
//! A blocking call of the client library cannot be interrupted, so all of them happen here, and the main thread
//! only polls. This thread is the one owner of the connection from opening to closing: taking the lock, the
//! heartbeat and giving it back never race each other. It acts on one order ([`Session::release`]) and reports
//! what happens; each sign of life comes with the moment by which the next one is due, and it is the main thread
//! that notices when it does not come.
//!
//! The connection is opened once. It is never opened again: the lock would be somebody else's by then.

use crate::connection::{self, Canceller, Connection, Settings};
use crate::diag;
use crate::holders;
use crate::key::{Key, KeyId};
use crate::lock::{self, FirstTry, Lock, Mode, Scope, ScopeChoice, Server, Terms, Wait};
use crate::outcome::{ExitCode, Failure};
use crate::signals::Waker;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, shutdown};
use postgres::Client;
use postgres::fallible_iterator::FallibleIterator;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// What to ask for, and of whom.
pub struct Request {
    /// How to connect.
    pub settings: Settings,
    /// The key.
    pub key: Key,
    /// The mode.
    pub mode: Mode,
    /// What the lock is to live as long as.
    pub scope: ScopeChoice,
    /// For how long to wait.
    pub wait: Wait,
    /// How long the pause between two tries is at most, where there is no queue.
    pub poll: Duration,
    /// The limits of silence.
    pub timing: Timing,
}

/// The timing rule, a lease without leases. The last message that the server received from us was sent at most
/// one period ago; its missing answer is noticed within the deadline, and the job is dead within the grace
/// after that. The server's own limit on a silent client is longer than all of it, so that on a network cut the
/// job is dead before the lock can be given to another. No clocks are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// H: how often the server is asked for a sign of life; and D: how long it may take to give it.
    pub heartbeat: Duration,
    /// G: how long a job that is being stopped has between TERM and KILL.
    pub kill_after: Duration,
}

impl Timing {
    /// What lies between the job's latest end and the server's earliest giving away: for the kernel to deliver a
    /// KILL on a busy machine, and for the coarse timers of TCP.
    const MARGIN: Duration = Duration::from_secs(3);

    /// H + D + G: how long after the server last heard of us the job may run.
    pub fn job_limit(self) -> Duration {
        self.heartbeat * 2 + self.kill_after
    }

    /// After how long a silence the server gives the lock away.
    pub fn server_limit(self) -> Duration {
        self.job_limit() + Timing::MARGIN
    }
}

/// What the session has to say. The order is that of a good day.
pub enum Report {
    /// It can be interrupted from now on.
    Connected(Canceller),
    /// It lives; the next report is due by then, or it does not.
    Alive(Instant),
    /// The lock is ours.
    Held(Held),
    /// Somebody else holds it, in words.
    Conflict(String),
    /// The lock cannot be had.
    Failed(Failure),
    /// The session ended while it held the lock: why.
    Lost(String),
    /// The lock is given back and the session is closed. `false`: the lock was not ours any more.
    Released(Result<bool, String>),
}

/// The lock that we hold.
pub struct Held {
    /// Its number.
    pub id: KeyId,
    /// The process of the server that holds it for us.
    pub backend_pid: i32,
    /// The session's socket, where it is known.
    pub socket: Option<Arc<OwnedFd>>,
}

/// The main thread's end of the session.
pub struct Session {
    reports: Receiver<Report>,
    // Closing it is the order to release: it cannot be lost, and cannot be given twice.
    order: Option<UnixStream>,
}

impl Session {
    /// Starts to connect and to acquire.
    pub fn start(request: Request, waker: Waker) -> io::Result<Session> {
        let (order, orders) = UnixStream::pair()?;
        let (sender, reports) = channel();
        let speaker = Speaker { sender, waker };
        std::thread::Builder::new()
            .name("session".into())
            .spawn(move || {
                Thread {
                    request,
                    orders,
                    speaker,
                }
                .run()
            })?;
        Ok(Session {
            reports,
            order: Some(order),
        })
    }

    /// What has been reported since the last call.
    pub fn reports(&self) -> Vec<Report> {
        self.reports.try_iter().collect()
    }

    /// Orders the lock to be given back, or not to be waited for any longer, and the session to be closed.
    pub fn release(&mut self) {
        self.order = None;
    }
}

/// Ends the connection under the session, whatever it is doing and whoever has inherited the socket: the server
/// sees the end as soon as the network lets it.
pub fn cut(socket: &OwnedFd) {
    let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
}

struct Speaker {
    sender: Sender<Report>,
    waker: Waker,
}

impl Speaker {
    fn say(&self, report: Report) {
        // The main thread may be gone already, on its way out; nobody is left to hear it then.
        let _ = self.sender.send(report);
        self.waker.wake();
    }
}

struct Thread {
    request: Request,
    orders: UnixStream,
    speaker: Speaker,
}

impl Thread {
    fn run(self) {
        if let Err(failure) = self.converse() {
            self.speaker.say(Report::Failed(failure));
        }
    }

    /// The whole conversation with the server. What is to be said is said before the connection is closed, which can
    /// take as long as the network likes, but for the release, which is only whole with it.
    fn converse(&self) -> Result<(), Failure> {
        if let Some(limit) = self.request.settings.connect_timeout() {
            self.speaker.say(Report::Alive(Instant::now() + limit));
        }
        let Connection {
            mut client,
            socket,
            canceller,
        } = self.connect()?;
        self.speaker.say(Report::Connected(canceller));
        let Ready { lock, server, got } = self.first_try(&mut client)?;
        let acquired = match got {
            Some(acquired) => acquired,
            None => match self.wait(&mut client, lock, &server)? {
                Some(acquired) => acquired,
                None => {
                    let conflict = Report::Conflict(self.conflict(&mut client, lock, &server));
                    self.speaker.say(conflict);
                    return Ok(());
                }
            },
        };
        let socket = socket.map(Arc::new);
        self.speaker
            .say(Report::Alive(self.next_sign(acquired.heard)));
        self.speaker.say(Report::Held(Held {
            id: lock.id,
            backend_pid: acquired.backend_pid,
            socket: socket.clone(),
        }));
        if let Err(why) = self.hold(&mut client, socket.as_deref(), acquired) {
            self.speaker.say(Report::Lost(why));
            return Ok(());
        }
        let released = lock
            .release(&mut client)
            .map_err(|e| connection::failure(e).to_string());
        // An explicit goodbye: a process that the job left behind has the socket too, and must not keep the
        // session alive.
        drop(client);
        self.speaker.say(Report::Released(released));
        Ok(())
    }

    fn connect(&self) -> Result<Connection, Failure> {
        let connection = self
            .request
            .settings
            .open(&application_name(self.request.key.given()))?;
        if connection.socket.is_none() {
            diag::detail(
                "cannot tell which descriptor the session's socket is: its loss is noticed later, \
                 and the job does not inherit it",
            );
        }
        Ok(connection)
    }

    /// Looks at the server, and tries the lock for the first time: in the same message, unless a transaction is
    /// needed for it.
    fn first_try(&self, client: &mut Client) -> Result<Ready, Failure> {
        let name = application_name(self.request.key.given());
        let mut heard = self.alive(Duration::ZERO);
        let FirstTry {
            server,
            id,
            attempt,
        } = lock::first_try(
            client,
            &self.request.key.number(),
            self.request.mode,
            &name,
            self.request.scope,
        )?;
        let scope = server.fit(self.request.scope)?;
        let id = id.ok_or_else(|| {
            Failure::say(
                ExitCode::Config,
                format!(
                    "the server does not compute the number of the key {}",
                    self.request.key
                ),
            )
        })?;
        let lock = Lock {
            id,
            mode: self.request.mode,
            scope,
        };
        diag::detail(format_args!(
            "connected to database {:?}, backend {}{}",
            server.database,
            server.backend_pid,
            if server.pooled {
                ", through a pooler"
            } else {
                ""
            },
        ));
        let attempt = match lock.scope {
            Scope::Session => attempt,
            Scope::Transaction => {
                heard = self.alive(patience_with(&server));
                lock.first_try_in_transaction(client, self.request.timing.server_limit())?
            }
        };
        let got = attempt.acquired()?.map(|backend_pid| Acquired {
            heard,
            prepared: lock.scope == Scope::Transaction,
            backend_pid,
        });
        Ok(Ready { lock, server, got })
    }

    /// Waits for the lock, if it is to be waited for. `None` when the time is up.
    fn wait(
        &self,
        client: &mut Client,
        lock: Lock,
        server: &Server,
    ) -> Result<Option<Acquired>, Failure> {
        if self.request.wait == Wait::Try {
            return Ok(None);
        }
        if diag::is_verbose() {
            let held = self.holders(client, lock, server);
            diag::detail(format_args!("{held}; waiting"));
        }
        let terms = Terms {
            wait: self.request.wait,
            poll: self.request.poll,
            limit: self.request.timing.server_limit(),
            slice: match lock.scope {
                Scope::Session => self.prepare(client)?,
                Scope::Transaction => Duration::ZERO,
            },
        };
        let mut heard = Instant::now();
        let alive = |sent, longest: Duration| {
            heard = sent;
            self.alive(longest.max(patience_with(server)));
        };
        let pause = |rest| {
            // Nobody is asked anything meanwhile, and nobody has to answer.
            self.alive(rest);
            !self.is_ordered_within(rest)
        };
        let got = lock.wait(client, terms, alive, pause)?;
        Ok(got.map(|backend_pid| Acquired {
            heard,
            prepared: true,
            backend_pid,
        }))
    }

    /// Sleeps this long, or until the order comes to give the lock back: whether it has come.
    fn is_ordered_within(&self, rest: Duration) -> bool {
        let order = PollFd::new(self.orders.as_fd(), PollFlags::POLLIN);
        // No signal interrupts this thread.
        poll(&mut [order], timeout(rest)).is_ok_and(|ready| ready > 0)
    }

    fn prepare(&self, client: &mut Client) -> Result<Duration, Failure> {
        self.alive(Duration::ZERO);
        lock::prepare(client, self.request.timing.server_limit())
            .map_err(|error| connection::failure(error).context("cannot prepare the session"))
    }

    /// Why the lock is not ours, and whose it is.
    fn conflict(&self, client: &mut Client, lock: Lock, server: &Server) -> String {
        self.alive(patience_with(server));
        self.holders(client, lock, server)
    }

    /// The sentence that says whose the lock is.
    fn holders(&self, client: &mut Client, lock: Lock, server: &Server) -> String {
        let holders = holders::of(client, lock.id).unwrap_or_default();
        holders::sentence(&self.request.key, lock.id, &server.database, &holders)
    }

    /// Watches over the session until the order to release comes (`Ok`) or it is lost (`Err`: why).
    fn hold(
        &self,
        client: &mut Client,
        socket: Option<&OwnedFd>,
        acquired: Acquired,
    ) -> Result<(), String> {
        let heartbeat = self.request.timing.heartbeat;
        let mut last_sent = acquired.heard;
        if !acquired.prepared {
            // Off the critical path: the job is being started meanwhile.
            last_sent = Instant::now();
            self.prepare(client)
                .map_err(|failure| failure.to_string())?;
            self.speaker.say(Report::Alive(self.next_sign(last_sent)));
        }
        loop {
            match self.next_event(socket, last_sent + heartbeat) {
                Next::Order => return Ok(()),
                Next::Readable => ended_by_server(client)?,
                Next::Beat => {
                    last_sent = Instant::now();
                    lock::heartbeat(client).map_err(|e| connection::failure(e).to_string())?;
                    self.speaker.say(Report::Alive(self.next_sign(last_sent)));
                }
            }
        }
    }

    /// Sleeps until there is something to do.
    fn next_event(&self, socket: Option<&OwnedFd>, beat: Instant) -> Next {
        loop {
            let left = beat.saturating_duration_since(Instant::now());
            // Without the socket, a closed session is only noticed by asking.
            let limit = if socket.is_some() {
                left
            } else {
                left.min(BLIND_TICK)
            };
            let mut fds = vec![PollFd::new(self.orders.as_fd(), PollFlags::POLLIN)];
            fds.extend(socket.map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
            match poll(&mut fds, timeout(limit)) {
                Ok(0) if limit == left => return Next::Beat,
                Ok(0) => return Next::Readable,
                Ok(_) if fds[0].any() == Some(true) => return Next::Order,
                Ok(_) => return Next::Readable,
                Err(_) => {}
            }
        }
    }

    /// Says that a message is about to be sent that the server will answer within `longest`, but for what the
    /// network and a busy server add. Returns the moment.
    fn alive(&self, longest: Duration) -> Instant {
        let now = Instant::now();
        self.speaker
            .say(Report::Alive(self.next_sign(now) + longest));
        now
    }

    /// By when a server that received a message sent at `sent` must have answered the next one.
    fn next_sign(&self, sent: Instant) -> Instant {
        sent + self.request.timing.heartbeat * 2
    }
}

/// The server is fit for this lock, which is tried once.
struct Ready {
    lock: Lock,
    server: Server,
    got: Option<Acquired>,
}

/// The lock is ours, by the answer to a message sent at this moment.
struct Acquired {
    heard: Instant,
    /// The settings of the session, or the transaction, are made already.
    prepared: bool,
    /// The process of the server that holds it.
    backend_pid: i32,
}

/// How long a message of one who waits may be under way, beyond what a server may take for an answer. A pooler lets
/// it wait for a free session of its pool, for two minutes by PgBouncer's default. One who holds has a session.
fn patience_with(server: &Server) -> Duration {
    match server.pooled {
        true => Duration::from_secs(120),
        false => Duration::ZERO,
    }
}

enum Next {
    Order,
    Readable,
    Beat,
}

/// How often a session whose socket is unknown is looked at.
const BLIND_TICK: Duration = Duration::from_millis(250);

/// Reads what the server sent unasked. An idle session that becomes readable has most often been ended.
fn ended_by_server(client: &mut Client) -> Result<(), String> {
    // What comes is of no interest, only whether an error does.
    let read = client
        .notifications()
        .timeout_iter(Duration::from_millis(1))
        .count();
    read.map_err(|error| connection::failure(error).to_string())?;
    match client.is_closed() {
        true => Err("the server closed the connection".into()),
        false => Ok(()),
    }
}

/// The time to poll, rounded up: waking a moment too early would only mean polling again.
pub fn timeout(left: Duration) -> PollTimeout {
    PollTimeout::try_from(left.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
}

/// `pglock:<key> <host>:<pid>`, by which a database administrator sees who holds or waits.
///
/// PostgreSQL keeps 63 bytes and mangles what is not ASCII, so a long key is cut, and what is not printable
/// ASCII becomes `?`. Quotes and backslashes too: the name stands in SQL. The end makes it unique.
pub fn application_name(key: &str) -> String {
    let host = nix::unistd::gethostname().unwrap_or_default();
    compose_name(key, &host.to_string_lossy(), std::process::id())
}

fn compose_name(key: &str, host: &str, pid: u32) -> String {
    let plain = |text: &str, most: usize| -> String {
        let keep = |c: char| (c == ' ' || c.is_ascii_graphic()) && !matches!(c, '\'' | '"' | '\\');
        text.chars()
            .map(|c| if keep(c) { c } else { '?' })
            .take(most)
            .collect()
    };
    let tail = format!(" {}:{pid}", plain(host, 32).replace(' ', "?"));
    format!(
        "pglock:{}{tail}",
        plain(key, 63 - "pglock:".len() - tail.len())
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_application_name_is_63_bytes_of_ascii_with_host_and_pid_whole() {
        assert_eq!(compose_name("backup", "web1", 77), "pglock:backup web1:77");
        assert_eq!(
            compose_name("schl\u{fc}ssel 'x'\n", "web1", 77),
            "pglock:schl?ssel ?x?? web1:77"
        );
        let long = compose_name(&"k".repeat(100), &"h".repeat(64), u32::MAX);
        assert_eq!(long.len(), 63);
        assert!(
            long.ends_with(&format!(" {}:4294967295", "h".repeat(32))),
            "{long}"
        );
    }

    #[test]
    fn the_job_is_dead_before_the_server_gives_the_lock_away() {
        let timing = Timing {
            heartbeat: Duration::from_secs(5),
            kill_after: Duration::from_secs(10),
        };
        assert_eq!(timing.job_limit(), Duration::from_secs(20));
        assert_eq!(timing.server_limit(), Duration::from_secs(23));
    }
}
