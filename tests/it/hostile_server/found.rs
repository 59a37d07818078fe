//! Past findings of the fuzzing, each as a test of its own: replies that no PostgreSQL sends, and floods.
//!
//! The server here follows a script: it accepts every login, and sends what it is given.

use super::case::peak_memory_kb;
use super::mutation::Endless;
use super::wire::{description, message, report, row};
use crate::support::pglock::{Output, Pglock};
use crate::support::proxy::read_message;
use crate::support::wait::until;
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

/// A row, by the names of its columns.
type Row<'a> = &'a [(&'a str, &'a str)];

/// When a liar floods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flood {
    /// Before it has accepted the login.
    AtStartup,
    /// In place of the reply to the first query.
    InsteadOfReply,
    /// Once it has granted the lock, as fast as it can.
    WhileHolding,
    /// The same, a little at a time, along with all replies.
    Trickle,
}

/// A server that lies.
#[derive(Clone)]
struct Liar {
    /// The reply to every query. Columns that it does not name are those of a granted lock.
    reply: Vec<u8>,
    flood: Option<(Flood, Endless)>,
}

/// Returns a reply with this row, and what the statements before the query return.
fn reply(columns: Row) -> Vec<u8> {
    let names: Vec<Vec<u8>> = columns.iter().map(|(name, _)| name.as_bytes().to_vec()).collect();
    let values: Vec<_> = columns
        .iter()
        .map(|(_, value)| Some(value.as_bytes().to_vec()))
        .collect();
    [
        message(b'C', b"SHOW\0"),
        message(b'C', b"BEGIN\0"),
        message(b'C', b"SELECT 1\0"),
        description(&names),
        row(&values),
        message(b'C', b"SELECT 1\0"),
        message(b'Z', b"I"),
    ]
    .concat()
}

/// Returns the reply of a server that grants and releases the lock, with these columns added or replaced.
fn granting(columns: Row) -> Vec<u8> {
    // The placeholder becomes the client's own name.
    let usual = [
        ("name", NAME_PLACEHOLDER),
        ("standby", "f"),
        ("version", "PostgreSQL 15.1"),
        ("database", "app"),
        ("backend_pid", "7"),
        ("got", "1"),
        ("proven", "t"),
        ("released", "t"),
        ("held", "1"),
        ("marked", "f"),
    ];
    let is_other = |name: &str| columns.iter().any(|(other, _)| *other == name);
    let usual = usual.into_iter().filter(|(name, _)| !is_other(name));
    reply(&usual.chain(columns.iter().copied()).collect::<Vec<_>>())
}

/// Stands for the client's own name in a reply.
const NAME_PLACEHOLDER: &str = "@@NAME@@";

impl Liar {
    fn with(reply: Vec<u8>) -> Liar {
        Liar { reply, flood: None }
    }

    /// Listens for as long as the test process lives.
    fn listen(self) -> u16 {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let liar = self.clone();
                // A client that hangs up is not an error.
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
        let (_, no_replies) = channel();
        self.flood(Flood::AtStartup, &mut client, &no_replies)?;
        client.write_all(&[message(b'K', &[0; 8]), message(b'Z', b"I")].concat())?;
        let mut flood: Option<Sender<Vec<u8>>> = None;
        while read_message(&mut client, true)?[0] != b'X' {
            self.flood(Flood::InsteadOfReply, &mut client, &no_replies)?;
            let reply = renamed(&self.reply, name);
            match &flood {
                // The flooding thread sends the reply.
                Some(flood) => drop(flood.send(reply)),
                None => client.write_all(&reply)?,
            }
            if flood.is_none() && self.flood.is_some() {
                let (liar, mut client) = (self.clone(), client.try_clone()?);
                let (sender, replies) = channel();
                flood = Some(sender);
                thread::spawn(move || {
                    liar.flood(Flood::WhileHolding, &mut client, &replies)?;
                    liar.flood(Flood::Trickle, &mut client, &replies)
                });
            }
        }
        Ok(())
    }

    /// Floods if this is the time for it, with the replies in between.
    fn flood(&self, when: Flood, client: &mut TcpStream, replies: &Receiver<Vec<u8>>) -> io::Result<()> {
        let Some((_, what)) = self.flood.filter(|(time, _)| *time == when) else {
            return Ok(());
        };
        // Made once, so that there is always something to read.
        let again = what.chunk(1).repeat(16);
        for n in 0.. {
            for reply in replies.try_iter() {
                client.write_all(&reply)?;
            }
            match (n, what) {
                _ if when == Flood::Trickle => client.write_all(&what.chunk(n))?,
                (0, _) | (_, Endless::Parameters) => client.write_all(&what.chunk(n))?,
                _ => client.write_all(&again)?,
            }
        }
        Ok(())
    }
}

