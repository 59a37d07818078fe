//! One line for each mistake on the command line: what is wrong, what was probably meant, and where to read more.

use super::args::command;
use crate::connection::may_have_password;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use std::ffi::OsString;

/// Names that other tools have for our subcommands.
const SYNONYMS: [(&str, &[&str]); 7] = [
    ("run", &["exec", "lock", "acquire", "with", "wait"]),
    ("list", &["ls", "ps", "show", "status", "locks", "who"]),
    ("evict", &["unlock", "release", "kill", "terminate", "remove", "rm"]),
    ("check", &["test", "doctor", "ping", "verify"]),
    ("key", &["keys", "hash", "id"]),
    ("init", &["setup", "create", "install", "migrate"]),
    ("history", &["log", "runs", "last", "past"]),
];

/// Options of flock(1) that pglock does not have, and what to do instead.
const FLOCK_OPTIONS: [(&[&str], &str); 2] = [
    (
        &["-u", "--unlock"],
        "pglock releases the lock when the command exits; pglock evict ends another holder",
    ),
    (
        &["-F", "--no-fork"],
        "pglock must keep running to hold the lock; leave it out",
    ),
];

/// How to run a command, for those who left out a subcommand.
const EXAMPLE: &str = "to run a command: pglock run --key backup -- ./backup.sh";

/// Shortens clap's error, which fills a screen, to one line that names the command with more help.
pub(super) fn one_line(mut error: clap::Error, arguments: &[OsString]) -> String {
    hide_connection_strings(&mut error);
    let text = error.render().to_string();
    let summary = text.split("\n\n").next().unwrap_or_default();
    let summary = summary.strip_prefix("error: ").unwrap_or(summary);
    let summary = summary.split_whitespace().collect::<Vec<_>>().join(" ");
    let definition = command();
    let subcommand = arguments.get(1).and_then(|name| definition.find_subcommand(name));
    let help = match subcommand {
        Some(subcommand) => format!("pglock {} --help", subcommand.get_name()),
        None => "pglock --help".to_owned(),
    };
    let tip = tip(&error, subcommand.is_some());
    let tip = tip.map_or_else(String::new, |tip| format!("; {tip}"));
    format!("{summary}{tip} (see '{help}')")
}

/// Returns what was probably meant.
fn tip(error: &clap::Error, has_subcommand: bool) -> Option<String> {
    match error.kind() {
        ErrorKind::MissingSubcommand => Some(EXAMPLE.to_owned()),
        ErrorKind::InvalidSubcommand => Some(match similar_subcommand(error) {
            Some(name) => format!("did you mean {name}?"),
            None => EXAMPLE.to_owned(),
        }),
        ErrorKind::UnknownArgument => {
            let advice = flock_advice(error).map(str::to_owned);
            let similar = || {
                error
                    .get(ContextKind::SuggestedArg)
                    .map(|similar| format!("did you mean {similar}?"))
            };
            advice
                .or_else(similar)
                .or_else(|| (!has_subcommand).then(|| EXAMPLE.to_owned()))
        }
        ErrorKind::MissingRequiredArgument => {
            let ContextValue::Strings(missing) = error.get(ContextKind::InvalidArg)? else {
                return None;
            };
            let is_key_missing = missing.iter().any(|argument| argument.starts_with("--key"));
            is_key_missing.then(|| "it names the lock, as the file does for flock(1)".to_owned())
        }
        _ => None,
    }
}

/// Returns what to do instead of an option of flock(1).
fn flock_advice(error: &clap::Error) -> Option<&'static str> {
    let ContextValue::String(unknown) = error.get(ContextKind::InvalidArg)? else {
        return None;
    };
    let (_, advice) = FLOCK_OPTIONS
        .iter()
        .find(|(names, _)| names.contains(&unknown.as_str()))?;
    Some(advice)
}

