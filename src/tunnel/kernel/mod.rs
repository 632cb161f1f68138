//! The driver on the kernel's WireGuard. Shell; [`plan`] decides.
//!
//! A device holds each inner block at one peer, and two devices cannot share a port: so the gateways of slot *k* of all
//! clusters are peers of device `subsea<k>`, which has its own key and port. The devices outlive the process, and a new
//! one goes on with them as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use subsea_api::PublicKey;

use self::meter::Meter;
use self::plan::{Remembered, Wanted};
use self::underlay::Underlay;
use super::{DriverStatus, Drop, PeerStats, Restored, Tunnel, TunnelConfig, TunnelStats};
use crate::key::PrivateKey;
use crate::net::holder;
use crate::net::nft::counters;
use crate::net::wireguard::{Device, Link, Names, Settings, Wireguard, WireguardError};

pub mod meter;
pub mod plan;
mod underlay;

/// Gives our private key of a slot, or says why there is none.
pub type Keys = Box<dyn Fn(u16) -> Result<PrivateKey, String> + Send>;

/// How the driver is to run.
#[derive(Debug, Clone)]
pub struct KernelSettings {
    /// The device of slot 0; those of other slots are named after it.
    pub device: String,
    /// The port of slot 0; slot *k* listens *k* ports above it.
    pub listen_port: u16,
    /// The mark of WireGuard's own packets.
    pub mark: u32,
}

/// The driver. The devices stay when it is dropped.
pub struct Kernel {
    settings: KernelSettings,
    names: Names,
    state: Mutex<State>,
    /// Apart from the state, for which one may wait long.
    steered: Mutex<Steered>,
}

#[derive(Default)]
struct Steered {
    /// The peers in use.
    in_use: BTreeSet<PublicKey>,
    /// The slots where that matters.
    contested: BTreeSet<u16>,
}

struct State {
    door: Wireguard,
    keys: Keys,
    /// Our keys that were asked for, with their public keys.
    known: BTreeMap<u16, (PrivateKey, PublicKey)>,
    config: TunnelConfig,
    /// What was last made of each slot.
    slots: BTreeMap<u16, Slot>,
    /// Slots that are not as they should be, and why.
    failed: BTreeMap<u16, String>,
    drops: BTreeMap<Drop, u64>,
    underlay: Underlay,
    /// The largest packet that the devices take.
    mtu: u32,
}

#[derive(Default)]
struct Slot {
    /// The index of its device; another one means that somebody has made it anew.
    index: u32,
    remembered: Remembered,
    rx_errors: Meter,
    tx_errors: Meter,
}

