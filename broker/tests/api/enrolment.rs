//! Clusters whose nodes enrol by their service accounts: admission, enrolment, new keys, withdrawal, and the store.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use subsea_api::admin::{AuditEntry, ClusterInfo};
use subsea_api::enrolment::AdmitResponse;
use subsea_api::join_file::JoinFile;
use subsea_api::member::{JoinResponse, RenewResponse};
use subsea_api::{Code, Problem, Role, Token};
use subsea_broker::restore_local;

use crate::common::{Broker, Node, Refused, config};
use crate::signer::{Signer, accounts, claims};

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

fn credential(n: u8) -> String {
    Token::from_parts(u32::from(n), [n; 32]).expose()
}

fn admission(file: &JoinFile, secret: u8, signers: &[&Signer], pod: &str) -> Value {
    json!({
        "fleet": "f1", "cluster": file.cluster, "token": file.token.expose(),
        "credential": credential(secret), "cidrs": {"pod": [pod]},
        "service_accounts": accounts(signers),
        "service_account_token": signers[0].token(&claims("subsea-operator", "n1", now())),
    })
}

async fn admit(
    broker: &Broker,
    cluster: &str,
    secret: u8,
    signers: &[&Signer],
    pod: &str,
) -> AdmitResponse {
    let file = broker.token(cluster, "member").await;
    let body = admission(&file, secret, signers, pod);
    broker.anonymous().post("/v1/admit", &body).await.unwrap()
}

impl Node {
    /// Enrols with a token of `account`, signed by `signer`.
    async fn prove(
        &mut self,
        broker: &Broker,
        secret: u8,
        signer: &Signer,
        account: &str,
    ) -> Refused<JoinResponse> {
        let token = signer.token(&claims(account, &self.name, now()));
        let body = json!({
            "fleet": "f1", "cluster": self.cluster, "credential": credential(secret),
            "service_account_token": token, "csr_pem": self.csr(),
        });
        let response: JoinResponse = broker.anonymous().post("/v1/enrol", &body).await?;
        self.certificate = Some(response.certificate_pem.clone());
        Ok(response)
    }
}

fn reason(problem: &Problem) -> &str {
    assert_eq!(problem.code, Code::ServiceAccountRefused, "{problem:?}");
    problem.details.as_ref().unwrap()["reason"]
        .as_str()
        .unwrap()
}

