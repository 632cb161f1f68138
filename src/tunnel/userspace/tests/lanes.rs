//! Several lanes: devices of three queues, each a socket pair, so that a test chooses by which one a packet comes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU16, Ordering};

use super::*;
use crate::tunnel::userspace::{LaneSource, Plan};
use crate::tunnel::{ECHO_PORT, StripeConfig};

const LANES: usize = 3;
/// A stripe that goes silent is left within 3.5 s.
const LEFT: Duration = Duration::from_secs(4);
/// What boringtun takes to repeat a handshake, and a margin.
const BACK: Duration = Duration::from_secs(12);

/// A gateway of several lanes, and the other ends of its device's queues.
pub(super) struct Striped {
    pub(super) gateway: Gateway,
    queues: Vec<UnixDatagram>,
    keys: Vec<PublicKey>,
}

/// Listeners for lanes, each with a key made from `first` and a free port, or the one given.
pub(super) struct Source {
    first: [u8; 32],
    pub(super) ports: BTreeMap<u16, u16>,
    pub(super) lack: Arc<Mutex<Option<String>>>,
    offered: Arc<AtomicU16>,
}

fn key_of_lane(first: [u8; 32], lane: u16) -> PrivateKey {
    let mut bytes = first;
    bytes[31] = u8::try_from(lane * 10).unwrap();
    PrivateKey::from_bytes(bytes)
}

impl LaneSource for Source {
    fn listener(&self, number: u16) -> Result<(UdpSettings, PrivateKey), String> {
        let settings = UdpSettings {
            listen_port: self.ports.get(&number).copied().unwrap_or_default(),
            mark: None,
            offloads: Offloads::AUTO,
        };
        Ok((settings, key_of_lane(self.first, number)))
    }

    fn offered(&self) -> u16 {
        self.offered.load(Ordering::Relaxed)
    }

    fn lacks(&self, what: Option<String>) {
        *self.lack.lock().unwrap() = what;
    }
}

pub(super) fn source(first: [u8; 32]) -> Source {
    Source {
        first,
        ports: BTreeMap::new(),
        lack: Arc::default(),
        offered: Arc::default(),
    }
}

impl Striped {
    /// With one lane, and queues for three.
    pub(super) fn start(private: [u8; 32], net: u8) -> Self {
        let pairs = (0..LANES).map(|_| UnixDatagram::pair().unwrap());
        let (ours, mut queues): (Vec<_>, Vec<_>) = pairs.unzip();
        let tun = Tun::from_fds("pairs", ours.into_iter().map(OwnedFd::from)).unwrap();
        for queue in &queues {
            queue.set_read_timeout(Some(SOON)).unwrap();
        }
        let spare = queues[0].try_clone().unwrap();
        let gateway = Gateway::with_device(private, net, 0, tun, spare);
        queues.truncate(LANES);
        let keys = [gateway.key]
            .into_iter()
            .chain((1..3).map(|lane| key_of_lane(private, lane).public_key().unwrap()));
        let keys = keys.collect();
        Self {
            gateway,
            queues,
            keys,
        }
    }

    fn grown(private: [u8; 32], net: u8) -> Self {
        let striped = Self::start(private, net);
        let plan = Plan::Fixed(3);
        striped
            .gateway
            .tunnel
            .grow(plan, Box::new(source(private)))
            .unwrap();
        assert_eq!(*striped.gateway.tunnel.stripes().borrow(), 3);
        striped
    }

    fn addr(&self, lane: usize) -> SocketAddr {
        let lanes = self.gateway.tunnel.driver.shared.lanes();
        SocketAddr::from(([127, 0, 0, 1], lanes[lane].udp.port()))
    }

