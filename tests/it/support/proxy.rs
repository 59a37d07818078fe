//! A proxy between pglock and the server: to ask pglock's own session a question that only it can answer, to end a
//! session at a certain word, or to be a long line.
//!
//! It understands as much of the protocol as it takes to see where a message ends, and no encryption. Before it
//! passes the client's goodbye on, it asks the server its question in the client's place, and keeps the answer.

use super::server::Server;
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
}

impl Proxy {
    /// Asks this, which returns one value, at the end of each session.
    pub fn asking(server: &Server, question: &'static str) -> Proxy {
        let answers = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&answers);
        let port = listen(server.port(), move |_, client, server| {
            converse(client, server, question, &sink);
        });
        Proxy { port, answers }
    }

    /// Ends the first session at the first of these words that the client says, as the end of a server does, before it is
    /// passed on; the second one at the second word, and so on. The later ones are left alone.
    pub fn ending_at(to: u16, words: &'static [&'static str]) -> Proxy {
        Proxy {
            port: listen(to, |number, client, server| {
                relay_until(words.get(number).copied(), client, server);
            }),
            answers: Arc::default(),
        }
    }

    /// Passes everything on this much later, each way.
    pub fn of_length(server: &Server, delay: Duration) -> Proxy {
        Proxy {
            port: listen(server.port(), move |_, client, server| {
                let (from, to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                thread::spawn(move || relay_later(delay, from, to));
                relay_later(delay, client, server);
            }),
            answers: Arc::default(),
        }
    }

    /// The connection string of the way through the proxy.
    pub fn dsn(&self) -> String {
        format!(
            "postgresql://postgres@127.0.0.1:{}/postgres?sslmode=disable",
            self.port
        )
    }

    /// The answers so far, one for each session that has ended.
    pub fn answers(&self) -> Vec<String> {
        self.answers.lock().unwrap().clone()
    }
}

/// Serves each connection on a thread of its own, with its number and the server at this port. The port to connect to.
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

fn converse(
    mut client: TcpStream,
    mut server: TcpStream,
    question: &str,
    answers: &Mutex<Vec<String>>,
) {
    let asked = Arc::new(AtomicBool::new(false));
    let back = {
        let (mut server, mut client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
        let asked = Arc::clone(&asked);
        thread::spawn(move || {
            let mut answer = Vec::new();
            let mut buffer = [0; 8192];
            while let Ok(count @ 1..) = server.read(&mut buffer) {
                match asked.load(Ordering::SeqCst) {
                    true => answer.extend_from_slice(&buffer[..count]),
                    false if client.write_all(&buffer[..count]).is_err() => break,
                    false => {}
                }
            }
            let _ = client.shutdown(Shutdown::Both);
            answer
        })
    };
    // The first message has no type: the start of a session, or the request to cancel one.
    let mut typed = false;
    while let Ok(message) = read_message(&mut client, typed) {
        if typed && message[0] == b'X' {
            asked.store(true, Ordering::SeqCst);
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

/// Passes everything on, until the client says the word.
fn relay_until(word: Option<&str>, mut client: TcpStream, mut server: TcpStream) {
    let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
    thread::spawn(move || io::copy(&mut from, &mut to));
    let mut typed = false;
    while let Ok(message) = read_message(&mut client, typed) {
        let text = String::from_utf8_lossy(&message);
        let says_it = word.is_some_and(|word| text.contains(word));
        if says_it || server.write_all(&message).is_err() {
            break;
        }
        typed = true;
    }
    for end in [client, server] {
        let _ = end.shutdown(Shutdown::Both);
    }
}

/// Passes on what comes, late. What one side says before the other answers comes together.
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

/// One message, with its type in front where it has one.
fn read_message(from: &mut TcpStream, typed: bool) -> io::Result<Vec<u8>> {
    let mut message = vec![0; if typed { 5 } else { 4 }];
    from.read_exact(&mut message)?;
    let length = message[message.len() - 4..].try_into().unwrap();
    let body = u32::from_be_bytes(length) as usize - 4;
    let head = message.len();
    message.resize(head + body, 0);
    from.read_exact(&mut message[head..])?;
    Ok(message)
}

/// The one value of the one row among these messages.
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
