//! `pglock key`, which needs no server, and the SQL that it prints, evaluated by one.

use crate::support::pglock::Pglock;
use crate::support::server::{Server, rows};
use std::process::Stdio;

fn key(arguments: &[&str]) -> String {
    Pglock::alone().arg("key").args(arguments).output().stdout()
}

/// P60
#[test]
fn the_golden_vectors() {
    assert_eq!(key(&["backup"]), "6111399565520850680\n");
    let all = [
        "backup",
        "a name with blanks",
        "one,two",
        "schlüssel-鍵",
        "name:007",
        "42",
        "-5",
        "1,2",
    ];
    let numbers = "6111399565520850680\n6356600985533740484\n-6812940812565345955\n955943806777422632\n\
                   7106483370208201996\n42\n-5\n1,2\n";
    assert_eq!(key(&all), numbers);
    assert_eq!(
        key(&["--", "-1,2", "-9223372036854775808"]),
        "-1,2\n-9223372036854775808\n"
    );
}

/// P61
#[test]
fn what_only_looks_like_a_number_is_refused() {
    for given in [
        "",
        "name:",
        "007",
        "+5",
        " 5",
        "1, 2",
        "9223372036854775808",
        "1,99999999999",
    ] {
        let output = Pglock::alone().args(["key", "--", given]).output();
        let line = output.code(64).stderr_line();
        assert!(given.is_empty() || line.contains(given), "{output}");
    }
}

/// P62, under either setting of `standard_conforming_strings`.
#[test]
fn the_server_computes_the_same_numbers() {
    let names = [
        "backup",
        "o'clock",
        r"back\slash",
        r"both \' and ''",
        "\"double\" $$ $1 %s",
        "two\nlines\tand a tab",
        "schlüssel-鍵-🔑",
        "name:007",
        "name:name:x",
        " a blank ",
        "-9223372036854775808",
        "0",
    ];
    let mut arguments = vec!["--"];
    arguments.extend(names);
    let numbers = key(&arguments);
    let server = Server::shared();
    if server.version() < 11 {
        println!("SKIPPED: PostgreSQL before 11 has no sha256() to compare with");
        return;
    }
    for setting in ["on", "off"] {
        let mut client = server.client();
        let set = format!("SET standard_conforming_strings = {setting}; SET escape_string_warning = off");
        client.batch_execute(&set).unwrap();
        for (name, number) in names.iter().zip(numbers.lines()) {
            let expression = key(&["--sql", "--", name]);
            let computed = rows(&mut client, &format!("SELECT {expression}"));
            assert_eq!(computed, [[number]], "{name:?}: {expression}");
        }
    }
    // A pair is two arguments, as pg_advisory_lock takes them.
    let pair = key(&["--sql", "--", "-1,2147483647"]);
    assert_eq!(server.sql(&format!("SELECT {pair}")), [["-1", "2147483647"]]);
}

/// A reader that closes the pipe early (`| head`) is not an error.
#[test]
fn a_closed_pipe_is_no_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Pglock::alone().args(["key", "backup"]);
    let command = command.command().stdin(Stdio::null()).stdout(writer);
    let output = command
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap();
    assert_eq!((output.status.code(), &*output.stderr), (Some(0), &b""[..]));
}
