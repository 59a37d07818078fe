//! Finds the descriptor of the session's socket, which the client library does not reveal, and shuts it down.

use crate::sys;
use nix::libc::ino_t;
use nix::sys::socket::{Shutdown, SockType, SockaddrStorage, UnixAddr, getpeername, getsockopt, shutdown, sockopt};
use nix::sys::stat::fstat;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

/// Shuts a session's connection down, whatever the session is doing and whichever process has inherited the socket: the
/// server notices as soon as the network lets it.
pub(crate) fn shut_down_socket(socket: &OwnedFd) {
    let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
}

/// The connected sockets of this process before a connection attempt.
pub(super) struct SocketSnapshot {
    /// All descriptors were listed, not only the low ones.
    has_all: bool,
    /// The descriptors, each with what tells its socket from a later one with the same number: another thread may close
    /// that of an abandoned attempt at any time.
    sockets: HashMap<RawFd, Option<ino_t>>,
}

/// The number of descriptors that count as low. A new descriptor gets the lowest free number, so it is enough to list
/// the low ones as long as more of them are free than a connection needs. Listing all takes ten times as long; it is
/// what macOS does, where poll(2) takes every descriptor for open if no events are requested.
const LOW_DESCRIPTORS: usize = 256;
/// The number of low descriptors that must be free.
const DESCRIPTOR_RESERVE: usize = 50;
/// The lowest number for the duplicate, in order of preference. Scripts use descriptors 3 to 9 for themselves, and bash
/// uses 255. Below 64, because enlarging the descriptor table of a process with threads makes Linux wait for an RCU
/// grace period, which takes longer than everything else together.
const DUPLICATE_FLOORS: [RawFd; 2] = [56, 10];

impl SocketSnapshot {
    /// Lists the sockets that are connected now.
    pub(super) fn take() -> SocketSnapshot {
        let low = sys::open_descriptors::<LOW_DESCRIPTORS>().ok();
        let low = low.filter(|low| low.len() < LOW_DESCRIPTORS - DESCRIPTOR_RESERVE);
        let has_all = low.is_none();
        let descriptors = low.unwrap_or_else(list_descriptors).into_iter();
        SocketSnapshot {
            has_all,
            sockets: descriptors
                .filter(|fd| peer(*fd).is_some())
                .map(|fd| (fd, inode(fd)))
                .collect(),
        }
    }

    /// Returns a duplicate of the one socket that was opened since and is connected to a server: by TCP at this
    /// address, or else through a Unix socket with a name. Meanwhile, other threads may open what they need, such as
    /// socket pairs, which have no name, or close the socket of an abandoned attempt, whose number is then free.
    ///
    /// The peer can have another address than the one that was connected to: the loopback's for `0.0.0.0`, or that
    /// which a load balancer in the kernel has chosen. So if no socket has this address, the one TCP socket of its
    /// family counts.
    ///
    /// Comparing the peer alone would not be enough: a pglock in the job of another pglock has inherited the socket of
    /// the outer one.
    pub(super) fn find_new(&self, address: Option<SocketAddr>) -> Option<OwnedFd> {
        let descriptors = if self.has_all {
            list_descriptors()
        } else {
            sys::open_descriptors::<LOW_DESCRIPTORS>().unwrap_or_default()
        };
        let is_new = |fd: &RawFd| self.sockets.get(fd).is_none_or(|before| *before != inode(*fd));
        let new = descriptors.into_iter().filter(is_new);
        let connected: Vec<_> = new.filter_map(|fd| Some((fd, peer(fd)?))).collect();
        let only = |is_wanted: &dyn Fn(RawFd, &SockaddrStorage) -> bool| {
            let mut wanted = connected.iter().filter(|(fd, peer)| is_wanted(*fd, peer));
            wanted.next().filter(|_| wanted.next().is_none())
        };
        let (fd, _) = *only(&|_, peer| is_server(peer, address))
            .or_else(|| only(&|fd, peer| has_family_of(peer, address) && is_stream(fd)))?;
        DUPLICATE_FLOORS
            .into_iter()
            .find_map(|lowest| sys::duplicate_from(fd, lowest).ok())
    }
}

fn peer(fd: RawFd) -> Option<SockaddrStorage> {
    getpeername(fd).ok()
}

/// Returns the number of the socket in the system, which on Linux no other open socket has. On other systems, all TCP
/// sockets may have the same.
fn inode(fd: RawFd) -> Option<ino_t> {
    let socket = sys::duplicate_from(fd, DUPLICATE_FLOORS[1]).ok()?;
    fstat(&socket).ok().map(|status| status.st_ino)
}

