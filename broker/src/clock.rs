//! The only place that reads the clock. Shell.

use std::time::{SystemTime, UNIX_EPOCH};

use subsea_api::UnixMillis;

/// The time now.
pub(crate) fn now() -> UnixMillis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
