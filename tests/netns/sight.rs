//! What gateways see of paths: one-way loss, a gateway without its cluster, nothing at all, and leases.

use std::time::Duration;

use serde_json::Value;

use crate::cluster::{ALL, Lab};
use crate::numbered::Flows;
use crate::wait::{LONG, bounded, until};

/// Once more than `LONG`: a lease runs for 60 s.
const LEASE: Duration = Duration::from_secs(150);

fn path(lab: &Lab, from: &str, to: &str) -> Value {
    lab.node(from).path(lab.node(to)).unwrap_or_default()
}

#[test]
fn loss_of_one_direction_is_found_from_both_sides_and_no_flow_stays_there() {
    let lab = Lab::pair();
    let (east, west) = ("east/gw-1", "west/gw-1");
    // From the gateway's own node: they all go by it, and on by both of west's.
    let (from, to) = (lab.node(east), lab.node("west/n-1"));
    let flows = Flows::start(&from.pod, &to.pod, to.pod4(), 24);
    until("the path carries", LONG, || {
        let paths = [path(&lab, east, west), path(&lab, west, east)];
        let carries = |path: &Value| {
            let echo = &path["echo"];
            echo["carrying"] == true && echo["interval_ms"] == 250.0
        };
        paths.iter().all(carries)
    });
    for (from, to) in [(east, west), (west, east)] {
        flows.forget_gaps();
        let [saddr, daddr] = [from, to].map(|name| lab.node(name).underlay());
        lab.fault(&format!(
            "ip saddr {saddr} ip daddr {daddr} udp dport 51820"
        ));
        let took = until("both sides have it out of use", LONG, || {
            let (there, back) = (path(&lab, from, to), path(&lab, to, from));
            there["in_use"] == false && back["in_use"] == false
        });
        bounded(
            "one-way loss: found from both sides",
            took,
            Duration::from_millis(2500),
        );
        // The one that is not heard hears the other.
        until("each says what it sees", LONG, || {
            let (seen, back) = (path(&lab, from, to), path(&lab, to, from));
            seen["state"] == "one-way" && seen["why"].is_string() && back["state"] == "down"
        });
        // Other paths are as they were.
        for (from, to) in [(east, "west/gw-2"), ("east/gw-2", west)] {
            let path = path(&lab, from, to);
            assert_eq!(
                (&path["state"], &path["in_use"]),
                (&"connected".into(), &true.into())
            );
        }
        std::thread::sleep(Duration::from_secs(1));
        flows.go_on();
        let gap = flows.longest_gap();
        bounded("one-way loss: flows", gap, Duration::from_millis(2500));
        lab.mend();
        lab.settle();
    }
    lab.no_leaks();
}

