use proptest::prelude::*;

use super::*;
use crate::tunnel::{Group, PeerConfig};

const NOW: Duration = Duration::from_secs(1_000_000);

fn key(n: u8) -> PublicKey {
    PublicKey::from_bytes([n; 32]).unwrap()
}

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

fn at(n: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], 51_820))
}

fn peer(endpoint: Option<SocketAddr>, allowed: &[&str]) -> WantedPeer {
    WantedPeer {
        endpoint,
        keepalive: 0,
        allowed: allowed.iter().map(|text| cidr(text)).collect(),
    }
}

fn wanted(peers: &[(u8, WantedPeer)]) -> Wanted {
    Wanted {
        key: Some(key(99)),
        port: 51_820,
        mark: 0x40,
        peers: peers.iter().map(|(n, p)| (key(*n), p.clone())).collect(),
    }
}

/// What the kernel does with changes, and with what blocks nobody had for an instant.
fn apply(device: &mut Device, wanted: &Wanted, changes: &Changes) -> BTreeSet<Cidr> {
    let blocks = |device: &Device| -> BTreeSet<Cidr> {
        let all = device.peers.values().flat_map(|p| p.allowed.iter());
        all.copied().collect()
    };
    if changes.key {
        device.public_key = wanted.key;
        for peer in device.peers.values_mut() {
            peer.latest_handshake = None;
        }
    }
    device.port = changes.port.unwrap_or(device.port);
    device.fwmark = changes.mark.unwrap_or(device.fwmark);
    let before = blocks(device);
    let mut homeless = BTreeSet::new();
    for change in &changes.peers {
        if change.remove {
            device.peers.remove(&change.key);
        } else {
            let peer = device.peers.entry(change.key).or_default();
            peer.endpoint = change.endpoint.or(peer.endpoint);
            peer.keepalive = change.keepalive.unwrap_or(peer.keepalive);
            if change.replace {
                peer.allowed.clear();
            }
            for block in &change.allowed {
                for other in device.peers.values_mut() {
                    other.allowed.remove(block);
                }
                let peer = device.peers.get_mut(&change.key).unwrap();
                peer.allowed.insert(*block);
            }
        }
        homeless.extend(before.difference(&blocks(device)).copied());
    }
    homeless
}

fn made(wanted: &Wanted) -> Device {
    let mut device = Device::default();
    let changes = plan(wanted, &device, &Remembered::new(), NOW);
    apply(&mut device, wanted, &changes);
    device
}

fn remembered(wanted: &Wanted) -> Remembered {
    remember(
        wanted,
        &made(wanted),
        &Remembered::new(),
        &Changes::default(),
    )
}

#[test]
fn a_new_device_gets_all_in_one_go() {
    let wanted = wanted(&[
        (1, peer(Some(at(1)), &["10.1.0.0/16", "fd00:1::/48"])),
        (2, peer(None, &["10.2.0.0/16"])),
    ]);
    let changes = plan(&wanted, &Device::default(), &Remembered::new(), NOW);
    assert!(changes.key);
    assert_eq!((changes.port, changes.mark), (Some(51_820), Some(0x40)));
    assert_eq!(changes.peers.len(), 2);
    assert!(changes.peers.iter().all(|c| !c.replace && !c.remove));
}

#[test]
fn a_device_that_is_as_wanted_is_left_alone_also_by_another_process() {
    let wanted = wanted(&[(1, peer(Some(at(1)), &["10.1.0.0/16"]))]);
    let device = made(&wanted);
    for memory in [Remembered::new(), remembered(&wanted)] {
        assert!(plan(&wanted, &device, &memory, NOW).is_empty());
    }
}

