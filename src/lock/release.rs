//! Proving and releasing a lock, and claiming one that was lost.

use super::query::{EndStatement, QueryResult, begin, end_transaction, simple_query};
use super::receipt::{NOT_HELD, RECEIPT_KEPT, RELEASED_COLUMN, Receipt};
use super::sql::{GOT_COLUMN, TRANSACTION_MODES};
use super::types::{Keys, Lock, Mode, Scope};
use crate::connection::{Client, is_lock_table_full};
use crate::key::KeyId;
use crate::protocol::derived_keys::claim_key;
use crate::protocol::query_tag::QueryTag;

impl Lock {
    /// Releases the lock. Returns whether we held it until then.
    ///
    /// With a receipt, this returns only after another client that has the lock by then can have seen it. A lock of
    /// [many keys](Lock::has_many_keys) leaves none, since they would take as much room again.
    ///
    /// # Errors
    /// The server reports an error, or the connection is lost.
    pub(crate) fn release(&self, client: &mut Client, receipt: Receipt) -> Result<bool, postgres::Error> {
        if self.scope == Scope::Transaction {
            let result = QueryResult::fetch(client, &self.prove_and_commit())?;
            client.is_in_transaction = false;
            return Ok(result.proves(&self.keys));
        }
        let receipt = if self.has_many_keys() { Receipt::None } else { receipt };
        let result = match QueryResult::fetch(client, &self.release_query(receipt)) {
            // There is no room for a receipt, and nothing was released.
            Err(error) if receipt != Receipt::None && is_lock_table_full(&error) => {
                QueryResult::fetch(client, &self.release_query(Receipt::None))?
            }
            result => result?,
        };
        let released = result.get(RELEASED_COLUMN);
        if released == Some(RECEIPT_KEPT) {
            // The lock is released. If this fails, the receipt ends with the session.
            let _ = simple_query(client, &self.end_receipts_query());
        }
        Ok(released.is_some_and(|released| released != NOT_HELD))
    }

    /// Claims the keys of a lock that we have lost and that another client has now: a waiter that is granted one of
    /// them gives it back. A claim fails while a waiter is looking for one, and is tried again while `goes_on`, which
    /// pauses, returns true. Returns false if the server's table of locks has no room for them: then nothing is
    /// claimed, since the keys that are held need the room.
    ///
    /// The server counts how often a session has acquired a lock. Each key is claimed once, so that
    /// [`Lock::end_claim`] ends the claims.
    ///
    /// # Errors
    /// The server reports an error, or the connection is lost.
    pub(crate) fn claim(
        &self,
        client: &mut Client,
        mut goes_on: impl FnMut() -> bool,
    ) -> Result<bool, postgres::Error> {
        let mut missing = self.ids().iter().map(|id| claim_key(*id)).collect();
        loop {
            let claims = Lock {
                keys: Keys::All(missing),
                mode: Mode::Shared,
                ..*self
            };
            missing = match claims.try_each(client) {
                // Those before the one for which there was no room.
                Err(error) if is_lock_table_full(&error) => return self.end_claim(client).map(|()| false),
                result => result?,
            };
            if missing.is_empty() || !goes_on() {
                return Ok(true);
            }
        }
    }

    /// Acquires, for the session, whichever of the keys after the busy one are free. Returns the lock of those that are
    /// still missing, with the busy one.
    ///
    /// # Errors
    /// The server reports an error, or the connection is lost.
    pub(crate) fn acquire_free(&self, client: &mut Client, busy: usize) -> Result<Lock, postgres::Error> {
        let of_keys = |ids: &[KeyId]| Lock {
            keys: Keys::All(ids.to_vec()),
            ..*self
        };
        let mut missing = vec![self.ids()[busy]];
        let later = &self.ids()[busy + 1..];
        if !later.is_empty() {
            missing.extend(of_keys(later).try_each(client)?);
        }
        Ok(of_keys(&missing))
    }

    /// Acquires, for the session, whichever of the keys are free. Returns the others.
    ///
    /// # Errors
    /// The server reports an error, or the connection is lost.
    fn try_each(&self, client: &mut Client) -> Result<Vec<KeyId>, postgres::Error> {
        let result = QueryResult::fetch(client, &self.try_each_query())?;
        let array = result.get(GOT_COLUMN).unwrap_or_default();
        let mut got = array.bytes().filter(u8::is_ascii_alphabetic);
        let ids = self.ids().iter().copied();
        Ok(ids.filter(|_| got.next() != Some(b't')).collect())
    }

    /// Claims the keys while `pause` sleeps, in a session that a pooler may lend to others.
    ///
    /// # Errors
    /// The server reports an error, or the connection is lost.
    pub(crate) fn claim_during(&self, client: &mut Client, pause: impl FnOnce()) -> Result<(), postgres::Error> {
        begin(client, TRANSACTION_MODES, &self.claim_in_transaction_query())?;
        pause();
        end_transaction(client, EndStatement::Commit, QueryTag::ProgramOnly)
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
