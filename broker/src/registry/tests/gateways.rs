//! Gateways: names, keys, endpoints, stock peers.

use super::*;

#[test]
fn leaving_with_other_gateways_needs_force() {
    let mut b = Bench::new();
    b.member("east", "10.0.0.0/16").unwrap();
    b.register(("east", "gw-1"), 1, "192.0.2.1:51820").unwrap();
    let token = b.token("east", Role::Gateway);
    assert_eq!(
        code(b.join(&token, ("east", "gw-2"), "k2", &pods(&["10.9.0.0/16"]))),
        Code::BadRequest
    );
    b.join(&token, ("east", "gw-2"), "k2", &CidrRequests::default())
        .unwrap();
    assert_eq!(
        b.register(("east", "gw-2"), 2, "192.0.2.2:51820")
            .unwrap()
            .slot,
        1
    );
    let refused = leave(&b.state, &id("east"), &node("gw-1"), false, b.now).unwrap_err();
    assert_eq!(refused.code, Code::InUse);
    assert!(refused.message.contains("gw-2"));
    // The further gateway takes only itself out, and its name is free again.
    let decision =
        remove_gateway(&b.state, &id("east"), &node("gw-2"), Role::Gateway, b.now).unwrap();
    assert!(matches!(decision.cut, Some(Cut::Node(_))));
    b.commit(Ok(decision)).unwrap();
    let token = b.token("east", Role::Gateway);
    b.join(
        &token,
        ("east", "gw-2"),
        "new key",
        &CidrRequests::default(),
    )
    .unwrap();
    assert_eq!(
        b.register(("east", "gw-2"), 3, "192.0.2.2:51820")
            .unwrap()
            .slot,
        1
    );
    let decision = leave(&b.state, &id("east"), &node("gw-1"), true, b.now);
    b.commit(decision).unwrap();
    assert!(b.state.enrolments.is_empty());
}

#[test]
fn a_gateways_name_cannot_be_taken_over_while_it_is_registered() {
    let mut b = Bench::new();
    b.member("east", "10.0.0.0/16").unwrap();
    b.register(("east", "gw-1"), 1, "192.0.2.1:51820").unwrap();
    let token = b.token("east", Role::Gateway);
    assert_eq!(
        code(b.join(&token, ("east", "gw-1"), "thief", &CidrRequests::default())),
        Code::NameTaken
    );
    let agent = b.token("east", Role::Agent);
    b.join(
        &agent,
        ("east", "gw-1"),
        "agent key",
        &CidrRequests::default(),
    )
    .unwrap();
    let absent = b.token("nobody", Role::Gateway);
    assert_eq!(
        code(b.join(&absent, ("nobody", "gw-1"), "k", &CidrRequests::default())),
        Code::NotMember
    );
    let decision = forget_gateway(&b.state, &id("east"), &node("gw-1"), b.now);
    b.commit(decision).unwrap();
    b.join(&token, ("east", "gw-1"), "new", &CidrRequests::default())
        .unwrap();
}

#[test]
fn a_key_has_one_owner_for_ever() {
    let mut b = Bench::new();
    b.member("east", "10.0.0.0/16").unwrap();
    b.member("west", "10.1.0.0/16").unwrap();
    b.register(("east", "gw-1"), 1, "192.0.2.1:51820").unwrap();
    assert_eq!(
        code(b.register(("west", "gw-1"), 1, "192.0.2.2:51820")),
        Code::KeyTaken
    );
    b.register(("east", "gw-1"), 2, "192.0.2.1:51820").unwrap();
    assert_eq!(
        code(b.register(("west", "gw-1"), 1, "192.0.2.2:51820")),
        Code::KeyTaken,
        "nor once it is out of use"
    );
    b.register(("east", "gw-1"), 1, "192.0.2.1:51820").unwrap();
}

