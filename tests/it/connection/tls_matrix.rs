//! P84, P88: servers with every kind of key, signature, curve and cipher suite, with psql as the oracle.
//!
//! psql and pglock get the same connection string. They reach the server with the same version of TLS, or are both
//! refused; or the row says how pglock's refusal reads, and `docs/connecting.md` names the difference. Where
//! psql has TLS, pglock never is in plaintext.

use crate::support::pglock::Pglock;
use crate::support::server::OPENSSL_CONF;
use crate::support::tls::{PASSWORD, Secured};
use crate::support::unique;
use std::fs;
use std::process::Stdio;

/// `make NAME HASH OPTION...` creates a key, a CA with this key, and a certificate that the CA has signed.
const CERTIFICATES: &str = r#"
set -eu
umask 077
cd pki
echo subjectAltName=DNS:localhost > names
make() {
    name=$1 hash=$2; shift 2
    openssl genpkey -out $name.key "$@"
    openssl req -x509 -new -key $name.key $hash -days 30 -subj "/CN=CA of $name" -out $name-ca.crt
    openssl req -new -key $name.key $hash -subj /CN=server -out $name.csr
    openssl x509 -req -in $name.csr -CA $name-ca.crt -CAkey $name.key -set_serial 1 $hash -days 30 \
        -extfile names -out $name.crt
}
rsa() { make $1 "$2" -algorithm RSA -pkeyopt rsa_keygen_bits:$3; }
ec() { make $1 "$2" -algorithm EC -pkeyopt ec_paramgen_curve:$3; }
rsa rsa1024 -sha256 1024
rsa rsa2048 -sha256 2048
rsa rsa2048-sha1 -sha1 2048
rsa rsa2048-sha512 -sha512 2048
rsa rsa2048-signed-pss "-sha384 -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:digest" 2048
rsa rsa4096 -sha256 4096
make rsa-pss -sha256 -algorithm RSA-PSS -pkeyopt rsa_keygen_bits:2048
ec p256 -sha256 P-256
ec p256-sha1 -sha1 P-256
ec p256-sha512 -sha512 P-256
ec p384 -sha384 P-384
ec p384-sha512 -sha512 P-384
ec p521 -sha512 P-521
ec p521-sha256 -sha256 P-521
ec p521-sha384 -sha384 P-521
ec secp256k1 -sha256 secp256k1
make ed25519 "" -algorithm ED25519
make ed448 "" -algorithm ED448
"#;

/// The server loads keys that Debian's OpenSSL refuses unless it is told to. In TLS 1.2 it signs with SHA-512 whatever
/// the curve, as OpenSSL 1.0 does.
const LAX: &str = "\
openssl_conf = a\n[a]\nssl_conf = b\n[b]\nsystem_default = c\n[c]\n\
CipherString = DEFAULT@SECLEVEL=0\n\
SignatureAlgorithms = ECDSA+SHA512:ECDSA+SHA384:ECDSA+SHA256:ed25519:ed448:\
RSA-PSS+SHA512:RSA-PSS+SHA256:rsa_pss_pss_sha256:RSA+SHA512:RSA+SHA256\n";

/// A server.
struct Row {
    certificate: &'static str,
    settings: &'static [&'static str],
    /// How pglock's refusal reads, and what `docs/connecting.md` says about it; `None` if pglock connects as psql does.
    refusal: Option<(&'static str, &'static str)>,
}

const fn row(certificate: &'static str, settings: &'static [&'static str]) -> Row {
    Row {
        certificate,
        settings,
        refusal: None,
    }
}

const fn refused(row: Row, error: &'static str, words: &'static str) -> Row {
    Row {
        refusal: Some((error, words)),
        ..row
    }
}

const NOTHING_IN_COMMON: &str = "no cipher suite, curve or signature algorithm in common with pglock";
const TLS12: &str = "ssl_max_protocol_version = 'TLSv1.2'";
const P521: &str = "ssl_ecdh_curve = 'secp521r1'";

const ROWS: [Row; 29] = [
    row("rsa2048", &[]),
    row("rsa2048-sha1", &[]),
    row("rsa2048-sha512", &[]),
    row("rsa2048-signed-pss", &[]),
    row("rsa4096", &[]),
    row("p256", &[]),
    row("p256-sha1", &[]),
    row("p256-sha512", &[]),
    row("p384", &[]),
    row("p384-sha512", &[]),
    row("p521", &[]),
    row("p521-sha256", &[]),
    row("p521-sha384", &[]),
    row("ed25519", &[]),
    row("p521", &[TLS12]),
    // The client chooses the hash: pglock SHA-384.
    row("p521", &[TLS12, "ssl_prefer_server_ciphers = off"]),
    row("rsa2048", &[TLS12]),
    row("p256", &[P521]),
    row("rsa2048", &[P521, TLS12]),
    row("p521", &[P521]),
    row("p521", &[P521, TLS12]),
    row("p256", &["ssl_ecdh_curve = 'secp384r1'"]),
    // No version in common: both are in plaintext unless `sslmode` forbids it.
    row(
        "rsa2048",
        &[
            "ssl_min_protocol_version = 'TLSv1'",
            "ssl_max_protocol_version = 'TLSv1.1'",
        ],
    ),
    refused(row("rsa1024", &[]), "RSA key has 1024 bits", "2048 to 8192 bits"),
    refused(row("rsa-pss", &[]), NOTHING_IN_COMMON, "RSA-PSS"),
    refused(row("ed448", &[]), NOTHING_IN_COMMON, "Ed448"),
    refused(row("secp256k1", &[]), NOTHING_IN_COMMON, "secp256k1"),
    refused(
        row("rsa2048", &[TLS12, "ssl_ciphers = 'DHE-RSA-AES256-GCM-SHA384'"]),
        NOTHING_IN_COMMON,
        "DHE",
    ),
    refused(
        row("rsa2048", &[TLS12, "ssl_ciphers = 'ECDHE-RSA-AES256-SHA384'"]),
        NOTHING_IN_COMMON,
        "CBC",
    ),
];

/// The default `sslmode`, which is `prefer`; channel binding; TLS 1.2 and the chain of signatures.
const CLIENTS: [&str; 3] = [
    "user=postgres",
    "user=scram sslmode=require channel_binding=require",
    "user=postgres sslmode=verify-full sslrootcert={root} ssl_max_protocol_version=TLSv1.2",
];

#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// The version of TLS.
    Tls(String),
    Plaintext,
    Refused(String),
}

