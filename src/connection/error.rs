//! Why a connection attempt failed, as text and as what to try next.

use super::tls;
use crate::outcome::{ExitCode, Failure};
use postgres::error::{DbError, Severity, SqlState};
use rustls::AlertDescription;
use std::error::Error;
use std::fmt;
use std::io;

/// What is still worth trying after a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RetryScope {
    /// The next address of the host, or the next host.
    Address,
    /// The next host.
    Host,
    /// Nothing.
    Nothing,
}

/// What a failure of TLS says about libpq's TLS, with the same settings and server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TlsFailure {
    /// It fails for the same reason.
    AlsoInLibpq,
    /// It may succeed: what failed is missing in pglock, or unknown.
    MaybeOnlyOurs,
}

impl TlsFailure {
    /// Classifies a failure by whether libpq has it too.
    pub(crate) fn new(fails_in_libpq: bool) -> TlsFailure {
        if fails_in_libpq {
            TlsFailure::AlsoInLibpq
        } else {
            TlsFailure::MaybeOnlyOurs
        }
    }
}

/// A failed connection attempt.
#[derive(Debug)]
pub(crate) struct ConnectError {
    /// The exit status if no other attempt succeeds.
    pub code: ExitCode,
    /// The message for the operator.
    pub message: String,
    /// What is still worth trying.
    pub retry: RetryScope,
    /// TLS failed, or could not be set up.
    pub tls_failure: Option<TlsFailure>,
    /// The connection was encrypted.
    pub is_encrypted: bool,
    /// The server refused us before authentication was complete, and not temporarily: pg_hba.conf may have
    /// another rule for the same connection with TLS, or without.
    pub is_refused_before_authentication: bool,
    /// The server requested a password, and there is none.
    pub is_password_missing: bool,
    /// The same attempt may succeed a little later.
    pub is_transient: bool,
}

impl ConnectError {
    /// Creates an error of which nothing else is known.
    pub(crate) fn new(code: ExitCode, message: impl Into<String>, retry: RetryScope) -> ConnectError {
        ConnectError {
            code,
            message: message.into(),
            retry,
            tls_failure: None,
            is_encrypted: false,
            is_refused_before_authentication: false,
            is_password_missing: false,
            is_transient: false,
        }
    }

    /// Reports that no server responds at this address.
    pub(crate) fn unreachable(message: impl Into<String>) -> ConnectError {
        ConnectError {
            is_transient: true,
            ..ConnectError::new(ExitCode::Unavailable, message, RetryScope::Address)
        }
    }

    /// Reports that this server has another role than the settings require. That changes with a failover.
    pub(crate) fn wrong_role(message: impl Into<String>) -> ConnectError {
        ConnectError {
            is_transient: true,
            ..ConnectError::new(ExitCode::Unavailable, message, RetryScope::Host)
        }
    }

    /// Reports invalid settings of this host, while other hosts may work.
    pub(crate) fn host_settings(message: impl Into<String>) -> ConnectError {
        ConnectError::new(ExitCode::Config, message, RetryScope::Host)
    }

    /// Reports invalid settings for all hosts.
    pub(crate) fn settings(message: impl Into<String>) -> ConnectError {
        ConnectError::new(ExitCode::Config, message, RetryScope::Nothing)
    }

    /// Reports that this system has no descriptor or no thread left, which may pass.
    pub(crate) fn exhausted(message: impl Into<String>) -> ConnectError {
        ConnectError {
            is_transient: true,
            ..ConnectError::new(ExitCode::Internal, message, RetryScope::Nothing)
        }
    }

    /// Reports that one side does not trust the other.
    pub(crate) fn permission(message: impl Into<String>) -> ConnectError {
        ConnectError::new(ExitCode::Permission, message, RetryScope::Nothing)
    }

    /// Adds what can be done.
    pub(crate) fn with_remedy(self, remedy: &str) -> ConnectError {
        let message = format!("{}; {remedy}", self.message);
        ConnectError { message, ..self }
    }

