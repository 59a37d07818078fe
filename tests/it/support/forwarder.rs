//! A pooler that forwards the first client's startup packet and then lends its one backend by the transaction, as some
//! home-made poolers and old versions of pgagroal do. The session's initial name is that of the first client, for every
//! client.

use super::proxy::read_message;
use super::server::Server;
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

/// Listens for as long as the test process lives.
pub(crate) struct Forwarder {
    port: u16,
}

/// The backend that is lent, and what the server sent when it was opened: later clients get the same greeting.
struct Backend {
    stream: TcpStream,
    greeting: Vec<u8>,
}

/// The length of a cancel request, which is no startup packet.
const CANCEL_REQUEST_LEN: usize = 16;

impl Forwarder {
    pub(crate) fn to(server: &Server) -> Forwarder {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let server_port = server.port();
        let backend = Arc::new(Mutex::new(None));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let backend = Arc::clone(&backend);
                // A client that hangs up is no error.
                thread::spawn(move || drop(serve(client, server_port, &backend)));
            }
        });
        Forwarder { port }
    }

    /// Returns the connection string of the pooler.
    pub(crate) fn dsn(&self) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/postgres?sslmode=disable", self.port)
    }
}

/// Serves one client, until it hangs up.
///
/// # Errors
/// The client or the server hangs up.
fn serve(mut client: TcpStream, server_port: u16, shared: &Mutex<Option<Backend>>) -> io::Result<()> {
    let startup = read_message(&mut client, false)?;
    if startup.len() == CANCEL_REQUEST_LEN {
        return Ok(());
    }
    {
        let mut backend = shared.lock().unwrap();
        if backend.is_none() {
            *backend = Some(open(&startup, server_port)?);
        }
        client.write_all(&backend.as_ref().unwrap().greeting)?;
    }
    let mut lent: Option<MutexGuard<Option<Backend>>> = None;
    let ended = lend(&mut client, shared, &mut lent);
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
fn lend<'a>(
    client: &mut TcpStream,
    shared: &'a Mutex<Option<Backend>>,
    lent: &mut Option<MutexGuard<'a, Option<Backend>>>,
) -> io::Result<()> {
    loop {
        let message = read_message(client, true)?;
        if message[0] == b'X' {
            return Ok(());
        }
        let backend = lent.get_or_insert_with(|| shared.lock().unwrap());
        let Some(opened) = backend.as_mut() else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        if ask(opened, &message, client)? {
            *lent = None;
        }
    }
}

/// Relays a query and its reply. Returns whether no transaction is open then.
///
/// # Errors
/// The server hangs up.
fn ask(backend: &mut Backend, message: &[u8], client: &mut impl Write) -> io::Result<bool> {
    backend.stream.write_all(message)?;
    loop {
        let reply = read_message(&mut backend.stream, true)?;
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

/// Opens a session with this startup packet.
///
/// # Errors
/// The server refuses, or hangs up.
fn open(startup: &[u8], server_port: u16) -> io::Result<Backend> {
    let mut stream = TcpStream::connect(("127.0.0.1", server_port))?;
    stream.write_all(startup)?;
    let mut greeting = Vec::new();
    loop {
        let message = read_message(&mut stream, true)?;
        greeting.extend_from_slice(&message);
        if message[0] == b'Z' {
            return Ok(Backend { stream, greeting });
        }
    }
}
