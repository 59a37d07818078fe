//! What a server's certificate says, and whether it is the server's that we want.
//!
//! rustls checks chains of signatures; names are compared here, as libpq does: it also takes a common name, where
//! there is no alternative name of the same kind, and private certificates of PostgreSQL servers often have no
//! more. Certificates of version 1, which PostgreSQL's manual makes and rustls cannot read, are read here, to say
//! what is wrong with them.

use rustls::pki_types::CertificateDer;
use std::net::IpAddr;
use std::time::SystemTime;
use x509_cert::Certificate;
use x509_cert::der::asn1::{Ia5StringRef, PrintableStringRef, TeletexStringRef, Utf8StringRef};
use x509_cert::der::oid::db::rfc4519::CN;
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// What concerns us of a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Version 1: without extensions, and so without alternative names.
    pub is_version_1: bool,
    /// Issuer and subject are the same.
    pub is_self_signed: bool,
    /// The moments between which it is valid.
    pub valid: Option<(SystemTime, SystemTime)>,
    dns_names: Vec<String>,
    addresses: Vec<IpAddr>,
    common_name: Option<String>,
}

/// The public key: its algorithm, as DER without the outer tag, and its bits.
pub struct PublicKey {
    /// AlgorithmIdentifier
    pub algorithm: Vec<u8>,
    /// subjectPublicKey
    pub bits: Vec<u8>,
    /// SubjectPublicKeyInfo
    pub whole: Vec<u8>,
}

/// The certificate's key; `None` if it cannot be read.
pub fn public_key(der: &CertificateDer) -> Option<PublicKey> {
    let certificate = Certificate::from_der(der).ok()?;
    let info = &certificate.tbs_certificate.subject_public_key_info;
    let algorithm = info.algorithm.to_der().ok()?;
    Some(PublicKey {
        algorithm: contents(&algorithm)?.to_vec(),
        bits: info.subject_public_key.as_bytes()?.to_vec(),
        whole: info.to_der().ok()?,
    })
}

/// A short DER value without its tag and length.
fn contents(der: &[u8]) -> Option<&[u8]> {
    match der.get(1)? {
        length @ 0..=127 => der.get(2..2 + usize::from(*length)),
        _ => None,
    }
}

/// Reads a certificate.
pub fn facts(der: &CertificateDer) -> Option<Facts> {
    let certificate = Certificate::from_der(der).ok()?;
    let tbs = &certificate.tbs_certificate;
    let validity = &tbs.validity;
    let mut facts = Facts {
        is_version_1: tbs.version == x509_cert::Version::V1,
        is_self_signed: tbs.issuer == tbs.subject,
        valid: Some((
            validity.not_before.to_system_time(),
            validity.not_after.to_system_time(),
        )),
        common_name: common_name(tbs),
        ..Facts::default()
    };
    if let Ok(Some((_, SubjectAltName(names)))) = tbs.get::<SubjectAltName>() {
        for name in names {
            match name {
                GeneralName::DnsName(name) => facts.dns_names.push(name.to_string()),
                GeneralName::IpAddress(bytes) => facts.addresses.extend(address(bytes.as_bytes())),
                _ => {}
            }
        }
    }
    Some(facts)
}

fn common_name(tbs: &x509_cert::TbsCertificate) -> Option<String> {
    let attributes = tbs.subject.0.iter().flat_map(|rdn| rdn.0.iter());
    let value = &attributes.into_iter().find(|a| a.oid == CN)?.value;
    let text = Utf8StringRef::try_from(value)
        .map(|s| s.as_str().to_owned())
        .or_else(|_| PrintableStringRef::try_from(value).map(|s| s.as_str().to_owned()))
        .or_else(|_| Ia5StringRef::try_from(value).map(|s| s.as_str().to_owned()))
        .or_else(|_| TeletexStringRef::try_from(value).map(|s| s.as_str().to_owned()));
    text.ok()
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

impl Facts {
    /// Whether the certificate is for this host.
    pub fn is_for(&self, host: &str) -> bool {
        let wanted = host.parse::<IpAddr>().ok();
        let has_own_kind = match wanted {
            Some(_) => !self.addresses.is_empty(),
            None => !self.dns_names.is_empty(),
        };
        let common_name = self.common_name.iter().filter(|_| !has_own_kind);
        wanted.is_some_and(|wanted| self.addresses.contains(&wanted))
            || self
                .dns_names
                .iter()
                .chain(common_name)
                .any(|name| name_fits(name, host))
    }

    /// All names, for people.
    pub fn names(&self) -> String {
        let addresses = self.addresses.iter().map(IpAddr::to_string);
        let names: Vec<String> = self.dns_names.iter().cloned().chain(addresses).collect();
        match (names.is_empty(), &self.common_name) {
            (false, _) => names.join(", "),
            (true, Some(common_name)) => common_name.clone(),
            (true, None) => "nobody".into(),
        }
    }
}

/// Equal but for case, or a `*.` that stands for one label.
fn name_fits(pattern: &str, host: &str) -> bool {
    if pattern.eq_ignore_ascii_case(host) {
        return true;
    }
    let Some(domain) = pattern.strip_prefix("*.").filter(|domain| !domain.is_empty()) else {
        return false;
    };
    host.split_once('.')
        .is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(domain))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(dns_names: &[&str], addresses: &[&str], common_name: &str) -> Facts {
        Facts {
            dns_names: dns_names.iter().map(|n| (*n).to_owned()).collect(),
            addresses: addresses.iter().filter_map(|a| a.parse().ok()).collect(),
            common_name: Some(common_name.to_owned()),
            ..Facts::default()
        }
    }

    #[test]
    fn a_common_name_counts_only_without_alternative_names_of_the_kind() {
        assert!(certificate(&[], &[], "db.example").is_for("DB.example"));
        assert!(!certificate(&["other"], &[], "db.example").is_for("db.example"));
        assert!(certificate(&[], &["::1"], "db.example").is_for("db.example"));
        assert!(certificate(&["other"], &[], "10.0.0.1").is_for("10.0.0.1"));
        assert!(!certificate(&[], &["10.0.0.2"], "10.0.0.1").is_for("10.0.0.1"));
        assert!(certificate(&[], &["::1"], "x").is_for("0:0::1"));
    }

    #[test]
    fn a_star_is_one_label() {
        let wild = certificate(&["*.example.com"], &[], "x");
        assert!(wild.is_for("a.EXAMPLE.com"));
        for other in ["example.com", "a.b.example.com", ".com", "aexample.com"] {
            assert!(!wild.is_for(other), "{other}");
        }
        assert!(!certificate(&["*"], &[], "x").is_for("a"));
        assert!(!certificate(&["*."], &[], "x").is_for("a."));
    }
}
