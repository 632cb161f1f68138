use std::collections::BTreeMap;

use proptest::prelude::*;
use subsea_api::snapshot::{BrokerInfo, Cluster, Gateway};
use subsea_api::{Snapshot, UnixMillis};

use super::*;
use crate::membership::fleet::{Kept, KeptCluster};

fn keys(count: u8) -> Vec<PublicKey> {
    (1..=count)
        .map(|n| PublicKey::from_bytes([n; 32]).unwrap())
        .collect()
}

fn wanted(listening: Listening, slots: u16) -> Vec<Listener> {
    let endpoint = ([192, 0, 2, 1], 40_000).into();
    wanted_listeners(listening, slots, endpoint, 51820, &keys(20))
}

#[test]
fn one_stripe_is_what_it_always_was() {
    let json = serde_json::to_value(wanted(Listening::Stripes(1), 7)).unwrap();
    let key = keys(1)[0];
    let before = serde_json::json!([{"id": "0", "public_key": key, "port": 51820, "stripe": 0, "slot": 0,
        "state": "active", "candidates": ["192.0.2.1:40000"]}]);
    assert_eq!(json, before);
}

#[test]
fn each_stripe_has_a_key_and_a_port() {
    let three = wanted(Listening::Stripes(3), 7);
    let seen: Vec<_> = three
        .iter()
        .map(|l| {
            let at = l.candidates[0].to_string();
            (l.id.as_str(), l.stripe, l.for_slot, l.port, at)
        })
        .collect();
    assert_eq!(
        seen,
        [
            ("0", 0, None, 51820, "192.0.2.1:40000".to_owned()),
            ("1", 1, None, 51821, "192.0.2.1:40001".to_owned()),
            ("2", 2, None, 51822, "192.0.2.1:40002".to_owned()),
        ]
    );
    let used: Vec<_> = three.iter().map(|l| l.public_key).collect();
    assert_eq!(used, keys(3));
    assert_eq!(wanted(Listening::Stripes(0), 1).len(), 1);
    assert_eq!(wanted(Listening::Stripes(99), 1).len(), 8);
}

#[test]
fn the_kernel_driver_has_a_listener_for_each_slot() {
    let three = wanted(Listening::Slots, 3);
    let seen: Vec<_> = three
        .iter()
        .map(|l| (l.id.as_str(), l.stripe, l.for_slot, l.port))
        .collect();
    assert_eq!(
        seen,
        [
            ("k0", 0, Some(0), 51820),
            ("k1", 0, Some(1), 51821),
            ("k2", 0, Some(2), 51822)
        ]
    );
    assert_eq!(wanted(Listening::Slots, 0).len(), 1);
    assert_eq!(wanted(Listening::Slots, 17).len(), 16);
}

#[test]
fn the_operator_and_the_driver_are_heeded_in_this_order() {
    let auto = Listening::at_start(Stripes::Auto);
    assert_eq!(auto, Listening::Stripes(1));
    let rises = |now: Listening, stripes| now.with_use_for(stripes, Stripes::Auto);
    assert_eq!(rises(auto, 4), Listening::Stripes(4));
    assert_eq!(rises(rises(auto, 4), 2), Listening::Stripes(2), "and falls");
    assert_eq!(rises(auto, 0), Listening::Stripes(1));
    assert_eq!(rises(auto, 99), Listening::Stripes(MAX_STRIPES));
    assert_eq!(rises(Listening::Slots, 4), Listening::Slots);
    let operator = Stripes::Fixed(3);
    let fixed = Listening::at_start(operator);
    assert_eq!(fixed, Listening::Stripes(3));
    assert_eq!(fixed.with_use_for(8, operator), fixed);
    let short = fixed.with_use_for(2, operator);
    assert_eq!(short, Listening::Stripes(2), "a port is busy");
    assert_eq!(short.with_use_for(3, operator), fixed, "and free again");
}

#[test]
fn what_falls_short_is_told() {
    let told = |listening, slots, count| shortfall(listening, slots, count).unwrap_or_default();
    assert_eq!(told(Listening::Stripes(4), 30, 4), "");
    assert!(told(Listening::Stripes(4), 1, 3).starts_with("3 of 4 listeners"));
    assert_eq!(told(Listening::Slots, 16, 16), "");
    assert!(told(Listening::Slots, 17, 16).starts_with("gateways of slot 16 and above"));
    let endpoint = ([192, 0, 2, 1], 1).into();
    let at_the_end = wanted_listeners(Listening::Stripes(8), 1, endpoint, 65533, &keys(8));
    assert_eq!(at_the_end.len(), 3);
}

