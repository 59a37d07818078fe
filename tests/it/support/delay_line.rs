//! A relay between a client and its server that counts round trips, and can delay both directions.
//!
//! A round trip is what a client sends, and the reply for which it waits. The TCP handshake does not count.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// Listens for as long as the process lives.
pub struct Relay {
    port: u16,
    round_trips: Arc<AtomicUsize>,
}

impl Relay {
    /// Starts a relay to this port of 127.0.0.1, with this delay in each direction.
    pub fn to(server: u16, delay: Duration) -> Relay {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let round_trips = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&round_trips);
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), TcpStream::connect(("127.0.0.1", server)).unwrap());
                let (has_sent, count) = (Arc::new(AtomicBool::new(false)), Arc::clone(&count));
                let (sending, ends) = (
                    Arc::clone(&has_sent),
                    (client.try_clone().unwrap(), server.try_clone().unwrap()),
                );
                thread::spawn(move || carry(client, server, delay, |()| sending.store(true, Ordering::SeqCst)));
                thread::spawn(move || {
                    carry(ends.1, ends.0, delay, |()| {
                        if has_sent.swap(false, Ordering::SeqCst) {
                            count.fetch_add(1, Ordering::SeqCst);
                        }
                    });
                });
            }
        });
        Relay { port, round_trips }
    }

    /// Returns the port on which it listens, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the round trips since the last call.
    pub fn round_trips(&self) -> usize {
        self.round_trips.swap(0, Ordering::SeqCst)
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, delay: Duration, note: impl Fn(())) {
    to.set_nodelay(true).unwrap();
    let mut buffer = [0; 16384];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        note(());
        if !delay.is_zero() {
            thread::sleep(delay);
        }
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
