//! What TLS needs: roots, our own certificate, and the check of the server's.
//!
//! Loaded when the first TLS connection is made. As in libpq, a root file that is there is used whatever
//! `sslmode` is, and `require` without one checks no certificate at all. The signature of the handshake is checked
//! in any case, also of certificates that rustls cannot read: without it, channel binding would prove nothing.

use super::certificate;
use super::settings::{CertMode, Host, Roots, Ssl, SslMode, TlsVersion};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::crypto::{self, CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::sign::CertifiedKey;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, PeerMisbehaved,
    RootCertStore, SignatureScheme,
};
use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

/// Everything that is loaded, for all hosts.
pub struct Tls {
    ssl: Ssl,
    provider: Arc<CryptoProvider>,
    /// `None`: any certificate will do.
    trust: Option<Arc<Trust>>,
    own: Arc<OwnCertificate>,
}

impl Tls {
    /// Loads what the settings name.
    pub fn load(ssl: &Ssl) -> Result<Tls, String> {
        let provider = Arc::new(ring::default_provider());
        Ok(Tls {
            trust: trust(ssl, &provider)?.map(Arc::new),
            own: Arc::new(own_certificate(ssl)?),
            ssl: ssl.clone(),
            provider,
        })
    }

    /// How to connect to this host.
    pub fn config(&self, host: &Host) -> Result<ClientConfig, String> {
        let full = self.ssl.mode == SslMode::VerifyFull;
        if full && !host.is_named {
            return Err("sslmode=verify-full needs the name of the host, and only hostaddr is given".into());
        }
        let versions: Vec<_> = [
            (TlsVersion::V12, &rustls::version::TLS12),
            (TlsVersion::V13, &rustls::version::TLS13),
        ]
        .into_iter()
        .filter(|(version, _)| (self.ssl.min..=self.ssl.max).contains(version))
        .map(|(_, version)| version)
        .collect();
        let verifier = Verifier {
            trust: self.trust.clone(),
            name: full.then(|| host.name.clone()),
            provider: Arc::clone(&self.provider),
        };
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&versions)
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::clone(&self.own) as Arc<dyn ResolvesClientCert>);
        config.enable_sni = self.ssl.sni;
        // A lock opens one connection; nothing is resumed.
        config.resumption = rustls::client::Resumption::disabled();
        if self.ssl.direct {
            config.alpn_protocols = vec![b"postgresql".to_vec()];
        }
        Ok(config)
    }

    /// Whether the server must ask for our certificate, and has not.
    pub fn is_certificate_unasked(&self) -> bool {
        self.ssl.cert_mode == CertMode::Require && !self.own.asked.load(Ordering::SeqCst)
    }
}

/// Whom to believe.
#[derive(Debug)]
struct Trust {
    chain: Arc<WebPkiServerVerifier>,
    /// The certificates of the root file. One that a server shows itself needs nobody's signature.
    pinned: Vec<CertificateDer<'static>>,
    /// Where the roots come from, for people.
    source: String,
}

fn trust(ssl: &Ssl, provider: &Arc<CryptoProvider>) -> Result<Option<Trust>, String> {
    let must = ssl.mode >= SslMode::VerifyCa;
    let (certificates, source, pin) = match &ssl.roots {
        Roots::System => (system_roots()?, "the system".to_owned(), false),
        Roots::File { path, .. } if path.exists() => (certificates(path)?, path.display().to_string(), true),
        Roots::File { path, .. } if must => {
            return Err(format!(
                "the root certificate file {} is not there: provide it, use sslrootcert=system, or choose an \
                 sslmode that checks no certificate",
                path.display()
            ));
        }
        Roots::Nowhere if must => {
            return Err("there is no home folder to find the root certificate file in; give sslrootcert".into());
        }
        Roots::File { .. } | Roots::Nowhere => return Ok(None),
    };
    let mut roots = RootCertStore::empty();
    let now = SystemTime::now();
    for certificate in &certificates {
        let expired = certificate::facts(certificate)
            .and_then(|facts| facts.valid)
            .is_some_and(|(from, to)| now < from || now > to);
        if !expired
            && let Err(error) = roots.add(certificate.clone())
            && pin
        {
            return Err(format!("a certificate in {source} cannot be used: {error}"));
        }
    }
    if roots.is_empty() {
        return Err(format!("{source} has no root certificate that is valid now"));
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    let verifier = match revocation_lists(ssl)? {
        lists if lists.is_empty() => verifier,
        lists => verifier.with_crls(lists).enforce_revocation_expiration(),
    };
    Ok(Some(Trust {
        // Of all that it is made of only the lists have not been read yet.
        chain: verifier.build().map_err(|error| {
            let places = ssl.crl.iter().map(|(path, _)| path).chain(&ssl.crl_folder);
            let places: Vec<String> = places.map(|path| path.display().to_string()).collect();
            format!("a revocation list of {} cannot be used: {error}", places.join(", "))
        })?,
        pinned: if pin { certificates } else { Vec::new() },
        source,
    }))
}

fn system_roots() -> Result<Vec<CertificateDer<'static>>, String> {
    let found = rustls_native_certs::load_native_certs();
    match found.certs.is_empty() {
        false => Ok(found.certs),
        true => Err("the system has no root certificates (package ca-certificates)".into()),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let shown = path.display();
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let found: Vec<CertificateDer> =
        read.map_err(|error| format!("cannot read the certificate file {shown}: {error}"))?;
    match found.is_empty() {
        false => Ok(found),
        true => Err(format!("{shown} has no certificate in PEM form")),
    }
}

fn revocation_lists(ssl: &Ssl) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let mut files: Vec<PathBuf> = Vec::new();
    // The default file need not be there; one that is named must, or the revoked would be let in silently.
    files.extend(
        ssl.crl
            .iter()
            .filter(|(path, given)| *given || path.exists())
            .map(|(path, _)| path.clone()),
    );
    if let Some(folder) = &ssl.crl_folder {
        let entries = std::fs::read_dir(folder)
            .map_err(|error| format!("cannot read sslcrldir {}: {error}", folder.display()))?;
        files.extend(
            entries
                .filter_map(|entry| Some(entry.ok()?.path()))
                .filter(|path| path.is_file()),
        );
    }
    let mut lists = Vec::new();
    for file in files {
        let read = CertificateRevocationListDer::pem_file_iter(&file).and_then(Iterator::collect);
        let read: Vec<_> =
            read.map_err(|error| format!("cannot read the revocation list {}: {error}", file.display()))?;
        lists.extend(read);
    }
    Ok(lists)
}

