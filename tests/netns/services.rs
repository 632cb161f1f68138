//! Cluster addresses of services of another cluster, translated by its nodes as kube-proxy does it with nftables.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use crate::cluster::{ALL, Lab};
use crate::traffic::{fetch, fetch_more};

/// Two services of west: one of a pod behind a plain node, one of a pod behind a gateway's.
const SERVICES: [(&str, &str); 2] = [("10.92.0.10", "west/n-1"), ("10.92.0.11", "west/gw-2")];

fn serve(lab: &Lab) {
    let rules = SERVICES.map(|(address, node)| {
        let pod = lab.node(node).pod4();
        format!("ip daddr {address} tcp dport 80 dnat ip to {pod}:80")
    });
    let rules = rules.join("\n") + "\n";
    for node in lab.nodes().filter(|node| node.cluster == "west") {
        node.space.nft(&format!(
            "table inet kube-proxy {{
                chain services {{ {rules} }}
                chain nat-prerouting {{ type nat hook prerouting priority -100; policy accept; jump services; }}
                chain nat-output {{ type nat hook output priority -100; policy accept; jump services; }}
            }}"
        ));
    }
}

#[test]
fn a_cluster_address_of_another_cluster_answers_through_every_gateway() {
    let lab = Lab::start(&[("east", &ALL[..3]), ("west", ALL)]);
    serve(&lab);
    let limit = Duration::from_secs(5);
    lab.watch();
    for (service, node) in SERVICES {
        let address: IpAddr = service.parse().expect("an address");
        for from in ["east/n-1", "east/gw-1", "east/gw-2"] {
            let from = lab.node(from);
            for n in 0..30 {
                let text = fetch(&from.pod, address, limit);
                let text = text.unwrap_or_else(|e| panic!("{n}: {} to {service}: {e}", from.name));
                assert_eq!(text, format!("pod of {node} saw {}\n", from.pod4()));
            }
            // A large answer: many packets of one connection.
            let text = fetch_more(&from.pod, address, 300_000, limit).expect("a large answer");
            assert!(text.len() > 300_000);
            // A process of the node.
            let text = fetch(&from.space, address, limit).expect("an answer");
            assert!(
                text.starts_with(&format!("pod of {node} saw 10.1.")),
                "{text}"
            );
        }
        // In its own cluster it answers as before.
        let text = fetch(&lab.node("west/n-2").pod, address, limit).expect("an answer");
        assert!(text.contains(node), "{text}");
    }
    for (cluster, tunnels) in [
        ("east", lab.out_of_cluster("east")),
        ("west", lab.to_cluster("west")),
    ] {
        let used: BTreeSet<String> = tunnels.into_values().flatten().collect();
        let both = BTreeSet::from(["gw-1".to_owned(), "gw-2".to_owned()]);
        assert_eq!(used, both, "not all gateways of {cluster} were used");
    }
    lab.no_leaks();
}