/// Returns the reply with this name in its row.
fn renamed(reply: &[u8], name: &str) -> Vec<u8> {
    let Some(at) = reply
        .windows(NAME_PLACEHOLDER.len())
        .position(|part| part == NAME_PLACEHOLDER.as_bytes())
    else {
        return reply.to_vec();
    };
    let start = reply.iter().position(|kind| *kind == b'D');
    // The description comes first, and may contain the letter.
    let start = (start.unwrap_or_default()..at).rfind(|n| reply[*n] == b'D' && at - n < 16);
    let start = start.unwrap();
    let mut bytes = reply.to_vec();
    bytes.splice(at..at + NAME_PLACEHOLDER.len(), name.bytes());
    bytes.splice(at - 4..at, (name.len() as u32).to_be_bytes());
    let length = u32::from_be_bytes(bytes[start + 1..start + 5].try_into().unwrap());
    let length = length + name.len() as u32 - NAME_PLACEHOLDER.len() as u32;
    bytes.splice(start + 1..start + 5, length.to_be_bytes());
    bytes
}

fn pglock(port: u16, arguments: &[&str]) -> Pglock {
    let dsn = format!("postgresql://u@127.0.0.1:{port}/x?sslmode=disable");
    Pglock::alone().env("PGLOCK_DSN", dsn).args(arguments)
}

#[track_caller]
fn run_against(reply: Vec<u8>, arguments: &[&str]) -> Output {
    pglock(Liar::with(reply).listen(), arguments).output()
}

const NO_WAIT_RUN: [&str; 6] = ["run", "-k", "x", "--no-wait", "echo", "ran"];

/// A complete story is believed; otherwise the other tests would prove nothing.
#[test]
fn a_complete_lie_is_believed() {
    let output = run_against(granting(&[]), &["run", "-k", "x", "sh", "-c", "exit 5"]);
    output.code(5).silent();
}

/// P40: what is no integer is no slot, although the lock is proven.
#[test]
fn a_slot_is_an_integer() {
    let run = ["run", "-k", "x", "--slots", "3", "--no-wait", "sh", "-c", "exit 5"];
    run_against(granting(&[("got", "2")]), &run).code(5).silent();
    for slot in ["inf", "1e308", "1.5"] {
        let output = run_against(granting(&[("got", slot)]), &run);
        assert_ne!(output.status.code(), Some(5), "{slot}");
    }
}

/// P40, P42: a reply without a row counts as no reply, not even as a pooler's.
#[test]
fn a_reply_without_a_row_is_refused() {
    let nothing = [message(b'C', b"SELECT 0\0"), message(b'Z', b"I")].concat();
    let line = run_against(nothing.clone(), &NO_WAIT_RUN).code(78).stderr_line();
    assert_eq!(
        line,
        "the server returned no row for the first query, as no PostgreSQL server does"
    );
    run_against(nothing.clone(), &["list"]).code(0);
    run_against(nothing, &["check"]).code(78);
}

/// P42: an SQLSTATE has five characters, except in a lie.
#[test]
fn a_short_sqlstate_is_an_error_like_any_other() {
    for code in ["", "4", "4\u{e9}", "\u{e9}"] {
        let fields = [(b'S', &b"ERROR"[..]), (b'C', code.as_bytes()), (b'M', b"no")];
        let error = [report(b'E', &fields), message(b'Z', b"I")].concat();
        assert_eq!(run_against(error, &NO_WAIT_RUN).code(69).stderr_line(), "no");
    }
}

/// P42: an error is reported at once, although the reply never ends.
#[test]
fn an_unfinished_error_is_reported_at_once() {
    let fields = [(b'S', &b"ERROR"[..]), (b'C', b"53000"), (b'M', b"no")];
    let output = run_against(report(b'E', &fields), &NO_WAIT_RUN);
    assert_eq!(output.code(69).stderr_line(), "no");
    assert!(output.took < Duration::from_secs(8), "{output}");
}

/// P42: a row that cannot be read ends the query, and the library closes the session only when its reply has ended.
#[test]
fn a_session_with_an_unfinished_reply_is_closed() {
    let row_without_its_values = [description(&[b"x".to_vec()]), message(b'D', &[0, 5])].concat();
    for observer in [&["list"][..], &["check"], &["history"], &["evict", "-k", "x", "--yes"]] {
        let port = Liar::with(row_without_its_values.clone()).listen();
        let output = pglock(port, observer).env("PGLOCK_HEARTBEAT", "0.5").output();
        assert!(matches!(output.status.code(), Some(69 | 78)), "{output}");
    }
}

