//! The data plane's caretaker: makes tunnel, kernel and echo what the fleet says, and keeps them so. Shell.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use subsea_api::PublicKey;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::budget::Traffic;
use super::devices;
use super::echo::Flags;
use super::mesh::{Families, Mesh, Own, PathId, mesh};
use super::path_mtu;
use super::pilot::Pilot;
use super::pinger::{self, Pinger};
use super::prober::{Prober, Target, Targets};
use super::shared::{Shared, chain, lock, set};
use super::spread::{RoadNumbers, Ways, spread};
use super::status::KernelStatus;
use crate::control::feed::Feed;
use crate::host::desired::{Desired, Input, desired};
use crate::host::{HostError, Reconciler};
use crate::membership::clock::wall;
use crate::net::netlink::{Netlink, NetlinkError};
use crate::tunnel::{REJECT_AFTER, Restored, Tunnel};

/// How often the device is looked after.
const CHECK: Duration = Duration::from_millis(250);
/// How often the kernel's counters are read.
const KERNEL_CHECK: Duration = Duration::from_secs(1);
/// How often the kernel is read though nothing is known to have changed.
const PASS: Duration = Duration::from_secs(30);
/// After a pass that left something undone.
const PASS_AGAIN: Duration = Duration::from_secs(3);
/// After a device that could not be made anew.
const DEVICE_AGAIN: Duration = Duration::from_secs(1);

/// What the plane publishes for the status.
#[derive(Debug, Clone, Default)]
pub(super) struct Published {
    pub(super) mesh: Arc<Mesh>,
    pub(super) kernel: KernelStatus,
    pub(super) mtu: u32,
    /// Since when each path is known.
    pub(super) since: BTreeMap<PathId, Duration>,
    /// The paths that carried something lately.
    pub(super) carrying: BTreeSet<PathId>,
}

/// What the caretaker hands the wanted state to.
pub(super) struct Doors {
    pub(super) tunnel: Arc<dyn Tunnel>,
    pub(super) prober: Arc<Prober>,
    pub(super) pilot: Arc<Pilot>,
    pub(super) pinger: Arc<Pinger>,
    pub(super) keys: Keys,
    /// What we say of ourselves.
    pub(super) flags: watch::Receiver<Flags>,
    pub(super) carries: watch::Sender<Option<BTreeSet<PathId>>>,
    /// What the agent of this node is told.
    pub(super) feed: watch::Sender<Arc<Feed>>,
}

/// The key of each path: the prober knows paths, the tunnel knows keys.
#[derive(Debug, Clone, Default)]
pub(super) struct Keys(Arc<Mutex<BTreeMap<PathId, PublicKey>>>);

impl Keys {
    fn set(&self, mesh: &Mesh) {
        let keys = mesh.paths.iter().map(|path| (path.id.clone(), path.key));
        *lock(&self.0) = keys.collect();
    }

    /// The path to the gateway of a key.
    pub(super) fn path_of(&self, key: &PublicKey) -> Option<PathId> {
        let keys = lock(&self.0);
        let found = keys.iter().find(|(_, known)| *known == key);
        found.map(|(id, _)| id.clone())
    }

    /// The keys of these paths.
    pub(super) fn of(&self, paths: &BTreeSet<PathId>) -> BTreeSet<PublicKey> {
        let keys = lock(&self.0);
        paths
            .iter()
            .filter_map(|id| keys.get(id))
            .copied()
            .collect()
    }
}

/// The caretaker.
pub(super) struct Plane {
    shared: Arc<Shared>,
    tunnel: Arc<dyn Tunnel>,
    prober: Arc<Prober>,
    pilot: Arc<Pilot>,
    pinger: Arc<Pinger>,
    reconciler: Reconciler,
    netlink: Netlink,
    publish: watch::Sender<Published>,
    mesh: Arc<Mesh>,
    /// What the prober steers by.
    keys: Keys,
    flags: watch::Receiver<Flags>,
    traffic: Traffic,
    /// When the counters were last read.
    looked: Duration,
    /// To the prober.
    carries: watch::Sender<Option<BTreeSet<PathId>>>,
    feed: watch::Sender<Arc<Feed>>,
    host: Host,
    /// What the last pass was made for.
    done: Option<Desired>,
    generation: u64,
    /// Devices that are missing, and why.
    lost: BTreeMap<String, String>,
    device_retry: Instant,
    /// What the tunnel found to be too narrow for the device's MTU.
    narrow: path_mtu::Inner,
}

