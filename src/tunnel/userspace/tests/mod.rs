//! Drivers against each other: real sockets and ciphers on loopback, devices that are socket pairs.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use subsea_api::{Cidr, PublicKey};

use super::inner::tests::packet;
use super::*;
use crate::net::offload::Offloads;
use crate::net::tun::TunSettings;
use crate::net::udp::UdpSettings;
use crate::tunnel::{Drop as Reason, PeerConfig};

mod data;
mod device;
mod groups;
mod growth;
mod handshake;
mod hostile;
mod lanes;

const SECOND: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(20);

/// A driver with a device whose other end is in the test's hands.
struct Gateway {
    tunnel: Userspace,
    inside: UnixDatagram,
    key: PublicKey,
    private: [u8; 32],
    config: Mutex<TunnelConfig>,
}

impl Gateway {
    /// Starts on `port`; the blocks that are its own are `10.N.0.0/16` and `fd00:N::/32`.
    fn start(private: [u8; 32], net: u8, port: u16) -> Self {
        let (ours, inside) = UnixDatagram::pair().unwrap();
        inside.set_read_timeout(Some(SOON)).unwrap();
        let tun = Tun::from_fd("pair", OwnedFd::from(ours)).unwrap();
        Self::with_device(private, net, port, tun, inside)
    }

    fn with_device(private: [u8; 32], net: u8, port: u16, tun: Tun, inside: UnixDatagram) -> Self {
        let settings = UdpSettings {
            listen_port: port,
            mark: None,
            offloads: Offloads::AUTO,
        };
        let tunnel = Userspace::start(tun, settings, PrivateKey::from_bytes(private)).unwrap();
        let config = TunnelConfig {
            local: blocks(net),
            peers: BTreeMap::new(),
            groups: Vec::new(),
        };
        let key = PrivateKey::from_bytes(private).public_key().unwrap();
        Self {
            tunnel,
            inside,
            key,
            private,
            config: Mutex::new(config),
        }
    }

    fn addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.tunnel.port()))
    }

    /// Makes `other` a peer that has the blocks of `net`.
    fn peer(&self, other: PublicKey, net: u8, endpoint: Option<SocketAddr>) {
        self.change(|config| {
            let (sources, routes) = (blocks(net), blocks(net));
            let peer = PeerConfig {
                label: format!("net/{net}"),
                endpoint,
                sources,
                routes,
                keepalive: None,
                slot: 0,
                stripes: Vec::new(),
            };
            config.peers.insert(other, peer);
        });
    }

    fn change(&self, f: impl FnOnce(&mut TunnelConfig)) {
        let mut config = self.config.lock().unwrap();
        f(&mut config);
        self.tunnel.apply(config.clone());
    }

    fn send(&self, source: &str, destination: &str, payload: &[u8]) {
        self.inside
            .send(&packet(source, destination, payload))
            .unwrap();
    }

    fn receive(&self) -> Vec<u8> {
        let mut bytes = vec![0; 2_000];
        let len = self.inside.recv(&mut bytes).expect("a packet comes out");
        bytes.truncate(len);
        bytes
    }

    fn stats_of(&self, other: &Self) -> PeerStats {
        self.tunnel
            .stats()
            .peers
            .get(&other.key)
            .cloned()
            .unwrap_or_default()
    }

    fn drops(&self, reason: Reason) -> u64 {
        self.tunnel
            .stats()
            .drops
            .get(&reason)
            .copied()
            .unwrap_or_default()
    }

    fn drops_of(&self, other: &Self, reason: Reason) -> u64 {
        self.stats_of(other)
            .drops
            .get(&reason)
            .copied()
            .unwrap_or_default()
    }
}

fn blocks(net: u8) -> Vec<Cidr> {
    vec![
        format!("10.{net}.0.0/16").parse().unwrap(),
        format!("fd00:{net}::/32").parse().unwrap(),
    ]
}

/// Two private keys, that of the lower public key first: its holder leads.
fn keys() -> ([u8; 32], [u8; 32]) {
    let public = |private| PrivateKey::from_bytes(private).public_key().unwrap();
    let (a, b) = ([1; 32], [2; 32]);
    if public(a) < public(b) {
        (a, b)
    } else {
        (b, a)
    }
}

