//! From the wanted tunnel and what the kernel's devices hold to the changes between them. PURE.
//!
//! Blocks are unique in a device, and a block that a peer gains leaves the one that had it in the same instant. So
//! gains come first, and only what nobody gained is taken away afterwards: a block that moves is never homeless.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use subsea_api::{Cidr, PublicKey};

use crate::net::wireguard::{Device, Peer, PeerChange};
use crate::tunnel::{REJECT_AFTER, TunnelConfig};

/// What one device should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Our public key in it.
    pub key: Option<PublicKey>,
    /// The port that it listens on.
    pub port: u16,
    /// The mark of its packets.
    pub mark: u32,
    /// Its peers.
    pub peers: BTreeMap<PublicKey, WantedPeer>,
}

/// What one peer should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WantedPeer {
    /// Where to send the first packet.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between keepalives; 0 for none.
    pub keepalive: u16,
    /// Its blocks in both directions.
    pub allowed: BTreeSet<Cidr>,
}

/// The endpoints that peers were configured with last, by this process.
pub type Remembered = BTreeMap<PublicKey, Memory>;

/// The endpoint that a peer was configured with last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    endpoint: Option<SocketAddr>,
    /// Whether the peer was sent there; else an earlier process had sent it elsewhere, where it lived.
    set: bool,
}

/// What is to be remembered once `changes` are made.
pub fn remember(
    wanted: &Wanted,
    observed: &Device,
    before: &Remembered,
    changes: &Changes,
) -> Remembered {
    let memory = |(key, peer): (&PublicKey, &WantedPeer)| {
        let there = observed.peers.get(key).and_then(|there| there.endpoint);
        let known = before.get(key).filter(|m| m.endpoint == peer.endpoint);
        let sent = |change: &PeerChange| change.key == *key && change.endpoint.is_some();
        let set = known.is_some_and(|memory| memory.set)
            || there == peer.endpoint
            || changes.peers.iter().any(sent);
        let endpoint = peer.endpoint;
        (*key, Memory { endpoint, set })
    };
    wanted.peers.iter().map(memory).collect()
}

/// What is to be changed of one device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Whether it needs our private key; that ends its sessions.
    pub key: bool,
    /// The port to listen on.
    pub port: Option<u16>,
    /// The mark of its packets.
    pub mark: Option<u32>,
    /// Peers, in order.
    pub peers: Vec<PeerChange>,
}