/// What is to be read and compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// The kernel, if something else is wanted of it than before.
    WhenChanged,
    /// The kernel and the host's addresses.
    Kernel,
    /// The links, too.
    All,
}

/// What the host's own addresses and links tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Host {
    addresses: Vec<IpAddr>,
    /// The MTU of the link towards the broker.
    underlay_mtu: Option<u32>,
}

impl Plane {
    /// Opens the kernel's doors.
    pub(super) fn new(
        shared: Arc<Shared>,
        doors: Doors,
        reconciler: Reconciler,
    ) -> Result<Self, HostError> {
        Ok(Self {
            shared,
            tunnel: doors.tunnel,
            prober: doors.prober,
            pilot: doors.pilot,
            pinger: doors.pinger,
            reconciler,
            netlink: Netlink::open().map_err(HostError::Netlink)?,
            publish: watch::Sender::new(Published::default()),
            mesh: Arc::new(Mesh::default()),
            keys: doors.keys,
            flags: doors.flags,
            traffic: Traffic::default(),
            looked: Duration::ZERO,
            carries: doors.carries,
            feed: doors.feed,
            host: Host::default(),
            done: None,
            generation: 1,
            lost: BTreeMap::new(),
            device_retry: Instant::now(),
            narrow: path_mtu::Inner::new(),
        })
    }

    /// What the status shows of it.
    pub(super) fn published(&self) -> watch::Receiver<Published> {
        self.publish.subscribe()
    }

    /// Takes care until dropped.
    pub(super) async fn run(mut self) {
        let mut view = self.shared.link.view.subscribe();
        let mut steering = self.prober.steering();
        let mut resized = self.prober.resized();
        let mut flags = self.flags.clone();
        let mut towards = self.shared.towards.subscribe();
        let mut listening = self.shared.listening.subscribe();
        let mut check = tokio::time::interval(CHECK);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.look_at_addresses().await;
        self.follow();
        let mut next = Instant::now();
        loop {
            let pass = tokio::select! {
                Ok(()) = view.changed() => Pass::WhenChanged,
                Ok(()) = steering.changed() => {
                    // The prober has done so already; should an older decision of ours have come after, this one is the last.
                    self.steer();
                    Pass::WhenChanged
                }
                Ok(()) = flags.changed() => Pass::WhenChanged,
                Ok(()) = resized.changed() => {
                    // Now, though the kernel was asked a moment ago.
                    self.looked = Duration::ZERO;
                    self.look_at_paths();
                    Pass::WhenChanged
                }
                Ok(()) = listening.changed() => Pass::WhenChanged,
                Ok(()) = towards.changed() => Pass::All,
                () = self.reconciler.changed() => Pass::Kernel,
                () = tokio::time::sleep_until(next) => Pass::All,
                _ = check.tick() => {
                    let changed = self.look_at_paths();
                    let held = self.done.as_ref().is_some_and(|done| done.hold);
                    if !self.look_after_devices().await && !changed && !self.has_stock() && !held {
                        continue;
                    }
                    Pass::WhenChanged
                }
            };
            // First the tunnel: the kernel may take its time.
            self.follow();
            if pass != Pass::WhenChanged {
                // What somebody else did to the peers of a device shows in the device alone.
                self.set_tunnel();
                self.look_at_addresses().await;
                if pass == Pass::All {
                    self.look_at_underlay().await;
                }
                self.follow();
            }
            let wanted = self.desired();
            if pass != Pass::WhenChanged || self.done.as_ref() != Some(&wanted) {
                next = Instant::now() + self.reconcile(wanted).await;
            }
        }
    }

