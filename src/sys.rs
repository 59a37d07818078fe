//! The only unsafe code: system calls that neither std nor nix offers through a safe interface.
//!
//! There are five subjects: how this process was started, the heap, descriptors, the child between fork and exec, and
//! waiting for a child without reaping it. Nothing here makes a decision.
#![expect(unsafe_code, reason = "all unsafe code is in this file")]

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;
use std::ffi::{CStr, CString, c_char};
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

/// State of this process on entry. Bit n (0..=2): descriptor n was closed. Bit 3: SIGPIPE was ignored.
static ENTRY_STATE: AtomicU8 = AtomicU8::new(0);
const SIGPIPE_IGNORED_BIT: u8 = 1 << 3;

/// Records the state on entry, before SIGPIPE is ignored and /dev/null is opened on a closed descriptor 0, 1 or 2, by
/// Rust's runtime or by `start`: the job must find both as pglock's caller left them.
extern "C" fn record_entry() {
    let mut state = 0;
    for fd in 0..=2 {
        // SAFETY: F_GETFD only reads a flag; on a closed descriptor it fails with EBADF.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1 {
            state |= 1 << fd;
        }
    }
    if is_ignored(libc::SIGPIPE) {
        state |= SIGPIPE_IGNORED_BIT;
    }
    ENTRY_STATE.store(state, Ordering::Relaxed);
}

// SAFETY: the C runtime calls the functions in this section once, before main, and record_entry does not depend on
// Rust's runtime.
#[used]
#[cfg_attr(target_vendor = "apple", unsafe(link_section = "__DATA,__mod_init_func"))]
#[cfg_attr(not(target_vendor = "apple"), unsafe(link_section = ".init_array"))]
static RECORD_ENTRY: extern "C" fn() = record_entry;

/// Defines the C library's `main`. It runs `$run` with the arguments and returns its exit status. Rust's runtime is
/// left out: it reads `/proc/self/maps` to be able to report an overflow of the main thread's stack, which takes 0.2 ms
/// of a start of 1 ms. Nothing flushes standard output at the end; `ui::stdout` flushes what it prints.
#[cfg(all(not(test), starts_without_runtime))]
macro_rules! define_main {
    ($run:path) => {
        #[expect(unsafe_code, reason = "the macro is in sys.rs")]
        // SAFETY: no other function of this name is linked. A panic that leaves it aborts.
        #[unsafe(no_mangle)]
        extern "C" fn main(count: std::ffi::c_int, arguments: *const *const std::ffi::c_char) -> std::ffi::c_int {
            // SAFETY: the C library passes the arguments and their count.
            let arguments = unsafe { crate::sys::start(count, arguments) };
            $run(arguments).into()
        }
    };
}
#[cfg(all(not(test), starts_without_runtime))]
pub(crate) use define_main;

/// Does the two things of Rust's runtime that pglock needs: opens `/dev/null` on each of the descriptors 0, 1 and 2
/// that is closed, so that no other file gets its number, and ignores SIGPIPE. Returns the arguments.
///
/// # Safety
/// There are `count` pointers to strings that end with a NUL byte.
#[cfg(all(not(test), starts_without_runtime))]
pub(crate) unsafe fn start(count: libc::c_int, arguments: *const *const c_char) -> Vec<std::ffi::OsString> {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    for _ in closed_on_entry() {
        // SAFETY: the path ends with a NUL byte. The lowest free descriptor is the one that was found closed.
        if unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) } == -1 {
            std::process::abort();
        }
    }
    // SAFETY: SIG_IGN is not a handler, so no Rust code runs in signal context.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let argument = |index| {
        // SAFETY: the caller guarantees it.
        let argument = unsafe { CStr::from_ptr(*arguments.add(index)) };
        OsStr::from_bytes(argument.to_bytes()).to_owned()
    };
    (0..count as usize).map(argument).collect()
}

