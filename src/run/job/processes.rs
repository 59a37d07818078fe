//! The processes of the job: the members of its process group, or its descendants.
//!
//! Listed only while a job is being terminated, so a normal run pays nothing. Each list is a snapshot that is stale
//! when it arrives, so the caller repeats the query until no process is left.

use nix::unistd::Pid;
use std::collections::HashSet;

/// A running process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    group: i32,
}

/// Returns the running members of a process group; `None` if the system does not show all processes.
pub(super) fn in_group(group: Pid) -> Option<Vec<Pid>> {
    let members = running()?.into_iter().filter(|process| process.group == group.as_raw());
    Some(members.map(|process| Pid::from_raw(process.pid)).collect())
}

/// Returns the running descendants of this process, parents before children, without the children `except` and their
/// descendants; `None` if the system does not show all processes.
pub(super) fn descendants(except: &[Pid]) -> Option<Vec<Pid>> {
    let processes = running()?;
    let mut found: Vec<i32> = Vec::new();
    let mut parents = HashSet::from([Pid::this().as_raw()]);
    // Each round finds one generation. Skipping what was found before ends the loop even if the snapshot has a cycle.
    loop {
        let is_new = |process: &&Process| {
            parents.contains(&process.parent)
                && !found.contains(&process.pid)
                && !except.contains(&Pid::from_raw(process.pid))
        };
        let generation: Vec<i32> = processes.iter().filter(is_new).map(|process| process.pid).collect();
        if generation.is_empty() {
            return Some(found.into_iter().map(Pid::from_raw).collect());
        }
        parents = generation.iter().copied().collect();
        found.extend(generation);
    }
}

/// Returns the running children of this process. Before the job starts there are some only if a shell `exec`ed pglock.
pub(super) fn children() -> Vec<Pid> {
    let this = Pid::this().as_raw();
    let processes = running().unwrap_or_default();
    let children = processes.into_iter().filter(|process| process.parent == this);
    children.map(|process| Pid::from_raw(process.pid)).collect()
}

/// Makes orphaned descendants children of this process instead of process 1. Elsewhere than on Linux, a process whose
/// parent has exited is not found among the descendants.
pub(super) fn adopt_orphans() {
    #[cfg(target_os = "linux")]
    let _ = nix::sys::prctl::set_child_subreaper(true);
}

/// Returns all processes except zombies; `None` if /proc is not mounted or hides processes, which is assumed if it does
/// not show process 1 and pglock itself.
#[cfg(target_os = "linux")]
fn running() -> Option<Vec<Process>> {
    let entries = std::fs::read_dir("/proc").ok()?;
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let stat = |pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok();
    let processes: Vec<Process> = pids.filter_map(|pid| parse_stat(pid, &stat(pid)?)).collect();
    let shows = |pid| processes.iter().any(|process| process.pid == pid);
    (shows(1) && shows(Pid::this().as_raw())).then_some(processes)
}

/// Parses `/proc/<pid>/stat` (proc(5)): `pid (name) state ppid pgrp ...`. The name may contain spaces and parentheses.
/// Returns `None` for a zombie.
#[cfg(any(target_os = "linux", test))]
fn parse_stat(pid: i32, stat: &str) -> Option<Process> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?;
    let process = Process {
        pid,
        parent: fields.next()?.parse().ok()?,
        group: fields.next()?.parse().ok()?,
    };
    (!matches!(state, "Z" | "X")).then_some(process)
}

/// Returns all processes except zombies, as ps(1) lists them.
#[cfg(not(target_os = "linux"))]
fn running() -> Option<Vec<Process>> {
    let mut ps = std::process::Command::new("ps");
    let output = ps.args(["-A", "-o", "pid=,ppid=,pgid=,stat="]).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let running = text.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let mut number = || fields.next()?.parse::<i32>().ok();
        let process = Process {
            pid: number()?,
            parent: number()?,
            group: number()?,
        };
        (!fields.next()?.starts_with('Z')).then_some(process)
    });
    Some(running.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_stat_accepts_parentheses_in_the_name() {
        let running = Process {
            pid: 7,
            parent: 3,
            group: 5,
        };
        assert_eq!(parse_stat(7, "7 (a) b) (c) S 3 5 1 0 -1"), Some(running));
        assert_eq!(parse_stat(7, "7 (x) Z 3 5 1"), None);
        assert_eq!(parse_stat(7, ""), None);
    }
}
