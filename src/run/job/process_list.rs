//! Lists of processes, as the system shows them.

use nix::unistd::Pid;
use std::collections::HashSet;

/// A process, running or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: i32,
    pub(super) parent: i32,
    pub(super) group: i32,
    pub(super) session: i32,
    /// Whether it runs. Otherwise it is a zombie, which its parent has not reaped yet.
    pub(super) is_running: bool,
}

/// The descendants of this process, and maybe others.
#[derive(Default)]
pub(super) struct ProcessList {
    pub(super) processes: Vec<Process>,
    /// Whether the system hides none of those that were to be listed.
    pub(super) shows_all: bool,
}

impl Process {
    pub(super) fn pid(&self) -> Pid {
        Pid::from_raw(self.pid)
    }
}

impl ProcessList {
    /// Returns a list from which nothing is hidden so far.
    pub(super) fn complete(processes: Vec<Process>) -> ProcessList {
        ProcessList {
            processes,
            shows_all: true,
        }
    }

    pub(super) fn find(&self, pid: i32) -> Option<&Process> {
        self.processes.iter().find(|process| process.pid == pid)
    }

    /// Returns the children of this process that have exited and are not reaped yet.
    pub(super) fn zombies(&self) -> HashSet<i32> {
        let this = Pid::this().as_raw();
        let is_zombie = |process: &&Process| !process.is_running && process.parent == this;
        let zombies = self.processes.iter().filter(is_zombie);
        zombies.map(|process| process.pid).collect()
    }

    /// Returns the running descendants of this process, parents before children, without the children `except` and
    /// their descendants.
    pub(super) fn descendants(&self, except: &[Pid]) -> Vec<Process> {
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

/// Returns the processes that ps(1) lists, without ps itself: it is a child of this process.
#[cfg(any(not(target_os = "linux"), test))]
pub(super) fn list_with_ps() -> Option<ProcessList> {
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
            session: nix::unistd::getsid(Some(Pid::from_raw(pid))).map_or(0, Pid::as_raw),
            is_running: !fields.next()?.starts_with('Z'),
        };
        (process.pid != own_pid).then_some(process)
    });
    let mut list = ProcessList::complete(processes.collect());
    // In a jail, for instance, process 1 is hidden.
    list.shows_all = [1, Pid::this().as_raw()].iter().all(|pid| list.find(*pid).is_some());
    Some(list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

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
