//! Locks that the backend holds before we request one: left behind in the session of a pool, or held there by another
//! of the pool's clients. Pure.
//!
//! PostgreSQL grants a lock at once to a session that already holds it, and afterwards `pg_locks` has one row for both
//! grants. On a backend that a pooler lends, that session can have taken the lock for another client. Only a look
//! before the try can tell, and only in the same query: between two queries another client may have used the backend.
//!
//! A connection that is proven to be direct needs no look: its backend began with us, so it holds nothing.

use super::types::Mode;

/// The rows of `pg_locks` that this backend holds. They are all of the current database, like the backend.
const OWN_ROWS: &str =
    "FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND granted AND pid = pg_catalog.pg_backend_pid()";

/// Returns a subselect for FROM of one row and one column: an array with an element for each of these conditions, which
/// select a key's rows. The element is true if this backend holds that key in a mode that would exclude ours. (A column
/// for each key would limit their number to 1664.)
///
/// PostgreSQL evaluates the select list of a query after the subselects in its FROM, and does not merge one that has
/// aggregates into the query around it. So the look is over before the first key is tried, and one scan of the locks is
/// enough for any number of keys.
pub(super) fn subselect(row_conditions: impl Iterator<Item = String>, mode: Mode) -> String {
    let elements: Vec<String> = row_conditions
        .map(|rows| format!("pg_catalog.bool_or({rows}{})", and_excludes(mode)))
        .collect();
    format!(
        "(SELECT ARRAY[{}] AS is_left {OWN_ROWS}) AS left_behind",
        elements.join(", ")
    )
}

/// Returns an expression that tries a key by this call, unless the element of [`subselect`] with this index says that
/// it is left behind. CASE evaluates its branches in order, and none after the first that applies; AND promises no
/// order.
pub(super) fn unless_left_behind(index: usize, call: &str) -> String {
    // The elements of an array are counted from 1.
    format!("CASE WHEN is_left[{}] THEN false ELSE {call} END", index + 1)
}

/// Returns the condition that this backend holds the key with these rows in a mode that would exclude ours.
pub(super) fn is_left_behind(rows: &str, mode: Mode) -> String {
    format!("EXISTS (SELECT 1 {OWN_ROWS} AND {rows}{})", and_excludes(mode))
}

/// Returns the condition that a lock would exclude ours, if it were that of another session.
fn and_excludes(mode: Mode) -> &'static str {
    match mode {
        Mode::Exclusive => "",
        Mode::Shared => " AND mode = 'ExclusiveLock'",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exclusive_lock_is_excluded_by_any_and_a_shared_one_by_an_exclusive_one() {
        let own =
            "FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND granted AND pid = pg_catalog.pg_backend_pid()";
        let rows = || ["a = 1", "a = 2"].into_iter().map(str::to_owned);
        assert_eq!(
            subselect(rows(), Mode::Exclusive),
            format!(
                "(SELECT ARRAY[pg_catalog.bool_or(a = 1), pg_catalog.bool_or(a = 2)] AS is_left {own}) AS left_behind"
            )
        );
        let shared = subselect(rows(), Mode::Shared);
        assert!(
            shared.contains("ARRAY[pg_catalog.bool_or(a = 1 AND mode = 'ExclusiveLock'), "),
            "{shared}"
        );
        assert_eq!(
            is_left_behind("a = 1", Mode::Shared),
            format!("EXISTS (SELECT 1 {own} AND a = 1 AND mode = 'ExclusiveLock')")
        );
    }
}
