//! The contents of a certificate, and whether it is for a given host.
//!
//! rustls verifies the chain of signatures. Names are compared here by libpq's rules, which also accept a common name
//! if there is no alternative name of the same kind: private certificates of PostgreSQL servers often have only that.
//! Version 1 certificates, which the commands in PostgreSQL's manual create and rustls cannot parse, are parsed here to
//! explain the problem.

use crate::connection::settings_error::SettingsError;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::SystemTime;
use x509_cert::der::asn1::{Ia5StringRef, PrintableStringRef, TeletexStringRef, UintRef, Utf8StringRef};
use x509_cert::der::oid::db::rfc4519::CN;
use x509_cert::der::oid::db::rfc5912::RSA_ENCRYPTION;
use x509_cert::der::{Decode, Encode, Reader, SliceReader};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::name::Name;
use x509_cert::{Certificate, TbsCertificate, Version};

/// The parts of a certificate that matter here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CertificateInfo {
    /// Version 1: without extensions, and therefore without alternative names.
    pub is_version_1: bool,
    /// Issuer and subject are the same.
    pub is_self_signed: bool,
    /// The validity period.
    pub validity: Option<RangeInclusive<SystemTime>>,
    dns_names: Vec<String>,
    addresses: Vec<IpAddr>,
    common_name: Option<String>,
}

/// The public key of a certificate.
pub(super) struct PublicKey {
    /// `AlgorithmIdentifier`, in DER without the outer tag.
    pub algorithm: Vec<u8>,
    /// `subjectPublicKey`
    pub bits: Vec<u8>,
    /// `SubjectPublicKeyInfo`, in DER.
    pub info: Vec<u8>,
}

impl PublicKey {
    /// Extracts the key; `None` if the certificate cannot be parsed.
    pub(super) fn from_certificate(der: &CertificateDer) -> Option<PublicKey> {
        let certificate = Certificate::from_der(der).ok()?;
        let info = &certificate.tbs_certificate.subject_public_key_info;
        let algorithm = info.algorithm.to_der().ok()?;
        Some(PublicKey {
            algorithm: strip_short_header(&algorithm)?.to_vec(),
            bits: info.subject_public_key.as_bytes()?.to_vec(),
            info: info.to_der().ok()?,
        })
    }
}

/// Returns whether the chain may end at one of the roots: a root has the name of a certificate's issuer. Names are
/// compared more loosely than by rustls, and at least as loosely as by OpenSSL, which ignores case and encoding.
pub(super) fn may_be_issued_by(chain: &[CertificateDer<'_>], roots: &[CertificateDer<'_>]) -> bool {
    let parse = |der: &CertificateDer| Certificate::from_der(der).ok();
    let loose = |name: &Name| name.to_string().to_lowercase().replace(' ', "");
    let subjects: Vec<_> = roots.iter().map(parse).collect();
    let mut issuers = chain.iter().map(parse);
    issuers.any(|certificate| match certificate {
        Some(certificate) => subjects.iter().any(|root| match root {
            Some(root) => loose(&root.tbs_certificate.subject) == loose(&certificate.tbs_certificate.issuer),
            None => true,
        }),
        None => true,
    })
}

/// Returns the length of the RSA key of a certificate, in bits; `None` if the key is of another type.
pub(super) fn rsa_key_bits(der: &CertificateDer) -> Option<usize> {
    let certificate = Certificate::from_der(der).ok()?;
    let info = certificate.tbs_certificate.subject_public_key_info;
    if info.algorithm.oid != RSA_ENCRYPTION {
        return None;
    }
    // RSAPublicKey (RFC 8017, A.1.1): modulus and exponent.
    let mut reader = SliceReader::new(info.subject_public_key.as_bytes()?).ok()?;
    let modulus_bytes = reader.sequence(|key| {
        let modulus = UintRef::decode(key)?;
        UintRef::decode(key)?;
        Ok(modulus.as_bytes().len())
    });
    Some(8 * modulus_bytes.ok()?)
}

/// Returns the contents of a DER value whose length takes one byte.
fn strip_short_header(der: &[u8]) -> Option<&[u8]> {
    match der.get(1)? {
        length @ 0..=127 => der.get(2..2 + usize::from(*length)),
        _ => None,
    }
}

/// Reads the certificates of a PEM file.
///
/// # Errors
/// The file cannot be read, or contains no certificate.
pub(super) fn read_pem_file(path: &Path) -> Result<Vec<CertificateDer<'static>>, SettingsError> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let certificates =
        parsed.map_err(|error| SettingsError::file("certificate file", path, format!("cannot be read: {error}")))?;
    if certificates.is_empty() {
        return Err(SettingsError::file(
            "certificate file",
            path,
            "contains no certificate in PEM format",
        ));
    }
    Ok(certificates)
}

