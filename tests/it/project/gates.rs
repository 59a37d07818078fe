//! What a release needs beside its behaviour: the oldest Rust, the changelog, and the files of the packages.
//!
//! Licences, sources and known vulnerabilities of the crates are checked by cargo-deny (`make audit`).

use crate::support::command::command;
use serde_json::Value;
use std::fs;
use std::path::Path;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// P94: no crate needs a newer one, and the README names the version of Cargo.toml.
#[test]
fn the_oldest_rust_is_supported() {
    let stated = env!("CARGO_PKG_RUST_VERSION");
    for package in packages() {
        let wanted = text(&package, "rust_version");
        assert!(
            version(&wanted) <= version(stated),
            "{} needs Rust {wanted}",
            text(&package, "name")
        );
    }
    assert!(read("README.md").contains(&format!("Rust {stated} or later")));
}

#[test]
fn the_changelog_has_the_version() {
    let changelog = read("CHANGELOG.md");
    let mut headings = changelog.lines().filter_map(|line| line.strip_prefix("## "));
    assert_eq!(headings.next(), Some("[Unreleased]"));
    let newest = headings.next().unwrap();
    let date = newest
        .strip_prefix(&format!("[{}] - ", env!("CARGO_PKG_VERSION")))
        .unwrap_or_else(|| panic!("{newest:?} is not the version of Cargo.toml"));
    let numbers: Vec<&str> = date.split('-').collect();
    assert_eq!(numbers.iter().map(|part| part.len()).collect::<Vec<_>>(), [4, 2, 2]);
}

#[test]
fn the_debian_package_names_files_that_are_there() {
    let manifest = read("Cargo.toml");
    let (_, assets) = manifest.split_once("\nassets = [\n").unwrap();
    let (assets, _) = assets.split_once("\n]").unwrap();
    let sources: Vec<String> = assets.lines().map(|line| quoted(line).remove(0)).collect();
    // The results of a build do not exist yet.
    for file in sources.iter().filter(|file| !file.starts_with("target/")) {
        let path = Path::new(ROOT).join(file.trim_end_matches("/*").trim_end_matches("/*.1"));
        assert!(path.exists(), "{file} is missing");
    }
    for file in fs::read_dir(Path::new(ROOT).join("completions")).unwrap() {
        let file = format!("completions/{}", file.unwrap().file_name().display());
        // The pages of the manual are named by their extension.
        let is_there = sources.contains(&file) || file.ends_with(".1") && sources.contains(&"completions/*.1".into());
        assert!(is_there, "{file} is not in the package");
    }
}

/// Returns the crates that are built here, including those of the tests. Crates for other systems have not been
/// downloaded.
fn packages() -> Vec<Value> {
    let rustc = command("rustc").arg("-vV").output().unwrap();
    let rustc = String::from_utf8(rustc.stdout).unwrap();
    let host = rustc.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let output = command(env!("CARGO"))
        .args(["metadata", "--offline", "--locked", "--format-version", "1"])
        .args(["--filter-platform", host])
        .current_dir(ROOT)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let Value::Array(packages) = metadata["packages"].take() else {
        panic!("unexpected output of cargo metadata")
    };
    assert!(packages.len() > 50, "{} crates", packages.len());
    packages
}

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(file)).unwrap()
}

fn quoted(line: impl AsRef<str>) -> Vec<String> {
    let parts = line.as_ref().split('"').skip(1).step_by(2);
    parts.map(str::to_owned).collect()
}

fn text(package: &Value, field: &str) -> String {
    package[field].as_str().unwrap_or_default().to_owned()
}

fn version(text: &str) -> Vec<u32> {
    text.split('.').map_while(|part| part.parse().ok()).collect()
}
