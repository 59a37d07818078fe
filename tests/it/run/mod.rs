//! A run from its start to its end: the job, signals, the terminal, waiting, and every way to lose the lock.

mod cost;
mod failures;
mod hostile;
mod job;
mod lost;
mod min_hold;
mod orphan;
mod partition;
mod signals;
mod terminal;
mod waiting;
mod waiting_line;
