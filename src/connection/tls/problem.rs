//! TLS errors as text for the operator.

use super::certificate::CertificateInfo;
use rustls::{AlertDescription, CertificateError, Error, OtherError};
use std::fmt;
use std::sync::Arc;

/// What is wrong with the server's certificate: a sentence that is carried inside an error of rustls.
#[derive(Debug)]
pub(crate) struct CertificateProblem(String);

impl CertificateProblem {
    /// Wraps the sentence.
    pub(crate) fn new(problem: String) -> CertificateProblem {
        CertificateProblem(problem)
    }
}

impl fmt::Display for CertificateProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
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
        Error::AlertReceived(alert) => format!("the server refused the TLS connection ({alert:?})"),
        other => other.to_string(),
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

/// Returns whether the server uses a CA certificate as its own. rustls has no variant for this error of webpki, so only
/// its text tells; a test produces the error, to notice when the text changes.
fn is_ca_as_server_certificate(error: &OtherError) -> bool {
    error.to_string().contains("CaUsedAsEndEntity")
}
