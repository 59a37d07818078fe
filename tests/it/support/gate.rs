//! A relay in front of a server that can stop relaying: it then refuses, ends or ignores new connections.

use super::server::Server;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// What becomes of a new connection.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// It is relayed to the server.
    Relay,
    /// It is accepted, and nothing is sent.
    Silence,
    /// It is closed without a message, as HAProxy does without a server.
    Close,
    /// The startup message is answered by this fatal error: its SQLSTATE and its text.
    Error(&'static str, &'static str),
}

/// Listens for as long as the test process lives.
pub struct Gate {
    port: u16,
    answer: Arc<Mutex<Answer>>,
    connections: Arc<AtomicUsize>,
    sockets: Arc<Mutex<Vec<TcpStream>>>,
}

impl Gate {
    pub fn before(server: &Server, answer: Answer) -> Gate {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let gate = Gate {
            port: listener.local_addr().unwrap().port(),
            answer: Arc::new(Mutex::new(answer)),
            connections: Arc::default(),
            sockets: Arc::default(),
        };
        let (answer, connections) = (Arc::clone(&gate.answer), Arc::clone(&gate.connections));
        let (sockets, server_port) = (Arc::clone(&gate.sockets), server.port());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                connections.fetch_add(1, Ordering::SeqCst);
                sockets.lock().unwrap().push(client.try_clone().unwrap());
                let answer = *answer.lock().unwrap();
                thread::spawn(move || serve(client, answer, server_port));
            }
        });
        gate
    }

    /// Changes what becomes of new connections.
    pub fn set(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    /// Closes all connections, without a message.
    pub fn close_all(&self) {
        for socket in self.sockets.lock().unwrap().drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Returns how many connections there have been.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the connection string of the relay.
    pub fn dsn(&self) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/postgres?sslmode=disable", self.port)
    }
}

fn serve(mut client: TcpStream, answer: Answer, server_port: u16) -> io::Result<()> {
    match answer {
        Answer::Relay => {
            let server = TcpStream::connect(("127.0.0.1", server_port))?;
            let (from, to) = (server.try_clone()?, client.try_clone()?);
            thread::spawn(move || carry(from, to));
            carry(client, server);
        }
        Answer::Silence => {
            let _ = io::copy(&mut client, &mut io::sink());
        }
        Answer::Close => client.shutdown(Shutdown::Both)?,
        Answer::Error(sqlstate, message) => {
            let mut length = [0; 4];
            client.read_exact(&mut length)?;
            let mut startup = vec![0; u32::from_be_bytes(length) as usize - 4];
            client.read_exact(&mut startup)?;
            let fields = format!("SFATAL\0VFATAL\0C{sqlstate}\0M{message}\0\0");
            let length = (fields.len() + 4) as u32;
            client.write_all(&[b"E", &length.to_be_bytes()[..], fields.as_bytes()].concat())?;
        }
    }
    Ok(())
}

fn carry(mut from: TcpStream, mut to: TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Both);
}
