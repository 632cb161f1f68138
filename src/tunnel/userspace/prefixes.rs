//! Longest-prefix match over CIDR blocks. PURE.
//!
//! The blocks are flattened, once, into disjoint ranges in address order; a look-up is one binary search in an
//! array, however deep blocks nest.

use std::net::IpAddr;

use subsea_api::Cidr;

/// Blocks with a value each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefixes<T> {
    v4: Vec<Range<u32, T>>,
    v6: Vec<Range<u128, T>>,
}

/// Addresses `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range<A, T> {
    first: A,
    last: A,
    value: T,
}

impl<T: Copy> Prefixes<T> {
    /// Takes blocks in any order. Of equal blocks the last one counts.
    pub fn new(blocks: impl IntoIterator<Item = (Cidr, T)>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (cidr, value) in blocks {
            match (cidr.first(), cidr.last()) {
                (IpAddr::V4(first), IpAddr::V4(last)) => {
                    v4.push(Range {
                        first: u32::from(first),
                        last: u32::from(last),
                        value,
                    });
                }
                (IpAddr::V6(first), IpAddr::V6(last)) => {
                    v6.push(Range {
                        first: u128::from(first),
                        last: u128::from(last),
                        value,
                    });
                }
                // A block has one family.
                (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {}
            }
        }
        Self {
            v4: flatten(v4),
            v6: flatten(v6),
        }
    }

    /// The value of the smallest block around `addr`.
    pub fn get(&self, addr: IpAddr) -> Option<T> {
        match addr {
            IpAddr::V4(addr) => find(&self.v4, u32::from(addr)),
            IpAddr::V6(addr) => find(&self.v6, u128::from(addr)),
        }
    }

    /// Whether some block holds `addr`.
    pub fn contains(&self, addr: IpAddr) -> bool {
        self.get(addr).is_some()
    }
}

/// Addresses of one family as numbers.
trait Address: Copy + Ord {
    fn next(self) -> Option<Self>;
    fn previous(self) -> Option<Self>;
}

impl Address for u32 {
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
    fn previous(self) -> Option<Self> {
        self.checked_sub(1)
    }
}

impl Address for u128 {
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
    fn previous(self) -> Option<Self> {
        self.checked_sub(1)
    }
}

fn find<A: Address, T: Copy>(ranges: &[Range<A, T>], addr: A) -> Option<T> {
    let after = ranges.partition_point(|range| range.first <= addr);
    let range = ranges.get(after.checked_sub(1)?)?;
    (addr <= range.last).then_some(range.value)
}

/// Cuts nested blocks into disjoint ranges, the inner block winning.
///
/// Sorted by start with the wider block first, blocks come like opening brackets; `open` holds those not yet
/// closed, and `at` is the first address that has not been given out.
fn flatten<A: Address, T: Copy>(mut blocks: Vec<Range<A, T>>) -> Vec<Range<A, T>> {
    blocks.sort_by(|a, b| (a.first, b.last).cmp(&(b.first, a.last)));
    let mut ranges = Vec::with_capacity(blocks.len());
    let mut open: Vec<Range<A, T>> = Vec::new();
    let mut at: Option<A> = None;
    for block in blocks {
        close_before(Some(block.first), &mut open, &mut at, &mut ranges);
        if let (Some(outer), Some(from), Some(last)) = (open.last(), at, block.first.previous())
            && from <= last
        {
            ranges.push(Range {
                first: from,
                last,
                value: outer.value,
            });
        }
        if open
            .last()
            .is_some_and(|outer| (outer.first, outer.last) == (block.first, block.last))
        {
            open.pop();
        }
        at = Some(block.first);
        open.push(block);
    }
    close_before(None, &mut open, &mut at, &mut ranges);
    ranges
}

/// Gives out the rest of every open block that ends before `limit` (`None`: of all).
fn close_before<A: Address, T: Copy>(
    limit: Option<A>,
    open: &mut Vec<Range<A, T>>,
    at: &mut Option<A>,
    ranges: &mut Vec<Range<A, T>>,
) {
    while let Some(block) = open.pop_if(|block| limit.is_none_or(|limit| block.last < limit)) {
        if let Some(first) = at.filter(|first| *first <= block.last) {
            ranges.push(Range {
                first,
                last: block.last,
                value: block.value,
            });
            *at = block.last.next();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn prefixes(blocks: &[(&str, u32)]) -> Prefixes<u32> {
        Prefixes::new(
            blocks
                .iter()
                .map(|(cidr, value)| (cidr.parse().unwrap(), *value)),
        )
    }

    #[test]
    fn the_smallest_block_wins_and_its_surroundings_stay() {
        let table = prefixes(&[
            ("10.0.0.0/8", 1),
            ("10.1.0.0/16", 2),
            ("10.1.2.3/32", 3),
            ("10.1.255.0/24", 4),
            ("10.255.255.255/32", 5),
            ("fd00::/8", 6),
        ]);
        for (addr, want) in [
            ("9.255.255.255", None),
            ("10.0.0.0", Some(1)),
            ("10.1.0.0", Some(2)),
            ("10.1.2.2", Some(2)),
            ("10.1.2.3", Some(3)),
            ("10.1.2.4", Some(2)),
            ("10.1.255.255", Some(4)),
            ("10.2.0.0", Some(1)),
            ("10.255.255.254", Some(1)),
            ("10.255.255.255", Some(5)),
            ("11.0.0.0", None),
            ("fd12::1", Some(6)),
            ("::ffff:10.1.2.3", None),
        ] {
            assert_eq!(table.get(addr.parse().unwrap()), want, "{addr}");
        }
    }

    #[test]
    fn the_whole_address_space_and_its_ends() {
        let table = prefixes(&[
            ("0.0.0.0/0", 1),
            ("255.255.255.255/32", 2),
            ("0.0.0.0/32", 3),
            ("::/0", 4),
        ]);
        for (addr, want) in [
            ("0.0.0.0", 3),
            ("0.0.0.1", 1),
            ("255.255.255.254", 1),
            ("255.255.255.255", 2),
            ("::", 4),
        ] {
            assert_eq!(table.get(addr.parse().unwrap()), Some(want), "{addr}");
        }
        assert_eq!(prefixes(&[]).get(IpAddr::V4(Ipv4Addr::LOCALHOST)), None);
        assert_eq!(
            prefixes(&[("10.0.0.0/8", 1), ("10.0.0.0/8", 2)]).get("10.0.0.1".parse().unwrap()),
            Some(2)
        );
    }

    fn naive(blocks: &[(Cidr, u32)], addr: IpAddr) -> Option<u32> {
        let around = blocks.iter().filter(|(cidr, _)| cidr.contains(addr));
        around
            .max_by_key(|(cidr, _)| cidr.prefix_len())
            .map(|(_, value)| *value)
    }

    // Few distinct bits, so that blocks nest, touch and repeat.
    fn v4() -> impl Strategy<Value = IpAddr> {
        (0_u32..16, 0_u32..8).prop_map(|(high, low)| IpAddr::V4(Ipv4Addr::from((high << 28) | low)))
    }

    fn v6() -> impl Strategy<Value = IpAddr> {
        (0_u128..16, 0_u128..8)
            .prop_map(|(high, low)| IpAddr::V6(Ipv6Addr::from((high << 124) | low)))
    }

    fn block() -> impl Strategy<Value = (Cidr, u32)> {
        (
            prop_oneof![v4(), v6()],
            prop_oneof![0_u8..6, 28..33_u8, 120..=128_u8],
            0_u32..100,
        )
            .prop_map(|(addr, len, value)| (Cidr::containing(addr, len), value))
    }

    proptest! {
        #[test]
        fn it_answers_as_a_scan_of_all_blocks_does(
            blocks in proptest::collection::vec(block(), 0..40),
            addrs in proptest::collection::vec(prop_oneof![v4(), v6()], 1..40),
        ) {
            let table = Prefixes::new(blocks.iter().copied());
            let ends = blocks.iter().flat_map(|(cidr, _)| [cidr.first(), cidr.last()]);
            for addr in addrs.iter().copied().chain(ends) {
                prop_assert_eq!(table.get(addr), naive(&blocks, addr), "{}", addr);
            }
        }
    }

    #[test]
    fn ten_thousand_blocks_are_found() {
        let cidr =
            |n: u32| Cidr::containing(IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + (n << 8))), 24);
        let table = Prefixes::new((0..10_000).map(|n| (cidr(n), n)));
        for n in 0..10_000 {
            assert_eq!(table.get(cidr(n).last()), Some(n));
        }
        assert_eq!(table.get(cidr(10_000).first()), None);
    }
}
