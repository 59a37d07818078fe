//! Verification of the ECDSA signatures that ring lacks: P-521, and SHA-512 with the smaller curves.

use p521::ecdsa::signature::hazmat::PrehashVerifier;
use rustls::pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id};
use sha2::{Digest, Sha256, Sha384, Sha512};

pub(super) const ECDSA_P256_SHA512: &dyn SignatureVerificationAlgorithm = &Ecdsa {
    public_key: alg_id::ECDSA_P256,
    signature: alg_id::ECDSA_SHA512,
    verify: verify_p256::<Sha512>,
};
pub(super) const ECDSA_P384_SHA512: &dyn SignatureVerificationAlgorithm = &Ecdsa {
    public_key: alg_id::ECDSA_P384,
    signature: alg_id::ECDSA_SHA512,
    verify: verify_p384::<Sha512>,
};
pub(super) const ECDSA_P521_SHA256: &dyn SignatureVerificationAlgorithm = &Ecdsa {
    public_key: alg_id::ECDSA_P521,
    signature: alg_id::ECDSA_SHA256,
    verify: verify_p521::<Sha256>,
};
pub(super) const ECDSA_P521_SHA384: &dyn SignatureVerificationAlgorithm = &Ecdsa {
    public_key: alg_id::ECDSA_P521,
    signature: alg_id::ECDSA_SHA384,
    verify: verify_p521::<Sha384>,
};
pub(super) const ECDSA_P521_SHA512: &dyn SignatureVerificationAlgorithm = &Ecdsa {
    public_key: alg_id::ECDSA_P521,
    signature: alg_id::ECDSA_SHA512,
    verify: verify_p521::<Sha512>,
};

/// Returns something if the signature of the message is valid.
type Verify = fn(public_key: &[u8], message: &[u8], signature: &[u8]) -> Option<()>;

/// A curve and a hash.
#[derive(Debug)]
struct Ecdsa {
    public_key: AlgorithmIdentifier,
    signature: AlgorithmIdentifier,
    verify: Verify,
}

impl SignatureVerificationAlgorithm for Ecdsa {
    fn verify_signature(&self, public_key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        (self.verify)(public_key, message, signature).ok_or(InvalidSignature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.public_key
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.signature
    }
}

fn verify_p256<D: Digest>(public_key: &[u8], message: &[u8], signature: &[u8]) -> Option<()> {
    let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(public_key).ok()?;
    let signature = p256::ecdsa::Signature::from_der(signature).ok()?;
    key.verify_prehash(&D::digest(message), &signature).ok()
}

fn verify_p384<D: Digest>(public_key: &[u8], message: &[u8], signature: &[u8]) -> Option<()> {
    let key = p384::ecdsa::VerifyingKey::from_sec1_bytes(public_key).ok()?;
    let signature = p384::ecdsa::Signature::from_der(signature).ok()?;
    key.verify_prehash(&D::digest(message), &signature).ok()
}

fn verify_p521<D: Digest>(public_key: &[u8], message: &[u8], signature: &[u8]) -> Option<()> {
    let key = p521::ecdsa::VerifyingKey::from_sec1_bytes(public_key).ok()?;
    let signature = p521::ecdsa::Signature::from_der(signature).ok()?;
    key.verify_prehash(&D::digest(message), &signature).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use p521::ecdsa::signature::hazmat::PrehashSigner;

    /// Signs the hash, and returns the public key and the signature.
    macro_rules! signed {
        ($curve:ident, $bytes:literal, $hash:expr) => {{
            let mut secret = [7; $bytes];
            secret[0] = 0;
            let key = $curve::ecdsa::SigningKey::from_slice(&secret).expect("a valid key");
            let signature: $curve::ecdsa::Signature = key.sign_prehash(&$hash).expect("a signature");
            let public_key = key.verifying_key().to_sec1_bytes().to_vec();
            (public_key, signature.to_der().as_bytes().to_vec())
        }};
    }

    #[test]
    fn only_the_signature_of_the_message_by_the_key_is_valid() {
        let message = b"message";
        for (algorithm, (public_key, signature)) in [
            (ECDSA_P256_SHA512, signed!(p256, 32, Sha512::digest(message))),
            (ECDSA_P384_SHA512, signed!(p384, 48, Sha512::digest(message))),
            (ECDSA_P521_SHA256, signed!(p521, 66, Sha256::digest(message))),
            (ECDSA_P521_SHA384, signed!(p521, 66, Sha384::digest(message))),
            (ECDSA_P521_SHA512, signed!(p521, 66, Sha512::digest(message))),
        ] {
            let is_valid = |public_key: &[u8], message: &[u8], signature: &[u8]| {
                algorithm.verify_signature(public_key, message, signature).is_ok()
            };
            assert!(is_valid(&public_key, message, &signature), "{algorithm:?}");
            assert!(!is_valid(&public_key, b"massage", &signature), "{algorithm:?}");
            for at in (0..signature.len()).step_by(11) {
                let mut wrong = signature.clone();
                wrong[at] ^= 1;
                assert!(!is_valid(&public_key, message, &wrong), "{algorithm:?} {at}");
            }
            for wrong in [&public_key[1..], &public_key[..public_key.len() - 1], &[], &[0]] {
                assert!(!is_valid(wrong, message, &signature), "{algorithm:?}");
            }
        }
    }
}