#[track_caller]
fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < SOON, "not within {SOON:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Two sockets between two gateways: what the one sends to `left` goes on to the other from `right`, and back.
struct Relay {
    left: SocketAddr,
    right: SocketAddr,
    right_socket: UdpSocket,
    state: Arc<Mutex<RelayState>>,
}

#[derive(Default)]
struct RelayState {
    /// Everything seen: whether it came by `left`, and the datagram.
    seen: Vec<(bool, Vec<u8>)>,
    /// Whether nothing is passed on.
    cut: bool,
    /// Whether nothing is passed on of what comes by `left`.
    cut_left: bool,
    closed: bool,
}

impl Relay {
    /// Between the gateway at `a`, which is to send to `left`, and the one at `b`.
    fn new(a: SocketAddr, b: SocketAddr) -> Self {
        let socket = || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket
                .set_read_timeout(Some(Duration::from_millis(50)))
                .unwrap();
            socket
        };
        let (left, right) = (socket(), socket());
        let state = Arc::new(Mutex::new(RelayState::default()));
        for (from, to, by_left, target) in [(&left, &right, true, b), (&right, &left, false, a)] {
            let (from, to, state) = (
                from.try_clone().unwrap(),
                to.try_clone().unwrap(),
                Arc::clone(&state),
            );
            thread::spawn(move || {
                let mut bytes = vec![0; 65_536];
                while !state.lock().unwrap().closed {
                    let Ok(len) = from.recv(&mut bytes) else {
                        continue;
                    };
                    let mut state = state.lock().unwrap();
                    state.seen.push((by_left, bytes[..len].to_vec()));
                    let lost = state.cut || (by_left && state.cut_left);
                    if !lost {
                        to.send_to(&bytes[..len], target).unwrap();
                    }
                }
            });
        }
        Self {
            left: left.local_addr().unwrap(),
            right: right.local_addr().unwrap(),
            right_socket: right,
            state,
        }
    }

    fn cut(&self, cut: bool) {
        self.state.lock().unwrap().cut = cut;
    }

    fn cut_left(&self, cut: bool) {
        self.state.lock().unwrap().cut_left = cut;
    }

    fn count(&self, kind: u8) -> usize {
        self.state
            .lock()
            .unwrap()
            .seen
            .iter()
            .filter(|(_, bytes)| bytes[0] == kind)
            .count()
    }

    /// The last datagram of a type that came by `left`.
    fn last(&self, kind: u8) -> Vec<u8> {
        let state = self.state.lock().unwrap();
        let found = state
            .seen
            .iter()
            .rev()
            .find(|(by_left, bytes)| *by_left && bytes[0] == kind);
        found.expect("one was seen").1.clone()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.state.lock().unwrap().closed = true;
    }
}

/// Gateways of nets 1 (the side that leads) and 2, peers of each other by a relay; `left` is that of net 1.
fn pair() -> (Gateway, Gateway, Relay) {
    let (low, high) = keys();
    let (a, b) = (Gateway::start(low, 1, 0), Gateway::start(high, 2, 0));
    let relay = Relay::new(a.addr(), b.addr());
    // The side that leads is the last: it initiates at once, and is to be known then.
    b.peer(a.key, 1, Some(relay.right));
    a.peer(b.key, 2, Some(relay.left));
    (a, b, relay)
}

/// A pair that has a session in both directions.
fn connected() -> (Gateway, Gateway, Relay) {
    let (a, b, relay) = pair();
    exchange(&a, &b);
    (a, b, relay)
}

#[track_caller]
fn exchange(a: &Gateway, b: &Gateway) {
    a.send("10.1.0.1", "10.2.0.1", b"there");
    assert_eq!(b.receive(), packet("10.1.0.1", "10.2.0.1", b"there"));
    b.send("10.2.0.1", "10.1.0.1", b"back");
    assert_eq!(a.receive(), packet("10.2.0.1", "10.1.0.1", b"back"));
}
