//! What pglock costs, compared with the floor, a minimal client written by hand, and with a naive one.
//!
//! | file | contents |
//! |---|---|
//! | `main` | the command line, and where the results go |
//! | `works` | the tasks, who does them, and the bounds |
//! | `growth` | how cost grows with the number of holders and waiters |
//! | `aging` | what waiting behind a pooler costs by how long it has lasted |
//! | `timing` | whole processes, taking turns; medians and quartiles |
//! | `processes` | memory and CPU time of a process |
//! | `floor.c`, `floor_tls.rs` | the floor, in plain text and with TLS |
//! | `naive.rs` | a client written naively with pglock's client library |
//!
//! `make bench` and `make bench-growth` write their results beside this file; `make bench-check` only compares them
//! with the bounds. Everything runs on this machine, on servers of its own.

#![expect(unreachable_pub, clippy::missing_errors_doc, reason = "a benchmark has no API")]
#![expect(clippy::unwrap_used, reason = "a failed measurement panics")]
#![expect(clippy::print_stdout, reason = "the results are the output")]

mod aging;
mod growth;
mod processes;
#[path = "../tests/it/support/mod.rs"]
#[expect(dead_code, reason = "the tests need more of it")]
mod support;
mod timing;
mod works;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Who does the works.
#[derive(Clone)]
pub struct Programs {
    /// pglock as `make install` installs it.
    pglock: PathBuf,
    /// The static binary of the tarball: `PGLOCK_BENCH`, or else the same.
    released: PathBuf,
    floor: PathBuf,
    floor_tls: PathBuf,
    naive: PathBuf,
}

impl Programs {
    fn build(directory: &Path) -> Programs {
        let floor = directory.join("built-floor");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/floor.c");
        let built = Command::new("cc")
            .args(["-O2", "-static", "-o"])
            .arg(&floor)
            .arg(source)
            .status();
        assert!(built.unwrap().success(), "the floor does not build");
        let pglock = PathBuf::from(env!("CARGO_BIN_EXE_pglock"));
        let released = std::env::var_os("PGLOCK_BENCH").map(PathBuf::from);
        let installed = |name, program: &Path| install(program, &directory.join(name));
        Programs {
            released: installed("static", released.as_deref().unwrap_or(&pglock)),
            pglock: installed("pglock", &pglock),
            floor: installed("floor", &floor),
            floor_tls: installed("floor-tls", &support::probe::example("floor-tls")),
            naive: installed("naive", &support::probe::example("naive")),
        }
    }
}

/// Copies a program, as install(1) does, and returns the copy. A program that the linker has just written is cached by
/// the kernel in small pieces, and can start more slowly than one that was written or read as a whole.
fn install(program: &Path, copy: &Path) -> PathBuf {
    std::fs::copy(program, copy).unwrap();
    copy.to_owned()
}

fn main() -> ExitCode {
    let directory = tempfile::tempdir().unwrap();
    let programs = Programs::build(directory.path());
    let asked: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches");
    match asked.first().map(String::as_str) {
        None => {
            let results = works::measure(&programs);
            let table = works::table(&results);
            print!("{table}");
            std::fs::write(here.join("results.txt"), table).unwrap();
        }
        Some("growth") => {
            let table = growth::measure(&programs);
            print!("{table}");
            std::fs::write(here.join("growth.txt"), table).unwrap();
        }
        Some("aging") => {
            let table = aging::measure(&programs);
            std::fs::write(here.join("aging.txt"), table).unwrap();
        }
        Some("check") => {
            let results = works::measure(&programs);
            print!("{}", works::table(&results));
            let worse: Vec<_> = results.iter().flat_map(works::Work::worse).collect();
            worse.iter().for_each(|words| println!("WORSE: {words}"));
            return ExitCode::from(u8::from(!worse.is_empty()));
        }
        Some(other) => panic!("{other:?} is not known: nothing, growth, aging, or check"),
    }
    ExitCode::SUCCESS
}