#[test]
fn a_peer_that_roamed_stays_there_until_its_configured_place_changes() {
    let mut wanted = wanted(&[(1, peer(Some(at(1)), &["10.1.0.0/16"]))]);
    let mut device = made(&wanted);
    let there = device.peers.get_mut(&key(1)).unwrap();
    there.endpoint = Some(at(77));
    there.latest_handshake = NOW.checked_sub(Duration::from_mins(1));
    let memory = remembered(&wanted);
    assert!(plan(&wanted, &device, &memory, NOW).is_empty());
    // Another process does not know what was configured, but a session lives there.
    assert!(plan(&wanted, &device, &Remembered::new(), NOW).is_empty());
    // With none it starts where the fleet says.
    let later = NOW + REJECT_AFTER;
    let changes = plan(&wanted, &device, &Remembered::new(), later);
    assert_eq!(changes.peers[0].endpoint, Some(at(1)));
    assert!(plan(&wanted, &device, &memory, later).is_empty());

    wanted.peers.get_mut(&key(1)).unwrap().endpoint = Some(at(2));
    let changes = plan(&wanted, &device, &memory, NOW);
    let [change] = changes.peers.as_slice() else {
        panic!("{changes:?}");
    };
    assert_eq!(change.endpoint, Some(at(2)));
    assert_eq!((change.replace, change.allowed.len()), (false, 0));
}

#[test]
fn an_endpoint_that_changed_while_no_process_ran_is_set_once_the_old_session_is_dead() {
    let mut wanted = wanted(&[(1, peer(Some(at(1)), &["10.1.0.0/16"]))]);
    let mut device = made(&wanted);
    device.peers.get_mut(&key(1)).unwrap().latest_handshake = Some(NOW);
    wanted.peers.get_mut(&key(1)).unwrap().endpoint = Some(at(2));
    let mut memory = Remembered::new();
    // The session may live: it stays where it is, pass after pass.
    for seconds in [0, 30, 179] {
        let changes = plan(
            &wanted,
            &device,
            &memory,
            NOW + Duration::from_secs(seconds),
        );
        assert!(changes.is_empty(), "{changes:?}");
        memory = remember(&wanted, &device, &memory, &changes);
    }
    // A place that changes under this process is set at once.
    let mut moved = wanted.clone();
    moved.peers.get_mut(&key(1)).unwrap().endpoint = Some(at(3));
    let changes = plan(&moved, &device, &memory, NOW);
    assert_eq!(changes.peers[0].endpoint, Some(at(3)));

    let later = NOW + REJECT_AFTER;
    let changes = plan(&wanted, &device, &memory, later);
    assert_eq!(changes.peers[0].endpoint, Some(at(2)));
    memory = remember(&wanted, &device, &memory, &changes);
    // From then on it may roam.
    device.peers.get_mut(&key(1)).unwrap().endpoint = Some(at(77));
    assert!(plan(&wanted, &device, &memory, later).is_empty());
}

#[test]
fn a_block_goes_to_the_peer_that_it_is_routed_to_though_another_of_its_slot_comes_first() {
    let sources = ["10.1.0.0/16", "fd00:1::/48"].map(cidr);
    let of = |inner: &str, routes: &[Cidr]| PeerConfig {
        label: "west/gw".to_owned(),
        endpoint: None,
        sources: [&sources[..], &[cidr(inner)]].concat(),
        routes: [routes, &[cidr(inner)]].concat(),
        keepalive: None,
        slot: 1,
        stripes: Vec::new(),
    };
    // The first is kept, and gone; the second has its slot now.
    for (first, second) in [(&[][..], &sources[..]), (&sources[..], &[][..])] {
        let config = TunnelConfig {
            local: Vec::new(),
            peers: BTreeMap::from([
                (key(1), of("198.19.0.1/32", first)),
                (key(2), of("198.19.0.2/32", second)),
            ]),
            groups: Vec::new(),
        };
        let wanted = super::wanted(&config, 1, &BTreeSet::new());
        let has =
            |n: u8, blocks: &[Cidr]| blocks.iter().all(|b| wanted[&key(n)].allowed.contains(b));
        assert!(has(1, first) && has(2, second), "{wanted:?}");
        let all: usize = wanted.values().map(|peer| peer.allowed.len()).sum();
        assert_eq!(all, 4);
    }
}

#[test]
fn a_block_that_moves_is_gained_before_it_is_taken_away() {
    let before = wanted(&[
        (1, peer(None, &["10.1.0.0/16", "10.9.0.0/16"])),
        (2, peer(None, &["10.2.0.0/16"])),
    ]);
    let after = wanted(&[
        (1, peer(None, &["10.1.0.0/16"])),
        (2, peer(None, &["10.2.0.0/16", "10.9.0.0/16"])),
    ]);
    let mut device = made(&before);
    let changes = plan(&after, &device, &remembered(&before), NOW);
    assert_eq!(
        changes.peers,
        [PeerChange {
            allowed: vec![cidr("10.9.0.0/16")],
            ..PeerChange::new(key(2))
        }]
    );
    assert_eq!(apply(&mut device, &after, &changes), BTreeSet::new());
    assert_eq!(device, made(&after));
}

