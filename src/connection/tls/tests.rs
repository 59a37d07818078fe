//! What the files of TLS can hold: whatever is in them, an error that names the file and shows nothing of it.
//!
//! A good certificate and a good revocation list (of nobody, made for this, without their key) are mutilated at random.

use super::*;
use proptest::prelude::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;

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

/// Settings with these files, and no others.
fn ssl(roots: &Path, crl: &Path, certificate: &Path, key: &Path) -> Ssl {
    Ssl {
        mode: SslMode::VerifyFull,
        direct: false,
        roots: Roots::File {
            path: roots.into(),
            given: true,
        },
        crl: Some((crl.into(), true)),
        crl_folder: None,
        certificate: Some((certificate.into(), true)),
        key: Some(key.into()),
        cert_mode: CertMode::Allow,
        sni: true,
        min: TlsVersion::V12,
        max: TlsVersion::V13,
    }
}

/// The error of loading files with these texts, which must be told with the name of the one that is wrong.
fn loaded(roots: &[u8], crl: &[u8], certificate: &[u8], key: &[u8]) -> Result<Tls, String> {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, text).expect("room");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
        path
    };
    let [roots, crl] = [write("roots.pem", roots), write("crl.pem", crl)];
    let [certificate, key] = [write("own.pem", certificate), write("own.key", key)];
    Tls::load(&ssl(&roots, &crl, &certificate, &key))
}

/// How a file is spoilt: a byte changed, a part cut out, a part twice, something put in.
#[derive(Clone, Debug)]
enum Spoiling {
    Flip(usize, u8),
    Cut(usize, usize),
    Twice(usize, usize),
    Insert(usize, Vec<u8>),
}

fn spoiling() -> impl Strategy<Value = Spoiling> {
    prop_oneof![
        (any::<usize>(), 1u8..).prop_map(|(at, by)| Spoiling::Flip(at, by)),
        (any::<usize>(), 1usize..60).prop_map(|(at, count)| Spoiling::Cut(at, count)),
        (any::<usize>(), 1usize..200).prop_map(|(at, count)| Spoiling::Twice(at, count)),
        (any::<usize>(), prop::collection::vec(any::<u8>(), 1..40)).prop_map(|(at, bytes)| Spoiling::Insert(at, bytes)),
    ]
}

fn spoilt(good: &[u8], how: &[Spoiling]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for spoiling in how {
        let place = |at: &usize, count: &usize| {
            let at = at % bytes.len().max(1);
            at..(at + count).min(bytes.len())
        };
        match spoiling {
            Spoiling::Flip(at, by) => {
                let at = place(at, &1);
                bytes[at].iter_mut().for_each(|byte| *byte ^= by);
            }
            Spoiling::Cut(at, count) => drop(bytes.drain(place(at, count))),
            Spoiling::Twice(at, count) => {
                let part = bytes[place(at, count)].to_vec();
                let at = place(at, &0).start.min(bytes.len());
                drop(bytes.splice(at..at, part));
            }
            Spoiling::Insert(at, more) => {
                let at = place(at, &0).start.min(bytes.len());
                drop(bytes.splice(at..at, more.iter().copied()));
            }
        }
    }
    bytes
}

fn der() -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).expect("a good certificate")
}

#[test]
fn the_good_files_are_good() {
    let facts = certificate::facts(&der()).expect("a good certificate");
    assert!(facts.is_for("db.example") && facts.is_for("a.db.example") && facts.is_for("::1"));
    let error = loaded(
        CERTIFICATE.as_bytes(),
        REVOCATIONS.as_bytes(),
        CERTIFICATE.as_bytes(),
        b"",
    );
    // All but the key, which nobody has.
    assert!(error.is_err_and(|error| error.contains("own.key")));
}

proptest! {
    #[test]
    fn no_file_makes_it_panic_and_the_error_names_it(
        roots in prop::collection::vec(spoiling(), 0..3),
        crl in prop::collection::vec(spoiling(), 0..3),
        own in prop::collection::vec(spoiling(), 0..3),
        key in "(-----BEGIN (RSA |EC |ENCRYPTED |)PRIVATE KEY-----\n)?SECRET[A-Za-z0-9+/=\n]{0,90}(\n-----END PRIVATE KEY-----\n)?",
    ) {
        let of = |how: &[Spoiling]| spoilt(CERTIFICATE.as_bytes(), how);
        let crl = spoilt(REVOCATIONS.as_bytes(), &crl);
        if let Err(error) = loaded(&of(&roots), &crl, &of(&own), key.as_bytes()) {
            let names = ["roots.pem", "crl.pem", "own.pem", "own.key"];
            prop_assert!(names.iter().any(|name| error.contains(name)), "{error:?}");
            prop_assert!(!error.contains("SECRET"), "{error:?}");
        }
    }
}

proptest! {
    // They are read in no time, and what matters of one is a small part of it.
    #![proptest_config(ProptestConfig::with_cases(8 * ProptestConfig::default().cases))]

    #[test]
    fn no_certificate_of_a_server_makes_it_panic(how in prop::collection::vec(spoiling(), 0..4), host in "\\PC{0,30}") {
        let bytes = CertificateDer::from(spoilt(&der(), &how));
        let _ = certificate::public_key(&bytes);
        if let Some(facts) = certificate::facts(&bytes) {
            let _ = facts.is_for(&host);
            prop_assert!(!facts.names().is_empty() || !how.is_empty());
        }
    }
}
