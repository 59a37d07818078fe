//! The hostile server: a relay in front of a real one, which tampers with the server's messages.
//!
//! It relays a real conversation in its real states, so that a mutation hits pglock at a stage that it has reached
//! legitimately. It keeps what it has sent for the referee. Under TLS it sees only bytes.

use super::mutation::{Mutation, Step};
use super::wire::{grants, is_tls_request, records, says};
use crate::support::proxy::read_message;
use crate::support::wait::until;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// How far a session has come, as far as the relay can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The reply to the TLS request.
    Tls,
    /// Authentication.
    Login,
    /// What the server sends before the first query.
    Startup,
    /// Queries and attempts without a lock.
    Asking,
    /// Waiting for the lock.
    Waiting,
    /// pglock holds the lock.
    Holding,
    /// pglock releases the lock.
    Release,
    /// Bytes under TLS, from the handshake to the end.
    Encrypted,
}

impl Stage {
    pub const ALL: [Stage; 8] = [
        Stage::Tls,
        Stage::Login,
        Stage::Startup,
        Stage::Asking,
        Stage::Waiting,
        Stage::Holding,
        Stage::Release,
        Stage::Encrypted,
    ];
}

/// Where to tamper, and how.
#[derive(Clone, Debug)]
pub struct Tampering {
    /// The session of the case, from 0: a token, or the name of an evictor, needs a second one.
    pub session: usize,
    /// The stage, and the number of the message in it, from 0; for bytes under TLS, the position of the byte.
    pub stage: Stage,
    pub nth: usize,
    pub mutation: Mutation,
}

/// A relay to a port, for one case; closed on drop, with its connections.
pub struct Relay {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: u16,
    tamperings: Vec<Tampering>,
    /// Called right before a tampering: whether a client holds the lock then.
    is_granted: Box<dyn Fn() -> bool + Send + Sync>,
    is_over: AtomicBool,
    /// The number of the last session that was queued for the lock, from 1.
    waiting_sessions: AtomicUsize,
    streams: Mutex<Vec<TcpStream>>,
    sent: Mutex<Vec<Vec<u8>>>,
    done: Mutex<Vec<(Stage, usize)>>,
    before_grant: AtomicBool,
}

/// The relay of one session.
struct Session {
    shared: Arc<Shared>,
    number: usize,
    stage: Mutex<Stage>,
    is_raw: AtomicBool,
    holds: AtomicBool,
}

impl Relay {
    pub fn start(
        upstream: u16,
        tamperings: Vec<Tampering>,
        is_granted: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Relay {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            upstream,
            tamperings,
            is_granted: Box::new(is_granted),
            is_over: AtomicBool::new(false),
            waiting_sessions: AtomicUsize::new(0),
            streams: Mutex::default(),
            sent: Mutex::default(),
            done: Mutex::default(),
            before_grant: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            let number = AtomicUsize::new(0);
            for client in listener.incoming().map_while(Result::ok) {
                if accepting.is_over.load(Ordering::SeqCst) {
                    return;
                }
                let number = number.fetch_add(1, Ordering::SeqCst);
                // A server without a free connection is as good as one that closes.
                let _ = Session::start(&accepting, number, client);
            }
        });
        Relay { port, shared }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the number of the last session that was queued for the lock, from 1, or 0.
    pub fn waiting_sessions(&self) -> usize {
        self.shared.waiting_sessions.load(Ordering::SeqCst)
    }

