//! Proving and releasing a lock.

use super::query::{QueryResult, simple_query};
use super::sql;
use super::types::{Lock, Scope};
use crate::connection::Client;

impl Lock {
    /// Releases the lock. Returns whether we held it until then.
    ///
    /// # Errors
    /// The server reports an error, or the connection is lost.
    pub(crate) fn release(&self, client: &mut Client) -> Result<bool, postgres::Error> {
        match self.scope {
            Scope::Session => {
                let result = QueryResult::fetch(client, &self.release_query())?;
                Ok(result.is_true("released"))
            }
            Scope::Transaction => {
                let result = QueryResult::fetch(client, &self.prove_and_commit())?;
                client.is_in_transaction = false;
                Ok(result.proves(&self.keys))
            }
        }
    }

    /// Returns whether we hold the lock now.
    ///
    /// # Errors
    /// The server reports an error, or the connection is lost.
    pub(crate) fn is_held(&self, client: &mut Client) -> Result<bool, postgres::Error> {
        let result = QueryResult::fetch(client, &self.proof())?;
        Ok(result.proves(&self.keys))
    }
}

/// Releases whatever the session holds.
///
/// # Errors
/// The server reports an error, or the connection is lost.
pub(crate) fn release_all(client: &mut Client) -> Result<(), postgres::Error> {
    simple_query(client, sql::RELEASE_ALL).map(drop)
}
