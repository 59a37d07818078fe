//! Who holds a lock: looking at `pg_locks`, and saying it in words.
//!
//! An ordinary role sees every lock, and everybody's user and application name, but not the times, the client address or
//! the last message of another role's session. That is why a pglock puts its host and process id into
//! `application_name`.

use crate::key::{Key, KeyId};
use crate::lock::{AT_ONCE, ask, cell};
use crate::protocol::name::RunName;
use crate::protocol::query_tag::{MAX_QUERY_TAG_LEN, QUERY_TAG_PREFIX, QueryTagInfo};
use postgres::{Client, SimpleQueryMessage, SimpleQueryRow};
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A session of the server, as far as it is shown to us.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Backend {
    /// Its process; `None` where there is none (a prepared transaction).
    pub pid: Option<i32>,
    /// Its user.
    pub user: String,
    /// What it calls itself.
    pub application_name: String,
    /// From where it is connected, where that is shown and there is an address.
    pub client_address: Option<String>,
    /// When it connected, where that is shown.
    pub connected: Option<Moment>,
    /// Since when a pglock holds its lock, where that is shown. The server does not know it of others.
    pub since: Option<Moment>,
    /// Which program its job is, where that is shown.
    pub job: Option<String>,
    /// It is a pglock that asks again and again, rather than waiting in a queue.
    pub asks: bool,
    /// Our role is not shown what it does.
    pub is_hidden: bool,
    /// When this was seen, in seconds since 1970, by the server's clock.
    pub seen: f64,
}

/// A moment of the server's clock, and how long ago it was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moment {
    /// Seconds since 1970.
    pub epoch: f64,
    /// Seconds.
    pub ago: f64,
}

/// The columns that make a [`Backend`], of `pg_stat_activity` or `pg_stat_get_activity` as `a`. The times of a role's own
/// sessions it may see. Of a message that has a note, the note is read, and nothing of any other.
pub fn columns() -> String {
    format!(
        "pg_catalog.pg_get_userbyid(a.usesysid) AS usename, a.application_name, \
         pg_catalog.host(a.client_addr) AS client_address, extract(epoch FROM a.backend_start) AS connected, \
         extract(epoch FROM a.query_start) AS asked, extract(epoch FROM a.state_change) AS answered, \
         CASE WHEN a.query LIKE '{QUERY_TAG_PREFIX}%' THEN pg_catalog.left(a.query, {MAX_QUERY_TAG_LEN}) END AS note, \
         a.query = '<insufficient privilege>' AS hidden, extract(epoch FROM pg_catalog.clock_timestamp()) AS now"
    )
}

impl Backend {
    /// One of which nothing else is known.
    #[cfg(test)]
    pub fn named(application_name: &str) -> Backend {
        Backend {
            pid: Some(4242),
            user: "app".into(),
            application_name: application_name.into(),
            ..Backend::default()
        }
    }

    /// From the row of a query for [`columns`] and `pid`.
    pub fn of_row(row: &SimpleQueryRow) -> Backend {
        let get = |column| cell(row, column);
        let text = |column| get(column).unwrap_or_default().to_owned();
        let number = |column| get(column).and_then(|text| text.parse::<f64>().ok());
        let seen = number("now").unwrap_or_default();
        let moment = |column| number(column).map(|epoch| Moment::at(epoch, seen));
        let told = get("note").and_then(QueryTagInfo::parse);
        // A heartbeat says for how long the lock has been held. Before the first one, the last message of the session is
        // the one that took the lock, or what was asked right after it.
        let since = told.as_ref().and_then(|told| match told.held_seconds {
            Some(seconds) => number("asked").map(|asked| Moment::at(asked - seconds, seen)),
            None => moment("answered"),
        });
        Backend {
            pid: get("pid").and_then(|pid| pid.parse().ok()),
            user: text("usename"),
            application_name: text("application_name"),
            client_address: get("client_address").map(str::to_owned),
            connected: moment("connected"),
            since,
            asks: told.as_ref().is_some_and(|told| told.is_polling),
            job: told.and_then(|told| told.program.map(str::to_owned)),
            is_hidden: get("hidden") == Some("t"),
            seen,
        }
    }

    /// A moment, in seconds since 1970 by the server's clock.
    pub fn moment(&self, epoch: f64) -> Moment {
        Moment::at(epoch, self.seen)
    }

    /// Returns what its name says, if it is that of a `pglock run`.
    pub fn run_name(&self) -> Option<RunName<'_>> {
        RunName::parse(&self.application_name)
    }

    /// Whether it is one, whatever it calls itself.
    pub fn is_pglock(&self) -> bool {
        self.run_name().is_some() || self.job.is_some()
    }

    /// Who it is, in a word or two: host and process id of a pglock, application name and user of anybody else.
    pub fn who(&self) -> String {
        match (self.run_name(), self.application_name.as_str(), self.pid) {
            (Some(pglock), ..) => format!("{}:{}", pglock.host, pglock.pid),
            (None, _, None) => "a prepared transaction".into(),
            (None, "", _) => format!("user {:?}", self.user),
            (None, name, _) => format!("{name:?} of user {:?}", self.user),
        }
    }
}

