//! Several active gateways: one dies, the others carry on, and it comes back.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::cluster::{Lab, Tuple};
use crate::numbered::Flows;
use crate::talks::Talks;
use crate::wait::{LONG, bounded, until};

/// The promised bounds, twice: these are debug builds, and the machine may be loaded.
const OUTAGE: Duration = Duration::from_secs(2);
const STALL: Duration = Duration::from_secs(5);

/// What comes from the ports of these flows, over all.
fn ports(all: &[Flows]) -> Vec<u16> {
    all.iter().flat_map(Flows::ports).copied().collect()
}

/// So many further addresses of a node's pod. A node spreads what it sends by the addresses of packets alone, unless its
/// operator has `net.ipv4.fib_multipath_hash_policy` say otherwise.
fn addresses(lab: &Lab, node: &str, count: u8) -> Vec<IpAddr> {
    let node = lab.node(node);
    let IpAddr::V4(first) = node.pod4() else {
        panic!("an IPv4 address");
    };
    let [a, b, c, d] = first.octets();
    let all = (1..=count).map(|n| Ipv4Addr::new(a, b, c, d + n));
    let add = |address: &Ipv4Addr| {
        node.pod.ip(&format!("address add {address}/24 dev eth0"));
    };
    all.inspect(add).map(IpAddr::from).collect()
}

/// What each gateway of east carries into its tunnels: all tuples that only this one carries.
fn carried(lab: &Lab, node: &str) -> BTreeSet<Tuple> {
    let all = lab.carriers("east");
    let alone = all.into_iter().filter(|(_, by)| by.len() == 1);
    let ours = alone.filter(|(_, by)| by.contains(node));
    ours.map(|(tuple, _)| tuple).collect()
}

/// The longest gaps of the flows that come from some ports, and of the others.
fn gaps(flows: &[Flows], ports: &BTreeSet<u16>) -> (Duration, Duration) {
    let (mut these, mut others) = (Duration::ZERO, Duration::ZERO);
    let each = flows.iter().flat_map(|f| f.ports().iter().zip(f.gaps()));
    for (port, gap) in each {
        let longest = if ports.contains(port) {
            &mut these
        } else {
            &mut others
        };
        *longest = gap.max(*longest);
    }
    (these, others)
}

/// Traffic from nodes of east.
struct Traffic {
    /// From behind a plain node, by both gateways.
    flows: Vec<Flows>,
    talks: Vec<Talks>,
    /// From behind the node of the gateway that dies.
    own_flows: Flows,
    own_talks: Talks,
    /// From behind the node of the other one.
    other_flows: Flows,
}

impl Traffic {
    fn start(lab: &Lab) -> Self {
        let (from, to) = (&lab.node(PLAIN).pod, &lab.node("west/n-1").pod);
        let (own, other) = (&lab.node(OWN).pod, &lab.node(OTHER).pod);
        let addresses = addresses(lab, "west/n-1", 16);
        let west = [lab.node("west/gw-1"), lab.node("west/gw-2")];
        let traffic = Self {
            flows: addresses
                .iter()
                .map(|address| Flows::start(from, to, *address, 2))
                .collect(),
            talks: addresses
                .iter()
                .map(|address| Talks::start(from, (to, *address), 1))
                .collect(),
            own_flows: Flows::start(own, &west[0].pod, west[0].pod4(), 4),
            own_talks: Talks::start(own, (&west[0].pod, west[0].pod4()), 4),
            other_flows: Flows::start(other, &west[1].pod, west[1].pod4(), 4),
        };
        std::thread::sleep(Duration::from_secs(1));
        traffic
    }

    fn forget_gaps(&self) {
        for flows in self
            .flows
            .iter()
            .chain([&self.own_flows, &self.other_flows])
        {
            flows.forget_gaps();
        }
    }

    fn go_on(&self) {
        for talks in self.talks.iter().chain([&self.own_talks]) {
            talks.go_on();
        }
        for flows in self
            .flows
            .iter()
            .chain([&self.own_flows, &self.other_flows])
        {
            flows.go_on();
        }
    }
}

const PLAIN: &str = "east/n-1";
const OWN: &str = "east/gw-1";
const OTHER: &str = "east/gw-2";

/// How many connections from a node's pod, from these ports, are among the tuples.
fn count(lab: &Lab, tuples: &BTreeSet<Tuple>, node: &str, ports: &[u16]) -> usize {
    let used = from(lab, tuples, node);
    ports.iter().filter(|port| used.contains(port)).count()
}

/// The ports of a node's pod in the tuples.
fn from(lab: &Lab, tuples: &BTreeSet<Tuple>, node: &str) -> BTreeSet<u16> {
    let address = lab.node(node).pod4().to_string();
    let ours = tuples.iter().filter(|tuple| tuple.0 == address);
    ours.map(|tuple| tuple.1).collect()
}

fn all_by_the_other<'t>(lab: &Lab, tuples: impl IntoIterator<Item = &'t Tuple>) {
    let now = lab.carriers("east");
    let other = BTreeSet::from(["gw-2".to_owned()]);
    for tuple in tuples {
        assert_eq!(now.get(tuple), Some(&other), "{tuple:?}");
    }
}

