//! Parsers for the values of options and environment variables.
//!
//! Errors say what is accepted: `expected ...`. The caller adds the value and the name of the option or variable.

use crate::connection::has_password;
use crate::history::{MAX_NAME_LEN, TableName};
use crate::key::Key;
use crate::key::hash::{SCHEMES, Scheme};
use crate::lock::ScopeChoice;
use crate::protocol::derived_keys::MAX_SLOTS;
use crate::protocol::query_tag::MAX_NOTE_LEN;
use crate::run::signal_number::SignalNumber;
use crate::run::state::OnLost;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use std::time::Duration;

/// The limit of every duration. A longer one could overflow the clock's arithmetic on some systems.
const MAX_DURATION: Duration = Duration::from_secs(100 * 365 * 86400);

/// Parses a duration: seconds with or without a fraction, or with units as in `1m30s`.
///
/// # Errors
/// Fails for anything else, negative numbers included.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let is_plain_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let duration = if is_plain_number {
        let seconds = text.parse().ok();
        seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
    } else {
        humantime::parse_duration(text).ok()
    };
    match duration {
        Some(duration) => Ok(duration.min(MAX_DURATION)),
        None => Err("expected a duration: seconds (10, 1.5) or with units (500ms, 90s, 5m, 1h30m)".into()),
    }
}

/// Parses an exit status.
///
/// # Errors
/// Fails for anything but an integer from 0 to 255.
pub(super) fn exit_status(text: &str) -> Result<u8, String> {
    text.parse()
        .map_err(|_| "expected an exit status from 0 to 255".to_owned())
}

/// Parses a signal that is to end a wait.
///
/// # Errors
/// Fails for anything else, and for a signal that cannot end one.
pub(super) fn stop_signal(text: &str) -> Result<SignalNumber, String> {
    let signal = SignalNumber::parse(text).filter(|signal| signal.can_end_wait());
    signal.ok_or_else(|| "expected a signal that can be caught, such as TERM, USR1, WINCH or RTMIN+3".to_owned())
}

/// Parses a number of slots.
///
/// # Errors
/// Fails for anything but an integer from 1 to [`MAX_SLOTS`].
pub(super) fn slot_count(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(count @ 1..=MAX_SLOTS) => Ok(count),
        _ => Err(format!("expected a number of slots from 1 to {MAX_SLOTS}")),
    }
}

/// Parses a number of runs.
///
/// # Errors
/// Fails for anything but an integer of at least 1.
pub(super) fn run_count(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(count @ 1..) => Ok(count),
        _ => Err("expected a number of runs, at least 1".to_owned()),
    }
}

/// Parses the value of `--note`.
///
/// # Errors
/// Fails for a text that is too long, empty, or has control characters: it is printed on terminals, in one line. Also
/// fails for a text with a password.
pub(super) fn note(text: &str) -> Result<String, String> {
    let text = without_password(text)?;
    if text.trim().is_empty() || text.len() > MAX_NOTE_LEN || text.chars().any(char::is_control) {
        return Err(format!(
            "expected at most {MAX_NOTE_LEN} bytes of text, without control characters"
        ));
    }
    Ok(text.to_owned())
}

/// Parses the name of a role.
///
/// # Errors
/// Fails for a name that PostgreSQL would cut or refuse, and for a text with a password.
pub(super) fn role(text: &str) -> Result<String, String> {
    let text = without_password(text)?;
    if text.is_empty() || text.len() > MAX_NAME_LEN {
        return Err(format!("expected the name of a role, at most {MAX_NAME_LEN} bytes"));
    }
    Ok(text.to_owned())
}

/// Parses the name of a run table.
///
/// # Errors
/// Fails as [`TableName::parse`] does, and for a text with a password.
pub(super) fn table(text: &str) -> Result<TableName, String> {
    TableName::parse(without_password(text)?)
}

