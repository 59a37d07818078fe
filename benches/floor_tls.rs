//! The floor with TLS and SCRAM: the least that a client can do, by the library for TLS that pglock has as well.
//!
//! `floor-tls HOST PORT USER PASSWORD KEY ROOTS JOB...` asks for TLS, logs in with SCRAM-SHA-256 (without channel
//! binding), tries the lock in the same write as the last message of the login, starts the job, gives the lock back and
//! says goodbye in one write. ROOTS is a file of trusted roots, against which certificate and name are checked
//! (`verify-full`), or `-`: then any certificate will do (`require`).
#![expect(clippy::unwrap_used, reason = "a floor has no errors to tell of")]

use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [host, port, user, password, key, roots, job @ ..] = arguments.as_slice() else {
        std::process::exit(64);
    };
    let mut session = connect(host, port.parse().unwrap(), roots);
    let try_lock = message(b'Q', &text(&format!("SELECT pg_try_advisory_lock({key})")));
    log_in(&mut session, user, password, &try_lock);
    if !is_true(&mut session) {
        std::process::exit(75);
    }
    let status = Command::new(&job[0]).args(&job[1..]).status().unwrap();
    let unlock = message(b'Q', &text(&format!("SELECT pg_advisory_unlock({key})")));
    session.write_all(&[unlock, message(b'X', b"")].concat()).unwrap();
    is_true(&mut session);
    std::process::exit(status.code().unwrap());
}

type Session = rustls::StreamOwned<ClientConnection, TcpStream>;

fn connect(host: &str, port: u16, roots: &str) -> Session {
    let mut socket = TcpStream::connect((host, port)).unwrap();
    socket.set_nodelay(true).unwrap();
    socket.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).unwrap();
    let mut answer = [0];
    socket.read_exact(&mut answer).unwrap();
    assert_eq!(answer, *b"S");
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let config = match roots {
        "-" => {
            let any = Arc::new(Any(provider));
            builder
                .dangerous()
                .with_custom_certificate_verifier(any)
                .with_no_client_auth()
        }
        file => {
            let mut store = rustls::RootCertStore::empty();
            for certificate in CertificateDer::pem_file_iter(file).unwrap() {
                store.add(certificate.unwrap()).unwrap();
            }
            builder.with_root_certificates(store).with_no_client_auth()
        }
    };
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let client = ClientConnection::new(Arc::new(config), name).unwrap();
    Session::new(client, socket)
}

fn log_in(session: &mut Session, user: &str, password: &str, and_then: &[u8]) {
    let mut start = vec![0, 3, 0, 0];
    for word in ["user", user, "database", "postgres", ""] {
        start.extend(text(word));
    }
    let length = (start.len() as u32 + 4).to_be_bytes();
    session.write_all(&[&length[..], &start].concat()).unwrap();
    assert_eq!(receive(session).0, b'R');
    let mut scram = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
    let first = scram.message().to_vec();
    let length = (first.len() as u32).to_be_bytes();
    let body = [&text(SCRAM_SHA_256)[..], &length, &first].concat();
    session.write_all(&message(b'p', &body)).unwrap();
    scram.update(&receive(session).1[4..]).unwrap();
    let last = message(b'p', scram.message());
    session.write_all(&[&last, and_then].concat()).unwrap();
    scram.finish(&receive(session).1[4..]).unwrap();
    while receive(session).0 != b'Z' {}
}

/// Whether the one value of the answer is true.
fn is_true(session: &mut Session) -> bool {
    let mut value = false;
    loop {
        match receive(session) {
            (b'Z', _) => return value,
            (b'D', body) => value = body.ends_with(b"t"),
            (kind, body) => assert!(kind != b'E', "{}", String::from_utf8_lossy(&body)),
        }
    }
}

fn receive(session: &mut Session) -> (u8, Vec<u8>) {
    let mut head = [0; 5];
    session.read_exact(&mut head).unwrap();
    let length = u32::from_be_bytes(head[1..].try_into().unwrap());
    let mut body = vec![0; length as usize - 4];
    session.read_exact(&mut body).unwrap();
    (head[0], body)
}

fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
}

/// Takes any certificate, and checks the signature of the handshake with it.
#[derive(Debug)]
struct Any(Arc<CryptoProvider>);

impl ServerCertVerifier for Any {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, leaf, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
