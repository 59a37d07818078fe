//! The transcripts of the README and of `docs/`: every one is replayed, and must read as it does here, but for process
//! IDs, times and host names.

use super::desk::Desk;
use crate::support::pglock::Pglock;
use crate::support::unique;
use crate::support::wait::{SOON, eventually};
use nix::sys::signal::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The page and the first command of each transcript. A test of this file replays it.
const TRANSCRIPTS: [(&str, &str); 9] = [
    ("README.md", "pglock run --key backup -- ./backup.sh &"),
    (
        "docs/connecting.md",
        "export DATABASE_URL='postgres://app@db/app?shema=public&bogus=1&pool=5'",
    ),
    ("docs/lost-locks.md", "pglock run --key backup -- sleep 60"),
    ("docs/operators.md", "pglock list"),
    (
        "docs/operators.md",
        "pglock run --key nightly --note 'upgrade until 14:00, ask ops' -- sleep 2h",
    ),
    ("docs/operators.md", "pglock evict --key backup"),
    ("docs/operators.md", "pglock check"),
    ("docs/sharing-locks.md", "pglock key backup 42"),
    (
        "docs/sharing-locks.md",
        "pglock run --hash md5 --key nightly -- ./report.sh",
    ),
];

#[test]
fn every_transcript_has_a_replay() {
    let mut found = Vec::new();
    for name in ["README.md", "docs"] {
        let path = Path::new(ROOT).join(name);
        let files = if path.is_dir() {
            fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect()
        } else {
            vec![path]
        };
        for file in files {
            let page = file.strip_prefix(ROOT).unwrap().to_str().unwrap().to_owned();
            let text = fs::read_to_string(&file).unwrap();
            let blocks = text.split("```console\n$ ").skip(1);
            found.extend(blocks.map(|block| (page.clone(), block.lines().next().unwrap().to_owned())));
        }
    }
    let listed = TRANSCRIPTS.map(|(page, command)| (page.to_owned(), command.to_owned()));
    assert_eq!(BTreeSet::from_iter(found), BTreeSet::from(listed));
}

#[test]
fn the_demonstration_of_the_readme() {
    // Its messages belong between the lines of its standard output.
    let script = format!("exec '{ROOT}/scripts/demo' \"$PGLOCK\" 2>&1");
    let demo = Pglock::for_program("bash").args(["-c", &script]);
    let output = demo.env("PGLOCK", env!("CARGO_BIN_EXE_pglock")).output();
    let shown = output.stdout();
    let lines = shown.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let shown = masked(&lines.collect::<Vec<_>>().join("\n"));
    let (_, block) = transcript(TRANSCRIPTS[0]);
    assert!(
        shown.contains(&masked(&block)),
        "not in the demonstration:\n{block}\n{shown}"
    );
}

#[test]
fn a_database_url_with_unknown_parameters() {
    let desk = Desk::new();
    let (commands, block) = transcript(TRANSCRIPTS[1]);
    let output = desk.on_path("sh").args(["-c", &commands.join("\n")]).output();
    assert_replayed(&block, &output.code(78).stderr);
}

#[test]
fn a_lost_lock() {
    let desk = Desk::new();
    let (commands, block) = transcript(TRANSCRIPTS[2]);
    let script = format!("exec 2>&1\n{}", commands.join("\n"));
    let running = desk.on_path("sh").args(["-c", &script]).spawn();
    desk.await_locks("backup", 1, 0);
    desk.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE datname = current_database() AND application_name LIKE 'pglock:%'",
    );
    assert_replayed(&block, &running.finish().stdout);
}

/// The line of `docs/waiting.md` about a connection that is lost.
#[test]
fn a_lost_connection_while_waiting() {
    let desk = Desk::new();
    let holder = run_in(&desk, "pglock run --key backup -- sh -c 'read -r _; exit 0'").spawn();
    desk.await_locks("backup", 1, 0);
    let waiter = run_in(&desk, "pglock run --key backup -- true").spawn();
    desk.await_locks("backup", 1, 1);
    desk.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE datname = current_database() AND application_name LIKE 'pglock:%' \
         AND pid NOT IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted)",
    );
    waiter.await_stderr("reconnecting\n");
    // The cause is either the server's message or, if pglock has just sent a query, that of the closed connection.
    let without_cause = |line: &str| {
        let (start, rest) = line.split_once("\": ").unwrap();
        let (_, end) = rest.rsplit_once("; ").unwrap();
        format!("{start} {end}")
    };
    let page = fs::read_to_string(Path::new(ROOT).join("docs/waiting.md")).unwrap();
    let line = page.lines().find(|line| line.starts_with("pglock: lost")).unwrap();
    assert_eq!(without_cause(waiter.stderr().trim_end()), without_cause(line));
    desk.await_locks("backup", 1, 1);
    holder.finish().code(0);
    waiter.finish().code(0);
}

