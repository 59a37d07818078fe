//! Tests that keep the pages of the manual in `completions/` in step with the code.
//!
//! There is a page for pglock and one for each subcommand. The prose is in `src/cli/manual/`, one template per page. A
//! mark such as `@OPTIONS@` stands for what the code knows: options, defaults, variables, exit statuses. The tests fail
//! if a page is stale or its prose names what does not exist, and `make completions` rewrites the pages.

use super::args::command;
use super::defaults::{DEFAULT_HEARTBEAT, DEFAULT_KILL_AFTER};
use super::generated::{assert_up_to_date, built, long_names, options_of, replace_once, root, subcommands};
use super::help;
use crate::key::hash::{SCHEMES, SchemeInput};
use crate::outcome::{EXIT_TABLE, exit_rows};
use crate::run::session::timing::Timing;
use clap::{Arg, Command};
use humantime::format_duration;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Variables that only tests read.
const TEST_VARIABLES: &[&str] = &["PGLOCK_MODEL", "PGLOCK_REGENERATE"];

#[test]
fn every_page_is_up_to_date() {
    assert_up_to_date("pglock.1", &overview());
    for name in subcommands() {
        assert_up_to_date(&format!("pglock-{name}.1"), &page_of(&name));
    }
}

#[test]
fn every_page_belongs_to_a_subcommand() {
    let expected: BTreeSet<String> = subcommands()
        .iter()
        .map(|name| format!("pglock-{name}.1"))
        .chain(["pglock.1".to_owned()])
        .collect();
    let files = fs::read_dir(root().join("completions")).expect("the files are committed");
    let names = files.map(|file| file.expect("the directory is readable").file_name());
    let pages = names.map(|name| name.to_string_lossy().into_owned());
    let pages: BTreeSet<String> = pages.filter(|name| name.ends_with(".1")).collect();
    assert_eq!(pages, expected);
}

#[test]
fn the_pages_name_only_options_that_exist() {
    let options = subcommands().into_iter().flat_map(|name| options_of(&name));
    let mut known: BTreeSet<String> = options
        .flat_map(|option| {
            long_names(&option)
                .into_iter()
                .map(|name| format!("--{name}"))
                .collect::<Vec<_>>()
        })
        .collect();
    known.insert("--version".to_owned());
    for (page, text) in pages() {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
        for option in words.filter(|word| word.starts_with("--") && word.len() > 2) {
            assert!(known.contains(option), "{page} names {option}");
        }
    }
}

#[test]
fn every_possible_value_is_in_the_manual() {
    for subcommand in subcommands() {
        let page = page_of(&subcommand).replace("\\-", "-");
        // The schemes are explained by pglock-key(1).
        for option in options_of(&subcommand)
            .iter()
            .filter(|option| option.get_id() != "hash")
        {
            for value in option.get_possible_values() {
                let name = value.get_name();
                assert!(page.contains(name), "pglock-{subcommand}.1 lacks {option}={name}");
            }
        }
    }
}

#[test]
fn the_manual_has_the_variables_of_the_code() {
    let mut in_code = BTreeSet::new();
    for file in source_files(&root().join("src")) {
        let text = fs::read_to_string(file).expect("the source is text");
        let literals = text.split('"').filter(|literal| is_variable(literal));
        in_code.extend(literals.map(str::to_owned));
    }
    in_code.retain(|name| !TEST_VARIABLES.contains(&name.as_str()));
    let in_manual: BTreeSet<String> = pages()
        .values()
        .flat_map(|text| text.split(|c: char| !c.is_ascii_uppercase() && c != '_'))
        .filter(|word| is_variable(word))
        .map(str::to_owned)
        .collect();
    assert!(in_code.len() >= 18, "{in_code:?}");
    assert_eq!(in_manual, in_code);
}

#[test]
fn the_pages_name_only_exit_statuses_that_exist() {
    let mut count = 0;
    for (page, text) in pages() {
        let words: Vec<&str> = text.split_whitespace().collect();
        // "exit status 64", "with status 74", "the exit status is 75".
        let after_status = words
            .windows(3)
            .filter(|words| words[0] == "status")
            .flat_map(|words| &words[1..]);
        let numbers = after_status.map(|word| word.trim_matches(|c: char| !c.is_ascii_digit()));
        for number in numbers.filter(|number| !number.is_empty() && *number != "0") {
            count += 1;
            let is_known = EXIT_TABLE.iter().any(|(code, _)| *code == number);
            assert!(is_known, "{page} names exit status {number}");
        }
    }
    assert!(count > 5, "{count}");
}

fn is_variable(word: &str) -> bool {
    let name = word.strip_prefix("PGLOCK_").unwrap_or_default();
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
}

