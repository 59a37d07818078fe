//! Linux's /proc: the descendants of this process, and the members of a group.
//!
//! It names the children of each thread (proc(5), `/proc/pid/task/tid/children`), so that the cost of a list depends on
//! how many processes the job has, and not on how many run on the machine. Where the kernel has no such file
//! (CONFIG_PROC_CHILDREN), all processes are read.

use super::process_list::{Process, ProcessList};
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::{Pid, getpgid};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};

/// How often to repeat what does not come to rest, as where processes start and exit all the time. Of what comes before
/// a signal, only the shortest steps are repeated: the margin of the timing rule must cover them.
const MAX_REPEATS: usize = 10;

/// Returns the descendants of this process; all processes, if the kernel does not name the children of a process. None
/// if /proc is not mounted, or is that of another PID namespace (`unshare --pid` without `--mount-proc`): its process
/// IDs are those of strangers.
///
/// The list is no snapshot: it lacks a process that this process adopts meanwhile.
pub(super) fn descendants() -> Option<ProcessList> {
    let this = Pid::this().as_raw();
    if fs::read_link("/proc/self").ok()?.to_str()?.parse() != Ok(this) {
        return None;
    }
    if !fs::exists(format!("/proc/{this}/task/{this}/children")).is_ok_and(|exists| exists) {
        return all();
    }
    Some(walk(this))
}

/// Goes from a process to its children, and so on.
fn walk(root: i32) -> ProcessList {
    let mut list = ProcessList::complete(Vec::new());
    let mut visited = HashSet::new();
    let mut to_visit = list.read_children(root);
    while let Some(pid) = to_visit.pop() {
        if visited.insert(pid) && list.add(pid, read_process(pid)) {
            to_visit.extend(list.read_children(pid));
        }
    }
    list
}

impl ProcessList {
    /// Adds the members of the group. Only they are read: to ask for the group of each process is much shorter.
    ///
    /// One that has ended may have started another before, so those that are new are asked, too.
    pub(super) fn with_members(mut self, group: Pid) -> ProcessList {
        let mut asked = HashSet::new();
        for _ in 0..MAX_REPEATS {
            let pids = all_pids().unwrap_or_default();
            self.shows_all &= shows_others(&pids);
            let new: Vec<i32> = pids.into_iter().filter(|pid| asked.insert(*pid)).collect();
            let ended = new.into_iter().filter(|pid| !self.add_if_member(*pid, group));
            if ended.count() == 0 {
                return self;
            }
        }
        self.shows_all = false;
        self
    }

    /// Adds a process that is not listed yet if it is a member of the group. Returns false if it no longer runs.
    fn add_if_member(&mut self, pid: i32, group: Pid) -> bool {
        let read = match getpgid(Some(Pid::from_raw(pid))) {
            Ok(found) if found != group || self.find(pid).is_some() => return true,
            Err(Errno::ESRCH) => return false,
            // A security module may forbid to ask.
            Ok(_) | Err(_) => read_process(pid),
        };
        match read {
            Ok(process) if process.group != group.as_raw() => true,
            Err(error) if has_ended(pid, &error) => false,
            read => self.add(pid, read),
        }
    }

    /// Returns the children of a process.
    ///
    /// One reading can miss some: if one that was read already is reaped meanwhile, the kernel may skip the next, and
    /// those of a thread that exits move to another thread. So it is repeated until two agree.
    fn read_children(&mut self, pid: i32) -> Vec<i32> {
        let mut children = Vec::new();
        for repeat in 0..=MAX_REPEATS {
            match read_children(pid) {
                Ok(found) if repeat > 0 && found == children => return children,
                Ok(found) => children = found,
                Err(error) => {
                    self.shows_all &= has_ended(pid, &error);
                    return children;
                }
            }
        }
        self.shows_all = false;
        children
    }

    /// Adds what was read of a process, and returns whether it runs. One that cannot be read, for want of memory or of
    /// a descriptor, counts as hidden.
    fn add(&mut self, pid: i32, read: io::Result<Process>) -> bool {
        match read {
            Ok(process) => {
                self.processes.push(process);
                process.is_running
            }
            Err(error) => {
                self.shows_all &= has_ended(pid, &error);
                false
            }
        }
    }
}

/// Returns all processes.
fn all() -> Option<ProcessList> {
    let pids = all_pids().ok()?;
    let mut list = ProcessList::complete(Vec::new());
    list.shows_all = shows_others(&pids);
    for pid in pids {
        list.add(pid, read_process(pid));
    }
    Some(list)
}

/// Returns the processes that /proc lists.
///
/// # Errors
/// /proc cannot be read.
fn all_pids() -> io::Result<Vec<i32>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        pids.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    Ok(pids)
}