impl Moment {
    /// The end of the year 9999, beyond which RFC 3339 has no words.
    const LAST: f64 = 253_402_300_799.0;

    /// Only moments that have a name, whatever number a server sends.
    fn at(epoch: f64, now: f64) -> Moment {
        let named = |epoch: f64| match epoch.is_nan() {
            true => 0.0,
            false => epoch.clamp(0.0, Moment::LAST),
        };
        let (epoch, now) = (named(epoch), named(now));
        Moment {
            epoch,
            ago: (now - epoch).max(0.0),
        }
    }

    /// As RFC 3339 writes it, in UTC, to the second.
    pub fn rfc3339(self) -> String {
        let time: SystemTime = UNIX_EPOCH + Duration::from_secs_f64(self.epoch);
        humantime::format_rfc3339_seconds(time).to_string()
    }

    /// How long ago it was, in its two largest units.
    pub fn age(self) -> String {
        age(Duration::from_secs_f64(self.ago))
    }
}

/// A time in its two largest units: `12s`, `3m12s`, `5h2m`, `12d3h`.
pub fn age(time: Duration) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let seconds = time.as_secs();
    let largest = UNITS.iter().position(|(unit, _)| seconds >= *unit);
    let largest = largest.unwrap_or(UNITS.len() - 1);
    let mut rest = seconds;
    let parts = UNITS[largest..].iter().take(2).map(|(unit, letter)| {
        let count = rest / unit;
        rest %= unit;
        (count, letter)
    });
    let parts: Vec<_> = parts.collect();
    let first = format!("{}{}", parts[0].0, parts[0].1);
    match parts.get(1) {
        Some((count, letter)) if *count > 0 => format!("{first}{count}{letter}"),
        _ => first,
    }
}

/// The sessions that hold one of these keys, in any mode.
///
/// `pg_stat_get_activity` of one session is much cheaper than the view of all, which looks up each user and database. Of
/// no session, which a prepared transaction has, it would show all. Where it is looked into anyhow, it tells the database
/// too.
pub fn of(client: &mut Client, ids: &[KeyId]) -> Result<Vec<Backend>, postgres::Error> {
    let keys = ids.iter().map(|id| {
        let (classid, objid, objsubid) = id.in_pg_locks();
        format!("(l.classid = '{classid}' AND l.objid = '{objid}' AND l.objsubid = '{objsubid}')")
    });
    let sql = format!(
        "{AT_ONCE}SELECT l.pid, {} \
         FROM pg_catalog.pg_locks l LEFT JOIN LATERAL pg_catalog.pg_stat_get_activity(l.pid) a ON l.pid IS NOT NULL \
         WHERE l.locktype = 'advisory' AND l.granted AND ({}) AND l.database = (\
         SELECT datid FROM pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid()))",
        columns(),
        keys.collect::<Vec<_>>().join(" OR ")
    );
    let mut holders: Vec<Backend> = rows(ask(client, &sql)?).map(|row| Backend::of_row(&row)).collect();
    // Who came first is named.
    let came = |holder: &Backend| holder.connected.map_or(f64::INFINITY, |at| at.epoch);
    holders.sort_by(|a, b| came(a).total_cmp(&came(b)).then(a.pid.cmp(&b.pid)));
    Ok(holders)
}

/// The rows of an answer.
pub fn rows(messages: Vec<SimpleQueryMessage>) -> impl Iterator<Item = SimpleQueryRow> {
    messages.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    })
}

/// The sentence that a conflict is told with, up to what became of it. Without holders: they could not be asked for.
pub fn sentence(key: &Key, id: KeyId, slots: Option<u16>, database: &str, holders: Option<&[Backend]>) -> String {
    let id = match id.to_string() {
        id if id == key.given() => String::new(),
        id => format!(" ({id})"),
    };
    // A slot can be free, and not be ours: it was given back a moment ago, or somebody stands in line for it.
    let taken = holders.map_or(0, <[_]>::len);
    let (what, is, was) = match slots {
        Some(count) if (1..usize::from(count)).contains(&taken) => {
            let is = if taken == 1 { "is" } else { "are" };
            (format!("{taken} of {count} slots of key {key}{id}"), is, is)
        }
        Some(count) => (format!("all {count} slots of key {key}{id}"), "are", "were"),
        None => (format!("key {key}{id}"), "is", "was"),
    };
    let held = match holders {
        None => format!("{is} held by someone whom the server cannot show"),
        Some([]) => format!("{was} held until a moment ago"),
        Some([one]) => format!("{is} held by {one}"),
        Some([first, others @ ..]) => format!("{is} held by {first} and {} more", others.len()),
    };
    format!("{what} in database {database:?} {held}")
}

