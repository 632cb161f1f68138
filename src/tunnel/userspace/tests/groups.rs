//! Several gateways of one cluster: which of them gets a packet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::tunnel::Group;

/// A gateway of net 1, and several of net 2 that share its blocks, with sessions between it and each.
struct Fleet {
    a: Gateway,
    others: Vec<Gateway>,
}

impl Fleet {
    fn start(count: u8) -> Self {
        let a = Gateway::start([1; 32], 1, 0);
        let others: Vec<_> = (0..count)
            .map(|n| Gateway::start([50 + n; 32], 2, 0))
            .collect();
        for (n, other) in others.iter().enumerate() {
            other.peer(a.key, 1, Some(a.addr()));
            a.peer(other.key, 2, Some(other.addr()));
            let inner: Cidr = format!("198.19.0.{}/32", n + 1).parse().unwrap();
            other.change(|config| config.local.push(inner));
            a.change(|config| {
                let peer = config.peers.get_mut(&other.key).unwrap();
                peer.routes = vec![inner];
                peer.sources.push(inner);
            });
        }
        let members = others.iter().map(|other| other.key).collect();
        a.change(|config| {
            config.groups = vec![Group {
                routes: blocks(2),
                members,
            }];
        });
        let fleet = Self { a, others };
        for n in 0..fleet.others.len() {
            // To an address that this one alone has.
            let addr = format!("198.19.0.{}", n + 1);
            fleet.a.send("10.1.0.1", &addr, b"its own");
            let got = fleet.others[n].receive();
            assert_eq!(got, packet("10.1.0.1", &addr, b"its own"));
        }
        fleet
    }

    fn steer(&self, in_use: &[usize]) {
        let keys = in_use.iter().map(|n| self.others[*n].key);
        self.a.tunnel.steer(&keys.collect());
    }

    /// Sends a packet to net 2; gives who got it.
    fn carrier(&self, bytes: &[u8]) -> usize {
        self.a.inside.send(bytes).unwrap();
        self.arrives(bytes)
    }

    fn arrives(&self, bytes: &[u8]) -> usize {
        let start = Instant::now();
        let mut room = [0; 2_000];
        loop {
            for (n, other) in self.others.iter().enumerate() {
                other.inside.set_nonblocking(true).unwrap();
                if let Ok(len) = other.inside.recv(&mut room) {
                    assert_eq!(&room[..len], bytes);
                    return n;
                }
            }
            assert!(start.elapsed() < SOON, "it came out nowhere");
            thread::sleep(Duration::from_micros(100));
        }
    }

    fn carriers(&self, flows: std::ops::Range<u16>) -> Vec<usize> {
        flows.map(|flow| self.carrier(&there(flow))).collect()
    }

    /// A packet of net 2 by one of its gateways.
    fn by(&self, n: usize, bytes: &[u8]) {
        self.others[n].inside.send(bytes).unwrap();
        assert_eq!(self.a.receive(), bytes);
    }
}

fn datagram(source: &str, destination: &str, ports: [u16; 2], bytes: &[u8]) -> Vec<u8> {
    let payload = [
        &ports.map(u16::to_be_bytes).concat()[..],
        &[0, 12, 0, 0],
        bytes,
    ]
    .concat();
    packet(source, destination, &payload)
}

/// A packet of a flow from net 1 to net 2; those of odd number are IPv6.
fn there(flow: u16) -> Vec<u8> {
    let (source, destination) = ends(flow);
    datagram(source, destination, [flow, 80], b"there")
}

/// And one of the answers.
fn back(flow: u16) -> Vec<u8> {
    let (source, destination) = ends(flow);
    datagram(destination, source, [80, flow], b"back!")
}

fn ends(flow: u16) -> (&'static str, &'static str) {
    if flow.is_multiple_of(2) {
        ("10.1.0.1", "10.2.0.1")
    } else {
        ("fd00:1::1", "fd00:2::1")
    }
}

#[test]
fn flows_spread_and_only_those_of_a_gateway_that_goes_move_and_stay_when_it_is_back() {
    let fleet = Fleet::start(3);
    fleet.steer(&[0, 1, 2]);
    let before = fleet.carriers(0..60);
    assert_eq!(before.iter().collect::<BTreeSet<_>>().len(), 3);
    assert_eq!(fleet.carriers(0..60), before);
    fleet.steer(&[0, 2]);
    let during = fleet.carriers(0..60);
    for (before, during) in before.iter().zip(&during) {
        assert!(if *before == 1 {
            *during != 1
        } else {
            before == during
        });
    }
    fleet.steer(&[0, 1, 2]);
    assert_eq!(fleet.carriers(0..60), during);
    // New flows go to it again.
    assert!(fleet.carriers(100..160).contains(&1));
    // Its own address was at it all the time.
    assert_eq!(fleet.a.drops(Reason::NoPeer), 0);
}

#[test]
fn answers_leave_by_the_gateway_that_their_flow_came_by() {
    let fleet = Fleet::start(3);
    fleet.steer(&[0, 1, 2]);
    for flow in 0..30 {
        let n = usize::from(flow % 3);
        fleet.by(n, &back(flow));
        assert_eq!(fleet.carrier(&there(flow)), n);
    }
    // Of one that is not in use nothing is noted, nor is a flow taken from where it went.
    fleet.steer(&[0, 1]);
    let moved = fleet.carriers(0..30);
    for (flow, carrier) in (0..30).zip(moved) {
        assert!(carrier < 2 && (flow % 3 == 2 || carrier == usize::from(flow % 3)));
        fleet.by(2, &back(flow));
        assert_eq!(fleet.carrier(&there(flow)), carrier);
    }
    // A flow whose other end moves follows it.
    fleet.by(0, &back(1));
    assert_eq!(fleet.carrier(&there(1)), 0);
    fleet.by(1, &back(1));
    assert_eq!(fleet.carrier(&there(1)), 1);
}

