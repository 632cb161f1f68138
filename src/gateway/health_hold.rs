//! When a path that failed may be used again: the hold-down. PURE.
//!
//! A path goes out of use at once, and comes back late: a dead path must not carry traffic, a flapping one should not.
//! After it went out it comes back when it has worked without a break for as long as the hold-down. That is 2 s, and
//! doubles up to 60 s each time that the path fails within 2 minutes of having come back.
//!
//! So, with `h` the hold-down in force:
//!
//! 1. No return is closer than `h` to the going out before it.
//! 2. Two returns, and two goings out, are at least `h` apart.
//! 3. A path that never works for as long as `h` without a break has no transition at all: it stays out.
//! 4. Going out is never delayed. The one pair of transitions that may be closer than `h` is therefore a return, after
//!    a whole `h` of echo without a break, and a new failure: nobody can foresee that, and waiting would lose packets.
//!    It makes the next `h` twice as long.

use std::time::Duration;

/// How long a path is kept out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoldDown {
    /// At first.
    pub least: Duration,
    /// At most, after it doubled several times.
    pub most: Duration,
    /// A path that has been in use for so long since it came back is held down for [`Self::least`] again.
    pub calm: Duration,
}

impl Default for HoldDown {
    fn default() -> Self {
        Self {
            least: Duration::from_secs(2),
            most: Duration::from_mins(1),
            calm: Duration::from_mins(2),
        }
    }
}

/// What a path is like now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// It works.
    Good,
    /// It works as far as anybody knows, and a reply is missing: no time to come back, no reason to go.
    Doubtful,
    /// It does not.
    Failed,
    /// It works, and the other end does not want to be used. That is no flapping.
    Declined,
}

/// Whether a path may be used.
#[derive(Debug, Clone)]
pub struct Hold {
    settings: HoldDown,
    usable: bool,
    /// It was in use before.
    used: bool,
    /// The hold-down in force.
    length: Duration,
    /// When it last came back.
    returned: Option<Duration>,
    /// Out of use, and since when it has worked again.
    trial: Option<Duration>,
}

impl Hold {
    /// A new path: not in use, and to be used as soon as it works.
    pub fn new(settings: HoldDown) -> Self {
        Self {
            settings,
            usable: false,
            used: false,
            length: settings.least,
            returned: None,
            trial: None,
        }
    }

    /// Takes note of what the path is like from `now` on; true when it went out of use or came back.
    pub fn update(&mut self, now: Duration, sight: Sight) -> bool {
        let works = match sight {
            Sight::Good | Sight::Doubtful => true,
            Sight::Failed | Sight::Declined => false,
        };
        match (self.usable, works) {
            (true, true) => false,
            (true, false) => {
                let settings = self.settings;
                let soon = self
                    .returned
                    .is_some_and(|at| now.saturating_sub(at) < settings.calm);
                self.length = match (soon, sight) {
                    (true, Sight::Failed) => (self.length * 2).min(settings.most),
                    (true, Sight::Good | Sight::Doubtful | Sight::Declined) => self.length,
                    (false, _) => settings.least,
                };
                self.usable = false;
                self.trial = None;
                true
            }
            (false, false) => {
                self.trial = None;
                false
            }
            (false, true) => {
                let since = *self.trial.get_or_insert(now);
                let long = !self.used || now.saturating_sub(since) >= self.length;
                let back = long && sight == Sight::Good;
                if back {
                    self.returned = self.used.then_some(now);
                    self.used = true;
                    self.usable = true;
                    self.trial = None;
                }
                back
            }
        }
    }

    /// Whether it may be used.
    pub fn is_usable(&self) -> bool {
        self.usable
    }

    /// When it comes back, if it goes on to work.
    pub fn until(&self) -> Option<Duration> {
        self.trial.map(|since| since + self.length)
    }

