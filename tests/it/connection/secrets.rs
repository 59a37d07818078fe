//! Passwords: where they come from, the prompt on a terminal, and that they are never shown.

use crate::support::pglock::{Pglock, binary};
use crate::support::terminal::Terminal;
use crate::support::tls::{PASSWORD, Secured};
use crate::support::unique;
use crate::support::wait::{SOON, eventually};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::OnceLock;

fn server() -> &'static Secured {
    static SERVER: OnceLock<Secured> = OnceLock::new();
    SERVER.get_or_init(Secured::start)
}

/// Returns a connection string without a password.
fn dsn() -> String {
    server().at("127.0.0.1", "user=scram sslmode=disable")
}

fn pglock(dsn: &str) -> Pglock {
    let run = Pglock::alone().env("HOME", "/nonexistent").env("PGLOCK_DSN", dsn);
    run.args(["run", "-k", &unique("secrets")])
}

/// P82: the warning suggests the variable or the file.
#[test]
fn a_password_on_the_command_line_causes_a_warning() {
    let quoted = PASSWORD.replace('\\', "\\\\").replace('\'', "\\'");
    let with_password = dsn() + &format!(" password='{quoted}'");
    let output = pglock("").args(["-d", &with_password, "--", "true"]).output();
    let line = output.code(0).stderr_line();
    assert!(line.contains("PGLOCK_DSN") && line.contains("~/.pgpass"), "{line}");
    assert!(!line.contains("w@rd"), "{line}");
    pglock(&with_password).args(["--", "true"]).output().code(0).silent();
    let variable = pglock("")
        .args(["-d", &dsn(), "--", "true"])
        .env("PGPASSWORD", PASSWORD);
    variable.output().code(0).silent();
}

/// P80, P82: format, escapes, wildcards and permissions as in libpq; nothing of it reaches the job.
#[test]
fn the_password_file() {
    let escaped = PASSWORD.replace('\\', "\\\\").replace(':', "\\:");
    let home = server().home("passfile", &[(".pgpass", &format!("127.0.0.1:*:*:scram:{escaped}\n"))]);
    let run = || pglock(&dsn()).env("HOME", &home);
    let env = run().args(["--", "env"]).output().stdout();
    assert!(!env.contains("w@rd"), "{env}");
    let file = home.join(".pgpass");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    let output = run().args(["--", "true"]).output();
    let stderr = String::from_utf8_lossy(&output.code(77).stderr).into_owned();
    let lines: Vec<&str> = stderr.lines().collect();
    assert!(
        lines[0].contains("group or world access") && lines[1].contains("no password supplied"),
        "{stderr}"
    );
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&file, "*:*:*:*:wr0ng\n").unwrap();
    let line = run().args(["-v", "--", "true"]).output().code(77).stderr_line();
    assert!(
        line.contains("(password retrieved from file ") && !line.contains("wr0ng"),
        "{line}"
    );
    let fifo = home.join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let output = run().env("PGPASSFILE", &fifo).args(["--", "true"]).output();
    let stderr = String::from_utf8_lossy(&output.code(77).stderr).into_owned();
    assert!(stderr.contains("it is not a regular file"), "{stderr}");
}

/// Starts a shell on a terminal that runs pglock, and then prints its status and whether the terminal echoes.
fn asking(options: &str) -> Terminal {
    let script = format!(
        "$PGLOCK run -k {} {options} -- sh -c 'echo the job: ran'; echo \"status=$?\"; stty -a | grep -ow -e '-*echo'; read -r line; echo \"read:$line\"",
        unique("prompt")
    );
    Terminal::with(&["sh", "-c", &script], |command| {
        command.env("PGLOCK", env!("CARGO_BIN_EXE_pglock"));
        command.env("PGLOCK_DSN", dsn()).env("HOME", "/nonexistent");
    })
}

/// P83, and that pglock does not prompt without a terminal.
#[test]
fn a_terminal_is_prompted() {
    let mut terminal = asking("");
    terminal.expect("Password for user scram: ");
    terminal.keys(&format!("{PASSWORD}\n"));
    terminal.expect("the job: ran");
    terminal.expect("status=0");
    terminal.expect("\necho");
    assert!(!terminal.screen().contains("w@rd"), "{}", terminal.screen());

    let mut terminal = asking("");
    terminal.expect("Password for user scram: ");
    terminal.keys("wr0ng\n");
    terminal.expect("password authentication failed");
    terminal.expect("status=77");
    assert!(!terminal.screen().contains("wr0ng"), "{}", terminal.screen());

    // Without a terminal, the failure comes at once.
    let line = pglock(&dsn()).args(["--", "true"]).output().code(77).stderr_line();
    assert!(line.contains("no password supplied"), "{line}");
}

/// P83: when the wait is over, and after Ctrl-C.
#[test]
fn the_echo_is_restored_when_the_prompt_ends() {
    let mut terminal = asking("--wait 1");
    terminal.expect("Password for user scram: ");
    terminal.expect("pglock: no password was entered within 1s");
    terminal.expect("status=69");
    terminal.expect("\necho");
    terminal.keys("visible\n");
    terminal.expect("read:visible");

    // `run` has its own handler of Ctrl-C; the commands that run no job have one for the prompt.
    for arguments in [format!("run -k {} -- true", unique("prompt")), "list".to_owned()] {
        let script = format!(
            "trap 'echo interrupted' INT; $PGLOCK {arguments}; echo \"status=$?\"; stty -a | grep -ow -e '-*echo'; \
             read -r line"
        );
        let mut terminal = Terminal::with(&["sh", "-c", &script], |command| {
            command.env("PGLOCK", env!("CARGO_BIN_EXE_pglock"));
            command.env("PGLOCK_DSN", dsn()).env("HOME", "/nonexistent");
        });
        terminal.expect("Password for user scram: ");
        terminal.keys("\x03");
        terminal.expect("status=130");
        terminal.expect("\necho");
    }
}

