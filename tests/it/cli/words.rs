//! Random command lines, variables, service files and password files, given to the whole of pglock.
//!
//! Whatever they contain, pglock exits with a documented status and one line that says what is wrong, without any part
//! of a password. There is no server, and no name is resolved. `PGLOCK_FUZZ_SEED`, `PGLOCK_FUZZ_COUNT` and
//! `PGLOCK_FUZZ_CASE` mean the same as in `hostile_server`.

use crate::hostile_server::random::Random;
use crate::hostile_server::seeds;
use crate::support::pglock::{Output, Pglock};
use crate::support::server::free_port;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Stands wherever a password belongs, and where one may be given by mistake.
const SECRET: &str = "S3kR1t";

const OPTIONS: [&str; 35] = [
    "--key",
    "-k",
    "--shared",
    "-s",
    "--no-wait",
    "-n",
    "--wait",
    "-w",
    "-E",
    "--slots",
    "--fair",
    "--token",
    "--min-hold",
    "--on-lost",
    "--kill-after",
    "--heartbeat",
    "--poll",
    "--close",
    "--stop-signal",
    "--scope",
    "--hash",
    "--connect-timeout",
    "-q",
    "-v",
    "--json",
    "--yes",
    "--sql",
    "--note",
    "--record",
    "--once-per",
    "--table",
    "--grant",
    "--print",
    "--ok-within",
    "--dbname",
];

const VALUES: [&str; 25] = [
    "",
    "0",
    "1",
    "3",
    "-1",
    "1.5",
    "9s",
    "1e9",
    "99999999999999999999",
    "5 parsecs",
    "stop",
    "ignore",
    "auto",
    "session",
    "transaction",
    "crc32",
    "rails-migrate",
    "all",
    "1,2",
    "name:7",
    "WINCH",
    "backup",
    "\u{e4}\u{f6}",
    "a b",
    "x'y\"z",
];

const VARIABLES: [&str; 23] = [
    "PGLOCK_WAIT",
    "PGLOCK_CONFLICT_EXIT_CODE",
    "PGLOCK_KILL_AFTER",
    "PGLOCK_HEARTBEAT",
    "PGLOCK_ON_LOST",
    "PGLOCK_SCOPE",
    "PGLOCK_HASH",
    "PGLOCK_POLL",
    "PGLOCK_STOP_SIGNAL",
    "PGLOCK_CONNECT_TIMEOUT",
    "PGLOCK_TABLE",
    "PGSSLMODE",
    "PGCONNECT_TIMEOUT",
    "PGTARGETSESSIONATTRS",
    "PGREQUIREAUTH",
    "PGCHANNELBINDING",
    "PGSSLNEGOTIATION",
    "PGGSSENCMODE",
    "PGSSLSNI",
    "PGSSLCERTMODE",
    "PGLOADBALANCEHOSTS",
    "PGOPTIONS",
    "PGAPPNAME",
];

/// P82, P91
#[test]
fn random_input_causes_one_line_without_a_secret() {
    let directory = tempfile::tempdir().unwrap();
    let port = free_port();
    let mut codes: BTreeMap<Option<i32>, usize> = BTreeMap::new();
    let seeds = seeds(150);
    for seed in &seeds {
        let output = case(*seed, directory.path(), port);
        *codes.entry(output.status.code()).or_default() += 1;
        let violation = violation(&output);
        assert!(
            violation.is_none(),
            "PGLOCK_FUZZ_CASE={seed} repeats it: {violation:?}\n{output}"
        );
    }
    println!("{} command lines, exit codes {codes:?}", seeds.len());
    // Some must get past the parser, or the rest is untested.
    assert!(
        seeds.len() < 100 || codes.contains_key(&Some(69)) && codes.contains_key(&Some(78)),
        "{codes:?}"
    );
}

/// Returns what is wrong with the output, if anything.
fn violation(output: &Output) -> Option<String> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let stdout = String::from_utf8_lossy(&output.stdout);
    let is_ours = |line: &str| line.starts_with("pglock: ") && !line.contains(char::is_control);
    match output.status.code() {
        Some(0 | 64 | 69 | 78) => {}
        other => return Some(format!("exits with {other:?}")),
    }
    if !stderr.lines().all(is_ours) {
        return Some("a line that is not pglock's".into());
    }
    if output.status.code() != Some(0) && stderr.is_empty() {
        return Some("prints nothing".into());
    }
    (stderr.contains(SECRET) || stdout.contains(SECRET)).then(|| "shows a password".into())
}

