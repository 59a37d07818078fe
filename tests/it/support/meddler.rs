//! A relay that meddles with a session between two of the client's messages: it runs statements in it, or lends it
//! another backend, as a pooler does.
//!
//! It knows only where a message ends, and no encryption. It relays a message of the client and the reply to it before
//! the next one, so it does not forward what a server sends without being asked.

use super::proxy::read_message;
use super::server::Server;
use super::wait::{SOON, eventually};
use std::io::{self, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// Listens for as long as the test process lives.
pub struct Meddler {
    port: u16,
    server_port: u16,
    sessions: Arc<Mutex<Vec<Arc<Session>>>>,
}

/// A relayed session.
struct Session {
    startup: Vec<u8>,
    /// The last one answers. Locked while a message and its reply are relayed.
    backends: Mutex<Vec<TcpStream>>,
}

impl Meddler {
    pub fn before(server: &Server) -> Meddler {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let server_port = server.port();
        let sessions = Arc::new(Mutex::new(Vec::new()));
        let known = Arc::clone(&sessions);
        thread::spawn(move || {
            for client in listener.incoming() {
                let known = Arc::clone(&known);
                // A client that hangs up, or a server that does, ends its session.
                thread::spawn(move || client.and_then(|client| serve(client, server_port, &known)));
            }
        });
        Meddler {
            port,
            server_port,
            sessions,
        }
    }

    /// Returns the connection string of the relay.
    pub fn dsn(&self) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/postgres?sslmode=disable", self.port)
    }

    /// Runs this statement in the first session, as soon as it can: a transaction that an error has ended refuses it
    /// until it is rolled back.
    pub fn run(&self, statement: &str) {
        let session = self.first_session();
        let length = (statement.len() + 5) as u32;
        let query = [b"Q", &length.to_be_bytes()[..], statement.as_bytes(), b"\0"].concat();
        eventually(SOON, "a statement that is not refused", || {
            let mut backends = session.backends.lock().unwrap();
            let backend = backends.last_mut().unwrap();
            backend.write_all(&query).unwrap();
            let mut reply = Vec::new();
            relay_reply(backend, &mut reply).unwrap();
            reply[0] != b'E'
        });
    }

    /// Lends another backend to the first session from now on. The one that it had stays, and keeps its locks.
    pub fn switch_backend(&self) {
        let session = self.first_session();
        let mut backends = session.backends.lock().unwrap();
        let mut backend = TcpStream::connect(("127.0.0.1", self.server_port)).unwrap();
        backend.write_all(&session.startup).unwrap();
        relay_reply(&mut backend, &mut io::sink()).unwrap();
        backends.push(backend);
    }

    fn first_session(&self) -> Arc<Session> {
        Arc::clone(&self.sessions.lock().unwrap()[0])
    }
}

fn serve(mut client: TcpStream, server_port: u16, known: &Mutex<Vec<Arc<Session>>>) -> io::Result<()> {
    let mut backend = TcpStream::connect(("127.0.0.1", server_port))?;
    // The first message has no type.
    let startup = read_message(&mut client, false)?;
    backend.write_all(&startup)?;
    relay_reply(&mut backend, &mut client)?;
    let session = Arc::new(Session {
        startup,
        backends: Mutex::new(vec![backend]),
    });
    known.lock().unwrap().push(Arc::clone(&session));
    let ended = relay(&mut client, &session);
    for backend in session.backends.lock().unwrap().iter() {
        let _ = backend.shutdown(Shutdown::Both);
    }
    ended
}

fn relay(client: &mut TcpStream, session: &Session) -> io::Result<()> {
    loop {
        let message = read_message(client, true)?;
        let mut backends = session.backends.lock().unwrap();
        let backend = backends.last_mut().expect("it has had one from the start");
        backend.write_all(&message)?;
        if message[0] != b'X' {
            relay_reply(backend, client)?;
        }
    }
}

/// Relays messages up to the one that says that the server is ready for the next.
fn relay_reply(backend: &mut TcpStream, client: &mut impl Write) -> io::Result<()> {
    loop {
        let message = read_message(backend, true)?;
        client.write_all(&message)?;
        if message[0] == b'Z' {
            return Ok(());
        }
    }
}
