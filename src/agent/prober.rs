//! Echo between the agents of a cluster, the way that packets of pods go: in VXLAN between the derived addresses, without it
//! between those of the nodes. Shell.
//!
//! A node probes the nodes of the gateways; those answer, and note that the node lives. Every packet carries the tag of the
//! TLS session between the two, and each probe counts once.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use subsea_api::NodeName;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::seal::Seal;
use super::window::Window;
use crate::gateway::echo::{self, Echo, Kind, Own};
use crate::gateway::health::{Health, Report, State};
use crate::gateway::health_timing::Timing;
use crate::membership::clock::{Clock, random};
use crate::membership::{lock, set};
use crate::task::Task;

/// How often the paths are looked at.
const TICK: Duration = Duration::from_millis(10);
/// How soon a socket that could not be opened is tried again.
const REOPEN: Duration = Duration::from_millis(250);
/// So many packets are read before the clock is looked at again.
const BURST: usize = 256;
/// The longest packet of echo with its tag, and one byte more.
const MAX: usize = echo::LEN + super::seal::TAG + 1;

/// An agent that we speak with.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    /// Where its echo is.
    pub(super) address: IpAddr,
    /// The keys of the newest session with it.
    pub(super) seal: Arc<Seal>,
    /// Until when it is neither asked nor judged: nobody is there to answer, and its kernel goes on.
    pub(super) held: Option<Instant>,
}

impl PartialEq for Peer {
    fn eq(&self, other: &Self) -> bool {
        (self.address, self.held) == (other.address, other.held)
            && Arc::ptr_eq(&self.seal, &other.seal)
    }
}

/// Where our own echo is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Our address.
    pub(super) address: IpAddr,
    /// The UDP port, the same on all nodes.
    pub(super) port: u16,
    /// The device, and its index: another one under the same name needs another socket.
    pub(super) device: (String, u32),
    /// What packets are marked with.
    pub(super) mark: u32,
}

/// Whom to speak with.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Targets {
    /// Where we are; none while there is no such device.
    pub(super) own: Option<Place>,
    /// The nodes of the gateways: probed.
    pub(super) gateways: BTreeMap<NodeName, Peer>,
    /// Other nodes: answered.
    pub(super) nodes: BTreeMap<NodeName, Peer>,
}

/// How the path to each gateway's node is, and when each other node was heard.
#[derive(Debug, Default)]
struct Paths {
    gateways: BTreeMap<NodeName, (Peer, Health)>,
    nodes: BTreeMap<NodeName, Node>,
    by_address: BTreeMap<IpAddr, NodeName>,
}

/// A node that is answered.
#[derive(Debug)]
struct Node {
    peer: Peer,
    heard: Option<Duration>,
    /// The probes of this session that came already.
    window: Window,
}

/// The echo; ends when dropped.
pub(super) struct Prober {
    _task: Task,
    targets: watch::Sender<Arc<Targets>>,
    reachable: watch::Receiver<BTreeMap<NodeName, bool>>,
    paths: Arc<Mutex<Paths>>,
}

impl Prober {
    /// Starts without targets.
    pub(super) fn start(clock: Clock, timing: Timing) -> Self {
        let (targets, todo) = watch::channel(Arc::new(Targets::default()));
        let (publish, reachable) = watch::channel(BTreeMap::new());
        let paths = Arc::new(Mutex::new(Paths::default()));
        let work = Work {
            clock,
            timing,
            todo,
            publish,
            paths: Arc::clone(&paths),
            base: random() >> 2,
            socket: None,
            opened: false,
            retry: Duration::ZERO,
        };
        Self {
            _task: Task::spawn("node-echo", work.run()),
            targets,
            reachable,
            paths,
        }
    }

    /// Changes whom to speak with. Paths that stay keep their state, also with new keys.
    pub(super) fn aim(&self, targets: Targets) {
        set(&self.targets, Arc::new(targets));
    }

