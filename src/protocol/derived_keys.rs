//! Keys derived from the key of a lock: its slots, the tickets of its queue, the receipt of its release, and the claim
//! of its loser. Also the marks of an eviction, and the key of `pglock init`.
//!
//! Each is made of the first bytes of the SHA-256 of a text, as the key of a name is. They are part of the stable
//! interface: two versions of pglock that derive different keys do not exclude, queue behind or recognize each other.

use crate::key::KeyId;
use crate::key::hash::sha256_prefix;

/// The most slots that one key can have: a single query names all of them.
pub(crate) const MAX_SLOTS: u16 = 1000;

/// The first integer of every eviction mark: the first four bytes of the SHA-256 of `pglock evict`.
const EVICTION_MARK_CLASS: i32 = -613_922_599;

/// The first integer of every mark of a forced eviction: the first four bytes of the SHA-256 of `pglock evict force`.
const FORCED_EVICTION_MARK_CLASS: i32 = 30_756_868;

/// The first integer of every receipt: the first four bytes of the SHA-256 of `pglock release`.
const RECEIPT_CLASS: i32 = 798_890_223;

/// The first integer of every claim: the first four bytes of the SHA-256 of `pglock guard`.
const CLAIM_CLASS: i32 = 752_345_564;

/// The lock that `pglock init` holds while it creates the run table, in the form of `pg_advisory_lock(int, int)`. The
/// first integer is the first four bytes of the SHA-256 of `pglock init`.
pub(crate) const INIT_LOCK: (i32, i32) = (2_000_353_641, 0);

/// Returns the keys of the first `count` slots of a key. They do not depend on `count`, so clients that disagree on the
/// number of slots still compete for the same ones.
pub(crate) fn slot_keys(key: KeyId, count: u16) -> Vec<KeyId> {
    (0..count).map(|slot| slot_key(key, slot)).collect()
}

/// Returns the key of a slot: the first eight bytes of the SHA-256 of `pglock slot SLOT of KEY`. Slot 0 is the key
/// itself, so that a lock without slots counts as one of them.
fn slot_key(key: KeyId, slot: u16) -> KeyId {
    if slot == 0 {
        return key;
    }
    let text = format!("pglock slot {slot} of {key}");
    KeyId::Bigint(i64::from_be_bytes(sha256_prefix(text.as_bytes())))
}

/// Returns the first integer of the tickets for a key: the first four bytes of the SHA-256 of `pglock line KEY`.
pub(crate) fn ticket_class(key: KeyId) -> i32 {
    i32::from_be_bytes(sha256_prefix(format!("pglock line {key}").as_bytes()))
}

/// Returns the lock that the last holder of a key holds, shared, once it has released that. The second integer is the
/// first four bytes of the SHA-256 of `pglock release of KEY`.
pub(crate) fn receipt_key(key: KeyId) -> KeyId {
    derived_pair(RECEIPT_CLASS, &format!("pglock release of {key}"))
}

/// Returns the lock that the loser of a key holds, shared, until it has the key again. The second integer is the first
/// four bytes of the SHA-256 of `pglock guard of KEY`.
pub(crate) fn claim_key(key: KeyId) -> KeyId {
    derived_pair(CLAIM_CLASS, &format!("pglock guard of {key}"))
}

fn derived_pair(class: i32, text: &str) -> KeyId {
    KeyId::IntPair(class, i32::from_be_bytes(sha256_prefix(text.as_bytes())))
}

/// Returns the lock that `pglock evict` holds, shared, while it requests the session of the backend with this process
/// ID to terminate its job, or terminates the session.
pub(crate) fn eviction_mark(backend_pid: i32) -> KeyId {
    KeyId::IntPair(EVICTION_MARK_CLASS, backend_pid)
}

/// Returns the lock that `pglock evict --force` holds besides: the evicted must not acquire the key again while its job
/// terminates.
pub(crate) fn forced_eviction_mark(backend_pid: i32) -> KeyId {
    KeyId::IntPair(FORCED_EVICTION_MARK_CLASS, backend_pid)
}

/// Returns the notification channel on which the session of this backend hears that it is marked.
pub(crate) fn eviction_channel(backend_pid: i32) -> String {
    format!("pglock_{backend_pid}")
}

