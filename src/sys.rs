//! The only unsafe code: what neither std nor nix offers safely.
//!
//! Each function is one system fact with one reason. Five subjects: how this process was started (before
//! Rust's runtime changed it), the heap, descriptors, what the child does between fork and exec, and waiting for a child
//! without reaping it. Nothing here decides anything.
#![expect(unsafe_code, reason = "the one place for it")]

use nix::libc;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

/// Bit n: descriptor n (0..=2) was closed on entry. Bit 3: SIGPIPE was ignored on entry.
static ENTRY: AtomicU8 = AtomicU8::new(0);
const PIPE_IGNORED: u8 = 1 << 3;

/// Runs before Rust's runtime, which ignores SIGPIPE and opens /dev/null on a closed descriptor 0, 1 or 2:
/// the job must find both as pglock's caller left them.
extern "C" fn record_entry() {
    let mut entry = 0;
    for fd in 0..=2 {
        // SAFETY: F_GETFD reads a flag; on a closed descriptor it fails with EBADF.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1 {
            entry |= 1 << fd;
        }
    }
    if is_ignored(Signal::SIGPIPE) {
        entry |= PIPE_IGNORED;
    }
    ENTRY.store(entry, Ordering::Relaxed);
}

// SAFETY: the section holds pointers to functions that the C runtime calls once, before main; record_entry
// calls only async-signal-safe functions and needs nothing of Rust's runtime.
#[used]
#[cfg_attr(target_vendor = "apple", unsafe(link_section = "__DATA,__mod_init_func"))]
#[cfg_attr(not(target_vendor = "apple"), unsafe(link_section = ".init_array"))]
static RECORD_ENTRY: extern "C" fn() = record_entry;

