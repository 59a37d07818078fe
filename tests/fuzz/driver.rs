//! Drives the fuzz targets: the unit tests called `fuzz_...`, each beside the code that it covers.
//!
//! `cargo test` gives each target some of its examples with random changes. `make fuzz-parsers` compiles the tests with
//! the coverage counters of LLVM and `--cfg fuzzing`, and libFuzzer chooses the inputs, of which there can be many: see
//! `scripts/fuzz-parsers`.

/// Calls `check`, which panics for an input that violates a promise, with the examples and many mutations of them.
pub(crate) fn fuzz<T: AsRef<[u8]>>(examples: &[T], check: fn(&[u8])) {
    let examples: Vec<&[u8]> = examples.iter().map(AsRef::as_ref).collect();
    engine::run(&examples, check);
}

#[cfg(not(fuzzing))]
mod engine {
    use std::panic::catch_unwind;

    /// The number of inputs of a target. All targets together take a second.
    const INPUTS: usize = 200;
    /// What parsers look for, besides what the examples have.
    const SPECIAL: &[u8] = b"\0\n\r\t '\"\\%=&@:/?,;.[]{}*-+_0199999~\x1b\xff\xc3\xa9";

    pub(super) fn run(examples: &[&[u8]], check: fn(&[u8])) {
        let mut random = fastrand::Rng::with_seed(20_261_126);
        for input in (0..INPUTS).map(|_| mutated(examples, &mut random)) {
            let shown = input.escape_ascii().to_string();
            assert!(catch_unwind(|| check(&input)).is_ok(), "the input was b\"{shown}\"");
        }
    }

    /// Returns an example with up to four changes.
    fn mutated(examples: &[&[u8]], random: &mut fastrand::Rng) -> Vec<u8> {
        let mut input = examples[random.usize(..examples.len())].to_vec();
        for _ in 0..random.usize(..=4) {
            let start = random.usize(..=input.len());
            let end = input.len().min(start + random.usize(..8));
            let other = examples[random.usize(..examples.len())];
            let from = random.usize(..=other.len());
            let replacement = match random.u8(..4) {
                0 => Vec::new(),
                1 => input[start..end].repeat(2),
                2 => vec![SPECIAL[random.usize(..SPECIAL.len())]],
                _ => other[from..other.len().min(from + random.usize(..24))].to_vec(),
            };
            input.splice(start..end, replacement);
        }
        input
    }
}

#[cfg(fuzzing)]
mod engine {
    // Its build compiles libFuzzer, and links it.
    use libfuzzer_sys as _;
    use std::ffi::{CString, c_char, c_int};
    use std::fs;
    use std::path::PathBuf;
    use std::slice;
    use std::sync::OnceLock;

    static CHECK: OnceLock<fn(&[u8])> = OnceLock::new();

    #[expect(unsafe_code, reason = "libFuzzer is written in C++")]
    unsafe extern "C" {
        fn LLVMFuzzerRunDriver(
            argc: *mut c_int,
            argv: *mut *mut *mut c_char,
            callback: extern "C" fn(*const u8, usize) -> c_int,
        ) -> c_int;
    }

    /// Checks one input. A panic cannot unwind out of here, so it aborts, and libFuzzer saves the input.
    extern "C" fn check(data: *const u8, size: usize) -> c_int {
        #[expect(unsafe_code, reason = "libFuzzer passes a pointer")]
        // SAFETY: libFuzzer passes the address and the size of an input, which lives until this returns.
        let input = unsafe { slice::from_raw_parts(data, size) };
        CHECK.get().expect("a target runs")(input);
        0
    }

    /// Runs libFuzzer with the arguments of `PGLOCK_FUZZ_LIBFUZZER`, of which the last is the directory of the corpus
    /// or an input to repeat, and exits: one process can run one target.
    pub(super) fn run(examples: &[&[u8]], target: fn(&[u8])) {
        let arguments = std::env::var("PGLOCK_FUZZ_LIBFUZZER").expect("scripts/fuzz-parsers starts this");
        let arguments: Vec<&str> = arguments.split_whitespace().collect();
        let corpus = PathBuf::from(arguments.last().expect("a path"));
        for (number, example) in examples.iter().enumerate().filter(|_| corpus.is_dir()) {
            fs::write(corpus.join(format!("example-{number}")), example).expect("a directory that can be written");
        }
        CHECK.set(target).expect("the only target of this process");
        let arguments = ["fuzz"].into_iter().chain(arguments);
        let arguments = arguments.map(|argument| CString::new(argument).expect("no NUL byte").into_raw());
        let mut arguments: Vec<*mut c_char> = arguments.collect();
        let mut count = arguments.len() as c_int;
        arguments.push(std::ptr::null_mut());
        let mut arguments = arguments.as_mut_ptr();
        #[expect(unsafe_code, reason = "libFuzzer is written in C++")]
        // SAFETY: the arguments are those of main(): NUL-terminated strings, and a null pointer at the end. They are
        // never freed.
        let status = unsafe { LLVMFuzzerRunDriver(&mut count, &mut arguments, check) };
        std::process::exit(status);
    }
}
