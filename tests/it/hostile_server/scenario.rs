//! What pglock is used for in a case, and what the test does meanwhile.

use super::random::Random;
use super::relay::Stage;
use crate::support::tls::PASSWORD;
use std::path::Path;

/// A use of pglock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    Trust,
    Scram,
    Md5,
    Clear,
    /// Another client holds the lock throughout.
    Refused,
    WaitTimesOut,
    /// Another client holds the lock until pglock waits for it.
    Waits,
    WaitsForTurn,
    WaitsForSlot,
    /// The session of the wait is closed, and pglock reconnects.
    Reconnects,
    ReconnectsForTurn,
    Transaction,
    Slots,
    SeveralKeys,
    Computed,
    Token,
    TokenInTransaction,
    Noted,
    /// An operator ends the wait by TERM.
    Interrupted,
    /// The job ignores TERM.
    Stubborn,
    IgnoresLoss,
    HoldsLonger,
    /// The session of the holder is closed, so another one guards its job, which ignores TERM.
    Guards,
    /// Another pglock evicts the holder, by a request.
    Evicted,
    Record,
    RecordInTransaction,
    RecordSeveralKeys,
    OncePer,
    /// The key has succeeded within the interval.
    NotDue,
    NotDueInTransaction,
    Tls,
    PreferTls,
    /// `DATABASE_URL` as applications write it, with the password in it.
    ApplicationUrl,
    ApplicationPairs,
    List,
    Check,
    Evict,
    /// The holder is a pglock, which gives the lock up.
    EvictByRequest,
    History,
    HistoryJson,
    HistoryMetrics,
    OkWithin,
    Prune,
    Init,
    InitAgain,
}

/// The limits that pglock is given: for connecting to one address, for a heartbeat, from TERM to KILL.
const LIMITS: [&str; 6] = ["--connect-timeout", "1", "--heartbeat", "0.2", "--kill-after", "0.3"];
/// The note of the holder and of [`Scenario::Noted`].
pub const NOTE: &str = "until 14:00, 100% gr\u{fc}n";
/// The exit status of a job that is not terminated.
pub const JOB_STATUS: i32 = 5;

impl Scenario {
    pub const ALL: [Scenario; 45] = {
        use Scenario::*;
        [
            Trust,
            Scram,
            Md5,
            Clear,
            Refused,
            WaitTimesOut,
            Waits,
            WaitsForTurn,
            WaitsForSlot,
            Reconnects,
            ReconnectsForTurn,
            Transaction,
            Slots,
            SeveralKeys,
            Computed,
            Token,
            TokenInTransaction,
            Noted,
            Interrupted,
            Stubborn,
            IgnoresLoss,
            HoldsLonger,
            Guards,
            Evicted,
            Record,
            RecordInTransaction,
            RecordSeveralKeys,
            OncePer,
            NotDue,
            NotDueInTransaction,
            Tls,
            PreferTls,
            ApplicationUrl,
            ApplicationPairs,
            List,
            Check,
            Evict,
            EvictByRequest,
            History,
            HistoryJson,
            HistoryMetrics,
            OkWithin,
            Prune,
            Init,
            InitAgain,
        ]
    };

