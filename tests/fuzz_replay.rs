//! What the fuzz targets do, with some random bytes and with what a fuzzer found, where it left something.

use std::fs;

use proptest::prelude::*;

#[path = "../fuzz/src/lib.rs"]
pub mod bodies;

/// Replays `fuzz/corpus/NAME` and `fuzz/artifacts/NAME`.
fn replay(name: &str, run: fn(&[u8])) {
    for folder in ["corpus", "artifacts"] {
        let files = fs::read_dir(format!("fuzz/{folder}/{name}"));
        for file in files.into_iter().flatten() {
            let path = file.expect("an entry of the folder").path();
            let bytes = fs::read(&path).expect("a readable file");
            let ran = std::panic::catch_unwind(|| run(&bytes));
            assert!(ran.is_ok(), "{}", path.display());
        }
    }
}

macro_rules! targets {
    ($($name:ident, $len:literal;)*) => {$(
        #[test]
        fn $name() {
            replay(stringify!($name), bodies::$name::run);
            let config = ProptestConfig {
                failure_persistence: None,
                // A smaller example is the fuzzer's to find.
                max_shrink_iters: 200,
                ..ProptestConfig::with_cases(200)
            };
            proptest!(config, |(bytes in proptest::collection::vec(any::<u8>(), 0..$len))| {
                bodies::$name::run(&bytes);
            });
        }
    )*};
}

targets! {
    coalesce, 600;
    fair_queue, 4_000;
    inner_packet, 200;
    split, 4_000;
    vnet, 12;
    wire, 200;
}
