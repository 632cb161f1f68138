//! When a further stripe is worth it. PURE: time and loads are arguments.
//!
//! A lane is two threads, and one session is never on two cores. When a thread of a lane has been full for a while, a
//! further lane is opened, and flows that begin from then on spread over it. There it stays: to take it away would move
//! its flows, have every gateway of the fleet told, and be undone by the next rush, all to save a keepalive a second.
//! The next start of the gateway begins with one again.

use std::time::Duration;

/// The most stripes.
pub const MOST: u16 = 8;
/// From which share of its time, in per cent, a thread is full.
const FULL: u32 = 90;
/// The like when another gateway has more stripes already: it was full, and alone cannot use them. What costs one end a
/// whole core costs the other less.
const JOINS: u32 = 50;
/// A lane that does less is not used: a further one would not be either. One flow stays one flow.
const USED: u32 = 10;
/// How long it must have been so without a break.
const HOLD: Duration = Duration::from_secs(10);
/// Looks that are further apart say nothing of the time between them.
const GAP: Duration = Duration::from_secs(3);

/// How many lanes there are to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// So many.
    Fixed(u16),
    /// One, and when there is use for it more, at most so many.
    Auto {
        /// See [`most`].
        most: u16,
    },
}

impl Plan {
    /// How many there may be at most.
    pub fn most(self) -> u16 {
        match self {
            Self::Fixed(count) => count,
            Self::Auto { most } => most,
        }
    }
}

/// The most stripes on a machine of so many cores: a lane is two threads, and a lane without cores of its own is no gain.
pub fn most(cores: usize) -> u16 {
    u16::try_from(cores / 2).unwrap_or(MOST).clamp(1, MOST)
}

/// What is seen at one time.
#[derive(Debug, Clone, Copy)]
pub struct Look<'a> {
    /// When, since any beginning.
    pub now: Duration,
    /// The load of each lane: the share of its time, in per cent, that its busier thread was busy since the last look.
    pub lanes: &'a [u32],
    /// With how many stripes another gateway works, at most.
    pub offered: u16,
}

/// Whether it was full all the time.
#[derive(Debug, Clone, Copy)]
pub struct Watch {
    most: u16,
    since: Option<Duration>,
    looked: Duration,
}

impl Watch {
    /// Before the first look, with at most so many stripes.
    pub fn new(most: u16) -> Self {
        Self {
            most: most.clamp(1, MOST),
            since: None,
            looked: Duration::ZERO,
        }
    }

    /// Looks about once a second; true when there should be one lane more. After that it has to be full as long again.
    pub fn wants_more(&mut self, look: Look<'_>) -> bool {
        let since = self
            .since
            .filter(|_| look.now.saturating_sub(self.looked) <= GAP);
        self.looked = look.now;
        if !self.is_full(look) {
            self.since = None;
            return false;
        }
        let since = since.unwrap_or(look.now);
        let long = look.now.saturating_sub(since) >= HOLD;
        self.since = (!long).then_some(since);
        long
    }

    fn is_full(&self, look: Look<'_>) -> bool {
        let count = look.lanes.len();
        let busiest = look.lanes.iter().copied().max().unwrap_or_default();
        let idlest = look.lanes.iter().copied().min().unwrap_or_default();
        let threshold = if count < usize::from(look.offered) {
            JOINS
        } else {
            FULL
        };
        count < usize::from(self.most) && busiest >= threshold && idlest >= USED
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// How many lanes there are after each of `seconds` of a load that is the same on all of them.
    fn lanes_under(load: u32, seconds: u64, most: u16, offered: u16) -> Vec<usize> {
        let mut watch = Watch::new(most);
        let mut lanes = 1;
        let seconds = (1..=seconds).map(|second| {
            let look = Look {
                now: Duration::from_secs(second),
                lanes: &vec![load; lanes],
                offered,
            };
            lanes += usize::from(watch.wants_more(look));
            lanes
        });
        seconds.collect()
    }

    #[test]
    fn the_most_is_half_of_the_cores_and_eight() {
        let found = [0, 1, 2, 3, 4, 7, 8, 16, 64, usize::MAX].map(most);
        assert_eq!(found, [1, 1, 1, 1, 2, 3, 4, 8, 8, 8]);
    }

    #[test]
    fn a_full_lane_gets_company_after_ten_seconds_and_again_after_ten_more() {
        let lanes = lanes_under(95, 40, 8, 1);
        assert_eq!((lanes[9], lanes[10]), (1, 2), "{lanes:?}");
        assert_eq!((lanes[20], lanes[21]), (2, 3), "{lanes:?}");
        assert_eq!(lanes_under(89, 100, 8, 1)[99], 1);
        assert_eq!(lanes_under(100, 1_000, 3, 1)[999], 3);
        assert_eq!(lanes_under(100, 1_000, most(2), 8)[999], 1, "two cores");
    }

    #[test]
    fn who_is_half_full_joins_in_what_another_gateway_has_begun() {
        assert_eq!(lanes_under(60, 100, 8, 3)[99], 3);
        assert_eq!(lanes_under(49, 100, 8, 3)[99], 1);
    }

    #[test]
    fn a_lull_a_gap_and_a_lane_that_is_not_used_begin_anew() {
        let mut watch = Watch::new(8);
        let mut look = |second, lanes: &[u32]| {
            watch.wants_more(Look {
                now: Duration::from_secs(second),
                lanes,
                offered: 1,
            })
        };
        assert!((1..=10).all(|second| !look(second, &[100])));
        assert!(!look(11, &[89]), "a lull");
        assert!((12..=21).all(|second| !look(second, &[100])));
        assert!(!look(30, &[100]), "asleep meanwhile");
        assert!((31..=39).all(|second| !look(second, &[100])));
        assert!(look(40, &[100]));
        assert!(
            (41..=200).all(|second| !look(second, &[100, 3])),
            "one large flow"
        );
    }

    proptest! {
        /// Whatever the loads: never above the most, one at a time, and only after ten seconds in which each look found
        /// a thread full, or half full while another gateway had more.
        #[test]
        fn stripes_are_never_added_lightly(
            looks in proptest::collection::vec((1_u64..2_500, 0_u32..130, 0_u32..130, 0_u16..4), 1..400),
            cores in 0_usize..40,
        ) {
            let most = most(cores);
            let mut watch = Watch::new(most);
            let (mut now, mut lanes) = (Duration::ZERO, 1_u16);
            let mut full_since = None;
            for (pause, first, others, offered) in looks {
                now += Duration::from_millis(pause);
                let mut loads = vec![others; lanes.into()];
                loads[0] = first;
                let busiest = loads.iter().copied().max().unwrap();
                let full = busiest >= 90 || (busiest >= 50 && offered > lanes);
                full_since = full.then(|| full_since.unwrap_or(now));
                if watch.wants_more(Look { now, lanes: &loads, offered }) {
                    lanes += 1;
                    let since = full_since.replace(now);
                    prop_assert!(since.is_some_and(|since| now >= since + HOLD));
                }
                prop_assert!(lanes <= most);
            }
        }
    }
}
