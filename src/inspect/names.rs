//! Which names the numbers in `pg_locks` stand for.
//!
//! PostgreSQL knows locks by number. A pglock tells in its `application_name` which keys it was given, and what a text
//! can stand for is few: each way of hashing it is tried, and the slots and the line of what fits are known with it.

use crate::key::{Key, KeyId};
use crate::protocol::derived_keys::{self, slot_keys};
use std::collections::HashMap;

/// What a number stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meaning {
    /// The key, if its name is known.
    pub key: Option<Key>,
    /// The number of the key itself, which is that of slot 0.
    pub base: KeyId,
    /// The slot, where it is another one than 0.
    pub slot: Option<usize>,
}

/// The numbers that are known, and the lines of tickets.
#[derive(Clone, Debug, Default)]
pub struct Names {
    meanings: HashMap<KeyId, Meaning>,
    lines: HashMap<i32, KeyId>,
}

impl Names {
    /// Learns that this is the number of the key, which has this many slots at the most. The first name stays.
    pub fn learn(&mut self, key: &Key, id: KeyId, slots: u16) {
        let meaning = |slot| Meaning {
            key: Some(key.clone()),
            base: id,
            slot,
        };
        self.meanings.entry(id).or_insert_with(|| meaning(None));
        for (slot, id) in slot_keys(id, slots).into_iter().enumerate().skip(1) {
            let meaning = || meaning(Some(slot));
            self.meanings.entry(id).or_insert_with(meaning);
        }
        self.learn_line(id);
    }

    /// Learns which line is that of this number.
    pub fn learn_line(&mut self, id: KeyId) {
        self.lines.entry(derived_keys::ticket_class(id)).or_insert(id);
    }

    /// Learns whichever of these texts' readings `is_wanted`, each with so many slots; the texts are all that a list of
    /// keys with commas between them can be made of. Whether there was one. Whoever has slots has one key.
    pub fn learn_readings(
        &mut self,
        keys: &str,
        slots: u16,
        database: &str,
        is_wanted: impl Fn(KeyId) -> bool,
    ) -> bool {
        let mut found = false;
        // Strangers can call themselves so as well, and each text costs a hash for each slot.
        let texts = match slots {
            0 | 1 => pieces(keys),
            _ => vec![keys.to_owned()],
        };
        for key in texts.iter().flat_map(|piece| Key::readings(piece)) {
            let Some(id) = key.id_in(database) else {
                continue;
            };
            if slot_keys(id, slots.max(1)).into_iter().any(&is_wanted) {
                self.learn(&key, id, slots);
                found = true;
            }
        }
        found
    }

    /// What the number stands for.
    pub fn meaning(&self, id: KeyId) -> Meaning {
        self.meanings.get(&id).cloned().unwrap_or(Meaning {
            key: None,
            base: id,
            slot: None,
        })
    }

    /// The key for which this is a ticket, if it is one.
    pub fn of_ticket(&self, id: KeyId) -> Option<KeyId> {
        match id {
            KeyId::IntPair(class, _) => self.lines.get(&class).copied(),
            KeyId::Bigint(_) => None,
        }
    }
}

/// Every run of the parts between commas: names can have commas too.
fn pieces(keys: &str) -> Vec<String> {
    let parts: Vec<&str> = keys.split(',').collect();
    let runs = (0..parts.len()).flat_map(|from| (from + 1..=parts.len()).map(move |to| (from, to)));
    runs.map(|(from, to)| parts[from..to].join(",")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cell::Cell;

    const BACKUP: KeyId = KeyId::Bigint(6111399565520850680);

    #[test]
    fn a_name_is_found_among_several_whatever_its_scheme() {
        let mut names = Names::default();
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
        let mut names = Names::default();
        names.learn(&Key::parse("backup").expect("a name"), BACKUP, 3);
        let slot = names.meaning(KeyId::Bigint(-3856147333105664657));
        assert_eq!((slot.base, slot.slot), (BACKUP, Some(2)));
        let ticket = KeyId::IntPair(derived_keys::ticket_class(BACKUP), 77);
        assert_eq!(names.of_ticket(ticket), Some(BACKUP));
        assert_eq!(names.of_ticket(KeyId::IntPair(1, 77)), None);
        let rails = KeyId::Bigint(6939591962871035475);
        assert!(names.learn_readings("rails-migrate", 1, "app", |id| id == rails));
    }

    proptest! {
        /// A stranger that calls itself like a pglock of many keys and slots costs little.
        #[test]
        fn no_name_costs_many_hashes(keys in "[a-c,]{0,55}|\\PC{0,20}", slots in 1..=derived_keys::MAX_SLOTS) {
            let hashes = Cell::new(0);
            let mut names = Names::default();
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
            let mut names = Names::default();
            prop_assert!(names.learn_readings(&keys.join(","), 1, "app", |id| id == wanted));
            let meaning = names.meaning(wanted);
            prop_assert_eq!(meaning.key.as_ref().map(Key::given), Some(given.as_str()));
        }
    }
}
