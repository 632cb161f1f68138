//! Gateways that go in good order, and one that does not.

use std::time::Duration;

use rustix::process::Signal;

use crate::cluster::Lab;
use crate::numbered::Flows;
use crate::wait::{LONG, bounded};

/// The promised bound, twice.
const OUTAGE: Duration = Duration::from_secs(2);

fn flows(lab: &Lab) -> Vec<Flows> {
    let pairs = [
        ("east/n-1", "west/n-1", 16),
        ("west/gw-1", "east/n-2", 8),
        ("east/gw-1", "west/gw-2", 8),
        ("west/n-1", "east/gw-1", 8),
    ];
    Flows::between(lab, pairs)
}

#[test]
fn a_drained_gateway_loses_no_packet_nor_does_one_that_gets_sigterm_nor_its_return() {
    let mut lab = Lab::pair();
    let flows = flows(&lab);
    let lost = || -> Vec<u64> { flows.iter().map(Flows::lost).collect() };
    assert_eq!(lost(), [0; 4], "before");
    for name in ["east/gw-1", "west/gw-2"] {
        let cluster = lab.node(name).cluster.clone();
        let own = lab.node(name).name.clone();
        let carries = |lab: &Lab| {
            let by = lab.carriers(&cluster);
            by.values().filter(|by| by.contains(&own)).count()
        };
        assert!(carries(&lab) >= 3, "{name} carries too little");
        if name == "east/gw-1" {
            let text = lab.node(name).subsea("gateway", "drain").ok();
            assert!(text.contains("drained"), "{text}");
        } else {
            let gateway = lab.node(name).gateway.as_ref();
            gateway.expect("it runs").signal(Signal::TERM);
        }
        lab.node_mut(name).gateway_ends(LONG);
        let output = lab.node(name).output("gateway");
        assert!(!output.contains("still not drained"), "{output}");
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(lost(), [0; 4], "{name} went");
        lab.node_mut(name).start_gateway("");
        lab.settle();
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(lost(), [0; 4], "{name} came back");
    }
    lab.no_leaks();
}

#[test]
fn a_node_that_goes_down_in_good_order_loses_no_packet() {
    let mut lab = Lab::pair();
    let flows = flows(&lab);
    // Who ends a node asks all of its daemons at once.
    let node = lab.node("east/gw-1");
    let daemons = [&node.agent, &node.gateway].map(|daemon| daemon.as_ref().expect("it runs"));
    for daemon in daemons {
        daemon.signal(Signal::TERM);
    }
    lab.node_mut("east/gw-1").gateway_ends(LONG);
    let mut agent = lab.node_mut("east/gw-1").agent.take().expect("it ran");
    assert!(agent.wait(LONG).success());
    let said = lab.node("east/gw-1").output("agent");
    let told = "waits for the gateway of this node";
    assert!(said.contains(told), "nodes do not hear of its end: {said}");
    assert!(!said.contains("stopping before it"), "{said}");
    lab.node("east/n-1").sends_only_by("west", &["gw-2"], LONG);
    std::thread::sleep(Duration::from_secs(1));
    // Those of its own pods end with it.
    let lost: Vec<u64> = flows.iter().take(2).map(Flows::lost).collect();
    assert_eq!(lost, [0; 2]);
    lab.no_leaks();
}

#[test]
fn a_restart_without_drain_is_short() {
    let mut lab = Lab::pair();
    let flows = flows(&lab);
    for name in ["east/gw-1", "west/gw-2"] {
        flows.iter().for_each(Flows::forget_gaps);
        lab.node_mut(name).kill_gateway();
        lab.node_mut(name).start_gateway("");
        lab.settle();
        std::thread::sleep(Duration::from_secs(1));
        for flows in &flows {
            flows.go_on();
        }
        let gap = flows.iter().map(Flows::longest_gap).max();
        bounded("a restart without drain", gap.unwrap_or_default(), OUTAGE);
    }
    lab.no_leaks();
}
