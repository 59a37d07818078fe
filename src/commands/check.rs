//! `pglock check`: is this connection fit for locks? One finding a line, with the remedy where there is one.
//!
//! What `run` would refuse is a refusal here too, decided by the same code; and the last finding is a real lock, on
//! a key that nobody else uses, taken as `run` takes it, found in `pg_locks`, and given back. Nothing is left
//! behind: behind a pooler every setting is made for a transaction alone.

use crate::cli::CheckOptions;
use crate::connection::{Connection, Settings};
use crate::key::KeyId;
use crate::lock::{self, Acquisition, ClientInfo, Keys, Lock, Mode, Scope, ScopeChoice, Server, TryOutcome};
use crate::outcome::{ExitCode, Failure, Outcome};
use crate::protocol::name;
use crate::run::session::timing::Timing;
use crate::ui::stdout;
use postgres::{Client, SimpleQueryMessage, SimpleQueryRow};
use serde_json::json;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher;
use std::time::{Duration, Instant};

/// What was found out. It prints as lines for people.
pub struct CheckReport {
    findings: Vec<Finding>,
    scope: Option<Scope>,
}

/// How good or bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    /// As it should be.
    Ok,
    /// `run` works, but somebody should know.
    Warning,
    /// `run` would refuse.
    Refusal,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Refusal => "refusal",
        }
    }
}

struct Finding {
    level: Level,
    subject: &'static str,
    fact: String,
    remedy: Option<String>,
}

impl Failure {
    /// The words of a failure that says that there is no real lock to be had; any other one is what it was.
    fn refusal(self) -> Result<String, Failure> {
        match self.code {
            ExitCode::Config => Ok(self.to_string()),
            _ => Err(self),
        }
    }
}

/// Checks the connection, and prints the findings.
///
/// # Errors
/// It cannot connect, or the connection or standard output fails.
pub fn run(options: &CheckOptions) -> Result<Outcome, Failure> {
    let settings = Settings::from_options(&options.connection)?;
    let report = report(&settings, options.scope, options.timing)?;
    if options.json {
        stdout::print(&report.json())?;
    } else {
        stdout::print(&report.to_string())?;
    }
    if report.is_fit() {
        Ok(Outcome::Success)
    } else {
        Ok(Outcome::Failed(ExitCode::Config))
    }
}

/// Connects and looks.
///
/// # Errors
/// It cannot connect, or the connection was lost on the way.
fn report(settings: &Settings, choice: ScopeChoice, timing: Timing) -> Result<CheckReport, Failure> {
    // The key is random, and the application's name is as unique as it.
    let random = RandomState::new().hash_one(());
    let id = KeyId::Bigint(random as i64);
    let application_name = name::for_check(settings.application_name(), Some(random));
    let Connection { mut client, .. } = settings.open(&application_name, None)?;
    // The session's own timeouts are to be seen first.
    let caller = ClientInfo {
        application_name,
        choice,
        server_limit: None,
    };
    let lock = Lock {
        keys: Keys::All(vec![id]),
        mode: Mode::Exclusive,
        scope: Scope::Session,
    };
    let (server, attempt) = match lock.first_try(&mut client, &caller, None) {
        Ok(answer) => answer,
        Err(failure) => return failure.refusal().map(CheckReport::of_no_postgresql),
    };
    let scope = server.usable_scope(choice).ok();
    let mut inspection = Inspection {
        settings,
        client,
        server,
        choice,
        timing,
        findings: Vec::new(),
    };
    inspection.look(scope, id, attempt)?;
    Ok(CheckReport {
        findings: inspection.findings,
        scope,
    })
}

impl CheckReport {
    fn of_no_postgresql(why: String) -> CheckReport {
        let refusal = Finding {
            level: Level::Refusal,
            subject: "server",
            fact: why,
            remedy: None,
        };
        CheckReport {
            findings: vec![refusal],
            scope: None,
        }
    }

    /// Whether `run` would go on.
    pub fn is_fit(&self) -> bool {
        let is_refusal = |finding: &Finding| finding.level == Level::Refusal;
        !self.findings.iter().any(is_refusal)
    }

    /// One object: `fit`, `scope` (null where there is none), and `findings`, each with `level`, `subject`, `fact`
    /// and `remedy` (null where there is none). Part of the stable interface, but for the words of the last two.
    pub fn json(&self) -> String {
        let findings: Vec<_> = self
            .findings
            .iter()
            .map(|finding| {
                json!({
                    "level": finding.level.name(),
                    "subject": finding.subject,
                    "fact": finding.fact,
                    "remedy": finding.remedy,
                })
            })
            .collect();
        let report = json!({
            "fit": self.is_fit(),
            "scope": self.scope.map(Scope::name),
            "findings": findings,
        });
        format!("{report:#}\n")
    }
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            let (level, subject) = (finding.level.name(), finding.subject);
            write!(f, "{level:<8} {subject}: {}", finding.fact)?;
            match &finding.remedy {
                Some(remedy) => writeln!(f, "; {remedy}")?,
                None => writeln!(f)?,
            }
        }
        Ok(())
    }
}

