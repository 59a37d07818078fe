//! The documents: every link leads somewhere, the README stays short, and what they say about options, defaults,
//! variables and exit statuses is what `pglock --help` and the manual page say.

use crate::support::pglock::Pglock;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// The subcommands that have options.
const SUBCOMMANDS: [&str; 7] = ["run", "list", "evict", "check", "key", "init", "history"];
/// Long options of other programs that the pages mention: timeout(1), a Dockerfile, `examples/self-locking`, and those
/// with which a release is made.
const FOREIGN_OPTIONS: [&str; 8] = [
    "--foreground",
    "--from",
    "--locked",
    "--dry-run",
    "--formula",
    "--repo",
    "--rm",
    "--sign",
];
/// Options of other programs in the README's comparison and in `docs/poolers.md`: klock, consul, socat.
const FOREIGN_LETTERS: [&str; 5] = ["-g", "-child-exit-code", "-pass-stdin", "-timeout", "-T23"];

/// Sentences with the default of an option of `run`, in the place of `{}`.
const DEFAULTS: [(&str, &str, &str); 9] = [
    (
        "README.md",
        "--heartbeat",
        "pglock sends a heartbeat at least every {} (`--heartbeat`)",
    ),
    ("README.md", "--heartbeat", "If no reply arrives within another {}"),
    ("README.md", "--kill-after", "{} later (`--kill-after`)"),
    (
        "README.md",
        "--conflict-exit-code",
        "| {}, `-E`, and names the holder |",
    ),
    ("docs/lost-locks.md", "--heartbeat", "| H | `--heartbeat` | {} |"),
    ("docs/lost-locks.md", "--heartbeat", "| D | the same | {} |"),
    ("docs/lost-locks.md", "--kill-after", "| G | `--kill-after` | {} |"),
    ("docs/poolers.md", "--poll", "up to `--poll` (default {})"),
    (
        "docs/connecting.md",
        "--connect-timeout",
        "for one address, including TLS and login; {} by default",
    ),
];

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let documents = documents();
    let anchors: BTreeMap<PathBuf, BTreeSet<String>> = documents
        .iter()
        .map(|(path, text)| (path.clone(), anchors(text)))
        .collect();
    let (mut count, mut broken) = (0, Vec::new());
    for (path, text) in &documents {
        for link in links(text) {
            if link.contains("://") {
                continue;
            }
            count += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = match file {
                "" => path.clone(),
                _ => path.parent().unwrap().join(file),
            };
            let target = target.canonicalize().unwrap_or(target);
            let is_there = match anchors.get(&target) {
                Some(anchors) => anchor.is_empty() || anchors.contains(anchor),
                None => anchor.is_empty() && target.exists(),
            };
            if !is_there {
                broken.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(count > 100, "{count} links");
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
}

#[test]
fn the_readme_is_short_and_links_every_page() {
    let readme = read("README.md");
    let lines = readme.lines().count();
    assert!(lines <= 200, "the README has {lines} lines");
    for (page, _) in pages().iter().skip(1) {
        assert!(
            readme.contains(&format!("]({page})")),
            "the README does not link {page}"
        );
    }
}

#[test]
fn the_documents_name_only_options_that_the_help_has() {
    let help = SUBCOMMANDS.map(|name| (name, options_of(name)));
    let general = options_of("");
    let specific = help.iter().flat_map(|(_, options)| options.keys());
    let all: BTreeSet<&str> = specific.chain(general.keys()).map(String::as_str).collect();
    let mut commands = 0;
    let mut unknown = Vec::new();
    for (page, text) in pages() {
        let is_known = |option: &&str| all.contains(option) || FOREIGN_OPTIONS.contains(option);
        for option in long_options(&text).into_iter().filter(|option| !is_known(option)) {
            unknown.push(format!("{page}: {option}"));
        }
        // In prose, short options stand in backquotes.
        for span in code_spans(&text).iter().filter(|span| span.starts_with('-')) {
            let option = span.split(' ').next().unwrap();
            let is_short = option.len() > 1 && !option.starts_with("--") && !option.as_bytes()[1].is_ascii_digit();
            if is_short && !all.contains(option) && !FOREIGN_LETTERS.contains(&option) {
                unknown.push(format!("{page}: {option}"));
            }
        }
        for (subcommand, words) in command_lines(&text) {
            commands += 1;
            let (_, options) = help.iter().find(|(name, _)| *name == subcommand).unwrap();
            for option in options_in(&words, options) {
                if !options.contains_key(&option) {
                    unknown.push(format!("{page}: pglock {subcommand} {option}"));
                }
            }
        }
    }
    assert!(commands > 30, "{commands} command lines");
    assert!(unknown.is_empty(), "not in the help:\n{}", unknown.join("\n"));
}

#[test]
fn the_documents_name_every_option() {
    let text: String = pages().into_iter().map(|(_, text)| text).collect();
    let named = long_options(&text);
    for subcommand in SUBCOMMANDS {
        for option in options_of(subcommand).keys().filter(|option| option.starts_with("--")) {
            assert!(
                named.contains(option.as_str()),
                "no page names {option} of pglock {subcommand}"
            );
        }
    }
}

#[test]
fn the_documents_have_the_defaults_of_the_help() {
    let options = options_of("run");
    let in_words = |option: &str| {
        let default = options[option].default.as_deref().unwrap();
        default
            .strip_suffix('s')
            .map_or(default.to_owned(), |seconds| format!("{seconds} s"))
    };
    for (page, option, sentence) in DEFAULTS {
        let sentence = sentence.replace("{}", &in_words(option));
        let text = in_one_line(&read(page));
        assert!(text.contains(&sentence), "{page} lacks {sentence:?}");
    }

    // The sums of the timing rule.
    let seconds = |option: &str| in_words(option).strip_suffix(" s").unwrap().parse::<u32>().unwrap();
    let limit = 2 * seconds("--heartbeat") + seconds("--kill-after");
    for page in ["README.md", "docs/lost-locks.md"] {
        for sum in [limit, limit + 3] {
            let text = in_one_line(&read(page));
            assert!(text.contains(&format!("**{sum} s**")), "{page} lacks {sum} s");
        }
    }
}

#[test]
fn the_documents_and_the_manual_have_the_same_variables() {
    let manual = variables(&manual());
    assert!(manual.len() > 15, "{manual:?}");
    for (page, text) in pages() {
        let named = variables(&text);
        let unknown: Vec<_> = named.difference(&manual).collect();
        assert!(unknown.is_empty(), "{page}: not in the manual: {unknown:?}");
    }
    let page = variables(&read("docs/running-jobs.md"));
    let missing: Vec<_> = manual.difference(&page).collect();
    assert!(missing.is_empty(), "not in docs/running-jobs.md: {missing:?}");
}

/// P90
#[test]
fn the_documents_name_only_exit_statuses_of_the_help() {
    let help = help_of("run");
    let (_, table) = help.split_once("Exit status:\n").unwrap();
    let (table, _) = table.split_once("\n\n").unwrap();
    let known: BTreeSet<u32> = table
        .lines()
        .filter_map(|line| line.split_whitespace().next()?.parse().ok())
        .collect();
    assert_eq!(known.len(), 9, "{table}");
    let mut count = 0;
    for (page, text) in pages() {
        for status in exit_statuses(&text) {
            count += 1;
            assert!(known.contains(&status), "{page} names the exit status {status}");
        }
    }
    assert!(count > 40, "{count} exit statuses");
}

/// An option, as `--help` describes it.
struct HelpedOption {
    takes_value: bool,
    default: Option<String>,
}

/// Returns what `--help` prints, for pglock itself if the subcommand is empty.
fn help_of(subcommand: &str) -> String {
    let subcommand = [subcommand].into_iter().filter(|name| !name.is_empty());
    Pglock::alone().args(subcommand).arg("--help").output().stdout()
}

/// Returns the options of a subcommand by each of their spellings.
fn options_of(subcommand: &str) -> BTreeMap<String, HelpedOption> {
    let help = help_of(subcommand);
    let (_, list) = help.split_once("\nOptions:\n").unwrap();
    let mut options = BTreeMap::new();
    // An option begins at a line such as `  -w, --wait <DURATION>`.
    let mut entries: Vec<Vec<&str>> = Vec::new();
    for line in list.lines().take_while(|line| !line.starts_with("Exit status")) {
        let option = line.trim_start();
        // The text of an option is indented further, and can begin with the name of another one.
        if option.starts_with('-') && line.len() - option.len() < 10 {
            entries.push(Vec::new());
        }
        if let Some(entry) = entries.last_mut() {
            entry.push(line.trim());
        }
    }
    for entry in entries {
        let note = |name: &str| {
            let notes = entry
                .iter()
                .filter_map(|line| line.strip_prefix('[')?.strip_suffix(']'));
            notes.filter_map(|note| note.strip_prefix(name)).next()
        };
        let aliases = note("alias: ").unwrap_or_default();
        let names = entry[0].split([',', ' ']).chain([aliases]);
        for name in names.filter(|name| name.starts_with('-')) {
            let option = HelpedOption {
                takes_value: entry[0].contains('<'),
                default: note("default: ").map(str::to_owned),
            };
            options.insert(name.to_owned(), option);
        }
    }
    options
}

/// Returns the manual pages.
fn manual() -> String {
    let directory = fs::read_dir(Path::new(ROOT).join("completions")).unwrap();
    let files = directory.map(|entry| entry.unwrap().path());
    let pages = files.filter(|file| file.extension().is_some_and(|extension| extension == "1"));
    pages.map(|page| fs::read_to_string(page).unwrap()).collect()
}

fn in_one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(file)).unwrap()
}

