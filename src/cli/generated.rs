//! The completions and the manual page in `completions/`: made from the command line's own definitions.
//!
//! They are committed, so that neither the binary nor its build needs a generator, and the tests here fail when
//! they are stale. `make completions` rewrites them. What clap cannot know is in `src/cli/generated/`: how the shells
//! complete the job as the command that it is, and the prose of the manual page.

use crate::cli;
use crate::key::hash::{Subject, TABLE};
use crate::outcome::EXIT_TABLE;
use clap::{Arg, ValueEnum, ValueHint};
use clap_complete::Shell;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

const JOB_IN_BASH: &str = include_str!("generated/job.bash");
const JOB_IN_FISH: &str = include_str!("generated/job.fish");
/// Those that have options.
const SUBCOMMANDS: [&str; 5] = ["run", "list", "evict", "check", "key"];

const MANUAL: &str = include_str!("generated/pglock.1.in");

#[test]
fn bash_is_up_to_date() {
    let script = complete(Shell::Bash);
    let script = replace_once(
        &script,
        "_pglock() {\n",
        &format!("{}_pglock() {{\n", with_options(JOB_IN_BASH)),
    );
    let offset = "    COMPREPLY=()\n    \
        local job\n    \
        if _pglock_job && declare -F _command_offset >/dev/null; then\n        \
            _command_offset \"$job\"\n        \
            return\n    \
        fi\n";
    let script = replace_first(&script, "    COMPREPLY=()\n", offset);
    is_up_to_date("pglock.bash", &script);
}

#[test]
fn zsh_is_up_to_date() {
    let script = complete(Shell::Zsh);
    // From its first word on, the rest is a command line of its own.
    let script = replace_once(&script, "'*::command -- ", "'(-)*:::command -- ");
    let script = replace_once(&script, ":_cmdambivalent'", ":_normal'");
    is_up_to_date("_pglock", &script);
}

#[test]
fn fish_is_up_to_date() {
    let script = complete(Shell::Fish);
    let script = script.replace(
        "\"__fish_pglock_using_subcommand run\"",
        "\"__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null\"",
    );
    // clap leaves out the values of an argument that is no option.
    let shells = cli::Shell::value_variants()
        .iter()
        .filter_map(|shell| shell.to_possible_value());
    let shells: Vec<String> = shells.map(|shell| shell.get_name().to_owned()).collect();
    let job = replace_once(&with_options(JOB_IN_FISH), "@SHELLS@", &shells.join(" "));
    is_up_to_date("pglock.fish", &format!("{script}\n{job}"));
}

#[test]
fn the_manual_is_up_to_date() {
    let mut manual = replace_once(MANUAL, "@VERSION@", env!("CARGO_PKG_VERSION"));
    for name in SUBCOMMANDS {
        let mark = format!("@OPTIONS {name}@\n");
        manual = replace_once(&manual, &mark, &options_in_roff(name));
    }
    for (mark, subject) in [
        ("@SCHEMES name@\n", Subject::Name),
        ("@SCHEMES database@\n", Subject::Database),
        ("@SCHEMES nothing@\n", Subject::Nothing),
    ] {
        manual = replace_once(&manual, mark, &schemes_in_roff(subject));
    }
    is_up_to_date(
        "pglock.1",
        &replace_once(&manual, "@EXIT STATUS@\n", &exit_table_in_roff()),
    );
}

/// Every long option, and every variable named in the help, stands in whatever describes the options.
#[test]
fn every_option_is_described_everywhere() {
    let readme = root().join("README.md");
    let files = ["pglock.bash", "_pglock", "pglock.fish", "pglock.1"].map(|file| root().join("completions").join(file));
    for file in files.iter().chain([&readme]) {
        let text = fs::read_to_string(file)
            .expect("the file is committed")
            .replace("\\-", "-");
        for name in long_options() {
            // Fish names the option without its dashes.
            let named = [format!("--{name}"), format!("-l {name}")];
            assert!(
                named.iter().any(|name| text.contains(name)),
                "{} lacks --{name}",
                file.display()
            );
        }
    }
}

#[test]
fn the_readme_has_the_exit_table() {
    let readme = fs::read_to_string(root().join("README.md")).expect("the README is committed");
    let rows = EXIT_TABLE
        .iter()
        .map(|(code, meaning)| format!("| {code} | {meaning} |\n"));
    assert!(
        readme.contains(&rows.collect::<String>()),
        "the exit table of the README is not that of outcome.rs"
    );
}

#[test]
fn the_readme_has_the_schemes() {
    let readme = fs::read_to_string(root().join("README.md")).expect("the README is committed");
    let rows = TABLE.iter().map(|row| format!("| `{}` | {} |\n", row.name, row.users));
    let rows = rows.collect::<String>();
    assert!(
        readme.contains(&rows),
        "the schemes of the README are not those of key/hash.rs:\n{rows}"
    );
}