    /// Closes all connections, and accepts no more.
    pub fn end(&self) {
        if !self.shared.is_over.swap(true, Ordering::SeqCst) {
            let _ = TcpStream::connect(("127.0.0.1", self.port));
        }
        for stream in self.shared.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Returns what was tampered with: the stages and the kinds of mutation.
    pub fn done(&self) -> Vec<(Stage, usize)> {
        self.shared.done.lock().unwrap().clone()
    }

    /// Returns whether pglock was sent the grant of a lock, as far as the bytes can be read.
    pub fn has_granted(&self) -> bool {
        let sent = self.shared.sent.lock().unwrap();
        sent.iter().any(|bytes| grants(bytes))
    }

    /// Returns whether pglock was sent that a run of so many keys has been recorded.
    pub fn has_recorded(&self, keys: usize) -> bool {
        let sent = self.shared.sent.lock().unwrap();
        sent.iter().any(|bytes| records(bytes, keys))
    }

    /// Returns whether pglock was sent a value in this column.
    pub fn has_said(&self, column: &str) -> bool {
        let sent = self.shared.sent.lock().unwrap();
        sent.iter().any(|bytes| says(bytes, column))
    }

    /// Returns whether the relay tampered before the real server had granted the lock.
    pub fn tampered_before_grant(&self) -> bool {
        self.shared.before_grant.load(Ordering::SeqCst)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.end();
    }
}

impl Session {
    fn start(shared: &Arc<Shared>, number: usize, client: TcpStream) -> io::Result<()> {
        let server = TcpStream::connect(("127.0.0.1", shared.upstream))?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let mut streams = shared.streams.lock().unwrap();
        streams.extend([client.try_clone()?, server.try_clone()?]);
        drop(streams);
        shared.sent.lock().unwrap().push(Vec::new());
        let session = Arc::new(Session {
            shared: Arc::clone(shared),
            number,
            stage: Mutex::new(Stage::Login),
            is_raw: AtomicBool::new(false),
            holds: AtomicBool::new(false),
        });
        let (there, back) = (Arc::clone(&session), session);
        let (from, to) = (client.try_clone()?, server.try_clone()?);
        thread::spawn(move || {
            let _ = there.listen_to_client(from, &to);
            let _ = to.shutdown(Shutdown::Both);
        });
        thread::spawn(move || {
            let mut out = Output {
                client,
                history: Vec::new(),
                later: Vec::new(),
                dribbles: false,
            };
            let _ = back.listen_to_server(&server, &mut out);
            let _ = out.client.shutdown(Shutdown::Both);
            let _ = server.shutdown(Shutdown::Both);
        });
        Ok(())
    }

    fn stage(&self) -> Stage {
        *self.stage.lock().unwrap()
    }

    fn enter(&self, stage: Stage) {
        *self.stage.lock().unwrap() = stage;
    }

    /// Relays everything, and tracks the stage.
    fn listen_to_client(&self, mut from: TcpStream, mut to: &TcpStream) -> io::Result<()> {
        let mut typed = false;
        loop {
            let message = read_message(&mut from, typed)?;
            if !typed && is_tls_request(&message) {
                self.enter(Stage::Tls);
                to.write_all(&message)?;
                // What follows depends on the one-byte reply, for which the client waits.
                let mut first = [0];
                from.read_exact(&mut first)?;
                if first[0] == 22 {
                    self.is_raw.store(true, Ordering::SeqCst);
                    to.write_all(&first)?;
                    return io::copy(&mut from, &mut to).map(drop);
                }
                self.enter(Stage::Login);
                let mut rest = vec![0; 3];
                from.read_exact(&mut rest)?;
                let head = [&first[..], &rest].concat();
                let mut chained = io::Cursor::new(head).chain(&mut from);
                let startup = read_message(&mut chained, false)?;
                to.write_all(&startup)?;
                typed = true;
                continue;
            }
            typed = true;
            if message[0] == b'Q' {
                self.enter(self.stage_of(&String::from_utf8_lossy(&message)));
            }
            to.write_all(&message)?;
        }
    }

    fn stage_of(&self, query: &str) -> Stage {
        if query.contains("AS released") {
            Stage::Release
        } else if query.contains("pg_advisory_xact_lock(") && !self.holds.load(Ordering::SeqCst) {
            let number = self.number + 1;
            self.shared.waiting_sessions.fetch_max(number, Ordering::SeqCst);
            Stage::Waiting
        } else if self.holds.load(Ordering::SeqCst) {
            Stage::Holding
        } else {
            Stage::Asking
        }
    }