    /// Combines this error with that of a second attempt at the same server, `how` ("with TLS").
    pub(crate) fn and_then(self, how: &str, second: ConnectError) -> ConnectError {
        let message = if self.message == second.message {
            self.message
        } else {
            format!("{} ({how}; first attempt: {})", second.message, self.message)
        };
        ConnectError { message, ..second }
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Failure {
        Failure::new(error.code, anyhow::Error::msg(error.message)).transient_if(error.is_transient)
    }
}

impl From<postgres::Error> for Failure {
    fn from(error: postgres::Error) -> Failure {
        // The message of the server suffices; the library only wraps it.
        match error.as_db_error() {
            Some(db) if is_lock_table_full(&error) => {
                let message = format!(
                    "{}: the server's lock table is full; increase max_locks_per_transaction, or lock fewer keys",
                    db.message()
                );
                Failure::new(ExitCode::Unavailable, LockTableFull(message)).transient_if(true)
            }
            Some(_) if is_simple_protocol_refused(&error) => Failure::msg(ExitCode::Config, SIMPLE_PROTOCOL_REFUSED),
            Some(db) => Failure::msg(exit_code_for(db.code().code()), db.message()).transient_if(is_transient(db)),
            None if has_ended(&error) => Failure::msg(ExitCode::Unavailable, CONNECTION_CLOSED).transient_if(true),
            // Not of the connection: what the library cannot parse stays so.
            None => {
                let is_transient = error.source().is_some_and(<dyn Error>::is::<io::Error>);
                Failure::new(ExitCode::Unavailable, error).transient_if(is_transient)
            }
        }
    }
}

/// Returns the failure of a query that a job needs before it can start. If the session goes on after the error, the
/// failure is final, also where the server may have more resources later: a further attempt would acquire the lock
/// again, and keep it from others, for a query that has been answered.
pub(crate) fn final_if_session_lives(error: postgres::Error) -> Failure {
    // FATAL and PANIC end the session. A pooler that does not tell the severity may end it, too.
    let session_lives = error
        .as_db_error()
        .is_some_and(|db| db.parsed_severity() == Some(Severity::Error));
    let failure = Failure::from(error);
    let is_transient = failure.is_transient && !session_lives;
    failure.transient_if(is_transient)
}

/// Why a PgBouncer that refuses the simple query protocol is refused, and what to do.
pub(crate) const SIMPLE_PROTOCOL_REFUSED: &str = "the pooler refuses simple queries, which pglock sends; set disable_pqexec \
     = 0 in PgBouncer, or connect to the port of the PostgreSQL server itself";

/// Returns whether a PgBouncer with `disable_pqexec` reports that. Only the text tells: all its errors have the same
/// code.
pub(crate) fn is_simple_protocol_refused(error: &postgres::Error) -> bool {
    let is_refusal = |db: &DbError| *db.code() == SqlState::PROTOCOL_VIOLATION && db.message() == "PQexec disallowed";
    error.as_db_error().is_some_and(is_refusal)
}

/// The connection has ended, and no error message came before. This process itself may have ended it.
pub(crate) const CONNECTION_CLOSED: &str = "the server closed the connection unexpectedly";

/// Returns whether the connection has ended without a message: over TLS, without a `close_notify` as well.
fn has_ended(error: &postgres::Error) -> bool {
    let cause = error.source().and_then(<dyn Error>::downcast_ref);
    let kind = cause.map(io::Error::kind);
    error.is_closed() || matches!(kind, Some(io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe))
}

/// Returns whether the failure is [`CONNECTION_CLOSED`].
pub(crate) fn is_of_closed_connection(failure: &Failure) -> bool {
    failure
        .error
        .chain()
        .any(|cause| cause.to_string() == CONNECTION_CLOSED)
}

/// The message that the server's table of locks is full.
#[derive(Debug)]
struct LockTableFull(String);

impl fmt::Display for LockTableFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for LockTableFull {}

/// Returns whether the failure is that the server's table of locks is full.
pub(crate) fn is_of_full_lock_table(failure: &Failure) -> bool {
    failure.error.is::<LockTableFull>()
}

/// Returns whether the server's table of locks is full. Its other shortages of memory have the same SQLSTATE, but not
/// the hint, in which the name of the setting is never translated.
pub(crate) fn is_lock_table_full(error: &postgres::Error) -> bool {
    error.as_db_error().is_some_and(|db| {
        let hint = db.hint().unwrap_or_default();
        *db.code() == SqlState::OUT_OF_MEMORY && hint.contains("max_locks_per_transaction")
    })
}

/// Returns whether an error of the server, or of a pooler, says that the same attempt may succeed a little later.
///
/// By SQLSTATE: connection exceptions (class 08), insufficient resources (53, as `too_many_connections`), operator
/// intervention (57P01 to 57P05: shutdown, crash, starting up, idle session) and the timeouts of a transaction (25P03,
/// 25P04). Poolers use one code for everything: PgBouncer 08P01 (protocol violation), PgCat 58000 (system error),
/// Supavisor and Pgpool-II XX000 (internal error). Their temporary errors are told by their text.
pub(super) fn is_transient(error: &DbError) -> bool {
    is_transient_error(error.code().code(), error.message())
}

/// What poolers say about what is temporary.
const TEMPORARY_IN_POOLERS: [&str; 38] = [
    // PgBouncer 1.18 to 1.25, of itself: client.c, objects.c, janitor.c.
    "no more connections allowed",
    "client connections exceeded",
    "server login has been failing",
    "server login failed",
    "query_wait_timeout",
    "query_timeout",
    "client_login_timeout",
    "client_idle_timeout",
    "suspend_timeout",
    "shutting down",
    "pause failed",
    "resources exhaustion",
    "no memory",
    "out of memory",
    "pgbouncer cannot connect to server",
    // PgBouncer, when it closes the session that a client was using: janitor.c, objects.c, server.c.
    "the database system is",
    "terminating connection",
    "server conn crashed",
    "server closed the connection",
    "server connection closed",
    "server DNS lookup failed",
    "cannot connect",
    "connect failed",
    "connect timeout",
    "query timeout",
    "transaction timeout",
    "database configuration changed",
    "connect string changed",
    // PgBouncer, when the session ends as it gives it the settings of a client: server.c.
    "invalid server parameter",
    // PgBouncer, when it repeats what the server said as it refused the pooler's own login, without its SQLSTATE
    // (53300).
    "too many clients already",
    "remaining connection slots are reserved",
    "too many connections for",
    // PgCat: client.rs.
    "could not get connection from the pool",
    "error receiving data from server",
    // Supavisor: "(EMAXCONN) max client connections reached", "MaxClientsInSessionMode: max clients reached".
    "ax client connections reached",
    "max clients reached",
    // Pgpool-II: pool_connection_pool.c, child.c.
    "not accepting any new connections",
    "failed to create a backend connection",
];

/// What a pooler repeats of a server that does not let it in: a later attempt fails as well.
const FINAL_IN_POOLERS: [&str; 5] = [
    "authentication failed",
    "does not exist",
    "permission denied",
    "no pg_hba.conf entry",
    "is not permitted to log in",
];

fn is_transient_error(sqlstate: &str, message: &str) -> bool {
    let contains_any = |texts: &[&str]| texts.iter().any(|text| message.contains(text));
    match sqlstate {
        "08P01" | "58000" | "XX000" => contains_any(&TEMPORARY_IN_POOLERS) && !contains_any(&FINAL_IN_POOLERS),
        "57P01" | "57P02" | "57P03" | "57P05" | "25P03" | "25P04" => true,
        code => code.starts_with("08") || code.starts_with("53"),
    }
}

/// Returns the exit status for an error of the server with this SQLSTATE.
pub(super) fn exit_code_for(sqlstate: &str) -> ExitCode {
    match sqlstate {
        // insufficient_privilege
        "42501" => ExitCode::Permission,
        // Invalid Authorization Specification
        code if code.starts_with("28") => ExitCode::Permission,
        // Invalid Catalog Name
        code if code.starts_with("3D") => ExitCode::Config,
        _ => ExitCode::Unavailable,
    }
}

/// The authentication failures that the client library distinguishes only by their text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientErrorKind {
    /// The server requested a password, and the library has none.
    PasswordMissing,
    /// The library does not accept how the server authenticates.
    Authentication,
    /// Any other.
    Other,
}

