//! The algorithms: those of ring, and after them P-521 from RustCrypto, which ring lacks.
//!
//! OpenSSL has P-521, so psql connects to a server whose key or key exchange (`ssl_ecdh_curve`) uses it. A connection
//! to any other server never computes with it: it is offered last, and no key share is generated for it unless the
//! server requests one.

use super::ecdsa::{ECDSA_P256_SHA512, ECDSA_P384_SHA512, ECDSA_P521_SHA256, ECDSA_P521_SHA384, ECDSA_P521_SHA512};
use super::secp521r1::SECP521R1;
use rustls::SignatureScheme;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::SignatureVerificationAlgorithm;
use std::sync::LazyLock;

type Algorithms = &'static [&'static dyn SignatureVerificationAlgorithm];

/// In TLS 1.2 a scheme names a hash only, whatever its name says of a curve: OpenSSL signs with a P-521 key and SHA-256
/// if it prefers SHA-256, and OpenSSL 1.0 with a P-256 key and SHA-512 as soon as SHA-512 is offered. TLS 1.3 uses only
/// the first algorithm of a scheme.
const ADDED_ALGORITHMS: [(SignatureScheme, Algorithms); 3] = [
    (SignatureScheme::ECDSA_NISTP384_SHA384, &[ECDSA_P521_SHA384]),
    (SignatureScheme::ECDSA_NISTP256_SHA256, &[ECDSA_P521_SHA256]),
    (
        SignatureScheme::ECDSA_NISTP521_SHA512,
        &[ECDSA_P521_SHA512, ECDSA_P384_SHA512, ECDSA_P256_SHA512],
    ),
];

/// Returns the provider.
pub(super) fn provider() -> CryptoProvider {
    static SIGNATURE_ALGORITHMS: LazyLock<WebPkiSupportedAlgorithms> =
        LazyLock::new(|| add_algorithms(ring::default_provider().signature_verification_algorithms));
    let mut provider = ring::default_provider();
    provider.kx_groups.push(SECP521R1);
    provider.signature_verification_algorithms = *SIGNATURE_ALGORITHMS;
    provider
}

/// Adds our algorithms after those that are there. rustls wants lists that live as long as the process, so they are
/// leaked, once.
fn add_algorithms(present: WebPkiSupportedAlgorithms) -> WebPkiSupportedAlgorithms {
    let added = ADDED_ALGORITHMS.iter().flat_map(|(_, algorithms)| *algorithms);
    let all: Vec<_> = present.all.iter().chain(added).copied().collect();
    let mut mapping = present.mapping.to_vec();
    for (scheme, added) in ADDED_ALGORITHMS {
        match mapping.iter_mut().find(|(present, _)| *present == scheme) {
            Some((_, algorithms)) => *algorithms = [*algorithms, added].concat().leak(),
            None => mapping.push((scheme, added)),
        }
    }
    WebPkiSupportedAlgorithms {
        all: all.leak(),
        mapping: mapping.leak(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::NamedGroup;

    #[test]
    fn what_ring_has_comes_first() {
        let (ours, ring) = (provider(), ring::default_provider());
        let groups: Vec<NamedGroup> = ours.kx_groups.iter().map(|group| group.name()).collect();
        let mut expected: Vec<NamedGroup> = ring.kx_groups.iter().map(|group| group.name()).collect();
        // Last: rustls generates a key share for the first group.
        expected.push(NamedGroup::secp521r1);
        assert_eq!(groups, expected);

        let [ours, ring] = [ours, ring].map(|provider| provider.signature_verification_algorithms);
        let schemes = ring.supported_schemes();
        assert_eq!(ours.supported_schemes()[..schemes.len()], schemes);
        for ((scheme, ours), (_, ring)) in ours.mapping.iter().zip(ring.mapping) {
            let ids = |algorithms: Algorithms| -> Vec<_> {
                algorithms
                    .iter()
                    .map(|a| (a.public_key_alg_id(), a.signature_alg_id()))
                    .collect()
            };
            assert_eq!(ids(ours)[..ring.len()], ids(ring), "{scheme:?}");
        }
    }
}
