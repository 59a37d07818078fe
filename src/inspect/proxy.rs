//! Whether something forwards the connection between us and the server, below the protocol of PostgreSQL: HAProxy,
//! socat, ssh, a cloud provider's proxy, a service mesh.
//!
//! The server then sees another client than our socket, and its TCP limits watch that one. So it does with address
//! translation, which forwards what the limits rely on; the two cannot be told apart.

use crate::connection::Client;
use crate::inspect::backend::rows;
use crate::lock::{cell, simple_query};
use nix::sys::socket::{SockaddrStorage, getsockname};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

/// A connection whose two ends do not belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ForwardedConnection {
    /// Our end; `None` for a Unix socket.
    own: Option<SocketAddr>,
    /// The client that the server sees; `None` for a Unix socket.
    seen: Option<SocketAddr>,
}

/// Compares the session's socket with the client that the server sees. Returns `None` if they belong together, or the
/// socket is not known. Two Unix sockets cannot be told apart.
///
/// # Errors
/// The query fails, or the connection is lost.
pub(crate) fn find(
    client: &mut Client,
    socket: Option<&OwnedFd>,
) -> Result<Option<ForwardedConnection>, postgres::Error> {
    let Some(own) = socket.and_then(|socket| getsockname::<SockaddrStorage>(socket.as_raw_fd()).ok()) else {
        return Ok(None);
    };
    let sql = "SELECT pg_catalog.host(pg_catalog.inet_client_addr()) AS address, \
         pg_catalog.inet_client_port() AS port";
    let seen = rows(simple_query(client, sql)?).next().and_then(|row| {
        let ip: IpAddr = cell(&row, "address")?.parse().ok()?;
        Some(SocketAddr::new(ip, cell(&row, "port")?.parse().ok()?))
    });
    let ends = ForwardedConnection {
        own: tcp_address(&own),
        seen: seen.map(canonical),
    };
    Ok((ends.own != ends.seen).then_some(ends))
}

/// Returns the address of a TCP socket.
fn tcp_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(address) = address.as_sockaddr_in() {
        return Some(SocketAddr::new(address.ip().into(), address.port()));
    }
    let address = address.as_sockaddr_in6()?;
    Some(canonical(SocketAddr::new(address.ip().into(), address.port())))
}

/// Returns the address with an IPv4 address that is written as an IPv6 one as the former.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl ForwardedConnection {
    /// Returns whether our end is a Unix socket.
    pub(crate) fn is_local(self) -> bool {
        self.own.is_none()
    }
}

/// Says what the server sees, and what we have.
impl fmt::Display for ForwardedConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |end: Option<SocketAddr>| match end {
            Some(address) => address.to_string(),
            None => "a Unix socket".to_owned(),
        };
        write!(
            f,
            "the server sees its client at {}, but this end of the connection is {}",
            name(self.seen),
            name(self.own)
        )
    }
}