/// Makes all threads share one heap. By default glibc gives each thread its own, which costs more memory, page faults
/// and system calls than the few allocations of a thread that mostly sleeps are worth.
pub(crate) fn share_heap() {
    // SAFETY: mallopt sets a parameter of the allocator, and no other thread runs yet.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Returns whether SIGPIPE was ignored when this process started.
pub(crate) fn sigpipe_was_ignored() -> bool {
    ENTRY_STATE.load(Ordering::Relaxed) & SIGPIPE_IGNORED_BIT != 0
}

/// Returns whether the signal is ignored now.
pub(crate) fn is_ignored(signal: libc::c_int) -> bool {
    has_action(signal, libc::SIG_IGN)
}

/// Returns whether the signal has its default action now.
pub(crate) fn has_default_action(signal: libc::c_int) -> bool {
    has_action(signal, libc::SIG_DFL)
}

fn has_action(signal: libc::c_int, wanted: libc::sighandler_t) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null new action makes sigaction a query; all-zero bytes are a valid sigaction.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == wanted
    }
}

/// Restores the default action of the signal.
fn set_default(signal: Signal) {
    // SAFETY: SIG_DFL is not a handler, so no Rust code runs in signal context.
    unsafe { libc::signal(signal as libc::c_int, libc::SIG_DFL) };
}

/// Sends the signal to a process, or to the process group whose negated id is given. Takes a number because nix has no
/// names for real-time signals.
///
/// # Errors
/// kill(2) fails.
pub(crate) fn kill(pid: Pid, signal: libc::c_int) -> nix::Result<()> {
    // SAFETY: kill(2) takes two numbers.
    Errno::result(unsafe { libc::kill(pid.as_raw(), signal) }).map(drop)
}

/// Raises the signal, unblocked and with its default action. If the process survives (it was stopped and continued,
/// or the signal has no effect), restores the previous action and mask. Takes a number because nix has no names for
/// real-time signals.
pub(crate) fn raise_default(signal: libc::c_int) {
    let mut default_action = MaybeUninit::<libc::sigaction>::zeroed();
    let mut previous_action = MaybeUninit::<libc::sigaction>::zeroed();
    let mut signal_set = MaybeUninit::<libc::sigset_t>::zeroed();
    let mut previous_mask = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: all-zero bytes are a valid sigaction, sigemptyset initializes the set, and what is restored was filled in
    // by the calls before.
    unsafe {
        (*default_action.as_mut_ptr()).sa_sigaction = libc::SIG_DFL;
        libc::sigemptyset(signal_set.as_mut_ptr());
        libc::sigaddset(signal_set.as_mut_ptr(), signal);
        libc::sigaction(signal, default_action.as_ptr(), previous_action.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, signal_set.as_ptr(), previous_mask.as_mut_ptr());
        libc::raise(signal);
        libc::pthread_sigmask(libc::SIG_SETMASK, previous_mask.as_ptr(), std::ptr::null_mut());
        libc::sigaction(signal, previous_action.as_ptr(), std::ptr::null_mut());
    }
}

/// Returns which of the descriptors 0, 1 and 2 were closed when this process started.
pub(crate) fn closed_on_entry() -> impl Iterator<Item = RawFd> {
    let state = ENTRY_STATE.load(Ordering::Relaxed);
    (0..=2).filter(move |fd| state & (1 << fd) != 0)
}

/// The longest decimal number that fits an `i32`.
const MAX_PID_LEN: usize = 11;

/// The environment of a child, in which some variables are the child's own process ID. That is known only after
/// fork(2), when no memory may be allocated any more.
pub(crate) struct ChildEnvironment {
    /// `NAME=value` and a NUL byte each.
    entries: Vec<Vec<u8>>,
    /// Points to the entries, and ends with a null pointer, as execve(2) requires.
    pointers: Vec<*const c_char>,
    /// The entries to complete with the process ID, and where in them.
    pid_places: Vec<(usize, usize)>,
}

// SAFETY: the pointers point to the heap memory of the entries, which move with them and belong to nobody else.
unsafe impl Send for ChildEnvironment {}
// SAFETY: nothing is written through a shared reference.
unsafe impl Sync for ChildEnvironment {}