/// Returns the subcommand whose name is similar to the unknown one, or means the same.
fn similar_subcommand(error: &clap::Error) -> Option<String> {
    let ContextValue::String(unknown) = error.get(ContextKind::InvalidSubcommand)? else {
        return None;
    };
    if let Some((name, _)) = SYNONYMS.iter().find(|(_, others)| others.contains(&unknown.as_str())) {
        return Some((*name).to_owned());
    }
    if let Some(similar) = error.get(ContextKind::SuggestedSubcommand) {
        return Some(similar.to_string());
    }
    // clap's measure misses two swapped letters in a short name.
    let definition = command();
    let mut names = definition.get_subcommands().map(clap::Command::get_name);
    let swapped = names.find(|name| sorted_letters(name) == sorted_letters(unknown));
    swapped.map(str::to_owned)
}

fn sorted_letters(text: &str) -> Vec<char> {
    let mut letters: Vec<char> = text.chars().collect();
    letters.sort_unstable();
    letters
}

/// Replaces every value that may contain a password: a connection string is easily passed in the wrong place
/// (`pglock list postgresql://...`), and cron mails the error.
fn hide_connection_strings(error: &mut clap::Error) {
    let is_hidden = |value: &ContextValue| matches!(value, ContextValue::String(value) if may_have_password(value));
    let hidden = error.context().filter(|(_, value)| is_hidden(value));
    for kind in hidden.map(|(kind, _)| kind).collect::<Vec<_>>() {
        error.insert(kind, ContextValue::String("(a connection string)".to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(arguments: &str) -> String {
        let arguments = format!("pglock {arguments}");
        let arguments: Vec<OsString> = arguments.split_whitespace().map(OsString::from).collect();
        let error = command().try_get_matches_from(&arguments).expect_err("a mistake");
        one_line(error, &arguments)
    }

    #[test]
    fn what_was_meant_is_suggested() {
        for (arguments, tip) in [
            ("rnu --key x true", "; did you mean run? (see 'pglock --help')"),
            ("lst", "; did you mean list?"),
            ("unlock", "; did you mean evict?"),
            (
                "run --key x --nowait true",
                "; did you mean --no-wait? (see 'pglock run --help')",
            ),
            ("run --exclusiv --key x true", "; did you mean --exclusive?"),
            (
                "run -u 9",
                "'-u' found; pglock releases the lock when the command exits",
            ),
            ("run --key x -nF true", "leave it out (see"),
            (
                "run /tmp/lock true",
                "--key <KEY>; it names the lock, as the file does for flock(1) (see",
            ),
            ("", EXAMPLE),
            ("/tmp/lock true", EXAMPLE),
            ("-n /tmp/lock true", EXAMPLE),
        ] {
            let message = message(arguments);
            assert!(message.contains(tip), "{arguments:?}: {message:?}");
        }
        assert!(!message("list --frob").contains(EXAMPLE));
    }

    #[test]
    fn a_misplaced_connection_string_is_not_quoted() {
        for arguments in [
            "postgresql://u:SECRET@db",
            "list postgresql://u:SECRET@db",
            "list u:SECRET@db",
            "list -k -postgresql://u:SECRET@db",
            "run -wpostgresql://u:SECRET@db --key x true",
            "run -wpostgresql://u:SECRET@db\u{7f} --key x true",
            "run --wait=pgpass=SECRET --key x true",
            "run --no-wait=pwd=SECRET --key x true",
            "evict --key=postgresql://u:SECRET@db",
        ] {
            let message = message(arguments);
            assert!(message.contains("(a connection string)"), "{arguments:?}: {message:?}");
            assert!(!message.contains("SECRET"), "{arguments:?}: {message:?}");
        }
        for (arguments, shown) in [
            ("check --password", "'--password'"),
            ("list env=prod", "'env=prod'"),
            ("run --key --wait=5 true", "'--wait=5'"),
            ("/opt/bin/reset-password", "'/opt/bin/reset-password'"),
        ] {
            let message = message(arguments);
            assert!(message.contains(shown), "{arguments:?}: {message:?}");
        }
    }
}
