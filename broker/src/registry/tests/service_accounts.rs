//! Clusters whose nodes enrol by their service accounts.

mod admission;

use serde_json::{Value, json};
use subsea_api::Jwks;
use subsea_api::enrolment::{AdmitRequest, EnrolRequest, WithdrawRequest};
use subsea_api::member::PreflightAdmission;

use super::*;
use crate::auth::service_account::signer::{Signer, accounts, claims};

const CREDENTIAL: u8 = 1;

fn credential(n: u8) -> Token {
    Token::from_parts(u32::from(n), [n; 32])
}

/// Claims of now.
fn of(account: &str, name: &str) -> Value {
    claims(account, name, T0.0 / 1000)
}

impl Bench {
    pub(super) fn admit(
        &mut self,
        token: &Token,
        cluster: &str,
        secret: u8,
        signers: &[&Signer],
        cidrs: &CidrRequests,
    ) -> Result<Vec<Allocation>, Problem> {
        let now = claims("subsea-operator", "n1", self.now.0 / 1000);
        let own = signers[0].token(&now);
        self.admit_with(token, (cluster, secret), signers, cidrs, &own)
    }

    /// The same with this token of the cluster's API server.
    fn admit_with(
        &mut self,
        token: &Token,
        (cluster, secret): (&str, u8),
        signers: &[&Signer],
        cidrs: &CidrRequests,
        own: &str,
    ) -> Result<Vec<Allocation>, Problem> {
        let request = AdmitRequest {
            fleet: "f1".parse().unwrap(),
            cluster: id(cluster),
            token: token.clone(),
            credential: credential(secret),
            cidrs: cidrs.clone(),
            service_accounts: serde_json::from_value(accounts(signers)).unwrap(),
            service_account_token: own.parse().unwrap(),
        };
        let decision = admit(&self.state, &request, self.now);
        self.commit(decision)
    }

    /// Admits `east` with credential 1 and its key.
    fn east(&mut self, signer: &Signer) {
        let token = self.token("east", Role::Member);
        self.admit(
            &token,
            "east",
            CREDENTIAL,
            &[signer],
            &pods(&["10.0.0.0/16"]),
        )
        .unwrap();
    }

    fn enrol_request(cluster: &str, secret: u8, token: &str) -> EnrolRequest {
        EnrolRequest {
            fleet: "f1".parse().unwrap(),
            cluster: id(cluster),
            credential: credential(secret),
            service_account_token: token.parse().unwrap(),
            csr_pem: String::new(),
        }
    }

    fn enrol(
        &mut self,
        cluster: &str,
        secret: u8,
        token: &str,
        key: &str,
    ) -> Result<(Enrolled, Option<Cut>, &'static str), Problem> {
        let request = Self::enrol_request(cluster, secret, token);
        let decision = enrol_node(&self.state, &request, &csr(key), self.now)?;
        let (cut, action) = (decision.cut.clone(), decision.note.clone().unwrap().action);
        let answer = self.commit(Ok(decision))?;
        Ok((answer, cut, action))
    }

    fn withdraw(&mut self, cluster: &str, token: &str) -> Result<bool, Problem> {
        let request = WithdrawRequest {
            fleet: "f1".parse().unwrap(),
            cluster: id(cluster),
            service_account_token: token.parse().unwrap(),
        };
        let decision = withdraw(&self.state, &request, self.now)?;
        let changed = !decision.effects.is_empty();
        self.commit(Ok(decision))?;
        Ok(changed)
    }
}

fn seat(node_name: &str, seat: Seat) -> NodeKey {
    NodeKey {
        cluster: id("east"),
        seat,
        node: node(node_name),
    }
}