/// Returns whether a lock is an eviction mark, a receipt or a claim, which exclude nobody.
pub(crate) fn is_mark(id: KeyId) -> bool {
    let classes = [
        EVICTION_MARK_CLASS,
        FORCED_EVICTION_MARK_CLASS,
        RECEIPT_CLASS,
        CLAIM_CLASS,
    ];
    id.class().is_some_and(|class| classes.contains(&class))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Key;
    use crate::protocol::document;

    const BACKUP: KeyId = KeyId::Bigint(6111399565520850680);

    #[test]
    fn the_documented_examples_are_true() {
        let rows = document::rows("### Examples of derived keys");
        assert_eq!(rows.len(), 13);
        for row in rows {
            let [lock, key, expected] = &row[..] else {
                panic!("{row:?}");
            };
            let key = || Key::parse(key).expect("a key").number().known().expect("a number");
            let second = |id: KeyId| match id {
                KeyId::IntPair(_, second) => second.to_string(),
                KeyId::Bigint(_) => panic!("{row:?}"),
            };
            let number = match lock.as_str() {
                "ticket" => ticket_class(key()).to_string(),
                "eviction mark" => EVICTION_MARK_CLASS.to_string(),
                "receipt" => RECEIPT_CLASS.to_string(),
                "claim" => CLAIM_CLASS.to_string(),
                "receipt, second integer" => second(receipt_key(key())),
                "claim, second integer" => second(claim_key(key())),
                "init" => INIT_LOCK.0.to_string(),
                "forced eviction mark" => FORCED_EVICTION_MARK_CLASS.to_string(),
                slot => {
                    let slot = slot.strip_prefix("slot ").and_then(|slot| slot.parse().ok());
                    slot_key(key(), slot.expect("a slot")).to_string()
                }
            };
            assert_eq!(&number, expected, "{row:?}");
        }
    }

    /// The golden vectors: never change one.
    #[test]
    fn slots_have_the_published_keys() {
        let expected = [6111399565520850680, -8147139194186139728, -3856147333105664657].map(KeyId::Bigint);
        assert_eq!(slot_keys(BACKUP, 3), expected);
        assert_eq!(slot_keys(BACKUP, 3)[..2], slot_keys(BACKUP, 2));
        assert_eq!(
            slot_keys(KeyId::IntPair(1, 2), 2),
            [KeyId::IntPair(1, 2), KeyId::Bigint(-5146764502088205602)]
        );
    }

    /// The golden vectors: never change one, or two versions of pglock would queue separately.
    #[test]
    fn tickets_have_the_published_class() {
        assert_eq!(ticket_class(BACKUP), -1319306384);
        assert_eq!(ticket_class(KeyId::IntPair(1, 2)), -205521824);
        assert_ne!(ticket_class(KeyId::Bigint(12)), ticket_class(KeyId::IntPair(1, 2)));
    }

    /// The golden vectors: never change one, or two versions of pglock would not recognize each other's releases.
    #[test]
    fn receipts_have_the_published_keys() {
        assert_eq!(RECEIPT_CLASS, i32::from_be_bytes(sha256_prefix(b"pglock release")));
        assert_eq!(receipt_key(BACKUP), KeyId::IntPair(798890223, 696380366));
        assert_eq!(receipt_key(KeyId::IntPair(1, 2)), KeyId::IntPair(798890223, 753777378));
        assert!(is_mark(receipt_key(BACKUP)));
    }

    /// The golden vectors: never change one, or a waiter would not see the claim of a loser with another version.
    #[test]
    fn claims_have_the_published_keys() {
        assert_eq!(CLAIM_CLASS, i32::from_be_bytes(sha256_prefix(b"pglock guard")));
        assert_eq!(claim_key(BACKUP), KeyId::IntPair(752345564, -1620536885));
        assert!(is_mark(claim_key(BACKUP)));
    }

    /// The golden vector: never change it.
    #[test]
    fn init_has_the_published_key() {
        assert_eq!(INIT_LOCK, (2000353641, 0));
        assert_eq!(INIT_LOCK.0, i32::from_be_bytes(sha256_prefix(b"pglock init")));
    }

    /// The golden vector: never change it.
    #[test]
    fn an_eviction_mark_has_the_published_class() {
        assert_eq!(eviction_mark(4242), KeyId::IntPair(-613922599, 4242));
        assert_eq!(EVICTION_MARK_CLASS, i32::from_be_bytes(sha256_prefix(b"pglock evict")));
        assert_eq!(forced_eviction_mark(4242), KeyId::IntPair(30756868, 4242));
        let forced_class = i32::from_be_bytes(sha256_prefix(b"pglock evict force"));
        assert_eq!(FORCED_EVICTION_MARK_CLASS, forced_class);
        assert!(is_mark(eviction_mark(-1)) && is_mark(forced_eviction_mark(1)));
        assert!(!is_mark(BACKUP) && !is_mark(KeyId::IntPair(1, -613922599)));
    }
}
