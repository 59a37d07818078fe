//! What the fuzzing has found, each as a test of its own: answers that no PostgreSQL gives, and floods.
//!
//! The server here is a liar with a script: it lets everybody in, and answers as it is told.

use super::case::peak_of;
use super::mutation::Endless;
use super::wire::{description, message, read_message, report, row};
use crate::support::pglock::{Output, Pglock};
use crate::support::wait::until;
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

/// A row, by the names of its columns.
type Row<'a> = &'a [(&'a str, &'a str)];

/// When a liar begins to talk without end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flood {
    /// Before it has let us in.
    AtStartup,
    /// In place of the answer to the first question.
    ForAnAnswer,
    /// Besides everything else, once it has granted the lock: as fast as it can, or a little at a time.
    WhileHolding,
    Besides,
}

#[derive(Clone)]
struct Liar {
    /// The answer to every question. The columns that it does not name are those of a lock that is granted.
    answer: Vec<u8>,
    flood: Option<(Flood, Endless)>,
}

/// An answer with this row.
fn answer(columns: Row) -> Vec<u8> {
    let names: Vec<Vec<u8>> = columns.iter().map(|(name, _)| name.as_bytes().to_vec()).collect();
    let values: Vec<_> = columns
        .iter()
        .map(|(_, value)| Some(value.as_bytes().to_vec()))
        .collect();
    [
        description(&names),
        row(&values),
        message(b'C', b"SELECT 1\0"),
        message(b'Z', b"I"),
    ]
    .concat()
}

/// What a server says that grants the lock, and gives it back; with these columns besides, or instead.
fn granting(others: Row) -> Vec<u8> {
    // The name is filled in: it is the client's own.
    let usual = [
        ("name", NAME),
        ("standby", "f"),
        ("version", "PostgreSQL 15.1"),
        ("database", "app"),
        ("backend_pid", "7"),
        ("got", "1"),
        ("proven", "t"),
        ("released", "t"),
    ];
    let is_other = |name: &str| others.iter().any(|(other, _)| *other == name);
    let usual = usual.into_iter().filter(|(name, _)| !is_other(name));
    answer(&usual.chain(others.iter().copied()).collect::<Vec<_>>())
}

/// As long as the longest name, which stands for it.
const NAME: &str = "@@NAME@@";

impl Liar {
    fn with(answer: Vec<u8>) -> Liar {
        Liar { answer, flood: None }
    }

    /// Listens for as long as the test process lives.
    fn listen(self) -> u16 {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let liar = self.clone();
                // A client that has had enough is no error.
                thread::spawn(move || drop(liar.converse(client)));
            }
        });
        port
    }

    fn converse(&self, mut client: TcpStream) -> io::Result<()> {
        let startup = read_message(&mut client, false)?;
        let startup = String::from_utf8_lossy(&startup).into_owned();
        let name = startup.split("application_name\0").nth(1).unwrap_or_default();
        let name = name.split('\0').next().unwrap_or_default();
        client.write_all(&message(b'R', &[0; 4]))?;
        let (_, no_answers) = channel();
        self.flood(Flood::AtStartup, &mut client, &no_answers)?;
        client.write_all(&[message(b'K', &[0; 8]), message(b'Z', b"I")].concat())?;
        let mut flood: Option<Sender<Vec<u8>>> = None;
        while read_message(&mut client, true)?[0] != b'X' {
            self.flood(Flood::ForAnAnswer, &mut client, &no_answers)?;
            let answer = renamed(&self.answer, name);
            match &flood {
                // Whoever talks all the time answers all the same.
                Some(flood) => drop(flood.send(answer)),
                None => client.write_all(&answer)?,
            }
            if flood.is_none() && self.flood.is_some() {
                let (liar, mut client) = (self.clone(), client.try_clone()?);
                let (sender, answers) = channel();
                flood = Some(sender);
                thread::spawn(move || {
                    liar.flood(Flood::WhileHolding, &mut client, &answers)?;
                    liar.flood(Flood::Besides, &mut client, &answers)
                });
            }
        }
        Ok(())
    }

    /// Talks without end, if now is the time, with these answers in between.
    fn flood(&self, when: Flood, client: &mut TcpStream, answers: &Receiver<Vec<u8>>) -> io::Result<()> {
        let Some((_, what)) = self.flood.filter(|(it, _)| *it == when) else {
            return Ok(());
        };
        // Made once, so that there is always something to be read.
        let again = what.chunk(1).repeat(16);
        for n in 0.. {
            for answer in answers.try_iter() {
                client.write_all(&answer)?;
            }
            match (n, what) {
                _ if when == Flood::Besides => client.write_all(&what.chunk(n))?,
                (0, _) | (_, Endless::Parameters) => client.write_all(&what.chunk(n))?,
                _ => client.write_all(&again)?,
            }
        }
        Ok(())
    }
}

