//! A machine that is too busy to let the session's thread run, while the main thread sees the time pass.

use crate::support::case::Case;
use crate::support::pglock::Running;
use crate::support::wait::{SOON, eventually, until};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// A thread that does not run until this is dropped.
struct StoppedThread(Pid);

impl StoppedThread {
    /// Stops the session's thread.
    fn of_the_session(pglock: &Running) -> StoppedThread {
        let threads = fs::read_dir(format!("/proc/{}/task", pglock.pid())).unwrap();
        let mut threads = threads.map(|thread| thread.unwrap().path());
        let name = |thread: &PathBuf| fs::read_to_string(thread.join("comm")).unwrap();
        let thread = threads.find(|thread| name(thread) == "session\n").unwrap();
        let thread = Pid::from_raw(thread.file_name().unwrap().to_str().unwrap().parse().unwrap());
        ptrace::seize(thread, ptrace::Options::empty()).unwrap();
        ptrace::interrupt(thread).unwrap();
        waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
        StoppedThread(thread)
    }
}

impl Drop for StoppedThread {
    fn drop(&mut self) {
        // Where pglock has ended, it fails.
        let _ = ptrace::detach(self.0, None);
    }
}

/// P39: the session's thread gets no CPU time, neither before the connection is abandoned nor for long after. The wait
/// goes on.
#[test]
fn a_wait_survives_a_machine_that_is_too_busy() {
    let case = Case::new();
    let holder = case.holder();
    let waiter = case.run().args(["--heartbeat", "0.5", "true"]).spawn();
    case.await_locks(1, 1);
    let stopped = StoppedThread::of_the_session(&waiter);
    eventually(SOON, "the connection is abandoned", || case.backends().len() == 1);
    // A heartbeat later the thread has not reported that.
    let has_said_why = until(Duration::from_secs(3), || !waiter.stderr().is_empty());
    assert!(!has_said_why, "{}", waiter.stderr());
    drop(stopped);
    case.await_locks(1, 1);
    holder.finish().code(0);
    waiter.finish().code(0);
}