/// P83: after each other signal that an operator ends a program with, and the signal ends it as before.
#[test]
fn the_echo_is_restored_before_a_signal_ends_the_prompt() {
    for arguments in [format!("run -k {} -- true", unique("prompt")), "list".to_owned()] {
        for (signal, status) in [(Signal::SIGTERM, 143), (Signal::SIGHUP, 129), (Signal::SIGQUIT, 131)] {
            let script = format!(
                "ulimit -c 0; sh -c 'echo $$; exec $PGLOCK {arguments}'; echo \"status=$?\"; \
                 stty -a | grep -ow -e '-*echo'; read -r line"
            );
            let mut terminal = Terminal::with(&["sh", "-c", &script], |command| {
                command.env("PGLOCK", binary());
                command.env("PGLOCK_DSN", dsn()).env("HOME", "/nonexistent");
            });
            terminal.expect("Password for user scram: ");
            let pid = terminal.screen().lines().next().unwrap().trim().parse().unwrap();
            kill(Pid::from_raw(pid), signal).unwrap();
            terminal.expect(&format!("status={status}"));
            terminal.expect("\necho");
        }
    }
}

/// P82: not in errors, with `-v`, or in process arguments.
#[test]
fn no_part_of_a_password_is_shown() {
    let server = server();
    let quoted = PASSWORD.replace('\\', "\\\\").replace('\'', "\\'");
    for rest in [
        "",
        "sslmode=require",
        "sslmode=verify-full",
        "dbname=none",
        "connect_timeout=x",
        "user=md5",
        "hostaddr=x",
    ] {
        let dsn = dsn() + &format!(" password='{quoted}' {rest}");
        let output = pglock(&dsn).args(["-v", "--", "true"]).output();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!stderr.contains("w@rd") && !stderr.contains("p:a"), "{stderr}");
    }
    let running = pglock(&dsn()).env("PGPASSWORD", PASSWORD).holding();
    let arguments = fs::read(format!("/proc/{}/cmdline", running.pid())).unwrap_or_default();
    assert!(!String::from_utf8_lossy(&arguments).contains("w@rd"));
    eventually(SOON, "the session", || {
        !server
            .sql("SELECT 1 FROM pg_stat_activity WHERE usename = 'scram'")
            .is_empty()
    });
    running.finish().code(0);
}

/// P82: nor those of a connection string that is given in the wrong place, or in the form of another library.
#[test]
fn a_misplaced_connection_string_is_not_shown() {
    const URI: &str = "postgres://app:hunter2@127.0.0.1/app";
    let directory = server().home("services", &[("services", "[s]\ndbname=postgres;password=hunter2\n")]);
    let services = directory.join("services").display().to_string();
    let (port, host) = (server().port().to_string(), ("PGHOST", "127.0.0.1"));
    let port = ("PGPORT", port.as_str());
    for variables in [
        [("PGLOCK_DSN", &*format!(" {URI}")), host, port],
        [("PGLOCK_DSN", &*format!("'{URI}'")), host, port],
        [("PGLOCK_DSN", "app:hunter2@127.0.0.1/app"), host, port],
        [("PGLOCK_DSN", "user=postgres;pwd=hunter2"), host, port],
        [("PGDATABASE", URI), host, port],
        [("PGUSER", URI), host, port],
        [("PGHOST", "app:hunter2@127.0.0.1/app"), ("PGUSER", "postgres"), port],
        [("PGDATABASE", "app:hunter2@db/app"), host, port],
        [
            ("PGDATABASE", "host=db user=app password=hunter2 dbname=app"),
            host,
            port,
        ],
        [("PGHOST", "db user=app password=hunter2"), ("PGUSER", "postgres"), port],
        [("PGPORT", "5432 user=app pwd=hunter2"), host, ("PGUSER", "postgres")],
        [("PGLOCK_DSN", "host=app:hunter2@db dbname=app"), host, port],
        [
            ("DATABASE_URL", "postgres://postgres@/app?host=app:hunter2@127.0.0.1"),
            host,
            port,
        ],
        [
            ("PGSERVICE", "s"),
            ("PGSERVICEFILE", services.as_str()),
            ("PGHOST", "127.0.0.1"),
        ],
        [
            ("DATABASE_URL", "User=app;Host=127.0.0.1;Port=1;Password=hunter2"),
            host,
            port,
        ],
    ] {
        let mut run = Pglock::alone().env("HOME", "/nonexistent").env("PGUSER", "postgres");
        for (name, value) in variables {
            run = run.env(name, value);
        }
        let output = run
            .args(["run", "-v", "-k", &unique("misplaced"), "--", "true"])
            .output();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && !stderr.contains("hunter2"),
            "{variables:?}: {stderr}"
        );
    }
}
