//! The processes of the job: its descendants, and the members of its process group.
//!
//! Listed only while a job is being terminated, so a normal run pays nothing. A list is no snapshot: the processes are
//! read one after another, and change meanwhile. One that forks and exits while they are being read hides its child, so
//! only a second list that agrees with the first proves that no process is left ([`look`]).

#[cfg(target_os = "linux")]
use super::proc_fs;
#[cfg(not(target_os = "linux"))]
use super::process_list;
use super::process_list::{Process, ProcessList};
use nix::unistd::{Pid, getsid};
use std::collections::HashSet;

/// The running processes of a job.
pub(crate) struct JobProcesses {
    /// Those that the system shows.
    pub(crate) visible: Vec<Pid>,
    /// Whether it is certain that there is none. If the system does not show all processes, it is not.
    pub(crate) is_none_left: bool,
}

/// The sessions of the job: pglock's, and those that a process of the job has started and waits for, as su(1) and
/// script(1) do. A session whose leader is an orphan is a daemon's, which is to outlive the job. A session that was
/// once seen to be the job's remains so: the parent of its leader may be terminated before it.
pub(super) struct JobSessions(HashSet<i32>);

impl JobSessions {
    /// Returns pglock's session.
    pub(super) fn new() -> JobSessions {
        JobSessions(getsid(None).map(Pid::as_raw).into_iter().collect())
    }

    /// Adds those sessions of the descendants whose leader has a living parent in a session of the job.
    fn extend(&mut self, list: &ProcessList, descendants: &[Process]) {
        let this = Pid::this().as_raw();
        loop {
            let is_of_the_job = |session: i32| {
                let leader = list.find(session).filter(|leader| leader.parent != this);
                let parent = leader.and_then(|leader| list.find(leader.parent));
                parent.is_some_and(|parent| self.0.contains(&parent.session))
            };
            let sessions = descendants.iter().map(|process| process.session);
            let new: Vec<i32> = sessions
                .filter(|session| !self.0.contains(session) && is_of_the_job(*session))
                .collect();
            if new.is_empty() {
                return;
            }
            self.0.extend(new);
        }
    }
}

/// Returns the running members of the process group that the job leads, and the running descendants of this process
/// that have left it, as the child of timeout(1) and the job of another pglock have. Daemons are not part of the job:
/// adds to `sessions` those that are. For `except`, see [`ProcessList::descendants`].
pub(super) fn in_group(list: &ProcessList, group: Pid, sessions: &mut JobSessions, except: &[Pid]) -> Vec<Pid> {
    let is_member = |process: &Process| process.is_running && process.group == group.as_raw();
    let members = list.processes.iter().filter(|process| is_member(process));
    let mut found: Vec<Pid> = members.map(Process::pid).collect();
    let descendants = list.descendants(except);
    sessions.extend(list, &descendants);
    let others = descendants
        .iter()
        .filter(|process| !is_member(process) && sessions.0.contains(&process.session));
    found.extend(others.map(Process::pid));
    found
}

/// Returns the processes that `select` finds in a list of the descendants of this process and of the members of
/// `group`.
///
/// If there is none, looks again at once. None is left if this second list has none either, and no zombie child of this
/// process that the first did not have. For suppose that one runs when the second look begins. It descends from a
/// running child of this process, which the first list lacks, or shows as running. A process that exits leaves its
/// children to this process, and is a zombie until it is reaped, which does not happen meanwhile. So the second list
/// shows that child, and it is running or a new zombie.
///
/// A member of the group that is no descendant is only listed by the second look: to find it, all processes of the
/// machine must be asked.
pub(super) fn look(group: Option<Pid>, mut select: impl FnMut(&ProcessList) -> Vec<Pid>) -> JobProcesses {
    let first = list_descendants();
    let mut visible = select(&first);
    let mut is_none_left = false;
    if visible.is_empty() {
        let second = group.map_or_else(list_descendants, list_descendants_and);
        visible = select(&second);
        let shows_all = first.shows_all && second.shows_all;
        is_none_left = visible.is_empty() && shows_all && second.zombies().is_subset(&first.zombies());
    }
    JobProcesses { visible, is_none_left }
}

/// Lists the descendants of this process, and maybe other processes.
pub(super) fn list_descendants() -> ProcessList {
    #[cfg(target_os = "linux")]
    let list = proc_fs::descendants();
    #[cfg(not(target_os = "linux"))]
    let list = process_list::list_with_ps();
    list.unwrap_or_default()
}

/// Lists the descendants of this process and the members of a group. A member need not be a descendant: where a job has
/// entered another PID namespace, as with nsenter(1), that one's first process adopts the orphans.
#[cfg_attr(
    not(target_os = "linux"),
    expect(unused_variables, reason = "ps(1) lists all processes")
)]
fn list_descendants_and(group: Pid) -> ProcessList {
    let list = list_descendants();
    #[cfg(target_os = "linux")]
    let list = list.with_members(group);
    list
}

/// Returns the running children of this process. Before the job starts there are some only if a shell `exec`ed pglock.
pub(super) fn children() -> Vec<Pid> {
    let this = Pid::this().as_raw();
    let list = list_descendants();
    let is_child = |process: &&Process| process.is_running && process.parent == this;
    list.processes.iter().filter(is_child).map(Process::pid).collect()
}

/// Makes orphaned descendants children of this process instead of process 1. Elsewhere than on Linux, a process whose
/// parent has exited is not found among the descendants.
pub(super) fn adopt_orphans() {
    #[cfg(target_os = "linux")]
    let _ = nix::sys::prctl::set_child_subreaper(true);
}
