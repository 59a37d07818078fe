//! Additions to clap's help text: defaults, environment variables, and the tables at its end.

use crate::key::hash::{SCHEMES, SchemeInput};
use crate::outcome::EXIT_TABLE;
use clap::Arg;
use std::fmt::Display;

/// The widest help text, in columns: `-h` has one line per option at this width.
pub(super) const MAX_HELP_WIDTH: usize = 120;

/// Notes on the default and the variable of an option. clap prints such notes itself only if it also reads the variable
/// and applies the default, but pglock must tell an invalid variable (78) from an invalid argument (64).
pub(super) trait ArgNotes {
    /// Adds the default to `-h` and `--help`.
    fn default_note(self, default: impl Display) -> Self;

    /// Adds the environment variable to `--help`.
    fn variable_note(self, variable: impl Display) -> Self;
}

impl ArgNotes for Arg {
    fn default_note(self, default: impl Display) -> Arg {
        let (short, long) = help_of(&self);
        self.help(format!("{short} [default: {default}]"))
            .long_help(format!("{long}\n\n[default: {default}]"))
    }

    fn variable_note(self, variable: impl Display) -> Arg {
        let (_, long) = help_of(&self);
        let separator = if long.ends_with(']') { "\n" } else { "\n\n" };
        self.long_help(format!("{long}{separator}[env: {variable}]"))
    }
}

/// Returns the text for `-h` and for `--help`.
pub(super) fn help_of(arg: &Arg) -> (String, String) {
    let short = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let long = arg.get_long_help().map(ToString::to_string);
    (short.clone(), long.unwrap_or(short))
}

pub(super) fn exit_table() -> String {
    let rows = EXIT_TABLE
        .iter()
        .map(|(code, meaning)| format!("  {code:<14} {meaning}\n"));
    format!("Exit status:\n{}", rows.collect::<String>())
}

pub(super) fn scheme_table() -> String {
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
