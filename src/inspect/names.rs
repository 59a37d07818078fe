//! Which names the keys in `pg_locks` stand for.
//!
//! PostgreSQL knows only numbers. The `application_name` of a pglock contains the names that it was given. Each is
//! hashed by every scheme; if a number in `pg_locks` matches, the key's slots and tickets are recognized too.

use crate::connection::Client;
use crate::key::{Key, KeyId};
use crate::lock;
use crate::protocol::derived_keys::{slot_keys, ticket_class};
use std::collections::{BTreeMap, HashMap, HashSet};

/// The meaning of a number in `pg_locks`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Meaning {
    /// The key, if its name is known.
    pub key: Option<Key>,
    /// The number of the key itself, which is also that of slot 0.
    pub base: KeyId,
    /// The slot, unless it is slot 0.
    pub slot: Option<usize>,
}

/// The numbers and ticket classes whose keys are known.
#[derive(Clone, Debug, Default)]
pub(super) struct KeyNames {
    meanings: HashMap<KeyId, Meaning>,
    ticket_classes: HashMap<i32, KeyId>,
    /// Every name of a number: pglocks may have been given different ones, or the number itself.
    given: HashMap<KeyId, HashSet<String>>,
}

impl KeyNames {
    /// Learns the number of a key that has up to `slots` slots. The first name that is learned for a number stays.
    pub(super) fn learn(&mut self, key: &Key, id: KeyId, slots: u16) {
        let meaning = |slot| Meaning {
            key: Some(key.clone()),
            base: id,
            slot,
        };
        self.meanings.entry(id).or_insert_with(|| meaning(None));
        self.given.entry(id).or_default().insert(key.given().to_owned());
        for (slot, slot_id) in slot_keys(id, slots).into_iter().enumerate().skip(1) {
            self.meanings.entry(slot_id).or_insert_with(|| meaning(Some(slot)));
        }
        self.learn_tickets(id);
    }

    /// Learns to recognize the tickets for this key.
    pub(super) fn learn_tickets(&mut self, id: KeyId) {
        self.ticket_classes.entry(ticket_class(id)).or_insert(id);
    }

    /// Learns each reading of these names that `is_wanted` accepts, with this many slots. `given` is the part of an
    /// `application_name` that has the keys, with commas between them. Returns whether any reading was accepted.
    pub(super) fn learn_readings(
        &mut self,
        given: &str,
        slots: u16,
        database: &str,
        is_wanted: impl Fn(KeyId) -> bool,
    ) -> bool {
        // A pglock with slots has a single key. Relying on that also limits the cost of a name that another client made
        // up: each text costs a hash for each slot.
        let texts = match slots {
            0 | 1 => comma_separated_runs(given),
            _ => vec![given.to_owned()],
        };
        let mut is_any_accepted = false;
        for key in texts.iter().flat_map(|text| Key::readings(text)) {
            let Some(id) = key.id_in(database) else {
                continue;
            };
            if slot_keys(id, slots.max(1)).into_iter().any(&is_wanted) {
                self.learn(&key, id, slots);
                is_any_accepted = true;
            }
        }
        is_any_accepted
    }

    /// Learns each reading of these names, joined by commas, with this many slots, whose number only the server can
    /// compute and `is_wanted` accepts. A lock whose number it cannot compute is shown without its name.
    pub(super) fn learn_computed(
        &mut self,
        client: &mut Client,
        (given, slots): (&str, u16),
        database: &str,
        is_wanted: impl Fn(KeyId) -> bool,
    ) {
        let texts = comma_separated_runs(given);
        let readings = texts.iter().flat_map(|text| Key::readings(text));
        // One query for each scheme: a server may lack the function of one.
        let mut by_scheme: BTreeMap<Option<&str>, Vec<Key>> = BTreeMap::new();
        for key in readings.filter(|key| key.id_in(database).is_none()) {
            by_scheme.entry(key.scheme_name()).or_default().push(key);
        }
        for keys in by_scheme.values() {
            let ids = lock::key_ids(client, keys).unwrap_or_default();
            for (key, id) in keys.iter().zip(ids) {
                if slot_keys(id, slots).into_iter().any(&is_wanted) {
                    self.learn(key, id, slots);
                }
            }
        }
    }

    /// Returns what a number stands for: itself, if nothing is known about it.
    pub(super) fn meaning(&self, id: KeyId) -> Meaning {
        self.meanings.get(&id).cloned().unwrap_or(Meaning {
            key: None,
            base: id,
            slot: None,
        })
    }

    /// Returns every name that was learned for the number of a key.
    pub(super) fn given(&self, id: KeyId) -> Vec<&str> {
        self.given.get(&id).into_iter().flatten().map(String::as_str).collect()
    }

