//! TLS with a real server: every `sslmode` with good and bad certificates, client certificates, channel binding,
//! revocation, and the cancel request.

use crate::support::pglock::{Output, Pglock};
use crate::support::tls::{PASSWORD, Secured, kerberos_server};
use crate::support::unique;
use crate::support::wait::{SOON, eventually};
use nix::sys::signal::Signal;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Runs pglock with this connection string and an empty `HOME`.
fn run(dsn: &str) -> Output {
    let run = Pglock::alone().env("HOME", "/nonexistent");
    let run = run.env("PGLOCK_DSN", dsn).env("PGPASSWORD", PASSWORD);
    run.args(["run", "-k", &unique("tls"), "--", "true"]).output()
}

#[track_caller]
fn works(dsn: &str) {
    run(dsn).code(0).silent();
}

#[track_caller]
fn fails(dsn: &str, code: i32, expected: &str) {
    let line = run(dsn).code(code).stderr_line();
    assert!(line.contains(expected), "{expected:?} is not in {line:?}");
}

/// P84
#[test]
fn certificates_good_and_bad() {
    let server = Secured::start();
    let root = server.pki("ca.crt");
    let dsn = |host: &str, mode: &str, root: &str| {
        server.at(host, &format!("user=with_tls sslmode={mode} sslrootcert={root}"))
    };
    let full = |host: &str| dsn(host, "verify-full", &root);
    works(&full("localhost"));
    works(&full("127.0.0.1"));
    works(&dsn("127.0.0.1", "verify-ca", &root));
    fails(
        &full("elsewhere hostaddr=127.0.0.1"),
        69,
        "is for localhost, 127.0.0.1, not for elsewhere",
    );
    fails(
        &dsn("localhost", "verify-ca", "/nonexistent/root.crt"),
        78,
        "root.crt does not exist",
    );
    fails(
        &server
            .at("", "hostaddr=127.0.0.1 user=with_tls sslmode=verify-full sslrootcert=")
            .replace("host= ", "")
            .replace("sslrootcert=", &format!("sslrootcert={root}")),
        78,
        "only hostaddr is given",
    );
    // psql accepts this root.
    fails(
        &dsn("localhost", "prefer", &server.pki("ca-upper.crt")),
        69,
        "set sslmode=disable",
    );
    // An existing root file is used with any sslmode.
    fails(
        &dsn("localhost", "require", &server.pki("other.crt")),
        69,
        "not signed by a root of",
    );
    // The system's roots have not signed it.
    fails(
        &server.at("localhost", "user=with_tls sslrootcert=system"),
        69,
        "of the system",
    );

    let revoked = |list: &str| full("localhost") + " " + list;
    works(&revoked(&format!("sslcrl={}", server.pki("ca.crl"))));
    fails(&revoked("sslcrl=/nonexistent/crl"), 78, "revocation list");

    for (name, expected) in [
        ("wrong", "is for elsewhere.example, not for localhost"),
        ("wildcard", "is for *.localhost, not for localhost"),
        ("unknown", "not signed by a root of"),
        ("expired", "has expired"),
        ("version1", "is of version 1"),
        ("version1rsa", "subjectAltName=DNS:"),
        ("self", "is self-signed and is not among the roots"),
    ] {
        server.show(name);
        fails(&full("localhost"), 69, expected);
        works(&dsn("localhost", "require", "/nonexistent/root.crt"));
        works(&(dsn("localhost", "require", "/nonexistent/root.crt") + " ssl_max_protocol_version=TLSv1.2"));
        match name {
            // psql accepts version 1, so it has TLS.
            "version1" | "version1rsa" => fails(&dsn("localhost", "prefer", &root), 69, "set sslmode=disable"),
            // psql's TLS fails too, so both try plaintext, which this role may not use.
            "unknown" | "expired" | "self" => {
                fails(&dsn("localhost", "prefer", &root), 77, "without TLS; first attempt")
            }
            _ => works(&dsn("localhost", "prefer", &root)),
        }
        if ["wrong", "wildcard"].contains(&name) {
            works(&dsn("localhost", "verify-ca", &root));
            works(&full(&format!(
                "{} hostaddr=127.0.0.1",
                if name == "wrong" {
                    "elsewhere.example"
                } else {
                    "db.localhost"
                }
            )));
        }
    }
    // The server's own certificate is in the root file, as in many small installations.
    works(&dsn("localhost", "verify-full", &server.pki("ca-and-self.crt")));
    server.show("common");
    works(&full("localhost"));
    server.show("revoked");
    works(&full("localhost"));
    let list = format!("sslcrl={}", server.pki("ca.crl"));
    fails(&revoked(&list), 69, "is revoked");
}

