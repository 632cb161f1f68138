//! Times and lists as people read them. PURE.

use std::fmt::Display;
use std::time::{Duration, SystemTime};

use subsea_api::UnixMillis;

/// RFC 3339 in UTC, whole seconds.
pub(crate) fn time(at: UnixMillis) -> String {
    // humantime writes years up to 9999; a time beyond that is a broken clock, not a reason to panic.
    let seconds = (at.0 / 1000).min(253_402_300_799);
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
        .to_string()
}

/// The two largest units of a length of time: `3m 12s`, `2d 4h`.
pub(crate) fn age(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours) = (seconds / 86_400, seconds / 3_600 % 24);
    let (minutes, seconds) = (seconds / 60 % 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {seconds}s"),
        (0, _, _) => format!("{hours}h {minutes}m"),
        (_, _, _) => format!("{days}d {hours}h"),
    }
}

/// How long ago `then` was at `now`.
pub(crate) fn ago(now: UnixMillis, then: UnixMillis) -> String {
    format!("{} ago", age(now.since(then)))
}

/// How many gateways, and of how many the lease is over.
pub(crate) fn gateways(count: u64, expired: u64) -> String {
    if expired == 0 {
        count.to_string()
    } else {
        format!("{count} ({expired} expired)")
    }
}

/// `a, b, c`, or `-` when there is nothing.
pub(crate) fn list<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|i| i.to_string()).collect();
    if items.is_empty() {
        "-".into()
    } else {
        items.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_at_most_two_units() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m 0s"),
            (192, "3m 12s"),
            (3_600, "1h 0m"),
            (90_061, "1d 1h"),
        ] {
            assert_eq!(age(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn times_are_rfc_3339_however_far() {
        assert_eq!(time(UnixMillis(1_700_000_000_999)), "2023-11-14T22:13:20Z");
        assert_eq!(time(UnixMillis(u64::MAX)), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn an_empty_list_is_a_dash() {
        assert_eq!(list::<u8>([]), "-");
        assert_eq!(list([1, 2]), "1, 2");
    }
}