impl ChildEnvironment {
    /// Makes an environment of these `NAME=value` pairs and of the names that stand for the child's process ID.
    pub(crate) fn new(pairs: Vec<CString>, pid_names: &[&str]) -> ChildEnvironment {
        let mut entries: Vec<Vec<u8>> = pairs.into_iter().map(CString::into_bytes_with_nul).collect();
        let mut pid_places = Vec::new();
        for name in pid_names {
            let mut entry = format!("{name}=").into_bytes();
            pid_places.push((entries.len(), entry.len()));
            entry.resize(entry.len() + MAX_PID_LEN + 1, 0);
            entries.push(entry);
        }
        let pointers = entries.iter().map(|entry| entry.as_ptr().cast());
        ChildEnvironment {
            pointers: pointers.chain([std::ptr::null()]).collect(),
            entries,
            pid_places,
        }
    }

    /// Makes this the environment of the calling process, which is the child, with its process ID filled in. Allocates
    /// nothing.
    ///
    /// # Errors
    /// None: there is room for every process ID.
    fn install(&mut self) -> io::Result<()> {
        let pid = std::process::id();
        for (index, offset) in &self.pid_places {
            write!(&mut self.entries[*index][*offset..], "{pid}")?;
        }
        // SAFETY: the child has only this thread, and the array outlives it: the closure that owns it is not dropped.
        unsafe { environ = self.pointers.as_ptr() };
        Ok(())
    }
}

unsafe extern "C" {
    /// The environment that execvp(3) passes on.
    static mut environ: *const *const c_char;
}

/// Returns the environment of this process, entry by entry: also those without `=`, and all of the same name.
pub(crate) fn environment() -> Vec<CString> {
    let mut entries = Vec::new();
    // SAFETY: the array is null, or ends with a null pointer, and its entries end with a NUL byte. Nothing in this
    // process changes the environment.
    unsafe {
        let mut next = environ;
        while !next.is_null() && !(*next).is_null() {
            entries.push(CStr::from_ptr(*next).to_owned());
            next = next.add(1);
        }
    }
    entries
}

/// Makes the child of `command` set its environment, its signal actions and its mask, and close the descriptors that
/// were closed on entry, right before it executes the job. The command itself must not change the environment.
pub(crate) fn before_exec(
    command: &mut Command,
    mut environment: ChildEnvironment,
    default: &[Signal],
    ignored: &[Signal],
    mask: SigSet,
) {
    let (default, ignored) = (default.to_vec(), ignored.to_vec());
    let closed: Vec<RawFd> = closed_on_entry().collect();
    let set_up = move || {
        environment.install()?;
        for signal in &default {
            set_default(*signal);
        }
        for signal in &ignored {
            // SAFETY: SIG_IGN is not a handler, so no Rust code runs in signal context.
            unsafe { libc::signal(*signal as libc::c_int, libc::SIG_IGN) };
        }
        for fd in &closed {
            // SAFETY: this descriptor is the /dev/null that was opened at the start, and nothing in the child owns it.
            unsafe { libc::close(*fd) };
        }
        // Last, so that no signal reaches one of pglock's handlers in the child.
        mask.thread_set_mask().map_err(io::Error::from)
    };
    // SAFETY: the closure only makes async-signal-safe calls (getpid, signal, close, pthread_sigmask) and does not
    // allocate.
    unsafe { command.pre_exec(set_up) };
}

/// A status change of a child, as waitid(2) reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitStatus {
    /// The child exited with this status. Until it is reaped, its pid and process group id are not reused.
    Exited(i32),
    /// A signal ended the child, which is not reaped yet either.
    Signaled(i32),
    /// A signal stopped the child.
    Stopped(i32),
    /// The child was continued.
    Continued,
}

/// Returns the next status change of this child, if any. Does not reap it: an exit is reported again by every call.
///
/// # Errors
/// waitid(2) fails: this process has no such child.
pub(crate) fn poll_child(pid: Pid) -> io::Result<Option<WaitStatus>> {
    let id = pid.as_raw() as libc::id_t;
    // Query the exit first: with WNOWAIT it stays reported, while stops and continuations are consumed.
    let exit = wait(libc::P_PID, id, libc::WEXITED | libc::WNOWAIT)?;
    let change = match exit {
        Some(_) => exit,
        None => wait(libc::P_PID, id, libc::WSTOPPED | libc::WCONTINUED)?,
    };
    Ok(change.map(|(_, status)| status))
}

