//! What happens on a new TCP connection before PostgreSQL's own protocol begins, and a look at its first answers.
//!
//! The client library is told to start TLS directly, and calls this instead: it asks the server for TLS, or does
//! not, as `sslmode` has it, and returns a stream. Of what the server sends up to the end of authentication the
//! stream takes note: what the server asks for is compared with `require_auth` before a password is sent, and
//! whether it was an error before or after authentication decides whether another attempt makes sense. All that the
//! server sends goes through a [`ReplyFilter`].

use super::attempt::plain;
use super::reply_filter::ReplyFilter;
use super::settings::RequireAuth;
use postgres::Socket;
use postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_postgres_rustls::MakeRustlsConnect;

/// How to begin.
#[derive(Clone)]
pub enum Opening {
    /// In plain text.
    Plain,
    /// With TLS.
    Tls {
        /// How.
        config: Arc<ClientConfig>,
        /// Without asking first.
        direct: bool,
        /// If the server has no TLS, in plain text after all.
        or_plain: bool,
    },
}

/// What became known of an attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HandshakeInfo {
    /// Why there is no TLS connection, in words.
    pub tls_failure: Option<String>,
    /// The connection is encrypted.
    pub encrypted: bool,
    /// What the server asked for to authenticate us.
    pub method: Option<&'static str>,
    /// It is content with us.
    pub authenticated: bool,
    /// It asked for what `require_auth` does not allow.
    pub unwanted: bool,
}

/// The connector for one attempt, and for the cancel request of its session.
#[derive(Clone)]
pub struct Connector {
    opening: Opening,
    require_auth: RequireAuth,
    longest_answer: usize,
    handshake: Arc<Mutex<HandshakeInfo>>,
}

impl Connector {
    /// For one attempt, with these ways of authentication, and answers of so many bytes at the most.
    pub fn new(opening: Opening, require_auth: RequireAuth, longest_answer: usize) -> Connector {
        Connector {
            opening,
            require_auth,
            longest_answer,
            handshake: Arc::default(),
        }
    }

    /// What became known.
    pub fn handshake_info(&self) -> HandshakeInfo {
        self.note().clone()
    }

    fn note(&self) -> MutexGuard<'_, HandshakeInfo> {
        self.handshake.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn open(self, host: String, mut socket: Socket) -> io::Result<Stream> {
        let inner = match self.opening.clone() {
            Opening::Plain => Inner::Plain(socket),
            Opening::Tls {
                config,
                direct,
                or_plain,
            } => match direct || self.negotiate(&mut socket).await? {
                true => Inner::Tls(Box::new(self.handshake(config, host, socket).await?)),
                false if or_plain => Inner::Plain(socket),
                false => {
                    return Err(self.fail("the server does not support TLS, and sslmode demands it".into()));
                }
            },
        };
        self.note().encrypted = matches!(inner, Inner::Tls(_));
        Ok(Stream {
            inner,
            reply_filter: ReplyFilter::new(self.longest_answer),
            dial: self,
            head: Vec::new(),
            skip: 0,
        })
    }

    /// Asks for TLS: whether the server has it.
    async fn negotiate(&self, socket: &mut Socket) -> io::Result<bool> {
        // SSLRequest: its length, and a number that is no version of the protocol.
        socket.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).await?;
        let mut answer = [0];
        socket.read_exact(&mut answer).await?;
        match answer[0] {
            b'S' => Ok(true),
            b'N' => Ok(false),
            // What follows an 'E' comes from nobody that we know.
            _ => Err(self.fail("the server answered the question for TLS with an error".into())),
        }
    }

    async fn handshake(&self, config: Arc<ClientConfig>, host: String, socket: Socket) -> io::Result<RustlsStream> {
        // A name that is none in the DNS is not told to the server, and is compared by our own rules.
        let name = match ServerName::try_from(host.as_str()) {
            Ok(_) => host,
            Err(_) => "0.0.0.0".into(),
        };
        let mut maker = MakeRustlsConnect::new(ClientConfig::clone(&config));
        let connector = MakeTlsConnect::<Socket>::make_tls_connect(&mut maker, &name);
        let connector = connector.map_err(io::Error::other)?;
        match connector.connect(socket).await {
            Ok(stream) => Ok(stream),
            Err(error) => Err(self.fail(tls_words(&error))),
        }
    }

    fn fail(&self, words: String) -> io::Error {
        self.note().tls_failure = Some(words.clone());
        io::Error::other(words)
    }
}

