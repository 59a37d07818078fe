//! The numbers of `docs/promises.md` and the tests that name them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn every_number_is_a_promise_and_every_promise_has_a_test() {
    let listed = listed();
    let named = named(&Path::new(ROOT).join("tests"));
    let unknown: Vec<_> = named.difference(&listed).collect();
    assert!(unknown.is_empty(), "not in docs/promises.md: {unknown:?}");
    let untested: Vec<_> = listed.difference(&named).collect();
    assert!(untested.is_empty(), "no test names {untested:?}");
}

/// Returns the numbers of the promises, which stand in ascending order.
fn listed() -> BTreeSet<u32> {
    let text = fs::read_to_string(Path::new(ROOT).join("docs/promises.md")).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| P"));
    let numbers: Vec<u32> = rows
        .map(|row| row.split(' ').next().unwrap().parse().unwrap())
        .collect();
    assert!(numbers.is_sorted_by(|one, next| one < next), "{numbers:?}");
    numbers.into_iter().collect()
}

/// Returns the numbers that the doc comments below a directory name.
fn named(directory: &Path) -> BTreeSet<u32> {
    let mut numbers = BTreeSet::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            numbers.extend(named(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let comments = text.lines().map(str::trim_start);
            let comments = comments.filter(|line| line.starts_with("///") || line.starts_with("//!"));
            numbers.extend(comments.flat_map(numbers_in));
        }
    }
    numbers
}

fn numbers_in(line: &str) -> Vec<u32> {
    let parts = line.split(|c: char| !c.is_ascii_alphanumeric());
    parts.filter_map(|part| part.strip_prefix('P')?.parse().ok()).collect()
}
