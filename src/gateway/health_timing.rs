//! The times by which a path is judged, and the bounds that follow from them. PURE.

use std::time::Duration;

use super::health_hold::HoldDown;

/// What the looks at the clock in one detection may come late together.
const LATE: Duration = Duration::from_millis(20);

/// The times by which a path is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Between probes of a path that carries traffic.
    pub interval: Duration,
    /// Between probes of a path that carried nothing lately.
    pub idle_interval: Duration,
    /// Between probes once a reply is missing.
    pub suspect_interval: Duration,
    /// So many more probes are sent with that interval.
    pub losses: u32,
    /// Between the probes that confirm: without them a loss of 5 % on both ways would kill a path every few hours.
    pub confirm_interval: Duration,
    /// So many of those. None of all these answered, and the path is dead.
    pub confirms: u32,
    /// The least time after which a reply is missing.
    pub least_timeout: Duration,
    /// The most.
    pub most_timeout: Duration,
    /// So many answers in a row make a path that failed connected again.
    pub answers: u32,
    /// When it may be used again.
    pub hold_down: HoldDown,
}

/// The time between two probes of a path that carries traffic, as people write it: `250ms`.
///
/// # Errors
/// What to write instead.
pub fn interval(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text)
        .map_err(|e| format!("{e}; write for example 250ms or 1s"))?;
    let bounds = Duration::from_millis(20)..=Duration::from_secs(10);
    if bounds.contains(&interval) {
        Ok(interval)
    } else {
        Err("write a time from 20ms to 10s".to_owned())
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self::every(Duration::from_millis(250))
    }
}

impl Timing {
    /// With another interval between probes: everything that is longer becomes as short as that.
    pub fn every(interval: Duration) -> Self {
        let ms = |n| Duration::from_millis(n).min(interval);
        Self {
            interval,
            idle_interval: Duration::from_secs(2).max(interval),
            suspect_interval: ms(50),
            losses: 4,
            confirm_interval: ms(15),
            confirms: 5,
            least_timeout: Duration::from_millis(100),
            most_timeout: Duration::from_secs(3),
            answers: 3,
            hold_down: HoldDown::default(),
        }
    }

    /// So many probes in a row without a reply make a path dead: the first, and those that follow up.
    pub fn fatal(&self) -> u32 {
        1 + self.losses + self.confirms
    }

    /// How long the probes take that follow up on a missing reply, from the first to the last.
    pub fn follow_up(&self) -> Duration {
        self.follows_after((self.losses + self.confirms).saturating_sub(1))
    }

    /// How long after the suspicion the probe comes that so many others follow up before.
    pub fn follows_after(&self, before: u32) -> Duration {
        let last = self.losses.saturating_sub(1);
        let confirm = before.saturating_sub(last);
        let again = confirm.saturating_sub(self.confirms);
        self.suspect_interval * (before.min(last) + again)
            + self.confirm_interval * confirm.min(self.confirms)
    }

    /// The longest time from the last answer that a path gave to its being dead, when it is probed every `interval`
    /// and a reply is missing after `timeout`:
    ///
    /// `interval + timeout + follow_up + timeout`, and 20 ms for timers that come late. With the defaults on a path of
    /// less than 80 ms: 250 + 100 + 225 + 100 + 20 = 695 ms.
    pub fn bound(&self, interval: Duration, timeout: Duration) -> Duration {
        interval + timeout + self.from_hint(timeout)
    }

    /// The longest time from a hint that a path is dead to its being dead, if it is.
    pub fn from_hint(&self, timeout: Duration) -> Duration {
        self.follow_up() + timeout + LATE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn the_bounds_are_as_they_are_told() {
        let timing = Timing::default();
        assert_eq!(timing.fatal(), 10);
        assert_eq!(timing.bound(timing.interval, ms(100)), ms(695));
        assert_eq!(timing.bound(timing.idle_interval, ms(100)), ms(2_445));
        assert_eq!(timing.from_hint(ms(100)), ms(345));
        let quick = Timing::every(ms(50));
        assert_eq!(quick.bound(quick.interval, ms(100)), ms(495));
        let quicker = Timing::every(ms(10));
        assert_eq!(quicker.bound(quicker.interval, ms(100)), ms(310));
    }
}
