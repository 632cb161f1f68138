//! The WireGuard driver in this process: boringtun's state machines on a TUN device and UDP sockets.
//!
//! No async: every lane (a listener of ours) has a `worker` of two threads for two ways, `outbound` encrypts and
//! `inbound` decrypts and answers handshakes; `timers` lets time pass for all. They find peers in a `table`, which a new
//! configuration replaces whole. The PURE files decide: [`wire`] and [`inner`] read bytes, [`offload`] cuts and joins
//! packets, [`prefixes`] finds blocks, `flows` says which gateway of a group carries a flow, [`queue`] whose turn it is,
//! `verdict` what passes, `schedule` when to initiate, [`stripes`] when a further lane is worth it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use subsea_api::PublicKey;
use subsea_api::key::KeyError;
use tokio::sync::watch;

use self::change::Change;
use self::flows::Flows;
use self::growth::Growth;
use self::lane::Lane;
use self::shared::Shared;
use self::stripes::Plan;
use self::table::{Entry, Table};
use self::worker::Ways;
use crate::key::PrivateKey;
use crate::net::offload::Switch;
use crate::net::tun::Tun;
use crate::net::udp::{UdpError, UdpSettings};
use crate::tunnel::{
    DriverStatus, Feature, PeerStats, Restored, StripeStats, Tunnel, TunnelConfig, TunnelStats,
};

mod admission;
mod balance;
mod budget;
mod change;
mod cipher;
mod counters;
mod flows;
mod growth;
mod inbound;
pub mod inner;
mod inside;
mod lane;
mod meter;
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
pub mod stripes;
mod table;
#[cfg(test)]
mod tests;
mod timers;
mod verdict;
pub mod wire;
mod worker;

pub use self::growth::LaneSource;

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
    /// A further lane has no listener.
    #[error("{0}")]
    Listener(String),
    /// The device takes no further queue, ever.
    #[error(
        "the tunnel device was made with one queue only; stop the gateway, remove the device, and start it again"
    )]
    OneQueue,
    /// The device was refused a further queue.
    #[error("the tunnel device gets no further queue: {0}")]
    Queue(#[source] io::Error),
}

/// The driver; its threads end when it is dropped. The device stays.
pub struct Userspace {
    driver: Arc<Driver>,
    /// The thread that adds lanes.
    growth: Mutex<Option<JoinHandle<()>>>,
}

/// What adding lanes needs of the driver.
struct Driver {
    shared: Arc<Shared>,
    /// Also held while the lanes or the device change.
    applied: Mutex<TunnelConfig>,
    /// The peers that are to be in use, configured or not.
    steered: Mutex<BTreeSet<PublicKey>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    stripes: watch::Sender<u16>,
}

impl Userspace {
    /// Starts with lane 0 and without peers on `tun`. A busy port is tried for 2 s, so this blocks.
    ///
    /// # Errors
    /// [`TunnelError`].
    pub fn start(tun: Tun, udp: UdpSettings, private: PrivateKey) -> Result<Self, TunnelError> {
        private.public_key()?;
        if !cipher::ENCRYPTS {
            tracing::error!(
                "this program was built to measure and DOES NOT ENCRYPT: see src/tunnel/userspace/cipher.rs"
            );
        }
        let lane = Lane::open(0, private, udp)?;
        let seed = getrandom::u64()
            .map_err(|error| TunnelError::Start(io::Error::other(error.to_string())))?;
        let flows = || Arc::new(Flows::new(seed, Instant::now()));
        let table = Table::new(&TunnelConfig::default(), Vec::new(), flows);
        let shared = Arc::new(Shared::new(tun, lane, table, seed).map_err(TunnelError::Start)?);
        // Made first, so that a thread that fails to start stops the others by its drop.
        let tunnel = Self {
            driver: Arc::new(Driver {
                shared,
                applied: Mutex::default(),
                steered: Mutex::default(),
                threads: Mutex::default(),
                stripes: watch::Sender::new(1),
            }),
            growth: Mutex::default(),
        };
        tunnel.driver.spawn("subsea-timers", timers::run)?;
        for lane in &*tunnel.driver.shared.lanes() {
            tunnel.driver.spawn_lane(lane)?;
        }
        Ok(tunnel)
    }

