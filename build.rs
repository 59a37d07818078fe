//! Makes pglock start faster with glibc. Elsewhere, this does nothing.

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
    println!("cargo:rustc-check-cfg=cfg(starts_without_runtime)");
    if is_glibc {
        // See `define_main` in src/sys.rs.
        println!("cargo:rustc-cfg=starts_without_runtime");
    }
    if is_glibc && !is_static {
        link_unwinder();
        link_at_fixed_address();
    }
}

/// Links the part of GCC's library that unwinds the stack statically, where the linker has it: Rust would load
/// `libgcc_s.so.1` at each start, and pglock needs nothing else of it.
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

/// Links the program, though not its libraries, at a fixed address, unless RUSTFLAGS choose a relocation model.
/// Otherwise each start would relocate 7,000 addresses, which copies 28 pages. `scripts/dist` does the same for a
/// static program.
fn link_at_fixed_address() {
    println!("cargo:rerun-if-env-changed=CARGO_ENCODED_RUSTFLAGS");
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    if !flags.contains("relocation-model") {
        println!("cargo:rustc-link-arg-bins=-no-pie");
    }
}