/// P80
#[test]
fn authentication_methods_work() {
    let server = Secured::start();
    let at = |rest: &str| server.at("localhost", rest);
    for user in ["scram", "md5", "clear"] {
        works(&at(&format!("user={user} sslmode=disable")));
        works(&at(&format!("user={user} sslmode=require")));
    }
    for rest in ["", "require_auth=scram-sha-256 ssl_max_protocol_version=TLSv1.2"] {
        let bound = at(&format!("user=scram sslmode=require channel_binding=require {rest}"));
        match server.version() {
            10 => fails(&bound, 77, "server did not use channel binding"),
            _ => works(&bound),
        }
    }
    works(&at("user=scram sslmode=require channel_binding=disable"));
    fails(
        &at("user=scram sslmode=disable channel_binding=require"),
        77,
        "channel binding",
    );
    fails(
        &at("user=md5 sslmode=require channel_binding=require"),
        77,
        "channel binding",
    );
    for (user, method) in [("md5", "md5"), ("clear", "password"), ("without_tls", "no")] {
        let dsn = at(&format!("user={user} sslmode=disable require_auth=scram-sha-256"));
        fails(&dsn, 77, &format!("the server requested {method} authentication"));
    }
    works(&at("user=md5 sslmode=require require_auth=!password,!none"));
    works(&at("user=without_tls sslmode=disable require_auth=none"));
    fails(
        &at("user=with_tls require_auth=!none sslmode=require"),
        77,
        "no authentication",
    );

    let kerberos = kerberos_server();
    fails(
        &format!("host=127.0.0.1 port={kerberos} user=postgres sslmode=disable"),
        77,
        "requested gss authentication, which is not supported",
    );
    let with = |certificate: &str, key: &str| {
        let (certificate, key) = (server.pki(certificate), server.pki(key));
        at(&format!(
            "user=with_cert sslmode=require sslcert={certificate} sslkey={key}"
        ))
    };
    for (certificate, key) in [
        ("client.crt", "client.key"),
        ("client.crt", "client-pkcs1.key"),
        ("client-ec.crt", "client-ec.key"),
        ("client-ec.crt", "client-sec1.key"),
        ("client-ec.crt", "client-der.key"),
    ] {
        works(&with(certificate, key));
    }
    works(&(with("client.crt", "client.key") + " sslcertmode=require"));
    let good = with("client.crt", "client.key");
    fails(&(good + " sslcertmode=disable"), 77, "certificate");
    fails(&at("user=with_cert sslmode=require"), 77, "certificate");
    fails(&with("client-other.crt", "client-other.key"), 77, "UnknownCA");
    fails(&with("client.crt", "client-ec.key"), 78, "does not belong to");
    fails(&with("client.crt", "client-open.key"), 78, "group or world access");
    fails(&with("client.crt", "client-encrypted.key"), 78, "is encrypted");
    fails(&with("client.crt", "no.key"), 78, "not its private key");
}

/// P88: psql has TLS here, if need be with `sslpassword`.
#[test]
fn files_that_only_pglock_refuses_do_not_lead_to_plain_text() {
    let server = Secured::start();
    let files = [
        format!(
            "sslcert={} sslkey={}",
            server.pki("client.crt"),
            server.pki("client-encrypted.key")
        ),
        format!(
            "sslcert={} sslkey={}",
            server.pki("client-p521.crt"),
            server.pki("client-p521.key")
        ),
        format!("sslrootcert={} sslcrl=/nonexistent/crl", server.pki("ca.crt")),
    ];
    for files in files {
        let dsn = server.at("localhost", &format!("user=without_tls {files}"));
        fails(&dsn, 78, "set sslmode=disable");
        works(&(dsn + " sslmode=disable"));
    }
}

/// P81, P88: a server that breaks off the handshake gets no plain text, and the next host is tried.
#[test]
fn a_broken_handshake_does_not_lead_to_plain_text() {
    let server = Secured::start();
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let requests = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&requests);
    std::thread::spawn(move || {
        while let Ok((mut client, _)) = listener.accept() {
            let mut request = [0; 8];
            client.read_exact(&mut request).unwrap();
            seen.lock()
                .unwrap()
                .push(u32::from_be_bytes(request[4..].try_into().unwrap()));
            client.write_all(b"S").unwrap();
            // With unread bytes, closing would be a reset.
            let mut head = [0; 5];
            client.read_exact(&mut head).unwrap();
            let mut hello = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
            client.read_exact(&mut hello).unwrap();
        }
    });
    let dsn = |hosts: &str, ports: &str| format!("host={hosts} port={ports} user=with_tls dbname=postgres");
    let alone = dsn("127.0.0.1", &port.to_string());
    fails(
        &alone,
        69,
        "closed the connection during the TLS handshake; not falling back to plaintext",
    );
    works(&dsn("127.0.0.1,127.0.0.1", &format!("{port},{}", server.port())));
    assert_eq!(*requests.lock().unwrap(), [Relay::SSL_REQUEST; 2]);
}

