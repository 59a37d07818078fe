//! A forwarder from TCP to the server's Unix socket, as `socat TCP-LISTEN:...,fork UNIX-CONNECT:...` and `ssh -L` are.

use super::server::Server;
use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;

/// Listens for as long as the test process lives.
pub struct SocketForwarder {
    port: u16,
}

impl SocketForwarder {
    pub fn to(server: &Server) -> SocketForwarder {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let path = format!("{}/.s.PGSQL.{}", server.host(), server.port());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = UnixStream::connect(&path);
                thread::spawn(move || drop(server.and_then(|server| forward(client, server))));
            }
        });
        SocketForwarder { port }
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

/// Copies in both directions until one end is closed.
///
/// # Errors
/// A connection fails.
fn forward(mut client: TcpStream, mut server: UnixStream) -> io::Result<()> {
    let (mut from, mut to) = (server.try_clone()?, client.try_clone()?);
    thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
    io::copy(&mut client, &mut server)?;
    server.shutdown(Shutdown::Both)
}