    /// Adds lanes, each with a listener from `source`: a fixed number at once (a busy port is tried for 2 s, so this
    /// blocks), others when there is use for them. A lane that cannot be had is tried again.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn grow(&self, plan: Plan, source: Box<dyn LaneSource>) -> Result<(), TunnelError> {
        let growth = Growth::new(Arc::clone(&self.driver), plan, source);
        let thread = growth.start().map_err(TunnelError::Start)?;
        *lock(&self.growth) = thread;
        Ok(())
    }

    /// The UDP port of lane 0, the one chosen by the kernel where the settings had 0.
    pub fn port(&self) -> u16 {
        let lanes = self.driver.shared.lanes();
        lanes.first().map_or(0, |lane| lane.udp.port())
    }

    /// For tests: renews every session that is so old, if ours is the side that leads. Once only.
    pub fn rekey_after(&self, age: Duration) {
        let _ = self.driver.shared.rekey_after.set(age);
    }

    /// Goes on with another device, after [`Tunnel::device_lost`]. Sessions stay.
    pub fn replace_device(&self, tun: Tun) {
        let _held = lock(&self.driver.applied);
        // One that has fewer queues than there are lanes is grown further by who adds lanes.
        while tun.queues() < self.driver.shared.lanes().len() {
            if let Err(error) = tun.add_queue() {
                tracing::warn!(device = tun.name(), %error, "no further queue: fewer stripes send");
                break;
            }
        }
        self.driver.shared.set_device(tun);
    }
}

impl Driver {
    /// How many lanes work both ways: those with a queue of the device.
    fn lanes(&self) -> usize {
        let queues = self.shared.device().tun.queues();
        self.shared.lanes().len().min(queues)
    }

    /// Adds a lane, or what the last one lacks, and says so.
    fn add_lane(&self, source: &dyn LaneSource) -> Result<(), TunnelError> {
        let number = self.shared.lanes().len();
        if self.lanes() < number {
            return self.add_queue();
        }
        if !self.shared.device().tun.takes_queues(number) {
            return Err(TunnelError::OneQueue);
        }
        let number = u16::try_from(number).unwrap_or(u16::MAX);
        let (udp, private) = source.listener(number).map_err(TunnelError::Listener)?;
        private.public_key()?;
        let lane = Arc::new(Lane::open(number.into(), private, udp)?);
        {
            let applied = lock(&self.applied);
            // The threads before the queue: the kernel gives packets to a queue as soon as it is there.
            self.spawn_lane(&lane)?;
            self.shared.add_lane(lane);
            self.rebuild(&applied, &applied);
        }
        self.add_queue()
    }

    fn add_queue(&self) -> Result<(), TunnelError> {
        let _held = lock(&self.applied);
        let (device, lanes) = (self.shared.device(), self.shared.lanes().len());
        while device.tun.queues() < lanes {
            device.tun.add_queue().map_err(TunnelError::Queue)?;
        }
        self.shared.wake_lanes();
        let lanes = u16::try_from(lanes).unwrap_or(u16::MAX);
        self.stripes.send_if_modified(|now| {
            let grown = *now < lanes;
            *now = lanes.max(*now);
            grown
        });
        Ok(())
    }

    /// Makes the table for `config`, out of the one for `before`.
    fn rebuild(&self, config: &TunnelConfig, before: &TunnelConfig) {
        let old = self.shared.table();
        let lanes = self.shared.lanes();
        let steered = lock(&self.steered).clone();
        let now = Instant::now();
        let mut change = Change {
            shared: &self.shared,
            old: &old,
            before,
            taken: old.indices(),
            steered: &steered,
            added: 0,
            now,
        };
        let entries = config.peers.iter();
        let entries = entries.filter_map(|(key, peer)| change.entry(*key, peer, &lanes));
        let entries = entries.collect();
        let flows = || {
            let new = || {
                // Indices are on the wire: what they come from is no secret for long.
                let key = getrandom::u64().unwrap_or_else(|_| self.shared.chance().0);
                Arc::new(Flows::new(key, now))
            };
            old.flows().map_or_else(new, Arc::clone)
        };
        self.shared.set_table(Table::new(config, entries, flows));
        // What was steered meanwhile did not know of the new peers.
        self.set_in_use(&lock(&self.steered));
    }

    /// Has the peers of the present table in use or not. Whoever calls it holds what is `steered`.
    fn set_in_use(&self, steered: &BTreeSet<PublicKey>) {
        let table = self.shared.table();
        // Those that come into use first: at no time is none.
        for in_use in [true, false] {
            for entry in &table.entries {
                let key = &entry.first().key;
                let is_due = steered.contains(key) == in_use;
                if is_due && entry.in_use.swap(in_use, Ordering::AcqRel) != in_use {
                    tracing::debug!(peer = %key, in_use, "steered");
                }
            }
        }
    }