    /// Returns the stages that it is likely to reach.
    pub fn stages(self) -> &'static [Stage] {
        use Scenario::*;
        match self {
            Tls | PreferTls | ApplicationPairs => &[Stage::Tls, Stage::Encrypted, Stage::Encrypted, Stage::Encrypted],
            Scram | Md5 | Clear | ApplicationUrl => &[Stage::Login, Stage::Login, Stage::Startup],
            Refused | List | Check | Evict | EvictByRequest | History | HistoryJson | HistoryMetrics | OkWithin
            | Prune | Init | InitAgain => &[Stage::Asking],
            WaitTimesOut | Waits | WaitsForTurn | WaitsForSlot | SeveralKeys | Interrupted => {
                &[Stage::Asking, Stage::Waiting, Stage::Waiting, Stage::Holding]
            }
            Reconnects | ReconnectsForTurn => &[
                Stage::Login,
                Stage::Startup,
                Stage::Asking,
                Stage::Asking,
                Stage::Waiting,
                Stage::Holding,
            ],
            Stubborn | IgnoresLoss => &[Stage::Holding],
            HoldsLonger | Noted | Evicted => &[Stage::Holding, Stage::Release],
            Guards => &[
                Stage::Login,
                Stage::Startup,
                Stage::Asking,
                Stage::Asking,
                Stage::Holding,
            ],
            Trust => &[
                Stage::Login,
                Stage::Startup,
                Stage::Asking,
                Stage::Holding,
                Stage::Release,
            ],
            Transaction | Slots | Computed | Token | TokenInTransaction => {
                &[Stage::Asking, Stage::Asking, Stage::Holding, Stage::Release]
            }
            Record | RecordSeveralKeys | OncePer | NotDue => &[Stage::Holding, Stage::Holding, Stage::Release],
            RecordInTransaction | NotDueInTransaction => &[Stage::Asking, Stage::Asking, Stage::Holding],
        }
    }

    /// Returns the session to tamper with. Some need a second one: for the token, for the records, after a loss, or to
    /// find out who evicted them.
    pub fn session(self, random: &mut Random) -> usize {
        use Scenario::*;
        match self {
            TokenInTransaction | RecordInTransaction | NotDueInTransaction => random.below(2),
            Reconnects | ReconnectsForTurn | Guards => 1 + random.below(2),
            Evicted => usize::from(random.below(4) == 0),
            _ => usize::from(random.below(16) == 0),
        }
    }

    /// Returns the stage in which the first session is closed, if that is part of the use.
    pub fn closed_stage(self) -> Option<Stage> {
        match self {
            Scenario::Reconnects | Scenario::ReconnectsForTurn => Some(Stage::Waiting),
            Scenario::Guards => Some(Stage::Holding),
            _ => None,
        }
    }

    pub fn is_tls(self) -> bool {
        use Scenario::*;
        matches!(self, Tls | PreferTls | ApplicationPairs)
    }

    /// Returns whether it runs no job.
    pub fn is_observer(self) -> bool {
        use Scenario::*;
        let all = [
            List,
            Check,
            Evict,
            EvictByRequest,
            History,
            HistoryJson,
            HistoryMetrics,
            OkWithin,
            Prune,
            Init,
            InitAgain,
        ];
        all.contains(&self)
    }

    /// Returns whether pglock reads lists, which may be long.
    pub fn reads_lists(self) -> bool {
        use Scenario::*;
        [
            List,
            Evict,
            EvictByRequest,
            History,
            HistoryJson,
            HistoryMetrics,
            OkWithin,
            Prune,
        ]
        .contains(&self)
    }

    /// Returns whether another client holds the lock at first.
    pub fn is_contended(self) -> bool {
        use Scenario::*;
        let all = [
            Refused,
            WaitTimesOut,
            SeveralKeys,
            Interrupted,
            List,
            Evict,
            EvictByRequest,
        ];
        all.contains(&self) || self.releases_when_waited_for()
    }

    /// Returns whether that client releases it once pglock waits.
    pub fn releases_when_waited_for(self) -> bool {
        use Scenario::*;
        let all = [
            Waits,
            WaitsForTurn,
            WaitsForSlot,
            SeveralKeys,
            Reconnects,
            ReconnectsForTurn,
        ];
        all.contains(&self)
    }

    /// Returns whether the job starts only after its run has been recorded.
    pub fn is_recorded(self) -> bool {
        use Scenario::*;
        let all = [Record, RecordInTransaction, RecordSeveralKeys];
        all.contains(&self) || self.is_once_per()
    }

    fn is_once_per(self) -> bool {
        matches!(self, Scenario::OncePer) || self.has_succeeded()
    }

    /// Returns whether the key has just succeeded.
    pub fn has_succeeded(self) -> bool {
        matches!(self, Scenario::NotDue | Scenario::NotDueInTransaction)
    }

    /// Returns the number of its keys.
    pub fn key_count(self) -> usize {
        match self {
            Scenario::SeveralKeys | Scenario::RecordSeveralKeys => 2,
            _ => 1,
        }
    }

    /// Returns the variables that say where the server is.
    pub fn variables(self, port: u16) -> Vec<(&'static str, String)> {
        use Scenario::*;
        let (user, mode) = match self {
            Scram => ("scram", "disable"),
            Md5 => ("md5", "disable"),
            Clear => ("clear", "disable"),
            Tls => ("scram", "require"),
            PreferTls => ("scram", "prefer"),
            ApplicationUrl => {
                let password = PASSWORD.replace('%', "%25").replace('\\', "%5C").replace('@', "%40");
                let password = password.replace(':', "%3A").replace(' ', "%20").replace('\'', "%27");
                let url =
                    format!("postgresql+asyncpg://scram:{password}@127.0.0.1:{port}/postgres?ssl=disable&pool_size=5");
                return vec![("DATABASE_URL", url)];
            }
            ApplicationPairs => {
                let pairs = format!(
                    "Host=127.0.0.1;Port={port};Database=postgres;Username=scram;Password=\"{PASSWORD}\";\
                     SSL Mode=Require;Trust Server Certificate=true;Maximum Pool Size=5"
                );
                return vec![("DATABASE_URL", pairs)];
            }
            _ => ("postgres", "disable"),
        };
        let dsn = format!("host=127.0.0.1 port={port} user={user} dbname=postgres sslmode={mode}");
        vec![("PGLOCK_DSN", dsn), ("PGPASSWORD", PASSWORD.to_owned())]
    }

    /// Returns the subcommand and its arguments. The job writes its processes to the file; it lasts some heartbeats if
    /// the tampering happens then.
    pub fn arguments(self, key: &str, table: &str, file: &Path, lasts: bool) -> Vec<String> {
        use Scenario::*;
        let second = format!("{key} b");
        let observer: Option<&[&str]> = match self {
            List => Some(&["list"]),
            Check => Some(&["check"]),
            Evict | EvictByRequest => Some(&["evict", "--yes", "--key", key]),
            History => Some(&["history"]),
            HistoryJson => Some(&["history", "--json", "--failed"]),
            HistoryMetrics => Some(&["history", "--metrics"]),
            OkWithin => Some(&["history", "--ok-within", "1h", "--key", key]),
            Prune => Some(&["history", "--prune"]),
            Init => Some(&["init", "--table", table, "--grant", "scram"]),
            InitAgain => Some(&["init", "--keep", "30d", "--grant", "md5"]),
            _ => None,
        };
        if let Some(arguments) = observer {
            let all = arguments.iter().chain(&["--connect-timeout", "1"]);
            return all.map(|argument| (*argument).to_owned()).collect();
        }
        let options: &[&str] = match self {
            Refused => &["--no-wait"],
            WaitTimesOut => &["--wait", "0.4"],
            Waits | Interrupted => &["--wait", "1"],
            WaitsForTurn => &["--wait", "1", "--fair"],
            // The key is slot 0, the only one.
            WaitsForSlot => &["--wait", "1", "--slots", "1"],
            Reconnects => &["--wait", "2"],
            ReconnectsForTurn => &["--wait", "2", "--fair"],
            Transaction => &["--scope", "transaction"],
            Slots => &["--slots", "3"],
            SeveralKeys => &["--wait", "1", "--key", &second],
            Noted => &["--note", NOTE],
            IgnoresLoss => &["--on-lost", "ignore"],
            HoldsLonger => &["--min-hold", "0.3"],
            Computed => &["--hash", "hashtext"],
            Token => &["--token"],
            TokenInTransaction => &["--token", "--scope", "transaction"],
            Record => &["--record", "--note", NOTE],
            RecordInTransaction => &["--record", "--scope", "transaction"],
            RecordSeveralKeys => &["--record", "--key", &second],
            OncePer | NotDue => &["--once-per", "1h"],
            NotDueInTransaction => &["--once-per", "1h", "--scope", "transaction"],
            _ => &[],
        };
        let trap = match self {
            Stubborn | Guards => "trap '' TERM; ",
            _ => "",
        };
        let script = format!("{trap}sleep \"$2\" & echo $$ $! >\"$1\"; wait; exit {JOB_STATUS}");
        let time = if lasts { "0.7" } else { "0" };
        let job = ["--", "sh", "-c", &script, "job", file.to_str().unwrap(), time];
        let run = ["run", "--key", key];
        let all = run.iter().chain(&LIMITS).chain(options).chain(&job);
        all.map(|argument| (*argument).to_owned()).collect()
    }
}
