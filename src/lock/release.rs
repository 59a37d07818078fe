//! Proving and releasing a lock, and claiming one that was lost.

use super::query::{QueryResult, simple_query};
use super::receipt::{NOT_HELD, RELEASED_COLUMN, Receipt};
use super::types::{Lock, Scope};
use crate::connection::{Client, is_lock_table_full};

impl Lock {
    /// Releases the lock. Returns whether we held it until then.
    ///
    /// With a receipt, this takes a little longer if another client was granted the lock at once: the server keeps the
    /// receipt for that time.
    ///
    /// # Errors
    /// The server reports an error, or the connection is lost.
    pub(crate) fn release(&self, client: &mut Client, receipt: Receipt) -> Result<bool, postgres::Error> {
        if self.scope == Scope::Transaction {
            let result = QueryResult::fetch(client, &self.prove_and_commit())?;
            client.is_in_transaction = false;
            return Ok(result.proves(&self.keys));
        }
        let result = match QueryResult::fetch(client, &self.release_query(receipt)) {
            // There is no room for a receipt, and nothing was released.
            Err(error) if receipt == Receipt::Left && is_lock_table_full(&error) => {
                QueryResult::fetch(client, &self.release_query(Receipt::None))?
            }
            result => result?,
        };
        Ok(result.get(RELEASED_COLUMN).is_some_and(|released| released != NOT_HELD))
    }

    /// Claims the keys of a lock that we have lost and that somebody else has: a waiter that is granted one of them
    /// gives it back.
    ///
    /// # Errors
    /// The server reports an error, or the connection is lost.
    pub(crate) fn claim(&self, client: &mut Client) -> Result<(), postgres::Error> {
        simple_query(client, &self.claim_query()).map(drop)
    }

    /// Ends the claims, once we have the keys.
    ///
    /// # Errors
    /// The server reports an error, or the connection is lost.
    pub(crate) fn end_claim(&self, client: &mut Client) -> Result<(), postgres::Error> {
        simple_query(client, &self.end_claim_query()).map(drop)
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
