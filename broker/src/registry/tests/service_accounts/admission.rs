//! How such a cluster is admitted, again or anew, and who is not.

use super::*;

#[test]
fn an_admitted_cluster_has_blocks_and_nobody_in_it_until_nodes_enrol() {
    let (mut b, signer) = (Bench::new(), Signer::ec("k"));
    b.east(&signer);
    assert_eq!(b.state.clusters["east"].allocations.len(), 1);
    assert!(b.state.enrolments.is_empty());
    let (gateway, cut, action) = b
        .enrol("east", 1, &signer.token(&of("subsea-gateway", "n1")), "k1")
        .unwrap();
    assert_eq!((gateway.role, gateway.node), (Role::Gateway, node("n1")));
    assert_eq!(gateway.allocations, b.state.clusters["east"].allocations);
    assert_eq!((cut, action), (None, "node.enrol"));
    let (agent, ..) = b
        .enrol("east", 1, &signer.token(&of("subsea-agent", "n1")), "k2")
        .unwrap();
    assert_eq!(agent.role, Role::Agent);
    assert_eq!(b.state.enrolments.len(), 2);
    b.register(("east", "n1"), 1, "192.0.2.1:51820").unwrap();
}

#[test]
fn the_same_admission_again_has_the_same_answer_and_changes_nothing() {
    let (mut b, signer) = (Bench::new(), Signer::ec("k"));
    let token = b.token("east", Role::Member);
    let cidrs = pods(&["auto/16"]);
    let first = b.admit(&token, "east", 1, &[&signer], &cidrs).unwrap();
    let revision = b.revision();
    // Even past the token's time: the answer may have been lost for long.
    b.now = b.now.plus(std::time::Duration::from_hours(1));
    assert_eq!(
        b.admit(&token, "east", 1, &[&signer], &cidrs).unwrap(),
        first
    );
    assert_eq!(b.revision(), revision);
    let other = b.admit(&token, "east", 2, &[&signer], &cidrs);
    assert_eq!(code(other), Code::TokenUsed, "with another credential");
    assert_eq!(
        code(b.join(&token, ("east", "gw-1"), "k", &cidrs)),
        Code::TokenUsed,
        "as a bare join"
    );
    // Once the credential was replaced, the old answer is void.
    let fresh = b.token("east", Role::Member);
    b.admit(&fresh, "east", 2, &[&signer], &cidrs).unwrap();
    assert_eq!(
        code(b.admit(&token, "east", 1, &[&signer], &cidrs)),
        Code::TokenUsed
    );
}

#[test]
fn a_fresh_token_and_the_credential_change_blocks_and_keys_and_keep_the_nodes() {
    let (mut b, old, new) = (Bench::new(), Signer::ec("k"), Signer::rsa("k2"));
    b.east(&old);
    b.enrol("east", 1, &old.token(&of("subsea-gateway", "n1")), "k1")
        .unwrap();
    b.register(("east", "n1"), 1, "192.0.2.1:51820").unwrap();
    let token = b.token("east", Role::Member);
    let wanted = pods(&["10.0.0.0/17", "10.3.0.0/16"]);
    let blocks = b.admit(&token, "east", 1, &[&new], &wanted).unwrap();
    assert_eq!(blocks.len(), 2);
    assert_eq!(b.state.clusters["east"].gateways.len(), 1);
    assert_eq!(b.state.enrolments.len(), 1);
    let n2 = of("subsea-gateway", "n2");
    let refused = b.enrol("east", 1, &old.token(&n2), "k2").unwrap_err();
    assert_eq!(reason(&refused), "unknown-key");
    b.enrol("east", 1, &new.token(&n2), "k2").unwrap();
}

#[test]
fn a_fresh_token_and_a_key_on_record_change_the_credential_and_keep_the_nodes() {
    let (mut b, old, new) = (Bench::new(), Signer::ec("k"), Signer::rsa("k2"));
    b.east(&old);
    b.enrol("east", 1, &old.token(&of("subsea-gateway", "n1")), "k1")
        .unwrap();
    // The Secret is lost, and the API server is about to sign with another key.
    let token = b.token("east", Role::Member);
    b.admit(&token, "east", 2, &[&old, &new], &pods(&["10.0.0.0/16"]))
        .unwrap();
    assert_eq!(b.state.enrolments.len(), 1);
    let n2 = of("subsea-gateway", "n2");
    assert_eq!(
        code(b.enrol("east", 1, &new.token(&n2), "k2")),
        Code::CredentialUnknown
    );
    b.enrol("east", 2, &new.token(&n2), "k2").unwrap();
    b.enrol("east", 2, &old.token(&of("subsea-agent", "n3")), "k3")
        .unwrap();
}

