//! TLS negotiation on a new TCP connection, and a look at how the server authenticates us.
//!
//! The client library is configured to start TLS directly, and calls this connector to do so. The connector requests
//! TLS or not, as `sslmode` demands, and returns a stream. Until authentication is complete, the stream records what
//! the server sends: the requested method is compared with `require_auth` before a password is sent, and whether the
//! server refuses us before or after authentication decides whether another attempt makes sense. Everything that the
//! server sends goes through a [`ReplyFilter`].

use super::error::{CONNECTION_CLOSED, TlsFailure, describe_io_error, is_of_tls, tls_failure};
use super::reply_filter::{MESSAGE_HEADER_BYTES, ReplyFilter};
use super::settings::RequireAuth;
use super::tls;
use postgres::Socket;
use postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_rustls::{TlsConnector, client};

/// Whether, and how, to encrypt the connection.
#[derive(Clone)]
pub(super) enum Encryption {
    /// No TLS.
    Plaintext,
    /// TLS.
    Tls {
        /// The configuration for the host.
        config: Arc<ClientConfig>,
        /// Start TLS without asking the server first (`sslnegotiation=direct`).
        is_direct: bool,
        /// Continue in plaintext if the server does not support TLS.
        allows_plaintext: bool,
        /// The settings allow versions of TLS that only libpq has.
        libpq_has_older_tls: bool,
    },
}

/// What an attempt has learned about the server, even if it failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct HandshakeInfo {
    /// Why there is no TLS connection.
    pub tls_failure: Option<(TlsFailure, String)>,
    /// The connection ended during the TLS handshake, without an alert.
    pub is_tls_cut_off: bool,
    /// The connection is encrypted.
    pub is_encrypted: bool,
    /// The authentication method that the server requested, as `require_auth` names it.
    pub method: Option<&'static str>,
    /// The server has accepted us.
    pub is_authenticated: bool,
    /// `require_auth` does not allow the requested method.
    pub is_method_refused: bool,
}

/// The connector of one attempt, and of the cancel requests of its session.
#[derive(Clone)]
pub(super) struct Connector {
    encryption: Encryption,
    require_auth: RequireAuth,
    max_reply_bytes: usize,
    handshake: Arc<Mutex<HandshakeInfo>>,
}

impl Connector {
    /// Creates a connector that allows these authentication methods, and replies of at most so many bytes.
    pub(super) fn new(encryption: Encryption, require_auth: RequireAuth, max_reply_bytes: usize) -> Connector {
        Connector {
            encryption,
            require_auth,
            max_reply_bytes,
            handshake: Arc::default(),
        }
    }

    /// Returns what has been learned about the server.
    pub(super) fn handshake_info(&self) -> HandshakeInfo {
        self.lock_handshake().clone()
    }

    fn lock_handshake(&self) -> MutexGuard<'_, HandshakeInfo> {
        self.handshake.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Negotiates TLS, if it is wanted, and returns the stream.
    ///
    /// # Errors
    /// TLS is required but not supported by the server, or the handshake fails.
    async fn connect(self, host: String, mut socket: Socket) -> io::Result<Stream> {
        let transport = match self.encryption.clone() {
            Encryption::Plaintext => Transport::Plaintext(socket),
            Encryption::Tls {
                config,
                is_direct,
                allows_plaintext,
                libpq_has_older_tls,
            } => {
                if is_direct || self.request_tls(&mut socket).await? {
                    let stream = self.start_tls(config, host, socket, libpq_has_older_tls).await?;
                    Transport::Tls(Box::new(stream))
                } else if allows_plaintext {
                    Transport::Plaintext(socket)
                } else {
                    let message = "the server does not support TLS, but sslmode requires it";
                    return Err(self.fail(TlsFailure::AlsoInLibpq, message.into()));
                }
            }
        };
        self.lock_handshake().is_encrypted = matches!(transport, Transport::Tls(_));
        Ok(Stream {
            transport,
            reply_filter: ReplyFilter::new(self.max_reply_bytes),
            connector: self,
            header: Vec::new(),
            skipped_bytes: 0,
            has_unhandled_bytes: false,
        })
    }

