//! The run table: what ran under which lock, when, and how it ended. Nothing here runs unless the user asks for it.
//!
//! The holder of the lock records the run: it inserts it before the job starts, and completes it before it releases the
//! lock.
//! A row that a dead pglock has left as running is found by the next holder of the key, in the transaction that inserts
//! its own. A run is completed only while it is still running, so of two transactions on one row the second sees what
//! the first has done: a run that a later holder has given up as abandoned cannot become a success, and a success
//! cannot be overlooked. Therefore `--once-per` holds even where a lock was lost without notice.
//!
//! | file | what it is |
//! |---|---|
//! | `table` | the name of the table |
//! | `layout` | its columns, its indexes, its version and how long it keeps runs; pure |
//! | `description` | what the catalogs say about it |
//! | `setup` | creating it, and granting what a role needs |
//! | `runs` | reading runs |
//! | `prune` | removing old runs of all keys |
//! | `record` | inserting and completing a run |
//! | `sql` | the text of the queries; pure |
//! | `types` | runs, and how they end; pure |
//! | `failure` | why a table cannot be used |

mod description;
mod failure;
mod layout;
mod prune;
mod record;
mod runs;
mod setup;
mod sql;
mod table;
mod types;

pub(crate) use description::require as require_table;
pub(crate) use failure::explain;
pub(crate) use layout::DEFAULT_KEEP;
pub(crate) use prune::prune_all;
pub(crate) use record::{Begun, LastSuccess, RecordedRun, begin, complete, prune};
#[cfg(test)]
pub(crate) use runs::summarize;
pub(crate) use runs::{KeySummary, Run, RunFilter, newest_runs, newest_successes, summaries};
pub(crate) use setup::{Setup, SetupResult};
pub(crate) use table::{MAX_NAME_LEN, TableName};
pub(crate) use types::{NewRun, RunEnd, RunOutcome};
