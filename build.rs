//! Links the part of GCC's library that unwinds the stack statically, where the linker has it: with glibc, Rust would
//! load `libgcc_s.so.1` at each start, and pglock needs nothing else of it.

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=RUSTC_LINKER");
    let variable = |name| env::var(name).unwrap_or_default();
    let is_glibc = variable("CARGO_CFG_TARGET_OS") == "linux" && variable("CARGO_CFG_TARGET_ENV") == "gnu";
    let is_static = variable("CARGO_CFG_TARGET_FEATURE")
        .split(',')
        .any(|feature| feature == "crt-static");
    if is_glibc && !is_static {
        link_unwinder();
    }
}

fn link_unwinder() {
    let linker = env::var_os("RUSTC_LINKER").unwrap_or_else(|| "cc".into());
    let Ok(output) = Command::new(linker).arg("-print-file-name=libgcc_eh.a").output() else {
        return;
    };
    // One that does not have it answers with the bare name.
    let name = String::from_utf8_lossy(&output.stdout);
    if let Some(directory) = Path::new(name.trim()).parent().filter(|path| path.is_absolute()) {
        println!("cargo:rustc-link-search=native={}", directory.display());
        println!("cargo:rustc-link-lib=static:+whole-archive=gcc_eh");
    }
}
