//! What the job's status changes mean for the state machine.

use crate::run::job::{self, Job};
use crate::run::state::Event;
use crate::sys::WaitStatus;

/// Appends the job's status changes since the last call.
pub(crate) fn push_job_events(job: &Job, events: &mut Vec<Event>) {
    while let Ok(Some(status)) = job.poll_status() {
        if let Some(reason) = job::exit_reason(status) {
            events.push(Event::JobExited(reason));
            return;
        }
        events.push(match status {
            WaitStatus::Stopped(signal) => Event::JobStopped {
                signal,
                by_terminal: job.is_stopped_by_terminal(signal),
            },
            _ => Event::JobContinued,
        });
    }
}