impl ClientErrorKind {
    /// Classifies an error. Over TCP the handshake is observed, but over a Unix socket the library talks to the server
    /// directly, and it keeps the kind of its errors private. A test compares these texts with the library's.
    pub(super) fn from_error(error: &postgres::Error) -> ClientErrorKind {
        if error
            .source()
            .is_some_and(|source| source.to_string() == "password missing")
        {
            ClientErrorKind::PasswordMissing
        } else if error.to_string().starts_with("authentication error") {
            ClientErrorKind::Authentication
        } else {
            ClientErrorKind::Other
        }
    }
}

/// Describes the root cause of an error.
pub(super) fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source().filter(|_| !cause.is::<io::Error>()) {
        cause = next;
    }
    match cause.downcast_ref::<io::Error>() {
        Some(error) => describe_io_error(error),
        None => cause.to_string(),
    }
}

/// Returns the TLS alert that ended the connection, if there was one.
pub(super) fn tls_alert(error: &postgres::Error) -> Option<AlertDescription> {
    let error = error.source()?.downcast_ref::<io::Error>()?;
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}

/// Returns whether an error of the TLS handshake is one of TLS, rather than of the connection under it.
pub(super) fn is_of_tls(error: &io::Error) -> bool {
    error
        .get_ref()
        .is_some_and(<dyn Error + Send + Sync>::is::<rustls::Error>)
}

