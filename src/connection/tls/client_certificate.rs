//! The client certificate and its private key.

use super::certificate::{PublicKey, read_pem_file};
use crate::connection::file::SettingsFile;
use crate::connection::settings::{ClientCertificateMode, TlsSettings};
use crate::connection::settings_error::SettingsError;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::sign::CertifiedKey;
use std::fmt::{self, Debug};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The client certificate, if there is one, and whether the server has requested it.
pub(super) struct ClientCertificate {
    key: Option<Arc<CertifiedKey>>,
    was_requested: AtomicBool,
}

impl ClientCertificate {
    /// Loads the certificate, if it exists and may be sent.
    ///
    /// # Errors
    /// The certificate or its key cannot be used.
    pub(super) fn load(settings: &TlsSettings) -> Result<ClientCertificate, SettingsError> {
        let is_disabled = settings.client_certificate_mode == ClientCertificateMode::Disable;
        let file = settings.client_certificate.as_ref().filter(|_| !is_disabled);
        let path = file.map(|file| file.find("client certificate")).transpose()?.flatten();
        let key = match path {
            Some(path) => Some(Arc::new(load_certified_key(path, settings.client_key.as_ref())?)),
            None => None,
        };
        Ok(ClientCertificate {
            key,
            was_requested: AtomicBool::new(false),
        })
    }

    /// Returns whether the server has requested the certificate.
    pub(super) fn was_requested(&self) -> bool {
        self.was_requested.load(Ordering::SeqCst)
    }
}

impl Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientCertificate")
    }
}

impl ResolvesClientCert for ClientCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.was_requested.store(true, Ordering::SeqCst);
        self.key.clone()
    }

    fn has_certs(&self) -> bool {
        self.key.is_some()
    }
}

/// Loads the certificate and its private key.
///
/// # Errors
/// A file cannot be read, or the key is missing, of an unsupported type, or that of another certificate.
fn load_certified_key(path: &Path, key_file: Option<&SettingsFile>) -> Result<CertifiedKey, SettingsError> {
    let chain = read_pem_file(path)?;
    let key_path = key_file.map(|file| file.find("private key")).transpose()?.flatten();
    let Some(key_path) = key_path else {
        let problem = match key_file {
            Some(file) => format!("is present, but not its private key {}", file.path.display()),
            None => "is present, but not its private key".into(),
        };
        return Err(SettingsError::file("client certificate", path, problem));
    };
    let key = ring::sign::any_supported_type(&load_private_key(key_path)?).map_err(|_| {
        let problem = "has an unsupported type; use RSA, ECDSA (P-256, P-384) or Ed25519";
        SettingsError::file("private key", key_path, problem).where_libpq_may_succeed()
    })?;
    let certificate_key = chain.first().and_then(PublicKey::from_certificate);
    if let (Some(certificate_key), Some(public_key)) = (certificate_key, key.public_key())
        && certificate_key.info != public_key.as_ref()
    {
        let problem = format!("does not belong to the private key {}", key_path.display());
        return Err(SettingsError::file("client certificate", path, problem));
    }
    Ok(CertifiedKey::new(chain, key))
}

/// Reads the private key. As in libpq, nobody else may have access to it.
///
/// # Errors
/// The file is accessible to others, cannot be read, or has no unencrypted key.
fn load_private_key(path: &Path) -> Result<PrivateKeyDer<'static>, SettingsError> {
    let key_error = |problem: &str| SettingsError::file("private key", path, problem);
    let read_error = |error: io::Error| key_error(&format!("cannot be read: {error}"));
    let metadata = path.metadata().map_err(read_error)?;
    if !metadata.is_file() {
        return Err(key_error("is not a regular file"));
    }
    let forbidden_mode = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.mode() & forbidden_mode != 0 {
        return Err(key_error(
            "has group or world access; permissions must be 0600 or less, or 0640 or less if root owns it",
        ));
    }
    let bytes = std::fs::read(path).map_err(read_error)?;
    let text = String::from_utf8_lossy(&bytes);
    if text.contains("ENCRYPTED") {
        return Err(key_error(
            "is encrypted, which is not supported; store it unencrypted with mode 0600 \
             (openssl pkey -in ... -out ...)",
        )
        .where_libpq_may_succeed());
    }
    let key = if text.contains("-----BEGIN") {
        PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| error.to_string())
    } else {
        PrivateKeyDer::try_from(bytes).map_err(str::to_owned)
    };
    key.map_err(|error| key_error(&format!("cannot be parsed: {error}")).where_libpq_may_succeed())
}