/// Parses the value of `--key`. clap lets it begin with a dash, because `-1,2` is a key; but if it is `--shared`, the
/// key in front of that option was forgotten.
///
/// # Errors
/// Fails for an option, and as [`key`] does.
pub(super) fn key_option(text: &str) -> Result<Key, String> {
    if let Some(rest) = text.strip_prefix('-')
        && !rest.is_empty()
        && !rest.starts_with(|c: char| c.is_ascii_digit())
    {
        return Err("the key is missing; to use this as a name, write name: in front of it".to_owned());
    }
    key(text)
}

/// Parses a key.
///
/// # Errors
/// Fails as [`Key::parse`] does, and for a text with a password.
pub(super) fn key(text: &str) -> Result<Key, String> {
    Key::parse(without_password(text)?).map_err(|error| error.to_string())
}

/// Returns the text of a value that is printed, or sent to the server as a name, unless it has a password in it.
///
/// # Errors
/// Fails for a text with a password, most often a connection string in the wrong place.
fn without_password(text: &str) -> Result<&str, String> {
    if has_password(text) {
        return Err("expected a value without a password, because others can see it; \
                    pass a connection string with --dsn or PGLOCK_DSN"
            .to_owned());
    }
    Ok(text)
}

/// The name of a value, its description for shell completions, and the value.
pub(super) type Choice<T> = (&'static str, &'static str, T);

pub(super) const ON_LOST_CHOICES: &[Choice<OnLost>] = &[
    ("stop", "Terminate the job: SIGTERM, then SIGKILL", OnLost::Stop),
    ("ignore", "Let the job run on without the lock", OnLost::Ignore),
];

pub(super) const SCOPE_CHOICES: &[Choice<ScopeChoice>] = &[
    (
        "auto",
        "Transaction behind a pooler, session otherwise",
        ScopeChoice::Auto,
    ),
    ("session", "Session of a direct connection", ScopeChoice::Session),
    ("transaction", "Open transaction", ScopeChoice::Transaction),
    (
        "session-pooled",
        "Session, through a pooler that uses session pooling",
        ScopeChoice::SessionPooled,
    ),
];

/// Finds a value by its name.
///
/// # Errors
/// Fails if no choice has this name.
pub(super) fn choose<T: Copy>(choices: &[Choice<T>], text: &str) -> Result<T, String> {
    if let Some((.., value)) = choices.iter().find(|(name, ..)| *name == text) {
        return Ok(*value);
    }
    let names: Vec<&str> = choices.iter().map(|(name, ..)| *name).collect();
    match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => Err(format!("expected {} or {last}", rest.join(", "))),
        _ => Err(format!("expected {}", names.concat())),
    }
}

/// Returns the name of a value.
pub(super) fn name_of<T: PartialEq>(choices: &[Choice<T>], value: T) -> &'static str {
    let choice = choices.iter().find(|(.., candidate)| *candidate == value);
    choice.map_or("", |(name, ..)| name)
}

/// Parses the value of an option, and tells clap the choices, so that the shells can complete them.
pub(super) fn choice_parser<T>(choices: &'static [Choice<T>]) -> impl TypedValueParser<Value = T>
where
    T: Copy + Send + Sync + 'static,
{
    let names = choices
        .iter()
        .map(|(name, help, _)| PossibleValue::new(*name).help(*help));
    PossibleValuesParser::new(names).try_map(move |name| choose(choices, &name))
}

/// The value of `pglock key --hash`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SchemeSelection {
    One(Scheme),
    All,
}

const ALL_SCHEMES: &str = "all";

/// Parses the value of `--hash`.
pub(super) fn scheme_parser() -> impl TypedValueParser<Value = Scheme> {
    PossibleValuesParser::new(scheme_values()).try_map(|name| name.parse::<Scheme>())
}

/// Parses the value of `pglock key --hash`.
pub(super) fn scheme_selection_parser() -> impl TypedValueParser<Value = SchemeSelection> {
    let all = PossibleValue::new(ALL_SCHEMES).help("Every scheme");
    PossibleValuesParser::new(scheme_values().chain([all])).try_map(|name| match name.as_str() {
        ALL_SCHEMES => Ok(SchemeSelection::All),
        name => name.parse().map(SchemeSelection::One),
    })
}