/// Returns the committed pages without changes of the font, escaped hyphens and line breaks.
fn pages() -> BTreeMap<String, String> {
    let names = subcommands().into_iter().map(|name| format!("pglock-{name}.1"));
    names
        .chain(["pglock.1".to_owned()])
        .map(|name| {
            let text = fs::read_to_string(root().join("completions").join(&name)).expect("the page is committed");
            let text = ["\\fB", "\\fI", "\\fR"]
                .iter()
                .fold(text, |text, font| text.replace(font, ""));
            (name, text.replace("\\-", "-").replace('\n', " "))
        })
        .collect()
}

fn source_files(directory: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(directory).expect("the source is readable");
    let paths = entries.map(|entry| entry.expect("the source is readable").path());
    paths
        .flat_map(|path| match path.extension() {
            _ if path.is_dir() => source_files(&path),
            Some(extension) if extension == "rs" => vec![path],
            _ => Vec::new(),
        })
        .collect()
}

/// Makes pglock(1).
fn overview() -> String {
    let commands = subcommands().into_iter().map(|name| {
        let about = built(&name).get_about().map(ToString::to_string);
        format!(
            ".TP\n.BR pglock\\-{name} (1)\n{}.\n",
            in_roff(&about.unwrap_or_default())
        )
    });
    let pages: Vec<String> = subcommands()
        .iter()
        .map(|name| format!(".BR pglock\\-{name} (1),\n"))
        .collect();
    let mut root = command();
    root.build();
    let usages = subcommands().iter().map(|name| usage_in_roff(name)).collect::<String>();
    let marks = [
        ("@HEAD@\n", head("pglock", &root, &usages)),
        ("@COMMANDS@\n", commands.collect()),
        ("@VARIABLES@\n", variables_in_roff(&subcommands())),
        ("@EXIT STATUS@\n", rows_in_roff(EXIT_TABLE)),
        ("@PAGES@\n", pages.concat()),
    ];
    fill_in("pglock", &marks)
}

/// Makes the page of a subcommand.
fn page_of(subcommand: &str) -> String {
    let name = format!("pglock-{subcommand}");
    let head = head(&name, &built(subcommand), &usage_in_roff(subcommand));
    let marks = [
        ("@HEAD@\n", head),
        ("@OPTIONS@\n", options_in_roff(subcommand)),
        ("@VARIABLES@\n", variables_in_roff(&[subcommand.to_owned()])),
        ("@EXIT STATUS@\n", rows_in_roff(&exit_rows(subcommand))),
    ];
    fill_in(&name, &marks)
}

/// Replaces the marks of a template: those given, which it must have unless they are empty, and those that every page
/// may have.
fn fill_in(page: &str, marks: &[(&str, String)]) -> String {
    let file = root().join("src/cli/manual").join(format!("{page}.1.in"));
    let mut text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    for (mark, value) in marks.iter().filter(|(_, value)| !value.is_empty()) {
        text = replace_once(&text, mark, value);
    }
    let timing = Timing {
        heartbeat: DEFAULT_HEARTBEAT,
        kill_after: DEFAULT_KILL_AFTER,
    };
    for (mark, value) in [
        ("@MARGIN@", format_duration(Timing::MARGIN).to_string()),
        ("@JOB LIMIT@", format_duration(timing.job_limit()).to_string()),
        ("@SERVER LIMIT@", format_duration(timing.server_limit()).to_string()),
        ("@REPLY LIMIT@", format_duration(timing.reply_limit()).to_string()),
        ("@SCHEMES name@\n", schemes_in_roff(SchemeInput::LockName)),
        ("@SCHEMES database@\n", schemes_in_roff(SchemeInput::DatabaseName)),
        ("@SCHEMES nothing@\n", schemes_in_roff(SchemeInput::Nothing)),
    ] {
        text = text.replace(mark, &value);
    }
    let is_mark = |rest: &str| rest.starts_with(|c: char| c.is_ascii_uppercase());
    assert!(
        !text.split('@').skip(1).any(is_mark),
        "{page} has a mark without a text"
    );
    text
}

/// Returns the title, the name and the synopsis of a page.
fn head(page: &str, command: &Command, synopsis: &str) -> String {
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let (first, rest) = about.split_at(1);
    format!(
        ".\\\" Made by `make completions`: change src/cli/manual/{page}.1.in or the code instead.\n\
         .TH {} 1 \"\" \"pglock {}\" \"User Commands\"\n\
         .SH NAME\n{} \\- {}{}\n\
         .SH SYNOPSIS\n.nf\n{synopsis}.fi\n",
        in_roff(&page.to_uppercase()),
        env!("CARGO_PKG_VERSION"),
        in_roff(page),
        first.to_lowercase(),
        in_roff(rest),
    )
}

