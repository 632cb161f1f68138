use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;

use super::*;

/// A valid initiation towards `to`, of the holder of `private`.
fn initiation(private: [u8; 32], to: &Gateway, index: u32) -> Vec<u8> {
    let theirs = x25519::PublicKey::from(*to.key.as_bytes());
    let mut tunn = Tunn::new(
        x25519::StaticSecret::from(private),
        theirs,
        None,
        None,
        index,
        None,
    );
    let mut bytes = [0; 148];
    let TunnResult::WriteToNetwork(initiation) = tunn.format_handshake_initiation(&mut bytes, true)
    else {
        panic!("no initiation");
    };
    initiation.to_vec()
}

#[test]
fn replayed_packets_and_handshakes_are_dropped_and_counted() {
    let (a, b, relay) = connected();
    let replay = |datagram: &[u8]| relay.right_socket.send_to(datagram, b.addr()).unwrap();
    replay(&relay.last(4));
    eventually("a replayed packet", || b.drops_of(&a, Reason::Replay) == 1);
    replay(&relay.last(1));
    eventually("a replayed initiation", || {
        b.drops_of(&a, Reason::Replay) == 2
    });
    exchange(&a, &b);
    let elsewhere = UdpSocket::bind("127.0.0.1:0").unwrap();
    elsewhere.send_to(&relay.last(4), b.addr()).unwrap();
    eventually("a replay from elsewhere", || {
        b.drops_of(&a, Reason::Replay) == 3
    });
    assert_eq!(
        b.stats_of(&a).endpoint,
        Some(relay.right),
        "which moves nobody"
    );
}

#[test]
fn random_bytes_are_counted_and_harmless() {
    let (a, b, relay) = connected();
    let noise = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut random = schedule::Random::new(1);
    let mut sent = 0;
    for size in (0..1_500).step_by(7) {
        let mut bytes: Vec<u8> = (0..size)
            .map(|_| random.chance().0.to_le_bytes()[0])
            .collect();
        if let Some(first) = bytes.first_mut() {
            *first = 0xaa;
        }
        noise.send_to(&bytes, b.addr()).unwrap();
        sent += 1;
    }
    eventually("unknown datagrams", || b.drops(Reason::Unknown) == sent);
    // Right in form and wrong in content.
    for (kind, len) in [(1_u8, 148), (2, 92), (3, 64), (4, 32), (4, 1_500)] {
        for real_index in [false, true] {
            let mut bytes = vec![0x5a; len];
            bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
            if real_index {
                let data = relay.last(4);
                let at = if kind == 2 { 8 } else { 4 };
                bytes[at..at + 4].copy_from_slice(&data[4..8]);
            }
            noise.send_to(&bytes, b.addr()).unwrap();
        }
    }
    eventually("each counted somewhere", || {
        let own: u64 = b.stats_of(&a).drops.values().sum();
        let all: u64 = b.tunnel.stats().drops.values().sum();
        own + all == sent + 10
    });
    assert!(
        b.drops(Reason::Unauthentic) >= 2,
        "initiations without the right first MAC"
    );
    exchange(&a, &b);
    assert_eq!(relay.count(1), 1, "nobody had to shake hands again");
}

#[test]
fn a_valid_initiation_of_a_stranger_is_counted_as_such() {
    let (a, b, _relay) = connected();
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    stranger
        .send_to(&initiation([7; 32], &b, 5), b.addr())
        .unwrap();
    eventually("an unknown peer", || b.drops(Reason::UnknownPeer) == 1);
    stranger
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    assert!(stranger.recv(&mut [0; 200]).is_err(), "and not answered");
    exchange(&a, &b);
}

#[test]
fn a_flood_of_initiations_is_limited_by_source_then_by_cookies_and_harms_no_session() {
    let (a, b, _relay) = connected();
    let flood = UdpSocket::bind("127.0.0.1:0").unwrap();
    let initiations: Vec<Vec<u8>> = (0..20).map(|n| initiation([7; 32], &b, n)).collect();
    for n in 0..2_000 {
        flood
            .send_to(&initiations[n % initiations.len()], b.addr())
            .unwrap();
    }
    eventually("all are counted", || {
        b.drops(Reason::UnknownPeer) + b.drops(Reason::RateLimited) == 2_000
    });
    assert!(
        b.drops(Reason::UnknownPeer) <= 500,
        "{:?}",
        b.tunnel.stats().drops
    );
    flood.set_read_timeout(Some(SECOND)).unwrap();
    let mut bytes = [0; 200];
    assert_eq!(
        (flood.recv(&mut bytes).unwrap(), bytes[0]),
        (64, 3),
        "a cookie"
    );
    exchange(&a, &b);
}

#[test]
fn a_handshake_succeeds_under_load_with_a_cookie() {
    let (low, high) = keys();
    let b = Gateway::start(high, 2, 0);
    let ours = PrivateKey::from_bytes(low).public_key().unwrap();
    // At another port, so that what it is sent itself does not come to the client.
    b.peer(ours, 1, Some("127.0.0.1:9".parse().unwrap()));
    let strangers: Vec<Vec<u8>> = (0..20).map(|n| initiation([7; 32], &b, n)).collect();
    let flood = UdpSocket::bind("127.0.0.2:0").unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(SOON)).unwrap();
    let theirs = x25519::PublicKey::from(*b.key.as_bytes());
    let mut tunn = Tunn::new(
        x25519::StaticSecret::from(low),
        theirs,
        None,
        None,
        77,
        None,
    );
    let mut cookies = 0;
    let start = Instant::now();
    loop {
        assert!(
            start.elapsed() < SOON,
            "{cookies} cookies and no response to a handshake with one"
        );
        for n in 0..600 {
            flood
                .send_to(&strangers[n % strangers.len()], b.addr())
                .unwrap();
        }
        let (mut buffer, mut answer) = ([0; 148], [0; 200]);
        let TunnResult::WriteToNetwork(initiation) =
            tunn.format_handshake_initiation(&mut buffer, true)
        else {
            panic!("no initiation");
        };
        client.send_to(initiation, b.addr()).unwrap();
        let len = client.recv(&mut answer).unwrap();
        match (answer[0], cookies) {
            (3, 0) => {
                assert!(matches!(
                    tunn.decapsulate(None, &answer[..len], &mut [0; 200]),
                    TunnResult::Done
                ));
                cookies += 1;
            }
            (2, 1..) => return,
            // A new period had begun just then.
            (2, 0) => {}
            (kind, _) => panic!("type {kind} after {cookies} cookies"),
        }
    }
}