/// Has all threads share one heap. glibc would give each thread one of its own, which costs more memory, page faults and
/// system calls than the few allocations of a thread that mostly sleeps.
pub fn share_heap() {
    // SAFETY: sets a number in the allocator's state, before any other thread runs.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Whether SIGPIPE was ignored when this process began.
pub fn pipe_was_ignored() -> bool {
    ENTRY.load(Ordering::Relaxed) & PIPE_IGNORED != 0
}

/// Whether the signal is ignored now.
pub fn is_ignored(signal: Signal) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null new action only queries; all-zero bytes are a valid sigaction.
    unsafe {
        libc::sigaction(signal as libc::c_int, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// Gives the signal its default effect.
fn set_default(signal: Signal) {
    // SAFETY: SIG_DFL is no handler, so nothing of ours can run in a signal's context.
    unsafe { libc::signal(signal as libc::c_int, libc::SIG_DFL) };
}

/// Sends this process the signal, with its default effect and not blocked, and puts everything back as it was for
/// when it survives that: a stop and continuation, or a signal that has no effect. By number, since a real-time
/// signal has no name in nix.
pub fn raise_default(signal: libc::c_int) {
    let mut default = MaybeUninit::<libc::sigaction>::zeroed();
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    let mut only = MaybeUninit::<libc::sigset_t>::zeroed();
    let mut mask = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: all-zero bytes are a valid sigaction, and sigemptyset makes the set valid before it is used; SIG_DFL is
    // no handler. What is put back is what the same calls returned.
    unsafe {
        (*default.as_mut_ptr()).sa_sigaction = libc::SIG_DFL;
        libc::sigemptyset(only.as_mut_ptr());
        libc::sigaddset(only.as_mut_ptr(), signal);
        libc::sigaction(signal, default.as_ptr(), action.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, only.as_ptr(), mask.as_mut_ptr());
        libc::raise(signal);
        libc::pthread_sigmask(libc::SIG_SETMASK, mask.as_ptr(), std::ptr::null_mut());
        libc::sigaction(signal, action.as_ptr(), std::ptr::null_mut());
    }
}

/// The descriptors among 0, 1 and 2 that were closed when this process began.
pub fn closed_on_entry() -> impl Iterator<Item = RawFd> {
    let entry = ENTRY.load(Ordering::Relaxed);
    (0..=2).filter(move |fd| entry & (1 << fd) != 0)
}

/// Has the child of `command` set these signals and its mask up, and close what was closed on entry, right before it
/// executes the job.
pub fn before_exec(command: &mut Command, default: &[Signal], ignored: &[Signal], mask: SigSet) {
    let (default, ignored) = (default.to_vec(), ignored.to_vec());
    let closed: Vec<RawFd> = closed_on_entry().collect();
    let set_up = move || {
        for signal in &default {
            set_default(*signal);
        }
        for signal in &ignored {
            // SAFETY: SIG_IGN is no handler.
            unsafe { libc::signal(*signal as libc::c_int, libc::SIG_IGN) };
        }
        for fd in &closed {
            // SAFETY: what is open on it is the runtime's /dev/null, which nobody in this child owns.
            unsafe { libc::close(*fd) };
        }
        // Last, so that no signal finds a handler of pglock's in the child.
        mask.thread_set_mask().map_err(io::Error::from)
    };
    // SAFETY: the closure only makes async-signal-safe calls (signal, close, pthread_sigmask) and allocates nothing.
    unsafe { command.pre_exec(set_up) };
}

/// What has become of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitStatus {
    /// It exited with this status, and waits to be reaped: until then its pid and its group's are not reused.
    Exited(i32),
    /// This signal ended it; it waits to be reaped as well.
    Killed(i32),
    /// This signal stopped it.
    Stopped(i32),
    /// It goes on.
    Continued,
}

/// The next change of this child, if there is one, without reaping it (waitid(2) with WNOWAIT for an end).
pub fn child_change(pid: Pid) -> io::Result<Option<WaitStatus>> {
    let id = pid.as_raw() as libc::id_t;
    // A stop or continuation is consumed by asking, an end must not be: ask for the end first.
    let end = wait(libc::P_PID, id, libc::WEXITED | libc::WNOWAIT)?;
    let change = match end {
        Some(_) => end,
        None => wait(libc::P_PID, id, libc::WSTOPPED | libc::WCONTINUED)?,
    };
    Ok(change.map(|(_, change)| change))
}

/// Whether this child has ended, be it reaped or not.
pub fn has_ended(pid: Pid) -> bool {
    let id = pid.as_raw() as libc::id_t;
    !matches!(wait(libc::P_PID, id, libc::WEXITED | libc::WNOWAIT), Ok(None))
}

/// Whether this process has any child.
pub fn has_children() -> bool {
    wait(libc::P_ALL, 0, libc::WEXITED | libc::WNOWAIT).is_ok()
}

/// Some child that has ended and waits to be reaped, be it ours or an orphan that the system gave us.
pub fn ended_child() -> io::Result<Option<Pid>> {
    Ok(wait(libc::P_ALL, 0, libc::WEXITED | libc::WNOWAIT)?.map(|(pid, _)| pid))
}

fn wait(kind: libc::idtype_t, id: libc::id_t, what: libc::c_int) -> io::Result<Option<(Pid, WaitStatus)>> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: waitid fills the siginfo, which all-zero bytes make valid before.
    let info = unsafe {
        if libc::waitid(kind, id, info.as_mut_ptr(), what | libc::WNOHANG) == -1 {
            return Err(io::Error::last_os_error());
        }
        info.assume_init()
    };
    // SAFETY: si_pid and si_status are the fields that waitid fills; si_pid stays 0 when nothing changed.
    let (changed, status) = unsafe { (info.si_pid(), info.si_status()) };
    let change = match info.si_code {
        _ if changed == 0 => return Ok(None),
        libc::CLD_EXITED => WaitStatus::Exited(status),
        libc::CLD_KILLED | libc::CLD_DUMPED => WaitStatus::Killed(status),
        libc::CLD_STOPPED | libc::CLD_TRAPPED => WaitStatus::Stopped(status),
        libc::CLD_CONTINUED => WaitStatus::Continued,
        _ => return Ok(None),
    };
    Ok(Some((Pid::from_raw(changed), change)))
}

/// Whether so many descriptors (two at least) can still be opened: the client library panics when it gets none.
/// A pipe needs no file, of which a container that has only this program may have none.
pub fn descriptor_headroom(count: usize) -> io::Result<()> {
    let (_reader, writer) = io::pipe()?;
    let more: io::Result<Vec<io::PipeWriter>> = (2..count).map(|_| writer.try_clone()).collect();
    more.map(drop)
}

/// The descriptors below N that are open.
///
/// # Errors
/// N is more than this process may have (RLIMIT_NOFILE).
pub fn open_descriptors<const N: usize>() -> io::Result<Vec<RawFd>> {
    let mut all: [libc::pollfd; N] = std::array::from_fn(|fd| libc::pollfd {
        fd: fd as RawFd,
        events: 0,
        revents: 0,
    });
    // SAFETY: poll(2) writes to the N entries only, and asks for no event; of what is not open it says POLLNVAL.
    if unsafe { libc::poll(all.as_mut_ptr(), N as libc::nfds_t, 0) } == -1 {
        return Err(io::Error::last_os_error());
    }
    let open = all.iter().filter(|it| it.revents & libc::POLLNVAL == 0);
    Ok(open.map(|it| it.fd).collect())
}

/// A second descriptor for what is open on `fd`, numbered `lowest` or above, closed on exec.
pub fn duplicate_from(fd: RawFd, lowest: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC fails on a descriptor that is not open, and its result is new and ours alone.
    unsafe {
        match libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, lowest) {
            -1 => Err(io::Error::last_os_error()),
            new => Ok(OwnedFd::from_raw_fd(new)),
        }
    }
}
