//! Tests that keep the files in `completions/`, the README and `docs/` in step with the clap definitions.
//!
//! The completions and the manual page are committed, so that neither the binary nor its build needs a generator. The
//! tests fail if a file is stale, and `make completions` rewrites it. `src/cli/generated/` has what clap cannot know:
//! how the shells complete the job as a separate command, and the prose of the manual page.

use super::args::command;
use super::help::{self, MAX_HELP_WIDTH};
use super::options::CompletionsTarget;
use crate::key::hash::{SCHEMES, SchemeInput};
use crate::outcome::EXIT_TABLE;
use clap::{Arg, ValueEnum, ValueHint};
use clap_complete::Shell;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

const JOB_IN_BASH: &str = include_str!("generated/job.bash");
const JOB_IN_FISH: &str = include_str!("generated/job.fish");
/// The subcommands that have options.
const SUBCOMMANDS: [&str; 5] = ["run", "list", "evict", "check", "key"];

const MANUAL_TEMPLATE: &str = include_str!("generated/pglock.1.in");

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
    assert_up_to_date("pglock.bash", &script);
}

#[test]
fn zsh_is_up_to_date() {
    let script = complete(Shell::Zsh);
    // The job is a complete command line.
    let script = replace_once(&script, "'*::command -- ", "'(-)*:::command -- ");
    let script = replace_once(&script, ":_cmdambivalent'", ":_normal'");
    assert_up_to_date("_pglock", &script);
}

#[test]
fn fish_is_up_to_date() {
    let script = complete(Shell::Fish);
    let script = script.replace(
        "\"__fish_pglock_using_subcommand run\"",
        "\"__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null\"",
    );
    // clap omits the values of positional arguments.
    let targets = CompletionsTarget::value_variants()
        .iter()
        .filter_map(|target| target.to_possible_value());
    let targets: Vec<String> = targets.map(|target| target.get_name().to_owned()).collect();
    let job = replace_once(&with_options(JOB_IN_FISH), "@TARGETS@", &targets.join(" "));
    assert_up_to_date("pglock.fish", &format!("{script}\n{job}"));
}

#[test]
fn the_manual_is_up_to_date() {
    let mut manual = replace_once(MANUAL_TEMPLATE, "@VERSION@", env!("CARGO_PKG_VERSION"));
    for name in SUBCOMMANDS {
        let mark = format!("@OPTIONS {name}@\n");
        manual = replace_once(&manual, &mark, &options_in_roff(name));
    }
    for (mark, input) in [
        ("@SCHEMES name@\n", SchemeInput::LockName),
        ("@SCHEMES database@\n", SchemeInput::DatabaseName),
        ("@SCHEMES nothing@\n", SchemeInput::Nothing),
    ] {
        manual = replace_once(&manual, mark, &schemes_in_roff(input));
    }
    assert_up_to_date(
        "pglock.1",
        &replace_once(&manual, "@EXIT STATUS@\n", &exit_table_in_roff()),
    );
}

#[test]
fn every_long_option_is_in_the_completions_the_manual_and_the_docs() {
    let docs = docs();
    let files = ["pglock.bash", "_pglock", "pglock.fish", "pglock.1"].map(|file| root().join("completions").join(file));
    let texts = files.map(|file| {
        let text = fs::read_to_string(&file).expect("the file is committed");
        (file.display().to_string(), text.replace("\\-", "-"))
    });
    for (file, text) in texts.iter().chain([&("docs/".to_owned(), docs)]) {
        for name in long_options() {
            // fish writes the option without its dashes.
            let spellings = [format!("--{name}"), format!("-l {name}")];
            assert!(
                spellings.iter().any(|spelling| text.contains(spelling)),
                "{file} lacks --{name}"
            );
        }
    }
}

#[test]
fn every_variable_of_the_help_is_in_the_manual_and_the_docs() {
    let options = SUBCOMMANDS.into_iter().flat_map(options_of);
    let texts: Vec<String> = options.map(|option| help::help_of(&option).1).collect();
    let names = texts
        .iter()
        .flat_map(|text| text.split(|c: char| !c.is_ascii_uppercase() && c != '_'));
    let variables: BTreeSet<&str> = names.filter(|name| name.starts_with("PGLOCK_")).collect();
    assert!(variables.len() >= 12, "{variables:?}");
    for file in ["docs/running-jobs.md", "completions/pglock.1"] {
        let text = fs::read_to_string(root().join(file)).expect("the file is committed");
        for variable in &variables {
            assert!(text.contains(variable), "{file} lacks {variable}");
        }
    }
}