    /// Makes `other` a peer at the given addresses, by lane.
    fn peer(&self, other: &Self, net: u8, at: &BTreeMap<usize, SocketAddr>) {
        self.gateway
            .peer(other.gateway.key, net, at.get(&0).copied());
        let further = at.iter().filter(|(lane, _)| **lane > 0);
        let stripes = further.map(|(lane, endpoint)| StripeConfig {
            stripe: u16::try_from(*lane).unwrap(),
            key: other.keys[*lane],
            endpoint: Some(*endpoint),
        });
        let stripes = stripes.collect();
        self.gateway
            .change(|config| config.peers.get_mut(&other.gateway.key).unwrap().stripes = stripes);
    }

    fn stripes(&self, other: &Self) -> Vec<StripeStats> {
        self.gateway.stats_of(&other.gateway).stripes
    }

    fn alive(&self, other: &Self) -> Vec<u16> {
        let stripes = self.stripes(other);
        let alive = stripes.iter().filter(|stripe| stripe.alive);
        alive.map(|stripe| stripe.stripe).collect()
    }
}

/// Gateways of nets 1 and 2 with three lanes each, peers in the given ones; the path of lane 1 is a relay.
fn pair_in(lanes: &[usize]) -> (Striped, Striped, Relay) {
    let (low, high) = keys();
    let (a, b) = (Striped::grown(low, 1), Striped::grown(high, 2));
    let relay = Relay::new(a.addr(1), b.addr(1));
    let at = |of: &Striped, relayed: SocketAddr| {
        let addr = |lane: &usize| (*lane, if *lane == 1 { relayed } else { of.addr(*lane) });
        lanes.iter().map(addr).collect()
    };
    a.peer(&b, 2, &at(&b, relay.left));
    b.peer(&a, 1, &at(&a, relay.right));
    (a, b, relay)
}

fn connected_in(lanes: &[usize]) -> (Striped, Striped, Relay) {
    let (a, b, relay) = pair_in(lanes);
    let further: Vec<u16> = lanes
        .iter()
        .filter_map(|lane| u16::try_from(*lane).ok().filter(|lane| *lane > 0))
        .collect();
    eventually("sessions in all lanes", || {
        a.alive(&b) == further && b.alive(&a) == further
    });
    (a, b, relay)
}

/// A datagram of a flow, with a number.
fn numbered(number: u32, port: u16) -> Vec<u8> {
    let ports = [4_000_u16.to_be_bytes(), port.to_be_bytes()].concat();
    let payload = [&ports[..], &[0, 12, 0, 0], &number.to_be_bytes()].concat();
    packet("10.1.0.1", "10.2.0.1", &payload)
}

/// What comes out of a queue until nothing comes for so long.
fn numbers_until(queue: &UnixDatagram, quiet: Duration) -> Vec<u32> {
    queue.set_read_timeout(Some(quiet)).unwrap();
    std::iter::from_fn(|| number(queue)).collect()
}

/// The numbers that come out of a queue: these, and no more.
#[track_caller]
fn assert_comes(queue: &UnixDatagram, expected: &[u32]) {
    let mut found = Vec::new();
    queue.set_read_timeout(Some(SOON)).unwrap();
    while found.len() < expected.len() {
        found.push(number(queue).expect("a packet comes out"));
    }
    found.extend(numbers_until(queue, Duration::from_millis(50)));
    assert_eq!(found, expected);
}

fn number(queue: &UnixDatagram) -> Option<u32> {
    let mut bytes = [0; 2_000];
    let len = queue.recv(&mut bytes).ok()?;
    Some(u32::from_be_bytes(bytes[len - 4..len].try_into().unwrap()))
}

#[test]
fn a_flow_goes_by_the_lane_of_its_queue_and_in_order() {
    let (a, b, _relay) = connected_in(&[0, 1, 2]);
    for lane in 0..LANES {
        for number in 0..100 {
            a.queues[lane].send(&numbered(number, 5_000)).unwrap();
        }
    }
    let order: Vec<u32> = (0..100).collect();
    for lane in 0..LANES {
        assert_comes(&b.queues[lane], &order);
    }
    let stripes = a.stripes(&b);
    assert_eq!(stripes.len(), 2);
    assert!(
        stripes.iter().all(|stripe| stripe.tx_bytes == 3_200),
        "{stripes:?}"
    );
    assert_eq!(a.gateway.stats_of(&b.gateway).tx_bytes, 9_600, "in all");
}

