//! A server with TLS and every authentication method, and its certificates, made by `openssl`.
//!
//! The role determines how a client is authenticated: see [`RULES`]. The server's certificate can be exchanged, which
//! restarts the server. All files are in the server's directory, below `pki`.

use super::server::{SUPERUSER, Server, rows, unprivileged};
use super::wait::{SOON, eventually};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::ops::Deref;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;

/// The password of every role that has one.
pub const PASSWORD: &str = "p:a\\ss'w@rd %41";

const RULES: &str = "\
    local all,replication all trust\n\
    host    all scram        127.0.0.1/32 scram-sha-256\n\
    host    all md5          127.0.0.1/32 md5\n\
    host    all clear        127.0.0.1/32 password\n\
    hostssl all with_tls     127.0.0.1/32 trust\n\
    hostnossl all without_tls 127.0.0.1/32 trust\n\
    hostssl all half         127.0.0.1/32 scram-sha-256\n\
    hostnossl all half       127.0.0.1/32 trust\n\
    hostssl all with_cert    127.0.0.1/32 cert\n\
    hostnossl all with_tls,with_cert 127.0.0.1/32 reject\n\
    hostssl all without_tls  127.0.0.1/32 reject\n\
    host    all,replication all 127.0.0.1/32 trust\n";

/// Creates all certificates. `leaf NAME SUBJECT CA [EXTENSION]...` creates NAME.crt and NAME.key.
const CERTIFICATES: &str = r#"
set -eu
umask 077
mkdir pki && cd pki
ec="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
for ca in ca other; do
    openssl req -x509 $ec -days 30 -subj "/CN=$ca" -keyout $ca.key -out $ca.crt
done
# The same CA to OpenSSL, which ignores the case of names.
openssl req -x509 -key ca.key -days 30 -subj "/CN=CA" -out ca-upper.crt
leaf() {
    name=$1 subject=$2 ca=$3; shift 3
    openssl req -new $ec -subj "/CN=$subject" -keyout $name.key -out request
    printf '%s\n' "$@" > extensions
    openssl x509 -req -in request -CA $ca.crt -CAkey $ca.key -CAcreateserial -out $name.crt \
        -days ${days:-30} ${1:+-extfile extensions}
}
names=subjectAltName=DNS:localhost,IP:127.0.0.1
leaf good      server    ca $names
leaf wrong     localhost ca subjectAltName=DNS:elsewhere.example
leaf wildcard  server    ca "subjectAltName=DNS:*.localhost"
leaf common    localhost ca basicConstraints=CA:FALSE
leaf version1  localhost ca
leaf unknown   server    other $names
leaf revoked   server    ca $names
days=-1 leaf expired server ca $names
openssl req -x509 $ec -days 30 -subj /CN=localhost -keyout self.key -out self.crt
openssl req -new -newkey rsa:2048 -nodes -subj /CN=localhost -keyout version1rsa.key -out request
openssl x509 -req -in request -CA ca.crt -CAkey ca.key -out version1rsa.crt -days 30
# The clients': RSA in both forms, and EC in both.
openssl req -new -newkey rsa:2048 -nodes -subj /CN=with_cert -keyout client.key -out request
openssl x509 -req -in request -CA ca.crt -CAkey ca.key -out client.crt -days 30
openssl pkey -in client.key -traditional -out client-pkcs1.key
leaf client-ec with_cert ca basicConstraints=CA:FALSE
openssl pkey -in client-ec.key -traditional -out client-sec1.key
openssl pkey -in client-ec.key -outform DER -out client-der.key
leaf client-other with_cert other basicConstraints=CA:FALSE
openssl pkey -in client.key -aes128 -passout pass:x -out client-encrypted.key
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-521 -nodes -days 30 -subj /CN=with_cert \
    -keyout client-p521.key -out client-p521.crt
cp client.key client-open.key && chmod 644 client-open.key
: > index && echo 01 > crlnumber
cat > ca.conf <<END
[ca]
default_ca = this
[this]
database = index
crlnumber = crlnumber
default_md = sha256
default_crl_days = 30
END
openssl ca -config ca.conf -cert ca.crt -keyfile ca.key -revoke revoked.crt
openssl ca -config ca.conf -cert ca.crt -keyfile ca.key -gencrl -out ca.crl
cat ca.crt self.crt > ca-and-self.crt
"#;