fn case(seed: u64, directory: &Path, port: u16) -> Output {
    let random = &mut Random::from_seed(seed);
    let mut pglock = Pglock::alone()
        .env("HOME", directory)
        .env("PGHOST", random.one_of(&["127.0.0.1", "/nonexistent"]))
        .env("PGPORT", port.to_string())
        .env("PGPASSWORD", SECRET);
    for _ in 0..random.below(3) {
        pglock = pglock.env(random.one_of(&VARIABLES), value(random));
    }
    if random.below(3) == 0 {
        let file = file(directory, "service", &service(random), 0o644);
        pglock = pglock.env("PGSERVICEFILE", file).env("PGSERVICE", "s");
    }
    if random.below(3) == 0 {
        let mode = random.one_of(&[0o600, 0o600, 0o644]);
        let file = file(directory, "passwords", &passwords(random, port), mode);
        pglock = pglock.env("PGPASSFILE", file).env("PGPASSWORD", "");
    }
    if random.below(2) == 0 {
        pglock = pglock.env("PGLOCK_DSN", dsn(random, port));
    }
    let command = random.one_of(&[
        "run", "run", "run", "run", "list", "check", "evict", "key", "init", "history", "",
    ]);
    pglock = pglock.arg(command);
    if random.below(4) > 0 && ["run", "evict"].contains(&command) {
        pglock = pglock.args(["--key", "x"]);
    }
    for _ in 0..random.below(4) {
        pglock = option(pglock, random, port);
    }
    match command {
        "run" if random.below(8) > 0 => pglock.args(["--", "true"]).output(),
        _ => pglock.output(),
    }
}

/// Adds an option with or without its value, or an argument that is not an option.
fn option(pglock: Pglock, random: &mut Random, port: u16) -> Pglock {
    match random.below(10) {
        0 => pglock.args(["--dsn", &dsn(random, port)]),
        // Given in the wrong place.
        1 => pglock.arg(dsn(random, port)),
        2 => pglock.arg(format!("{}={}", random.one_of(&OPTIONS), dsn(random, port))),
        3 => pglock.arg(random.one_of(&["-k", "-w", "-E"]).to_owned() + &dsn(random, port)),
        4 => pglock.arg(random.one_of(&OPTIONS)).arg(dsn(random, port)),
        5 => pglock.arg(random.one_of(&OPTIONS)),
        6 => pglock.arg(value(random)),
        _ => pglock.arg(random.one_of(&OPTIONS)).arg(random.one_of(&VALUES)),
    }
}

fn value(random: &mut Random) -> String {
    match random.below(6) {
        0 => format!("postgresql://u:{SECRET}@127.0.0.1/x"),
        1 => (0..random.below(12))
            .map(|_| char::from(random.byte() % 94 + 33))
            .collect(),
        _ => random.one_of(&VALUES).to_owned(),
    }
}

/// Returns a connection string with a more or less carefully quoted password. Its host is 127.0.0.1 or missing.
fn dsn(random: &mut Random, port: u16) -> String {
    let odd = random.one_of(&["", ":", "%", "%41", "=", "&x", "'", " ", "\\", "\""]);
    let secret = format!("{SECRET}{odd}{SECRET}");
    let more = random.one_of(&[
        "",
        "sslmode=require",
        "sslmode=x",
        "bogus=1",
        "connect_timeout=1",
        "port=x",
        "%zz=%",
    ]);
    let name = random.one_of(&["password", "password", "pasword", "Pwd", "PGPASSWORD"]);
    match random.below(4) {
        0 => format!("postgresql://u:{secret}@127.0.0.1:{port}/d?{more}"),
        1 => format!("host=127.0.0.1 port={port} user=u {name}={secret} {more}"),
        2 => format!("{more} host=127.0.0.1 port={port} password='{secret}' user=u"),
        _ => format!("postgres://127.0.0.1:{port}/d?user=u&password={secret}&{more}"),
    }
}

fn service(random: &mut Random) -> String {
    let lines = [
        "host=127.0.0.1".to_owned(),
        "user=u".into(),
        "sslmode=x".into(),
        "bogus=1".into(),
        "# comment".into(),
        "ldap://x".into(),
        format!("password={SECRET}"),
        format!("password: {SECRET}"),
        format!("password {SECRET}=x"),
        format!("pass word={SECRET}"),
    ];
    let name = random.one_of(&["s", "s", "t"]);
    let lines = (0..random.below(5)).map(|_| lines[random.below(lines.len())].clone() + "\n");
    format!("[{name}]\n{}", lines.collect::<String>())
}

fn passwords(random: &mut Random, port: u16) -> String {
    let lines = [
        format!("*:*:*:*:{SECRET}"),
        format!("127.0.0.1:{port}:*:u:{SECRET}"),
        SECRET.to_owned(),
        format!(":::::{SECRET}\\"),
        format!("\\{SECRET}:\u{fffd}"),
    ];
    (0..random.below(4))
        .map(|_| lines[random.below(lines.len())].clone() + "\n")
        .collect()
}

/// Writes a file for this case, and returns its path.
fn file(directory: &Path, name: &str, text: &str, mode: u32) -> String {
    let path = directory.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path.to_str().unwrap().to_owned()
}
