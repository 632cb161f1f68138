//! The WireGuard driver in this process: boringtun's state machines on a TUN device and UDP sockets.
//!
//! No async: every lane (a listener of ours) has two threads, `outbound` encrypts and `inbound` decrypts and answers
//! handshakes; `timers` lets time pass for all. They find peers in a `table`, which a new configuration replaces
//! whole. The PURE files decide: [`wire`] and [`inner`] read bytes, [`offload`] cuts and joins packets, [`prefixes`]
//! finds blocks, [`queue`] says whose turn it is, `verdict` what passes, `schedule` when to initiate.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use subsea_api::PublicKey;
use subsea_api::key::KeyError;

use self::lane::Lane;
use self::peer::Peer;
use self::schedule::Side;
use self::shared::Shared;
use self::table::{Entry, Table};
use crate::key::PrivateKey;
use crate::net::offload::Switch;
use crate::net::tun::Tun;
use crate::net::udp::{UdpError, UdpSettings};
use crate::tunnel::{
    DriverStatus, Feature, PeerConfig, PeerStats, StripeStats, Tunnel, TunnelConfig, TunnelStats,
};

mod counters;
mod inbound;
pub mod inner;
mod inside;
mod lane;
pub mod offload;
mod outbound;
mod outbox;
mod peer;
mod pool;
pub mod prefixes;
pub mod queue;
mod schedule;
mod shared;
mod sources;
mod table;
#[cfg(test)]
mod tests;
mod timers;
mod verdict;
pub mod wire;

/// Seconds between keepalives in a further lane, where they tell whether the session works; in lane 0 echo does.
const STRIPE_KEEPALIVE: u16 = 1;

/// The priority of packet threads, as `nice` has it; Linux has one for each thread.
const NICE: i32 = -10;

/// Why a tunnel did not start.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// No UDP sockets.
    #[error(transparent)]
    Udp(#[from] UdpError),
    /// The private key has no usable public key.
    #[error("the WireGuard private key cannot be used: {0}; remove the key file to get a new one")]
    Key(#[from] KeyError),
    /// A thread or a descriptor was refused.
    #[error("could not start the tunnel: {0}")]
    Start(#[source] io::Error),
}

/// The driver; its threads end when it is dropped. The device stays.
pub struct Userspace {
    shared: Arc<Shared>,
    applied: Mutex<TunnelConfig>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Userspace {
    /// Starts without peers on `tun`. A busy port is tried for 2 s, so this blocks.
    ///
    /// # Errors
    /// [`TunnelError`].
    pub fn start(tun: Tun, udp: UdpSettings, private: PrivateKey) -> Result<Self, TunnelError> {
        private.public_key()?;
        let lane = Lane::open(0, private, udp)?;
        let seed = getrandom::u64()
            .map_err(|error| TunnelError::Start(io::Error::other(error.to_string())))?;
        let table = Table::new(&TunnelConfig::default(), Vec::new());
        let shared = Arc::new(Shared::new(tun, lane, table, seed).map_err(TunnelError::Start)?);
        // Made first, so that a thread that fails to start stops the others by its drop.
        let tunnel = Self {
            shared,
            applied: Mutex::default(),
            threads: Mutex::default(),
        };
        tunnel.spawn("subsea-timers", timers::run)?;
        for lane in &*tunnel.shared.lanes() {
            tunnel.spawn_lane(lane)?;
        }
        Ok(tunnel)
    }

    /// Adds a lane with a key and a port of its own; gives its number. Peers get a session in it by the next
    /// [`Tunnel::apply`].
    ///
    /// # Errors
    /// [`TunnelError`], among them that the device was made with one queue only.
    pub fn add_lane(&self, udp: UdpSettings, private: PrivateKey) -> Result<usize, TunnelError> {
        private.public_key()?;
        let number = self.shared.lanes().len();
        let device = self.shared.device();
        if device.tun.queues() <= number {
            device.tun.add_queue().map_err(TunnelError::Start)?;
        }
        let lane = Arc::new(Lane::open(number, private, udp)?);
        self.shared.add_lane(Arc::clone(&lane));
        self.spawn_lane(&lane)?;
        Ok(number)
    }

    fn spawn_lane(&self, lane: &Arc<Lane>) -> Result<(), TunnelError> {
        let (outbound, inbound) = (Arc::clone(lane), Arc::clone(lane));
        let number = lane.number;
        self.spawn(&format!("subsea-out-{number}"), move |shared| {
            outbound::run(shared, &outbound);
        })?;
        self.spawn(&format!("subsea-in-{number}"), move |shared| {
            inbound::run(shared, &inbound);
        })
    }

    fn spawn(
        &self,
        name: &str,
        run: impl FnOnce(&Shared) + Send + 'static,
    ) -> Result<(), TunnelError> {
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            raise_priority();
            run(&shared);
        });
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.push(thread.map_err(TunnelError::Start)?);
        Ok(())
    }

    /// The UDP port of lane 0, the one chosen by the kernel where the settings had 0.
    pub fn port(&self) -> u16 {
        self.shared
            .lanes()
            .first()
            .map_or(0, |lane| lane.udp.port())
    }

    /// For tests: renews every session that is so old, if ours is the side that leads. Once only.
    pub fn rekey_after(&self, age: Duration) {
        let _ = self.shared.rekey_after.set(age);
    }

    /// Goes on with another device, after [`Tunnel::device_lost`]. Sessions stay.
    pub fn replace_device(&self, tun: Tun) {
        self.shared.set_device(tun);
    }
}

/// Makes the entries of a new configuration out of those of the old one.
struct Change<'a> {
    shared: &'a Shared,
    old: &'a Table,
    before: &'a TunnelConfig,
    /// Indices in use.
    taken: BTreeSet<u32>,
    /// Peers that are new.
    added: usize,
    now: Instant,
}

