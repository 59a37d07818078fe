//! The committed completions in their shells: what the Tab key completes.
//!
//! Bash and zsh run on a terminal of their own, where `pglock` is a function that prints its arguments; each line is
//! typed, completed and entered. Fish prints its candidates. `probe` is a command with completions of its own (`alpha`
//! and `--opal`), which it must keep as a job.

use crate::support::command::command;
use crate::support::terminal::Terminal;
use std::fs;
use std::process::Command;
use tempfile::TempDir;

/// A line as it is typed, and what Tab makes of its last argument; `None` if there is no completion.
const CASES: &[(&str, Option<&str>)] = &[
    // pglock's own arguments.
    ("pglock compl", Some("completions")),
    ("pglock completions fi", Some("fish")),
    ("pglock run --conflict", Some("--conflict-exit-code")),
    ("pglock run --key x --nonb", Some("--nonblock")),
    ("pglock run -k x --on-lost ig", Some("ignore")),
    ("pglock run --hash rails", Some("rails-migrate")),
    ("pglock key --hash al", Some("all")),
    // The job itself.
    ("pglock run -k x prob", Some("probe")),
    ("pglock run -k x -- prob", Some("probe")),
    // The job's own arguments.
    ("pglock run -k x probe al", Some("alpha")),
    ("pglock run -k x probe --op", Some("--opal")),
    ("pglock run --key x -w 5 -- probe --op", Some("--opal")),
    ("pglock run --key=x -sv -- probe al", Some("alpha")),
    ("pglock run -sk x --on-lost=stop probe al", Some("alpha")),
    (
        "pglock run -d postgresql://u@h:1/db?a=b -k name:x:y probe al",
        Some("alpha"),
    ),
    // An option that both have is the job's.
    ("pglock run -k run probe -- -k run al", Some("alpha")),
    // An option that only pglock has is not the job's.
    ("pglock run -k x probe --conflict", None),
    ("pglock run -k x -- probe --verb", None),
    // The value of an option is not the job.
    ("pglock run -k prob", None),
];

/// The directory of the committed files.
const COMPLETIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/completions");

#[test]
fn bash_completes_pglock_and_its_job() {
    let home = home(
        ".bashrc",
        "source /usr/share/bash-completion/bash_completion
        source \"$COMPLETIONS/pglock.bash\"
        complete -W 'alpha --opal' probe
        bind 'set bell-style none'",
    );
    let rc = home.path().join(".bashrc");
    let rc = rc.to_str().unwrap();
    types_and_completes(&["bash", "--noprofile", "--rcfile", rc, "-i"], &home);
}

#[test]
fn zsh_completes_pglock_and_its_job() {
    let home = home(
        ".zshrc",
        "fpath=(\"$COMPLETIONS\" $fpath)
        autoload -U compinit
        compinit -u -D
        _probe() { compadd -- alpha --opal }
        compdef _probe probe
        unsetopt nomatch beep",
    );
    types_and_completes(&["zsh", "-d", "-i"], &home);
}

#[test]
fn fish_completes_pglock_and_its_job() {
    for (line, completed) in CASES {
        let script = "source \"$COMPLETIONS/pglock.fish\"
            function probe; end
            complete -c probe -x -a alpha
            complete -c probe -l opal
            complete -C \"$LINE\"";
        let home = home("script", "");
        let mut fish = command("fish");
        fish.args(["--no-config", "-c", script]);
        let output = with_a_bare_environment(&mut fish, &home)
            .env("LINE", line)
            .output()
            .expect("fish is installed by scripts/setup");
        let candidates = String::from_utf8(output.stdout).expect("fish prints UTF-8");
        // One candidate per line, without its description. Values of options may be completed as files.
        let offered: Vec<&str> = candidates.lines().filter_map(|line| line.split('\t').next()).collect();
        assert_eq!(
            offered,
            Vec::from_iter(*completed),
            "{line:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// Types each line, presses Tab and Enter, and checks the arguments that arrive.
fn types_and_completes(shell: &[&str], home: &TempDir) {
    let mut terminal = Terminal::with(shell, |command| {
        with_a_bare_environment(command, home);
    });
    for (line, completed) in CASES {
        let (before, typed) = line.rsplit_once(' ').expect("a line has several arguments");
        let last = completed.unwrap_or(typed);
        let arguments = before.split(' ').skip(1).chain([last]);
        let arrived = arguments.map(|argument| format!("<{argument}>")).collect::<String>() + "!";
        terminal.expect("ready> ");
        terminal.keys(&format!("{line}\t\r"));
        terminal.expect(&arrived);
    }
}

/// Creates a home directory with one file, the setup of an interactive shell.
fn home(file: &str, setup: &str) -> TempDir {
    let home = TempDir::new().unwrap();
    let text = format!(
        "PS1='ready> '
        pglock() {{ printf '<%s>' \"$@\"; echo '!'; }}
        probe() {{ :; }}
        {setup}\n"
    );
    fs::write(home.path().join(file), text).expect("the directory is writable");
    home
}

/// Keeps the caller's settings from the shell.
fn with_a_bare_environment<'a>(shell: &'a mut Command, home: &TempDir) -> &'a mut Command {
    shell
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("HOME", home.path())
        .env("ZDOTDIR", home.path())
        .env("COMPLETIONS", COMPLETIONS)
        .env("TERM", "dumb")
        .env("LC_ALL", "C")
        .current_dir(home.path())
}
