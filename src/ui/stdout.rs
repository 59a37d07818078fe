//! What goes to standard output, of the commands that have no job: `run` leaves it to the job.

use crate::outcome::{ExitCode, Failure};
use std::io::{self, Write};

/// Prints a text, whole. Whether anybody reads on: a reader that has seen enough (`| head`) is no error.
///
/// # Errors
/// It cannot be written, as on a full disk.
pub fn print(text: &str) -> Result<bool, Failure> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes());
    match written.and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::new(ExitCode::Internal, error).context("cannot write to standard output")),
    }
}
