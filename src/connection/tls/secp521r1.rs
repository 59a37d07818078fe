//! Key exchange on P-521, which ring lacks.

use p521::elliptic_curve::Generate;
use p521::{PublicKey, ecdh::EphemeralSecret};
use rustls::crypto::{ActiveKeyExchange, GetRandomFailed, SharedSecret, SupportedKxGroup};
use rustls::ffdhe_groups::FfdheGroup;
use rustls::{Error, NamedGroup, PeerMisbehaved};

/// The group `secp521r1`.
pub(super) const SECP521R1: &dyn SupportedKxGroup = &Secp521r1;

#[derive(Debug)]
struct Secp521r1;

impl SupportedKxGroup for Secp521r1 {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        let secret = EphemeralSecret::try_generate().map_err(|_| GetRandomFailed)?;
        let public_key = secret.public_key().to_sec1_bytes();
        Ok(Box::new(KeyExchange { secret, public_key }))
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::secp521r1
    }
}

struct KeyExchange {
    secret: EphemeralSecret,
    /// In uncompressed form.
    public_key: Box<[u8]>,
}

/// The first byte of a point in uncompressed form, the only one that TLS allows (RFC 8446, section 4.2.8.2).
const UNCOMPRESSED: u8 = 4;

impl ActiveKeyExchange for KeyExchange {
    fn complete(self: Box<Self>, peer: &[u8]) -> Result<SharedSecret, Error> {
        // Fails for a point that is not on the curve, or at infinity.
        let peer = match peer.first() {
            Some(&UNCOMPRESSED) => PublicKey::from_sec1_bytes(peer).ok(),
            _ => None,
        };
        let peer = peer.ok_or(PeerMisbehaved::InvalidKeyShare)?;
        let shared = self.secret.diffie_hellman(&peer);
        Ok(SharedSecret::from(shared.raw_secret_bytes().as_slice()))
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn pub_key(&self) -> &[u8] {
        &self.public_key
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::secp521r1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> Box<dyn ActiveKeyExchange> {
        SECP521R1.start().expect("random bytes")
    }

    #[test]
    fn both_sides_get_the_same_secret() {
        let (ours, theirs) = (start(), start());
        let (our_key, their_key) = (ours.pub_key().to_vec(), theirs.pub_key().to_vec());
        assert_ne!(our_key, their_key);
        let [ours, theirs] = [(ours, their_key), (theirs, our_key)].map(|(side, key)| side.complete(&key));
        let (ours, theirs) = (ours.expect("a valid key"), theirs.expect("a valid key"));
        assert_eq!(ours.secret_bytes(), theirs.secret_bytes());
        // The length of the field, whatever the leading bytes are (RFC 8446, section 7.4.2).
        assert_eq!(ours.secret_bytes().len(), 66);
    }

    #[test]
    fn invalid_keys_are_rejected() {
        let valid = start().pub_key().to_vec();
        let mut off_curve = valid.clone();
        off_curve[132] ^= 1;
        let mut compressed = valid[..67].to_vec();
        compressed[0] = 2 + (valid[132] & 1);
        for key in [&off_curve[..], &compressed, &valid[1..], &valid[..132], &[], &[0], &[4]] {
            let error = start().complete(key).err();
            assert_eq!(error, Some(PeerMisbehaved::InvalidKeyShare.into()), "{key:?}");
        }
    }
}
