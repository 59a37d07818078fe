//! P1: streams, arguments, environment and exit status are the job's, byte for byte.

use crate::support::case::Case;
use crate::support::pglock::{Pglock, binary};
use crate::support::server::{Locks, Server, number};
use crate::support::{hostname, unique};
use nix::sys::signal::Signal;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;

/// P3
#[test]
fn every_exit_status_is_the_jobs() {
    let server = Server::shared();
    let key = unique("status");
    std::thread::scope(|threads| {
        for part in 0..4 {
            let key = &key;
            threads.spawn(move || {
                for code in (part..256).step_by(4) {
                    let output = server.run(key).arg("-s").sh(&format!("exit {code}")).output();
                    output.code(code).silent();
                }
            });
        }
    });
}

/// P3
#[test]
fn a_signal_that_terminates_the_job_terminates_pglock() {
    let server = Server::shared();
    let directory = tempfile::tempdir().unwrap();
    for signal in [
        Signal::SIGTERM,
        Signal::SIGKILL,
        Signal::SIGSEGV,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGPIPE,
        Signal::SIGUSR1,
        Signal::SIGABRT,
    ] {
        let name = &signal.as_str()[3..];
        let die = format!("kill -s {name} $$");
        // The job may dump core, as without pglock. pglock's status tells whether it did too.
        let with_cores = format!("ulimit -c $(ulimit -Hc); exec \"$@\" sh -c '{die}'");
        let mut run = server.program("sh").args(["-c", &with_cores, "sh"]);
        run.command().current_dir(directory.path());
        let key = unique("signal");
        let pglock = env!("CARGO_BIN_EXE_pglock");
        let output = run.args([pglock, "run", "-k", &key, "--"]).output();
        output.signal(signal).silent();
        assert!(!output.status.core_dumped(), "pglock dumped core: {output}");
        assert_eq!(server.locks(&key), Locks::default());
    }
}

/// P2
#[test]
fn arguments_arrive_unchanged() {
    let arguments: [&[u8]; 9] = [
        b"two\nlines",
        b"",
        b"\xff\xfe not UTF-8 \x80",
        b"  spaces  ",
        b"--key",
        b"-n",
        b"--",
        b"$HOME `date` * ' \"",
        b"",
    ];
    let output = Server::shared()
        .run(&unique("arguments"))
        .args(["--", "printf", "%s\\0"])
        .args(arguments.map(OsStr::from_bytes))
        .output();
    output.code(0).silent();
    let expected = arguments.map(|argument| [argument, b"\0"].concat()).concat();
    assert_eq!(output.stdout, expected, "{output}");
}

/// P2
#[test]
fn without_dashes_the_command_starts_at_the_first_argument() {
    let server = Server::shared();
    let run = server
        .run(&unique("dashes"))
        .args(["echo", "-n", "--key", "x", "--", "y"]);
    assert_eq!(run.output().stdout(), "--key x -- y");
}

/// P1
#[test]
fn standard_input_is_the_jobs() {
    let data: Vec<u8> = (0..1_000_000u32).map(|n| ((n * 31) >> 3) as u8).collect();
    let run = Server::shared().run(&unique("stdin")).args(["--", "cat"]);
    let output = run.output_with(&data);
    output.code(0).silent();
    assert!(output.stdout == data, "{} bytes came back", output.stdout.len());
}

