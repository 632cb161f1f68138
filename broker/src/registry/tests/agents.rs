//! Agents: enrolled by their own tokens, without records or blocks.

use super::*;

fn agent(name: &str) -> NodeKey {
    NodeKey {
        cluster: id("east"),
        seat: Seat::Agent,
        node: node(name),
    }
}

/// A member with a gateway and an agent on the same node.
fn fleet() -> Bench {
    let mut b = Bench::new();
    b.member("east", "10.0.0.0/16").unwrap();
    b.register(("east", "gw-1"), 1, "192.0.2.1:51820").unwrap();
    enrol(&mut b, "gw-1", "agent of gw-1").unwrap();
    b
}

fn enrol(b: &mut Bench, name: &str, key: &str) -> Result<Grant, Problem> {
    let token = b.token("east", Role::Agent);
    b.join(&token, ("east", name), key, &CidrRequests::default())
}

#[test]
fn a_gateway_and_an_agent_share_a_name() {
    let mut b = fleet();
    let keys: Vec<_> = b
        .state
        .enrolments
        .keys()
        .map(|k| (k.seat, k.node.as_str()))
        .collect();
    assert_eq!(keys, [(Seat::Gateway, "gw-1"), (Seat::Agent, "gw-1")]);
    // Either goes alone.
    let decision = remove_agent(&b.state, &id("east"), &node("gw-1"));
    b.commit(decision).unwrap();
    assert!(b.state.clusters["east"].gateways.contains_key("gw-1"));
    enrol(&mut b, "gw-1", "agent of gw-1").unwrap();
    let decision = forget_gateway(&b.state, &id("east"), &node("gw-1"), b.now);
    b.commit(decision).unwrap();
    assert!(b.state.enrolments.contains_key(&agent("gw-1")));
}

#[test]
fn an_agent_brings_no_blocks_and_makes_no_revision() {
    let mut b = fleet();
    let before = b.revision();
    let token = b.token("east", Role::Agent);
    let refused = b.join(&token, ("east", "n-1"), "k", &pods(&["10.9.0.0/16"]));
    assert_eq!(code(refused), Code::BadRequest);
    // The refusal burnt nothing.
    let grant = b
        .join(&token, ("east", "n-1"), "k", &CidrRequests::default())
        .unwrap();
    assert_eq!(
        (grant.role, blocks(&grant)),
        (Role::Agent, vec!["10.0.0.0/16".to_owned()])
    );
    assert_eq!(b.revision(), before, "the fleet need not hear of agents");
    let token = b.token("east", Role::Agent);
    let report = preflight(
        &b.state,
        &PreflightRequest {
            admission: None,
            fleet: "f1".parse().unwrap(),
            token,
            cluster: id("east"),
            cidrs: CidrRequests::default(),
        },
        b.now,
    );
    assert!(report.unwrap().conflicts.is_empty());
    let token = b.token("nobody", Role::Agent);
    let refused = b.join(&token, ("nobody", "n-1"), "k", &CidrRequests::default());
    assert_eq!(code(refused), Code::NotMember);
}

#[test]
fn a_name_has_one_agent_and_the_newest_counts() {
    let mut b = fleet();
    let token = b.token("east", Role::Agent);
    let request = JoinRequest {
        fleet: "f1".parse().unwrap(),
        token,
        cluster: id("east"),
        node: node("gw-1"),
        csr_pem: String::new(),
        cidrs: CidrRequests::default(),
    };
    let now = b.now;
    let again = |key: &str| {
        let csr = csr(key);
        let join = Join {
            request: &request,
            csr: &csr,
            now,
        };
        super::join(&b.state, join).unwrap()
    };
    assert!(again("agent of gw-1").cut.is_none(), "the same agent");
    let decision = again("another machine");
    assert_eq!(
        decision.cut,
        Some(Cut::Node(agent("gw-1"))),
        "the old one is cut"
    );
    b.commit(Ok(decision)).unwrap();
    assert_eq!(b.state.enrolments.len(), 2);
    let holds = |key: &str| {
        let key = Fingerprint::of(key.as_bytes());
        b.state.check_holder(&agent("gw-1"), &key).map(|e| e.role)
    };
    assert_eq!(holds("another machine").unwrap(), Role::Agent);
    assert_eq!(code(holds("agent of gw-1")), Code::NotMember);
}

#[test]
fn an_agent_leaves_alone_and_with_its_cluster() {
    let mut b = fleet();
    enrol(&mut b, "n-1", "k1").unwrap();
    let before = b.revision();
    let decision = remove_agent(&b.state, &id("east"), &node("n-1")).unwrap();
    assert_eq!(decision.cut, Some(Cut::Node(agent("n-1"))));
    b.commit(Ok(decision)).unwrap();
    assert_eq!(b.revision(), before);
    assert!(!b.state.enrolments.contains_key(&agent("n-1")));
    assert_eq!(
        code(remove_agent(&b.state, &id("east"), &node("n-1"))),
        Code::NotFound
    );
    // Agents do not keep a cluster from leaving, and do not outlive it.
    for end in [
        |b: &Bench| leave(&b.state, &id("east"), &node("gw-1"), false, b.now),
        |b: &Bench| forget(&b.state, &id("east"), b.now),
        |b: &Bench| revoke(&b.state, &id("east"), b.now),
    ] {
        let mut b = fleet();
        enrol(&mut b, "n-1", "k1").unwrap();
        let decision = end(&b).unwrap();
        assert_eq!(decision.cut, Some(Cut::Cluster(id("east"))));
        b.commit(Ok(decision)).unwrap();
        assert!(b.state.enrolments.is_empty());
    }
}