/// At its full width, `-h` has one line per option.
#[test]
fn short_help_has_one_line_per_option() {
    for name in SUBCOMMANDS {
        let help = short_help(name);
        let (_, options) = help.split_once("Options:\n").expect("clap's format");
        let (options, _) = options.split_once("\n\n").unwrap_or((options, ""));
        for line in options.lines() {
            assert!(line.trim_start().starts_with('-'), "pglock {name} -h: {line:?}");
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
        "the exit table in the README is not that in outcome.rs"
    );
}

#[test]
fn the_docs_have_the_schemes() {
    let page = page("sharing-locks.md");
    let rows: String = SCHEMES
        .iter()
        .map(|info| format!("| `{}` | {} |\n", info.name, info.users))
        .collect();
    assert!(
        page.contains(&rows),
        "the schemes in docs/sharing-locks.md are not those in key/hash.rs:\n{rows}"
    );
}

/// `docs/running-jobs.md` quotes `pglock run -h` at its full width.
#[test]
fn the_docs_have_the_options() {
    let page = page("running-jobs.md");
    let help = short_help("run");
    let usage = help.find("Usage:").expect("clap's format");
    let (before, options) = help[usage..].split_once("Options:\n").expect("clap's format");
    let (options, _) = options.split_once("\n\n").expect("clap's format");
    let block = format!("```\n{before}Options:\n{options}\n```\n");
    assert!(
        page.contains(&block),
        "the options in docs/running-jobs.md are not those of pglock run -h:\n{block}"
    );
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Returns a page of `docs/`.
fn page(name: &str) -> String {
    fs::read_to_string(root().join("docs").join(name)).expect("the page is committed")
}

/// Returns all pages of `docs/`.
fn docs() -> String {
    let pages = fs::read_dir(root().join("docs")).expect("docs/ is committed");
    let names = pages.map(|page| page.expect("docs/ is readable").file_name());
    names
        .map(|name| page(name.to_str().expect("a name in UTF-8")))
        .collect()
}

fn short_help(subcommand: &str) -> String {
    let mut command = command().term_width(MAX_HELP_WIDTH);
    command.build();
    let subcommand = command.find_subcommand_mut(subcommand).expect("the subcommand exists");
    subcommand.render_help().to_string()
}

/// Compares the committed file with the generated text, or rewrites it if `PGLOCK_REGENERATE` is set.
#[track_caller]
fn assert_up_to_date(name: &str, generated: &str) {
    let path = Path::new("completions").join(name);
    if std::env::var_os("PGLOCK_REGENERATE").is_some() {
        return fs::write(root().join(path), generated).expect("completions/ is writable");
    }
    let found = fs::read_to_string(root().join(&path)).expect("the file is committed");
    assert!(found == generated, "{} is stale; run: make completions", path.display());
}

fn complete(shell: Shell) -> String {
    // The value of an option is never a file name, which the shells would complete by default.
    let not_a_file = |option: Arg| match option.get_value_hint() {
        ValueHint::Unknown if option.get_action().takes_values() && option.get_possible_values().is_empty() => {
            option.value_hint(ValueHint::Other)
        }
        _ => option,
    };
    let mut command = command();
    // Defines the subcommands, which are deferred.
    command.build();
    for name in SUBCOMMANDS {
        command = command.mut_subcommand(name, |command| command.mut_args(not_a_file));
    }
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "pglock", &mut script);
    String::from_utf8(script).expect("clap's definitions are UTF-8")
}

/// Replaces the only occurrence. Fails if a new version of clap generates something else.
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

/// Returns the options of a subcommand, `--help` included.
fn options_of(subcommand: &str) -> Vec<Arg> {
    let mut command = command();
    command.build();
    let subcommand = command.find_subcommand(subcommand).expect("the subcommand exists");
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

/// Fills in which options of `run` take a value.
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
        let value = if option.get_action().takes_values() {
            let value = option.get_value_names().unwrap_or_default().join(" ");
            format!(" \\fI{}\\fR", in_roff(&value))
        } else {
            String::new()
        };
        let text = help_in_roff(&option);
        write!(roff, ".TP\n{}{value}\n{text}", names.join(", ")).expect("writing to a string cannot fail");
    }
    roff
}

/// Returns the text of `--help` as one paragraph of sentences, then the notes in brackets.
fn help_in_roff(option: &Arg) -> String {
    let (_, text) = help::help_of(option);
    let mut roff = String::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        roff += &in_roff(line);
        roff += if line.ends_with(['.', ']']) { "\n" } else { ".\n" };
    }
    roff
}

fn schemes_in_roff(input: SchemeInput) -> String {
    let schemes = SCHEMES.iter().filter(|info| info.input == input);
    schemes
        .map(|info| format!(".TP\n\\fB{}\\fR\n{}.\n", in_roff(info.name), in_roff(info.users)))
        .collect()
}

fn exit_table_in_roff() -> String {
    let row = |(code, meaning): &(&str, &str)| format!(".TP\n\\fB{}\\fR\n{}.\n", in_roff(code), in_roff(meaning));
    EXIT_TABLE.iter().map(row).collect()
}

/// Escapes text for a line of roff. A line that begins with a dot or a quote would need more, but there is none.
fn in_roff(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq")
}