/// Returns whether /proc lists processes of other users: without process 1 and pglock itself, some are hidden, by
/// `hidepid`.
fn shows_others(pids: &[i32]) -> bool {
    pids.contains(&1) && pids.contains(&Pid::this().as_raw())
}

/// Reads the children of each thread of a process.
///
/// # Errors
/// The process has ended or is hidden.
fn read_children(pid: i32) -> io::Result<Vec<i32>> {
    let mut children = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        match fs::read_to_string(thread?.path().join("children")) {
            Ok(text) => children.extend(text.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok())),
            Err(error) if is_missing(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(children)
}

/// Reads what /proc says of a process.
///
/// # Errors
/// The process has ended or is hidden.
fn read_process(pid: i32) -> io::Result<Process> {
    let mut stat = [0; 4096];
    // One call reads all of it, which is much shorter.
    let length = File::open(format!("/proc/{pid}/stat"))?.read(&mut stat)?;
    parse_stat(pid, &stat[..length]).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Returns whether a process cannot be read because it has ended. One that `hidepid` hides looks like that, too.
fn has_ended(pid: i32, error: &io::Error) -> bool {
    is_missing(error) && kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH)
}

fn is_missing(error: &io::Error) -> bool {
    let missing = [Errno::ENOENT as i32, Errno::ESRCH as i32];
    error.raw_os_error().is_some_and(|code| missing.contains(&code))
}

/// Parses `/proc/<pid>/stat` (proc(5)): `pid (name) state ppid pgrp session ...`. The name may contain spaces and
/// parentheses, and need not be UTF-8. A process whose first thread has ended looks like a zombie, but has other
/// threads.
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command, Stdio};

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

    /// Starts a shell in a group of its own that leaves a process there, and prints its pid.
    ///
    /// # Errors
    /// It cannot be started.
    fn shell(script: &str) -> io::Result<(Child, i32)> {
        let mut command = Command::new("sh");
        command.args(["-c", script]).process_group(0);
        let mut shell = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(shell.stdout.take().expect("a pipe")).read_line(&mut line)?;
        Ok((shell, line.trim().parse().expect("a pid")))
    }

    /// # Errors
    /// A process cannot be started, or /proc not read.
    #[test]
    fn descendants_are_found_as_in_a_list_of_all_processes() -> io::Result<()> {
        let (mut shell, grandchild) = shell("sleep 60 & echo $!; read _")?;
        let group = Pid::from_raw(shell.id() as i32);
        let (walked, all) = (walk(std::process::id() as i32), all().expect("/proc is mounted"));
        let only_its_own = walk(group.as_raw());
        nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL)?;
        shell.wait()?;
        assert!(only_its_own.shows_all && only_its_own.processes.len() == 1);
        for pid in [group.as_raw(), grandchild] {
            assert!(walked.find(pid).is_some_and(|process| process.is_running));
            assert_eq!(walked.find(pid), all.find(pid));
        }
        assert!(walked.find(1).is_none() && all.find(1).is_some());
        Ok(())
    }

    /// Here an orphan, which the test process does not adopt.
    ///
    /// # Errors
    /// A process cannot be started, or /proc not read.
    #[test]
    fn members_of_a_group_need_not_be_descendants() -> io::Result<()> {
        let (mut shell, orphan) = shell("pid=$(sleep 60 >&- & echo $!); echo $pid; read _")?;
        let group = Pid::from_raw(shell.id() as i32);
        let list = walk(std::process::id() as i32);
        let (had_shell, had_orphan) = (list.find(group.as_raw()).is_some(), list.find(orphan).is_some());
        let list = list.with_members(group);
        nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL)?;
        shell.wait()?;
        assert!(had_shell && !had_orphan);
        assert!(list.find(orphan).is_some_and(|process| process.group == group.as_raw()));
        let pids = list.processes.iter().map(|process| process.pid);
        assert_eq!(
            pids.collect::<HashSet<_>>().len(),
            list.processes.len(),
            "no process twice"
        );
        Ok(())
    }

    /// Of one that runs, and of one that has ended, whose children another thread then has.
    ///
    /// # Errors
    /// A process cannot be started, or /proc not read.
    #[test]
    fn children_of_every_thread_are_found() -> io::Result<()> {
        let mut child = std::thread::spawn(|| Command::new("sleep").arg("60").spawn())
            .join()
            .expect("a thread")?;
        let of_a_thread = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let mut child = Command::new("sleep").arg("60").spawn()?;
                let children = read_children(std::process::id() as i32);
                child.kill()?;
                child.wait()?;
                children.map(|children| children.contains(&(child.id() as i32)))
            });
            thread.join().expect("a thread")
        })?;
        let children = read_children(std::process::id() as i32)?;
        child.kill()?;
        child.wait()?;
        assert!(of_a_thread);
        assert!(children.contains(&(child.id() as i32)), "that thread has ended");
        Ok(())
    }
}
