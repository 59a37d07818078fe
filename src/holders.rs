//! Who holds a lock: looking at `pg_locks`, and saying it in words.
//!
//! An ordinary role sees every lock, and everybody's user and application name, but not the client address or
//! the start of a session of another role. That is why a pglock puts its host and process id into
//! `application_name`.

use crate::key::{Key, KeyId};
use crate::lock::{AT_ONCE, IN_THIS_DATABASE, ask};
use postgres::{Client, SimpleQueryMessage};
use std::fmt;

/// A session that holds a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    application_name: String,
    user: String,
    backend_pid: String,
    /// When the session began; `None` where our role may not see it.
    since: Option<String>,
}

/// The sessions that hold one of these keys, in any mode.
pub fn of(client: &mut Client, ids: &[KeyId]) -> Result<Vec<Holder>, postgres::Error> {
    let keys = ids.iter().map(|id| {
        let (classid, objid, objsubid) = id.in_pg_locks();
        format!("({classid}, {objid}, {objsubid})")
    });
    let sql = format!(
        "{AT_ONCE}SELECT l.pid, a.usename, a.application_name, \
         pg_catalog.to_char(a.backend_start, 'YYYY-MM-DD HH24:MI:SSOF') AS since \
         FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a USING (pid) \
         WHERE l.locktype = 'advisory' AND l.granted AND l.{IN_THIS_DATABASE} \
         AND (l.classid::bigint, l.objid::bigint, l.objsubid) IN ({}) \
         ORDER BY a.backend_start, l.pid",
        keys.collect::<Vec<_>>().join(", ")
    );
    let messages = ask(client, &sql)?;
    let holders = messages.into_iter().filter_map(|message| {
        let SimpleQueryMessage::Row(row) = message else {
            return None;
        };
        let text = |column| row.get(column).unwrap_or_default().to_owned();
        Some(Holder {
            application_name: text("application_name"),
            user: text("usename"),
            backend_pid: text("pid"),
            since: row.get("since").map(str::to_owned),
        })
    });
    Ok(holders.collect())
}

/// The sentence that a conflict is told with, up to what became of it. Without holders: they could not be asked for.
pub fn sentence(
    key: &Key,
    id: KeyId,
    slots: Option<u16>,
    database: &str,
    holders: Option<&[Holder]>,
) -> String {
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

/// Another pglock is told by its host and process id, anybody else by application name and user.
impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pglock = self
            .application_name
            .strip_prefix("pglock:")
            .and_then(|rest| rest.rsplit_once(' '));
        match (pglock, self.application_name.as_str()) {
            (Some((_, host_and_pid)), _) => write!(f, "{host_and_pid}")?,
            (None, "") => write!(f, "user {:?}", self.user)?,
            (None, name) => write!(f, "{name:?} of user {:?}", self.user)?,
        }
        write!(f, " (backend {}", self.backend_pid)?;
        if let Some(since) = &self.since {
            write!(f, ", since {since}")?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(application_name: &str, since: Option<&str>) -> Holder {
        Holder {
            application_name: application_name.into(),
            user: "app".into(),
            backend_pid: "4242".into(),
            since: since.map(str::to_owned),
        }
    }

    #[test]
    fn a_pglock_is_told_by_host_and_pid() {
        let web1 = holder(
            "pglock:night backup web1:77",
            Some("2026-01-02 03:04:05+00"),
        );
        assert_eq!(
            web1.to_string(),
            "web1:77 (backend 4242, since 2026-01-02 03:04:05+00)"
        );
        assert_eq!(
            holder("psql", None).to_string(),
            "\"psql\" of user \"app\" (backend 4242)"
        );
        assert_eq!(holder("", None).to_string(), "user \"app\" (backend 4242)");
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
                Some(&[holder("pglock:backup web1:77", None), holder("psql", None)])
            ),
            "key \"backup\" (6111399565520850680) in database \"app\" is held by web1:77 (backend 4242) and 1 more"
        );
        let number = Key::parse("42").expect("a number");
        assert_eq!(
            sentence(&number, KeyId::Bigint(42), None, "app", Some(&[])),
            "key 42 in database \"app\" was held until a moment ago"
        );
        let of_slots = |count| {
            let holders = [holder("psql", None), holder("pglock:42 web1:77", None)];
            sentence(
                &number,
                KeyId::Bigint(42),
                Some(count),
                "app",
                Some(&holders),
            )
        };
        assert!(of_slots(2).starts_with("all 2 slots of key 42 in database \"app\" are held by "));
        assert!(of_slots(3).starts_with("2 of 3 slots of key 42 in database \"app\" are held by "));
    }
}
