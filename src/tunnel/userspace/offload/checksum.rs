//! The Internet checksum (RFC 1071), summed in the byte order of the machine. PURE.
//!
//! Ones' complement sums do not depend on byte order as long as words are read and the result is written alike, so
//! nothing is swapped on the way. Sums of packets are far from the end of 64 bits, so some can be added.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::panic))]

/// Sums `bytes` as 16-bit words; an odd last byte is followed by a zero.
///
/// Parts of an even length can be summed apart and added.
pub fn sum(bytes: &[u8]) -> u64 {
    // Sums of words of any even size fold to the same (RFC 1071, section 2, C). Eight bytes at a time with the carry
    // in a second register beat the vectors that every x86-64 has; two sums, so that one need not wait for the other.
    let [mut first, mut second] = [0_u128; 2];
    let (blocks, mut rest) = bytes.as_chunks::<16>();
    for block in blocks {
        if let [low, high] = block.as_chunks().0 {
            first = first.wrapping_add(u64::from_ne_bytes(*low).into());
            second = second.wrapping_add(u64::from_ne_bytes(*high).into());
        }
    }
    // Less than 16 bytes are left: each size comes once at most.
    if let Some((word, left)) = rest.split_first_chunk() {
        first = first.wrapping_add(u64::from_ne_bytes(*word).into());
        rest = left;
    }
    if let Some((word, left)) = rest.split_first_chunk() {
        second = second.wrapping_add(u32::from_ne_bytes(*word).into());
        rest = left;
    }
    if let Some((word, left)) = rest.split_first_chunk() {
        first = first.wrapping_add(u16::from_ne_bytes(*word).into());
        rest = left;
    }
    if let [last] = rest {
        second = second.wrapping_add(u16::from_ne_bytes([*last, 0]).into());
    }
    halves(first.wrapping_add(second))
}

/// The sum of the parts of 32 bits, of which the uppermost is zero: carries of fewer words than any slice has.
fn halves(sum: u128) -> u64 {
    let part = |at: u32| u64::try_from((sum >> at) & 0xffff_ffff).unwrap_or_default();
    part(0).wrapping_add(part(32)).wrapping_add(part(64))
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