/// P88: the server refuses every version from 1.2 on, and psql might have an older one.
#[test]
fn an_older_version_that_psql_may_have_does_not_lead_to_plain_text() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let mut request = [0; 8];
            client.read_exact(&mut request).unwrap();
            if request[4..] != [4, 210, 22, 47] {
                // A startup message, without TLS.
                let _ = client.write_all(b"E\0\0\0\x1eSFATAL\0C28000\0Mplaintext\0\0");
                continue;
            }
            client.write_all(b"S").unwrap();
            // The ClientHello, then the alert protocol_version.
            let mut hello = [0; 5];
            client.read_exact(&mut hello).unwrap();
            let length = u16::from_be_bytes([hello[3], hello[4]]);
            client.read_exact(&mut vec![0; length.into()]).unwrap();
            client.write_all(&[21, 3, 1, 0, 2, 2, 70]).unwrap();
        }
    });
    let dsn = |rest: &str| format!("host=127.0.0.1 port={port} user=u dbname=d {rest}");
    fails(&dsn(""), 77, "plaintext");
    fails(
        &dsn("ssl_min_protocol_version=TLSv1"),
        69,
        "set sslmode=disable if plaintext is acceptable",
    );
}

/// P39, P81: what ends a connection in the handshake, or cannot start a backend, may not last. The next host is tried,
/// and a wait goes on.
#[test]
fn a_failure_for_the_moment_is_told_from_a_failure_of_tls() {
    type Answer = fn(&mut TcpStream);
    // Closed with unread bytes, which is a reset.
    let resets: Answer = |client| {
        client.write_all(b"S").unwrap();
        client.peek(&mut [0]).unwrap();
    };
    const FORK_FAILURE: &str = "could not fork new process for connection: Resource temporarily unavailable";
    let cannot_fork: Answer = |client| client.write_all(format!("E{FORK_FAILURE}\n\0").as_bytes()).unwrap();
    let server = Secured::start();
    for (answer, mode, expected) in [
        (
            resets,
            "prefer",
            "connection reset by peer during the TLS handshake; not falling back",
        ),
        (
            cannot_fork,
            "prefer",
            "the server sent an error response to the TLS request",
        ),
        (cannot_fork, "disable", FORK_FAILURE),
    ] {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        std::thread::spawn(move || {
            while let Ok((mut client, _)) = listener.accept() {
                let mut length = [0; 4];
                client.read_exact(&mut length).unwrap();
                client
                    .read_exact(&mut vec![0; u32::from_be_bytes(length) as usize - 4])
                    .unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                answer(&mut client);
            }
        });
        let dsn = |hosts: &str, ports: &str| {
            format!("host={hosts} port={ports} user=postgres dbname=postgres sslmode={mode}")
        };
        let alone = dsn("127.0.0.1", &port.to_string());
        fails(&alone, 69, expected);
        let line = run(&alone).code(69).stderr_line();
        assert!(
            line.contains("sslmode=disable") == expected.contains("not falling back"),
            "{line}"
        );
        works(&dsn("127.0.0.1,127.0.0.1", &format!("{port},{}", server.port())));
        let before = connections.load(Ordering::SeqCst);
        let waiter = Pglock::alone().env("PGLOCK_DSN", &alone);
        let waiter = waiter
            .args(["run", "-k", &unique("tls_wait"), "--wait", "20", "true"])
            .spawn();
        eventually(SOON, "three attempts", || {
            connections.load(Ordering::SeqCst) >= before + 3
        });
        waiter.signal(Signal::SIGTERM);
        waiter.finish().signal(Signal::SIGTERM);
    }
}

/// P91: a proxy without a server closes the connection without a reply to the request for TLS.
#[test]
fn a_connection_that_is_closed_before_tls_is_named_as_by_libpq() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        while let Ok((mut client, _)) = listener.accept() {
            // With unread bytes, closing would be a reset.
            client.read_exact(&mut [0; 8]).unwrap();
        }
    });
    for mode in ["prefer", "require"] {
        let dsn = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres sslmode={mode}");
        fails(&dsn, 69, "the server closed the connection unexpectedly");
    }
}

