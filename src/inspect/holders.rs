//! Who holds certain keys, and the message that reports it.

use crate::connection::Client;
use crate::inspect::backend::{Backend, columns, rows};
use crate::inspect::leftover::{self, HeldKey};
use crate::key::{Key, KeyId};
use crate::lock::{cell, simple_query_tagged};
use crate::protocol::name;
use crate::protocol::query_tag::QueryTag;
use postgres::SimpleQueryRow;
use std::collections::BTreeMap;

/// Returns the sessions that hold one of these keys, in any mode, in the order in which they connected.
///
/// Looking up one session with `pg_stat_get_activity` is much cheaper than the view of all sessions, which looks up the
/// user and the database of each. A prepared transaction has no session, and a null argument would return all of them.
/// The database comes from the same function, called for our own session. The tag tells observers whether we wait.
///
/// # Errors
/// The connection is lost, or the query fails.
pub(crate) fn find(client: &mut Client, ids: &[KeyId], tag: QueryTag) -> Result<Vec<Backend>, postgres::Error> {
    let holders = find_with_keys(client, ids, tag)?;
    Ok(holders.into_iter().map(|(_, holder)| holder).collect())
}

/// Returns the same, each with the key that it holds, which a server other than PostgreSQL may not say.
///
/// # Errors
/// As for [`find`].
pub(crate) fn find_with_keys(
    client: &mut Client,
    ids: &[KeyId],
    tag: QueryTag,
) -> Result<Vec<(Option<KeyId>, Backend)>, postgres::Error> {
    let sql = format!(
        "SELECT l.pid, l.mode, l.classid, l.objid, l.objsubid, {} \
         FROM pg_catalog.pg_locks l LEFT JOIN LATERAL pg_catalog.pg_stat_get_activity(l.pid) a ON l.pid IS NOT NULL \
         WHERE l.locktype = 'advisory' AND l.granted AND {} AND l.database = (\
         SELECT datid FROM pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid()))",
        columns(),
        is_lock_on(ids)
    );
    let ids: BTreeMap<(u32, u32, u8), KeyId> = ids.iter().map(|id| (id.in_pg_locks(), *id)).collect();
    let key_of = |row: &SimpleQueryRow| {
        let [classid, objid, objsubid] = ["classid", "objid", "objsubid"].map(|column| cell(row, column));
        let in_pg_locks = (classid?.parse().ok()?, objid?.parse().ok()?, objsubid?.parse().ok()?);
        ids.get(&in_pg_locks).copied()
    };
    let mut holders: Vec<(Option<KeyId>, Backend)> = rows(simple_query_tagged(client, &sql, tag)?)
        .map(|row| (key_of(&row), Backend::from_row(&row)))
        .collect();
    // The first one is named in messages.
    let connected = |holder: &Backend| holder.connected.map_or(f64::INFINITY, |time| time.epoch);
    holders.sort_by(|(_, a), (_, b)| connected(a).total_cmp(&connected(b)).then(a.pid.cmp(&b.pid)));
    Ok(holders)
}

/// Returns the condition that a row `l` of `pg_locks` is one of these keys.
pub(crate) fn is_lock_on(ids: &[KeyId]) -> String {
    let conditions = ids.iter().map(|id| {
        let (classid, objid, objsubid) = id.in_pg_locks();
        format!("(l.classid = '{classid}' AND l.objid = '{objid}' AND l.objsubid = '{objsubid}')")
    });
    format!("({})", conditions.collect::<Vec<_>>().join(" OR "))
}

/// Marks the sessions that hold this key for no client that could be named. Our own is one of them: we do not hold it.
pub(crate) fn mark_leftovers(holders: Vec<Backend>, key: &Key, id: KeyId, database: &str) -> Vec<Backend> {
    let held = HeldKey {
        id,
        base: id,
        given: vec![key.given()],
        is_beside_own: false,
    };
    let marked = holders.into_iter().map(|holder| {
        if leftover::is_leftover(&holder, &held, database) {
            holder.without_client()
        } else {
            holder
        }
    });
    marked.collect()
}

/// Returns what a session is that holds a key for no client that could be named, and what to do about it.
fn describe_leftover(holder: &Backend, key: &Key) -> String {
    let end = match holder.pid {
        Some(pid) => format!(" or pg_terminate_backend({pid})"),
        None => String::new(),
    };
    format!(
        "{holder}: left behind, or held by another client of the same pool; pglock evict {}{end} ends it",
        key.options()
    )
}

/// Returns whether this is a session that this pglock has lost. It may have been in the server's queue, and was granted
/// the lock before the server noticed that its client was gone.
fn is_earlier_connection(holder: &Backend) -> bool {
    !holder.is_own && name::is_of_instance(&holder.application_name, &name::instance_id())
}