    /// Whether echo goes both ways with the node of each gateway; those of which nothing is known yet are missing.
    pub(super) fn reachable(&self) -> watch::Receiver<BTreeMap<NodeName, bool>> {
        self.reachable.clone()
    }

    /// How the path to each gateway's node is.
    pub(super) fn reports(&self, now: Duration) -> BTreeMap<NodeName, Report> {
        let paths = lock(&self.paths);
        let reports = paths.gateways.iter();
        reports
            .map(|(node, (_, health))| (node.clone(), health.report(now)))
            .collect()
    }

    /// When each other node was last heard.
    pub(super) fn heard(&self) -> BTreeMap<NodeName, Option<Duration>> {
        let paths = lock(&self.paths);
        let heard = paths.nodes.iter();
        heard
            .map(|(name, node)| (name.clone(), node.heard))
            .collect()
    }
}

struct Work {
    clock: Clock,
    timing: Timing,
    todo: watch::Receiver<Arc<Targets>>,
    publish: watch::Sender<BTreeMap<NodeName, bool>>,
    paths: Arc<Mutex<Paths>>,
    /// Where sequences begin to count, with the time added: one that begins anew under the same keys goes on after all that
    /// were used before.
    base: u64,
    socket: Option<(UdpSocket, Place)>,
    /// Whether there ever was one: before, no path can be blamed.
    opened: bool,
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
                () = readable(self.socket.as_ref()) => self.receive(),
            }
        }
    }

    fn aim(&mut self) {
        let targets = Arc::clone(&self.todo.borrow_and_update());
        let now = self.clock.now().mono;
        let open = self.socket.as_ref().map(|(_, place)| place);
        if open != targets.own.as_ref() {
            self.socket = None;
            self.retry = Duration::ZERO;
        }
        let mut paths = lock(&self.paths);
        let mut before = std::mem::take(&mut *paths);
        for (node, peer) in &targets.gateways {
            let health = match before.gateways.remove(node) {
                Some((known, health)) if known.address == peer.address => health,
                Some(_) | None => Health::new(self.timing, now, self.base + micros(now)),
            };
            paths.gateways.insert(node.clone(), (peer.clone(), health));
            paths.by_address.insert(peer.address, node.clone());
        }
        for (name, peer) in &targets.nodes {
            let before = before.nodes.remove(name);
            let heard = before.as_ref().and_then(|node| node.heard);
            // Whoever has new keys counts anew.
            let same = before.filter(|node| Arc::ptr_eq(&node.peer.seal, &peer.seal));
            let node = Node {
                peer: peer.clone(),
                heard,
                window: same.map_or_else(Window::default, |node| node.window),
            };
            paths.nodes.insert(name.clone(), node);
            paths.by_address.insert(peer.address, name.clone());
        }
    }

    fn tick(&mut self) {
        let (now, late) = (self.clock.now().mono, Instant::now());
        self.open(now);
        if !self.opened {
            return;
        }
        let mut paths = lock(&self.paths);
        let mut reachable = BTreeMap::new();
        let mut fine = true;
        for (node, (peer, health)) in &mut paths.gateways {
            if peer.held.is_none_or(|until| late >= until)
                && let Some(probe) = health.poll(now, Own::default(), true)
            {
                fine &= self.send(peer, &probe);
            }
            // Of a path that was never judged nothing is known.
            if health.is_usable()
                || health.state() == State::Dead
                || health.state() == State::OneWay
            {
                reachable.insert(node.clone(), health.is_usable());
            }
        }
        drop(paths);
        if !fine {
            self.socket = None;
            self.retry = now + REOPEN;
        }
        self.publish.send_if_modified(|before| {
            let changed = *before != reachable;
            for (node, now) in &reachable {
                if before.get(node) != Some(now) {
                    tracing::info!(%node, reachable = now, "node of a gateway");
                }
            }
            *before = reachable;
            changed
        });
    }

    fn open(&mut self, now: Duration) {
        if self.socket.is_some() || now < self.retry {
            return;
        }
        let targets = Arc::clone(&self.todo.borrow());
        let Some(own) = &targets.own else { return };
        match bind(own) {
            Ok(socket) => {
                self.socket = Some((socket, own.clone()));
                self.opened = true;
            }
            Err(error) => {
                tracing::debug!(?own, %error, "socket of the echo between nodes not opened");
                self.retry = now + REOPEN;
            }
        }
    }

    /// Sends; false when the socket is of no use any more.
    fn send(&self, peer: &Peer, echo: &Echo) -> bool {
        let Some((socket, own)) = &self.socket else {
            return true;
        };
        let to = own.beside(peer.address);
        let sealed = peer.seal.close(&echo.encode());
        let sent = socket.try_send_to(&sealed, to);
        if let Err(error) = &sent {
            tracing::trace!(%to, %error, "echo not sent");
        }
        !sent.is_err_and(|error| is_gone(&error))
    }

    fn receive(&mut self) {
        let mut bytes = [0; MAX];
        for _ in 0..BURST {
            let Some((socket, own)) = &self.socket else {
                return;
            };
            let (length, from) = match socket.try_recv_from(&mut bytes) {
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::debug!(%error, "echo between nodes");
                    self.socket = None;
                    return;
                }
            };
            if from.port() != own.port {
                continue;
            }
            self.take(from.ip(), bytes.get(..length).unwrap_or_default());
        }
    }

    fn take(&self, from: IpAddr, sealed: &[u8]) {
        let now = self.clock.now().mono;
        let mut paths = lock(&self.paths);
        let paths = &mut *paths;
        let Some(node) = paths.by_address.get(&from) else {
            tracing::trace!(%from, "echo from no node we know");
            return;
        };
        let open = |peer: &Peer| {
            let packet = peer.seal.open(sealed)?;
            Echo::decode(packet).ok()
        };
        if let Some((peer, health)) = paths.gateways.get_mut(node)
            && let Some(echo) = open(peer)
        {
            if let Some(reply) = health.receive(&echo, now, Own::default()) {
                self.send(peer, &reply);
            }
            return;
        }
        if let Some(node) = paths.nodes.get_mut(node)
            && let Some(echo) = open(&node.peer)
            && echo.kind == Kind::Probe
            && node.window.admit(echo.sequence)
        {
            node.heard = Some(now);
            let reply = Echo {
                kind: Kind::Reply,
                heard: Some(Duration::ZERO),
                own: Own::default(),
                ..echo
            };
            self.send(&node.peer, &reply);
        }
    }
}

