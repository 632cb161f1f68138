//! Sends and answers echo through the tunnels, and publishes which paths carry traffic. Shell.
//!
//! One socket for each family and tunnel device, bound to our inner address and to the device: what does not come out of
//! the tunnel is not heard. It carries no mark, so that it takes the road that all traffic takes.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::echo::{Echo, Flags, LEN, PORT};
use super::health::{Health, Report, State};
use super::mesh::PathId;
use super::shared::lock;
use crate::membership::clock::{Clock, random};
use crate::task::Task;

/// How often the paths are looked at.
const TICK: Duration = Duration::from_millis(25);
/// How soon a socket that could not be opened is tried again.
const REOPEN: Duration = Duration::from_millis(500);
/// So many packets are read before the clock is looked at again.
const BURST: usize = 256;

/// Whom to probe.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Targets {
    /// Counts the devices of the same names: with new ones the sockets are opened anew.
    pub(super) generation: u64,
    /// Our own inner addresses.
    pub(super) own: Vec<IpAddr>,
    /// Those that answer echo.
    pub(super) paths: BTreeMap<PathId, Target>,
    /// The revision that we act on; 0 without a snapshot.
    pub(super) revision: u64,
}

/// One that answers echo.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Target {
    /// Its inner addresses.
    pub(super) inner: Vec<IpAddr>,
    /// The tunnel device that leads to it.
    pub(super) device: String,
}

/// The echo to all paths; ends when dropped.
pub(super) struct Prober {
    _task: Task,
    targets: watch::Sender<Arc<Targets>>,
    usable: watch::Receiver<BTreeSet<PathId>>,
    paths: Arc<Paths>,
}

type Paths = Mutex<BTreeMap<PathId, Probed>>;

struct Probed {
    target: IpAddr,
    device: String,
    health: Health,
}

impl Prober {
    /// Starts without targets.
    pub(super) fn start(clock: Clock) -> Self {
        let (targets, todo) = watch::channel(Arc::new(Targets::default()));
        let (publish, usable) = watch::channel(BTreeSet::new());
        let paths = Arc::new(Mutex::new(BTreeMap::new()));
        let work = Work {
            clock,
            todo,
            publish,
            paths: Arc::clone(&paths),
            by_address: BTreeMap::new(),
            bound: Default::default(),
            doors: BTreeMap::new(),
        };
        Self {
            _task: Task::spawn("echo", work.run()),
            targets,
            usable,
            paths,
        }
    }

    /// Changes whom to probe. Paths that stay keep their state.
    pub(super) fn aim(&self, targets: Targets) {
        self.targets.send_if_modified(|now| {
            let changed = **now != targets;
            if changed {
                *now = Arc::new(targets);
            }
            changed
        });
    }

    /// The paths that carry traffic, as it changes.
    pub(super) fn usable(&self) -> watch::Receiver<BTreeSet<PathId>> {
        self.usable.clone()
    }

    /// How every probed path is.
    pub(super) fn reports(&self, now: Duration) -> BTreeMap<PathId, Report> {
        let paths = lock(&self.paths);
        paths
            .iter()
            .map(|(id, path)| (id.clone(), path.health.report(now)))
            .collect()
    }
}

struct Work {
    clock: Clock,
    todo: watch::Receiver<Arc<Targets>>,
    publish: watch::Sender<BTreeSet<PathId>>,
    paths: Arc<Paths>,
    by_address: BTreeMap<IpAddr, PathId>,
    /// Generation and addresses of the sockets.
    bound: (u64, Vec<IpAddr>),
    doors: Doors,
}

/// By device, and whether it is for IPv4.
type Doors = BTreeMap<(String, bool), Door>;

/// A socket, or when to try for one again.
struct Door {
    addr: IpAddr,
    socket: Option<UdpSocket>,
    retry: Duration,
}

