//! A run from start to end: the job, signals, the terminal, waiting, and the loss of the lock.

#[cfg(target_os = "linux")]
mod container;
mod cost;
mod database_work;
mod endures;
mod endures_kinds;
mod eviction;
mod failures;
#[cfg(target_os = "linux")]
mod forwarded;
mod guard;
mod hostile;
mod job;
#[cfg(target_os = "linux")]
mod job_processes;
#[cfg(target_os = "linux")]
mod late_thread;
mod lost;
mod min_hold;
mod once_per;
mod orphan;
mod partition;
mod record;
mod signals;
mod switchover;
#[cfg(target_os = "linux")]
mod systemd;
mod terminal;
mod waiting;
mod waiting_line;
