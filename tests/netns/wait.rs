//! Waiting for something, with limits, and figures that have a bound.

use std::io::Write as _;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Generous: for what has no bound of its own, on a slow machine under load.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// Asks until there is an answer, and says how long it took.
pub(crate) fn eventually<T>(
    what: &str,
    limit: Duration,
    mut ask: impl FnMut() -> Option<T>,
) -> (T, Duration) {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return (answer, start.elapsed());
        }
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(25));
    }
}

/// Waits until it is so.
pub(crate) fn until(what: &str, limit: Duration, mut ask: impl FnMut() -> bool) -> Duration {
    eventually(what, limit, || ask().then_some(())).1
}

/// How many times longer than promised something may take here before it counts as broken. A machine under load is late by
/// less; a mechanism that does not work leaves it to a lease of 60 s, to a hold of 15 s, or to nobody.
const LATE: u32 = 5;
/// For so long a core may be away in between, however short the promise.
const PAUSE: Duration = Duration::from_secs(2);

/// Notes a figure that the product promises, and whether the promise was kept; `scripts/test` counts those that were not. Fails
/// when what keeps the promise cannot have been at work. A gap is to be taken when what stood still goes on.
pub(crate) fn bounded(what: &str, took: Duration, promised: Duration) {
    let over = if took > promised { ", OVER" } else { "" };
    let line = format!(
        "measured: {what}: {} ms (promised {} ms{over})\n",
        took.as_millis(),
        promised.as_millis()
    );
    eprint!("{line}");
    let path = concat!(env!("CARGO_TARGET_TMPDIR"), "/netns-measured.txt");
    let file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path);
    file.and_then(|mut f| f.write_all(line.as_bytes()))
        .unwrap_or_else(|e| panic!("{path}: {e}"));
    assert!(took <= promised * LATE + PAUSE, "{line}");
}

/// How many worlds are there at a time: their daemons share the machine's cores, and some figures have a bound.
const WORLDS: usize = 2;

static TAKEN: Mutex<usize> = Mutex::new(0);
static FREED: Condvar = Condvar::new();

/// The right to have a world.
pub(crate) struct Permit(());

impl Permit {
    /// Waits for its turn.
    pub(crate) fn take() -> Self {
        let taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = FREED
            .wait_while(taken, |taken| *taken >= WORLDS)
            .unwrap_or_else(PoisonError::into_inner);
        *taken += 1;
        Self(())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        FREED.notify_one();
    }
}