/// With this name in the row.
fn renamed(answer: &[u8], name: &str) -> Vec<u8> {
    let Some(at) = answer.windows(NAME.len()).position(|it| it == NAME.as_bytes()) else {
        return answer.to_vec();
    };
    let start = answer.iter().position(|kind| *kind == b'D');
    // The description comes first, and may have the letter in it.
    let start = (start.unwrap_or_default()..at).rfind(|n| answer[*n] == b'D' && at - n < 16);
    let start = start.unwrap();
    let mut bytes = answer.to_vec();
    bytes.splice(at..at + NAME.len(), name.bytes());
    bytes.splice(at - 4..at, (name.len() as u32).to_be_bytes());
    let length = u32::from_be_bytes(bytes[start + 1..start + 5].try_into().unwrap());
    let length = length + name.len() as u32 - NAME.len() as u32;
    bytes.splice(start + 1..start + 5, length.to_be_bytes());
    bytes
}

fn pglock(port: u16, arguments: &[&str]) -> Pglock {
    let dsn = format!("postgresql://u@127.0.0.1:{port}/x?sslmode=disable");
    Pglock::alone().env("PGLOCK_DSN", dsn).args(arguments)
}

#[track_caller]
fn against(answer: Vec<u8>, arguments: &[&str]) -> Output {
    pglock(Liar::with(answer).listen(), arguments).output()
}

const TRY: [&str; 6] = ["run", "-k", "x", "--no-wait", "echo", "ran"];

/// The liar is believed where it tells a whole story: otherwise the other tests would show nothing.
#[test]
fn a_liar_that_says_all_the_right_things_is_believed() {
    let output = against(granting(&[]), &["run", "-k", "x", "sh", "-c", "exit 5"]);
    output.code(5).silent();
}

/// "A job that must not run did not": an answer without a row is no answer, and no pooler's either.
#[test]
fn an_answer_without_a_row_is_no_postgresqls() {
    let nothing = [message(b'C', b"SELECT 0\0"), message(b'Z', b"I")].concat();
    let line = against(nothing.clone(), &TRY).code(78).stderr_line();
    assert_eq!(
        line,
        "the server returned no row for the first query, as no PostgreSQL server does"
    );
    against(nothing.clone(), &["list"]).code(0);
    against(nothing, &["check"]).code(78);
}

/// An SQLSTATE has five characters, but for a liar's.
#[test]
fn a_short_sqlstate_is_an_error_like_any_other() {
    for code in ["", "4", "4\u{e9}", "\u{e9}"] {
        let fields = [(b'S', &b"ERROR"[..]), (b'C', code.as_bytes()), (b'M', b"no")];
        let error = [report(b'E', &fields), message(b'Z', b"I")].concat();
        assert_eq!(against(error, &TRY).code(69).stderr_line(), "no");
    }
}

/// What the server says is passed on at once, though it never comes to the end of its answer.
#[test]
fn an_error_that_does_not_end_is_said_at_once() {
    let fields = [(b'S', &b"ERROR"[..]), (b'C', b"53000"), (b'M', b"no")];
    let output = against(report(b'E', &fields), &TRY);
    assert_eq!(output.code(69).stderr_line(), "no");
    assert!(output.took < Duration::from_secs(8), "{output}");
}

/// Somebody else has key number 999 of one.
#[test]
fn a_number_that_is_no_keys_is_one_of_ours() {
    for got in ["999", "-5", "1e300", "NaN", "18446744073709551616"] {
        for options in [
            &["--no-wait"][..],
            &["--wait", "0.2"],
            &["-k", "y", "--wait", "0.2"],
            &["--slots", "3"],
        ] {
            let busy = granting(&[("got", got), ("proven", "f")]);
            let run = [&["run", "-k", "x"], options, &["--heartbeat", "0.2", "echo", "ran"]].concat();
            let output = against(busy, &run);
            // Of slots, too great a number is the last one, which is not proven.
            assert!(matches!(output.status.code(), Some(69 | 75 | 78)), "{output}");
            assert!(output.stdout.is_empty(), "{output}");
        }
    }
    let slot = granting(&[("got", "999")]);
    let run = [
        "run",
        "-k",
        "x",
        "--slots",
        "3",
        "sh",
        "-c",
        "test \"$PGLOCK_SLOT\" -lt 3",
    ];
    against(slot, &run).code(0);
}