/// Returns the README and the pages of `docs/`, with their names.
fn pages() -> Vec<(String, String)> {
    let directory = fs::read_dir(Path::new(ROOT).join("docs")).unwrap();
    let names = directory.map(|entry| format!("docs/{}", entry.unwrap().file_name().display()));
    let mut names: Vec<String> = names.filter(|name| name.ends_with(".md")).collect();
    names.sort();
    names.insert(0, "README.md".to_owned());
    names.into_iter().map(|name| (name.clone(), read(&name))).collect()
}

/// Returns all documents of the repository.
fn documents() -> Vec<(PathBuf, String)> {
    let (mut documents, mut directories) = (Vec::new(), vec![Path::new(ROOT).canonicalize().unwrap()]);
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() && name != "target" && (!name.starts_with('.') || name == ".github") {
                directories.push(path);
            } else if name.ends_with(".md") {
                let text = fs::read_to_string(&path).unwrap();
                documents.push((path, text));
            }
        }
    }
    documents
}

/// Returns the text without its blocks of code, and the blocks.
fn split_blocks(text: &str) -> (String, String) {
    let (mut prose, mut code, mut is_code) = (String::new(), String::new(), false);
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
            continue;
        }
        let part = if is_code { &mut code } else { &mut prose };
        part.push_str(line);
        part.push('\n');
    }
    (prose, code)
}

