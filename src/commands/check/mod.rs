//! `pglock check`: is this connection suitable for locks? One line per finding, with the remedy if there is one.
//!
//! What `run` would refuse is a refusal here too, decided by the same code. The last finding is a real lock on a random
//! key: acquired as `run` acquires it, found in `pg_locks`, and released. Nothing is left behind: behind a pooler,
//! every setting is made for a single transaction.

mod account;
mod hosts;
mod query;
mod report;
mod server;
mod timeouts;

use crate::cli::CheckOptions;
use crate::connection::{Client, Connection, LimitEnforcement, Settings};
use crate::inspect::proxy;
use crate::key::KeyId;
use crate::lock::{
    self, Acquisition, Backoff, ClientInfo, Keys, Lock, Mode, Receipt, Scope, ScopeChoice, Server, Settling,
    TransactionOptions, TryOutcome,
};
use crate::outcome::{ExitCode, Failure, Outcome};
use crate::protocol::name;
use crate::run::session::timing::Timing;
use crate::ui::stdout;
use report::{CheckReport, Finding};
use server::SeenLending;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// Checks the connection and prints the findings.
///
/// # Errors
/// The settings are wrong, the connection fails, or standard output cannot be written.
pub(crate) fn run(options: &CheckOptions) -> Result<Outcome, Failure> {
    let settings = Settings::from_options(&options.connection)?.with_reply_limit(options.timing.reply_limit());
    let report = check(&settings, options.scope, options.timing)?;
    let text = if options.json {
        report
            .to_json()
            .map_err(|error| Failure::new(ExitCode::Internal, error))?
    } else {
        report.to_string()
    };
    stdout::print(&text)?;
    if report.is_fit() {
        Ok(Outcome::Success)
    } else {
        Ok(Outcome::Failed(ExitCode::Config))
    }
}

/// Connects, and examines the connection.
///
/// # Errors
/// The connection cannot be opened, or is lost.
fn check(settings: &Settings, choice: ScopeChoice, timing: Timing) -> Result<CheckReport, Failure> {
    // No other client uses a random key, and the number makes the name of the session unique as well.
    let random = fastrand::u64(..);
    let id = KeyId::Bigint(random as i64);
    let application_name = name::for_check(settings.application_name(), Some(random));
    let Connection {
        mut client,
        socket,
        authentication_method,
        ..
    } = settings.open(&application_name, None, LimitEnforcement::Attempt)?;
    let client_info = ClientInfo {
        application_name,
        choice,
        // The session is left as it is: its own timeouts are examined first.
        server_limit: None,
        settling: Settling::Nothing,
        known_start: None,
    };
    client.asking("for the server version");
    let began = Instant::now();
    let (server, first_try) = match lock_of(id, Scope::Session).first_try(&mut client, &client_info, None) {
        Ok(result) => result,
        Err(failure) => {
            let name = name::for_check(settings.application_name(), None);
            let reconnect = || lock::reconnect_to_probe(settings, &name);
            let failure = lock::explain_first_failure(failure, &client, began.elapsed(), reconnect);
            let message = refusal_message(client.explain(failure))?;
            return Ok(CheckReport::new(vec![Finding::refusal("server", message)], None));
        }
    };
    let scope = server.usable_scope(choice).ok();
    let mut inspection = Inspection {
        settings,
        client,
        server,
        id,
        choice,
        timing,
        socket,
        authentication_method,
        findings: Vec::new(),
    };
    let result = inspection.examine(scope, first_try);
    result.map_err(|failure| inspection.client.explain(failure))?;
    Ok(CheckReport::new(inspection.findings, scope))
}

fn lock_of(id: KeyId, scope: Scope) -> Lock {
    Lock {
        keys: Keys::All(vec![id]),
        mode: Mode::Exclusive,
        scope,
    }
}

/// Returns the message of a failure that `run` would refuse with; other failures end the check.
///
/// # Errors
/// The failure itself, unless it is [`ExitCode::Config`].
fn refusal_message(failure: Failure) -> Result<String, Failure> {
    if failure.code == ExitCode::Config {
        Ok(failure.to_string())
    } else {
        Err(failure)
    }
}

/// An open connection, and what has been found out about it so far.
struct Inspection<'a> {
    settings: &'a Settings,
    client: Client,
    server: Server,
    /// The key of the lock that is tried.
    id: KeyId,
    choice: ScopeChoice,
    timing: Timing,
    socket: Option<OwnedFd>,
    authentication_method: Option<&'static str>,
    findings: Vec<Finding>,
}

