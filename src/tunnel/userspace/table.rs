//! The peers and how packets find them; made anew for every configuration and swapped whole. PURE but for `Peer`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use subsea_api::{Cidr, PublicKey};

use super::peer::Peer;
use super::prefixes::Prefixes;
use super::schedule::Random;
use super::wire;
use crate::tunnel::TunnelConfig;

/// One peer of a configuration.
pub(super) struct Entry {
    pub(super) peer: Arc<Peer>,
    /// What it may send from.
    pub(super) sources: Arc<Prefixes<()>>,
}

/// A configuration as the packet path reads it.
pub(super) struct Table {
    /// What is ours.
    pub(super) local: Prefixes<()>,
    /// Positions of peers by inner destination.
    pub(super) routes: Prefixes<usize>,
    pub(super) entries: Vec<Entry>,
    by_key: BTreeMap<PublicKey, usize>,
    by_index: HashMap<u32, usize>,
}

impl Table {
    /// Puts a configuration and its peers together. Every key of `config.peers` is in `entries`.
    pub(super) fn new(config: &TunnelConfig, entries: Vec<Entry>) -> Self {
        let by_key: BTreeMap<_, _> = entries
            .iter()
            .enumerate()
            .map(|(at, entry)| (entry.peer.key, at))
            .collect();
        let by_index = entries
            .iter()
            .enumerate()
            .map(|(at, entry)| (entry.peer.index, at))
            .collect();
        let routes = Prefixes::new(config.peers.iter().flat_map(|(key, peer)| {
            let at = by_key.get(key).copied();
            peer.routes
                .iter()
                .filter_map(move |cidr| Some((*cidr, at?)))
        }));
        Self {
            local: set(&config.local),
            routes,
            entries,
            by_key,
            by_index,
        }
    }

    /// The peer at a position, of a message to our index `receiver`.
    pub(super) fn by_receiver(&self, receiver: u32) -> Option<usize> {
        self.by_index.get(&wire::peer_index(receiver)).copied()
    }

    /// The position of a key.
    pub(super) fn by_key(&self, key: &PublicKey) -> Option<usize> {
        self.by_key.get(key).copied()
    }

    /// The entry of a key.
    pub(super) fn entry(&self, key: &PublicKey) -> Option<&Entry> {
        self.entries.get(self.by_key(key)?)
    }

    /// All indices in use.
    pub(super) fn indices(&self) -> BTreeSet<u32> {
        self.entries.iter().map(|entry| entry.peer.index).collect()
    }
}

/// Blocks as a set.
pub(super) fn set(blocks: &[Cidr]) -> Prefixes<()> {
    Prefixes::new(blocks.iter().map(|cidr| (*cidr, ())))
}

/// A free index of 24 bits, taken. An index says nothing about the peer to who watches the wire.
pub(super) fn free_index(taken: &mut BTreeSet<u32>, random: &mut Random) -> u32 {
    loop {
        let index = u32::try_from(random.chance().0 >> 40).unwrap_or_default();
        if taken.insert(index) {
            return index;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_have_24_bits_and_are_unique() {
        let (mut taken, mut random) = (BTreeSet::new(), Random::new(7));
        for _ in 0..20_000 {
            assert!(free_index(&mut taken, &mut random) < 1 << 24);
        }
        assert_eq!(taken.len(), 20_000);
    }
}
