//! What PgDog does with the statements of a message when it lends by the transaction, in front of a PgBouncer that does
//! the lending. From PgDog's source of August 2026 (`frontend/router/parser/query`, `frontend/client/query_engine`):
//!
//! * A message that mixes SET with other statements is refused. SET TRANSACTION is one of the others.
//! * Of a message that begins with BEGIN, only "BEGIN" is answered. The message runs before the next one, and what it
//!   returns is dropped.
//! * A message that begins with COMMIT or ROLLBACK when nothing has run in the transaction, or outside of a transaction
//!   with a lone `SELECT set_config()`, LISTEN, NOTIFY, UNLISTEN, DEALLOCATE or DISCARD, is answered and never runs.
//! * Everything else goes to the server as it is.

use super::proxy::{read_message, statements};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

/// The port in the name of the socket, which is alone in its directory.
const PORT: u16 = 5432;

/// Listens on a Unix socket for as long as the test process lives.
pub struct PgDog {
    directory: PathBuf,
}

impl PgDog {
    /// Starts one in this directory, in front of the PgBouncer that has this socket when a client comes. It notes each
    /// message of a client, without the comment in front.
    pub fn start(
        directory: &Path,
        pooler: impl Fn() -> PathBuf + Send + 'static,
        note: impl Fn(&str) + Send + Sync + 'static,
    ) -> PgDog {
        let listener = UnixListener::bind(directory.join(format!(".s.PGSQL.{PORT}"))).unwrap();
        let note = Arc::new(note);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = UnixStream::connect(pooler()) else {
                    continue;
                };
                let note = Arc::clone(&note);
                let session = Session {
                    client,
                    server,
                    status: b'I',
                    begin: None,
                };
                // It ends with either side.
                thread::spawn(move || drop(session.serve(&*note)));
            }
        });
        PgDog {
            directory: directory.to_owned(),
        }
    }

    /// Returns its connection string.
    pub fn dsn(&self) -> String {
        let directory = self.directory.display();
        format!("host={directory} port={PORT} user=postgres dbname=postgres sslmode=disable")
    }
}

/// What PgDog does with a message.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    Refuse,
    Begin,
    End,
    Answer,
    Forward,
}

/// Returns what it does with these statements.
fn command(statements: &[String], is_connected: bool) -> Command {
    let words = |statement: &String| -> Vec<String> {
        let words = statement.trim_end_matches([';', ' ']).split_whitespace();
        words.map(str::to_uppercase).collect()
    };
    let is_set = |statement: &String| match &words(statement)[..] {
        [first, second, ..] => first == "RESET" || first == "SET" && second != "TRANSACTION" && second != "CONSTRAINTS",
        _ => false,
    };
    if statements.len() > 1 && statements.iter().any(is_set) && !statements.iter().all(is_set) {
        return Command::Refuse;
    }
    let first = statements.first().map(words).unwrap_or_default();
    let is_lone_set_config = || {
        let statement = first.join(" ");
        let function = ["SELECT PG_CATALOG.SET_CONFIG(", "SELECT SET_CONFIG("];
        function.iter().any(|start| statement.starts_with(start)) && statement.find(')') == Some(statement.len() - 1)
    };
    match first.first().map(String::as_str) {
        _ if is_connected => Command::Forward,
        Some("BEGIN" | "START") => Command::Begin,
        Some("COMMIT" | "END" | "ROLLBACK") => Command::End,
        Some("SET" | "RESET" | "LISTEN" | "NOTIFY" | "UNLISTEN" | "DEALLOCATE" | "DISCARD") => Command::Answer,
        Some("SELECT") if is_lone_set_config() => Command::Answer,
        _ => Command::Forward,
    }
}

/// A client, and its connection to the pooler.
struct Session {
    client: UnixStream,
    server: UnixStream,
    /// As in ReadyForQuery: whether a transaction is open at the server.
    status: u8,
    /// The message that began a transaction, until it has run.
    begin: Option<Vec<u8>>,
}

impl Session {
    /// # Errors
    /// Either side has closed its connection.
    fn serve(mut self, note: &impl Fn(&str)) -> io::Result<()> {
        let startup = read_message(&mut self.client, false)?;
        self.server.write_all(&startup)?;
        self.relay_reply(true)?;
        loop {
            self.await_client()?;
            let message = read_message(&mut self.client, true)?;
            if message[0] != b'Q' {
                self.server.write_all(&message)?;
                continue;
            }
            let text = String::from_utf8_lossy(&message[5..message.len() - 1]).into_owned();
            let text = match text.strip_prefix("/*").and_then(|text| text.split_once("*/")) {
                Some((_, text)) => text.trim().to_owned(),
                None => text,
            };
            note(&text);
            let statements = statements(&text);
            match command(&statements, self.status != b'I') {
                Command::Refuse => {
                    let fields = "SERROR\0C58000\0Mmulti-statement queries cannot mix SET with other commands\0\0";
                    self.answer(b'E', fields)?;
                }
                Command::Begin => {
                    self.begin = Some(message);
                    self.answer(b'C', "BEGIN\0")?;
                }
                Command::End => {
                    self.begin = None;
                    self.answer(b'C', "COMMIT\0")?;
                }
                Command::Answer => self.answer(b'C', "SET\0")?,
                Command::Forward => {
                    if let Some(begin) = self.begin.take() {
                        self.server.write_all(&begin)?;
                        self.relay_reply(false)?;
                    }
                    self.server.write_all(&message)?;
                    self.relay_reply(true)?;
                }
            }
        }
    }

    /// Waits for a message of the client. What the server sends meanwhile is relayed.
    ///
    /// # Errors
    /// Either side has closed its connection.
    fn await_client(&mut self) -> io::Result<()> {
        loop {
            let [client, server] = [&self.client, &self.server].map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN));
            let mut ends = [client, server];
            poll(&mut ends, PollTimeout::NONE)?;
            if ends[1].any() != Some(true) {
                return Ok(());
            }
            let message = read_message(&mut self.server, true)?;
            self.client.write_all(&message)?;
        }
    }

    /// Relays a reply, or drops it.
    ///
    /// # Errors
    /// Either side has closed its connection.
    fn relay_reply(&mut self, is_wanted: bool) -> io::Result<()> {
        loop {
            let message = read_message(&mut self.server, true)?;
            if is_wanted {
                self.client.write_all(&message)?;
            }
            if message[0] == b'Z' {
                self.status = message[5];
                return Ok(());
            }
        }
    }

    /// Answers with a message of this type, and that the next one may come.
    ///
    /// # Errors
    /// The client has closed its connection.
    fn answer(&mut self, kind: u8, body: &str) -> io::Result<()> {
        let status = if self.begin.is_some() { b'T' } else { self.status };
        let length = (body.len() as u32 + 4).to_be_bytes();
        let message = [&[kind], &length[..], body.as_bytes(), b"Z\0\0\0\x05", &[status]].concat();
        self.client.write_all(&message)
    }
}
