//! The keys of slots: how N holders share one key.
//!
//! Slot 0 is the key itself, so that a plain holder counts as one of N. The others are derived from it, and are
//! part of the stable interface: everybody who asks for the same key, with whatever N, finds the same slots.

use crate::key::KeyId;
use sha2::{Digest, Sha256};

/// The most slots that one key can have: they are all named in one message.
pub const MAX_SLOTS: u16 = 1000;

/// The keys of the first `count` slots.
pub fn keys(key: KeyId, count: u16) -> Vec<KeyId> {
    (0..count).map(|slot| self::key(key, slot)).collect()
}

/// The key of a slot: the first eight bytes of the SHA-256 of `pglock slot SLOT of KEY`, as names are read.
fn key(key: KeyId, slot: u16) -> KeyId {
    if slot == 0 {
        return key;
    }
    let digest = Sha256::digest(format!("pglock slot {slot} of {key}"));
    KeyId::Bigint(digest[..8].iter().fold(0, |id, byte| (id << 8) | i64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The golden vectors: never change one.
    #[test]
    fn slots_have_the_published_keys() {
        let backup = KeyId::Bigint(6111399565520850680);
        let expected = [6111399565520850680, -8147139194186139728, -3856147333105664657].map(KeyId::Bigint);
        assert_eq!(keys(backup, 3), expected);
        assert_eq!(keys(backup, 3)[..2], keys(backup, 2));
        assert_eq!(
            keys(KeyId::IntPair(1, 2), 2),
            [KeyId::IntPair(1, 2), KeyId::Bigint(-5146764502088205602)]
        );
    }
}
