//! Proving and releasing a lock.

use super::query::QueryResult;
use super::receipt::{GRANTED_TO_NEXT, NOT_HELD, RECEIPT_TIME, RELEASED_COLUMN, Receipt};
use super::types::{Lock, Scope};
use crate::connection::{Client, is_lock_table_full};
use std::thread::sleep;

impl Lock {
    /// Releases the lock. Returns whether we held it until then.
    ///
    /// If another client was granted the lock at once, this returns only after that client can have seen the receipt.
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
        let released = result.get(RELEASED_COLUMN);
        if released == Some(GRANTED_TO_NEXT) {
            sleep(RECEIPT_TIME);
            // The lock was released. If this fails, the receipt ends with the session.
            let _ = QueryResult::fetch(client, &self.end_receipts_query());
        }
        Ok(released.is_some_and(|released| released != NOT_HELD))
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