/// Who it is, with its process of the server and since when, as far as that is known.
impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.who())?;
        let Some(pid) = self.pid else {
            return f.write_str(" (see pg_prepared_xacts)");
        };
        write!(f, " (backend {pid}")?;
        match (self.since, self.connected) {
            (Some(since), _) => write!(f, ", since {}", since.rfc3339())?,
            (None, Some(connected)) => write!(f, ", connected since {}", connected.rfc3339())?,
            (None, None) => {}
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn backend(name: &str) -> Backend {
        Backend::named(name)
    }

    const NOON: Moment = Moment {
        epoch: 1_767_355_200.7,
        ago: 192.3,
    };

    #[test]
    fn a_pglock_is_told_by_host_and_pid() {
        let web1 = Backend {
            since: Some(NOON),
            connected: Some(NOON),
            ..backend("pglock:night backup web1:77")
        };
        assert_eq!(web1.to_string(), "web1:77 (backend 4242, since 2026-01-02T12:00:00Z)");
        assert_eq!(backend("psql").to_string(), "\"psql\" of user \"app\" (backend 4242)");
        assert_eq!(backend("").to_string(), "user \"app\" (backend 4242)");
        let psql = Backend {
            connected: Some(NOON),
            ..backend("psql")
        };
        assert!(psql.to_string().contains("connected since 2026-01-02T12"));
        let prepared = Backend::default();
        assert!(prepared.to_string().starts_with("a prepared transaction ("));
    }

    #[test]
    fn ages_have_two_units() {
        let age = |seconds| age(Duration::from_secs(seconds));
        assert_eq!(age(0), "0s");
        assert_eq!(age(59), "59s");
        assert_eq!(age(192), "3m12s");
        assert_eq!(age(3600), "1h");
        assert_eq!(age(18_130), "5h2m");
        assert_eq!(age(12 * 86_400 + 3 * 3600 + 59), "12d3h");
    }

    #[test]
    fn the_sentence_names_key_number_and_database() {
        let key = Key::parse("backup").expect("a name");
        assert_eq!(
            sentence(
                &key,
                KeyId::Bigint(6111399565520850680),
                None,
                "app",
                Some(&[backend("pglock:backup web1:77"), backend("psql")])
            ),
            "key \"backup\" (6111399565520850680) in database \"app\" is held by web1:77 (backend 4242) and 1 more"
        );
        let number = Key::parse("42").expect("a number");
        assert_eq!(
            sentence(&number, KeyId::Bigint(42), None, "app", Some(&[])),
            "key 42 in database \"app\" was held until a moment ago"
        );
        let of_slots = |count| {
            let holders = [backend("psql"), backend("pglock:42 web1:77")];
            sentence(&number, KeyId::Bigint(42), Some(count), "app", Some(&holders))
        };
        assert!(of_slots(2).starts_with("all 2 slots of key 42 in database \"app\" are held by "));
        assert!(of_slots(3).starts_with("2 of 3 slots of key 42 in database \"app\" are held by "));
    }

    proptest! {
        /// A server can send any number for a moment.
        #[test]
        fn every_moment_has_words(epoch in any::<f64>(), now in any::<f64>(), bits: u64) {
            for epoch in [epoch, f64::from_bits(bits), f64::INFINITY, f64::NAN, -1e300] {
                let moment = Moment::at(epoch, now);
                prop_assert!(moment.rfc3339().ends_with('Z'));
                prop_assert!(!moment.age().is_empty());
                let _ = Duration::from_secs_f64(moment.ago) + Duration::from_secs(86_400);
            }
        }

        /// Strangers write what they like into their application's name.
        #[test]
        fn whatever_a_session_calls_itself_it_can_be_told(
            name in "(pglock:)?\\PC{0,20}( slots=[0-9]{1,6})?( \\PC{0,9})?(:[0-9]{0,12})?",
            user in "\\PC{0,9}",
            pid in any::<Option<i32>>(),
            connected in any::<Option<f64>>(),
            count in any::<Option<u16>>(),
        ) {
            let backend = Backend {
                pid,
                user,
                connected: connected.map(|epoch| Moment::at(epoch, 0.0)),
                ..backend(&name)
            };
            let key = Key::parse("backup").expect("a name");
            let several = [backend.clone(), backend];
            let said = sentence(&key, KeyId::Bigint(1), count, "app", Some(&several));
            prop_assert!(said.contains("backup"), "{said:?}");
        }
    }
}