/// A server with TLS.
pub struct Secured(Server);

impl Deref for Secured {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.0
    }
}

impl Secured {
    /// Starts a server with the good certificate.
    pub fn start() -> Secured {
        let server = Server::start();
        let made = server
            .command("bash")
            .args(["-c", CERTIFICATES])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(made.status.success(), "openssl: {made:?}");
        let password = PASSWORD.replace('\'', "''");
        let roles = ["scram", "md5", "clear", "half"].map(|role| {
            let method = if role == "md5" { "md5" } else { "scram-sha-256" };
            format!("SET password_encryption = '{method}'; CREATE ROLE {role} LOGIN PASSWORD '{password}';")
        });
        let others = ["with_tls", "without_tls", "with_cert"];
        let others = others.map(|role| format!("CREATE ROLE {role} LOGIN;"));
        server.sql(&(roles.concat() + &others.concat()));
        fs::write(server.directory().join("data/pg_hba.conf"), RULES).unwrap();
        for setting in ["ssl = on", "ssl_ca_file = '../pki/ca.crt'"] {
            server.sql(&format!("ALTER SYSTEM SET {setting}"));
        }
        let secured = Secured(server);
        secured.show("good");
        secured
    }

    /// Restarts the server with this certificate.
    pub fn show(&self, name: &str) {
        for (setting, kind) in [("ssl_cert_file", "crt"), ("ssl_key_file", "key")] {
            self.sql(&format!("ALTER SYSTEM SET {setting} = '../pki/{name}.{kind}'"));
        }
        self.restart();
    }

    /// Reloads the server's configuration with these settings alone. New connections see them, and TLS has been set up
    /// again.
    pub fn reload(&self, settings: &[String]) {
        let mut client = self.client();
        rows(&mut client, "ALTER SYSTEM RESET ALL");
        // Which new connections show that the server has read the file.
        let mark = super::unique("reload");
        let marked = format!("log_line_prefix = '{mark} '");
        for setting in settings.iter().chain([&marked]) {
            rows(&mut client, &format!("ALTER SYSTEM SET {setting}"));
        }
        rows(&mut client, "SELECT pg_reload_conf()");
        let is_read = || self.value("SHOW log_line_prefix").trim_end() == mark;
        eventually(SOON, "the new settings", is_read);
        let log = self.log();
        let is_refused = log.contains(&format!("{mark} LOG:  SSL configuration was not reloaded"));
        assert!(!is_refused, "{settings:?}: {log}");
    }

    /// Returns the path of a file below `pki`.
    pub fn pki(&self, name: &str) -> String {
        self.directory().join("pki").join(name).to_str().unwrap().to_owned()
    }

    /// Returns a connection string for TCP.
    pub fn at(&self, host: &str, rest: &str) -> String {
        let port = self.port();
        format!("host={host} port={port} dbname={SUPERUSER} {rest}")
    }

    /// Creates a directory for `HOME` with these files, readable only by its owner.
    pub fn home(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let home = self.directory().join(name);
        create_directory(&home);
        for (file, text) in files {
            let path = home.join(file);
            create_directory(path.parent().unwrap());
            fs::write(&path, text).unwrap();
            private(&path);
        }
        home
    }
}

/// Creates a directory that the server's user can remove, with all that is in it, when the test process has ended.
fn create_directory(path: &Path) {
    fs::create_dir_all(path).unwrap();
    if let Some(user) = unprivileged() {
        chown(path, Some(user.uid.into()), Some(user.gid.into())).unwrap();
    }
}

/// Returns the port of a server without TLS that requests Kerberos authentication, which many builds of PostgreSQL do
/// not support. It listens as long as the test process lives.
pub fn kerberos_server() -> u16 {
    const GSS_REQUEST: &[u8] = b"R\0\0\0\x08\0\0\0\x07";
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        while let Ok((mut client, _)) = listener.accept() {
            // The startup packet, and all that comes until the client closes the connection.
            let _ = client.read(&mut [0; 1024]);
            let _ = client.write_all(GSS_REQUEST);
            let _ = client.read_to_end(&mut Vec::new());
        }
    });
    port
}

/// Only its owner can read it.
pub fn private(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}