/// Columns that are missing, and moments that no calendar has.
#[test]
fn holders_that_cannot_be_are_shown_as_far_as_they_go() {
    for moment in ["1e300", "-1e300", "inf", "NaN", "253402300800", "x"] {
        let columns = [
            ("got", "0"),
            ("pid", "8"),
            ("usename", "u"),
            ("application_name", "pglock:x h:1"),
            ("connected", moment),
            ("note", "/* pglock holds 0.000 job x */ "),
            ("asked", moment),
            ("now", "0"),
            ("classid", "1"),
            ("objid", "1"),
            ("objsubid", "1"),
            ("granted", "t"),
            ("waiting_since", moment),
        ];
        let line = against(granting(&columns), &TRY).code(75).stderr_line();
        assert!(line.contains("is held by h:1 (backend 8"), "{line}");
        against(granting(&columns), &["list"]).code(0);
        against(granting(&columns), &["list", "--json"]).code(0);
    }
    let line = against(granting(&[("got", "0")]), &TRY).code(75).stderr_line();
    assert!(line.contains("is held by"), "{line}");
    against(answer(&[("x", "y")]), &["list"]).code(0);
    let standby = "postgresql://u@127.0.0.1/x?sslmode=disable&target_session_attrs=standby";
    let port = Liar::with(answer(&[("x", "t")])).listen().to_string();
    let output = Pglock::alone()
        .env("PGPORT", port)
        .args(["run", "-k", "x", "-d", standby, "true"])
        .output();
    output.code(78);
}

/// The most memory that a pglock may need.
const MEMORY_KB: u64 = 128 * 1024;

/// A server that never stops talking ends the session, not the memory.
#[test]
fn no_flood_fills_the_memory() {
    let floods = [Flood::AtStartup, Flood::ForAnAnswer, Flood::WhileHolding];
    thread::scope(|scope| {
        for flood in floods {
            scope.spawn(move || Endless::ALL.iter().for_each(|what| is_endured(flood, *what)));
        }
    });
}

#[track_caller]
fn is_endured(flood: Flood, what: Endless) {
    use Endless::*;
    let liar = Liar {
        answer: granting(&[]),
        flood: Some((flood, what)),
    };
    // What counts as an answer is cut off by its length, and nothing else ends it here; the rest by silence.
    let is_cut_off = matches!(
        (flood, what),
        (Flood::AtStartup, Notices | Parameters | Notifications | OneMessage)
            | (Flood::ForAnAnswer, Rows | Completions | OneMessage)
    );
    let (connect, heartbeat) = if is_cut_off { ("60", "30") } else { ("1", "0.2") };
    let limits = [
        "--connect-timeout",
        connect,
        "--heartbeat",
        heartbeat,
        "--kill-after",
        "0.2",
    ];
    let run = pglock(liar.listen(), &["run", "-k", "x"]).args(limits);
    let mut running = run.sh("sleep 1; exit 5").spawn();
    let mut memory = 0;
    let has_ended = until(Duration::from_secs(100), || {
        memory = memory.max(peak_of(running.pid()));
        !running.lives()
    });
    assert!(has_ended, "{flood:?} {what:?}");
    let output = running.finish();
    assert!(memory < MEMORY_KB, "{flood:?} {what:?}: {memory} kB\n{output}");
    let words = String::from_utf8_lossy(&output.stderr);
    let says_so = words.contains("the server sent more than 4 MiB in reply to one query");
    assert!(says_so || !is_cut_off, "{flood:?} {what:?}: {output}");
    let expected: &[i32] = match flood {
        // The flood can come right behind the grant, and the answer to a heartbeat get through it, or not.
        Flood::WhileHolding | Flood::Besides => &[5, 69, 74],
        Flood::AtStartup | Flood::ForAnAnswer => &[69],
    };
    let code = output.status.code();
    assert!(
        code.is_some_and(|code| expected.contains(&code)),
        "{flood:?} {what:?}: {output}"
    );
}

/// What a server tells besides is no reason to believe that it does not answer.
#[test]
fn a_server_that_talks_all_the_time_is_asked_all_the_same() {
    let liar = Liar {
        answer: granting(&[]),
        flood: Some((Flood::Besides, Endless::Notices)),
    };
    let limits = ["--heartbeat", "1.5", "--kill-after", "0.2"];
    let run = pglock(liar.listen(), &["run", "-k", "x"])
        .args(limits)
        .sh("sleep 4; exit 5");
    run.output().code(5).silent();
}
