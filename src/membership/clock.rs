//! The clocks of the daemon, read here and handed to the deciders. Shell.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use subsea_api::UnixMillis;

use super::standing::Now;

/// Counts from when it was made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    /// Starts to count.
    pub(crate) fn start() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    /// Now, by both clocks.
    pub(crate) fn now(&self) -> Now {
        Now {
            mono: self.start.elapsed(),
            wall: wall(SystemTime::now()),
        }
    }
}

/// A time for people and files; before 1970 is 1970.
pub(crate) fn wall(time: SystemTime) -> UnixMillis {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Any number, for jitter and for where sequences start. When the random source fails, the clock will do: no
/// secret depends on it.
pub(crate) fn random() -> u64 {
    getrandom::u64().unwrap_or_else(|_| {
        wall(SystemTime::now())
            .0
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
    })
}
