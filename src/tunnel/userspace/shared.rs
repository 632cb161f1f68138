//! What the threads of the driver share. Shell.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use subsea_api::PublicKey;
use tokio::sync::watch;

use super::counters::Drops;
use super::lane::Lane;
use super::schedule::{Chance, Random};
use super::table::Table;
use crate::net::tun::{QUEUES, Tun};
use crate::net::wake::{Wake, wait_readable};

/// A device, and whether it went away.
pub(super) struct Device {
    pub(super) tun: Tun,
    pub(super) lost: AtomicBool,
}

impl Device {
    pub(super) fn new(tun: Tun) -> Self {
        Self {
            tun,
            lost: AtomicBool::new(false),
        }
    }

    /// Notes that it went away, and says so once.
    pub(super) fn lose(&self, error: &std::io::Error) {
        if !self.lost.swap(true, Ordering::Relaxed) {
            tracing::warn!(device = self.tun.name(), %error, "the tunnel device is gone");
        }
    }
}

/// What the threads share.
pub(super) struct Shared {
    pub(super) drops: Drops,
    pub(super) stop: Wake,
    /// How often a peer's port was said to be nobody's, see [`crate::tunnel::Tunnel::refusals`].
    pub(super) refusals: watch::Sender<BTreeMap<PublicKey, u64>>,
    /// For tests: the age at which sessions are renewed.
    pub(super) rekey_after: OnceLock<Duration>,
    lanes: RwLock<Arc<[Arc<Lane>]>>,
    table: RwLock<Arc<Table>>,
    /// Where peers were a second ago.
    heard: RwLock<Arc<HashSet<IpAddr>>>,
    device: RwLock<Arc<Device>>,
    /// Raised for each lane when the device is another one, or has another queue.
    device_changed: Box<[Wake]>,
    random: Mutex<Random>,
}

impl Shared {
    pub(super) fn new(tun: Tun, lane: Lane, table: Table, seed: u64) -> std::io::Result<Self> {
        let wakes = (0..QUEUES).map(|_| Wake::new());
        Ok(Self {
            drops: Drops::default(),
            stop: Wake::new()?,
            refusals: watch::Sender::new(BTreeMap::new()),
            rekey_after: OnceLock::new(),
            lanes: RwLock::new(Arc::new([Arc::new(lane)])),
            table: RwLock::new(Arc::new(table)),
            heard: RwLock::default(),
            device: RwLock::new(Arc::new(Device::new(tun))),
            device_changed: wakes.collect::<Result<_, _>>()?,
            random: Mutex::new(Random::new(seed)),
        })
    }

    /// The lanes, by number; there is always the first.
    pub(super) fn lanes(&self) -> Arc<[Arc<Lane>]> {
        read(&self.lanes)
    }

    /// Adds a lane; its number is that of those before it.
    pub(super) fn add_lane(&self, lane: Arc<Lane>) {
        let mut lanes = self.lanes.write().unwrap_or_else(PoisonError::into_inner);
        *lanes = lanes.iter().cloned().chain([lane]).collect();
    }

    /// Whether the threads are to end.
    pub(super) fn is_stopped(&self) -> bool {
        wait_readable([self.stop.as_fd()], Some(Duration::ZERO)).is_ok_and(|[stopped]| stopped)
    }

    pub(super) fn table(&self) -> Arc<Table> {
        read(&self.table)
    }

    pub(super) fn set_table(&self, table: Table) {
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
    }

    /// Whether a peer was at this address a second ago.
    pub(super) fn heard(&self, addr: IpAddr) -> bool {
        read(&self.heard).contains(&addr)
    }

    pub(super) fn set_heard(&self, peers: impl Iterator<Item = IpAddr>) {
        let heard = Arc::new(peers.collect());
        *self.heard.write().unwrap_or_else(PoisonError::into_inner) = heard;
    }

    pub(super) fn device(&self) -> Arc<Device> {
        read(&self.device)
    }

    pub(super) fn set_device(&self, tun: Tun) {
        *self.device.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Device::new(tun));
        self.wake_lanes();
    }

    /// Has the lanes look at the device again.
    pub(super) fn wake_lanes(&self) {
        self.device_changed.iter().for_each(Wake::raise);
    }

    /// What is raised for a lane when the device is another one.
    pub(super) fn device_changed(&self, lane: usize) -> &Wake {
        self.device_changed.get(lane).unwrap_or(&self.stop)
    }

    /// Chance for jitter.
    pub(super) fn chance(&self) -> Chance {
        self.with_random(Random::chance)
    }

    pub(super) fn with_random<T>(&self, f: impl FnOnce(&mut Random) -> T) -> T {
        f(&mut self.random.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn read<T: ?Sized>(value: &RwLock<Arc<T>>) -> Arc<T> {
    Arc::clone(value.read().unwrap_or_else(PoisonError::into_inner).deref())
}
