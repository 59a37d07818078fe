//! Additions to clap's help text: headings, defaults, ranges, environment variables, and the tables at its end.

use crate::key::hash::{SCHEMES, SchemeInput};
use crate::outcome::{ExitCode, exit_rows};
use clap::Arg;
use humantime::format_duration;
use std::cell::Cell;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

/// The widest help text, in columns: `-h` has one line per option at this width.
pub(super) const MAX_HELP_WIDTH: usize = 100;

thread_local! {
    static IS_LEFT_OUT: Cell<bool> = const { Cell::new(false) };
}

/// Calls a function that defines the command line, and leaves out all that this module adds: to write it takes longer
/// than to parse the arguments, and hardly a run shows it.
pub(super) fn leaving_out_notes<T>(define: impl FnOnce() -> T) -> T {
    IS_LEFT_OUT.set(true);
    let defined = define();
    IS_LEFT_OUT.set(false);
    defined
}

// The headings of options. Those without one come first, as clap's `Options`.
pub(super) const WAITING: &str = "Waiting";
pub(super) const LOSS: &str = "Losing the lock";
pub(super) const CONNECTION: &str = "Connection";

/// What a DURATION is.
pub(super) const DURATIONS: &str = "A DURATION is in seconds (10, 1.5) or has units (500ms, 90s, 5m, 1h30m).\n";

/// Notes on the default, the range and the variable of an option. clap prints such notes itself only if it also reads
/// the variable and applies the default, but pglock must tell an invalid variable (78) from an invalid argument (64).
pub(super) trait ArgNotes {
    /// Adds the default to `-h` and `--help`.
    fn default_note(self, default: impl Display) -> Self;

    /// Adds the accepted values to `--help`.
    fn range_note(self, range: impl Display) -> Self;

    /// Adds the environment variable to `--help`.
    fn variable_note(self, variable: impl Display) -> Self;
}

impl ArgNotes for Arg {
    fn default_note(self, default: impl Display) -> Arg {
        if IS_LEFT_OUT.get() {
            return self;
        }
        let (short, long) = help_of(&self);
        self.help(format!("{short} [default: {default}]"))
            .long_help(format!("{long}\n\n[default: {default}]"))
    }

    fn range_note(self, range: impl Display) -> Arg {
        with_long_note(self, format_args!("[range: {range}]"))
    }

    fn variable_note(self, variable: impl Display) -> Arg {
        with_long_note(self, format_args!("[env: {variable}]"))
    }
}

fn with_long_note(arg: Arg, note: impl Display) -> Arg {
    if IS_LEFT_OUT.get() {
        return arg;
    }
    let (_, long) = help_of(&arg);
    let separator = if long.ends_with(']') { "\n" } else { "\n\n" };
    arg.long_help(format!("{long}{separator}{note}"))
}

pub(super) fn duration_range(range: &RangeInclusive<Duration>) -> String {
    if IS_LEFT_OUT.get() {
        return String::new();
    }
    format!(
        "{} to {}",
        format_duration(*range.start()),
        format_duration(*range.end())
    )
}

/// Returns the text for `-h` and for `--help`.
pub(super) fn help_of(arg: &Arg) -> (String, String) {
    let short = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let long = arg.get_long_help().map(ToString::to_string);
    (short.clone(), long.unwrap_or(short))
}

/// Returns what `pglock run -h` ends with.
pub(super) fn run_summary() -> String {
    let (conflict, lost) = (ExitCode::Conflict as u8, ExitCode::Lost as u8);
    format!("{DURATIONS}Exit status: the job's own, {conflict} if the lock is held, {lost} if it was lost; see --help")
}

pub(super) fn exit_table(subcommand: &str) -> String {
    if IS_LEFT_OUT.get() {
        return String::new();
    }
    let rows = exit_rows(subcommand);
    let width = rows.iter().map(|(code, _)| code.len()).max().unwrap_or_default();
    let rows = rows
        .iter()
        .map(|(code, meaning)| format!("  {code:<width$}  {meaning}\n"));
    format!("Exit status:\n{}", rows.collect::<String>())
}

pub(super) fn scheme_table() -> String {
    if IS_LEFT_OUT.get() {
        return String::new();
    }
    let rows = |input| {
        let schemes = SCHEMES.iter().filter(move |info| info.input == input);
        schemes
            .map(|info| format!("  {:<24} {}\n", info.name, info.users))
            .collect::<String>()
    };
    format!(
        "Schemes of --hash:\n{}A tool's own lock, with a different number in each database:\n{}\
         A tool's own lock, with the same number in every database:\n{}",
        rows(SchemeInput::LockName),
        rows(SchemeInput::DatabaseName),
        rows(SchemeInput::Nothing)
    )
}
