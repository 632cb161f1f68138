//! A counter that goes on where the kernel's begins anew. PURE.

/// Counts on over resets of what it reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Meter {
    before: u64,
    last: u64,
}

impl Meter {
    /// Takes a reading; gives the sum. A reading below the last one began at zero.
    pub fn read(&mut self, now: u64) -> u64 {
        if now < self.last {
            self.before = self.before.saturating_add(self.last);
        }
        self.last = now;
        self.sum()
    }

    /// What was counted so far.
    pub fn sum(&self) -> u64 {
        self.before.saturating_add(self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_loses_nothing() {
        let mut meter = Meter::default();
        let sums: Vec<u64> = [3, 5, 5, 1, 4, 0, 2].map(|now| meter.read(now)).to_vec();
        assert_eq!(sums, [3, 5, 5, 6, 9, 9, 11]);
        assert_eq!(meter.sum(), 11);
    }
}