    /// The hold-down in force: of the last time that it went out.
    pub fn hold(&self) -> Duration {
        self.length
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// Lives through phases of so many milliseconds, working and not; gives the transitions with the hold-down then.
    fn live(phases: &[(u64, Sight)]) -> Vec<(u64, bool, u64)> {
        let mut hold = Hold::new(HoldDown::default());
        let mut at = 0;
        let mut transitions = Vec::new();
        for (length, sight) in phases {
            for _ in 0..*length / 10 {
                at += 10;
                if hold.update(ms(at), *sight) {
                    let h = u64::try_from(hold.hold().as_millis()).unwrap();
                    transitions.push((at, hold.is_usable(), h));
                }
            }
        }
        transitions
    }

    #[test]
    fn a_new_path_is_used_at_once_and_one_that_failed_is_held_down() {
        use Sight::{Failed, Good};
        let transitions = live(&[(1_000, Good), (500, Failed), (5_000, Good)]);
        assert_eq!(
            transitions,
            [
                (10, true, 2_000),
                (1_010, false, 2_000),
                (3_510, true, 2_000)
            ]
        );
    }

    #[test]
    fn a_link_that_flaps_every_two_seconds_stays_out() {
        use Sight::{Failed, Good};
        // What health makes of 2 s down, 2 s up: it needs 0.7 s to see the one and 0.6 s to see the other.
        let mut phases = vec![(10_000, Good)];
        phases.extend([(2_100, Failed), (1_900, Good)].repeat(30));
        phases.push((10_000, Good));
        let transitions = live(&phases);
        assert_eq!(transitions.len(), 3, "{transitions:?}");
    }

    #[test]
    fn who_flaps_slowly_is_held_down_longer_and_is_forgiven_after_calm() {
        use Sight::{Failed, Good};
        let mut phases = vec![(10_000, Good)];
        phases.extend([(1_000, Failed), (70_000, Good)].repeat(7));
        phases.extend([(1_000, Failed), (200_000, Good), (1_000, Failed)]);
        let downs: Vec<u64> = live(&phases)
            .iter()
            .filter(|(_, up, _)| !up)
            .map(|(.., hold)| *hold)
            .collect();
        assert_eq!(
            downs,
            [
                2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000, 60_000, 2_000
            ]
        );
    }

    #[test]
    fn a_drain_is_no_flap() {
        use Sight::{Declined, Good};
        let mut phases = vec![(10_000, Good)];
        phases.extend([(5_000, Declined), (5_000, Good)].repeat(5));
        assert!(live(&phases).iter().all(|(.., hold)| *hold == 2_000));
    }

    fn sight() -> impl Strategy<Value = Sight> {
        prop_oneof![
            3 => Just(Sight::Good),
            1 => Just(Sight::Doubtful),
            2 => Just(Sight::Failed),
            1 => Just(Sight::Declined)
        ]
    }

    proptest! {
        /// What the head of this file promises, for any path.
        #[test]
        fn no_two_transitions_are_closer_than_the_hold_down(
            phases in proptest::collection::vec((10_u64..20_000, sight()), 1..60),
        ) {
            let transitions = live(&phases);
            for pair in transitions.windows(2) {
                let [(before, was, hold), (after, is, _)] = pair else { unreachable!() };
                prop_assert_ne!(was, is);
                if !was {
                    prop_assert!(after - before >= *hold, "back too soon: {:?}", pair);
                }
            }
            for three in transitions.windows(3) {
                let (first, last) = (three[0], three[2]);
                let hold = three.iter().find(|(_, up, _)| !up).map_or(0, |(.., hold)| *hold);
                prop_assert!(last.0 - first.0 >= hold, "the same twice: {:?}", three);
            }
        }

        /// Out of use in the same moment.
        #[test]
        fn what_does_not_work_is_never_usable(phases in proptest::collection::vec((10_u64..20_000, sight()), 1..60)) {
            let mut hold = Hold::new(HoldDown::default());
            let mut at = 0;
            for (length, sight) in phases {
                hold.update(ms(at), sight);
                let works = matches!(sight, Sight::Good | Sight::Doubtful);
                prop_assert!(works || !hold.is_usable());
                at += length;
                hold.update(ms(at), sight);
                prop_assert!(hold.hold() >= ms(2_000) && hold.hold() <= ms(60_000));
            }
        }

        /// Nothing that works in pieces shorter than the hold-down ever comes back.
        #[test]
        fn who_flaps_faster_than_the_hold_down_has_no_transitions(
            phases in proptest::collection::vec((10_u64..1_990, 10_u64..1_990), 1..60),
        ) {
            let mut all = vec![(5_000, Sight::Good)];
            all.extend(phases.iter().flat_map(|(bad, good)| [(*bad, Sight::Failed), (*good, Sight::Good)]));
            prop_assert_eq!(live(&all).len(), 2);
        }
    }
}