#[test]
fn a_list_of_holders_and_waiters() {
    let desk = Desk::new();
    for program in ["backup.sh", "worker"] {
        desk.program(program, "echo started; read -r _; exit 0");
    }
    let run = |options: &str| run_in(&desk, &format!("exec pglock run {options}")).spawn();
    let worker = run("--key workers --slots 3 -- ./worker");
    worker.await_stdout("started\n");
    let holder = run("--key backup -- ./backup.sh");
    desk.await_locks("backup", 1, 0);
    let waiter = run("--key backup -- ./backup.sh");
    desk.await_locks("backup", 1, 1);

    let (commands, block) = transcript(TRANSCRIPTS[3]);
    let listed = desk.on_path("sh").args(["-c", &commands[0]]).output().stdout();
    assert_same_table(&lines_of_output(&block), &listed.lines().collect::<Vec<_>>());
    for running in [worker, holder, waiter] {
        running.finish().code(0);
    }
}

#[test]
fn a_pause_with_a_note() {
    let desk = Desk::new();
    let (commands, _) = transcript(TRANSCRIPTS[4]);
    let pause = desk
        .on_path("sh")
        .args(["-c", &format!("exec {}", commands[0])])
        .spawn();
    desk.await_locks("nightly", 1, 0);
    let listed = desk.on_path("pglock").arg("list").output().stdout();
    assert!(listed.contains("upgrade until 14:00, ask ops"), "{listed}");
    pause.signal(Signal::SIGTERM);
    pause.finish().signal(Signal::SIGTERM).silent();
}

#[test]
fn an_eviction() {
    let desk = Desk::new();
    desk.program("backup.sh", "read -r _; exit 0");
    let run = || run_in(&desk, "exec pglock run --key backup -- ./backup.sh").spawn();
    let holder = run();
    desk.await_locks("backup", 1, 0);
    let waiter = run();
    desk.await_locks("backup", 1, 1);

    let (commands, block) = transcript(TRANSCRIPTS[5]);
    let mut terminal = desk.terminal(&["sh", "-c", &format!("stty cols 200; {}", commands[0])]);
    terminal.expect("[y/N] ");
    terminal.keys("y\r");
    assert!(terminal.end().success());
    eventually(SOON, "the last line", || terminal.screen().contains("is now held by"));
    let screen = terminal.screen().replace('\r', "");
    let (shown, expected) = (screen.lines().collect::<Vec<_>>(), lines_of_output(&block));
    assert_same_table(&expected[..2], &shown[..2]);
    assert_eq!(masked(&shown[2..].join("\n")), masked(&expected[2..].join("\n")));

    // What the evicted pglock says.
    let output = holder.finish();
    let line = String::from_utf8(output.code(74).stderr.clone()).unwrap();
    let page = fs::read_to_string(Path::new(ROOT).join("docs/operators.md")).unwrap();
    assert!(
        masked(&page).contains(masked(&line).trim_end()),
        "docs/operators.md lacks {line}"
    );
    waiter.finish().code(0);
}

/// The server is 15.18 there, and any version here. `idle_session_timeout` is new in 14.
#[test]
fn a_check_of_a_role_with_a_timeout() {
    let desk = Desk::new();
    if desk.server.version() < 14 {
        return;
    }
    let role = unique("locks");
    desk.sql(&format!("CREATE ROLE {role} LOGIN"));
    desk.sql(&format!("ALTER ROLE {role} SET idle_session_timeout = '1min'"));
    let (commands, block) = transcript(TRANSCRIPTS[6]);
    let check = desk.on_path("sh").args(["-c", &commands[0]]);
    let output = check.env("PGHOST", desk.server.address()).env("PGUSER", &role).output();
    desk.sql(&format!("DROP ROLE {role}"));
    let database = desk.sql("SELECT current_database()");
    let shown = String::from_utf8(output.code(0).silent().stdout.clone()).unwrap();
    let shown = shown.replace(&role, "locks").replace(&database, "app");
    let comparable = |lines: &[&str]| -> Vec<String> {
        // The tests' servers have fsync=off.
        let lines = lines.iter().filter(|line| !line.contains(" durability: "));
        lines.map(|line| without_measurements(line)).collect()
    };
    let shown: Vec<&str> = shown.lines().collect();
    assert_eq!(comparable(&shown), comparable(&lines_of_output(&block)));
}

#[test]
fn keys_and_their_sql() {
    replay_all(TRANSCRIPTS[7]);
}

#[test]
fn locks_of_other_tools() {
    replay_all(TRANSCRIPTS[8]);
}

/// Runs the commands of a transcript that need nothing but a database, and compares their output.
#[track_caller]
fn replay_all(which: (&str, &str)) {
    let desk = Desk::new();
    for job in ["report.sh", "dump.sh"] {
        desk.program(job, "true");
    }
    let (commands, block) = transcript(which);
    let mut shown = String::new();
    for command in commands {
        shown += &format!("$ {command}\n{}", run_in(&desk, &command).output().stdout());
    }
    assert_eq!(shown, block);
}

