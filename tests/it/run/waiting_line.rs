//! P37: the progress line on real screens.

use crate::support::case::Case;
use crate::support::hostname;
use crate::support::screen::Screen;

const WIDE: (u16, u16) = (80, 24);

/// Returns the line of the screen that starts with the text.
fn starting<'a>(screen: &'a [String], text: &str) -> Option<&'a String> {
    screen.iter().find(|line| line.starts_with(text))
}

/// P37
#[test]
fn the_wait_is_shown_in_one_line_until_the_lock_is_acquired() {
    let case = Case::new();
    let key = &case.key;
    let holder = case.holder();
    let screen = Screen::new(case.server, WIDE, &[("NO_COLOR", "1")]);
    screen.line(&format!("clear; pglock run -k {key} -- echo my turn"));
    let who = format!("held by {}:{}", hostname(), holder.pid());
    let head = format!("pglock: waiting for key \"{key}\" for ");
    let first = screen.expect("waiting line", |lines| starting(lines, &head).is_some());
    let line = starting(&first, &head).unwrap();
    assert!(line.contains(&format!("s; {who} for ")), "{line}");
    // In place: the time in the line changes, and there is no second line.
    let later = screen.expect("other time", |lines| {
        starting(lines, &head).is_some_and(|now| now != line)
    });
    assert_eq!(later.len(), first.len(), "{later:?}");
    holder.finish().code(0);
    let end = screen.expect("turn and prompt", |lines| lines.len() == 2);
    assert_eq!(end, ["my turn", "$"]);
}

/// P37
#[test]
fn a_narrow_screen_shows_as_much_as_fits() {
    let case = Case::new();
    let key = &case.key;
    let holder = case.holder();
    let screen = Screen::new(case.server, (40, 10), &[]);
    screen.line(&format!("clear; pglock run -k {key} -w 3 -- true"));
    let line = screen.expect("waiting line", |lines| {
        lines.len() == 1 && lines[0].contains(&format!("s: key \"{key}\"; held by "))
    });
    assert!(line[0].len() < 40, "{line:?}");
    // When the wait is over, only the line that reports it is left.
    let end = screen.expect("end", |lines| lines.last().is_some_and(|line| line == "$"));
    let all: String = end.concat();
    assert!(all.starts_with("pglock: key "), "{end:?}");
    assert!(all.contains("gave up after 3s"), "{end:?}");
    assert!(!all.contains("s: key"), "{end:?}");
    drop(holder);
}

/// P37: where a line cannot be erased, it is printed once.
#[test]
fn a_plain_terminal_and_a_log_get_one_line() {
    for variable in [("TERM", "dumb"), ("CI", "true")] {
        let case = Case::new();
        let key = &case.key;
        let holder = case.holder();
        let screen = Screen::new(case.server, WIDE, &[]);
        screen.line(&format!(
            "clear; {}={} pglock run -k {key} -w 3.5 -- true",
            variable.0, variable.1
        ));
        let end = screen.expect("end", |lines| {
            starting(lines, "pglock: key ").is_some() && lines.last().is_some_and(|line| line == "$")
        });
        let lines_printed = end.iter().filter(|line| line.contains("waiting for key"));
        assert_eq!(lines_printed.count(), 1, "{variable:?} {end:?}");
        drop(holder);
    }
}

/// P37: nothing is shown if standard error is not a terminal, except one line with `-v`; nor with `-q`, nor in the
/// background.
#[test]
fn nothing_is_shown_without_a_terminal() {
    let case = Case::new();
    let key = &case.key;
    let holder = case.holder();
    let silent = case.run().args(["-w", "2.5", "-E", "0", "-q", "true"]);
    silent.output().code(0).silent();
    let line = case.run().args(["-w", "2.5", "true"]).output().code(75).stderr_line();
    assert!(line.ends_with("; gave up after 2s 500ms"), "{line}");
    let verbose = case.run().args(["-w", "2.5", "-v", "true"]).output();
    let waiting = String::from_utf8_lossy(&verbose.code(75).stderr).into_owned();
    assert_eq!(waiting.matches("; waiting\n").count(), 1, "{waiting}");
    assert!(!waiting.contains("waiting for"), "{waiting}");
    let screen = Screen::new(case.server, WIDE, &[]);
    screen.line(&format!("clear; pglock run -k {key} -q -w 2.5 -- true; echo quiet"));
    assert_eq!(screen.expect("end", |lines| lines.len() == 2), ["quiet", "$"]);
    screen.line(&format!(
        "clear; pglock run -k {key} -w 2.5 -- true 2>err & wait; cat err; rm err"
    ));
    let end = screen.expect("end", |lines| lines.concat().contains("gave up after"));
    assert!(!end.concat().contains("waiting for"), "{end:?}");
    drop(holder);
}

/// P37: a stopped wait erases the line for the shell, and shows it again when it is continued.
#[test]
fn the_line_disappears_when_the_wait_is_stopped_or_ended() {
    let case = Case::new();
    let key = &case.key;
    let holder = case.holder();
    let screen = Screen::new(case.server, WIDE, &[]);
    let head = "pglock: waiting for ";
    screen.line(&format!("clear; pglock run -k {key} -- true"));
    screen.expect("waiting line", |lines| starting(lines, head).is_some());
    screen.key("C-z");
    let stopped = screen.expect("stop", |lines| lines.concat().contains("Stopped"));
    assert!(starting(&stopped, head).is_none(), "{stopped:?}");
    screen.line("fg");
    screen.expect("waiting line", |lines| starting(lines, head).is_some());
    screen.key("C-c");
    let ended = screen.expect("prompt", |lines| lines.last().is_some_and(|line| line == "$"));
    assert!(starting(&ended, head).is_none(), "{ended:?}");
    drop(holder);
}
