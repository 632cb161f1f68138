//! How many connections may be open at once, in all and from one address. PURE.
//!
//! The port is open to every pod of the node: whoever keeps connections open must not keep the kubelet out.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// Connections at once.
pub(super) const ALL: usize = 128;
/// Connections at once from one address.
pub(super) const EACH: usize = 8;

/// The connections that are open.
#[derive(Debug, Default)]
pub(super) struct Connections {
    from: BTreeMap<IpAddr, usize>,
}

impl Connections {
    /// Takes one more from this address; whether there was room.
    pub(super) fn enter(&mut self, source: IpAddr) -> bool {
        let source = source.to_canonical();
        let open = self.from.get(&source).copied().unwrap_or(0);
        if open >= EACH || self.from.values().sum::<usize>() >= ALL {
            return false;
        }
        self.from.insert(source, open + 1);
        true
    }

    /// One from this address is closed.
    pub(super) fn leave(&mut self, source: IpAddr) {
        let source = source.to_canonical();
        match self.from.get_mut(&source) {
            Some(open) if *open > 1 => *open -= 1,
            Some(_) | None => {
                self.from.remove(&source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_keep_others_out() {
        let mut open = Connections::default();
        let (a, b): (IpAddr, IpAddr) = ([192, 0, 2, 1].into(), "::ffff:192.0.2.1".parse().unwrap());
        for _ in 0..EACH {
            assert!(open.enter(a));
        }
        assert!(!open.enter(a) && !open.enter(b), "they are the same");
        assert!(open.enter([192, 0, 2, 2].into()));
        open.leave(b);
        assert!(open.enter(a));
    }

    #[test]
    fn there_is_room_for_so_many_in_all() {
        let mut open = Connections::default();
        let sources = (0..=255).map(|last| IpAddr::from([192, 0, 2, last]));
        let entered: Vec<_> = sources.filter(|source| open.enter(*source)).collect();
        assert_eq!(entered.len(), ALL);
        for source in entered {
            open.leave(source);
        }
        assert!(open.from.is_empty());
    }
}
