//! Tokens, joins, revocations, renewals.

use super::*;

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
fn a_preflight_says_what_a_join_would_and_burns_nothing() {
    let mut b = Bench::new();
    b.member("west", "10.0.0.0/16").unwrap();
    b.register(("west", "gw-1"), 1, "192.0.2.1:51820").unwrap();
    let token = b.token("east", Role::Member);
    let ask = |b: &Bench, block: &str| {
        let request = PreflightRequest {
            admission: None,
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
        at: T0,
    };
    let action = |serial: &str, csr: &Csr| {
        renew(&own, &enrolment, serial, csr, T0)
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
        code(renew(&own, &enrolment, "02", &csr("other"), T0)),
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
