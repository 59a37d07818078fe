//! Files that the settings name, or that libpq looks for by default.
//!
//! A file that a parameter or a variable names is meant to be used: one that exists, but not for us, is an error, even
//! where libpq goes on without it, or without TLS. A default file may be there for another purpose.

use super::settings_error::SettingsError;
use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};
use std::path::{Path, PathBuf};

/// A file that a parameter names, or that libpq looks for by default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SettingsFile {
    /// The path.
    pub path: PathBuf,
    /// A parameter names it. A default file need not exist.
    pub is_explicit: bool,
}

impl SettingsFile {
    /// Returns the path, if there is such a file. `kind` names it in errors ("client certificate").
    ///
    /// # Errors
    /// The file is named by a parameter, and may not be read.
    pub(super) fn find(&self, kind: &str) -> Result<Option<&Path>, SettingsError> {
        let path = self.path.as_path();
        if !self.is_explicit {
            return Ok(Some(path).filter(|path| path.exists()));
        }
        // Opening the file could block, or consume what it has to say: it may be a pipe.
        match access(path, AccessFlags::R_OK) {
            Ok(()) => Ok(Some(path)),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(error) => Err(SettingsError::unreadable(kind, path, error)),
        }
    }
}
