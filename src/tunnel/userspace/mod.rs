//! The WireGuard driver in this process: boringtun's state machines on a TUN device and two UDP sockets.
//!
//! Three threads, no async: `outbound` encrypts, `inbound` decrypts and answers handshakes, `timers` lets time
//! pass. They find peers in a `table`, which a new configuration replaces whole. The PURE files decide: [`wire`]
//! and [`inner`] read bytes, [`prefixes`] finds blocks, `verdict` says what passes, `schedule` when to initiate.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use subsea_api::PublicKey;
use subsea_api::key::KeyError;

use self::peer::Peer;
use self::schedule::Side;
use self::shared::Shared;
use self::table::{Entry, Table};
use crate::key::PrivateKey;
use crate::net::tun::Tun;
use crate::net::udp::{Udp, UdpError, UdpSettings};
use crate::tunnel::{DriverStatus, PeerConfig, PeerStats, Tunnel, TunnelConfig, TunnelStats};

mod counters;
mod inbound;
pub mod inner;
mod outbound;
mod outbox;
mod peer;
pub mod prefixes;
mod schedule;
mod shared;
mod sources;
mod table;
#[cfg(test)]
mod tests;
mod timers;
mod verdict;
pub mod wire;

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
    key: PublicKey,
    applied: Mutex<TunnelConfig>,
    threads: Vec<JoinHandle<()>>,
}

impl Userspace {
    /// Starts without peers on `tun`. A busy port is tried for 2 s, so this blocks.
    ///
    /// # Errors
    /// [`TunnelError`].
    pub fn start(tun: Tun, udp: UdpSettings, private: PrivateKey) -> Result<Self, TunnelError> {
        let key = private.public_key()?;
        let udp = Udp::bind(udp)?;
        let seed = getrandom::u64()
            .map_err(|error| TunnelError::Start(io::Error::other(error.to_string())))?;
        let table = Table::new(&TunnelConfig::default(), Vec::new());
        let shared =
            Arc::new(Shared::new(private, tun, udp, table, seed).map_err(TunnelError::Start)?);
        // Made first, so that a thread that fails to start stops the others by its drop.
        let mut tunnel = Self {
            shared,
            key,
            applied: Mutex::default(),
            threads: Vec::new(),
        };
        tunnel.spawn("subsea-out", outbound::run)?;
        tunnel.spawn("subsea-in", inbound::run)?;
        tunnel.spawn("subsea-timers", timers::run)?;
        Ok(tunnel)
    }

    fn spawn(&mut self, name: &str, run: fn(&Shared)) -> Result<(), TunnelError> {
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run(&shared));
        self.threads.push(thread.map_err(TunnelError::Start)?);
        Ok(())
    }

    /// The UDP port, the one chosen by the kernel where the settings had 0.
    pub fn port(&self) -> u16 {
        self.shared.udp.port()
    }

    /// Goes on with another device, after [`Tunnel::device_lost`]. Sessions stay.
    pub fn replace_device(&self, tun: Tun) {
        self.shared.set_device(tun);
    }

    /// The entry of a peer that was there before, with what the new configuration changes.
    fn keep(old: &Entry, was: Option<&PeerConfig>, config: &PeerConfig, now: Instant) -> Entry {
        let mut state = old.peer.lock();
        state.set_keepalive(config.keepalive);
        if let Some(endpoint) = config
            .endpoint
            .filter(|_| was.is_none_or(|was| was.endpoint != config.endpoint))
        {
            state.move_to(endpoint, now);
        }
        let sources = if was.is_some_and(|was| was.sources == config.sources) {
            Arc::clone(&old.sources)
        } else {
            Arc::new(table::set(&config.sources))
        };
        Entry {
            peer: Arc::clone(&old.peer),
            sources,
        }
    }

    /// The entry of a new peer; `position` among all new ones.
    fn add(
        &self,
        key: PublicKey,
        config: &PeerConfig,
        index: u32,
        position: usize,
        now: Instant,
    ) -> Entry {
        let side = Side::of(self.key.as_bytes(), key.as_bytes());
        let peer = Peer::new(
            &self.shared.private,
            (key, side),
            index,
            Arc::clone(&self.shared.unlimited),
            now,
        );
        let mut state = peer.lock();
        state.set_keepalive(config.keepalive);
        if let Some(endpoint) = config.endpoint {
            state.start_at(
                endpoint,
                now + side.first_wait(position, self.shared.chance()),
            );
        }
        drop(state);
        Entry {
            peer: Arc::new(peer),
            sources: Arc::new(table::set(&config.sources)),
        }
    }
}

impl Tunnel for Userspace {
    fn apply(&self, config: TunnelConfig) {
        let mut applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        if *applied == config {
            return;
        }
        let now = Instant::now();
        let old = self.shared.table();
        let mut taken = old.indices();
        let mut added = 0;
        let mut entries = Vec::with_capacity(config.peers.len());
        for (key, peer) in &config.peers {
            entries.push(if let Some(entry) = old.entry(key) {
                Self::keep(entry, applied.peers.get(key), peer, now)
            } else {
                let index = self
                    .shared
                    .with_random(|random| table::free_index(&mut taken, random));
                added += 1;
                tracing::debug!(peer = %key, label = peer.label, "peer added");
                self.add(*key, peer, index, added - 1, now)
            });
        }
        self.shared.set_table(Table::new(&config, entries));
        *applied = config;
    }

    fn stats(&self) -> TunnelStats {
        let peers: BTreeMap<_, _> = self
            .shared
            .table()
            .entries
            .iter()
            .map(|Entry { peer, .. }| {
                let (endpoint, latest_handshake) = {
                    let state = peer.lock();
                    (state.endpoint(), state.latest_handshake())
                };
                let stats = PeerStats {
                    endpoint,
                    latest_handshake,
                    rx_bytes: peer.rx_bytes.load(Ordering::Relaxed),
                    tx_bytes: peer.tx_bytes.load(Ordering::Relaxed),
                    drops: peer.drops.read(),
                };
                (peer.key, stats)
            })
            .collect();
        TunnelStats {
            peers,
            drops: self.shared.drops.read(),
        }
    }

    fn driver(&self) -> DriverStatus {
        DriverStatus {
            name: "userspace".to_owned(),
            features: Vec::new(),
        }
    }

    fn device_of(&self, _slot: u16) -> String {
        self.shared.device().tun.name().to_owned()
    }

    fn leaves_checks(&self) -> bool {
        false
    }

    fn device_lost(&self) -> bool {
        self.shared.device().lost.load(Ordering::Relaxed)
    }

    fn restore(&self) -> BTreeMap<String, String> {
        let name = self.device_of(0);
        match Tun::open(&name) {
            Ok(tun) => {
                self.replace_device(tun);
                BTreeMap::new()
            }
            Err(error) => BTreeMap::from([(name, error.to_string())]),
        }
    }
}

impl Drop for Userspace {
    fn drop(&mut self) {
        self.shared.stop.raise();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the tunnel panicked");
            }
        }
    }
}
