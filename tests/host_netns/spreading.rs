//! Flows over several gateways: real packets, and where each of them comes out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use subsea::host::{Desired, Mark, Parameter, Settings, Steering, Swap};
use subsea::net::netlink::{Group, NextHop, Resilient, Route, Rule};
use subsea_api::Family;

use crate::space::{Space, in_namespace, sh};
use crate::{pass, reconciler, run, settle};

const IDS: u32 = 0x5300_0000;
const GROUP: u32 = IDS + 100;
const GATEWAYS: u32 = 3;
/// Flows of each family.
const FLOWS: u16 = 60;

/// How long packets that must come out may take on a machine under load, and for how long none is proof enough.
const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(500);

/// A packet that came out: of which flow, at which gateway, and when it was sent. Who receives it here may be late.
type Arrival = (u16, u32, Instant);

/// A pod behind this namespace, which is the node, and gateways to the same other cluster.
struct Lab {
    pod: Space,
    _gateways: Vec<Space>,
    /// One for each flow; those of IPv6 come second.
    flows: Vec<UdpSocket>,
    /// What packets tell their time from.
    start: Instant,
    arrivals: Receiver<Arrival>,
}

fn lab() -> Lab {
    sh("ip link set lo up");
    let pod = Space::new();
    sh(&format!(
        "ip link add pod0 type veth peer name eth0 netns {}; ip link set pod0 up
         ip address add 10.32.0.1/24 dev pod0; ip address add fd00:32::1/64 dev pod0 nodad
         sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
        pod.pid()
    ));
    pod.sh("ip link set eth0 up; ip address add 10.32.0.2/24 dev eth0; ip address add fd00:32::2/64 dev eth0 nodad
        ip route add default via 10.32.0.1; ip -6 route add default via fd00:32::1");
    let flows = open(&pod);
    let (sender, arrivals) = channel();
    let start = Instant::now();
    let gateways = (1..=GATEWAYS).map(|k| {
        let gateway = Space::new();
        sh(&format!(
            "ip link add gw{k} type veth peer name eth0 netns {}; ip link set gw{k} addrgenmode none up
             ip address add fe80::1/64 dev gw{k} nodad",
            gateway.pid()
        ));
        gateway.sh(&format!(
            "ip link set eth0 addrgenmode none up; ip address add fe80::a{k}/64 dev eth0 nodad
             ip address add 10.64.0.9/32 dev lo; ip address add fd00:64::9/128 dev lo nodad
             sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0"
        ));
        let socket = gateway.inside(|| UdpSocket::bind("[::]:7000").unwrap());
        // What this test's own thread is too late to take is not lost on the way.
        set_socket_recv_buffer_size_force(&socket, 1 << 26).unwrap();
        let sender = sender.clone();
        std::thread::spawn(move || {
            let mut packet = [0; 10];
            while socket.recv(&mut packet).is_ok() {
                let [first, second, time @ ..] = packet;
                let sent = start + Duration::from_nanos(u64::from_ne_bytes(time));
                let arrival = (u16::from_ne_bytes([first, second]), k, sent);
                if sender.send(arrival).is_err() {
                    return;
                }
            }
        });
        gateway
    });
    Lab {
        _gateways: gateways.collect(),
        pod,
        flows,
        start,
        arrivals,
    }
}

/// Flows of a pod, on ports of their own.
fn open(pod: &Space) -> Vec<UdpSocket> {
    pod.inside(|| {
        let open = |to: &str| {
            let to: SocketAddr = to.parse().unwrap();
            let any: IpAddr = if to.is_ipv4() {
                [0; 4].into()
            } else {
                [0_u16; 8].into()
            };
            let socket = UdpSocket::bind((any, 0)).unwrap();
            socket.connect(to).unwrap();
            socket
        };
        let v4 = (0..FLOWS).map(|_| open("10.64.0.9:7000"));
        v4.chain((0..FLOWS).map(|_| open("[fd00:64::9]:7000")))
            .collect()
    })
}

/// One packet of each flow.
fn send(flows: &[UdpSocket], start: Instant) {
    for (flow, socket) in flows.iter().enumerate() {
        let flow = u16::try_from(flow).unwrap().to_ne_bytes();
        // "No route" of an earlier one would be told instead of sending.
        drop(socket.take_error());
        let time = u64::try_from(start.elapsed().as_nanos()).unwrap();
        let _ = socket.send(&[&flow[..], &time.to_ne_bytes()].concat());
    }
}

impl Lab {
    /// One packet of each flow.
    fn send(&self) {
        send(&self.flows, self.start);
    }

    /// What was sent since then and comes out before a silence.
    fn arrived(&self, since: Instant) -> Vec<Arrival> {
        let mut arrivals = Vec::new();
        while let Ok(arrival) = self.arrivals.recv_timeout(SHORT) {
            if arrival.2 >= since {
                arrivals.push(arrival);
            }
        }
        arrivals
    }

    /// At which gateway each flow comes out. All must.
    fn places(&self) -> BTreeMap<u16, u32> {
        let began = Instant::now();
        self.send();
        let mut places = BTreeMap::new();
        while places.len() < self.flows.len() {
            let left = LONG.saturating_sub(began.elapsed());
            let Ok((flow, gateway, sent)) = self.arrivals.recv_timeout(left) else {
                break;
            };
            if sent >= began {
                places.insert(flow, gateway);
            }
        }
        assert_eq!(places.len(), self.flows.len(), "{places:?}");
        places
    }

    /// What comes out where nothing should.
    fn strays(&self) -> Vec<Arrival> {
        let began = Instant::now();
        self.send();
        self.arrived(began)
    }

    /// What comes out while `change` is made in the midst of traffic, and when it began and ended.
    fn during(&self, change: impl FnOnce()) -> (Vec<Arrival>, Instant, Instant) {
        let since = Instant::now();
        let stop = AtomicBool::new(false);
        let (flows, start) = (&self.flows, self.start);
        let (began, ended) = std::thread::scope(|scope| {
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    send(flows, start);
                    std::thread::sleep(Duration::from_micros(500));
                }
            });
            std::thread::sleep(Duration::from_millis(100));
            let began = Instant::now();
            change();
            let ended = Instant::now();
            std::thread::sleep(Duration::from_millis(500));
            stop.store(true, Ordering::Relaxed);
            (began, ended)
        });
        (self.arrived(since), began, ended)
    }
}