    /// Relays the server's messages, or what tampering makes of them.
    fn listen_to_server(&self, mut server: &TcpStream, out: &mut Output) -> io::Result<()> {
        let mut counts = [0; Stage::ALL.len()];
        let mut replies = Vec::new();
        // The server sends nothing before the client's first message, which determines the stage.
        server.peek(&mut [0])?;
        if self.stage() == Stage::Tls {
            let mut reply = [0];
            server.read_exact(&mut reply)?;
            self.pass(&reply, Stage::Tls, 0..1, out)?;
            if reply[0] == b'S' {
                return self.pass_bytes(server, out);
            }
        }
        loop {
            let message = read_message(&mut server, true)?;
            let stage = self.stage();
            let count = &mut counts[stage as usize];
            let nth = *count;
            *count += 1;
            self.pass(&message, stage, nth..nth + 1, out)?;
            match message[0] {
                b'R' if message[5..9] == [0; 4] => self.enter(Stage::Startup),
                b'Z' if stage <= Stage::Startup => self.enter(Stage::Asking),
                _ => {}
            }
            replies.extend(message.clone());
            if message[0] == b'Z' {
                if grants(&replies) {
                    self.holds.store(true, Ordering::SeqCst);
                }
                replies.clear();
            }
        }
    }

    /// Relays bytes that cannot be read as messages.
    fn pass_bytes(&self, mut server: &TcpStream, out: &mut Output) -> io::Result<()> {
        let (mut buffer, mut position) = ([0; 2048], 0);
        loop {
            let count = server.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            let range = position..position + count;
            position += count;
            self.pass(&buffer[..count], Stage::Encrypted, range, out)?;
        }
    }

    /// Relays a message, unless it is to be tampered with.
    fn pass(&self, bytes: &[u8], stage: Stage, range: std::ops::Range<usize>, out: &mut Output) -> io::Result<()> {
        let due = |tampering: &&Tampering| {
            tampering.session == self.number && tampering.stage == stage && range.contains(&tampering.nth)
        };
        let tampering = self.shared.tamperings.iter().find(due);
        let later = std::mem::take(&mut out.later);
        match tampering {
            None => self.send(bytes, out)?,
            Some(tampering) => {
                let kind = tampering.mutation.kind;
                let steps = match stage {
                    Stage::Tls | Stage::Encrypted => tampering.mutation.steps_of_bytes(bytes),
                    _ => tampering.mutation.steps(bytes, &out.history),
                };
                // A delayed message is not changed, nor is one byte by some mutations.
                let is_unchanged = matches!(&steps[..], [Step::Send(sent)] if sent == bytes);
                if !matches!(kind, 11 | 13) && !is_unchanged && !(self.shared.is_granted)() {
                    self.shared.before_grant.store(true, Ordering::SeqCst);
                }
                self.shared.done.lock().unwrap().push((stage, kind));
                for step in steps {
                    self.take(step, out)?;
                }
            }
        }
        for message in later {
            self.send(&message, out)?;
        }
        out.history.push(bytes.to_vec());
        Ok(())
    }

    fn take(&self, step: Step, out: &mut Output) -> io::Result<()> {
        match step {
            Step::Send(bytes) => self.send(&bytes, out)?,
            Step::Later(bytes) => out.later.push(bytes),
            Step::Pause(time) => {
                self.idle(Some(time));
            }
            Step::Close => return Err(io::ErrorKind::ConnectionAborted.into()),
            Step::Stall => self.idle(None),
            Step::Dribble => out.dribbles = true,
            Step::Endless(what) => {
                for n in 0.. {
                    // The referee does not keep a flood.
                    out.client.write_all(&what.chunk(n))?;
                    if self.shared.is_over.load(Ordering::SeqCst) {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// Does nothing for this time, or until the case is over.
    fn idle(&self, time: Option<Duration>) {
        let limit = time.unwrap_or(Duration::from_secs(120));
        until(limit, || self.shared.is_over.load(Ordering::SeqCst));
    }

    fn send(&self, bytes: &[u8], out: &mut Output) -> io::Result<()> {
        self.shared.sent.lock().unwrap()[self.number].extend(bytes);
        if out.dribbles {
            bytes.iter().try_for_each(|byte| out.client.write_all(&[*byte]))
        } else {
            out.client.write_all(bytes)
        }
    }
}

/// The connection to pglock.
struct Output {
    client: TcpStream,
    /// What the server has sent so far.
    history: Vec<Vec<u8>>,
    /// What is to be sent after the next message.
    later: Vec<Vec<u8>>,
    dribbles: bool,
}
