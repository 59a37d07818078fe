//! Standard output of the subcommands that run no job. `pglock run` leaves standard output to the job.

use crate::outcome::{ExitCode, Failure};
use std::io::{self, Write};

/// Prints the whole text. Returns `false` if the reader has closed the pipe (`| head`), which is not an error.
///
/// # Errors
/// The text cannot be written, for example because the disk is full.
pub(crate) fn print(text: &str) -> Result<bool, Failure> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes());
    match written.and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::new(ExitCode::Internal, error).context("cannot write to standard output")),
    }
}
