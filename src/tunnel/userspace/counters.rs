//! Counters that threads add to without a lock. PURE.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::tunnel::Drop;

/// Every reason, in the order of the enum.
const REASONS: [Drop; 15] = [
    Drop::ForeignSource,
    Drop::ForeignDestination,
    Drop::OutboundSource,
    Drop::NoPeer,
    Drop::NoSession,
    Drop::Malformed,
    Drop::Unknown,
    Drop::Unauthentic,
    Drop::Replay,
    Drop::UnknownPeer,
    Drop::RateLimited,
    Drop::Kernel,
    Drop::Queue,
    Drop::RxErrors,
    Drop::TxErrors,
];

/// Drops by reason.
#[derive(Debug, Default)]
pub(super) struct Drops([AtomicU64; REASONS.len()]);

impl Drops {
    /// Counts one.
    pub(super) fn count(&self, reason: Drop) {
        self.add(reason, 1);
    }

    /// Counts several.
    pub(super) fn add(&self, reason: Drop, many: u64) {
        if let Some(counter) = self.0.get(reason as usize) {
            counter.fetch_add(many, Ordering::Relaxed);
        }
    }

    /// The reasons that happened.
    pub(super) fn read(&self) -> BTreeMap<Drop, u64> {
        REASONS
            .iter()
            .zip(&self.0)
            .map(|(reason, counter)| (*reason, counter.load(Ordering::Relaxed)))
            .filter(|(_, count)| *count > 0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_own_counter() {
        let drops = Drops::default();
        assert!(drops.read().is_empty());
        for (n, reason) in (1..).zip(REASONS) {
            assert_eq!(
                reason as usize + 1,
                usize::try_from(n).unwrap(),
                "{reason:?} stands where the enum has it"
            );
            drops.add(reason, n);
        }
        drops.count(Drop::Kernel);
        let read = drops.read();
        assert_eq!(read.len(), REASONS.len());
        assert_eq!((read[&Drop::ForeignSource], read[&Drop::Kernel]), (1, 13));
    }
}