#[test]
fn a_fresh_token_alone_takes_no_cluster_over() {
    let (mut b, east, other) = (Bench::new(), Signer::ec("k"), Signer::ec("k"));
    b.east(&east);
    let before = b.state.clusters["east"].allocations.clone();
    let revision = b.revision();
    let (token, blocks) = (b.token("east", Role::Member), pods(&["10.3.0.0/16"]));
    let refused = b.admit(&token, "east", 2, &[&other], &blocks).unwrap_err();
    assert_eq!(refused.code, Code::ClusterExists);
    let hint = refused.hint.unwrap();
    assert!(hint.contains("another id") && hint.contains("cluster forget east"));
    // Nor does the public key of the cluster beside one's own.
    let own = Signer::ec("own");
    let refused = b.admit(&token, "east", 2, &[&own, &east], &blocks);
    assert_eq!(code(refused), Code::ClusterExists);
    assert_eq!(b.state.clusters["east"].allocations, before);
    assert_eq!(b.revision(), revision);
    b.enrol("east", 1, &east.token(&of("subsea-agent", "n1")), "k1")
        .unwrap();
    // An operator who means it.
    let decision = forget(&b.state, &id("east"), b.now);
    b.commit(decision).unwrap();
    b.admit(&token, "east", 2, &[&other], &blocks).unwrap();
}

#[test]
fn a_preflight_foresees_that_the_id_is_another_clusters() {
    let (mut b, east, other) = (Bench::new(), Signer::ec("k"), Signer::ec("k"));
    b.east(&east);
    b.member("west", "10.1.0.0/16").unwrap();
    let ask = |b: &mut Bench, cluster: &str, secret: Option<u8>, signer: &Signer| {
        let request = PreflightRequest {
            fleet: "f1".parse().unwrap(),
            token: b.token(cluster, Role::Member),
            cluster: id(cluster),
            cidrs: pods(&["10.3.0.0/16"]),
            admission: Some(PreflightAdmission {
                credential: secret.map(credential),
                service_accounts: serde_json::from_value(accounts(&[signer])).unwrap(),
            }),
        };
        preflight(&b.state, &request, b.now)
    };
    for secret in [None, Some(2)] {
        let refused = ask(&mut b, "east", secret, &other);
        assert_eq!(code(refused), Code::ClusterExists);
    }
    assert_eq!(
        code(ask(&mut b, "west", None, &other)),
        Code::ClusterExists,
        "a member of another kind"
    );
    assert_eq!(code(ask(&mut b, "north", None, &east)), Code::KeyTaken);
    for (secret, signer) in [(None, &east), (Some(1), &other)] {
        let report = ask(&mut b, "east", secret, signer).unwrap();
        assert!(report.replaces);
        assert_eq!(report.current, b.state.clusters["east"].allocations);
    }
    let report = ask(&mut b, "north", None, &other).unwrap();
    assert!(!report.replaces && report.current.is_empty());
}

#[test]
fn who_shows_no_token_of_the_keys_registers_none_of_them() {
    let (mut b, theirs, own) = (Bench::new(), Signer::ec("k"), Signer::ec("own"));
    let token = b.token("west", Role::Member);
    let blocks = pods(&["10.1.0.0/16"]);
    let operator = of("subsea-operator", "n1");
    let mut elsewhere = operator.clone();
    elsewhere["aud"] = json!(["https://kubernetes.default.svc"]);
    let late = claims("subsea-operator", "n1", T0.0 / 1000 - 7200);
    for (shown, why) in [
        (own.token(&operator), "unknown-key"),
        // With the name of a key of theirs.
        (Signer::ec("k").token(&operator), "signature"),
        (theirs.token(&elsewhere), "audience"),
        (theirs.token(&late), "expired"),
        (theirs.token(&of("subsea-gateway", "n1")), "account"),
        (theirs.token(&of("default", "n1")), "account"),
    ] {
        let refused = b.admit_with(&token, ("west", 1), &[&theirs], &blocks, &shown);
        assert_eq!(reason(&refused.unwrap_err()), why);
    }
    assert!(b.state.admissions.is_empty() && b.state.clusters.is_empty());
    let job = theirs.token(&of("subsea-admission", "n1"));
    b.admit_with(&token, ("west", 1), &[&theirs], &blocks, &job)
        .unwrap();
}