    /// Requests TLS, and returns whether the server supports it.
    ///
    /// # Errors
    /// The connection fails, or the server answers with neither yes nor no.
    async fn request_tls(&self, socket: &mut Socket) -> io::Result<bool> {
        // SSLRequest: its length, and a code in place of a protocol version.
        socket.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).await?;
        let mut reply = [0];
        if socket.read(&mut reply).await? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, CONNECTION_CLOSED));
        }
        match reply[0] {
            b'S' => Ok(true),
            b'N' => Ok(false),
            // An error message follows, but it must not be trusted: the server is not authenticated (CVE-2024-10977).
            // libpq fails here whatever sslmode is, and does not try again without TLS. A server sends it that cannot
            // start a backend, which may not last.
            b'E' => Err(io::Error::other("the server sent an error response to the TLS request")),
            _ => Err(self.fail(
                TlsFailure::MaybeOnlyOurs,
                "the server sent an invalid response to the TLS request".into(),
            )),
        }
    }

    /// Performs the TLS handshake.
    ///
    /// # Errors
    /// The handshake fails; the reason is recorded.
    async fn start_tls(
        &self,
        config: Arc<ClientConfig>,
        host: String,
        socket: Socket,
        libpq_has_older_tls: bool,
    ) -> io::Result<RustlsStream> {
        // A name that is not a valid DNS name is not sent to the server, but the verifier still compares it.
        let server_name = ServerName::try_from(host).unwrap_or(IpAddr::from([0, 0, 0, 0]).into());
        match TlsConnector::from(config).connect(server_name, socket).await {
            Ok(stream) => Ok(stream),
            Err(error) if is_of_tls(&error) => {
                Err(self.fail(tls_failure(&error, libpq_has_older_tls), describe_io_error(&error)))
            }
            Err(error) => {
                self.lock_handshake().is_tls_cut_off = true;
                let message = match error.kind() {
                    io::ErrorKind::UnexpectedEof => "the server closed the connection during the TLS handshake".into(),
                    _ => format!("{} during the TLS handshake", describe_io_error(&error)),
                };
                Err(self.fail(TlsFailure::MaybeOnlyOurs, message))
            }
        }
    }

    /// Records why TLS failed.
    fn fail(&self, failure: TlsFailure, message: String) -> io::Error {
        self.lock_handshake().tls_failure = Some((failure, message.clone()));
        io::Error::other(message)
    }
}

impl MakeTlsConnect<Socket> for Connector {
    type Stream = Stream;
    type TlsConnect = HostConnector;
    type Error = io::Error;

    fn make_tls_connect(&mut self, host: &str) -> io::Result<HostConnector> {
        Ok(HostConnector {
            connector: self.clone(),
            host: host.to_owned(),
        })
    }
}

/// The connector for one host.
pub(super) struct HostConnector {
    connector: Connector,
    host: String,
}

impl TlsConnect<Socket> for HostConnector {
    type Stream = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

    fn connect(self, socket: Socket) -> Self::Future {
        Box::pin(self.connector.connect(self.host, socket))
    }
}

type RustlsStream = client::TlsStream<Socket>;

enum Transport {
    Plaintext(Socket),
    Tls(Box<RustlsStream>),
}

/// The connection. It observes the server's messages until authentication is complete.
pub(super) struct Stream {
    transport: Transport,
    reply_filter: ReplyFilter,
    connector: Connector,
    /// The beginning of the current message: its type, its length, and for an authentication message its code.
    header: Vec<u8>,
    /// How many bytes of the current message are still to be skipped.
    skipped_bytes: usize,
    /// The library has not had a chance yet to handle what was received.
    has_unhandled_bytes: bool,
}

