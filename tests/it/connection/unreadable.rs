//! Files that are there, but not for us. pglock runs as an unprivileged user, since root reads everything.

use crate::support::pglock::{Output, Pglock};
use crate::support::server::unprivileged;
use crate::support::tls::{PASSWORD, Secured};
use crate::support::unique;
use nix::unistd::{Uid, User, chown};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

/// A server, and a home for the user that pglock runs as.
struct Stage {
    server: Secured,
    home: tempfile::TempDir,
    user: Option<User>,
}

impl Stage {
    fn set() -> Stage {
        let stage = Stage {
            server: Secured::start(),
            home: tempfile::tempdir().unwrap(),
            user: unprivileged(),
        };
        stage.hand_over(stage.home.path());
        stage
    }

    /// Gives a file to the user.
    fn hand_over(&self, path: &Path) {
        if let Some(user) = &self.user {
            chown(path, Some(user.uid), Some(user.gid)).unwrap();
        }
    }

    /// Writes a file of the user's, with this mode.
    fn write(&self, name: &str, contents: &[u8], mode: u32) -> PathBuf {
        let path = self.home.path().join(name);
        fs::write(&path, contents).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        self.hand_over(&path);
        path
    }

    /// Copies one of the server's certificates or keys, with this mode.
    fn copy(&self, name: &str, mode: u32) -> PathBuf {
        let contents = fs::read(self.server.pki(name)).unwrap();
        self.write(&unique(name), &contents, mode)
    }

    /// Makes a directory of the user's.
    fn directory(&self, name: &str) -> PathBuf {
        let path = self.home.path().join(name);
        fs::create_dir(&path).unwrap();
        self.hand_over(&path);
        path
    }

    /// Returns a program as the user, in the home directory.
    fn program(&self, program: &str) -> Pglock {
        let mut program = Pglock::for_program(program).env("HOME", self.home.path());
        program.command().current_dir(self.home.path());
        if let Some(user) = &self.user {
            program.command().uid(user.uid.into()).gid(user.gid.into());
        }
        program
    }

    /// Returns `pglock run` as the user, with these parameters over TCP.
    fn run(&self, parameters: &str) -> Pglock {
        let dsn = format!(
            "host=127.0.0.1 port={} dbname=postgres {parameters}",
            self.server.port()
        );
        let run = self.program(env!("CARGO_BIN_EXE_pglock"));
        run.args([
            "run",
            "--no-wait",
            "--key",
            &unique("unreadable"),
            "--dsn",
            &dsn,
            "true",
        ])
    }
}

/// Asserts the status of a wrong setting, and one line that names the file and the cause.
#[track_caller]
fn assert_denied(output: &Output, path: &Path) {
    let line = output.code(78).stderr_line();
    let end = format!(" {} cannot be read: Permission denied", path.display());
    assert!(line.ends_with(&end), "{line}");
}

/// P87: with the default `sslmode` too, with which libpq goes on without TLS.
#[test]
fn a_named_file_that_may_not_be_read_is_an_error() {
    let stage = Stage::set();
    let (certificate, key) = (stage.copy("client.crt", 0o600), stage.copy("client.key", 0o600));
    let (certificate, key) = (certificate.display(), key.display());
    let denied = ["client.crt", "client.key", "ca.crt", "ca.crl"].map(|name| stage.copy(name, 0));
    let paths = denied.each_ref().map(|path| path.display());
    let directory = stage.directory("closed");
    let hidden = directory.join("client.crt");
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o000)).unwrap();
    let good_roots = stage.copy("ca.crt", 0o644);
    for sslmode in ["prefer", "require"] {
        let cases = [
            (format!("sslcert={}", paths[0]), &denied[0]),
            (format!("sslcert={} sslkey={key}", hidden.display()), &hidden),
            (format!("sslcert={certificate} sslkey={}", paths[1]), &denied[1]),
            (format!("sslrootcert={}", paths[2]), &denied[2]),
            (
                format!("sslrootcert={} sslcrl={}", good_roots.display(), paths[3]),
                &denied[3],
            ),
        ];
        for (parameters, path) in cases {
            let run = stage.run(&format!("user=postgres sslmode={sslmode} {parameters}"));
            assert_denied(&run.output(), path);
        }
    }
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).unwrap();

    let passwords = stage.write("passwords", b"*:*:*:*:p\n", 0);
    let named = stage.run(&format!("user=postgres passfile={}", passwords.display()));
    assert_denied(&named.output(), &passwords);
    let variable = |name: &str, path: &Path| stage.run("user=postgres").env(name, path);
    assert_denied(&variable("PGPASSFILE", &passwords).output(), &passwords);
    let services = stage.write("services", b"[s]\n", 0);
    let run = variable("PGSERVICEFILE", &services).env("PGSERVICE", "s");
    assert_denied(&run.output(), &services);
}