/// P42: a server claims that another client holds key number 999 of one.
#[test]
fn a_number_out_of_range_is_treated_as_a_key() {
    for got in ["999", "-5", "1e300", "NaN", "18446744073709551616"] {
        for options in [
            &["--no-wait"][..],
            &["--wait", "0.2"],
            &["-k", "y", "--wait", "0.2"],
            &["--slots", "3", "--wait", "1"],
        ] {
            let conflict = granting(&[("got", got), ("proven", "f")]);
            let run = [&["run", "-k", "x"], options, &["--heartbeat", "0.2", "echo", "ran"]].concat();
            let output = run_against(conflict, &run);
            // Too large a number of a slot counts as the last slot, which is not proven.
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
    run_against(slot, &run).code(0);
}

/// P42: missing columns, and times that no calendar has.
#[test]
fn impossible_holders_are_shown_as_far_as_possible() {
    for time in ["1e300", "-1e300", "inf", "NaN", "253402300800", "x"] {
        let columns = [
            ("got", "0"),
            ("pid", "8"),
            ("usename", "u"),
            ("application_name", "pglock:x h:1"),
            ("connected", time),
            ("note", "/* pglock holds 0.000 job x */ "),
            ("asked", time),
            ("now", "0"),
            ("classid", "1"),
            ("objid", "1"),
            ("objsubid", "1"),
            ("granted", "t"),
            ("waiting_since", time),
        ];
        let line = run_against(granting(&columns), &NO_WAIT_RUN).code(75).stderr_line();
        assert!(line.contains("is held by h:1 (backend 8"), "{line}");
        run_against(granting(&columns), &["list"]).code(0);
        run_against(granting(&columns), &["list", "--json"]).code(0);
    }
    let line = run_against(granting(&[("got", "0")]), &NO_WAIT_RUN)
        .code(75)
        .stderr_line();
    assert!(line.contains("is held by"), "{line}");
    run_against(reply(&[("x", "y")]), &["list"]).code(0);
    let standby = "postgresql://u@127.0.0.1/x?sslmode=disable&target_session_attrs=standby";
    let port = Liar::with(reply(&[("x", "t")])).listen().to_string();
    let output = Pglock::alone()
        .env("PGPORT", port)
        .args(["run", "-k", "x", "-d", standby, "true"])
        .output();
    output.code(78);
}

/// The memory that a pglock may need.
const MOST_MEMORY_KB: u64 = 128 * 1024;

/// P42: a flood ends the session and does not fill the memory.
#[test]
fn no_flood_fills_the_memory() {
    let floods = [Flood::AtStartup, Flood::InsteadOfReply, Flood::WhileHolding];
    thread::scope(|scope| {
        for flood in floods {
            scope.spawn(move || Endless::ALL.iter().for_each(|what| assert_endured(flood, *what)));
        }
    });
}

/// P42: nor do notifications in each reply of a wait, which nobody reads.
#[test]
fn notifications_in_each_reply_do_not_fill_the_memory() {
    let notification = message(b'A', &[&[0; 4][..], &[b'c'; 60_000], b"\0p\0"].concat());
    let refusal = granting(&[("got", "0"), ("proven", "f")]);
    let liar = Liar::with([notification.repeat(60), refusal].concat());
    let run = pglock(liar.listen(), &["run", "-k", "x", "--wait", "5"]);
    let mut running = run.arg("true").spawn();
    let mut memory = 0;
    let has_ended = until(Duration::from_secs(60), || {
        memory = memory.max(peak_memory_kb(running.pid()));
        !running.lives()
    });
    assert!(has_ended);
    let output = running.finish();
    assert!(
        output.code(75).stdout.is_empty() && memory < MOST_MEMORY_KB,
        "{memory} kB\n{output}"
    );
    println!("{memory} kB");
}

#[track_caller]
fn assert_endured(flood: Flood, what: Endless) {
    use Endless::*;
    let liar = Liar {
        reply: granting(&[]),
        flood: Some((flood, what)),
    };
    // What counts as a reply is cut off at a length, and by nothing else here; the rest by a missing heartbeat reply.
    let is_cut_off = matches!(
        (flood, what),
        (Flood::AtStartup, Notices | Parameters | Notifications | OneMessage)
            | (Flood::InsteadOfReply, Rows | Completions | OneMessage)
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
        memory = memory.max(peak_memory_kb(running.pid()));
        !running.lives()
    });
    assert!(has_ended, "{flood:?} {what:?}");
    let output = running.finish();
    assert!(memory < MOST_MEMORY_KB, "{flood:?} {what:?}: {memory} kB\n{output}");
    let stderr = String::from_utf8_lossy(&output.stderr);
    let is_reported = stderr.contains("the server sent more than 4 MiB in reply to one query");
    assert!(is_reported || !is_cut_off, "{flood:?} {what:?}: {output}");
    let expected: &[i32] = match flood {
        // The flood can start right after the grant, and the reply to a heartbeat get through, or not.
        Flood::WhileHolding | Flood::Trickle => &[5, 69, 74],
        Flood::AtStartup | Flood::InsteadOfReply => &[69],
    };
    let code = output.status.code();
    assert!(
        code.is_some_and(|code| expected.contains(&code)),
        "{flood:?} {what:?}: {output}"
    );
}

/// P20: other messages of the server are no reason to believe that it does not respond.
#[test]
fn heartbeats_get_through_a_trickle() {
    let liar = Liar {
        reply: granting(&[]),
        flood: Some((Flood::Trickle, Endless::Notices)),
    };
    let limits = ["--heartbeat", "1.5", "--kill-after", "0.2"];
    let run = pglock(liar.listen(), &["run", "-k", "x"])
        .args(limits)
        .sh("sleep 4; exit 5");
    run.output().code(5).silent();
}