fn group(members: &[u32]) -> Group {
    Group {
        resilient: Resilient {
            // Longer than a machine under load keeps flows from sending: idle ones may move.
            idle_timer: Duration::from_secs(30),
            ..Resilient::default()
        },
        ..Group::new(GROUP, members.iter().map(|k| IDS + k))
    }
}

fn wanted() -> Desired {
    let hop = |k| {
        let via = format!("fe80::a{k}").parse().unwrap();
        NextHop::via(IDS + k, via, &format!("gw{k}"))
    };
    let mut desired = Desired::empty(583);
    desired.next_hops = (1..=GATEWAYS).map(hop).collect();
    desired.groups.insert(group(&[1, 2, 3]));
    for block in ["10.64.0.0/16", "fd00:64::/48"] {
        let block = block.parse().unwrap();
        desired.routes.insert(Route::backstop(583, block));
        let through = Route::through(583, block, GROUP, None);
        desired.routes.insert(through);
        let rule = Rule::ours(block.family(), 583, Mark::default(), 583);
        desired.rules.insert(rule);
    }
    desired.parameters = ["ipv4", "ipv6"]
        .map(|family| Parameter {
            key: format!("net/{family}/fib_multipath_hash_policy"),
            value: "1",
            replaces: None,
        })
        .into();
    desired
}

fn steer(swap: &Swap, number: u64, members: &[u32]) {
    let groups = BTreeMap::from([(GROUP, group(members))]);
    swap.steer(Steering {
        number,
        groups,
        rules: BTreeMap::new(),
    })
    .unwrap();
}

/// How long after then the last packet was sent that came out at a gateway.
fn last_at(arrivals: &[Arrival], gateway: u32, then: Instant) -> Duration {
    let at = arrivals.iter().filter(|(_, g, _)| *g == gateway);
    let last = at.map(|(_, _, at)| *at).max();
    last.map_or(Duration::ZERO, |last| last.saturating_duration_since(then))
}

/// Of flows that did not come out at `gone`, none may be elsewhere now; all must come out somewhere else than there.
fn only_those_of(gone: u32, before: &BTreeMap<u16, u32>, after: &BTreeMap<u16, u32>) {
    for (flow, gateway) in before {
        if *gateway == gone {
            assert_ne!(after[flow], gone, "flow {flow} did not move");
        } else {
            assert_eq!(after[flow], *gateway, "flow {flow} moved for nothing");
        }
    }
}