    fn spawn_lane(&self, lane: &Arc<Lane>) -> Result<(), TunnelError> {
        let first = Arc::new(Ways::new(&self.shared, lane).map_err(TunnelError::Start)?);
        let second = Arc::clone(&first);
        self.spawn(&format!("subsea-lane-{}", lane.number), move |_| {
            first.first();
        })?;
        self.spawn(&format!("subsea-in-{}", lane.number), move |_| {
            second.second();
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
        lock(&self.threads).push(thread.map_err(TunnelError::Start)?);
        Ok(())
    }
}

impl Tunnel for Userspace {
    fn apply(&self, config: TunnelConfig) {
        let mut applied = lock(&self.driver.applied);
        if *applied != config {
            self.driver.rebuild(&config, &applied);
            *applied = config;
        }
    }

    fn steer(&self, in_use: &BTreeSet<PublicKey>) {
        let mut steered = lock(&self.driver.steered);
        steered.clone_from(in_use);
        self.driver.set_in_use(&steered);
    }

    fn stats(&self) -> TunnelStats {
        let table = self.driver.shared.table();
        let now = Instant::now();
        let peers: BTreeMap<_, _> = table
            .entries
            .iter()
            .map(|entry| (entry.first().key, stats_of(entry, now)))
            .collect();
        TunnelStats {
            peers,
            drops: self.driver.shared.drops.read(),
        }
    }

    fn driver(&self) -> DriverStatus {
        let device = self.driver.shared.device();
        let lanes = self.driver.shared.lanes();
        let tun = &device.tun;
        let mut features = vec![
            feature("tun-tso", &tun.tso),
            feature("tun-uso", &tun.uso),
            feature("tun-gro", &tun.gro),
        ];
        // Of several sockets, one that does without is shown.
        let shown = |of: fn(&Lane) -> &Switch| {
            let mut all = lanes.iter().map(|lane| of(lane));
            let off = all.clone().find(|switch| !switch.is_on());
            off.or_else(|| all.next())
        };
        let udp = [
            ("udp-gso", shown(|lane| &lane.udp.gso)),
            ("udp-gro", shown(|lane| &lane.udp.gro)),
        ];
        features.extend(
            udp.into_iter()
                .filter_map(|(name, switch)| Some(feature(name, switch?))),
        );
        DriverStatus {
            name: "userspace".to_owned(),
            features,
        }
    }

    fn stripes(&self) -> watch::Receiver<u16> {
        self.driver.stripes.subscribe()
    }

    fn refusals(&self) -> watch::Receiver<BTreeMap<PublicKey, u64>> {
        self.driver.shared.refusals.subscribe()
    }

    fn sends_whole(&self) -> bool {
        true
    }

    fn device_of(&self, _slot: u16) -> String {
        self.driver.shared.device().tun.name().to_owned()
    }

    fn leaves_checks(&self) -> bool {
        false
    }

    fn device_lost(&self) -> bool {
        self.driver.shared.device().lost.load(Ordering::Relaxed)
    }

    fn restore(&self) -> Restored {
        match self.driver.shared.device().tun.reopen() {
            Ok(tun) => {
                self.replace_device(tun);
                Restored {
                    made: true,
                    lost: BTreeMap::new(),
                }
            }
            Err(error) => Restored {
                made: false,
                lost: BTreeMap::from([(self.device_of(0), error.to_string())]),
            },
        }
    }
}

impl Drop for Userspace {
    fn drop(&mut self) {
        self.driver.shared.stop.raise();
        let growth = lock(&self.growth).take();
        // The thread that adds others ends first.
        growth.into_iter().for_each(end);
        let threads = std::mem::take(&mut *lock(&self.driver.threads));
        threads.into_iter().for_each(end);
    }
}

fn end(thread: JoinHandle<()>) {
    if thread.join().is_err() {
        tracing::error!("a thread of the tunnel panicked");
    }
}

/// A lock that a panic elsewhere does not make useless: every value behind one is whole at any time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
    for (number, peer) in entry.peers() {
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
                stripe: u16::try_from(number).unwrap_or(u16::MAX),
                endpoint,
                alive,
                rx_bytes,
                tx_bytes,
            });
        }
    }
    sum
}