/// Our own certificate, and whether it was asked for.
struct OwnCertificate {
    key: Option<Arc<CertifiedKey>>,
    asked: AtomicBool,
}

impl fmt::Debug for OwnCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnCertificate")
    }
}

impl ResolvesClientCert for OwnCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.asked.store(true, Ordering::SeqCst);
        self.key.clone()
    }

    fn has_certs(&self) -> bool {
        self.key.is_some()
    }
}

fn own_certificate(ssl: &Ssl) -> Result<OwnCertificate, String> {
    let path = ssl.certificate.iter().map(|(path, _)| path).find(|path| path.exists());
    let key = match path.filter(|_| ssl.cert_mode != CertMode::Disable) {
        Some(path) => Some(Arc::new(certified_key(path, ssl.key.as_deref())?)),
        None => None,
    };
    Ok(OwnCertificate {
        key,
        asked: AtomicBool::new(false),
    })
}

fn certified_key(path: &Path, key: Option<&Path>) -> Result<CertifiedKey, String> {
    let chain = certificates(path)?;
    let key_path = key.filter(|key| key.exists()).ok_or_else(|| {
        let wanted = key.map_or(String::new(), |key| format!(" {}", key.display()));
        format!(
            "there is the certificate {}, but not its private key{wanted}",
            path.display()
        )
    })?;
    let shown = key_path.display();
    let key = private_key(key_path)?;
    let key = ring::sign::any_supported_type(&key).map_err(|_| {
        format!("the private key {shown} is of a kind that cannot be used: RSA, ECDSA (P-256, P-384) and Ed25519 can")
    })?;
    let of_certificate = chain.first().and_then(certificate::public_key);
    match (of_certificate, key.public_key()) {
        (Some(a), Some(b)) if a.whole != b.as_ref() => Err(format!(
            "the certificate {} does not belong to the private key {shown}",
            path.display()
        )),
        _ => Ok(CertifiedKey::new(chain, key)),
    }
}

/// Reads the key, which nobody else may be able to read: libpq's rule.
fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let shown = path.display();
    let cannot = |error: io::Error| format!("cannot read the private key {shown}: {error}");
    let metadata = path.metadata().map_err(cannot)?;
    if !metadata.is_file() {
        return Err(format!("the private key {shown} is not a plain file"));
    }
    let too_open = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.mode() & too_open != 0 {
        return Err(format!(
            "the private key {shown} has group or world access: chmod 0600, or 0640 if root owns it"
        ));
    }
    let bytes = std::fs::read(path).map_err(cannot)?;
    let text = String::from_utf8_lossy(&bytes);
    if text.contains("ENCRYPTED") {
        return Err(format!(
            "the private key {shown} is encrypted, which cannot be had: store it plain, with mode 0600 \
             (openssl pkey -in ... -out ...)"
        ));
    }
    let key = match text.contains("-----BEGIN") {
        true => PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| error.to_string()),
        false => PrivateKeyDer::try_from(bytes).map_err(str::to_owned),
    };
    key.map_err(|error| format!("cannot read the private key {shown}: {error}"))
}

/// The check of the server's certificate.
#[derive(Debug)]
struct Verifier {
    trust: Option<Arc<Trust>>,
    /// The host that it must be for; `None`: any.
    name: Option<String>,
    provider: Arc<CryptoProvider>,
}

/// What is wrong with a certificate, in our words.
#[derive(Debug)]
struct Complaint(String);

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Complaint {}

