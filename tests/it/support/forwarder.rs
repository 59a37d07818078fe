//! A pooler that forwards the first client's startup packet and then lends its one backend by the transaction, as some
//! home-made poolers and old versions of pgagroal do. The session's initial name is that of the first client, for every
//! client.
//!
//! It listens on a Unix socket, which the hosts of a test's network reach as well: they share the file system.

use super::proxy::read_message;
use super::server::{SUPERUSER, Server};
use std::fs;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;

/// The port in the name of the socket, which is alone in its directory.
const PORT: u16 = 5432;

/// The length of a cancel request, which is no startup packet.
const CANCEL_REQUEST_LEN: usize = 16;

/// Listens until it is killed, or dropped.
pub(crate) struct Forwarder {
    directory: PathBuf,
    /// Removed on drop, if it is the forwarder's own.
    _own_directory: Option<tempfile::TempDir>,
    relay: Arc<Relay>,
}

/// What the threads of a forwarder share.
struct Relay {
    /// The socket of the server.
    server: PathBuf,
    closes_idle: bool,
    /// Locked while it is lent.
    backend: Mutex<Option<Backend>>,
    is_killed: AtomicBool,
    /// All connections.
    streams: Mutex<Vec<Weak<UnixStream>>>,
    clients: Mutex<usize>,
}

/// The backend that is lent, and what the server sent when it was opened: later clients get the same greeting.
struct Backend {
    stream: Arc<UnixStream>,
    greeting: Vec<u8>,
}

impl Forwarder {
    pub(crate) fn to(server: &Server) -> Forwarder {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        Forwarder::make(server, path, Some(directory), false)
    }

    /// Listens in this directory, where another one may have been killed. One that `closes_idle` closes the backend
    /// when no client is connected, so that the next one is the first again.
    pub(crate) fn make(
        server: &Server,
        directory: PathBuf,
        own_directory: Option<tempfile::TempDir>,
        closes_idle: bool,
    ) -> Forwarder {
        Forwarder {
            relay: listen(&directory, server, closes_idle),
            directory,
            _own_directory: own_directory,
        }
    }

    /// Returns the connection string of the pooler.
    pub(crate) fn dsn(&self) -> String {
        let directory = self.directory.display();
        format!("host={directory} port={PORT} user={SUPERUSER} dbname=postgres sslmode=disable")
    }

    /// Ends all connections and listens no more, as a process that is killed.
    pub(crate) fn kill(&self) {
        let streams = self.relay.streams.lock().unwrap();
        self.relay.is_killed.store(true, Ordering::SeqCst);
        for stream in streams.iter().filter_map(Weak::upgrade) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        // Wakes the listener, which is then closed.
        let _ = UnixStream::connect(socket(&self.directory, PORT));
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.kill();
    }
}

fn listen(directory: &Path, server: &Server, closes_idle: bool) -> Arc<Relay> {
    let socket = socket(directory, PORT);
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(socket).unwrap();
    let relay = Arc::new(Relay {
        server: self::socket(Path::new(server.host()), server.port()),
        closes_idle,
        backend: Mutex::default(),
        is_killed: AtomicBool::new(false),
        streams: Mutex::default(),
        clients: Mutex::default(),
    });
    let shared = Arc::clone(&relay);
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            if shared.is_killed.load(Ordering::SeqCst) {
                return;
            }
            let relay = Arc::clone(&shared);
            // A client that hangs up is no error.
            thread::spawn(move || drop(relay.serve(client)));
        }
    });
    relay
}

impl Relay {
    /// Serves one client, until it hangs up.
    ///
    /// # Errors
    /// The client or the server hangs up.
    fn serve(&self, client: UnixStream) -> io::Result<()> {
        let client = self.register(client)?;
        let startup = read_message(&mut &*client, false)?;
        if startup.len() == CANCEL_REQUEST_LEN {
            return Ok(());
        }
        *self.clients.lock().unwrap() += 1;
        let served = self.greet(&client, &startup).and_then(|()| self.lend_to(&client));
        let mut clients = self.clients.lock().unwrap();
        *clients -= 1;
        if *clients == 0 && self.closes_idle {
            *self.lend() = None;
        }
        served
    }