#[test]
fn refused_admissions_burn_nothing() {
    let (mut b, signer) = (Bench::new(), Signer::ec("k"));
    let pod = pods(&["10.1.0.0/16"]);
    b.member("west", "10.0.0.0/16").unwrap();
    let gateway = b.token("east", Role::Gateway);
    assert_eq!(
        code(b.admit(&gateway, "east", 1, &[&signer], &pod)),
        Code::TokenMismatch
    );
    let token = b.token("east", Role::Member);
    assert_eq!(
        code(b.admit(&token, "north", 1, &[&signer], &pod)),
        Code::TokenMismatch
    );
    assert_eq!(
        code(b.admit(&token, "east", 7, &[&signer], &pod)),
        Code::BadRequest,
        "the token's own secret is no credential"
    );
    let meets = b.admit(&token, "east", 1, &[&signer], &pods(&["10.0.0.0/17"]));
    assert_eq!(code(meets), Code::CidrConflict);
    let none = b.admit(&token, "east", 1, &[&signer], &CidrRequests::default());
    assert_eq!(code(none), Code::BadRequest);
    assert!(b.state.admissions.is_empty());
    b.admit(&token, "east", 1, &[&signer], &pod).unwrap();
}

#[test]
fn two_clusters_do_not_share_a_key() {
    let (mut b, signer, own) = (Bench::new(), Signer::ec("k"), Signer::ec("own"));
    b.east(&signer);
    let token = b.token("west", Role::Member);
    let pod = pods(&["10.1.0.0/16"]);
    assert_eq!(
        code(b.admit(&token, "west", 2, &[&signer], &pod)),
        Code::KeyTaken
    );
    b.admit(&token, "west", 2, &[&own], &pod).unwrap();
    let keys: Jwks = serde_json::from_value(json!({"keys": [signer.jwk()]})).unwrap();
    assert_eq!(
        code(set_service_account_keys(&b.state, &id("west"), &keys)),
        Code::KeyTaken
    );
}

#[test]
fn a_cluster_is_admitted_one_way_or_the_other() {
    let (mut b, signer) = (Bench::new(), Signer::ec("k"));
    b.member("west", "10.1.0.0/16").unwrap();
    let token = b.token("west", Role::Member);
    assert_eq!(
        code(b.admit(&token, "west", 1, &[&signer], &pods(&["10.1.0.0/16"]))),
        Code::ClusterExists
    );
    b.east(&signer);
    b.enrol("east", 1, &signer.token(&of("subsea-gateway", "n1")), "k1")
        .unwrap();
    let token = b.token("east", Role::Member);
    for (name, key) in [("n1", "k1"), ("n1", "other"), ("gw-1", "k1")] {
        let refused = b.join(&token, ("east", name), key, &pods(&["10.0.0.0/16"]));
        assert_eq!(code(refused), Code::ClusterExists, "{name} {key}");
    }
    assert_eq!(
        b.state.enrolments[&seat("n1", Seat::Gateway)].role,
        Role::Gateway
    );
    // A stock peer's cluster has no founder either, and is not admitted over.
    let stock = StockGateway {
        public_key: key(9),
        endpoint: "192.0.2.9:51820".parse().unwrap(),
        probe: None,
        allocations: vec![Allocation {
            kind: Kind::Pod,
            cidr: cidr("10.9.0.0/16"),
            exported: true,
        }],
    };
    let decision = add_stock_gateway(&b.state, &id("stock"), &node("wg"), &stock, b.now);
    b.commit(decision).unwrap();
    let token = b.token("stock", Role::Member);
    assert_eq!(
        code(b.admit(
            &token,
            "stock",
            3,
            &[&Signer::ec("s")],
            &pods(&["10.9.0.0/16"])
        )),
        Code::ClusterExists
    );
}
