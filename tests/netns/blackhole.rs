//! An underlay that drops what is larger than it takes, and tells nobody.

use std::time::Duration;

use crate::cluster::Lab;
use crate::flows::{Pump, transfer};
use crate::wait::{LONG, bounded, until};

/// The largest packet of the underlay.
const UNDERLAY: u64 = 1300;
/// What WireGuard adds over IPv4, and the largest packet that then passes.
const INNER: u64 = UNDERLAY - 60;

#[test]
fn the_path_mtu_is_found_in_silence_shown_and_put_on_the_routes_of_gateways_and_nodes() {
    let lab = Lab::pair();
    let (from, to) = (lab.node("east/n-1"), lab.node("west/n-1"));
    let pump = Pump::start(&from.pod, (&to.pod, to.pod4()));
    std::thread::sleep(Duration::from_secs(1));
    lab.watch();
    std::thread::sleep(Duration::from_millis(500));
    let used = |tunnels: std::collections::BTreeMap<_, std::collections::BTreeSet<String>>| {
        let all: Vec<String> = tunnels.into_values().flatten().collect();
        assert_eq!(all.len(), 1, "one connection goes by {all:?}");
        all.concat()
    };
    let sender = format!("east/{}", used(lab.out_of_cluster("east")));
    let receiver = format!("west/{}", used(lab.to_cluster("west")));

    lab.fault(&format!("ip length > {UNDERLAY}"));
    let (sender, receiver) = (lab.node(&sender), lab.node(&receiver));
    let took = until("the path MTU shows in the status", LONG, || {
        let path = sender.path(receiver).unwrap_or_default();
        path["path_mtu"].as_u64().is_some_and(|mtu| mtu <= UNDERLAY)
    });
    bounded(
        "a black hole: path MTU in the status",
        took,
        Duration::from_secs(6),
    );
    let path = sender.path(receiver).expect("a path");
    let found = path["path_mtu"].as_u64().expect("bytes");
    assert!((UNDERLAY - 120..=UNDERLAY).contains(&found), "{path}");
    let mtu_of = |node: &crate::node::Node, table: &str| {
        let routes = node
            .space
            .ip_json(&format!("route show table {table} 10.2.0.0/16"));
        let live = routes.iter().filter(|r| r["type"] != "unreachable");
        let mtu = live.filter_map(|route| {
            let metrics = route["metrics"].as_array()?;
            metrics.iter().find_map(|m| m["mtu"].as_u64())
        });
        mtu.min()
    };
    for (node, table) in [(sender, "583"), (from, "584")] {
        until("the route has the MTU", LONG, || {
            mtu_of(node, table).is_some_and(|mtu| (INNER - 120..=INNER).contains(&mtu))
        });
    }
    let before = pump.received();
    until("the connection goes on", LONG, || {
        pump.received() > before + 1_000_000
    });
    let (_, stall) = pump.stop();
    bounded("a black hole: TCP stalls", stall, Duration::from_secs(6));
    // New connections, both ways.
    transfer(&from.pod, (&to.pod, to.pod4()), 2_000_000, LONG);
    transfer(&to.pod, (&from.pod, from.pod4()), 2_000_000, LONG);
    lab.no_leaks();
}