#[test]
fn echo_goes_by_lane_0_whatever_its_queue() {
    let (a, b, _relay) = connected_in(&[0, 1, 2]);
    a.queues[2].send(&numbered(7, ECHO_PORT)).unwrap();
    a.queues[2].send(&numbered(8, 5_000)).unwrap();
    assert_comes(&b.queues[0], &[7]);
    assert_comes(&b.queues[2], &[8]);
}

#[test]
fn a_peer_without_a_stripe_has_the_ones_after_it() {
    let (a, b, _relay) = connected_in(&[0, 2]);
    a.queues[1].send(&numbered(1, 5_000)).unwrap();
    a.queues[2].send(&numbered(2, 5_000)).unwrap();
    assert_comes(&b.queues[0], &[1]);
    assert_comes(&b.queues[2], &[2]);
    // The one in the middle comes, and the others stay as they are.
    let handshake =
        |of: &Striped, to: &Striped| of.gateway.stats_of(&to.gateway).latest_handshake.unwrap();
    let before = handshake(&a, &b);
    let every = |of: &Striped| (0..LANES).map(|lane| (lane, of.addr(lane))).collect();
    b.peer(&a, 1, &every(&a));
    a.peer(&b, 2, &every(&b));
    eventually("all lanes", || {
        a.alive(&b) == [1, 2] && b.alive(&a) == [1, 2]
    });
    assert_eq!(handshake(&a, &b), before);
    a.queues[1].send(&numbered(3, 5_000)).unwrap();
    assert_comes(&b.queues[1], &[3]);
}

#[test]
fn a_lane_that_comes_later_serves_the_peers_that_are_there() {
    let (low, high) = keys();
    let (a, b) = (Striped::start(low, 1), Striped::grown(high, 2));
    b.peer(&a, 1, &BTreeMap::from([(0, a.addr(0))]));
    let every = (0..LANES).map(|lane| (lane, b.addr(lane))).collect();
    a.peer(&b, 2, &every);
    assert!(a.stripes(&b).is_empty());
    // Nobody reads this queue yet, as long as the kernel does not know of it.
    a.gateway
        .tunnel
        .grow(Plan::Fixed(2), Box::new(source(low)))
        .unwrap();
    assert_eq!(a.stripes(&b).len(), 1);
    b.peer(&a, 1, &(0..2).map(|lane| (lane, a.addr(lane))).collect());
    eventually("the new lane", || a.alive(&b) == [1]);
    a.queues[1].send(&numbered(1, 5_000)).unwrap();
    assert_comes(&b.queues[1], &[1]);
}

/// A flow by queue 1 of the one gateway, a number every 5 ms for so long. Gives the number after the last one, and
/// those that came out of queues 0 and 1 of the other.
fn stream(from: &Striped, to: &Striped, first: u32, time: Duration) -> (u32, Vec<u32>, Vec<u32>) {
    let start = Instant::now();
    let (mut number, mut by_0, mut by_1) = (first, Vec::new(), Vec::new());
    while start.elapsed() < time {
        from.queues[1].send(&numbered(number, 5_000)).unwrap();
        number += 1;
        let quiet = Duration::from_millis(2);
        by_0.extend(numbers_until(&to.queues[0], quiet));
        by_1.extend(numbers_until(&to.queues[1], quiet));
    }
    by_0.extend(numbers_until(&to.queues[0], SECOND));
    by_1.extend(numbers_until(&to.queues[1], SECOND / 2));
    (number, by_0, by_1)
}

fn all(numbers: std::ops::Range<u32>) -> Vec<u32> {
    numbers.collect()
}