/// Returns whether this child has exited, reaped or not.
pub(crate) fn has_exited(pid: Pid) -> bool {
    let id = pid.as_raw() as libc::id_t;
    !matches!(wait(libc::P_PID, id, libc::WEXITED | libc::WNOWAIT), Ok(None))
}

/// Returns whether this process has any children.
pub(crate) fn has_children() -> bool {
    wait(libc::P_ALL, 0, libc::WEXITED | libc::WNOWAIT).is_ok()
}

/// Returns a child that has exited and is not reaped yet, if any: one that pglock started, or an adopted orphan.
///
/// # Errors
/// waitid(2) fails: this process has no children.
pub(crate) fn exited_child() -> io::Result<Option<Pid>> {
    Ok(wait(libc::P_ALL, 0, libc::WEXITED | libc::WNOWAIT)?.map(|(pid, _)| pid))
}

/// Calls waitid(2) without blocking. Returns the child and its status change, if there is one.
///
/// # Errors
/// waitid(2) fails.
fn wait(id_type: libc::idtype_t, id: libc::id_t, options: libc::c_int) -> io::Result<Option<(Pid, WaitStatus)>> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: all-zero bytes are a valid siginfo, and waitid fills it in.
    let info = unsafe {
        if libc::waitid(id_type, id, info.as_mut_ptr(), options | libc::WNOHANG) == -1 {
            return Err(io::Error::last_os_error());
        }
        info.assume_init()
    };
    // SAFETY: waitid fills in si_pid and si_status, or leaves both 0 when no status changed.
    let (pid, value) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return Ok(None);
    }
    let status = match info.si_code {
        libc::CLD_EXITED => WaitStatus::Exited(value),
        libc::CLD_KILLED | libc::CLD_DUMPED => WaitStatus::Signaled(value),
        libc::CLD_STOPPED | libc::CLD_TRAPPED => WaitStatus::Stopped(value),
        libc::CLD_CONTINUED => WaitStatus::Continued,
        _ => return Ok(None),
    };
    Ok(Some((Pid::from_raw(pid), status)))
}

/// Checks that this many descriptors (at least two) can still be opened; the client library panics when it gets none.
/// Opens a pipe rather than a file because a container with only this program in it may have no files.
///
/// # Errors
/// The limit on open descriptors (RLIMIT_NOFILE, or the system's) is too low.
pub(crate) fn check_free_descriptors(count: usize) -> io::Result<()> {
    let (_reader, writer) = io::pipe()?;
    let clones: io::Result<Vec<io::PipeWriter>> = (2..count).map(|_| writer.try_clone()).collect();
    clones.map(drop)
}

/// Returns the open descriptors below N; on macOS, all numbers below N.
///
/// # Errors
/// N exceeds the limit on open descriptors (RLIMIT_NOFILE).
pub(crate) fn open_descriptors<const N: usize>() -> io::Result<Vec<RawFd>> {
    let mut entries: [libc::pollfd; N] = std::array::from_fn(|fd| libc::pollfd {
        fd: fd as RawFd,
        events: 0,
        revents: 0,
    });
    // SAFETY: poll(2) writes to these N entries only; it requests no events and reports POLLNVAL for closed
    // descriptors, except on macOS, which then does not look at them.
    if unsafe { libc::poll(entries.as_mut_ptr(), N as libc::nfds_t, 0) } == -1 {
        return Err(io::Error::last_os_error());
    }
    let open = entries.iter().filter(|entry| entry.revents & libc::POLLNVAL == 0);
    Ok(open.map(|entry| entry.fd).collect())
}

/// Duplicates `fd` to a descriptor numbered `lowest` or above, closed on exec.
///
/// # Errors
/// `fd` is not open, or no descriptor is free.
pub(crate) fn duplicate_from(fd: RawFd, lowest: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC returns a new descriptor that nothing else owns, or fails if `fd` is not open.
    unsafe {
        match libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, lowest) {
            -1 => Err(io::Error::last_os_error()),
            new => Ok(OwnedFd::from_raw_fd(new)),
        }
    }
}