/// P1: the same script, bare and under pglock.
#[test]
fn a_scenario_is_the_same_with_and_without_pglock() {
    const SCENARIO: &str = r#"
        printf 'out \000\377\n'; printf 'err \000\377' >&2
        read -r line; echo "read $line"; cat
        pwd -P; umask; env | grep -v '^PGLOCK_\|^_=' | sort
        trap 'echo trapped' USR1; kill -USR1 $$
        (exit 5); echo "five: $?"; [ -t 0 ] || echo 'no terminal' >&2
        ulimit -a; exit 213"#;
    let server = Server::shared();
    let directory = tempfile::tempdir().unwrap();
    let key = unique("scenario");
    let input = b"first line\nthe rest\n\x00\xff";
    let run = |prefix: &[&str]| {
        let script = format!(
            "umask 027; exec \"$@\" sh -c '{}' 2>&1",
            SCENARIO.replace('\'', "'\\''")
        );
        let mut run = server.program("sh").args(["-c", &script, "sh"]).args(prefix);
        run.command().current_dir(directory.path());
        run.output_with(input)
    };
    let pglock = env!("CARGO_BIN_EXE_pglock");
    let bare = run(&["env"]);
    let guarded = run(&[pglock, "run", "-k", &key, "--"]);
    assert_eq!(
        bare.code(213).stdout.len(),
        guarded.code(213).stdout.len(),
        "{bare}{guarded}"
    );
    assert!(bare.stdout == guarded.stdout, "{bare}{guarded}");
    // Each stream by itself too; above, they were one.
    let job = ["sh", "-c", SCENARIO];
    let bare = server.program("sh").args(&job[1..]).output_with(input);
    let guarded = server.run(&key).arg("--").args(job).output_with(input);
    assert!(
        bare.stdout == guarded.stdout && bare.stderr == guarded.stderr,
        "{bare}{guarded}"
    );
    assert!(bare.stderr.starts_with(b"err \0\xff"), "{bare}");
}

/// P1: in the same order, with variables that occur twice, and with entries that are none.
#[test]
fn the_environment_is_the_jobs() {
    let server = Server::shared();
    let entries = [
        "ZZZ=1",
        "twice=first",
        "AAA=2",
        "twice=second",
        "no-variable",
        "=unnamed",
    ];
    // Only execve(2) itself passes on such an environment.
    let execute = "import ctypes, os, sys\n\
        strings = lambda texts: (ctypes.c_char_p * (len(texts) + 1))(*[text.encode() for text in texts], None)\n\
        own = [f'{name}={value}' for name, value in os.environ.items()]\n\
        arguments = sys.argv[7:]\n\
        ctypes.CDLL(None).execve(arguments[0].encode(), strings(arguments), strings(sys.argv[1:7] + own))\n";
    let run = server.program("python3").args(["-c", execute]).args(entries);
    let pglock = [
        &*binary(),
        "run",
        "-k",
        &unique("environment"),
        "--",
        "cat",
        "/proc/self/environ",
    ];
    let output = run.args(pglock).output().stdout();
    let found: Vec<&str> = output.split('\0').take(entries.len()).collect();
    assert_eq!(found, entries);
}

/// P4, also in a nested pglock.
#[test]
fn the_job_finds_its_lock_in_the_environment() {
    const TELL: &str = "echo \"$PGLOCK_KEY|$PGLOCK_KEY_ID|$PGLOCK_MODE|${PGLOCK_TOKEN-unset}\"; \
        echo $PGLOCK_BACKEND_PID";
    let server = Server::shared();
    let lines = |output: String| output.lines().map(str::to_owned).collect::<Vec<_>>();
    let names = ["KEY", "KEY_ID", "MODE", "SLOT", "BACKEND_PID", "TOKEN"];
    let inherited = |run: Pglock| {
        names
            .iter()
            .fold(run, |run, name| run.env(format!("PGLOCK_{name}"), "inherited"))
    };
    let key = unique("found");
    let number = number(&key);
    let found = lines(inherited(server.run(&key)).sh(TELL).output().stdout());
    assert_eq!(found[0], format!("{key}|{number}|exclusive|unset"));
    assert!(found[1].parse::<u32>().is_ok(), "{found:?}");

    // Inside another pglock, each job finds its own lock.
    let pglock = env!("CARGO_BIN_EXE_pglock");
    let nested = server.run(&key).args(["--", pglock, "run", "-s", "-k", "-3,7", "--"]);
    let found = lines(nested.args(["sh", "-c", TELL]).output().stdout());
    assert_eq!(found[0], "-3,7|-3,7|shared|unset");
}

/// P4, P71
#[test]
fn the_session_is_known_by_name() {
    let case = Case::new();
    let (running, backend) = case.run().holding_with_backend();
    let name = case.value(&format!(
        "SELECT application_name FROM pg_stat_activity WHERE pid = {backend}"
    ));
    let host = hostname();
    let tail = format!(":{}", running.pid());
    let host_and_random = name
        .strip_prefix(&format!("pglock:{} ", case.key))
        .and_then(|rest| rest.strip_suffix(&tail));
    let (named_host, random) = host_and_random
        .and_then(|text| text.rsplit_once('~'))
        .unwrap_or_else(|| panic!("{name:?}"));
    assert!(host.starts_with(named_host) && random.len() == 6, "{name:?}");
    assert_eq!(case.locks().granted, 1);
    running.finish().code(0);
}

