//! Tests that keep the completions in `completions/` and parts of the README and `docs/` in step with the clap
//! definitions.
//!
//! The completions are committed, so that neither the binary nor its build needs a generator. The tests fail if a file
//! is stale, and `make completions` rewrites it. `src/cli/generated/` has what clap cannot know: how the shells
//! complete the job as a separate command. The manual is made by `manual.rs`.

use super::args::command;
use super::help::{self, MAX_HELP_WIDTH};
use super::options::CompletionsTarget;
use crate::key::hash::SCHEMES;
use crate::outcome::{EXIT_TABLE, exit_rows};
use clap::{Arg, Command, ValueEnum, ValueHint};
use clap_complete::Shell;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// How the quoted help begins.
const USAGE: &str = "Usage: pglock run ";

const JOB_IN_BASH: &str = include_str!("generated/job.bash");
const JOB_IN_FISH: &str = include_str!("generated/job.fish");
/// The longest short help, in lines: it fits a screen.
const MAX_SHORT_HELP_LINES: usize = 45;

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
fn every_long_option_is_in_the_completions_and_the_docs() {
    let files = ["pglock.bash", "_pglock", "pglock.fish"].map(|file| root().join("completions").join(file));
    let texts = files.map(|file| {
        let text = fs::read_to_string(&file).expect("the file is committed");
        (file.display().to_string(), text)
    });
    for (file, text) in texts.iter().chain([&("docs/".to_owned(), docs())]) {
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
fn every_variable_of_the_help_is_in_the_docs() {
    let options = subcommands().into_iter().flat_map(|name| options_of(&name));
    let texts: Vec<String> = options.map(|option| help::help_of(&option).1).collect();
    let names = texts
        .iter()
        .flat_map(|text| text.split(|c: char| !c.is_ascii_uppercase() && c != '_'));
    let variables: BTreeSet<&str> = names.filter(|name| name.starts_with("PGLOCK_")).collect();
    assert!(variables.len() >= 12, "{variables:?}");
    let page = page("running-jobs.md");
    for variable in &variables {
        assert!(page.contains(variable), "docs/running-jobs.md lacks {variable}");
    }
}

#[test]
fn short_help_fits_a_screen_and_has_one_line_per_option() {
    for name in subcommands() {
        let help = short_help(&name);
        let count = help.lines().count();
        assert!(count <= MAX_SHORT_HELP_LINES, "pglock {name} -h has {count} lines");
        let (_, options) = help.split_once("Options:\n").expect("clap's format");
        let is_option = |line: &str| line.trim_start().starts_with('-');
        let is_wrapped = |line: &&str| line.starts_with("      ") && !is_option(line);
        assert_eq!(options.lines().find(is_wrapped), None, "pglock {name} -h");
        for option in options_of(&name) {
            let long = long_names(&option)[0];
            assert!(help.contains(&format!("--{long}")), "pglock {name} -h lacks --{long}");
        }
    }
}

#[test]
fn long_help_has_the_exit_statuses() {
    for name in subcommands() {
        let rows = exit_rows(&name);
        assert!(rows.len() >= 3, "pglock {name}: {rows:?}");
        let help = built(&name).render_long_help().to_string();
        for (code, meaning) in rows {
            let is_row = |line: &str| line.trim_start().starts_with(code) && line.ends_with(meaning);
            assert!(help.lines().any(is_row), "pglock {name} --help lacks {code}, {meaning}");
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
fn the_quoted_help_is_up_to_date() {
    let help = short_help("run");
    let usage = help.find(USAGE).expect("clap's format");
    let block = format!("```\n{}\n```\n", help[usage..].trim_end());
    let text = page("running-jobs.md");
    let start = text.find(&format!("```\n{USAGE}")).expect("the page quotes the help");
    let length = text[start + 4..].find("```\n").expect("the block ends") + 8;
    let found = &text[start..start + length];
    if std::env::var_os("PGLOCK_REGENERATE").is_some() {
        fs::write(root().join("docs/running-jobs.md"), text.replace(found, &block)).expect("docs/ is writable");
    } else {
        assert!(found == block, "docs/running-jobs.md is stale; run: make completions");
    }
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

pub(super) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn short_help(subcommand: &str) -> String {
    built(subcommand).render_help().to_string()
}

/// Returns the definition of a subcommand, at the full width of the help.
pub(super) fn built(subcommand: &str) -> Command {
    let mut command = command().term_width(MAX_HELP_WIDTH);
    command.build();
    let subcommand = command.find_subcommand(subcommand).expect("the subcommand exists");
    subcommand.clone()
}

/// Compares the committed file with the generated text, or rewrites it if `PGLOCK_REGENERATE` is set.
#[track_caller]
pub(super) fn assert_up_to_date(name: &str, generated: &str) {
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
    for name in subcommands() {
        command = command.mut_subcommand(name, |command| command.mut_args(not_a_file));
    }
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "pglock", &mut script);
    String::from_utf8(script).expect("clap's definitions are UTF-8")
}

/// Replaces the only occurrence. Fails if a new version of clap generates something else.
#[track_caller]
pub(super) fn replace_once(text: &str, old: &str, new: &str) -> String {
    assert_eq!(text.matches(old).count(), 1, "{old:?}");
    text.replace(old, new)
}

#[track_caller]
fn replace_first(text: &str, old: &str, new: &str) -> String {
    assert!(text.contains(old), "{old:?}");
    text.replacen(old, new, 1)
}

/// Returns the names of the subcommands.
pub(super) fn subcommands() -> Vec<String> {
    let mut command = command();
    command.build();
    command
        .get_subcommands()
        .map(|subcommand| subcommand.get_name().to_owned())
        .collect()
}

/// Returns the options of a subcommand, `--help` included.
pub(super) fn options_of(subcommand: &str) -> Vec<Arg> {
    built(subcommand)
        .get_arguments()
        .filter(|arg| !arg.is_positional())
        .cloned()
        .collect()
}

pub(super) fn long_names(option: &Arg) -> Vec<&str> {
    option.get_long_and_visible_aliases().unwrap_or_default()
}

fn long_options() -> Vec<String> {
    let options = subcommands().into_iter().flat_map(|name| options_of(&name));
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