#[test]
fn only_the_flows_of_a_lost_gateway_move_and_at_once() {
    const NAME: &str = "spreading::only_the_flows_of_a_lost_gateway_move_and_at_once";
    in_namespace(NAME, |_| {
        let mut lab = lab();
        run(async {
            let mut reconciler = reconciler();
            let mut wanted = wanted();
            let first = pass(&mut reconciler, &wanted).await;
            assert_eq!(first.problems, Vec::<String>::new());
            assert_eq!(pass(&mut reconciler, &wanted).await.changes, 0);
            assert!(settle(&mut reconciler, &wanted).await <= 1);

            // A first packet each, that all neighbours be known.
            lab.places();
            let before = lab.places();
            for k in 1..=GATEWAYS {
                let share = before.values().filter(|g| **g == k).count();
                println!("gateway {k}: {share} flows of {}", before.len());
                assert!(share >= before.len() / 10, "gateway {k} has {share}");
            }

            let swap = reconciler.swap();
            let (arrivals, began, ended) = lab.during(|| steer(&swap, 1, &[1, 3]));
            let last = last_at(&arrivals, 2, ended);
            println!(
                "steered within {:?}, the last packet the old way {last:?} after it ended",
                ended - began
            );
            assert!(last < Duration::from_millis(20), "{last:?}");
            let moved = lab.places();
            only_those_of(2, &before, &moved);

            // It comes back: what flows stays, also over a pass.
            let (arrivals, ..) = lab.during(|| steer(&swap, 2, &[1, 2, 3]));
            assert!(
                arrivals
                    .iter()
                    .all(|(flow, gateway, _)| moved[flow] == *gateway)
            );
            assert_eq!(pass(&mut reconciler, &wanted).await.changes, 0);
            only_those_of(2, &moved, &lab.places());
            // New flows go to it, too.
            lab.flows = open(&lab.pod);
            let fresh = lab.places();
            assert!(fresh.values().any(|g| *g == 2), "{fresh:?}");

            // A pass that knows only an older decision takes nothing back.
            let times = (3..=7).map(|number| {
                let members: &[u32] = if number % 2 == 1 { &[1, 3] } else { &[1, 2, 3] };
                let began = Instant::now();
                steer(&swap, number, members);
                began.elapsed()
            });
            // The best of five: a machine under load takes its time from any of them.
            let best = times.min().unwrap();
            assert!(best < Duration::from_millis(20), "{best:?}");
            pass(&mut reconciler, &wanted).await;
            assert!(lab.places().values().all(|g| *g != 2));
            steer(&swap, 2, &[1, 2, 3]);
            assert!(sh("ip nexthop").contains(&format!("group {}/{} ", IDS + 1, IDS + 3)));
            // A newer one does.
            (wanted.steering, wanted.groups) = (8, BTreeSet::from([group(&[2, 3])]));
            assert_eq!(pass(&mut reconciler, &wanted).await.changes, 1);
            assert!(lab.places().values().all(|g| *g != 1));

            // Next hops that somebody removes, and devices that go: the others carry on, and what can come back does.
            let (arrivals, began, _) =
                lab.during(|| drop(sh(&format!("ip nexthop del id {}", IDS + 2))));
            println!(
                "next hop removed: last packet by it after {:?}",
                last_at(&arrivals, 2, began)
            );
            assert!(lab.places().values().all(|g| *g == 3));
            settle(&mut reconciler, &wanted).await;
            assert!(sh("ip nexthop").contains(&format!("group {}/{} ", IDS + 2, IDS + 3)));
            sh("ip link del gw3");
            assert!(lab.places().values().all(|g| *g == 2));
            sh("ip link del gw2");
            let strays = lab.strays();
            assert!(strays.is_empty(), "the backstop holds: {strays:?}");
            let report = reconciler.reconcile(&wanted).await.unwrap();
            assert!(report.converged(), "{report:?}");
            let routes = sh("ip route show table 583; ip -6 route show table 583");
            assert_eq!(routes.matches("unreachable").count(), 2, "{routes}");
            assert_eq!(routes.lines().count(), 2, "{routes}");
        });
    });
}

#[test]
fn numbers_of_others_and_odd_ones_are_told_apart() {
    const NAME: &str = "spreading::numbers_of_others_and_odd_ones_are_told_apart";
    in_namespace(NAME, |_| {
        let _lab = lab();
        run(async {
            let mut wanted = wanted();
            let mut reconciler = reconciler();
            // Theirs outside of our numbers, and with one of ours; ours of a kind that we do not make.
            sh(&format!(
                "ip nexthop add id 7 dev gw1; ip nexthop add id {} dev gw1 proto static
                 ip nexthop add id {} dev gw1 proto 83; ip nexthop add id {} blackhole proto 83",
                IDS + 50,
                GROUP,
                IDS + 51
            ));
            pass(&mut reconciler, &wanted).await;
            let left = sh("ip nexthop");
            assert!(left.contains("id 7 dev gw1"), "{left}");
            assert!(left.contains(&format!("id {} dev gw1", IDS + 50)), "{left}");
            assert!(!left.contains(&format!("id {} ", IDS + 51)), "{left}");
            assert!(left.contains(&format!("id {GROUP} group ")), "{left}");

            wanted
                .next_hops
                .insert(NextHop::device(IDS + 50, Family::V4, "gw1"));
            let report = reconciler.reconcile(&wanted).await.unwrap();
            assert!(!report.converged() && report.problems[0].contains("is somebody else's"));

            // More buckets make another group: routes to it are put back with it.
            wanted = self::wanted();
            let wide = Resilient {
                buckets: 256,
                ..Resilient::default()
            };
            wanted.groups = BTreeSet::from([Group {
                resilient: wide,
                ..group(&[1, 2])
            }]);
            pass(&mut reconciler, &wanted).await;
            assert_eq!(pass(&mut reconciler, &wanted).await.changes, 0);
            let routes = sh("ip route show table 583; ip -6 route show table 583");
            assert_eq!(routes.matches("unreachable").count(), 2, "{routes}");
            let through = format!("nhid {GROUP}");
            assert_eq!(routes.matches(&through).count(), 2, "{routes}");

            let before = sh("ip nexthop show id 7");
            let refused =
                subsea::host::cleanup(&Settings::default(), &subsea::net::sysctl::Saved::new())
                    .await;
            assert!(refused.is_empty(), "{refused:?}");
            assert_eq!(sh("ip nexthop show id 7"), before);
            assert!(!sh("ip nexthop").contains("proto 83"));
        });
    });
}
