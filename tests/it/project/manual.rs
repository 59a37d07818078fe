//! The manual: what man(1) shows, and where `make install` puts it.

use crate::support::command::command;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn every_page_is_free_of_errors_and_fits_80_columns() {
    for page in pages() {
        let lint = command("mandoc")
            .args(["-T", "lint", "-W", "error"])
            .arg(&page)
            .output()
            .expect("mandoc is installed by scripts/setup");
        let messages = String::from_utf8_lossy(&lint.stdout);
        assert!(lint.status.success(), "{messages}");
        let text = rendered(&page);
        assert!(text.lines().count() > 20, "{text}");
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{}: {line:?}", page.display());
        }
    }
}

#[test]
fn every_page_has_its_sections() {
    for page in pages() {
        let text = rendered(&page);
        let headings: BTreeSet<&str> = text
            .lines()
            .filter(|line| line.starts_with(|c: char| c.is_alphabetic()))
            .collect();
        for heading in ["NAME", "SYNOPSIS", "DESCRIPTION", "EXIT STATUS", "EXAMPLES", "SEE ALSO"] {
            assert!(headings.contains(heading), "{} lacks {heading}", page.display());
        }
    }
}

/// The binary is a stand-in.
#[test]
fn make_installs_every_page_and_removes_it() {
    let root = TempDir::new().expect("a directory");
    let binary = root.path().join("pglock");
    fs::write(&binary, "").expect("the directory is writable");
    let make = |target: &str| {
        let status = command("make")
            .current_dir(ROOT)
            .args(["--silent", target, "PREFIX=/usr"])
            .arg(format!("DESTDIR={}/root", root.path().display()))
            // Not built anew, however old it is.
            .arg(format!("BINARY={}", binary.display()))
            .arg(format!("--old-file={}", binary.display()))
            .status()
            .expect("make runs");
        assert!(status.success(), "make {target}");
    };
    make("install");
    let manual = root.path().join("root/usr/share/man/man1");
    for page in pages() {
        let installed = manual.join(page.file_name().expect("a file"));
        assert!(installed.is_file(), "{} is missing", installed.display());
    }
    assert!(root.path().join("root/usr/bin/pglock").is_file());
    make("uninstall");
    assert_eq!(files(&root.path().join("root")), Vec::<PathBuf>::new());
}

/// Returns the committed pages.
fn pages() -> Vec<PathBuf> {
    let mut pages = files(&Path::new(ROOT).join("completions"));
    pages.retain(|file| file.extension().is_some_and(|extension| extension == "1"));
    assert!(pages.len() >= 7, "{pages:?}");
    pages
}

/// Returns the text of a page on a terminal of 80 columns.
fn rendered(page: &Path) -> String {
    let output = command("mandoc")
        .args(["-T", "utf8", "-O", "width=80"])
        .arg(page)
        .output()
        .expect("mandoc is installed");
    let text = String::from_utf8(output.stdout).expect("mandoc prints UTF-8");
    // Bold and underlined characters are overstrikes: a character, a backspace, and the character that stays.
    let mut plain = String::new();
    for character in text.chars() {
        match character {
            '\u{8}' => drop(plain.pop()),
            _ => plain.push(character),
        }
    }
    plain
}

/// Returns the files of a directory and of those in it.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("the directory is readable");
    let paths = entries.map(|entry| entry.expect("the directory is readable").path());
    paths
        .flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] })
        .collect()
}
