//! A proxy between pglock and the server: it asks pglock's own session a question that no other can answer, ends a
//! session at a given query or falls silent, delays messages, or splits them.
//!
//! It knows only where a message ends, and no encryption.

use super::server::Server;
use super::wait::{SOON, eventually};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Listens for as long as the test process lives.
pub struct Proxy {
    port: u16,
    answers: Arc<Mutex<Vec<String>>>,
    is_silent: Arc<AtomicBool>,
}

impl Proxy {
    /// Asks this question, which returns one value, in each session before it relays the client's Terminate message.
    pub fn asking(server: &Server, question: &'static str) -> Proxy {
        let answers = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&answers);
        let port = listen(server.port(), move |_, client, server| {
            converse(client, server, question, &sink);
        });
        Proxy {
            port,
            answers,
            is_silent: Arc::default(),
        }
    }

    /// Ends the first session at the first of these texts in a message of the client, as a server that dies, before it
    /// is relayed; the second session at the second text, and so on. Later sessions are left alone.
    pub fn ending_at(to: u16, texts: &'static [&'static str]) -> Proxy {
        Proxy {
            port: listen(to, |number, client, server| {
                relay_until(texts.get(number).copied(), client, server);
            }),
            answers: Arc::default(),
            is_silent: Arc::default(),
        }
    }

    /// Relays so many queries of the first session, and then neither relays nor closes anything; the second session
    /// after the second number of queries, and so on. Later sessions are left alone.
    pub fn silent_after(server: &Server, queries: &'static [usize]) -> Proxy {
        let is_silent = Arc::new(AtomicBool::new(false));
        let note = Arc::clone(&is_silent);
        Proxy {
            port: listen(server.port(), move |number, client, server| {
                relay_queries(queries.get(number).copied(), client, server, &note);
            }),
            answers: Arc::default(),
            is_silent,
        }
    }

    /// Relays everything, but holds back the first message with this text until told.
    pub fn holding_back(server: &Server, text: &'static str) -> Proxy {
        let is_silent = Arc::new(AtomicBool::new(false));
        let note = Arc::clone(&is_silent);
        let is_over = AtomicBool::new(false);
        Proxy {
            port: listen(server.port(), move |_, client, server| {
                relay_holding_back(text, client, server, &note, &is_over);
            }),
            answers: Arc::default(),
            is_silent,
        }
    }

    /// Relays the message that is held back.
    pub fn resume(&self) {
        self.is_silent.store(false, Ordering::SeqCst);
    }

    /// Relays everything this much later, in both directions.
    pub fn with_delay(server: &Server, delay: Duration) -> Proxy {
        Proxy {
            port: listen(server.port(), move |_, client, server| {
                let (from, to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                thread::spawn(move || relay_later(delay, from, to));
                relay_later(delay, client, server);
            }),
            answers: Arc::default(),
            is_silent: Arc::default(),
        }
    }

    /// Runs the statements of each message one by one, as some poolers do.
    pub fn splitting(to: u16) -> Proxy {
        Proxy {
            port: listen(to, |_, client, server| {
                let _ = relay_statements(client, server);
            }),
            answers: Arc::default(),
            is_silent: Arc::default(),
        }
    }

    /// Returns the connection string of the proxy.
    pub fn dsn(&self) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/postgres?sslmode=disable", self.port)
    }

    /// Waits until a session has fallen silent.
    #[track_caller]
    pub fn await_silence(&self) {
        eventually(SOON, "a silent session", || self.is_silent.load(Ordering::SeqCst));
    }

    /// Returns the answers so far, one for each session that has ended.
    pub fn answers(&self) -> Vec<String> {
        self.answers.lock().unwrap().clone()
    }
}

/// Serves each connection on a thread of its own, with its number and a connection to this port. Returns the port to
/// connect to.
fn listen(to: u16, serve: impl Fn(usize, TcpStream, TcpStream) + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for (number, client) in listener.incoming().enumerate() {
            let (Ok(client), Ok(server)) = (client, TcpStream::connect(("127.0.0.1", to))) else {
                continue;
            };
            let serve = Arc::clone(&serve);
            thread::spawn(move || serve(number, client, server));
        }
    });
    port
}