/// Classifies an error of the TLS handshake; libpq may use versions of TLS before 1.2, or not.
pub(super) fn tls_failure(error: &io::Error, libpq_has_older_tls: bool) -> TlsFailure {
    let error = error.get_ref().and_then(|inner| inner.downcast_ref());
    TlsFailure::new(error.is_some_and(|error| tls::fails_in_libpq(error, libpq_has_older_tls)))
}

/// Describes an error of the system, without its number, or of TLS.
pub(super) fn describe_io_error(error: &io::Error) -> String {
    if let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref()) {
        return tls::describe(error);
    }
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let text = text
        .strip_prefix("failed to lookup address information: ")
        .unwrap_or(text);
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => "connection failed".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postgres::config::ChannelBinding;
    use postgres::{Config, NoTls};
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;
    use std::thread;

    /// Connects to a server that sends this authentication request, and returns the error of the library.
    fn error_after(request: &'static [u8], config: &mut Config) -> postgres::Error {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let listener = UnixListener::bind(directory.path().join(".s.PGSQL.1")).expect("a free path");
        let server = thread::spawn(move || -> io::Result<()> {
            let (mut client, _) = listener.accept()?;
            let mut length = [0; 4];
            client.read_exact(&mut length)?;
            let mut startup = vec![0; u32::from_be_bytes(length) as usize - 4];
            client.read_exact(&mut startup)?;
            client.write_all(request)
        });
        let connected = config.host_path(directory.path()).port(1).user("u").connect(NoTls);
        server.join().expect("no panic").expect("a connection");
        connected.err().expect("authentication is never completed")
    }

    #[test]
    fn what_is_temporary_is_told_from_what_is_final() {
        let temporary = [
            ("57P03", "the database system is starting up"),
            ("57P01", "terminating connection due to administrator command"),
            ("53300", "sorry, too many clients already"),
            ("08006", "anything"),
            ("08P01", "no more connections allowed (max_client_conn)"),
            ("08P01", "query_wait_timeout"),
            ("08P01", "server login failed: FATAL sorry, too many clients already"),
            ("08P01", "sorry, too many clients already"),
            ("08P01", "remaining connection slots are reserved for superusers"),
            ("08P01", "too many connections for role \"u\""),
            (
                "08P01",
                "server login has been failing, try again later (server_login_retry)",
            ),
            ("08P01", "server conn crashed?"),
            ("08P01", "invalid server parameter"),
            ("58000", "could not get connection from the pool - AllServersDown"),
            ("XX000", "(EMAXCONN) max client connections reached, limit: 5"),
            ("XX000", "Max client connections reached"),
        ];
        for (sqlstate, message) in temporary {
            assert!(is_transient_error(sqlstate, message), "{sqlstate} {message}");
        }
        let login = "server login has been failing, cached error: password authentication failed for user \"u\"";
        let permanent = [
            ("28P01", "password authentication failed for user \"u\""),
            ("3D000", "database \"d\" does not exist"),
            ("42501", "permission denied"),
            ("08P01", "server login failed: FATAL database \"d\" does not exist"),
            ("08P01", login),
            ("08P01", "no such database: d"),
            ("08P01", "SASL authentication failed"),
            ("08P01", "unsupported startup parameter: x"),
            ("XX000", "cache lookup failed for function 1"),
            ("58000", "No pool configured for database: d, user: u"),
            ("57014", "canceling statement due to user request"),
        ];
        for (sqlstate, message) in permanent {
            assert!(!is_transient_error(sqlstate, message), "{sqlstate} {message}");
        }
    }

    /// Update the version after checking that `tokio-postgres` still has the texts that `ClientErrorKind` compares.
    #[test]
    fn errors_of_the_client_library_are_told_apart_by_their_text() {
        let lock_file = include_str!("../../Cargo.lock");
        assert!(
            lock_file.contains("name = \"tokio-postgres\"\nversion = \"0.7.18\""),
            "tokio-postgres was updated: check the texts in connect_raw.rs, then name its version here"
        );
        let cleartext = b"R\0\0\0\x08\0\0\0\x03";
        let sspi = b"R\0\0\0\x08\0\0\0\x09";
        let kind = |request, config: &mut Config| ClientErrorKind::from_error(&error_after(request, config));
        assert_eq!(kind(cleartext, &mut Config::new()), ClientErrorKind::PasswordMissing);
        assert_eq!(kind(sspi, &mut Config::new()), ClientErrorKind::Authentication);
        let mut bound = Config::new();
        bound.channel_binding(ChannelBinding::Require).password("p");
        assert_eq!(kind(cleartext, &mut bound), ClientErrorKind::Authentication);
        // The server closes the connection before the authentication is complete.
        assert_eq!(kind(cleartext, Config::new().password("p")), ClientErrorKind::Other);
    }
}