/// Returns clap's usage of a subcommand: `<KEY>` in italics; the name of the subcommand, and options, in bold.
fn usage_in_roff(subcommand: &str) -> String {
    let usage = built(subcommand).render_usage().to_string();
    let mut roff = String::new();
    for line in usage.trim_start_matches("Usage:").lines() {
        for (index, word) in line.split_whitespace().enumerate() {
            let is_literal = index < 2 || word.trim_start_matches('[').starts_with('-');
            let word = in_roff(word);
            let word = match word.as_str() {
                "[OPTIONS]" => "[\\fIOPTION\\fR]...".to_owned(),
                _ if is_literal => {
                    let name = word.trim_matches(['[', ']']);
                    word.replace(name, &format!("\\fB{name}\\fR"))
                }
                _ => {
                    let name = word.trim_matches(['[', ']', '<', '>', '.']);
                    let word = word.replace(['<', '>'], "");
                    word.replace(name, &format!("\\fI{name}\\fR"))
                }
            };
            roff += if index == 0 { "" } else { " " };
            roff += &word;
        }
        roff.push('\n');
    }
    roff
}

/// Returns the options under their headings.
fn options_in_roff(subcommand: &str) -> String {
    let mut sections = vec![(String::new(), String::new())];
    for option in options_of(subcommand) {
        let heading = option.get_help_heading().unwrap_or_default().to_owned();
        let text = option_in_roff(&option);
        match sections.iter_mut().find(|(known, _)| *known == heading) {
            Some((_, section)) => *section += &text,
            None => sections.push((heading, text)),
        }
    }
    let in_section = |(heading, options): (String, String)| match heading.as_str() {
        "" => options,
        heading => format!(".SS {heading}\n{options}"),
    };
    sections.into_iter().map(in_section).collect()
}

fn option_in_roff(option: &Arg) -> String {
    let short = option.get_short().map(|letter| format!("-{letter}"));
    let long = long_names(option).into_iter().map(|name| format!("--{name}"));
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
    format!(".TP\n{}{value}\n{}", names.join(", "), help_in_roff(option))
}

/// Returns the text of `--help` as one paragraph of sentences, then the notes in brackets.
fn help_in_roff(option: &Arg) -> String {
    let (_, text) = help::help_of(option);
    let mut roff = String::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        roff += &in_roff(line).replace(". ", ".\n");
        roff += if line.ends_with(['.', ']']) { "\n" } else { ".\n" };
    }
    roff
}

/// Returns the variables that set options, and which options of which subcommands.
fn variables_in_roff(subcommands: &[String]) -> String {
    let mut users: Vec<(String, String, Vec<&str>)> = Vec::new();
    for subcommand in subcommands {
        for option in options_of(subcommand) {
            let (_, text) = help::help_of(&option);
            let note = text.lines().find_map(|line| line.strip_prefix("[env: "));
            let Some(variables) = note.and_then(|note| note.strip_suffix(']')) else {
                continue;
            };
            let name = long_names(&option)[0].to_owned();
            match users.iter_mut().find(|(known, ..)| known == variables) {
                Some((.., users)) => users.push(subcommand),
                None => users.push((variables.to_owned(), name, vec![subcommand])),
            }
        }
    }
    let in_roff = |(variables, option, users): &(String, String, Vec<&str>)| {
        let words = variables.split(' ').map(|word| match word {
            "else" => word.to_owned(),
            _ => format!(
                "\\fB{}\\fR{}",
                word.trim_end_matches(','),
                if word.ends_with(',') { "," } else { "" }
            ),
        });
        let words: Vec<String> = words.collect();
        let of = match subcommands {
            [_] => String::new(),
            _ => format!(" of {}", users.join(", ")),
        };
        format!(
            ".TP\n{}\nSets \\fB{}\\fR{of}.\n",
            words.join(" "),
            in_roff(&format!("--{option}"))
        )
    };
    users.iter().map(in_roff).collect()
}

fn schemes_in_roff(input: SchemeInput) -> String {
    let schemes = SCHEMES.iter().filter(|info| info.input == input);
    schemes
        .map(|info| format!(".TP\n\\fB{}\\fR\n{}.\n", in_roff(info.name), in_roff(info.users)))
        .collect()
}

fn rows_in_roff(rows: &[(&str, &str)]) -> String {
    let row = |(name, meaning): &(&str, &str)| format!(".TP\n\\fB{}\\fR\n{}.\n", in_roff(name), in_roff(meaning));
    rows.iter().map(row).collect()
}

/// Escapes text for a line of roff. A line that begins with a dot or a quote would need more, but there is none.
fn in_roff(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq")
}
