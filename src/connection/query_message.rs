//! The message in which a query is sent, by the simple query protocol: the statements around it. Pure.
//!
//! * Anyone who may create functions or operators in a schema of our role's search path could run code with our
//!   privileges, so a query finds only PostgreSQL's own.
//! * The transactions of a role or a database may be deferrable by default. One that is also serializable and read only
//!   waits for others at its first SELECT, so ours begin by `BEGIN NOT DEFERRABLE`. Whatever precedes BEGIN must not
//!   need a snapshot: SHOW does not. A session that listens needs more (`lock::heartbeat`).
//! * PgDog, when it lends by the transaction, refuses a message that mixes SET with other statements (58000). By the
//!   first statement alone it decides about a message: it answers BEGIN, COMMIT, LISTEN or a lone `SELECT set_config()`
//!   itself, as if nothing followed. One that begins with SHOW goes to the primary as it is.
//! * Pgpool-II may send a message that is one SELECT or one SHOW to a standby. One of several statements goes to the
//!   primary, and so does what follows in a transaction that such a message has begun.
//!
//! So no message contains SET, and each has several statements of which SHOW is the first, except for a lone BEGIN,
//! COMMIT or ROLLBACK.

use postgres::SimpleQueryMessage;

/// The first statement of a message, for what is between us and the server. Every server knows this setting, also those
/// that merely resemble PostgreSQL.
const FIRST_STATEMENT: &str = "SHOW transaction_isolation; ";

/// Limits a transaction to PostgreSQL's own functions and operators.
const SET_SEARCH_PATH: &str = "SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true); ";

/// The pattern of LIKE for the messages of this version that contain this part of a query.
pub(crate) fn like_pattern(part: &str) -> String {
    format!("{FIRST_STATEMENT}%{part}%")
}

/// A message, and how many of its statements precede the query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct QueryMessage {
    /// The statements.
    pub sql: String,
    framing_count: usize,
}

impl QueryMessage {
    /// Returns a query in a transaction of its own. An error leaves that transaction open.
    pub(crate) fn in_own_transaction(query: &str) -> QueryMessage {
        QueryMessage::in_own_transaction_with("", query)
    }

    /// Returns a query in a transaction of its own with these modes. An error leaves that transaction open.
    pub(crate) fn in_own_transaction_with(modes: &str, query: &str) -> QueryMessage {
        let opening = QueryMessage::opening_transaction(modes, query);
        QueryMessage {
            sql: format!("{}; COMMIT", opening.sql),
            ..opening
        }
    }

    /// Returns the beginning of a transaction with these modes, and the first query in it, if there is one.
    pub(crate) fn opening_transaction(modes: &str, query: &str) -> QueryMessage {
        let space = if modes.is_empty() { "" } else { " " };
        QueryMessage {
            sql: format!("{FIRST_STATEMENT}BEGIN{space}{modes} NOT DEFERRABLE; {SET_SEARCH_PATH}{query}"),
            framing_count: 3,
        }
    }

    /// Returns a query in the transaction that is open.
    pub(crate) fn in_open_transaction(query: &str) -> QueryMessage {
        QueryMessage {
            sql: format!("{FIRST_STATEMENT}{query}"),
            framing_count: 1,
        }
    }

    /// Returns what the query itself has returned.
    pub(crate) fn results_of_query(&self, results: Vec<SimpleQueryMessage>) -> Vec<SimpleQueryMessage> {
        let mut completed = 0;
        let is_framing = |result: &SimpleQueryMessage| {
            let is_framing = completed < self.framing_count;
            completed += usize::from(matches!(result, SimpleQueryMessage::CommandComplete(_)));
            is_framing
        };
        results.into_iter().skip_while(is_framing).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true); ";

    #[test]
    fn a_query_is_one_of_several_statements_and_none_is_set() {
        let own = QueryMessage::in_own_transaction("SELECT 1");
        assert_eq!(
            own.sql,
            format!("SHOW transaction_isolation; BEGIN NOT DEFERRABLE; {PATH}SELECT 1; COMMIT")
        );
        let opening = QueryMessage::opening_transaction("READ ONLY", "SELECT 1");
        assert_eq!(
            opening.sql,
            format!("SHOW transaction_isolation; BEGIN READ ONLY NOT DEFERRABLE; {PATH}SELECT 1")
        );
        let open = QueryMessage::in_open_transaction("SELECT 1");
        assert_eq!(open.sql, "SHOW transaction_isolation; SELECT 1");
        // As many statements as precede the query.
        for message in [own, opening, open] {
            let (before, _) = message.sql.split_once("SELECT 1").expect("the query");
            assert_eq!(before.matches(';').count(), message.framing_count);
        }
    }

    #[test]
    fn the_results_of_the_statements_before_a_query_are_left_out() {
        let completed = |rows| SimpleQueryMessage::CommandComplete(rows);
        let results = |count: u64| (0..count).map(completed).collect::<Vec<_>>();
        let numbers = |results: Vec<SimpleQueryMessage>| -> Vec<u64> {
            let number = |result| match result {
                SimpleQueryMessage::CommandComplete(number) => number,
                _ => panic!("no other results"),
            };
            results.into_iter().map(number).collect()
        };
        let own = QueryMessage::in_own_transaction("SELECT 1");
        assert_eq!(numbers(own.results_of_query(results(5))), [3, 4]);
        // A server that is no PostgreSQL may leave some out.
        assert_eq!(numbers(own.results_of_query(results(2))), [0u64; 0]);
        let open = QueryMessage::in_open_transaction("SELECT 1");
        assert_eq!(numbers(open.results_of_query(results(2))), [1]);
    }
}