#[test]
fn a_gateway_with_a_new_key_takes_the_blocks_of_the_old_one() {
    let before = wanted(&[(1, peer(None, &["10.1.0.0/16"]))]);
    let after = wanted(&[(2, peer(None, &["10.1.0.0/16"]))]);
    let mut device = made(&before);
    let changes = plan(&after, &device, &remembered(&before), NOW);
    assert_eq!(changes.peers.len(), 2);
    assert!(changes.peers[1].remove);
    assert_eq!(apply(&mut device, &after, &changes), BTreeSet::new());
    assert_eq!(device, made(&after));
}

#[test]
fn only_another_key_of_ours_ends_the_sessions() {
    let mut wanted = wanted(&[(1, peer(None, &[]))]);
    let device = made(&wanted);
    wanted.port = 51_821;
    let changes = plan(&wanted, &device, &Remembered::new(), NOW);
    assert_eq!((changes.key, changes.port), (false, Some(51_821)));
    wanted.key = Some(key(98));
    assert!(plan(&wanted, &device, &Remembered::new(), NOW).key);
}

fn config(peers: &[(u8, u16, &[&str], &[&str])]) -> TunnelConfig {
    let blocks = |texts: &[&str]| texts.iter().map(|text| cidr(text)).collect();
    let peer = |slot, sources, routes| PeerConfig {
        label: String::new(),
        endpoint: None,
        sources: blocks(sources),
        routes: blocks(routes),
        keepalive: None,
        slot,
        stripes: Vec::new(),
    };
    TunnelConfig {
        local: Vec::new(),
        peers: peers
            .iter()
            .map(|(n, slot, sources, routes)| (key(*n), peer(*slot, sources, routes)))
            .collect(),
        groups: Vec::new(),
    }
}

#[test]
fn a_device_has_the_peers_of_its_slot_and_the_first_is_always_there() {
    assert_eq!(slots(&TunnelConfig::default()), BTreeSet::from([0]));
    let both = ["10.1.0.0/16", "198.19.0.1/32"];
    let config = config(&[
        (1, 1, &both, &["198.19.0.1/32"]),
        (
            2,
            2,
            &["10.1.0.0/16", "198.19.0.2/32"],
            &["10.1.0.0/16", "198.19.0.2/32"],
        ),
        (3, 1, &["10.1.0.0/16", "10.3.0.0/16"], &["10.3.0.0/16"]),
    ]);
    assert_eq!(slots(&config), BTreeSet::from([0, 1, 2]));
    assert_eq!(super::wanted(&config, 0, &BTreeSet::new()), BTreeMap::new());
    let first = super::wanted(&config, 1, &BTreeSet::new());
    // It may send from what is routed to its cluster's other gateway now.
    assert_eq!(first[&key(1)].allowed, both.map(cidr).into());
    // Never at two peers of a device.
    assert_eq!(
        first[&key(3)].allowed,
        BTreeSet::from([cidr("10.3.0.0/16")])
    );
    assert_eq!(super::wanted(&config, 2, &BTreeSet::new()).len(), 1);
}

#[test]
fn every_member_of_a_group_has_its_blocks_in_the_device_of_its_slot_in_use_or_not() {
    let blocks = ["10.1.0.0/16", "fd00:1::/48"];
    let mut config = config(&[
        (1, 0, &["198.19.0.1/32"], &["198.19.0.1/32"]),
        (2, 1, &["10.1.0.0/16", "198.19.0.2/32"], &["198.19.0.2/32"]),
        (3, 2, &["10.3.0.0/16"], &["10.3.0.0/16"]),
    ]);
    config.groups = vec![Group {
        routes: blocks.map(cidr).to_vec(),
        // The last one is no peer.
        members: [1, 2, 7].map(key).into(),
    }];
    assert_eq!(contested(&config), BTreeSet::new());
    for in_use in [&[][..], &[1], &[2], &[1, 2]] {
        let in_use = in_use.iter().map(|n| key(*n)).collect();
        for (slot, n, inner) in [(0, 1, "198.19.0.1/32"), (1, 2, "198.19.0.2/32")] {
            let wanted = super::wanted(&config, slot, &in_use);
            let all = blocks.into_iter().chain([inner]).map(cidr).collect();
            assert_eq!(wanted.len(), 1);
            assert_eq!(wanted[&key(n)].allowed, all, "{in_use:?}");
        }
        let other = super::wanted(&config, 2, &in_use);
        assert_eq!(other[&key(3)].allowed, ["10.3.0.0/16"].map(cidr).into());
    }
}

