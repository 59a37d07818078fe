//! `pglock completions`: prints the committed shell completions or the manual page.

use crate::cli::CompletionsTarget;
use crate::outcome::{Failure, Outcome};
use crate::ui::stdout;

/// Prints the completions for a shell, or the manual page.
///
/// # Errors
/// Fails if standard output cannot be written.
pub(crate) fn run(target: CompletionsTarget) -> Result<Outcome, Failure> {
    let text = match target {
        CompletionsTarget::Bash => include_str!("../../completions/pglock.bash"),
        CompletionsTarget::Zsh => include_str!("../../completions/_pglock"),
        CompletionsTarget::Fish => include_str!("../../completions/pglock.fish"),
        CompletionsTarget::Man => include_str!("../../completions/pglock.1"),
    };
    stdout::print(text)?;
    Ok(Outcome::Success)
}