    /// Returns the only key whose name starts with this text, and its number: the names of sessions have no room for
    /// long ones. `None` if there are several, since any of them may be meant.
    pub(super) fn only_key_starting_with(&self, front: &str) -> Option<(&Key, KeyId)> {
        let keys = self.meanings.values().filter_map(|meaning| {
            let key = meaning.key.as_ref().filter(|key| key.given().starts_with(front))?;
            Some((key, meaning.base))
        });
        let keys: HashMap<KeyId, &Key> = keys.map(|(key, base)| (base, key)).collect();
        let mut keys = keys.into_iter();
        let (Some((base, key)), None) = (keys.next(), keys.next()) else {
            return None;
        };
        (!front.is_empty()).then_some((key, base))
    }

    /// Returns the key that this lock is a ticket for, if it is one.
    pub(super) fn key_of_ticket(&self, id: KeyId) -> Option<KeyId> {
        self.ticket_classes.get(&id.class()?).copied()
    }
}

/// Returns every run of consecutive parts between commas: a name may contain commas itself.
pub(super) fn comma_separated_runs(given: &str) -> Vec<String> {
    let parts: Vec<&str> = given.split(',').collect();
    let runs = (0..parts.len()).flat_map(|from| (from + 1..=parts.len()).map(move |to| (from, to)));
    runs.map(|(from, to)| parts[from..to].join(",")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::derived_keys::MAX_SLOTS;
    use proptest::prelude::*;
    use std::cell::Cell;

    const BACKUP: KeyId = KeyId::Bigint(6111399565520850680);

    #[test]
    fn a_name_is_found_among_several_whatever_its_scheme() {
        let mut names = KeyNames::default();
        let md5 = KeyId::Bigint(4620783329284506538);
        let wanted = [BACKUP, md5, KeyId::IntPair(1, 2)];
        let is_wanted = |id| wanted.contains(&id);
        assert!(names.learn_readings("x,backup,1,2", 1, "app", is_wanted));
        for id in wanted {
            let meaning = names.meaning(id);
            assert_eq!((meaning.base, meaning.slot), (id, None));
            let given = if id == wanted[2] { "1,2" } else { "backup" };
            assert_eq!(meaning.key.expect("a name").given(), given);
        }
        assert_eq!(names.meaning(KeyId::Bigint(7)).key, None);
        assert!(!names.learn_readings("y", 1, "app", is_wanted));
    }

    #[test]
    fn slots_tickets_and_tools_are_known_with_their_key() {
        let mut names = KeyNames::default();
        names.learn(&Key::parse("backup").expect("a name"), BACKUP, 3);
        let slot = names.meaning(KeyId::Bigint(-3856147333105664657));
        assert_eq!((slot.base, slot.slot), (BACKUP, Some(2)));
        let ticket = KeyId::IntPair(ticket_class(BACKUP), 77);
        assert_eq!(names.key_of_ticket(ticket), Some(BACKUP));
        assert_eq!(names.key_of_ticket(KeyId::IntPair(1, 77)), None);
        let rails = KeyId::Bigint(6939591962871035475);
        assert!(names.learn_readings("rails-migrate", 1, "app", |id| id == rails));
    }

    #[test]
    fn a_cut_name_is_completed_only_if_a_single_key_starts_so() {
        let mut names = KeyNames::default();
        let learn = |names: &mut KeyNames, given, id| {
            names.learn(&Key::parse(given).expect("a name"), KeyId::Bigint(id), 3);
        };
        learn(&mut names, "nightly-billing", 1);
        let found = names.only_key_starting_with("nightly-b");
        assert_eq!(
            found.map(|(key, id)| (key.given(), id)),
            Some(("nightly-billing", KeyId::Bigint(1)))
        );
        assert_eq!(names.only_key_starting_with("x"), None);
        assert_eq!(names.only_key_starting_with(""), None);
        learn(&mut names, "nightly-backup", 2);
        assert_eq!(names.only_key_starting_with("nightly-b"), None);
    }

    proptest! {
        /// A client that calls itself like a pglock with many keys and slots costs little.
        #[test]
        fn no_name_costs_many_hashes(keys in "[a-c,]{0,55}|\\PC{0,20}", slots in 1..=MAX_SLOTS) {
            let hashes = Cell::new(0);
            let mut names = KeyNames::default();
            names.learn_readings(&keys, slots, "app", |_| {
                hashes.set(hashes.get() + 1);
                false
            });
            prop_assert!(hashes.get() < 50_000, "{keys:?} {slots}: {}", hashes.get());
        }

        #[test]
        fn each_of_several_keys_is_found(keys in prop::collection::vec("[a-z]{1,6}", 1..5), n: prop::sample::Index) {
            let given = &keys[n.index(keys.len())];
            let wanted = Key::parse(given).expect("a name").number().known().expect("no server");
            let mut names = KeyNames::default();
            prop_assert!(names.learn_readings(&keys.join(","), 1, "app", |id| id == wanted));
            let meaning = names.meaning(wanted);
            prop_assert_eq!(meaning.key.as_ref().map(Key::given), Some(given.as_str()));
        }
    }
}