#[test]
fn when_a_stripe_dies_its_flow_goes_on_by_lane_0_in_order_and_comes_back() {
    let (a, b, relay) = connected_in(&[0, 1, 2]);
    let (cut_at, by_0, by_1) = stream(&a, &b, 0, SECOND / 2);
    assert_eq!((by_0, by_1), (vec![], all(0..cut_at)));
    relay.cut(true);
    let start = Instant::now();
    let (mut next, mut moved) = (cut_at, vec![]);
    while moved.is_empty() {
        assert!(start.elapsed() < 3 * LEFT, "nothing comes by lane 0");
        let (end, by_0, by_1) = stream(&a, &b, next, SECOND / 10);
        assert!(by_1.is_empty());
        (next, moved) = (end, by_0);
    }
    let took = start.elapsed();
    println!("moved after {took:?}");
    let (end, by_0, _) = stream(&a, &b, next, SECOND / 2);
    moved.extend(by_0);
    // All since the stripe is known to be dead, and nothing twice or out of order; what was in flight before is lost.
    assert_eq!(moved, all(moved[0]..end));
    assert_eq!(a.alive(&b), [2], "the other one lives");
    assert_eq!(a.gateway.stats_of(&b.gateway).drops, BTreeMap::new());
    relay.cut(false);
    let start = Instant::now();
    while a.alive(&b) != [1, 2] || b.alive(&a) != [1, 2] {
        assert!(
            start.elapsed() < BACK,
            "{:?} {:?}",
            a.alive(&b),
            b.alive(&a)
        );
        thread::sleep(Duration::from_millis(20));
    }
    println!("left after {took:?}, back after {:?}", start.elapsed());
    let (last, by_0, by_1) = stream(&a, &b, end, SECOND / 2);
    assert_eq!((by_0, by_1), (vec![], all(end..last)));
}

#[test]
fn a_stripe_that_is_blocked_one_way_only_is_left_by_both_ends() {
    let (a, b, relay) = connected_in(&[0, 1]);
    relay.cut_left(true);
    let start = Instant::now();
    // b hears nothing and falls silent, and so a hears nothing either, though b goes on to try handshakes.
    while !a.alive(&b).is_empty() {
        assert!(start.elapsed() < 2 * LEFT, "a goes on as if it were heard");
        thread::sleep(Duration::from_millis(20));
    }
    let until = Instant::now() + BACK;
    let before = relay.count(1);
    while Instant::now() < until {
        assert!(a.alive(&b).is_empty() && b.alive(&a).is_empty());
        thread::sleep(Duration::from_millis(50));
    }
    let tried = relay.count(1) - before;
    assert!((2..=10).contains(&tried), "{tried} handshakes in {BACK:?}");
    a.queues[1].send(&numbered(9, 5_000)).unwrap();
    assert_comes(&b.queues[0], &[9]);
    relay.cut_left(false);
    let start = Instant::now();
    while a.alive(&b) != [1] || b.alive(&a) != [1] {
        assert!(start.elapsed() < BACK, "not back");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_flood_by_two_lanes_in_one_session_loses_nothing_to_its_window() {
    let (a, b, relay) = connected_in(&[0, 1]);
    relay.cut(true);
    let start = Instant::now();
    while !a.alive(&b).is_empty() {
        assert!(start.elapsed() < 2 * LEFT);
        thread::sleep(Duration::from_millis(20));
    }
    // Both queues at once, into the session of lane 0.
    let received = thread::scope(|scope| {
        for queue in &a.queues[..2] {
            scope.spawn(|| {
                for number in 0..20_000 {
                    queue.send(&numbered(number, 5_000)).unwrap();
                }
            });
        }
        scope
            .spawn(|| numbers_until(&b.queues[0], SECOND).len())
            .join()
    });
    let received = received.unwrap();
    let drops = b.gateway.stats_of(&a.gateway).drops;
    assert!(
        !drops.contains_key(&Reason::Replay),
        "{drops:?} of {received}"
    );
}
