//! From one configuration to the next: which peers stay, which are new, and in which lanes. Shell.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use subsea_api::PublicKey;

use super::STRIPE_KEEPALIVE;
use super::lane::Lane;
use super::peer::Peer;
use super::schedule::Side;
use super::shared::Shared;
use super::table::{self, Entry, Table};
use crate::tunnel::{PeerConfig, StripeConfig, TunnelConfig};

/// Makes the entries of a new configuration out of those of the old one.
pub(super) struct Change<'a> {
    pub(super) shared: &'a Shared,
    pub(super) old: &'a Table,
    pub(super) before: &'a TunnelConfig,
    /// Indices in use.
    pub(super) taken: BTreeSet<u32>,
    /// The peers that are to be in use.
    pub(super) steered: &'a BTreeSet<PublicKey>,
    /// Peers that are new.
    pub(super) added: usize,
    pub(super) now: Instant,
}

impl Change<'_> {
    /// The entry of a gateway in so many lanes as there are.
    pub(super) fn entry(
        &mut self,
        key: PublicKey,
        config: &PeerConfig,
        lanes: &[Arc<Lane>],
    ) -> Option<Entry> {
        let was = self.before.peers.get(&key);
        let old = self.old.entry(&key);
        let (first, further) = lanes.split_first()?;
        let moved = was.is_none_or(|was| was.endpoint != config.endpoint);
        let kept = old.map(Entry::first);
        let session = (key, config.endpoint, config.keepalive);
        let first = self.peer(first, kept, session, moved);
        let further = further.iter().map(|lane| {
            let of_lane = |stripe: &&StripeConfig| usize::from(stripe.stripe) == lane.number;
            let stripe = config.stripes.iter().find(of_lane)?;
            let kept = old.and_then(|old| old.stripe(lane.number));
            let kept = kept.filter(|peer| peer.key == stripe.key);
            let before = was.and_then(|was| was.stripes.iter().find(of_lane));
            let moved = before.is_none_or(|before| before.endpoint != stripe.endpoint);
            let session = (stripe.key, stripe.endpoint, Some(STRIPE_KEEPALIVE));
            Some(self.peer(lane, kept, session, moved))
        });
        let further = further.collect();
        let sources = match old {
            Some(old) if was.is_some_and(|was| was.sources == config.sources) => {
                Arc::clone(&old.sources)
            }
            Some(_) | None => Arc::new(table::set(&config.sources)),
        };
        let in_use = old.map(|old| Arc::clone(&old.in_use));
        let in_use =
            in_use.unwrap_or_else(|| Arc::new(AtomicBool::new(self.steered.contains(&key))));
        Some(Entry::new(first, further, sources, in_use))
    }

    /// A peer in a lane: the one that was there with what is new of it, or a new one.
    fn peer(
        &mut self,
        lane: &Lane,
        kept: Option<&Arc<Peer>>,
        (key, endpoint, keepalive): (PublicKey, Option<SocketAddr>, Option<u16>),
        moved: bool,
    ) -> Arc<Peer> {
        if let Some(peer) = kept {
            let mut state = peer.lock();
            state.set_keepalive(keepalive);
            if let Some(endpoint) = endpoint.filter(|_| moved) {
                state.move_to(endpoint, self.now);
            }
            return Arc::clone(peer);
        }
        tracing::debug!(peer = %key, lane = lane.number, "peer added");
        let index = self
            .shared
            .with_random(|random| table::free_index(&mut self.taken, random));
        let side = Side::of(lane.public.as_bytes(), key.as_bytes());
        let peer = Peer::new(lane, (key, side), index, self.now);
        let mut state = peer.lock();
        state.set_keepalive(keepalive);
        if let Some(endpoint) = endpoint {
            let wait = side.first_wait(self.added, self.shared.chance());
            state.start_at(endpoint, self.now + wait);
        }
        self.added += 1;
        drop(state);
        Arc::new(peer)
    }
}