fn without_code(text: &str) -> String {
    let (prose, _) = split_blocks(text);
    prose.split('`').step_by(2).collect()
}

/// Returns the code between backquotes, in one line each.
fn code_spans(text: &str) -> Vec<String> {
    let (prose, _) = split_blocks(text);
    let spans = prose.split('`').skip(1).step_by(2);
    spans.map(in_one_line).collect()
}

/// Returns the targets of the links and images.
fn links(text: &str) -> Vec<String> {
    let text = without_code(text);
    let targets = text.split("](").skip(1);
    targets.map(|rest| rest.split(')').next().unwrap().to_owned()).collect()
}

/// Returns the anchors that GitHub gives to the headings: in lower case, with hyphens for spaces, without other
/// punctuation, and with a number if an earlier heading reads the same.
fn anchors(text: &str) -> BTreeSet<String> {
    let (prose, _) = split_blocks(text);
    let mut anchors = BTreeSet::new();
    for line in prose.lines().filter(|line| line.starts_with('#')) {
        let heading = line.trim_start_matches('#').trim();
        let kept = heading
            .chars()
            .filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
        let anchor = kept.collect::<String>().to_lowercase().replace(' ', "-");
        let numbered = (1..).map(|number| format!("{anchor}-{number}"));
        let free = [anchor.clone()]
            .into_iter()
            .chain(numbered)
            .find(|name| !anchors.contains(name));
        anchors.insert(free.unwrap());
    }
    anchors
}

fn long_options(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_lowercase() && c != '-');
    words
        .filter(|word| word.starts_with("--") && word.len() > 3 && !word.ends_with('-'))
        .collect()
}

/// Returns the words after `pglock SUBCOMMAND` in each command line of the text.
fn command_lines(text: &str) -> Vec<(&'static str, Vec<String>)> {
    let (_, blocks) = split_blocks(text);
    let lines = blocks.lines().map(str::to_owned).chain(code_spans(text));
    let mut commands = Vec::new();
    for line in lines {
        for subcommand in SUBCOMMANDS {
            for after in line.split(&format!("pglock {subcommand} ")).skip(1) {
                // The brackets of a synopsis.
                let words = after.split_whitespace().map(|word| word.trim_matches(['[', ']']));
                commands.push((subcommand, words.map(str::to_owned).collect()));
            }
        }
    }
    commands
}

/// Returns pglock's own options in a command line: those before the job.
fn options_in(words: &[String], known: &BTreeMap<String, HelpedOption>) -> Vec<String> {
    let mut found = Vec::new();
    let mut words = words.iter().map(String::as_str);
    while let Some(word) = words.next() {
        if !word.starts_with('-') || word == "--" {
            // In a synopsis, options may follow.
            if word != "OPTIONS" {
                break;
            }
            continue;
        }
        let name = word.split(['=', ',', ';']).next().unwrap().to_owned();
        if known.get(&name).is_some_and(|option| option.takes_value) && !word.contains('=') {
            words.next();
        }
        found.push(name);
    }
    found
}

fn variables(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_uppercase() && c != '_');
    // In roff, a letter for the font may precede the name.
    let names = words.filter_map(|word| word.find("PGLOCK_").map(|start| &word[start..]));
    names.filter(|name| !name.ends_with('_')).map(str::to_owned).collect()
}

/// Returns the numbers that are exit statuses by what is around them, except for those of success and of signals.
fn exit_statuses(text: &str) -> Vec<u32> {
    let text = in_one_line(&without_code(text));
    let mut statuses = Vec::new();
    for start in [
        "exits with ",
        "exit with ",
        "exit status is ",
        "exit status stays ",
        "status ",
        "refused, ",
        "(",
    ] {
        for after in text.split(start).skip(1) {
            let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
            let (number, rest) = after.split_at(end);
            // (74), (78 for a file) and (77, 78 or 69) are statuses, (5 s) and (128 KiB) are not.
            let is_status = start != "(" || (rest.starts_with([')', ',']) && number.len() > 1);
            if is_status && !rest.starts_with('+') {
                statuses.extend(number.parse::<u32>().ok().filter(|status| *status != 0));
            }
        }
    }
    statuses
}
