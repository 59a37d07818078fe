//! TLS errors as text for the operator.

use super::certificate::{CertificateInfo, rsa_key_bits};
use rustls::pki_types::CertificateDer;
use rustls::{AlertDescription, CertificateError, Error, OtherError, PeerIncompatible};
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// What is wrong with the server's certificate: a sentence that is carried inside an error of rustls.
#[derive(Debug)]
pub(crate) struct CertificateProblem {
    /// The sentence.
    pub text: String,
    /// libpq rejects the certificate for the same reason.
    pub fails_in_libpq: bool,
}

impl fmt::Display for CertificateProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for CertificateProblem {}

impl From<CertificateProblem> for Error {
    fn from(problem: CertificateProblem) -> Error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(problem))))
    }
}

/// Describes a TLS error.
pub(crate) fn describe(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(other))) if other.is::<CertificateProblem>() => {
            other.to_string()
        }
        Error::AlertReceived(alert) if is_about_client_certificate(*alert) => {
            format!("the server rejected the client certificate, or requires one ({alert:?})")
        }
        Error::AlertReceived(alert @ (AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity)) => {
            format!(
                "the server has no cipher suite, curve or signature algorithm in common with pglock ({alert:?}); \
                 with TLS 1.2 it needs an ECDHE cipher suite with AES-GCM or ChaCha20-Poly1305"
            )
        }
        Error::AlertReceived(alert) => format!("the server refused the TLS connection ({alert:?})"),
        other => other.to_string(),
    }
}

/// Returns whether the handshake of libpq, with the same settings, fails for the same reason: one side rejects the
/// other's certificate, or they have no version of TLS in common. If in doubt, it does not, as where the settings let
/// libpq use a version before 1.2.
pub(crate) fn fails_in_libpq(error: &Error, libpq_has_older_tls: bool) -> bool {
    match error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(other))) => other
            .downcast_ref::<CertificateProblem>()
            .is_some_and(|problem| problem.fails_in_libpq),
        Error::InvalidCertificate(CertificateError::Expired) => true,
        Error::AlertReceived(AlertDescription::ProtocolVersion)
        | Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13 | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
        ) => !libpq_has_older_tls,
        Error::AlertReceived(alert) => is_about_client_certificate(*alert),
        _ => false,
    }
}

/// Returns whether the server rejected the client certificate, or requires one.
pub(crate) fn is_about_client_certificate(alert: AlertDescription) -> bool {
    use AlertDescription::*;
    matches!(
        alert,
        BadCertificate
            | UnsupportedCertificate
            | CertificateRevoked
            | CertificateExpired
            | CertificateUnknown
            | UnknownCA
            | AccessDenied
            | CertificateRequired
    )
}

/// How to make a certificate that can be verified.
const REMEDY: &str = "have the CA sign one with an extension file that contains subjectAltName=DNS:<host> \
                      (openssl x509 -req -extfile), or add the server's own certificate to the root file";

/// Explains why the chain of the server's certificate was rejected, and what to do. `source` names the trusted roots.
pub(super) fn explain_rejection(error: &Error, info: &CertificateInfo, source: &str) -> String {
    let Error::InvalidCertificate(certificate_error) = error else {
        return error.to_string();
    };
    if info.is_version_1 {
        return format!(
            "the server's certificate is of version 1, which has no extensions and cannot be verified; {REMEDY}"
        );
    }
    match certificate_error {
        CertificateError::UnknownIssuer | CertificateError::Other(_) if info.is_self_signed => {
            format!("the server's certificate is self-signed and is not among the roots of {source}")
        }
        CertificateError::UnknownIssuer => format!("the server's certificate is not signed by a root of {source}"),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the server's certificate has expired".into()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the server's certificate is not valid yet".into()
        }
        CertificateError::Revoked => "the server's certificate is revoked".into(),
        CertificateError::UnknownRevocationStatus => {
            "the revocation lists do not cover the server's certificate".into()
        }
        CertificateError::ExpiredRevocationList | CertificateError::ExpiredRevocationListContext { .. } => {
            "the revocation list has expired".into()
        }
        CertificateError::Other(other) if is_ca_as_server_certificate(other) => {
            format!("the server's certificate is the certificate of a CA; {REMEDY}")
        }
        other => format!("the server's certificate is invalid: {other}"),
    }
}

/// The lengths of the RSA keys that ring accepts, in bits.
const RSA_KEY_BITS: RangeInclusive<usize> = 2048..=8192;

/// Names the reason why the signature in the handshake cannot be verified, if that is the length of the server's key.
pub(super) fn explain_signature_error(error: Error, leaf: &CertificateDer) -> Error {
    match rsa_key_bits(leaf) {
        Some(bits) if !RSA_KEY_BITS.contains(&bits) => CertificateProblem {
            text: format!("the server's RSA key has {bits} bits; pglock supports keys of 2048 to 8192 bits"),
            fails_in_libpq: false,
        }
        .into(),
        _ => error,
    }
}

/// Returns whether libpq, given the same roots and revocation lists, rejects the certificate as well. If in doubt, it
/// does not: OpenSSL accepts version 1, CA certificates, and algorithms that are unknown here. `may_be_issued` says
/// whether a root has the name of an issuer; without one OpenSSL cannot trust the certificate.
pub(super) fn is_rejected_by_libpq(error: &Error, may_be_issued: bool) -> bool {
    use CertificateError::*;
    let Error::InvalidCertificate(certificate_error) = error else {
        return false;
    };
    match certificate_error {
        Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. } => true,
        Revoked | UnknownRevocationStatus => true,
        ExpiredRevocationList | ExpiredRevocationListContext { .. } => true,
        _ => !may_be_issued,
    }
}

/// Returns whether the server uses a CA certificate as its own. rustls has no variant for this error of webpki, so only
/// its text tells; a test produces the error, to notice when the text changes.
fn is_ca_as_server_certificate(error: &OtherError) -> bool {
    error.to_string().contains("CaUsedAsEndEntity")
}
