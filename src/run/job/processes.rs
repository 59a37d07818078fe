//! Which processes belong to the job: those of its process group, or its descendants.
//!
//! Only asked while a job is being stopped, so it costs nothing on a good day. The answer is a picture that is
//! old when it arrives; whoever stops the job asks until nobody is left.

use nix::unistd::Pid;
use std::collections::HashSet;

/// A process that has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    group: i32,
}

/// The living members of a process group; `None` where the system does not tell.
pub fn in_group(group: Pid) -> Option<Vec<Pid>> {
    let members = living()?.into_iter().filter(|p| p.group == group.as_raw());
    Some(members.map(|p| Pid::from_raw(p.pid)).collect())
}

/// The living descendants of this process, those nearest to it first, but for these children and what is theirs;
/// `None` where the system does not tell.
pub fn descendants(except: &[Pid]) -> Option<Vec<Pid>> {
    let all = living()?;
    let mut found: Vec<i32> = Vec::new();
    let mut parents = HashSet::from([Pid::this().as_raw()]);
    // Each round finds one generation; a process found once is not looked at again.
    loop {
        let is_new = |p: &&Process| {
            parents.contains(&p.parent) && !found.contains(&p.pid) && !except.contains(&Pid::from_raw(p.pid))
        };
        let generation: Vec<i32> = all.iter().filter(is_new).map(|p| p.pid).collect();
        if generation.is_empty() {
            return Some(found.into_iter().map(Pid::from_raw).collect());
        }
        parents = generation.iter().copied().collect();
        found.extend(generation);
    }
}

/// The children of this process, which has some if a shell has become it by exec.
pub fn children() -> Vec<Pid> {
    let me = Pid::this().as_raw();
    let children = living().into_iter().flatten().filter(|p| p.parent == me);
    children.map(|p| Pid::from_raw(p.pid)).collect()
}

/// Has orphaned descendants become children of this process, instead of process 1's. Without it (elsewhere than on
/// Linux) a process whose parent has ended is not found among the descendants.
pub fn adopt_orphans() {
    #[cfg(target_os = "linux")]
    let _ = nix::sys::prctl::set_child_subreaper(true);
}

/// Every process that has not ended (a zombie has). Where /proc is not mounted, or hides processes, we do not know of
/// all; that is so when process 1 or our own is not among them.
#[cfg(target_os = "linux")]
fn living() -> Option<Vec<Process>> {
    let entries = std::fs::read_dir("/proc").ok()?;
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let stat = |pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok();
    let all: Vec<Process> = pids.filter_map(|pid| parse_stat(pid, &stat(pid)?)).collect();
    let sees = |pid| all.iter().any(|process| process.pid == pid);
    (sees(1) && sees(Pid::this().as_raw())).then_some(all)
}

/// proc(5): `pid (name) state ppid pgrp ...`; the name may hold blanks and parentheses.
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

/// Every process that has not ended (a zombie has), as ps(1) of POSIX lists them.
#[cfg(not(target_os = "linux"))]
fn living() -> Option<Vec<Process>> {
    let mut ps = std::process::Command::new("ps");
    let output = ps.args(["-A", "-o", "pid=,ppid=,pgid=,stat="]).output().ok()?;
    let all = String::from_utf8_lossy(&output.stdout);
    let living = all.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let mut number = || fields.next()?.parse::<i32>().ok();
        let process = Process {
            pid: number()?,
            parent: number()?,
            group: number()?,
        };
        (!fields.next()?.starts_with('Z')).then_some(process)
    });
    Some(living.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_confuse() {
        let living = Process {
            pid: 7,
            parent: 3,
            group: 5,
        };
        assert_eq!(parse_stat(7, "7 (a) b) (c) S 3 5 1 0 -1"), Some(living));
        assert_eq!(parse_stat(7, "7 (x) Z 3 5 1"), None);
        assert_eq!(parse_stat(7, ""), None);
    }
}