fn complain(words: String) -> Error {
    let other = OtherError(Arc::new(Complaint(words)));
    Error::InvalidCertificate(CertificateError::Other(other))
}

/// An error of TLS in words, ours where we have found the fault.
pub fn words(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(other))) if other.is::<Complaint>() => {
            other.to_string()
        }
        Error::AlertReceived(alert) if is_about_our_certificate(*alert) => {
            format!("the server does not let us in with our certificate, or without one ({alert:?})")
        }
        Error::AlertReceived(alert) => format!("the server refuses TLS with us ({alert:?})"),
        other => other.to_string(),
    }
}

/// Whether the server is not content with the certificate that we have shown, or not shown.
pub fn is_about_our_certificate(alert: AlertDescription) -> bool {
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

impl Verifier {
    fn check_chain(
        &self,
        trust: &Trust,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let facts = certificate::facts(leaf).unwrap_or_default();
        if trust.pinned.iter().any(|pinned| pinned == leaf) {
            return match facts.valid {
                Some((from, to)) if (from..=to).contains(&SystemTime::now()) => Ok(()),
                _ => Err(Error::InvalidCertificate(CertificateError::Expired)),
            };
        }
        // Names are compared afterwards, by libpq's rules; this one only has to be one.
        let any = ServerName::from(std::net::IpAddr::from([0, 0, 0, 0]));
        let checked = trust.chain.verify_server_cert(leaf, intermediates, &any, &[], now);
        match checked {
            Ok(_) => Ok(()),
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(()),
            Err(error) => Err(complain(complaint(&error, &facts, &trust.source))),
        }
    }

    /// For TLS 1.2, with the key alone: rustls has this for TLS 1.3 only.
    fn check_with_key(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = self.provider.signature_verification_algorithms;
        let of_scheme = algorithms.mapping.iter().find(|(scheme, _)| *scheme == signed.scheme);
        let Some((_, candidates)) = of_scheme else {
            return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
        };
        let key = certificate::public_key(leaf).ok_or(CertificateError::BadEncoding)?;
        let good = candidates.iter().any(|algorithm| {
            algorithm.public_key_alg_id().as_ref() == key.algorithm
                && algorithm
                    .verify_signature(&key.bits, message, signed.signature())
                    .is_ok()
        });
        match good {
            true => Ok(HandshakeSignatureValid::assertion()),
            false => Err(CertificateError::BadSignature.into()),
        }
    }
}

/// Whether rustls can read the certificate at all.
fn is_version_1(leaf: &CertificateDer) -> bool {
    certificate::facts(leaf).is_some_and(|facts| facts.is_version_1)
}

/// What is wrong with the server's certificate, and how to make a good one.
fn complaint(error: &Error, facts: &certificate::Facts, source: &str) -> String {
    const GOOD: &str = "have the CA sign one with an extension file that says subjectAltName=DNS:<host> \
                        (openssl x509 -req -extfile), or put the server's own certificate into the root file";
    let Error::InvalidCertificate(certificate_error) = error else {
        return error.to_string();
    };
    match certificate_error {
        _ if facts.is_version_1 => {
            format!("the server's certificate is of version 1, which has no extensions and cannot be checked: {GOOD}")
        }
        CertificateError::UnknownIssuer | CertificateError::Other(_) if facts.is_self_signed => {
            format!("the server's certificate is self-signed, and is not in the roots of {source}")
        }
        CertificateError::UnknownIssuer => {
            format!("the server's certificate is not signed by a root of {source}")
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the server's certificate has expired".into()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the server's certificate is not valid yet".into()
        }
        CertificateError::Revoked => "the server's certificate is revoked".into(),
        CertificateError::UnknownRevocationStatus => {
            "the revocation lists say nothing of the server's certificate".into()
        }
        CertificateError::ExpiredRevocationList | CertificateError::ExpiredRevocationListContext { .. } => {
            "the revocation list has expired".into()
        }
        CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            format!("the server shows the certificate of a CA as its own: {GOOD}")
        }
        other => format!("the server's certificate is not good: {other}"),
    }
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
            self.check_chain(trust, leaf, intermediates, now)?;
        }
        if let Some(name) = &self.name {
            let facts = certificate::facts(leaf).unwrap_or_default();
            if !facts.is_for(name) {
                return Err(complain(format!(
                    "the server's certificate is for {}, not for {name}",
                    facts.names()
                )));
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
        match is_version_1(leaf) {
            true => self.check_with_key(message, leaf, signed),
            false => {
                crypto::verify_tls12_signature(message, leaf, signed, &self.provider.signature_verification_algorithms)
            }
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        match certificate::public_key(leaf).filter(|_| is_version_1(leaf)) {
            Some(key) => crypto::verify_tls13_signature_with_raw_key(
                message,
                &SubjectPublicKeyInfoDer::from(key.whole),
                signed,
                algorithms,
            ),
            None => crypto::verify_tls13_signature(message, leaf, signed, algorithms),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
