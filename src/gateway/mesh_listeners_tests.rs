//! Stripes and slots.

use super::*;
use crate::gateway::listeners::Listening;

/// A cluster whose one gateway has so many stripes.
fn striped(pod: &str, n: u8, stripes: u8) -> Cluster {
    let mut cluster = cluster(pod, &[("gw-1", n)]);
    let gateway = cluster.gateways.values_mut().next().unwrap();
    gateway.listeners = (0..stripes)
        .map(|stripe| listener(n, stripe, u16::from(stripe), None))
        .collect();
    cluster
}

/// A cluster whose one gateway has the kernel driver, in so many slots.
fn slotted(pod: &str, n: u8, slots: u8) -> Cluster {
    let mut cluster = cluster(pod, &[("gw-1", n)]);
    let gateway = cluster.gateways.values_mut().next().unwrap();
    gateway.listeners = (0..slots)
        .map(|slot| listener(n, slot, 0, Some(u16::from(slot))))
        .collect();
    cluster
}

/// The stripes towards `west` where we work with `ours`, the broker knows of `known`, and west has `theirs`.
fn stripes(ours: u16, known: u8, theirs: u8) -> Vec<StripeConfig> {
    let view = view(&[
        ("east", striped("10.32.0.0/16", 1, known)),
        ("west", striped("10.33.0.0/16", 3, theirs)),
    ]);
    let own = Own {
        stripes: ours,
        ..own()
    };
    let mesh = mesh(&view, &own);
    assert_eq!(mesh.problems, Vec::<String>::new());
    let stripes = mesh.tunnel.peers[&key(3)].stripes.clone();
    assert_eq!(mesh.paths[0].stripes, stripes);
    stripes
}

#[test]
fn there_are_as_many_stripes_as_both_sides_announce() {
    let numbers = |ours, known, theirs| -> Vec<u16> {
        let stripes = stripes(ours, known, theirs);
        stripes.iter().map(|stripe| stripe.stripe).collect()
    };
    assert!(numbers(1, 1, 1).is_empty());
    assert!(numbers(4, 4, 1).is_empty(), "an older or a quieter peer");
    assert_eq!(numbers(4, 4, 2), [1]);
    assert_eq!(numbers(2, 2, 4), [1]);
    assert_eq!(numbers(4, 4, 6), [1, 2, 3]);
    assert_eq!(numbers(4, 2, 4), [1], "the others do not know of ours yet");
    assert!(numbers(1, 4, 4).is_empty(), "we have just let go of ours");
    assert!(numbers(0, 4, 4).is_empty());
    let second = StripeConfig {
        stripe: 2,
        key: key(83),
        endpoint: Some(([192, 0, 2, 3], 51822).into()),
    };
    assert_eq!(stripes(3, 3, 3)[1], second);
}

#[test]
fn a_stripe_that_is_on_its_way_out_or_has_anothers_key_is_left_out_alone() {
    let mut west = striped("10.33.0.0/16", 3, 4);
    let gateway = west.gateways.values_mut().next().unwrap();
    gateway.listeners[1].state = ListenerState::Retiring;
    gateway.listeners[2].public_key = key(9);
    let view = view(&[
        ("east", striped("10.32.0.0/16", 1, 4)),
        ("west", west),
        // Later by name, and by the stripes' order: it keeps its path.
        ("zeta", cluster("10.34.0.0/16", &[("gw-1", 9)])),
    ]);
    let own = Own {
        stripes: 4,
        ..own()
    };
    let mesh = mesh(&view, &own);
    let numbers: Vec<u16> = mesh.tunnel.peers[&key(3)]
        .stripes
        .iter()
        .map(|stripe| stripe.stripe)
        .collect();
    assert_eq!(numbers, [3]);
    assert!(mesh.tunnel.peers.contains_key(&key(9)));
    assert_eq!(
        mesh.problems,
        ["stripe 2 of gateway west/gw-1 is left out: another listener has its public key"]
    );
}

/// The key that we, in slot `slot`, use for the gateway of `west`.
fn chosen(slot: u16, west: &Cluster) -> Mesh {
    let mut east = cluster("10.32.0.0/16", &[("gw-1", 1)]);
    east.gateways.values_mut().next().unwrap().slot = slot;
    let view = view(&[("east", east), ("west", west.clone())]);
    build(&view)
}

#[test]
fn we_talk_to_the_listener_that_is_for_our_slot() {
    let mut west = slotted("10.33.0.0/16", 3, 2);
    let key_for = |slot, west: &Cluster| chosen(slot, west).paths.first().map(|path| path.key);
    assert_eq!(key_for(0, &west), Some(key(3)));
    assert_eq!(key_for(1, &west), Some(key(43)));
    // It learns from the snapshot that there is a third slot, and announces a listener for it.
    let early = chosen(2, &west);
    assert!(early.tunnel.peers.is_empty());
    assert_eq!(
        early.problems,
        [
            "gateway west/gw-1 is left out: it has no listener for gateways of slot 2 as this one yet"
        ]
    );
    assert_eq!(early.without_gateway, ["west".parse().unwrap()]);
    let gateway = west.gateways.values_mut().next().unwrap();
    gateway.listeners.push(listener(3, 2, 0, None));
    assert_eq!(key_for(1, &west), Some(key(43)), "its own goes first");
    assert_eq!(key_for(2, &west), Some(key(83)), "else the one for all");
}