fn reason(problem: &Problem) -> String {
    assert_eq!(problem.code, Code::ServiceAccountRefused, "{problem:?}");
    assert!(problem.hint.is_some());
    problem.details.as_ref().unwrap()["reason"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[test]
fn credential_and_token_must_both_be_this_clusters() {
    let (mut b, east, west) = (Bench::new(), Signer::ec("k"), Signer::ec("k"));
    b.east(&east);
    let token = b.token("west", Role::Member);
    b.admit(&token, "west", 2, &[&west], &pods(&["10.1.0.0/16"]))
        .unwrap();
    let (of_east, of_west) = (
        east.token(&of("subsea-gateway", "n1")),
        west.token(&of("subsea-gateway", "n1")),
    );
    for (cluster, secret, token) in [
        ("east", 3, &of_east),
        ("east", 2, &of_east),
        ("west", 1, &of_west),
        ("nobody", 1, &of_east),
    ] {
        let refused = b.enrol(cluster, secret, token, "k1").unwrap_err();
        assert_eq!(refused.code, Code::CredentialUnknown, "{cluster} {secret}");
        // Who shows a wrong one is not told whether there is such a cluster.
        let message = refused.message.replace(cluster, "X");
        assert_eq!(message, "the credential enrols no node of cluster X");
    }
    let refused = b.enrol("east", 1, &of_west, "k1").unwrap_err();
    assert_eq!(reason(&refused), "signature");
    let mut foreign = Bench::enrol_request("east", 1, &of_east);
    foreign.fleet = "f2".parse().unwrap();
    assert_eq!(
        code(enrol_node(&b.state, &foreign, &csr("k1"), b.now)),
        Code::FleetMismatch
    );
    assert!(b.state.enrolments.is_empty());
    b.enrol("east", 1, &of_east, "k1").unwrap();
    // A bare member has no credential that anybody could show.
    b.member("north", "10.2.0.0/16").unwrap();
    assert_eq!(
        code(b.enrol("north", 1, &of_east, "k1")),
        Code::CredentialUnknown
    );
}

#[test]
fn tokens_that_prove_no_node_enrol_nothing() {
    let (mut b, signer) = (Bench::new(), Signer::ec("k"));
    b.east(&signer);
    let mut attempt = |claims: &Value, why: &str| {
        let refused = b.enrol("east", 1, &signer.token(claims), "k1").unwrap_err();
        assert_eq!(reason(&refused), why);
    };
    let mut unbound = of("subsea-gateway", "n1");
    unbound["kubernetes.io"] = json!({"namespace": "subsea"});
    attempt(&unbound, "node");
    attempt(&of("subsea-operator", "n1"), "account");
    attempt(&of("default", "n1"), "account");
    let mut other = of("subsea-gateway", "n1");
    other["sub"] = json!("system:serviceaccount:default:subsea-gateway");
    attempt(&other, "account");
    let mut other = of("subsea-gateway", "n1");
    other["aud"] = json!(["https://kubernetes.default.svc"]);
    attempt(&other, "audience");
    attempt(
        &claims("subsea-gateway", "n1", T0.0 / 1000 - 7200),
        "expired",
    );
    attempt(
        &claims("subsea-gateway", "n1", T0.0 / 1000 + 7200),
        "not-yet",
    );
    assert!(b.state.enrolments.is_empty());
}

#[test]
fn a_node_with_a_new_key_takes_the_place_of_the_old_one_and_cuts_its_stream() {
    let (mut b, signer) = (Bench::new(), Signer::ec("k"));
    b.east(&signer);
    let token = signer.token(&of("subsea-gateway", "n1"));
    b.enrol("east", 1, &token, "old").unwrap();
    b.register(("east", "n1"), 1, "192.0.2.1:51820").unwrap();
    let (_, cut, action) = b.enrol("east", 1, &token, "old").unwrap();
    assert_eq!((cut, action), (None, "certificate.reissue"), "a repeat");
    let request = Bench::enrol_request("east", 1, &token);
    let decision = enrol_node(&b.state, &request, &csr("new"), b.now).unwrap();
    assert_eq!(decision.cut, Some(Cut::Node(seat("n1", Seat::Gateway))));
    let note = decision.note.clone().unwrap();
    assert_eq!(
        (note.action, note.subject.as_str()),
        ("node.enrol", "east/n1")
    );
    assert!(
        note.detail.contains("in place of an earlier key"),
        "{note:?}"
    );
    b.commit(Ok(decision)).unwrap();
    let own = seat("n1", Seat::Gateway);
    assert!(b.state.check_holder(&own, &csr("new").key).is_ok());
    assert_eq!(
        code(b.state.check_holder(&own, &csr("old").key).map(|_| ())),
        Code::NotMember
    );
    // Its record stays until the new one registers, with a key of its own.
    b.register(("east", "n1"), 2, "192.0.2.1:51820").unwrap();
    assert_eq!(b.state.clusters["east"].gateways.len(), 1);
}

#[test]
fn a_stock_peers_name_is_not_taken_over() {
    let (mut b, signer) = (Bench::new(), Signer::ec("k"));
    b.east(&signer);
    let stock = StockGateway {
        public_key: key(9),
        endpoint: "192.0.2.9:51820".parse().unwrap(),
        probe: None,
        allocations: Vec::new(),
    };
    let decision = add_stock_gateway(&b.state, &id("east"), &node("n1"), &stock, b.now);
    b.commit(decision).unwrap();
    assert_eq!(
        code(b.enrol("east", 1, &signer.token(&of("subsea-gateway", "n1")), "k1")),
        Code::NameTaken
    );
    b.enrol("east", 1, &signer.token(&of("subsea-agent", "n1")), "k1")
        .unwrap();
}

#[test]
fn a_gateway_that_removed_itself_can_come_back() {
    let (mut b, signer) = (Bench::new(), Signer::ec("k"));
    b.east(&signer);
    let token = signer.token(&of("subsea-gateway", "n1"));
    b.enrol("east", 1, &token, "k1").unwrap();
    b.register(("east", "n1"), 1, "192.0.2.1:51820").unwrap();
    let decision = remove_gateway(&b.state, &id("east"), &node("n1"), Role::Gateway, b.now);
    b.commit(decision).unwrap();
    assert!(b.state.enrolments.is_empty());
    b.enrol("east", 1, &token, "k1").unwrap();
    b.register(("east", "n1"), 1, "192.0.2.1:51820").unwrap();
}

#[test]
fn the_operator_withdraws_a_cluster_and_may_ask_twice() {
    let (mut b, signer) = (Bench::new(), Signer::ec("k"));
    b.east(&signer);
    b.enrol("east", 1, &signer.token(&of("subsea-gateway", "n1")), "k1")
        .unwrap();
    b.register(("east", "n1"), 1, "192.0.2.1:51820").unwrap();
    for account in ["subsea-gateway", "subsea-agent", "default"] {
        let refused = b
            .withdraw("east", &signer.token(&of(account, "n1")))
            .unwrap_err();
        assert_eq!(reason(&refused), "account");
    }
    // The command line's token is bound to no pod, and so to no node.
    let mut operator = of("subsea-operator", "n1");
    operator["kubernetes.io"] = json!({"namespace": "subsea"});
    let thief = Signer::ec("k").token(&operator);
    let refused = b.withdraw("east", &thief).unwrap_err();
    assert_eq!(reason(&refused), "signature");
    let operator = signer.token(&operator);
    b.member("west", "10.1.0.0/16").unwrap();
    let refused = b.withdraw("west", &operator).unwrap_err();
    assert_eq!(reason(&refused), "not-admitted");
    assert!(b.withdraw("east", &operator).unwrap());
    assert_eq!(b.state.tombstones["east"].reason, Gone::Left);
    assert!(b.state.admissions.is_empty() && !b.state.clusters.contains_key("east"));
    assert!(
        b.state
            .enrolments
            .keys()
            .all(|key| key.cluster != id("east"))
    );
    assert!(!b.withdraw("east", &operator).unwrap(), "again");
    b.east(&signer);
}

#[test]
fn the_credential_of_a_cluster_that_is_gone_enrols_nothing() {
    type End = fn(&State, &ClusterId, UnixMillis) -> Result<Decision<()>, Problem>;
    for end in [revoke as End, forget] {
        let (mut b, signer) = (Bench::new(), Signer::ec("k"));
        b.east(&signer);
        let token = signer.token(&of("subsea-gateway", "n1"));
        b.enrol("east", 1, &token, "k1").unwrap();
        let decision = end(&b.state, &id("east"), b.now);
        b.commit(decision).unwrap();
        assert!(b.state.admissions.is_empty());
        assert_eq!(
            code(b.enrol("east", 1, &token, "k1")),
            Code::CredentialUnknown
        );
        let operator = signer.token(&of("subsea-operator", "n1"));
        assert!(!b.withdraw("east", &operator).unwrap());
        if b.state.revoked.contains_key("east") {
            let decision = forget(&b.state, &id("east"), b.now);
            b.commit(decision).unwrap();
        }
        // Nor does it in what comes after it, bare or not.
        b.member("east", "10.0.0.0/16").unwrap();
        assert_eq!(
            code(b.enrol("east", 1, &token, "k1")),
            Code::CredentialUnknown
        );
    }
}

#[test]
fn a_gateway_replaces_the_keys() {
    let (mut b, old, new) = (Bench::new(), Signer::ec("k1"), Signer::ec("k2"));
    b.east(&old);
    let keys = |signers: &[&Signer]| -> Jwks {
        serde_json::from_value(accounts(signers)["keys"].clone()).unwrap()
    };
    let revision = b.revision();
    let set = |b: &mut Bench, keys: &Jwks| {
        let decision = set_service_account_keys(&b.state, &id("east"), keys)?;
        let changed = !decision.effects.is_empty();
        b.commit(Ok(decision)).map(|()| changed)
    };
    assert!(!set(&mut b, &keys(&[&old])).unwrap());
    assert!(set(&mut b, &keys(&[&old, &new])).unwrap());
    let token = new.token(&of("subsea-agent", "n1"));
    b.enrol("east", 1, &token, "a1").unwrap();
    assert!(set(&mut b, &keys(&[&new])).unwrap());
    let refused = b
        .enrol("east", 1, &old.token(&of("subsea-agent", "n2")), "a2")
        .unwrap_err();
    assert_eq!(reason(&refused), "unknown-key");
    assert_eq!(b.revision(), revision, "the fleet sees nothing of it");
    b.member("west", "10.1.0.0/16").unwrap();
    let bare = set_service_account_keys(&b.state, &id("west"), &keys(&[&old]));
    assert_eq!(code(bare), Code::NotFound);
    let nobody = set_service_account_keys(&b.state, &id("nobody"), &keys(&[&old]));
    assert_eq!(code(nobody), Code::NotMember);
}

#[test]
fn admissions_survive_their_rows_and_show_no_secret() {
    let (mut b, signer) = (Bench::new(), Signer::rsa("k"));
    b.east(&signer);
    let effect = Effect::Admission(
        id("east"),
        Some(Box::new(b.state.admissions["east"].clone())),
    );
    let row = effect.row().unwrap();
    assert_eq!((row.table, row.key.as_str()), (Table::Admissions, "east"));
    let body = row.body.clone().unwrap();
    let again = Effect::from_row(row.table, &row.key, &body)
        .unwrap()
        .unwrap();
    assert_eq!(again.row().unwrap(), row);
    let secret = credential(1).expose();
    assert!(!body.contains(&secret[9..]), "{body}");
    assert!(Effect::from_row(Table::Admissions, "east", "{}").is_err());
    // A token that was burnt by an earlier version names its node.
    let used: TokenUse =
        serde_json::from_value(json!({"node": "gw-1", "key": "00", "at": 1})).unwrap();
    assert_eq!(used.node, Some(node("gw-1")));
    let old = json!({"role": "member", "key": "00", "serial": "01", "request": "00"});
    let old: Enrolment = serde_json::from_value(old).unwrap();
    assert_eq!(old.at, UnixMillis(0));
}

#[test]
fn nodes_that_come_and_go_do_not_fill_the_store() {
    let (mut b, signer) = (Bench::new(), Signer::ec("k"));
    b.east(&signer);
    b.enrol("east", 1, &signer.token(&of("subsea-gateway", "n1")), "k1")
        .unwrap();
    for n in 0..10_000u64 {
        let enrolment = Enrolment {
            role: Role::Agent,
            key: csr("a").key,
            serial: "01".into(),
            request: csr("a").request,
            at: UnixMillis(T0.0 + (n + 5000) % 10_000),
        };
        let key = seat(&format!("a{n}"), Seat::Agent);
        b.state.apply(Effect::Enrolment(key, Some(enrolment)));
    }
    b.enrol("east", 1, &signer.token(&of("subsea-agent", "new")), "a1")
        .unwrap();
    assert_eq!(b.state.enrolments.len(), 10_001);
    assert!(
        !b.state.enrolments.contains_key(&seat("a5000", Seat::Agent)),
        "the one that was silent for longest"
    );
    assert!(b.state.enrolments.contains_key(&seat("n1", Seat::Gateway)));
}