/// An error of the handshake, in words.
fn tls_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "the server closed the connection in the middle of the TLS handshake".into(),
        _ => plain(error),
    }
}

impl MakeTlsConnect<Socket> for Connector {
    type Stream = Stream;
    type TlsConnect = ConnectorHost;
    type Error = io::Error;

    fn make_tls_connect(&mut self, host: &str) -> io::Result<ConnectorHost> {
        Ok(ConnectorHost {
            dial: self.clone(),
            host: host.to_owned(),
        })
    }
}

/// The connector for one host.
pub struct ConnectorHost {
    dial: Connector,
    host: String,
}

impl TlsConnect<Socket> for ConnectorHost {
    type Stream = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

    fn connect(self, socket: Socket) -> Self::Future {
        Box::pin(self.dial.open(self.host, socket))
    }
}

type RustlsStream = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream;

enum Inner {
    Plain(Socket),
    Tls(Box<RustlsStream>),
}

/// The connection. It listens until authentication is over.
pub struct Stream {
    inner: Inner,
    reply_filter: ReplyFilter,
    dial: Connector,
    /// The first bytes of the message that is being read: type, length, and for an authentication its kind.
    head: Vec<u8>,
    /// How many bytes of it are not of interest.
    skip: usize,
}

/// 'R', four bytes of length, four of kind.
const MESSAGE_HEADER_LEN: usize = 9;

impl Stream {
    /// Looks at what has come.
    fn listen(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let Some((first, rest)) = bytes.split_first() else {
                break;
            };
            self.head.push(*first);
            bytes = rest;
            let kind_matters = self.head[0] == b'R';
            if self.head.len() == if kind_matters { MESSAGE_HEADER_LEN } else { 5 } {
                let head = std::mem::take(&mut self.head);
                let number = |at: usize| <[u8; 4]>::try_from(&head[at..at + 4]).map_or(0, u32::from_be_bytes);
                self.skip = (number(1) as usize).saturating_sub(head.len() - 1);
                if kind_matters && self.judge(number(5))? {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Takes note of an authentication message; whether it was the last one.
    fn judge(&mut self, kind: u32) -> io::Result<bool> {
        let mut handshake = self.dial.note();
        let method = match kind {
            0 => handshake.method.unwrap_or("none"),
            3 => "password",
            5 => "md5",
            7 | 8 => "gss",
            9 => "sspi",
            10..=12 => "scram-sha-256",
            _ => "unknown",
        };
        handshake.authenticated = kind == 0;
        handshake.method = Some(method);
        if !self.dial.require_auth.allows(method) {
            handshake.unwanted = true;
            return Err(io::Error::other("require_auth"));
        }
        Ok(kind == 0)
    }
}

impl TlsStream for Stream {
    fn channel_binding(&self) -> ChannelBinding {
        match &self.inner {
            Inner::Plain(_) => ChannelBinding::none(),
            Inner::Tls(stream) => stream.channel_binding(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        loop {
            let read = match &mut self.inner {
                Inner::Plain(socket) => Pin::new(socket).poll_read(cx, buffer),
                Inner::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buffer),
            };
            let come = buffer.filled().len() - before;
            if !matches!(read, Poll::Ready(Ok(()))) || come == 0 {
                return read;
            }
            let kept = self.reply_filter.sift(&mut buffer.filled_mut()[before..])?;
            buffer.set_filled(before + kept);
            if !self.dial.note().authenticated {
                self.listen(&buffer.filled()[before..])?;
            }
            // Nothing would mean the end of the connection.
            if kept > 0 {
                return read;
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.reply_filter.asked();
        match &mut self.inner {
            Inner::Plain(socket) => Pin::new(socket).poll_write(cx, bytes),
            Inner::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Inner::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Inner::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Inner::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Inner::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }
}