#[test]
fn of_members_that_share_a_slot_the_one_in_use_has_the_blocks() {
    let blocks = ["10.1.0.0/16", "198.19.0.1/32", "198.19.0.2/32"];
    let mut config = config(&[
        (1, 1, &[blocks[0], blocks[1]], &[blocks[1]]),
        (2, 1, &[blocks[0], blocks[2]], &[blocks[2]]),
        (3, 2, &[blocks[0]], &[]),
    ]);
    config.groups = vec![Group {
        routes: vec![cidr(blocks[0])],
        members: [1, 2, 3].map(key).into(),
    }];
    assert_eq!(contested(&config), BTreeSet::from([1]));
    for (in_use, has) in [(&[][..], 1), (&[1], 1), (&[2], 2), (&[1, 2], 1), (&[3], 1)] {
        let in_use = in_use.iter().map(|n| key(*n)).collect();
        let wanted = super::wanted(&config, 1, &in_use);
        for (n, inner) in [(1, blocks[1]), (2, blocks[2])] {
            let mut all = BTreeSet::from([cidr(inner)]);
            all.extend((n == has).then(|| cidr(blocks[0])));
            assert_eq!(wanted[&key(n)].allowed, all, "in use: {in_use:?}");
        }
        let other = super::wanted(&config, 2, &in_use);
        assert_eq!(other[&key(3)].allowed, [blocks[0]].map(cidr).into());
    }
}

prop_compose! {
    /// Peers 1 to 5, some of them there, with blocks of which none is at two.
    fn any_wanted()(
        there in proptest::collection::vec(any::<bool>(), 5),
        owners in proptest::collection::vec(0_u8..7, 12),
        places in proptest::collection::vec(proptest::option::of(1_u8..4), 5),
        keepalives in proptest::collection::vec(0_u16..3, 5),
        port in 1_u16..3,
    ) -> Wanted {
        let mut wanted = wanted(&[]);
        wanted.port = port;
        for (n, peer) in (1_u8..).zip(&there).filter(|(_, there)| **there).map(|(n, _)| {
            let index = usize::from(n - 1);
            let allowed = (0_u8..).zip(&owners).filter(|(_, owner)| **owner == n);
            let allowed = allowed.map(|(block, _)| cidr(&format!("10.{block}.0.0/16")));
            (n, WantedPeer {
                endpoint: places[index].map(at),
                keepalive: keepalives[index],
                allowed: allowed.collect(),
            })
        }) {
            wanted.peers.insert(key(n), peer);
        }
        wanted
    }
}

proptest! {
    #[test]
    fn any_device_becomes_any_other_and_then_stays(before in any_wanted(), after in any_wanted()) {
        let mut device = made(&before);
        let memory = remembered(&before);
        let changes = plan(&after, &device, &memory, NOW);
        let homeless = apply(&mut device, &after, &changes);
        let mut expected = made(&after);
        for (key, peer) in &mut expected.peers {
            // No endpoint is taken away: the peer may have spoken from there.
            if peer.endpoint.is_none() {
                peer.endpoint = before.peers.get(key).and_then(|p| p.endpoint);
            }
        }
        prop_assert_eq!(&device, &expected);
        prop_assert!(plan(&after, &device, &remembered(&after), NOW).is_empty());
        // Only what goes for good is ever without a peer.
        let stays: BTreeSet<Cidr> =
            after.peers.values().flat_map(|p| p.allowed.iter().copied()).collect();
        prop_assert!(homeless.is_disjoint(&stays), "{:?}", homeless);
    }

    #[test]
    fn peers_that_stay_are_never_removed(before in any_wanted(), after in any_wanted()) {
        let changes = plan(&after, &made(&before), &remembered(&before), NOW);
        prop_assert!(!changes.key);
        for change in changes.peers.iter().filter(|c| c.remove) {
            prop_assert!(!after.peers.contains_key(&change.key));
        }
    }
}
