//! The channel binding of SCRAM-SHA-256-PLUS: a hash of the server's certificate (RFC 5929, `tls-server-end-point`).

use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256, Sha384, Sha512};
use x509_cert::Certificate;
use x509_cert::der::asn1::ContextSpecific;
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::der::oid::db::rfc5912::*;
use x509_cert::der::{Decode, SliceReader, TagNumber};
use x509_cert::spki::{AlgorithmIdentifierOwned, AlgorithmIdentifierRef};

/// `ecdsa-with-SHA1`, which the database of object identifiers lacks.
const ECDSA_WITH_SHA_1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.1");

/// Returns the hash, by the hash function of the certificate's signature but at least SHA-256. `None` if the signature
/// has no hash function of its own (Ed25519), or an unknown one.
pub(crate) fn server_end_point(certificate: &CertificateDer) -> Option<Vec<u8>> {
    let signature = Certificate::from_der(certificate).ok()?.signature_algorithm;
    let algorithm = match signature.oid {
        ID_RSASSA_PSS => rsa_pss_hash(&signature)?,
        algorithm => algorithm,
    };
    match algorithm {
        ID_SHA_1 | SHA_1_WITH_RSA_ENCRYPTION | ECDSA_WITH_SHA_1 => Some(Sha256::digest(certificate).to_vec()),
        ID_SHA_256 | SHA_256_WITH_RSA_ENCRYPTION | ECDSA_WITH_SHA_256 => Some(Sha256::digest(certificate).to_vec()),
        ID_SHA_384 | SHA_384_WITH_RSA_ENCRYPTION | ECDSA_WITH_SHA_384 => Some(Sha384::digest(certificate).to_vec()),
        ID_SHA_512 | SHA_512_WITH_RSA_ENCRYPTION | ECDSA_WITH_SHA_512 => Some(Sha512::digest(certificate).to_vec()),
        _ => None,
    }
}

/// Returns the hash function of an RSA-PSS signature, a parameter of it (RFC 8017, A.2.3).
fn rsa_pss_hash(signature: &AlgorithmIdentifierOwned) -> Option<ObjectIdentifier> {
    let mut reader = SliceReader::new(signature.parameters.as_ref()?.value()).ok()?;
    let hash = ContextSpecific::<AlgorithmIdentifierRef>::decode_explicit(&mut reader, TagNumber::N0).ok()?;
    Some(hash.map_or(ID_SHA_1, |hash| hash.value.oid))
}