impl Changes {
    /// Whether all is as it should be.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The slots that need a device: the first always, for it has our addresses.
pub fn slots(config: &TunnelConfig) -> BTreeSet<u16> {
    let used = config.peers.values().map(|peer| peer.slot);
    used.chain([0]).collect()
}

/// The slots in which a group has more than one member: there it matters who is in use.
pub fn contested(config: &TunnelConfig) -> BTreeSet<u16> {
    let mut contested = BTreeSet::new();
    for group in &config.groups {
        let mut seen = BTreeSet::new();
        let members = group.members.iter();
        let slots = members.filter_map(|key| Some(config.peers.get(key)?.slot));
        contested.extend(slots.filter(|slot| !seen.insert(*slot)));
    }
    contested
}

/// What the device of `slot` should be. Each member of a group has the group's blocks there, whether it is in use or not:
/// so it is ready to carry as soon as a route leads to its device.
pub fn wanted(
    config: &TunnelConfig,
    slot: u16,
    in_use: &BTreeSet<PublicKey>,
) -> BTreeMap<PublicKey, WantedPeer> {
    let of_slot = || config.peers.iter().filter(|(_, peer)| peer.slot == slot);
    let mut wanted: BTreeMap<_, _> = of_slot()
        .map(|(key, peer)| {
            let wanted = WantedPeer {
                endpoint: peer.endpoint,
                keepalive: peer.keepalive.unwrap_or(0),
                allowed: BTreeSet::new(),
            };
            (*key, wanted)
        })
        .collect();
    // Both directions have one list, and the kernel has each block at one peer only. As a rule a cluster has one gateway
    // in a slot; while a gateway that is gone is kept beside the one that has its slot now, both name all blocks of the
    // cluster. So a block goes first to the peer that it is routed to, then to the member of its group that is in use,
    // else to the first that names it, so that no two take it from each other for ever.
    let routed = of_slot().map(|(key, peer)| (key, &peer.routes));
    let members = |used: bool| {
        let groups = config.groups.iter();
        let all =
            groups.flat_map(|group| group.members.iter().map(move |key| (key, &group.routes)));
        all.filter(move |(key, _)| in_use.contains(key) == used)
    };
    let named = of_slot().map(|(key, peer)| (key, &peer.sources));
    let mut taken = BTreeSet::new();
    for (key, blocks) in routed
        .chain(members(true))
        .chain(members(false))
        .chain(named)
    {
        // Members of other slots are not there.
        if let Some(wanted) = wanted.get_mut(key) {
            let free = blocks.iter().filter(|block| taken.insert(**block));
            wanted.allowed.extend(free);
        }
    }
    wanted
}

/// The changes that make `observed` what is wanted. `now` is the time since the epoch.
pub fn plan(wanted: &Wanted, observed: &Device, remembered: &Remembered, now: Duration) -> Changes {
    Changes {
        key: wanted.key.is_some() && wanted.key != observed.public_key,
        port: (wanted.port != observed.port).then_some(wanted.port),
        mark: (wanted.mark != observed.fwmark).then_some(wanted.mark),
        peers: peers(wanted, observed, remembered, now),
    }
}

fn peers(
    wanted: &Wanted,
    observed: &Device,
    remembered: &Remembered,
    now: Duration,
) -> Vec<PeerChange> {
    let mut changes = Vec::new();
    let mut gained = BTreeSet::new();
    for (key, peer) in &wanted.peers {
        let there = observed.peers.get(key);
        let has = |block: &&Cidr| there.is_some_and(|there| there.allowed.contains(*block));
        let change = PeerChange {
            endpoint: endpoint(peer, there, remembered.get(key), now),
            keepalive: (there.map_or(0, |there| there.keepalive) != peer.keepalive)
                .then_some(peer.keepalive),
            allowed: peer.allowed.iter().filter(|b| !has(b)).copied().collect(),
            ..PeerChange::new(*key)
        };
        gained.extend(change.allowed.iter().copied());
        if there.is_none() || change != PeerChange::new(*key) {
            changes.push(change);
        }
    }
    for (key, there) in &observed.peers {
        let Some(peer) = wanted.peers.get(key) else {
            continue;
        };
        let left = |block: &Cidr| !peer.allowed.contains(block) && !gained.contains(block);
        if there.allowed.iter().any(left) {
            changes.push(PeerChange {
                replace: true,
                allowed: peer.allowed.iter().copied().collect(),
                ..PeerChange::new(*key)
            });
        }
    }
    let gone = observed
        .peers
        .keys()
        .filter(|key| !wanted.peers.contains_key(key));
    changes.extend(gone.map(|key| PeerChange {
        remove: true,
        ..PeerChange::new(*key)
    }));
    changes
}

/// Where a peer is to be sent to, if that is not where it is. One that speaks from elsewhere stays there until its
/// configured place changes; of a peer that an earlier process set up, a session tells whether it is still there.
fn endpoint(
    peer: &WantedPeer,
    there: Option<&Peer>,
    remembered: Option<&Memory>,
    now: Duration,
) -> Option<SocketAddr> {
    let wanted = peer.endpoint?;
    let Some(at) = there.and_then(|there| there.endpoint) else {
        return Some(wanted);
    };
    let dead = || !there.is_some_and(|there| lives(there, now));
    let moved = match remembered {
        Some(before) if before.endpoint != Some(wanted) => true,
        Some(before) => !before.set && dead(),
        None => dead(),
    };
    (moved && at != wanted).then_some(wanted)
}

fn lives(peer: &Peer, now: Duration) -> bool {
    peer.latest_handshake
        .is_some_and(|at| now.saturating_sub(at) < REJECT_AFTER)
}

#[cfg(test)]
mod tests;