/// P87: what is not needed is not read, what is not there is passed over as by psql, and so is what lies in a default
/// location.
#[test]
fn other_files_are_passed_over() {
    let stage = Stage::set();
    let denied = stage.copy("client.crt", 0);
    let denied = denied.display();
    let disabled = format!("user=postgres sslmode=disable sslcert={denied} sslrootcert={denied}");
    stage.run(&disabled).output().code(0).silent();
    let missing = stage.home.path().join("missing");
    let missing = missing.display();
    let parameters = format!("user=postgres sslcert={missing} sslrootcert={missing} passfile={missing}");
    stage.run(&parameters).output().code(0).silent();
    let passwords = stage.write(".pgpass", b"*:*:*:*:p\n", 0);
    stage.run("user=postgres").output().code(0).silent();
    let run = stage.run("user=postgres password=p").env("PGPASSFILE", passwords);
    assert_eq!(run.output().code(0).status.code(), Some(0));
    let directory = stage.directory(".postgresql");
    stage.write(".postgresql/postgresql.crt", b"x", 0);
    stage.run("user=postgres").output().code(0).silent();
    stage
        .run("user=postgres sslmode=require")
        .output()
        .code(78)
        .stderr_line();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o000)).unwrap();
    stage.run("user=postgres sslmode=require").output().code(0).silent();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).unwrap();
}

/// P87: mode 0440 and owned by root, as a systemd credential or a mounted Kubernetes secret. psql ignores the file, and
/// so does pglock, with a remedy that works where the file cannot be changed.
#[test]
fn a_password_file_for_a_group_is_ignored_as_by_psql_and_the_remedy_works() {
    let stage = Stage::set();
    let password = PASSWORD.replace('\\', "\\\\").replace(':', "\\:");
    let line = format!("*:*:*:scram:{password}\n");
    let credential = stage.write("credential", line.as_bytes(), 0o440);
    if let Some(user) = &stage.user {
        // Its group may read it, as the ACL of a credential allows.
        chown(&credential, Some(Uid::from_raw(0)), Some(user.gid)).unwrap();
    }
    let psql = stage.program("psql").env("PGPASSFILE", &credential);
    let dsn = format!("host=127.0.0.1 port={} user=scram dbname=postgres", stage.server.port());
    let psql = psql.args(["-w", &dsn, "-c", "SELECT 1"]).output();
    let text = String::from_utf8_lossy(&psql.code(2).stderr).into_owned();
    assert!(text.contains("has group or world access"), "{text}");

    let refused = stage.run("user=scram").env("PGPASSFILE", &credential).output();
    let text = String::from_utf8_lossy(&refused.code(77).stderr).into_owned();
    let warning = format!(
        "pglock: ignoring password file {}: it has group or world access; permissions should be 0600 or less (where chmod \
         is not possible, copy it with install -m 600 and set PGPASSFILE to the copy)\n",
        credential.display()
    );
    assert!(text.starts_with(&warning), "{text}");

    let copy = stage.home.path().join("copy");
    let install = stage.program("install").args(["-m", "600"]).arg(&credential).arg(&copy);
    install.output().code(0);
    let run = stage.run("user=scram").env("PGPASSFILE", &copy);
    run.output().code(0).silent();
}
