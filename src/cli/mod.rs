//! The command line: from arguments and `PGLOCK_*` variables to a validated [`Invocation`].
//!
//! No I/O happens here except reading the environment, and every mistake is reported before anything else happens.
//! Errors take one line and never contain a password.

mod args;
mod defaults;
#[cfg(test)]
mod generated;
mod help;
#[cfg(test)]
mod manual;
mod options;
mod usage_error;
mod validate;
mod value;
mod variables;

pub(crate) use options::{
    CheckOptions, CompletionsTarget, EvictOptions, HistoryAction, HistoryOptions, InitOptions, KeyFormat, KeyOptions,
    KeySelection, ListOptions,
};

use crate::outcome::{ExitCode, Failure};
use crate::run::options::RunOptions;
use args::{Cli, Command, command};
use clap::FromArgMatches;
use clap::error::ErrorKind;
use std::ffi::OsString;

/// The validated command line.
#[derive(Debug)]
pub(crate) enum Invocation {
    /// `pglock run`
    Run(Box<RunOptions>),
    /// `pglock list`
    List(ListOptions),
    /// `pglock evict`
    Evict(EvictOptions),
    /// `pglock check`
    Check(Box<CheckOptions>),
    /// `pglock key`
    Key(KeyOptions),
    /// `pglock completions`
    Completions(CompletionsTarget),
    /// `pglock init`
    Init(InitOptions),
    /// `pglock history`
    History(HistoryOptions),
    /// The text of `--help` or `--version`, for standard output.
    Text(String),
}

/// Parses the arguments, of which the first is the name of the program, and the environment variables.
///
/// # Errors
/// Fails with one line that names the invalid argument or variable and says what is accepted.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Invocation, Failure> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let parse = || command().try_get_matches_from(&arguments);
    let matches = help::leaving_out_notes(parse).or_else(|error| match error.kind() {
        ErrorKind::DisplayHelp => parse(),
        _ => Err(error),
    });
    let command = match matches.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli.command,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            return Ok(Invocation::Text(error.render().to_string()));
        }
        Err(error) => return Err(Failure::msg(ExitCode::Usage, usage_error::one_line(error, &arguments))),
    };
    Ok(match command {
        Command::Run(args) => Invocation::Run(Box::new(args.validate()?)),
        Command::List(args) => Invocation::List(args.validate()?),
        Command::Evict(args) => Invocation::Evict(args.validate()?),
        Command::Check(args) => Invocation::Check(Box::new(args.validate()?)),
        Command::Key(args) => Invocation::Key(args.validate()?),
        Command::Completions(args) => Invocation::Completions(args.target),
        Command::Init(args) => Invocation::Init(args.validate()?),
        Command::History(args) => Invocation::History(args.validate()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::ffi::OsStringExt;

    /// Arguments of real command lines.
    const ARGUMENTS: &str = "\
        run list evict check key completions init history help bash -- - true -k --key --key=x -kx x 1,2 -1 name:7 --shared -s -n \
        --no-wait -w --wait --timeout=5 1.5 90s --slots 3 0 65536 --fair --token -E 256 --min-hold --on-lost stop \
        --on-lost=ignore --kill-after --heartbeat --poll -o --stop-signal USR1 -d --dsn --scope auto --hash crc32 all -q -v -qv --json \
        --watch --yes --sql --record --once-per --table --grant --keep --print --last --failed --ok-within --metrics --prune --help -h -V --version --connect-timeout 99999999999999999999";

    /// An argument of a real command line, or one that looks like it.
    fn argument() -> impl Strategy<Value = String> {
        let arguments: Vec<&str> = ARGUMENTS.split(' ').chain([""]).collect();
        prop_oneof![
            8 => prop::sample::select(arguments).prop_map(str::to_owned),
            1 => "\\PC{0,20}",
            1 => "-{0,2}[a-z]{1,10}(=\\PC{0,9})?",
        ]
    }

    proptest! {
        #[test]
        fn no_command_line_panics_and_every_error_is_one_line(arguments in prop::collection::vec(argument(), 0..10)) {
            let arguments = std::iter::once("pglock".to_owned()).chain(arguments);
            if let Err(failure) = parse(arguments.map(OsString::from)) {
                let message = failure.to_string();
                prop_assert!(!message.is_empty() && !message.contains('\n'), "{message:?}");
                prop_assert!(matches!(failure.code, ExitCode::Usage | ExitCode::Config), "{message:?}");
            }
        }

        #[test]
        fn arguments_that_are_not_utf_8_do_not_panic(
            arguments in prop::collection::vec(prop::collection::vec(1u8.., 0..9), 0..5),
        ) {
            let arguments = arguments.into_iter().map(OsString::from_vec);
            let _ = parse(["pglock", "run", "-k", "x"].map(OsString::from).into_iter().chain(arguments));
        }

        /// `pglock list postgresql://u:secret@h`, and worse.
        #[test]
        fn no_error_contains_a_password(
            mut arguments in prop::collection::vec(argument(), 0..8),
            secret in "[XYZ]{8}",
            option in "(--dsn=|-d|--dns=|--no-wait=|--wait=|--key=|--slots=|)",
            index: prop::sample::Index,
        ) {
            let dsns = [
                format!("{option}postgresql://u:{secret}@h/d"),
                format!("{option}host=h password={secret} user=u"),
                format!("{option}password='{secret}  x'"),
            ];
            for dsn in dsns {
                let position = index.index(arguments.len() + 1);
                arguments.insert(position, dsn);
                let command_line = std::iter::once("pglock".to_owned()).chain(arguments.clone());
                if let Err(failure) = parse(command_line.map(OsString::from)) {
                    let text = format!("{failure} {failure:?}");
                    prop_assert!(!text.contains(&secret), "{arguments:?}: {text:?}");
                }
                arguments.remove(position);
            }
        }
    }
}
