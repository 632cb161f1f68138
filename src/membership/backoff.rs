//! How long to wait before trying again. PURE: the random number is an argument.

use std::time::Duration;

/// The pause after the `failures`-th failure in a row: doubles from `first` to `most`, of which at least half
/// is waited and the rest is up to `random`, so that those that failed together do not come back together.
pub fn delay(failures: u32, first: Duration, most: Duration, random: u64) -> Duration {
    let whole = first
        .saturating_mul(1 << failures.saturating_sub(1).min(16))
        .min(most);
    let part = u32::try_from(random % 1_001).unwrap_or(0);
    whole / 2 + whole / 2 * part / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_up_to_its_end_and_is_spread() {
        let (first, most) = (Duration::from_millis(250), Duration::from_secs(8));
        assert_eq!(delay(1, first, most, 1_000), first);
        assert_eq!(delay(3, first, most, 1_000), first * 4);
        assert_eq!(delay(1, first, most, 0), first / 2);
        assert_eq!(delay(u32::MAX, first, most, 1_000), most);
        for random in 0..3_000 {
            let pause = delay(9, first, most, random);
            assert!(pause >= most / 2 && pause <= most);
        }
    }
}