impl Inspection<'_> {
    /// Adds all findings, in the order of the report. No lock is acquired without a usable scope.
    ///
    /// # Errors
    /// The connection is lost, or a query fails.
    fn examine(&mut self, scope: Option<Scope>, first_try: TryOutcome) -> Result<(), Failure> {
        self.findings.push(server::product(&self.server, self.choice));
        self.findings.push(server::database(&self.server));
        // A server whose locks are stubs need not support what follows.
        if self.server.stub(self.choice).is_some() {
            return Ok(());
        }
        self.findings.push(server::role(self.client.asking("for the role"))?);
        self.findings.extend(account::login(self.authentication_method));
        let client = self.client.asking("for the password and the connections");
        self.findings.extend(account::expiry(client)?);
        self.findings.push(account::connections(client)?);
        self.findings.push(server::connection(&self.server, self.choice));
        self.findings.extend(self.socket.is_none().then(server::unknown_socket));
        // Behind a pooler, the client that the server sees is the pooler.
        let socket = self.socket.as_ref().filter(|_| !self.server.pooled);
        let forwarded = proxy::find(self.client.asking("for the client address"), socket)?;
        self.findings
            .extend(forwarded.map(|forwarded| server::proxy(forwarded, self.timing)));
        self.findings.extend(self.hosts());
        self.findings.push(server::recovery(&self.server));
        let client = self.client.asking("for the durability");
        self.findings.extend(server::durability(client)?);
        let client = self.client.asking("for the encryption");
        self.findings.push(server::encryption(client, &self.server, forwarded)?);
        let configured = timeouts::fetch_configured(self.client.asking("for the timeouts"))?;
        let tried = match scope.map(|scope| self.try_lock(scope, first_try)) {
            Some(Ok(tried)) => Some(tried),
            // The pooler has also closed the connection, so nothing else can be examined.
            Some(Err(failure)) => {
                let message = refusal_message(failure)?;
                self.findings.push(Finding::refusal("lock", message));
                return Ok(());
            }
            None => None,
        };
        let client = self.client.asking("for the timeouts");
        self.findings
            .extend(timeouts::timeouts(client, &configured, tried.is_some())?);
        if tried.is_some() {
            let watched = if self.server.pooled {
                Some("the pooler")
            } else {
                forwarded.map(|_| "the proxy")
            };
            self.findings
                .push(timeouts::vanished_host(client, self.timing, watched)?);
        }
        let lending = seen_lending(&self.server, tried.as_ref().map(|(_, outcome)| *outcome));
        let client = client.asking("for the way of waiting");
        self.findings.extend(server::pooling(lending));
        self.findings.push(server::waiting(client, scope, lending)?);
        let client = client.asking("for the round-trip time");
        self.findings.push(timeouts::round_trip(client, self.timing)?);
        if tried.is_some() && self.server.pooled {
            self.findings
                .extend(server::leftovers(client.asking("for leftover locks"), self.id)?);
        }
        if let Some((lock, outcome)) = tried {
            let client = client.asking("to release a lock");
            self.findings.push(released_lock(client, &lock, outcome)?);
        }
        Ok(())
    }

    /// Returns what the hosts of the connection string are, if there are several.
    fn hosts(&self) -> Option<Finding> {
        let name = name::for_check(self.settings.application_name(), None);
        hosts::hosts(self.settings, &name)
    }

    /// Configures the session or the transaction as `run` does, and tries the lock in it.
    ///
    /// # Errors
    /// The connection is lost, or the pooler closes it at BEGIN.
    fn try_lock(&mut self, scope: Scope, first_try: TryOutcome) -> Result<(Lock, TryOutcome), Failure> {
        let server_limit = self.timing.server_limit();
        let lock = lock_of(self.id, scope);
        self.client.asking("for the test lock");
        let outcome = match scope {
            Scope::Session => {
                lock::configure_session(&mut self.client, server_limit)?;
                first_try
            }
            Scope::Transaction => {
                let name = name::for_check(self.settings.application_name(), None);
                let reconnect = || lock::reconnect_to_probe(self.settings, &name);
                let options = TransactionOptions {
                    server_limit,
                    // It does not try again.
                    backoff: Backoff::new(Instant::now(), Duration::ZERO),
                    known_start: None,
                    looks_at_pool: false,
                };
                lock.first_try_in_transaction(&mut self.client, options, reconnect)?
                    .outcome
            }
        };
        let is_lent = self.server.pooled || self.choice == ScopeChoice::SessionPooled;
        let outcome = if is_lent {
            outcome
        } else {
            lock.await_proof(&mut self.client, outcome, |pause| {
                std::thread::sleep(pause);
                true
            })?
        };
        Ok((lock, outcome))
    }
}

/// Returns what the first query and the try have shown of a pooler's lending.
fn seen_lending(server: &Server, tried: Option<TryOutcome>) -> SeenLending {
    match tried {
        _ if !server.pooled => SeenLending::Direct,
        Some(TryOutcome::Acquired(grant)) if grant.backend_pid != server.backend_pid => SeenLending::ByTransaction,
        _ => SeenLending::SameBackend,
    }
}

/// Returns whether the lock that was tried is a real one, after releasing it.
///
/// # Errors
/// The connection is lost, or a query fails.
fn released_lock(client: &mut Client, lock: &Lock, outcome: TryOutcome) -> Result<Finding, Failure> {
    const SUBJECT: &str = "lock";
    let grant = match outcome.into_acquisition() {
        Ok(Acquisition::Acquired(grant)) => grant,
        Ok(Acquisition::Busy { .. }) => {
            return Ok(Finding::refusal(SUBJECT, "a random key is held by another client"));
        }
        Err(failure) => return Ok(Finding::refusal(SUBJECT, failure.to_string())),
    };
    let is_released = lock.release(client, Receipt::None)?;
    if !is_released || lock.is_held(client)? {
        return Ok(Finding::refusal(SUBJECT, "acquired, but not released"));
    }
    let fact = format!(
        "acquired, found in pg_locks (backend {}), and released",
        grant.backend_pid
    );
    Ok(Finding::ok(SUBJECT, fact))
}