fn converse(mut client: TcpStream, mut server: TcpStream, question: &str, answers: &Mutex<Vec<String>>) {
    let has_asked = Arc::new(AtomicBool::new(false));
    let back = {
        let (mut server, mut client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
        let has_asked = Arc::clone(&has_asked);
        thread::spawn(move || {
            let mut answer = Vec::new();
            let mut buffer = [0; 8192];
            while let Ok(count @ 1..) = server.read(&mut buffer) {
                match has_asked.load(Ordering::SeqCst) {
                    true => answer.extend_from_slice(&buffer[..count]),
                    false if client.write_all(&buffer[..count]).is_err() => break,
                    false => {}
                }
            }
            let _ = client.shutdown(Shutdown::Both);
            answer
        })
    };
    // The first message has no type: it starts a session, or cancels a query.
    let mut typed = false;
    while let Ok(message) = read_message(&mut client, typed) {
        if typed && message[0] == b'X' {
            has_asked.store(true, Ordering::SeqCst);
            let length = (question.len() + 5) as u32;
            let query = [b"Q", &length.to_be_bytes()[..], question.as_bytes(), b"\0"].concat();
            let _ = server.write_all(&query);
        }
        typed = true;
        if server.write_all(&message).is_err() {
            break;
        }
    }
    let _ = server.shutdown(Shutdown::Write);
    let answer = back.join().unwrap();
    answers.lock().unwrap().extend(value(&answer));
}

/// Relays everything until the client sends the text.
fn relay_until(text: Option<&str>, mut client: TcpStream, mut server: TcpStream) {
    let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
    thread::spawn(move || io::copy(&mut from, &mut to));
    let mut typed = false;
    while let Ok(message) = read_message(&mut client, typed) {
        let message_text = String::from_utf8_lossy(&message);
        let is_end = text.is_some_and(|text| message_text.contains(text));
        if is_end || server.write_all(&message).is_err() {
            break;
        }
        typed = true;
    }
    for end in [client, server] {
        let _ = end.shutdown(Shutdown::Both);
    }
}

/// Relays so many queries, and then holds the connection open until the client closes it.
fn relay_queries(queries: Option<usize>, mut client: TcpStream, mut server: TcpStream, is_silent: &AtomicBool) {
    let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
    thread::spawn(move || io::copy(&mut from, &mut to));
    let mut queries_left = queries.unwrap_or(usize::MAX);
    let mut typed = false;
    while let Ok(message) = read_message(&mut client, typed) {
        if typed && message[0] == b'Q' {
            if queries_left == 0 {
                is_silent.store(true, Ordering::SeqCst);
                let _ = io::copy(&mut client, &mut io::sink());
                break;
            }
            queries_left -= 1;
        }
        typed = true;
        if server.write_all(&message).is_err() {
            break;
        }
    }
    for end in [client, server] {
        let _ = end.shutdown(Shutdown::Both);
    }
}

/// Relays everything, and the first message with the text only when the silence is over.
fn relay_holding_back(
    text: &str,
    mut client: TcpStream,
    mut server: TcpStream,
    is_silent: &AtomicBool,
    is_over: &AtomicBool,
) {
    let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
    thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
    let mut typed = false;
    while let Ok(message) = read_message(&mut client, typed) {
        if String::from_utf8_lossy(&message).contains(text) && !is_over.swap(true, Ordering::SeqCst) {
            is_silent.store(true, Ordering::SeqCst);
            while is_silent.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(5));
            }
        }
        typed = true;
        if server.write_all(&message).is_err() {
            break;
        }
    }
    let _ = server.shutdown(Shutdown::Both);
}

/// Relays with a delay. What one side sends before the other replies is relayed together.
fn relay_later(delay: Duration, mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = [0; 8192];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        thread::sleep(delay);
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

/// Relays each statement as a message of its own, and the replies to them as one.
fn relay_statements(mut client: TcpStream, mut server: TcpStream) -> io::Result<()> {
    server.write_all(&read_message(&mut client, false)?)?;
    relay_reply(&mut server, &mut client, true)?;
    loop {
        let message = read_message(&mut client, true)?;
        if message[0] != b'Q' {
            server.write_all(&message)?;
            continue;
        }
        let text = String::from_utf8_lossy(&message[5..message.len() - 1]).into_owned();
        let statements = statements(&text);
        for (n, statement) in statements.iter().enumerate() {
            let length = (statement.len() + 5) as u32;
            server.write_all(&[b"Q", &length.to_be_bytes()[..], statement.as_bytes(), b"\0"].concat())?;
            let is_last = n + 1 == statements.len();
            if !relay_reply(&mut server, &mut client, is_last)? {
                break;
            }
        }
    }
}

/// Relays a reply, with its end only if it is the last one or an error. Returns whether it was no error.
fn relay_reply(server: &mut TcpStream, client: &mut TcpStream, is_last: bool) -> io::Result<bool> {
    let mut is_error = false;
    loop {
        let message = read_message(server, true)?;
        is_error |= message[0] == b'E';
        let is_end = message[0] == b'Z';
        if !is_end || is_last || is_error {
            client.write_all(&message)?;
        }
        if is_end {
            return Ok(!is_error);
        }
    }
}

/// Returns the statements of a message, in which quotes come in pairs.
pub(super) fn statements(text: &str) -> Vec<String> {
    let mut statements = vec![String::new()];
    for piece in text.split_inclusive(';') {
        let statement = statements.last_mut().unwrap();
        statement.push_str(piece);
        let is_whole = |quote| statement.matches(quote).count() % 2 == 0;
        if is_whole("$$") && is_whole("'") {
            statements.push(String::new());
        }
    }
    statements.retain(|statement| !statement.trim().is_empty());
    statements
}

/// Reads one message, with its type in front if it has one.
pub(crate) fn read_message(from: &mut impl Read, typed: bool) -> io::Result<Vec<u8>> {
    let mut message = vec![0; if typed { 5 } else { 4 }];
    from.read_exact(&mut message)?;
    let head = message.len();
    let length = u32::from_be_bytes(message[head - 4..].try_into().unwrap()) as usize;
    message.resize(head + length.saturating_sub(4), 0);
    from.read_exact(&mut message[head..])?;
    Ok(message)
}

/// Returns the one value of the one row in these messages.
fn value(mut messages: &[u8]) -> Option<String> {
    while messages.len() >= 5 {
        let length = u32::from_be_bytes(messages[1..5].try_into().unwrap()) as usize;
        if messages[0] == b'D' {
            // The number of columns (two bytes) and the length of the first (four) come before it.
            return Some(String::from_utf8_lossy(&messages[11..=length]).into_owned());
        }
        messages = messages.get(length + 1..)?;
    }
    None
}
