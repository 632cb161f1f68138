//! Every placement of two pods: behind gateways' nodes and behind plain ones, and processes of the nodes themselves.

use std::net::IpAddr;

use crate::cluster::{ALL, Lab};
use crate::traffic::ping;
use crate::wait::{LONG, until};

#[test]
fn pods_and_hosts_of_all_nodes_reach_the_pods_of_all_nodes_of_the_other_cluster() {
    let lab = Lab::start(&[("east", ALL), ("west", ALL)]);
    let pairs = || {
        let all = || lab.nodes();
        all()
            .flat_map(move |from| all().map(move |to| (from, to)))
            .filter(|(from, to)| from.cluster != to.cluster)
    };
    let mut seen = 0;
    for (from, to) in pairs() {
        from.reaches(to);
        for address in [to.pod4(), to.pod6()] {
            until("an echo reply", LONG, || ping(&from.pod, address));
        }
        // A process of a node is seen by an address of its cluster's blocks: replies find their way by it.
        for address in from.host_reaches(to) {
            let [v4, v6] = from.prefixes();
            let block = if address.is_ipv4() { v4 } else { v6 };
            let block: subsea_api::Cidr = block.parse().expect("a block");
            assert!(
                block.contains(address),
                "{} was seen as {address}",
                from.name
            );
        }
        seen += 1;
    }
    assert_eq!(seen, 32);
    // Within a cluster all is as it was.
    lab.node("east/n-1").reaches(lab.node("east/gw-1"));
    lab.node("east/gw-2").reaches(lab.node("east/n-2"));
    // Status: every connection with its endpoint and its round trip.
    for (from, to) in pairs().filter(|(from, to)| from.is_gateway() && to.is_gateway()) {
        let path = from.path(to).expect("a path");
        assert_eq!(path["state"], "connected", "{path}");
        assert_eq!(path["endpoint"], format!("{}:51820", to.underlay()));
        assert!(path["rtt_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{path}");
        let echo = &path["echo"];
        for field in [
            "rtt_smoothed_ms",
            "rtt_min_ms",
            "rtt_max_ms",
            "loss_percent",
        ] {
            assert!(echo[field].is_number(), "{field}: {path}");
        }
        assert!(echo["reason"].is_string(), "{path}");
    }
    let address: IpAddr = lab.node("west/n-1").pod4();
    let tail = lab
        .node("east/n-1")
        .space
        .ip(&format!("route get {address}"));
    assert!(tail.contains("subsea.vx"), "{tail}");
    lab.no_leaks();
}