impl Kernel {
    /// Makes the device of slot 0, or takes it over as it is.
    ///
    /// # Errors
    /// [`WireguardError::Missing`] when the kernel has no WireGuard.
    pub fn start(settings: KernelSettings, keys: Keys) -> Result<Self, WireguardError> {
        let names = Names::new(&settings.device);
        let kernel = Self {
            state: Mutex::new(State {
                door: Wireguard::open()?,
                keys,
                known: BTreeMap::new(),
                config: TunnelConfig::default(),
                slots: BTreeMap::new(),
                failed: BTreeMap::new(),
                drops: BTreeMap::new(),
                underlay: Underlay::default(),
                mtu: 0,
            }),
            steered: Mutex::default(),
            names,
            settings,
        };
        kernel.device(&mut kernel.lock(), 0)?;
        Ok(kernel)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn steered(&self) -> MutexGuard<'_, Steered> {
        self.steered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device of a slot, made if it is not there.
    fn device(&self, state: &mut State, slot: u16) -> Result<Link, WireguardError> {
        let name = self.names.of_slot(slot);
        let there = state.door.link(&name)?;
        if let Some(link) = there {
            if link.is_ours() {
                return Ok(link);
            }
            let kind = link.kind.clone().unwrap_or_else(|| "hardware".to_owned());
            // The userspace driver's device of an earlier run: the name is ours, and `leave` would remove it too.
            if slot != 0 || kind != "tun" {
                return Err(WireguardError::Foreign { name, kind });
            }
            if link.attached {
                let holder = holder::of_tun(&name);
                return Err(WireguardError::Busy { name, holder });
            }
            tracing::info!(
                device = name,
                "replacing the TUN device of the userspace driver"
            );
            state.door.delete(&link)?;
        }
        state.door.create(&name)?;
        tracing::info!(device = name, "made");
        state.door.link(&name)?.ok_or_else(|| gone(&name))
    }

    /// Makes all devices what the configuration says; notes what failed. One that was there and is not any more is made
    /// only to `restore` it, for then others know that it is another one.
    fn follow(&self, state: &mut State, restore: bool) {
        let slots = plan::slots(&state.config);
        let before = std::mem::take(&mut state.failed);
        for slot in &slots {
            if let Err(why) = self.follow_slot(state, *slot, restore) {
                if before.get(slot) != Some(&why) {
                    tracing::warn!(device = self.names.of_slot(*slot), why, "device not set up");
                }
                state.failed.insert(*slot, why);
            }
        }
        let links = match state.door.links() {
            Ok(links) => links,
            Err(error) => {
                state.failed.insert(0, error.to_string());
                return;
            }
        };
        for link in links.into_iter().filter(Link::is_ours) {
            let Some(slot) = self.names.slot(&link.name).filter(|s| !slots.contains(s)) else {
                continue;
            };
            tracing::info!(
                device = link.name,
                "no gateway is left in its slot: removed"
            );
            if let Err(error) = state.door.delete(&link) {
                state.failed.insert(slot, error.to_string());
            }
        }
        state.slots.retain(|slot, _| slots.contains(slot));
    }

    /// Asks what the paths take whole, and fills in what is known.
    fn look_at_underlay(&self, state: &mut State, stats: &mut TunnelStats) {
        let peers = stats.peers.iter();
        let peers = peers.filter_map(|(key, peer)| Some((*key, peer.endpoint?)));
        let mtu = state.mtu;
        let largest = |endpoint: SocketAddr| mtu + overhead(endpoint);
        let mark = self.settings.mark;
        let State { underlay, .. } = state;
        underlay.look(&peers.collect(), mark, largest, Instant::now());
        for (key, peer) in &mut stats.peers {
            peer.path_mtu = underlay.known(key);
        }
    }

    fn follow_slot(&self, state: &mut State, slot: u16, restore: bool) -> Result<(), String> {
        let public = state.key(slot)?;
        let port = self.settings.listen_port.checked_add(slot);
        let in_use = self.steered().in_use.clone();
        let wanted = Wanted {
            key: Some(public),
            port: port.ok_or("there is no port above 65535: choose a lower --listen-port")?,
            mark: self.settings.mark,
            peers: plan::wanted(&state.config, slot, &in_use),
        };
        let said = |error: WireguardError| error.to_string();
        let name = self.names.of_slot(slot);
        let known = state.slots.get(&slot).map(|known| known.index);
        let link = match known.filter(|_| !restore) {
            Some(index) => {
                let link = state.door.link(&name).map_err(said)?;
                let same = |link: &Link| link.index == index && link.is_ours();
                link.filter(same).ok_or_else(|| gone(&name).to_string())?
            }
            None => self.device(state, slot).map_err(said)?,
        };
        let device = state.door.read(&link).map_err(said)?;
        let device = device.ok_or_else(|| gone(&name).to_string())?;
        let known = state.slots.entry(slot).or_default();
        if known.index != link.index {
            known.index = link.index;
            known.remembered.clear();
        }
        let changes = plan::plan(&wanted, &device, &known.remembered, now());
        if !changes.is_empty() {
            let settings = Settings {
                key: changes
                    .key
                    .then(|| state.known.get(&slot).map(|(private, _)| private.clone()))
                    .flatten(),
                port: changes.port,
                fwmark: changes.mark,
            };
            for change in &changes.peers {
                tracing::debug!(device = link.name, peer = %change.key, remove = change.remove, "peer");
            }
            state
                .door
                .set(&link, &settings, &changes.peers)
                .map_err(said)?;
        }
        known.remembered = plan::remember(&wanted, &device, &known.remembered, &changes);
        Ok(())
    }
}

impl State {
    /// Our public key of a slot.
    fn key(&mut self, slot: u16) -> Result<PublicKey, String> {
        if let Some((_, public)) = self.known.get(&slot) {
            return Ok(*public);
        }
        let private = (self.keys)(slot)?;
        let public = private.public_key().map_err(|error| error.to_string())?;
        self.known.insert(slot, (private, public));
        Ok(public)
    }

    /// A device of ours as the kernel has it now.
    fn observe(&mut self, name: &str) -> Result<Option<(Link, Device)>, WireguardError> {
        let Some(link) = self.door.link(name)?.filter(Link::is_ours) else {
            return Ok(None);
        };
        Ok(self.door.read(&link)?.map(|device| (link, device)))
    }
}

impl Tunnel for Kernel {
    fn apply(&self, config: TunnelConfig) {
        let mut state = self.lock();
        self.steered().contested = plan::contested(&config);
        state.config = config;
        self.follow(&mut state, false);
    }

    fn steer(&self, in_use: &BTreeSet<PublicKey>) {
        let contested = {
            let mut steered = self.steered();
            if steered.in_use == *in_use {
                return;
            }
            steered.in_use.clone_from(in_use);
            steered.contested.clone()
        };
        if contested.is_empty() {
            return;
        }
        let mut state = self.lock();
        for slot in contested {
            if let Err(why) = self.follow_slot(&mut state, slot, false) {
                tracing::warn!(device = self.names.of_slot(slot), why, "device not set up");
                state.failed.insert(slot, why);
            }
        }
    }

