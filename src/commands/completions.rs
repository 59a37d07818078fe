//! `pglock completions`: the committed shell completions and the manual page.

use crate::cli::Shell;
use crate::outcome::{Failure, Outcome};
use crate::ui::stdout;

/// Prints the completions for `shell`, or the manual page.
///
/// # Errors
/// Standard output cannot be written.
pub fn run(shell: Shell) -> Result<Outcome, Failure> {
    let text = match shell {
        Shell::Bash => include_str!("../../completions/pglock.bash"),
        Shell::Zsh => include_str!("../../completions/_pglock"),
        Shell::Fish => include_str!("../../completions/pglock.fish"),
        Shell::Man => include_str!("../../completions/pglock.1"),
    };
    stdout::print(text).map(|_| Outcome::Success)
}
