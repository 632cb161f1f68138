//! How many handshake messages each source address may send. PURE.
//!
//! boringtun's cookies show that a source address is real; this keeps one real address from keeping us busy with
//! Diffie-Hellmans. A fixed table: sources that fall together share an allowance, memory never grows.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU16, Ordering};

const SLOTS: usize = 4_096;

/// Counts initiations by source address.
#[derive(Debug)]
pub(super) struct Sources {
    /// Keyed, so that nobody can choose addresses that fall together with a victim's.
    hasher: RandomState,
    counts: Box<[AtomicU16]>,
    /// What one may send in one period of a second.
    limit: u16,
}

impl Sources {
    pub(super) fn new(limit: u16) -> Self {
        Self {
            limit,
            hasher: RandomState::new(),
            counts: (0..SLOTS).map(|_| AtomicU16::new(0)).collect(),
        }
    }

    /// Counts a message from `source`; false when it had its share.
    pub(super) fn allows(&self, source: IpAddr) -> bool {
        // One IPv6 customer has a /64.
        let network = match source {
            IpAddr::V4(v4) => u64::from(u32::from(v4)),
            IpAddr::V6(v6) => u64::try_from(u128::from(v6) >> 64).unwrap_or_default(),
        };
        let slot =
            usize::try_from(self.hasher.hash_one((source.is_ipv4(), network)) % SLOTS as u64)
                .unwrap_or_default();
        self.counts.get(slot).is_some_and(|count| {
            let seen = count.load(Ordering::Relaxed);
            // One thread counts; a lost update would only allow one more.
            count.store(seen.saturating_add(1), Ordering::Relaxed);
            seen < self.limit
        })
    }

    /// Begins a new period; to be called every second.
    pub(super) fn reset(&self) {
        for count in &self.counts {
            count.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_has_its_share_of_each_period_and_others_have_theirs() {
        let sources = Sources::new(50);
        let greedy: IpAddr = "192.0.2.1".parse().unwrap();
        let allowed = (0..1_000).filter(|_| sources.allows(greedy)).count();
        assert_eq!(allowed, 50);
        // Of 100 others nearly all have slots of their own.
        let others = (0..100_u32)
            .filter(|n| sources.allows(IpAddr::V4((0xc633_6400 + n).into())))
            .count();
        assert!(others >= 95, "{others}");
        sources.reset();
        assert!(sources.allows(greedy));
    }

    #[test]
    fn one_ipv6_network_is_one_source() {
        let sources = Sources::new(50);
        let allowed = (0..1_000_u128)
            .filter(|n| sources.allows(IpAddr::V6(((0x2001_0db8_u128 << 96) + n).into())))
            .count();
        assert_eq!(allowed, 50);
    }
}
