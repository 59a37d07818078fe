//! A pseudo-terminal with a program on it, typed into and read from as a person would.
//!
//! The program leads a session of its own, with this as its controlling terminal (setsid -c).

use super::command::command;
use super::server::{SUPERUSER, Server};
use super::wait::{SOON, until};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, poll};
use nix::pty::openpty;
use nix::unistd::ttyname;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// A program on a terminal of its own, killed on drop.
pub struct Terminal {
    keyboard: Option<File>,
    reader: Option<JoinHandle<()>>,
    hung_up: Arc<AtomicBool>,
    name: PathBuf,
    screen: Arc<Mutex<Vec<u8>>>,
    read: usize,
    child: Child,
}

impl Terminal {
    /// Runs a program that finds the server as `Server::pglock` does, and pglock in `$PGLOCK`.
    pub fn run(server: &Server, program: &[&str]) -> Terminal {
        Terminal::with(program, |command| {
            command.env("PGHOST", server.host());
            command.env("PGUSER", SUPERUSER);
            command.env("PGPORT", server.port().to_string());
            command.env("PS1", "prompt> ").env("TERM", "dumb");
            command.env("PGLOCK", super::pglock::binary());
        })
    }

    /// Runs a program in an environment that is set up for it.
    pub fn with(program: &[&str], set_up: impl FnOnce(&mut Command)) -> Terminal {
        let pty = openpty(None, None).unwrap();
        // Programs of other tests must not hold this terminal open.
        for end in [&pty.master, &pty.slave] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
        }
        let slave = File::from(pty.slave);
        let name = ttyname(&slave).unwrap();
        let mut command = command("setsid");
        command.arg("-c").args(program);
        set_up(&mut command);
        command.stdin(slave.try_clone().unwrap());
        command.stdout(slave.try_clone().unwrap()).stderr(slave);
        let child = command.spawn().unwrap();
        drop(command); // It holds the program's end of the terminal.
        let keyboard = File::from(pty.master);
        let screen = Arc::new(Mutex::new(Vec::new()));
        let (mut output, sink) = (keyboard.try_clone().unwrap(), Arc::clone(&screen));
        let hung_up = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&hung_up);
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !stop.load(Ordering::Relaxed) {
                let mut ready = [PollFd::new(output.as_fd(), PollFlags::POLLIN)];
                if !matches!(poll(&mut ready, 50u16), Ok(1)) {
                    continue;
                }
                let Ok(count @ 1..) = output.read(&mut buffer) else {
                    return;
                };
                sink.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
        });
        Terminal {
            keyboard: Some(keyboard),
            reader: Some(reader),
            hung_up,
            name,
            screen,
            read: 0,
            child,
        }
    }

    /// Waits until this appears after what was expected before.
    #[track_caller]
    pub fn expect(&mut self, text: &str) {
        let found = until(SOON, || match find(&self.unread(), text.as_bytes()) {
            Some(end) => {
                self.read += end;
                true
            }
            None => false,
        });
        assert!(found, "not on the screen: {text:?}\n{}", self.screen());
    }

    /// Types these keys.
    #[track_caller]
    pub fn keys(&mut self, keys: &str) {
        let keyboard = self.keyboard.as_mut().expect("the terminal is open");
        keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Sets the width of the window.
    pub fn resize(&self, columns: u16) {
        let mut command = command("stty");
        command.arg("-F").arg(&self.name).args(["cols", &columns.to_string()]);
        assert!(command.status().unwrap().success());
    }

    /// Returns everything that was ever written.
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().unwrap()).into_owned()
    }

    /// Closes the terminal, as a lost connection does.
    pub fn hang_up(mut self) {
        self.hung_up.store(true, Ordering::Relaxed);
        self.reader.take().unwrap().join().unwrap();
        self.keyboard = None;
        assert!(until(SOON, || self.child.try_wait().unwrap().is_some()));
    }

    /// Waits until the program exits.
    #[track_caller]
    pub fn end(&mut self) -> ExitStatus {
        assert!(
            until(SOON, || self.child.try_wait().unwrap().is_some()),
            "the program still runs:\n{}",
            self.screen()
        );
        self.child.wait().unwrap()
    }

    fn unread(&self) -> Vec<u8> {
        self.screen.lock().unwrap()[self.read..].to_vec()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns where the text ends in the bytes.
fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    bytes
        .windows(text.len())
        .position(|window| window == text)
        .map(|at| at + text.len())
}