impl CertificateInfo {
    /// Parses a certificate; `None` if that fails.
    pub(super) fn from_der(der: &CertificateDer) -> Option<CertificateInfo> {
        let certificate = Certificate::from_der(der).ok()?;
        let tbs = &certificate.tbs_certificate;
        let not_before = tbs.validity.not_before.to_system_time();
        let not_after = tbs.validity.not_after.to_system_time();
        let mut info = CertificateInfo {
            is_version_1: tbs.version == Version::V1,
            is_self_signed: tbs.issuer == tbs.subject,
            validity: Some(not_before..=not_after),
            common_name: common_name(tbs),
            ..CertificateInfo::default()
        };
        if let Ok(Some((_, SubjectAltName(names)))) = tbs.get::<SubjectAltName>() {
            for name in names {
                match name {
                    GeneralName::DnsName(name) => info.dns_names.push(name.to_string()),
                    GeneralName::IpAddress(bytes) => info.addresses.extend(ip_address(bytes.as_bytes())),
                    _ => {}
                }
            }
        }
        Some(info)
    }

    /// Returns whether the certificate is for this host.
    pub(super) fn is_for(&self, host: &str) -> bool {
        let address = host.parse::<IpAddr>().ok();
        let has_same_kind = match address {
            Some(_) => !self.addresses.is_empty(),
            None => !self.dns_names.is_empty(),
        };
        if address.is_some_and(|address| self.addresses.contains(&address)) {
            return true;
        }
        let common_name = self.common_name.iter().filter(|_| !has_same_kind);
        let mut names = self.dns_names.iter().chain(common_name);
        names.any(|name| name_matches(name, host))
    }

    /// Lists the names of the certificate for a message.
    pub(super) fn names(&self) -> String {
        let addresses = self.addresses.iter().map(IpAddr::to_string);
        let names: Vec<String> = self.dns_names.iter().cloned().chain(addresses).collect();
        match (names.is_empty(), &self.common_name) {
            (false, _) => names.join(", "),
            (true, Some(common_name)) => common_name.clone(),
            (true, None) => "no name".into(),
        }
    }
}

fn common_name(tbs: &TbsCertificate) -> Option<String> {
    let mut attributes = tbs.subject.0.iter().flat_map(|rdn| rdn.0.iter());
    let value = &attributes.find(|attribute| attribute.oid == CN)?.value;
    let text = Utf8StringRef::try_from(value)
        .map(|text| text.as_str().to_owned())
        .or_else(|_| PrintableStringRef::try_from(value).map(|text| text.as_str().to_owned()))
        .or_else(|_| Ia5StringRef::try_from(value).map(|text| text.as_str().to_owned()))
        .or_else(|_| TeletexStringRef::try_from(value).map(|text| text.as_str().to_owned()));
    text.ok()
}

fn ip_address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// Returns whether a name matches: equal apart from case, or with `*.` in place of one label.
fn name_matches(pattern: &str, host: &str) -> bool {
    if pattern.eq_ignore_ascii_case(host) {
        return true;
    }
    match (pattern.strip_prefix("*."), host.split_once('.')) {
        (Some(domain), Some((_, rest))) => !domain.is_empty() && rest.eq_ignore_ascii_case(domain),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(dns_names: &[&str], addresses: &[&str], common_name: &str) -> CertificateInfo {
        CertificateInfo {
            dns_names: dns_names.iter().map(|n| (*n).to_owned()).collect(),
            addresses: addresses.iter().filter_map(|a| a.parse().ok()).collect(),
            common_name: Some(common_name.to_owned()),
            ..CertificateInfo::default()
        }
    }

    #[test]
    fn the_common_name_counts_only_without_alternative_names_of_the_same_kind() {
        assert!(certificate(&[], &[], "db.example").is_for("DB.example"));
        assert!(!certificate(&["other"], &[], "db.example").is_for("db.example"));
        assert!(certificate(&[], &["::1"], "db.example").is_for("db.example"));
        assert!(certificate(&["other"], &[], "10.0.0.1").is_for("10.0.0.1"));
        assert!(!certificate(&[], &["10.0.0.2"], "10.0.0.1").is_for("10.0.0.1"));
        assert!(certificate(&[], &["::1"], "x").is_for("0:0::1"));
    }

    #[test]
    fn a_wildcard_matches_exactly_one_label() {
        let wild = certificate(&["*.example.com"], &[], "x");
        assert!(wild.is_for("a.EXAMPLE.com"));
        for other in ["example.com", "a.b.example.com", ".com", "aexample.com"] {
            assert!(!wild.is_for(other), "{other}");
        }
        assert!(!certificate(&["*"], &[], "x").is_for("a"));
        assert!(!certificate(&["*."], &[], "x").is_for("a."));
    }
}