    fn stats(&self) -> TunnelStats {
        let mut state = self.lock();
        let peers = state.config.peers.keys();
        let mut stats = TunnelStats {
            peers: peers.map(|key| (*key, PeerStats::default())).collect(),
            drops: BTreeMap::new(),
        };
        let slots: Vec<u16> = state.slots.keys().copied().collect();
        for slot in slots {
            let name = self.names.of_slot(slot);
            match state.observe(&name) {
                Ok(Some((link, device))) => {
                    if let Some(known) = state.slots.get_mut(&slot) {
                        known.rx_errors.read(link.rx_errors);
                        known.tx_errors.read(link.tx_errors);
                    }
                    state.mtu = link.mtu;
                    fill(&mut stats, device);
                }
                // It is looked after elsewhere.
                Ok(None) => {}
                Err(error) => tracing::warn!(device = name, %error, "counters not read"),
            }
        }
        self.look_at_underlay(&mut state, &mut stats);
        match counters::read() {
            Ok(counted) => {
                for (reason, name) in CHECKS {
                    let packets = counted.get(name).copied().unwrap_or(0);
                    // A new table goes on from the old one, so there is nothing to add up; while there is none, and
                    // for what was counted just before it went, the sum stands still.
                    let sum = state.drops.entry(reason).or_default();
                    *sum = packets.max(*sum);
                }
            }
            Err(error) => tracing::warn!(%error, "counters of nftables not read"),
        }
        let sums = state.drops.iter().map(|(reason, sum)| (*reason, *sum));
        let errors = |f: fn(&Slot) -> Meter| state.slots.values().map(|s| f(s).sum()).sum();
        let all = sums.chain([
            (Drop::RxErrors, errors(|slot| slot.rx_errors)),
            (Drop::TxErrors, errors(|slot| slot.tx_errors)),
        ]);
        stats.drops = all.filter(|(_, packets)| *packets > 0).collect();
        stats
    }

    fn driver(&self) -> DriverStatus {
        DriverStatus {
            name: "kernel".to_owned(),
            features: Vec::new(),
        }
    }

    /// WireGuard sends what is too big for the underlay in fragments.
    fn sends_whole(&self) -> bool {
        false
    }

    fn device_of(&self, slot: u16) -> String {
        self.names.of_slot(slot)
    }

    fn leaves_checks(&self) -> bool {
        true
    }

    fn device_lost(&self) -> bool {
        let mut state = self.lock();
        if !state.failed.is_empty() {
            return true;
        }
        let known: Vec<_> = state.slots.iter().map(|(s, k)| (*s, k.index)).collect();
        known.into_iter().any(
            |(slot, index)| match state.door.link(&self.names.of_slot(slot)) {
                Ok(link) => link.is_none_or(|link| link.index != index),
                Err(error) => {
                    tracing::warn!(%error, "devices not looked at");
                    false
                }
            },
        )
    }

    fn restore(&self) -> Restored {
        let mut state = self.lock();
        let indexes = |state: &State| -> BTreeMap<u16, u32> {
            let slots = state.slots.iter();
            slots.map(|(slot, known)| (*slot, known.index)).collect()
        };
        let before = indexes(&state);
        self.follow(&mut state, true);
        let failed = state.failed.iter();
        Restored {
            made: indexes(&state) != before,
            lost: failed
                .map(|(slot, why)| (self.names.of_slot(*slot), why.clone()))
                .collect(),
        }
    }
}

/// The named counters of our table, and what they mean.
const CHECKS: [(Drop, &str); 2] = [
    (Drop::ForeignDestination, counters::FOREIGN_DESTINATION),
    (Drop::OutboundSource, counters::OUTBOUND_SOURCE),
];

fn fill(stats: &mut TunnelStats, device: Device) {
    for (key, peer) in device.peers {
        // One that is no longer configured is on its way out.
        if let Some(stats) = stats.peers.get_mut(&key) {
            stats.endpoint = peer.endpoint;
            stats.latest_handshake = peer
                .latest_handshake
                .and_then(|at| SystemTime::UNIX_EPOCH.checked_add(at));
            stats.rx_bytes = peer.rx_bytes;
            stats.tx_bytes = peer.tx_bytes;
        }
    }
}

/// What WireGuard adds to a packet: IP, UDP, and 32 bytes of its own.
fn overhead(endpoint: SocketAddr) -> u32 {
    if endpoint.is_ipv4() { 60 } else { 80 }
}

fn gone(name: &str) -> WireguardError {
    WireguardError::Refused {
        what: format!("set up WireGuard device {name}"),
        source: std::io::Error::from_raw_os_error(libc::ENODEV),
    }
}

fn now() -> Duration {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}
