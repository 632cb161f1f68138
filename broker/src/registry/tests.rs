//! Tests of the registry: what a request changes, and that nothing ever overlaps.

use std::collections::BTreeMap;

use proptest::prelude::*;
use subsea_api::admin::{Reservation, StockGateway, TokenCreate};
use subsea_api::member::{CidrRequests, JoinRequest, PreflightRequest};
use subsea_api::snapshot::{Gone, Listener, ListenerState, Snapshot};
use subsea_api::{
    Allocation, Cidr, ClusterId, Code, Delta, Kind, NodeName, Problem, PublicKey, Role, Token,
    UnixMillis,
};

use super::*;
use crate::auth::Fingerprint;
use crate::ipam::default_pools;

const T0: UnixMillis = UnixMillis(1_800_000_000_000);

/// A registry that applies what it decides, as the store does.
struct Bench {
    state: State,
    now: UnixMillis,
    tokens: u32,
}

impl Bench {
    fn new() -> Self {
        Self {
            state: State::new(Identity {
                fleet: "f1".parse().unwrap(),
                epoch: "e".into(),
                ula: "fd12:3456:789a::/48".parse().unwrap(),
                pools: default_pools(),
            }),
            now: T0,
            tokens: 0,
        }
    }

    fn commit<T>(&mut self, decision: Result<Decision<T>, Problem>) -> Result<T, Problem> {
        let decision = decision?;
        assert_eq!(
            decision.effects.is_empty(),
            decision.note.is_none(),
            "every change is audited"
        );
        self.apply(decision.effects);
        Ok(decision.answer)
    }

    fn apply(&mut self, effects: Vec<Effect>) {
        let changed = changes(&effects);
        let mut mirror: Snapshot = self.state.snapshot();
        for effect in effects {
            self.state.apply(effect);
        }
        if !changed.is_empty() {
            self.state.revision += 1;
        }
        // A client that applies the changes has what a client has that starts now.
        let (from, to) = (mirror.revision, self.state.revision);
        mirror
            .apply(Delta {
                from,
                to,
                changes: changed,
            })
            .unwrap();
        let mut now = self.state.snapshot();
        // Tombstones that have had their time go without a change.
        mirror
            .tombstones
            .retain(|id, _| now.tombstones.contains_key(id));
        now.tombstones
            .retain(|id, _| mirror.tombstones.contains_key(id));
        assert_eq!(mirror, now);
    }

    fn sweep(&mut self) {
        let effects = sweep(&self.state, self.now);
        self.apply(effects);
    }

    fn token(&mut self, cluster: &str, role: Role) -> Token {
        self.tokens += 1;
        let token = Token::from_parts(self.tokens, [7; 32]);
        let request = TokenCreate {
            cluster: id(cluster),
            role,
            ttl_seconds: 900,
        };
        let decision = create_token(&self.state, &request, &token, self.now);
        self.commit(decision).unwrap();
        token
    }

    fn join(
        &mut self,
        token: &Token,
        who: (&str, &str),
        key: &str,
        cidrs: &CidrRequests,
    ) -> Result<Grant, Problem> {
        let request = JoinRequest {
            fleet: "f1".parse().unwrap(),
            token: token.clone(),
            cluster: id(who.0),
            node: node(who.1),
            csr_pem: String::new(),
            cidrs: cidrs.clone(),
        };
        let decision = join(
            &self.state,
            Join {
                request: &request,
                csr: &csr(key),
                now: self.now,
            },
        );
        self.commit(decision)
    }

    fn member(&mut self, cluster: &str, pod: &str) -> Result<Grant, Problem> {
        let token = self.token(cluster, Role::Member);
        self.join(&token, (cluster, "gw-1"), cluster, &pods(&[pod]))
    }

    fn register(
        &mut self,
        who: (&str, &str),
        key: u8,
        endpoint: &str,
    ) -> Result<subsea_api::snapshot::Gateway, Problem> {
        let listeners = [listener(key, endpoint)];
        let decision = register_gateway(&self.state, &id(who.0), &node(who.1), &listeners);
        self.commit(decision)
    }

    fn revision(&self) -> u64 {
        self.state.revision
    }
}

fn id(text: &str) -> ClusterId {
    text.parse().unwrap()
}

