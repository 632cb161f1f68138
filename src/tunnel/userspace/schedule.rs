//! When to initiate a handshake, so that of two sides one does. PURE: time and chance are arguments.
//!
//! boringtun has no jitter and gives up for ever after 90 s; both are made good here. The side with the lower
//! public key leads: it initiates at once, the other one waits a moment for it.

use std::time::Duration;

/// Which side of a pair of peers we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Ours is the lower public key: initiate at once.
    Leads,
    /// Ours is the higher one: let the other side go first.
    Waits,
}

impl Side {
    /// The side of the holder of key `ours` towards the holder of `theirs`.
    pub(super) fn of(ours: &[u8; 32], theirs: &[u8; 32]) -> Self {
        if ours > theirs {
            Self::Waits
        } else {
            Self::Leads
        }
    }

    /// How long to wait with the first initiation to a new peer; `position` counts peers that are new at the
    /// same time, so that a thousand of them do not burst.
    pub(super) fn first_wait(self, position: usize, chance: Chance) -> Duration {
        let spread =
            Duration::from_millis(2) * u32::try_from(position).unwrap_or(u32::MAX).min(5_000);
        spread
            + match self {
                Self::Leads => Duration::ZERO,
                Self::Waits => chance.between(1_000, 1_333),
            }
    }

    /// How long to wait when there is data and no session: a round trip of the other side's initiation, since
    /// data mostly starts on both sides at once.
    pub(super) fn data_wait(self, chance: Chance) -> Duration {
        match self {
            Self::Leads => Duration::ZERO,
            Self::Waits => chance.between(150, 300),
        }
    }

    /// Whether to leave the timers of a session of this age alone for now: at these ages boringtun renews a session
    /// (120 s, and 165 s on receipt alone), and the side that waits gives the other one 1.5 s.
    pub(super) fn holds_renewal(self, age: Duration) -> bool {
        let in_window = |due: u64| {
            let due = Duration::from_secs(due);
            // The age is known to one tick of the timers only.
            age + Duration::from_millis(300) >= due && age < due + Duration::from_millis(1_500)
        };
        self == Self::Waits && (in_window(120) || in_window(165))
    }
}

/// How long to wait after `failures` rounds of 90 s without an answer: 5 s doubled each time, at most 30 s, and a
/// quarter more or less.
pub(super) fn back_off(failures: u32, chance: Chance) -> Duration {
    let base = 5_000_u64 << failures.saturating_sub(1).min(3);
    let base = base.min(30_000);
    chance.between(base * 3 / 4, base * 5 / 4)
}

/// The time to a quick repeat of an initiation.
pub(super) fn quick_wait(chance: Chance) -> Duration {
    chance.between(1_000, 1_333)
}

/// The time to the next look at a peer's timers.
pub(super) fn tick(chance: Chance) -> Duration {
    chance.between(100, 200)
}

/// A random number, made by the caller.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chance(pub(super) u64);

impl Chance {
    /// A duration between two numbers of milliseconds, both included.
    pub(super) fn between(self, low: u64, high: u64) -> Duration {
        let span = high.saturating_sub(low).saturating_add(1);
        Duration::from_millis(low.saturating_add(self.0 % span))
    }
}

/// A stream of numbers that are random enough for jitter and indices (`SplitMix64`), not for keys.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    /// Starts a stream.
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub(super) fn chance(&mut self) -> Chance {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Chance(mixed ^ (mixed >> 31))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn exactly_one_side_of_a_pair_leads() {
        let (low, high) = ([1; 32], [2; 32]);
        assert_eq!(Side::of(&low, &high), Side::Leads);
        assert_eq!(Side::of(&high, &low), Side::Waits);
    }

    #[test]
    fn only_the_waiting_side_holds_and_only_about_a_renewal() {
        let secs = Duration::from_secs_f64;
        for age in [119.7, 120.0, 121.4, 164.8, 166.4] {
            assert!(Side::Waits.holds_renewal(secs(age)), "{age}");
            assert!(!Side::Leads.holds_renewal(secs(age)), "{age}");
        }
        for age in [0.0, 119.0, 121.6, 150.0, 166.6, 500.0] {
            assert!(!Side::Waits.holds_renewal(secs(age)), "{age}");
        }
    }

    proptest! {
        #[test]
        fn waits_are_bounded(number: u64, position in 0_usize..1_000_000, failures: u32) {
            let chance = Chance(number);
            prop_assert!(Side::Leads.data_wait(chance).is_zero());
            prop_assert!(Side::Leads.first_wait(0, chance).is_zero());
            let waits = Side::Waits.first_wait(0, chance);
            prop_assert!((1_000..=1_333).contains(&waits.as_millis()));
            prop_assert!(Side::Waits.first_wait(position, chance) <= Duration::from_secs(12));
            prop_assert!(Side::Waits.data_wait(chance) <= Duration::from_millis(300));
            let off = back_off(failures, chance);
            prop_assert!((3_750..=37_500).contains(&off.as_millis()), "{off:?}");
            prop_assert!((1_000..=1_333).contains(&quick_wait(chance).as_millis()));
            prop_assert!((100..=200).contains(&tick(chance).as_millis()));
        }
    }

    #[test]
    fn back_off_grows() {
        let middle = |failures| back_off(failures, Chance(0));
        assert!(middle(1) < middle(2) && middle(2) < middle(3) && middle(3) < middle(4));
        assert_eq!(middle(4), middle(40));
    }
}