#[test]
fn endpoints_are_checked() {
    let mut b = Bench::new();
    b.member("east", "10.0.0.0/16").unwrap();
    b.member("west", "10.1.0.0/16").unwrap();
    for bad in [
        "0.0.0.0:1",
        "[::]:1",
        "127.0.0.1:1",
        "[::1]:1",
        "224.0.0.1:1",
        "192.0.2.1:0",
        "[::ffff:127.0.0.1]:1",
        "255.255.255.255:9",
    ] {
        assert_eq!(
            code(b.register(("east", "gw-1"), 1, bad)),
            Code::BadRequest,
            "{bad}"
        );
    }
    for inside in [
        "10.1.2.3:51820",
        "10.0.0.1:51820",
        "[::ffff:10.1.2.3]:51820",
        "198.19.3.3:51820",
    ] {
        assert_eq!(
            code(b.register(("east", "gw-1"), 1, inside)),
            Code::CidrConflict,
            "{inside}"
        );
    }
    b.register(("east", "gw-1"), 1, "192.0.2.1:51820").unwrap();
    assert_eq!(
        code(b.member("north", "192.0.2.0/24")),
        Code::CidrConflict,
        "an endpoint is in the way"
    );
    let broker = subsea_api::snapshot::BrokerInfo {
        urls: vec![
            "https://203.0.113.9:8443".into(),
            "https://127.0.0.1:1".into(),
        ],
        ca_pem: String::new(),
    };
    b.apply(vec![Effect::Broker(broker)]);
    assert_eq!(
        code(b.member("north", "203.0.113.0/24")),
        Code::CidrConflict,
        "so is the broker"
    );
}

#[test]
fn registrations_have_bounds() {
    let mut b = Bench::new();
    b.member("east", "10.0.0.0/16").unwrap();
    let mut register = |listeners: Vec<Listener>| {
        let decision = register_gateway(&b.state, &id("east"), &node("gw-1"), &listeners, &[]);
        code(b.commit(decision))
    };
    let one = listener(1, "192.0.2.1:51820");
    assert_eq!(register(vec![]), Code::BadRequest);
    assert_eq!(register(vec![one.clone(); 17]), Code::BadRequest);
    assert_eq!(register(vec![one.clone(), one.clone()]), Code::BadRequest);
    assert_eq!(
        register(vec![Listener {
            port: 0,
            ..one.clone()
        }]),
        Code::BadRequest
    );
    assert_eq!(
        register(vec![Listener {
            id: "A b".into(),
            ..one.clone()
        }]),
        Code::BadRequest
    );
    assert_eq!(
        register(vec![Listener {
            candidates: vec![],
            ..one.clone()
        }]),
        Code::BadRequest
    );
    let many = vec![one.candidates[0]; 9];
    assert_eq!(
        register(vec![Listener {
            candidates: many,
            ..one
        }]),
        Code::BadRequest
    );
}

#[test]
fn a_stock_peer_brings_its_cluster() {
    let mut b = Bench::new();
    let block = |text: &str| Allocation {
        kind: Kind::Pod,
        cidr: cidr(text),
        exported: true,
    };
    let mut request = StockGateway {
        public_key: key(5),
        endpoint: "192.0.2.5:51820".parse().unwrap(),
        probe: None,
        allocations: vec![],
    };
    let add = |b: &mut Bench, cluster: &str, request: &StockGateway| {
        let decision = add_stock_gateway(&b.state, &id(cluster), &node("wg"), request, b.now);
        b.commit(decision)
    };
    assert_eq!(
        code(add(&mut b, "office", &request)),
        Code::BadRequest,
        "no blocks"
    );
    request.allocations = vec![block("10.50.0.0/16")];
    add(&mut b, "office", &request).unwrap();
    let before = b.revision();
    add(&mut b, "office", &request).unwrap();
    assert_eq!(b.revision(), before, "the same again changes nothing");
    assert!(b.state.clusters["office"].gateways["wg"].inner.is_empty());
    assert_eq!(code(b.member("east", "10.50.1.0/24")), Code::CidrConflict);
    assert_eq!(
        code(b.member("office", "10.51.0.0/16")),
        Code::ClusterExists
    );
    request.allocations = vec![block("10.52.0.0/16")];
    add(&mut b, "office", &request).unwrap();
    assert_eq!(
        b.state.clusters["office"].allocations,
        [block("10.52.0.0/16")]
    );
    b.member("east", "10.1.0.0/16").unwrap();
    request.public_key = key(6);
    assert_eq!(
        code(add(&mut b, "east", &request)),
        Code::BadRequest,
        "a member has its own blocks"
    );
    request.allocations = vec![];
    add(&mut b, "east", &request).unwrap();
    assert_eq!(
        code(b.register(("east", "wg"), 7, "192.0.2.7:1")),
        Code::NameTaken
    );
}