fn node(text: &str) -> NodeName {
    text.parse().unwrap()
}

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

fn csr(key: &str) -> Csr {
    Csr {
        key: Fingerprint::of(key.as_bytes()),
        request: Fingerprint::of(format!("request of {key}").as_bytes()),
        serial: "01".into(),
    }
}

fn pods(blocks: &[&str]) -> CidrRequests {
    CidrRequests {
        pod: blocks.iter().map(|b| b.parse().unwrap()).collect(),
        ..CidrRequests::default()
    }
}

fn key(n: u8) -> PublicKey {
    PublicKey::from_bytes([n; 32]).unwrap()
}

fn listener(n: u8, endpoint: &str) -> Listener {
    Listener {
        id: "0".into(),
        public_key: key(n),
        port: 51820,
        stripe: 0,
        slot: 9,
        state: ListenerState::Active,
        candidates: vec![endpoint.parse().unwrap()],
    }
}

fn blocks(grant: &Grant) -> Vec<String> {
    grant
        .allocations
        .iter()
        .map(|a| a.cidr.to_string())
        .collect()
}

fn code<T: std::fmt::Debug>(refused: Result<T, Problem>) -> Code {
    refused.unwrap_err().code
}

#[test]
fn every_bad_token_has_a_refusal_of_its_own_and_burns_nothing() {
    let mut b = Bench::new();
    let token = b.token("east", Role::Member);
    let cidrs = pods(&["10.0.0.0/16"]);
    let mut foreign = JoinRequest {
        fleet: "f2".parse().unwrap(),
        token: token.clone(),
        cluster: id("east"),
        node: node("gw-1"),
        csr_pem: String::new(),
        cidrs: cidrs.clone(),
    };
    let try_join = |b: &Bench, request: &JoinRequest| {
        code(join(
            &b.state,
            Join {
                request,
                csr: &csr("k"),
                now: b.now,
            },
        ))
    };
    assert_eq!(try_join(&b, &foreign), Code::FleetMismatch);
    foreign.fleet = "f1".parse().unwrap();
    foreign.token = Token::from_parts(99, [7; 32]);
    assert_eq!(try_join(&b, &foreign), Code::TokenUnknown);
    foreign.token = Token::from_parts(1, [8; 32]);
    assert_eq!(
        try_join(&b, &foreign),
        Code::TokenUnknown,
        "its id alone is no token"
    );
    assert_eq!(
        code(b.join(&token, ("west", "gw-1"), "k", &cidrs)),
        Code::TokenMismatch
    );
    b.now = T0.plus(std::time::Duration::from_mins(15));
    assert_eq!(
        code(b.join(&token, ("east", "gw-1"), "k", &cidrs)),
        Code::TokenExpired
    );
    b.now = T0;
    let decision = revoke_token(&b.state, &token.id(), b.now);
    b.commit(decision).unwrap();
    assert_eq!(
        code(b.join(&token, ("east", "gw-1"), "k", &cidrs)),
        Code::TokenRevoked
    );
    let fresh = b.token("east", Role::Member);
    b.join(&fresh, ("east", "gw-1"), "k", &cidrs).unwrap();
    assert_eq!(
        code(b.join(&fresh, ("east", "gw-1"), "other", &cidrs)),
        Code::TokenUsed
    );
    assert_eq!(
        code(b.join(&fresh, ("east", "gw-2"), "k", &cidrs)),
        Code::TokenUsed
    );
    assert_eq!(
        code(revoke_token(&b.state, &fresh.id(), b.now)),
        Code::InUse
    );
}

