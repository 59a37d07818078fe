//! Which of the sessions that hold a key hold it for no client that we could name.
//!
//! A session of a pool has the name and the last query of the client that used it last. If a lock is left behind in
//! it, it looks as if that client held the lock: often a pglock that has just found it held, or even ourselves.

use crate::inspect::backend::Backend;
use crate::inspect::names::comma_separated_runs;
use crate::key::{Key, KeyId};
use crate::protocol::name::RunName;

/// What is known about the key that a session holds.
#[derive(Clone)]
pub(super) struct HeldKey<'a> {
    /// The number of the key itself, or of the slot that is held.
    pub id: KeyId,
    /// The number of the key itself.
    pub base: KeyId,
    /// The key as it was given to pglocks, as far as that is known.
    pub given: Vec<&'a str>,
    /// Whether the session holds another key as well that [`is_clients_own`].
    pub is_beside_own: bool,
}

/// Returns whether a session that holds this key holds it for another client than the one that it is named after.
///
/// It is, if the session is our own, which the caller has found to hold the key although we do not. It is, if the last
/// query is of a pglock that tries in transactions, and holds nothing after it. And it is, if the session is named
/// after a pglock of other keys, unless a heartbeat shows that this pglock holds a lock in it, perhaps of a key that
/// only the server could compute. If that pglock has a key of its own there, the heartbeat proves that one alone. A
/// name that may not show the keys as they were given says nothing about them.
pub(super) fn is_leftover(holder: &Backend, key: &HeldKey, database: &str) -> bool {
    if holder.is_own || holder.is_rolled_back {
        return true;
    }
    match holder.run_name() {
        Some(run)
            if (key.is_beside_own || !holder.is_heartbeat) && run.shows_keys_as_given(&holder.application_name) =>
        {
            !is_named(run, key, database)
        }
        _ => false,
    }
}

/// Returns whether a session that holds this key is named after it, so that the pglock of that name holds it.
pub(super) fn is_clients_own(holder: &Backend, key: &HeldKey, database: &str) -> bool {
    let is_client_without_lock = holder.is_own || holder.is_rolled_back;
    let is_shown = |run: RunName| run.shows_keys_as_given(&holder.application_name) && is_named(run, key, database);
    !is_client_without_lock && holder.run_name().is_some_and(is_shown)
}

/// Returns whether the key is among those of a pglock, by any hash scheme.
fn is_named(run: RunName, key: &HeldKey, database: &str) -> bool {
    let texts = run.key_lists().flat_map(comma_separated_runs);
    texts.into_iter().any(|text| {
        let ids = Key::readings(&text);
        let mut ids = ids.iter().filter_map(|reading| reading.id_in(database));
        key.given.contains(&text.as_str()) || ids.any(|id| id == key.id || id == key.base)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKUP: HeldKey<'static> = HeldKey {
        id: KeyId::Bigint(6111399565520850680),
        base: KeyId::Bigint(6111399565520850680),
        given: Vec::new(),
        is_beside_own: false,
    };

    fn is_left_in(holder: Backend, key: HeldKey) -> bool {
        is_leftover(&holder, &key, "app")
    }

    #[test]
    fn a_session_named_after_other_keys_holds_a_leftover() {
        let named = |name| is_left_in(Backend::named(name), BACKUP);
        for holder in ["psql", "pglock:backup web1:7", "pglock:a,backup,b web1~k3x9qa:7", ""] {
            assert!(!named(holder), "{holder}");
        }
        assert!(!named("pglock:6111399565520850680 web1:7"));
        assert!(named("pglock:restore web1:7"));
        // The end of the keys may be missing.
        let cut = format!("pglock:{} web1~k3x9qa:77", "x".repeat(41));
        assert_eq!((cut.len(), named(&cut)), (63, false));
        let computed = HeldKey {
            given: vec!["x"],
            ..BACKUP
        };
        assert!(!is_left_in(Backend::named("pglock:x web1:7"), computed));
        // What a name cannot show is a question mark in it; a key may contain what is otherwise the number of slots.
        for holder in ["pglock:schl?ssel web1:7", "pglock:it?s,b slots=3 web1:7"] {
            assert!(!named(holder), "{holder}");
        }
        let slots = Key::parse("a slots=3").expect("a name").id_in("app").expect("a number");
        let with_slots = HeldKey {
            id: slots,
            base: slots,
            ..BACKUP
        };
        assert!(!is_left_in(Backend::named("pglock:a slots=3 web1:7"), with_slots));
        let beating = Backend {
            is_heartbeat: true,
            ..Backend::named("pglock:restore web1:7")
        };
        assert!(!is_left_in(beating.clone(), BACKUP));
        // It has a key of its own there.
        let beside_own = HeldKey {
            is_beside_own: true,
            ..BACKUP
        };
        assert!(is_left_in(beating, beside_own.clone()));
        assert!(!is_left_in(Backend::named("pglock:backup,restore web1:7"), beside_own));
    }

    #[test]
    fn a_session_that_tries_or_is_our_own_holds_a_leftover() {
        let backup = Backend::named("pglock:backup web1:7");
        let rolled_back = Backend {
            is_rolled_back: true,
            ..backup.clone()
        };
        let own = Backend {
            is_own: true,
            ..backup.clone()
        };
        let is_own = |holder| is_clients_own(holder, &BACKUP, "app");
        assert!(!is_own(&rolled_back) && !is_own(&own) && is_own(&backup) && !is_own(&Backend::named("psql")));
        assert!(is_left_in(rolled_back, BACKUP) && is_left_in(own, BACKUP) && !is_left_in(backup, BACKUP));
    }
}
