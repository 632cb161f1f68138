//! What the threads of the driver share. Shell.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::x25519;

use super::counters::Drops;
use super::schedule::{Chance, Random};
use super::sources::Sources;
use super::table::Table;
use crate::key::PrivateKey;
use crate::net::tun::Tun;
use crate::net::udp::Udp;
use crate::net::wake::Wake;

/// Handshake messages in a second from which on senders must show a cookie. A gateway of a large fleet that
/// restarts gets some hundred at once; each costs about 0.2 ms.
const HANDSHAKES_BEFORE_COOKIES: u64 = 500;

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
    pub(super) private: PrivateKey,
    pub(super) public: x25519::PublicKey,
    pub(super) udp: Udp,
    /// Counts every handshake message once, and asks for cookies under load.
    pub(super) gate: RateLimiter,
    /// For the `Tunn`s, which would count a second time: never under load.
    pub(super) unlimited: Arc<RateLimiter>,
    pub(super) sources: Sources,
    pub(super) drops: Drops,
    pub(super) stop: Wake,
    pub(super) device_changed: Wake,
    table: RwLock<Arc<Table>>,
    device: RwLock<Arc<Device>>,
    random: Mutex<Random>,
}

impl Shared {
    pub(super) fn new(
        private: PrivateKey,
        tun: Tun,
        udp: Udp,
        table: Table,
        seed: u64,
    ) -> std::io::Result<Self> {
        let public = x25519::PublicKey::from(private.secret());
        Ok(Self {
            public,
            udp,
            gate: RateLimiter::new(&public, HANDSHAKES_BEFORE_COOKIES),
            unlimited: Arc::new(RateLimiter::new(&public, u64::MAX)),
            sources: Sources::default(),
            drops: Drops::default(),
            stop: Wake::new()?,
            device_changed: Wake::new()?,
            table: RwLock::new(Arc::new(table)),
            device: RwLock::new(Arc::new(Device::new(tun))),
            random: Mutex::new(Random::new(seed)),
            private,
        })
    }

    pub(super) fn table(&self) -> Arc<Table> {
        Arc::clone(
            self.table
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .deref(),
        )
    }

    pub(super) fn set_table(&self, table: Table) {
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
    }

    pub(super) fn device(&self) -> Arc<Device> {
        Arc::clone(
            self.device
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .deref(),
        )
    }

    pub(super) fn set_device(&self, tun: Tun) {
        *self.device.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Device::new(tun));
        self.device_changed.raise();
    }

    /// Chance for jitter.
    pub(super) fn chance(&self) -> Chance {
        self.with_random(Random::chance)
    }

    pub(super) fn with_random<T>(&self, f: impl FnOnce(&mut Random) -> T) -> T {
        f(&mut self.random.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