impl Change<'_> {
    fn entry(&mut self, key: PublicKey, config: &PeerConfig, lanes: &[Arc<Lane>]) -> Option<Entry> {
        let was = self.before.peers.get(&key);
        let old = self.old.entry(&key);
        let (first, further) = lanes.split_first()?;
        let moved = was.is_none_or(|was| was.endpoint != config.endpoint);
        let kept = old.map(Entry::first);
        let session = (key, config.endpoint, config.keepalive);
        let mut peers = vec![self.peer(first, kept, session, moved)];
        for (lane, stripe) in further.iter().zip(&config.stripes) {
            // Sessions are between lanes of the same number: a gap ends them.
            if usize::from(stripe.stripe) != lane.number {
                break;
            }
            let kept = old.and_then(|old| old.stripe(lane.number));
            let kept = kept.filter(|peer| peer.key == stripe.key);
            let before = was.and_then(|was| was.stripes.get(lane.number - 1));
            let moved = before.is_none_or(|before| before.endpoint != stripe.endpoint);
            let session = (stripe.key, stripe.endpoint, Some(STRIPE_KEEPALIVE));
            peers.push(self.peer(lane, kept, session, moved));
        }
        let sources = match old {
            Some(old) if was.is_some_and(|was| was.sources == config.sources) => {
                Arc::clone(&old.sources)
            }
            Some(_) | None => Arc::new(table::set(&config.sources)),
        };
        let mut peers = peers.into_iter();
        Some(Entry::new(peers.next()?, peers, sources))
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
        let unlimited = Arc::clone(&lane.unlimited);
        let peer = Peer::new(&lane.private, (key, side), index, unlimited, self.now);
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

impl Tunnel for Userspace {
    fn apply(&self, config: TunnelConfig) {
        let mut applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        if *applied == config {
            return;
        }
        let old = self.shared.table();
        let lanes = self.shared.lanes();
        let mut change = Change {
            shared: &self.shared,
            old: &old,
            before: &applied,
            taken: old.indices(),
            added: 0,
            now: Instant::now(),
        };
        let entries = config.peers.iter();
        let entries = entries.filter_map(|(key, peer)| change.entry(*key, peer, &lanes));
        let entries = entries.collect();
        self.shared.set_table(Table::new(&config, entries));
        *applied = config;
    }

    fn stats(&self) -> TunnelStats {
        let table = self.shared.table();
        let now = Instant::now();
        let peers: BTreeMap<_, _> = table
            .entries
            .iter()
            .map(|entry| (entry.first().key, stats_of(entry, now)))
            .collect();
        TunnelStats {
            peers,
            drops: self.shared.drops.read(),
        }
    }

    fn driver(&self) -> DriverStatus {
        let device = self.shared.device();
        let lanes = self.shared.lanes();
        let tun = &device.tun;
        let mut features = vec![
            feature("tun-tso", &tun.tso),
            feature("tun-uso", &tun.uso),
            feature("tun-gro", &tun.gro),
        ];
        if let Some(lane) = lanes.first() {
            features.push(feature("udp-gso", &lane.udp.gso));
            features.push(feature("udp-gro", &lane.udp.gro));
        }
        DriverStatus {
            name: "userspace".to_owned(),
            features,
        }
    }

    fn device_lost(&self) -> bool {
        self.shared.device().lost.load(Ordering::Relaxed)
    }
}

impl Drop for Userspace {
    fn drop(&mut self) {
        self.shared.stop.raise();
        let threads = self
            .threads
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the tunnel panicked");
            }
        }
    }
}

/// Puts the calling thread before ordinary ones: while it waits for a core, the kernel drops packets of all flows alike.
fn raise_priority() {
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!(%error, "a thread of the tunnel has the priority of ordinary ones");
    }
}

fn feature(name: &str, switch: &Switch) -> Feature {
    Feature {
        name: name.to_owned(),
        active: switch.is_on(),
        reason: switch.reason(),
    }
}

/// The counters of a gateway: the sum of its sessions, and each of the further ones.
fn stats_of(entry: &Entry, now: Instant) -> PeerStats {
    let mut sum = PeerStats::default();
    for (number, peer) in (0_u16..).zip(entry.peers()) {
        let (endpoint, latest_handshake, alive) = {
            let state = peer.lock();
            (
                state.endpoint(),
                state.latest_handshake(),
                state.is_alive(now),
            )
        };
        let (rx_bytes, tx_bytes) = (
            peer.rx_bytes.load(Ordering::Relaxed),
            peer.tx_bytes.load(Ordering::Relaxed),
        );
        sum.rx_bytes += rx_bytes;
        sum.tx_bytes += tx_bytes;
        for (reason, count) in peer.drops.read() {
            *sum.drops.entry(reason).or_default() += count;
        }
        let mtu = peer.path_mtu.load(Ordering::Relaxed);
        if mtu > 0 {
            sum.path_mtu = Some(sum.path_mtu.map_or(mtu, |known| known.min(mtu)));
        }
        if number == 0 {
            sum.endpoint = endpoint;
            sum.latest_handshake = latest_handshake;
        } else {
            sum.stripes.push(StripeStats {
                stripe: number,
                endpoint,
                alive,
                rx_bytes,
                tx_bytes,
            });
        }
    }
    sum
}
