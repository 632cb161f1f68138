use std::net::{IpAddr, Ipv4Addr};

use super::*;

#[test]
fn packets_of_both_families_go_both_ways() {
    let (a, b, _relay) = connected();
    for size in [0, 1, 15, 16, 17, 1_000, 1_380] {
        let payload = vec![7; size];
        a.send("10.1.0.1", "10.2.0.1", &payload);
        assert_eq!(b.receive(), packet("10.1.0.1", "10.2.0.1", &payload));
        b.send("fd00:2::1", "fd00:1::1", &payload);
        assert_eq!(a.receive(), packet("fd00:2::1", "fd00:1::1", &payload));
    }
    let (there, back) = (a.stats_of(&b), b.stats_of(&a));
    assert_eq!(
        (there.tx_bytes, there.rx_bytes),
        (back.rx_bytes, back.tx_bytes)
    );
    assert!(there.tx_bytes > 2_500);
    assert!(
        there.drops.is_empty() && back.drops.is_empty(),
        "{there:?} {back:?}"
    );
    assert!(a.tunnel.stats().drops.is_empty());
}

#[test]
fn packets_that_wait_for_the_handshake_come_out_whole_and_in_order() {
    let (a, b, relay) = pair();
    relay.cut(true);
    // Of one flow: the ports are alike.
    let payload = |n: u8| [[9; 8].as_slice(), &[n; 50]].concat();
    for n in 0..8_u8 {
        a.send("10.1.0.1", "10.2.0.1", &payload(n));
    }
    thread::sleep(Duration::from_millis(200));
    relay.cut(false);
    for n in 0..8_u8 {
        assert_eq!(b.receive(), packet("10.1.0.1", "10.2.0.1", &payload(n)));
    }
}

#[test]
fn the_queue_of_a_silent_peer_is_bounded_and_its_overflow_counted() {
    let (low, _) = keys();
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let key = PrivateKey::from_bytes([8; 32]).public_key().unwrap();
    let a = Gateway::start(low, 1, 0);
    a.peer(key, 2, Some(silent.local_addr().unwrap()));
    let start = Instant::now();
    for _ in 0..200 {
        a.send("10.1.0.1", "10.2.0.1", b"?");
    }
    let dropped = || {
        a.tunnel.stats().peers[&key]
            .drops
            .get(&Reason::NoSession)
            .copied()
    };
    eventually("72 of 200", || dropped() == Some(72));
    silent.set_read_timeout(Some(SOON)).unwrap();
    let mut bytes = [0; 200];
    assert_eq!(silent.recv(&mut bytes).unwrap(), 148, "one initiation");
    silent
        .set_read_timeout(Some(Duration::from_millis(700)))
        .unwrap();
    // It is repeated after a second.
    assert!(
        silent.recv(&mut bytes).is_err() || start.elapsed() > Duration::from_millis(900),
        "and no second one for the same packets"
    );
}

#[test]
fn foreign_addresses_are_dropped_and_counted_by_reason() {
    let (a, b, _relay) = connected();
    // What a sends is more than b lets it, so that b's checks are met.
    a.change(|config| {
        config.local.push("10.9.0.0/16".parse().unwrap());
        config
            .peers
            .get_mut(&b.key)
            .unwrap()
            .routes
            .push("10.8.0.0/16".parse().unwrap());
    });
    a.send("10.9.0.1", "10.2.0.1", b"foreign source");
    eventually("a foreign source", || {
        b.drops_of(&a, Reason::ForeignSource) == 1
    });
    a.send("10.1.0.1", "10.8.0.1", b"foreign destination");
    eventually("a foreign destination", || {
        b.drops_of(&a, Reason::ForeignDestination) == 1
    });

    a.send("10.66.0.1", "10.2.0.1", b"not ours");
    eventually("an outbound source", || {
        a.drops(Reason::OutboundSource) == 1
    });
    a.send("10.1.0.1", "10.66.0.1", b"nobody's");
    eventually("no peer", || a.drops(Reason::NoPeer) == 1);
    a.inside.send(b"not a packet").unwrap();
    eventually("a malformed packet", || a.drops(Reason::Malformed) == 1);

    exchange(&a, &b);
    assert_eq!(b.stats_of(&a).drops.len(), 2, "{:?}", b.stats_of(&a).drops);
}

#[test]
fn many_peers_have_sessions_of_their_own() {
    let hub = Gateway::start([1; 32], 1, 0);
    let spokes: Vec<Gateway> = (2..12)
        .map(|net| {
            let spoke = Gateway::start([net; 32], net, 0);
            spoke.peer(hub.key, 1, Some(hub.addr()));
            hub.peer(spoke.key, net, Some(spoke.addr()));
            spoke
        })
        .collect();
    for (net, spoke) in (2_u8..).zip(&spokes) {
        let addr = format!("10.{net}.0.1");
        spoke.send(&addr, "10.1.0.1", &[net]);
        assert_eq!(hub.receive(), packet(&addr, "10.1.0.1", &[net]));
        hub.send("10.1.0.1", &addr, &[net]);
        assert_eq!(spoke.receive(), packet("10.1.0.1", &addr, &[net]));
    }
    assert_eq!(hub.tunnel.stats().peers.len(), spokes.len());
}

#[test]
fn a_large_fleet_is_applied_without_disturbing_the_small_one() {
    let (a, b, relay) = connected();
    let start = Instant::now();
    a.change(|config| {
        for n in 0..1_000_u32 {
            let mut private = [3; 32];
            private[4..8].copy_from_slice(&n.to_le_bytes());
            let key = PrivateKey::from_bytes(private).public_key().unwrap();
            let block = |i| {
                Cidr::containing(
                    IpAddr::from(Ipv4Addr::from(0x6440_0000_u32 + ((n * 10 + i) << 8))),
                    24,
                )
            };
            let routes: Vec<Cidr> = (0..10).map(block).collect();
            let label = format!("many/{n}");
            let peer = PeerConfig {
                label,
                endpoint: None,
                sources: routes.clone(),
                routes,
                keepalive: None,
                slot: 0,
                stripes: Vec::new(),
            };
            config.peers.insert(key, peer);
        }
    });
    let first = start.elapsed();
    exchange(&a, &b);
    let start = Instant::now();
    a.change(|config| config.local.push("10.78.0.0/16".parse().unwrap()));
    println!(
        "1,000 peers with 10,000 blocks: {first:?}, again with a change: {:?}",
        start.elapsed()
    );
    exchange(&a, &b);
    assert_eq!(a.tunnel.stats().peers.len(), 1_001);
    assert_eq!(relay.count(1), 1);
    assert!(first < SOON);
}
