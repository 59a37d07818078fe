//! What one writes in an afternoon with the client library that pglock has: connect, try, name the holder or run the
//! job, release, exit as the job did. It supervises nothing and proves nothing.
//!
//! `naive CONNECTION KEY JOB...`; with `QUIET` in the environment it does not look for the holder.
//!
//! With `PGLOCK_FIRST_QUERY`, it is the prototype of a pglock that has nothing else in it: it sends this query, which
//! is pglock's, in place of its own, waits in the queue if the key is held (but not with `NO_WAIT`), and starts the
//! job if the lock is proven. In the query and the connection string, `KEY` stands for the key.
//!
//! With `PGLOCK_WAIT_QUERY` as well, it waits as pglock does: this is the query of a waiter, which it repeats until the
//! lock is granted.
//!
//! With `PGLOCK_SUPERVISED` as well, it is that prototype with what a pglock cannot do without: a command line of nine
//! commands and 94 options, read by clap; handlers for ten signals; the session on a thread of its own, since its calls
//! block and cannot be interrupted; and a main thread that waits for signals, the session and the job at once.
#![expect(clippy::unwrap_used, reason = "it has no errors to report")]
#![expect(clippy::print_stderr, reason = "it names the holder")]

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use postgres::{Client, NoTls, SimpleQueryMessage};
use signal_hook::consts::{SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2, SIGWINCH};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus, exit};

fn main() {
    let words = std::env::args().skip(1);
    let is_supervised = std::env::var_os("PGLOCK_SUPERVISED").is_some();
    let arguments: Vec<String> = if is_supervised {
        read_command_line(words)
    } else {
        words.collect()
    };
    let [connection, key, job @ ..] = arguments.as_slice() else {
        exit(64);
    };
    let mut command = Command::new(&job[0]);
    command.args(&job[1..]);
    exit(if is_supervised {
        supervise(command, |start_job| hold(connection, key, start_job))
    } else {
        hold(connection, key, &mut || exit_code(command.status().unwrap()))
    });
}

fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or(1)
}

/// Starts the job under the lock, and returns its exit status; 75 if another client holds the lock.
fn hold(connection: &str, key: &str, start_job: &mut dyn FnMut() -> i32) -> i32 {
    let mut client = Client::connect(&connection.replace("KEY", key), NoTls).unwrap();
    let first_query = std::env::var("PGLOCK_FIRST_QUERY").ok();
    let number: i64 = key.parse().unwrap();
    let is_acquired = match &first_query {
        Some(query) => acquire_proven(&mut client, &query.replace("KEY", key), number),
        None => {
            let row = client.query_one("SELECT pg_try_advisory_lock($1)", &[&number]);
            row.unwrap().get(0)
        }
    };
    if !is_acquired {
        if std::env::var_os("QUIET").is_none() {
            eprintln!("held by {}", holder(&mut client, number));
        }
        return 75;
    }
    let status = start_job();
    if first_query.is_some() {
        client
            .simple_query(&format!("SELECT pg_advisory_unlock({number})"))
            .unwrap();
    } else {
        client.query_one("SELECT pg_advisory_unlock($1)", &[&number]).unwrap();
    }
    status
}

/// Names of options and commands.
const NAMES: &str = "alpha bravo charlie delta echo foxtrot golf hotel india juliett kilo lima mike november oscar \
                     papa quebec romeo sierra tango uniform victor whiskey xray yankee zulu one two three four";

/// Reads a command line with about as many commands and options as pglock has.
fn read_command_line(words: impl Iterator<Item = String>) -> Vec<String> {
    let option = |name: &'static str| clap::Arg::new(name).long(name).help("What it does, in a sentence.");
    let subcommand = |name: &'static str, options: usize| {
        let options = NAMES.split(' ').take(options).map(option);
        clap::Command::new(name)
            .about("What it does, in a sentence.")
            .args(options)
    };
    let others = NAMES.split(' ').take(8).map(|name| subcommand(name, 8));
    let run = subcommand("run", 30).arg(clap::Arg::new("words").num_args(1..).trailing_var_arg(true));
    let pglock = clap::Command::new("pglock").subcommand(run).subcommands(others);
    let words = ["pglock", "run", "--"].map(str::to_owned).into_iter().chain(words);
    let mut matches = pglock.get_matches_from(words);
    let (_, mut run) = matches.remove_subcommand().unwrap();
    run.remove_many("words").unwrap().collect()
}