#[test]
fn a_gateway_that_lost_its_own_cluster_withdraws_and_comes_back() {
    let mut lab = Lab::build(&[("east", &ALL[..3]), ("west", &ALL[..3])]);
    for name in lab.names() {
        let inward = if name.starts_with("west") {
            "--inward-probe 172.20.2.11"
        } else {
            ""
        };
        lab.enrol(&name, inward);
    }
    lab.settle();
    let plain = (lab.node("east/n-1"), lab.node("west/n-1"));
    let flows = Flows::start(&plain.0.pod, &plain.1.pod, plain.1.pod4(), 24);
    let back = Flows::start(&plain.1.pod, &plain.0.pod, plain.0.pod4(), 24);
    std::thread::sleep(Duration::from_secs(1));
    for flows in [&flows, &back] {
        flows.forget_gaps();
    }
    lab.lan("west").ip("link set gw-1 down");
    until("it is left out", LONG, || {
        let path = path(&lab, "east/gw-1", "west/gw-1");
        path["in_use"] == false && path["echo"]["inward_dead"] == true
    });
    // The tunnel itself is well.
    let seen = path(&lab, "east/gw-2", "west/gw-1");
    assert_eq!(seen["state"], "connected", "{seen}");
    let status = lab.node("west/gw-1").status("gateway").expect("a status");
    assert_eq!(status["inward_dead"], true);
    std::thread::sleep(Duration::from_secs(2));
    flows.go_on();
    back.go_on();
    let gap = flows.longest_gap().max(back.longest_gap());
    bounded(
        "a gateway that lost its cluster: flows",
        gap,
        Duration::from_secs(4),
    );
    lab.lan("west").ip("link set gw-1 up");
    lab.settle();
    let status = lab.node("west/gw-1").status("gateway").expect("a status");
    assert_eq!(status["inward_dead"], false);

    // Everything looks dead: the last good ones stay, and carry as soon as they can.
    lab.fault("udp dport 51820");
    let gateways = [
        ("east/gw-1", "west/gw-1"),
        ("east/gw-1", "west/gw-2"),
        ("west/gw-2", "east/gw-2"),
    ];
    until("all paths are down", LONG, || {
        let mut paths = gateways.iter().map(|(from, to)| path(&lab, from, to));
        paths.all(|path| path["state"] == "down")
    });
    for (from, to) in gateways {
        let path = path(&lab, from, to);
        let others = lab.node(from).status("gateway").expect("a status");
        let in_use = others["members"][0]["gateways"].as_array().expect("paths");
        assert!(in_use.iter().any(|p| p["in_use"] == true), "{path}");
    }
    assert!(!lab.node("east/n-1").sends_by("west").is_empty());
    lab.mend();
    for flows in [&flows, &back] {
        flows.forget_gaps();
    }
    let (ours, theirs) = (lab.node("east/n-1"), lab.node("west/n-1"));
    let took = flows.go_on();
    bounded(
        "all paths were dead: flows go on after",
        took,
        Duration::from_secs(6),
    );
    ours.reaches(theirs);
    lab.settle();
    lab.no_leaks();
}

#[test]
fn a_lease_that_ran_out_is_shown_and_costs_no_traffic() {
    let lab = Lab::pair();
    let plain = (lab.node("east/n-1"), lab.node("west/n-1"));
    let flows = Flows::start(&plain.0.pod, &plain.1.pod, plain.1.pod4(), 32);
    assert_eq!(path(&lab, "east/gw-1", "west/gw-1")["expired"], Value::Null);
    std::thread::sleep(Duration::from_secs(1));
    let before = lab.carriers("west");
    assert!(before.values().any(|by| by.contains("gw-1")), "{before:?}");
    // Cut off from the broker alone.
    let cut = lab.node("west/gw-1").underlay();
    lab.fault(&format!("ip saddr {cut} ip daddr 192.0.2.10"));
    for from in ["east/gw-1", "east/gw-2"] {
        until("the lease has run out", LEASE, || {
            path(&lab, from, "west/gw-1")["expired"].is_u64()
        });
        let seen = path(&lab, from, "west/gw-1");
        assert_eq!(
            (&seen["state"], &seen["in_use"]),
            (&"connected".into(), &true.into())
        );
        let other = path(&lab, from, "west/gw-2");
        assert_eq!(other["expired"], Value::Null, "{other}");
    }
    let text = lab.node("east/gw-1").subsea("gateway", "status").ok();
    assert!(text.contains("expired"), "{text}");
    let carriers = lab.carriers("west");
    assert!(
        carriers.values().any(|by| by.contains("gw-1")),
        "{carriers:?}"
    );
    assert_eq!(flows.lost(), 0);
    lab.mend();
    until("it is renewed", LEASE, || {
        let paths = ["east/gw-1", "east/gw-2"].map(|from| path(&lab, from, "west/gw-1"));
        paths
            .iter()
            .all(|path| path["expired"].is_null() && path["state"] == "connected")
    });
    assert_eq!(flows.lost(), 0);
    lab.no_leaks();
}
