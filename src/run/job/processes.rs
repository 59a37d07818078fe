//! The processes of the job: its descendants, and the members of its process group.
//!
//! Listed only while a job is being terminated, so a normal run pays nothing. A list is no snapshot: the processes are
//! read one after another, and change meanwhile. One that forks and exits while they are being read hides its child, so
//! only a second list that agrees with the first proves that no process is left ([`look`]).

#[cfg(target_os = "linux")]
use nix::errno::Errno;
use nix::unistd::{Pid, getsid};
use std::collections::HashSet;
#[cfg(target_os = "linux")]
use std::{fs::File, io::Read};

/// A process, running or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    group: i32,
    session: i32,
    /// Whether it runs. Otherwise it is a zombie, which its parent has not reaped yet.
    is_running: bool,
}

/// The processes that the system shows.
#[derive(Default)]
struct ProcessList {
    processes: Vec<Process>,
    shows_all: bool,
}

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
        let find = |pid| list.processes.iter().find(|process| process.pid == pid);
        loop {
            let is_of_the_job = |session: i32| {
                let leader = find(session).filter(|leader| leader.parent != this);
                let parent = leader.and_then(|leader| find(leader.parent));
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
/// adds to `sessions` those that are. For `except`, see [`descendants`].
pub(super) fn in_group(group: Pid, sessions: &mut JobSessions, except: &[Pid]) -> JobProcesses {
    look(|list| {
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
    })
}

/// Returns the running descendants of this process, parents before children, without the children `except` and their
/// descendants.
pub(super) fn descendants(except: &[Pid]) -> JobProcesses {
    look(|list| list.descendants(except).iter().map(Process::pid).collect())
}

/// Returns the processes that `select` finds in a list.
///
/// If there is none, looks again at once. None is left if this second list has none either, and no zombie child of this
/// process that the first did not have. For suppose that one runs when the second look begins. It descends from a
/// running child of this process, which the first list lacks, or shows as running. A process that exits leaves its
/// children to this process, and is a zombie until it is reaped, which does not happen meanwhile. So the second list
/// shows that child, and it is running or a new zombie.
fn look(mut select: impl FnMut(&ProcessList) -> Vec<Pid>) -> JobProcesses {
    let first = ProcessList::new();
    let mut visible = select(&first);
    let mut is_none_left = false;
    if visible.is_empty() && first.shows_all {
        let second = ProcessList::new();
        visible = select(&second);
        is_none_left = visible.is_empty() && second.shows_all && second.zombies().is_subset(&first.zombies());
    }
    JobProcesses { visible, is_none_left }
}

/// Returns the running children of this process. Before the job starts there are some only if a shell `exec`ed pglock.
pub(super) fn children() -> Vec<Pid> {
    let this = Pid::this().as_raw();
    let list = ProcessList::new();
    let is_child = |process: &&Process| process.is_running && process.parent == this;
    list.processes.iter().filter(is_child).map(Process::pid).collect()
}

/// Makes orphaned descendants children of this process instead of process 1. Elsewhere than on Linux, a process whose
/// parent has exited is not found among the descendants.
pub(super) fn adopt_orphans() {
    #[cfg(target_os = "linux")]
    let _ = nix::sys::prctl::set_child_subreaper(true);
}

impl Process {
    fn pid(&self) -> Pid {
        Pid::from_raw(self.pid)
    }
}

impl ProcessList {
    /// Lists all processes. Without process 1 and pglock itself, some are hidden: by `hidepid` of Linux,
    /// jails of FreeBSD, or because /proc is not mounted.
    fn new() -> ProcessList {
        #[cfg(target_os = "linux")]
        let listed = list_from_proc();
        #[cfg(not(target_os = "linux"))]
        let listed = list_with_ps();
        let list = listed.unwrap_or_default();
        let shows = |pid| list.processes.iter().any(|process| process.pid == pid);
        ProcessList {
            shows_all: list.shows_all && shows(1) && shows(Pid::this().as_raw()),
            ..list
        }
    }

    /// Returns the children of this process that have exited and are not reaped yet.
    fn zombies(&self) -> HashSet<i32> {
        let this = Pid::this().as_raw();
        let is_zombie = |process: &&Process| !process.is_running && process.parent == this;
        self.processes
            .iter()
            .filter(is_zombie)
            .map(|process| process.pid)
            .collect()
    }

    /// Returns the running descendants of this process, as [`descendants`] does.
    fn descendants(&self, except: &[Pid]) -> Vec<Process> {
        let mut found: Vec<Process> = Vec::new();
        let mut parents = HashSet::from([Pid::this().as_raw()]);
        // Each round finds one generation. Skipping what was found before ends the loop even if the list has a cycle.
        loop {
            let is_new = |process: &&Process| !found.contains(process) && !except.contains(&process.pid());
            let is_child = |process: &&Process| process.is_running && parents.contains(&process.parent);
            let children = self.processes.iter().filter(is_child);
            let generation: Vec<Process> = children.filter(is_new).copied().collect();
            if generation.is_empty() {
                return found;
            }
            parents = generation.iter().map(|process| process.pid).collect();
            found.extend(generation);
        }
    }
}

/// Returns the processes that /proc shows. A process that cannot be read, for want of memory or of a
/// descriptor, counts as hidden. So do all if /proc is that of another PID namespace (`unshare --pid` without
/// `--mount-proc`): its process IDs are those of strangers.
#[cfg(target_os = "linux")]
fn list_from_proc() -> Option<ProcessList> {
    let own_pid = std::fs::read_link("/proc/self").ok()?;
    if own_pid.to_str()?.parse() != Ok(std::process::id()) {
        return None;
    }
    let mut list = ProcessList {
        processes: Vec::new(),
        shows_all: true,
    };
    let mut stat = [0; 4096];
    for entry in std::fs::read_dir("/proc").ok()? {
        let Ok(entry) = entry else {
            list.shows_all = false;
            break;
        };
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // One call reads all of it, which is much shorter.
        match File::open(format!("/proc/{pid}/stat")).and_then(|mut file| file.read(&mut stat)) {
            Ok(length) => match parse_stat(pid, &stat[..length]) {
                Some(process) => list.processes.push(process),
                None => list.shows_all = false,
            },
            // It has ended in the meantime.
            Err(error) if has_ended(&error) => {}
            Err(_) => list.shows_all = false,
        }
    }
    Some(list)
}

/// Returns whether a process cannot be read because it has ended.
#[cfg(target_os = "linux")]
fn has_ended(error: &std::io::Error) -> bool {
    [Errno::ENOENT as i32, Errno::ESRCH as i32]
        .map(Some)
        .contains(&error.raw_os_error())
}

/// Parses `/proc/<pid>/stat` (proc(5)): `pid (name) state ppid pgrp session ...`. The name may contain spaces and
/// parentheses, and need not be UTF-8. A process whose first thread has ended looks like a zombie, but has other
/// threads.
#[cfg(any(target_os = "linux", test))]
fn parse_stat(pid: i32, stat: &[u8]) -> Option<Process> {
    let end_of_name = stat.iter().rposition(|byte| *byte == b')')?;
    let mut fields = str::from_utf8(&stat[end_of_name + 1..]).ok()?.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    let session = fields.next()?.parse().ok()?;
    let threads = fields.nth(20 - 7).and_then(|count| count.parse::<u32>().ok());
    Some(Process {
        pid,
        parent,
        group,
        session,
        is_running: !matches!(state, "Z" | "X") || threads.is_some_and(|count| count > 1),
    })
}

/// Returns the processes that ps(1) lists, without ps itself: it is a child of this process.
#[cfg(any(not(target_os = "linux"), test))]
fn list_with_ps() -> Option<ProcessList> {
    use std::process::{Command, Stdio};

    let mut ps = Command::new("/bin/ps");
    // Each column is an option of its own: FreeBSD takes all that follows a `=` for the title of the column.
    ps.args(["-A", "-o", "pid=", "-o", "ppid=", "-o", "pgid=", "-o", "stat="]);
    ps.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let ps = ps.spawn().ok()?;
    let own_pid = ps.id() as i32;
    let output = ps.wait_with_output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let processes = text.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let mut number = || fields.next()?.parse::<i32>().ok();
        let pid = number()?;
        let process = Process {
            pid,
            parent: number()?,
            group: number()?,
            session: getsid(Some(Pid::from_raw(pid))).map_or(0, Pid::as_raw),
            is_running: !fields.next()?.starts_with('Z'),
        };
        (process.pid != own_pid).then_some(process)
    });
    Some(ProcessList {
        processes: processes.collect(),
        shows_all: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    #[test]
    fn parse_stat_accepts_any_name() {
        let running = Process {
            pid: 7,
            parent: 3,
            group: 5,
            session: 1,
            is_running: true,
        };
        let zombie = Process {
            is_running: false,
            ..running
        };
        assert_eq!(parse_stat(7, b"7 (a) b) (c) S 3 5 1 0 -1"), Some(running));
        let after_the_group = "1 0 -1 4228364 0 0 0 0 0 0 0 0 20 0";
        assert_eq!(
            parse_stat(7, format!("7 (x) Z 3 5 {after_the_group} 1 0").as_bytes()),
            Some(zombie)
        );
        assert_eq!(
            parse_stat(7, format!("7 (x) Z 3 5 {after_the_group} 2 0").as_bytes()),
            Some(running)
        );
        assert_eq!(parse_stat(7, b""), None);
        // "обновление" as the kernel shortens it.
        assert_eq!(parse_stat(7, b"7 (\xd0\xbe\xd0) S 3 5 1 0 -1"), Some(running));
    }

    /// # Errors
    /// A process cannot be started.
    #[test]
    fn ps_lists_children_without_itself() -> std::io::Result<()> {
        let mut child = Command::new("sleep").arg("60").process_group(0).spawn()?;
        let mut zombie = Command::new("true").spawn()?;
        while !sys::has_exited(Pid::from_raw(zombie.id() as i32)) {
            std::thread::yield_now();
        }
        let list = list_with_ps();
        child.kill()?;
        child.wait()?;
        zombie.wait()?;

        let this = Pid::this().as_raw();
        let list = list.expect("ps is installed");
        assert!(list.processes.iter().any(|process| process.pid == this));
        let pids = |is_running: bool| {
            let is_child = |process: &&Process| process.parent == this && process.is_running == is_running;
            let children = list.processes.iter().filter(is_child);
            children.map(|process| (process.pid, process.group)).collect::<Vec<_>>()
        };
        let child = child.id() as i32;
        assert_eq!(pids(true), [(child, child)]);
        assert!(list.zombies().contains(&(zombie.id() as i32)));
        Ok(())
    }
}