/// An open connection, and what was found out about it so far.
struct Inspection<'a> {
    settings: &'a Settings,
    client: Client,
    server: Server,
    choice: ScopeChoice,
    timing: Timing,
    findings: Vec<Finding>,
}

impl Inspection<'_> {
    /// All findings, in the order in which they are told. Without a scope there is no lock to be had.
    fn look(&mut self, scope: Option<Scope>, id: KeyId, attempt: TryOutcome) -> Result<(), Failure> {
        self.server_itself();
        let (database, name) = ("database", self.server.database.clone());
        self.ok(
            database,
            format!("{name}; locks are per database, so all who share one use this one"),
        );
        // A stub of a server need not know anything of what follows.
        if self.server.stub().is_some() {
            return Ok(());
        }
        self.role()?;
        self.connection();
        self.recovery();
        self.encryption()?;
        let timeouts = self.timeouts()?;
        let held = match scope.map(|scope| self.take(id, scope, attempt)) {
            Some(Ok(held)) => Some(held),
            // The pooler has ended the connection with it.
            Some(Err(failure)) => return failure.refusal().map(|why| self.refuse("lock", why)),
            None => None,
        };
        self.neutralised(&timeouts, held.is_some())?;
        if held.is_some() {
            self.vanished_host()?;
        }
        self.queue(scope)?;
        self.round_trip()?;
        match held {
            Some((lock, attempt)) => self.lock(&lock, attempt),
            None => Ok(()),
        }
    }

    fn refuse(&mut self, subject: &'static str, fact: String) {
        self.find(Level::Refusal, subject, fact, None);
    }

    fn ok(&mut self, subject: &'static str, fact: impl Into<String>) {
        self.find(Level::Ok, subject, fact.into(), None);
    }

    fn find(&mut self, level: Level, subject: &'static str, fact: String, remedy: Option<String>) {
        self.findings.push(Finding {
            level,
            subject,
            fact,
            remedy,
        });
    }

    /// The rows of a question.
    fn ask(&mut self, sql: &str) -> Result<Vec<SimpleQueryRow>, Failure> {
        let messages = lock::ask(&mut self.client, sql)?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        Ok(rows.collect())
    }

    /// The one row of a question.
    fn ask_one(&mut self, sql: &str) -> Result<SimpleQueryRow, Failure> {
        self.ask(sql)?.pop().ok_or_else(|| {
            Failure::say(
                ExitCode::Config,
                "the server gives no answer to a question that PostgreSQL answers",
            )
        })
    }

    fn server_itself(&mut self) {
        let version = self.server.version.clone();
        // As in "PostgreSQL 15.20 (Debian 15.20-0+deb12u1) on x86_64-pc-linux-gnu, compiled by gcc".
        let short = version.split(" on ").next().unwrap_or(&version).to_owned();
        let is_known = version.starts_with("PostgreSQL ") && !version.contains("-YB-");
        match (self.server.stub(), is_known) {
            (Some(product), _) => self.find(
                Level::Refusal,
                "server",
                format!("{product}, whose advisory locks protect nothing"),
                Some("use a PostgreSQL server".into()),
            ),
            (None, true) => self.ok("server", short),
            (None, false) => self.find(
                Level::Warning,
                "server",
                format!("{short} is not the PostgreSQL that pglock is tested with"),
                Some("the lock below says whether its locks are real".into()),
            ),
        }
    }

    fn role(&mut self) -> Result<(), Failure> {
        let row = self.ask_one(
            "SELECT current_user AS role, \
             pg_catalog.pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS sees_all",
        )?;
        let role = text(&row, "role");
        match is_true(&row, "sees_all") {
            true => self.ok("role", format!("{role}, which sees everything of who holds a lock")),
            false => self.find(
                Level::Ok,
                "role",
                format!("{role}, which sees who holds a lock, but not since when and from which address"),
                Some(format!("GRANT pg_read_all_stats TO {role} shows that too")),
            ),
        }
        Ok(())
    }

    fn connection(&mut self) {
        let way = match self.server.pooled {
            true => "through a pooler",
            false => "direct",
        };
        match self.server.scope(self.choice) {
            Err(why) => self.refuse("connection", why.to_string()),
            Ok(scope) => {
                let fact = format!("{way}; a lock lives as long as its {}", scope.name());
                match (self.choice, self.server.pooled) {
                    (ScopeChoice::SessionPooled, true) => self.find(
                        Level::Warning,
                        "connection",
                        fact,
                        Some("right only if the pooler pools whole sessions, and resets them".into()),
                    ),
                    _ => self.ok("connection", fact),
                }
            }
        }
    }

    fn recovery(&mut self) {
        match self.server.standby {
            true => self.find(
                Level::Refusal,
                "recovery",
                "a hot standby, whose locks the primary does not see".into(),
                Some("give the address of the primary, or all hosts with target_session_attrs=primary".into()),
            ),
            false => self.ok("recovery", "a primary"),
        }
    }

    fn encryption(&mut self) -> Result<(), Failure> {
        let row = self.ask_one(
            "SELECT ssl, version, cipher, pg_catalog.inet_client_addr() IS NULL AS local \
             FROM pg_catalog.pg_stat_ssl WHERE pid = pg_catalog.pg_backend_pid()",
        )?;
        let leg = match self.server.pooled {
            true => " between the pooler and the server",
            false => "",
        };
        let fact = match (is_true(&row, "ssl"), is_true(&row, "local")) {
            (true, _) => format!("{}, {}{leg}", text(&row, "version"), text(&row, "cipher")),
            (false, true) => format!("a Unix socket, which needs none{leg}"),
            (false, false) => {
                let remedy = match self.server.pooled {
                    true => "see server_tls_sslmode of the pooler",
                    false => "sslmode=require encrypts, sslmode=verify-full also knows the server",
                };
                self.find(Level::Warning, "TLS", format!("none{leg}"), Some(remedy.into()));
                return Ok(());
            }
        };
        self.ok("TLS", fact);
        Ok(())
    }

    /// The timeouts that are set to something, as their names, and in words.
    fn timeouts(&mut self) -> Result<Vec<(String, String)>, Failure> {
        let names = lock::TIMEOUTS.map(|name| format!("'{name}'")).join(", ");
        let rows = self.ask(&format!(
            "SELECT name, pg_catalog.current_setting(name) AS value, source \
             FROM pg_catalog.pg_settings WHERE name IN ({names}) AND setting <> '0' ORDER BY name"
        ))?;
        let found = rows.iter().map(|row| {
            let name = text(row, "name");
            let fact = format!("{name} is {} ({})", text(row, "value"), text(row, "source"));
            (name, fact)
        });
        Ok(found.collect())
    }

    /// Makes the session, or the transaction, what it would be for `run`, and has the lock tried.
    fn take(&mut self, id: KeyId, scope: Scope, first: TryOutcome) -> Result<(Lock, TryOutcome), Failure> {
        let limit = self.timing.server_limit();
        let mode = Mode::Exclusive;
        let keys = Keys::All(vec![id]);
        let lock = Lock { keys, mode, scope };
        let attempt = match scope {
            Scope::Session => {
                lock::set_up(&mut self.client, limit)?;
                first
            }
            Scope::Transaction => {
                let name = name::for_check(self.settings.application_name(), None);
                let again = || {
                    std::thread::sleep(lock::BEFORE_AGAIN);
                    Some(self.settings.open(&name, None).ok()?.client)
                };
                lock.first_try_in_transaction(&mut self.client, limit, Duration::ZERO, again)?
            }
        };
        Ok((lock, attempt))
    }

    /// What became of the timeouts by that.
    fn neutralised(&mut self, timeouts: &[(String, String)], is_set_up: bool) -> Result<(), Failure> {
        if timeouts.is_empty() {
            self.ok("timeouts", "none is set that could end a session or cancel a wait");
        }
        for (name, fact) in timeouts {
            if !is_set_up {
                self.ok("timeouts", fact.as_str());
                continue;
            }
            let sql = format!("SELECT pg_catalog.current_setting('{name}') AS value");
            let value = text(&self.ask_one(&sql)?, "value");
            match value.as_str() {
                "0" => self.ok("timeouts", format!("{fact}; pglock sets it to 0")),
                _ => self.find(
                    Level::Warning,
                    "timeouts",
                    format!("{fact}, and stays {value}"),
                    Some("set it to 0 for this role".into()),
                ),
            }
        }
        Ok(())
    }

    /// When the lock is free that a host had which is not there any more.
    fn vanished_host(&mut self) -> Result<(), Failure> {
        let row = self.ask_one(
            "SELECT pg_catalog.inet_client_addr() IS NULL AS local, \
             pg_catalog.current_setting('tcp_keepalives_idle')::int \
             + pg_catalog.current_setting('tcp_keepalives_interval')::int \
             * pg_catalog.current_setting('tcp_keepalives_count')::int AS keepalive, \
             pg_catalog.current_setting('tcp_user_timeout', true) IS NOT NULL AS user_timeout",
        )?;
        let (limit, job) = (self.timing.server_limit(), self.timing.job_limit());
        let keepalive = text(&row, "keepalive").parse().unwrap_or_default();
        let is_taken = (job..=limit * 2).contains(&Duration::from_secs(keepalive));
        let (limit, job) = (limit.as_secs_f64(), job.as_secs_f64());
        let (fact, remedy) = if self.server.pooled {
            (
                "the pooler decides when it gives the lock of a vanished client away".to_owned(),
                format!(
                    "let its tcp_keepidle + tcp_keepcnt * tcp_keepintvl and its tcp_user_timeout be \
                     more than {job} s, the time that a job may take to be stopped"
                ),
            )
        } else if is_true(&row, "local") {
            self.ok(VANISHED, "a Unix socket: server and client vanish together");
            return Ok(());
        } else if !is_taken {
            (
                format!("the server does not take keepalive limits, and has {keepalive} s"),
                "look at the TCP settings of its system".into(),
            )
        } else if !is_true(&row, "user_timeout") {
            (
                format!("its lock is free after {limit} s, or much later if an answer was under way to it"),
                "PostgreSQL 12 and later know tcp_user_timeout, which bounds that too".into(),
            )
        } else {
            let margin = limit - job;
            self.ok(
                VANISHED,
                format!("its lock is free after {limit} s, when its job has been dead for {margin} s"),
            );
            return Ok(());
        };
        self.find(Level::Warning, VANISHED, fact, Some(remedy));
        Ok(())
    }

    /// How a wait would be. A DO that does nothing takes as much as one that waits.
    fn queue(&mut self, scope: Option<Scope>) -> Result<(), Failure> {
        if scope == Some(Scope::Transaction) {
            self.ok(
                "waiting",
                "by trying again, at most --poll apart; no session of the pool is held meanwhile",
            );
            return Ok(());
        }
        match lock::ask(&mut self.client, "DO $$ BEGIN END $$") {
            Ok(_) => self.ok("waiting", "in the server's queue"),
            Err(error) if error.as_db_error().is_none() => return Err(Failure::from(error)),
            Err(error) => self.find(
                Level::Warning,
                "waiting",
                format!(
                    "by trying again, at most --poll apart, since there is no plpgsql: {}",
                    Failure::from(error)
                ),
                Some("GRANT USAGE ON LANGUAGE plpgsql lets pglock wait in the server's queue".into()),
            ),
        }
        Ok(())
    }

    fn round_trip(&mut self) -> Result<(), Failure> {
        let mut times = Vec::new();
        for _ in 0..ROUND_TRIPS {
            let began = Instant::now();
            lock::heartbeat(&mut self.client, Duration::ZERO)?;
            times.push(began.elapsed());
        }
        times.sort();
        let (median, longest) = (times[ROUND_TRIPS / 2], times[ROUND_TRIPS - 1]);
        let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
        let fact = format!(
            "{:.2} ms (median of {ROUND_TRIPS}; longest {:.2} ms)",
            milliseconds(median),
            milliseconds(longest)
        );
        match longest * 4 > self.timing.heartbeat {
            true => self.find(
                Level::Warning,
                "round trip",
                fact,
                Some(format!(
                    "with --heartbeat {} a lock could be taken for lost; let it be longer",
                    humantime::format_duration(self.timing.heartbeat)
                )),
            ),
            false => self.ok("round trip", fact),
        }
        Ok(())
    }

    /// Whether the lock that was taken is a real one, and gives it back.
    fn lock(&mut self, lock: &Lock, attempt: TryOutcome) -> Result<(), Failure> {
        let refusal = match attempt.into_acquisition() {
            Ok(Acquisition::Acquired(grant)) => {
                let released = lock.release(&mut self.client)?;
                let still = lock.is_held(&mut self.client)?;
                match released && !still {
                    true => {
                        let fact = format!(
                            "taken, found in pg_locks (backend {}), and given back",
                            grant.backend_pid
                        );
                        self.ok("lock", fact);
                        return Ok(());
                    }
                    false => "taken, but not given back".into(),
                }
            }
            Ok(Acquisition::Busy { .. }) => "a key that nobody else knows is held by someone else".into(),
            Err(failure) => failure.to_string(),
        };
        self.refuse("lock", refusal);
        Ok(())
    }
}

/// The subject of a host that is not there any more.
const VANISHED: &str = "vanished host";
/// How many round trips are timed.
const ROUND_TRIPS: usize = 15;

fn text(row: &SimpleQueryRow, column: &str) -> String {
    lock::cell(row, column).unwrap_or_default().to_owned()
}

fn is_true(row: &SimpleQueryRow, column: &str) -> bool {
    text(row, column) == "t"
}
