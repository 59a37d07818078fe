//! Root certificates and revocation lists.

use super::certificate::{CertificateInfo, read_pem_file};
use crate::connection::settings::{RootSource, SslMode, TlsSettings};
use crate::connection::settings_error::SettingsError;
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

/// The certificates to trust.
#[derive(Debug)]
pub(super) struct Trust {
    /// Verifies chains of signatures up to a root certificate.
    pub chain_verifier: Arc<WebPkiServerVerifier>,
    /// The certificates of the root file. A server certificate that is one of them needs no signature by another.
    pub pinned: Vec<CertificateDer<'static>>,
    /// Where the roots come from, for messages.
    pub source: String,
}

impl Trust {
    /// Loads the root certificates and the revocation lists. Returns `None` if any certificate is acceptable.
    ///
    /// # Errors
    /// A file is missing though `sslmode` needs it, or cannot be used.
    pub(super) fn load(settings: &TlsSettings, provider: &Arc<CryptoProvider>) -> Result<Option<Trust>, SettingsError> {
        let Some((certificates, source)) = load_roots(settings)? else {
            return Ok(None);
        };
        let is_file = settings.roots != RootSource::System;
        let roots = root_store(&certificates, &source, is_file)?;
        let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
        // libpq ignores a list that it cannot read, and then accepts a revoked certificate.
        let lists = load_revocation_lists(settings).map_err(SettingsError::where_libpq_may_succeed)?;
        let builder = if lists.is_empty() {
            builder
        } else {
            builder.with_crls(lists).enforce_revocation_expiration()
        };
        // The roots have been parsed already, so an error is about the revocation lists.
        let chain_verifier = builder.build().map_err(|error| {
            let list = settings.revocation_list.iter().map(|file| &file.path);
            let paths: Vec<String> = list
                .chain(&settings.revocation_directory)
                .map(|path| path.display().to_string())
                .collect();
            SettingsError::inconsistent(format!("invalid revocation list in {}: {error}", paths.join(", ")))
                .where_libpq_may_succeed()
        })?;
        Ok(Some(Trust {
            chain_verifier,
            pinned: if is_file { certificates } else { Vec::new() },
            source,
        }))
    }
}

/// Loads the root certificates. Returns them with their source, or `None` if there are none and none are needed.
///
/// # Errors
/// The file is missing though `sslmode` needs it, or cannot be read; or the system has no roots.
fn load_roots(settings: &TlsSettings) -> Result<Option<(Vec<CertificateDer<'static>>, String)>, SettingsError> {
    let is_required = settings.mode >= SslMode::VerifyCa;
    match &settings.roots {
        RootSource::System => Ok(Some((load_system_roots()?, "the system".to_owned()))),
        RootSource::File(file) => match file.find("root certificate file")? {
            Some(path) => Ok(Some((read_pem_file(path)?, path.display().to_string()))),
            None if is_required => Err(SettingsError::file(
                "root certificate file",
                &file.path,
                "does not exist; provide it, use sslrootcert=system, or choose an sslmode that verifies no certificate",
            )),
            None => Ok(None),
        },
        RootSource::Unknown if is_required => Err(SettingsError::inconsistent(
            "cannot locate the root certificate file without a home directory; set sslrootcert",
        )),
        RootSource::Unknown => Ok(None),
    }
}

/// Collects the roots that are valid now. An unusable one is an error in the user's file, but not among the system's.
///
/// # Errors
/// A certificate of the file is unusable, or none is valid now.
fn root_store(
    certificates: &[CertificateDer<'static>],
    source: &str,
    is_file: bool,
) -> Result<RootCertStore, SettingsError> {
    let mut roots = RootCertStore::empty();
    let now = SystemTime::now();
    for certificate in certificates {
        let is_expired = CertificateInfo::from_der(certificate)
            .and_then(|info| info.validity)
            .is_some_and(|validity| !validity.contains(&now));
        if is_expired {
            continue;
        }
        if let Err(error) = roots.add(certificate.clone())
            && is_file
        {
            return Err(
                SettingsError::inconsistent(format!("unusable certificate in {source}: {error}"))
                    .where_libpq_may_succeed(),
            );
        }
    }
    if roots.is_empty() {
        return Err(SettingsError::inconsistent(format!(
            "{source} has no currently valid root certificate"
        )));
    }
    Ok(roots)
}

/// Loads the root certificates of the system.
///
/// # Errors
/// There are none.
fn load_system_roots() -> Result<Vec<CertificateDer<'static>>, SettingsError> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        return Err(SettingsError::inconsistent(
            "the system has no root certificates; install the package ca-certificates",
        ));
    }
    Ok(found.certs)
}

/// Loads the revocation lists of the file and the directory.
///
/// # Errors
/// An explicit file, the directory, or a list in it cannot be read.
fn load_revocation_lists(settings: &TlsSettings) -> Result<Vec<CertificateRevocationListDer<'static>>, SettingsError> {
    let mut paths: Vec<PathBuf> = Vec::new();
    // The default file is optional. If an explicit one were, a revoked certificate could be accepted unnoticed.
    if let Some(file) = &settings.revocation_list
        && (file.find("revocation list")?.is_some() || file.is_explicit)
    {
        paths.push(file.path.clone());
    }
    if let Some(directory) = &settings.revocation_directory {
        let entries = std::fs::read_dir(directory)
            .map_err(|error| SettingsError::io("directory of revocation lists", directory, &error))?;
        let entries = entries.filter_map(|entry| Some(entry.ok()?.path()));
        paths.extend(entries.filter(|path| path.is_file()));
    }
    let mut lists = Vec::new();
    for path in paths {
        let parsed: Result<Vec<_>, _> = CertificateRevocationListDer::pem_file_iter(&path).and_then(Iterator::collect);
        lists.extend(
            parsed
                .map_err(|error| SettingsError::file("revocation list", &path, format!("cannot be read: {error}")))?,
        );
    }
    Ok(lists)
}