/// The header of an authentication message, and the code that follows it.
const AUTHENTICATION_HEADER_BYTES: usize = MESSAGE_HEADER_BYTES + 4;

impl Stream {
    /// Follows the messages in these bytes.
    ///
    /// # Errors
    /// The server requests an authentication method that `require_auth` does not allow.
    fn observe(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let skipped = self.skipped_bytes.min(bytes.len());
            self.skipped_bytes -= skipped;
            bytes = &bytes[skipped..];
            let Some((first, rest)) = bytes.split_first() else {
                break;
            };
            self.header.push(*first);
            bytes = rest;
            let is_authentication = self.header[0] == b'R';
            let header_bytes = if is_authentication {
                AUTHENTICATION_HEADER_BYTES
            } else {
                MESSAGE_HEADER_BYTES
            };
            if self.header.len() < header_bytes {
                continue;
            }
            let header = std::mem::take(&mut self.header);
            let number = |at: usize| <[u8; 4]>::try_from(&header[at..at + 4]).map_or(0, u32::from_be_bytes);
            self.skipped_bytes = (number(1) as usize).saturating_sub(header.len() - 1);
            if is_authentication && self.record_authentication(number(MESSAGE_HEADER_BYTES))? {
                break;
            }
        }
        Ok(())
    }

    /// Records an authentication message, and returns whether authentication is complete.
    ///
    /// # Errors
    /// `require_auth` does not allow the requested method.
    fn record_authentication(&mut self, code: u32) -> io::Result<bool> {
        let mut handshake = self.connector.lock_handshake();
        let method = match code {
            0 => handshake.method.unwrap_or("none"),
            2 => "kerberos",
            3 => "password",
            5 => "md5",
            6 => "scm",
            7 | 8 => "gss",
            9 => "sspi",
            10..=12 => "scram-sha-256",
            _ => "unknown",
        };
        handshake.is_authenticated = code == 0;
        handshake.method = Some(method);
        if !self.connector.require_auth.allows(method) {
            handshake.is_method_refused = true;
            return Err(io::Error::other("authentication method not allowed by require_auth"));
        }
        Ok(code == 0)
    }
}

impl TlsStream for Stream {
    fn channel_binding(&self) -> ChannelBinding {
        let certificates = match &self.transport {
            Transport::Plaintext(_) => None,
            Transport::Tls(stream) => stream.get_ref().1.peer_certificates(),
        };
        let hash = certificates.and_then(<[_]>::first).and_then(tls::server_end_point);
        hash.map_or_else(ChannelBinding::none, ChannelBinding::tls_server_end_point)
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        loop {
            let read = match &mut self.transport {
                Transport::Plaintext(socket) => Pin::new(socket).poll_read(cx, buffer),
                Transport::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buffer),
            };
            let received = buffer.filled().len() - before;
            if !matches!(read, Poll::Ready(Ok(()))) || received == 0 {
                // The library forgets an error message if it sees the end of the connection before a query has taken
                // the message, so it sees the end a little later.
                let delays_end = std::mem::take(&mut self.has_unhandled_bytes) && matches!(read, Poll::Ready(Ok(())));
                if delays_end {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                return read;
            }
            let kept = self.reply_filter.filter(&mut buffer.filled_mut()[before..])?;
            buffer.set_filled(before + kept);
            let is_authenticated = self.connector.lock_handshake().is_authenticated;
            if !is_authenticated {
                self.observe(&buffer.filled()[before..])?;
            }
            // Zero bytes would mean the end of the connection, so read on.
            if kept > 0 {
                self.has_unhandled_bytes = true;
                return read;
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.reply_filter.start_reply();
        match &mut self.transport {
            Transport::Plaintext(socket) => Pin::new(socket).poll_write(cx, bytes),
            Transport::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Plaintext(socket) => Pin::new(socket).poll_flush(cx),
            Transport::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Plaintext(socket) => Pin::new(socket).poll_shutdown(cx),
            Transport::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }
}