    /// Brings tunnel and echo to what the fleet says.
    fn follow(&mut self) {
        let view = self.shared.link.view.borrow().clone();
        let member = &self.shared.link.membership;
        let own = Own {
            cluster: member.cluster.clone(),
            node: member.node.clone(),
            allocations: member.allocations.clone(),
            families: self.families(),
            stripes: self.shared.listening.borrow().stripes(),
            slots: self.shared.listening.borrow().slots(),
        };
        let mesh = mesh(&view, &own);
        if mesh != *self.mesh {
            let problems = (!mesh.problems.is_empty()).then(|| mesh.problems.join("; "));
            self.shared.link.problem("fleet", problems);
            self.mesh = Arc::new(mesh);
            self.keys.set(&self.mesh);
            self.set_tunnel();
            let now = self.shared.link.clock.now().mono;
            self.publish.send_modify(|published| {
                let known = &published.since;
                let since = |id: &PathId| known.get(id).copied().unwrap_or(now);
                let paths = self.mesh.paths.iter();
                published.since = paths
                    .map(|path| (path.id.clone(), since(&path.id)))
                    .collect();
                published.mesh = Arc::clone(&self.mesh);
            });
        }
        let live_stock = self.live_stock();
        let echoing = self.mesh.paths.iter().filter(|path| path.stock.is_none());
        let stock = self.mesh.paths.iter().filter(|path| path.stock.is_some());
        let mtu = self.mtu();
        self.prober.aim(Targets {
            generation: self.generation,
            own: self.mesh.inner.clone(),
            paths: echoing
                .map(|path| {
                    let target = Target {
                        inner: path.inner.clone(),
                        device: self.tunnel.device_of(path.slot),
                        ceiling: Some(mtu),
                        road: path.endpoint,
                    };
                    (path.id.clone(), target)
                })
                .collect(),
            judged: stock
                .map(|path| (path.id.clone(), live_stock.contains(&path.id)))
                .collect(),
            revision: view
                .snapshot
                .as_ref()
                .map_or(0, |snapshot| snapshot.revision),
        });
        self.tell();
        self.ask();
    }

    /// The MTU of the tunnel devices.
    fn mtu(&self) -> u32 {
        devices::mtu(self.shared.options.mtu, self.host.underlay_mtu)
    }

    /// Tells the agent of this node how we are for traffic.
    fn tell(&self) {
        let flags = *self.flags.borrow();
        let steering = self.prober.steering().borrow().clone();
        let mtu =
            |cluster| path_mtu::of_cluster(cluster, &steering.in_use, &self.narrow, self.mtu());
        let reaches = steering.reached.iter();
        let feed = Feed {
            draining: flags.draining,
            inward_dead: flags.inward_dead,
            reaches: reaches
                .map(|cluster| (cluster.clone(), mtu(cluster)))
                .collect(),
            could: steering.could.clone(),
        };
        set(&self.feed, Arc::new(feed));
    }

    /// Makes the tunnel what the mesh says. A gateway that knows nothing of the fleet knows of nobody that is to go: what
    /// an earlier process left in the kernel carries traffic.
    fn set_tunnel(&self) {
        let tunnel = &self.mesh.tunnel;
        if self.knows_the_fleet() || !tunnel.peers.is_empty() {
            self.tunnel.apply(tunnel.clone());
            // New peers are in use only when somebody says so.
            self.steer();
        }
    }

    /// Has the tunnel send by the paths in use.
    fn steer(&self) {
        let steering = self.prober.steering().borrow().clone();
        self.tunnel.steer(&self.keys.of(&steering.in_use));
    }

    /// Whether there ever was a snapshot, from the disk or from the broker.
    fn knows_the_fleet(&self) -> bool {
        self.shared.link.view.borrow().snapshot.is_some()
    }

    /// Has the probe addresses behind stock peers asked.
    fn ask(&self) {
        let stock = self.mesh.paths.iter();
        let probes = stock.filter_map(|path| {
            Some(pinger::Probe {
                addr: path.stock.as_ref()?.probe?,
                device: Some(self.tunnel.device_of(path.slot)),
            })
        });
        self.pinger.aim(pinger::Targets {
            generation: self.generation,
            own: self.mesh.inner.clone(),
            probes: probes.collect(),
        });
    }

