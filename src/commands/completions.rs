//! `pglock completions`: prints the committed shell completions or a page of the manual.

use crate::cli::CompletionsTarget;
use crate::outcome::{Failure, Outcome};
use crate::ui::stdout;

/// Prints the completions for a shell, or a page of the manual.
///
/// # Errors
/// Fails if standard output cannot be written.
pub(crate) fn run(target: CompletionsTarget) -> Result<Outcome, Failure> {
    stdout::print(text_of(target))?;
    Ok(Outcome::Success)
}

fn text_of(target: CompletionsTarget) -> &'static str {
    match target {
        CompletionsTarget::Bash => include_str!("../../completions/pglock.bash"),
        CompletionsTarget::Zsh => include_str!("../../completions/_pglock"),
        CompletionsTarget::Fish => include_str!("../../completions/pglock.fish"),
        CompletionsTarget::Man => include_str!("../../completions/pglock.1"),
        CompletionsTarget::ManRun => include_str!("../../completions/pglock-run.1"),
        CompletionsTarget::ManList => include_str!("../../completions/pglock-list.1"),
        CompletionsTarget::ManEvict => include_str!("../../completions/pglock-evict.1"),
        CompletionsTarget::ManCheck => include_str!("../../completions/pglock-check.1"),
        CompletionsTarget::ManKey => include_str!("../../completions/pglock-key.1"),
        CompletionsTarget::ManCompletions => include_str!("../../completions/pglock-completions.1"),
        CompletionsTarget::ManInit => include_str!("../../completions/pglock-init.1"),
        CompletionsTarget::ManHistory => include_str!("../../completions/pglock-history.1"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::Path;

    #[test]
    fn every_committed_file_is_printed() {
        let mut printed = BTreeMap::new();
        for target in CompletionsTarget::value_variants() {
            let value = target.to_possible_value().expect("no target is hidden");
            let file = match value.get_name() {
                "zsh" => "_pglock".to_owned(),
                name => match name.strip_prefix("man") {
                    Some(subcommand) => format!("pglock{subcommand}.1"),
                    None => format!("pglock.{name}"),
                },
            };
            printed.insert(file, text_of(*target));
        }
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("completions");
        for file in fs::read_dir(directory).expect("the files are committed") {
            let file = file.expect("the directory is readable");
            let name = file.file_name().to_string_lossy().into_owned();
            let text = fs::read_to_string(file.path()).expect("the file is text");
            assert!(printed.remove(&name) == Some(&text), "{name} is not printed");
        }
        assert_eq!(printed, BTreeMap::new());
    }
}
