use super::*;

const INITIATION: u8 = 1;
const RESPONSE: u8 = 2;

fn both_shook_hands(a: &Gateway, b: &Gateway) -> bool {
    a.stats_of(b).latest_handshake.is_some() && b.stats_of(a).latest_handshake.is_some()
}

#[test]
fn of_two_sides_that_start_at_once_one_initiates() {
    let (a, b, relay) = pair();
    eventually("a handshake", || both_shook_hands(&a, &b));
    thread::sleep(2 * SECOND);
    assert_eq!((relay.count(INITIATION), relay.count(RESPONSE)), (1, 1));
    assert_eq!(
        relay.last(INITIATION).len(),
        148,
        "by the side with the lower key"
    );
}

#[test]
fn the_side_that_waits_initiates_when_the_other_cannot() {
    let (low, high) = keys();
    let (a, b) = (Gateway::start(low, 1, 0), Gateway::start(high, 2, 0));
    let relay = Relay::new(b.addr(), a.addr());
    a.peer(b.key, 2, None);
    a.send("10.1.0.1", "10.2.0.1", b"nowhere yet");
    eventually("a drop without an endpoint", || {
        a.drops_of(&b, Reason::NoSession) == 1
    });
    let start = Instant::now();
    b.peer(a.key, 1, Some(relay.left));
    eventually("a handshake", || both_shook_hands(&a, &b));
    assert!(
        (SECOND..4 * SECOND).contains(&start.elapsed()),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(a.stats_of(&b).endpoint, Some(relay.right), "learnt");
    exchange(&a, &b);
}

#[test]
fn a_lost_initiation_is_repeated_after_a_second_and_not_after_five() {
    let (low, high) = keys();
    let (a, b) = (Gateway::start(low, 1, 0), Gateway::start(high, 2, 0));
    let relay = Relay::new(a.addr(), b.addr());
    b.peer(a.key, 1, None);
    relay.cut(true);
    a.peer(b.key, 2, Some(relay.left));
    eventually("an initiation", || relay.count(INITIATION) == 1);
    relay.cut(false);
    let start = Instant::now();
    eventually("a handshake", || both_shook_hands(&a, &b));
    assert!(
        (SECOND / 2..4 * SECOND).contains(&start.elapsed()),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(relay.count(INITIATION), 2);
}

#[test]
fn data_does_not_make_the_waiting_side_wait_long() {
    // Without data it waits for a second, each time; a slow machine is not that slow each time.
    let took = (0..5).map(|_| {
        let (low, high) = keys();
        let (a, b) = (Gateway::start(low, 1, 0), Gateway::start(high, 2, 0));
        a.peer(b.key, 2, None);
        let start = Instant::now();
        b.peer(a.key, 1, Some(a.addr()));
        b.send("10.2.0.1", "10.1.0.1", b"now");
        assert_eq!(a.receive(), packet("10.2.0.1", "10.1.0.1", b"now"));
        start.elapsed()
    });
    let took: Vec<Duration> = took.collect();
    let soon = |took: &Duration| *took < Duration::from_millis(900);
    assert!(took.iter().any(soon), "{took:?}");
}

#[test]
fn a_new_configuration_leaves_the_sessions_of_peers_that_stay() {
    let (a, b, relay) = connected();
    let stranger = PrivateKey::from_bytes([9; 32]).public_key().unwrap();
    a.peer(stranger, 9, None);
    a.change(|config| config.local.push("10.77.0.0/16".parse().unwrap()));
    b.change(|config| {
        let peer = config.peers.get_mut(&a.key).unwrap();
        peer.sources.push("10.77.0.0/16".parse().unwrap());
        peer.keepalive = Some(25);
    });
    a.send("10.77.0.1", "10.2.0.1", b"new block");
    assert_eq!(b.receive(), packet("10.77.0.1", "10.2.0.1", b"new block"));
    exchange(&a, &b);
    a.change(|config| drop(config.peers.remove(&stranger)));
    exchange(&a, &b);
    assert_eq!(relay.count(INITIATION), 1);
}

#[test]
fn a_removed_peer_is_unknown_at_once_and_can_come_again() {
    let (a, b, _relay) = connected();
    b.change(|config| config.peers.clear());
    assert!(b.tunnel.stats().peers.is_empty());
    a.send("10.1.0.1", "10.2.0.1", b"to nobody");
    eventually("an unknown datagram", || b.drops(Reason::Unknown) == 1);
    b.send("10.2.0.1", "10.1.0.1", b"from nobody");
    eventually("no peer", || b.drops(Reason::NoPeer) == 1);

    b.peer(a.key, 1, Some(a.addr()));
    b.send("10.2.0.1", "10.1.0.1", b"again");
    assert_eq!(a.receive(), packet("10.2.0.1", "10.1.0.1", b"again"));
    exchange(&a, &b);
}

#[test]
fn a_peer_that_restarts_with_its_key_is_back_within_three_seconds() {
    let (low, high) = keys();
    for (survivor, restarts) in [(low, high), (high, low)] {
        let (a, b) = (
            Gateway::start(survivor, 1, 0),
            Gateway::start(restarts, 2, 0),
        );
        a.peer(b.key, 2, Some(b.addr()));
        b.peer(a.key, 1, Some(a.addr()));
        exchange(&a, &b);
        let port = b.tunnel.port();
        let (private, key) = (b.private, b.key);
        drop(b);
        a.send("10.1.0.1", "10.2.0.1", b"lost");

        let start = Instant::now();
        let b = Gateway::start(private, 2, port);
        b.peer(a.key, 1, Some(a.addr()));
        assert_eq!(b.key, key);
        b.inside
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let mut bytes = [0; 100];
        loop {
            a.send("10.1.0.1", "10.2.0.1", b"there?");
            if b.inside.recv(&mut bytes).is_ok() {
                break;
            }
            assert!(start.elapsed() < 3 * SECOND, "not back");
        }
    }
}

#[test]
fn authentic_data_from_elsewhere_moves_the_peer_and_other_data_does_not() {
    let (a, b, relay) = connected();
    assert_eq!(b.stats_of(&a).endpoint, Some(relay.right));
    relay.cut(true);
    a.send("10.1.0.1", "10.2.0.1", b"by another road");
    eventually("the datagram", || relay.last(4).len() == 32 + 20 + 15);
    let data = relay.last(4);

    let elsewhere = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut forged = data.clone();
    forged[40] ^= 1;
    elsewhere.send_to(&forged, b.addr()).unwrap();
    eventually("a forged datagram", || {
        b.drops_of(&a, Reason::Unauthentic) == 1
    });
    assert_eq!(b.stats_of(&a).endpoint, Some(relay.right));

    elsewhere.send_to(&data, b.addr()).unwrap();
    assert_eq!(
        b.receive(),
        packet("10.1.0.1", "10.2.0.1", b"by another road")
    );
    assert_eq!(
        b.stats_of(&a).endpoint,
        Some(elsewhere.local_addr().unwrap())
    );
    elsewhere.set_read_timeout(Some(SOON)).unwrap();
    b.send("10.2.0.1", "10.1.0.1", b"follows");
    let mut bytes = [0; 200];
    assert_eq!(elsewhere.recv(&mut bytes).unwrap(), 32 + 20 + 7);
}

#[test]
fn a_new_configured_endpoint_is_taken_with_a_handshake_and_without_losing_the_session() {
    let (a, b, relay) = connected();
    let second = Relay::new(a.addr(), b.addr());
    relay.cut(true);
    a.change(|config| config.peers.get_mut(&b.key).unwrap().endpoint = Some(second.left));
    a.send("10.1.0.1", "10.2.0.1", b"at once");
    assert_eq!(b.receive(), packet("10.1.0.1", "10.2.0.1", b"at once"));
    eventually("a handshake there", || second.count(RESPONSE) == 1);
    assert_eq!(b.stats_of(&a).endpoint, Some(second.right));
    exchange(&a, &b);
    assert_eq!(relay.count(INITIATION), 1);
}

#[test]
fn a_keepalive_keeps_a_quiet_tunnel_warm() {
    let (a, b, relay) = connected();
    a.change(|config| config.peers.get_mut(&b.key).unwrap().keepalive = Some(1));
    let keepalives = || {
        relay
            .state
            .lock()
            .unwrap()
            .seen
            .iter()
            .filter(|(left, d)| *left && d.len() == 32)
            .count()
    };
    let before = keepalives();
    thread::sleep(Duration::from_millis(3_500));
    let sent = keepalives() - before;
    assert!((2..=4).contains(&sent), "{sent}");
}

#[test]
fn a_dropped_driver_is_gone_at_once_with_its_port() {
    let (a, b, _relay) = connected();
    let (port, start) = (a.tunnel.port(), Instant::now());
    drop(a);
    drop(b);
    assert!(start.elapsed() < SOON);
    UdpSocket::bind(("0.0.0.0", port)).unwrap();
}

#[test]
fn a_peer_whose_port_is_nobodys_is_hinted_at_and_others_are_not() {
    for host in ["127.0.0.1:0", "[::1]:0"] {
        let (low, _) = keys();
        let a = Gateway::start(low, 1, 0);
        let refusals = a.tunnel.refusals();
        let sockets = [3, 4].map(|net: u8| {
            let socket = UdpSocket::bind(host).unwrap();
            let key = PrivateKey::from_bytes([net; 32]).public_key().unwrap();
            a.peer(key, net, Some(socket.local_addr().unwrap()));
            (socket, key)
        });
        let [(dead, key), (_alive, other)] = sockets;
        let counts = || refusals.borrow().clone();
        drop(dead);
        // Something to send, which begins a handshake with each.
        a.send("10.1.0.1", "10.3.0.1", b"?");
        a.send("10.1.0.1", "10.4.0.1", b"?");
        eventually("a refusal", || counts().contains_key(&key));
        assert!(refusals.has_changed().unwrap());
        thread::sleep(Duration::from_millis(100));
        assert!(!counts().contains_key(&other), "{host}: {:?}", counts());
        // One that has its port again is not hinted at any more.
        let socket = UdpSocket::bind(host).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        a.peer(key, 3, Some(socket.local_addr().unwrap()));
        a.send("10.1.0.1", "10.3.0.1", b"?");
        assert_eq!(socket.recv(&mut [0; 200]).unwrap(), 148);
        let before = counts();
        thread::sleep(Duration::from_millis(100));
        assert_eq!(counts(), before);
    }
}