    fn has_stock(&self) -> bool {
        self.mesh.paths.iter().any(|path| path.stock.is_some())
    }

    /// Stock peers that live, by their probe address, or without one by their session: they answer no echo.
    fn live_stock(&self) -> Vec<PathId> {
        if !self.has_stock() {
            return Vec::new();
        }
        let stats = self.tunnel.stats();
        let now = wall(SystemTime::now());
        let mono = self.shared.link.clock.now().mono;
        let is_live = |path: &&super::mesh::Path| {
            if let Some(probe) = path.stock.as_ref().and_then(|stock| stock.probe) {
                return self.pinger.answered(probe, mono).is_some();
            }
            let handshake = stats
                .peers
                .get(&path.key)
                .and_then(|peer| peer.latest_handshake);
            handshake.is_some_and(|at| now.since(wall(at)) < REJECT_AFTER)
        };
        let stock = self.mesh.paths.iter().filter(|path| path.stock.is_some());
        stock.filter(is_live).map(|path| path.id.clone()).collect()
    }

    /// The families of the host's addresses outside our own blocks.
    fn families(&self) -> Families {
        let mut families = Families::default();
        let local = &self.mesh.tunnel.local;
        for addr in &self.host.addresses {
            if local.iter().any(|block| block.contains(*addr)) {
                continue;
            }
            match addr {
                IpAddr::V4(_) => families.v4 = true,
                IpAddr::V6(_) => families.v6 = true,
            }
        }
        families
    }

    fn desired(&self) -> Desired {
        let options = &self.shared.options;
        let device_of = |slot| self.tunnel.device_of(slot);
        let mtu = self.mtu();
        let spreads = self.tunnel.leaves_checks();
        let decision = self.pilot.decision();
        let in_use = &if spreads {
            decision.in_use
        } else {
            self.prober.steering().borrow().in_use.clone()
        };
        let mut wanted = desired(&Input {
            local: self.mesh.local.clone(),
            inner: self.mesh.inner.clone(),
            remote: devices::blocks(&self.mesh, in_use, device_of, &self.lost),
            device: options.device.clone(),
            devices: devices::names(&self.mesh.paths, device_of),
            wireguard: spreads,
            checks: spreads,
            mtu,
            mtus: path_mtu::of_blocks(&self.mesh, in_use, &self.narrow, mtu),
            table: options.table,
            rule_pref: options.rule_pref,
            mark: options.mark,
            host_addresses: self.host.addresses.clone(),
            keep: !self.knows_the_fleet(),
        });
        if spreads {
            // Such a driver has a device for each slot, and leaves it to routes which of them a flow takes.
            let ways = Ways {
                mesh: &self.mesh,
                in_use,
                device_of: &device_of,
                lost: &self.lost,
            };
            let roads = RoadNumbers {
                first_table: options.road_table,
                bits: options.road_bits,
                rule_pref: options.rule_pref,
            };
            spread(&mut wanted, &ways, roads);
            wanted.steering = decision.number;
            wanted.hold = self.pilot.waits(&self.mesh);
        }
        wanted
    }

    /// Reads what the paths carry and how much they take at once; true when the latter is news.
    fn look_at_paths(&mut self) -> bool {
        let now = self.shared.link.clock.now().mono;
        // The kernel is asked for all counters at once, and less often.
        let by_kernel = self.tunnel.leaves_checks();
        if by_kernel && now.saturating_sub(self.looked) < KERNEL_CHECK {
            return false;
        }
        self.looked = now;
        let stats = self.tunnel.stats();
        let reports = self.prober.reports(now);
        let mut narrow = path_mtu::Inner::new();
        let mut bytes = Vec::with_capacity(self.mesh.paths.len());
        for path in &self.mesh.paths {
            let Some(peer) = stats.peers.get(&path.key) else {
                continue;
            };
            let report = reports.get(&path.id);
            let echo = report.map_or(0, |report| report.echo.as_counted(by_kernel));
            bytes.push((path.id.clone(), peer.rx_bytes + peer.tx_bytes, echo));
            let measured = report.and_then(|report| report.mtu?.size);
            let endpoint = peer.endpoint.or(path.endpoint);
            if let Some(inner) = path_mtu::inner(endpoint, peer.path_mtu, measured) {
                narrow.insert(path.id.clone(), inner);
            }
        }
        self.traffic.observe(now, bytes);
        let lately = self.traffic.hot(now);
        self.publish.send_if_modified(|published| {
            let changed = published.carrying != lately;
            published.carrying.clone_from(&lately);
            changed
        });
        set(&self.carries, Some(lately));
        let changed = narrow != self.narrow;
        self.narrow = narrow;
        changed
    }

