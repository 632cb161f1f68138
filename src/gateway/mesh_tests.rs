use proptest::prelude::*;
use subsea_api::Snapshot;
use subsea_api::snapshot::{BrokerInfo, ListenerState};

use super::*;
use crate::membership::fleet::{Kept, KeptCluster};

#[path = "mesh_listeners_tests.rs"]
mod listeners;

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

fn id(cluster: &str, node: &str) -> PathId {
    PathId {
        cluster: cluster.parse().unwrap(),
        node: node.parse().unwrap(),
    }
}

fn allocation(kind: Kind, text: &str) -> Allocation {
    Allocation {
        kind,
        cidr: cidr(text),
        exported: kind != Kind::Node,
    }
}

fn key(n: u8) -> PublicKey {
    PublicKey::from_bytes([n; 32]).unwrap()
}

/// The listener of number `number` of gateway `n`, whose keys are `n`, `n + 40`, `n + 80` and so on.
fn listener(n: u8, number: u8, stripe: u16, for_slot: Option<u16>) -> Listener {
    let port = 51820 + u16::from(number);
    Listener {
        id: number.to_string(),
        public_key: key(n + 40 * number),
        port,
        stripe,
        slot: 0,
        for_slot,
        state: ListenerState::Active,
        candidates: vec![
            format!("[2001:db8::{n}]:{port}").parse().unwrap(),
            ([192, 0, 2, n], port).into(),
        ],
    }
}

fn gateway(n: u8) -> Gateway {
    Gateway {
        inner: vec![[198, 19, 0, n].into()],
        slot: 0,
        listeners: vec![listener(n, 0, 0, None)],
        stock: None,
        node_addresses: vec![],
        expired: None,
    }
}

fn cluster(pod: &str, gateways: &[(&str, u8)]) -> Cluster {
    Cluster {
        joined_at: UnixMillis(1),
        allocations: vec![
            allocation(Kind::Pod, pod),
            allocation(Kind::Node, "10.0.0.0/24"),
        ],
        gateways: gateways
            .iter()
            .map(|(n, i)| (n.parse().unwrap(), gateway(*i)))
            .collect(),
    }
}

fn view(clusters: &[(&str, Cluster)]) -> View {
    let own = clusters
        .iter()
        .find(|(name, _)| *name == "east")
        .map(|(_, record)| record.clone());
    let snapshot = Snapshot {
        fleet: "harbour".parse().unwrap(),
        epoch: "e".to_owned(),
        revision: 1,
        broker: BrokerInfo {
            urls: vec![],
            ca_pem: String::new(),
        },
        clusters: clusters
            .iter()
            .map(|(n, r)| (n.parse().unwrap(), r.clone()))
            .collect(),
        tombstones: BTreeMap::new(),
    };
    View {
        snapshot: Some(snapshot),
        kept: Kept {
            clusters: BTreeMap::new(),
            own,
        },
    }
}

fn own() -> Own {
    Own {
        cluster: "east".parse().unwrap(),
        node: "gw-1".parse().unwrap(),
        allocations: vec![allocation(Kind::Pod, "10.32.0.0/16")],
        families: Families {
            v4: true,
            v6: false,
        },
        stripes: 1,
        slots: u16::MAX,
    }
}

fn two() -> View {
    view(&[
        ("east", cluster("10.32.0.0/16", &[("gw-1", 1), ("gw-2", 2)])),
        ("west", cluster("10.33.0.0/16", &[("gw-1", 3), ("gw-2", 4)])),
        ("north", cluster("10.34.0.0/16", &[])),
    ])
}

fn build(view: &View) -> Mesh {
    mesh(view, &own())
}

#[test]
fn peers_are_the_gateways_of_other_clusters_with_their_exported_blocks() {
    let mesh = build(&two());
    assert_eq!(
        mesh.tunnel.local,
        [cidr("10.32.0.0/16"), cidr("198.19.0.1/32")]
    );
    let labels: Vec<_> = mesh
        .tunnel
        .peers
        .values()
        .map(|peer| peer.label.as_str())
        .collect();
    assert_eq!(labels, ["west/gw-1", "west/gw-2"]);
    let first = &mesh.tunnel.peers[&PublicKey::from_bytes([3; 32]).unwrap()];
    assert_eq!(first.sources, [cidr("10.33.0.0/16"), cidr("198.19.0.3/32")]);
    assert_eq!(first.routes, [cidr("198.19.0.3/32")]);
    assert_eq!(
        first.endpoint,
        Some(([192, 0, 2, 3], 51820).into()),
        "we have IPv4 only"
    );
    assert_eq!(first.keepalive, None);
    let second = &mesh.tunnel.peers[&PublicKey::from_bytes([4; 32]).unwrap()];
    assert_eq!(
        second.sources,
        [cidr("10.33.0.0/16"), cidr("198.19.0.4/32")]
    );
    assert_eq!(second.routes, [cidr("198.19.0.4/32")]);
    let [group] = mesh.tunnel.groups.as_slice() else {
        panic!("north has no gateway");
    };
    assert_eq!(group.routes, [cidr("10.33.0.0/16")]);
    assert_eq!(group.members, [key(3), key(4)].into());
}

#[test]
fn unexported_blocks_are_never_routed_and_blocks_without_a_gateway_have_a_backstop() {
    let mesh = build(&two());
    let remote: Vec<_> = mesh.remote.iter().map(ToString::to_string).collect();
    assert_eq!(
        remote,
        [
            "10.33.0.0/16",
            "10.34.0.0/16",
            "198.19.0.3/32",
            "198.19.0.4/32"
        ]
    );
    assert_eq!(mesh.without_gateway, ["north".parse().unwrap()]);
    assert!(mesh.problems.is_empty());
}

