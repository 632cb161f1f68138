//! The Internet checksum (RFC 1071), summed in the byte order of the machine. PURE.
//!
//! Ones' complement sums do not depend on byte order as long as words are read and the result is written alike, so
//! nothing is swapped on the way. Sums of 64 bits cannot overflow with packets of 64 KiB.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::panic))]

/// Sums `bytes` as 16-bit words; an odd last byte is followed by a zero.
///
/// Parts of an even length can be summed apart and added.
pub fn sum(bytes: &[u8]) -> u64 {
    // Eight lanes, so that the compiler can add them side by side.
    let mut lanes = [0_u64; 8];
    let blocks = bytes.chunks_exact(32);
    let rest = blocks.remainder();
    for block in blocks {
        for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<4>().0) {
            *lane = lane.wrapping_add(u64::from(u32::from_ne_bytes(*word)));
        }
    }
    let mut total = lanes.into_iter().fold(0, u64::wrapping_add);
    let (words, tail) = rest.as_chunks::<2>();
    for word in words {
        total = total.wrapping_add(u64::from(u16::from_ne_bytes(*word)));
    }
    if let [last] = tail {
        total = total.wrapping_add(u64::from(u16::from_ne_bytes([*last, 0])));
    }
    total
}

/// A number of 16 bits in network byte order, as a summand.
pub fn word(value: u16) -> u64 {
    u64::from(value.to_be())
}

/// Folds a sum to 16 bits.
pub fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    // Two carries are the most that is left after two folds.
    u16::try_from(sum & 0xffff).unwrap_or_default()
}

/// The checksum of a sum, as the two bytes that stand in the packet.
pub fn finish(sum: u64) -> [u8; 2] {
    (!fold(sum)).to_ne_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tunnel::userspace::offload::tests::plain::checksum as plain;

    #[test]
    fn the_example_of_the_rfc() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(finish(sum(&bytes)), [0x22, 0x0d]);
    }

    #[test]
    fn the_largest_sums_fold() {
        assert_eq!(fold(u64::MAX), 0xffff);
        assert_eq!(fold(0), 0);
        assert_eq!(fold(0x1_0000), 1);
        let longest = vec![0xff; 65_535];
        assert_eq!(finish(sum(&longest)), plain(&longest));
    }

    proptest! {
        #[test]
        fn it_is_that_of_the_rfc(bytes in proptest::collection::vec(any::<u8>(), 0..3_000)) {
            prop_assert_eq!(finish(sum(&bytes)), plain(&bytes));
        }

        #[test]
        fn parts_add_up(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0_usize..100) {
            let (a, b) = bytes.split_at((at * 2).min(bytes.len() / 2 * 2));
            prop_assert_eq!(fold(sum(a) + sum(b)), fold(sum(&bytes)));
        }

        #[test]
        fn folding_keeps_the_value(sum: u64) {
            let folded = fold(sum);
            prop_assert_eq!(u64::from(folded) % 0xffff, sum % 0xffff);
            prop_assert_eq!(folded == 0, sum == 0);
        }
    }
}
