//! An exhaustive model of the whole: several pglocks, one server with sessions and a queue, an evictor, and faults.
//!
//! The model checker `stateright` visits every world that can be reached with a budget of faults, whatever the order of
//! the steps. Each pglock runs the real [`RunState`](super::RunState). The rest is simplified: the session's thread
//! (`thread`, and `waiter` for a lost connection, after `run::session`), the loop (`client`, after `run::supervisor`),
//! the server (`server`), and time, which is discrete (`time`): a tick is a second, and passes only when nobody has
//! anything to do.
//!
//! `rules` has the sizes and switches off single fixes, `steps` says what can happen, `properties` what must hold.
//!
//! # What is abstracted away
//! * Query and reply are one step, except in the server's queue and in a cut network. Connecting takes no time.
//! * There is one exclusive key: no shared locks, several keys, slots, tickets, fencing tokens or transaction scope.
//! * A server restarts at a boundary of ticks or at once, is young until the next tick, and forgets everything. There
//!   is no failover to another server, on which an old session could live on beside the new ones.
//! * Everyone in the queue has been there for long enough to want a receipt.
//! * A job is one process that can end at any time, and that SIGKILL ends at once. Job control, the minimum hold time
//!   and `--on-lost ignore` are left to the random sequences in `tests.rs`.
//! * A holder notices an eviction with its next heartbeat: there are no notifications. An evictor may evict, and has a
//!   network that is never cut. It evicts holders only, no waiters.
//! * A session that a pooler lends to two clients does not lose its lock as well: the second one's would prove the
//!   first one's. The real pglock recognizes the pooler by the name of the session, and holds the lock in a
//!   transaction.
//! * There is no time limit for waiting or connecting. An attempt to connect that fails costs nothing, and a waiter
//!   sees a guard as soon as there is one. Its old connection, if it gave that up in a cut network, is gone before the
//!   next.
//! * All pglocks have the same timing, and a waiter that lost its connection knows it: a holder with a longer limit
//!   that the waiter has not seen yet is not covered. One that loses its connection before the holder does counts from
//!   then; if the holder's session ends while it is out of contact, it is no better than a newcomer.
//! * A delay lasts from one tick to the next; longer ones take several from the budget.

mod client;
mod properties;
mod rules;
mod server;
mod steps;
mod tests;
mod thread;
mod time;
mod waiter;
mod world;