/// Returns whether the peer is the server at this address, or any Unix socket with a name.
fn is_server(peer: &SockaddrStorage, address: Option<SocketAddr>) -> bool {
    match address {
        Some(SocketAddr::V4(address)) => peer
            .as_sockaddr_in()
            .is_some_and(|peer| (peer.ip(), peer.port()) == (*address.ip(), address.port())),
        Some(SocketAddr::V6(address)) => peer
            .as_sockaddr_in6()
            .is_some_and(|peer| (peer.ip(), peer.port()) == (*address.ip(), address.port())),
        None => peer.as_unix_addr().is_some_and(has_name),
    }
}

/// Returns whether the peer's address is of the same family.
fn has_family_of(peer: &SockaddrStorage, address: Option<SocketAddr>) -> bool {
    match address {
        Some(SocketAddr::V4(_)) => peer.as_sockaddr_in().is_some(),
        Some(SocketAddr::V6(_)) => peer.as_sockaddr_in6().is_some(),
        None => false,
    }
}

/// Returns whether the socket is no datagram socket, as those that look up a host name in another thread.
fn is_stream(fd: RawFd) -> bool {
    let socket = sys::duplicate_from(fd, DUPLICATE_FLOORS[1]);
    socket.is_ok_and(|socket| getsockopt(&socket, sockopt::SockType) == Ok(SockType::Stream))
}

/// Returns whether the socket has a name: a path, or one in Linux's abstract namespace. macOS returns zero bytes as the
/// path of a socket without a name.
fn has_name(address: &UnixAddr) -> bool {
    #[cfg(target_os = "linux")]
    if address.as_abstract().is_some() {
        return true;
    }
    let path = address.path().map(|path| path.as_os_str().as_bytes());
    path.is_some_and(|path| !path.starts_with(&[0]))
}

/// Returns all open descriptors; on FreeBSD, only the standard streams unless fdescfs(5) is mounted. The session's
/// socket is then not found if hundreds of descriptors are open.
fn list_descriptors() -> Vec<RawFd> {
    let Ok(entries) = std::fs::read_dir("/dev/fd") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    use nix::unistd::dup2;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    /// Connects to the server over a socket that takes the place and the number of this one. Returns its local address.
    ///
    /// # Errors
    /// No socket can be created.
    fn connect_under(abandoned: &mut OwnedFd, server: SocketAddr) -> std::io::Result<SocketAddr> {
        let session = TcpStream::connect(server)?;
        dup2(&session, abandoned)?;
        session.local_addr()
    }

    /// An abandoned attempt has a socket that is not connected yet and closes it at any time; the next attempt may get
    /// its number. Or the abandoned attempt connects late.
    ///
    /// # Errors
    /// No socket can be created.
    #[test]
    fn the_session_socket_is_found_among_others() -> std::io::Result<()> {
        let listen = || TcpListener::bind(("127.0.0.1", 0));
        let (server, other) = (listen()?, listen()?);
        let address = server.local_addr()?;
        let (family, kind) = (AddressFamily::Inet, SockType::Stream);
        let mut abandoned = socket(family, kind, SockFlag::empty(), None)?;
        let _inherited = TcpStream::connect(address)?;

        let snapshot = SocketSnapshot::take();
        assert!(snapshot.find_new(Some(address)).is_none());
        let late = TcpStream::connect(other.local_addr()?)?;
        let local_address = connect_under(&mut abandoned, address)?;

        let found = snapshot.find_new(Some(address)).expect("a new socket");
        assert_eq!(TcpStream::from(found).local_addr()?, local_address);

        // The peer of a connection to 0.0.0.0 is the loopback. Two sockets could be the session's, then one.
        let unspecified = SocketAddr::from(([0, 0, 0, 0], address.port()));
        assert!(snapshot.find_new(Some(unspecified)).is_none());
        drop(late);
        let resolver = UdpSocket::bind(("127.0.0.1", 0))?;
        resolver.connect(address)?;
        let found = snapshot.find_new(Some(unspecified)).expect("a new socket");
        assert_eq!(TcpStream::from(found).local_addr()?, local_address);
        let other_family = SocketAddr::from(([0_u16; 8], address.port()));
        assert!(snapshot.find_new(Some(other_family)).is_none());
        Ok(())
    }

    /// An abandoned attempt was connected, and closes its socket as the next one connects, which gets its number.
    ///
    /// # Errors
    /// No socket can be created.
    #[test]
    #[cfg(target_os = "linux")]
    fn the_session_socket_is_found_under_a_number_that_is_used_again() -> std::io::Result<()> {
        let server = TcpListener::bind(("127.0.0.1", 0))?;
        let address = server.local_addr()?;
        let mut abandoned = OwnedFd::from(TcpStream::connect(address)?);
        let snapshot = SocketSnapshot::take();
        assert!(snapshot.find_new(Some(address)).is_none());

        let local_address = connect_under(&mut abandoned, address)?;
        let found = snapshot.find_new(Some(address)).expect("a new socket");
        assert_eq!(TcpStream::from(found).local_addr()?, local_address);
        Ok(())
    }
}
