//! Blocks: conflicts, reservations, rest.

use super::*;

#[test]
fn blocks_of_one_request_may_not_meet_either() {
    let mut b = Bench::new();
    let token = b.token("east", Role::Member);
    let mut cidrs = pods(&["10.96.0.0/12"]);
    cidrs.service = vec!["10.100.0.0/16".parse().unwrap()];
    assert_eq!(
        code(b.join(&token, ("east", "gw-1"), "k", &cidrs)),
        Code::CidrConflict
    );
    assert_eq!(
        code(b.join(&token, ("east", "gw-1"), "k", &pods(&["127.0.0.0/16"]))),
        Code::CidrConflict
    );
    assert_eq!(
        code(b.join(&token, ("east", "gw-1"), "k", &pods(&["198.19.7.0/24"]))),
        Code::CidrConflict
    );
    assert_eq!(
        code(b.join(&token, ("east", "gw-1"), "k", &pods(&[]))),
        Code::BadRequest
    );
}

#[test]
fn a_released_block_rests_for_others_but_not_for_its_owner() {
    let mut b = Bench::new();
    let first = b.member("east", "auto/16").unwrap();
    b.register(("east", "gw-1"), 1, "192.0.2.1:51820").unwrap();
    let decision = leave(&b.state, &id("east"), &node("gw-1"), false, b.now);
    b.commit(decision).unwrap();
    assert_eq!(b.state.tombstones["east"].reason, Gone::Left);
    assert_ne!(
        b.member("west", "auto/16").unwrap().allocations,
        first.allocations
    );
    assert_eq!(
        b.register(("west", "gw-1"), 2, "192.0.2.2:51820")
            .unwrap()
            .inner[0]
            .to_string(),
        "198.19.0.2"
    );
    assert_eq!(
        b.member("east", "auto/16").unwrap().allocations,
        first.allocations
    );
    assert!(!b.state.tombstones.contains_key("east"));
    assert!(
        b.state
            .held_by(&id("east"))
            .all(|h| h.allocation.kind == Kind::Infra)
    );
    assert_eq!(
        b.register(("east", "gw-1"), 1, "192.0.2.1:51820")
            .unwrap()
            .inner[0]
            .to_string(),
        "198.19.0.1"
    );
    assert_eq!(b.state.held_by(&id("east")).count(), 0);
}

#[test]
fn a_reservation_waits_for_its_cluster() {
    let mut b = Bench::new();
    let request = Reservation {
        cluster: id("east"),
        kind: Kind::Pod,
        cidr: "auto/16".parse().unwrap(),
    };
    let decision = reserve(&b.state, &request);
    assert_eq!(b.commit(decision).unwrap().cidr, cidr("10.32.0.0/16"));
    assert_eq!(code(b.member("west", "10.32.0.0/16")), Code::CidrConflict);
    assert_eq!(
        blocks(&b.member("west", "auto/16").unwrap()),
        ["10.33.0.0/16"]
    );
    let taken = Reservation {
        cidr: "10.33.0.0/24".parse().unwrap(),
        ..request.clone()
    };
    assert_eq!(code(reserve(&b.state, &taken)), Code::CidrConflict);
    let second = Reservation {
        cidr: "10.60.0.0/16".parse().unwrap(),
        ..request
    };
    let decision = reserve(&b.state, &second);
    b.commit(decision).unwrap();
    assert!(
        reserve(&b.state, &second).unwrap().effects.is_empty(),
        "once is enough"
    );
    assert_eq!(
        blocks(&b.member("east", "auto/16").unwrap()),
        ["10.32.0.0/16"],
        "what is reserved comes first"
    );
    assert_eq!(
        b.state.held_by(&id("east")).count(),
        1,
        "the other reservation stays"
    );
    assert_eq!(code(release(&b.state, cidr("10.32.0.0/16"))), Code::InUse);
    let decision = release(&b.state, cidr("10.60.0.0/16"));
    b.commit(decision).unwrap();
    assert_eq!(
        code(release(&b.state, cidr("10.60.0.0/16"))),
        Code::NotFound
    );
    let states: Vec<_> = allocations(&b.state)
        .iter()
        .map(|a| (a.cidr.to_string(), a.state))
        .collect();
    assert_eq!(states.len(), 2);
}
