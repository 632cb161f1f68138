//! Who may write what, and who is shut out.

use std::time::Duration;

use serde_json::{Value, json};
use subsea_api::Code;
use subsea_api::admin::{AllocationInfo, AllocationState};
use subsea_api::snapshot::{Gone, WatchEvent};

use crate::common::{Broker, Client, Node};

async fn put(client: &Client, path: &str, body: &Value) -> Code {
    client
        .call::<Value>("PUT", path, Some(body))
        .await
        .unwrap_err()
        .code
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_writes_only_its_own_records() {
    let broker = Broker::start().await;
    let east = broker.member("east", "10.0.0.0/16").await;
    let west = broker.member("west", "10.1.0.0/16").await;
    let client = east.client(&broker);
    let body = east
        .registration(&client, east.public_key(), "192.0.2.1:51820")
        .await;
    assert_eq!(put(&client, &west.path(), &body).await, Code::Forbidden);
    assert_eq!(
        put(&client, "/v1/clusters/east/gateways/gw-2", &body).await,
        Code::Forbidden
    );
    assert_eq!(
        client.delete(&west.path()).await.unwrap_err().code,
        Code::Forbidden
    );
    assert_eq!(
        client.delete("/v1/clusters/west").await.unwrap_err().code,
        Code::Forbidden
    );
    let agent = broker.enrol("east", "agent", "gw-1").await.client(&broker);
    assert_eq!(
        put(&agent, &east.path(), &body).await,
        Code::Forbidden,
        "an agent only reads"
    );
    assert_eq!(
        agent
            .post::<Value>("/v1/challenge", &())
            .await
            .unwrap_err()
            .code,
        Code::Forbidden
    );
    assert_eq!(
        agent.delete("/v1/clusters/east").await.unwrap_err().code,
        Code::Forbidden
    );
    assert!(agent.watch("").await.is_ok());
    assert_eq!(
        client
            .get::<Value>("/v1/admin/status")
            .await
            .unwrap_err()
            .code,
        Code::Forbidden
    );
    assert_eq!(
        broker.admin.watch("").await.err().unwrap().code,
        Code::Forbidden
    );
    let nobody = broker.anonymous();
    for (method, path) in [
        ("GET", "/v1/watch"),
        ("GET", "/v1/admin/tokens"),
        ("POST", "/v1/challenge"),
        ("DELETE", "/v1/clusters/east"),
    ] {
        let refused = nobody
            .call::<Value>(method, path, None::<&()>)
            .await
            .unwrap_err();
        assert_eq!(refused.code, Code::Unauthenticated, "{path}");
    }
    assert_eq!(nobody.raw("GET", "/healthz", vec![]).await.0, 200);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_registers_anothers_key() {
    let broker = Broker::start().await;
    let east = broker.member("east", "10.0.0.0/16").await;
    let mut west = broker.member("west", "10.1.0.0/16").await;
    east.register(&broker, "192.0.2.1:51820").await.unwrap();
    let client = west.client(&broker);
    // Knowing the public key is not having the private one.
    let body = west
        .registration(&client, east.public_key(), "192.0.2.2:51820")
        .await;
    assert_eq!(put(&client, &west.path(), &body).await, Code::ProofInvalid);
    // A proof made for another node is none.
    let other = east
        .registration(&east.client(&broker), west.public_key(), "192.0.2.2:51820")
        .await;
    assert_eq!(put(&client, &west.path(), &other).await, Code::ProofInvalid);
    let mut low = west
        .registration(&client, west.public_key(), "192.0.2.2:51820")
        .await;
    low["listeners"][0]["listener"]["public_key"] =
        json!("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    assert_eq!(
        put(&client, &west.path(), &low).await,
        Code::BadRequest,
        "a point of low order"
    );
    // A copied private key does not help either: the key has its owner.
    west.wireguard = east.wireguard.clone();
    let stolen = west.register(&broker, "192.0.2.2:51820").await.unwrap_err();
    assert_eq!(stolen.code, Code::KeyTaken);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_inside_routed_blocks_are_refused() {
    let broker = Broker::start().await;
    let east = broker.member("east", "10.0.0.0/16").await;
    broker.member("west", "10.1.0.0/16").await;
    let refused = east.register(&broker, "10.1.2.3:51820").await.unwrap_err();
    assert_eq!(refused.code, Code::CidrConflict);
    assert_eq!(
        refused.details.unwrap()["conflicts"][0]["existing"]["owner"]["cluster"],
        "west"
    );
    assert_eq!(
        east.register(&broker, "127.0.0.1:51820")
            .await
            .unwrap_err()
            .code,
        Code::BadRequest
    );
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_cuts_the_stream_at_once_and_refuses_from_then_on() {
    let broker = Broker::start().await;
    let east = broker.member("east", "10.0.0.0/16").await;
    let west = broker.member("west", "10.1.0.0/16").await;
    east.register(&broker, "192.0.2.1:51820").await.unwrap();
    let client = east.client(&broker);
    let mut cut = client.watch("").await.unwrap();
    cut.next().await.unwrap();
    let mut told = west.client(&broker).watch("").await.unwrap();
    told.next().await.unwrap();
    let done: () = broker
        .admin
        .post("/v1/admin/clusters/east/revoke", &())
        .await
        .unwrap();
    let cut_and_told = async {
        while cut.next().await.is_some() {}
        loop {
            let Some(WatchEvent::Delta { delta }) = told.news().await else {
                panic!("no delta")
            };
            let last = delta.changes.last();
            if let Some(subsea_api::snapshot::Change::Remove { tombstone, .. }) = last {
                break *tombstone;
            }
        }
    };
    // The commit is over. What waits for the next heartbeat takes up to 10 s.
    let tombstone = tokio::time::timeout(Duration::from_secs(8), cut_and_told)
        .await
        .expect("not at once");
    assert_eq!(tombstone.reason, Gone::Revoked);
    // The connection is the same one as before: each request is checked, not each handshake.
    assert_eq!(
        client.watch("").await.err().unwrap().code,
        Code::MemberRevoked
    );
    assert_eq!(
        client
            .post::<Value>("/v1/challenge", &())
            .await
            .unwrap_err()
            .code,
        Code::MemberRevoked
    );
    let renewal = json!({"csr_pem": east.csr()});
    assert_eq!(
        client
            .post::<Value>("/v1/renew", &renewal)
            .await
            .unwrap_err()
            .code,
        Code::MemberRevoked
    );
    let body = json!({"cluster": "east", "role": "member", "ttl_seconds": 60});
    assert_eq!(
        broker
            .admin
            .post::<Value>("/v1/admin/tokens", &body)
            .await
            .unwrap_err()
            .code,
        Code::MemberRevoked
    );
    broker
        .admin
        .delete("/v1/admin/clusters/east")
        .await
        .unwrap();
    assert_eq!(
        client.watch("").await.err().unwrap().code,
        Code::NotMember,
        "forgotten is not forgiven"
    );
    broker.member("east", "10.0.0.0/16").await;
    assert_eq!(
        client.watch("").await.err().unwrap().code,
        Code::NotMember,
        "the old key stays out"
    );
    let _: () = done;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_leaves_and_its_blocks_rest() {
    let broker = Broker::start().await;
    let east = broker.member("east", "10.0.0.0/16").await;
    east.register(&broker, "192.0.2.1:51820").await.unwrap();
    let second = broker.enrol("east", "gateway", "gw-2").await;
    assert_eq!(
        second
            .register(&broker, "192.0.2.2:51820")
            .await
            .unwrap()
            .slot,
        1
    );
    let client = east.client(&broker);
    let mut stream = client.watch("").await.unwrap();
    assert_eq!(
        client.delete("/v1/clusters/east").await.unwrap_err().code,
        Code::InUse
    );
    second
        .client(&broker)
        .delete("/v1/clusters/east")
        .await
        .unwrap();
    assert_eq!(
        second.client(&broker).watch("").await.err().unwrap().code,
        Code::NotMember
    );
    let third = broker.enrol("east", "gateway", "gw-2").await;
    third.register(&broker, "192.0.2.3:51820").await.unwrap();
    client.delete("/v1/clusters/east?force=true").await.unwrap();
    while stream.next().await.is_some() {}
    assert_eq!(client.watch("").await.err().unwrap().code, Code::NotMember);
    let list: Vec<AllocationInfo> = broker.admin.get("/v1/admin/allocations").await.unwrap();
    assert!(
        !list.is_empty() && list.iter().all(|a| a.state == AllocationState::Resting),
        "{list:?}"
    );
    let token = broker.token("west", "member").await;
    let mut west = Node::new("west", "gw-1");
    let refused = west
        .join(&broker, &token, json!({"pod": ["10.0.0.0/16"]}))
        .await
        .unwrap_err();
    assert_eq!(refused.code, Code::CidrConflict);
    assert_eq!(
        refused.details.unwrap()["conflicts"][0]["existing"]["owner"]["reservation"],
        "east"
    );
    broker.member("east", "10.0.0.0/16").await;
    broker.stop().await;
}
