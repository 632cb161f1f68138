//! Whether one thread of a lane carries both ways or each has one. PURE: time is an argument.
//!
//! One thread for both is cheaper: acknowledgements are handled between two large packets, without waking anybody and
//! without two threads at one peer's lock. Two are faster once a core is full and both ways have a good part in that.

use std::time::Duration;

/// Over how long the load is measured.
pub(super) const WINDOW: Duration = Duration::from_millis(100);
/// Parts of a core, in percent: from when on it counts as full, ...
const FULL: u128 = 90;
/// ... what the lesser way needs to have of it that a second thread pays, ...
const LESSER: u128 = 25;
/// ... and what both together need for one thread to do again, ...
const CALM: u128 = 60;
/// ... in so many windows one after the other.
const CALM_WINDOWS: u32 = 20;

/// The decision, and what it came from.
#[derive(Debug, Default)]
pub(super) struct Balance {
    apart: bool,
    calm: u32,
}

impl Balance {
    /// Whether each way has a thread of its own.
    pub(super) fn is_apart(&self) -> bool {
        self.apart
    }

    /// In a window of `window` the two ways were worked on for so long. Gives whether each has a thread from now on.
    pub(super) fn note(&mut self, window: Duration, outbound: Duration, inbound: Duration) -> bool {
        let percent = |part: Duration| part.as_nanos() * 100 / window.as_nanos().max(1);
        let (out, inn) = (percent(outbound), percent(inbound));
        if self.apart {
            self.calm = if out + inn < CALM { self.calm + 1 } else { 0 };
            self.apart = self.calm < CALM_WINDOWS;
        } else if out + inn >= FULL && out.min(inn) >= LESSER {
            self.apart = true;
            self.calm = 0;
        }
        self.apart
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn a_full_core_with_both_ways_is_shared_and_given_back_when_calm() {
        let mut balance = Balance::default();
        assert!(
            !balance.note(WINDOW, MS(80), MS(20)),
            "acknowledgements alone"
        );
        assert!(!balance.note(WINDOW, MS(40), MS(40)), "not full");
        assert!(balance.note(WINDOW, MS(60), MS(40)));
        for _ in 1..CALM_WINDOWS {
            assert!(balance.note(WINDOW, MS(10), MS(10)));
        }
        assert!(balance.note(WINDOW, MS(80), MS(80)), "busy again");
        for _ in 1..CALM_WINDOWS {
            assert!(balance.note(WINDOW, MS(10), MS(10)));
        }
        assert!(!balance.note(WINDOW, MS(10), MS(10)));
    }

    proptest! {
        #[test]
        fn no_change_comes_sooner_than_two_seconds_after_going_apart(
            loads in proptest::collection::vec((0_u64..200, 0_u64..200), 1..200),
        ) {
            let mut balance = Balance::default();
            let mut apart_for = 0;
            for (out, inn) in loads {
                let was = balance.is_apart();
                let is = balance.note(WINDOW, MS(out), MS(inn));
                if was && !is {
                    prop_assert!(apart_for >= CALM_WINDOWS);
                }
                apart_for = if is { apart_for + 1 } else { 0 };
            }
        }
    }
}
