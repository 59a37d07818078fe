//! Verification of the server's certificate, and of the signature in the handshake.
//!
//! The signature is verified whatever `sslmode` is, even for version 1 certificates, which rustls cannot parse: without
//! it, channel binding would prove nothing.

use super::certificate::{CertificateInfo, PublicKey, may_be_issued_by};
use super::problem::{CertificateProblem, explain_rejection, explain_signature_error, is_rejected_by_libpq};
use super::trust::Trust;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{self, CryptoProvider};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, PeerMisbehaved, SignatureScheme};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

/// Verifies the server's certificate by libpq's rules.
#[derive(Debug)]
pub(super) struct Verifier {
    /// The certificates to trust; `None` if any certificate is acceptable.
    pub trust: Option<Arc<Trust>>,
    /// The host name that the certificate must be for; `None` if any name is acceptable.
    pub name: Option<String>,
    /// The implementation of the signature algorithms.
    pub provider: Arc<CryptoProvider>,
}

impl Verifier {
    /// Verifies that a trusted root has signed the certificate, or that the certificate itself is trusted.
    ///
    /// # Errors
    /// The certificate is not trusted, expired or revoked.
    fn verify_chain(
        &self,
        trust: &Trust,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let info = CertificateInfo::from_der(leaf).unwrap_or_default();
        if trust.pinned.iter().any(|pinned| pinned == leaf) {
            return match info.validity {
                Some(validity) if validity.contains(&SystemTime::now()) => Ok(()),
                _ => Err(CertificateError::Expired.into()),
            };
        }
        // rustls insists on comparing a name. Names are compared afterwards by libpq's rules, so any one will do here.
        let placeholder = ServerName::from(IpAddr::from([0, 0, 0, 0]));
        let verified = trust
            .chain_verifier
            .verify_server_cert(leaf, intermediates, &placeholder, &[], now);
        match verified {
            Ok(_) => Ok(()),
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(()),
            Err(error) => {
                let chain = [std::slice::from_ref(leaf), intermediates].concat();
                let may_be_issued = may_be_issued_by(&chain, &trust.pinned);
                Err(CertificateProblem {
                    text: explain_rejection(&error, &info, &trust.source),
                    fails_in_libpq: is_rejected_by_libpq(&error, may_be_issued),
                }
                .into())
            }
        }
    }

    /// Verifies a TLS 1.2 signature with the public key alone, which rustls offers for TLS 1.3 only.
    ///
    /// # Errors
    /// The signature is invalid, or made with a scheme that was not offered.
    fn verify_tls12_signature_with_key(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = self.provider.signature_verification_algorithms;
        let for_scheme = algorithms.mapping.iter().find(|(scheme, _)| *scheme == signed.scheme);
        let Some((_, candidates)) = for_scheme else {
            return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
        };
        let key = PublicKey::from_certificate(leaf).ok_or(CertificateError::BadEncoding)?;
        let is_valid = candidates.iter().any(|algorithm| {
            let verified = algorithm.verify_signature(&key.bits, message, signed.signature());
            algorithm.public_key_alg_id().as_ref() == key.algorithm && verified.is_ok()
        });
        if is_valid {
            Ok(HandshakeSignatureValid::assertion())
        } else {
            Err(CertificateError::BadSignature.into())
        }
    }
}

fn is_version_1(certificate: &CertificateDer) -> bool {
    CertificateInfo::from_der(certificate).is_some_and(|info| info.is_version_1)
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(trust) = &self.trust {
            self.verify_chain(trust, leaf, intermediates, now)?;
        }
        if let Some(name) = &self.name {
            let info = CertificateInfo::from_der(leaf).unwrap_or_default();
            if !info.is_for(name) {
                return Err(CertificateProblem {
                    text: format!("the server's certificate is for {}, not for {name}", info.names()),
                    fails_in_libpq: true,
                }
                .into());
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        let verified = if is_version_1(leaf) {
            self.verify_tls12_signature_with_key(message, leaf, signed)
        } else {
            crypto::verify_tls12_signature(message, leaf, signed, algorithms)
        };
        verified.map_err(|error| explain_signature_error(error, leaf))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        let verified = match PublicKey::from_certificate(leaf) {
            Some(key) if is_version_1(leaf) => {
                let info = SubjectPublicKeyInfoDer::from(key.info);
                crypto::verify_tls13_signature_with_raw_key(message, &info, signed, algorithms)
            }
            _ => crypto::verify_tls13_signature(message, leaf, signed, algorithms),
        };
        verified.map_err(|error| explain_signature_error(error, leaf))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
