//! The peers and how packets find them; made anew for every configuration and swapped whole. PURE but for `Peer`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use subsea_api::{Cidr, PublicKey};

use super::flows::{Flows, Group, Member};
use super::offload::flow::Flow;
use super::peer::Peer;
use super::prefixes::Prefixes;
use super::schedule::Random;
use super::wire;
use crate::tunnel::TunnelConfig;

/// One gateway of a configuration: a peer in one or more lanes.
pub(super) struct Entry {
    first: Arc<Peer>,
    /// By lane, from 1. Sessions are between lanes of the same number, and a peer may lack one in the middle.
    further: Vec<Option<Arc<Peer>>>,
    /// What it may send from.
    pub(super) sources: Arc<Prefixes<()>>,
    /// Whether it carries flows of its groups now; it goes on from one configuration to the next.
    pub(super) in_use: Arc<AtomicBool>,
    /// Whether others can carry what it carries.
    is_one_of_several: bool,
}

impl Entry {
    /// The peer in lane 0, and that in each further lane, where there is one.
    pub(super) fn new(
        first: Arc<Peer>,
        further: Vec<Option<Arc<Peer>>>,
        sources: Arc<Prefixes<()>>,
        in_use: Arc<AtomicBool>,
    ) -> Self {
        Self {
            first,
            further,
            sources,
            in_use,
            is_one_of_several: false,
        }
    }

    /// The peer in lane 0.
    pub(super) fn first(&self) -> &Arc<Peer> {
        &self.first
    }

    /// The peer in a lane, if it has a session there.
    pub(super) fn stripe(&self, lane: usize) -> Option<&Arc<Peer>> {
        match lane.checked_sub(1) {
            None => Some(&self.first),
            Some(at) => self.further.get(at)?.as_ref(),
        }
    }

    /// The peers of all lanes that it has one in, with the lanes' numbers.
    pub(super) fn peers(&self) -> impl Iterator<Item = (usize, &Arc<Peer>)> {
        let further = (1..).zip(&self.further);
        let further = further.filter_map(|(lane, peer)| Some((lane, peer.as_ref()?)));
        [(0, &self.first)].into_iter().chain(further)
    }
}

/// Who gets what is for a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// The gateway at this position.
    Entry(u32),
    /// One of the group at this position.
    Group(u32),
}

/// A configuration as the packet path reads it.
pub(super) struct Table {
    /// What is ours.
    pub(super) local: Prefixes<()>,
    /// Who has an inner destination.
    pub(super) routes: Prefixes<Target>,
    pub(super) entries: Vec<Entry>,
    /// Those of more than one member.
    groups: Vec<Group>,
    /// What carries which flow; only where there are such groups.
    flows: Option<Arc<Flows>>,
    by_key: BTreeMap<PublicKey, usize>,
    lanes: Vec<Index>,
    /// Where peers are said to be.
    known: HashSet<IpAddr>,
}

/// Positions of gateways in one lane.
#[derive(Default)]
struct Index {
    by_key: BTreeMap<PublicKey, usize>,
    by_index: HashMap<u32, usize>,
}