/// P80: `prefer` falls back to plain text, and `allow` to TLS.
#[test]
fn modes_choose_between_tls_and_plain_text() {
    let server = Secured::start();
    let at = |rest: &str| server.at("localhost", rest);
    for mode in ["allow", "prefer"] {
        works(&at(&format!("user=with_tls sslmode={mode}")));
        works(&at(&format!("user=without_tls sslmode={mode}")));
    }
    fails(&at("user=with_tls sslmode=disable"), 77, "pg_hba.conf rejects");
    let with_tls = match server.version() {
        ..14 => "SSL on",
        _ => "SSL encryption",
    };
    fails(&at("user=without_tls sslmode=require"), 77, with_tls);
    fails(&at("user=nobody_here sslmode=prefer"), 77, "nobody_here");
    // Fails with TLS, and succeeds without.
    works(&at(&format!(
        "user=without_tls sslmode=prefer sslrootcert={}",
        server.pki("other.crt")
    )));
    // If both attempts fail, the error names the first failure too.
    fails(
        &at(&format!(
            "user=with_tls sslmode=prefer sslrootcert={}",
            server.pki("other.crt")
        )),
        77,
        "first attempt",
    );
    server.sql("ALTER SYSTEM SET ssl = off");
    server.restart();
    works(&at("user=without_tls sslmode=prefer"));
    fails(&at("user=without_tls sslmode=require"), 69, "does not support TLS");
    // The second attempt of `allow` is like the first, and so is its failure.
    fails(
        &at("user=scram sslmode=allow password=wrong"),
        77,
        "password authentication failed",
    );
}

/// A relay that records the code of the first message of each connection.
struct Relay {
    port: u16,
    codes: Arc<Mutex<Vec<u32>>>,
}

impl Relay {
    const SSL_REQUEST: u32 = 80_877_103;

    fn to(port: u16) -> Relay {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let relay = Relay {
            port: listener.local_addr().unwrap().port(),
            codes: Arc::default(),
        };
        let codes = Arc::clone(&relay.codes);
        std::thread::spawn(move || {
            while let Ok((mut client, _)) = listener.accept() {
                let mut first = [0; 8];
                client.read_exact(&mut first).unwrap();
                codes
                    .lock()
                    .unwrap()
                    .push(u32::from_be_bytes(first[4..].try_into().unwrap()));
                let mut server = TcpStream::connect(("127.0.0.1", port)).unwrap();
                server.write_all(&first).unwrap();
                let (mut back, mut forth) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut back, &mut forth);
                    let _ = forth.shutdown(Shutdown::Both);
                });
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut client, &mut server);
                    let _ = server.shutdown(Shutdown::Both);
                });
            }
        });
        relay
    }
}

/// P85
#[test]
fn a_wait_over_tls_is_cancelled_over_tls() {
    let server = Secured::start();
    let relay = Relay::to(server.port());
    let key = unique("tls_cancel");
    let root = server.pki("ca.crt");
    let port = relay.port;
    let dsn =
        format!("host=localhost port={port} dbname=postgres user=with_tls sslmode=verify-full sslrootcert={root}");
    let holder = server.run(&key).holding();
    let waiting = Pglock::alone().env("PGLOCK_DSN", &dsn);
    let waiting = waiting.args(["run", "-k", &key, "--", "true"]).spawn();
    server.await_locks(&key, 1, 1);
    waiting.signal(Signal::SIGTERM);
    waiting.finish().signal(Signal::SIGTERM);
    server.await_locks(&key, 1, 0);
    holder.finish().code(0);
    let twice = vec![Relay::SSL_REQUEST; 2];
    eventually(SOON, "two connections, both with TLS", || {
        *relay.codes.lock().unwrap() == twice
    });
}

/// P14, P20: the job inherits the session's socket, and its loss is noticed, with TLS too.
#[test]
fn the_socket_is_found_with_tls() {
    let server = Secured::start();
    let dsn = server.at("localhost", "user=with_tls sslmode=require");
    let run = Pglock::alone().env("PGLOCK_DSN", &dsn).env("HOME", "/nonexistent");
    let run = run
        .args(["run", "-v", "-k", &unique("tls_socket"), "--", "true"])
        .output();
    let stderr = String::from_utf8_lossy(&run.code(0).stderr).into_owned();
    assert!(!stderr.contains("cannot tell which descriptor"), "{stderr}");
}

/// P80: with `sslnegotiation=direct` the first message is TLS's own, and names the protocol and the host.
#[test]
fn tls_can_start_without_a_request() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let hello = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut head = [0; 5];
        client.read_exact(&mut head).unwrap();
        let mut body = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
        client.read_exact(&mut body).unwrap();
        (head[0], body)
    });
    let dsn = format!("host=localhost port={port} user=u sslmode=require sslnegotiation=direct");
    fails(&dsn, 69, "during the TLS handshake");
    let (kind, body) = hello.join().unwrap();
    let contains = |name: &[u8]| body.windows(name.len()).any(|part| part == name);
    assert_eq!(kind, 22, "a handshake");
    assert!(contains(b"postgresql") && contains(b"localhost"));
}