/// Runs the session on a thread of its own, which the main thread tells the exit status of the job.
fn supervise(mut job: Command, session: impl FnOnce(&mut dyn FnMut() -> i32) -> i32 + Send) -> i32 {
    let (signals, handler) = UnixStream::pair().unwrap();
    for signal in [
        SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH, SIGTSTP, SIGCONT, SIGCHLD,
    ] {
        signal_hook::low_level::pipe::register(signal, handler.try_clone().unwrap()).unwrap();
    }
    let (session_events, their_end) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let status = session(&mut || {
                send(&their_end, ACQUIRED);
                i32::from(receive(&their_end))
            });
            send(&their_end, status as u8);
        });
        let mut child = None;
        loop {
            let mut watched = [signals.as_fd(), session_events.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            if poll(&mut watched, PollTimeout::NONE).is_err() {
                // A signal; what its handler has written is there now.
                continue;
            }
            let [is_signalled, has_news] = watched.map(|fd| fd.any().unwrap());
            if is_signalled {
                receive(&signals);
                let ended = child.as_mut().and_then(|child: &mut Child| child.try_wait().unwrap());
                if let Some(status) = ended {
                    send(&session_events, exit_code(status) as u8);
                }
            }
            if has_news {
                match receive(&session_events) {
                    ACQUIRED => child = Some(job.spawn().unwrap()),
                    status => return i32::from(status),
                }
            }
        }
    })
}

/// What the session reports when the job may start; otherwise it reports an exit status.
const ACQUIRED: u8 = 255;

fn send(mut to: &UnixStream, byte: u8) {
    to.write_all(&[byte]).unwrap();
}

fn receive(mut from: &UnixStream) -> u8 {
    let mut byte = [0];
    from.read_exact(&mut byte).unwrap();
    byte[0]
}

/// Sends pglock's first query. Returns whether the lock is acquired.
fn acquire_proven(client: &mut Client, query: &str, key: i64) -> bool {
    let reply = client.simple_query(query).unwrap();
    let is_proven = reply
        .iter()
        .any(|message| matches!(message, SimpleQueryMessage::Row(row) if row.columns()[0].name() == "proven"));
    if is_proven || std::env::var_os("NO_WAIT").is_some() {
        return is_proven;
    }
    match std::env::var("PGLOCK_WAIT_QUERY") {
        Ok(query) => {
            let query = query.replace("KEY", &key.to_string());
            while !is_granted(&client.simple_query(&query).unwrap()) {}
        }
        Err(_) => {
            client.simple_query(&format!("SELECT pg_advisory_lock({key})")).unwrap();
        }
    }
    true
}

/// Returns whether the reply to a waiter's query says that it has the lock. It is not asked who had released it.
fn is_granted(reply: &[SimpleQueryMessage]) -> bool {
    reply.iter().any(|message| match message {
        SimpleQueryMessage::Row(row) => row.try_get("got").is_ok_and(|got| got != Some("0")),
        _ => false,
    })
}

fn holder(client: &mut Client, key: i64) -> String {
    let sql = "SELECT a.application_name, a.pid FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid \
               WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 \
               AND l.classid::bigint = ($1::bigint >> 32) & 4294967295 AND l.objid::bigint = $1::bigint & 4294967295";
    match client.query_opt(sql, &[&key]).unwrap() {
        Some(row) => format!("{} (backend {})", row.get::<_, String>(0), row.get::<_, i32>(1)),
        None => "nobody any more".into(),
    }
}
