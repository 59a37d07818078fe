//! As much HTTP as Patroni's API takes.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

/// How long an answer may take: a member that is paused gives none.
const LIMIT: Duration = Duration::from_secs(3);

/// Sends a request, and returns the status of the answer; `None` without an answer.
pub fn request(port: u16, method: &str, path: &str, body: &str) -> Option<u16> {
    let mut stream = send(port, method, path, body)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let answer = String::from_utf8_lossy(&answer);
    answer.split(' ').nth(1)?.parse().ok()
}

/// Sends a request, and returns the connection on which the answer comes; `None` if nobody listens.
pub fn send(port: u16, method: &str, path: &str, body: &str) -> Option<TcpStream> {
    let address = (Ipv4Addr::LOCALHOST, port).into();
    let mut stream = TcpStream::connect_timeout(&address, LIMIT).ok()?;
    stream.set_read_timeout(Some(LIMIT)).ok()?;
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(format!("{head}{body}").as_bytes()).ok()?;
    Some(stream)
}