/// Returns the commands of a transcript, and all of it.
#[track_caller]
fn transcript((page, first): (&str, &str)) -> (Vec<String>, String) {
    let text = fs::read_to_string(Path::new(ROOT).join(page)).unwrap();
    let (_, rest) = text.split_once(&format!("```console\n$ {first}\n")).unwrap();
    let (rest, _) = rest.split_once("```\n").unwrap();
    let block = format!("$ {first}\n{rest}");
    let commands = block.lines().filter_map(|line| line.strip_prefix("$ "));
    (commands.map(str::to_owned).collect(), block)
}

fn lines_of_output(block: &str) -> Vec<&str> {
    block.lines().filter(|line| !line.starts_with("$ ")).collect()
}

#[track_caller]
fn assert_replayed(block: &str, shown: &[u8]) {
    let shown = String::from_utf8_lossy(shown);
    assert_eq!(masked(shown.trim_end()), masked(&lines_of_output(block).join("\n")));
}

/// Replaces hosts with process IDs, backends and times by names.
fn masked(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let mut words: Vec<String> = Vec::new();
        for word in line.split(' ') {
            let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
            let is_pid = |(_, pid): (&str, &str)| !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit());
            let is_backend = words.last().is_some_and(|last| last.ends_with("backend"));
            let mask = match bare {
                _ if bare.starts_with("20") && bare.ends_with('Z') => "TIME",
                _ if bare.rsplit_once(':').is_some_and(is_pid) => "HOST:PID",
                _ if is_backend => "N",
                _ => bare,
            };
            words.push(if bare.is_empty() {
                word.to_owned()
            } else {
                word.replace(bare, mask)
            });
        }
        words.join(" ")
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Asserts that the columns of a table are in another one, with the same cells but for what is masked.
#[track_caller]
fn assert_same_table(expected: &[&str], shown: &[&str]) {
    let (expected_rows, shown_rows) = (table(expected), table(shown));
    assert_eq!(expected_rows.len(), shown_rows.len(), "{shown:?}");
    for (expected, mut shown) in expected_rows.into_iter().zip(shown_rows) {
        shown.retain(|title, _| expected.contains_key(title));
        assert_eq!(expected, shown);
    }
}

/// Returns the rows of a table by the titles of the columns.
fn table(lines: &[&str]) -> Vec<BTreeMap<String, String>> {
    let (header, rows) = lines.split_first().unwrap();
    let titles: Vec<&str> = header.split_whitespace().collect();
    let starts: Vec<usize> = titles.iter().map(|title| find_title(header, title)).collect();
    let cells = |row: &&str| {
        let ends = starts.iter().skip(1).copied().chain([row.len()]);
        let cells = starts.iter().zip(ends).map(|(start, end)| {
            let end = end.min(row.len());
            row.get(*start..end).unwrap_or_default().trim()
        });
        titles
            .iter()
            .zip(cells)
            .map(|(title, cell)| ((*title).to_owned(), masked_cell(title, cell)))
            .collect()
    };
    rows.iter().map(cells).collect()
}

/// Returns where a column begins. A title can be a part of another one.
fn find_title(header: &str, title: &str) -> usize {
    let padded = format!(" {header} ");
    padded.find(&format!(" {title} ")).unwrap()
}

fn masked_cell(title: &str, cell: &str) -> String {
    match title {
        "FOR" | "BACKEND" | "BEHIND" => {
            let rest = cell.trim_start_matches(|c: char| c.is_ascii_digit());
            let number = if rest.len() < cell.len() { "N" } else { "" };
            format!("{number}{rest}")
        }
        "WHO" => masked(cell),
        // pglock tries the slots in any order.
        "KEY" => ["0", "1", "2"].iter().fold(cell.to_owned(), |cell, slot| {
            cell.replace(&format!(" slot {slot}/"), " slot N/")
        }),
        _ => cell.to_owned(),
    }
}

/// Returns a line of `pglock check` without the version, and without the numbers of what it measured.
fn without_measurements(line: &str) -> String {
    if let Some((start, _)) = line.split_once(" server: PostgreSQL ") {
        return start.to_owned();
    }
    let is_measured = ["connections", "round trip", "lock"]
        .iter()
        .any(|subject| line.contains(&format!(" {subject}: ")));
    let keep = |c: &char| !is_measured || !(c.is_ascii_digit() || *c == '.');
    line.chars().filter(keep).collect()
}

/// Returns a shell with a command line of a transcript, in the directory of the operator's programs.
fn run_in(desk: &Desk, command: &str) -> Pglock {
    let mut shell = desk.on_path("sh").args(["-c", command]);
    shell.command().current_dir(desk.directory());
    shell
}
