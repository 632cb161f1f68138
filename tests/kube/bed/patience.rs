//! Waiting for something, with a limit.

use std::time::{Duration, Instant};

/// Waits until it is so.
pub(crate) fn until(what: &str, limit: Duration, mut ask: impl FnMut() -> bool) {
    let start = Instant::now();
    while !ask() {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(25));
    }
}