fn scheme_values() -> impl Iterator<Item = PossibleValue> {
    SCHEMES
        .iter()
        .map(|info| PossibleValue::new(info.name).help(info.users))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Instant;

    #[test]
    fn durations_are_seconds_or_have_units() {
        let milliseconds = |text: &str| duration(text).map(|duration| duration.as_millis());
        assert_eq!(milliseconds("10"), Ok(10_000));
        assert_eq!(milliseconds("1.5"), Ok(1_500));
        assert_eq!(milliseconds("0"), Ok(0));
        assert_eq!(milliseconds(".25"), Ok(250));
        assert_eq!(milliseconds("500ms"), Ok(500));
        assert_eq!(milliseconds("1m30s"), Ok(90_000));
        for invalid in ["", "-1", "1.5.5", "ten", "5 parsecs", "NaN", "inf", "1e3", "."] {
            assert!(milliseconds(invalid).is_err(), "{invalid:?}");
        }
    }

    #[test]
    fn a_stop_signal_can_be_caught() {
        for valid in ["TERM", "USR1", "WINCH", "10", "SIGABRT"] {
            assert!(stop_signal(valid).is_ok(), "{valid}");
        }
        for invalid in ["KILL", "9", "STOP", "CONT", "CHLD", "SEGV", "PIPE", "TSTP", "term!", ""] {
            assert!(stop_signal(invalid).is_err(), "{invalid}");
        }
    }

    #[test]
    fn an_unknown_choice_is_answered_with_the_known_ones() {
        let error = |text: &str| choose(SCOPE_CHOICES, text).expect_err("not a scope");
        assert_eq!(error("x"), "expected auto, session, transaction or session-pooled");
        for (name, _, scope) in SCOPE_CHOICES {
            assert_eq!(choose(SCOPE_CHOICES, name), Ok(*scope));
            assert_eq!(name_of(SCOPE_CHOICES, *scope), *name);
        }
    }

    #[test]
    fn fuzz_option_values() {
        let examples = [
            "10",
            "1.5",
            "500ms",
            "1h30m",
            "90d",
            "1y 2months",
            "RTMIN+3",
            "SIGTERM",
            "-1,2",
            "--shared",
            "name:42",
            "until 14:00, gr\u{fc}n",
        ];
        crate::fuzz::fuzz(&examples, |input| {
            let text = &*String::from_utf8_lossy(input);
            if let Ok(duration) = duration(text) {
                let _ = Instant::now() + duration + duration;
            }
            if let Ok(note) = note(text) {
                assert!(note == text && note.len() <= MAX_NOTE_LEN && !note.contains(char::is_control));
            }
            if let Ok(key) = key(text) {
                assert_eq!(key.given(), text);
            }
            assert!(
                slot_count(text)
                    .ok()
                    .is_none_or(|count| (1..=MAX_SLOTS).contains(&count))
            );
            assert!(run_count(text).ok().is_none_or(|count| count > 0));
            assert!(
                role(text)
                    .ok()
                    .is_none_or(|role| role == text && role.len() <= MAX_NAME_LEN)
            );
            let _ = (exit_status(text), stop_signal(text));
        });
    }

    proptest! {
        #[test]
        fn printed_durations_parse_to_the_same_time(milliseconds in 0u64..4_000_000_000_000) {
            let original = Duration::from_millis(milliseconds);
            let printed = humantime::format_duration(original).to_string();
            prop_assert_eq!(duration(&printed), Ok(original.min(MAX_DURATION)));
            let seconds = milliseconds / 1000;
            prop_assert_eq!(duration(&seconds.to_string()), Ok(Duration::from_secs(seconds).min(MAX_DURATION)));
        }

        #[test]
        fn every_duration_fits_the_clock(text in "[0-9.]{0,25}|[0-9]{1,22}[a-z ]{0,6}|\\PC{0,9}") {
            if let Ok(duration) = duration(&text) {
                let _ = Instant::now() + duration + duration;
            }
        }
    }
}