#[test]
fn fragments_go_together_and_icmp_errors_by_the_road_of_what_they_are_about() {
    let fleet = Fleet::start(3);
    fleet.steer(&[0, 1, 2]);
    for id in 0..20_u8 {
        let fragment = |more_and_offset: [u8; 2], payload: [u8; 8]| {
            let mut bytes = packet("10.1.0.7", &format!("10.2.0.{id}"), &payload);
            bytes[4..8].copy_from_slice(&[0, id, more_and_offset[0], more_and_offset[1]]);
            bytes
        };
        let first = fleet.carrier(&fragment([0x20, 0], [id; 8]));
        let last = fleet.carrier(&fragment([0, 1], [0xff; 8]));
        assert_eq!(first, last);
    }
    for flow in (0..30).step_by(2) {
        let n = usize::from(flow % 3);
        fleet.by(n, &back(flow));
        // A router of net 1 says that what came by there is too big; from there nothing else ever went.
        let error = [&[3, 4, 0, 0, 0, 0, 5, 120][..], &back(flow)[..28]].concat();
        let mut error = packet("10.1.0.99", "10.2.0.1", &error);
        error[9] = 1;
        assert_eq!(fleet.carrier(&error), n);
        // One that comes in moves nothing.
        let error = [&[3, 4, 0, 0, 0, 0, 5, 120][..], &there(flow)[..28]].concat();
        let mut error = packet("10.2.0.99", "10.1.0.1", &error);
        error[9] = 1;
        fleet.by((n + 1) % 3, &error);
        assert_eq!(fleet.carrier(&there(flow)), n);
    }
}

#[test]
fn another_configuration_leaves_flows_and_who_is_in_use_as_they_are() {
    let fleet = Fleet::start(4);
    fleet.steer(&[0, 1]);
    let before = fleet.carriers(0..40);
    let change = |f: &dyn Fn(&mut TunnelConfig)| fleet.a.change(|config| f(config));
    change(&|config| config.local.push("10.77.0.0/16".parse().unwrap()));
    assert_eq!(fleet.carriers(0..40), before);
    // One goes for good: its flows move, the others stay; and nobody else comes into use.
    change(&|config| drop(config.peers.remove(&fleet.others[1].key)));
    let after = fleet.carriers(0..40);
    assert!(after.iter().all(|carrier| *carrier == 0));
    // A new peer is in use only when it was steered to: before it came, or after.
    let config = |n: usize| fleet.a.config.lock().unwrap().peers[&fleet.others[n].key].clone();
    let (second, third) = (config(2), config(3));
    for n in [2, 3] {
        change(&|config| drop(config.peers.remove(&fleet.others[n].key)));
    }
    fleet.steer(&[0, 2]);
    change(&|config| {
        config.peers.insert(fleet.others[2].key, second.clone());
        config.peers.insert(fleet.others[3].key, third.clone());
    });
    let carriers: BTreeSet<_> = fleet.carriers(100..140).into_iter().collect();
    assert_eq!(carriers, BTreeSet::from([0, 2]));
    fleet.steer(&[0, 2, 3]);
    assert!(fleet.carriers(200..240).contains(&3));
}

#[test]
fn a_group_without_a_member_in_use_drops_and_a_lone_member_always_carries() {
    let fleet = Fleet::start(2);
    let flows = || fleet.a.tunnel.driver.shared.table().flows().is_some();
    assert!(flows());
    fleet.a.inside.send(&there(0)).unwrap();
    eventually("nobody was steered to", || {
        fleet.a.drops(Reason::NoPeer) == 1
    });
    fleet.a.change(|config| {
        config.groups[0].members.remove(&fleet.others[0].key);
    });
    assert!(!flows(), "a single one needs no memory");
    assert_eq!(fleet.carriers(0..10), [1; 10]);
    fleet.a.change(|config| config.groups[0].members.clear());
    fleet.a.inside.send(&there(0)).unwrap();
    eventually("a group of nobody", || fleet.a.drops(Reason::NoPeer) == 2);
}

#[test]
fn nothing_is_lost_while_it_is_steered_and_configured_all_the_time() {
    let fleet = Fleet::start(2);
    fleet.steer(&[0]);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for n in (0..2).cycle() {
                fleet.steer(&[n]);
                thread::sleep(Duration::from_micros(200));
                if done.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        scope.spawn(|| {
            let mut blocks = (0..=255_u8).cycle();
            while !done.load(Ordering::Relaxed) {
                let block = format!("10.77.{}.0/24", blocks.next().unwrap());
                fleet
                    .a
                    .change(|config| config.local.push(block.parse().unwrap()));
                fleet.a.change(|config| config.local.truncate(2));
            }
        });
        let mut carried = BTreeMap::<usize, u32>::new();
        for flow in 0..1_000 {
            *carried.entry(fleet.carrier(&there(flow % 50))).or_default() += 1;
        }
        done.store(true, Ordering::Relaxed);
        assert_eq!(carried.len(), 2, "{carried:?}");
    });
    assert_eq!(fleet.a.drops(Reason::NoPeer), 0);
}