impl Place {
    /// Where the echo of another node is.
    fn beside(&self, address: IpAddr) -> SocketAddr {
        match address {
            IpAddr::V4(_) => SocketAddr::new(address, self.port),
            IpAddr::V6(v6) => {
                let link_local = v6.is_unicast_link_local();
                let scope = if link_local { self.device.1 } else { 0 };
                SocketAddrV6::new(v6, self.port, 0, scope).into()
            }
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX >> 2)
}

async fn readable(socket: Option<&(UdpSocket, Place)>) {
    match socket {
        // An error shows when it is read.
        Some((socket, _)) => drop(socket.readable().await),
        None => std::future::pending().await,
    }
}

/// Whether the device or the address of a socket is not there any more.
fn is_gone(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    [libc::ENODEV, libc::ENXIO, libc::EADDRNOTAVAIL]
        .map(Some)
        .contains(&code)
}

/// A socket at our place, heard and answered on that device alone.
fn bind(own: &Place) -> io::Result<UdpSocket> {
    let at = own.beside(own.address);
    let socket = Socket::new(Domain::for_address(at), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    let (device, index) = &own.device;
    socket.bind_device(Some(device.as_bytes()))?;
    if rustix::net::netdevice::name_to_index(&socket, device)? != *index {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    if own.mark != 0 {
        socket.set_mark(own.mark)?;
    }
    socket.bind(&at.into())?;
    UdpSocket::from_std(socket.into())
}

#[cfg(test)]
#[path = "prober_tests.rs"]
mod tests;