/// Runs psql, or pglock with psql as its job, and returns how it has reached the server. `backend` is the process ID of
/// the session to look at.
fn outcome(program: Pglock, stdout_of: impl FnOnce(Pglock) -> Pglock) -> Outcome {
    let mut program = program.env("HOME", "/nonexistent").env("PGPASSWORD", PASSWORD);
    program.command().stdin(Stdio::null());
    let output = stdout_of(program).output();
    let version = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
    match (output.status.success(), version.as_str()) {
        (false, _) => Outcome::Refused(String::from_utf8_lossy(&output.stderr).into_owned()),
        (true, "none") => Outcome::Plaintext,
        (true, _) => Outcome::Tls(version),
    }
}

fn version_of(backend: &str) -> String {
    format!("SELECT coalesce(version, 'none') FROM pg_stat_ssl WHERE pid = {backend}")
}

fn psql(dsn: &str) -> Outcome {
    outcome(Pglock::for_program("psql"), |psql| {
        psql.args(["-X", "-w", "-A", "-t", "-d", dsn, "-c", &version_of("pg_backend_pid()")])
    })
}

fn pglock(dsn: &str, server: &Secured) -> Outcome {
    let look = format!(
        "psql -X -A -t -d \"$LOOK\" -c \"{}\"",
        version_of("$PGLOCK_BACKEND_PID")
    );
    outcome(Pglock::alone(), |pglock| {
        let pglock = pglock.env("PGLOCK_DSN", dsn).env("LOOK", server.dsn());
        pglock.args(["run", "-k", &unique("matrix")]).sh(&look)
    })
}

/// Returns what is wrong with this row.
fn compare(row: &Row, server: &Secured) -> Vec<String> {
    let root = server.pki(&format!("{}-ca.crt", row.certificate));
    let dsns = CLIENTS.map(|client| server.at("localhost hostaddr=127.0.0.1", &client.replace("{root}", &root)));
    let outcomes = std::thread::scope(|scope| {
        let pairs = dsns.each_ref().map(|dsn| {
            let psql = scope.spawn(|| psql(dsn));
            (psql, scope.spawn(|| pglock(dsn, server)))
        });
        pairs.map(|(psql, pglock)| (psql.join().unwrap(), pglock.join().unwrap()))
    });
    let mut wrong = Vec::new();
    for (client, (psql, pglock)) in CLIENTS.iter().zip(outcomes) {
        let is_right = match (&row.refusal, &psql, &pglock) {
            (_, Outcome::Refused(_), Outcome::Refused(_)) => true,
            (Some((error, _)), _, Outcome::Refused(stderr)) => {
                let is_prefer = !client.contains("sslmode");
                stderr.contains(error) && stderr.contains("set sslmode=disable") == is_prefer
            }
            (None, psql, pglock) => psql == pglock,
            (Some(_), _, _) => false,
        };
        if !is_right {
            let Row {
                certificate, settings, ..
            } = row;
            wrong.push(format!(
                "{certificate} {settings:?}, {client}\n  psql   {psql:?}\n  pglock {pglock:?}"
            ));
        }
    }
    wrong
}

/// P84, P88
#[test]
fn psql_and_pglock_agree_about_every_server() {
    let server = Secured::start();
    let made = server.command("bash").args(["-c", CERTIFICATES]).output().unwrap();
    assert!(made.status.success(), "openssl: {made:?}");
    fs::write(server.directory().join(OPENSSL_CONF), LAX).unwrap();
    server.restart();
    let page = include_str!("../../../docs/connecting.md");
    let mut wrong = Vec::new();
    let version = server.version();
    for row in &ROWS {
        if version < 12 && row.settings.iter().any(|setting| setting.contains("protocol_version")) {
            println!("SKIPPED: PostgreSQL before 12 cannot limit the version of TLS");
            continue;
        }
        let certificate = row.certificate;
        let settings = ["ssl = on".to_owned()].into_iter();
        let settings = settings.chain([
            format!("ssl_cert_file = '../pki/{certificate}.crt'"),
            format!("ssl_key_file = '../pki/{certificate}.key'"),
        ]);
        let settings = settings.chain(row.settings.iter().map(|setting| (*setting).to_owned()));
        server.reload(&settings.collect::<Vec<_>>());
        wrong.extend(compare(row, &server));
        if let Some((_, words)) = row.refusal
            && !page.contains(words)
        {
            wrong.push(format!("docs/connecting.md does not mention {words}"));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}