impl Table {
    /// Puts a configuration and its peers together. Every key of `config.peers` is in `entries`. `flows` gives the memory
    /// of flows, if it is needed.
    pub(super) fn new(
        config: &TunnelConfig,
        mut entries: Vec<Entry>,
        flows: impl FnOnce() -> Arc<Flows>,
    ) -> Self {
        let mut lanes: Vec<Index> = Vec::new();
        for (at, entry) in entries.iter().enumerate() {
            for (lane, peer) in entry.peers() {
                if lanes.len() <= lane {
                    lanes.resize_with(lane + 1, Index::default);
                }
                lanes[lane].by_key.insert(peer.key, at);
                lanes[lane].by_index.insert(peer.index, at);
            }
        }
        let by_key = lanes
            .first()
            .map(|lane| lane.by_key.clone())
            .unwrap_or_default();
        let mut routes: Vec<(Cidr, Target)> = Vec::new();
        let mut lead = |blocks: &[Cidr], target: Target| {
            routes.extend(blocks.iter().map(|cidr| (*cidr, target)));
        };
        for (key, peer) in &config.peers {
            if let Some(at) = by_key.get(key).and_then(|at| u32::try_from(*at).ok()) {
                lead(&peer.routes, Target::Entry(at));
            }
        }
        let mut groups = Vec::new();
        for group in &config.groups {
            let members = group.members.iter();
            let members = members.filter_map(|key| by_key.get(key).copied());
            let target = match members.clone().collect::<Vec<_>>()[..] {
                [] => continue,
                // As if it were its own alone: nothing is chosen, and nothing remembered.
                [lone] => u32::try_from(lone).map(Target::Entry),
                [..] => {
                    let member = |at: usize| {
                        let entry: &mut Entry = entries.get_mut(at)?;
                        entry.is_one_of_several = true;
                        let Peer { index, key, .. } = &*entry.first;
                        Some(Member::new(at, *index, key, &entry.in_use))
                    };
                    groups.push(Group::new(members.filter_map(member).collect()));
                    u32::try_from(groups.len() - 1).map(Target::Group)
                }
            };
            if let Ok(target) = target {
                lead(&group.routes, target);
            }
        }
        Self {
            local: set(&config.local),
            routes: Prefixes::new(routes),
            entries,
            flows: (!groups.is_empty()).then(flows),
            groups,
            by_key,
            lanes,
            known: config
                .peers
                .values()
                .flat_map(|peer| {
                    let stripes = peer.stripes.iter().map(|stripe| stripe.endpoint);
                    stripes.chain([peer.endpoint]).flatten()
                })
                .map(|endpoint| endpoint.ip())
                .collect(),
        }
    }

    /// Whether a peer is said to be at this address.
    pub(super) fn knows(&self, addr: IpAddr) -> bool {
        self.known.contains(&addr)
    }

    /// The position of the gateway that a message to our index `receiver` in a lane is from.
    pub(super) fn by_receiver(&self, lane: usize, receiver: u32) -> Option<usize> {
        let index = self.lanes.get(lane)?;
        index.by_index.get(&wire::peer_index(receiver)).copied()
    }

    /// The position of the gateway that has this key in a lane.
    pub(super) fn by_key(&self, lane: usize, key: &PublicKey) -> Option<usize> {
        self.lanes.get(lane)?.by_key.get(key).copied()
    }

    /// Who gets a packet for a target; `None` when none of a group is in use.
    pub(super) fn carrier(&self, target: Target, packet: &[u8], now: Instant) -> Option<&Entry> {
        let at = match target {
            Target::Entry(at) => at as usize,
            Target::Group(group) => {
                let flows = self.flows.as_deref()?;
                let hash = |key| Flow::of_road(packet, key).hash();
                self.groups.get(group as usize)?.carrier(
                    flows,
                    hash(flows.key()),
                    flows.tick(now),
                    || hash(0),
                )?
            }
        };
        self.entries.get(at)
    }

    /// Notes by whom a packet came, so that the answers go the same way. An ICMP error is taken for what it is itself: it
    /// moves no flow that it is about, since whoever is on the way of one may have made it.
    pub(super) fn came_by(&self, entry: &Entry, packet: &[u8], now: Instant) {
        if !entry.is_one_of_several {
            return;
        }
        let Some(flows) = self.flows.as_deref() else {
            return;
        };
        if entry.in_use.load(Ordering::Relaxed) {
            let answers = Flow::of(packet, flows.key()).reversed();
            flows.put(answers.hash(), entry.first.index, flows.tick(now));
        }
    }

    /// What carries which flow, where that is remembered.
    pub(super) fn flows(&self) -> Option<&Arc<Flows>> {
        self.flows.as_ref()
    }

    /// The entry of a key.
    pub(super) fn entry(&self, key: &PublicKey) -> Option<&Entry> {
        self.entries.get(*self.by_key.get(key)?)
    }

    /// All indices in use.
    pub(super) fn indices(&self) -> BTreeSet<u32> {
        let peers = self.entries.iter().flat_map(Entry::peers);
        peers.map(|(_, peer)| peer.index).collect()
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