    /// Reads the host's addresses; what cannot be read stays as it was.
    async fn look_at_addresses(&mut self) {
        match self.reconciler.host_addresses().await {
            Ok(addresses) => self.host.addresses = addresses,
            Err(error) => tracing::warn!(error = chain(&error), "host addresses not read"),
        }
    }

    /// Reads the MTU of the link towards the broker, as above.
    async fn look_at_underlay(&mut self) {
        let Some(towards) = *self.shared.towards.borrow() else {
            return;
        };
        match self.link_mtu(towards).await {
            Ok(Some(mtu)) => self.host.underlay_mtu = Some(mtu),
            Ok(None) => {}
            Err(error) => tracing::warn!(error = chain(&error), "links not read"),
        }
    }

    async fn link_mtu(&self, addr: IpAddr) -> Result<Option<u32>, NetlinkError> {
        let observed = self.netlink.observe(self.shared.options.table).await?;
        let holder = observed
            .addresses
            .iter()
            .find(|address| address.addr == addr);
        let link = holder.and_then(|holder| observed.link(&holder.device));
        Ok(link.filter(|link| !link.loopback).map(|link| link.mtu))
    }

    /// One pass over the kernel; gives the time until the next.
    async fn reconcile(&mut self, wanted: Desired) -> Duration {
        let result = self.reconciler.reconcile(&wanted).await;
        let at = Some(self.shared.link.clock.now().wall);
        let kernel = match result {
            Ok(report) => KernelStatus {
                converged: report.converged(),
                last_reconcile: at,
                problems: report.problems,
            },
            Err(error) => {
                let problems = vec![chain(&error)];
                KernelStatus {
                    converged: false,
                    last_reconcile: at,
                    problems,
                }
            }
        };
        let converged = kernel.converged;
        let mtu = wanted.mtu;
        self.pilot.made(&self.mesh, &self.lost, &wanted);
        self.publish.send_modify(|published| {
            if published.kernel.problems != kernel.problems {
                for problem in &kernel.problems {
                    tracing::warn!(problem, "kernel");
                }
            }
            published.kernel = kernel;
            published.mtu = mtu;
        });
        self.done = Some(wanted);
        if converged { PASS } else { PASS_AGAIN }
    }

    /// Makes devices anew that somebody has deleted; true when something changed.
    async fn look_after_devices(&mut self) -> bool {
        if Instant::now() < self.device_retry {
            return false;
        }
        let restored = if self.tunnel.device_lost() {
            self.device_retry = Instant::now() + DEVICE_AGAIN;
            if self.lost.is_empty() {
                tracing::warn!("a tunnel device is not as it should be: making it anew");
            }
            let tunnel = Arc::clone(&self.tunnel);
            match tokio::task::spawn_blocking(move || tunnel.restore()).await {
                Ok(restored) => restored,
                Err(error) => Restored {
                    made: false,
                    lost: BTreeMap::from([(self.tunnel.device_of(0), error.to_string())]),
                },
            }
        } else if self.lost.is_empty() {
            return false;
        } else {
            // What was lost is back, or nobody needs it any more.
            Restored::default()
        };
        let texts: Vec<&str> = restored.lost.values().map(String::as_str).collect();
        let problem = (!texts.is_empty()).then(|| texts.join("; "));
        self.shared.link.problem("device", problem);
        let changed = restored.made || restored.lost.is_empty() || restored.lost != self.lost;
        if changed {
            // The sockets of the echo are bound to the devices of before.
            self.generation += 1;
            self.done = None;
        }
        self.lost = restored.lost;
        changed
    }
}
