//! The wire between a client and its server: a relay that counts the turns, and can make each way take longer.
//!
//! A turn is what a client waits for: something that it sends, and the answer. The TCP handshake is none.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// Listens for as long as the process lives.
pub struct Relay {
    port: u16,
    turns: Arc<AtomicUsize>,
}

impl Relay {
    /// To this port of 127.0.0.1; each way takes this much longer.
    pub fn to(server: u16, delay: Duration) -> Relay {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let turns = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&turns);
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), TcpStream::connect(("127.0.0.1", server)).unwrap());
                let (asked, count) = (Arc::new(AtomicBool::new(false)), Arc::clone(&count));
                let (asking, ends) = (
                    Arc::clone(&asked),
                    (client.try_clone().unwrap(), server.try_clone().unwrap()),
                );
                thread::spawn(move || carry(client, server, delay, |()| asking.store(true, Ordering::SeqCst)));
                thread::spawn(move || {
                    carry(ends.1, ends.0, delay, |()| {
                        if asked.swap(false, Ordering::SeqCst) {
                            count.fetch_add(1, Ordering::SeqCst);
                        }
                    });
                });
            }
        });
        Relay { port, turns }
    }

    /// Where it listens, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The turns since the last call.
    pub fn turns(&self) -> usize {
        self.turns.swap(0, Ordering::SeqCst)
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