impl Work {
    async fn run(mut self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                changed = self.todo.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.aim();
                }
                _ = tick.tick() => self.tick(),
                id = readable(&mut self.doors, self.clock) => self.receive(&id),
            }
        }
    }

    /// Takes over new targets.
    fn aim(&mut self) {
        let targets = Arc::clone(&self.todo.borrow_and_update());
        let now = self.clock.now().mono;
        let own = |v4: bool| {
            targets
                .own
                .iter()
                .copied()
                .find(|addr| addr.is_ipv4() == v4)
        };
        // Also when the address stays: a new device of the same name is another one.
        let bound = (targets.generation, targets.own.clone());
        let mut before_doors = std::mem::take(&mut self.doors);
        if self.bound != bound {
            before_doors.clear();
            self.bound = bound;
        }
        let devices: BTreeSet<&String> = targets.paths.values().map(|t| &t.device).collect();
        for (device, v4) in devices.into_iter().flat_map(|d| [(d, true), (d, false)]) {
            let Some(addr) = own(v4) else { continue };
            let id = (device.clone(), v4);
            let door = before_doors.remove(&id);
            self.doors
                .insert(id, door.unwrap_or_else(|| Door::closed(addr)));
        }
        let mut paths = lock(&self.paths);
        self.by_address.clear();
        let mut before = std::mem::take(&mut *paths);
        for (id, Target { inner, device }) in &targets.paths {
            let mut families = [true, false].into_iter().filter(|v4| own(*v4).is_some());
            let target =
                families.find_map(|v4| inner.iter().copied().find(|addr| addr.is_ipv4() == v4));
            let Some(target) = target else { continue };
            self.by_address
                .extend(inner.iter().map(|addr| (*addr, id.clone())));
            let health = match before.remove(id) {
                Some(path) if path.target == target => path.health,
                Some(_) | None => Health::new(now, random() >> 1),
            };
            let probed = Probed {
                target,
                device: device.clone(),
                health,
            };
            paths.insert(id.clone(), probed);
        }
    }

    fn tick(&mut self) {
        let now = self.clock.now().mono;
        let targets = Arc::clone(&self.todo.borrow());
        for ((device, _), door) in &mut self.doors {
            door.open(device, now);
        }
        let mut paths = lock(&self.paths);
        let mut usable = BTreeSet::new();
        for (id, path) in paths.iter_mut() {
            if let Some(probe) = path.health.poll(now, Flags::default(), targets.revision)
                && let Some(door) = self
                    .doors
                    .get(&(path.device.clone(), path.target.is_ipv4()))
            {
                door.send(path.target, &probe);
            }
            let report = path.health.report(now);
            if report.state == State::Connected
                && !report.flags.draining
                && !report.flags.inward_dead
            {
                usable.insert(id.clone());
            }
        }
        drop(paths);
        self.publish.send_if_modified(|before| {
            let changed = *before != usable;
            for id in before.symmetric_difference(&usable) {
                let connected = usable.contains(id);
                tracing::info!(cluster = %id.cluster, gateway = %id.node, connected, "path");
            }
            *before = usable;
            changed
        });
    }

    fn receive(&self, id: &(String, bool)) {
        let Some(door) = self.doors.get(id) else {
            return;
        };
        let Some(socket) = &door.socket else { return };
        let revision = self.todo.borrow().revision;
        let mut bytes = [0; LEN + 1];
        for _ in 0..BURST {
            let (length, from) = match socket.try_recv_from(&mut bytes) {
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // An ICMP error for something sent earlier: the silence will tell.
                Err(error) => {
                    tracing::trace!(%error, "echo");
                    return;
                }
            };
            let Some(id) = self
                .by_address
                .get(&from.ip())
                .filter(|_| from.port() == PORT)
            else {
                tracing::trace!(%from, "echo from nobody we know");
                continue;
            };
            let Ok(echo) = Echo::decode(bytes.get(..length).unwrap_or_default()) else {
                tracing::trace!(%from, "echo that makes no sense");
                continue;
            };
            let mut paths = lock(&self.paths);
            let Some(path) = paths.get_mut(id) else {
                continue;
            };
            let now = self.clock.now().mono;
            if let Some(reply) = path.health.receive(&echo, now, Flags::default(), revision) {
                door.send(from.ip(), &reply);
            }
        }
    }
}

impl Door {
    /// To be opened at the next tick.
    fn closed(addr: IpAddr) -> Self {
        Self {
            addr,
            socket: None,
            retry: Duration::ZERO,
        }
    }

    fn open(&mut self, device: &str, now: Duration) {
        if self.socket.is_some() || now < self.retry {
            return;
        }
        let addr = self.addr;
        match bind(addr, device) {
            Ok(socket) => self.socket = Some(socket),
            Err(error) => {
                tracing::debug!(%addr, device, %error, "echo socket not opened");
                self.retry = now + REOPEN;
            }
        }
    }

    fn send(&self, to: IpAddr, echo: &Echo) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = socket.try_send_to(&echo.encode(), SocketAddr::new(to, PORT)) {
            tracing::trace!(%to, %error, "echo not sent");
        }
    }
}

/// The next socket that has something to read. One that fails is opened anew after a while.
async fn readable(doors: &mut Doors, clock: Clock) -> (String, bool) {
    poll_fn(|context| {
        for (id, door) in doors.iter_mut() {
            let Some(socket) = &door.socket else { continue };
            match socket.poll_recv_ready(context) {
                Poll::Ready(Ok(())) => return Poll::Ready(id.clone()),
                Poll::Ready(Err(error)) => {
                    tracing::debug!(device = id.0, %error, "echo socket");
                    door.socket = None;
                    door.retry = clock.now().mono + REOPEN;
                }
                Poll::Pending => {}
            }
        }
        Poll::Pending
    })
    .await
}

fn bind(addr: IpAddr, device: &str) -> io::Result<UdpSocket> {
    let domain = if addr.is_ipv4() {
        Domain::IPV4
    } else {
        Domain::IPV6
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.bind_device(Some(device.as_bytes()))?;
    // The reconciler may put the address on the device a moment later.
    if addr.is_ipv4() {
        socket.set_freebind_v4(true)?;
    } else {
        socket.set_only_v6(true)?;
        socket.set_freebind_v6(true)?;
    }
    socket.bind(&SocketAddr::new(addr, PORT).into())?;
    UdpSocket::from_std(socket.into())
}

#[cfg(test)]
#[path = "prober_tests.rs"]
mod tests;