fn cluster(slots: &[u16]) -> Cluster {
    let gateway = |slot: &u16| Gateway {
        inner: vec![],
        slot: *slot,
        listeners: vec![],
        stock: None,
        node_addresses: vec![],
        expired: None,
    };
    Cluster {
        joined_at: UnixMillis(1),
        allocations: vec![],
        gateways: slots
            .iter()
            .map(|slot| (format!("gw-{slot}").parse().unwrap(), gateway(slot)))
            .collect(),
    }
}

#[test]
fn the_slots_are_those_of_others_and_of_what_is_kept() {
    let own = "east".parse().unwrap();
    let mut view = View {
        snapshot: None,
        kept: Kept::default(),
    };
    assert_eq!(slots(&view, &own), 1);
    let clusters = [("east", cluster(&[0, 7])), ("west", cluster(&[0, 2]))];
    view.snapshot = Some(Snapshot {
        fleet: "harbour".parse().unwrap(),
        epoch: "e".to_owned(),
        revision: 1,
        broker: BrokerInfo {
            urls: vec![],
            ca_pem: String::new(),
        },
        clusters: clusters
            .into_iter()
            .map(|(name, record)| (name.parse().unwrap(), record))
            .collect(),
        tombstones: BTreeMap::new(),
    });
    assert_eq!(slots(&view, &own), 3);
    let kept = KeptCluster {
        record: cluster(&[4]),
        until: UnixMillis(2),
    };
    view.kept.clusters.insert("old".parse().unwrap(), kept);
    assert_eq!(slots(&view, &own), 5);
    let highest = cluster(&[u16::MAX]);
    let snapshot = view.snapshot.as_mut().unwrap();
    snapshot.clusters.insert("west".parse().unwrap(), highest);
    assert_eq!(slots(&view, &own), u16::MAX);
}

#[test]
fn the_stripes_of_others_are_seen() {
    let own = "east".parse().unwrap();
    let mut view = View {
        snapshot: None,
        kept: Kept::default(),
    };
    assert_eq!(offered(&view, &own), 1);
    let mut keep = |name: &str, listeners| {
        let mut record = cluster(&[0]);
        let gateway = record.gateways.values_mut().next().unwrap();
        gateway.listeners = listeners;
        let until = UnixMillis(2);
        let kept = KeptCluster { record, until };
        view.kept.clusters.insert(name.parse().unwrap(), kept);
        offered(&view, &own)
    };
    assert_eq!(keep("east", wanted(Listening::Stripes(5), 1)), 1, "ours");
    assert_eq!(keep("west", wanted(Listening::Slots, 4)), 1, "no stripes");
    assert_eq!(keep("north", wanted(Listening::Stripes(3), 1)), 3);
    let mut retiring = wanted(Listening::Stripes(3), 1);
    retiring[2].state = ListenerState::Retiring;
    assert_eq!(keep("north", retiring), 2);
}

proptest! {
    /// Whatever is asked for: ids, keys, ports and purposes occur once, and a peer of any slot finds its listener.
    #[test]
    fn listeners_do_not_meet(
        stripes in proptest::option::of(any::<u16>()),
        slots in any::<u16>(),
        (port, listen_port) in (1_u16.., 1_u16..),
        count in 0_u8..20,
    ) {
        let listening = stripes.map_or(Listening::Slots, Listening::Stripes);
        let endpoint = ([192, 0, 2, 1], port).into();
        let listeners = wanted_listeners(listening, slots, endpoint, listen_port, &keys(count));
        prop_assert!(listeners.len() <= usize::from(listening.count(slots)));
        prop_assert!(listeners.len() <= MAX_LISTENERS);
        for (i, a) in listeners.iter().enumerate() {
            let meets = |b: &Listener| {
                a.id == b.id
                    || a.public_key == b.public_key
                    || a.port == b.port
                    || a.candidates == b.candidates
                    || (a.stripe, a.for_slot) == (b.stripe, b.for_slot)
            };
            prop_assert!(!listeners[..i].iter().any(meets));
        }
        let gateway = Gateway { inner: vec![], slot: 0, listeners: listeners.clone(), stock: None, node_addresses: vec![], expired: None };
        for (number, listener) in (0_u16..).zip(&listeners) {
            let found = match listening {
                Listening::Stripes(_) => gateway.listener(number, 11),
                Listening::Slots => gateway.listener(0, number),
            };
            prop_assert_eq!(found, Some(listener));
        }
    }
}
