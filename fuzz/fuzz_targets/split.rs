//! See `src/split.rs`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| subsea_fuzz::split::run(bytes));
