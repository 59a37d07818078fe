//! Random contents of the TLS files: whatever they contain, the error names the file and quotes nothing of it.
//!
//! The input is a valid certificate and a valid revocation list (made for this test, without their key), corrupted at
//! random.

use super::TlsConfig;
use super::certificate::{CertificateInfo, PublicKey};
use super::problem::explain_rejection;
use super::trust::Trust;
use crate::connection::file::SettingsFile;
use crate::connection::settings::{ClientCertificateMode, RootSource, SslMode, TlsSettings, TlsVersion};
use crate::connection::settings_error::SettingsError;
use proptest::prelude::*;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

const CERTIFICATE: &str = "\
-----BEGIN CERTIFICATE-----
MIIBwTCCAWagAwIBAgIUYoCDYsAvFmiezAUBoySo8VAXegcwCgYIKoZIzj0EAwIw
FTETMBEGA1UEAwwKZGIuZXhhbXBsZTAgFw0yNjExMjQxMjE5MzlaGA8yMTI2MTAz
MTEyMTkzOVowFTETMBEGA1UEAwwKZGIuZXhhbXBsZTBZMBMGByqGSM49AgEGCCqG
SM49AwEHA0IABO5FLfp9/8iZN2Gu8l2d8AN2ugZFdeI2ASdB0e1OZtYn6IQqcK5I
6mxySFMfTvDMGQf+ghqSmoUR4dkUEXK7+aujgZEwgY4wHQYDVR0OBBYEFC5VHkLJ
INQTcZY74GB3rG07T3bzMB8GA1UdIwQYMBaAFC5VHkLJINQTcZY74GB3rG07T3bz
MA8GA1UdEwEB/wQFMAMBAf8wOwYDVR0RBDQwMoIKZGIuZXhhbXBsZYIMKi5kYi5l
eGFtcGxlhwR/AAABhxAAAAAAAAAAAAAAAAAAAAABMAoGCCqGSM49BAMCA0kAMEYC
IQDp01E02p/aWJdGEt3+H5f0gh0Uk7671+L48qyvdaMKHwIhAKanTjaY68OWB+aJ
VizNW0dUgB3tCGUg+uMYm0Urws0M
-----END CERTIFICATE-----
";

const REVOCATIONS: &str = "\
-----BEGIN X509 CRL-----
MIGuMFYCAQEwCgYIKoZIzj0EAwIwFTETMBEGA1UEAwwKZGIuZXhhbXBsZRcNMjYx
MTI0MTIxOTM5WhgPMjEyNjEwMzExMjE5MzlaoA4wDDAKBgNVHRQEAwIBATAKBggq
hkjOPQQDAgNIADBFAiEAoHvOS6wZ72P5dcYKefBg4dVgZ4LFdhJk4hEHjLm2DS8C
IHt0LNFMRxOn5LkuZalsj9lhPLF6AEwPvGK9bFp15qk4
-----END X509 CRL-----
";

/// Settings with these files only.
fn settings(roots: &Path, revocation_list: &Path, certificate: &Path, key: &Path) -> TlsSettings {
    let named = |path: &Path| SettingsFile {
        path: path.into(),
        is_explicit: true,
    };
    TlsSettings {
        mode: SslMode::VerifyFull,
        is_direct: false,
        roots: RootSource::File(named(roots)),
        revocation_list: Some(named(revocation_list)),
        revocation_directory: None,
        client_certificate: Some(named(certificate)),
        client_key: Some(named(key)),
        client_certificate_mode: ClientCertificateMode::Allow,
        has_sni: true,
        min_version: TlsVersion::V12,
        max_version: TlsVersion::V13,
    }
}

/// Loads files with these contents.
///
/// # Errors
/// A file is invalid; the error must contain its name.
fn load(roots: &[u8], revocation_list: &[u8], certificate: &[u8], key: &[u8]) -> Result<TlsConfig, SettingsError> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let write = |name: &str, contents: &[u8]| {
        let path = directory.path().join(name);
        fs::write(&path, contents).expect("the file is writable");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("the file is ours");
        path
    };
    let [roots, revocation_list] = [write("roots.pem", roots), write("crl.pem", revocation_list)];
    let [certificate, key] = [write("own.pem", certificate), write("own.key", key)];
    TlsConfig::load(&settings(&roots, &revocation_list, &certificate, &key))
}

/// A random corruption of a file: a byte changed, a part removed or repeated, or bytes inserted.
#[derive(Clone, Debug)]
enum Corruption {
    Flip(usize, u8),
    Cut(usize, usize),
    Repeat(usize, usize),
    Insert(usize, Vec<u8>),
}

fn corruption() -> impl Strategy<Value = Corruption> {
    let bytes = prop::collection::vec(any::<u8>(), 1..40);
    prop_oneof![
        (any::<usize>(), 1u8..).prop_map(|(at, mask)| Corruption::Flip(at, mask)),
        (any::<usize>(), 1usize..60).prop_map(|(at, count)| Corruption::Cut(at, count)),
        (any::<usize>(), 1usize..200).prop_map(|(at, count)| Corruption::Repeat(at, count)),
        (any::<usize>(), bytes).prop_map(|(at, bytes)| Corruption::Insert(at, bytes)),
    ]
}