/// Returns the message that a key is held and by whom, to which the caller appends what pglock does about it. `holders`
/// is `None` if the query for them failed.
pub(crate) fn conflict_message(
    key: &Key,
    id: KeyId,
    slots: Option<u16>,
    database: &str,
    holders: Option<&[Backend]>,
) -> String {
    let number = match id.to_string() {
        number if number == key.given() => String::new(),
        number => format!(" ({number})"),
    };
    // A free slot may not be ours: it was released just now, or other clients are queued for it.
    let taken = holders.map_or(0, <[_]>::len);
    let (subject, is, was) = match slots {
        Some(count) if (1..usize::from(count)).contains(&taken) => {
            let is = if taken == 1 { "is" } else { "are" };
            (format!("{taken} of {count} slots of key {key}{number}"), is, is)
        }
        Some(1) => (format!("the only slot of key {key}{number}"), "is", "was"),
        Some(count) => (format!("all {count} slots of key {key}{number}"), "are", "were"),
        None => (format!("key {key}{number}"), "is", "was"),
    };
    let held = match holders {
        None => format!("{is} held; the holder could not be determined"),
        Some([]) => format!("{was} held until just now"),
        Some([holder]) if is_earlier_connection(holder) => format!(
            "{is} held by an earlier connection of this pglock ({}), which the server has not ended yet",
            holder.pid.map_or_else(String::new, |pid| format!("backend {pid}"))
        ),
        Some([holder]) if holder.is_leftover => format!("{is} held by {}", describe_leftover(holder, key)),
        Some([holder]) => format!("{is} held by {holder}"),
        Some([first, more @ ..]) => format!("{is} held by {first} and {} more", more.len()),
    };
    format!("{subject} in database {database:?} {held}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::derived_keys::MAX_SLOTS;
    use proptest::prelude::*;

    #[test]
    fn a_conflict_names_key_number_database_and_holder() {
        let key = Key::parse("backup").expect("a name");
        let id = KeyId::Bigint(6111399565520850680);
        let holders = [Backend::named("pglock:backup web1:77"), Backend::named("psql")];
        assert_eq!(
            conflict_message(&key, id, None, "app", Some(&holders)),
            "key \"backup\" (6111399565520850680) in database \"app\" is held by web1:77 (backend 4242) and 1 more"
        );
        let number = Key::parse("42").expect("a number");
        let message = |slots, holders| conflict_message(&number, KeyId::Bigint(42), slots, "app", holders);
        assert_eq!(
            message(None, Some(&[])),
            "key 42 in database \"app\" was held until just now"
        );
        assert_eq!(
            message(None, None),
            "key 42 in database \"app\" is held; the holder could not be determined"
        );
        let of_slots = |count| message(Some(count), Some(&holders));
        assert!(of_slots(1).starts_with("the only slot of key 42 in database \"app\" is held by "));
        assert!(of_slots(2).starts_with("all 2 slots of key 42 in database \"app\" are held by "));
        assert!(of_slots(3).starts_with("2 of 3 slots of key 42 in database \"app\" are held by "));
    }

    #[test]
    fn fuzz_holder() {
        let examples = [
            "pglock:backup web1~k3x9qa:77",
            "pglock:a slots=3 [::1]:1",
            "psql\n\x1b[2J",
        ];
        crate::fuzz::fuzz(&examples, |input| {
            let key = Key::parse("backup").expect("a name");
            let holders = [Backend::named(&String::from_utf8_lossy(input))];
            for slots in [None, Some(1), Some(MAX_SLOTS)] {
                let message = conflict_message(&key, KeyId::Bigint(1), slots, "app", Some(&holders));
                assert!(
                    message.contains("backup") && message.contains("backend 4242"),
                    "{message:?}"
                );
            }
        });
    }

    #[test]
    fn a_lost_connection_of_this_pglock_is_not_taken_for_another_client() {
        let key = Key::parse("42").expect("a number");
        let own = Backend::named(&name::for_run(None, std::slice::from_ref(&key), None));
        let message = |holder| conflict_message(&key, KeyId::Bigint(42), None, "app", Some(&[holder]));
        assert_eq!(
            message(own.clone()),
            "key 42 in database \"app\" is held by an earlier connection of this pglock (backend 4242), which the server \
             has not ended yet"
        );
        let current = Backend { is_own: true, ..own };
        assert!(!message(current).contains("earlier"));
    }

    proptest! {
        /// Any client can call itself anything.
        #[test]
        fn a_conflict_is_reported_for_any_holder(
            name in "(pglock:)?\\PC{0,20}( \\PC{0,9}:[0-9]{0,12})?",
            slots: Option<u16>,
        ) {
            let key = Key::parse("backup").expect("a name");
            let holders = [Backend::named(&name), Backend::named(&name)];
            let message = conflict_message(&key, KeyId::Bigint(1), slots, "app", Some(&holders));
            prop_assert!(message.contains("backup"), "{message:?}");
        }
    }
}
