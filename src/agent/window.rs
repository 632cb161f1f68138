//! Which numbers of a session were seen already, so that an echo counts once: a sliding window as in RFC 4303, section
//! 3.4.3. PURE.

/// How far behind the newest number a packet may come.
const WIDTH: u64 = 64;

/// The numbers seen lately. Numbers may wrap around.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Window {
    /// The newest number, and a bit for each of those up to it: bit 0 is its own.
    seen: Option<(u64, u64)>,
}

impl Window {
    /// Notes a number; false when it was noted before, or is too old to tell.
    pub fn admit(&mut self, number: u64) -> bool {
        let Some((newest, bits)) = self.seen else {
            self.seen = Some((number, 1));
            return true;
        };
        let ahead = number.wrapping_sub(newest);
        if ahead != 0 && ahead <= u64::MAX / 2 {
            let kept = if ahead < WIDTH { bits << ahead } else { 0 };
            self.seen = Some((number, kept | 1));
            return true;
        }
        let behind = newest.wrapping_sub(number);
        let new = behind < WIDTH && bits & (1 << behind) == 0;
        if new {
            self.seen = Some((newest, bits | 1 << behind));
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_number_counts_once_and_old_ones_never() {
        let mut window = Window::default();
        assert!(window.admit(u64::MAX - 1), "wherever it begins");
        assert!(!window.admit(u64::MAX - 1));
        assert!(window.admit(1), "numbers wrap around");
        assert!(window.admit(u64::MAX), "late, and new");
        assert!(!window.admit(u64::MAX));
        assert!(window.admit(70));
        assert!(!window.admit(1), "seen");
        assert!(!window.admit(6), "too old");
        assert!(window.admit(7));
    }

    proptest! {
        #[test]
        fn no_number_counts_twice(numbers in proptest::collection::vec(0_u64..200, 0..300)) {
            let mut window = Window::default();
            let mut counted = BTreeSet::new();
            let mut newest = 0;
            for number in numbers {
                let fresh = window.admit(number);
                if fresh {
                    prop_assert!(counted.insert(number), "{number} counted twice");
                } else {
                    prop_assert!(counted.contains(&number) || number + WIDTH <= newest);
                }
                newest = newest.max(number);
            }
        }
    }
}