/// A listener of number `n`, with a key and a port of its own.
fn numbered(n: u8, stripe: u16, for_slot: Option<u16>) -> Listener {
    Listener {
        id: format!("l{n}"),
        port: 51820 + u16::from(n),
        stripe,
        for_slot,
        ..listener(n + 1, "192.0.2.1:51820")
    }
}

#[test]
fn a_gateway_has_a_listener_for_each_stripe_or_slot() {
    let mut b = Bench::new();
    b.member("east", "10.0.0.0/16").unwrap();
    b.member("west", "10.1.0.0/16").unwrap();
    let mut register = |name: &str, listeners: &[Listener]| {
        let decision = register_gateway(&b.state, &id(name), &node("gw-1"), listeners, &[]);
        b.commit(decision)
    };
    let stripes: Vec<_> = (0..8)
        .map(|n| numbered(n, u16::from(n), None))
        .rev()
        .collect();
    let gateway = register("east", &stripes).unwrap();
    assert_eq!(gateway.listeners.len(), 8);
    assert!(gateway.listeners.iter().all(|l| l.slot == 0));
    let slots: Vec<_> = (0..16)
        .map(|n| numbered(n, 0, Some(u16::from(n))))
        .collect();
    let gateway = register("east", &slots).unwrap();
    assert_eq!(
        gateway.listener(0, 15).map(|l| l.id.as_str()),
        Some("l15"),
        "the broker leaves alone whom a listener is for"
    );
    assert_eq!(
        code(register(
            "west",
            &[numbered(40, 0, None), numbered(7, 1, None)]
        )),
        Code::KeyTaken,
        "every key is claimed, not the first alone"
    );
    // Fewer again: the keys stay ours.
    register("east", &stripes[7..]).unwrap();
    assert_eq!(
        code(register("west", &[numbered(15, 0, None)])),
        Code::KeyTaken
    );
    // While a listener is on its way out, its successor has its number.
    let mut old = numbered(0, 0, None);
    old.state = ListenerState::Retiring;
    register("east", &[old, numbered(1, 0, None), numbered(2, 1, None)]).unwrap();
}

#[test]
fn the_numbers_of_listeners_make_sense() {
    let mut b = Bench::new();
    b.member("east", "10.0.0.0/16").unwrap();
    let refused = |listeners: &[Listener]| {
        let decision = register_gateway(&b.state, &id("east"), &node("gw-1"), listeners, &[]);
        let problem = decision.unwrap_err();
        assert_eq!(problem.code, Code::BadRequest, "{problem:?}");
        problem.message
    };
    let zero = || numbered(0, 0, None);
    let mut same_key = numbered(1, 1, None);
    same_key.public_key = zero().public_key;
    let many: Vec<_> = (0..17).map(|n| numbered(n, u16::from(n), None)).collect();
    for (listeners, words) in [
        (vec![zero(), numbered(1, 0, None)], "second of stripe 0"),
        (
            vec![zero(), numbered(1, 1, None), numbered(2, 1, None)],
            "second of stripe 1",
        ),
        (
            vec![numbered(0, 0, Some(1)), numbered(1, 0, Some(1))],
            "second of stripe 0",
        ),
        (vec![zero(), same_key], "or its key occurs twice"),
        (vec![zero(), numbered(1, 2, None)], "stripe 1 is missing"),
        (vec![numbered(1, 1, None)], "stripe 0 is missing"),
        (
            vec![zero(), numbered(1, 1, Some(3))],
            "for slot 3 have a gap: stripe 0 is missing",
        ),
        (vec![zero(), numbered(1, 0, Some(64))], "slots end at 63"),
        (many, "1 to 16 listeners"),
    ] {
        let message = refused(&listeners);
        assert!(message.contains(words), "{words}: {message}");
    }
}
