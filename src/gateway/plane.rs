//! The data plane's caretaker: makes tunnel, kernel and echo what the fleet says, and keeps them so. Shell.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::devices;
use super::mesh::{Choice, Families, Mesh, Own, PathId, mesh};
use super::path_mtu;
use super::pinger::{self, Pinger};
use super::prober::{Prober, Target, Targets};
use super::shared::{Shared, chain};
use super::status::KernelStatus;
use crate::host::desired::{Desired, Input, desired};
use crate::host::{HostError, Reconciler};
use crate::membership::clock::wall;
use crate::net::netlink::{Netlink, NetlinkError};
use crate::tunnel::{REJECT_AFTER, Restored, Tunnel};

/// How often the device is looked after.
const CHECK: Duration = Duration::from_millis(250);
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
}

/// What the caretaker hands the wanted state to.
pub(super) struct Doors {
    pub(super) tunnel: Arc<dyn Tunnel>,
    pub(super) prober: Arc<Prober>,
    pub(super) pinger: Arc<Pinger>,
}

/// The caretaker.
pub(super) struct Plane {
    shared: Arc<Shared>,
    tunnel: Arc<dyn Tunnel>,
    prober: Arc<Prober>,
    pinger: Arc<Pinger>,
    reconciler: Reconciler,
    netlink: Netlink,
    publish: watch::Sender<Published>,
    mesh: Arc<Mesh>,
    choice: Choice,
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
            pinger: doors.pinger,
            reconciler,
            netlink: Netlink::open().map_err(HostError::Netlink)?,
            publish: watch::Sender::new(Published::default()),
            mesh: Arc::new(Mesh::default()),
            choice: Choice::new(),
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
        let mut usable = self.prober.usable();
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
                Ok(()) = usable.changed() => Pass::WhenChanged,
                Ok(()) = listening.changed() => Pass::WhenChanged,
                Ok(()) = towards.changed() => Pass::All,
                () = self.reconciler.changed() => Pass::Kernel,
                () = tokio::time::sleep_until(next) => Pass::All,
                _ = check.tick() => {
                    let changed = self.look_at_paths();
                    if !self.look_after_devices().await && !changed && !self.has_stock() {
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
        let mut usable = self.prober.usable().borrow().clone();
        usable.extend(self.live_stock());
        let mesh = mesh(&view, &own, &usable, &self.choice);
        self.choice.clone_from(&mesh.choice);
        if mesh != *self.mesh {
            let problems = (!mesh.problems.is_empty()).then(|| mesh.problems.join("; "));
            self.shared.link.problem("fleet", problems);
            self.mesh = Arc::new(mesh);
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
        let echoing = self.mesh.paths.iter().filter(|path| path.stock.is_none());
        self.prober.aim(Targets {
            generation: self.generation,
            own: self.mesh.inner.clone(),
            paths: echoing
                .map(|path| {
                    let target = Target {
                        inner: path.inner.clone(),
                        device: self.tunnel.device_of(path.slot),
                    };
                    (path.id.clone(), target)
                })
                .collect(),
            revision: view
                .snapshot
                .as_ref()
                .map_or(0, |snapshot| snapshot.revision),
        });
        self.ask();
    }

    /// Makes the tunnel what the mesh says. A gateway that knows nothing of the fleet knows of nobody that is to go: what
    /// an earlier process left in the kernel carries traffic.
    fn set_tunnel(&self) {
        let tunnel = &self.mesh.tunnel;
        if self.knows_the_fleet() || !tunnel.peers.is_empty() {
            self.tunnel.apply(tunnel.clone());
        }
    }

    /// Whether there ever was a snapshot, from the disk or from the broker.
    fn knows_the_fleet(&self) -> bool {
        self.shared.link.view.borrow().snapshot.is_some()
    }

    /// Has the probe addresses behind stock peers asked.
    fn ask(&self) {
        let stock = self.mesh.paths.iter();
        let probes = stock.filter_map(|path| {
            let probe = pinger::Probe {
                addr: path.stock.as_ref()?.probe?,
                device: self.tunnel.device_of(path.slot),
            };
            Some((path.id.clone(), probe))
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
        let mtu = devices::mtu(options.mtu, self.host.underlay_mtu);
        desired(&Input {
            local: self.mesh.local.clone(),
            inner: self.mesh.inner.clone(),
            remote: devices::blocks(&self.mesh, device_of, &self.lost),
            device: options.device.clone(),
            devices: devices::names(&self.mesh.paths, device_of),
            wireguard: self.tunnel.leaves_checks(),
            checks: self.tunnel.leaves_checks(),
            mtu,
            mtus: path_mtu::of_blocks(&self.narrow, &self.mesh.tunnel, mtu),
            table: options.table,
            rule_pref: options.rule_pref,
            mark: options.mark,
            host_addresses: self.host.addresses.clone(),
            keep: !self.knows_the_fleet(),
        })
    }

    /// Reads which paths turned out to be narrow; true when that is news.
    fn look_at_paths(&mut self) -> bool {
        if !self.tunnel.measures_paths() {
            return false;
        }
        let narrow = path_mtu::inner(&self.tunnel.stats());
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