    /// Returns the backend, once it is not lent to another client. The thread of another client may have panicked.
    fn lend(&self) -> MutexGuard<'_, Option<Backend>> {
        self.backend.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the greeting of the backend, which is opened if there is none.
    ///
    /// # Errors
    /// The client or the server hangs up.
    fn greet(&self, mut client: &UnixStream, startup: &[u8]) -> io::Result<()> {
        let mut backend = self.lend();
        if backend.is_none() {
            *backend = Some(self.open(startup)?);
        }
        client.write_all(&backend.as_ref().unwrap().greeting)
    }

    /// Lends the backend to the client again and again.
    ///
    /// # Errors
    /// The client or the server hangs up.
    fn lend_to(&self, client: &UnixStream) -> io::Result<()> {
        let mut lent = None;
        let ended = self.relay_queries(client, &mut lent);
        if let Some(mut backend) = lent {
            // The client has left a transaction open.
            let is_idle = backend
                .as_mut()
                .map(|backend| ask(backend, &query("ROLLBACK"), &mut io::sink()));
            if !matches!(is_idle, Some(Ok(true))) {
                *backend = None;
            }
        }
        ended
    }

    /// Relays queries. The backend stays lent for as long as a transaction is open.
    ///
    /// # Errors
    /// The client or the server hangs up.
    fn relay_queries<'a>(
        &'a self,
        mut client: &UnixStream,
        lent: &mut Option<MutexGuard<'a, Option<Backend>>>,
    ) -> io::Result<()> {
        loop {
            let message = read_message(&mut client, true)?;
            if message[0] == b'X' {
                return Ok(());
            }
            let backend = lent.get_or_insert_with(|| self.lend());
            let Some(opened) = backend.as_mut() else {
                return Err(io::ErrorKind::NotConnected.into());
            };
            if ask(opened, &message, &mut client)? {
                *lent = None;
            }
        }
    }

    /// Opens a session with this startup packet.
    ///
    /// # Errors
    /// The server refuses, or hangs up.
    fn open(&self, startup: &[u8]) -> io::Result<Backend> {
        let stream = self.register(UnixStream::connect(&self.server)?)?;
        (&*stream).write_all(startup)?;
        let mut greeting = Vec::new();
        loop {
            let message = read_message(&mut &*stream, true)?;
            greeting.extend_from_slice(&message);
            if message[0] == b'Z' {
                return Ok(Backend { stream, greeting });
            }
        }
    }

    /// Adds a connection to those that [`Forwarder::kill`] ends.
    ///
    /// # Errors
    /// The forwarder was killed.
    fn register(&self, stream: UnixStream) -> io::Result<Arc<UnixStream>> {
        let mut streams = self.streams.lock().unwrap();
        if self.is_killed.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let stream = Arc::new(stream);
        streams.retain(|stream| stream.strong_count() > 0);
        streams.push(Arc::downgrade(&stream));
        Ok(stream)
    }
}

/// Relays a query and its reply. Returns whether no transaction is open then.
///
/// # Errors
/// The server hangs up.
fn ask(backend: &mut Backend, message: &[u8], client: &mut impl Write) -> io::Result<bool> {
    let mut stream = &*backend.stream;
    stream.write_all(message)?;
    loop {
        let reply = read_message(&mut stream, true)?;
        // All of the reply is read, even if the client has gone.
        let _ = client.write_all(&reply);
        if reply[0] == b'Z' {
            return Ok(reply[5] == b'I');
        }
    }
}

fn query(sql: &str) -> Vec<u8> {
    let length = (sql.len() + 5) as u32;
    [b"Q", &length.to_be_bytes()[..], sql.as_bytes(), b"\0"].concat()
}

/// Returns the socket of a server with this directory and port.
fn socket(directory: &Path, port: u16) -> PathBuf {
    directory.join(format!(".s.PGSQL.{port}"))
}