fn corrupted(valid: &[u8], corruptions: &[Corruption]) -> Vec<u8> {
    let mut bytes = valid.to_vec();
    for corruption in corruptions {
        let range = |at: &usize, count: &usize| {
            let start = at % bytes.len().max(1);
            start..(start + count).min(bytes.len())
        };
        match corruption {
            Corruption::Flip(at, mask) => {
                let range = range(at, &1);
                bytes[range].iter_mut().for_each(|byte| *byte ^= mask);
            }
            Corruption::Cut(at, count) => drop(bytes.drain(range(at, count))),
            Corruption::Repeat(at, count) => {
                let part = bytes[range(at, count)].to_vec();
                let start = range(at, &0).start.min(bytes.len());
                drop(bytes.splice(start..start, part));
            }
            Corruption::Insert(at, more) => {
                let start = range(at, &0).start.min(bytes.len());
                drop(bytes.splice(start..start, more.iter().copied()));
            }
        }
    }
    bytes
}

fn der() -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).expect("a valid certificate")
}

#[test]
fn the_uncorrupted_files_are_valid() {
    let info = CertificateInfo::from_der(&der()).expect("a valid certificate");
    assert!(info.is_for("db.example") && info.is_for("a.db.example") && info.is_for("::1"));
    let [certificate, revocations] = [CERTIFICATE.as_bytes(), REVOCATIONS.as_bytes()];
    let error = load(certificate, revocations, certificate, b"")
        .err()
        .map(|error| error.to_string());
    // All but the private key, which does not exist any more.
    assert!(error.is_some_and(|error| error.contains("own.key")));
}

/// `explain_rejection` recognizes this error by the text of webpki, which an update can change.
#[test]
fn a_ca_certificate_used_by_a_server_is_recognized() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let roots = directory.path().join("roots.pem");
    fs::write(&roots, CERTIFICATE).expect("the file is writable");
    let nonexistent = directory.path().join("nonexistent");
    let settings = TlsSettings {
        revocation_list: None,
        ..settings(&roots, &nonexistent, &nonexistent, &nonexistent)
    };
    let trust = Trust::load(&settings, &Arc::new(ring::default_provider()));
    let trust = trust.ok().flatten().expect("valid roots");
    let name = ServerName::from(IpAddr::from([0, 0, 0, 0]));
    let verified = trust
        .chain_verifier
        .verify_server_cert(&der(), &[], &name, &[], UnixTime::now());
    let error = verified.expect_err("the certificate is that of a CA");
    let info = CertificateInfo::default();
    let explanation = explain_rejection(&error, &info, &trust.source);
    assert!(explanation.contains("is the certificate of a CA"), "{explanation}");
}

proptest! {
    #[test]
    fn no_file_makes_it_panic_and_errors_name_the_file(
        roots in prop::collection::vec(corruption(), 0..3),
        revocations in prop::collection::vec(corruption(), 0..3),
        own in prop::collection::vec(corruption(), 0..3),
        key in "(-----BEGIN (RSA |EC |ENCRYPTED |)PRIVATE KEY-----\n)?SECRET[A-Za-z0-9+/=\n]{0,90}\
                (\n-----END PRIVATE KEY-----\n)?",
    ) {
        let certificate = |corruptions: &[Corruption]| corrupted(CERTIFICATE.as_bytes(), corruptions);
        let revocations = corrupted(REVOCATIONS.as_bytes(), &revocations);
        if let Err(error) = load(&certificate(&roots), &revocations, &certificate(&own), key.as_bytes()) {
            let error = error.to_string();
            let names = ["roots.pem", "crl.pem", "own.pem", "own.key"];
            prop_assert!(names.iter().any(|name| error.contains(name)), "{error:?}");
            prop_assert!(!error.contains("SECRET"), "{error:?}");
        }
    }
}

#[test]
fn fuzz_server_certificate() {
    crate::fuzz::fuzz(&[der().as_ref()], |input| {
        let certificate = CertificateDer::from(input);
        let _ = PublicKey::from_certificate(&certificate);
        if let Some(info) = CertificateInfo::from_der(&certificate) {
            let _ = (info.is_for("a.db.example"), info.is_for("::1"), info.names());
        }
    });
}

proptest! {
    // A case takes microseconds, and only a small part of the certificate matters, so there can be many.
    #![proptest_config(ProptestConfig::with_cases(8 * ProptestConfig::default().cases))]

    #[test]
    fn no_server_certificate_makes_it_panic(
        corruptions in prop::collection::vec(corruption(), 0..4),
        host in "\\PC{0,30}",
    ) {
        let certificate = CertificateDer::from(corrupted(&der(), &corruptions));
        let _ = PublicKey::from_certificate(&certificate);
        if let Some(info) = CertificateInfo::from_der(&certificate) {
            let _ = info.is_for(&host);
            prop_assert!(!info.names().is_empty() || !corruptions.is_empty());
        }
    }
}
