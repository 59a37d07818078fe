//! `scripts/setup`: what it would install, and that it says so first.
//!
//! Programs that only record their arguments stand for those that install something, and nothing else is on the PATH.

use crate::support::command::command;
use crate::support::pglock::Pglock;
use std::fs;
use std::path::Path;
use std::process::Output;

/// A machine that has none of what the tests need.
struct Bare {
    directory: tempfile::TempDir,
}

impl Bare {
    fn new() -> Bare {
        let directory = tempfile::tempdir().unwrap();
        let bare = Bare { directory };
        for program in ["bash", "cat", "dirname", "id", "uname"] {
            let found = Pglock::for_program("sh")
                .args(["-c", "command -v \"$0\"", program])
                .output()
                .stdout();
            std::os::unix::fs::symlink(found.trim_end(), bare.path().join(program)).unwrap();
        }
        // As root, packages are installed through env, and else through sudo.
        for program in ["apt-get", "env", "sudo", "python3", "python-tools/bin/pip"] {
            bare.program(program);
        }
        bare
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Adds a program that prints its name and arguments, unless it is a Python that only checks its modules (`-c`).
    fn program(&self, name: &str) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        // A shell writes it; see `Desk::program`.
        let write = Pglock::for_program("sh")
            .args(["-c", "cat >\"$0\"; chmod +x \"$0\""])
            .arg(&path);
        let script = "#!/bin/sh\n[ \"$1\" = -c ] || echo \"ran $0 $*\"\n";
        assert_eq!(write.output_with(script.as_bytes()).stdout(), "");
    }

    fn setup(&self, no_install: Option<&str>) -> Output {
        let mut setup = command(self.path().join("bash"));
        setup.args([concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/setup"), "test"]);
        setup.env("PATH", self.path()).env("CARGO_TARGET_DIR", self.path());
        setup
            .env_remove("NO_INSTALL")
            .envs(no_install.map(|value| ("NO_INSTALL", value)));
        setup.output().unwrap()
    }
}

#[test]
fn without_installing_it_lists_what_is_missing_and_fails() {
    let output = Bare::new().setup(Some("1"));
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    let stderr = String::from_utf8(output.stderr).unwrap();
    for missing in ["shellcheck", "tmux", "fish", "kubernetes-validate=="] {
        assert!(stderr.contains(missing), "{stderr}");
    }
}

#[test]
fn it_prints_each_command_before_it_runs_it() {
    let bare = Bare::new();
    let output = bare.setup(None);
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{stdout}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let lines: Vec<&str> = stdout.lines().collect();
    let directory = format!("{}/", bare.path().display());
    let mut ran = Vec::new();
    for pair in lines.windows(2) {
        if let Some(command) = pair[1].strip_prefix("ran ") {
            assert_eq!(
                pair[0].replace(&directory, ""),
                format!("+ {command}").replace(&directory, ""),
                "{stdout}"
            );
            ran.push(command);
        }
    }
    let installs = |what: &str, package: &str| ran.iter().any(|line| line.contains(what) && line.contains(package));
    assert!(installs("apt-get install", " shellcheck"), "{stdout}");
    assert!(installs("pip install", "kubernetes-validate=="), "{stdout}");
}
