//! The processes of the job: its descendants, and the members of its process group.
//!
//! Listed only while a job is being terminated, so a normal run pays nothing. Each list is a snapshot that is stale
//! when it arrives, so the caller repeats the query until no process is left.

use nix::unistd::{Pid, getsid};
use std::collections::HashSet;

/// A running process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    group: i32,
}

/// The running processes that the system shows.
struct Snapshot {
    processes: Vec<Process>,
    shows_all: bool,
}

/// The running processes of a job.
pub(crate) struct JobProcesses {
    /// Those that the system shows.
    pub(crate) visible: Vec<Pid>,
    shows_all: bool,
}

impl JobProcesses {
    /// Returns whether no process is left. If the system does not show all processes, some may be.
    pub(crate) fn is_none_left(&self) -> bool {
        self.shows_all && self.visible.is_empty()
    }
}

/// Returns the running members of the process group that the job leads, and the running descendants of this process
/// that have left it, as the child of timeout(1) and the job of another pglock have. Those in a session of their own
/// are not part of the job: a daemon is to outlive the program that starts it. For `except`, see [`descendants`].
pub(super) fn in_group(group: Pid, except: &[Pid]) -> JobProcesses {
    let snapshot = Snapshot::take();
    let members = snapshot
        .processes
        .iter()
        .filter(|process| process.group == group.as_raw());
    let mut visible: Vec<Pid> = members.map(|process| Pid::from_raw(process.pid)).collect();
    let session = getsid(None);
    let has_left_the_group = |pid: &Pid| !visible.contains(pid) && getsid(Some(*pid)) == session;
    let others: Vec<Pid> = snapshot
        .descendants(except)
        .into_iter()
        .filter(has_left_the_group)
        .collect();
    visible.extend(others);
    JobProcesses {
        visible,
        shows_all: snapshot.shows_all,
    }
}

/// Returns the running descendants of this process, parents before children, without the children `except` and their
/// descendants.
pub(super) fn descendants(except: &[Pid]) -> JobProcesses {
    let snapshot = Snapshot::take();
    JobProcesses {
        visible: snapshot.descendants(except),
        shows_all: snapshot.shows_all,
    }
}

/// Returns the running children of this process. Before the job starts there are some only if a shell `exec`ed pglock.
pub(super) fn children() -> Vec<Pid> {
    let this = Pid::this().as_raw();
    let children = Snapshot::take()
        .processes
        .into_iter()
        .filter(|process| process.parent == this);
    children.map(|process| Pid::from_raw(process.pid)).collect()
}

/// Makes orphaned descendants children of this process instead of process 1. Elsewhere than on Linux, a process whose
/// parent has exited is not found among the descendants.
pub(super) fn adopt_orphans() {
    #[cfg(target_os = "linux")]
    let _ = nix::sys::prctl::set_child_subreaper(true);
}

impl Snapshot {
    /// Lists all processes except zombies. Without process 1 and pglock itself, some are hidden: by `hidepid` of Linux,
    /// jails of FreeBSD, or because /proc is not mounted.
    fn take() -> Snapshot {
        #[cfg(target_os = "linux")]
        let processes = list_from_proc();
        #[cfg(not(target_os = "linux"))]
        let processes = list_with_ps();
        let processes = processes.unwrap_or_default();
        let shows = |pid| processes.iter().any(|process| process.pid == pid);
        Snapshot {
            shows_all: shows(1) && shows(Pid::this().as_raw()),
            processes,
        }
    }

    /// Returns the descendants of this process, as [`descendants`] does.
    fn descendants(&self, except: &[Pid]) -> Vec<Pid> {
        let mut found: Vec<Pid> = Vec::new();
        let mut parents = HashSet::from([Pid::this().as_raw()]);
        // Each round finds one generation. Skipping what was found before ends the loop even if the snapshot has a
        // cycle.
        loop {
            let children = self
                .processes
                .iter()
                .filter(|process| parents.contains(&process.parent));
            let generation: Vec<Pid> = children
                .map(|process| Pid::from_raw(process.pid))
                .filter(|pid| !found.contains(pid) && !except.contains(pid))
                .collect();
            if generation.is_empty() {
                return found;
            }
            parents = generation.iter().map(|pid| pid.as_raw()).collect();
            found.extend(generation);
        }
    }
}

