//! See `src/fair_queue.rs`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| subsea_fuzz::fair_queue::run(bytes));