#[test]
fn only_active_listeners_of_stripe_0_are_used() {
    let mut west = cluster("10.33.0.0/16", &[("gw-1", 3)]);
    let gateway = west.gateways.values_mut().next().unwrap();
    gateway.listeners[0].stripe = 1;
    let mesh = build(&view(&[("west", west)]));
    assert!(mesh.tunnel.peers.is_empty());
    assert_eq!(mesh.without_gateway, ["west".parse().unwrap()]);
}

#[test]
fn a_stock_peer_has_keepalives() {
    let mut west = cluster("10.33.0.0/16", &[("gw-1", 3)]);
    let gateway = west.gateways.values_mut().next().unwrap();
    gateway.stock = Some(StockPeer { probe: None });
    gateway.inner.clear();
    let mesh = build(&view(&[("west", west)]));
    let peer = mesh.tunnel.peers.values().next().unwrap();
    assert_eq!(peer.keepalive, Some(25));
    assert_eq!(peer.sources, [cidr("10.33.0.0/16")]);
    assert!(peer.routes.is_empty());
    assert_eq!(mesh.tunnel.groups[0].routes, peer.sources);
}

#[test]
fn kept_blocks_give_way_to_current_ones() {
    let mut view = view(&[
        ("east", cluster("10.32.0.0/16", &[("gw-1", 1)])),
        ("west", cluster("10.33.0.0/16", &[("gw-1", 3)])),
    ]);
    let mut old = cluster("10.33.0.0/17", &[("gw-1", 9), ("gw-2", 3)]);
    old.allocations
        .push(allocation(Kind::Service, "10.112.0.0/20"));
    let kept = KeptCluster {
        record: old,
        until: UnixMillis(77),
    };
    view.kept.clusters.insert("old".parse().unwrap(), kept);
    let mesh = build(&view);
    let old = mesh
        .paths
        .iter()
        .find(|path| path.id == id("old", "gw-1"))
        .unwrap();
    assert_eq!(old.until, Some(UnixMillis(77)));
    assert_eq!(mesh.blocks[&old.id.cluster], [cidr("10.112.0.0/20")]);
    assert_eq!(mesh.paths.len(), 2, "a key is used once");
    assert_eq!(mesh.problems.len(), 2, "{:?}", mesh.problems);
}

#[test]
fn before_the_first_snapshot_our_blocks_are_those_of_the_join() {
    let view = View {
        snapshot: None,
        kept: Kept::default(),
    };
    let mesh = build(&view);
    assert_eq!(mesh.tunnel.local, [cidr("10.32.0.0/16")]);
    assert!(mesh.remote.is_empty() && mesh.inner.is_empty());
}

fn any_cluster() -> impl Strategy<Value = Cluster> {
    let block = (0_u8..8, 13_u8..20).prop_map(|(second, len)| {
        let cidr = Cidr::containing([10, second, 0, 0].into(), len);
        Allocation {
            kind: Kind::Pod,
            cidr,
            exported: true,
        }
    });
    let gateways = proptest::collection::btree_map("gw-[1-3]", 1_u8..9, 0..3);
    (proptest::collection::vec(block, 0..4), gateways).prop_map(|(allocations, gateways)| Cluster {
        joined_at: UnixMillis(1),
        allocations,
        gateways: gateways
            .into_iter()
            .map(|(n, i)| (n.parse().unwrap(), gateway(i)))
            .collect(),
    })
}

proptest! {
    /// Whatever the broker says: no block at two peers, none over ours, and nothing sent that is not routed.
    #[test]
    fn no_block_stands_at_two_peers(
        current in proptest::collection::btree_map("[a-e]", any_cluster(), 0..5),
        kept in proptest::collection::btree_map("[a-e]", any_cluster(), 0..4),
    ) {
        let clusters: Vec<_> = current.iter().map(|(n, c)| (n.as_str(), c.clone())).collect();
        let mut view = view(&clusters);
        for (name, record) in kept {
            let kept = KeptCluster { record, until: UnixMillis(1) };
            view.kept.clusters.insert(name.parse().unwrap(), kept);
        }
        let mut own = own();
        own.allocations = vec![allocation(Kind::Pod, "10.3.0.0/16")];
        let mesh = mesh(&view, &own);
        let at_peers = mesh.tunnel.peers.values().flat_map(|p| p.routes.clone());
        let in_groups = mesh.tunnel.groups.iter().flat_map(|g| g.routes.clone());
        let routes: Vec<Cidr> = at_peers.chain(in_groups).collect();
        for (n, a) in routes.iter().enumerate() {
            for b in routes.iter().skip(n + 1).chain(&mesh.tunnel.local) {
                prop_assert!(a.common(*b).is_none(), "{a} and {b}");
            }
            prop_assert!(mesh.remote.binary_search(a).is_ok());
        }
        for peer in mesh.tunnel.peers.values() {
            prop_assert!(peer.routes.iter().all(|route| peer.sources.contains(route)));
        }
        for group in &mesh.tunnel.groups {
            for member in &group.members {
                let sources = &mesh.tunnel.peers[member].sources;
                prop_assert!(group.routes.iter().all(|route| sources.contains(route)));
            }
        }
    }
}