#[test]
fn a_refused_join_burns_nothing_and_names_both_owners() {
    let mut b = Bench::new();
    b.member("west", "10.0.0.0/16").unwrap();
    let token = b.token("east", Role::Member);
    let before = b.revision();
    let refused = b
        .join(&token, ("east", "gw-1"), "k", &pods(&["10.0.128.0/17"]))
        .unwrap_err();
    assert_eq!(refused.code, Code::CidrConflict);
    let conflict = &refused.details.unwrap()["conflicts"][0];
    assert_eq!(conflict["wanted"]["owner"]["cluster"], "east");
    assert_eq!(conflict["existing"]["owner"]["cluster"], "west");
    assert_eq!(conflict["common"], "10.0.128.0/17");
    assert_eq!(conflict["free"][0], "10.32.0.0/17");
    assert_eq!(b.revision(), before);
    b.join(
        &token,
        ("east", "gw-1"),
        "another-key",
        &pods(&["10.1.0.0/16"]),
    )
    .unwrap();
}

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
fn a_member_changes_its_blocks_with_its_own_key_only() {
    let mut b = Bench::new();
    b.member("east", "10.0.0.0/16").unwrap();
    b.member("west", "10.1.0.0/16").unwrap();
    b.register(("east", "gw-1"), 1, "192.0.2.1:51820").unwrap();
    let token = b.token("east", Role::Member);
    assert_eq!(
        code(b.join(&token, ("east", "gw-1"), "thief", &pods(&["10.2.0.0/16"]))),
        Code::ClusterExists
    );
    assert_eq!(
        code(b.join(&token, ("east", "gw-1"), "east", &pods(&["10.1.0.0/17"]))),
        Code::CidrConflict
    );
    // Its own old block is not in the way, and its gateway stays.
    let grant = b.join(
        &token,
        ("east", "gw-1"),
        "east",
        &pods(&["10.0.0.0/15", "10.3.0.0/16"]),
    );
    assert_eq!(
        code(grant),
        Code::CidrConflict,
        "10.0.0.0/15 reaches into west"
    );
    let grant = b
        .join(
            &token,
            ("east", "gw-1"),
            "east",
            &pods(&["10.0.0.0/17", "10.3.0.0/16"]),
        )
        .unwrap();
    assert_eq!(blocks(&grant), ["10.0.0.0/17", "10.3.0.0/16"]);
    assert_eq!(b.state.clusters["east"].gateways.len(), 1);
    assert_eq!(
        code(b.member("north", "10.0.128.0/17")),
        Code::CidrConflict,
        "the old block rests"
    );
    b.now = b.now.plus(REST);
    b.sweep();
    b.member("north", "10.0.128.0/17").unwrap();
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
        let decision = register_gateway(&b.state, &id("east"), &node("gw-1"), &listeners);
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
fn a_revoked_cluster_comes_back_only_after_it_was_forgotten() {
    let mut b = Bench::new();
    b.member("east", "10.0.0.0/16").unwrap();
    let unused = b.token("east", Role::Gateway);
    let decision = revoke(&b.state, &id("east"), b.now).unwrap();
    assert_eq!(decision.cut, Some(Cut::Cluster(id("east"))));
    b.commit(Ok(decision)).unwrap();
    assert_eq!(
        code(b.state.member(&id("east")).map(|_| ())),
        Code::MemberRevoked
    );
    assert_eq!(b.state.tombstones["east"].reason, Gone::Revoked);
    assert_eq!(
        code(b.join(&unused, ("east", "gw-2"), "k", &CidrRequests::default())),
        Code::TokenRevoked
    );
    let request = TokenCreate {
        cluster: id("east"),
        role: Role::Member,
        ttl_seconds: 1,
    };
    let token = Token::from_parts(50, [7; 32]);
    assert_eq!(
        code(create_token(&b.state, &request, &token, b.now)),
        Code::MemberRevoked
    );
    let decision = forget(&b.state, &id("east"), b.now);
    b.commit(decision).unwrap();
    b.member("east", "10.0.0.0/16").unwrap();
    assert_eq!(code(forget(&b.state, &id("nobody"), b.now)), Code::NotFound);
    assert_eq!(code(revoke(&b.state, &id("nobody"), b.now)), Code::NotFound);
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

#[test]
fn a_preflight_says_what_a_join_would_and_burns_nothing() {
    let mut b = Bench::new();
    b.member("west", "10.0.0.0/16").unwrap();
    b.register(("west", "gw-1"), 1, "192.0.2.1:51820").unwrap();
    let token = b.token("east", Role::Member);
    let ask = |b: &Bench, block: &str| {
        let request = PreflightRequest {
            fleet: "f1".parse().unwrap(),
            token: token.clone(),
            cluster: id("east"),
            cidrs: pods(&[block]),
        };
        preflight(&b.state, &request, b.now).unwrap()
    };
    let report = ask(&b, "10.0.0.0/8");
    assert_eq!(report.conflicts.len(), 1);
    let others: Vec<String> = report
        .others
        .iter()
        .map(|o| format!("{} {}", o.allocation.kind, o.allocation.cidr))
        .collect();
    assert_eq!(
        others,
        [
            "pod 10.0.0.0/16",
            "infra 198.19.0.1/32",
            "infra fd12:3456:789a::1/128"
        ]
    );
    let promised = ask(&b, "auto/16");
    assert!(promised.conflicts.is_empty());
    let grant = b
        .join(&token, ("east", "gw-1"), "k", &pods(&["auto/16"]))
        .unwrap();
    assert_eq!(grant.allocations, promised.allocations);
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

#[test]
fn a_superseded_certificate_is_renewed_but_written_down() {
    let own = NodeKey {
        cluster: id("east"),
        seat: Seat::Gateway,
        node: node("gw-1"),
    };
    let enrolment = Enrolment {
        role: Role::Member,
        key: csr("k").key,
        serial: "02".into(),
        request: csr("k").request,
    };
    let action = |serial: &str, csr: &Csr| {
        renew(&own, &enrolment, serial, csr)
            .unwrap()
            .note
            .unwrap()
            .action
    };
    let next = Csr {
        request: Fingerprint::of(b"another request"),
        ..csr("k")
    };
    assert_eq!(action("02", &next), "certificate.renew");
    assert_eq!(
        action("01", &csr("k")),
        "certificate.renew",
        "the same request again"
    );
    assert_eq!(action("01", &next), "certificate.clone-suspected");
    assert_eq!(
        code(renew(&own, &enrolment, "02", &csr("other"))),
        Code::Forbidden
    );
}

#[test]
fn records_survive_their_rows() {
    let mut b = Bench::new();
    b.member("east", "10.0.0.0/16").unwrap();
    b.register(("east", "gw-1"), 1, "192.0.2.1:51820").unwrap();
    let decision = leave(&b.state, &id("east"), &node("gw-1"), false, b.now).unwrap();
    for effect in decision.effects {
        let row = effect.row().unwrap();
        let Some(body) = &row.body else { continue };
        let again = Effect::from_row(row.table, &row.key, body)
            .unwrap()
            .unwrap();
        assert_eq!(again.row().unwrap(), row);
    }
    assert!(Effect::from_row(Table::Held, "east/pod", "{}").is_err());
    assert!(Effect::from_row(Table::Clusters, "east", "{").is_err());
    assert!(Effect::from_row(Table::Enrolments, "east/boss/n", "{}").is_err());
    assert!(
        Effect::from_row(Table::Fleet, "other", "x")
            .unwrap()
            .is_none()
    );
}

/// What can happen to a fleet.
#[derive(Debug, Clone)]
enum Happening {
    Join(u8, Vec<String>),
    Leave(u8),
    Revoke(u8),
    Forget(u8),
    Reserve(u8, String),
    Release(String),
    Gateway(u8, u8),
    Stock(u8, String),
    Wait(u64),
}

fn block() -> impl Strategy<Value = String> {
    prop_oneof![
        (0u8..4, 12u8..26).prop_map(|(n, len)| Cidr::containing(
            [10, 32 + n, n << 6, 0].into(),
            len
        )
        .to_string()),
        (14u8..20).prop_map(|len| format!("auto/{len}")),
        (0u8..4, 40u8..60).prop_map(|(n, len)| Cidr::containing(
            [0xfd00, u16::from(n), 0, 0, 0, 0, 0, 0].into(),
            len
        )
        .to_string()),
    ]
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        4 => (0u8..6, prop::collection::vec(block(), 1..4)).prop_map(|(c, b)| Happening::Join(c, b)),
        1 => (0u8..6).prop_map(Happening::Leave),
        1 => (0u8..6).prop_map(Happening::Revoke),
        1 => (0u8..6).prop_map(Happening::Forget),
        2 => (0u8..6, block()).prop_map(|(c, b)| Happening::Reserve(c, b)),
        1 => block().prop_map(Happening::Release),
        2 => (0u8..6, 0u8..40).prop_map(|(c, e)| Happening::Gateway(c, e)),
        1 => (0u8..6, block()).prop_map(|(c, b)| Happening::Stock(c, b)),
        1 => (0u64..20).prop_map(Happening::Wait),
    ]
}

fn happens(b: &mut Bench, what: &Happening) {
    let name = |c: u8| format!("c{c}");
    match what {
        Happening::Join(c, blocks) => {
            if b.state.revoked.contains_key(&id(&name(*c))) {
                return;
            }
            let token = b.token(&name(*c), Role::Member);
            let texts: Vec<&str> = blocks.iter().map(String::as_str).collect();
            let _ = b.join(&token, (&name(*c), "gw-1"), &name(*c), &pods(&texts));
        }
        Happening::Leave(c) => {
            let decision = leave(&b.state, &id(&name(*c)), &node("gw-1"), true, b.now);
            let _ = b.commit(decision);
        }
        Happening::Revoke(c) => {
            let decision = revoke(&b.state, &id(&name(*c)), b.now);
            let _ = b.commit(decision);
        }
        Happening::Forget(c) => {
            let decision = forget(&b.state, &id(&name(*c)), b.now);
            let _ = b.commit(decision);
        }
        Happening::Reserve(c, block) => {
            let request = Reservation {
                cluster: id(&name(*c)),
                kind: Kind::Pod,
                cidr: block.parse().unwrap(),
            };
            let decision = reserve(&b.state, &request);
            let _ = b.commit(decision);
        }
        Happening::Release(block) => {
            if let Ok(block) = block.parse() {
                let decision = release(&b.state, block);
                let _ = b.commit(decision);
            }
        }
        Happening::Gateway(c, e) => {
            let _ = b.register(
                (&name(*c), "gw-1"),
                c + 1,
                &format!("10.{}.0.1:51820", 30 + e),
            );
        }
        Happening::Stock(c, block) => {
            let Ok(block) = block.parse::<Cidr>() else {
                return;
            };
            let request = StockGateway {
                public_key: key(c + 100),
                endpoint: format!("192.0.2.{c}:51820").parse().unwrap(),
                probe: None,
                allocations: vec![Allocation {
                    kind: Kind::Pod,
                    cidr: block,
                    exported: true,
                }],
            };
            let decision =
                add_stock_gateway(&b.state, &id(&name(*c)), &node("wg"), &request, b.now);
            let _ = b.commit(decision);
        }
        Happening::Wait(minutes) => {
            b.now = b.now.plus(std::time::Duration::from_mins(*minutes));
            b.sweep();
        }
    }
}

/// No two routed blocks meet, of whatever owners, nor what is held for others; and the index is what a
/// fresh start would make of the records.
fn check(state: &State) -> Result<(), TestCaseError> {
    let mut routed: BTreeMap<Cidr, ClusterId> = BTreeMap::new();
    let mut all: Vec<(ClusterId, Cidr, bool)> = Vec::new();
    for (cluster, record) in &state.clusters {
        for allocation in &record.allocations {
            prop_assert!(routed.insert(allocation.cidr, cluster.clone()).is_none());
            all.push((cluster.clone(), allocation.cidr, true));
        }
        for gateway in record.gateways.values() {
            all.extend(
                gateway
                    .inner
                    .iter()
                    .map(|ip| (cluster.clone(), Cidr::host(*ip), true)),
            );
            let endpoints = gateway.listeners.iter().flat_map(|l| &l.candidates);
            all.extend(endpoints.map(|e| (cluster.clone(), Cidr::host(e.ip()), false)));
        }
    }
    for (i, (owner, block, is_routed)) in all.iter().enumerate() {
        for (other, second, other_routed) in &all[..i] {
            let both_endpoints = !is_routed && !other_routed;
            prop_assert!(
                both_endpoints || block.common(*second).is_none(),
                "{owner} {block} meets {other} {second}"
            );
        }
        for held in state
            .held_blocks()
            .filter(|h| *is_routed && h.cluster != *owner)
        {
            prop_assert!(
                held.allocation.cidr.common(*block).is_none(),
                "{owner} {block} meets what is held for {}",
                held.cluster
            );
        }
    }
    let mut claims = all.len() + state.held.len();
    // The two pools of inner addresses are the broker's.
    claims += 2;
    prop_assert_eq!(state.index().len(), claims);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn whatever_happens_no_two_routed_blocks_meet(story in prop::collection::vec(happening(), 1..60)) {
        let mut b = Bench::new();
        for what in &story {
            happens(&mut b, what);
            check(&b.state)?;
        }
    }
}