/// The README's part about usage is what `--help` prints, at the width of the page.
#[test]
fn the_readme_has_the_options() {
    let readme = fs::read_to_string(root().join("README.md")).expect("the README is committed");
    let mut command = cli::command().term_width(100);
    command.build();
    let run = command.find_subcommand_mut("run").expect("it is defined");
    let help = run.render_help().to_string();
    let usage = help.find("Usage:").expect("clap's format");
    let (before, options) = help[usage..].split_once("Options:\n").expect("clap's format");
    let (options, _) = options.split_once("\n\n").expect("clap's format");
    let block = format!("```\n{before}Options:\n{options}\n```\n");
    assert!(
        readme.contains(&block),
        "the options of the README are not those of --help:\n{block}"
    );
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Compares the committed file with what it should be, or makes it so where `PGLOCK_REGENERATE` is set.
#[track_caller]
fn is_up_to_date(name: &str, wanted: &str) {
    let path = Path::new("completions").join(name);
    if std::env::var_os("PGLOCK_REGENERATE").is_some() {
        return fs::write(root().join(path), wanted).expect("the folder is ours to write");
    }
    let found = fs::read_to_string(root().join(&path)).expect("the file is committed");
    assert!(found == wanted, "{} is stale; run: make completions", path.display());
}

fn complete(shell: Shell) -> String {
    // No value of an option is the name of a file, which the shells would complete.
    let not_a_file = |option: Arg| match option.get_value_hint() {
        ValueHint::Unknown if option.get_action().takes_values() && option.get_possible_values().is_empty() => {
            option.value_hint(ValueHint::Other)
        }
        _ => option,
    };
    let mut command = cli::command();
    // Each subcommand is defined when it is needed.
    command.build();
    for name in SUBCOMMANDS {
        command = command.mut_subcommand(name, |command| command.mut_args(not_a_file));
    }
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "pglock", &mut script);
    String::from_utf8(script).expect("clap's definitions are UTF-8")
}

/// Fails when clap's output is not what the change was written for.
#[track_caller]
fn replace_once(text: &str, old: &str, new: &str) -> String {
    assert_eq!(text.matches(old).count(), 1, "{old:?}");
    text.replace(old, new)
}

#[track_caller]
fn replace_first(text: &str, old: &str, new: &str) -> String {
    assert!(text.contains(old), "{old:?}");
    text.replacen(old, new, 1)
}

/// The options of a subcommand, as clap knows them after it has added its own.
fn options_of(subcommand: &str) -> Vec<Arg> {
    let mut command = cli::command();
    command.build();
    let subcommand = command.find_subcommand(subcommand).expect("it is defined");
    subcommand
        .get_arguments()
        .filter(|arg| !arg.is_positional())
        .cloned()
        .collect()
}

fn long_names(option: &Arg) -> Vec<&str> {
    option.get_long_and_visible_aliases().unwrap_or_default()
}

fn long_options() -> Vec<String> {
    let options = SUBCOMMANDS.into_iter().flat_map(options_of);
    options
        .flat_map(|option| long_names(&option).into_iter().map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

/// Tells the templates which of `run`'s options are followed by a value.
fn with_options(template: &str) -> String {
    let options = options_of("run");
    let (values, flags): (Vec<&Arg>, Vec<&Arg>) = options.iter().partition(|option| option.get_action().takes_values());
    let letters = |options: &[&Arg]| {
        options
            .iter()
            .filter_map(|option| option.get_short())
            .collect::<String>()
    };
    let long = values
        .iter()
        .flat_map(|option| long_names(option))
        .map(|name| format!("--{name}"));
    let text = replace_once(template, "@LONG@", &long.collect::<Vec<_>>().join("|"));
    let text = text.replace("@FLAGS@", &letters(&flags));
    replace_once(&text, "@LETTERS@", &letters(&values))
}

fn options_in_roff(subcommand: &str) -> String {
    let mut roff = String::new();
    for option in options_of(subcommand) {
        let short = option.get_short().map(|letter| format!("-{letter}"));
        let long = long_names(&option).into_iter().map(|name| format!("--{name}"));
        let names: Vec<String> = short
            .into_iter()
            .chain(long)
            .map(|name| format!("\\fB{}\\fR", in_roff(&name)))
            .collect();
        let value = match option.get_action().takes_values() {
            true => option.get_value_names().unwrap_or_default().join(" "),
            false => String::new(),
        };
        let value = if value.is_empty() {
            value
        } else {
            format!(" \\fI{}\\fR", in_roff(&value))
        };
        let help = in_roff(&option.get_help().expect("every option has a help").to_string());
        write!(roff, ".TP\n{}{value}\n{help}.\n", names.join(", ")).expect("a string takes everything");
    }
    roff
}

fn schemes_in_roff(subject: Subject) -> String {
    let rows = TABLE.iter().filter(|row| row.subject == subject);
    rows.map(|row| format!(".TP\n\\fB{}\\fR\n{}.\n", in_roff(row.name), in_roff(row.users)))
        .collect()
}

fn exit_table_in_roff() -> String {
    let row = |(code, meaning): &(&str, &str)| format!(".TP\n\\fB{}\\fR\n{}.\n", in_roff(code), in_roff(meaning));
    EXIT_TABLE.iter().map(row).collect()
}

/// Text for a line of roff that does not begin with a dot or a quote, as none of ours does.
fn in_roff(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq")
}