#[test]
fn a_killed_gateway_takes_only_its_own_flows_along_and_gets_only_idle_ones_back() {
    let mut lab = Lab::pair();
    let traffic = Traffic::start(&lab);
    let flows = ports(&traffic.flows);
    let talks: Vec<u16> = traffic
        .talks
        .iter()
        .flat_map(Talks::ports)
        .copied()
        .collect();
    let [victims, spared] = ["gw-1", "gw-2"].map(|node| carried(&lab, node));
    assert!(count(&lab, &victims, PLAIN, &flows) >= 3, "{victims:?}");
    assert!(count(&lab, &spared, PLAIN, &flows) >= 3, "{spared:?}");
    assert!(count(&lab, &victims, PLAIN, &talks) >= 1, "{victims:?}");
    let own = traffic.own_flows.ports();
    assert_eq!(count(&lab, &victims, OWN, own), 4, "{victims:?}");
    let other = traffic.other_flows.ports();
    assert_eq!(count(&lab, &spared, OTHER, other), 4, "{spared:?}");
    // By which gateways of west they go on.
    lab.watch();
    std::thread::sleep(Duration::from_millis(700));
    let there = lab.to_cluster("west");

    traffic.forget_gaps();
    lab.node_mut(OWN).kill_gateway();
    std::thread::sleep(Duration::from_secs(3));
    traffic.go_on();
    let (moved, stayed) = gaps(&traffic.flows, &from(&lab, &victims, PLAIN));
    let own = traffic.own_flows.longest_gap();
    let other = traffic.other_flows.longest_gap();
    for (what, gap, bound) in [
        ("flows it carried", moved, OUTAGE),
        ("flows of the other one", stayed, OUTAGE / 2),
        ("pods of its own node", own, OUTAGE),
        ("pods of the other's node", other, OUTAGE / 2),
    ] {
        bounded(&format!("kill -9 of a gateway: {what}"), gap, bound);
    }
    all_by_the_other(&lab, victims.iter().chain(&spared));
    let now = lab.to_cluster("west");
    for tuple in spared.iter().filter(|tuple| there.contains_key(*tuple)) {
        assert_eq!(now.get(tuple), there.get(tuple), "{tuple:?} moved in west");
    }
    lab.node(PLAIN).sends_only_by("west", &["gw-2"], LONG);
    let status = lab.node(PLAIN).status("agent").expect("a status");
    let gateways = status["gateways"].as_array().expect("gateways");
    let dead = gateways.iter().find(|g| g["node"] == "gw-1").expect("it");
    assert_eq!(dead["state"], "not-running", "{dead}");
    let path = lab.node("west/gw-1").path(lab.node(OWN)).expect("a path");
    assert_eq!(
        (&path["state"], &path["in_use"]),
        (&"down".into(), &false.into())
    );

    // It returns: what is active stays where it is, and new connections go to it as well.
    traffic.forget_gaps();
    lab.node_mut(OWN).start_gateway("");
    lab.settle();
    std::thread::sleep(Duration::from_secs(1));
    let plain = lab.node(PLAIN).pod4().to_string();
    let active = victims.iter().chain(&spared);
    all_by_the_other(&lab, active.filter(|tuple| tuple.0 == plain));
    let own = traffic.own_flows.longest_gap();
    bounded("return of a gateway: pods of its own node", own, OUTAGE / 2);
    let west = lab.node("west/n-1");
    let fresh = Talks::start(&lab.node(OWN).pod, (&west.pod, west.pod4()), 4);
    let used = carried(&lab, "gw-1");
    assert_eq!(count(&lab, &used, OWN, fresh.ports()), 4, "{used:?}");
    fresh.stop();
    let stall = traffic.talks.into_iter().map(Talks::stop).max();
    let stall = stall.unwrap_or_default();
    bounded("kill -9 of a gateway: TCP between pods", stall, STALL);
    let stall = traffic.own_talks.stop();
    bounded(
        "kill -9 of a gateway: TCP of pods on its node",
        stall,
        STALL,
    );
    lab.no_leaks();
}

#[test]
fn with_the_broker_dead_the_death_of_a_gateway_on_either_side_is_survived() {
    let mut lab = Lab::pair();
    let (east, west) = (lab.node("east/n-1"), lab.node("west/n-1"));
    let there = Flows::start(&east.pod, &west.pod, west.pod4(), 12);
    let back = Flows::start(&west.pod, &east.pod, east.pod4(), 12);
    let talks = Talks::start(&east.pod, (&west.pod, west.pod4()), 12);
    lab.world.broker.kill();
    std::thread::sleep(Duration::from_secs(2));
    for victim in ["east/gw-2", "west/gw-1"] {
        for flows in [&there, &back] {
            flows.forget_gaps();
        }
        lab.node_mut(victim).kill_gateway();
        std::thread::sleep(Duration::from_secs(3));
        there.go_on();
        back.go_on();
        let gap = there.longest_gap().max(back.longest_gap());
        bounded("kill -9 of a gateway with the broker dead", gap, OUTAGE);
        talks.go_on();
    }
    let stall = talks.stop();
    bounded(
        "kill -9 with the broker dead: TCP between pods",
        stall,
        STALL,
    );
    // Still without the broker they come back.
    for victim in ["east/gw-2", "west/gw-1"] {
        lab.node_mut(victim).start_gateway("");
    }
    lab.settle();
    let what = "a pod of the gateway's own node";
    let (from, to) = (lab.node("west/gw-1"), lab.node("east/gw-2"));
    until(what, LONG, || crate::traffic::ping(&from.pod, to.pod4()));
    from.reaches(to);
    lab.no_leaks();
}