async fn audit(broker: &Broker) -> Vec<AuditEntry> {
    broker.admin.get("/v1/admin/audit").await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_admitted_its_nodes_enrol_and_it_is_withdrawn() {
    let broker = Broker::start().await;
    let rsa = Signer::rsa("r1");
    let file = broker.token("east", "member").await;
    let body = admission(&file, 1, &[&rsa], "10.0.0.0/16");
    let client = broker.anonymous();
    let first: AdmitResponse = client.post("/v1/admit", &body).await.unwrap();
    assert_eq!(first.allocations.len(), 1);
    assert_eq!(first.broker.ca_pem, broker.ca_pem);
    let again: AdmitResponse = client.post("/v1/admit", &body).await.unwrap();
    assert_eq!(again, first);

    let mut gateway = Node::new("east", "n1");
    let joined = gateway
        .prove(&broker, 1, &rsa, "subsea-gateway")
        .await
        .unwrap();
    assert_eq!((joined.role, joined.node.as_str()), (Role::Gateway, "n1"));
    assert_eq!(joined.allocations, first.allocations);
    gateway.register(&broker, "192.0.2.1:51820").await.unwrap();
    let mut agent = Node::new("east", "n1");
    let joined = agent.prove(&broker, 1, &rsa, "subsea-agent").await.unwrap();
    assert_eq!(joined.role, Role::Agent);
    let mut stream = agent.client(&broker).watch("").await.unwrap();
    stream.next().await.unwrap();
    let renewed: RenewResponse = gateway
        .client(&broker)
        .post("/v1/renew", &json!({"csr_pem": gateway.csr()}))
        .await
        .unwrap();
    gateway.certificate = Some(renewed.certificate_pem);

    let withdrawal = |signer: &Signer, account: &str| {
        let mut claims = claims(account, "n1", now());
        claims["kubernetes.io"] = json!({"namespace": "subsea"});
        json!({"fleet": "f1", "cluster": "east", "service_account_token": signer.token(&claims)})
    };
    let body = withdrawal(&Signer::ec("r1"), "subsea-operator");
    let refused = client.post::<()>("/v1/withdraw", &body).await.unwrap_err();
    assert_eq!(reason(&refused), "algorithm");
    let body = withdrawal(&rsa, "subsea-gateway");
    let refused = client.post::<()>("/v1/withdraw", &body).await.unwrap_err();
    assert_eq!(reason(&refused), "account");
    let body = withdrawal(&rsa, "subsea-operator");
    for _ in 0..2 {
        let _: () = client.post("/v1/withdraw", &body).await.unwrap();
    }
    while stream.next().await.is_some() {}
    let refused = gateway.client(&broker).watch("").await.err().unwrap();
    assert_eq!(refused.code, Code::NotMember);
    let refused = agent
        .prove(&broker, 1, &rsa, "subsea-agent")
        .await
        .unwrap_err();
    assert_eq!(refused.code, Code::CredentialUnknown);

    let log = audit(&broker).await;
    let told: Vec<(&str, &str, &str)> = log
        .iter()
        .filter(|e| e.subject.starts_with("east"))
        .map(|e| (e.who.as_str(), e.action.as_str(), e.subject.as_str()))
        .collect();
    let token = format!("token/{}", file.token.id());
    let by = "cluster/east/service-account";
    assert_eq!(
        told,
        [
            (token.as_str(), "cluster.admit", "east"),
            (&format!("{by}/subsea-gateway/n1"), "node.enrol", "east/n1"),
            ("cluster/east/gateway/n1", "gateway.register", "east/n1"),
            (&format!("{by}/subsea-agent/n1"), "node.enrol", "east/n1"),
            ("cluster/east/gateway/n1", "certificate.renew", "east/n1"),
            (&format!("{by}/subsea-operator"), "cluster.leave", "east"),
        ]
    );
    let text = serde_json::to_string(&log).unwrap();
    assert!(
        !text.contains(&credential(1)[9..]) && !text.contains("eyJ"),
        "{text}"
    );
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_tells_of_new_keys_and_nobody_else() {
    let broker = Broker::start().await;
    let (rsa, ec) = (Signer::rsa("r1"), Signer::ec("e1"));
    admit(&broker, "east", 1, &[&rsa], "10.0.0.0/16").await;
    let mut gateway = Node::new("east", "n1");
    gateway
        .prove(&broker, 1, &rsa, "subsea-gateway")
        .await
        .unwrap();
    let mut agent = Node::new("east", "n1");
    agent.prove(&broker, 1, &rsa, "subsea-agent").await.unwrap();
    let mut late = Node::new("east", "n2");
    let refused = late
        .prove(&broker, 1, &ec, "subsea-agent")
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), "unknown-key");
    let keys = json!({"keys": accounts(&[&rsa, &ec])["keys"]});
    let put = async |client: crate::common::Client| -> Refused<()> {
        client
            .call("PUT", "/v1/service-accounts", Some(&keys))
            .await
    };
    let refused = put(broker.anonymous()).await.unwrap_err();
    assert_eq!(refused.code, Code::Unauthenticated);
    let refused = put(agent.client(&broker)).await.unwrap_err();
    assert_eq!(refused.code, Code::Forbidden);
    let refused = put(broker.admin.clone()).await.unwrap_err();
    assert_eq!(refused.code, Code::Forbidden);
    let bare = broker.member("west", "10.1.0.0/16").await;
    let refused = put(bare.client(&broker)).await.unwrap_err();
    assert_eq!(refused.code, Code::NotFound);
    put(gateway.client(&broker)).await.unwrap();
    late.prove(&broker, 1, &ec, "subsea-agent").await.unwrap();
    let log = audit(&broker).await;
    let told = log.iter().find(|e| e.action == "cluster.keys").unwrap();
    assert_eq!(told.who, "cluster/east/gateway/n1");
    assert_eq!(told.detail, "e1 r1, before r1");
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_made_anew_takes_its_place_and_the_old_one_is_cut_off() {
    let broker = Broker::start().await;
    let signer = Signer::ec("k");
    admit(&broker, "east", 1, &[&signer], "10.0.0.0/16").await;
    let mut old = Node::new("east", "n1");
    old.prove(&broker, 1, &signer, "subsea-gateway")
        .await
        .unwrap();
    old.register(&broker, "192.0.2.1:51820").await.unwrap();
    let mut stream = old.client(&broker).watch("").await.unwrap();
    stream.next().await.unwrap();
    // The answer of the first one got lost: the same key is no news.
    old.prove(&broker, 1, &signer, "subsea-gateway")
        .await
        .unwrap();
    old.client(&broker).watch("").await.unwrap();
    let mut new = Node::new("east", "n1");
    new.prove(&broker, 1, &signer, "subsea-gateway")
        .await
        .unwrap();
    while stream.next().await.is_some() {}
    let refused = old.client(&broker).watch("").await.err().unwrap();
    assert_eq!(refused.code, Code::NotMember);
    let refused = old
        .client(&broker)
        .post::<Value>("/v1/challenge", &())
        .await
        .unwrap_err();
    assert_eq!(refused.code, Code::NotMember);
    let registered = new.register(&broker, "192.0.2.1:51820").await.unwrap();
    let info: ClusterInfo = broker.admin.get("/v1/admin/clusters/east").await.unwrap();
    assert_eq!(info.record.gateways["n1"], registered);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_malformed_is_refused_without_being_repeated() {
    let broker = Broker::start().await;
    let signer = Signer::ec("k");
    let client = broker.anonymous();
    let file = broker.token("east", "member").await;
    let good = admission(&file, 1, &[&signer], "10.0.0.0/16");
    let mut weak = signer.jwk();
    weak["kty"] = json!("RSA");
    weak["alg"] = json!("RS256");
    weak["n"] = json!("_".repeat(171));
    weak["e"] = json!("AQAB");
    let many: Vec<Value> = (0..17)
        .map(|n| Signer::ec(&format!("k{n}")).jwk())
        .collect();
    for (pointer, value) in [
        ("/service_accounts/keys/keys", json!([weak])),
        ("/service_accounts/keys/keys", json!([])),
        ("/service_accounts/keys/keys", json!(many)),
        ("/service_accounts/keys/keys/0/alg", json!("HS256")),
        ("/service_accounts/issuer", json!("")),
        ("/service_accounts/namespace", json!("Not a name")),
        ("/credential", json!("1234")),
        ("/cidrs", json!({})),
        ("/service_accounts", json!({"colour": "blue"})),
    ] {
        let mut body = good.clone();
        *body.pointer_mut(pointer).unwrap() = value;
        let refused = client.post::<Value>("/v1/admit", &body).await.unwrap_err();
        assert_eq!(refused.code, Code::BadRequest, "{pointer}");
    }
    let _: AdmitResponse = client.post("/v1/admit", &good).await.unwrap();
    let node = Node::new("east", "n1");
    let secret = "s".repeat(17 * 1024);
    for token in [String::new(), "a.b".to_owned(), format!("a.{secret}.b")] {
        let body = json!({"fleet": "f1", "cluster": "east", "credential": credential(1),
            "service_account_token": token, "csr_pem": node.csr()});
        for path in ["/v1/enrol", "/v1/withdraw"] {
            let refused = client.post::<Value>(path, &body).await.unwrap_err();
            assert_eq!(refused.code, Code::BadRequest);
            assert!(!refused.message.contains("ssss"), "{}", refused.message);
        }
    }
    let token = signer.token(&claims("subsea-agent", "n1", now()));
    let body = json!({"fleet": "f1", "cluster": "east", "credential": credential(1),
        "service_account_token": token, "csr_pem": "none"});
    let refused = client.post::<Value>("/v1/enrol", &body).await.unwrap_err();
    assert_eq!(refused.code, Code::BadRequest, "no certificate request");
    for path in ["/v1/admit", "/v1/enrol", "/v1/withdraw"] {
        let (status, _) = client.raw("POST", path, vec![b' '; 300 * 1024]).await;
        assert_eq!(status, 413, "{path}");
    }
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_admissions_at_once_with_one_token_exactly_one_wins() {
    let broker = Broker::start().await;
    for round in 0..20u8 {
        let (one, two) = (Signer::ec("a"), Signer::ec("b"));
        let file = broker.token(&format!("c{round}"), "member").await;
        let pod = format!("10.{round}.0.0/16");
        let bodies = [
            admission(&file, 1, &[&one], &pod),
            admission(&file, 2, &[&two], &pod),
        ];
        let clients = [broker.anonymous(), broker.anonymous()];
        let (first, second) = tokio::join!(
            clients[0].post::<AdmitResponse>("/v1/admit", &bodies[0]),
            clients[1].post::<AdmitResponse>("/v1/admit", &bodies[1]),
        );
        let lost = match (first, second) {
            (Ok(_), Err(lost)) | (Err(lost), Ok(_)) => lost,
            other => panic!("round {round}: {other:?}"),
        };
        assert_eq!(lost.code, Code::TokenUsed);
    }
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn admissions_survive_a_restart_and_a_restore_forgives_nobody() {
    let broker = Broker::start().await;
    let (old, new, thief) = (Signer::ec("k1"), Signer::ec("k2"), Signer::ec("t"));
    admit(&broker, "east", 1, &[&old], "10.0.0.0/16").await;
    admit(&broker, "thief", 3, &[&thief], "10.2.0.0/16").await;
    let tmp = broker.stop().await.unwrap();
    let broker = Broker::start_in(config(tmp.path())).await.unwrap();
    Node::new("east", "n1")
        .prove(&broker, 1, &old, "subsea-gateway")
        .await
        .unwrap();
    let (status, backup) = broker.admin.raw("GET", "/v1/admin/backup", vec![]).await;
    assert_eq!(status, 200);
    // Since the backup: another credential and key, a cluster that is revoked, and one that is new.
    admit(&broker, "east", 1, &[&new], "10.0.0.0/16").await;
    admit(&broker, "east", 2, &[&new], "10.0.0.0/16").await;
    let _: () = broker
        .admin
        .post("/v1/admin/clusters/thief/revoke", &())
        .await
        .unwrap();
    let late = Signer::ec("l");
    admit(&broker, "late", 4, &[&late], "10.3.0.0/16").await;
    let (status, text) = broker
        .admin
        .raw("POST", "/v1/admin/restore", backup.to_vec())
        .await;
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&text));
    let attempts = async |broker: &Broker| {
        let mut codes = Vec::new();
        for (cluster, secret, signer) in
            [("east", 1, &old), ("thief", 3, &thief), ("late", 4, &late)]
        {
            let refused = Node::new(cluster, "n2")
                .prove(broker, secret, signer, "subsea-agent")
                .await;
            codes.push(refused.unwrap_err().code);
        }
        let refused = Node::new("east", "n2")
            .prove(broker, 2, &old, "subsea-agent")
            .await;
        assert_eq!(reason(&refused.unwrap_err()), "unknown-key");
        Node::new("east", "n2")
            .prove(broker, 2, &new, "subsea-agent")
            .await
            .unwrap();
        codes
    };
    assert_eq!(attempts(&broker).await, [Code::CredentialUnknown; 3]);
    broker.stop().await;
    // The same by the local verb.
    let file = tmp.path().join("backup.db");
    std::fs::write(&file, &backup).unwrap();
    restore_local(tmp.path(), &file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let broker = Broker::start_in(config(tmp.path())).await.unwrap();
    assert_eq!(attempts(&broker).await, [Code::CredentialUnknown; 3]);
    broker.stop().await;
}

/// Makes of a store what the first format was: without the table of admissions.
fn first_format(store: &std::path::Path) {
    let connection = rusqlite::Connection::open(store).unwrap();
    connection
        .execute_batch(
            "DROP TABLE admissions; PRAGMA user_version = 1; PRAGMA wal_checkpoint(TRUNCATE);",
        )
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_the_first_format_is_opened_and_so_is_a_backup_of_it() {
    let broker = Broker::start().await;
    let bare = broker.member("west", "10.1.0.0/16").await;
    let (_, backup) = broker.admin.raw("GET", "/v1/admin/backup", vec![]).await;
    let tmp = broker.stop().await.unwrap();
    first_format(&tmp.path().join("store.db"));
    let broker = Broker::start_in(config(tmp.path())).await.unwrap();
    bare.client(&broker).watch("").await.unwrap();
    let signer = Signer::ec("k");
    admit(&broker, "east", 1, &[&signer], "10.0.0.0/16").await;
    let outside = tempfile::tempdir().unwrap();
    let file = outside.path().join("backup.db");
    std::fs::write(&file, &backup).unwrap();
    first_format(&file);
    let first = std::fs::read(&file).unwrap();
    let (status, text) = broker.admin.raw("POST", "/v1/admin/restore", first).await;
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&text));
    admit(&broker, "east", 2, &[&signer], "10.0.0.0/16").await;
    Node::new("east", "n1")
        .prove(&broker, 2, &signer, "subsea-agent")
        .await
        .unwrap();
    broker.stop().await;
    // A later format is still left alone.
    let connection = rusqlite::Connection::open(tmp.path().join("store.db")).unwrap();
    connection.execute_batch("PRAGMA user_version = 3").unwrap();
    drop(connection);
    let error = Broker::start_in(config(tmp.path()))
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("format 3"), "{error}");
}