struct Scripts(tempfile::TempDir);

impl Scripts {
    fn new() -> Scripts {
        Scripts(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }
}

/// P5
#[test]
fn a_command_that_fails_to_start_is_126_or_127() {
    let server = Server::shared();
    let scripts = Scripts::new();
    let plain = scripts.file("plain", "#!/bin/sh\n", 0o644);
    let bad = scripts.file("bad", "#!/no/such/interpreter\n", 0o755);
    let missing = scripts.0.path().join("missing");
    for (command, code, expected) in [
        (plain.as_path(), 126, "Permission denied"),
        (bad.as_path(), 126, "interpreter"),
        (scripts.0.path(), 126, "cannot execute"),
        (missing.as_path(), 127, "not found"),
        ("no-such-command-anywhere".as_ref(), 127, "not found"),
        ("".as_ref(), 127, "not found"),
    ] {
        let key = unique("cannot");
        let output = server.run(&key).arg("--").arg(command).output();
        let line = output.code(code).stderr_line();
        assert!(line.contains(expected), "{output}");
        assert_eq!(server.locks(&key), Locks::default());
    }
}

/// P5
#[test]
fn a_script_without_a_header_is_run_by_the_shell() {
    let server = Server::shared();
    let scripts = Scripts::new();
    let script = scripts.file("bare", "echo \"$0 <$1> <$2>\"; exit 7\n", 0o755);
    let name = script.to_str().unwrap();
    let run = || server.run(&unique("script"));
    let output = run().args(["--", name, "a b", ""]).output();
    assert_eq!(
        output.code(7).stdout,
        format!("{name} <a b> <>\n").into_bytes(),
        "{output}"
    );
    // Found in PATH, and in the working directory.
    let path = format!("{}:/usr/bin:/bin", scripts.0.path().display());
    let output = run().env("PATH", path).args(["--", "bare", "x", "y"]).output();
    assert_eq!(
        output.code(7).stdout,
        format!("{name} <x> <y>\n").into_bytes(),
        "{output}"
    );
    // A file that is not executable is passed over.
    scripts.file("other", "exit 8\n", 0o644);
    let second = Scripts::new();
    second.file("other", "exit 9\n", 0o755);
    let path = [scripts.0.path(), second.0.path(), "/usr/bin".as_ref(), "/bin".as_ref()];
    let path = std::env::join_paths(path).unwrap();
    run().env("PATH", path).args(["--", "other"]).output().code(9).silent();
    let mut here = run().args(["--", "./bare", "x", "y"]);
    here.command().current_dir(scripts.0.path());
    let output = here.output();
    assert_eq!(output.code(7).stdout, b"./bare <x> <y>\n", "{output}");
}

/// P1
#[test]
fn the_working_directory_is_the_jobs() {
    let directory = tempfile::tempdir().unwrap();
    let mut run = Server::shared().run(&unique("directory")).args(["--", "pwd", "-P"]);
    run.command().current_dir(directory.path());
    let expected = directory.path().canonicalize().unwrap();
    assert_eq!(run.output().stdout(), format!("{}\n", expected.display()));
}

/// P2: `-c` is flock's.
#[test]
fn a_text_is_run_with_the_shell() {
    let case = Case::new();
    let run = |shell: Option<&str>, text: &str| {
        let mut run = case.run().args(["-x", "-c", text]);
        run.command().env_remove("SHELL");
        match shell {
            Some(shell) => run.env("SHELL", shell),
            None => run,
        }
    };
    let output = run(None, "echo \"$0\" && exit 3").output();
    assert_eq!(output.code(3).stdout, b"/bin/sh\n");
    let output = run(Some("/bin/bash"), "echo \"$0\" $BASHOPTS | cut -c -9").output();
    assert_eq!(output.code(0).stdout(), "/bin/bash\n");
    run(Some(""), "exit 4").output().code(4);
    // Not both a text and a command.
    let line = run(None, "true").args(["--", "true"]).output().code(64).stderr_line();
    assert!(line.contains("--command"), "{line}");
}