#[test]
fn before_our_registration_we_take_ourselves_for_slot_0_without_stripes() {
    let own = Own {
        stripes: 4,
        ..own()
    };
    for (west, peer) in [
        (slotted("10.33.0.0/16", 3, 2), key(3)),
        (striped("10.33.0.0/16", 5, 4), key(5)),
    ] {
        let view = view(&[("west", west)]);
        let mesh = mesh(&view, &own);
        assert!(mesh.tunnel.peers[&peer].stripes.is_empty());
    }
}

#[test]
fn the_remote_slot_reaches_the_driver() {
    let mut west = cluster("10.33.0.0/16", &[("gw-1", 3)]);
    west.gateways.values_mut().next().unwrap().slot = 5;
    assert_eq!(chosen(0, &west).tunnel.peers[&key(3)].slot, 5);
}

/// A gateway whose listeners a broker would perhaps refuse.
fn any_gateway() -> impl Strategy<Value = Gateway> {
    let numbers = (1_u8..9, 0_u8..6, 0_u16..5);
    let rest = (proptest::option::of(0_u16..3), any::<bool>());
    let one = (numbers, rest).prop_map(|((n, number, stripe), (for_slot, active))| {
        let mut listener = listener(n, number, stripe, for_slot);
        if !active {
            listener.state = ListenerState::Retiring;
        }
        listener
    });
    (0_u16..3, proptest::collection::vec(one, 0..9)).prop_map(|(slot, listeners)| Gateway {
        inner: vec![],
        slot,
        listeners,
        stock: None,
        node_addresses: vec![],
        expired: None,
    })
}

proptest! {
    /// Whatever the broker says: no key is used twice, stripes stand in order, below what both sides have, and are
    /// those that the two gateways mean for each other.
    #[test]
    fn no_key_is_used_twice_and_no_stripe_is_made_up(
        gateways in proptest::collection::vec((0_usize..3, any_gateway()), 0..6),
        ours in 0_u16..6,
    ) {
        let names = ["east", "north", "west"];
        let mut clusters: Vec<_> = (0_u8..).zip(names)
            .map(|(n, name)| (name, cluster(&format!("10.{}.0.0/16", 32 + n), &[])))
            .collect();
        for (n, (at, gateway)) in gateways.into_iter().enumerate() {
            let node = if at == 0 { "gw-1".to_owned() } else { format!("gw-{n}") };
            clusters[at].1.gateways.insert(node.parse().unwrap(), gateway);
        }
        let view = view(&clusters);
        let own = Own { stripes: ours, ..own() };
        let mesh = mesh(&view, &own);
        let me = view.registered(&own.cluster, &own.node);
        let slot = me.map_or(0, |me| me.slot);
        let mut keys: Vec<PublicKey> = me.iter().flat_map(|me| &me.listeners).map(|l| l.public_key).collect();
        keys.sort_unstable();
        keys.dedup();
        for path in &mesh.paths {
            let gateway = view.registered(&path.id.cluster, &path.id.node).unwrap();
            prop_assert_eq!(Some(path.key), gateway.listener(0, slot).map(|l| l.public_key));
            keys.push(path.key);
            let mut before = 0;
            for stripe in &path.stripes {
                prop_assert!(before < stripe.stripe && stripe.stripe < ours);
                before = stripe.stripe;
                prop_assert!(me.is_some_and(|me| me.listener(stripe.stripe, me.slot).is_some()));
                let theirs = gateway.listener(stripe.stripe, slot);
                prop_assert_eq!(Some(stripe.key), theirs.map(|l| l.public_key));
                keys.push(stripe.key);
            }
            prop_assert_eq!(&mesh.tunnel.peers[&path.key].stripes, &path.stripes);
        }
        let all = keys.len();
        keys.sort_unstable();
        keys.dedup();
        prop_assert_eq!(keys.len(), all);
    }
}

#[test]
fn gateways_of_slots_that_we_have_no_listener_for_are_left_out_and_named() {
    let in_slot = |pod: &str, n, slot| {
        let mut cluster = cluster(pod, &[("gw-1", n)]);
        cluster.gateways.values_mut().next().unwrap().slot = slot;
        cluster
    };
    let view = view(&[
        ("east", in_slot("10.32.0.0/16", 1, 0)),
        ("west", in_slot("10.33.0.0/16", 3, 16)),
        ("north", in_slot("10.34.0.0/16", 4, 15)),
    ]);
    let paths = |slots| {
        let own = Own { slots, ..own() };
        let mesh = mesh(&view, &own);
        assert!(
            mesh.remote.contains(&"10.33.0.0/16".parse().unwrap()),
            "closed"
        );
        (mesh.paths.len(), mesh.problems)
    };
    assert_eq!(paths(Listening::Stripes(1).slots()), (2, Vec::new()));
    let (count, problems) = paths(Listening::Slots.slots());
    assert_eq!(count, 1);
    assert!(
        problems[0].contains("west/gw-1 is left out: it has slot 16"),
        "{problems:?}"
    );
}