/// Returns the processes, except zombies, that /proc shows.
#[cfg(target_os = "linux")]
fn list_from_proc() -> Option<Vec<Process>> {
    let entries = std::fs::read_dir("/proc").ok()?;
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let stat = |pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok();
    Some(pids.filter_map(|pid| parse_stat(pid, &stat(pid)?)).collect())
}

/// Parses `/proc/<pid>/stat` (proc(5)): `pid (name) state ppid pgrp ...`. The name may contain spaces and parentheses.
/// Returns `None` for a zombie. A process whose first thread has ended looks like one, but has other threads.
#[cfg(any(target_os = "linux", test))]
fn parse_stat(pid: i32, stat: &str) -> Option<Process> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?;
    let process = Process {
        pid,
        parent: fields.next()?.parse().ok()?,
        group: fields.next()?.parse().ok()?,
    };
    let threads = fields.nth(20 - 6).and_then(|count| count.parse::<u32>().ok());
    let has_ended = matches!(state, "Z" | "X") && threads.is_none_or(|count| count <= 1);
    (!has_ended).then_some(process)
}

/// Returns the processes, except zombies, that ps(1) lists, without ps itself: it is a child of this process.
#[cfg(any(not(target_os = "linux"), test))]
fn list_with_ps() -> Option<Vec<Process>> {
    use std::process::{Command, Stdio};

    let mut ps = Command::new("/bin/ps");
    // Each column is an option of its own: FreeBSD takes all that follows a `=` for the title of the column.
    ps.args(["-A", "-o", "pid=", "-o", "ppid=", "-o", "pgid=", "-o", "stat="]);
    ps.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let ps = ps.spawn().ok()?;
    let own_pid = ps.id() as i32;
    let output = ps.wait_with_output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let running = text.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let mut number = || fields.next()?.parse::<i32>().ok();
        let process = Process {
            pid: number()?,
            parent: number()?,
            group: number()?,
        };
        (process.pid != own_pid && !fields.next()?.starts_with('Z')).then_some(process)
    });
    Some(running.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    #[test]
    fn parse_stat_accepts_parentheses_in_the_name() {
        let running = Process {
            pid: 7,
            parent: 3,
            group: 5,
        };
        assert_eq!(parse_stat(7, "7 (a) b) (c) S 3 5 1 0 -1"), Some(running));
        let after_the_group = "1 0 -1 4228364 0 0 0 0 0 0 0 0 20 0";
        assert_eq!(parse_stat(7, &format!("7 (x) Z 3 5 {after_the_group} 1 0")), None);
        assert_eq!(
            parse_stat(7, &format!("7 (x) Z 3 5 {after_the_group} 2 0")),
            Some(running)
        );
        assert_eq!(parse_stat(7, ""), None);
    }

    /// # Errors
    /// A process cannot be started.
    #[test]
    fn ps_lists_running_children_without_itself() -> std::io::Result<()> {
        let mut child = Command::new("sleep").arg("60").process_group(0).spawn()?;
        let mut zombie = Command::new("true").spawn()?;
        while !sys::has_exited(Pid::from_raw(zombie.id() as i32)) {
            std::thread::yield_now();
        }
        let processes = list_with_ps();
        child.kill()?;
        child.wait()?;
        zombie.wait()?;

        let (this, child) = (Pid::this().as_raw(), child.id() as i32);
        let processes = processes.expect("ps is installed");
        assert!(processes.iter().any(|process| process.pid == this), "{processes:?}");
        let children: Vec<&Process> = processes.iter().filter(|process| process.parent == this).collect();
        let running = Process {
            pid: child,
            parent: this,
            group: child,
        };
        assert_eq!(children, [&running]);
        Ok(())
    }
}
