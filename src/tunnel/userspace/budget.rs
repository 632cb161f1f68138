//! How many handshake messages are looked at. PURE.
//!
//! The first MAC of one costs half a microsecond, a cookie five: a flood must not have the core that carries packets.
//! What is beyond the budget is dropped unread. After the first MAC, addresses of peers have a budget of their own, so
//! that a flood from everywhere else does not keep them out.

use std::sync::atomic::{AtomicU32, Ordering};

/// Refills in a second; the caller sees to that.
pub(super) const REFILLS: u32 = 20;
/// First MACs a second: about 20 ms of a core.
const MACS: u32 = 40_000;
/// Messages a second of each kind of source: about 25 ms of a core.
const A_SECOND: u32 = 5_000;
/// What can be saved up: a gateway of a large fleet that restarts gets some hundred at once.
const BURST: u32 = 1_000;

/// What is left.
#[derive(Debug)]
pub(super) struct Budget {
    macs: AtomicU32,
    known: AtomicU32,
    strangers: AtomicU32,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            macs: AtomicU32::new(MACS / REFILLS),
            known: AtomicU32::new(BURST),
            strangers: AtomicU32::new(BURST),
        }
    }
}

impl Budget {
    /// Takes one first MAC; false when nothing is left.
    pub(super) fn take_mac(&self) -> bool {
        take(&self.macs)
    }

    /// Takes one message from an address where a peer is said to be, or from elsewhere; false when nothing is left.
    pub(super) fn take(&self, known: bool) -> bool {
        let left = if known { &self.known } else { &self.strangers };
        take(left)
    }

    /// Adds what a part of a second is worth; to be called [`REFILLS`] times a second.
    pub(super) fn refill(&self) {
        self.macs.store(MACS / REFILLS, Ordering::Relaxed);
        for left in [&self.known, &self.strangers] {
            // Never fails: the closure always gives a value.
            let _ = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                Some((n + A_SECOND / REFILLS).min(BURST))
            });
        }
    }
}

fn take(left: &AtomicU32) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_cannot_use_up_what_peers_have() {
        let budget = Budget::default();
        let taken = (0..20_000).filter(|_| budget.take(false)).count();
        assert_eq!(taken, 1_000);
        assert!(budget.take(true));
    }

    #[test]
    fn it_fills_up_evenly_and_not_for_ever() {
        let budget = Budget::default();
        while budget.take(false) {}
        let mut taken = 0;
        for _ in 0..REFILLS {
            budget.refill();
            taken += (0..1_000).filter(|_| budget.take(false)).count();
        }
        assert_eq!(taken, 5_000);
        (0..1_000).for_each(|_| budget.refill());
        assert_eq!((0..20_000).filter(|_| budget.take(false)).count(), 1_000);
    }
}
