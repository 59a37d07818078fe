//! A terminal as a person sees it: tmux with a shell, of a given size, and its screen as text.
//!
//! It always ends with the test: the shell that started tmux ends it when the pipe from the test process closes.

use super::command::command;
use super::server::{SUPERUSER, Server};
use super::wait::{SOON, until};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use tempfile::TempDir;

/// A shell on a screen.
pub struct Screen {
    directory: TempDir,
    keeper: Child,
}

impl Screen {
    /// Starts one of this size, with pglock on `PATH`, and the server and these variables in the environment.
    pub fn new(server: &Server, (columns, lines): (u16, u16), variables: &[(&str, &str)]) -> Screen {
        const KEEPER: &str = "tmux -S \"$1\" -f /dev/null new-session -d -x \"$2\" -y \"$3\" \
             \"exec env PS1='$ ' bash --norc --noprofile\" || exit; \
             trap '' HUP INT QUIT TERM; read -r _; tmux -S \"$1\" kill-server";
        let directory = TempDir::new().unwrap();
        let pglock = Path::new(env!("CARGO_BIN_EXE_pglock"));
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = command("sh");
        command
            .args(["-c", KEEPER, "keeper"])
            .arg(directory.path().join("socket"));
        command.args([columns.to_string(), lines.to_string()]);
        command.env("PATH", format!("{}:{path}", pglock.parent().unwrap().display()));
        command.env("PGHOST", server.host()).env("PGUSER", SUPERUSER);
        command.env("PGPORT", server.port().to_string());
        command.env("LC_ALL", "C.UTF-8").env_remove("TMUX").env_remove("CI");
        command.envs(variables.iter().copied());
        let keeper = command.stdin(Stdio::piped()).spawn().unwrap();
        let screen = Screen { directory, keeper };
        screen.expect("a prompt", |lines| lines.first().is_some_and(|line| line == "$"));
        screen
    }

    /// Types a line.
    pub fn line(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]);
        self.key("Enter");
    }

    /// Presses a key, by tmux's name.
    pub fn key(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    /// Returns the lines of the screen without trailing whitespace, and without the empty ones at the bottom.
    pub fn text(&self) -> Vec<String> {
        let text = self.tmux(&["capture-pane", "-p"]);
        let mut lines: Vec<String> = text.lines().map(|line| line.trim_end().to_owned()).collect();
        while lines.last().is_some_and(String::is_empty) {
            lines.pop();
        }
        lines
    }

    /// Waits until the screen is as expected, and returns it.
    #[track_caller]
    pub fn expect(&self, what: &str, is_expected: impl Fn(&[String]) -> bool) -> Vec<String> {
        let mut text = Vec::new();
        let found = until(SOON, || {
            text = self.text();
            is_expected(&text)
        });
        assert!(found, "no {what} on the screen:\n{}", text.join("\n"));
        text
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    fn tmux(&self, arguments: &[&str]) -> String {
        let mut command = command("tmux");
        let output = command.arg("-S").arg(self.socket()).args(arguments).output();
        String::from_utf8_lossy(&output.unwrap().stdout).into_owned()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}
